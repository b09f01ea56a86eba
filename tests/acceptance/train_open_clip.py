"""Ours beside open_clip's own: `python tests/acceptance/train_open_clip.py [--venv FOLDER] [--rounds N] [--steps N]`.

1. A bare loop of open_clip (its model, transforms, tokenizer and loss, webdataset reading the same shards, torch's DataLoader with as
   many workers) against `shardmill train`'s loop on one rank, in turn: ours must do at least 0.95 of its samples/s (median of rounds).
2. The same batches through that bare loop: the same losses.
3. Weights of either load in the other: open_clip's training checkpoint as `pretrained` here; ours in open_clip as a folder, as a file of
   weights, and as a checkpoint.
4. open_clip's own training script (`python -m open_clip_train.main`) trains from the same shards as they are, starting from our model, and
   its checkpoint loads here. It runs in a venv of its own, made in --venv (kept for the next time) with
   `pip install -c constraints.txt torch torchvision open_clip_torch 'webdataset<=0.2.86' pandas braceexpand`.
   Without --venv this step is left out, and the table says so.

Prints a table; exit code 1 where a bound is missed. Run it on an idle machine: rates of a busy one say nothing (--rounds 0 leaves the
first step out).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.storage import Store
from stages.lib import torchvision_shim
from stages.train import checkpoint, loop, metrics, models
from stages.train.config import Train
from stages.train.source import open_shards
from tests.support.training import write_shards

torchvision_shim.ensure()
import open_clip  # noqa: E402 - the shim comes first
import torch  # noqa: E402

ROOT = Path(__file__).parents[2]
BATCH, RATE, LOSS = 32, 0.95, 1e-4
WARM = 4  # first steps, which start workers, are not timed
NEEDS = ("torch", "torchvision", "open_clip_torch", "webdataset<=0.2.86", "pandas", "braceexpand")
RUN = "from stages.lib import torchvision_shim as s; s.ensure(); import sys; from open_clip_train.main import main; main(sys.argv[1:])"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder / "shards", BATCH * asked.steps)
        rows = [
            rate(folder, shards, asked.rounds),
            same_loss(folder, shards),
            *exchange(folder),
            script(folder, shards, asked.venv.resolve() if asked.venv else None, asked.steps),
        ]
    width = max(len(row[0]) for row in rows)
    for what, found, wanted, ok in rows:
        print(f"{what:<{width}}  {found:<44} {wanted:<24} {'ok' if ok else 'left out' if ok is None else 'MISSED'}")
    return int(any(ok is False for *_, ok in rows))


def wanted(out: Path, shards: Path, **more: Any) -> Train:
    given = {"model": "ViT-tiny", "data": [{"shards": str(shards)}], "out": str(out), "batch": BATCH, "log_every": 1, "tensorboard": False}
    return Train.model_validate({**given, **more})


def rate(folder: Path, shards: Path, rounds: int) -> tuple[str, str, str, bool | None]:
    """Samples a second of either, in turn."""
    if not rounds:
        return "rate against a bare open_clip loop", "--rounds 0", f">= {RATE}", None
    ours, theirs = [], []
    for at in range(rounds):
        config = wanted(folder / f"rate{at}", shards)
        loop.train(config, loop.Context(), open_shards)
        lines = metrics.read(Store(config.out or ""))[WARM:]
        ours.append(len(lines) * BATCH / sum(BATCH / line["samples_per_s"] for line in lines))
        theirs.append(bare_rate(config, shards))
        print(f"round {at}: ours {ours[-1]:.1f}, bare open_clip {theirs[-1]:.1f} samples/s", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    found = f"{statistics.median(ours):.1f} / {statistics.median(theirs):.1f} samples/s = {ratio:.3f}"
    return "rate against a bare open_clip loop", found, f">= {RATE}", ratio >= RATE


def bare(config: Train) -> tuple[Any, Any]:
    """open_clip's model of a config, begun as ours, and its transform for training."""
    models.register()
    torch.manual_seed(config.seed)
    net, transform, _ = open_clip.create_model_and_transforms(config.model.name, output_dict=True)
    return net.train(), transform


def bare_steps(net: Any, batches: Iterator[tuple[Any, Any]], config: Train, steps: int) -> Iterator[float]:
    """The loop of open_clip_train.train and .main, without logging: the loss of each step."""
    rule = config.optimizer
    named = list(net.named_parameters())
    exclude = {n for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n}
    groups = [
        {"params": [p for n, p in named if n in exclude], "weight_decay": 0.0},
        {"params": [p for n, p in named if n not in exclude], "weight_decay": rule.weight_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rule.lr, betas=(rule.beta1, rule.beta2), eps=rule.eps)
    loss = open_clip.ClipLoss()
    warmup = int(config.schedule.warmup * steps)
    for step, (images, texts) in enumerate(batches):
        done = (step - warmup) / max(steps - warmup, 1)
        lr = rule.lr * (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done)) * rule.lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        total = loss(**net(images, texts))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            net.logit_scale.clamp_(0, math.log(100))
        yield total.item()


