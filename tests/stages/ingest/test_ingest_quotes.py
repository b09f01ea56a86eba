"""CSV whose quotes are not in order: a quote that is never closed costs its own line, and captions over several lines stay whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest import records
from stages.ingest.files import list_files, stream
from stages.ingest.rebatch import MALFORMED
from stages.ingest.unpack import Line

OPEN = f"{records.OPEN}: "


def read(path: Path, text: str) -> list[dict[str, Any]]:
    path.write_bytes(text.encode())
    (file,) = list_files(str(path))
    return [row for table in stream(file, 0, 1000) for row in table.to_pylist()]


def urls(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["url"] for row in rows]


def test_a_quote_that_another_row_closes_takes_no_row_along(tmp_path: Path) -> None:
    plain = "".join(f"http://a.test/{i},plain {i}\n" for i in range(1, 500))
    rows = read(
        tmp_path / "list.csv", f'url,text\nhttp://a.test/0,"unclosed\n{plain}http://a.test/500,"He said ""hi"""\nhttp://a.test/501,last\n'
    )
    assert urls(rows) == [None, *(f"http://a.test/{i}" for i in range(1, 502))]
    assert rows[0][MALFORMED] == f'{OPEN}http://a.test/0,"unclosed'
    assert rows[500]["text"] == 'He said "hi"'


def test_lines_that_each_open_a_quote_are_malformed_each(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "list.csv", "url,text\n" + "".join(f'http://a.test/{i},"caption {i}\n' for i in range(1000)) + "http://a.test/x,ok\n"
    )
    assert [str(row[MALFORMED])[: len(OPEN)] for row in rows] == [OPEN] * 1000 + ["None"]


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        (['http://a/1,"5 inch', 'http://a/2,the 7"'], [2]),  # balanced by accident
        (['http://a/1,"5 inch', "http://a/2,plain", "http://a/3,plain", 'http://a/4,the 7"'], [2, 3, 4]),
        (['http://a/1,"5 inch,30', 'http://a/2,the 7",40', "http://a/3,x,50"], [2, 3]),
        (['"5 inch,http://a/1', 'the 7",http://a/2'], [2]),  # the caption before the URL
        (['"5 inch, or so,http://a/1', "plain,http://a/2", 'the 7",http://a/3'], [2, 3]),
        (['"http://a/1,5 inch', 'http://a/2",7 inch', "http://a/3,x"], [2, 3]),  # the URL itself
        (['http://a/1,"one', 'http://a/2,"two', "http://a/3,three"], [3]),
        (['"http://a/1","one', '"http://a/2","two', '"http://a/3","three"'], [3]),
        (['http://a/1,"one', "http://a/2,two", 'http://a/3,"three, and four"', "http://a/5,five"], [2, 3, 5]),
        (['http://a/1,"one', "http://a/2,two"], [2]),  # never closed at all
        (['http://a/1,"Red" shoes,"one', "http://a/2,two,x"], [2]),
    ],
)
def test_rows_behind_an_open_quote_are_rows(tmp_path: Path, lines: list[str], good: list[int]) -> None:
    rows = read(tmp_path / "list.csv", "\n".join(lines) + "\n")
    names = [name for name in rows[0] if name != MALFORMED]
    found = [next((str(row[name]) for name in names if "http" in str(row[name])), None) for row in rows]
    assert len(rows) == len(lines)
    assert [url.strip('"')[-1] for url in found if url] == [str(i) for i in good]
    assert rows[0][MALFORMED].startswith(OPEN)


@pytest.mark.parametrize(
    ("record", "cells"),
    [
        ('http://a/1,"one\ntwo"', ["http://a/1", "one\ntwo"]),
        ('http://a/1,"one, ""two""\n\nthree,four\r\nfive"', ["http://a/1", 'one, "two"\n\nthree,four\r\nfive']),
        ('http://a/1,"Buy it:\nhttp://shop.test/x"', ["http://a/1", "Buy it:\nhttp://shop.test/x"]),
        ('"one\ntwo",http://a/1', ["one\ntwo", "http://a/1"]),
        ('http://a/1,"see\nhttp://b/2,http://b/3\n",300', ["http://a/1", "see\nhttp://b/2,http://b/3\n", "300"]),
        ('http://a/1,Red "big" shoes', ["http://a/1", 'Red "big" shoes']),
        ('http://a/1,"Red" shoes', ["http://a/1", "Red shoes"]),
    ],
)
def test_true_captions_pass(tmp_path: Path, record: str, cells: list[str]) -> None:
    rows = read(tmp_path / "list.csv", f"{record}\n{','.join('x' if 'http' not in cell[:4] else 'http://a/9' for cell in cells)}\n")
    assert list(rows[0].values()) == [*cells, None]
    assert len(rows) == 2


def test_a_record_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINES", 100)
    rows = read(tmp_path / "list.csv", "http://a/0,x\n" + '5","\n' * 2000 + "http://a/1,x\n")
    assert len(rows) == 2002
    assert rows[1][MALFORMED] == f'{OPEN}5","'
    assert urls(rows)[-1] == "http://a/1"


word = st.sampled_from(["a", "dog", 'a "big" dog', "x, y", "two\nlines", "", 'TV 42"', "see\nhttp://shop.test/1", '"'])
row = st.tuples(st.integers(0, 999).map("http://a.test/{}.jpg".format), word, st.integers(1, 99).map(str))


@settings(max_examples=80)
@given(good=st.lists(row, min_size=3, max_size=12), at=st.integers(0, 11), quote=st.sampled_from(['"open', '"open, and on', '"']))
def test_one_open_quote_among_good_rows_loses_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, good: list[tuple[str, str, str]], at: int, quote: str
) -> None:
    at = min(at, len(good))
    out = [io.StringIO(newline=""), io.StringIO(newline="")]
    for text, part in zip(out, (good[:at], good[at:]), strict=True):
        csv.writer(text).writerows(part)
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    rows = read(path, f"url,text,n\n{out[0].getvalue()}http://a.test/bad,{quote}\n{out[1].getvalue()}")
    kept = [(row["url"], row["text"], row["n"]) for row in rows if row[MALFORMED] is None]
    assert kept == good


@settings(max_examples=80)
@given(lines=st.lists(st.text(st.sampled_from('ab,"/ '), max_size=9).map(lambda text: f"http://a.test/{text}"), max_size=12))
def test_no_quotes_stop_the_reader_or_lose_a_line(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    rows = read(tmp_path_factory.mktemp("csv") / "list.csv", "".join(f"{line}\n" for line in ["http://a.test/,x", *lines]))
    held = sum(1 + sum(str(cell).count("\n") for cell in row.values()) for row in rows)
    assert held >= 1 + len(lines)


@pytest.mark.parametrize("read", [records.quoted, records.tsv, records.filled])
def test_an_over_long_line_of_white_space_is_no_blank_line(read: Any) -> None:
    """Its beginning is all that is left of it: it is told, and the rows behind it keep their numbers."""
    lines = [Line("http://a.test/1.jpg,a\n", None), Line(" " * 300, "longer than 8 MiB"), Line("http://a.test/2.jpg,b\n", None)]
    assert len(list(read(iter(lines)))) == 3
