"""Which addresses may be connected to: public ones, and those of the networks that the config allows.

The check is made on the literal address that a socket is about to connect to (`Guard.socket`), so that neither a name that
changes its address nor a redirect can pass it by. Left out: proxies (none is used) and what a URL looks like (urls.py).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any

from stages.download.reasons import FetchError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose registries (RFC 6890 and its updates, state of 2025): everything that is not meant for the public.
_SPECIAL_4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's metadata service",  # Azure's, in public space but reachable from its machines alone
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
# IPv6: 2000::/3 is all that is given out as global unicast; these lie in it and are not for the public, or hide an IPv4 address.
_SPECIAL_6 = {
    "2001::/32": "Teredo",
    "2001::/23": "protocol assignments",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "AS112",
    "3fff::/20": "documentation",
}
# Outside 2000::/3 everything is refused; these only give the refusal its name.
_NAMED_6 = {
    "::1/128": "loopback",
    "::/128": "unspecified",
    "::ffff:0:0/96": "IPv4-mapped",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "NAT64",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "ff00::/8": "multicast",
}
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_ENTRY = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<net>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?|(?P<bare>[0-9a-fA-F:.]+(?:/[0-9]{1,3})?)")


def allowed_network(text: str) -> tuple[Network, int | None]:
    """`127.0.0.1/32`, `127.0.0.1/32:8080`, `::1/128` or `[::1/128]:8080` -> network, and port where one is named."""
    found = _ENTRY.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no network; write 127.0.0.1/32, 127.0.0.1/32:8080, ::1/128 or [::1/128]:8080")
    network = ipaddress.ip_network(found["v6"] or found["net"] or found["bare"])
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r}: port {port} is not between 1 and 65535")
    return network, port


def special(address: str) -> str | None:
    """Why an address is not public (`loopback`, `private`, …), or None where it is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return _named(ip, _tables()[0])
    if ip not in _GLOBAL_6:
        return _named(ip, _tables()[2]) or "not global unicast"
    return _named(ip, _tables()[1])


def _named(ip: Address, table: list[tuple[Network, str]]) -> str | None:
    return next((name for network, name in table if ip in network), None)


@functools.cache
def _tables() -> list[list[tuple[Network, str]]]:
    return [[(ipaddress.ip_network(net), name) for net, name in table.items()] for table in (_SPECIAL_4, _SPECIAL_6, _NAMED_6)]


class Guard:
    """Decides about addresses.

    `allow`: networks (with a port where only that one is meant) that may be reached although they are not public.
    `public=False`: nothing but those; so runs a stage without a contact.
    """

    def __init__(self, allow: Sequence[str] = (), public: bool = True) -> None:
        self.allow = [allowed_network(entry) for entry in allow]
        self.public = public
        self.refusal = functools.lru_cache(maxsize=65536)(self._refusal)

    def _refusal(self, address: str, port: int) -> str | None:
        """Why a connection to this address is refused, or None. `address` in any form that `ipaddress` reads."""
        if self.allow and self._allowed(address, port):
            return None
        if (name := special(address)) is not None:
            return f"{address} is not public ({name})"
        return None if self.public else f"{address} is outside allow_networks, and without a contact nothing else is asked"

    def _allowed(self, address: str, port: int) -> bool:
        ip = ipaddress.ip_address(address)
        return any(ip in network and only in (None, port) for network, only in self.allow)

    def check(self, address: str, port: int) -> None:
        """Raises FetchError(forbidden_address) where a connection is refused."""
        if (why := self.refusal(address, port)) is not None:
            raise FetchError("forbidden_address", why)

    def socket(self, info: Any) -> socket.socket:
        """aiohttp's `socket_factory`: a socket for a literal address that has been checked; nothing else ever connects."""
        family, kind, proto, _, place = info
        self.check(place[0], place[1])
        return socket.socket(family=family, type=kind, proto=proto)
