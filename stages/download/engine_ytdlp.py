"""`engine: yt_dlp`: videos of pages (extra [pages]) by yt-dlp's extractors, behind our guard, bounds and limits.

yt-dlp runs in this process with one request handler, ours: http and https alone, no proxies, sockets to checked addresses, opt-outs, and
what the owner's headers say, for each of its requests. It runs no other program (no ffmpeg, no JavaScript), loads no plugins, reads no
configuration, and takes one file as the site has it. Each try ends by the deadline: then its connections are shut. The limits per host
are those of the page's host; robots.txt and max_redirects are not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import re
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import MACHINE_ERRNOS, UserError
from stages.download.client import classified
from stages.download.crawl import user_agent
from stages.download.fetch import Outcome, Surroundings
from stages.download.reasons import FetchError, status_reason
from stages.download.retry import retry_after
from stages.download.robots import forbidden_directive
from stages.download.spool import Sink
from stages.download.urls import Target, parse

FORMAT = "b[protocol^=http]{h}/bv[protocol^=http]{h}/b[protocol^=http]/bv[protocol^=http]/b/bv"
# yt-dlp's and the sites' own words for: we do not serve you.
_BLOCKED = re.compile(
    r"not a bot|captcha|anti-bot|are you a robot|unusual traffic|sign in|log ?in |login required|account required|members[- ]only|"
    r"private video|available (?:only )?(?:in|from) your (?:country|location|region)|geo.?restrict|blocked (?:it )?in your country|"
    r"ip address is blocked|rate.?limit",
    re.IGNORECASE,
)
_REPORT = re.compile(r"; please report this issue on.*", re.DOTALL)
_COLOUR, _PORT = re.compile(r"\x1b\[[0-9;]*m"), re.compile(r"(://[^/\s:'\"]+|://\[[0-9a-f:]+\]):\d+")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def require() -> None:
    """Raises UserError where the extra is not installed."""
    if importlib.util.find_spec("yt_dlp") is None:
        raise UserError('stages.download.engine: yt-dlp is not installed; pip install "shardmill[pages]"')


class YtDlp:
    """Calls yt-dlp in threads."""

    def __init__(self, around: Surroundings, threads: ThreadPoolExecutor) -> None:
        self.around, self.threads, self.config = around, threads, around.config
        from yt_dlp import globals as shared
        from yt_dlp.extractor import gen_extractor_classes

        shared.plugin_dirs.value = []
        shared.all_plugins_loaded.value = True
        gen_extractor_classes()  # seconds that belong to no page

    async def attempt(self, target: Target, since: float) -> Outcome:  # noqa: ARG002 (names are the system's: nothing to ask anew)
        """One try. Raises FetchError."""
        loop, spool = asyncio.get_running_loop(), self.around.spool
        assert spool is not None  # noqa: S101 (the config asks for `to: disk`)
        sink = spool.new()
        hold = self.around.memory.hold(sink)
        try:
            await hold.announce(self.config.max_bytes)
            async with self.around.leases.permit(target.host):
                visit = _Visit(self.around)
                handle = loop.call_later(self.config.timeout_s, visit.expire)
                try:
                    outcome = await loop.run_in_executor(self.threads, self._fetch, target, visit, sink)
                finally:
                    handle.cancel()
            hold.shrink(outcome.fetched_bytes or 0)
            outcome.hold = hold
            return outcome
        except BaseException:
            hold.release()
            sink.discard()
            raise

    def _fetch(self, target: Target, visit: _Visit, sink: Sink) -> Outcome:
        began = time.monotonic()
        sink.finish()
        folder = Path(tempfile.mkdtemp(prefix="page-", dir=sink.path.parent))
        try:
            info = self._extracted(str(target.url), visit, folder)
            files = [path for path in folder.iterdir() if path.is_file()]
            if len(files) != 1:
                raise FetchError("too_large", visit.said or "yt-dlp left no file: the video is over max_bytes")
            files[0].replace(sink.path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        size = sink.path.stat().st_size
        if size > self.config.max_bytes:
            raise FetchError("too_large", "the video is over max_bytes")
        if size < max(1, self.config.min_bytes):
            raise FetchError("too_small" if size else "empty", f"{size} bytes are under min_bytes")
        self.around.optout.refuse_file(sink.path)
        with sink.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Outcome(
            path=str(sink.path),
            final_url=_PORT.sub(r"\1", str(info.get("webpage_url") or target.url))[:2000],
            http_status=visit.status,
            content_type=visit.content_type,
            fetched_bytes=size,
            sha256=digest,
            latency_ms=round(1000 * (time.monotonic() - began)),
        )

    def _extracted(self, url: str, visit: _Visit, folder: Path) -> dict[str, Any]:
        """What yt-dlp says of the video that it has put into `folder`. Raises FetchError."""
        from yt_dlp.utils import YoutubeDLError

        try:
            with _downloader(visit, self._options(visit, folder)) as downloader:
                info: dict[str, Any] = downloader.extract_info(url, download=True) or {}
        except _stop_class() as stop:
            raise stop.why from None
        except (YoutubeDLError, OSError, ValueError) as err:
            if getattr(_inner(err), "errno", None) in MACHINE_ERRNOS:
                raise _inner(err) from None
            raise visit.reason_of(err) from None
        if visit.fault is not None:
            raise visit.fault
        return info

    def _options(self, visit: _Visit, folder: Path) -> dict[str, Any]:
        config = self.config
        height = f"[height<=?{config.page_height}]"
        return {
            "format": FORMAT.replace("{h}", height),
            "outtmpl": {"default": str(folder / "video.%(ext)s")},
            "max_filesize": config.max_bytes,
            "progress_hooks": [visit.progress],
            "logger": visit,
            "http_headers": {"User-Agent": user_agent(config)},
            "socket_timeout": config.connect_timeout_s,
            "playlist_items": "1",
            **dict.fromkeys(("quiet", "no_warnings", "noprogress", "noplaylist", "nopart", "hls_prefer_native", "no_color"), True),
            **dict.fromkeys(("cachedir", "continuedl", "updatetime", "cookiesfrombrowser", "writesubtitles"), False),
            "skip_unavailable_fragments": False,  # a hole in a stream of pieces would show the frame before it instead
            **dict.fromkeys(("retries", "fragment_retries", "extractor_retries", "file_access_retries"), 0),
            "cookiesfrombrowser": None,
            "js_runtimes": {},
            "external_downloader": {"default": "native"},
            "ffmpeg_location": str(folder / "none"),
            "fixup": "never",
        }


class _Visit:
    """One try: its deadline, its connections, and what it met. Also yt-dlp's logger."""

    def __init__(self, around: Surroundings) -> None:
        self.around, self.config = around, around.config
        self.until = time.monotonic() + around.config.timeout_s
        self.lock, self.over, self.open = threading.Lock(), False, set[Any]()
        self.fault: FetchError | None = None
        self.status: int | None = None
        self.content_type: str | None = None
        self.said = ""

    def expire(self) -> None:
        """The deadline: shuts every connection, so that whoever reads from one goes on to an error."""
        with self.lock:
            self.over = True
            for connection in self.open:
                if (made := getattr(connection, "sock", None)) is not None:
                    with contextlib.suppress(OSError):
                        made.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        if self.over or time.monotonic() > self.until:
            raise self._noted(FetchError("timeout", "the page and its video did not end in time"))

    def progress(self, at: dict[str, Any]) -> None:
        """yt-dlp's hook, called for each block. Raises what ends the download."""
        try:
            self.check()
            if (at.get("downloaded_bytes") or 0) > self.config.max_bytes:
                raise self._noted(FetchError("too_large", "the video goes beyond max_bytes"))
        except FetchError as err:
            raise _stop_class()(err) from None

    def connect(self, place: tuple[str, int], timeout: float, _source: Any = None) -> socket.socket:
        """`socket.create_connection` for checked addresses."""
        self.check()
        host, port = place
        try:
            return self._connected(parse(f"http://{f'[{host}]' if ':' in host else host}:{port}/"), place, timeout)
        except FetchError as err:
            raise OSError(str(self._noted(err).detail)) from None

    def connection(self, kind: Any, host: str, **more: Any) -> Any:
        """A connection of http.client's that is shut at the deadline."""
        made = kind(host, **more)
        made._create_connection = self.connect
        with self.lock:
            self.open.add(made)
        return made

    def _connected(self, target: Target, place: tuple[str, int], timeout: float) -> socket.socket:
        self.around.optout.refuse(target)
        fixed = self.around.resolver.places.find(target.host, place[1]) if target.address is None else (target.address, place[1])
        last: OSError | None = None
        for info in socket.getaddrinfo(*(fixed or place), type=socket.SOCK_STREAM):
            made = self.around.resolver.guard.socket(info)
            made.settimeout(timeout)
            try:
                made.connect(info[4])
                return made
            except OSError as err:
                made.close()
                last = err
        raise last or OSError("the name has no address")

    def heed(self, url: str, status: int, headers: Any) -> None:
        """Notes an answer; raises FetchError where its head, or an opt-out, forbids the use."""
        self.status = status
        self.content_type = _UNPRINTABLE.sub("", headers.get("Content-Type") or "")[:200] or None
        disallowed = frozenset(word.strip().lower() for word in self.config.disallowed_header_directives)
        tags = headers.get_all("X-Robots-Tag") or ()
        if disallowed and tags and (word := forbidden_directive(tags, self.config.user_agent_token, disallowed)) is not None:
            raise self._noted(FetchError("robots_tag", f"X-Robots-Tag: {word}", status))
        if self.config.tdm_reservation and (headers.get("tdm-reservation") or "").strip() == "1":
            raise self._noted(FetchError("tdm_reservation", "tdm-reservation: 1", status))
        self.allow(url)

    def allow(self, url: str) -> None:
        """Raises FetchError for a URL that must not be asked for."""
        try:
            self.around.optout.refuse(parse(url))
        except FetchError as err:
            raise self._noted(err) from None

    def _noted(self, err: FetchError) -> FetchError:
        """The first error stays: what yt-dlp makes of it is not its cause."""
        self.fault = self.fault or err
        return self.fault

    def reason_of(self, err: BaseException) -> FetchError:
        """yt-dlp's error, with its own text, as one of our reasons."""
        from yt_dlp.networking.exceptions import HTTPError, TransportError
        from yt_dlp.utils import GeoRestrictedError, UnsupportedError

        if self.fault is not None:
            return self.fault
        if self.over:
            return FetchError("timeout", "the page and its video did not end in time")
        inner = _inner(err)
        text = _text(err)
        if isinstance(inner, GeoRestrictedError) or _BLOCKED.search(text):
            return FetchError("blocked", text, self.status)
        if isinstance(inner, UnsupportedError):
            return FetchError("no_video_in_page", text, self.status)
        cause = getattr(inner, "cause", None) if not isinstance(inner, HTTPError | TransportError) else inner
        if isinstance(cause, HTTPError):
            wait_s = retry_after(cause.response.headers.get("Retry-After"), time.time())
            return FetchError("blocked" if cause.status == 403 else status_reason(cause.status), text, cause.status, wait_s)
        if isinstance(cause, TransportError):
            return self._transport(cause, text)
        return FetchError("page_error", text, self.status)

    def _transport(self, err: Any, text: str) -> FetchError:
        inner = getattr(err, "cause", None)
        inner = getattr(inner, "reason", None) or inner
        if isinstance(inner, socket.gaierror):
            missing = inner.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            return FetchError("dns_nxdomain" if missing else "dns_error", text)
        if isinstance(inner, TimeoutError):
            return FetchError("timeout", text)
        if "IncompleteRead" in type(err).__name__:
            return FetchError("truncated", text)
        return FetchError(classified(inner).reason if isinstance(inner, OSError) else "connect_error", text)

    def debug(self, text: str) -> None:
        if "max-filesize" in text:
            self.said = _text(text)

    def warning(self, text: str) -> None:
        """Not an end."""

    def error(self, text: str) -> None:
        """It is raised too."""


