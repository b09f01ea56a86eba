"""The files of a shard: bytes, names, Parquet, JSON and statistics."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import catalog
from pipeline.errors import ContractError, UserError
from stages import shards
from tests.stages.shards.shard_rows import dropped, kept, picture, table, write

MIXED = [
    kept(0),
    kept(1, image=picture(1, "WEBP"), format="webp"),
    dropped(2, "download:http_404", "HTTP 404"),
    dropped(3, "images:too_small", None, sha256="ab"),
    dropped(4, "selection:similarity", "similarity 0.1", width=32, height=24, similarity=0.1),
    dropped(5, "dedup:same_pair"),
]


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def test_tar_holds_the_samples_and_the_parquet_all_rows(tmp_path: Path) -> None:
    facts = write(tmp_path, table(MIXED))
    assert list(facts.files) == ["00000.tar", "00000.parquet", "00000_stats.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(facts.files)
    data = (tmp_path / "00000.tar").read_bytes()
    assert (facts.samples, facts.bytes, facts.sha256) == (2, len(data), hashlib.sha256(data).hexdigest())
    files = members(tmp_path / "00000.tar")
    assert list(files) == [
        *("000000000.jpg", "000000000.json", "000000000.txt"),
        *("000000001.json", "000000001.txt", "000000001.webp"),
    ]
    assert files["000000000.jpg"] == MIXED[0]["image"]
    assert files["000000000.txt"] == b"photo 0"
    listed = pq.read_table(tmp_path / "00000.parquet")
    assert listed["key"].to_pylist() == ["000000000", "000000001", None, None, None, None]
    assert listed["status"].to_pylist() == ["success"] * 2 + ["failed_to_download", "failed_to_resize", "filtered", "filtered"]
    said = [None, None, "HTTP 404", "images:too_small", "similarity 0.1", "dedup:same_pair"]
    assert listed["error_message"].to_pylist() == said
    assert listed["fate"].to_pylist() == [row["fate"] for row in MIXED]
    assert listed["row"].to_pylist() == [row["row"] for row in MIXED]
    names = listed.column_names
    assert names[:11] == [
        "caption",
        "url",
        "key",
        "status",
        "error_message",
        "width",
        "height",
        "original_width",
        "original_height",
        "exif",
        "sha256",
    ]
    assert not {"image", "shard", "index", "fetch_id", "detail"} & set(names)
    assert pq.ParquetFile(tmp_path / "00000.parquet").num_row_groups == 1


def test_statistics_count_every_row_once(tmp_path: Path) -> None:
    write(tmp_path, table(MIXED))
    stats = json.loads((tmp_path / "00000_stats.json").read_text())
    counts = {name: stats[name] for name in ("count", "successes", "failed_to_download", "failed_to_resize", "filtered")}
    assert counts == {"count": 6, "successes": 2, "failed_to_download": 1, "failed_to_resize": 1, "filtered": 2}
    assert stats["status_dict"] == {
        **{"success": 2, "download:http_404": 1, "images:too_small": 1},
        **{"selection:similarity": 1, "dedup:same_pair": 1},
    }
    assert stats["duration"] == pytest.approx(stats["end_time"] - stats["start_time"])


def test_pictures_that_cannot_be_made_of_what_was_fetched_are_not_filtered(tmp_path: Path) -> None:
    write(tmp_path, table([kept(0), dropped(1, "frames:damaged"), dropped(2, "images:not_an_image")]))
    listed = pq.read_table(tmp_path / "00000.parquet")
    assert listed["status"].to_pylist() == ["success", "failed_to_resize", "failed_to_resize"]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, table(MIXED), idx=True) for name in "ab")
    assert one == two
    assert list(one.files) == ["00000.tar", "00000.parquet", "00000.idx", "00000_stats.json"]
    for name, noted in one.files.items():
        data = (tmp_path / "a" / name).read_bytes()
        if noted is None:  # the statistics hold times
            assert name == "00000_stats.json"
        else:
            assert data == (tmp_path / "b" / name).read_bytes()
            assert noted == shards.FileFacts(len(data), hashlib.sha256(data).hexdigest())


def test_tar_is_plain_ustar_with_fixed_metadata(tmp_path: Path) -> None:
    write(tmp_path, table(MIXED))
    with tarfile.open(tmp_path / "00000.tar") as tar:
        infos = list(tar)
    assert {(i.mtime, i.mode, i.uname, i.gname, i.type) for i in infos} == {(0, 0o444, "bigdata", "bigdata", tarfile.REGTYPE)}
    assert all(not i.pax_headers and i.offset_data == i.offset + 512 for i in infos)


def test_json_has_the_same_typed_keys_in_every_sample(tmp_path: Path) -> None:
    rows = [
        kept(0),
        kept(1, similarity=None, language=None, exif=None, flat=None, width=None),
        kept(2, similarity=float("nan"), caption=None),
    ]
    write(tmp_path, table(rows))
    files = members(tmp_path / "00000.tar")
    first, second, third = (json.loads(files[f"00000000{at}.json"], parse_constant=pytest.fail) for at in range(3))
    assert list(first) == list(second) == list(third)
    assert [type(value) for value in first.values()] == [type(value) for value in second.values()]
    assert (first["similarity"], second["similarity"], third["similarity"]) == (0.28, 0.0, 0.0)
    assert (first["uid"], first["error_message"], second["exif"], second["flat"]) == (f"{0:032x}", "", "", False)
    assert files["000000002.txt"] == b""
    assert pq.read_table(tmp_path / "00000.parquet").column_names == list(first)


def test_what_differs_between_runs_or_is_only_claimed_does_not_reach_the_samples(tmp_path: Path) -> None:
    fields = [pa.field("latency_ms", pa.int32()), pa.field("claimed_punsafe", pa.float32()), pa.field("tokens", pa.int32())]
    one, two = (write(tmp_path / name, table([kept(0, latency_ms=ms)], *fields)) for name, ms in (("a", 3), ("b", 99)))
    assert one == two
    assert (tmp_path / "a" / "00000.parquet").read_bytes() == (tmp_path / "b" / "00000.parquet").read_bytes()
    meta = json.loads(members(tmp_path / "a" / "00000.tar")["000000000.json"])
    listed = pq.read_table(tmp_path / "a" / "00000.parquet")
    assert set(listed.column_names) - set(meta) == {"claimed_punsafe", "tokens"}
    assert listed["claimed_punsafe"].to_pylist() == [None]


def test_odd_values_lose_no_sample(tmp_path: Path) -> None:
    """What makes img2dataset lose rows silently: bytes, dates, decimals, lone surrogates; and what makes its JSON invalid."""
    fields = {
        "bytes": (pa.binary(), [b"\xff", None]),
        "when": (pa.timestamp("us", "UTC"), [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), None]),
        "price": (pa.decimal128(9, 2), [Decimal("1.50"), None]),
        "nested": (pa.list_(pa.struct([("x", pa.float64())])), [[{"x": float("nan")}], None]),
        "infinite": (pa.float64(), [float("inf"), -1e300]),
        "half": (pa.float16(), [0.5, None]),
        "big": (pa.uint64(), [2**64 - 1, None]),
        "large": (pa.large_string(), ["\U0001f431\x00\u2028", None]),
        "kind": (pa.dictionary(pa.int8(), pa.string()), ["a", None]),
        "nothing": (pa.null(), [None, None]),
    }
    rows = table([kept(0, caption="x" * 100_000), kept(1, caption='"\\\n\x7f é 漢')])
    for name, (kind, values) in fields.items():
        rows = rows.append_column(name, pa.array(values, kind))
    broken = pa.array([b"lone \xed\xa0\x80 surrogate", b"\xff"], pa.binary()).view(pa.string())
    rows = rows.set_column(rows.schema.get_field_index("carried"), "carried", broken)
    facts = write(tmp_path, rows)
    files = members(tmp_path / "00000.tar")
    assert (facts.samples, len(files), pq.read_table(tmp_path / "00000.parquet").num_rows) == (2, 6, 2)
    first, second = (json.loads(files[f"00000000{at}.json"], parse_constant=pytest.fail) for at in range(2))
    assert first["caption"] == files["000000000.txt"].decode() == "x" * 100_000
    assert second["caption"] == files["000000001.txt"].decode() == '"\\\n\x7f é 漢'
    assert (first["price"], first["infinite"], second["infinite"], first["big"], first["half"]) == ("1.50", 0.0, -1e300, 2**64 - 1, 0.5)
    assert (first["carried"].startswith("lone "), second["carried"], first["kind"], first["nothing"]) == (True, "\ufffd", "a", "")
    assert not {"bytes", "nested"} & set(first)
    assert {"bytes", "nested"} <= set(pq.read_table(tmp_path / "00000.parquet").column_names)


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=30), st.floats(width=32) | st.none()), min_size=1, max_size=8))
@settings(max_examples=30)
def test_any_caption_and_score_come_back_from_tar_and_json(values: list[tuple[str, float | None]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        write(Path(name), table([kept(at, caption=text, similarity=score) for at, (text, score) in enumerate(values)]))
        files = members(Path(name, "00000.tar"))
    for at, (text, score) in enumerate(values):
        meta = json.loads(files[f"{at:09d}.json"])
        assert files[f"{at:09d}.txt"].decode() == meta["caption"] == text
        assert pa.scalar(meta["similarity"], pa.float32()).as_py() == (score if score is not None and abs(score) < float("inf") else 0)


@given(st.integers(0, 10**7), st.integers(1, 200_000), st.data())
@settings(max_examples=60)
def test_keys_are_img2datasets_and_sql_agrees(shard: int, samples: int, data: Any) -> None:
    index, total = data.draw(st.integers(0, samples - 1)), shard + data.draw(st.integers(1, 10))
    (key,) = shards.keys(shard, pa.array([index]), samples, total).to_pylist()
    places = math.ceil(math.log10(samples))
    assert key == f"{shard * 10**places + index:0{shards.shard_digits(total) + places}d}"
    assert key.startswith(f"{shard:0{shards.shard_digits(total)}d}")
    stage = catalog.entry("shards", {"samples": samples}).stage
    with duckdb.connect() as con:
        sql = stage.key_sql("s.shard", 's."index"', total)
        assert con.execute(f'SELECT {sql} FROM (SELECT {shard}::INTEGER AS shard, {index}::INTEGER AS "index") s').fetchone() == (key,)


@pytest.mark.parametrize(("total", "digits"), [(0, 5), (1, 5), (100_000, 5), (100_001, 6)])
def test_names_have_as_many_digits_as_the_last_shard_needs(total: int, digits: int) -> None:
    assert shards.shard_digits(total) == digits


def test_caption_of_the_source_is_written_when_asked(tmp_path: Path) -> None:
    write(tmp_path, table([kept(0)]), caption="source")
    listed = pq.read_table(tmp_path / "00000.parquet").to_pylist()[0]
    assert members(tmp_path / "00000.tar")["000000000.txt"] == b"Photo 0&amp;"
    assert (listed["caption"], listed["source_caption"], listed["cleaned_caption"]) == ("Photo 0&amp;", "Photo 0&amp;", "photo 0")


def test_run_without_a_captions_stage_writes_the_source(tmp_path: Path) -> None:
    write(tmp_path, table([kept(0)]).drop_columns(["caption"]))
    assert members(tmp_path / "00000.tar")["000000000.txt"] == b"Photo 0&amp;"


def test_shard_without_samples_lists_its_rows(tmp_path: Path) -> None:
    facts = write(tmp_path, table([dropped(0, "download:timeout")]), idx=True)
    assert (facts.samples, members(tmp_path / "00000.tar")) == (0, {})
    assert pq.read_table(tmp_path / "00000.parquet")["status"].to_pylist() == ["failed_to_download"]
    assert (tmp_path / "00000.idx").read_text() == "v1.2 0\n"


@pytest.mark.parametrize("fault", [{"image": None}, {"format": "gif"}, {"index": None}])
def test_kept_row_that_cannot_be_written_is_an_error_not_a_loss(tmp_path: Path, fault: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="row 7 is kept, but"):
        write(tmp_path, table([kept(0), kept(1, **fault)]))


def test_input_order_refuses_a_multiple() -> None:
    with pytest.raises(UserError, match="multiple_of"):
        catalog.entry("shards", {"order": "input", "multiple_of": 8})


def test_dali_index_points_at_the_bytes(tmp_path: Path) -> None:
    write(tmp_path, table(MIXED), idx=True)
    head, *lines = (tmp_path / "00000.idx").read_text().splitlines()
    data, files = (tmp_path / "00000.tar").read_bytes(), members(tmp_path / "00000.tar")
    assert head == "v1.2 2"
    found = {}
    for line in lines:
        words = line.split(" ")
        for suffix, offset, size, name in zip(*(words[i::4] for i in range(4)), strict=True):
            assert name.endswith(f".{suffix}")
            found[name] = data[int(offset) : int(offset) + int(size)]
    assert (found, len(lines)) == (files, 2)
