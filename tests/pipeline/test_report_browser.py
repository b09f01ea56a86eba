"""The report's page as a person uses it, in a real headless Chromium: `make browser`. Skipped where there is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import compare
from tests.support.server import Server

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH: make browser installs Debian's")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a file in a window of a width and colour scheme; whatever the page says, asks for or raises fails the test."""
    faults: list[str] = []
    contexts = []

    def opened(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def keep_picture(page: Any, name: str) -> None:
    """Leaves a picture of the whole page where SHARDMILL_SCREENSHOTS names a folder."""
    if folder := os.environ.get("SHARDMILL_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def accessibility(page: Any) -> list[str]:
    """What axe-core finds fault with, by the rules of WCAG 2.1 A and AA and its best practices."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing: make browser")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert found["passes"], "axe did look"
    return [f"{one['id']} ({one['help']}): {[node['target'] for node in one['nodes']][:5]}" for one in found["violations"]]


@pytest.mark.ray
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window_and_nothing_runs_that_should_not(shown: tuple[Path, Server, Path], visit: Any, width: int) -> None:
    for scheme in ("light", "dark"):
        page = visit(shown[0] / "report" / "index.html", width, scheme)
        for details in page.query_selector_all("details"):
            details.evaluate("one => one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("[...document.querySelectorAll('.chart canvas')].every(one => one.width > 0)")
        assert page.locator(".chart canvas").count() == page.locator(".chart").count()
        keep_picture(page, f"report-{width}-{scheme}")


@pytest.mark.ray
def test_a_bar_and_a_key_open_the_rows_of_a_fate(shown: tuple[Path, Server, Path], visit: Any) -> None:
    page = visit(shown[0] / "report" / "index.html")
    told = json.loads((shown[0] / "report" / "report.json").read_text())
    assert page.locator("details[open]").count() == 0
    chart = page.locator("#chart-funnel")
    box = chart.bounding_box()
    for at in (0, len(told["funnel"]) - 1):
        top = 8 + (box["height"] - 36) * (at + 0.5) / len(told["funnel"])
        chart.click(position={"x": 400, "y": top})
        opened = page.locator(f"#fate-{at}")
        assert opened.get_attribute("open") is not None
        assert opened.locator("li.row").count() == min(10, told["funnel"][at]["rows"])
        assert opened.locator("li.row").first.is_visible()
    page.locator("#fate-1 summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#fate-1").get_attribute("open") is not None
    kept = page.locator(f"#fate-{len(told['funnel']) - 1}")
    assert kept.locator("img").first.evaluate("one => one.naturalWidth") > 0


@pytest.mark.ray
def test_the_slider_says_what_the_report_says(shown: tuple[Path, Server, Path], visit: Any) -> None:
    page = visit(shown[0] / "report" / "index.html")
    told = json.loads((shown[0] / "report" / "report.json").read_text())["what_if"]
    assert page.locator(".slider").count() == len(told)
    for at, one in enumerate(told):
        box = page.locator(".slider").nth(at)
        slider = box.locator("input")
        for place in (0, len(one["thresholds"]) // 2, len(one["thresholds"]) - 1):
            slider.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')) }", place)
            assert box.locator(".threshold").inner_text() == one["thresholds"][place]
            assert box.locator(".would").inner_text() == f"{one['kept'][place]:,}"
            assert box.locator(".command").inner_text() == one["command"].replace("{}", one["thresholds"][place])
            scores = [float(text) for text in box.locator(".stay figure").evaluate_all("all => all.map(one => one.dataset.score)")]
            gone = [float(text) for text in box.locator(".go figure").evaluate_all("all => all.map(one => one.dataset.score)")]
            bound = float(np.float32(one["thresholds"][place]))
            assert all(score <= bound if one["sign"] == "<=" else score >= bound for score in scores)
            assert not any(score <= bound if one["sign"] == "<=" else score >= bound for score in gone)
            assert scores or gone
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert box.locator(".threshold").inner_text() == one["thresholds"][-2]


@pytest.mark.ray
def test_the_line_of_a_slider_stands_at_its_threshold(shown: tuple[Path, Server, Path], visit: Any) -> None:
    """The library rounds a line's place to two digits unless it is told otherwise; scores differ by less."""
    page = visit(shown[0] / "report" / "index.html")
    told = json.loads((shown[0] / "report" / "report.json").read_text())["what_if"]
    drawn = """(at) => { const found = shardmill.charts.find((one) => one.place.id === "chart-what-if-" + at).chart;
        const lines = found.getZr().storage.getDisplayList().filter((one) => one.type === "ec-line" || one.type === "line");
        return lines.map((one) => one.shape.x1); }"""
    wanted = """([at, text]) => shardmill.charts.find((one) => one.place.id === "chart-what-if-" + at).chart.convertToPixel(
        { xAxisIndex: 0 }, Number(text))"""
    for at, one in enumerate(told):
        for place in (1, len(one["thresholds"]) - 2):
            page.locator(".slider").nth(at).locator("input").evaluate(
                "(one, value) => { one.value = value; one.dispatchEvent(new Event('input')) }", place
            )
            pixel = page.evaluate(wanted, [at, one["thresholds"][place]])
            assert min(abs(x - pixel) for x in page.evaluate(drawn, at)) < 1, (one["column"], one["thresholds"][place])


@pytest.mark.ray
def test_what_would_stay_and_go_is_what_is_counted(shown: tuple[Path, Server, Path], visit: Any) -> None:
    """Where all rows pass, none would go, though a score of 32 bits is not the decimal that it is shown as."""
    page = visit(shown[0] / "report" / "index.html")
    told = json.loads((shown[0] / "report" / "report.json").read_text())["what_if"]
    seen = 0
    for at, one in enumerate(told):
        box = page.locator(".slider").nth(at)
        for place, kept in enumerate(one["kept"]):
            if kept == one["kept_without"]:
                box.locator("input").evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')) }", place)
                assert box.locator(".go figure").count() == 0, (one["column"], one["thresholds"][place])
                seen += 1
    assert seen


@pytest.mark.ray
def test_a_page_is_printed_in_light_colours(shown: tuple[Path, Server, Path], visit: Any) -> None:
    page = visit(shown[0] / "report" / "index.html", scheme="dark")
    ink = "shardmill.charts.map((one) => one.chart.getOption().xAxis[0].axisLabel.color)"
    dark = set(page.evaluate(ink))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert set(page.evaluate(ink)) == {"#5b636b"} != dark
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert set(page.evaluate(ink)) == dark
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 32, 36)"


@pytest.mark.ray
def test_an_unsafe_picture_is_blurred_until_it_is_clicked(shown: tuple[Path, Server, Path], visit: Any) -> None:
    page = visit(shown[0] / "report" / "index.html")
    for details in page.query_selector_all("details"):
        details.evaluate("one => one.open = true")
    hidden = page.locator("details[open] .unsafe").first
    blur = "one => getComputedStyle(one.querySelector('img')).filter"
    assert hidden.evaluate(blur) == "blur(14px)"
    hidden.click()
    assert hidden.evaluate(blur) == "none"


@pytest.mark.ray
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(shown: tuple[Path, Server, Path], visit: Any, scheme: str) -> None:
    page = visit(shown[0] / "report" / "index.html", scheme=scheme)
    for details in page.query_selector_all("details"):
        details.evaluate("one => one.open = true")
    assert accessibility(page) == []


@pytest.mark.ray
def test_a_comparison_fits_its_window_and_axe_finds_no_fault(shown: tuple[Path, Server, Path], visit: Any, tmp_path: Path) -> None:
    shutil.copytree(shown[0], tmp_path / "test")
    compare.show(str(shown[0]), str(tmp_path / "test"))
    (path,) = (tmp_path / "test" / "report").glob("compare-*.html")
    for width, scheme in zip(WIDTHS, ("light", "dark"), strict=True):
        page = visit(path, width, scheme)
        assert page.locator(".chart canvas").count() == page.locator(".chart").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert accessibility(page) == []
        keep_picture(page, f"compare-{width}-{scheme}")
