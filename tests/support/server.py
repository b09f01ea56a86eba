"""A real HTTP server on loopback that behaves as the worst of the web does, and remembers how it was asked.

Written on bare sockets, since most of what it does no HTTP library would. It runs in a thread of its own:

    with Server() as server:
        stage = Download(Download.Config(**server.options(), retries=0))

`server.url("/status/404", "a.test")` is a stable URL on a made-up name, which `options` leads here. What a path does stands
at its handler below; `server.files[path]` serves bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import socket
import ssl
import struct
import threading
import time
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF"


@dataclass
class Request:
    """A request as it arrived. `at`: time.monotonic() when its head was complete; `again`: not the first on its connection."""

    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    at: float
    again: bool
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    async def answer(self, status: int = 200, body: bytes = b"", headers: Any = (), length: int | None = None) -> None:
        pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
        names = {name.lower() for name, _ in pairs}
        if "content-type" not in names:
            pairs.append(("Content-Type", "image/jpeg"))
        if "content-length" not in names and "transfer-encoding" not in names:
            pairs.append(("Content-Length", str(len(body) if length is None else length)))
        head = f"HTTP/1.1 {status} Because\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n"
        self.writer.write(head.encode("latin-1") + body)
        await self.writer.drain()

    async def gone(self) -> None:
        """Waits until the client has gone."""
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """Ends the connection with a RST."""
        made: socket.socket = self.writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def bytes_for(text: str, size: int) -> bytes:
    """Bytes that differ from URL to URL and are the same each time."""
    seed = hashlib.sha256(text.encode()).digest()
    return (JPEG + seed * (size // len(seed) + 1))[:size]


class Server:
    def __init__(self, tls: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self.robots: dict[str, tuple[int, bytes]] = {}
        self.requests: list[Request] = []
        self.now: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.tls = tls
        self.port = self.tls_port = self.untrusted_port = self.expired_port = 0
        self.thread = threading.Thread(target=self._run, name="server", daemon=True)
        self.started = threading.Event()
        self.routes: dict[str, Callable[[Request], Awaitable[None]]] = {
            name.removeprefix("_at_"): getattr(self, name) for name in dir(self) if name.startswith("_at_")
        }

    def __enter__(self) -> Server:
        self.thread.start()
        assert self.started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)

    # What a test asks

    def url(self, path: str, host: str = "a.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}{path}"

    def options(self) -> dict[str, Any]:
        """Options of the download stage that lead every name here, `*.tls.test` to the TLS port."""
        resolve = {"*": f"127.0.0.1:{self.port}"}
        if self.tls:
            resolve |= {"*.tls.test": f"127.0.0.1:{self.tls_port}", "mismatch.test": f"127.0.0.1:{self.tls_port}"}
            resolve |= {"untrusted.test": f"127.0.0.1:{self.untrusted_port}", "expired.test": f"127.0.0.1:{self.expired_port}"}
        return {"resolve": resolve, "allow_networks": ["127.0.0.1/32"]}

    def count(self, path: str | None = None, host: str | None = None) -> int:
        return sum((path is None or r.path == path) and (host is None or r.host == host) for r in self.requests)

    def peak(self, host: str) -> int:
        """The most requests of a host that were under way at once."""
        return self.peaks[host]

    def most_in_a_second(self, host: str) -> int:
        """The most requests of a host that arrived within any one second, wherever that second begins."""
        times = sorted(r.at for r in self.requests if r.host == host)
        return max((bisect_left(times, t + 1.0) - i for i, t in enumerate(times)), default=0)

    def write_ca(self, folder: Path) -> str:
        """The authority whose certificates the TLS port shows, as a PEM file."""
        path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return str(path)

    # The machinery

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        listening = [await self._listen(None)]
        self.port = listening[0].sockets[0].getsockname()[1]
        if self.tls:
            contexts = self._certificates()
            listening += [await self._listen(context) for context in contexts]
            self.tls_port, self.untrusted_port, self.expired_port = (s.sockets[0].getsockname()[1] for s in listening[1:])
        self.started.set()
        await self.stop.wait()
        for server in listening:
            server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _listen(self, context: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=context, backlog=4096)

    def _certificates(self) -> list[ssl.SSLContext]:
        import datetime

        import trustme

        self.ca, stranger = trustme.CA(), trustme.CA()
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        issued = [
            self.ca.issue_cert("tls.test", "*.tls.test"),
            stranger.issue_cert("untrusted.test"),
            self.ca.issue_cert("expired.test", not_after=past),
        ]
        contexts = []
        for certificate in issued:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            contexts.append(context)
        return contexts

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        again = False
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError, OSError):
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS greeting, which nginx answers like this
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                    break
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await self._request(head, again, reader, writer)
                again = True
        writer.close()

    async def _request(self, head: str, again: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split("\r\n")
        split = urlsplit(first.split(" ")[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        host = headers.get("host", "").partition(":")[0]
        request = Request(host, split.path, dict(parse_qsl(split.query)), headers, time.monotonic(), again, reader, writer)
        self.requests.append(request)
        self.now[host] += 1
        self.peaks[host] = max(self.peaks[host], self.now[host])
        try:
            if split.path in self.files:
                await request.answer(200, self.files[split.path])
            else:
                await self.routes.get(split.path.split("/")[1].replace("-", "_").replace(".", "_"), self._at_ok)(request)
        finally:
            self.now[host] -= 1

    # What the paths do

    async def _at_ok(self, r: Request) -> None:
        """200 with 2,000 bytes of its own."""
        await r.answer(200, bytes_for(f"{r.host}{r.path}{r.query}", 2000))

    async def _at_robots_txt(self, r: Request) -> None:
        status, text = self.robots.get(r.host, (404, b"no"))
        await r.answer(status, text, {"Content-Type": "text/plain"})

    async def _at_size(self, r: Request) -> None:
        """/size/N: 200 with N bytes."""
        await r.answer(200, bytes_for(r.path, int(r.path.split("/")[2])))

    async def _at_status(self, r: Request) -> None:
        """/status/N"""
        await r.answer(int(r.path.split("/")[2]), b"" if r.path.endswith(("204", "304")) else b"no")

    async def _at_slow(self, r: Request) -> None:
        """/slow/S: answers after S seconds."""
        await asyncio.sleep(float(r.path.split("/")[2]))
        await self._at_ok(r)

    async def _at_hang(self, r: Request) -> None:
        """Never answers."""
        await r.gone()

    async def _at_drip(self, r: Request) -> None:
        """A byte every twentieth of a second, without end."""
        await r.answer(200, b"", length=100_000)
        while True:
            r.writer.write(b"x")
            await r.writer.drain()
            await asyncio.sleep(0.05)

    async def _at_endless(self, r: Request) -> None:
        """Bytes without end and without a length."""
        await r.answer(
            200, b"", {"Connection": "close", "Transfer-Encoding": "identity"} if "te" in r.query else {"Transfer-Encoding": "chunked"}
        )
        while True:
            r.writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await r.writer.drain()

    async def _at_until_close(self, r: Request) -> None:
        """/until-close/N: N bytes, whose end is that of the connection (HTTP/1.0)."""
        r.writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + bytes_for(r.path, int(r.path.split("/")[2])))
        await r.writer.drain()
        r.writer.close()

    async def _at_chunked(self, r: Request) -> None:
        """/chunked/N: N bytes in chunks of 50,000."""
        body = bytes_for(r.path, int(r.path.split("/")[2]))
        await r.answer(200, b"", {"Transfer-Encoding": "chunked"})
        for at in range(0, len(body), 50_000):
            piece = body[at : at + 50_000]
            r.writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await r.writer.drain()
        r.writer.write(b"0\r\n\r\n")

    async def _at_bad_chunk(self, r: Request) -> None:
        await r.answer(200, b"3\r\nabc\r\n", {"Transfer-Encoding": "chunked"})
        await asyncio.sleep(0.05)  # in one packet with the head the client would not get to see the status
        r.writer.write(b"zz\r\nnonsense\r\n")
        await r.writer.drain()

    async def _at_short(self, r: Request) -> None:
        """Announces 1,000 bytes, sends 10, ends."""
        await r.answer(200, b"0123456789", length=1000)
        r.writer.close()

    async def _at_short_chunk(self, r: Request) -> None:
        await r.answer(200, b"3e8\r\n0123456789", {"Transfer-Encoding": "chunked"})
        r.writer.close()

    async def _at_long(self, r: Request) -> None:
        """Announces 5 bytes, sends 10."""
        await r.answer(200, b"0123456789", length=5)

    async def _at_huge(self, r: Request) -> None:
        """/huge/N: announces N bytes and sends a few."""
        await r.answer(200, b"0123456789", length=int(r.path.split("/")[2]))
        await r.gone()

    async def _at_html(self, r: Request) -> None:
        """A page for people, called an image."""
        await r.answer(200, b"<!doctype html><title>Not found</title>")

    async def _at_redirect(self, r: Request) -> None:
        """/redirect/N: N redirects, then 200."""
        n = int(r.path.split("/")[2])
        if n:
            await r.answer(302, b"moved", {"Location": f"/redirect/{n - 1}"})
        else:
            await self._at_ok(r)

    async def _at_loop(self, r: Request) -> None:
        await r.answer(301, b"", {"Location": "/loop/b" if r.path.endswith("a") else "/loop/a"})

    async def _at_to(self, r: Request) -> None:
        """/to?u=URL&status=302: a redirect to anywhere."""
        await r.answer(int(r.query.get("status", 302)), b"", {"Location": r.query["u"]})

    async def _at_nowhere(self, r: Request) -> None:
        await r.answer(302, b"")

    async def _at_reset(self, r: Request) -> None:
        r.reset()

    async def _at_reset_body(self, r: Request) -> None:
        await r.answer(200, b"x" * 1000, length=100_000)
        await asyncio.sleep(0.05)
        r.reset()

    async def _at_silent(self, r: Request) -> None:
        """Ends the connection without an answer."""
        r.writer.close()

    async def _at_one_answer(self, r: Request) -> None:
        """Answers the first request of a connection as if more were welcome, and meets the second with silence."""
        if r.again:
            r.writer.close()
        else:
            await self._at_ok(r)

    async def _at_busy(self, r: Request) -> None:
        """/busy/K/…?status=429&after=1: K times the status (with Retry-After where `after` is set), then 200."""
        key = f"{r.host}{r.path}"
        self.refusals[key] += 1
        if self.refusals[key] <= int(r.path.split("/")[2]):
            await r.answer(int(r.query.get("status", 503)), b"busy", {"Retry-After": r.query["after"]} if "after" in r.query else {})
        else:
            await self._at_ok(r)

    async def _at_gzip(self, r: Request) -> None:
        await r.answer(200, gzip.compress(bytes_for(r.path, 5000)), {"Content-Encoding": "gzip"})

    async def _at_deflate(self, r: Request) -> None:
        await r.answer(200, zlib.compress(bytes_for(r.path, 5000)), {"Content-Encoding": "deflate"})

    async def _at_bomb(self, r: Request) -> None:
        """100 MB of zeros in 100 KB."""
        await r.answer(200, gzip.compress(bytes(100_000_000), 9), {"Content-Encoding": "gzip"})

    async def _at_bad_gzip(self, r: Request) -> None:
        await r.answer(200, b"this is no gzip", {"Content-Encoding": "gzip"})

    async def _at_cut_gzip(self, r: Request) -> None:
        await r.answer(200, gzip.compress(bytes(range(256)) * 100)[:-20], {"Content-Encoding": "gzip"})

    async def _at_br(self, r: Request) -> None:
        await r.answer(200, b"\x0b\x02\x80hello\x03", {"Content-Encoding": "br"})

    async def _at_odd_encoding(self, r: Request) -> None:
        await r.answer(200, bytes_for(r.path, 500), {"Content-Encoding": "none"})

    async def _at_header(self, r: Request) -> None:
        """/header?X-Robots-Tag=noai: 200 with that header (`|` parts several of one name)."""
        pairs = [(name, part) for name, value in r.query.items() for part in value.split("|")]
        await r.answer(200, bytes_for(r.path, 500), pairs)

    async def _at_garbage(self, r: Request) -> None:
        r.writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        await r.writer.drain()
        r.writer.close()

    async def _at_huge_head(self, r: Request) -> None:
        await r.answer(200, b"x", {"X-Long": "y" * 200_000})

    async def _at_empty(self, r: Request) -> None:
        await r.answer(200, b"")

    async def _at_echo(self, r: Request) -> None:
        await r.answer(200, json.dumps(r.headers).encode())


class FullBacklog:
    """A place that takes no more connections: SYNs to it are dropped, as by a firewall. Linux's loopback alone does so."""

    def __enter__(self) -> str:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0)
        self.port = self.listener.getsockname()[1]
        self.fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self.fillers.append(filler)
        time.sleep(0.05)
        return f"127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        for made in (*self.fillers, self.listener):
            made.close()


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def by_host(requests: list[Request]) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        found[request.host].append(request)
    return found
