"""The sheet of samples: as many as there are, read from the beginning of the tars alone, whatever the captions hold."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline import thumbnails
from pipeline.storage import Store
from stages.shards.tar import write_tar
from tests.support.corpus import picture


def test_the_first_samples_with_their_captions(tmp_path: Path) -> None:
    texts = ["<script>", "", "名前 ümlaut \N{DOG}", "long " * 100]
    members = [{"jpg": picture(n, (224, 100)), "txt": text.encode(), "json": b"{}"} for n, text in enumerate(texts * 10)]
    write_tar(tmp_path / "00000.tar", ((f"{n:05d}", one) for n, one in enumerate(members)))
    assert thumbnails.write(Store(str(tmp_path)), ["00000.tar"]) == "report/samples.jpg"
    with Image.open(tmp_path / "report" / "samples.jpg") as sheet:
        assert sheet.size == (6 * thumbnails.WIDE + thumbnails.GAP, 4 * thumbnails.HIGH + thumbnails.GAP)
        middle = sheet.getpixel((thumbnails.GAP + 80, thumbnails.GAP + 30))
    with Image.open(io.BytesIO(members[0]["jpg"])) as first:
        first.thumbnail((thumbnails.SIDE, thumbnails.SIDE))
        assert all(abs(a - b) < 40 for a, b in zip(first.getpixel((80, 30)), middle, strict=True))  # type: ignore[arg-type]


def test_no_samples_no_sheet(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w"):
        pass
    assert thumbnails.write(Store(str(tmp_path)), ["00000.tar"]) is None
    assert not (tmp_path / "report").exists()


def test_a_picture_above_pillows_own_limit_is_shown_and_a_broken_one_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = picture(1, (224, 100))
    bodies = [b"<html>", sound[: len(sound) // 2], b"\xff\xd8\xff", sound, b""]
    write_tar(tmp_path / "00000.tar", ((f"{n}", {"jpg": body, "txt": f"{n}".encode()}) for n, body in enumerate(bodies)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert [caption for _, caption in thumbnails.samples(Store(str(tmp_path)), "00000.tar")] == ["3"]
    assert thumbnails.write(Store(str(tmp_path)), ["00000.tar"]) == "report/samples.jpg"
