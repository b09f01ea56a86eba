"""The same corpus with and without Ray: equal files, so that Ray changes nothing about the result."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tests.pipeline.conftest import Made
from tests.support import serial
from tests.support.corpus import ledger, outputs, write_config


def test_a_plain_loop_makes_the_same_shards_as_ray(first_run: Made, tmp_path: Path) -> None:
    config = write_config(tmp_path / "test.yaml", first_run.server, first_run.lists)
    result = serial.run(config)
    plain = tmp_path / "runs" / "test"
    assert outputs(plain) == outputs(first_run.run)
    assert ledger(plain).equals(ledger(first_run.run))
    assert result.balances["rows"] == first_run.result.balances["rows"]
    for phase in ("rows", "dedup", "image_dedup", "selection"):
        mine = sorted((plain / phase).rglob("part-*.parquet"))
        theirs = sorted((first_run.run / phase).rglob("part-*.parquet"))
        assert [path.relative_to(plain) for path in mine] == [path.relative_to(first_run.run) for path in theirs]
        assert all(pq.read_table(a).equals(pq.read_table(b)) for a, b in zip(mine, theirs, strict=True))
