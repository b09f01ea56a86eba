"""A tar read again: what is a fault of a sample's picture, and what is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.shards import check
from tests.stages.shards.shard_rows import kept, picture, table, write


def faults(folder: Path, *images: bytes) -> list[tuple[str, str]]:
    write(folder, table([kept(n, image=image) for n, image in enumerate(images)]))
    with (folder / "00000.tar").open("rb") as handle:
        return check.read_tar(handle, "00000", pq.read_table(folder / "00000.parquet", columns=list(check.COLUMNS))).faults


def test_a_sound_picture_above_pillows_own_limit_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert faults(tmp_path, picture(0)) == []


def test_what_cannot_be_decoded_is_a_fault_of_its_sample(tmp_path: Path) -> None:
    found = faults(tmp_path, b"<html>", picture(0), picture(1)[:-200])
    assert [key for key, _ in found] == ["000000000", "000000002"]
    assert found[0][1] == "its image cannot be decoded: its first bytes are those of no picture"
    assert found[1][1].startswith("its image cannot be decoded: OSError: ")
