"""Rows to look at: a few of every fate, of the largest clusters and around a threshold, with small pictures where the pool has bytes.

Which rows are shown follows from run.seed. On a large run they come from a few parts, so that few row groups of images are read.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline import views
from pipeline.known import Known, columns_known
from pipeline.stage import KEPT
from pipeline.thumbnails import small
from stages.selection.rules import NEAR_DUPLICATE

EACH, MEMBERS, AROUND = 10, 6, 48
MOST_OF_FATES = 1000  # rows of all fates together: fewer than EACH of each where there are more than a hundred fates
PARTS = 20  # parts that examples are drawn from first
SIDE, QUALITY = 120, 72  # of a picture in the page: pixels, JPEG's
MOST_BYTES, MOST_TEXT = 2_500_000, 1_000_000  # of all pictures, and of all texts, as they stand in the page: it stays below 5 MB
FALLEN = {f"selection:{name}" for name in NEAR_DUPLICATE}
BETTER = r", row (\d+) is the better one$"  # in the ledger's words
CHARS, LEAST_CHARS = 400, 50  # of a shown text
TEXTS = ("url", "stored_at", "source_caption", "caption", "detail")
SHOWN = (
    "uid", "url", "stored_at", "source_caption", "caption", "similarity", "language",
    "original_width", "original_height", "original_format", "http_status", "fetched_bytes", "phash",
)  # fmt: skip


def each(con: Any) -> int:
    """How many rows of a fate are shown."""
    ((fates,),) = con.execute("SELECT count(DISTINCT final) FROM facts").fetchall()
    return max(1, min(EACH, MOST_OF_FATES // max(int(fates), 1)))


def of_fates(con: Any, seed: int) -> list[int]:
    """Rows of every fate, by chance: `each(con)` at most."""
    order = f"CASE WHEN p.place < {PARTS} THEN '0' ELSE '1' END || md5(concat_ws(':', {seed}, f.row))"
    places = (
        f"(SELECT part, row_number() OVER (ORDER BY md5(concat_ws(':', {seed}, part))) - 1 AS place FROM (SELECT DISTINCT part FROM facts))"
    )
    sql = f"SELECT arg_min(f.row, {order}, {each(con)}) FROM facts f JOIN {places} p ON p.part = f.part GROUP BY f.final"
    return [row for (found,) in con.execute(sql).fetchall() for row in found]


def of_clusters(con: Any, column: str, names: list[str]) -> dict[str, list[int]]:
    """Cluster -> its kept row and others, MEMBERS at most."""
    listed = ", ".join(views.quote(name) for name in names) or "NULL"
    order = f"CASE WHEN final = '{KEPT}' THEN '0' ELSE '1' || md5(CAST(row AS VARCHAR)) END"
    sql = f"SELECT {column}, arg_min(row, {order}, {MEMBERS}) FROM facts WHERE {column} IN ({listed}) GROUP BY ALL"
    return dict(con.execute(sql).fetchall())


def of_fallen(con: Any, fates: dict[int, str]) -> dict[int, int]:
    """Near-duplicate row -> the better one that its ledger names, for the shown rows whose fate is given."""
    fallen = ", ".join(str(row) for row, fate in fates.items() if fate in FALLEN) or "NULL"
    better = f"CAST(nullif(regexp_extract(said, {views.quote(BETTER)}, 1), '') AS BIGINT)"
    sql = f"SELECT row, better FROM (SELECT row, {better} AS better FROM facts WHERE row IN ({fallen})) WHERE better IS NOT NULL"
    return dict(con.execute(sql).fetchall())


def around(con: Any, column: str) -> list[int]:
    """Rows that would be kept without a threshold on the column (table `open_rows`), at even places of its order."""
    sql = (
        f'SELECT row FROM (SELECT row, row_number() OVER (ORDER BY "{column}", row) - 1 AS n, count(*) OVER () AS total '
        f'FROM open_rows WHERE "{column}" IS NOT NULL) WHERE n = 0 OR n * {AROUND} // total > (n - 1) * {AROUND} // total ORDER BY n'
    )
    return [row for (row,) in con.execute(sql).fetchall()]


def unsafe_sql(known: Known, table: str) -> str:
    """SQL of whether a row's picture is blurred: what `report.unsafe_by` names is at least `report.unsafe`, or its tag is NSFW."""
    there, wanted = columns_known(known.run), known.run.config.report
    scores = [
        name for name in wanted.unsafe_by if name in there and not (pa.types.is_nested(there[name]) or pa.types.is_string(there[name]))
    ]
    tests = [f'coalesce({table}."{name}" >= {wanted.unsafe!r}, false)' for name in scores]
    if "claimed_nsfw" in there:
        tests.append(f"coalesce({table}.claimed_nsfw = 'NSFW', false)")
    return f"({' OR '.join(tests) or 'false'})"


