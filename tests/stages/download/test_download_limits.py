"""Limits per host, as the server sees them, and the budget and leases that keep them."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import TransientError
from pipeline.frame import apply_stream
from stages.download.limits import BURST_S, CUT_S, HostBudget, Leases
from stages.download.stage import Download
from tests.stages.download.conftest import QUICK, fetch, wanted
from tests.support.server import Server


async def together(server: Server, urls: list[list[str]], budget: HostBudget, **options: Any) -> list[str]:
    """The fates of some lists of URLs, each fetched by a stage of its own, all at once, with one budget."""
    config = Download.Config.model_validate({**QUICK, **server.options(), **options})

    async def lease(worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
        return budget.lease(worker, want, give_back, asyncio.get_running_loop().time())

    async def crawl(these: list[str]) -> list[str]:
        stage = Download(config)
        stage.lease_call = lease
        stage.open()
        try:
            return [fate async for piece in apply_stream(stage, wanted(list(these))) for fate in piece["fate"].to_pylist()]
        finally:
            await stage.aclose()

    return [fate for fates in await asyncio.gather(*map(crawl, urls)) for fate in fates]


def test_concurrency_per_host_holds_over_all_stages_of_a_run(server: Server) -> None:
    urls = [[server.url(f"/slow/0.05/{stage}/{i}", host) for i in range(10) for host in ("c1.test", "c2.test")] for stage in range(4)]
    fates = asyncio.run(together(server, urls, HostBudget(3, None)))
    assert set(fates) == {"kept"}
    for host in ("c1.test", "c2.test"):
        assert server.count(host=host) == 40
        assert server.peak(host) == 3


def test_rate_per_host_holds_in_every_second_over_all_stages_of_a_run(server: Server) -> None:
    urls = [[server.url(f"/r/{stage}/{i}", "rate.test") for i in range(9)] for stage in range(4)]
    began = time.monotonic()
    fates = asyncio.run(together(server, urls, HostBudget(100, 20)))
    seconds = time.monotonic() - began
    assert set(fates) == {"kept"}
    assert server.most_in_a_second("rate.test") <= 20
    assert 36 / 20 - 1 < seconds < 36 / 20 * 2 + 1, "the limit is also made use of"


def test_a_host_at_its_limit_does_not_hold_up_the_others(server: Server) -> None:
    """Hundreds of URLs that wait for one host's turn take no place in a small window."""
    urls = [[*(server.url(f"/slow/0.2/{i}", "crowded.test") for i in range(10)), *(server.url(f"/x/{i}", f"h{i}.test") for i in range(50))]]
    began = time.monotonic()
    fates = asyncio.run(together(server, urls, HostBudget(1, None), window=20))
    seconds = time.monotonic() - began
    quick = [request.at - began for request in server.requests if request.host.startswith("h") and request.path.startswith("/x/")]
    assert set(fates) == {"kept"}
    assert seconds > 1.9
    assert max(quick[-50:]) < 1.0


def test_nor_do_many_more_of_its_urls_than_the_window_has_places(server: Server) -> None:
    """Those that stand behind them in the list are begun while most of them still wait."""
    crowded = [server.url(f"/slow/0.1/{i}", "before.test") for i in range(150)]
    urls = [[*crowded, *(server.url(f"/y/{i}", f"h{i}.test") for i in range(50))]]
    assert set(asyncio.run(together(server, urls, HostBudget(10, None), window=20))) == {"kept"}
    last = max(request.at for request in server.requests if request.path.startswith("/y/"))
    assert sum(request.at < last for request in server.requests if request.host.startswith("before.test")) < 60


def test_hosts_of_their_own_limits(server: Server) -> None:
    options = {
        "per_host": {"concurrency": 2},
        "hosts": {"*.wide.test": {"concurrency": 9, "per_second": None}, "one.wide.test": {"concurrency": 1}},
    }
    budget = Download(Download.Config.model_validate({**server.options(), **options})).budget()
    limits = {host: budget.limits(host) for host in ("a.test", "x.wide.test", "wide.test", "one.wide.test", "xwide.test")}
    assert limits == {"a.test": (2, 10), "x.wide.test": (9, None), "wide.test": (9, None), "one.wide.test": (1, 10), "xwide.test": (2, 10)}


