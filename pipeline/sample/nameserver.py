"""A small name server for the made-up names that have to fail: UDP, one question a packet, A records (RFC 1035).

What a name answers is in its last but one label, so that `missing.nowhere.test` says what it does; all other names under the
reserved top-level domains lead to 127.0.0.1. Nothing is asked of any other server.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import cast

SILENT = "silent"  # no answer at all
MISSING = "nowhere"  # NXDOMAIN
FAILING = "failing"  # SERVFAIL
INSIDE = "inside"  # an address of a private network
PRIVATE_ADDRESS = "10.11.12.13"

_NXDOMAIN, _SERVFAIL = 3, 2
_A, _IN = 1, 1


class NameServer(asyncio.DatagramProtocol):
    """Answers and counts the questions, by name."""

    def __init__(self) -> None:
        self.questions: Counter[str] = Counter()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self.answer(data)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    def answer(self, query: bytes) -> bytes | None:
        """The answer's bytes, or None where this name stays silent or the packet is no single question."""
        try:
            name, kind, end = _question(query)
        except (IndexError, struct.error, UnicodeDecodeError):
            return None
        self.questions[name] += 1
        does = name.split(".")[-2] if "." in name else ""
        if does == SILENT:
            return None
        code = {MISSING: _NXDOMAIN, FAILING: _SERVFAIL}.get(does, 0)
        found = b""
        if code == 0 and kind == _A:
            address = PRIVATE_ADDRESS if does == INSIDE else "127.0.0.1"
            found = struct.pack(">HHHIH", 0xC00C, _A, _IN, 60, 4) + socket.inet_aton(address)
        # Flags: an answer, authoritative, recursion desired and available, then the code.
        head = query[:2] + struct.pack(">HHHHH", 0x8580 | code, 1, 1 if found else 0, 0, 0)
        return head + query[12:end] + found


def _question(query: bytes) -> tuple[str, int, int]:
    """Name (lower case), record type and where the question ends. Raises for a packet with other than one plain question."""
    if struct.unpack(">H", query[4:6])[0] != 1:
        raise IndexError("not one question")
    labels, at = [], 12
    while (length := query[at]) != 0:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    return ".".join(labels).lower(), kind, at + 5
