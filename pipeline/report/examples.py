"""Rows to look at: a few of every fate, of the largest clusters and around a threshold, with small pictures where the pool has bytes.

Which rows are shown follows from run.seed. On a large run they come from a few parts, so that few row groups of images are read.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from pipeline import views
from pipeline.known import Known, columns_known
from pipeline.stage import KEPT
from pipeline.thumbnails import small

EACH, MEMBERS, AROUND = 10, 6, 48
PARTS = 20  # parts that examples are drawn from first
SIDE, QUALITY = 120, 72  # of a picture in the page: pixels, JPEG's
MOST_BYTES = 2_500_000  # of all pictures together: the page stays below 5 MB
CHARS = 400  # of a shown text
SHOWN = ("uid", "url", "source_caption", "caption", "similarity", "language", "original_width", "original_height", "original_format",
         "http_status", "fetched_bytes", "claimed_punsafe", "claimed_nsfw", "phash")  # fmt: skip


def of_fates(con: Any, seed: int) -> list[int]:
    """Rows: EACH of every fate, by chance."""
    order = f"CASE WHEN p.place < {PARTS} THEN '0' ELSE '1' END || md5(concat_ws(':', {seed}, f.row))"
    places = (
        f"(SELECT part, row_number() OVER (ORDER BY md5(concat_ws(':', {seed}, part))) - 1 AS place FROM (SELECT DISTINCT part FROM facts))"
    )
    sql = f"SELECT arg_min(f.row, {order}, {EACH}) FROM facts f JOIN {places} p ON p.part = f.part GROUP BY f.final"
    return [row for (found,) in con.execute(sql).fetchall() for row in found]


def of_clusters(con: Any, column: str, names: list[str]) -> dict[str, list[int]]:
    """Cluster -> its kept row and others, MEMBERS at most."""
    listed = ", ".join(views.quote(name) for name in names) or "NULL"
    order = f"CASE WHEN final = '{KEPT}' THEN '0' ELSE '1' || md5(CAST(row AS VARCHAR)) END"
    sql = f"SELECT {column}, arg_min(row, {order}, {MEMBERS}) FROM facts WHERE {column} IN ({listed}) GROUP BY ALL"
    return dict(con.execute(sql).fetchall())


def of_fallen(con: Any, kept: dict[int, str]) -> dict[int, int]:
    """Near-duplicate row -> the row that stayed in its stead, for the shown rows whose fate is given."""
    out: dict[int, int] = {}
    for fate, column in (("selection:near_duplicate_caption", "cluster"), ("selection:near_duplicate_image", "image_cluster")):
        rows = ", ".join(str(row) for row, one in kept.items() if one == fate)
        if rows:
            better = (
                f"SELECT {column} AS name, min(row) AS row FROM facts WHERE {column} IS NOT NULL AND final = '{KEPT}' GROUP BY {column}"
            )
            sql = f"SELECT f.row, b.row FROM facts f JOIN ({better}) b ON b.name = f.{column} WHERE f.row IN ({rows})"
            out |= dict(con.execute(sql).fetchall())
    return out


def around(con: Any, column: str) -> list[int]:
    """Rows that would be kept without a threshold on the column (table `open_rows`), at even places of its order."""
    sql = (
        f'SELECT row FROM (SELECT row, row_number() OVER (ORDER BY "{column}", row) - 1 AS n, count(*) OVER () AS total '
        f'FROM open_rows WHERE "{column}" IS NOT NULL) WHERE n = 0 OR n * {AROUND} // total > (n - 1) * {AROUND} // total ORDER BY n'
    )
    return [row for (row,) in con.execute(sql).fetchall()]


def told(known: Known, con: Any, rows: list[int], pictures: bool, scores: list[str]) -> dict[int, dict[str, Any]]:
    """What the page shows of each row, `scores` among it. Above report.unsafe a picture is `unsafe`."""
    there, unsafe = columns_known(known.run), known.run.config.report.unsafe
    names = [name for name in dict.fromkeys((*SHOWN, *scores)) if name in there]
    listed = ", ".join([f'k."{name}"' for name in names])
    wanted = ", ".join(map(str, sorted(set(rows)))) or "NULL"
    columns = f"k.row, {listed}, k.fetch_id, f.final AS fate, f.said AS detail"
    sql = f"SELECT {columns} FROM known k JOIN facts f ON f.row = k.row WHERE k.row IN ({wanted})"
    found = {line["row"]: line for line in con.sql(sql).to_arrow_table().to_pylist()}
    for line in found.values():
        line["unsafe"] = (line.get("claimed_punsafe") or 0) >= unsafe or line.get("claimed_nsfw") == "NSFW"
        for name in ("url", "source_caption", "caption", "detail"):
            if line.get(name) and len(line[name]) > CHARS:
                line[name] = line[name][:CHARS] + " …"
    asked = {found[row]["fetch_id"]: None for row in rows if row in found and found[row]["fetch_id"]}  # in order of importance
    images = _pictures(known, con, list(asked)) if pictures else {}
    for line in found.values():
        line["picture"] = images.get(line["fetch_id"])
    return found


def of_evaluation(known: Known, labels: set[str]) -> dict[str, str]:
    """SET/NAME of an evaluation image -> a small JPEG as a data URL, as far as the sets lie at hand."""
    from stages.decontaminate import pictures

    (sets,) = (entry.stage.config.sets for entry in known.run.layout.scores if entry.name == "decontaminate")
    made = {label: _data_url(body) for label, body in pictures(sets, labels).items()}
    return {label: url for label, url in made.items() if url is not None}


def _pictures(known: Known, con: Any, fetches: list[str]) -> dict[str, str]:
    """fetch_id -> a small JPEG as a data URL, until they fill MOST_BYTES. Only the files that hold them are opened."""
    listed = ", ".join(map(views.quote, fetches)) or "NULL"
    where: dict[str, list[str]] = {}
    for fetch, address in con.execute(f"SELECT fetch_id, filename FROM pool WHERE fetch_id IN ({listed})").fetchall():
        where.setdefault(address, []).append(fetch)
    made: dict[str, str] = {}
    for address, held in sorted(where.items()):
        if "image" not in known.run.store.columns(known.run.store.relative(address)):
            continue  # pool.keep: false
        one = ", ".join(map(views.quote, held))
        sql = f"SELECT fetch_id, image FROM read_parquet({views.quote(address)}) WHERE fetch_id IN ({one}) AND image IS NOT NULL"
        for batch in views.batches(con, sql, 64):
            for fetch, body in zip(batch["fetch_id"].to_pylist(), batch["image"], strict=True):
                if (data := _data_url(body.as_py())) is not None:
                    made[fetch] = data
    out, size = {}, 0
    for fetch in fetches:
        if fetch in made and size + len(made[fetch]) <= MOST_BYTES:
            out[fetch], size = made[fetch], size + len(made[fetch])
    return out


def _data_url(body: bytes) -> str | None:
    image = small(body, SIDE)
    if image is None:
        return None
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
