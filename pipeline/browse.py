"""`shardmill browse`: a page on loopback to look through all rows of a run, kept and dropped, with filters, any order, and free text.

All that is known of the rows is copied once into a table that DuckDB spills to disk; images are read from the pool when they are
looked at. The server answers this machine alone: it listens on 127.0.0.1 and refuses any other name in a request, so that no web
page can reach it by a name of its own that leads here.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pipeline import explain, views
from pipeline.errors import UserError
from pipeline.known import Known
from pipeline.phases.ledger import view_ledger
from pipeline.phases.select import view_selected
from pipeline.report import examples, page, tables
from pipeline.runs import reopen
from stages.lib.imagetype import sniff

PAGE, MOST_PAGES = 50, 20_000  # rows of a page; the last one that is found by its number alone
CHARS = 500  # of a text in the list; a story tells all of it
FIRST = ("row", "fate", "caption", "url", "host", "similarity", "detail")  # the columns that the page shows first
HIDDEN = {"caption_hash", "fetched", "part"}
NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
)
NOT_LISTED = ("FLOAT[", "DOUBLE[", "STRUCT", "MAP", "BLOB")  # types of columns that nobody looks through, as embeddings
PICTURES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif", "avif": "image/avif"}


@dataclass
class Rows:
    """The rows of a run for looking through. One request at a time: a DuckDB connection has one at hand."""

    known: Known
    con: Any
    lock: threading.Lock = field(default_factory=threading.Lock)
    held: tuple[str, list[Any], str] | None = None  # the question whose hits are the table `hits`

    def __post_init__(self) -> None:
        """Makes the tables `browsed` (a line a row) and `homes` (fetch -> its file in the pool)."""
        self.known.view_known(self.con, "known", image_dedup=True)
        view_selected(self.known, self.con)
        view_ledger(self.known, self.con)
        tables.make_facts(self.known, self.con)
        caption = "k.caption" if "caption" in self._columns("known") else "k.source_caption"
        sought = f"lower(concat_ws(chr(0), k.source_caption, {caption}, k.url, f.said))"  # what free text is looked for in
        own = {"fate", "detail", "final", "said", "source_caption", "caption"}
        held = [name for name in self._columns("facts") if name not in own | HIDDEN]
        kinds = self.con.execute("SELECT column_name, column_type FROM (DESCRIBE known)").fetchall()
        more = [name for name, kind in kinds if name not in {*held, *own, *HIDDEN} and not kind.startswith(NOT_LISTED)]
        listed = ", ".join([*(f'f."{name}"' for name in held), *(f'k."{name}"' for name in more)])
        self.con.execute(
            f"CREATE OR REPLACE TEMP TABLE browsed AS SELECT {listed}, k.source_caption, {caption} AS caption, "
            f"f.final AS fate, f.said AS detail, l.key, {sought} AS sought, {examples.unsafe_sql(self.known, 'k')} AS blurred "
            "FROM facts f JOIN known k ON k.row = f.row JOIN ledger l ON l.row = f.row"
        )
        self.con.execute("DROP TABLE facts")
        self.con.execute("CREATE OR REPLACE TEMP TABLE homes AS SELECT fetch_id, filename FROM pool")
        found = self.con.execute(
            "SELECT column_name, column_type FROM (DESCRIBE browsed) WHERE column_name NOT IN ('sought', 'blurred')"
        ).fetchall()
        self.columns = dict(sorted(found, key=lambda one: FIRST.index(one[0]) if one[0] in FIRST else len(FIRST)))
        self.fates = [
            fate for (fate,) in self.con.execute("SELECT fate FROM browsed GROUP BY fate ORDER BY count(*) DESC, fate").fetchall()
        ]

    def _columns(self, name: str) -> list[str]:
        return list(self.con.sql(f"SELECT * FROM {name} LIMIT 0").columns)

    @property
    def numeric(self) -> list[str]:
        """The columns that hold numbers."""
        return [name for name, kind in self.columns.items() if kind.startswith(NUMBERS) and not kind.endswith("]")]

    def find(self, asked: dict[str, str]) -> dict[str, Any]:
        """A page of rows: `fate`, `text` (in caption, url or detail), `host`, `column` with `least` and `most` or `is` (of a list: holds),
        `sort`, `down`; and `page`, or the rows `after` or `before` a row of the same question, which costs as little at the end as at the
        beginning.

        Raises UserError for a column that is not there or a number that is none.
        """
        tests, values = self._tests(asked)
        where = f"WHERE {' AND '.join(tests)}" if tests else ""
        sort = asked.get("sort") or "row"
        self._check(sort)
        down = bool(asked.get("down"))
        number = max(_row(asked.get("page") or "0"), 0)
        listed = ", ".join(
            f'left("{name}", {CHARS}) AS "{name}"' if kind == "VARCHAR" else f'"{name}"' for name, kind in self.columns.items()
        )
        with self.lock:
            source = self._source(where, values, sort)
            ((total,),) = self.con.execute(f"SELECT count(*) FROM {source}").fetchall()
            if asked.get("after") or asked.get("before"):
                chosen = _beside(source, down, _row(asked.get("after") or asked["before"]), forward=bool(asked.get("after")))
            else:
                number = min(number, MOST_PAGES, max(total - 1, 0) // PAGE)
                chosen = f"SELECT row FROM {source} ORDER BY {_order(down)} LIMIT {PAGE} OFFSET {number * PAGE}"
            sql = f"SELECT {listed}, blurred FROM browsed WHERE row IN ({chosen}) ORDER BY {_order(down, sort)}"
            rows = self.con.sql(sql).to_arrow_table()
        return {
            "total": total,
            "page": number,
            "rows": [{name: _finite(value) for name, value in line.items()} for line in rows.to_pylist()],
        }

    def _source(self, where: str, values: list[Any], sort: str) -> str:
        """A table of `row` and `place`, which it is ordered by. Hits of a question are looked for once, whatever is turned to then."""
        if not where:
            return f'(SELECT row, "{sort}" AS place FROM browsed)'
        if self.held != (where, values, sort):
            self.con.execute(f'CREATE OR REPLACE TEMP TABLE hits AS SELECT row, "{sort}" AS place FROM browsed {where}', values)
            self.held = (where, values, sort)
        return "hits"

    def _tests(self, asked: dict[str, str]) -> tuple[list[str], list[Any]]:
        tests, values = [], list[Any]()
        for name, test in (("fate", "fate = ?"), ("host", "host = ?")):
            if asked.get(name):
                tests.append(test)
                values.append(asked[name].lower() if name == "host" else asked[name])
        if asked.get("text"):
            tests.append("contains(sought, lower(?))")
            values.append(asked["text"])
        column = asked.get("column") or ""
        for bound, sign in (("least", ">="), ("most", "<=")):
            if column and asked.get(bound):
                self._check(column, number=True)
                tests.append(f'"{column}" {sign} ?')
                values.append(self._bound(column, asked[bound]))
        if column and asked.get("is"):
            self._check(column)
            number = column in self.numeric
            holds = (
                f'list_contains(CAST("{column}" AS VARCHAR[]), ?)'
                if self.columns[column].endswith("[]")
                else f'CAST("{column}" AS VARCHAR) = ?'
            )
            tests.append(f'"{column}" = ?' if number else holds)
            values.append(self._bound(column, asked["is"]) if number else asked["is"])
        return tests, values

    def _bound(self, column: str, text: str) -> float:
        """A number to compare a column with: of 32 bits where the column has them, as rules compare, so that 0.7 is 0.7."""
        number = _number(text)
        if self.columns[column] != "FLOAT":
            return number
        with np.errstate(over="ignore"):
            return float(np.float32(number))

    def _check(self, column: str, number: bool = False) -> None:
        if column not in self.columns or (number and column not in self.numeric):
            raise UserError(f"no {'numeric ' if number else ''}column {column!r}" + (" (from and to are for numbers)" if number else ""))

    def image(self, row: int) -> tuple[str, bytes] | None:
        """Content type and bytes of a row's stored image; None where the pool holds none that a browser shows."""
        with self.lock:
            sql = "SELECT h.fetch_id, h.filename FROM browsed b JOIN homes h ON h.fetch_id = b.fetch_id WHERE b.row = ?"
            for fetch, address in self.con.execute(sql, [row]).fetchall():
                picture = examples.picture_sql(self.known.run.store.columns(self.known.run.store.relative(address)))
                if picture is None:
                    continue  # pool.keep: false
                sql = f"SELECT {picture} AS image FROM read_parquet({views.quote(address)}) WHERE fetch_id = ? AND image IS NOT NULL"
                for (body,) in self.con.execute(sql, [fetch]).fetchall():
                    kind = PICTURES.get(sniff(bytes(body)) or "")
                    return (kind, bytes(body)) if kind else None
        return None

    def story(self, row: int) -> list[tuple[str, str]]:
        """The steps of a row, as `shardmill explain` tells them."""
        with self.lock:
            found = explain.told(self.con, f"k.row = {row}")
        return explain.tell(found[0]) if found else []


