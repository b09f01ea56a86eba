"""`engine: img2dataset`: that package's own fetcher (extra [img2dataset]), for exact parity, behind our guard, bounds and limits.

Its `download_image` is called as it is; only the `urllib.request.urlopen` that it finds is one of ours, built from urllib's own
handlers: no proxies, http and https alone, sockets to checked addresses, a byte cap and a total deadline, which it lacks.
So requests (its User-Agent: a browser's), redirects and X-Robots-Tag are img2dataset's; retries and limits per host are ours. Names go
through the system's resolver and `resolve`; robots.txt, tdm-reservation and max_redirects are not looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import importlib.util
import io
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from pipeline.errors import MACHINE_ERRNOS, UserError
from stages.download.client import REDIRECTS, classified
from stages.download.fetch import Outcome, Surroundings
from stages.download.reasons import FetchError, status_reason
from stages.download.retry import retry_after
from stages.download.urls import Target, follow, parse

_DISALLOWED = "Use of image disallowed by X-Robots-Tag directive"  # img2dataset's own words
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def require() -> None:
    """Raises UserError where the extra is not installed."""
    if importlib.util.find_spec("img2dataset") is None:
        raise UserError('stages.download.engine: img2dataset is not installed; pip install "shardmill[img2dataset]"')


class Img2dataset:
    """Calls img2dataset's fetcher in threads."""

    def __init__(self, around: Surroundings, threads: ThreadPoolExecutor) -> None:
        from img2dataset import downloader

        self.around, self.threads, self.config = around, threads, around.config
        self.request = Requests(around)
        # In that module alone, not in urllib: other users of urllib in this process keep theirs.
        names = {"Request": urllib.request.Request, "urlopen": self.request.urlopen}
        downloader.urllib = SimpleNamespace(request=SimpleNamespace(**names))
        self.download_image = downloader.download_image

    async def attempt(self, target: Target, since: float) -> Outcome:  # noqa: ARG002 (names are the system's: nothing to ask anew)
        """One try. Raises FetchError."""
        async with self.around.leases.permit(target.host):
            return await asyncio.get_running_loop().run_in_executor(self.threads, self._fetch, str(target.url))

    def _fetch(self, url: str) -> Outcome:
        began, seen = time.monotonic(), self.request.begin(self.config.timeout_s)
        directives = [word.strip().lower() for word in self.config.disallowed_header_directives]
        token = self.config.user_agent_token
        _, stream, text = self.download_image((0, url), self.config.connect_timeout_s, token, directives)
        if seen.error is not None:
            raise seen.error
        if stream is None and text == _DISALLOWED:
            raise FetchError("robots_tag", text, seen.status)
        if stream is None:
            raise FetchError("protocol", _UNPRINTABLE.sub(" ", str(text))[:200], seen.status)
        body = stream.getvalue()
        if len(body) < self.config.min_bytes:
            raise FetchError("too_small" if body else "empty", f"{len(body)} bytes are under min_bytes", seen.status)
        self.around.optout.refuse_body(body)
        return Outcome(
            body=body,
            final_url=seen.url,
            http_status=seen.status,
            content_type=seen.content_type,
            fetched_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            latency_ms=round(1000 * (time.monotonic() - began)),
        )


class _Seen(threading.local):
    """What the current thread's request has met."""

    until: float = 0.0
    error: Exception | None = None
    status: int | None = None
    url: str | None = None
    content_type: str | None = None


