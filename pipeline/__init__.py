"""shardmill from Python: `run` does what the command does; `use` gives one stage, for a pyarrow Table or a Ray Dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.runs import Result

__all__ = ["run", "use"]


def run(config: str | Path, overrides: list[str] | None = None) -> Result:
    """Runs a config (a path, or the name of a preset in configs/) to the end; `overrides` are `key.sub=value`.

    Returns the run's folder, the balance of its ledger and its report. Raises pipeline.errors.UserError before any work
    when something must be mended, TransientError when the same call can go on later.
    """
    from pipeline.progress import Quiet
    from pipeline.runs import run

    return run(config, overrides, Quiet())


class use:  # noqa: N801 (reads as a verb: clean = use("captions", min_chars=5))
    """A stage by name (or `module:Class`) with its options, to be called with a pyarrow Table that has what it reads.

    The call returns the table with the stage's columns and, for every row, `row`, `fate` and `detail`; no row is lost. It
    opens itself on first use and travels in a pickle: `dataset.map_batches(use("captions"), batch_format="pyarrow")`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        from pipeline.catalog import entry

        self.stage = entry(name, options).stage
        self._opened = False

    def __call__(self, table: pa.Table) -> pa.Table:
        from pipeline import frame

        if not self._opened:
            self.stage.open()
            self._opened = True
        return frame.apply(self.stage, frame.framed(table))
