"""A real DNS server on loopback (UDP), whose answers, refusals and silences a test chooses.

    with Dns({"a.test": "127.0.0.1", "gone.test": NXDOMAIN, "mute.test": SILENT, "late.test": Late(5, "127.0.0.1")}) as dns:
        stage = Download(Download.Config(nameservers=[dns.address], …))

A name may be a function too: name -> answer. Names that are not given do not exist.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSRecord

NXDOMAIN, SERVFAIL, REFUSED, SILENT, NO_ADDRESS = "NXDOMAIN", "SERVFAIL", "REFUSED", "SILENT", "NO_ADDRESS"


@dataclass(frozen=True)
class Late:
    """An answer after so many seconds."""

    seconds: float
    answer: Any


class Dns:
    def __init__(self, names: Mapping[str, Any] | Callable[[str], Any], ttl: int = 60) -> None:
        self.ttl = ttl
        self.answer_of = names if callable(names) else lambda name: names.get(name, NXDOMAIN)
        self.asked: Counter[str] = Counter()
        self.address = ""
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="dns", daemon=True)
        self.started = threading.Event()

    def __enter__(self) -> Dns:
        self.thread.start()
        assert self.started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)

    async def _serve(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        transport, _ = await self.loop.create_datagram_endpoint(lambda: _Protocol(self), local_addr=("127.0.0.1", 0))
        self.address = f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
        self.started.set()
        await self.stop.wait()
        transport.close()


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, dns: Dns) -> None:
        self.dns = dns

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        query = DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".").lower()
        self.dns.asked[name] += 1
        answer, seconds = self.dns.answer_of(name), 0.0
        if isinstance(answer, Late):
            answer, seconds = answer.answer, answer.seconds
        if answer != SILENT:
            packet = _reply(query, answer, self.dns.ttl).pack()
            self.dns.loop.call_later(seconds, self.transport.sendto, packet, sender)


def _reply(query: DNSRecord, answer: Any, ttl: int) -> DNSRecord:
    reply = query.reply()
    if answer in (NXDOMAIN, SERVFAIL, REFUSED):
        reply.header.rcode = getattr(RCODE, answer)
        return reply
    for address in [] if answer == NO_ADDRESS else [answer] if isinstance(answer, str) else answer:
        kind, data = (QTYPE.AAAA, AAAA) if ":" in address else (QTYPE.A, A)
        if query.q.qtype == kind:
            reply.add_answer(RR(query.q.qname, kind, rdata=data(ipaddress.ip_address(address).exploded), ttl=ttl))
    return reply
