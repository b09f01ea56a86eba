"""The figures of a report: every one a DuckDB query over one narrow table of all rows, which DuckDB spills to disk.

`make_facts` joins the committed columns once, without image bytes and long texts; all counts of the report are taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import views
from pipeline.known import Known, columns_known
from pipeline.phases.select import selection_stage
from pipeline.stage import COMMON_REASONS, KEPT
from stages.selection import columns_of_rule

BINS = 40  # at most
HELD = 20_000_000  # numbers of a column that are held in memory: 160 MB
TAIL = 1  # spans of 99 % of the rows by which the greatest value lies above them, from which on the last bin is wide
TOP_HOSTS, TOP_VALUES, TOP_CLUSTERS, TOP_REPEATS = 50, 20, 6, 10
HOST_CHARS = 253  # of a host's name, as DNS has it; a URL may hold any number there
EXACT = 2.0**53  # below, a double holds every whole number
VAST = 1e150  # no measure is beyond; the square of what is has no place in a double
LOG_SPAN = 50  # a positive column whose greatest value is so many times its least one gets bins of equal ratio
# Short texts that the report counts or the selection may compare; every other text column stays in its file.
TEXTS = ("uid", "url", "sha256", "phash", "cluster", "image_cluster", "language", "original_format", "claimed_nsfw", "eval_match")
CATEGORIES = ("language", "original_format", "http_status")
UNIQUE = ("row", "part", "parent", "original_orientation", "exif_orientation", "http_status")  # numbers that are no measure


def make_facts(known: Known, con: Any) -> None:
    """Temporary table `facts`, one line a row, from the views `known` and `selected`.

    `fate` and `detail` are those before the selection, as the selection sees them; `final` and `said` are the ledger's.
    """
    columns = columns_known(known.run)
    ruled = {name for rule in selection_stage(known).rules for name in columns_of_rule(rule, columns)}
    flat = [n for n, kind in columns.items() if n in TEXTS or n in ruled or _plain(kind)]
    listed = ", ".join(f'k."{name}"' for name in flat if name != "row")
    caption = "k.caption" if "caption" in columns else "k.source_caption"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE facts AS SELECT k.row, k.part, {listed}, k.fate, k.detail, s.fate AS final, s.detail AS said, "
        f"hash({caption}) AS caption_hash, k.fetch_id, {_aspect(columns)} AS aspect, {_lag(columns)}"
        f"lower(regexp_extract(k.url, '{views.HOST}', 1)) AS host, "
        "k.fetch_id IS NOT NULL AND NOT starts_with(k.fate, 'download:') AS fetched "
        "FROM known k JOIN selected s ON s.row = k.row"
    )


def _plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _aspect(columns: dict[str, pa.DataType]) -> str:
    """SQL of the longest side over the shortest."""
    if "original_width" not in columns:
        return "CAST(NULL AS DOUBLE)"
    sides = "k.original_width, k.original_height"
    return f"greatest({sides}) / nullif(CAST(least({sides}) AS DOUBLE), 0)"


def _lag(columns: dict[str, pa.DataType]) -> str:
    """SQL of how far the worst frame of a clip lies behind the time that was asked for, in seconds."""
    return "list_max(k.frame_lags) AS frame_lag, " if "frame_lags" in columns else ""


def measures(known: Known) -> list[str]:
    """The numeric columns of a run, in the order of its stages, `aspect` and `frame_lag`: what a distribution says something of."""
    columns = columns_known(known.run)
    found = [n for n, kind in columns.items() if _plain(kind) and not pa.types.is_boolean(kind) and n not in UNIQUE]
    made = {"aspect": "original_width", "frame_lag": "frame_lags"}
    return [*found, *(name for name, source in made.items() if source in columns)]


def histograms(con: Any, names: list[str]) -> dict[str, Any]:
    """The histogram of each column that holds any number."""
    found = {name: histogram(con, name) for name in names}
    return {name: one for name, one in found.items() if one["rows"]}


def histogram(con: Any, column: str, table: str = "facts", edges: tuple[list[float], str] | None = None) -> dict[str, Any]:
    """Rows from each edge up to the next (the last one included), before and after selection; NaN, infinities and what is beyond VAST
    stand in no bin.

    `mean`, `std` and the quantiles are over the same rows; `scale` is `log` where the bins are of equal ratio; `whole`: all values are
    whole numbers, and unless `log` all edges. `edges` (with their scale)
    may be given; then they have to hold all values.
    """
    value = f'CAST("{column}" AS DOUBLE)'
    source = f"(SELECT {value} AS x, final = '{KEPT}' AS kept FROM {table} WHERE isfinite({value}) AND abs({value}) < {VAST})"
    summary = "count(x), min(x), max(x), avg(x), stddev_pop(x), count(DISTINCT x), bool_and(x = floor(x))"
    count, low, high, mean, std, distinct, whole = con.execute(f"SELECT {summary} FROM {source}").fetchall()[0]
    if not count:
        return {"edges": [], "rows": [], "kept": []}
    p05, p50, p95, lower, upper = quantiles(con, source, count, [50_000, 500_000, 950_000, 5_000, 995_000])
    whole = whole and max(-low, high) < EXACT
    bounds, scale = edges or _edges(low, high, lower, upper, whole)
    bins = "WHEN false THEN 0 "  # of one bin
    bins += " ".join(f"WHEN x < CAST('{edge!r}' AS DOUBLE) THEN {at}" for at, edge in enumerate(bounds[1:-1]))
    counted = con.execute(
        f"SELECT CASE {bins} ELSE {len(bounds) - 2} END AS bin, count(*), count(*) FILTER (kept) FROM {source} GROUP BY bin"
    ).fetchall()
    rows, kept = [0] * (len(bounds) - 1), [0] * (len(bounds) - 1)
    for at, n, k in counted:
        rows[at], kept[at] = n, k
    mean, std = float(f"{mean:.9g}"), float(f"{std:.9g}")  # a sum's last digits follow from the order of its terms
    facts = {"scale": scale, "whole": whole, "mean": mean, "std": std, "distinct": distinct}
    return {"edges": bounds, "rows": rows, "kept": kept, **facts, "p05": p05, "p50": p50, "p95": p95}


def quantiles(con: Any, source: str, count: int, shares: Sequence[int]) -> list[float]:
    """Those of the `count` numbers `x` of a source that stand at these shares (millionths) of their order.

    DuckDB's quantile_disc holds them all in memory; more than HELD are sorted, which goes to disk where memory lacks, and give the same.
    """
    if count <= HELD:
        listed = ", ".join(f"{share / 1_000_000:.6f}" for share in shares)
        found: list[float] = con.execute(f"SELECT quantile_disc(x, [{listed}]) FROM {source}").fetchall()[0][0]
        return found
    places = np.array([max(1, -(-count * share // 1_000_000)) for share in shares]) - 1
    before, values = 0, np.zeros(len(places))
    for batch in views.batches(con, f"SELECT x FROM {source} ORDER BY x"):
        here = (places >= before) & (places < before + len(batch))
        values[here] = batch["x"].to_numpy()[places[here] - before]
        before += len(batch)
    return values.tolist()


def _edges(low: float, high: float, lower: float, upper: float, whole: bool) -> tuple[list[float], str]:
    """Edges of BINS bins at most; where a few rows lie far above all others (`lower` to `upper` hold 99 %), the last bin takes them.

    Bins of whole numbers hold equally many each: others would have a gap here, a spike there.
    """
    if low > 0 and high / low > LOG_SPAN:
        ratio = math.log(high / low)
        edges = [low * math.exp(ratio * at / BINS) for at in range(BINS)]
        return [low, *edges[1:], max(high, math.nextafter(edges[-1], math.inf))], "log"
    tail = upper > lower and high - upper > TAIL * (upper - lower)
    if whole:
        last = upper if tail else high
        step = math.ceil((last - low + 1) / (BINS - tail))
        edges = [low + at * step for at in range(math.ceil((last - low + 1) / step) + 1)]
        if high == edges[-1]:
            edges.append(high + step)
        return ([*edges, high], "tail") if high > edges[-1] else (edges, "linear")
    width = ((upper if tail else high) - low) / (BINS - tail) or 1
    edges = [low + at * width for at in range(BINS)]
    return [*edges, max(high, edges[-1] + width)], "tail" if tail else "linear"


def categories(known: Known, con: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows and kept rows of the most frequent values; rows without a value are left out, the rest is one line (value null)."""
    return {name: _top_values(con, name) for name in categories_of(known)}


