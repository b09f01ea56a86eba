"""A bound on the bytes of bodies that a worker holds, from the first byte until the rows are handed on.

Waiting for memory must never block what would free it. So the budget has two halves: from the first a body takes its announced length (or
UNKNOWN bytes) before any of it is read, and holds nothing while it waits; from the second a body of unannounced length
takes max_bytes once, when it outgrows UNKNOWN. Who holds of the second never waits again, so no circle can close.
"""

from __future__ import annotations

import asyncio
from collections import deque

from stages.download.spool import Sink

UNKNOWN = 256_000


class Half:
    """Bytes to be had, first come first served."""

    def __init__(self, size: int) -> None:
        self.free = size
        self.queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def full(self, n: int) -> bool:
        """True where `n` bytes would have to be waited for."""
        return bool(self.queue) or n > self.free

    async def take(self, n: int) -> None:
        if not self.full(n):
            self.free -= n
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append((n, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(n)
            else:
                self._serve()  # whoever stood behind a large wish need not wait for it any longer
            raise

    def give(self, n: int) -> None:
        self.free += n
        self._serve()

    def _serve(self) -> None:
        while self.queue:
            n, future = self.queue[0]
            if future.done():
                self.queue.popleft()
            elif n <= self.free:
                self.queue.popleft()
                self.free -= n
                future.set_result(None)
            else:
                return


class Memory:
    """`size` bytes in two halves, each at least `max_bytes`."""

    def __init__(self, size: int, max_bytes: int) -> None:
        self.announced, self.grown = Half(max(size // 2, max_bytes)), Half(max(size // 2, max_bytes))

    def hold(self, sink: Sink | None = None) -> Hold:
        return Hold(self, sink)


class Hold:
    """What one body holds; `release` may be called more than once. `sink`: where it is written to instead of into memory."""

    __slots__ = ("first", "memory", "second", "sink")

    def __init__(self, memory: Memory, sink: Sink | None = None) -> None:
        self.memory, self.first, self.second, self.sink = memory, 0, 0, sink

    async def announce(self, n: int) -> None:
        await self.memory.announced.take(n)
        self.first = n

    async def grow(self, n: int) -> None:
        await self.memory.grown.take(n)
        self.second = n

    def shrink(self, n: int) -> None:
        """Keeps only the `n` bytes that the finished body has."""
        if self.second:
            self._give_second(max(self.second - n, 0))
            self._give_first(self.first)
        else:
            self._give_first(max(self.first - n, 0))

    def release(self) -> None:
        self._give_first(self.first)
        self._give_second(self.second)

    def _give_first(self, n: int) -> None:
        if n:
            self.first -= n
            self.memory.announced.give(n)

    def _give_second(self, n: int) -> None:
        if n:
            self.second -= n
            self.memory.grown.give(n)
