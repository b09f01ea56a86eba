"""The sample's web in a process of its own: `python -m pipeline.sample.server FOLDER` serves what web.py built there.

HTTP, HTTPS and a name server on ports of 127.0.0.1 that the system chooses; they are
printed as one line of JSON. The process ends when its standard input ends, so it cannot outlive its parent. `GET /__counts`
tells how often each address was asked for and how hard each host was pressed. A raw server, because a library's would refuse
to do what broken servers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.sample import pages
from pipeline.sample.certificates import Certificates
from pipeline.sample.nameserver import NameServer
from pipeline.sample.pages import Page

REASONS = {200: "OK", 301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect"}
DRIP_S = 0.2
BLOCK = bytes(64 << 10)
NOT_FOUND = Page(b"<html><body><h1>404</h1><p>There is nothing here.</p></body></html>", {"Content-Type": "text/html"}, 404)
COUNTS = "/__counts"


class Pressure:
    """What one host had to bear: requests at once, and requests begun in any one second."""

    def __init__(self) -> None:
        self.total = self.now = self.peak = self.per_second = 0
        self._begun: deque[float] = deque()

    def __enter__(self) -> None:
        self.total += 1
        self.now += 1
        self.peak = max(self.peak, self.now)
        now = time.monotonic()
        self._begun.append(now)
        while self._begun[0] <= now - 1:
            self._begun.popleft()
        self.per_second = max(self.per_second, len(self._begun))

    def __exit__(self, *_: object) -> None:
        self.now -= 1

    def as_dict(self) -> dict[str, int]:
        return {"total": self.total, "peak": self.peak, "per_second": self.per_second}


class Web:
    """Serves pages by address and counts."""

    def __init__(self, found: dict[str, Page], names: NameServer) -> None:
        self.pages, self.names = found, names
        self.requests: Counter[str] = Counter()
        self.hosts: defaultdict[str, Pressure] = defaultdict(Pressure)
        self._first: dict[str, float] = {}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after the other until either side ends it."""
        gone = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
        with contextlib.suppress(*gone, asyncio.CancelledError):  # cancelled when the server ends; asyncio would report it as a fault
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False where the connection must end after it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        host = headers.get("host", "").partition(":")[0].lower()
        path, mark, query = target.partition("?")
        if path == COUNTS:
            await _send(writer, Page(json.dumps(self.counts()).encode(), {"Content-Type": "application/json"}), method)
            return True
        address = f"{host}{unquote(path)}{mark}{query}"
        self.requests[address] += 1
        with self.hosts[host]:
            return await self._answer(address, method, reader, writer)

    async def _answer(self, address: str, method: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        page = self._turn(address)
        if page.behaviour == pages.PLAIN:
            await _send(writer, page, method)
            return True
        if page.behaviour == pages.STALL:
            await reader.read()  # until the client has had enough
        elif page.behaviour == pages.SHORT:
            await _send(writer, page, method, length=2 * len(page.body))
        elif page.behaviour in (pages.DRIP, pages.HUGE):
            await _send(writer, Page(b"", page.headers), method, length=len(page.body) if page.behaviour == pages.DRIP else 1 << 40)
            await _pour(writer, (bytes([byte]) for byte in page.body), DRIP_S)
        elif page.behaviour == pages.ENDLESS:
            await _send(writer, page, method, length=None)
            await _pour(writer, itertools.repeat(BLOCK), 0)
        return False

    def _turn(self, address: str) -> Page:
        """The page for this request: some addresses answer otherwise at first."""
        page = self.pages.get(address, NOT_FOUND)
        first = self._first.setdefault(address, time.monotonic())
        if page.behaviour == pages.BUSY:
            return Page(b"slow down", {"Content-Type": "text/plain", "Retry-After": "3600"}, 429)
        if page.behaviour == pages.BUSY_ONCE:
            if time.monotonic() - first < 1:
                return Page(b"slow down", {"Content-Type": "text/plain", "Retry-After": "1"}, 429)
            return Page(page.body, page.headers)
        if page.behaviour == pages.FAILS_ONCE:
            if self.requests[address] == 1:
                return Page(b"try again", {"Content-Type": "text/plain"}, 503)
            return Page(page.body, page.headers)
        return page

    def counts(self) -> dict[str, Any]:
        """Requests by address, pressure by host, questions by name."""
        return {
            "requests": dict(self.requests),
            "hosts": {host: pressure.as_dict() for host, pressure in self.hosts.items()},
            "names": dict(self.names.questions),
        }


async def _pour(writer: asyncio.StreamWriter, pieces: Iterable[bytes], pause_s: float) -> None:
    """Writes until the pieces end, or until the client has gone (OSError)."""
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)


async def _send(writer: asyncio.StreamWriter, page: Page, method: str, length: int | None = -1) -> None:
    """Head and body. `length`: the Content-Length, -1 for the true one, None for none (then the connection's end is the body's)."""
    lines = [f"HTTP/1.1 {page.status} {REASONS.get(page.status, 'Status')}", *(f"{name}: {value}" for name, value in page.headers.items())]
    if length is None:
        lines.append("Connection: close")
    else:
        lines.append(f"Content-Length: {len(page.body) if length < 0 else length}")
    writer.write("\r\n".join([*lines, "", ""]).encode("utf-8") + (b"" if method == "HEAD" else page.body))
    await writer.drain()


async def serve(folder: Path) -> None:
    """Serves until standard input ends. Prints {"http", "https", "dns", "closed", "ca_file"}: ports (nobody listens on `closed`)
    and the file with the certificate of the authority behind the sound certificates, which is there as long as the server is."""
    loop = asyncio.get_running_loop()
    names, certificates = NameServer(), Certificates()
    web = Web(pages.read(folder / "web.parquet"), names)
    plain = await asyncio.start_server(web.connection, "127.0.0.1", 0, backlog=1024)
    secret = await asyncio.start_server(web.connection, "127.0.0.1", 0, ssl=certificates.context, backlog=1024)
    transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 0))
    authority = folder / f"authority-{os.getpid()}.pem"
    try:
        authority.write_bytes(certificates.authority)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # held but not listened on: whoever connects is refused, and nobody else gets the port
            sockets = {"http": plain.sockets[0], "https": secret.sockets[0], "dns": transport.get_extra_info("socket"), "closed": closed}
            ready = {name: found.getsockname()[1] for name, found in sockets.items()} | {"ca_file": str(authority)}
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
            await _end_of_input(loop)
    finally:
        authority.unlink(missing_ok=True)
        plain.close()
        secret.close()
        transport.close()


async def _end_of_input(loop: asyncio.AbstractEventLoop) -> None:
    """Waits in a thread, which works for pipes, files and terminals alike."""
    over = asyncio.Event()

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop may be gone already
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait, daemon=True).start()
    await over.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(Path(sys.argv[1])))