def categories_of(known: Known) -> list[str]:
    """The columns of a run that are counted by their values."""
    there = columns_known(known.run)
    return [name for name in CATEGORIES if name in there]


def _top_values(con: Any, column: str) -> list[dict[str, Any]]:
    sql = (
        f"SELECT CAST(\"{column}\" AS VARCHAR) AS value, count(*) AS rows, count(*) FILTER (final = '{KEPT}') AS kept "
        f'FROM facts WHERE "{column}" IS NOT NULL GROUP BY value ORDER BY rows DESC, value'
    )
    top = _lines(con, f"{sql} LIMIT {TOP_VALUES}")
    rest = _lines(con, f"SELECT NULL AS value, sum(rows)::BIGINT AS rows, sum(kept)::BIGINT AS kept FROM ({sql} OFFSET {TOP_VALUES})")
    return top + [line for line in rest if line["rows"]]


def hosts(con: Any, by: str = "host") -> dict[str, Any]:
    """The hosts (or `by="tld"`) with the most rows: asked (a fetch was tried), fetched (bytes came, whatever they were), kept."""
    name = (
        r"CASE WHEN regexp_matches(host, '^(0x[0-9a-f]+|[\d.]+)$|^\[') THEN 'an address' ELSE regexp_extract(host, '[^.]*$') END"
        if by == "tld"
        else by
    )
    source = f"(SELECT {name} AS name, fetch_id, fetched, final FROM facts WHERE host <> '')"
    sql = (
        "SELECT name, count(*) AS rows, count(fetch_id) AS asked, count(*) FILTER (fetched) AS fetched, "
        f"count(*) FILTER (final = '{KEPT}') AS kept FROM {source} GROUP BY name"
    )
    ((distinct, kept),) = con.execute(f"SELECT count(*), coalesce(max(kept), 0) FROM ({sql})").fetchall()
    shown = f"SELECT * REPLACE (left(name, {HOST_CHARS}) AS name) FROM ({sql}) ORDER BY rows DESC, name LIMIT {TOP_HOSTS}"
    return {"distinct": distinct, "most_kept": kept, "top": _lines(con, shown)}


