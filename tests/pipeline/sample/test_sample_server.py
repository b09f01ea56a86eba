"""The sample's server does to a plain client what each truth class says, counts it, and ends with its parent."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import dnslib
import pytest

from pipeline.sample import Sample, nameserver, pages

Truth = list[dict[str, Any]]


def urls(truth: Truth, name: str) -> list[str]:
    return [row["url"] for row in truth if row["truth"] == name]


@contextlib.contextmanager
def asked(served: Sample, url: str, timeout: float = 5, target: str | None = None) -> Iterator[http.client.HTTPResponse]:
    """A request for `url` at the served port, redirects not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", served.ports["http"], timeout=timeout)
    with contextlib.closing(connection):
        path = quote(parts.path, safe="/%()',") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target or path, headers={"Host": parts.netloc})
        yield connection.getresponse()


def get(served: Sample, url: str) -> tuple[int, dict[str, str], bytes]:
    with asked(served, url) as response:
        return response.status, dict(response.getheaders()), response.read()


@pytest.mark.parametrize("name", ["plain", "webp", "avif", "odd_url", "exif_rotated", "same_bytes", "placeholder", "bomb", "html"])
def test_pages_are_served_as_they_were_built(served: Sample, truth: Truth, name: str) -> None:
    built = pages.read(served.folder / "web.parquet")
    for url in urls(truth, name):
        status, headers, body = get(served, url)
        assert (status, body) == (200, built[pages.address(url)].body), url
        assert headers["Content-Type"] == built[pages.address(url)].headers["Content-Type"]


@pytest.mark.parametrize(("name", "status"), [("http_404", 404), ("http_410", 410), ("http_403", 403), ("http_500", 500)])
def test_dead_links_answer_with_their_status(served: Sample, truth: Truth, name: str, status: int) -> None:
    assert {get(served, url)[0] for url in urls(truth, name)} == {status}


def test_busy_once_asks_to_wait_a_second_and_means_it(served: Sample, truth: Truth) -> None:
    url = urls(truth, "busy_once")[0]
    for _ in range(2):
        status, headers, _ = get(served, url)
        assert (status, headers["Retry-After"]) == (429, "1")
    time.sleep(1.05)
    status, _, body = get(served, url)
    assert status == 200
    assert body.startswith(b"\xff\xd8")


def test_busy_stays_busy(served: Sample, truth: Truth) -> None:
    assert [get(served, urls(truth, "busy")[0])[::2] for _ in range(2)] == [(429, b"slow down")] * 2


def test_fails_once_and_then_works(served: Sample, truth: Truth) -> None:
    assert [get(served, urls(truth, "fails_once")[0])[0] for _ in range(3)] == [503, 200, 200]


def test_redirects_lead_to_the_picture(served: Sample, truth: Truth) -> None:
    seen = []
    for url in urls(truth, "redirect"):
        at, hops = url, 0
        while (answer := get(served, at))[0] != 200:
            seen.append(answer[0])
            location = answer[1]["Location"]
            at = location if "://" in location else f"http://{urlsplit(at).netloc}{location}"
            hops += 1
        assert answer[2].startswith(b"\xff\xd8")
        assert 1 <= hops <= 3
    assert set(seen) == {301, 302, 303, 307, 308}


def test_redirect_loops_and_chains_lead_nowhere(served: Sample, truth: Truth) -> None:
    for url in urls(truth, "redirect_loop") + urls(truth, "redirect_chain"):
        at = url
        for _ in range(12):
            status, headers, _ = get(served, at)
            assert status in (301, 302, 308)
            at = headers["Location"]


def test_stall_never_answers(served: Sample, truth: Truth) -> None:
    with pytest.raises(TimeoutError), asked(served, urls(truth, "stall")[0], timeout=0.3):
        pass


def test_drip_gives_a_byte_now_and_then(served: Sample, truth: Truth) -> None:
    with asked(served, urls(truth, "drip")[0]) as response:
        began = time.monotonic()
        assert response.read(3).startswith(b"\xff\xd8")
        assert 0.2 < time.monotonic() - began < 3
        assert response.length is not None
        assert response.length > 1000


def test_endless_and_announced_large_are_large(served: Sample, truth: Truth) -> None:
    with asked(served, urls(truth, "endless")[0]) as response:
        assert response.length is None
        assert len(response.read(3_000_000)) == 3_000_000
    with asked(served, urls(truth, "announced_large")[0]) as response:
        assert response.length == 1 << 40


def test_cut_off_ends_within_the_body(served: Sample, truth: Truth) -> None:
    with asked(served, urls(truth, "cut_off")[0]) as response, pytest.raises(http.client.IncompleteRead):
        response.read()


def test_reset_ends_before_an_answer(served: Sample, truth: Truth) -> None:
    with pytest.raises(http.client.RemoteDisconnected), asked(served, urls(truth, "reset")[0]):
        pass


def test_no_body_is_empty(served: Sample, truth: Truth) -> None:
    assert get(served, urls(truth, "no_body")[0])[::2] == (200, b"")


