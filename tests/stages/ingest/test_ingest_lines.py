"""Text tables: every line is a row or says why not, and the same rows come whatever the compression and batch size."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.ingest.files import list_files, stream
from stages.ingest.rebatch import MALFORMED
from stages.ingest.stage import Ingest


def read(path: Path, batch: int = 1000, start: int = 0, header: Any = "auto", format: str = "auto") -> list[dict[str, Any]]:
    (file,) = list_files(str(path), format)
    return [row for table in stream(file, start, batch, header=header) for row in table.to_pylist()]


def put(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def columns(path: Path, header: Any = "auto") -> list[str]:
    (file,) = list_files(str(path))
    return [name for name in next(stream(file, 0, 10, header=header)).column_names if name != MALFORMED]


def test_cc3m_and_cc12m_have_opposite_orders_and_both_are_found(tmp_path: Path) -> None:
    cc3m = put(tmp_path / "cc3m.tsv", 'a dog , "running\thttp://a.test/1.jpg\nperson at home\thttp://a.test/2.jpg\n')
    cc12m = put(tmp_path / "cc12m.tsv", "http://a.test/1.jpg\ta <PERSON> outside\nhttp://a.test/2.jpg\tred car\n")
    assert columns(cc3m) == ["caption", "url"]
    assert columns(cc12m) == ["url", "caption"]
    assert [row["caption"] for row in read(cc3m)] == ['a dog , "running', "person at home"]
    assert read(cc12m) == read(cc12m, header="cc12m")
    assert read(cc3m) == read(cc3m, header="cc3m")


def test_real_cc3m_rows_lose_none(data_dir: Path) -> None:
    path = data_dir / "captions/tables/conceptual_captions_3m_validation_sample.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = read(path)
    assert [f"{row['caption']}\t{row['url']}" for row in rows] == lines
    assert not any(row[MALFORMED] for row in rows)


def test_a_broken_first_line_is_no_header(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "list.tsv", "only a caption\n" + "".join(f"caption {i}\thttp://a.test/{i}\n" for i in range(5))))
    assert [row["url"] for row in rows] == [None, *(f"http://a.test/{i}" for i in range(5))]
    assert rows[0][MALFORMED] == "1 cells, expected 2: only a caption"


def test_hash_file_of_cc12m_names_its_digests(tmp_path: Path) -> None:
    path = put(tmp_path / "hashes.tsv", f"http://a.test/1.jpg\t{'ab' * 32}\t{'cd' * 16}\n")
    assert columns(path) == ["url", "sha256", "md5"]


def test_a_header_is_used_where_there_is_one(tmp_path: Path) -> None:
    path = put(tmp_path / "list.csv", "\ufeffURL,TEXT,TEXT\nhttp://a.test/1.jpg,one,two\n")
    assert columns(path) == ["URL", "TEXT", "TEXT_2"]
    assert columns(path, ["a", "b", "c"]) == ["a", "b", "c"]


def test_broken_lines_are_rows_and_shift_nothing(tmp_path: Path) -> None:
    lines = [
        b"url,text",
        b"http://a.test/0,zero",
        b"http://a.test/1",
        b"",
        b"http://a.test/2,caf\xe9",
        b"http://a.test/3,a,b",
        b"http://a.test/4,four",
    ]
    rows = read(put(tmp_path / "list.csv", b"\n".join(lines)))
    assert [row["url"] for row in rows] == ["http://a.test/0", None, None, None, "http://a.test/4"]
    assert [bool(row[MALFORMED]) for row in rows] == [False, True, True, True, False]
    assert rows[1][MALFORMED] == "1 cells, expected 2: http://a.test/1"
    assert rows[2][MALFORMED].startswith("not UTF-8 (")
    assert "caf\ufffd" in rows[2][MALFORMED]
    assert rows[3][MALFORMED] == "3 cells, expected 2: http://a.test/3 | a | b"


def test_an_open_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    good = "".join(f"http://a.test/{i},caption {i}\n" for i in range(2, 5000))
    path = put(tmp_path / "list.csv", f'url,text\nhttp://a.test/0,"two\nlines"\nhttp://a.test/1,"never closed\n{good}')
    rows = read(path)
    assert rows[0]["text"] == "two\nlines"
    assert rows[1][MALFORMED] is not None
    assert "never closed" in rows[1][MALFORMED]
    assert [row["text"] for row in rows[2:]] == [f"caption {i}" for i in range(2, 5000)]


def test_endless_lines_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.ingest.unpack.MAX_LINE", 1000)
    rows = read(put(tmp_path / "list.tsv", f"http://a.test/0\tone\nhttp://a.test/1\t{'x' * 5000}\nhttp://a.test/2\ttwo\n"))
    assert [row["url"] for row in rows] == ["http://a.test/0", None, "http://a.test/2"]
    assert "longer than 1000 bytes" in rows[1][MALFORMED]


def test_json_lines_of_any_kind(tmp_path: Path) -> None:
    text = '{"url": "http://a.test/0", "n": 1}\n{"url": "http://a.test/1", "n": "one", "x": [1, "a"]}\n{"url": \n[]\n\n{"url": "\\ud800"}\n'
    rows = read(put(tmp_path / "list.jsonl", text))
    assert [row["n"] for row in rows] == ["1", "one", None, None, None]
    assert [row["url"] for row in rows] == ["http://a.test/0", "http://a.test/1", None, None, "?"]
    assert rows[2][MALFORMED].startswith("no JSON (")
    assert rows[3][MALFORMED] == "no JSON object: []"
    assert rows[1]["x"] == ["1", "a"]


def test_columns_that_change_their_type_meet_in_one_batch(tmp_path: Path) -> None:
    lines = [json.dumps({"url": f"u{i}", "id": i if i < 9000 else f"s{i}"}) for i in range(9500)]
    rows = read(put(tmp_path / "list.jsonl", "\n".join(lines)), batch=9200)
    assert (rows[0]["id"], rows[9100]["id"], len(rows)) == ("0", "s9100", 9500)


MIXED = [["x", "y"], "z", None, [], 5, 7.0, 0.5, [2.0, "w"], 1e-9, 10**30, "[1]", [None, "v"]]


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_a_caption_does_not_depend_on_the_rows_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Lists beside plain strings, numbers and truths: a list gives its first, and so the uid is the same."""
    monkeypatch.setattr("stages.ingest.lines.ROWS", batch)
    path = put(tmp_path / "list.jsonl", "".join(json.dumps({"url": "u", "caption": caption}) + "\n" for caption in MIXED))
    (file,) = list_files(str(path))
    captions = [text for raw in stream(file, 0, 4) for text in Ingest().normalise(raw, 0)["source_caption"].to_pylist()]
    assert captions == ["x", "z", None, None, "5", "7", "0.5", "2", "1e-9", str(10**30), "[1]", None]


