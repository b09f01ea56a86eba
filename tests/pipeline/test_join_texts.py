"""Near-duplicate candidates get their texts in little memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from pipeline import views
from pipeline.phases import shuffle
from pipeline.storage import Store

ROWS, PAIRS, MEMORY = 1_000_000, 1_600_000, "150MB"
# The texts alone are 80 MB. In a single query all this fails, as ten million rows did in 2 GB.


def test_texts_are_joined_in_less_memory_than_they_take(tmp_path: Path) -> None:
    store, draw = Store(str(tmp_path)), np.random.default_rng(0)
    texts = [f"{row} a caption of some words that nobody else has, number {row * 7919}" for row in range(ROWS)]
    store.write_table("rows.parquet", pa.table({"row": np.arange(ROWS), "caption": texts}))
    pairs = pa.table({"a": draw.integers(0, ROWS, PAIRS), "b": draw.integers(0, ROWS, PAIRS)})
    store.write_table("pairs.parquet", pairs)
    with views.connect(store, MEMORY) as con:
        con.execute("SET threads = 2")
        views.files(con, "alive_rows", store, ["rows.parquet"], pa.schema([]))
        jobs = list(shuffle.join_texts(con, store, SimpleNamespace(payload="caption"), "steps", ["pairs.parquet"]))
    made = pa.concat_tables([store.read_table(job["texts"]) for job in jobs])
    wanted = np.unique(np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()]), axis=1)
    assert np.array_equal(np.stack([made["a"].to_numpy(), made["b"].to_numpy()]), wanted)  # each once, in order
    for at in draw.integers(0, len(made), 1000).tolist():
        row = made.slice(at, 1).to_pylist()[0]
        assert (row["text_a"], row["text_b"]) == (texts[row["a"]], texts[row["b"]])