def clusters(known: Known, con: Any) -> dict[str, Any]:
    """Of each near-duplicate stage: how many clusters of which size (powers of two), and the largest ones with a few members."""
    there = columns_known(known.run)
    return {name: _clusters(con, name) for name in ("cluster", "image_cluster") if name in there}


def _clusters(con: Any, column: str) -> dict[str, Any]:
    one = f"SELECT {column} AS name, count(*) AS size, count(*) FILTER (final = '{KEPT}') AS kept FROM facts"
    one += f" WHERE {column} IS NOT NULL GROUP BY {column}"
    sizes = _lines(
        con,
        "SELECT CAST(2 ** floor(log2(size)) AS BIGINT) AS least, count(*) AS clusters, sum(size)::BIGINT AS rows "
        f"FROM ({one}) GROUP BY least ORDER BY least",
    )
    largest = _lines(con, f"SELECT * FROM ({one}) WHERE size > 1 ORDER BY size DESC, name LIMIT {TOP_CLUSTERS}")
    return {"sizes": sizes, "largest": largest}


def repeats(known: Known, con: Any) -> dict[str, list[dict[str, Any]]]:
    """The captions and perceptual hashes that most rows share, with one row of each (`row`)."""
    there = columns_known(known.run)
    keys = {"captions": "caption_hash", **({"images": "phash"} if "phash" in there else {})}
    alive = {"captions": "true", "images": "phash IS NOT NULL"}
    return {
        name: _lines(
            con,
            f"SELECT min(row) AS row, count(*) AS rows, count(*) FILTER (final = '{KEPT}') AS kept FROM facts "
            f"WHERE {alive[name]} GROUP BY {key} HAVING count(*) > 1 ORDER BY rows DESC, row LIMIT {TOP_REPEATS}",
        )
        for name, key in keys.items()
    }


def fetches(con: Any) -> dict[str, int]:
    """Rows that asked the network for an image (or their video), rows that got bytes, and rows whose bytes could be used."""
    usable = "fetched AND NOT starts_with(fate, 'images:') AND NOT starts_with(fate, 'frames:')"
    sql = f"SELECT count(fetch_id), count(*) FILTER (fetched), count(*) FILTER ({usable}) FROM facts"
    ((asked, fetched, decoded),) = con.execute(sql).fetchall()
    return {"asked": asked, "fetched": fetched, "usable": decoded}


def funnel(known: Known, kept: int, dropped: dict[str, int]) -> list[dict[str, Any]]:
    """The fates in the order of the run's stages and, within one, by count; the kept rows last."""
    entries = known.run.layout.phases()
    reasons = {e.stage.name: {**COMMON_REASONS, **e.stage.reasons} for _, listed in entries for e in listed}
    order = {name: at for at, name in enumerate([*reasons])}
    ruled = {f"selection:{name}": at for at, name in enumerate(selection_stage(known).reasons)}
    out: list[dict[str, Any]] = []
    for fate, rows in dropped.items():
        stage, _, reason = fate.rpartition(":")
        out.append({"fate": fate, "stage": stage, "reason": reason, "rows": rows, "meaning": reasons.get(stage, {}).get(reason, "")})
    out.sort(key=lambda one: (order.get(one["stage"], len(order)), ruled.get(one["fate"], 0), -one["rows"], one["fate"]))
    return [*out, {"fate": KEPT, "stage": KEPT, "reason": "", "rows": kept, "meaning": "stands in the shards"}]


def _lines(con: Any, sql: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = con.sql(sql).to_arrow_table().to_pylist()
    return out
