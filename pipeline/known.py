"""All that is known of a run: the key of every phase, and DuckDB views that join what is committed, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline import views
from pipeline.errors import ContractError
from pipeline.keys import digest, ingredients
from pipeline.layout import Run, stages_of
from pipeline.parts import Part
from pipeline.phases import fetch, rows
from pipeline.stage import KEPT, MEDIA, Stage

WHOLE = ("dedup", "image_dedup", "selection", "shards")  # phases that are committed as a whole


@dataclass(frozen=True)
class Known:
    """A run over its input files; `recorded`: what its keys were made of, where a state is read as run.json describes it."""

    run: Run
    files: list[Any]
    recorded: dict[str, Any] | None = None

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of the level that the phases after `rows` work on."""
        return rows.parts(self.run, self.files, self.run.layout.level)

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What each phase's key is made of, as JSON; a later phase names the keys that it reads."""
        return self.after(self.retries) if self.recorded is None else self.recorded

    def after(self, retries: list[dict[str, Any]]) -> dict[str, Any]:
        """The same by the stages as they are now, after these retries."""
        layout = self.run.layout
        made: dict[str, Any] = {"rows": {file.url: rows.made_of(self.run, file) for file in self.files}}
        if layout.dedup:
            made["dedup"] = ingredients([layout.dedup], rows=self._row_keys)
        made["pool"] = fetch.pool_made_of(self.run)
        if layout.scores:
            made["scores"] = fetch.scores_made_of(self.run)
        made |= self._chosen_of(made, retries)
        made["shards"] = ingredients([layout.shards], selection=digest(made["selection"]))
        return made

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of each phase but `rows` (those are per input file)."""
        return {name: digest(made) for name, made in self.made_of.items() if name != "rows"}

    @cached_property
    def retries(self) -> list[dict[str, Any]]:
        """The retries of this pool, in order: its content is named by its KEY and these."""
        pool = fetch.pool_made_of(self.run) if self.recorded is None else self.recorded["pool"]
        return fetch.retries(self.run.store, digest(pool))

    @cached_property
    def appends_to(self) -> dict[str, Any] | None:
        """The last retry, where it appends to shards that are otherwise made of the very same things and still there."""
        return self._base(self.made_of, self.retries)

    @property
    def lost_base(self) -> str | None:
        """The KEY of the shards that the last retry would append to, where they are gone: then all shards are written anew."""
        note = self._appended(self.made_of, self.retries)
        return note["shards"] if note and not self._there(note) else None

    @property
    def _row_keys(self) -> list[str]:
        return [rows.key_of(self.run, file) for file in self.files]

    def _chosen_of(self, made: dict[str, Any], retries: list[dict[str, Any]]) -> dict[str, Any]:
        """What image_dedup and selection are made of after these retries."""
        layout = self.run.layout
        upstream: dict[str, Any] = {"rows": self._row_keys, "retries": retries}
        upstream |= {name: digest(made[name]) for name in ("dedup", "pool", "scores") if name in made}
        out: dict[str, Any] = {}
        if layout.image_dedup:
            out["image_dedup"] = ingredients([layout.image_dedup], **upstream)
            upstream["image_dedup"] = digest(out["image_dedup"])
        chosen = [layout.selection] if layout.selection else []
        base = self._base(made, retries)
        dedup: Any = layout.dedup.stage.config if layout.dedup else None
        more = {"seed": self.run.config.run.seed, "dedup_on": dedup and dedup.on, "appends_to": base and base["shards"]}
        out["selection"] = ingredients([*chosen, layout.shards], **more, **upstream)
        return out

    def _base(self, made: dict[str, Any], retries: list[dict[str, Any]]) -> dict[str, Any] | None:
        note = self._appended(made, retries)
        return note if note and self._there(note) else None

    def _there(self, note: dict[str, Any]) -> bool:
        return all(self.run.store.exists(f"{phase}/{note[phase]}/done.json") for phase in ("shards", "selection"))

    def _appended(self, made: dict[str, Any], retries: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The last of the retries, if it was to append to shards made of the very same things."""
        if not retries or retries[-1]["rebuild"]:
            return None
        before = digest(self._chosen_of(made, retries[:-1])["selection"])
        return retries[-1] if retries[-1]["selection"] == before else None

    def folder(self, phase: str) -> str:
        """Where a phase's files lie in the run."""
        return f"{phase}/{self.keys[phase]}"

    def done(self, phase: str) -> bool:
        """Whether a phase that is committed as a whole is there."""
        return self.run.store.exists(f"{self.folder(phase)}/done.json")

    @property
    def finished(self) -> bool:
        """Whether the shards of the current KEY are whole, and all that they were chosen by: then workers have nothing left to do."""
        return all(self.done(phase) for phase in WHOLE if phase in self.keys)

    @property
    def published(self) -> bool:
        """Whether the shards of the current KEY are whole and the manifest names them."""
        store = self.run.store
        manifest = store.read_json("shards/manifest.json") if store.exists("shards/manifest.json") else {}
        return self.done("shards") and manifest.get("key") == self.keys["shards"]

    def view_rows(self, con: Any) -> None:
        """View `rows`: row, part, and every stored column of the phase rows."""
        views.rows(con, "rows", self.run.store, self.parts, self.row_schema())

    def view_parents(self, con: Any) -> None:
        """View `parents`: the input's rows as far as the stages before the expanding one go, with the fate that these gave."""
        parts = rows.parts(self.run, self.files, "rows")
        views.rows(con, "parents", self.run.store, parts, self.row_schema("rows"))

    def row_schema(self, level: str | None = None) -> pa.Schema:
        """Columns of the files of a level."""
        layout = self.run.layout
        entries = layout.rows if (level or layout.level) == "rows" else layout.before_barrier
        parent = [("parent", pa.int64())] if (level or layout.level) == "children" else []
        stored = fetch.stored_schema(stages_of(entries))
        return pa.schema([("row", pa.int64()), *parent, *((f.name, f.type) for f in stored)])

    def view_alive(self, con: Any) -> None:
        """View `alive`: the rows that go to the download."""
        self.view_rows(con)
        if self.run.layout.dedup:
            self._view_phase(con, "dedup", self.run.layout.dedup.stage)
            con.execute("CREATE OR REPLACE VIEW alive AS SELECT r.* FROM rows r JOIN dedup d ON d.row = r.row AND d.fate = 'kept'")
        else:
            con.execute("CREATE OR REPLACE VIEW alive AS SELECT * FROM rows WHERE fate = 'kept'")

    def view_known(self, con: Any, name: str, image_dedup: bool) -> None:
        """View `name`: one line a row with every stored column but image bytes, its fetch, and its fate so far.

        Views beside it: `fetch_of` (row, fetch_id) of the rows that are fetched, `pool`, and `scores` where there are any.
        """
        run, layout = self.run, self.run.layout
        self.view_alive(con)
        pool = fetch.stored_schema(stages_of(layout.pool), "fetch_id")
        views.latest(con, "pool", run.store, self.folder("pool"), "fetch_id", pool)
        reads = fetch.pool_reads(run)
        tables = ["rows r", *(["LEFT JOIN dedup d ON d.row = r.row"] if layout.dedup else [])]
        columns = ["r.* EXCLUDE (fate, detail)", *_columns("d", layout.dedup.stage if layout.dedup else None)]
        con.execute(f"CREATE OR REPLACE VIEW fetch_of AS SELECT row, {fetch.unit_sql(reads, 'alive')} AS fetch_id FROM alive")
        tables += ["LEFT JOIN fetch_of f ON f.row = r.row", "LEFT JOIN pool p ON p.fetch_id = f.fetch_id"]
        columns += ["f.fetch_id", *(f'p."{n}"' for n in pool.names if n not in ("fetch_id", *MEDIA, "fate", "detail"))]
        fates = ["r", *(["d"] if layout.dedup else []), "p"]
        if layout.scores:
            scores = fetch.stored_schema(stages_of(layout.scores), "pair_id", "fetch_id")
            views.latest(con, "scores", run.store, self.folder("scores"), "pair_id", scores)
            pair = fetch.unit_sql(fetch.pair_reads(run), "r", "f.fetch_id")
            tables.append(f"LEFT JOIN scores s ON s.pair_id = {pair}")
            columns += [f's."{n}"' for n in scores.names if n not in ("pair_id", "fetch_id", "fate", "detail")]
            fates.append("s")
        if image_dedup and layout.image_dedup:
            self._view_phase(con, "image_dedup", layout.image_dedup.stage)
            tables.append("LEFT JOIN image_dedup i ON i.row = r.row")
            columns += _columns("i", layout.image_dedup.stage)
        whens = " ".join(f"WHEN {t}.fate <> '{KEPT}' THEN {t}.fate" for t in fates)
        details = " ".join(f"WHEN {t}.fate <> '{KEPT}' THEN {t}.detail" for t in fates)
        complete = " AND ".join(f"{t}.fate IS NOT NULL" for t in fates)
        columns += [f"CASE {whens} WHEN {complete} THEN '{KEPT}' END AS fate", f"CASE {details} END AS detail"]
        con.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT {', '.join(columns)} FROM {' '.join(tables)}")

    def check_complete(self, con: Any, name: str) -> None:
        """Raises ContractError where a row of the view has no fate: something that should be committed is not."""
        lost = con.execute(f"SELECT count(*), min(row) FROM {name} WHERE fate IS NULL").fetchall()[0]
        if lost[0]:
            raise ContractError(f"{lost[0]} rows have neither a fetch nor a fate, the first is row {lost[1]}; repeat the command")

    def _view_phase(self, con: Any, phase: str, stage: Stage) -> None:
        folder = self.folder(phase)
        columns = [(name, column.type) for name, column in stage.adds.items()]
        schema = pa.schema([("row", pa.int64()), *columns, ("fate", pa.string()), ("detail", pa.string())])
        paths = [f"{folder}/{name}" for name in self.run.store.names(folder, ".parquet")]
        views.files(con, phase, self.run.store, paths, schema)


def _columns(table: str, stage: Stage | None) -> list[str]:
    return [f'{table}."{name}"' for name in stage.adds] if stage else []


def columns_known(run: Run) -> dict[str, pa.DataType]:
    """Name and type of every column that a selection rule may use."""
    out: dict[str, pa.DataType] = {"row": pa.int64()}
    for phase, entries in run.layout.phases():
        if phase in ("selection", "shards"):
            break
        out |= {name: c.type for entry in entries for name, c in entry.stage.adds.items() if c.stored and name not in MEDIA}
    return out
