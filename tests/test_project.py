"""The project itself: light imports, one place for each module, sizes, and pins that serve every extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(path for package in ("pipeline", "stages") for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("heavy", ["torch", "cv2", "ray"])
def test_importing_every_submodule_imports_nothing_heavy(heavy: str) -> None:
    names = [dotted(path) for path in MODULES]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\nassert {heavy!r} not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr


def test_every_module_of_the_runner_stands_on_a_floor() -> None:
    floors = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "floors")
    placed = set(re.findall(r"pipeline\.\w+", " ".join(floors["layers"])))
    found = {".".join(dotted(path).split(".")[:2]) for path in MODULES if path.is_relative_to(ROOT / "pipeline")} - {"pipeline"}
    assert found == placed


def test_the_packages_are_typed_and_every_module_says_what_it_is_for() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.strip() == "" or text.lstrip().startswith('"""'), f"{path} has no docstring"
        assert text.count("\n") <= 400, f"{path} is too long to be one thing"


def test_every_requirement_is_pinned_once_and_by_number_alone() -> None:
    """Plain == pins without a local version (+cpu) serve a CPU and a CUDA machine; no pin names a package of CUDA's."""
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    assert not [name for name in pins if re.match(r"nvidia|cuda|triton", name)]
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    names = {re.split(r"[\[<>=!~ ;]", need)[0].lower().replace("_", "-") for need in wanted}
    names -= {project["name"]}  # extras of ours that hold others
    assert names <= set(pins), f"not pinned: {names - set(pins)}"


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Addresses of package registries and absolute paths of a home belong into the user's own settings."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile("|".join(["py" + r"pi\.org", "python" + "hosted", r"download\.py" + "torch", "/ro" + "ot/", "/ho" + "me/"]))
    texts = {
        name: (ROOT / name).read_bytes().decode("utf-8", "replace")
        for name in listed.stdout.split("\n")
        if name and (ROOT / name).is_file()
    }
    assert [name for name, text in texts.items() if pattern.search(text)] == []


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_names_the_extras_that_it_needs(config: Path) -> None:
    """`# extras: clip s3`, by which make installs what `make shards CONFIG=` needs and no more."""
    text = config.read_text(encoding="utf-8")
    named = re.findall(r"^# extras: *(.*)$", text, re.MULTILINE)
    assert len(named) == 1, f"{config} should name its extras once, in a line `# extras: ...` (which may be empty)"
    extras = set(named[0].split())
    assert extras <= set(PYPROJECT["project"]["optional-dependencies"])
    raw = yaml.safe_load(text)
    judge = raw["stages"].get("scores")
    assert not judge or ("scorer" if judge["model"] == "offline-scorer" else "clip") in extras
    assert str(raw["input"]["path"]).startswith("sample://") == ("sample" in extras)


def make(*args: str) -> str:
    """What make would run, without running it."""
    return subprocess.run(["make", "--dry-run", *args], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def test_make_lists_its_targets() -> None:
    out = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    listed = set(re.findall(r"^  make (\S+)", out, re.MULTILINE))
    assert {"help", "setup", "test", "test-all", "lint", "shards", "plan", "report", "bench", "clean"} <= listed
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split())


def test_make_takes_a_preset_or_a_path_and_its_extras(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("# extras: clip s3\n")
    assert "venv.sh clip s3 \n" in make("shards", f"CONFIG={mine}")
    assert f"shardmill run {mine}" in make("shards", f"CONFIG={mine}")
    assert "shardmill run configs/laion_subset.yaml --set run.seed=1 --set a.b=c" in make("shards", "SET=run.seed=1 a.b=c")
    assert "shardmill eval configs/laion_subset.yaml --set run.root=x" in make("pretrain", "SET=run.root=x")
    assert "shardmill report runs/cc12m" in make("report", "CONFIG=cc12m")
