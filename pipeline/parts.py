"""Parts: contiguous ranges of input rows, the unit of commit; and how often one was begun without being finished."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pipeline.storage import Store


@dataclass(frozen=True)
class Part:
    """Part `no` of the run: rows [first, first + rows) of the whole input, `index` within its input file's key."""

    no: int
    key: str
    index: int
    first: int
    rows: int
    base: int  # rows of the input files before this one: global row = base + row in the file
    file: str
    level: str = "rows"
    parent_base: int = 0

    @property
    def path(self) -> str:
        return f"{self.level}/{self.key}/{part_name(self.index)}"


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def addition_name(index: int, addition: int) -> str:
    """A pool's or scores' file: `part-00000.0.parquet`, later additions .1, .2 …"""
    return f"part-{index:05d}.{addition}.parquet"


def addition_of(name: str) -> tuple[int, int]:
    """(part, addition) of such a name."""
    _, part, addition = name.removesuffix(".parquet").replace("-", ".").split(".")
    return int(part), int(addition)


class Attempts:
    """Marks on the run's storage that a part was begun; a mark that outlives its worker tells the next one to be careful."""

    def __init__(self, store: Store, part: str) -> None:
        self.store, self.folder = store, f"tmp/attempts/{part.replace('/', '-')}"
        self.mark = f"{self.folder}/{uuid.uuid4().hex}"

    def begin(self) -> int:
        """Marks one more attempt and returns how many there were before."""
        before = len(self.store.names(self.folder))
        self.store.write(self.mark, b"")
        return before

    def withdraw(self) -> None:
        """Takes this attempt's mark back: it failed, as on a full disk, and its worker lives to say so."""
        self.store.remove(self.mark)

    def end(self) -> None:
        """Forgets the marks of a part that is committed."""
        self.store.remove(self.folder)
