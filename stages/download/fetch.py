"""One URL from its text to its body: checks before, limits, redirects, what the owner says, retries.

Two ways to make a single try share the rest: ours (`Fetcher`) and img2dataset's (engine_img2dataset.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from stages.download.client import GOOD, REDIRECTS, Client, Clock, Head, status_failure
from stages.download.config import Config
from stages.download.limits import Leases
from stages.download.memory import Hold, Memory
from stages.download.optout import OptOut
from stages.download.reasons import FetchError, status_reason
from stages.download.resolver import Resolver
from stages.download.retry import Breaker, Patience
from stages.download.robots import ALLOW_ALL, MAX_ROBOTS_BYTES, Rules, forbidden_directive, parse_robots
from stages.download.spool import Spool
from stages.download.urls import Target, follow, parse

ROBOTS_ORIGINS, ROBOTS_TTL_S = 20_000, 3600.0
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


@dataclass(slots=True)
class Outcome:
    """What came of a URL: a body, or a reason with its detail."""

    body: bytes | None = None
    final_url: str | None = None
    http_status: int | None = None
    content_type: str | None = None
    fetched_bytes: int | None = None
    sha256: str | None = None
    latency_ms: int | None = None
    reason: str | None = None
    detail: str | None = None
    path: str | None = None
    """The file that the body lies in, instead of `body`."""
    hold: Hold | None = field(default=None, repr=False)

    def release(self) -> None:
        """The body is the caller's now; its bytes no longer count against max_bytes_in_flight."""
        if self.hold is not None:
            self.hold.release()

    def discard(self) -> None:
        """Nobody wants the body."""
        self.release()
        if self.hold is not None and self.hold.sink is not None:
            self.hold.sink.discard()


@dataclass
class Surroundings:
    """What all fetches of a worker share."""

    config: Config
    resolver: Resolver
    leases: Leases
    memory: Memory
    optout: OptOut
    spool: Spool | None = None
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def patience(self) -> Patience:
        return Patience(self.config.retries, self.config.backoff_s, self.config.retry_after_max_s)


Try = Callable[[Target, float], Awaitable[Outcome]]


async def fetch(around: Surroundings, attempt: Try, text: str | None) -> Outcome:
    """The outcome of a URL after its tries. `attempt(target, since)` makes one; it raises FetchError.

    Raises only for the machine's own faults (no file handles, no memory) and for errors of ours.
    """
    try:
        target = parse(text)
        around.optout.refuse(target)
    except FetchError as err:
        return Outcome(reason=err.reason, detail=err.detail)
    tries, since = 0, float("-inf")
    while True:
        tries += 1
        try:
            return await attempt(target, since)
        except FetchError as err:
            delay = around.patience.delay(err, tries)
            if delay is None:
                return Outcome(reason=err.reason, detail=err.detail, http_status=err.status)
        since = time.monotonic()
        await asyncio.sleep(delay)


