"""Which failures are tried again, how often, how long after, and what a server's Retry-After changes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download.reasons import REASONS, RETRIED, FetchError
from stages.download.retry import MAX_DELAY_S, REST_S, SAME, Breaker, Patience, retry_after
from tests.stages.download.conftest import download, fetch, wanted
from tests.support.dns import SERVFAIL, Dns, Late
from tests.support.server import Server, closed_port


@pytest.mark.parametrize("status", [429, 503, 500, 502, 408, 425])
def test_a_failure_that_passes_is_tried_until_it_has(server: Server, status: int) -> None:
    path = f"/busy/2/{status}"
    (row,) = fetch(server, [f"{path}?status={status}"], "busy.test", retries=2)
    assert row["fate"] == "kept"
    assert server.count(path, "busy.test") == 3


@pytest.mark.parametrize(("path", "tries"), [("/status/500", 3), ("/status/404", 1), ("/status/403", 1), ("/bad-gzip", 1), ("/short", 3)])
def test_how_often_is_tried(server: Server, path: str, tries: int) -> None:
    fetch(server, [path], f"n{tries}.test", retries=2)
    assert server.count(path, f"n{tries}.test") == tries


def test_a_time_out_is_tried_once_more_at_most(server: Server) -> None:
    (row,) = fetch(server, ["/hang"], "late.test", retries=5, timeout_s=0.2)
    assert row["fate"] == "download:timeout"
    assert server.count("/hang", "late.test") == 2


def test_retries_wait_longer_each_time(server: Server) -> None:
    fetch(server, ["/busy/3/backoff"], "wait.test", retries=3, backoff_s=0.1)
    times = [request.at for request in server.requests if request.host == "wait.test"]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) == 3
    for gap, base in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert 0.5 * base <= gap < 1.5 * base + 0.3


def test_retry_after_is_waited_for_by_all_requests_to_the_host(server: Server) -> None:
    rows = fetch(server, ["/busy/1/asked?status=429&after=1"], "asked.test", retries=1)
    first, second = (request.at for request in server.requests if request.host == "asked.test")
    assert rows[0]["fate"] == "kept"
    assert second - first >= 1.0


def test_a_host_that_asks_for_too_long_is_not_asked_again(server: Server) -> None:
    began = time.monotonic()
    (row,) = fetch(server, ["/busy/1/long?status=503&after=3600"], "long.test", retries=3, retry_after_max_s=1)
    assert (row["fate"], row["http_status"]) == ("download:http_503", 503)
    assert server.count(host="long.test") == 1
    assert time.monotonic() - began < 1


def test_another_try_asks_the_name_server_again(server: Server) -> None:
    answers = iter([SERVFAIL, SERVFAIL])
    with Dns(lambda name: next(answers, "127.0.0.1")) as dns:
        options = {"nameservers": [dns.address], "allow_networks": ["127.0.0.1/32"], "retries": 2, "backoff_s": 0.05}
        rows = download(wanted([f"http://again.dns:{server.port}/ok"]), options)
        assert rows[0]["fate"] == "kept", rows[0]["detail"]


def test_the_clock_of_a_request_does_not_run_while_it_waits_for_its_turn(server: Server) -> None:
    """Six requests of 0.2 s at one host, one at a time, each with a deadline of 0.6 s."""
    rows = fetch(
        server,
        [f"/slow/0.2/{i}" for i in range(6)],
        "queue.test",
        timeout_s=0.6,
        retries=0,
        per_host={"concurrency": 1, "per_second": None},
    )
    assert {row["fate"] for row in rows} == {"kept"}
    assert max(row["latency_ms"] for row in rows) < 600


def test_a_kept_connection_that_was_closed_costs_no_try(server: Server) -> None:
    """The server closes a connection that it seemed to keep, just as the next request comes."""
    limits = {"concurrency": 1, "per_second": None}
    rows = fetch(server, ["/one-answer/1", "/one-answer/2"], "kept.test", retries=0, per_host=limits)
    assert {row["fate"] for row in rows} == {"kept"}
    assert [request.again for request in server.requests if request.host == "kept.test"] == [False, True, False]


def test_a_host_that_refuses_again_and_again_is_no_longer_asked(server: Server) -> None:
    paths = [f"/status/429/{i}" for i in range(20)]
    rows = fetch(server, paths, "full.test", retries=0, per_host={"concurrency": 1, "per_second": None})
    assert {(row["fate"], row["http_status"], row["detail"]) for row in rows} == {("download:http_429", 429, "HTTP 429")}
    assert server.count(host="full.test") == SAME


def test_breaker_lets_one_request_find_out_whether_it_is_still_so() -> None:
    breaker, refused = Breaker(), FetchError("connect_refused", "Connection refused")
    for at in range(SAME):
        breaker.check("h", at)
        breaker.failed("h", refused, at)
    with pytest.raises(FetchError, match="connect_refused"):
        breaker.check("h", SAME)
    breaker.check("other", SAME)
    later = SAME + REST_S + 1
    breaker.check("h", later)
    breaker.failed("h", refused, later)
    with pytest.raises(FetchError, match="connect_refused"):
        breaker.check("h", later + 1)
    breaker.answered("h")
    breaker.check("h", later + 2)


def test_what_a_path_does_is_not_held_against_its_host(server: Server) -> None:
    rows = fetch(server, [*(f"/status/404/{i}" for i in range(30)), "/ok"], "mixed.test", per_host={"concurrency": 1, "per_second": None})
    assert rows[-1]["fate"] == "kept"
    assert server.count(host="mixed.test") == 31


def test_a_closed_port_is_asked_no_more_than_needed() -> None:
    port = closed_port()
    options = {"resolve": {"*": f"127.0.0.1:{port}"}, "allow_networks": ["127.0.0.1/32"], "retries": 2}
    rows = download(wanted([f"http://down.test/{i}" for i in range(30)]), options)
    assert {row["fate"] for row in rows} == {"download:connect_refused"}


@given(st.sampled_from(sorted(REASONS)), st.integers(1, 12), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 100)))
def test_patience(reason: str, tries: int, spread: float, asked: float | None) -> None:
    delay = Patience(retries=5, backoff_s=0.5, retry_after_max_s=60).delay(FetchError(reason, wait_s=asked), tries, spread)
    most = 1 if reason == "timeout" else 5
    if reason not in RETRIED or tries > most or (asked or 0) > 60:
        assert delay is None
    else:
        assert delay is not None
        assert delay >= (asked or 0)
        assert delay >= min(0.25 * 2 ** (tries - 1), MAX_DELAY_S / 2)
        assert delay <= max(asked or 0, 1.5 * MAX_DELAY_S)


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert retry_after("120", now) == 120
    assert retry_after(format_datetime(datetime(2026, 1, 1, 0, 2, tzinfo=UTC), usegmt=True), now) == 120
    assert retry_after("Wed, 01 Jan 2020 00:00:00 GMT", now) == 0
    for nothing in (None, "", "soon", "-5", "1e9", "9" * 30, "Wed, 99 Foo 2020"):
        assert retry_after(nothing, now) is None


def test_a_late_answer_of_the_name_server_is_used_by_the_next_try(server: Server) -> None:
    with Dns({"late.dns": Late(0.6, "127.0.0.1")}) as dns:
        options = {"nameservers": [dns.address], "allow_networks": ["127.0.0.1/32"], "dns_timeout_s": 0.4, "retries": 0}
        (row,) = download(wanted([f"http://late.dns:{server.port}/ok"]), options)
        assert row["fate"] == "download:dns_timeout"
        (row,) = download(wanted([f"http://late.dns:{server.port}/ok"]), {**options, "dns_timeout_s": 3})
        assert row["fate"] == "kept"