class Requests:
    """A `urlopen` that connects to checked addresses alone, and a memory of what each thread's last request met."""

    def __init__(self, around: Surroundings) -> None:
        self.around, self.seen = around, _Seen()
        trusted = ssl.create_default_context()
        if around.config.ca_file:
            trusted.load_verify_locations(around.config.ca_file)
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPDefaultErrorHandler(),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
            _Http(self._connect),
            _Https(self._connect, trusted),
        ):
            self.opener.add_handler(handler)

    def begin(self, timeout_s: float) -> _Seen:
        self.seen.until = time.monotonic() + timeout_s
        self.seen.error = self.seen.status = self.seen.url = self.seen.content_type = None
        return self.seen

    def urlopen(self, request: urllib.request.Request, timeout: float) -> Any:
        """A context manager with `headers` and a bounded `read`, as img2dataset uses it. Raises what urllib would raise."""
        try:
            answer = self.opener.open(request, timeout=timeout)
        except BaseException as err:
            self.seen.error = _reason(err)
            raise
        self.seen.status, self.seen.url = answer.status, answer.url
        self.seen.content_type = _UNPRINTABLE.sub("", answer.headers.get("Content-Type", ""))[:200] or None
        return _Answer(answer, self.seen, self.around.config.max_bytes)

    def _connect(self, place: tuple[str, int], timeout: float, _source: Any = None) -> socket.socket:
        """`socket.create_connection` for checked addresses; redirects come through here as well."""
        host, port = place
        if time.monotonic() > self.seen.until:
            raise FetchError("timeout", "the request did not end in time")
        target = parse(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        self.around.optout.refuse(target)
        fixed = self.around.resolver.places.find(target.host, port) if target.address is None else (target.address, port)
        infos = socket.getaddrinfo(*(fixed or place), type=socket.SOCK_STREAM)
        last: OSError | None = None
        for info in infos:
            made = self.around.resolver.guard.socket(info)
            made.settimeout(timeout)
            try:
                made.connect(info[4])
                return made
            except OSError as err:
                made.close()
                last = err
        raise last or OSError("the name has no address")


class _Answer:
    """An answer whose body is read within a byte cap and the deadline."""

    def __init__(self, answer: Any, seen: _Seen, max_bytes: int) -> None:
        self.answer, self.seen, self.max_bytes, self.headers = answer, seen, max_bytes, answer.headers

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()

    def read(self) -> bytes:
        try:
            return self._read()
        except BaseException as err:
            self.seen.error = _reason(err)
            raise

    def _read(self) -> bytes:
        if (self.answer.length or 0) > self.max_bytes:
            raise FetchError("too_large", f"Content-Length {self.answer.length} is over max_bytes", self.answer.status)
        out = io.BytesIO()
        while data := self.answer.read1(65536):
            out.write(data)
            if out.tell() > self.max_bytes:
                raise FetchError("too_large", "the body goes beyond max_bytes", self.answer.status)
            if time.monotonic() > self.seen.until:
                raise FetchError("timeout", "the request did not end in time")
        if self.answer.length:  # bytes that were announced and did not come; read1 alone does not say so
            raise http.client.IncompleteRead(b"", self.answer.length)
        return out.getvalue()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's, but for targets that no URL may have; http.client would read a user's name as a host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            parse(newurl)
        except FetchError as err:
            raise FetchError(err.reason, f"redirect: {err.detail}") from None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connect: Any) -> None:
        super().__init__()
        self.connect = connect

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection(host, **options)
        made._create_connection = self.connect  # type: ignore[attr-defined]
        return made


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connect: Any, trusted: ssl.SSLContext) -> None:
        super().__init__(context=trusted)
        self.connect, self.trusted = connect, trusted

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection(host, context=self.trusted, **options)
        made._create_connection = self.connect  # type: ignore[attr-defined]
        return made


def _unfollowed(err: urllib.error.HTTPError) -> FetchError:
    """Why urllib did not follow a redirect: it says so in words only, and not for all of them."""
    if "infinite loop" in str(err.msg):
        return FetchError("redirect_loop", "urllib gave up following redirects", err.code)
    try:
        follow(parse(err.url), err.headers.get("Location"))
    except FetchError as why:
        return FetchError(why.reason, why.detail, err.code)
    return FetchError("bad_redirect", "urllib did not follow the redirect", err.code)


def _reason(err: BaseException) -> Exception:
    """urllib's errors as FetchError. The machine's own faults become no row's reason: they stay what they are."""
    inner = err.reason if isinstance(err, urllib.error.URLError) and isinstance(err.reason, BaseException) else err
    if isinstance(inner, FetchError):
        return inner
    if isinstance(err, urllib.error.HTTPError):
        wait_s = retry_after(err.headers.get("Retry-After"), time.time())
        if err.code in REDIRECTS:
            return _unfollowed(err)
        return FetchError(status_reason(err.code), f"HTTP {err.code}", err.code, wait_s)
    if isinstance(inner, socket.gaierror):
        missing = inner.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return FetchError("dns_nxdomain" if missing else "dns_error", str(inner.strerror))
    if isinstance(inner, http.client.IncompleteRead):
        return FetchError("truncated", "the connection ended within the body")
    if isinstance(inner, http.client.RemoteDisconnected):
        return FetchError("reset", "the connection was closed without an answer")
    if isinstance(inner, http.client.HTTPException):
        return FetchError("protocol", type(inner).__name__)
    if isinstance(inner, TimeoutError):
        return FetchError("timeout", "no answer in time")
    if isinstance(inner, OSError) and inner.errno in MACHINE_ERRNOS:
        return inner
    if isinstance(inner, OSError | ValueError):
        return classified(inner)
    return FetchError("bad_scheme" if isinstance(err, urllib.error.URLError) else "protocol", _UNPRINTABLE.sub(" ", str(inner))[:200])