def _order(down: bool, place: str = "place", back: bool = False) -> str:
    """SQL of an order by a column, nulls last, then by row; `back`: the same from its end."""
    ways = ("DESC NULLS LAST", "ASC") if not back else ("ASC NULLS FIRST", "DESC")
    if not down:
        ways = ("ASC NULLS LAST", "ASC") if not back else ("DESC NULLS FIRST", "DESC")
    return f'"{place}" {ways[0]}, row {ways[1]}'


def _beside(source: str, down: bool, row: int, forward: bool) -> str:
    """SQL of the PAGE rows after (or before) a row of `source` in its order."""
    farther = "<" if down == forward else ">"  # of a place, as one goes on
    further, null = (">", "s.place IS NULL AND k.place IS NOT NULL") if forward else ("<", "s.place IS NOT NULL AND k.place IS NULL")
    beside = f"s.place {farther} k.place OR ({null}) OR (s.place IS NOT DISTINCT FROM k.place AND s.row {further} k.row)"
    held = f"SELECT s.row, s.place FROM {source} s, (SELECT row, place FROM {source} WHERE row = {row}) k WHERE {beside}"
    return f"SELECT row FROM ({held}) ORDER BY {_order(down, back=not forward)} LIMIT {PAGE}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"not a number: {text[:40]!r}") from None


