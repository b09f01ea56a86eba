"""Names to addresses: c-ares behind a bounded cache, for success and failure, with lookups of one name made once.

DNS is where most large crawls lose rows: the system's resolver is asked by a few threads, and every slow name holds one.
Here a slow name holds nothing but itself. Left out: hosts files and search domains (a URL's name is a full name).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pycares
from aiohttp.abc import AbstractResolver, ResolveResult

from stages.download.guard import Guard
from stages.download.reasons import FetchError

CACHE_NAMES = 50_000
MIN_TTL_S, MAX_TTL_S, NO_NAME_TTL_S, FAILED_TTL_S = 60, 3600, 300, 30
YOUNG_S, YOUNG_LOOKUPS, ALL_LOOKUPS = 0.5, 256, 8192
MAX_ADDRESSES = 4  # of a name that are tried before the connection has failed
TRIES = 8  # more than dns_timeout_s ever lets happen: c-ares repeats a query after a multiple of the server's usual delay
_PLACE = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?|(?P<bare>[0-9a-fA-F:.]+)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a name: addresses, or how the lookup failed."""

    addresses: tuple[str, ...]
    failure: tuple[str, str] | None
    made: float
    until: float


def place(text: str) -> tuple[str, int | None]:
    """`127.0.0.1`, `127.0.0.1:8080`, `::1` or `[::1]:8080` -> address, port. Raises ValueError."""
    found = _PLACE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no address; write 127.0.0.1, 127.0.0.1:8080, ::1 or [::1]:8080")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r}: port {port} is not between 1 and 65535")
    return str(ipaddress.ip_address(found["v6"] or found["v4"] or found["bare"])), port


