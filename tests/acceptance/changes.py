"""What a change costs, counted at the server: `python tests/acceptance/changes.py [ROWS]` (default 400).

A finished run is changed in one thing after the other, and run again. Prints the requests that the server saw; exit code 1
where there are more than the change needs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import caption, picture, shardmill, write_config, write_list
from tests.support.server import Server

SHORT, NEAR = 20, 10  # one row in so many has a short caption, or its neighbour's with a full stop


def main(rows: int) -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        texts = [f"cat {n}" if n % SHORT == 3 else caption(n - 1) + "." if n % NEAR == 5 else caption(n) for n in range(rows + 50)]
        for n in range(rows + 50):
            server.files[f"/pictures/{n}.jpg"] = picture(n)
        urls = [server.url(f"/pictures/{n}.jpg", f"host{n % 20}.test") for n in range(rows + 50)]
        first = write_list(folder / "lists" / "a.parquet", urls[:rows], texts[:rows])
        config, more = folder / "test.yaml", folder / "lists" / "b.parquet"
        base: dict[str, Any] = {"stages__captions": {"min_chars": 10}, "stages__selection": [{"name": "words", "keep": "words >= 5"}]}
        short = sum(n % SHORT == 3 for n in range(rows))
        steps: list[tuple[str, dict[str, Any], int]] = [
            ("the first run", {}, rows - short),
            ("a second run", {}, 0),
            ("a changed threshold of the selection", {"stages__selection": [{"name": "words", "keep": "words >= 10"}]}, 0),
            ("a changed dedup threshold", {"stages__dedup": {"on": "caption", "threshold": 0.95}}, 0),
            ("a laxer caption rule: its newly alive rows", {"stages__captions": {"min_chars": 3}}, short),
            ("a stricter caption rule", {"stages__captions": {"min_chars": 57}}, 0),
            ("one more input file of 50 rows", {"path": [str(first), str(more)], "stages__captions": {"min_chars": 3}}, 50),
            ("the first config again", {}, 0),
        ]
        write_list(more, urls[rows:], texts[rows:])
        bad = 0
        for what, change, wanted in steps:
            before = server.count()
            write_config(config, server, **{"path": first, **base, **change})
            shardmill("run", str(config))
            seen = server.count() - before
            bad |= seen != wanted
            print(f"{what:46} {seen:5} requests (needed: {wanted})", flush=True)
        return int(bad)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 400))