def _inner(err: BaseException) -> BaseException:
    """What yt-dlp's DownloadError was made of."""
    held = getattr(err, "exc_info", None)
    return held[1] if held and held[1] is not None else err


def _text(err: BaseException | str) -> str:
    """yt-dlp's words on one line, without colours, ports and its plea to report a bug."""
    text = _REPORT.sub("", _COLOUR.sub("", str(err))).removeprefix("ERROR: ")
    return " ".join(_PORT.sub(r"\1", text).split())[:400]


def _stop_class() -> Any:
    """An exception that yt-dlp lets pass, with the FetchError that it stands for in `why`."""
    from yt_dlp.utils import DownloadCancelled

    global _Stop  # noqa: PLW0603 (its base is imported late)
    if _Stop is None:

        class Stop(DownloadCancelled):  # type: ignore[misc]
            def __init__(self, why: FetchError) -> None:
                super().__init__(str(why.detail))
                self.why = why

        _Stop = Stop
    return _Stop


_Stop: Any = None


def _downloader(visit: _Visit, options: dict[str, Any]) -> Any:
    """A YoutubeDL whose requests all go through `visit`."""
    from yt_dlp import YoutubeDL

    class Guarded(YoutubeDL):  # type: ignore[misc]
        def build_request_director(self, _handlers: Any, _preferences: Any = None) -> Any:
            return super().build_request_director([_handler(visit)])

    return Guarded(options)


