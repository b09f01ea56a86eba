"""Shards of the same images by img2dataset and by us in `order: input`: every difference is one that is meant."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import catalog
from tests.stages.shards.shard_rows import picture, write

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("img2dataset"), reason="needs the extra img2dataset")

CAPTIONS = ["one", "two é", "three", "four", None, "six"]
PATHS = ["0.jpg", "1.jpg", "absent.jpg", "page.jpg", "4.jpg", "5.jpg"]
SAMPLES = 4
FATES = {"success": "kept", "failed_to_download": "download:http_404", "failed_to_resize": "images:not_an_image"}
# Keys that only one of the two has, or whose values differ, with the reason.
MEANT = {"error_message": "null in img2dataset's JSON of a success, which breaks type inference; ours is an empty text"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What img2dataset makes of six URLs on loopback: four images, a 404 and a page."""
    folder = tmp_path_factory.mktemp("img2dataset")
    web, out = folder / "web", folder / "out"
    web.mkdir()
    for at, name in enumerate(PATHS):
        if name != "absent.jpg":
            (web / name).write_bytes(b"<html>no image</html>" if name == "page.jpg" else picture(at))
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=str(web))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in PATHS]
        uids = [f"{at:032x}" for at in range(len(PATHS))]
        pq.write_table(pa.table({"url": urls, "text": CAPTIONS, "uid": uids}), folder / "list.parquet")
        options = {"url_list": folder / "list.parquet", "input_format": "parquet", "caption_col": "text", "output_folder": out}
        options |= {"output_format": "webdataset", "number_sample_per_shard": SAMPLES, "image_size": 16, "processes_count": 1}
        options |= {"thread_count": 2, "save_additional_columns": "['uid']", "resize_mode": "no"}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([sys.executable, "-m", "img2dataset.main", *arguments], check=True, capture_output=True, timeout=200)
        server.shutdown()
    return out


@pytest.fixture(scope="module")
def ours(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same fetches, numbered by our selection and written by our writer."""
    rows = known(theirs)
    shards = catalog.entry("shards", {"order": "input", "samples": SAMPLES}).stage.config
    with duckdb.connect() as con:
        con.register("known", rows.select(["row", "fate", "detail", "uid"]))
        catalog.entry("selection").stage.run(con, "known", seed=0, shards=shards, dedup_on=None)
        places = con.sql('SELECT row, shard, "index" FROM selected ORDER BY row').to_arrow_table()
    rows = rows.append_column("index", places["index"])
    folder = tmp_path_factory.mktemp("shardmill")
    total = places["shard"][-1].as_py() + 1
    for shard in range(total):
        write(folder, rows.filter(pa.compute.equal(places["shard"], shard)), shard, total, order="input", samples=SAMPLES)
    return folder


def known(theirs: Path) -> pa.Table:
    """img2dataset's Parquet and images as the rows that a run knows, in the order of the input."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(theirs.glob("*.parquet"))]).sort_by("key")
    images = {name[:-4]: data for path in theirs.glob("*.tar") for name, data in members(path).items() if name.endswith(".jpg")}
    more: dict[str, Any] = {
        "row": range(len(table)),
        "fate": [FATES[status] for status in table["status"].to_pylist()],
        "detail": table["error_message"],
        "format": ["jpg"] * len(table),
        "image": pa.array([images.get(key) for key in table["key"].to_pylist()], pa.large_binary()),
    }
    out = table.drop_columns(["key", "status", "error_message"])
    for name, values in more.items():
        out = out.append_column(name, values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(list(values)))
    return out


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def test_files_have_the_same_names(theirs: Path, ours: Path) -> None:
    expected = {f"0000{n}{end}" for n in (0, 1) for end in (".tar", ".parquet", "_stats.json")}
    assert {path.name for path in theirs.iterdir() if path.is_file()} == expected
    assert {path.name for path in ours.iterdir()} == expected


def test_parquet_has_the_same_columns_types_and_values(theirs: Path, ours: Path) -> None:
    for name in ("00000.parquet", "00001.parquet"):
        wanted, got = pq.read_table(theirs / name), pq.read_table(ours / name)
        columns = [column for column in wanted.column_names if column != "uid"]  # save_additional_columns stand first there
        assert got.column_names[: len(columns)] == columns
        assert [got.schema.field(column).type for column in columns] == [wanted.schema.field(column).type for column in columns]
        assert got.select([*columns, "uid"]).to_pylist() == wanted.sort_by("key").select([*columns, "uid"]).to_pylist()


def test_tars_hold_the_same_members(theirs: Path, ours: Path) -> None:
    for name in ("00000.tar", "00001.tar"):
        wanted, got = members(theirs / name), members(ours / name)
        assert list(got) == sorted(wanted)  # theirs are in the order in which downloads ended
        assert {n: data for n, data in got.items() if not n.endswith(".json")} == {
            n: data for n, data in wanted.items() if not n.endswith(".json")
        }
        with tarfile.open(theirs / name) as a, tarfile.open(ours / name) as b:
            assert {(i.mode, i.uname, i.gname) for i in a} == {(i.mode, i.uname, i.gname) for i in b}


def test_json_has_the_same_fields_in_the_same_order_and_form(theirs: Path, ours: Path) -> None:
    for name in ("00000.tar", "00001.tar"):
        wanted, got = members(theirs / name), members(ours / name)
        for member in (n for n in got if n.endswith(".json")):
            want, have = json.loads(wanted[member]), json.loads(got[member])
            assert [key for key in have if key in want and key != "uid"] == [key for key in want if key != "uid"]
            assert {key for key in want if want[key] != have[key] and not (want[key] is None and have[key] == "")} == set()
            assert {key for key in want if want[key] is None} <= {*MEANT, "caption"}
            assert got[member].decode() == json.dumps(have, indent=4)


def test_statistics_have_the_same_fields_and_counts(theirs: Path, ours: Path) -> None:
    for name in ("00000_stats.json", "00001_stats.json"):
        want, have = (json.loads((folder / name).read_text()) for folder in (theirs, ours))
        assert [key for key in have if key != "filtered"] == list(want)
        counts = ("count", "successes", "failed_to_download", "failed_to_resize")
        assert [have[key] for key in counts] == [want[key] for key in counts]
        assert have["filtered"] == 0
