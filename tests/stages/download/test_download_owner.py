"""What a site's owner says: X-Robots-Tag, TDM, robots.txt, opt-out lists; and what the owner is told of us."""

from __future__ import annotations

import gzip
import hashlib
import json
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.stage import keyed_config
from stages.download.optout import OptOut, kind_of, normal
from stages.download.robots import forbidden_directive, matches, parse_robots
from stages.download.stage import Download
from tests.stages.download.conftest import ENGINES, download, fetch, wanted, write_lines
from tests.support.server import Server, bytes_for

TAGS = [
    ("noai", True), ("NoImageAI", True), ("noindex, nofollow", True), ("none", False), ("nofollow", False),
    ("shardmill: noai", True), ("Shardmill:noindex", True), ("googlebot: noai", False), ("otherbot: noai|noindex", True),
    ("nofollow|noimageindex", True), ("unavailable_after: 25 Jun 2010 15:00:00 PST", False),
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_x_robots_tag_with_and_without_a_token(server: Server, engine: str) -> None:
    rows = fetch(server, [f"/header?X-Robots-Tag={tag.replace(' ', '%20')}" for tag, _ in TAGS], engine=engine, retries=0)
    assert [row["fate"] for row in rows] == ["download:robots_tag" if forbids else "kept" for _, forbids in TAGS]


def test_directives_and_token_are_the_users_to_choose(server: Server) -> None:
    paths = ["/header?X-Robots-Tag=noai", "/header?X-Robots-Tag=nosnippet", "/header?X-Robots-Tag=mine: nosnippet"]
    rows = fetch(server, paths, disallowed_header_directives=["nosnippet"], user_agent_token="mine")
    assert [row["fate"] for row in rows] == ["kept", "download:robots_tag", "download:robots_tag"]
    assert {row["fate"] for row in fetch(server, paths, disallowed_header_directives=[])} == {"kept"}


def test_img2dataset_reads_the_header_alike() -> None:
    """The rule is img2dataset's own: compared with its function."""
    downloader = pytest.importorskip("img2dataset.downloader")
    disallowed = ["noai", "noimageai", "noindex", "noimageindex"]
    for tag, _ in TAGS:
        headers = Message()
        for part in tag.split("|"):
            headers.add_header("X-Robots-Tag", part)
        theirs = downloader.is_disallowed(headers, "shardmill", disallowed)
        assert (forbidden_directive(tag.split("|"), "shardmill", frozenset(disallowed)) is not None) == theirs, tag


def test_tdm_reservation(server: Server) -> None:
    paths = ["/header?tdm-reservation=1", "/header?TDM-Reservation=1", "/header?tdm-reservation=0", "/header?tdm-policy=x"]
    assert [row["fate"] for row in fetch(server, paths)] == ["download:tdm_reservation"] * 2 + ["kept"] * 2
    assert {row["fate"] for row in fetch(server, paths, tdm_reservation=False)} == {"kept"}


ROBOTS = b"""
User-agent: *
Disallow: /private
Allow: /private/*.jpg$
Disallow: /*?sid=

User-agent: otherbot
Disallow: /

User-agent: Shardmill
User-agent: thirdbot
Disallow: /ours  # a remark
"""


def test_robots_txt_is_asked_once_and_honoured(server: Server) -> None:
    server.robots["rules.test"] = (200, ROBOTS)
    paths = ["/private/x", "/ours", "/ours/x.jpg", "/other"]
    rows = fetch(server, paths, "rules.test", robots_txt=True)
    assert [row["fate"] for row in rows] == ["kept", "download:robots_txt", "download:robots_txt", "kept"]
    assert server.count("/robots.txt", "rules.test") == 1
    rows = fetch(server, ["/private/x", "/private/x.jpg", "/private/x.jpg?w=1", "/a?sid=4", "/a"], "rules.test", robots_txt=True,
                 user_agent_token="nobody")  # fmt: skip
    kept, dropped = "kept", "download:robots_txt"
    assert [row["fate"] for row in rows] == [dropped, kept, dropped, dropped, kept]
    before = server.count("/robots.txt", "rules.test")
    fetch(server, paths, "rules.test")
    assert server.count("/robots.txt", "rules.test") == before, "off by default"


@pytest.mark.parametrize(
    ("status", "fate"), [(404, "kept"), (403, "kept"), (410, "kept"), (500, "download:robots_txt"), (503, "download:robots_txt")]
)
def test_a_missing_robots_txt_allows_and_a_failing_one_forbids(server: Server, status: int, fate: str) -> None:
    host = f"r{status}.test"
    server.robots[host] = (status, b"User-agent: *\nDisallow: /")
    assert fetch(server, ["/x"], host, robots_txt=True, retries=0)[0]["fate"] == fate


def test_robots_txt_of_the_host_that_a_redirect_leads_to_counts(server: Server) -> None:
    server.robots["forbids.test"] = (200, b"User-agent: *\nDisallow: /")
    (row,) = fetch(server, ["/to?u=http://forbids.test/x"], "open.test", robots_txt=True)
    assert row["fate"] == "download:robots_txt"


def test_longest_match_wins_as_rfc_9309_has_it() -> None:
    """The examples of RFC 9309, section 5."""
    text = b"User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/\nUser-Agent: barbot\nUser-Agent: bazbot\n" \
           b"Disallow: /example/page.html\nUser-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n"  # fmt: skip
    foo, baz, other = (parse_robots(text, token) for token in ("foobot", "bazbot", "quxbot"))
    assert foo.allows("/example/page/disallowed.gif")
    assert not foo.allows("/example/other")
    assert not baz.allows("/example/page.html")
    assert baz.allows("/example/")
    assert not other.allows("/x/y.gif")
    assert not other.allows("/example/page/x")
    assert other.allows("/publications/x.html")
    assert parse_robots(b"\xff\xfe\x00garbage\nDisallow /x", "foobot").allows("/x")
    assert not parse_robots("User-agent: *\nDisallow: /ä".encode(), "foobot").allows("/%c3%a4/x")


@given(st.text("ab*$", max_size=8), st.text("ab", max_size=8))
def test_patterns_match_as_the_regular_expression_would(pattern: str, path: str) -> None:
    import re

    anchored = pattern.endswith("$")
    body = ".*".join(re.escape(piece) for piece in (pattern[:-1] if anchored else pattern).split("*"))
    assert matches(pattern, path) == bool(re.match(body + ("$" if anchored else ""), path))


def optout_rows(server: Server, **lists: Any) -> list[str]:
    urls = [server.url(path, host) for host in ("no.test", "sub.no.test", "xno.test") for path in ("/a.jpg", "/b.jpg")]
    return [row["fate"] for row in download(wanted(list(urls)), {**server.options(), "optout": lists})]


def test_opt_out_by_host_url_and_hash(server: Server, tmp_path: Path) -> None:
    out, kept = "download:optout", "kept"
    assert optout_rows(server, entries=["no.test"]) == [out] * 4 + [kept] * 2
    assert optout_rows(server, entries=["*.sub.no.test"]) == [kept, kept, out, out, kept, kept]
    assert optout_rows(server, entries=["HTTP://No.Test:80/a.jpg#x"]) == [out, *[kept] * 5]
    digests = [hashlib.new(name, bytes_for("xno.test/b.jpg{}", 2000)).hexdigest() for name in ("sha256", "md5")]
    for entry in (f"sha256:{digests[0]}", digests[0].upper(), f"md5:{digests[1]}"):
        assert optout_rows(server, entries=[entry]) == [*[kept] * 5, out]
    before = server.count(host="no.test")
    path = write_lines(tmp_path / "list.txt", "# hosts", "", "no.test", f"  {digests[0]}  ")
    packed = tmp_path / "list.txt.gz"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    for name in (path, str(packed)):
        assert optout_rows(server, files=[name]) == [out] * 4 + [kept, out]
    assert server.count(host="no.test") == before, "who opted out is not even asked"


def test_a_changed_list_is_another_config(tmp_path: Path) -> None:
    def key() -> str:
        config = Download.Config.model_validate({"optout": {"files": [str(tmp_path / "list.txt")]}})
        return json.dumps(keyed_config(config), sort_keys=True)

    write_lines(tmp_path / "list.txt", "a.test")
    first = key()
    write_lines(tmp_path / "list.txt", "a.test", "b.test")
    assert key() != first


def test_a_list_with_a_line_that_is_none_of_the_three_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "list.txt", "a.test", "what is this?")
    config = Download.Config.model_validate({"optout": {"files": [path]}, "allow_networks": ["127.0.0.1/32"]})
    with pytest.raises(UserError, match=r"list\.txt, line 2"):
        Download(config).open()
    with pytest.raises(ValueError, match="neither a URL"):
        Download.Config.model_validate({"optout": {"entries": ["what is this?"]}})
    with pytest.raises(ValueError, match="cannot read the opt-out list"):
        Download.Config.model_validate({"optout": {"files": [str(tmp_path / "absent.txt")]}})


def test_entries_are_told_apart_by_their_form() -> None:
    hexed = "ab" * 32
    assert [kind_of(e) for e in ("http://a/", "a.test", "*.a.test", hexed, f"sha256:{hexed}", "ab" * 16)] == [
        "url",
        "host",
        "host",
        "hash",
        "hash",
        "hash",
    ]
    assert normal("http://A.test:80/ä") == "u:http://a.test/%C3%A4"
    assert normal("Bücher.test.") == "h:xn--bcher-kva.test"
    for entry in (f"md5:{hexed}", "a b", "ab" * 17, "http://user@a.test/"):
        with pytest.raises(ValueError, match=r"no URL|neither"):
            normal(entry)
    assert OptOut(["a.test"] * 3).hashes.size == 1


def test_the_user_agent_names_us_and_a_contact(server: Server) -> None:
    (row,) = fetch(server, ["/echo"], contact="https://example.org/crawler")
    headers = json.loads(row["body"])
    assert headers["user-agent"] == f"shardmill/{version('shardmill')} (+https://example.org/crawler)"
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & set(headers)
    for contact in ("someone", "a@b\r\nX: y", "ä@b.test"):
        with pytest.raises(ValueError, match="e-mail address or a URL"):
            Download.Config(contact=contact)
