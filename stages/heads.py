"""heads: further judges as columns, each a small network on the image embedding that `scores` keeps, as LAION's aesthetic head is.

A head is a stack of linear layers in a file of weights, or a network as ONNX; what it means is the file's affair. Embeddings are float16
and normalised, as those that LAION's heads were trained on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.stage import Column, Stage, Strict, of_the_past

SUFFIXES = (".safetensors", ".pt", ".pth", ".onnx")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})/(.+)")  # hf://OWNER/NAME@COMMIT/FILE
Network = Callable[[np.ndarray], np.ndarray]
"""Embeddings (float32, shape (n, width)) -> the last layer's values, shape (n, k)."""


class Head(Strict):
    """One judge."""

    file: str
    """A local file, or `hf://OWNER/NAME@COMMIT/FILE` of the Hugging Face Hub, COMMIT being all 40 digits, so that a config means one head
    for ever. Of .safetensors and torch's state dict (.pt, .pth: weights alone are read, never code) the matrices `….weight` of shape
    (out, in), with `….bias` where there is one, are applied in the order of their names, numbers in a name counting as numbers. An
    .onnx (extra onnx) is run as it stands: one input of shape (n, width), float32, and of its outputs the first."""
    between: Literal["none", "relu", "gelu"] = "none"
    """What stands between two layers; LAION's aesthetic head has nothing but dropout there. An .onnx knows itself."""
    output: Literal["none", "sigmoid", "softmax"] = "none"
    """What is done to the last layer's values."""
    index: int = Field(0, ge=0)
    """Which of the last layer's values is the judgement."""


class Options(Strict):
    """Column name -> head."""

    heads: dict[str, Head] = Field(min_length=1)
    """The judges, by the name of the column that each adds."""

    @model_validator(mode="after")
    def _names(self, info: ValidationInfo) -> Self:
        for name, head in self.heads.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"heads.{name}: a column's name has lower-case letters, digits and _ alone")
            if Path(head.file).suffix not in SUFFIXES:
                raise ValueError(f"heads.{name}.file: {head.file} is none of {', '.join(SUFFIXES)}")
            if head.file.endswith(".onnx") and head.between != "none":
                raise ValueError(f"heads.{name}.between: {head.between}, but an .onnx says itself what stands between its layers")
            if "://" in head.file and not HUB.fullmatch(head.file):
                raise ValueError(
                    f"heads.{name}.file: {head.file} is not of the form hf://OWNER/NAME@COMMIT/FILE, with a commit of 40 digits"
                )
            if "://" not in head.file and not Path(head.file).is_file() and not of_the_past(info):
                raise ValueError(f"heads.{name}.file: there is no {head.file}")
        return self


class Heads(Stage):
    """Applies all heads to the image embedding; a row without one gets nulls."""

    name = "heads"
    version = 1
    reads = {"image_embedding": Column(pa.list_(pa.float16()), "normalised embedding of the image (scores.embeddings: true)")}

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.files = [head.file for head in self.config.heads.values() if not HUB.fullmatch(head.file)]  # a commit says what a hub's is
        self.adds = {
            name: Column(pa.float32(), f"judgement of the head {Path(head.file).name} on the image embedding")
            for name, head in self.config.heads.items()
        }

    def check_ready(self) -> None:
        """Raises UserError for a file that is no head. A hub's is fetched now, into the cache of huggingface_hub."""
        for name, head in self.config.heads.items():
            network(name, head)

    def open(self) -> None:
        self._networks = {name: network(name, head) for name, head in self.config.heads.items()}

    def __call__(self, table: pa.Table) -> pa.Table:
        embedded = table["image_embedding"]
        have = np.flatnonzero(embedded.is_valid().to_numpy())
        given = embedded.take(have).combine_chunks()
        inputs = given.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(have), -1)
        for name, head in self.config.heads.items():
            out = np.full(len(table), np.nan, dtype=np.float32)
            if len(have):
                out[have] = judged(name, head, self._networks[name], inputs)
            missing = pc.invert(embedded.is_valid())
            table = table.append_column(name, pa.array(out, pa.float32(), mask=missing.to_numpy()))
        return table


def judged(name: str, head: Head, run: Network, inputs: np.ndarray) -> np.ndarray:
    """float32, shape (n,): what the head says of embeddings (float32, shape (n, width)). Raises UserError for another width or index."""
    values = run(inputs)
    if head.index >= values.shape[1]:
        raise UserError(f"stages.heads.heads.{name}.index: {head.index}, but the last layer gives {values.shape[1]} values")
    if head.output == "softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values = values / values.sum(axis=1, keepdims=True)
    found: np.ndarray = values[:, head.index]
    if head.output == "sigmoid":
        found = np.asarray(1 / (1 + np.exp(-found)))
    return found


