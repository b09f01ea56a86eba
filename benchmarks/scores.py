"""The scores stage beside a bare open_clip loop: `python benchmarks/scores.py [--model ViT-B-32] [--pairs 256] [--gpus 0] [--rounds 3]`.

The stage decodes stored JPEGs of 224 pixels and tokenises captions; the bare loop gets batches that are decoded and tokenised already.
Weights are random, of the true architecture: speed does not depend on them. Same batches, device, precision and threads; in turn.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from pipeline.frame import framed
from stages.lib import torchvision_shim
from stages.scores import Scores

TARGET = 0.95


def pairs(n: int) -> pa.Table:
    draw, bodies = np.random.default_rng(0), []
    for _ in range(n):
        out = io.BytesIO()
        noise = draw.integers(0, 255, (14, 14, 3), np.uint8)
        Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
        bodies.append(out.getvalue())
    captions = [f"photograph number {at} of a harbour in the evening light" for at in range(n)]
    return framed(pa.table({"image": pa.array(bodies, pa.large_binary()), "caption": captions}))


def save(model: str, folder: Path) -> None:
    """A folder as open_clip's hub models have it, with random weights."""
    import open_clip
    from safetensors.torch import save_file

    net = open_clip.create_model(model)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, str(folder / "open_clip_model.safetensors"))
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": dict(net.visual.preprocess_cfg)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def bare(stage: Any, table: pa.Table) -> Callable[[], None]:
    """open_clip's two towers over batches that lie ready on the device."""
    import torch

    towers, batches = stage.towers, []
    for at in range(0, len(table), stage.config.batch):
        rows = table[at : at + stage.config.batch]
        pixels = torch.stack([towers.transform(Image.open(io.BytesIO(body.as_py())).convert("RGB")) for body in rows["image"]])
        batches.append((pixels.to(towers.device, towers.dtype), towers.tokenizer(rows["caption"].to_pylist()).to(towers.device)))

    def loop() -> None:
        with torch.inference_mode():
            for pixels, tokens in batches:
                image = towers.model.encode_image(pixels, normalize=True)
                text = towers.model.encode_text(tokens, normalize=True)
                (image * text).sum(-1).float().cpu()

    return loop


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results.begin(parser, given)
    torchvision_shim.ensure()
    table = pairs(given.pairs)
    with tempfile.TemporaryDirectory() as name:
        save(given.model, Path(name))
        stage = Scores(Scores.Config(model=name, batch=given.batch, gpus=given.gpus, cpus=2))
        stage.open()
    loop = bare(stage, table)
    loop(), stage(table)  # both once unmeasured: whoever comes first pays for memory and kernels that are made then
    times: dict[str, list[float]] = {"stage": [], "bare": []}
    for _ in range(given.rounds):
        times["bare"].append(seconds(loop))
        times["stage"].append(seconds(lambda: stage(table)))
    stage.close()
    ours, peer = statistics.median(times["stage"]), statistics.median(times["bare"])
    print(
        f"{given.model}, {stage.towers.device}, {given.pairs} pairs: stage {given.pairs / ours:.1f}/s, bare loop {given.pairs / peer:.1f}/s"
    )
    results.add(
        f"scores: pairs a second, {given.model} on {stage.towers.device.type}, peer bare open_clip loop",
        given.pairs / ours,
        given.pairs / peer,
        TARGET,
        peer / ours >= TARGET,
        peer / ours,
    )
    print(f"ratio {peer / ours:.3f} (target {TARGET})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
