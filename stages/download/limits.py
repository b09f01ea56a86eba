"""Limits of concurrency and rate per host that hold for the whole run, however many workers it has.

One `HostBudget` for the run decides (the engine keeps it in one actor; alone, a stage keeps its own), and each worker has `Leases`, which
bundle what its requests need into one call at a time. A *host* is the name in the URL, lower case: two names on one
machine are two hosts. The window, the number of requests that a worker has under way, is kept here too, so that a URL
that waits for its host's turn holds no place in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from pipeline.errors import TransientError

# A permit is used a little after it was granted (a call back, a connection), and grants come in small heaps. So permits
# are spaced for 80 % of per_second, with a slack of BURST_S: then no second, wherever it begins, sees more than
# per_second requests arrive, as long as the way to the server varies by less than 0.12 s.
PACE, BURST_S = 0.8, 0.1
SWEEP_S = 5.0
ASKS_S = 1.0  # a worker that got less than it asked for is taken to want it still for so long; it asks ten times a second
TURN_S = 1.0  # a host that cannot give all workers a place at once gives its places in turn, one so often: each change costs up to 0.1 s
LOOK_S = 0.1  # so often it is looked who still asks for a host: each time would be most of the board's work
CUT_S = 0.1  # a cut request's permit comes back this much later, when the server has seen the end too

LeaseCall = Callable[[str, dict[str, int], dict[str, int]], Awaitable[dict[str, int]]]


@dataclass(slots=True)
class _Host:
    held: dict[str, int] = field(default_factory=dict)
    asking: dict[str, float] = field(default_factory=dict)  # workers that got less than they asked for, and when; last served, last
    first: str | None = None  # of these the one that a place is kept for, as it has few and has waited longest
    looked: float = float("-inf")  # when last these were looked through
    turned: float = float("-inf")  # when last such a one was served
    total: int = 0
    next_at: float = 0.0
    silent_until: float = 0.0


class HostBudget:
    """Who may send how many requests to which host now. Pure and synchronous: the clock is an argument.

    `hosts`: other limits for some hosts, by name or `*.suffix` (the name itself included), the longest first:
    (concurrency, per_second). `ttl_s`: a worker that says nothing for so long is taken for dead, and its permits come
    back; longer than any request can last. A worker that lives says something more often than that.
    """

    def __init__(
        self, concurrency: int, per_second: float | None, hosts: Mapping[str, tuple[int, float | None]] | None = None, ttl_s: float = 120
    ) -> None:
        self.default, self.special, self.ttl_s = (concurrency, per_second), dict(hosts or {}), ttl_s
        self.hosts: dict[str, _Host] = {}
        self.seen: dict[str, float] = {}
        self.swept = 0.0

    def limits(self, host: str) -> tuple[int, float | None]:
        """(concurrency, per_second) of a host."""
        if not self.special:
            return self.default
        parts = host.split(".")
        names = [host, *(f"*.{'.'.join(parts[i:])}" for i in range(len(parts)))]
        return next((self.special[name] for name in names if name in self.special), self.default)

    def lease(self, worker: str, want: Mapping[str, int], give_back: Mapping[str, int], now: float) -> dict[str, int]:
        """Takes back what a worker no longer needs and grants of what it wants as much as may be used at once.

        A negative number in `want` asks for silence: nobody gets a permit of that host for so many seconds (Retry-After).
        An empty call says that the worker lives.
        """
        self.seen[worker] = now
        for host, n in give_back.items():
            self._take_back(worker, host, n)
        if now - self.swept > SWEEP_S:
            self._sweep(now)
        granted = {}
        for host, n in want.items():
            if n < 0:
                state = self.hosts.setdefault(host, _Host())
                state.silent_until = max(state.silent_until, now - n)
            elif n and (given := self._grant(worker, host, n, now)):
                granted[host] = given
        return granted

    def _grant(self, worker: str, host: str, n: int, now: float) -> int:
        concurrency, per_second = self.limits(host)
        state = self.hosts.get(host)
        if state is None:
            state = self.hosts[host] = _Host()
        if now < state.silent_until:
            return 0
        free, at, step = concurrency - state.total, now, 0.0
        if per_second is not None and free > 0:
            step = 1 / (PACE * per_second)
            at = max(state.next_at, now)
            free = min(free, int((now + BURST_S - at) / step) + 1 if at <= now + BURST_S else 0)
        if state.asking:
            free = _fair(state, worker, concurrency, free, now)
        given = max(0, min(n, free))
        if given:
            state.total += given
            state.held[worker] = state.held.get(worker, 0) + given
            if per_second is not None:
                state.next_at = at + given * step
            state.asking.pop(worker, None)
            if state.first == worker:
                state.turned, state.first = now, None
        if given < n:
            state.asking[worker] = now  # who was given nothing keeps its place in the line
        return given

    def _take_back(self, worker: str, host: str, n: int) -> None:
        state = self.hosts.get(host)
        if state is None:
            return
        held = state.held.get(worker, 0)
        n = min(n, held)  # a worker taken for dead no longer holds what it gives back
        state.total -= n
        if held > n:
            state.held[worker] = held - n
        else:
            state.held.pop(worker, None)

    def _sweep(self, now: float) -> None:
        """Frees what dead workers hold, and forgets hosts of which nothing needs to be known."""
        self.swept = now
        for worker in [worker for worker, at in self.seen.items() if now - at > self.ttl_s]:
            del self.seen[worker]
            for host, state in self.hosts.items():
                self._take_back(worker, host, state.held.get(worker, 0))
        idle = [h for h, s in self.hosts.items() if not s.total and s.next_at <= now and s.silent_until <= now]
        for host in idle:
            del self.hosts[host]


def _fair(state: _Host, worker: str, concurrency: int, free: int, now: float) -> int:
    """How many of a host's free places a worker may take, so that all who ask for them get some."""
    if len(state.asking) == 1 and worker in state.asking:
        return free
    if now - state.looked >= LOOK_S:
        state.looked, state.first = now, None
        state.asking = {other: at for other, at in state.asking.items() if now - at < ASKS_S}
        if now - state.turned >= TURN_S:
            # Where places cannot be shared out evenly, those who give one back and ask for it in one breath would keep them all.
            least = max(1, concurrency // max(1, len(state.asking)))
            state.first = next((other for other in state.asking if state.held.get(other, 0) < least), None)
    others = len(state.asking) - (worker in state.asking)
    if not others:
        return free
    if state.first is not None and state.first != worker:
        free -= 1
    # Its share and no more: permits that come back go to those who have fewer, else one worker, which asks more often while it
    # is granted, would hold all of a host's places while it waits for memory, and the others would have nothing to do.
    return min(free, -(-concurrency // (1 + others)) - state.held.get(worker, 0))


class Leases:
    """A worker's side: `async with leases.permit(host)` waits for the host's turn and a place in the window.

    `call` goes to the run's HostBudget; one call is under way at a time, at least `interval_s` after the last one. Where it
    raises, all who wait get the error. `heartbeat_s`: how often a worker that holds permits speaks at least.
    """

    def __init__(self, call: LeaseCall, worker: str, window: int, interval_s: float = 0.02, heartbeat_s: float = 10.0) -> None:
        self.call, self.worker, self.free = call, worker, window
        self.interval_s, self.heartbeat_s = interval_s, heartbeat_s
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.returned: Counter[str] = Counter()
        self.silence: dict[str, int] = {}
        self.held = 0
        self.wake = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.stirred = self.loop.time()  # when last a request ended, or others had the turn
        self.pump = self.loop.create_task(self._pump())

    def permit(self, host: str) -> Permit:
        """One request to `host`, as an async context manager."""
        return Permit(self, host)

    def silent(self, host: str, seconds: float) -> None:
        """Asks for silence towards a host, in the whole run."""
        self.silence[host] = max(self.silence.get(host, 0), round(seconds + 0.5))
        self.wake.set()

    async def take(self, host: str) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        self.waiting.setdefault(host, deque()).append(future)
        self.wake.set()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give(host)
            raise

    def give(self, host: str, cut: bool = False) -> None:
        self.free += 1
        if cut:
            self.loop.call_later(CUT_S, self._return, host)
        else:
            self._return(host)

    async def aclose(self) -> None:
        """Ends the pump and gives back what has been returned to it."""
        self.pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.pump
        if self.returned:
            with contextlib.suppress(Exception):  # the other side may be gone already; its permits end with their time
                await self.call(self.worker, {}, dict(self.returned))

    def _return(self, host: str) -> None:
        self.held -= 1
        self.stirred = self.loop.time()
        self.returned[host] += 1
        self.wake.set()

    async def _pump(self) -> None:
        pause = self.interval_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.heartbeat_s):  # Python 3.11's wait_for may swallow aclose's cancellation
                    await self.wake.wait()
            self.wake.clear()
            if not (self.waiting or self.returned or self.silence or self.held):
                continue
            fruitless = await self._exchange()
            # Nothing granted: its hosts are busy. Asking less often is enough; BURST_S is what the budget makes good for.
            pause = min(2 * pause, BURST_S) if fruitless else self.interval_s
            if self.waiting:
                self.wake.set()
            await asyncio.sleep(pause)

    async def _exchange(self) -> bool:
        """One call. True where something was wanted and nothing granted."""
        want = self._wanted()
        asked = sum(want.values())
        back, self.returned = self.returned, Counter()
        quiet, self.silence = self.silence, {}
        self.free -= asked
        try:
            granted = await self.call(self.worker, {**want, **{host: -s for host, s in quiet.items()}}, dict(back))
        except asyncio.CancelledError:
            self.returned.update(back)  # for aclose to give back; what a dead call took twice is not counted twice
            raise
        except Exception as err:  # noqa: BLE001 (whatever stands behind the call: no row is to blame, and all who wait must hear of it)
            self.returned.update(back)
            self._fail(TransientError(f"the run's limits per host cannot be asked: {type(err).__name__}: {err}"))
            granted = {}
        else:
            if not self.held:
                self.stirred = self.loop.time()  # nothing is under way, and whoever keeps the limits lives: others have the turn
        used = sum(self._hand_out(host, n) for host, n in granted.items())
        self.free += asked - used
        return bool(asked) and not used

    def _wanted(self) -> dict[str, int]:
        """What to ask for: as many permits as the window has places, over the hosts in turn."""
        want: dict[str, int] = {}
        left = self.free
        for host in list(self.waiting):
            if left <= 0:
                break
            queue = self.waiting.pop(host)
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                continue
            self.waiting[host] = queue  # to the end: the next call begins with those that were not reached
            if host not in self.silence:
                want[host] = min(len(queue), left)
                left -= want[host]
        return want

    def _hand_out(self, host: str, n: int) -> int:
        queue = self.waiting.get(host, deque())
        used = 0
        self.held += n
        while used < n and queue:
            future = queue.popleft()
            if not future.done():
                future.set_result(None)
                used += 1
        if not queue:
            self.waiting.pop(host, None)
        for _ in range(n - used):
            self._return(host)
        return used

    def _fail(self, err: Exception) -> None:
        for queue in self.waiting.values():
            for future in queue:
                if not future.done():
                    future.set_exception(err)
        self.waiting.clear()


class Permit:
    """Leave for one request. `cut()` says that it was broken off, so that the server may still be at it for a moment."""

    __slots__ = ("host", "leases", "was_cut")

    def __init__(self, leases: Leases, host: str) -> None:
        self.leases, self.host, self.was_cut = leases, host, False

    def cut(self) -> None:
        self.was_cut = True

    async def __aenter__(self) -> Permit:
        await self.leases.take(self.host)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.leases.give(self.host, self.was_cut or err is not None)
