"""One HTTP exchange: a request to a checked address, its head and its bounded body, and every failure as a reason.

HTTP itself is aiohttp's. Ours are the resolver and the socket's guard that it is given, the bounds, and the classification.
Left out: what comes before and after one exchange (redirects, robots, retries: fetch.py).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import resource
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.errors import MACHINE_ERRNOS
from stages.download.guard import Guard
from stages.download.memory import UNKNOWN, Hold
from stages.download.reasons import FetchError
from stages.download.resolver import Resolver
from stages.download.retry import retry_after
from stages.download.spool import Sink
from stages.download.urls import Target

REDIRECTS = frozenset({301, 302, 303, 307, 308})
GOOD = frozenset({200, 203})
KEEP_ALIVE_S = 10.0
MOST_IDLE = 1000
HEAD_BYTES = 65_536  # of one header; pages with content security policies exceed aiohttp's 8,190
_UNDOABLE = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # zlib's wbits: gzip alone; zlib or gzip by the header
_COMPRESSED = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz", "lzma", "xz", "bzip2"})
_QUOTED = re.compile(r":?\s*b['\"].*", re.DOTALL)
_NOISE = re.compile(r"\s*\(_ssl\.c:\d+\)|[^\x20-\x7e]+")


@dataclass(slots=True)
class Head:
    """What the answer says before its body."""

    status: int
    headers: Any  # multidict
    body: bytes | None = None


class Clock:
    """The total deadline of a request, which runs only while something is done for it: not while it waits for our own limits."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.repeated = False
        self.scope: asyncio.Timeout | None = None
        self.began = 0.0

    async def __aenter__(self) -> Clock:
        self.began = time.monotonic()
        self.scope = asyncio.timeout(max(self.left, 0.0))
        await self.scope.__aenter__()
        return self

    async def __aexit__(self, kind: Any, err: Any, trace: Any) -> None:
        assert self.scope is not None  # noqa: S101 (for the type checker)
        self.left -= time.monotonic() - self.began
        await self.scope.__aexit__(kind, err, trace)

    async def stopped(self, waiting: Any) -> None:
        """Awaits `waiting` with the clock at rest."""
        assert self.scope is not None  # noqa: S101 (for the type checker)
        when, began = self.scope.when(), time.monotonic()
        self.scope.reschedule(None)
        await waiting
        waited = time.monotonic() - began
        self.began += waited
        self.scope.reschedule(None if when is None else when + waited)


class _Protocol(ResponseHandler):
    """One connection. Where nonsense stands within a body, aiohttp (3.14) tells the connection but not the body, whose reader would
    wait until its deadline; here it is told."""

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(exc)


class _Connector(aiohttp.TCPConnector):
    """Keeps at most `most_idle` unused connections: a crawl meets ever new hosts, and files are limited."""

    most_idle = MOST_IDLE  # set by Client to what the limit of open files allows

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        made: type[ResponseHandler] = _Protocol
        self._factory = functools.partial(made, loop=self._loop)

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close or len(self._conns) >= self.most_idle)