def test_a_line_of_deep_lists_costs_itself_at_most(tmp_path: Path) -> None:
    lines = ["[" * depth + "]" * depth for depth in (50, 200, 400, 700, 900, 5000)]
    path = put(tmp_path / "list.jsonl", "".join(f'{{"url": "http://a.test/{i}", "x": {line}}}\n' for i, line in enumerate(["1", *lines])))
    (file,) = list_files(str(path))
    rows = [row for raw in stream(file, 0, 10) for row in Ingest().normalise(raw, 0).to_pylist()]
    assert [row["url"] for row in rows] == [f"http://a.test/{i}" if i < 6 else None for i in range(7)]
    path = put(tmp_path / "one.jsonl", json.dumps({"url": "u", "caption": json.loads(lines[2]), "x": json.loads(lines[2])}))
    (raw,) = stream(list_files(str(path))[0], 0, 10)
    assert Ingest().normalise(raw, 0)["carried"].to_pylist() == [f'{{"x":{lines[2]}}}']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", [".csv", ".txt.gz", ".jsonl"])
def test_other_encodings_are_read(tmp_path: Path, encoding: str, ending: str) -> None:
    """As Excel's "Unicode text" and PowerShell write them; without a byte order mark too."""
    captions = ["caf\xe9", "\u3042\u0a0d \U0001f600", "x" * 300]
    cells = [("url", "caption"), *((f"http://a.test/{i}", caption) for i, caption in enumerate(captions))]
    lines = {
        ".csv": [",".join(row) for row in cells],
        ".txt.gz": ["\t".join(row) for row in cells],
        ".jsonl": [json.dumps(dict(zip(cells[0], row, strict=True)), ensure_ascii=False) for row in cells[1:]],
    }[ending]
    data = "".join(f"{line}\r\n" for line in lines).encode(encoding)
    rows = read(put(tmp_path / f"list{ending}", gzip.compress(data) if ending.endswith(".gz") else data))
    assert [row["caption"] for row in rows] == captions
    assert not any(row[MALFORMED] for row in rows)
    assert len(read(put(tmp_path / "list.csv", data[:-3]))) <= len(lines)


