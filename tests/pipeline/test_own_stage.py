"""Stages of a user's own in whole runs: the documented example, hostile ones, and one that makes several rows of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import verify
from pipeline.errors import TransientError
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import caption, fates, ledger, picture, serve_pictures, write_config, write_list
from tests.support.server import Server

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
HOSTILE = "tests.support.hostile:Hostile"
SENTENCES = "tests.support.hostile:Sentences"


def stages(server: Server, own: dict[str, dict[str, object]], after: str) -> dict[str, object]:
    """The config's stages with `own` ones put behind the stage `after`."""
    download = {**server.options(), "timeout_s": 5, "retries": 0}
    given: dict[str, object] = {}
    for name, options in {
        "ingest": {},
        "captions": {"min_chars": 0},
        "download": download,
        "images": {"size": 64},
        "selection": [],
    }.items():
        given[name] = options
        given |= own if name == after else {}
    return given


def test_the_documented_example_judges_and_its_change_fetches_nothing(
    tmp_path: Path, ray_session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 30)
        with_stage = stages(server, {"brightness:Brightness": {}}, "images")
        with_stage["selection"] = [{"name": "bright", "keep": "brightness >= 125"}]
        config = write_config(tmp_path / "test.yaml", server, listed, stages=with_stage)
        result = run(config, show=Quiet())
        dim = result.report["dropped"]["selection:bright"]
        assert 0 < dim < 30
        requests = server.count()
        with_stage["brightness:Brightness"] = {"min_brightness": 125}
        result = run(write_config(tmp_path / "test.yaml", server, listed, stages=with_stage), show=Quiet())
        assert result.report["dropped"] == {"brightness:dark": dim}
        assert server.count() == requests
    sys.modules.pop("brightness", None)


def test_stages_that_kill_their_process_cost_one_row_each(tmp_path: Path, ray_session: object) -> None:
    texts = [caption(n) for n in range(120)]
    texts[17], texts[63], texts[99] = "abort-now", "eat-memory", "raise-now"
    with Server() as server:
        for n in range(120):
            server.files[f"/pictures/{n}.jpg"] = picture(n)
        listed = write_list(tmp_path / "list.parquet", [server.url(f"/pictures/{n}.jpg") for n in range(120)], texts)
        given = stages(server, {HOSTILE: {}}, "captions")
        config = write_config(tmp_path / "test.yaml", server, listed, stages=given, run__part_rows=40)
        run(config, show=Quiet())
    found = {
        line["row"]: (line["fate"], line["detail"]) for line in ledger(tmp_path / "runs" / "test").to_pylist() if line["fate"] != "kept"
    }
    assert {row: fate for row, (fate, _) in found.items()} == {17: "hostile:crashed", 63: "hostile:out_of_memory", 99: "hostile:error"}
    assert "told to" in found[99][1]


def test_a_stage_that_never_returns_ends_the_run_and_is_named(tmp_path: Path, ray_session: object) -> None:
    with Server() as server:
        listed = write_list(tmp_path / "list.parquet", [server.url("/pictures/1.jpg")] * 3, ["one", "sleep-for-ever", "three"])
        given = stages(server, {HOSTILE: {"nap_s": 60}}, "captions")
        config = write_config(tmp_path / "test.yaml", server, listed, stages=given, run__stall_s=4)
        with pytest.raises(TransientError, match=r"stage hostile made no progress for 4 s on .*repeat the command"):
            run(config, show=Quiet())


def test_one_row_becomes_several_and_both_levels_balance(tmp_path: Path, ray_session: object) -> None:
    texts = [f"{caption(n)}. {caption(n + 500)}. {caption(n + 900)}." if n % 3 else "..." for n in range(30)]
    with Server() as server:
        for n in range(30):
            server.files[f"/pictures/{n}.jpg"] = picture(n)
        listed = write_list(tmp_path / "list.parquet", [server.url(f"/pictures/{n}.jpg") for n in range(30)], texts)
        given = stages(server, {SENTENCES: {}}, "ingest")
        config = write_config(tmp_path / "test.yaml", server, listed, stages=given, run__part_rows=8)
        result = run(config, show=Quiet())
        requests = server.count()
        assert requests == 20, "a picture is fetched once for all sentences of its row"
        assert result.balances["rows"].rows_in == 30
        assert result.balances["rows"].dropped == {"sentences:no_text": 10}
        assert result.balances["children"].rows_in == 60
        folder = tmp_path / "runs" / "test"
        assert fates(folder) == {"kept": 60}
        lines = ledger(folder).to_pylist()
        assert {line["parent"] for line in lines} == {n for n in range(30) if n % 3}
        assert len({line["uid"] for line in lines}) == 60
        assert verify.run(str(folder))[1] == []