class Client:
    """A session of aiohttp whose every connection is to an address that the guard has seen. Lives in one event loop."""

    def __init__(
        self, resolver: Resolver, guard: Guard, headers: Mapping[str, str], connect_timeout_s: float, ca_file: str | None, most_idle: int
    ) -> None:
        trusted = ssl.create_default_context()
        trusted.set_alpn_protocols(["http/1.1"])
        if ca_file:
            trusted.load_verify_locations(ca_file)
        self.connector = _Connector(
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=guard.socket,
            ssl=trusted,
            limit=0,
            happy_eyeballs_delay=None,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self.connector.most_idle = most_idle
        self.session = aiohttp.ClientSession(
            connector=self.connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEAD_BYTES,
            max_field_size=HEAD_BYTES,
        )
        # aiohttp would repeat a request on its own; ours go through the host's limits, each of them.
        self.session._retry_connection = False

    async def get(self, target: Target, clock: Clock, max_bytes: int, hold: Hold, cut: bool = False) -> Head:
        """The answer's head, and its body where the status is 200 or 203 (`cut`: at most its first max_bytes).

        Raises FetchError; OSError for the machine's own faults.
        """
        head: Head | None = None
        try:
            async with clock, self.session.get(target.url, allow_redirects=False) as answer:
                head = Head(answer.status, answer.headers)
                if answer.status in GOOD:
                    head.body = await _body(answer, clock, max_bytes, hold, cut)
                return head
        except (FetchError, aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as err:
            failure = err if isinstance(err, FetchError) else timed_out(err) if isinstance(err, TimeoutError) else classified(err)
            failure.status = head.status if head else None
            raise failure from None

    async def close(self) -> None:
        await self.session.close()


def files_for(window: int) -> tuple[int, int]:
    """Raises this process's limit of open files as far as is needed and allowed. Returns how many requests may then be under
    way, and how many unused connections may be kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = window + MOST_IDLE + 1000
    if soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    idle = min(MOST_IDLE, soft // 4)
    return max(16, min(window, soft - idle - 500)), idle


def status_failure(head: Head, reason: str) -> FetchError:
    """The failure that an answer without a body is."""
    wait_s = retry_after(head.headers.get("Retry-After"), time.time()) if head.status in (429, 503) else None
    return FetchError(reason, f"HTTP {head.status}", head.status, wait_s)


async def _body(answer: aiohttp.ClientResponse, clock: Clock, max_bytes: int, hold: Hold, cut: bool) -> bytes:
    """The whole body, decompressed, of at most `max_bytes`; a longer one fails, or is cut."""
    length = answer.content_length
    undo = _undoing(answer.headers.get("Content-Encoding", ""))
    if length is not None and length > max_bytes and not cut:
        raise FetchError("too_large", f"Content-Length {length} is over max_bytes")
    first = UNKNOWN if length is None or undo else min(length, max_bytes)
    if hold.memory.announced.full(first):
        await clock.stopped(hold.announce(first))
    else:
        await hold.announce(first)
    parts: list[bytes] | Sink = []
    if hold.sink is not None and not cut:
        parts = hold.sink
        parts.restart()
    size = 0
    while data := await answer.content.readany():
        if undo:
            data = _undone(undo, data, max_bytes - size)
        size += len(data)
        if size > max_bytes and cut:
            return b"".join([*_kept(parts), data])[:max_bytes]
        if size > max_bytes:
            raise FetchError("too_large", "the body goes beyond max_bytes")
        if size > hold.first and not hold.second:
            await clock.stopped(hold.grow(max_bytes))
        parts.append(data)
    if undo and not undo.eof and size:
        raise FetchError("bad_encoding", "the compressed body ends too early")
    hold.shrink(size)
    kept = _kept(parts)
    return kept[0] if len(kept) == 1 else b"".join(kept)


def _kept(parts: list[bytes] | Sink) -> list[bytes]:
    """What is in memory."""
    return parts if isinstance(parts, list) else []


def _undoing(encoding: str) -> Any:
    """A decompressor for a body that came compressed although nobody asked; None where it did not."""
    names = [name.strip().lower() for name in encoding.split(",") if name.strip().lower() not in ("", "identity")]
    if not names:
        return None
    if len(names) > 1 or names[0] in _COMPRESSED:
        raise FetchError("bad_encoding", f"Content-Encoding {_NOISE.sub('', encoding)[:60]}")
    bits = _UNDOABLE.get(names[0])
    return zlib.decompressobj(bits) if bits else None  # an unknown word ("utf-8", "none") is no encoding; browsers do the same


def _undone(undo: Any, data: bytes, room: int) -> bytes:
    """Decompresses at most one byte more than there is room for: a bomb ends here, whatever it would unfold to."""
    try:
        return bytes(undo.decompress(data, room + 1))
    except zlib.error as err:
        raise FetchError("bad_encoding", _NOISE.sub("", str(err))) from None


def timed_out(err: BaseException) -> FetchError:
    """A time-out: of the connection where aiohttp says so, else of the whole request."""
    if isinstance(err, aiohttp.ConnectionTimeoutError):
        return FetchError("connect_timeout", "no connection in time")
    return FetchError("timeout", "the request did not end in time")


def classified(err: BaseException) -> FetchError:
    """An error of aiohttp, TLS or the system as reason and stable text. Raises the machine's own faults again."""
    system = getattr(err, "os_error", None) or getattr(err, "certificate_error", None) or err
    number = getattr(system, "errno", None)
    if number in MACHINE_ERRNOS:
        raise OSError(number, os.strerror(number)) from err
    if isinstance(system, ssl.SSLError):
        text = getattr(system, "verify_message", None) or getattr(system, "reason", None) or str(system)
        return FetchError("tls", _NOISE.sub("", str(text))[:200])
    if isinstance(system, ssl.CertificateError):
        return FetchError("tls", _NOISE.sub("", str(system))[:200])
    if isinstance(err, aiohttp.ServerDisconnectedError):
        return FetchError("reset", "the connection was closed without an answer")
    if isinstance(err, aiohttp.ClientPayloadError):
        return _payload(err)
    if isinstance(err, HttpProcessingError | aiohttp.ClientResponseError):
        return FetchError("protocol", _first_line(err.message))
    if isinstance(err, aiohttp.InvalidURL | ValueError):
        return FetchError("invalid_url", "a URL that cannot be asked for")
    return _system(err, number)


def _payload(err: BaseException) -> FetchError:
    """A body that broke off (fewer bytes than announced, a reset), or whose chunks are nonsense."""
    text = str(err.__cause__ or err)
    if "chunk" in text.lower() and "Not enough" not in text:
        return FetchError("protocol", "the body's chunks cannot be read")
    return FetchError("truncated", "the connection ended within the body")


def _system(err: BaseException, number: int | None) -> FetchError:
    text = os.strerror(number) if number else "the connection failed"
    if number == errno.ECONNREFUSED:
        return FetchError("connect_refused", text)
    if number == errno.ETIMEDOUT:
        return FetchError("connect_timeout", text)
    if number in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
        return FetchError("reset", text)
    return FetchError("connect_error" if isinstance(err, aiohttp.ClientConnectorError) else "reset", text)


def _first_line(text: str) -> str:
    """What the parser says, without the stranger's bytes that it quotes."""
    text = _QUOTED.sub("", text)
    return _NOISE.sub(" ", text.strip().splitlines()[0] if text.strip() else "not HTTP").strip(" :")[:100]