def test_reserved_rights_stand_in_the_headers(served: Sample, truth: Truth) -> None:
    assert all(get(served, url)[1]["X-Robots-Tag"] for url in urls(truth, "noai"))
    assert {get(served, url)[1]["TDM-Reservation"] for url in urls(truth, "tdm_reserved")} == {"1"}


def test_nobody_listens_at_the_closed_port(served: Sample) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.ports["closed"]), timeout=2)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("https", None),
        ("tls_untrusted", "self-signed|unable to get local issuer"),
        ("tls_expired", "expired"),
        ("tls_other_name", "mismatch"),
    ],
)
def test_certificates_are_sound_or_broken_as_the_class_says(served: Sample, truth: Truth, name: str, fault: str | None) -> None:
    context = ssl.create_default_context(cafile=str(served.ca_file))
    host = urlsplit(urls(truth, name)[0]).netloc
    expected = pytest.raises(ssl.SSLCertVerificationError, match=fault) if fault else contextlib.nullcontext()
    with expected, socket.create_connection(("127.0.0.1", served.ports["https"]), timeout=5) as bare:
        context.wrap_socket(bare, server_hostname=host).close()


def _resolved(served: Sample, name: str, kind: str = "A") -> dnslib.DNSRecord:
    answer = dnslib.DNSRecord.question(name, kind).send("127.0.0.1", served.ports["dns"], timeout=1)
    return dnslib.DNSRecord.parse(answer)


def test_names_fail_as_their_class_says(served: Sample, truth: Truth) -> None:
    hosts = {name: urlsplit(urls(truth, name)[0]).netloc for name in ("dns_missing", "dns_failing", "dns_silent", "private_name")}
    assert _resolved(served, hosts["dns_missing"]).header.rcode == dnslib.RCODE.NXDOMAIN
    assert _resolved(served, hosts["dns_failing"]).header.rcode == dnslib.RCODE.SERVFAIL
    assert str(_resolved(served, hosts["private_name"]).a.rdata) == nameserver.PRIVATE_ADDRESS
    assert _resolved(served, hosts["private_name"], "AAAA").rr == []
    with pytest.raises(TimeoutError):
        _resolved(served, hosts["dns_silent"])
    assert served.counts()["names"][hosts["dns_silent"]] == 1


def test_the_name_server_overhears_nonsense(served: Sample) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in (b"", b"x", bytes(12), b"\x00" * 4 + b"\x00\x01" + b"\x00" * 6 + b"\x3f" + b"a" * 5):
            sender.sendto(packet, ("127.0.0.1", served.ports["dns"]))
    assert str(_resolved(served, "www.anything.test").a.rdata) == "127.0.0.1"


def test_counts_tell_requests_and_pressure(served: Sample, truth: Truth) -> None:
    url = "http://counted.example/never built.jpg"
    workers = [threading.Thread(target=get, args=(served, url)) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts = served.counts()
    assert counts["requests"]["counted.example/never built.jpg"] == 5
    assert counts["hosts"]["counted.example"]["total"] == 5
    assert 1 <= counts["hosts"]["counted.example"]["peak"] <= 5
    assert counts["hosts"]["counted.example"]["per_second"] == 5


def test_peak_counts_requests_under_way_at_once(served: Sample, truth: Truth) -> None:
    url = urls(truth, "stall")[1]
    host = urlsplit(url).netloc
    with contextlib.ExitStack() as open_ones:
        for _ in range(3):
            waiting = open_ones.enter_context(socket.create_connection(("127.0.0.1", served.ports["http"]), timeout=5))
            waiting.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        until = time.monotonic() + 5
        while served.counts()["hosts"].get(host, {}).get("peak", 0) < 3 and time.monotonic() < until:
            time.sleep(0.02)
    assert served.counts()["hosts"][host]["peak"] == 3


def test_garbage_ends_its_connection_alone(served: Sample) -> None:
    with socket.create_connection(("127.0.0.1", served.ports["http"]), timeout=5) as sender:
        sender.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert sender.recv(100) == b""
    assert get(served, "http://img.kittens.example/x")[0] == 404


def test_keep_alive_serves_several_requests(served: Sample, truth: Truth) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.ports["http"], timeout=5)
    with contextlib.closing(connection):
        for url in urls(truth, "plain")[:3]:
            connection.request("GET", urlsplit(url).path, headers={"Host": urlsplit(url).netloc})
            assert connection.getresponse().read().startswith(b"\xff\xd8")


def test_the_server_ends_when_its_input_ends(served: Sample) -> None:
    command = [sys.executable, "-m", "pipeline.sample.server", str(served.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        ready = json.loads(process.stdout.readline())
        assert ready.keys() == {"http", "https", "dns", "closed", "ca_file"}
        with socket.create_connection(("127.0.0.1", ready["http"]), timeout=5):  # an open connection must not hold it up
            process.stdin.close()
            assert process.wait(10) == 0
        assert process.stderr.read() == b""
    assert not Path(ready["ca_file"]).exists()


def test_download_options_are_those_of_the_stage(served: Sample) -> None:
    from stages.download.stage import Download

    config = Download.Config.model_validate(served.download_options)
    config.check_ready()
    assert config.resolve["*.example"] == f"127.0.0.1:{served.ports['http']}"