def _opener(visit: _Visit, context: Any, cookiejar: Any) -> urllib.request.OpenerDirector:
    """Of yt-dlp's own parts those that speak HTTP, without proxies, to places that `visit` checks."""
    import http.client

    from yt_dlp.networking import _urllib as theirs

    class Connections(theirs.HTTPHandler):  # type: ignore[misc]
        def http_open(self, req: Any) -> Any:
            return self.do_open(partial(visit.connection, http.client.HTTPConnection), req)

        def https_open(self, req: Any) -> Any:
            return self.do_open(partial(visit.connection, http.client.HTTPSConnection), req, context=self._context)

    class Redirects(theirs.RedirectHandler):  # type: ignore[misc]
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            visit.allow(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = urllib.request.OpenerDirector()
    errors = (urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler())
    for handler in (Connections(context=context), urllib.request.HTTPCookieProcessor(cookiejar), *errors, Redirects()):
        opener.add_handler(handler)
    opener.addheaders = []
    return opener


def _handler(visit: _Visit) -> Any:
    """yt-dlp's urllib handler, but for where and what it connects to."""
    from yt_dlp.networking import _urllib as theirs

    class GuardedRH(theirs.UrllibRH):  # type: ignore[misc]
        _SUPPORTED_URL_SCHEMES = ("http", "https")
        _SUPPORTED_PROXY_SCHEMES = ()

        def _create_instance(self, proxies: Any, cookiejar: Any, legacy_ssl_support: Any = None) -> Any:  # noqa: ARG002
            context = self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)
            if visit.config.ca_file:
                context.load_verify_locations(visit.config.ca_file)
            return _opener(visit, context, cookiejar)

        def _get_proxies(self, _request: Any) -> dict[str, str]:
            return {}

        def _send(self, request: Any) -> Any:
            try:
                visit.check()
                visit.allow(request.url)
                answer = super()._send(request)
                visit.heed(answer.url, answer.status, answer.headers)
            except FetchError as err:
                raise _stop_class()(err) from None
            return answer

    return GuardedRH
