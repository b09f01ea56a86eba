"""URLs as strangers write them, and which addresses the guard lets through."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download.guard import Guard, allowed_network, special
from stages.download.reasons import FetchError
from stages.download.urls import follow, parse


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("http://a.test/x.jpg?w=1&h=2", "http://a.test/x.jpg?w=1&h=2"),
        ("  HTTP://A.Test:80/x#part\n", "http://a.test/x"),
        ("http://a.test/a%2Fb?s=%20+%7e&sig=a/b+c==", "http://a.test/a%2Fb?s=%20+%7e&sig=a/b+c=="),  # signed URLs: nothing is decoded
        ("http://a.test/ä ü|<x>", "http://a.test/%C3%A4%20%C3%BC%7C%3Cx%3E"),
        ("http://a.test/100%.jpg", "http://a.test/100%.jpg"),
        ("http://bücher.test/", "http://xn--bcher-kva.test/"),
        ("http://a\t.te\nst/x", "http://a.test/x"),
        ("http:\\\\a.test\\x", "http://a.test/x"),
        ("http://a.test?q", "http://a.test/?q"),
        ("https://a.test:8443/x", "https://a.test:8443/x"),
        ("http://a_b.c-d.test./x", "http://a_b.c-d.test./x"),
    ],
)
def test_what_is_asked_for(text: str, asked: str) -> None:
    assert str(parse(text).url) == asked


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid_url"),
        (None, "invalid_url"),
        ("a.test/x", "invalid_url"),
        ("//a.test/x", "invalid_url"),
        ("http:a.test", "invalid_url"),
        ("http:///x", "invalid_url"),
        ("http://a..test/", "invalid_url"),
        ("http://a b.test/", "invalid_url"),
        ("http://127.0.0.%31/", "invalid_url"),
        ("http://a.test:99999/", "invalid_url"),
        ("http://[::1/", "invalid_url"),
        ("http://1.2.3.4.5/", "invalid_url"),
        ("http://a.test/" + "x" * 9000, "invalid_url"),
        ("http://" + "a" * 64 + ".test/", "invalid_url"),
        ("http://a.test\r\nX: y/", "invalid_url"),
        ("ftp://a.test/x", "bad_scheme"),
        ("file:///etc/passwd", "bad_scheme"),
        ("data:image/png;base64,AAAA", "bad_scheme"),
        ("http://user:secret@a.test/", "credentials"),
        ("http://a.test:25/", "forbidden_port"),
        ("http://[fe80::1%25eth0]/", "forbidden_address"),
    ],
)
def test_what_is_refused_unasked(text: str | None, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse(text)
    assert caught.value.reason == reason
    assert "secret" not in str(caught.value.detail)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
    ],
)
def test_every_way_of_writing_loopback_is_loopback(host: str) -> None:
    assert parse(f"http://{host}/").address == "127.0.0.1"


def test_a_redirect_is_read_like_a_url_and_refused_by_its_reason() -> None:
    base = parse("http://a.test/x/y?z")
    assert str(follow(base, "../b").url) == "http://a.test/b"
    assert str(follow(base, "//b.test/c").url) == "http://b.test/c"
    assert str(follow(base, "?q").url) == "http://a.test/x/y?q"
    assert str(follow(base, "https://b.test/ä").url) == "https://b.test/%C3%A4"
    cases = {
        None: "bad_redirect",
        " ": "bad_redirect",
        "http://[": "bad_redirect",
        "http://a b/": "bad_redirect",
        "gopher://x/": "bad_scheme",
    }
    for location, reason in cases.items():
        with pytest.raises(FetchError) as caught:
            follow(base, location)
        assert caught.value.reason == reason


@given(st.text(max_size=60))
def test_any_text_is_a_checked_target_or_a_reason(text: str) -> None:
    """The one parser: what it lets through is printable, http(s), without user, and of the host that it names."""
    refused: set[str] = set()
    for given_text in (text, f"http://{text}", f"http://a.test/{text}"):
        try:
            target = parse(given_text)
        except FetchError as err:
            refused.add(err.reason)
            continue
        shown = str(target.url)
        assert shown.isascii()
        assert shown.isprintable()
        assert target.url.scheme in ("http", "https")
        assert target.url.user is None
        assert (target.url.raw_host or "").removesuffix(".") == target.host
        assert parse(shown) == target
    assert refused <= {"invalid_url", "bad_scheme", "credentials", "forbidden_port", "forbidden_address"}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.1", "private"),
        ("172.31.0.1", "private"),
        ("192.168.1.1", "private"),
        ("127.8.8.8", "loopback"),
        ("169.254.169.254", "link-local"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("0.0.0.0", "this network"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("168.63.129.16", "a cloud's metadata service"),
        ("::1", "loopback"),
        ("::", "unspecified"),
        ("fe80::1", "link-local"),
        ("fd00:ec2::254", "private"),
        ("ff02::1", "multicast"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::7f00:1", "not global unicast"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2001:0:53aa:64c::1", "Teredo"),
        ("8.8.8.8", None),
        ("2606:4700:4700::1111", None),
    ],
)
def test_special_addresses_are_named(address: str, name: str | None) -> None:
    assert special(address) == name


@given(st.ip_addresses(v=4))
def test_the_guard_is_never_laxer_than_the_standard_library(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert special(str(address)) is not None


def test_allowed_networks_open_what_they_name_and_no_more() -> None:
    guard = Guard(["127.0.0.1/32:8080", "10.1.0.0/16", "[::1/128]:9", "fd00::/8"])
    assert guard.refusal("127.0.0.1", 8080) is None
    assert guard.refusal("127.0.0.1", 8081) == "127.0.0.1 is not public (loopback)"
    assert guard.refusal("127.0.0.2", 8080) is not None
    assert guard.refusal("10.1.2.3", 80) is None
    assert guard.refusal("10.2.2.3", 80) is not None
    assert guard.refusal("::1", 9) is None
    assert guard.refusal("fd12::1", 80) is None
    assert guard.refusal("8.8.8.8", 80) is None
    for text in ("localhost", "127.0.0.1/33", "127.0.0.1:99999", "10.0.0.1/8"):
        with pytest.raises(ValueError, match=r"."):
            allowed_network(text)


def test_without_a_contact_nothing_but_the_allowed_is_reached() -> None:
    guard = Guard(["127.0.0.1/32"], public=False)
    assert guard.refusal("127.0.0.1", 80) is None
    assert "without a contact" in str(guard.refusal("8.8.8.8", 80))


def test_a_socket_is_made_for_a_checked_address_only() -> None:
    guard = Guard(["127.0.0.1/32"])
    guard.socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))).close()
    with pytest.raises(FetchError, match="forbidden_address"):
        guard.socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("10.0.0.1", 80)))
