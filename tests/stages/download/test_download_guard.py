"""Whatever a URL, a name or a redirect leads to: nothing but public or allowed addresses is ever connected to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from stages.download import resolver
from stages.download.guard import Guard, special
from stages.download.stage import Download
from tests.stages.download.conftest import ENGINES, QUICK, download, wanted
from tests.support.dns import Dns
from tests.support.server import Server

# One address of every family that is not for the public, in IANA's order.
SPECIAL = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.2", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8",
    "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::808:808",
    "64:ff9b:1::7f00:1", "100::1", "100:0:0:1::1", "2001::1", "2001:0:53aa:64c::1", "2001:2::1", "2001:db8::1", "2001:20::1",
    "2002:7f00:1::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip


def written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture(scope="module")
def names() -> Iterator[Dns]:
    """Names `sN.dns` at the Nth special address; `half.dns` at a forbidden and an allowed one."""
    table: dict[str, Any] = {f"s{i}.dns": address for i, address in enumerate(SPECIAL)}
    with Dns({**table, "half.dns": ["10.0.0.1", "127.0.0.1"], "here.dns": "127.0.0.1"}) as dns:
        yield dns


def guarded(server: Server, names: Dns, **options: Any) -> dict[str, Any]:
    """Options that allow the server's own port, and nothing else that is special."""
    return {
        "resolve": {"a.test": f"127.0.0.1:{server.port}"},
        "nameservers": [names.address],
        "allow_networks": [f"127.0.0.1/32:{server.port}"],
        "contact": "crawl@example.org",
        "connect_timeout_s": 1,
        "retries": 0,
        **options,
    }


def fates(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["url"]: row["fate"] for row in rows}


def test_no_special_address_is_reached_in_whatever_way_it_is_named(server: Server, names: Dns) -> None:
    """By itself, by DNS, by a redirect to itself and by one to its name."""
    direct = [f"http://{written(address)}/x" for address in SPECIAL]
    named = [f"http://s{i}.dns:8080/x" for i, address in enumerate(SPECIAL) if "." in address and ":" not in address]
    urls = [*direct, *named, *(f"http://a.test/to?u={url}" for url in (*direct, *named))]
    found = fates(download(wanted(urls), guarded(server, names)))
    assert {url for url, fate in found.items() if fate != "download:forbidden_address"} == set()
    assert len(found) == 2 * (len(SPECIAL) + 23)


def test_names_that_have_ipv6_alone_are_judged_too(names: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_has_ipv6", lambda: True)
    urls = [f"http://s{i}.dns:8080/x" for i, address in enumerate(SPECIAL) if ":" in address]
    options = {"nameservers": [names.address], "contact": "crawl@example.org", "retries": 0}
    assert set(fates(download(wanted(urls), options)).values()) == {"download:forbidden_address"}


def test_of_a_names_addresses_the_allowed_ones_alone_are_tried(server: Server, names: Dns) -> None:
    rows = download(wanted([f"http://half.dns:{server.port}/ok"]), guarded(server, names))
    assert rows[0]["fate"] == "kept"


def test_another_port_of_an_allowed_address_is_refused(server: Server, names: Dns) -> None:
    with Server() as other:
        urls = [
            f"http://here.dns:{other.port}/x",
            f"http://127.0.0.1:{other.port}/x",
            f"http://a.test/to?u=http://2130706433:{other.port}/x",
        ]
        rows = download(wanted(urls), guarded(server, names))
        assert {row["fate"] for row in rows} == {"download:forbidden_address"}
        assert other.requests == []


@pytest.mark.parametrize("at", ["10.0.0.1", "[::1]:80", "127.0.0.2"])
def test_resolve_cannot_open_what_allow_networks_does_not(server: Server, names: Dns, at: str) -> None:
    rows = download(wanted(["http://b.test/x"]), guarded(server, names, resolve={"b.test": at}))
    assert rows[0]["fate"] == "download:forbidden_address"


@dataclass
class Turns:
    """A name server's function: the first answers in turn, then the last one for ever."""

    answers: list[str]
    asked: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def test_a_name_that_changes_its_address_after_it_was_judged_is_judged_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: allowed when asked first, forbidden when the connection is made. The cache, which would hide it, forgets at once."""
    monkeypatch.setattr(resolver, "MIN_TTL_S", 0)
    turns = Turns(["127.0.0.1", "127.0.0.2"])
    before = server.count()
    with Dns(turns, ttl=0) as dns:
        rows = download(wanted([f"http://turning.dns:{server.port}/ok"]), guarded(server, dns))
    assert len(turns.asked) == 2, "the name was asked once before the connection and once for it"
    assert rows[0]["fate"] == "download:forbidden_address"
    assert server.count() == before


def test_a_remembered_name_keeps_its_address(server: Server) -> None:
    """The other defence: within its time to live a name means what it meant when it was judged."""
    turns = Turns(["127.0.0.1", "10.0.0.1"])
    with Dns(turns) as dns:
        rows = download(wanted([f"http://turning.dns:{server.port}/size/{n}" for n in range(100, 105)]), guarded(server, dns))
    assert {row["fate"] for row in rows} == {"kept"}
    assert len(turns.asked) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_redirects_are_guarded_in_both_engines(server: Server, names: Dns, engine: str) -> None:
    with Server() as other:
        inside = [f"http://127.0.0.1:{other.port}/x", f"http://[::1]:{other.port}/x", f"http://[::ffff:127.0.0.1]:{other.port}/x"]
        inside += [f"http://localhost:{other.port}/x", f"http://0x7f.1:{other.port}/x", "http://169.254.169.254/latest/meta-data"]
        urls = [*inside, *(f"http://a.test/to?u={url}" for url in inside), "http://a.test/ok"]
        found = fates(download(wanted(urls), guarded(server, names, engine=engine)))
        assert other.requests == []
    assert found.pop("http://a.test/ok") == "kept"
    assert set(found.values()) == {"download:forbidden_address"}


@pytest.mark.parametrize("engine", ENGINES)
def test_proxies_of_the_environment_are_not_used(server: Server, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        rows = download(wanted(["http://a.test/ok"]), {**server.options(), "engine": engine})
        assert rows[0]["fate"] == "kept"
        assert proxy.requests == []


def test_without_a_contact_the_public_web_is_refused() -> None:
    for options in ({}, {"allow_networks": ["127.0.0.1/32", "10.0.0.0/8"]}):
        with pytest.raises(UserError, match=r"stages\.download\.contact"):
            Download(Download.Config.model_validate({**QUICK, **options})).open()
    rows = download(wanted(["http://8.8.8.8/x"]), {"allow_networks": ["127.0.0.1/32"], "retries": 0})
    assert rows[0]["fate"] == "download:forbidden_address"
    assert "without a contact" in rows[0]["detail"]


@given(st.ip_addresses(v=6))
def test_ipv6_is_never_laxer_than_the_standard_library(address: ipaddress.IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.ipv4_mapped or address.sixtofour or address.teredo:
        assert special(str(address)) is not None


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "::{}", "::ffff:0:{}"]))
def test_no_ipv4_address_passes_in_the_clothes_of_ipv6(address: ipaddress.IPv4Address, form: str) -> None:
    assert Guard().refusal(form.format(address), 80) is not None