def test_the_port_is_no_part_of_a_host_but_the_name_is(server: Server) -> None:
    """Redirects count too: each hop at the turn of the host it goes to."""
    urls = [[server.url(f"/to?u=http://hop.test:81{n % 3}/slow/0.05/{n}", "from.test") for n in range(9)]]
    options = {"resolve": {"hop.test:810": f"127.0.0.1:{server.port}", "*": f"127.0.0.1:{server.port}"}}
    assert set(asyncio.run(together(server, urls, HostBudget(2, None), **options))) == {"kept"}
    assert server.peak("hop.test") == 2
    assert server.peak("from.test") <= 2


@given(
    st.integers(1, 5),
    st.one_of(st.none(), st.floats(1, 50)),
    st.lists(st.tuples(st.floats(0, 0.3), st.sampled_from("AB"), st.integers(0, 8), st.integers(0, 8)), max_size=60),
)
def test_a_budget_never_grants_more_than_it_may(
    concurrency: int, per_second: float | None, calls: list[tuple[float, str, int, int]]
) -> None:
    """Whatever is asked and given back: concurrency at every moment, and per_second in every second."""
    budget, held, granted, now = HostBudget(concurrency, per_second), {"A": 0, "B": 0}, [], 0.0
    for wait, worker, want, wish in calls:
        now += wait
        back = min(wish, held[worker])
        got = budget.lease(worker, {"h": want} if want else {}, {"h": back} if back else {}, now).get("h", 0)
        held[worker] += got - back
        granted += [now] * got
        assert got <= want
        assert sum(held.values()) <= concurrency
    if per_second is not None:
        assert all(sum(t <= other < t + 1 for other in granted) <= math.ceil(per_second) for t in granted)


def test_permits_of_a_dead_worker_come_back() -> None:
    budget = HostBudget(2, None, ttl_s=60)
    assert budget.lease("dead", {"h": 5}, {}, 0.0) == {"h": 2}
    assert budget.lease("alive", {"h": 1}, {}, 50.0) == {}
    assert budget.lease("alive", {"h": 1}, {}, 66.0) == {"h": 1}
    budget.lease("dead", {}, {"h": 2}, 67.0)  # it was alive after all: what it gives back is no longer its own
    assert budget.lease("alive", {"h": 5}, {}, 68.0) == {"h": 1}


def test_a_worker_that_asks_more_often_leaves_the_others_their_share() -> None:
    budget, now = HostBudget(8, None), 0.0
    held = {"greedy": budget.lease("greedy", {"h": 100}, {}, now)["h"], "late": 0, "later": 0}
    assert held["greedy"] == 8
    for _ in range(40):  # one place comes back each time; the greedy one asks for it at once, the others each fifth time
        now += 0.02
        held["greedy"] -= (back := min(1, held["greedy"]))
        held["greedy"] += budget.lease("greedy", {"h": 100}, {"h": back}, now).get("h", 0)
        for other in ("late", "later") if round(now / 0.02) % 5 == 0 else ():
            held[other] += budget.lease(other, {"h": 100}, {}, now).get("h", 0)
    assert sum(held.values()) == 8
    assert min(held.values()) >= 2
    for other in ("late", "later"):  # who is satisfied, or no longer asks, has no share any more
        budget.lease(other, {}, {"h": held[other]}, now)
    assert budget.lease("greedy", {"h": 100}, {}, now + 2) == {"h": 8 - held["greedy"]}