def _row(text: str) -> int:
    number = _number(text)
    if not abs(number) < 1 << 62:  # nan and inf too
        raise UserError(f"no such row: {text[:40]!r}")
    return int(number)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def answer(rows: Rows, target: str) -> tuple[int, str, bytes]:
    """Status, content type and body for a request's target."""
    try:
        address = urlsplit(target)
    except ValueError:  # no address at all
        return 404, "text/plain; charset=utf-8", b"nothing here"
    asked = {name: values[-1] for name, values in parse_qs(address.query).items()}
    try:
        if address.path == "/":
            return 200, "text/html; charset=utf-8", start(rows).encode()
        if address.path == "/favicon.ico":
            return 200, "image/x-icon", b""
        if address.path == "/rows":
            return _json(rows.find(asked))
        if address.path == "/story":
            return _json(rows.story(_row(asked.get("row", ""))))
        if address.path == "/image" and (found := rows.image(_row(asked.get("row", "")))):
            return 200, *found
    except UserError as err:
        return 400, "text/plain; charset=utf-8", str(err).encode()
    return 404, "text/plain; charset=utf-8", b"nothing here"


def _json(value: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value, default=str, allow_nan=False).encode()


def start(rows: Rows) -> str:
    """The page itself; all rows come to it as JSON."""
    data = {"columns": list(rows.columns), "page": PAGE, "first": [name for name in FIRST if name in rows.columns]}
    name = rows.known.run.config.run.name
    return page.html(
        "browse.html", "browse.js", data, plots=False, run=name, fates=rows.fates, columns=list(rows.columns), numeric=rows.numeric
    )


def handler(rows: Rows) -> type[BaseHTTPRequestHandler]:
    """A request handler that answers for this machine's own names alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answers, or refuses a request that names another host: a page elsewhere whose name leads here."""
            if (self.headers.get("Host") or "").partition(":")[0] not in {"127.0.0.1", "localhost"}:
                self._send(403, "text/plain; charset=utf-8", b"this server answers 127.0.0.1 and localhost alone")
                return
            try:
                answered = answer(rows, self.path)
            except Exception as err:  # a storage that refuses, or a bug: the page is told, and the terminal how it came
                self._send(500, "text/plain; charset=utf-8", " ".join(str(err).split())[:CHARS].encode())
                raise
            self._send(*answered)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff"}
            headers |= {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing: what is looked at is nobody's business."""

    return Handler


def serve(run: str, port: int = 0, ready: Callable[[str, Any], None] | None = None) -> None:
    """Serves until Ctrl-C; `ready` is told the address and the server. Raises UserError for an unfinished run or a port that is taken."""
    known = reopen(run)
    if not known.published:
        raise UserError(f"{run}: the run is not finished; repeat `shardmill run`")
    # The port is taken first, since reading the rows may take a while; who asks meanwhile waits.
    with _listening(port) as server, views.connect(known.run.store) as con:
        server.RequestHandlerClass = handler(Rows(known, con))
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with contextlib.suppress(KeyboardInterrupt):  # from here on the end that was told
            if ready:
                ready(address, server)
            else:
                print(f"{address}   (Ctrl-C ends it)", flush=True)
            server.serve_forever()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a page that was left before its answer was there."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _listening(port: int) -> ThreadingHTTPServer:
    try:
        return _Server(("127.0.0.1", port), BaseHTTPRequestHandler)
    except OSError as err:
        raise UserError(f"--port {port}: cannot listen on 127.0.0.1: {err}") from err