def network(name: str, head: Head) -> Network:
    """The head, ready to be run. Raises UserError for a file that is none."""
    where, path = f"stages.heads.heads.{name}", _local(name, head.file)
    if path.endswith(".onnx"):
        return _onnx(where, path, head.index)
    stack = layers(name, head, path)
    width = stack[0][0].shape[1]

    def run(inputs: np.ndarray) -> np.ndarray:
        _check_width(where, width, inputs)
        values = inputs
        for at, (weight, bias) in enumerate(stack):
            values = values @ weight.T + bias
            if at + 1 < len(stack):
                values = _between(values, head.between)
        return values

    return run


def _local(name: str, file: str) -> str:
    """The path of a head's file; a hub's is fetched where the cache does not hold it. Raises UserError."""
    found = HUB.fullmatch(file)
    if found is None:
        return file
    try:
        from huggingface_hub import hf_hub_download

        return str(hf_hub_download(found[1], found[3], revision=found[2]))
    except ModuleNotFoundError as err:
        made = 'make setup EXTRAS=clip, or pip install "shardmill[clip]"'
        raise UserError(f"stages.heads.heads.{name}: {file} needs {err.name}: {made}") from err
    except Exception as err:  # the hub's, the network's and the disk's errors are of many kinds
        raise UserError(f"stages.heads.heads.{name}: {file} cannot be had from the hub: {' '.join(str(err).split())[:300]}") from err


def _onnx(where: str, path: str, index: int) -> Network:
    """A network that onnxruntime runs on one CPU, as a worker is."""
    try:
        import onnxruntime
    except ModuleNotFoundError as err:
        raise UserError(f'{where}: {path} needs onnxruntime: make setup EXTRAS=onnx, or pip install "shardmill[onnx]"') from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # as for weights
        raise UserError(f"{where}: {path} cannot be read: {' '.join(str(err).split())[:200]}") from err
    given = session.get_inputs()
    if len(given) != 1 or given[0].type != "tensor(float)" or len(given[0].shape) != 2:
        told = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in given)
        raise UserError(f"{where}: {path} does not take one matrix of float32 of shape (n, width); it takes {told}")
    rows, width = given[0].shape
    if isinstance(rows, int) and rows != 1:
        raise UserError(f"{where}: {path} takes {rows} rows at a time; export it with a free number of rows")

    last = session.get_outputs()[0].shape[-1:]
    if last and isinstance(last[0], int) and index >= last[0]:
        raise UserError(f"{where}.index: {index}, but {path} gives {last[0]} values")

    def run(inputs: np.ndarray) -> np.ndarray:
        if isinstance(width, int):
            _check_width(where, width, inputs)
        step = 1 if rows == 1 else len(inputs)
        parts = [np.asarray(session.run(None, {given[0].name: inputs[at : at + step]})[0]) for at in range(0, len(inputs), step)]
        values = np.concatenate(parts)
        if len(values) != len(inputs):
            raise UserError(f"{where}: {path} gives {len(values)} values for {len(inputs)} embeddings")
        out: np.ndarray = values.reshape(len(inputs), -1).astype(np.float32)
        return out

    return run


def _check_width(where: str, width: int, inputs: np.ndarray) -> None:
    if inputs.shape[1] != width:
        raise UserError(f"{where}: the head takes {width} values, the embedding has {inputs.shape[1]}")


def _between(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return np.asarray(np.maximum(values, 0))
    if kind == "gelu":
        from scipy.special import erf

        out: np.ndarray = values * 0.5 * (1 + erf(values / np.sqrt(2, dtype=values.dtype)))
        return out
    return values


def layers(name: str, head: Head, path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight of shape (out, in), bias of shape (out,)) of each layer, float32. Raises UserError."""
    where = f"stages.heads.heads.{name}: {head.file}"
    try:
        tensors = _read(path)
    except ModuleNotFoundError as err:
        raise UserError(f'{where} needs {err.name}: make setup EXTRAS=clip, or pip install "shardmill[clip]"') from err
    except Exception as err:  # a file of strangers: readers raise errors of many kinds
        raise UserError(f"{where} cannot be read: {' '.join(str(err).split())[:200]}") from err
    stack = []
    for key in sorted((key for key, value in tensors.items() if key.endswith("weight") and value.ndim == 2), key=_natural):
        weight = tensors[key].astype(np.float32)
        bias = tensors.get(f"{key.removesuffix('weight')}bias", np.zeros(len(weight)))
        stack.append((weight, bias.astype(np.float32)))
    if not stack:
        raise UserError(f"{where} holds no linear layer; it has {', '.join(sorted(tensors)[:8]) or 'nothing'}")
    for (before, _), (after, _) in itertools.pairwise(stack):
        if after.shape[1] != len(before):
            raise UserError(f"{where} is no stack of layers: one gives {len(before)} values, the next takes {after.shape[1]}")
    if head.index >= len(stack[-1][0]):
        raise UserError(f"stages.heads.heads.{name}.index: {head.index}, but the last layer gives {len(stack[-1][0])} values")
    return stack


def _read(file: str) -> Mapping[str, np.ndarray]:
    if file.endswith(".safetensors"):
        from safetensors.numpy import load_file

        found: dict[str, np.ndarray] = load_file(file)
        return found
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    return {key: value.float().numpy() for key, value in state.items()}


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]
