"""`shardmill explain`: the story of one row, from its line in the input to its place in a shard, out of committed files."""

from __future__ import annotations

import re
from typing import Any

from pipeline import views
from pipeline.errors import UserError
from pipeline.known import Known
from pipeline.ledger import SCHEMA
from pipeline.phases.ledger import view_ledger
from pipeline.phases.select import view_selected
from pipeline.runs import reopen

TOLD_OF = "{columns}"  # stands in a test for the view that holds the columns of a ledger's rows
CAPTIONS = "{captions}"  # … and for the texts of a row, as the input has it and cleaned
NAMED = "(url = ? OR uid = ? OR key = ?)"
# What a story says in words of its own, and what only joins tables.
TOLD = {
    "row", "part", "parent", "uid", "url", "stored_at", "source_caption", "caption", "start_s", "end_s", "language", "language_score",
    "cluster", "cluster_size", "http_status", "fetched_bytes", "final_url", "offset_s", "alignability", "shift_s", "width", "height",
    "original_width", "original_height", "original_format", "video_codec", "format", "frame_times", "image_cluster", "image_cluster_size",
    "subtitle_format", "subtitle_language", "subtitle_automatic", "subtitle_oddities", "word_times",
    "similarity", "fate", "detail", "children", "children_in_all", "key", "shard", "index", "fetch_id", "image_embedding", "text_embedding",
}  # fmt: skip
VALUES, CHARS = 8, 120  # of a list, and of a text, among the other columns
MOST = 20  # rows that are told, and children of each
MOST_ROWS = 2**63 - 1  # no row has a greater number


def stories(run: str, what: str) -> list[dict[str, Any]]:
    """All that is known of the first MOST rows with this URL, uid, sample key, id of the list or place in storage, `host=NAME`,
    `text=WORDS`, `row=NUMBER` or `child=NUMBER`.

    Where a stage makes several rows of one, each is a row of the input with its `children`: all, or those that were asked for.
    Raises UserError when there is none, and where the run has no ledger yet.
    """
    try:
        what.encode()
    except UnicodeEncodeError as err:
        raise UserError(f"{what!r}: not UTF-8, which all texts of a run are") from err
    known = reopen(run)
    if not known.run.store.exists(f"ledger/{known.keys['shards']}/done.json"):
        raise UserError(f"{run}: the run is not finished; repeat `shardmill run`")
    expanded = known.run.layout.expand is not None
    with views.connect(known.run.store) as con:
        known.view_known(con, "known", image_dedup=True)
        view_selected(known, con)
        view_ledger(known, con)
        if expanded:
            _view_parents(known, con)
        test, values = _test(what, expanded)
        found = _rows(con, "parents_ledger" if expanded else "ledger", test, values)
        asked: list[int] = []
        if expanded and not found:
            asked = _rows(con, "ledger", test, values)
            found = _rows(con, "ledger", f"row IN ({_listed(asked)})", [], "parent")
        if not found and test == NAMED:  # what the input calls a row: its id, or the place of its bytes
            test = f"row IN (SELECT row FROM {TOLD_OF} WHERE source_id = ? OR stored_at = ?)"
            found = _rows(con, "parents_ledger" if expanded else "ledger", test, [what, what])
        if not found:
            numbers = "row=NUMBER for a row of the input" + (", child=NUMBER for a row made of one" if expanded else "")
            raise UserError(f"{run}: no row with {what!r} as URL, uid, key or id (give host=NAME, text=WORDS of a caption, {numbers})")
        if not expanded:
            return told(con, f"k.row IN ({_listed(found)})")
        parents: list[dict[str, Any]] = (
            con.sql(
                "SELECT p.* EXCLUDE (fate, detail), l.fate, l.detail FROM parents p JOIN parents_ledger l ON l.row = p.row "
                f"WHERE p.row IN ({_listed(found)}) ORDER BY p.row"
            )
            .to_arrow_table()
            .to_pylist()
        )
        for parent in parents:
            of_these = f" AND k.row IN ({_listed(asked)})" if asked else ""
            parent["children"] = told(con, f"k.parent = {parent['row']}{of_these}")
            ((parent["children_in_all"],),) = con.execute("SELECT count(*) FROM ledger WHERE parent = ?", [parent["row"]]).fetchall()
        return parents


def _view_parents(known: Known, con: Any) -> None:
    """Views `parents` and `parents_ledger`: the level of the input's rows."""
    store, folder = known.run.store, f"ledger/{known.keys['shards']}/parents"
    known.view_parents(con)
    views.files(con, "parents_ledger", store, [f"{folder}/{name}" for name in store.names(folder, ".parquet")], SCHEMA)


def _test(what: str, expanded: bool) -> tuple[str, list[Any]]:
    """SQL of the ledger's lines that are asked for, and its values. A number is a child's or an input row's, never either."""
    if match := re.fullmatch(r"(row|child)=(\d+)", what):
        mine = "true" if not expanded else f"parent IS {'NOT ' if match[1] == 'child' else ''}NULL"
        return f"row = ? AND {mine}" if expanded or match[1] == "row" else "false AND row = ?", [min(int(match[2]), MOST_ROWS)]
    if match := re.fullmatch(r"(host|text)=(.+)", what, re.DOTALL):
        if match[1] == "host":
            return f"lower(regexp_extract(url, '{views.HOST}', 1)) = lower(?)", [match[2]]
        return f"row IN (SELECT row FROM {TOLD_OF} WHERE contains(lower({CAPTIONS}), lower(?)))", [match[2]]
    return NAMED, [what, what, what]


