"""Where each truth class of the embedded sample ended in a finished run: `python tests/acceptance/truth.py runs/laion_subset`.

Prints one line a class (expected fate, rows, where they ended) and every row that ended elsewhere; exit code 1 if there is one.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KEPT = "kept"


@dataclass
class Comparison:
    """`table`: one line a truth class with `truth`, `expected`, `rows`, `ended` (fate -> rows). `faults`: what is not as it should be."""

    table: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{'truth class':22} {'rows':>4}  {'ended':72} expected"]
        for line in self.table:
            ended = ", ".join(f"{fate} {count}" for fate, count in sorted(line["ended"].items()))
            lines.append(f"{line['truth']:22} {line['rows']:4}  {ended:72} {line['expected'].replace('|', ' or ')}")
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults)])


def compare(ledger: pa.Table, truth: pa.Table, scored: bool = False) -> Comparison:
    """Ledger (row, url, fate, detail) against truth (row, url, truth, group, expected, expected_scored), row by row and by group."""
    out = Comparison()
    fates = {line["row"]: line for line in ledger.select(["row", "url", "fate", "detail"]).to_pylist()}
    rows = truth.to_pylist()
    if len(fates) != len(ledger) or fates.keys() != {row["row"] for row in rows}:
        out.faults.append(f"the ledger has {len(ledger)} lines for {len(fates)} rows, the list has {len(rows)} rows")
        return out
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        line, expected = fates[row["row"]], row["expected_scored" if scored else "expected"]
        ended[row["truth"]][line["fate"]] += 1
        if line["fate"] not in expected.split("|"):
            out.faults.append(f"row {row['row']} ({row['truth']}, {row['url']}): {line['fate']} ({line['detail']}), not {expected}")
        if line["url"] != row["url"]:
            out.faults.append(f"row {row['row']}: the ledger says {line['url']}, the list {row['url']}")
    out.faults += _groups(rows, {row: line["fate"] for row, line in fates.items()}, scored)
    expected_of = {row["truth"]: row["expected_scored" if scored else "expected"] for row in rows}
    out.table = [
        {"truth": name, "expected": expected_of[name], "rows": ended[name].total(), "ended": dict(ended[name])} for name in expected_of
    ]
    out.table.sort(key=lambda line: line["truth"])
    return out


def _groups(rows: list[dict[str, Any]], fates: dict[int, str], scored: bool) -> list[str]:
    """Of a group exactly one row is kept; with scores, at most one, since a judge may refuse them all."""
    kept: Counter[str] = Counter({row["group"]: 0 for row in rows if row["group"]})
    kept.update(row["group"] for row in rows if row["group"] and fates[row["row"]] == KEPT)
    return [f"group {name}: {count} rows are kept, not 1" for name, count in kept.items() if count > 1 or (count == 0 and not scored)]


def of_run(run: Path) -> Comparison:
    """Compares a finished run of the sample on local storage; the truth lies beside the list that the run read."""
    told = json.loads((run / "run.json").read_text())
    report = json.loads((run / "report" / "report.json").read_text())
    listed = Path(told["files"][0]["url"].removeprefix("file://"))
    ledger = pq.read_table(sorted((run / "ledger" / told["keys"]["shards"]).glob("part-*.parquet")))
    return compare(ledger, pq.read_table(listed.with_name("truth.parquet")), scored=report["scored"] != "not scored")


if __name__ == "__main__":
    comparison = of_run(Path(sys.argv[1]))
    sys.stdout.write(comparison.text() + "\n")
    sys.exit(bool(comparison.faults))
