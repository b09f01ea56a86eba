"""`shardmill explain`: the story of one row, from its line in the input to its place in a shard, out of committed files."""

from __future__ import annotations

import re
from typing import Any

from pipeline import views
from pipeline.errors import UserError
from pipeline.phases.ledger import view_ledger
from pipeline.phases.select import view_selected
from pipeline.runs import reopen

MOST = 20


def stories(run: str, what: str) -> list[dict[str, Any]]:
    """All that is known of the rows with this URL, uid, sample key or `row=NUMBER`. Raises UserError when there is none."""
    known = reopen(run)
    with views.connect(known.run.store) as con:
        known.view_known(con, "known", image_dedup=True)
        view_selected(known, con)
        view_ledger(known, con)
        found = _rows(con, what)
        if not found:
            raise UserError(f"{run}: no row with {what!r} as URL, uid or key (give row=NUMBER for a row of the input)")
        listed = ", ".join(map(str, found[:MOST]))
        sql = (
            'SELECT k.* EXCLUDE (fate, detail), l.fate, l.detail, l.shard, l.key, s."index" FROM known k '
            f"JOIN ledger l ON l.row = k.row JOIN selected s ON s.row = k.row WHERE k.row IN ({listed}) ORDER BY k.row"
        )
        out: list[dict[str, Any]] = con.sql(sql).to_arrow_table().to_pylist()
        return out


def _rows(con: Any, what: str) -> list[int]:
    values: list[Any]
    if match := re.fullmatch(r"row=(\d+)", what):
        sql, values = "SELECT row FROM ledger WHERE row = ?", [int(match[1])]
    else:
        sql, values = "SELECT row FROM ledger WHERE url = ? OR uid = ? OR key = ? ORDER BY row", [what, what, what]
    return [row for (row,) in con.execute(sql, values).fetchall()]


def tell(known_row: dict[str, Any]) -> list[tuple[str, str]]:
    """A row's story in steps (step, what came of it); steps that it did not reach are left out."""
    r = known_row
    steps = [("row", f"{r['row']} (part {r['part']}), uid {r['uid']}"), ("url", str(r["url"])), ("caption", repr(r.get("source_caption")))]
    if r.get("caption") is not None and r["caption"] != r.get("source_caption"):
        steps.append(("cleaned", repr(r["caption"])))
    if r.get("language"):
        steps.append(("language", f"{r['language']} ({r['language_score']:.2f})"))
    if r.get("cluster"):
        steps.append(("dedup", f"cluster {r['cluster']} of {r['cluster_size']} row{'s' if r['cluster_size'] != 1 else ''}"))
    if r.get("http_status") is not None:
        steps.append(("download", f"HTTP {r['http_status']}, {r.get('fetched_bytes') or 0:,} bytes, from {r.get('final_url') or r['url']}"))
    if r.get("width") is not None:
        steps.append(
            ("image", f"{r['original_width']}x{r['original_height']} {r['original_format']} -> {r['width']}x{r['height']} {r['format']}")
        )
    if r.get("image_cluster"):
        steps.append(("image_dedup", f"cluster {r['image_cluster']} of {r['image_cluster_size']}"))
    if r.get("similarity") is not None:
        steps.append(("scores", f"similarity {r['similarity']:.4f}"))
    steps.append(("fate", r["fate"] + (f": {r['detail']}" if r["detail"] else "")))
    if r["key"]:
        steps.append(("sample", f"key {r['key']} in shard {r['shard']:05d}"))
    return steps


def show(run: str, what: str) -> None:
    """Prints the story of each row found."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for story in stories(run, what):
        for step, text in tell(story):
            console.print(Text(f"{step:>12}  ", style="bold").append(text, style=""), soft_wrap=True)
        console.print()
