"""An HTTP server that is slow on purpose, in a process of its own: each answer after 0.3 s, /hang never.

/seen tells how many requests it held at once. It costs as little CPU as Python allows. Bodies are a picture of 2 KB. With `hosts` it
listens at as many addresses of the loopback network, so that a list has many hosts without names.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DELAY_S, BODY_BYTES = 0.3, 2048


def address(host: int) -> str:
    return f"127.{1 + host // 250}.{host % 250}.1"


def body() -> bytes:
    """A JPEG of 64 x 64 pixels, padded to BODY_BYTES by a comment."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(out, "JPEG", quality=60)
    plain = out.getvalue()
    room = BODY_BYTES - len(plain) - 2
    return plain[:2] + b"\xff\xfe" + room.to_bytes(2, "big") + bytes(room - 2) + plain[2:]


def serve(hosts: int) -> None:
    """Prints the port, then serves until it is ended."""
    loop, seen = asyncio.new_event_loop(), {"now": 0, "peak": 0}
    picture = body()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer, self.held = transport, b"", 0

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
                if head.startswith(b"GET /seen"):
                    told = json.dumps(seen).encode()
                    self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
                    seen["peak"] = seen["now"]
                    continue
                self.held += 1
                seen["now"] += 1
                seen["peak"] = max(seen["peak"], seen["now"])
                if not head.startswith(b"GET /hang"):
                    loop.call_later(DELAY_S, self.reply)

        def reply(self) -> None:
            if not self.transport.is_closing():
                seen["now"], self.held = seen["now"] - 1, self.held - 1
                self.transport.write(answer)

        def connection_lost(self, _: Exception | None) -> None:
            seen["now"], self.held = seen["now"] - self.held, 0

    server = loop.run_until_complete(loop.create_server(Connection, ["127.0.0.1"], 0, backlog=4096))
    port = server.sockets[0].getsockname()[1]
    if hosts:
        loop.run_until_complete(loop.create_server(Connection, [address(host) for host in range(hosts)], port, backlog=4096))
    print(port, flush=True)
    loop.run_forever()


@contextlib.contextmanager
def port_of(*command: str) -> Iterator[int]:
    """A server in a process of its own, by a command that prints its port."""
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.terminate()
        child.wait()


def server(hosts: int = 0) -> contextlib.AbstractContextManager[int]:
    return port_of(str(Path(__file__).resolve()), str(hosts))


def peak(port: int) -> int:
    """The most requests that were held at once since this was asked last."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as answer:
        return int(json.load(answer)["peak"])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
