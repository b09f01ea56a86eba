"""The command line: each command is one call with the right arguments, and each outcome is one exit code."""

from __future__ import annotations

import importlib
import inspect
import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.errors import ContractError, TransientError, UserError

OK, CUT_SHORT = SimpleNamespace(ok=True), SimpleNamespace(ok=False)

CALLS = [
    (["plan", "a.yaml"], "plan.show", (Path("a.yaml"), [])),
    (["plan", "a.yaml", "--set", "run.seed=1", "--set", "b=c d"], "plan.show", (Path("a.yaml"), ["run.seed=1", "b=c d"])),
    (["run", "a.yaml", "--set", "run.seed=1"], "runs.run", (Path("a.yaml"), ["run.seed=1"])),
    (["report", "runs/a"], "report.show", ("runs/a",)),
    (["explain", "s3://bucket/runs/a", "http://x/1.jpg"], "explain.show", ("s3://bucket/runs/a", "http://x/1.jpg")),
    (["retry", "runs/a", "--reason", "a:b", "--reason", "c:d"], "retry.run", ("runs/a", ["a:b", "c:d"], False)),
    (["retry", "runs/a", "--reason", "a:b", "--rebuild"], "retry.run", ("runs/a", ["a:b"], True)),
    (["verify", "runs/a"], "verify.show", ("runs/a",)),
    (["stages"], "reference.show", (None,)),
    (["stages", "images"], "reference.show", ("images",)),
    (["submit", "a.yaml", "--address", "http://h:1"], "cluster.submit", (Path("a.yaml"), [], "http://h:1")),
    (["clean", "runs/a"], "clean.run", ("runs/a",)),
]


def answer(monkeypatch: pytest.MonkeyPatch, function: str, outcome: Any) -> list[tuple[Any, ...]]:
    """Puts a fake in the function's place that notes its arguments, if the real one would take them, and answers `outcome`."""
    module, name = function.split(".")
    real = getattr(importlib.import_module(f"pipeline.{module}"), name)
    calls: list[tuple[Any, ...]] = []

    def fake(*args: Any, **kwargs: Any) -> Any:
        calls.append(inspect.signature(real).bind(*args, **kwargs).args)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(f"pipeline.{function}", fake)
    return calls


@pytest.mark.parametrize(("line", "function", "arguments"), CALLS, ids=[" ".join(line) for line, _, _ in CALLS])
def test_a_command_is_one_call(monkeypatch: pytest.MonkeyPatch, line: list[str], function: str, arguments: tuple[Any, ...]) -> None:
    calls = answer(monkeypatch, function, OK)
    result = CliRunner().invoke(cli.app, line)
    assert (result.exit_code, result.output) == (cli.DONE, "")
    assert calls == [arguments]


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (OK, 0, ""),
        (CUT_SHORT, 3, ""),
        (UserError("a.yaml: run.sead: unknown key\na.yaml: x: y"), 2, "error: a.yaml: run.sead: unknown key\nerror: a.yaml: x: y\n"),
        (TransientError("pool part 7: no space left"), 3, "error: pool part 7: no space left\n"),
        (KeyboardInterrupt(), 130, "error: stopped; what is committed stays, and the same command goes on\n"),
    ],
    ids=["done", "unfinished", "user", "transient", "ctrl-c"],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, outcome: Any, code: int, message: str) -> None:
    answer(monkeypatch, "runs.run", outcome)
    result = CliRunner().invoke(cli.app, ["run", "a.yaml"])
    assert (result.exit_code, result.stderr) == (code, message)


@pytest.mark.parametrize("bug", [ContractError("half lost rows"), ZeroDivisionError("ours")])
def test_a_bug_leaves_with_its_trace(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    answer(monkeypatch, "runs.run", bug)
    result = CliRunner().invoke(cli.app, ["run", "a.yaml"])
    assert (result.exit_code, result.exception) == (cli.BUG, bug)


@pytest.mark.parametrize(("sound", "code"), [(True, 0), (False, 1)])
def test_verify_fails_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch, sound: bool, code: int) -> None:
    answer(monkeypatch, "verify.show", sound)
    assert CliRunner().invoke(cli.app, ["verify", "runs/a"]).exit_code == code


@pytest.mark.parametrize("line", [["run"], ["runn", "a"], ["retry", "runs/a"], ["plan", "a", "--sett", "b=c"]])
def test_a_wrong_command_line_is_told_in_place(line: list[str]) -> None:
    result = CliRunner().invoke(cli.app, line)
    assert result.exit_code == cli.MEND
    assert "Usage: " in result.stderr


def test_every_command_and_option_says_what_it_is_for() -> None:
    from typer.main import get_command

    for name, command in vars(get_command(cli.app))["commands"].items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", f"{name} {parameter.name}"


def test_schema_is_printed_as_it_stands_in_configs() -> None:
    printed = CliRunner().invoke(cli.app, ["schema"]).output
    assert json.loads(printed) == json.loads((Path(__file__).parents[2] / "configs" / "schema.json").read_text())


def test_help_is_cheap() -> None:
    """Within 0.5 s of CPU, by the installed command; the least of three, since this machine may be busy."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).with_name("shardmill"), "--help"], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, pipeline.cli; print(sorted({'torch', 'ray', 'cv2', 'pyarrow', 'numpy', 'pydantic', 'duckdb'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert out.stdout == "[]\n"


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    out = subprocess.run([sys.executable, "-m", "pipeline.cli", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"shardmill {version('shardmill')}\n"