def _rows(con: Any, view: str, test: str, values: list[Any], column: str = "row") -> list[int]:
    told_of = "parents" if view == "parents_ledger" else "known"
    cleaned = "caption" in con.sql(f"SELECT * FROM {told_of} LIMIT 0").columns
    captions = "concat_ws(chr(0), source_caption, caption)" if cleaned else "source_caption"
    where = test.replace(TOLD_OF, told_of).replace(CAPTIONS, captions)
    found = con.execute(f"SELECT DISTINCT {column} FROM {view} WHERE {where} ORDER BY {column} LIMIT {MOST}", values).fetchall()
    return [row for (row,) in found]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "NULL"


def told(con: Any, test: str) -> list[dict[str, Any]]:
    """The first MOST rows of the view `known` that pass, with their ledger and place."""
    sql = (
        'SELECT k.* EXCLUDE (fate, detail), l.fate, l.detail, l.shard, l.key, s."index" FROM known k '
        f"JOIN ledger l ON l.row = k.row JOIN selected s ON s.row = k.row WHERE {test} ORDER BY k.row LIMIT {MOST}"
    )
    out: list[dict[str, Any]] = con.sql(sql).to_arrow_table().to_pylist()
    return out


def tell(known_row: dict[str, Any]) -> list[tuple[str, str]]:
    """A row's story in steps (step, what came of it); steps that it did not reach are left out."""
    r = known_row
    name, of = ("row", "") if r.get("parent") is None else ("child", f" of row {r['parent']}")
    steps = [
        (name, f"{r['row']}{of} (part {r['part']}), uid {r['uid']}"),
        ("url", str(r["url"])) if r["url"] is not None or not r.get("stored_at") else ("stored at", str(r["stored_at"])),
        _said(r),
    ]
    if r.get("start_s") is not None:
        steps.append(("segment", f"{r['start_s']:.3f} to {r['end_s']:.3f} s of the video"))
    if r.get("caption") is not None and r["caption"] != r.get("source_caption"):
        steps.append(("cleaned", repr(r["caption"])))
    if r.get("language"):
        steps.append(("language", f"{r['language']} ({r['language_score']:.2f})"))
    if r.get("cluster"):
        steps.append(("dedup", f"cluster {r['cluster']} of {r['cluster_size']} row{'s' if r['cluster_size'] != 1 else ''}"))
    if r.get("http_status") is not None:
        steps.append(("download", f"HTTP {r['http_status']}, {r.get('fetched_bytes') or 0:,} bytes, from {r.get('final_url') or r['url']}"))
    if r.get("offset_s") is not None:
        steps.append(("alignment", f"fits best at {r['offset_s']:+.1f} s ({r['alignability']:.4f}), shifted by {r['shift_s']:+.1f} s"))
    frames = r.get("frame_times")
    if r.get("width") is not None and ("frame_times" not in r or frames is not None):
        what = r.get("original_format" if frames is None else "video_codec")
        made = f"{r['original_width']}x{r['original_height']} {what} -> {r['width']}x{r['height']} {r['format']}"
        steps.append(("image", made) if frames is None else ("frames", f"{len(frames)} of {made}"))
    if r.get("image_cluster"):
        steps.append(("image_dedup", f"cluster {r['image_cluster']} of {r['image_cluster_size']}"))
    steps += _judged(r)
    steps.append(("fate", r["fate"] + (f": {r['detail']}" if r["detail"] else "")))
    if "children" in r:
        steps.append(("children", f"{r['children_in_all']:,}"))
    if r.get("key"):
        steps.append(("sample", f"key {r['key']} in shard {r['shard']:05d}"))
    return steps


def _said(r: dict[str, Any]) -> tuple[str, str]:
    """The caption; of a video what was read of its subtitles, and what was mended or left out."""
    if "children" not in r or not r.get("subtitle_format"):
        return "caption", repr(r.get("source_caption"))
    said = [r["subtitle_format"], *([r["subtitle_language"]] if r["subtitle_language"] else [])]
    said += [*(["automatic"] if r["subtitle_automatic"] else []), f"times of words: {r['word_times']}"]
    return "subtitles", ", ".join([*said, *([r["subtitle_oddities"]] if r["subtitle_oddities"] else [])])


def _judged(r: dict[str, Any]) -> list[tuple[str, str]]:
    """The score, and all other columns as `name value`: what heads say, counts, words found, the nearest evaluation image."""
    steps = [("scores", f"similarity {r['similarity']:.4f}")] if r.get("similarity") is not None else []
    others = {name: value for name, value in r.items() if name not in TOLD and value is not None and value not in ("", [])}
    said = ", ".join(f"{name} {_short(value)}" for name, value in others.items() if not isinstance(value, bytes | dict))
    return [*steps, ("columns", said)] if said else steps


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        value = "[" + ", ".join(map(_short, value[:VALUES])) + (", …]" if len(value) > VALUES else "]")
    text = str(value)
    return text if len(text) <= CHARS else f"{text[:CHARS]} …"


def show(run: str, what: str) -> None:
    """Prints the story of each row found."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    found = stories(run, what)
    for story in found:
        for one in (story, *story.get("children", [])):
            for step, text in tell(one):
                console.print(Text(f"{step:>12}  ", style="bold").append(_printable(text), style=""), soft_wrap=True)
            console.print()
    if len(found) == MOST:
        console.print(f"the first {MOST} rows; there may be more in the ledger")


def _printable(text: str) -> str:
    """URLs and details come from strangers: no control character reaches the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
