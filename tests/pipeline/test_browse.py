"""Looking through rows: what is found is what the ledger and the columns say, and nobody but this machine is answered."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from pipeline import browse, explain
from pipeline.errors import UserError
from tests.pipeline.test_report_browser import accessibility, browser, keep_picture  # noqa: F401 - browser is a fixture
from tests.support.corpus import command, fates, ledger
from tests.support.reported import ROWS
from tests.support.server import Server

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def address(shown: tuple[Path, Server, Path]) -> Iterator[str]:
    """Of the server over the run."""
    told: list[Any] = []
    there = threading.Event()

    def ready(*found: Any) -> None:
        told.extend(found)
        there.set()

    thread = threading.Thread(target=browse.serve, args=(str(shown[0]), 0, ready))
    thread.start()
    assert there.wait(60)
    yield told[0]
    told[1].shutdown()
    thread.join(20)
    assert not thread.is_alive()


def get(address: str, path: str, named: str | None = None, **asked: Any) -> tuple[int, str, bytes]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=20)
    connection.request("GET", f"{path}?{urlencode(asked)}" if asked else path, headers={"Host": named} if named else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, str(answer.headers["Content-Type"]), body


def rows(address: str, **asked: Any) -> dict[str, Any]:
    status, _, body = get(address, "/rows", **asked)
    assert status == 200, body
    out: dict[str, Any] = json.loads(body)
    return out


def test_filters_orders_and_pages(address: str, shown: tuple[Path, Server, Path]) -> None:
    for fate, count in fates(shown[0]).items():
        found = rows(address, fate=fate)
        assert found["total"] == count
        assert {row["fate"] for row in found["rows"]} == {fate}
    pages = [rows(address, sort="similarity", down=1, page=n)["rows"] for n in range(3)]
    everything = [row for page in pages for row in page]
    assert sorted(row["row"] for row in everything) == list(range(ROWS))
    scores = [row["similarity"] for row in everything if row["similarity"] is not None]
    assert scores == sorted(scores, reverse=True)
    assert all(row["similarity"] is None for row in everything[len(scores) :]), "rows without a score come last"
    between = rows(address, column="similarity", least=0.1, most="0.3")
    assert between["total"] == sum(0.1 <= score <= 0.3 for score in scores) > 0
    assert rows(address, text="WINDOW.HACKED")["total"] == sum("window.hacked" in f"{r['source_caption']} {r['url']}" for r in everything)
    assert rows(address, host="HOST1.test")["total"] == sum(row["host"] == "host1.test" for row in everything)


@pytest.mark.parametrize("sort", ["row", "similarity", "url", "flat", "original_width"])
@pytest.mark.parametrize("down", ["", "1"])
def test_turning_pages_gives_every_row_once_there_and_back(address: str, sort: str, down: str) -> None:
    """As one order over all rows, nulls last; some columns have few values, some many nulls."""
    for asked in ({"sort": sort, "down": down}, {"sort": sort, "down": down, "text": "e"}):
        pages = [rows(address, **asked)]
        while pages[-1]["rows"]:
            pages.append(rows(address, **asked, after=pages[-1]["rows"][-1]["row"]))
        there = [row for page in pages for row in page["rows"]]
        assert len(there) == len({row["row"] for row in there}) == pages[0]["total"] > browse.PAGE
        by_offset = [rows(address, **asked, page=n)["rows"] for n in range(len(pages) - 1)]
        assert [page["rows"] for page in pages[:-1]] == by_offset
        assert rows(address, **asked, before=pages[1]["rows"][0]["row"])["rows"] == pages[0]["rows"]
        assert rows(address, **asked, before=there[-1]["row"])["rows"] == there[-1 - browse.PAGE : -1]


def test_images_and_stories(address: str, shown: tuple[Path, Server, Path]) -> None:
    kept = rows(address, fate="kept")["rows"][0]["row"]
    status, kind, body = get(address, "/image", row=kept)
    assert (status, kind, body[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")
    lost = rows(address, fate="download:http_404")["rows"][0]["row"]
    assert get(address, "/image", row=lost)[0] == 404
    story = dict(json.loads(get(address, "/story", row=lost)[2]))
    assert story["fate"].startswith("download:http_404: HTTP 404")
    assert dict(json.loads(get(address, "/story", row=kept)[2]))["sample"].startswith("key ")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/rows", {"sort": 'row"; DROP TABLE browsed; --'}),
        ("/rows", {"column": "url", "least": "1"}),
        ("/rows", {"column": "similarity", "least": "1 OR 1=1"}),
        ("/rows", {"sort": "nothing"}),
        ("/image", {"row": "1 OR 1"}),
    ],
)
def test_what_is_no_column_and_no_number_is_refused(address: str, path: str, asked: dict[str, str]) -> None:
    assert get(address, path, **asked)[0] == 400
    assert rows(address)["total"] == ROWS


def test_only_this_machine_is_answered(address: str) -> None:
    assert urlsplit(address).hostname == "127.0.0.1"
    port = urlsplit(address).port
    assert get(address, "/", named=f"localhost:{port}")[0] == 200
    for host in (f"evil.example:{port}", "evil.example", "", f"127.0.0.1.evil.example:{port}"):
        assert get(address, "/rows", named=host or " ")[0] == 403
    assert get(address, "/../../etc/passwd")[0] == 404
    assert browse.answer(None, "http://[/rows")[0] == 404, "no address at all"  # type: ignore[arg-type]
    assert rows(address, page=10**17) == rows(address, page=(ROWS - 1) // browse.PAGE), "there is nothing behind the last page"


def test_a_story_is_found_by_host_and_by_words(shown: tuple[Path, Server, Path]) -> None:
    listed = ledger(shown[0]).to_pylist()
    wanted = [row["row"] for row in listed if "//host2.test/" in row["url"]][: explain.MOST]
    assert [story["row"] for story in explain.stories(str(shown[0]), "host=Host2.test")] == wanted
    found = explain.stories(str(shown[0]), "text=ONLOAD=window.hacked")
    assert [story["row"] for story in found] == [3, 7]
    with pytest.raises(UserError, match="no row with 'text=nothing like it'"):
        explain.stories(str(shown[0]), "text=nothing like it")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(address: str, browser: Any, width: int) -> None:  # noqa: F811
    expect = pytest.importorskip("playwright.sync_api").expect
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, faults = context.new_page(), list[str]()
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.locator("#rows li").first.wait_for()
    assert page.locator("#rows li").count() == browse.PAGE
    page.locator("[name=fate]").select_option("kept")
    expect(page.locator("#found")).to_have_text(re.compile("^56 rows"))
    page.locator("[name=text]").fill("window.hacked")
    page.locator("[name=fate]").select_option("")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("#found")).to_have_text(re.compile("^2[0-9] rows"))
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    keep_picture(page, f"browse-{width}")
    assert accessibility(page) == []
    page.get_by_role("button", name="Story").first.click()
    assert "uid" in page.locator("#story dd").first.inner_text()
    context.close()
    assert faults == []


def test_back_forward_and_reload_lead_to_what_was_asked(address: str, browser: Any) -> None:  # noqa: F811
    expect = pytest.importorskip("playwright.sync_api").expect
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    place, found = page.locator("#place"), page.locator("#found")
    expect(place).to_have_text("page 1 of 3")
    page.get_by_role("button", name="After").click()
    expect(place).to_have_text("page 2 of 3")
    second = page.locator("#rows li dd").first.inner_text()
    page.locator("[name=fate]").select_option("kept")
    expect(found).to_have_text(re.compile("^56 rows"))
    page.go_back()
    expect(found).to_have_text(re.compile(f"^{ROWS} rows"))
    expect(place).to_have_text("page 2 of 3")
    expect(page.locator("#rows li dd").first).to_have_text(second)
    assert page.locator("[name=fate]").input_value() == ""
    page.go_forward()
    expect(found).to_have_text(re.compile("^56 rows"))
    page.reload()
    expect(found).to_have_text(re.compile("^56 rows"))
    assert page.locator("[name=fate]").input_value() == "kept"
    page.locator("[name=column]").select_option("concepts")
    page.locator("[name=is]").fill("violin")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(found).to_have_text(re.compile(r"^\d rows"))
    assert page.locator("#rows li", has_text="concepts").count() == page.locator("#rows li").count()
    page.locator("[name=least]").fill("x")
    page.locator("[name=column]").select_option("similarity")
    expect(found).to_have_text("not a number: 'x'")
    page.goto(f"{address}?sort=nothing&down=1&page=x")
    expect(found).to_have_text(re.compile("no column|not a number"))
    context.close()


def test_a_port_that_is_taken_is_told_before_the_rows_are_read(
    address: str, shown: tuple[Path, Server, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "Rows", lambda *_: pytest.fail("rows were read"))
    with pytest.raises(UserError, match="cannot listen on 127"):
        browse.serve(str(shown[0]), int(urlsplit(address).port or 0))


def test_what_goes_wrong_is_told_to_the_page_and_a_page_that_was_left_to_nobody(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = urlsplit(address)
    for _ in range(20):
        left = socket.create_connection((str(place.hostname), place.port), timeout=20)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        left.sendall(b"GET /rows HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        left.close()
    assert rows(address)["total"] == ROWS
    assert capsys.readouterr().err == ""

    def refuse(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(browse.Rows, "find", refuse)
    assert get(address, "/rows")[::2] == (500, b"the disk is gone")
    said, until = "", time.monotonic() + 20  # by the server's thread, after its answer
    while "the disk is gone" not in said and time.monotonic() < until:
        said += capsys.readouterr().err
        time.sleep(0.05)
    assert "the disk is gone" in said


def test_ctrl_c_is_the_end_that_was_told_and_no_fault(shown: tuple[Path, Server, Path]) -> None:
    arguments, environment = command("browse", str(shown[0])), {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, start_new_session=True, env=environment, **pipes) as going:
        assert going.stdout
        assert "Ctrl-C ends it" in going.stdout.readline()
        os.killpg(going.pid, signal.SIGINT)
        said = going.communicate(timeout=60)
    assert (going.returncode, said) == (0, ("", ""))