def bare_rate(config: Train, shards: Path) -> float:
    import webdataset as wds

    net, transform = bare(config)
    tokenizer = open_clip.get_tokenizer(config.model.name)
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=False).decode("pilrgb").rename(image="jpg;png;webp", text="txt")
    data = data.map_dict(image=transform, text=lambda text: tokenizer(text)[0]).to_tuple("image", "text").batched(BATCH, partial=False)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)
    steps, began = 0, 0.0
    for step, _ in enumerate(bare_steps(net, iter(loader), config, len(urls) * 100 // BATCH)):
        if step + 1 == WARM:
            began = time.perf_counter()
        steps = step + 1
    return (steps - WARM) * BATCH / (time.perf_counter() - began)


def same_loss(folder: Path, shards: Path) -> tuple[str, str, str, bool]:
    """Our batches through the bare loop."""
    config = wanted(folder / "loss", shards)
    loop.train(config, loop.Context(), open_shards)
    ours = [line["loss"] for line in metrics.read(Store(config.out or ""))]
    net, _ = bare(config)
    source = open_shards(config, models.build(config), loop.Context())
    mean, std = (torch.tensor(net.visual.preprocess_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    batches = (((batch.image.contiguous().float() / 255 - mean) / std, batch.text) for batch in source.batches(0))
    theirs = list(bare_steps(net, batches, config, len(ours)))
    source.close()
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return "losses of the same batches", f"{len(ours)} steps, apart by at most {apart:.1e}", f"<= {LOSS}", apart <= LOSS


def exchange(folder: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Weights from one to the other, from the training of `same_loss`."""
    out = folder / "loss"
    file = str(out / checkpoint.FOLDER / checkpoint.names(Store(str(out)))[-1])
    weights = str(out / "model/open_clip_model.safetensors")
    for what, name, pretrained in (
        ("as a folder", f"local-dir:{out}/model", None),
        ("as a file of weights", "ViT-tiny", weights),
        ("as a checkpoint", "ViT-tiny", file),
    ):
        theirs = open_clip.create_model(name, pretrained=pretrained, weights_only=True).state_dict()
        same = _same(theirs, torch.load(file, weights_only=True)["state_dict"])
        yield f"ours in open_clip, {what}", f"{len(theirs)} tensors, {'equal' if same else 'different'}", "equal", same
    net, _ = bare(wanted(out, folder, seed=9))
    torch.save({"epoch": 1, "name": "x", "state_dict": net.state_dict(), "optimizer": {}}, folder / "theirs.pt")
    ours = models.build(wanted(out, folder, model={"name": "ViT-tiny", "pretrained": str(folder / "theirs.pt")})).net.state_dict()
    same = _same(ours, net.state_dict())
    yield "open_clip's checkpoint in ours", f"{len(ours)} tensors, {'equal' if same else 'different'}", "equal", same


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def script(folder: Path, shards: Path, venv: Path | None, steps: int) -> tuple[str, str, str, bool | None]:
    """open_clip's own training script on our shards, from our model; its checkpoint in ours."""
    what = "open_clip_train.main on our shards"
    if venv is None:
        return what, "give --venv FOLDER to run it", "trains; loads in ours", None
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-c", str(_constraints(folder)), *NEEDS], check=True)
    last = len(list(shards.glob("*.tar"))) - 1
    given = {
        "train-data": f"{shards}/{{00000..{last:05d}}}.tar",
        "train-num-samples": str(BATCH * steps),
        "dataset-type": "webdataset",
        "batch-size": str(BATCH),
        "epochs": "1",
        "warmup": "2",
        "workers": "1",
        "model": f"local-dir:{folder}/loss/model",
        "device": "cpu",
        "precision": "fp32",
        "logs": str(folder / "logs"),
        "name": "theirs",
        "log-every-n-steps": "1",
    }
    arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(python), "-c", RUN, *arguments], env=environment, capture_output=True, text=True, check=False)
    log = [line for line in (done.stderr + done.stdout).splitlines() if "Train Epoch" in line]
    file = folder / "logs/theirs/checkpoints/epoch_1.pt"
    if done.returncode or not file.exists():
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n")
        return what, f"ended with {done.returncode}", "trains; loads in ours", False
    ours = models.build(wanted(folder / "x", shards, model={"name": "ViT-tiny", "pretrained": str(file)})).net.state_dict()
    same = _same(ours, torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
    return what, f"{len(log)} steps logged; checkpoint {'loads' if same else 'differs'}", "trains; loads in ours", same and bool(log)


def _constraints(folder: Path) -> Path:
    """Ours, without webdataset's pin: open_clip's script wants an older one."""
    kept = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("webdataset")]
    path = folder / "constraints.txt"
    path.write_text("\n".join(kept))
    return path


if __name__ == "__main__":
    sys.exit(main())