def told(known: Known, con: Any, rows: list[int], pictures: bool, scores: list[str]) -> dict[int, dict[str, Any]]:
    """What the page shows of each row, `scores` among it; `unsafe` where its picture is to be blurred."""
    there = columns_known(known.run)
    names = [name for name in dict.fromkeys((*SHOWN, *scores)) if name in there]
    listed = ", ".join([f'k."{name}"' for name in names])
    wanted = ", ".join(map(str, sorted(set(rows)))) or "NULL"
    columns = f"k.row, {listed}, k.fetch_id, f.final AS fate, f.said AS detail, {unsafe_sql(known, 'k')} AS unsafe"
    sql = f"SELECT {columns} FROM known k JOIN facts f ON f.row = k.row WHERE k.row IN ({wanted})"
    found = {line["row"]: line for line in con.sql(sql).to_arrow_table().to_pylist()}
    _cut(list(found.values()))
    asked = Counter(found[row]["fetch_id"] for row in rows if row in found and found[row]["fetch_id"])  # in order of importance
    images = _pictures(known, con, asked) if pictures else {}
    for line in found.values():
        line["picture"] = images.get(line["fetch_id"])
    return found


def _cut(lines: list[dict[str, Any]]) -> None:
    """Cuts texts to CHARS, or to less where all of them together are more than MOST_TEXT bytes in a page, in which a quote takes five."""
    chars = CHARS
    while True:
        cut = [{name: _beginning(line[name], chars) for name in TEXTS if line.get(name)} for line in lines]
        if chars <= LEAST_CHARS or sum(len(html.escape(text).encode()) for one in cut for text in one.values()) <= MOST_TEXT:
            break
        chars //= 2
    for line, texts in zip(lines, cut, strict=True):
        line.update(texts)


def _beginning(text: str, chars: int) -> str:
    return f"{text[:chars]} …" if len(text) > chars else text


def picture_sql(columns: list[str]) -> str | None:
    """SQL of a row's picture in a file of the pool that has these columns: the image, or of a clip the middle frame. None: it has none."""
    if "image" in columns:
        return "image"
    return "frames[len(frames) // 2 + 1]" if "frames" in columns else None


def of_evaluation(known: Known, labels: set[str]) -> dict[str, str]:
    """SET/NAME of an evaluation image -> a small JPEG as a data URL, as far as the sets lie at hand."""
    from stages.decontaminate import pictures

    (sets,) = (entry.stage.config.sets for entry in known.run.layout.scores if entry.name == "decontaminate")
    made = {label: _data_url(body) for label, body in pictures(sets, labels).items()}
    return {label: url for label, url in made.items() if url is not None}


def _pictures(known: Known, con: Any, fetches: Counter[str]) -> dict[str, str]:
    """fetch_id -> a small JPEG as a data URL, until they fill MOST_BYTES, each as often as it is shown (`fetches`). Only the files that
    hold them are opened."""
    listed = ", ".join(map(views.quote, fetches)) or "NULL"
    where: dict[str, list[str]] = {}
    for fetch, address in con.execute(f"SELECT fetch_id, filename FROM pool WHERE fetch_id IN ({listed})").fetchall():
        where.setdefault(address, []).append(fetch)
    made: dict[str, str] = {}
    for address, held in sorted(where.items()):
        picture = picture_sql(known.run.store.columns(known.run.store.relative(address)))
        if picture is None:
            continue  # pool.keep: false
        one = ", ".join(map(views.quote, held))
        sql = (
            f"SELECT fetch_id, {picture} AS image FROM read_parquet({views.quote(address)}) WHERE fetch_id IN ({one}) AND image IS NOT NULL"
        )
        for batch in views.batches(con, sql, 64):
            for fetch, body in zip(batch["fetch_id"].to_pylist(), batch["image"], strict=True):
                if (data := _data_url(body.as_py())) is not None:
                    made[fetch] = data
    out, size = {}, 0
    for fetch, times in fetches.items():
        if fetch in made and size + times * len(made[fetch]) <= MOST_BYTES:
            out[fetch], size = made[fetch], size + times * len(made[fetch])
    return out


def _data_url(body: bytes) -> str | None:
    image = small(body, SIDE)
    if image is None:
        return None
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