def test_lines_that_end_in_cr_alone_are_lines(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "list.csv", b'url,text\rhttp://a.test/1,one\rhttp://a.test/2,caf\xe9\rhttp://a.test/3,"two\rlines"\r'))
    assert [row["text"] for row in rows] == ["one", None, "two\nlines"]
    assert rows[1][MALFORMED] == "not UTF-8 (invalid continuation byte at byte 19): http://a.test/2,caf\ufffd"


def test_nuls_and_long_cells_of_csv(tmp_path: Path) -> None:
    text = f'url,text\nhttp://a.test/1,a\0b\nhttp://a.test/2,{"x" * 140_000}\nhttp://a.test/3,"{"x" * 140_000}"\nhttp://a.test/4,four\n'
    rows = read(put(tmp_path / "list.csv", text))
    assert [row["text"] for row in rows] == ["a\0b", None, None, "four"]
    assert [str(row[MALFORMED])[:23] for row in rows[1:3]] == ["field larger than field"] * 2


def test_sbu_and_redcaps(tmp_path: Path) -> None:
    sbu = {"image_urls": ["http://a.test/1.jpg", "http://a.test/2.jpg"], "captions": ["one", "two"], "user_ids": ["u", "v"]}
    assert [row["captions"] for row in read(put(tmp_path / "sbu.json", json.dumps(sbu)))] == ["one", "two"]
    redcaps = {"info": {"year": "2020"}, "annotations": [{"image_id": "a", "url": "http://a.test/1.jpg", "caption": "one", "score": 3}]}
    (row,) = read(put(tmp_path / "birds.json", json.dumps(redcaps)))
    assert (row["url"], row["caption"], row["score"]) == ("http://a.test/1.jpg", "one", 3)
    with pytest.raises(UserError, match="parallel lists must have one length"):
        read(put(tmp_path / "odd.json", '{"a": [1], "b": [1, 2]}'))
    with pytest.raises(UserError, match=r"format: jsonl|input\.format: jsonl"):
        read(put(tmp_path / "lines.json", '{"url": "a"}\n{"url": "b"}\n'))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_whole_or_refused(tmp_path: Path, ending: str) -> None:
    lines = [f"http://a.test/{i}\tcaption {hash_of(i)}\n".encode() for i in range(20_000)]
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    data = pack(b"".join(lines[:15_000])) + pack(b"".join(lines[15_000:]))  # two members, as pigz and pzstd write
    path = put(tmp_path / f"list.tsv{ending}", data)
    assert [row["url"] for row in read(path)] == [f"http://a.test/{i}" for i in range(20_000)]
    with pytest.raises(UserError, match="fetch it again"):
        read(put(tmp_path / f"cut.tsv{ending}", data[:-2000]))


def hash_of(i: int) -> str:
    return f"{i * 2654435761 % 2**32:08x}"


cells = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(['"', 'a "b" c', "x,y", "two\nlines", " "])
tables = st.lists(st.tuples(st.integers(0, 999).map(lambda i: f"http://a.test/{i}.jpg"), cells), min_size=1, max_size=30)


