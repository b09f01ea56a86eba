"""Checkpoints: one file a state, whole or not there, that any number of workers and either strategy can load.

A file is what open_clip reads as a checkpoint too: weights by name under `state_dict`. Sharded state is gathered to whole tensors
before it is written, so DDP and FSDP write the same. `model/` holds the weights alone, as a folder that open_clip loads.
"""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.storage import Store
from stages.train.models import Model
from stages.train.optim import Ema

FOLDER = "checkpoints"
FORMAT = 2
NET = "net."
DAMAGED = (RuntimeError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError)
WEIGHTS = "open_clip_model.safetensors"  # in an exported model's folder
HEADER = 100_000_000  # bytes: safetensors allows its header no more
log = logging.getLogger("shardmill")


def gather(module: Any, optimizer: Any, ema: Ema | None) -> dict[str, Any]:
    """Weights, optimizer state and moving average as whole CPU tensors by name, on rank 0; every rank has to ask."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = states.get_model_state_dict(module, options=options)
    return {
        "state_dict": {name.removeprefix(NET): _plain(name, value) for name, value in weights.items() if name.startswith(NET)},
        "extra": {name: value for name, value in weights.items() if not name.startswith(NET)},
        "optimizer": states.get_optimizer_state_dict(module, optimizer, options=options),
        "ema": ema.state() if ema is not None else {},
    }


def restore(module: Any, optimizer: Any, ema: Ema | None, state: dict[str, Any]) -> None:
    """Puts a gathered state back, sharded as `module` is. The optimizer's options stay those it was made with, not the state's."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True)
    shapes = {name.removeprefix("module."): value.shape for name, value in module.named_parameters()}
    weights = {**{NET + name: value for name, value in state["state_dict"].items()}, **state["extra"]}
    weights = {name: value.reshape(shapes[name]) if name in shapes else value for name, value in weights.items()}
    states.set_model_state_dict(module, weights, options=options)
    held = state["optimizer"]
    for name, values in held["state"].items():
        for key, value in values.items():
            if key != "step":
                values[key] = value.reshape(shapes[name])
    wanted = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    states.set_optimizer_state_dict(module, optimizer, held, options=options)
    for group, given in zip(optimizer.param_groups, wanted, strict=True):
        group.update(given)
    if ema is not None:
        ema.load(state["ema"] or {name: weights[name] for name in ema.names})


def save(store: Store, state: dict[str, Any], step: int, keep: int) -> str:
    """Writes a state atomically as that of `step`, then removes all but the `keep` latest up to it. Returns its path below `store`.

    Those of later steps go too: training went back behind them, because they are damaged.
    """
    import torch

    path = f"{FOLDER}/step-{step:09d}.pt"
    with store.atomic(path) as target, _writing(target) as handle:
        torch.save({"format": FORMAT, **state}, handle)
    found = names(store)
    behind = found.index(path.rpartition("/")[2]) + 1
    for name in found[behind:] + found[: max(behind - keep, 0)]:
        store.remove(f"{FOLDER}/{name}")
    return path


@contextmanager
def _writing(target: Path) -> Iterator[BinaryIO]:
    """A file to write to. Over a full disk's error torch's writer raises one of its own, of positions; here it is the disk's again."""
    with target.open("wb") as handle:
        try:
            yield handle
        except RuntimeError as err:
            if isinstance(err.__context__, OSError):
                raise err.__context__ from err
            raise


def names(store: Store) -> list[str]:
    """The files of checkpoints, oldest first."""
    return [name for name in store.names(FOLDER, ".pt") if name.startswith("step-")]


def latest(store: Store) -> dict[str, Any] | None:
    """The newest state that can be read, on the CPU; None where there is no checkpoint.

    Files come whole or not at all, so a damaged one was damaged later: it is told, and the one before it is taken. Raises UserError where
    none can be read, and for one of another version.
    """
    import torch

    found = names(store)
    for name in reversed(found):
        where = store.address(f"{FOLDER}/{name}")
        try:
            with store.open(f"{FOLDER}/{name}") as handle:
                _check(handle)
                state: dict[str, Any] = torch.load(handle, map_location="cpu", weights_only=True)
        except DAMAGED as err:
            if "allocate" in str(err):  # no memory is no damage
                raise
            log.warning("train: %s is damaged (%s); the checkpoint before it is taken", where, str(err).partition(".")[0])
            continue
        if state.get("format") != FORMAT:
            raise UserError(f"{where}: another version of shardmill wrote this checkpoint; give another train.out")
        return state
    if found:
        raise UserError(
            f"{store.address(FOLDER)}: no checkpoint of {len(found)} can be read; give another train.out, or remove them to begin anew"
        )
    return None


def _check(handle: BinaryIO) -> None:
    """Raises one of DAMAGED where the file's bytes are not those that were written; torch itself looks at no checksum."""
    if not zipfile.is_zipfile(handle):  # cut off: torch would seek to where nothing is
        raise EOFError("its end is missing")
    with zipfile.ZipFile(handle) as members:
        if members.testzip():
            raise zipfile.BadZipFile("some of its bytes are not those that were written")
    handle.seek(0)


def export(store: Store, model: Model, weights: dict[str, Any], folder: str = "model", step: int | None = None) -> str:
    """Writes weights as open_clip's hub models have them: `open_clip.create_model("local-dir:FOLDER")`, or pretrained=FILE.

    `step`: after which they are so; the file tells. The offline scorer's lie beside a description of their own: `shardmill eval FOLDER`, or
    pretrained=FILE.
    """
    from safetensors.torch import save

    if model.description:
        store.write(f"{folder}/{model.described_in}", (json.dumps(model.description, indent=2) + "\n").encode())
    told = None if step is None else {"step": str(step)}  # one entry: safetensors writes several in any order
    body = save({name: value.contiguous().clone() for name, value in weights.items()}, told)
    with store.atomic(f"{folder}/{WEIGHTS}") as target:  # safetensors' own writer lets nobody but the owner read, and hides a full disk
        target.write_bytes(body)
    return store.address(folder)


def exported(store: Store, model: Model, folder: str) -> int | None:
    """The step after which a model was as the folder holds it; None where the folder is not whole, or does not tell."""
    path = f"{folder}/{WEIGHTS}"
    if not store.exists(path) or (model.description and not store.exists(f"{folder}/{model.described_in}")):
        return None
    with store.open(path) as handle:
        size = int.from_bytes(handle.read(8), "little")
        try:
            told = json.loads(handle.read(min(size, HEADER)))["__metadata__"]["step"]
        except (ValueError, KeyError):
            return None
    return int(told)


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    """The weights of a gathered state with the moving average in place of those that are trained."""
    average = {name.removeprefix(NET): _plain(name, value) for name, value in state["ema"].items() if name.startswith(NET)}
    return {**state["state_dict"], **average}


def _plain(name: str, value: Any) -> Any:
    """open_clip's shape: FSDP2 keeps the scalars logit_scale and logit_bias as vectors of one element."""
    return value.reshape(()) if name.rpartition(".")[2] in ("logit_scale", "logit_bias") and value.numel() == 1 else value
