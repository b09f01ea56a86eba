"""Whole runs whose scores keep embeddings: heads and evaluation sets look at them, rules go by what they find, and pages tell of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import browse, explain, report, verify, views
from pipeline.runs import reopen
from pipeline.stage import Column, Stage
from tests.pipeline.test_report_odd import listed, stages
from tests.support import serial
from tests.support.corpus import picture, write_config
from tests.support.server import Server

ROWS, WIDTH = 24, 8


class Embedded(Stage):
    """An embedding that follows from the picture's hash, and a score."""

    name = "embedded"
    version = 1
    reads = {"phash": Column(pa.string(), "of the picture")}
    adds = {
        "similarity": Column(pa.float32(), "0 to 1"),
        "image_embedding": Column(pa.list_(pa.float16()), "of length 1"),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        made = [embedding(text) for text in table["phash"].to_pylist()]
        table = table.append_column("similarity", pa.array([float(one[0] ** 2) for one in made], pa.float32()))
        return table.append_column("image_embedding", pa.array(made, pa.list_(pa.float16())))


def embedding(phash: str) -> np.ndarray:
    made = np.random.default_rng(int(phash, 16)).normal(size=WIDTH)
    return (made / np.linalg.norm(made)).astype(np.float16)


def test_heads_and_evaluation_sets_look_at_embeddings_and_rules_go_by_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra clip or scorer")
    weight = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
    safetensors.save_file({"0.weight": weight}, tmp_path / "head.safetensors")
    with Server() as server:
        for n in range(ROWS):
            server.files[f"/{n}.jpg"] = picture(n)
        lists = listed(server, tmp_path)
        given: dict[str, Any] = {name: options for name, options in stages(server, []).items() if not name.endswith("Judged")}
        rules = [
            {"name": "charm", "keep": "charm >= 0.4"},
            {"name": "evaluation", "keep": "eval_match IS NULL"},
            {"name": "long", "keep": "len(image_embedding) = 8"},
        ]
        judges = {
            f"{__name__}:Embedded": {},
            "heads": {"heads": {"charm": {"file": str(tmp_path / "head.safetensors"), "output": "sigmoid"}}},
            "decontaminate": {"sets": {"eval": str(tmp_path / "eval.parquet")}, "max_distance": 0, "min_similarity": 0.99},
        }
        last = {name: given.pop(name) for name in ("image_dedup", "selection")}
        # Embeddings of two of the list's pictures under hashes of none: they are found by the embedding alone.
        hashes = serial_hashes(tmp_path / "first", server, lists, given | last)
        evaluated = pa.table({
            "key": ["a", "b"],
            "phash": ["0123456789abcdef", "fedcba9876543210"],
            "image_embedding": pa.array([embedding(hashes[3]), embedding(hashes[4])], pa.list_(pa.float16())),
        })  # fmt: skip
        pq.write_table(evaluated, tmp_path / "eval.parquet")
        serial.run(write_config(tmp_path / "test.yaml", server, lists, stages={**given, **judges, **last, "selection": rules}))
    run = str(tmp_path / "runs" / "test")
    charm = [1 / (1 + np.exp(-float(embedding(text).astype(np.float32) @ weight[0]))) for text in hashes]
    stories = [explain.stories(run, f"row={n}")[0] for n in range(ROWS)]
    np.testing.assert_allclose([story["charm"] for story in stories], charm, rtol=1e-5)
    assert [story["eval_match"] for story in stories] == [None] * 3 + ["eval/a", "eval/b"] + [None] * (ROWS - 5)
    wanted = ["selection:charm" if c < 0.4 else "selection:evaluation" if n in (3, 4) else "kept" for n, c in enumerate(charm)]
    assert [story["fate"] for story in stories] == wanted
    assert len({*wanted}) == 3
    told = json.loads((tmp_path / "runs" / "test" / "report" / "report.json").read_text())
    assert [one["column"] for one in told["what_if"]] == ["similarity", "charm"]
    assert told["decontamination"]["sets"][0]["rows"] == 2
    assert verify.run(run)[1] == []
    report.show(run)
    known = reopen(run)
    with views.connect(known.run.store) as con:
        rows = browse.Rows(known, con)
        assert rows.find({"column": "charm", "least": "0.4"})["total"] == sum(c >= 0.4 for c in charm)
        assert dict(rows.story(3))["columns"].count("eval_match eval/a") == 1


def serial_hashes(folder: Path, server: Server, lists: Path, given: dict[str, Any]) -> list[str]:
    """The perceptual hash of each row, by a run without judges."""
    folder.mkdir()
    serial.run(write_config(folder / "test.yaml", server, lists, stages=given))
    return [explain.stories(str(folder / "runs" / "test"), f"row={n}")[0]["phash"] for n in range(ROWS)]


def test_a_rule_can_be_checked_where_nothing_was_scored(tmp_path: Path) -> None:
    """No file of scores, whose empty table would hold floats of 16 bits."""
    with Server() as server:
        lists = listed(server, tmp_path)  # the server has none of its pictures
        given = {name: options for name, options in stages(server, []).items() if not name.endswith("Judged")}
        last = {name: given.pop(name) for name in ("image_dedup", "selection")}
        given |= {f"{__name__}:Embedded": {}, **last, "selection": [{"name": "similarity", "keep": "similarity >= 0.4"}]}
        result = serial.run(write_config(tmp_path / "test.yaml", server, lists, stages=given))
    assert result.report["kept"] == 0
