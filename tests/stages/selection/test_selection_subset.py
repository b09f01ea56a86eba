"""Subset files as DataComp writes them, and plain lists of uids."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import catalog
from pipeline.errors import UserError
from pipeline.stage import keyed_config

UIDS = [f"{random.Random(at).getrandbits(128):032x}" for at in range(50)]
CHOSEN = [*UIDS[::3], UIDS[0]]  # one of them twice: DataComp samples it twice, a run keeps it once


def datacomp_array(uids: list[str]) -> np.ndarray:
    """As DataComp's baselines make it: the halves of each uid as numbers, sorted."""
    pairs = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], np.dtype("u8,u8"))
    pairs.sort()
    return pairs


def write(path: Path, uids: list[str]) -> Path:
    match path.stem, path.suffix:
        case "raw", _:
            path.write_bytes(datacomp_array(uids).tobytes())
        case _, ".npy":
            np.save(path, datacomp_array(uids))
        case _, ".txt":
            path.write_text("\n".join(uids[:3]) + "\n\n" + "\r\n".join(uids[3:]).upper())
        case _, ".parquet":
            pq.write_table(pa.table({"uid": [*uids, None], "other": [1] * (len(uids) + 1)}), path)
    return path


@pytest.mark.parametrize("name", ["subset.npy", "raw.npy", "uids.txt", "uids.parquet"])
def test_rows_in_the_file_are_kept(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [*CHOSEN, "f" * 32])
    known = pa.table({"row": range(50), "fate": ["kept"] * 50, "detail": pa.nulls(50, pa.string()), "uid": UIDS})
    stage = catalog.entry("selection", [{"name": "subset", "subset_file": str(path)}]).stage
    with duckdb.connect() as con:
        con.register("known", known)
        stage.run(con, "known", seed=0, shards=SimpleNamespace(samples=100, order="shuffled", multiple_of=1), dedup_on=None)
        found = con.execute("SELECT row, fate, detail FROM selected ORDER BY row").fetchall()
    assert [row for row, fate, _ in found if fate == "kept"] == list(range(0, 50, 3))
    assert {(fate, detail) for _, fate, detail in found if fate != "kept"} == {("selection:subset", f"its uid is not in {path}")}


def test_changed_file_is_another_selection(tmp_path: Path) -> None:
    path = write(tmp_path / "uids.txt", UIDS)
    before, _ = (keyed_config(catalog.entry("selection", [{"name": "s", "subset_file": str(path)}]).stage.config), write(path, CHOSEN))
    assert keyed_config(catalog.entry("selection", [{"name": "s", "subset_file": str(path)}]).stage.config) != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.npy", None, "cannot read"),
        ("uids.json", b"[]", "subset files end in"),
        ("short.npy", b"x" * 17, "cut short"),
        ("uids.txt", b"0" * 32 + b"\n12\n", "line 2: a uid has 32 hex digits, not '12'"),
        ("uids.parquet", b"PAR1", "cannot read"),
    ],
)
def test_unfit_files_are_refused_before_any_work(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        catalog.entry("selection", [{"name": "s", "subset_file": str(tmp_path / name)}]).stage.check({})


def test_numpy_array_of_another_kind_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros(3))
    with pytest.raises(UserError, match="expected one dimension of dtype u8,u8"):
        catalog.entry("selection", [{"name": "s", "subset_file": str(tmp_path / "floats.npy")}]).stage.check({})