class Fetcher:
    """Our own engine: one try of a URL, over redirects, within the total deadline."""

    def __init__(self, around: Surroundings, client: Client) -> None:
        self.around, self.client, self.config = around, client, around.config
        self.disallowed = frozenset(word.strip().lower() for word in self.config.disallowed_header_directives)
        self.robots: OrderedDict[str, tuple[float, asyncio.Task[Rules]]] = OrderedDict()

    async def attempt(self, target: Target, since: float) -> Outcome:
        """One try. Raises FetchError. The clock stands still while the URL waits for its host's turn or for memory."""
        spool = self.around.spool
        hold, clock = self.around.memory.hold(spool.new() if spool else None), Clock(self.config.timeout_s)
        try:
            head, final = await self._follow(target, clock, since, hold)
            self._heed(head)
            return self._outcome(head, final, hold, self.config.timeout_s - clock.left)
        except BaseException:
            hold.release()
            if hold.sink is not None:
                hold.sink.discard()
            raise

    async def _follow(self, target: Target, clock: Clock, since: float, hold: Hold) -> tuple[Head, Target]:
        """The last answer of a chain of redirects, each hop with all checks of the first."""
        seen = {str(target.url)}
        for hop in range(self.config.max_redirects + 1):
            if hop:
                self.around.optout.refuse(target)
            if self.config.robots_txt:
                await self._ask_robots(target, since)
            head = await self._exchange(target, clock, since, hold)
            if head.status not in REDIRECTS:
                return head, target
            target = follow(target, head.headers.get("Location"))
            if str(target.url) in seen:
                raise FetchError("redirect_loop", "a redirect leads back into its own chain", head.status)
            seen.add(str(target.url))
        raise FetchError("too_many_redirects", f"more than {self.config.max_redirects} redirects", head.status)

    async def _exchange(self, target: Target, clock: Clock, since: float, hold: Hold, robots: bool = False) -> Head:
        """One request at its host's turn; asks the name first, so that a slow name server holds nobody's place."""
        around, place = self.around, f"{target.host}:{target.port}"
        around.breaker.check(place, time.monotonic())
        if target.address is not None:
            around.resolver.guard.check(target.address, target.port)
        else:
            await self._named(target, clock, since)
        head = await self._at_its_turn(target, place, clock, hold, robots)
        if head.status in GOOD or head.status in REDIRECTS:
            around.breaker.answered(place)
            return head
        err = status_failure(head, status_reason(head.status))
        around.breaker.failed(place, err, time.monotonic())
        if err.wait_s:
            around.leases.silent(target.host, min(err.wait_s, self.config.retry_after_max_s))
        raise err

    async def _at_its_turn(self, target: Target, place: str, clock: Clock, hold: Hold, robots: bool) -> Head:
        max_bytes = MAX_ROBOTS_BYTES if robots else self.config.max_bytes
        while True:
            async with self.around.leases.permit(target.host):
                self.around.breaker.check(place, time.monotonic())
                try:
                    return await self.client.get(target, clock, max_bytes, hold, cut=robots)
                except FetchError as err:
                    # A connection kept from the last request may have been closed just as this one was sent: once more, at its turn.
                    if err.reason != "reset" or clock.repeated:
                        self.around.breaker.failed(place, err, time.monotonic())
                        raise
                    clock.repeated = True

    async def _named(self, target: Target, clock: Clock, since: float) -> None:
        if self.around.resolver.known_places(target.host, target.port, since):
            return
        try:
            async with clock:
                await self.around.resolver.find(target.host, target.port, since)
        except TimeoutError:
            raise FetchError("dns_timeout", "the name server did not answer in time") from None

    def _heed(self, head: Head) -> None:
        """Raises FetchError where the answer's head forbids the use."""
        if self.disallowed and (tags := head.headers.getall("X-Robots-Tag", ())):
            word = forbidden_directive(tags, self.config.user_agent_token, self.disallowed)
            if word is not None:
                raise FetchError("robots_tag", f"X-Robots-Tag: {word}", head.status)
        if self.config.tdm_reservation and head.headers.get("tdm-reservation", "").strip() == "1":
            raise FetchError("tdm_reservation", "tdm-reservation: 1", head.status)

    def _outcome(self, head: Head, final: Target, hold: Hold, seconds: float) -> Outcome:
        body, sink = head.body or b"", hold.sink
        size = len(body) if sink is None else sink.size
        if not size:
            raise FetchError("empty", "the body is empty", head.status)
        if size < self.config.min_bytes:
            raise FetchError("too_small", f"{size} bytes are under min_bytes", head.status)
        if sink is None:
            self.around.optout.refuse_body(body)
        else:
            sink.finish()
            self.around.optout.refuse_file(sink.path)
        kind = _UNPRINTABLE.sub("", head.headers.get("Content-Type", ""))[:200] or None
        return Outcome(
            body=body if sink is None else None,
            path=None if sink is None else str(sink.path),
            final_url=str(final.url),
            http_status=head.status,
            content_type=kind,
            fetched_bytes=size,
            sha256=hashlib.sha256(body).hexdigest() if sink is None else sink.hash.hexdigest(),
            latency_ms=round(1000 * seconds),
            hold=hold,
        )

    async def _ask_robots(self, target: Target, since: float) -> None:
        """Raises FetchError where robots.txt of the target's origin forbids its path, or cannot be had."""
        known = self.robots.get(target.origin)
        if known is None or known[0] < time.monotonic() or _gave_up(known[1], known[0] - ROBOTS_TTL_S < since):
            task = asyncio.get_running_loop().create_task(self._robots(target, since))
            task.add_done_callback(_seen)
            known = self.robots[target.origin] = (time.monotonic() + ROBOTS_TTL_S, task)
            while len(self.robots) > ROBOTS_ORIGINS:
                self.robots.popitem(last=False)
        rules = await asyncio.shield(known[1])
        if not rules.allows(target.url.raw_path_qs):
            raise FetchError("robots_txt", "robots.txt disallows the path")

    async def _robots(self, target: Target, since: float) -> Rules:
        """An origin's rules for our token (RFC 9309 2.3.1: 4xx allows everything, 5xx forbids everything)."""
        at = parse(f"{target.origin}/robots.txt")
        clock = Clock(self.config.timeout_s)
        hold = self.around.memory.hold()
        try:
            for _ in range(6):
                head = await self._exchange(at, clock, since, hold, robots=True)
                if head.status in GOOD:
                    return parse_robots(head.body or b"", self.config.user_agent_token)
                at = follow(at, head.headers.get("Location"))
            return ALLOW_ALL
        except FetchError as err:
            return _without(err)
        finally:
            hold.release()


def _without(err: FetchError) -> Rules:
    """What holds where robots.txt cannot be had: nothing is forbidden by an answer of 400 to 499, everything by silence."""
    if err.reason in ("bad_redirect", "http_other") or (err.status is not None and 400 <= err.status < 500 and err.status != 429):
        return ALLOW_ALL
    reason = "robots_txt" if err.status is not None else err.reason
    raise FetchError(reason, f"robots.txt: {err.detail}", err.status, err.wait_s, err.may_pass)


def _gave_up(task: asyncio.Task[Any], old: bool) -> bool:
    """True where an earlier question for robots.txt failed, and this is another try."""
    return old and task.done() and (task.cancelled() or task.exception() is not None)


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may wait for the task any more; its error is theirs who did."""
    if not task.cancelled():
        task.exception()
