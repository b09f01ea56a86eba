"""What a selection's config may say: a list of rules, each with a name and exactly one way to choose."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ConfigDict, Field, RootModel, model_validator

from pipeline.stage import COMMON_REASONS, KEPT, Strict
from stages.selection import subset

NEAR_DUPLICATE = {
    "near_duplicate_caption": "another row of its cluster of near-duplicate captions is kept (dedup.on both: and their images agree)",
    "near_duplicate_image": "another row of its cluster of near-duplicate images is kept",
}
RESERVED = {KEPT, *NEAR_DUPLICATE, *COMMON_REASONS}
WAYS = ("keep", "top_fraction", "sample", "subset_file", "max_per_concept")


class Rule(Strict):
    """One rule: its name is the fate of the rows that it drops (`selection:NAME`). Exactly one way to choose is given."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Lower-case letters, digits and `_`; each rule has another."""
    keep: str | None = Field(None, min_length=1)
    """Boolean expression over the row's columns, in DuckDB's SQL; rows for which it is false, null or fails are dropped."""
    top_fraction: float | None = Field(None, gt=0, le=1)
    """Keep this share of the rows with the greatest `by`, ties as in DataComp: the value at place int(N * share), and all equal to it."""
    by: str | None = None
    """The column that the rule looks at: `top_fraction` a numeric one, `similarity` by default; `max_per_concept` one of lists of texts,
    `concepts` by default."""
    sample: int | None = Field(None, ge=0)
    """Keep so many rows, chosen by md5(run.seed, uid)."""
    subset_file: str | None = Field(None, min_length=1)
    """Keep the rows whose uid stands in this file: DataComp's .npy of (u8, u8) pairs, .txt (a uid a line) or .parquet (column uid)."""
    max_per_concept: int | None = Field(None, ge=1)
    """MetaCLIP's balancing: of a concept that more rows hold, about this many are drawn, by hash of run.seed, uid and concept; a row stays
    if any of its concepts draws it. Rows without a concept fall."""
    subset_sha256: str | None = None
    """SHA-256 of subset_file; filled in by reading the file, so that a changed file is another selection."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        """Names the nearest key of an unknown one, and notes what the subset file holds now."""
        if not isinstance(raw, dict):
            return raw
        for key in raw:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"valid: {', '.join(cls.model_fields)}"
                raise ValueError(f"unknown key {key}; {hint}")
        if isinstance(raw.get("subset_file"), str) and not raw.get("subset_sha256"):
            return {**raw, "subset_sha256": subset.digest(raw["subset_file"])}
        return raw

    @model_validator(mode="after")
    def _one_way(self) -> Rule:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"rule {self.name} needs exactly one of {', '.join(WAYS)}; it has {' and '.join(given) or 'none'}")
        if self.by is not None and self.top_fraction is None and self.max_per_concept is None:
            raise ValueError(f"rule {self.name}: by belongs to top_fraction or max_per_concept")
        if self.name in RESERVED:
            raise ValueError(f"the name {self.name} is taken; reserved are {', '.join(sorted(RESERVED))}")
        return self

    @property
    def column(self) -> str:
        """What `by` says, or its default."""
        return self.by or ("similarity" if self.max_per_concept is None else "concepts")

    @property
    def meaning(self) -> str:
        """The rule in one line."""
        if self.keep is not None:
            return f"keep: {' '.join(self.keep.split())}"
        if self.top_fraction is not None:
            return f"keep the top {self.top_fraction:g} by {self.column}"
        if self.sample is not None:
            return f"keep {self.sample} rows, chosen by chance"
        if self.max_per_concept is not None:
            return f"keep about {self.max_per_concept} rows of each of {self.column}"
        return f"keep the uids in {self.subset_file}"


class Rules(RootModel[list[Rule]]):
    """The rules, in the order in which they are applied; none are needed."""

    model_config = ConfigDict(frozen=True)
    root: list[Rule] = []

    @model_validator(mode="before")
    @classmethod
    def _none(cls, raw: Any) -> Any:
        """An entry without options has no rules."""
        return [] if raw in (None, {}) else raw

    @model_validator(mode="after")
    def _unique(self) -> Rules:
        names = [rule.name for rule in self.root]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several rules are named {', '.join(twice)}; a name says which rule dropped a row")
        return self