def served(budget: HostBudget, workers: int, seconds: float, takes: float) -> tuple[list[int], int]:
    """How many requests of one host each worker ends that always has more of them, asking as Leases do; and the most at once."""
    under_way: list[tuple[float, int]] = []
    at, pause, ended = [0.003 * n for n in range(workers)], [0.02] * workers, [0] * workers
    most = 0
    while (now := min(at)) < seconds:
        n = at.index(now)
        back = sum(end <= now for end, owner in under_way if owner == n)
        under_way = [(end, owner) for end, owner in under_way if owner != n or end > now]
        got = budget.lease(f"{n}", {"h": 100}, {"h": back} if back else {}, now).get("h", 0)
        under_way += [(now + takes, n)] * got
        most = max(most, len(under_way))
        ended[n] += back
        pause[n] = 0.02 if got else min(2 * pause[n], BURST_S)
        at[n] = now + pause[n]
    return ended, most


@pytest.mark.parametrize(("concurrency", "workers"), [(1, 2), (1, 16), (2, 3), (4, 3), (8, 5), (8, 16), (10, 6)])
@pytest.mark.parametrize(("per_second", "takes"), [(None, 0.2), (10, 0.05), (1, 0.3)])
def test_no_worker_is_left_without_a_turn_and_few_places_stand_empty(
    concurrency: int, workers: int, per_second: float | None, takes: float
) -> None:
    """Also where a host's places cannot be shared out evenly: who gives one back asks for it in the same breath."""
    seconds = 60.0 if per_second is None or per_second > 1 else 600.0
    ended, most = served(HostBudget(concurrency, per_second), workers, seconds, takes)
    assert most <= concurrency
    assert min(ended) > 0
    alone, _ = served(HostBudget(concurrency, per_second), 1, seconds, takes)
    assert min(ended) >= sum(ended) / workers / 10
    assert sum(ended) >= 0.85 * alone[0]


def test_silence_holds_for_all_workers_and_hosts_are_forgotten() -> None:
    budget = HostBudget(8, None)
    budget.lease("a", {"h": -30}, {}, 0.0)
    assert budget.lease("b", {"h": 1, "other": 1}, {}, 29.0) == {"other": 1}
    assert budget.lease("b", {"h": 1}, {"other": 1}, 30.0) == {"h": 1}
    budget.lease("b", {}, {"h": 1}, 40.0)
    budget.lease("b", {}, {}, 50.0)
    assert budget.hosts == {}


def test_leases_give_everything_back_and_report_a_lost_budget() -> None:
    async def run() -> None:
        budget, broken = HostBudget(2, None), False

        async def call(worker: str, want: dict[str, int], give_back: dict[str, int]) -> dict[str, int]:
            if broken:
                raise ConnectionError("the actor died")
            return budget.lease(worker, want, give_back, asyncio.get_running_loop().time())

        leases = Leases(call, "w", window=10, interval_s=0.001)
        waiting = [asyncio.create_task(leases.take("h")) for _ in range(6)]
        await asyncio.sleep(0.05)
        assert sum(task.done() for task in waiting) == 2
        for task in waiting[2:4]:
            task.cancel()
        leases.give("h")
        leases.give("h")
        await asyncio.sleep(0.05)
        assert [task.done() for task in waiting] == [True] * 6
        leases.give("h")
        leases.give("h", cut=True)
        await asyncio.sleep(CUT_S / 2)
        assert budget.hosts["h"].total == 1, "a cut request is given back a little later"
        await asyncio.sleep(CUT_S)
        assert (budget.hosts["h"].total, leases.free, leases.held) == (0, 10, 0)
        broken = True
        with pytest.raises(TransientError, match="the actor died"):
            await leases.take("h")
        broken = False
        await leases.take("h")  # and it goes on when the other side is back
        await leases.aclose()

    asyncio.run(run())


def test_a_stage_by_itself_keeps_a_budget_of_its_own(server: Server) -> None:
    rows = fetch(server, [f"/slow/0.02/own/{i}" for i in range(8)], "own.test", per_host={"concurrency": 2, "per_second": None})
    assert {row["fate"] for row in rows} == {"kept"}
    assert server.peak("own.test") == 2