@settings(max_examples=60)
@given(rows=tables, batch=st.integers(1, 40), start=st.integers(0, 35))
def test_csv_as_pythons_writer_makes_it_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: Any, batch: int, start: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("url", "caption"), *rows])
    path = put(tmp_path_factory.mktemp("csv") / "list.csv", out.getvalue())
    assert [(row["url"], row["caption"]) for row in read(path, batch, start)] == rows[start:]


@settings(max_examples=60)
@given(lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=30))
def test_any_bytes_give_one_row_a_line(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = put(tmp_path_factory.mktemp("tsv") / "list.tsv", b"\n".join([b"http://a.test/0\tcaption", *lines]))
    told = [line for line in lines if not line.decode(errors="replace").isspace() and line]
    rows = read(path, header="cc12m")
    assert len(rows) == 1 + len(told)
    assert pa.table({"x": [row["url"] for row in rows]}).num_rows == len(rows)


@settings(max_examples=60)
@given(data=st.binary(max_size=200), ending=st.sampled_from(["csv", "jsonl"]))
def test_no_bytes_stop_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str) -> None:
    whole = read(put(tmp_path_factory.mktemp("any") / f"list.{ending}", data), 1000)
    assert len(whole) <= data.count(b"\n") + data.count(b"\r") + 1


@pytest.mark.parametrize(("ending", "cut"), [("csv", ","), ("tsv", "\t")])
def test_lines_of_white_space_are_no_rows_in_any_format(tmp_path: Path, ending: str, cut: str) -> None:
    text = "".join(
        f"{line}\n" for line in [f"url{cut}text", "", "  ", f"http://a.test/1{cut}one", " \t", "\u3000", f"http://a.test/2{cut}two"]
    )
    assert [(row["text"], row[MALFORMED]) for row in read(put(tmp_path / f"list.{ending}", text))] == [("one", None), ("two", None)]
    quoted = put(tmp_path / "quoted.csv", 'url,text\nhttp://a.test/1,"one\n  \ntwo"\n')
    assert [row["text"] for row in read(quoted)] == ["one\n  \ntwo"]


@pytest.mark.parametrize(("ending", "cut"), [("csv", ","), ("tsv", "\t")])
def test_a_header_stands_in_the_first_row_of_the_usual_width(tmp_path: Path, ending: str, cut: str) -> None:
    lines = ["# made by x", "# of 2026", "url,text,id", *(f"http://a.test/{i},caption {i},{i}" for i in range(3))]
    path = put(tmp_path / f"list.{ending}", "".join(f"{line}\n" for line in lines).replace(",", cut))
    assert columns(path) == ["url", "text", "id"]
    rows = read(path)
    assert [row["url"] for row in rows] == [None, None, *(f"http://a.test/{i}" for i in range(3))]
    assert [row[MALFORMED] for row in rows[:3]] == ["1 cells, expected 3: # made by x", "1 cells, expected 3: # of 2026", None]


def test_a_row_behind_one_with_a_url_is_no_header(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "list.csv", "http://a.test/1,one,x\nno url,two\nhttp://a.test/3,three\n"))
    assert [row["url"] for row in rows] == [None, "no url", "http://a.test/3"]


def test_a_lone_cr_outside_quotes_is_told_in_our_words(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "list.csv", 'url,text\nhttp://a.test/1,a\rb\nhttp://a.test/2,"a\rb"\n'))
    assert rows[0][MALFORMED] == "a line break (CR) outside quotes: http://a.test/1,a\rb"
    assert (rows[1]["text"], rows[1][MALFORMED]) == ("a\rb", None)


def test_a_row_without_a_url_behind_a_line_of_another_width_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("bad row\n,a caption without a url\nhttp://a.test/1.jpg,one\nhttp://a.test/2.jpg,two\n")
    (file,) = list_files(str(path))
    rows = [row for table in stream(file, 0, 100) for row in table.to_pylist()]
    assert len(rows) == 4
    assert [row["url"] for row in rows if row.get("url")] == ["http://a.test/1.jpg", "http://a.test/2.jpg"]
