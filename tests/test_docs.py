"""What the docs say is true: their Python runs, their links lead somewhere, the commands and files that they name exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline import cli
from pipeline.sample import classes
from tests.support.corpus import picture

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
FILE = re.compile(r"\b(?:tests|docs|configs|pipeline|stages|benchmarks|scripts)/[\w./-]+\.(?:py|md|yaml|sh|json)\b")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_of(page: str) -> list[str]:
    text = (ROOT / "docs" / "guide" / page).read_text(encoding="utf-8")
    return [code for language, code in FENCE.findall(text) if language == "python"]


def code_of(page: Path) -> str:
    """Everything on a page that stands in a fence or between backticks."""
    return "\n".join(IN_CODE.findall(page.read_text(encoding="utf-8")))


def execute(code: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """Its names, and what it printed."""
    names: dict[str, Any] = {}
    exec(compile(code, "docs", "exec"), names)  # noqa: S102 (our own docs)
    return names, capsys.readouterr().out


def test_the_page_on_python_has_a_run_a_stage_and_a_dataset() -> None:
    assert [re.findall(r"pipeline\.\w+", code)[0] for code in python_of("python.md")] == ["pipeline.run", "pipeline.use", "pipeline.use"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_from_python(tmp_path: Path) -> None:
    """In a process and a folder of its own, as a user's script."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    code = python_of("python.md")[0] + "\nassert result.ok\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "runs" / "laion_subset" / "shards" / "manifest.json").read_text())
    assert f" {manifest['samples']} " in done.stdout


def test_a_stage_on_a_table_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = execute(python_of("python.md")[1], capsys)
    table = names["clean"](names["pa"].table({"source_caption": ["A caf&eacute; in the rain", "Ein Haus am See"]}))
    assert table.select(["caption", "fate"]).to_pylist() == [
        {"caption": "A café in the rain", "fate": "kept"},
        {"caption": "Ein Haus am See", "fate": "captions:language"},
    ]


@pytest.mark.ray
def test_a_stage_on_a_dataset_from_python(capsys: pytest.CaptureFixture[str], ray_session: Any) -> None:
    _, printed = execute(python_of("python.md")[2], capsys)
    assert "kept" in printed
    assert "captions:empty" in printed


def test_the_example_of_an_own_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(picture(0))
    try:
        for code in python_of("own-stages.md"):
            names, printed = execute(code, capsys)
            assert "kept" in printed
            assert "bright" in names
    finally:
        sys.modules.pop("brightness", None)


def test_the_table_of_truth_classes_is_that_of_the_sample() -> None:
    assert classes.table() in (ROOT / "docs" / "guide" / "sample.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{relative(page)} links to {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{relative(page)} links to {path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as the fragments that lead to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_targets_and_files_exist(page: Path) -> None:
    code = code_of(page)
    commands = vars(typer.main.get_command(cli.app))["commands"]
    assert set(re.findall(r"(?:^|[`\s])shardmill ([a-z][a-z_-]+)\b", code)) <= set(commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|[`\s])make ([a-z-]+)", code)) <= targets
    named = [name for name in FILE.findall(page.read_text(encoding="utf-8")) if "NAME" not in name]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_arithmetic_of_a_cluster_is_that_of_the_results() -> None:
    """The table that docs/performance.md shows, and its price, from benchmarks/results.json as it lies here."""
    told = subprocess.run([sys.executable, ROOT / "benchmarks" / "arithmetic.py"], capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = (re.split(r" *\| *", line.strip("| ")) for line in page.splitlines() if line.startswith("| "))
    shown = {cells[0]: cells[1:] for cells in lines}
    for line in told.splitlines():
        step, *figures = re.split(r" *\| *", line.strip("| "))
        if line.startswith("| ") and step in ("captions", "dedup of captions", "download, images, pool, shards"):
            assert shown[step][:2] == figures[:2], step
    hours, price = re.findall(r"a billion links: ([\d,]+) core-hours = ([\d,]+) at", told)[0]
    assert f"A billion links: {hours} core-hours ({price} at 0.04 an hour)" in page
