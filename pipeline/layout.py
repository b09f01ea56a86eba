"""Which stages of a config make up which phase. A phase is what stands between two barriers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline import catalog
from pipeline.catalog import Entry
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.stage import MEDIA, Stage
from pipeline.storage import Store

BARRIERS = ("dedup", "download", "images", "frames", "image_dedup", "selection", "shards")


@dataclass(frozen=True)
class Layout:
    """A config's stages by phase, in order."""

    rows: list[Entry]
    expand: Entry | None
    children: list[Entry]
    dedup: Entry | None
    pool: list[Entry]
    scores: list[Entry]
    image_dedup: Entry | None
    selection: Entry | None
    shards: Entry

    @property
    def before_barrier(self) -> list[Entry]:
        """All stages of the phase `rows`."""
        return [*self.rows, *([self.expand] if self.expand else []), *self.children]

    @property
    def level(self) -> str:
        """The rows that later phases work on: input rows, or their children."""
        return "children" if self.expand else "rows"

    @property
    def media(self) -> list[str]:
        """The columns of the pool that go into the shards."""
        return next(found for entry in reversed(self.pool) if (found := [name for name in MEDIA if name in entry.stage.adds]))

    @property
    def scorer(self) -> str | None:
        """The model that scores pairs, with what has to be said of it where it is a stand-in; None where nothing does."""
        return _judge(self.scores, "scores")

    @property
    def aligner(self) -> str | None:
        """The same of the model that tells when a video shows what is said."""
        return _judge(self.pool, "alignment")

    def phases(self) -> list[tuple[str, list[Entry]]]:
        """Phase names with their stages, in the order in which they run."""
        single = [("dedup", self.dedup), ("image_dedup", self.image_dedup), ("selection", self.selection)]
        have = {name: [entry] for name, entry in single if entry}
        have |= {"rows": self.before_barrier, "pool": self.pool, "scores": self.scores, "shards": [self.shards]}
        order = ["rows", "dedup", "pool", "scores", "image_dedup", "selection", "shards"]
        return [(name, have[name]) for name in order if have.get(name)]


@dataclass(frozen=True)
class Run:
    """A run: its config, its stages, and where its files lie. `where` names the config in messages."""

    config: RunConfig
    layout: Layout
    store: Store
    where: str = "config"
    given: RunConfig | None = None  # the config as it was written, where `config` had to be made reachable (sample://)

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entries in self.layout.phases() for entry in entries]

    @property
    def own_modules(self) -> list[str]:
        """Modules of the user's own stages."""
        return sorted({entry.name.partition(":")[0] for entry in self.entries if not entry.built_in})


def open_run(config: RunConfig, where: str = "config", given: RunConfig | None = None, past: bool = False) -> Run:
    """Types every stage of the config and refuses what cannot work; of a run that is only read (`past`) the files that the config names
    need not be there. Raises UserError; touches nothing on storage."""
    with faults_of(where):
        layout = arrange(catalog.resolve(config, where, past))
        catalog.check_order(layout_order(layout))
        check_columns(layout)
    store = Store(f"{config.run.root.rstrip('/')}/{config.run.name}", dict(config.run.storage_options))
    return Run(config, layout, store, where, given)


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Lets every UserError of the block begin with the config's name."""
    try:
        yield
    except UserError as err:
        if str(err).startswith(f"{where}: "):
            raise
        raise UserError(f"{where}: {err}") from err


def _judge(entries: list[Entry], name: str) -> str | None:
    stage = next((entry.stage for entry in entries if entry.name == name), None)
    if stage is None:
        return None
    said = getattr(stage, "demonstration", None)
    return f"{stage.config.model}: {said}" if said else str(stage.config.model)


def check_columns(layout: Layout) -> None:
    """Refuses a stage that makes a column anew which a phase before its own has committed. Raises UserError."""
    known: dict[str, str] = {}
    for _, entries in layout.phases():
        for entry in entries:
            if twice := [name for name in entry.stage.adds if name in known]:
                raise UserError(
                    f"stages.{entry.name}: {', '.join(twice)} is {known[twice[0]]}'s, whose rows are committed by then; "
                    "give it another name, or let this stage stand before dedup"
                )
        known |= {name: entry.name for entry in entries for name in entry.stage.adds}


def layout_order(layout: Layout) -> list[Entry]:
    return [entry for _, entries in layout.phases() for entry in entries]


def arrange(entries: list[Entry]) -> Layout:
    """Sorts stages into phases by their place in the config. Raises UserError for a place that cannot be."""
    names = [entry.name for entry in entries]
    made = "frames" if "frames" in names else "images"
    for needed in ("ingest", "download", made):
        if needed not in names:
            raise UserError(f"stages: {needed} is missing; every corpus needs ingest, download and images (of videos: frames)")
    if "frames" in names and "images" in names:
        raise UserError("stages.images: a corpus holds images or the frames of videos, not both")
    media = "frames" if made == "frames" else "image"
    if any(entry.name == "scores" and entry.stage.config.media != media for entry in entries):
        raise UserError(f"stages.scores.media: the corpus has the stage {made}; set stages.scores.media: {media}")
    if names[0] != "ingest":
        raise UserError(f"stages: the first must be ingest, not {names[0]}")
    at = {name: names.index(name) for name in BARRIERS if name in names}
    order = [name for name in names if name in BARRIERS]
    if order != [name for name in BARRIERS if name in at]:
        raise UserError(f"stages: {', '.join(order)} stand in this order, but must stand as {', '.join(n for n in BARRIERS if n in at)}")
    first = entries[: min(at.get("dedup", at["download"]), at["download"])]
    if "dedup" in at and at["dedup"] + 1 != at["download"]:
        raise UserError(f"stages.{names[at['dedup'] + 1]}: nothing may stand between dedup and download; put it before dedup")
    end = min(at[name] for name in ("image_dedup", "selection", "shards") if name in at)
    if late := [name for name in names[end:] if name not in BARRIERS]:
        raise UserError(f"stages.{late[0]}: it stands after {names[end]}, where no row is worked on; put it right after {made}")
    rows, expand, children = _split(first)
    return Layout(
        rows=rows,
        expand=expand,
        children=children,
        dedup=entries[at["dedup"]] if "dedup" in at else None,
        pool=entries[at["download"] : at[made] + 1],
        scores=_only_rows(entries[at[made] + 1 : end]),
        image_dedup=entries[at["image_dedup"]] if "image_dedup" in at else None,
        selection=entries[at["selection"]] if "selection" in at else None,
        shards=entries[at["shards"]],
    )


def _split(entries: list[Entry]) -> tuple[list[Entry], Entry | None, list[Entry]]:
    expanding = [i for i, entry in enumerate(entries) if entry.stage.shape == "expand"]
    if len(expanding) > 1:
        raise UserError(f"stages.{entries[expanding[1]].name}: a config may hold one expand stage")
    if not expanding:
        return _only_rows(entries), None, []
    cut = expanding[0]
    return _only_rows(entries[:cut]), entries[cut], _only_rows(entries[cut + 1 :])


def _only_rows(entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        if entry.stage.shape != "rows":
            raise UserError(f"stages.{entry.name}: a stage of shape {entry.stage.shape} cannot stand here")
    return entries


def stages_of(entries: list[Entry]) -> list[Stage]:
    return [entry.stage for entry in entries]