class Places:
    """The `resolve` option: names to fixed places, as curl's --connect-to has it. The most exact entry wins:
    `host:port`, `host`, the longest `*.suffix`, `*`."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.exact = {name.lower(): place(to) for name, to in mapping.items()}

    def find(self, host: str, port: int) -> tuple[str, int] | None:
        """Address and port to connect to instead of `host` and `port`; None where no entry speaks of them."""
        if not self.exact:
            return None
        parts = host.split(".")
        names = [f"{host}:{port}", host, *(f"*.{'.'.join(parts[i:])}" for i in range(1, len(parts))), "*"]
        found = next((self.exact[name] for name in names if name in self.exact), None)
        return (found[0], found[1] or port) if found else None


class Resolver(AbstractResolver):
    """aiohttp's resolver, and the same for whoever wants to know before connecting. Lives in one event loop.

    `nameservers`: addresses, with ports if wanted; empty: the system's (resolv.conf). `timeout_s`: of one lookup, with all
    its repetitions. At most YOUNG_LOOKUPS lookups younger than YOUNG_S seconds are under way, so that a burst is no flood; older
    ones no longer count, so that slow names do not hold up the others.
    """

    def __init__(self, guard: Guard, places: Places, nameservers: Sequence[str] = (), timeout_s: float = 5.0) -> None:
        self.guard, self.places, self.timeout_s = guard, places, timeout_s
        self.loop = asyncio.get_running_loop()
        first_s = min(max(timeout_s / 3, 0.3), 1.5)
        self.channel = pycares.Channel(timeout=first_s, tries=TRIES, lookups="b", servers=list(nameservers) or None)
        self.ipv6 = _has_ipv6()
        self.known: OrderedDict[str, Answer] = OrderedDict()
        self.under_way: dict[str, asyncio.Task[Answer]] = {}
        self.young = asyncio.Semaphore(YOUNG_LOOKUPS)
        self.all = asyncio.Semaphore(ALL_LOOKUPS)

    async def find(self, host: str, port: int, since: float = float("-inf")) -> list[tuple[str, int]]:
        """Where to connect for `host`: (address, port) pairs that the guard allows, in the order to try them.

        Raises FetchError: dns_nxdomain, dns_timeout, dns_error, forbidden_address. A remembered time-out or error counts only
        if it is no older than `since` (time.monotonic): another try asks again.
        """
        return self.known_places(host, port, since) or self._allowed(await self._asked(host), port)

    def known_places(self, host: str, port: int, since: float) -> list[tuple[str, int]]:
        """`find` without asking anybody: empty where the name is not known."""
        if (fixed := self.places.find(host, port)) is not None:
            self.guard.check(*fixed)
            return [fixed]
        answer = self._remembered(host, since)
        return [] if answer is None else self._allowed(answer, port)

    def _allowed(self, answer: Answer, port: int) -> list[tuple[str, int]]:
        if answer.failure is not None:
            raise FetchError(*answer.failure)
        allowed = [a for a in answer.addresses if self.guard.refusal(a, port) is None]
        if not allowed:
            raise FetchError("forbidden_address", self.guard.refusal(min(answer.addresses), port))
        return [(address, port) for address in allowed]

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """For aiohttp, which connects to what this returns, and to nothing else."""
        places = await self.find(host.removesuffix("."), port)
        return [
            ResolveResult(hostname=host, host=address, port=at, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address, at in places
        ]

    async def close(self) -> None:
        for task in self.under_way.values():
            task.cancel()
        self.channel.close()

    def _remembered(self, host: str, since: float) -> Answer | None:
        answer = self.known.get(host)
        if answer is None or answer.until < time.monotonic():
            return None
        if answer.failure and answer.failure[0] != "dns_nxdomain" and answer.made < since:
            return None
        self.known.move_to_end(host)
        return answer

    async def _asked(self, host: str) -> Answer:
        """One lookup for all who ask at once; it goes on when one of them is cancelled."""
        task = self.under_way.get(host)
        if task is None:
            task = self.under_way[host] = self.loop.create_task(self._look_up(host))
            task.add_done_callback(lambda _: self.under_way.pop(host, None))
        return await asyncio.shield(task)

    async def _look_up(self, host: str) -> Answer:
        async with self.all:
            await self.young.acquire()
            turns = [self.young.release]

            def grown_old() -> None:
                while turns:
                    turns.pop()()

            timer = self.loop.call_later(YOUNG_S, grown_old)
            try:
                answer = await self._answer(host)
            finally:
                timer.cancel()
                grown_old()
        self.known[host] = answer
        while len(self.known) > CACHE_NAMES:
            self.known.popitem(last=False)
        return answer

    async def _answer(self, host: str) -> Answer:
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761: never a question for DNS
            return _made(("127.0.0.1",), None, MAX_TTL_S)
        try:
            async with asyncio.timeout(self.timeout_s):
                result = await self._query(host, pycares.QUERY_TYPE_A)
                # IPv6 only where there is nothing else: some name servers never answer the question for it.
                if self.ipv6 and (result == pycares.errno.ARES_ENODATA or not (isinstance(result, int) or _addresses(result))):
                    result = await self._query(host, pycares.QUERY_TYPE_AAAA)
        except TimeoutError:
            result = pycares.errno.ARES_ETIMEOUT
        if isinstance(result, int):
            return _failed(result)
        if not (found := _addresses(result)):
            return _failed(pycares.errno.ARES_ENODATA)
        ttl = min(max(min(found.values()), MIN_TTL_S), MAX_TTL_S)
        return _made(tuple(found)[:MAX_ADDRESSES], None, ttl)

    async def _query(self, host: str, kind: int) -> Any:
        """A DNSResult, or c-ares's error number."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def done(result: Any, error: int | None) -> None:  # called in c-ares's own thread
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self.loop.call_soon_threadsafe(_settle, future, error if result is None else result)

        try:
            self.channel.query(host, kind, callback=done)
        except pycares.AresError as err:
            return err.args[0]
        return await future


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _made(addresses: tuple[str, ...], failure: tuple[str, str] | None, ttl_s: float) -> Answer:
    now = time.monotonic()
    return Answer(addresses, failure, now, now + ttl_s)


def _addresses(result: Any) -> dict[str, int]:
    """Addresses of a DNSResult and their seconds to live, in the order given."""
    kinds = (pycares.QUERY_TYPE_A, pycares.QUERY_TYPE_AAAA)
    return {entry.data.addr: entry.ttl for entry in result.answer if entry.type in kinds}


def _failed(error: int) -> Answer:
    """A lookup that ended with c-ares's error number, as reason and text."""
    text = str(pycares.errno.strerror(error))
    if error in (pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME):
        return _made((), ("dns_nxdomain", text), NO_NAME_TTL_S)
    if error == pycares.errno.ARES_ETIMEOUT:
        return _made((), ("dns_timeout", "the name server did not answer in time"), FAILED_TTL_S)
    return _made((), ("dns_error", text), FAILED_TTL_S)


def _has_ipv6() -> bool:
    """True where this machine has a route to public IPv6 addresses (nothing is sent: a datagram socket only looks one up)."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:4860:4860::8888", 53))
            return True
    except OSError:
        return False
