"""Each reason of the closed list, given by a real server, name server or socket on loopback, and none that is not tried here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stages.download.reasons import REASONS, RETRIED
from tests.stages.download.conftest import download, wanted
from tests.support.dns import NO_ADDRESS, NXDOMAIN, REFUSED, SERVFAIL, SILENT, Dns
from tests.support.server import FullBacklog, Server, closed_port


@dataclass(frozen=True)
class Case:
    """A URL ({port} is the server's, {closed} nobody's, {full} a place that takes no connections) and what comes of it."""

    reason: str
    url: str | None
    detail: str = ""
    status: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    expected_hash: str | None = None
    stored_at: str | None = None


OK = "http://a.test/ok"
CASES = [
    # The URL itself
    Case("invalid_url", None, "no URL"),
    Case("invalid_url", "images/cat.jpg", "no scheme"),
    Case("invalid_url", "http://a.test:65536/x", "port 65536 is over 65535"),
    Case("bad_scheme", "ftp://a.test/x.jpg", "scheme ftp"),
    Case("bad_scheme", "http://a.test/to?u=file:///etc/passwd", "redirect: scheme file"),
    Case("credentials", "http://user:hunter2@a.test/ok", "the URL holds a user name or password"),
    Case("credentials", "http://a.test/to?u=http://user:hunter2@b.test/ok", "redirect: "),
    Case("forbidden_port", "http://a.test:25/x", "port 25"),
    Case("forbidden_address", "http://10.0.0.1/x", r"10\.0\.0\.1 is not public \(private\)"),
    Case("forbidden_address", "http://inside.dns/x", r"169\.254\.169\.254 is not public \(link-local\)"),
    Case("optout", OK, "the host is on an opt-out list", options={"optout": {"entries": ["a.test"]}}),
    Case("optout", "http://b.test/to?u=http://a.test/ok", "the URL is on an opt-out list", options={"optout": {"entries": [OK]}}),
    Case("hash_unknown", OK, "not of a known form", expected_hash="sha256:beef"),
    Case("hash_unknown", OK, "not of a known form", expected_hash="crc32:00000000"),
    # Names
    Case("dns_nxdomain", "http://gone.dns/x", "not found"),
    Case("dns_nxdomain", "http://bare.dns/x", "no data"),
    Case("dns_timeout", "http://mute.dns/x", "the name server did not answer in time"),
    Case("dns_error", "http://broken.dns/x", "general failure"),
    Case("dns_error", "http://refused.dns/x", "refused"),
    # The connection
    Case("connect_refused", "http://here.dns:{closed}/x", "Connection refused"),
    Case("connect_timeout", "http://here.dns:{full}/x", "no connection in time"),
    Case("connect_error", "http://nobody.dns:8080/x", "Network is unreachable"),
    Case("tls", "https://untrusted.test/ok", "self-signed certificate|unable to get local issuer"),
    Case("tls", "https://expired.test/ok", "certificate has expired"),
    Case("tls", "https://mismatch.test/ok", "Hostname mismatch"),
    Case("tls", "https://a.test/ok", "WRONG_VERSION_NUMBER|RECORD_LAYER"),
    Case("reset", "http://a.test/reset", "Connection reset by peer"),
    Case("reset", "http://a.test/silent", "closed without an answer"),
    Case("timeout", "http://a.test/hang", "did not end in time", options={"timeout_s": 0.3}),
    Case("timeout", "http://a.test/drip", "did not end in time", status=200, options={"timeout_s": 0.3, "max_bytes": 200_000}),
    # The answer
    Case("protocol", "http://a.test/garbage"),
    Case("protocol", "http://a.test/huge-head"),
    Case("protocol", "http://a.test/bad-chunk", status=200),
    Case("truncated", "http://a.test/short", "within the body", status=200),
    Case("truncated", "http://a.test/short-chunk", "within the body", status=200),
    Case("truncated", "http://a.test/reset-body", "within the body", status=200, options={"max_bytes": 200_000}),
    Case("bad_encoding", "http://a.test/bad-gzip", "incorrect header check", status=200),
    Case("bad_encoding", "http://a.test/cut-gzip", "ends too early", status=200, options={"max_bytes": 200_000}),
    Case("bad_encoding", "http://a.test/br", "Content-Encoding br", status=200),
    Case("too_large", "http://a.test/huge/20001", "Content-Length 20001 is over max_bytes", status=200),
    Case("too_large", "http://a.test/chunked/20001", "goes beyond max_bytes", status=200),
    Case("too_large", "http://a.test/bomb", "goes beyond max_bytes|Content-Length", status=200),
    Case("too_small", "http://a.test/size/9", "9 bytes are under min_bytes", status=200, options={"min_bytes": 10}),
    Case("empty", "http://a.test/empty", "the body is empty", status=200),
    *(Case(f"http_{n}", f"http://a.test/status/{n}", f"HTTP {n}", status=n) for n in (401, 403, 404, 410, 429, 451, 503)),
    *(Case("http_4xx", f"http://a.test/status/{n}", f"HTTP {n}", status=n) for n in (400, 402, 405, 406, 408, 418, 425, 499)),
    *(Case("http_5xx", f"http://a.test/status/{n}", f"HTTP {n}", status=n) for n in (500, 502, 504, 520, 599)),
    *(Case("http_other", f"http://a.test/status/{n}", f"HTTP {n}", status=n) for n in (201, 204, 206, 300, 304, 305, 600, 999)),
    # Redirects
    Case("bad_redirect", "http://a.test/nowhere", "no Location"),
    Case("bad_redirect", "http://a.test/to?u=http://a..test/", "the Location cannot be read"),
    Case("redirect_loop", "http://a.test/loop/a", "back into its own chain", status=301),
    Case("too_many_redirects", "http://a.test/redirect/6", "more than 5 redirects", status=302),
    # What the owner says
    Case("robots_tag", "http://a.test/header?X-Robots-Tag=noai", "X-Robots-Tag: noai", status=200),
    Case("tdm_reservation", "http://a.test/header?tdm-reservation=1", "tdm-reservation: 1", status=200),
    Case("robots_txt", "http://closed.test/ok", "robots.txt disallows the path", options={"robots_txt": True}),
    Case("robots_txt", "http://failing.test/ok", "robots.txt: HTTP 500", status=500, options={"robots_txt": True}),
    # The bytes
    Case("hash_mismatch", OK, "sha256 is [0-9a-f]{64}", status=200, expected_hash="sha256:" + "0" * 64),
    Case("hash_mismatch", OK, "md5 is [0-9a-f]{32}", status=200, expected_hash="md5:" + "0" * 32),
    Case("stored_unreadable", None, "FileNotFoundError", stored_at='{"path": "/nowhere/x.tar", "offset": 0, "length": 5}'),
    Case("stored_unreadable", None, "an address of the web", stored_at='{"path": "http://127.0.0.1/x"}'),
    Case("stored_unreadable", None, "stored_at is not", stored_at="x.jpg"),
]  # fmt: skip

NAMES = {
    "here.dns": "127.0.0.1",
    "nobody.dns": "127.255.255.255",  # the loopback's broadcast address, to which TCP cannot connect
    "inside.dns": "169.254.169.254",
    "gone.dns": NXDOMAIN,
    "bare.dns": NO_ADDRESS,
    "mute.dns": SILENT,
    "broken.dns": SERVFAIL,
    "refused.dns": REFUSED,
}


@dataclass(frozen=True)
class World:
    options: dict[str, Any]
    ports: dict[str, str]


@pytest.fixture(scope="module")
def world(server: Server, ca_file: str) -> Iterator[World]:
    server.robots["closed.test"] = (200, b"User-agent: *\nDisallow: /\n")
    server.robots["failing.test"] = (500, b"no")
    resolve = {name: to for name, to in server.options()["resolve"].items() if name != "*"}
    with Dns(NAMES) as dns, FullBacklog() as full:
        options = {
            "resolve": {"*.test": f"127.0.0.1:{server.port}", **resolve},
            "nameservers": [dns.address],
            "allow_networks": ["127.0.0.0/8"],
            "dns_timeout_s": 0.3,
            "connect_timeout_s": 0.3,
            "max_bytes": 20_000,
            "ca_file": ca_file,
            "retries": 0,
        }
        yield World(options, {"port": str(server.port), "closed": str(closed_port()), "full": full.rpartition(":")[2]})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reason}-{case.url}"[:60])
def test_every_reason_is_given_by_what_it_names(world: World, case: Case) -> None:
    url = case.url and re.sub(r"\{(\w+)\}", lambda found: world.ports[found[1]], case.url)
    (row,) = download(wanted([url], [case.expected_hash], [case.stored_at]), {**world.options, **case.options})
    assert (row["fate"], row["http_status"]) == (f"download:{case.reason}", case.status)
    assert re.search(case.detail, row["detail"] or ""), row["detail"]
    assert row["body"] is None
    assert (row["sha256"] is not None) == (case.reason == "hash_mismatch")
    for changing in (*world.ports.values(), "hunter2"):
        assert changing not in row["detail"], "a detail must be the same on the next run, and hold no secret"


def test_no_reason_is_left_untried() -> None:
    pages = {"blocked", "no_video_in_page", "page_error"}  # test_download_pages.py
    assert {case.reason for case in CASES} == set(REASONS) - pages
    assert set(REASONS) >= RETRIED


def test_their_neighbours_are_kept(server: Server, world: World, tmp_path: Path) -> None:
    """What is just on the right side of each line."""
    body = tmp_path / "x.jpg"
    body.write_bytes(b"0123456789")
    server.files["/ten"] = body.read_bytes()
    digests = {name: hashlib.new(name, body.read_bytes()).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}
    urls = [
        "http://a.test/size/20000", "http://a.test/chunked/20000", "http://a.test/until-close/20000", "http://a.test/size/10",
        "http://a.test/redirect/5", "http://a.test/gzip", "http://a.test/deflate", "http://a.test/odd-encoding",
        "http://a.test/status/203", "https://x.tls.test/ok", "http://here.dns:{port}/ok",
        "http://a.test/header?X-Robots-Tag=nofollow", "http://a.test/header?tdm-reservation=0",
    ]  # fmt: skip
    urls = [url.replace("{port}", world.ports["port"]) for url in urls]
    hashes = [f"{name}:{hexed.upper()}" for name, hexed in digests.items()]
    rows = download(
        wanted(
            [*urls, *["http://a.test/ten"] * 4, None],
            [*[None] * len(urls), *hashes, None],
            [*[None] * (len(urls) + 4), json.dumps({"path": str(body)})],
        ),
        {**world.options, "min_bytes": 2},
    )
    assert {row["url"]: row["fate"] for row in rows if row["fate"] != "kept"} == {}
    assert all(row["sha256"] == hashlib.sha256(row["body"]).hexdigest() and row["fetched_bytes"] == len(row["body"]) for row in rows)
