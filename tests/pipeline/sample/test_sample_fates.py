"""What the stages make of each truth class, stage by stage and without Ray; the whole run is checked by tests/acceptance/truth.py."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import catalog, config, frame
from pipeline.sample import Sample
from pipeline.stage import Stage

Truth = list[dict[str, Any]]
PRESET = config.load("configs/laion_subset.yaml")


def stage(name: str, **more: Any) -> Stage:
    return catalog.entry(name, {**(PRESET.stages[name] or {}), **more}).stage


def differing(truth: Truth, stage_name: str, out: pa.Table) -> list[tuple[Any, ...]]:
    """Rows whose fate after this stage is not the expected one, as far as this stage decides it."""
    found = zip(truth, out["fate"].to_pylist(), out["detail"].to_pylist(), strict=True)
    wrong = []
    for row, fate, detail in found:
        mine = [one for one in row["expected"].split("|") if one.startswith(f"{stage_name}:")] or ["kept"]
        if fate not in mine:
            wrong.append((row["truth"], row["url"], row["caption"][:80], fate, detail))
    return wrong


@pytest.fixture(scope="module")
def captioned(served: Sample) -> pa.Table:
    texts = pq.read_table(served.table)["TEXT"]
    return frame.apply(stage("captions"), frame.framed(pa.table({"source_caption": texts.fill_null("")})))


def test_captions_end_as_their_class_says(captioned: pa.Table, truth: Truth) -> None:
    assert differing(truth, "captions", captioned) == []


def test_cleaned_captions_are_the_true_ones(captioned: pa.Table, truth: Truth) -> None:
    kept = [
        (row, caption)
        for row, caption in zip(truth, captioned["caption"].to_pylist(), strict=True)
        if not row["truth"].startswith("caption_")
    ]
    assert [(row["truth"], caption, row["caption"]) for row, caption in kept if caption != row["caption"]] == []


@pytest.fixture(scope="module")
def fetched(served: Sample, truth: Truth) -> pa.Table:
    none = pa.nulls(len(truth), pa.string())
    table = pa.table({"url": pa.array([row["url"] for row in truth], pa.string()), "expected_hash": none, "stored_at": none})
    download = stage("download", **served.download_options, timeout_s=2, dns_timeout_s=1)
    download.open()
    try:
        return frame.apply(download, frame.framed(table))
    finally:
        download.close()


def test_downloads_end_as_their_class_says(fetched: pa.Table, truth: Truth) -> None:
    assert differing(truth, "download", fetched) == []


def test_no_refused_url_was_ever_asked_for(fetched: pa.Table, served: Sample, truth: Truth) -> None:
    requests = served.counts()["requests"]
    assert not any("latest/meta-data" in address or address.startswith(("10.", "127.", "192.", "[")) for address in requests)
