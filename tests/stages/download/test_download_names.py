"""Names: the cache for success and failure, slow name servers, `resolve`."""

from __future__ import annotations

import asyncio
import time

import pytest

from stages.download.guard import Guard
from stages.download.reasons import FetchError
from stages.download.resolver import YOUNG_LOOKUPS, Places, Resolver, place
from tests.stages.download.conftest import download, wanted
from tests.support.dns import NO_ADDRESS, NXDOMAIN, SERVFAIL, SILENT, Dns, Late
from tests.support.server import Server

LOOPBACK = Guard(["127.0.0.0/8"])


async def found(resolver: Resolver, name: str, since: float = float("-inf")) -> object:
    """The addresses of a name, or the reason why there are none."""
    try:
        return [address for address, _ in await resolver.find(name, 80, since)]
    except FetchError as err:
        return err.reason


def test_success_and_failure_are_remembered_and_errors_asked_anew_by_another_try() -> None:
    async def run() -> None:
        with Dns({"a.dns": "127.0.0.1", "broken.dns": SERVFAIL, "mute.dns": SILENT, "bare.dns": NO_ADDRESS}) as dns:
            resolver = Resolver(LOOPBACK, Places({}), [dns.address], timeout_s=0.3)
            resolver.ipv6 = False
            names = ["a.dns", "gone.dns", "bare.dns", "broken.dns", "mute.dns"]
            expected = [["127.0.0.1"], "dns_nxdomain", "dns_nxdomain", "dns_error", "dns_timeout"]
            assert await asyncio.gather(*(found(resolver, name) for name in names)) == expected
            asked = dict(dns.asked)
            assert [await found(resolver, name) for name in names] == expected
            assert dict(dns.asked) == asked, "all of it was remembered"
            assert [await found(resolver, name, since=time.monotonic()) for name in names] == expected
            grown = {name for name in asked if dns.asked[name] > asked[name]}
            assert grown == {"broken.dns", "mute.dns"}, "NXDOMAIN and NODATA are answers, a time-out is none"
            await resolver.close()

    asyncio.run(run())


def test_a_name_is_asked_once_for_all_who_wait_for_it() -> None:
    async def run() -> None:
        with Dns({"a.dns": Late(0.1, "127.0.0.1")}) as dns:
            resolver = Resolver(LOOPBACK, Places({}), [dns.address])
            waiting = [asyncio.create_task(found(resolver, "a.dns")) for _ in range(50)]
            await asyncio.sleep(0.02)
            waiting[0].cancel()  # who asked first leaves; the others get their answer
            assert await asyncio.gather(*waiting[1:]) == [["127.0.0.1"]] * 49
            assert dns.asked["a.dns"] == 1
            await resolver.close()

    asyncio.run(run())


def test_slow_names_do_not_hold_up_the_others() -> None:
    """More mute names than there may be young lookups, and then well ones."""

    async def run() -> float:
        with Dns(lambda name: SILENT if name.startswith("mute") else "127.0.0.1") as dns:
            resolver = Resolver(LOOPBACK, Places({}), [dns.address], timeout_s=3)
            mute = [asyncio.create_task(found(resolver, f"mute{i}.dns")) for i in range(YOUNG_LOOKUPS + 50)]
            await asyncio.sleep(0)
            began = time.monotonic()
            assert await asyncio.gather(*(found(resolver, f"well{i}.dns") for i in range(100))) == [["127.0.0.1"]] * 100
            seconds = time.monotonic() - began
            for task in mute:
                task.cancel()
            await resolver.close()
            return seconds

    assert asyncio.run(run()) < 2


def test_a_slow_name_does_not_hold_up_other_rows(server: Server) -> None:
    with Dns(lambda name: Late(1.0, "127.0.0.1") if name == "slow.dns" else "127.0.0.1") as dns:
        urls = [f"http://{'slow' if i == 0 else f'n{i}'}.dns:{server.port}/named/{i}" for i in range(30)]
        began = time.monotonic()
        rows = download(wanted(list(urls)), {"nameservers": [dns.address], "allow_networks": ["127.0.0.1/32"], "window": 16})
    assert {row["fate"] for row in rows} == {"kept"}
    arrived = [request.at - began for request in server.requests if request.path.startswith("/named/")]
    assert max(sorted(arrived)[:-1]) < 0.9 < max(arrived)


def test_resolve_takes_the_most_exact_entry() -> None:
    places = Places(
        {"*": "127.0.0.1", "*.b.test": "127.0.0.2:81", "x.b.test": "127.0.0.3", "x.b.test:8080": "[::1]:82", "A.test": "127.0.0.4"}
    )
    assert places.find("any.test", 80) == ("127.0.0.1", 80)
    assert places.find("b.test", 80) == ("127.0.0.1", 80)
    assert places.find("y.x.b.test", 80) == ("127.0.0.2", 81)
    assert places.find("x.b.test", 443) == ("127.0.0.3", 443)
    assert places.find("x.b.test", 8080) == ("::1", 82)
    assert places.find("a.test", 80) == ("127.0.0.4", 80)
    assert Places({"a.test": "127.0.0.1"}).find("b.test", 80) is None
    for text in ("localhost", "127.0.0.1:0", "127.0.0.1:99999", "300.0.0.1", "[::1"):
        with pytest.raises(ValueError, match=r"."):
            place(text)


def test_names_in_resolve_are_never_asked_of_a_name_server(server: Server) -> None:
    with Dns({}) as dns:
        rows = download(
            wanted(["http://a.test/ok", "http://localhost/x"]), {**server.options(), "nameservers": [dns.address], "retries": 0}
        )
        assert [row["fate"] for row in rows] == ["kept", "kept"]
        (row,) = download(
            wanted([f"http://sub.localhost:{server.port}/ok"]), {"nameservers": [dns.address], "allow_networks": ["127.0.0.1/32"]}
        )
        assert row["fate"] == "kept"
        assert not dns.asked


def test_international_names_are_asked_as_they_stand_in_dns(server: Server) -> None:
    with Dns({"xn--bcher-kva.dns": "127.0.0.1", NXDOMAIN: NXDOMAIN}) as dns:
        (row,) = download(
            wanted([f"http://BÜCHER.dns:{server.port}/ok"]), {"nameservers": [dns.address], "allow_networks": ["127.0.0.1/32"]}
        )
    assert row["fate"] == "kept"
    assert row["final_url"] == f"http://xn--bcher-kva.dns:{server.port}/ok"
