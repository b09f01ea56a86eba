"""`shardmill verify` finds what was changed, removed or added behind a finished run's back, one line each, and never ends in a trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import verify
from pipeline.errors import UserError
from tests.pipeline.conftest import Made

pytestmark = pytest.mark.ray

Tamper = Callable[[Path], None]


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # a copied file may be a hard link
    path.write_bytes(data)


def garbage(path: Path) -> None:
    write(path, b"garbage")


def flip(at: int) -> Tamper:
    def tamper(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x55
        write(path, bytes(data))

    return tamper


def put(name: str, value: Any) -> Tamper:
    """A JSON file with another value, or what a function makes of it."""

    def tamper(path: Path) -> None:
        found = json.loads(path.read_text())
        found[name] = value(found[name]) if callable(value) else value
        write(path, json.dumps(found, indent=2).encode())

    return tamper


def table(change: Callable[[pa.Table], pa.Table]) -> Tamper:
    """A Parquet file with other rows."""

    def tamper(path: Path) -> None:
        changed = change(pq.read_table(path))
        path.unlink()
        pq.write_table(changed, path)

    return tamper


def rows(name: str, change: Callable[[list[Any]], list[Any]]) -> Tamper:
    """A Parquet file with other values in a column."""

    def changed(found: pa.Table) -> pa.Table:
        at = found.schema.get_field_index(name)
        return found.set_column(at, found.schema.field(at), pa.array(change(found[name].to_pylist()), found.schema.field(at).type))

    return table(changed)


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def swap(keys: list[Any]) -> list[Any]:
    one, two, *_ = [at for at, key in enumerate(keys) if key]
    keys[one], keys[two] = keys[two], keys[one]
    return keys


def lie_alike(run: Path) -> None:
    for folder in ("SELECTION", "LEDGER"):
        rows("fate", lambda fates: [fate if fate == "kept" else "captions:empty" for fate in fates])(
            path_of(run, f"{folder}/part-00000.parquet")
        )


def remove(path: Path) -> None:
    path.unlink()


def copy_beside(name: str) -> Tamper:
    return lambda path: write(path.with_name(name), path.read_bytes())


PARQUET = [r"00000\.parquet: has \d+ bytes, \d+ were written"]

# What is done to which file (SHARDS and LEDGER stand for the key's folders), and what verify finds: each expression matches a
# finding ("where: what"), and each finding matches one of them.
TAMPERINGS: dict[str, tuple[str, Tamper, list[str]]] = {
    "a bit of a tar": ("SHARDS/00000.tar", flip(5000), [r"00000\.tar: its sha256 is not", r"00000\.tar \d+: its image|^$"]),
    "tar cut off": (
        "SHARDS/00000.tar",
        lambda path: write(path, path.read_bytes()[:30_000]),
        [r"has 30000 bytes", r"has 5 samples, the manifest says", r"lacks \d+ samples .* 0000005", r"its txt is not"],
    ),
    "tar garbage": (
        "SHARDS/00000.tar",
        garbage,
        [r"cannot be read to its end", r"has 7 bytes", r"has 0 samples", r"lacks \d+ samples .* 0000000"],
    ),
    "tar removed": ("SHARDS/00000.tar", remove, [r"00000\.tar: is missing"]),
    "one more tar": ("SHARDS/00000.tar", copy_beside("00007.tar"), [r"00007\.tar: is no file of this run"]),
    "sizes.json false": (
        "SHARDS/sizes.json",
        lambda path: write(path, b'{"00000.tar": 3}'),
        [r"sizes\.json: has 16 bytes"],
    ),
    "sizes.json removed": ("SHARDS/sizes.json", remove, [r"sizes\.json: is missing"]),
    "index removed": ("SHARDS/shardindex.json", remove, [r"shardindex\.json: is missing"]),
    "index garbage": ("SHARDS/shardindex.json", garbage, [r"shardindex\.json: has 7 bytes"]),
    "statistics removed": ("SHARDS/00000_stats.json", remove, [r"00000_stats\.json: is missing"]),
    "statistics false": ("SHARDS/00000_stats.json", put("successes", 99), [r"00000_stats\.json: successes is 99, the Parquet has \d+$"]),
    "statistics garbage": ("SHARDS/00000_stats.json", garbage, [r"00000_stats\.json: cannot be read"]),
    "done.json of the shards removed": ("SHARDS/done.json", remove, [r"shards/\w+/done\.json: is missing"]),
    "done.json and sizes.json removed": (
        "SHARDS/done.json",
        lambda path: (remove(path), remove(path.with_name("sizes.json")))[0],
        [r"shards/\w+/done\.json: is missing", r"sizes\.json: is missing"],
    ),
    "done.json of the shards garbage": ("SHARDS/done.json", garbage, [r"shards/\w+/done\.json: cannot be read"]),
    "done.json of the shards false": ("SHARDS/done.json", put("shards", 3), [r"shards/\w+/done\.json: cannot be read"]),
    "manifest garbage": ("shards/manifest.json", garbage, [r"manifest\.json: (cannot be read|the file is damaged)"]),
    "manifest with a false sum": (
        "shards/manifest.json",
        put("samples", 1),
        [
            r"manifest\.json: is not as .*done\.json has it",
            r"ledger/\w+: has \d+ kept rows with \d+ keys, the manifest has 1 sample",
            r"report\.json: shards",
        ],
    ),
    "manifest of another key": (
        "shards/manifest.json",
        put("key", "0" * 16),
        [r"names key 0{16}|does not describe shards/0{16}|^$", r"0{16}.*: is missing|^$"],
    ),
    "manifest without a shard": (
        "shards/manifest.json",
        put("shards", lambda shards: shards[:-1]),
        [
            r"manifest\.json: is not as",
            r"\.(tar|parquet|json): is no file of this run",
            r"has \d+ rows that the shards' Parquet has not",
            r"report\.json: shards",
        ],
    ),
    "Parquet removed": ("SHARDS/00000.parquet", remove, [r"00000\.parquet: is missing", r"not compared row by row"]),
    "Parquet garbage": ("SHARDS/00000.parquet", garbage, [*PARQUET, r"00000\.parquet: cannot be read", r"not compared row by row"]),
    "Parquet with false URLs": (
        "SHARDS/00000.parquet",
        rows("url", lambda urls: ["http://evil/"] * len(urls)),
        [*PARQUET, r"ledger/\w+: url of \d+ rows is not as in the shards' Parquet; the first is row \d+: 'http://host.*'http://evil/'"],
    ),
    "Parquet without its dropped rows": (
        "SHARDS/00000.parquet",
        table(lambda rows: rows.filter(pc.equal(rows["fate"], "kept"))),
        [
            *PARQUET,
            r"00000_stats\.json: \w+ is .*, the Parquet has",
            r"ledger/\w+: has \d+ rows that the shards' Parquet has not; the first is row",
        ],
    ),
    "Parquet with a row twice": (
        "SHARDS/00000.parquet",
        table(lambda rows: pa.concat_tables([rows, rows[-1:]])),
        [*PARQUET, r"00000_stats\.json: \w+ is .*, the Parquet has", r"\*\.parquet: has \d+ lines of \d+ different rows"],
    ),
    "ledger with false fates": (
        "LEDGER/part-00000.parquet",
        rows("fate", lambda fates: [fate if fate == "kept" else "captions:empty" for fate in fates]),
        [
            r"ledger/\w+: fate of \d+ rows is not as in the selection; the first is row \d+: 'captions:empty', not '",
            r"ledger/\w+: (fate|detail) of \d+ rows is not as in the (shards' Parquet|stages' files)",
            r"ledger/\w+/done\.json: .*counted: ",
            r"report\.json: dropped .*counted: ",
        ],
    ),
    "ledger with two keys swapped": (
        "LEDGER/part-00000.parquet",
        rows("key", swap),
        [r"key of 2 rows is not as in the (selection|shards' Parquet)"],
    ),
    "ledger with a false URL": (
        "LEDGER/part-00001.parquet",
        rows("url", first("http://x/")),
        [r"url of 1 row is not as in .* is row 50: 'http://x/', not"],
    ),
    "ledger with a false uid": (
        "LEDGER/part-00001.parquet",
        rows("uid", first("0" * 32)),
        [r"uid of 1 row is not as in .* is row 50: '0{32}', not"],
    ),
    "ledger with a false detail": (
        "LEDGER/part-00001.parquet",
        rows("detail", lambda details: [text and "fine" for text in details]),
        [r"detail of \d+ rows is not as in the (selection|shards' Parquet|stages' files)"],
    ),
    "ledger without a row": (
        "LEDGER/part-00000.parquet",
        table(lambda rows: rows[1:]),
        [
            r"ledger/\w+: lacks 1 row of the (selection|shards' Parquet|stages' files); .*row 0",
            r"ledger.*counted: ",
            r"report.*counted: ",
            r"ledger/\w+: has",
        ],
    ),
    "ledger with a row twice": (
        "LEDGER/part-00000.parquet",
        table(lambda rows: pa.concat_tables([rows, rows[:1]])),
        [r"ledger/\w+: has 161 lines of 160 different rows", r"counted: ", r"113 kept rows with 112 keys"],
    ),
    "ledger part removed": ("LEDGER/part-00001.parquet", remove, [r"part-00001\.parquet: is missing", r"not compared row by row"]),
    "ledger part garbage": ("LEDGER/part-00001.parquet", garbage, [r"part-00001\.parquet: cannot be read", r"not compared row by row"]),
    "ledger page garbage": ("LEDGER/part-00001.parquet", flip(200), [r"ledger/\w+"]),
    "one more ledger part": (
        "LEDGER/part-00001.parquet",
        copy_beside("part-00009.parquet"),
        [r"part-00009\.parquet: is no file of this run"],
    ),
    "done.json of the ledger removed": ("LEDGER/done.json", remove, [r"ledger/\w+/done\.json: is missing"]),
    "selection part garbage": (
        "SELECTION/part-00001.parquet",
        garbage,
        [r"selection/\w+/part-00001\.parquet: cannot be read", r"not compared row by row"],
    ),
    "selection and ledger alike false": (
        "RUN",
        lie_alike,
        [
            r"fate of \d+ rows is not as in the stages' files",
            r"fate of \d+ rows is not as in the shards' Parquet",
            r"counted: ",
            r"detail",
        ],
    ),
    "pool file removed": ("POOL/part-00001.0.parquet", remove, [r"(fate|detail) of \d+ rows is not as in the stages' files"]),
    "rows' done.json removed": ("ROWS/done.json", remove, [r"ledger/\w+: cannot be .*rows are not all committed"]),
    "report with false sums": (
        "report/report.json",
        put("kept", 999),
        [r"report/report\.json: kept is 999, counted: \d+"],
    ),
    "report with false drops": ("report/report.json", put("dropped", {}), [r"report\.json: dropped \S+ is None, counted: \d"]),
    "report removed": ("report/report.json", remove, [r"report/report\.json: is missing"]),
}


@pytest.fixture(autouse=True)
def _in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "processes", lambda: ThreadPoolExecutor(1))


def path_of(run: Path, name: str) -> Path:
    first, _, rest = name.partition("/")
    if first == "RUN":
        return run
    keys = json.loads((run / "run.json").read_text())["keys"] | {"rows": next((run / "rows").iterdir()).name}
    keys["ledger"] = keys["shards"]
    return run / first.lower() / keys[first.lower()] / rest if first.isupper() else run / name


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    where, tamper, expected = TAMPERINGS[name]
    tamper(path_of(made.run, where))
    try:
        assert not verify.show(str(made.run))
        lines = capsys.readouterr().out.splitlines()[:-1]
    except UserError as err:  # no run can be read there
        lines = [str(err)]
    assert lines
    assert len(lines) == len({*lines}), "each is told once"
    for line in lines:
        assert any(re.search(text, line) for text in expected), f"nobody expected: {line}"
    for text in expected:
        assert any(re.search(text, line) for line in lines) or text.endswith("|^$"), f"not found: {text}\n" + "\n".join(lines)


def test_an_untouched_run_agrees(first_run: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.show(str(first_run.run))
    assert "all agrees" in capsys.readouterr().out


def test_a_run_without_a_manifest_is_not_finished(made: Made) -> None:
    (made.run / "shards" / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished: repeat"):
        verify.run(str(made.run))
