"""Going on: what a checkpoint takes along, what may change since it was written, and which checkpoints are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import Store
from stages.lib import torchvision_shim

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
pytest.importorskip("open_clip")

from stages.train import checkpoint  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def put(store: Store, *steps: int) -> None:
    """Files of checkpoints that nobody reads."""
    for step in steps:
        store.write(f"checkpoints/step-{step:09d}.pt", b"damaged")


@pytest.mark.parametrize(("keep", "wanted"), [(1, [18]), (2, [16, 18]), (9, [10, 12, 14, 16, 18])])
def test_a_damaged_checkpoint_costs_no_later_one(tmp_path: Path, keep: int, wanted: list[int]) -> None:
    """Training went on from step 10, because that of step 20 was damaged: the curve has no step 20 yet."""
    store = Store(str(tmp_path))
    put(store, 10, 20)
    for step in (12, 14, 16, 18):
        path = checkpoint.save(store, {}, step, keep)
        assert store.exists(path)
    assert checkpoint.names(store) == [f"step-{step:09d}.pt" for step in wanted]
