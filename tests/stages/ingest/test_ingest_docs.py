"""docs/guide/input.md lists the spellings and tables that the code knows, no more and no fewer."""

from __future__ import annotations

from pathlib import Path

from stages.ingest.columns import SOURCES, SPELLINGS

PAGE = (Path(__file__).parents[3] / "docs/guide/input.md").read_text(encoding="utf-8")


def test_every_spelling_is_in_the_docs() -> None:
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in PAGE.splitlines() if line.startswith("| ")}
    listed = {name: rows[f"`{name}`"] for name in SPELLINGS}
    assert listed == {name: ", ".join(spellings) or "none; only by a mapping" for name, spellings in SPELLINGS.items()}


def test_every_recognised_table_is_in_the_docs() -> None:
    assert [source.name for source in SOURCES if f"| {source.name} |" not in PAGE] == []
