"""URLs as strangers write them -> one checked form, from which both the guard and the client work.

There is one parser here on purpose: a host that the guard reads differently from the client is how guards are passed by.
Left out: resolving names and judging addresses (resolver.py, guard.py).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from yarl import URL

from stages.download.reasons import FetchError

MAX_CHARS = 8000  # servers take request lines of 8 KiB (RFC 9112 section 3 asks for at least 8,000 octets)

# The plain case, 19 of 20 URLs: nothing to escape, no user, no odd host.
_PLAIN = re.compile(r"(https?)://((?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.)+[a-z][a-z0-9-]{0,62})(?::([0-9]{1,5}))?([/?][!$-;=?-\[\]_a-z~]*)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_QUERY = re.compile(r"([^?#]*)([?#]?)(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"([^/?#]*)([^#]*)")
_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Characters that stand in a path or query as they are. Nothing is decoded and no escape is touched: signed URLs live by their letters.
_SAFE = "!$%&'()*+,-./:;=?@[]_~"

# The port blocking list of the Fetch standard (fetch.spec.whatwg.org, "bad port"): other protocols listen there.
# fmt: off
BAD_PORTS = frozenset({
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111, 113,
    115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563,
    587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080,
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked for, as far as can be told from its letters."""

    url: URL
    host: str
    """Lower case, without a final dot; the name that limits, lists and caches go by."""
    port: int
    address: str | None
    """The host as an IP address in its usual form, where it is one."""

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.url.scheme}://{host}:{self.port}"


def parse(text: str | None) -> Target:
    """The URL in checked form. Raises FetchError: invalid_url, bad_scheme, credentials, forbidden_port, forbidden_address.

    As browsers do (URL standard, url.spec.whatwg.org): white space around is cut, tabs and line ends vanish, a backslash
    before the query is a slash, other characters are percent-encoded, international names become A-labels, and a host that
    ends in a number is an IPv4 address, in whatever of its forms (decimal, hexadecimal, octal, shortened). The fragment is dropped.
    """
    if not text:
        raise FetchError("invalid_url", "no URL")
    if plain := _PLAIN.fullmatch(text):
        scheme, host, port_text, _ = plain.groups()
        if len(text) <= MAX_CHARS and len(host) <= 253 and not _NUMBER.fullmatch(host.rpartition(".")[2]):
            port = _port(port_text, scheme)
            return Target(URL(text, encoded=True), host, port, None)
    return _parse_odd(text)


def follow(base: Target, location: str | None) -> Target:
    """Where a redirect from `base` leads. Raises FetchError as `parse` does, and bad_redirect for a Location that cannot be read."""
    if not location or not location.strip():
        raise FetchError("bad_redirect", "no Location")
    try:
        return parse(urljoin(str(base.url), location.strip()))
    except ValueError:
        raise FetchError("bad_redirect", "the Location is no URL") from None
    except FetchError as err:
        if err.reason == "invalid_url":
            raise FetchError("bad_redirect", f"the Location cannot be read: {err.detail}") from None
        raise FetchError(err.reason, f"redirect: {err.detail}") from None


def _parse_odd(text: str) -> Target:
    text = text.strip("\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f \x1f").translate({9: None, 10: None, 13: None})
    if len(text) > MAX_CHARS:
        raise FetchError("invalid_url", f"longer than {MAX_CHARS} characters")
    found = _SCHEME.match(text)
    if not found:
        raise FetchError("invalid_url", "no scheme")
    scheme = found[1].lower()
    if scheme not in ("http", "https"):
        raise FetchError("bad_scheme", f"scheme {scheme[:20]}")
    before, mark, query = _QUERY.match(text[found.end() :]).groups()  # type: ignore[union-attr]
    rest = before.replace("\\", "/") + mark + query
    if not rest.startswith("//"):
        raise FetchError("invalid_url", "no // after the scheme")
    authority, tail = _AUTHORITY.match(rest[2:]).groups()  # type: ignore[union-attr]
    if "@" in authority:
        raise FetchError("credentials", "the URL holds a user name or password")
    parts = _HOST_PORT.fullmatch(authority)
    if not parts:
        raise FetchError("invalid_url", "host and port cannot be read")
    host, address = _host(parts[1])
    port = _port(parts[2], scheme)
    shown = f"[{host}]" if address and ":" in address else host
    default = port == (80 if scheme == "http" else 443)
    if tail and not tail.startswith("/"):
        tail = f"/{tail}"
    url = URL(f"{scheme}://{shown}{'' if default else f':{port}'}{_escape(tail) or '/'}", encoded=True)
    return Target(url, host.removesuffix("."), port, address)


def _escape(tail: str) -> str:
    try:
        return quote(tail, safe=_SAFE)
    except UnicodeEncodeError:
        raise FetchError("invalid_url", "characters that are not Unicode") from None


def _port(text: str | None, scheme: str) -> int:
    port = int(text) if text else (80 if scheme == "http" else 443)
    if port > 65535:
        raise FetchError("invalid_url", f"port {port} is over 65535")
    if port in BAD_PORTS:
        raise FetchError("forbidden_port", f"port {port}")
    return port


def _host(text: str) -> tuple[str, str | None]:
    """The host as it stands in a request, and its address where it is one."""
    if text.startswith("["):
        return _ipv6(text[1:-1])
    host = text.lower()
    if not host.isascii():
        host = _a_labels(host)
    bare = host.removesuffix(".")
    if not bare or len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split(".")):
        raise FetchError("invalid_url", "no host" if not bare else "characters or lengths that no host name has")
    if not _NUMBER.fullmatch(bare.rpartition(".")[2]):
        return host, None
    try:
        address = socket.inet_ntoa(socket.inet_aton(bare))
    except OSError:
        raise FetchError("invalid_url", "a host that ends in a number but is no address") from None
    return address, address


def _a_labels(host: str) -> str:
    """An international name in ASCII: full-width letters, ideographic dots and the like become what they mean."""
    try:
        return (URL.build(scheme="http", host=host).raw_host or "").lower()
    except (ValueError, UnicodeError):
        raise FetchError("invalid_url", "an international host name that IDNA forbids") from None


def _ipv6(text: str) -> tuple[str, str]:
    if "%" in text:
        raise FetchError("forbidden_address", "an IPv6 address with a zone")
    try:
        address = str(ipaddress.IPv6Address(text))
    except ValueError:
        raise FetchError("invalid_url", "brackets around something that is no IPv6 address") from None
    return address, address
