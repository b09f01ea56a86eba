"""The same curve on any number of workers: `python tests/acceptance/train_workers.py [KIND ...]` (clip, coca, siglip; all by default).

`shardmill train` with one worker, then with two that Ray Train joins by gloo: DDP, FSDP2, and with a batch in pieces. The same global
batch, so: the same samples in the same places (the digest `order` of each step), and the loss and the gradient's norm apart by no more
than float32 sums of another order. Prints a table; exit code 1 where a bound is missed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.storage import Store
from stages.train import metrics
from tests.support.corpus import shardmill
from tests.support.training import write_config, write_shards

KINDS = {"clip": "micro", "coca": "micro_coca", "siglip": "micro_sig"}
LOSS, NORM = 2e-5, 1e-4  # relative; measured: 2e-6 and 3e-6
WAYS: dict[str, dict[str, Any]] = {
    "2 workers, DDP": {"workers": 2},
    "2 workers, FSDP2": {"workers": 2, "strategy": "fsdp"},
    "2 workers, DDP, 2 pieces": {"workers": 2, "accumulate": 2},
}


def main(kinds: list[str]) -> int:
    missed = 0
    print(f"{'model':<8}{'against 1 worker':<26}{'steps':>6}{'order':>11}{'loss':>10}{'norm':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder / "shards", 200, per_shard=40, size=64)
        for kind in kinds:
            one, _ = trained(folder / kind / "one", shards, KINDS[kind])
            for way, options in WAYS.items():
                two, seconds = trained(folder / kind / way.replace(" ", ""), shards, KINDS[kind], **options)
                order = [line["order"] for line in one] == [line["order"] for line in two]
                loss, norm = (
                    max(abs(a[what] - b[what]) / abs(a[what]) for a, b in zip(one, two, strict=True)) for what in ("loss", "grad_norm")
                )
                ok = order and loss <= LOSS and norm <= NORM
                missed += not ok
                told = "same" if order else "DIFFERENT"
                print(
                    f"{kind:<8}{way:<26}{len(two):>6}{told:>11}{loss:>10.1e}{norm:>10.1e}{seconds:>9.0f}{'' if ok else '  MISSED'}",
                    flush=True,
                )
    return int(missed > 0)


def trained(folder: Path, shards: Path, kind: str, **options: Any) -> tuple[list[dict[str, Any]], float]:
    """The curve of a training, and its seconds with all starts."""
    began = time.monotonic()
    shardmill("train", str(write_config(folder, shards, kind, **options)), timeout=900)
    return metrics.read(Store(str(folder / "out"))), time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(KINDS)))
