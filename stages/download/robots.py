"""What a site's owner says about the use of what it serves: X-Robots-Tag, tdm-reservation, robots.txt.

robots.txt is matched as RFC 9309 has it (groups of one agent joined, the longest match wins, `*` and `$`), which urllib's parser
does not. Left out: crawl-delay (not in the RFC; the limits per host are ours) and sitemaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MAX_ROBOTS_BYTES = 512_000  # RFC 9309 2.5: at least 500 KiB are read; what is beyond is cut
MAX_RULES = 10_000
_TOKEN = re.compile(r"[a-zA-Z_-]+")
_LINE = re.compile(r"\s*([A-Za-z-]+)\s*:\s*(.*?)\s*")


def forbidden_directive(values: Iterable[str], token: str, disallowed: frozenset[str]) -> str | None:
    """The first X-Robots-Tag directive that forbids the use, None where none does.

    img2dataset's rule (downloader.py, is_disallowed): a header is split once at ":"; what stands before it is an agent's token, and
    the header counts for that agent alone; the rest is a list with commas, compared in lower case.
    """
    for value in values:
        before, colon, after = value.partition(":")
        if colon and before.strip().lower() != token:
            continue
        for part in (after if colon else before).split(","):
            if part.strip().lower() in disallowed:
                return part.strip().lower()
    return None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of robots.txt for one agent: (pattern, allowed), the longest pattern first, allow before disallow."""

    rules: tuple[tuple[str, bool], ...]

    def allows(self, path: str) -> bool:
        """Whether the agent may ask for a path with its query (RFC 9309 2.2.2). No match allows."""
        plain = _normal(path)
        return next((allowed for pattern, allowed in self.rules if matches(pattern, plain)), True)


ALLOW_ALL = Rules(())


def parse_robots(body: bytes, token: str) -> Rules:
    """The group of `token`, or else of `*`, or else no rules. Never raises: what cannot be read does not count."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    agents: list[str] = []
    in_agents = False
    for line in body[:MAX_ROBOTS_BYTES].decode("utf-8", "replace").removeprefix("\ufeff").splitlines():
        found = _LINE.fullmatch(line.partition("#")[0])
        if not found:
            continue
        key, value = found[1].lower(), found[2]
        if key == "user-agent":
            name = value if value == "*" else (_TOKEN.match(value) or [""])[0].lower()
            agents = [*(agents if in_agents else []), name]
            in_agents = True
            groups.setdefault(name, [])
        elif key in ("allow", "disallow"):
            in_agents = False
            for name in agents:
                if value and len(groups[name]) < MAX_RULES:
                    groups[name].append((_normal(value), key == "allow"))
    rules = groups.get(token.lower(), groups.get("*", []))
    return Rules(tuple(sorted(rules, key=lambda rule: (-len(rule[0]), not rule[1]))))


def matches(pattern: str, path: str) -> bool:
    """Whether a rule's pattern matches the beginning of a path; `*` is any run of characters, a final `$` the end.

    Without regular expressions: a pattern of many stars from a stranger costs time in proportion to its length, no more.
    """
    anchored = pattern.endswith("$")
    first, *rest = (pattern[:-1] if anchored else pattern).split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if anchored and rest:
        last = rest.pop()
        end = len(path) - len(last)
        if end < at or not path.endswith(last):
            return False
    else:
        end = len(path)
        if anchored:
            return at == end
    for piece in rest:
        found = path.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _normal(path: str) -> str:
    """A path with its escapes made alike (RFC 9309 2.2.2): unreserved characters bare, all others as upper-case escapes."""
    if "%" not in path and path.isascii():
        return path
    pieces = re.split(r"(%[0-9A-Fa-f]{2})", path)
    return "".join(_escape(piece) if piece.startswith("%") and len(piece) == 3 else _utf8(piece) for piece in pieces)


def _escape(piece: str) -> str:
    char = unquote_to_bytes(piece).decode("latin-1")
    return char if re.fullmatch(r"[A-Za-z0-9._~-]", char) else piece.upper()


def _utf8(text: str) -> str:
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))
