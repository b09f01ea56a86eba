"""`shardmill train`: trains a model on shards. Repeated, it goes on from its last checkpoint; done, it says so."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Ray, RunConfig, read_raw, validate
from pipeline.errors import UserError
from pipeline.stage import Strict
from pipeline.storage import Store
from stages.train.config import Source, Train
from stages.train.metrics import Lines, Quiet, for_terminal

if TYPE_CHECKING:
    from pipeline.evaluate import Options

log = logging.getLogger("shardmill")
WANTED = ("torch", "open_clip", "safetensors", "tensorboardX")


class TrainConfig(Strict):
    """A file of training alone, as configs/train/ holds them."""

    about: dict[str, Any] = {}
    """What a preset tells of itself."""
    train: Train
    ray: Ray = Ray()
    """Where the workers run."""


@dataclass
class Result:
    """What training came to: the folder of its files, steps taken, the last line of metrics, and which evaluations failed ("": none)."""

    folder: str
    step: int
    steps: int
    last: dict[str, Any]
    unmeasured: str = ""


def run(config: str | Path, overrides: list[str] | None = None, show: Quiet | None = None) -> Result:
    """Trains by a config file: a corpus config (its section `train`, on that run's shards), or a file with `train` alone.

    Raises UserError before any work, and where the model was trained but not evaluated; TransientError when the same command can go on.
    """
    wanted, ray = resolve(config, overrides or [])
    check_ready()
    speaker = show or _terminal()
    try:
        result = run_config(wanted, ray, speaker)
    finally:
        speaker.close()
    if show is None:
        _told(result)
    if result.unmeasured:
        raise UserError(result.unmeasured)
    return result


def run_config(wanted: Train, ray: Ray | None = None, show: Quiet | None = None) -> Result:
    """Trains by a typed config, which names its data and `out`."""
    from stages.train import launch
    from stages.train.source import open_shards

    ray = ray or Ray()
    wanted = whole_paths(wanted)
    store = Store(wanted.out or "", dict(wanted.storage_options))
    _check_writable(store)
    job = launch.Job(wanted, open_shards)
    if wanted.eval.data:
        from pipeline import evaluate as evaluation

        evaluation.items(measured(wanted))  # what is not there is told before an epoch is spent
        identity = _identity(wanted)
        job = replace(job, evaluate=functools.partial(_evaluate, wanted, identity), measured=identity)

    def ready() -> None:
        if ray.address != "local":
            from pipeline.nodes import check_nodes

            check_nodes(store)

    cluster = launch.Cluster(ray.address, ray.num_cpus, ray.object_store_memory, ready)
    with store.locked("training"):
        outcome = launch.run(job, show or Quiet(), cluster)
    return Result(store.url, outcome.step, outcome.steps, outcome.last, outcome.unmeasured)


def resolve(config: str | Path, overrides: list[str]) -> tuple[Train, Ray]:
    """The section `train` with its data and `out` filled in. Raises UserError with file and key."""
    source = find(config)
    raw = read_raw(source, overrides)
    if "input" in raw or not raw:
        return _of_run(validate(RunConfig, raw, str(source)), str(source))
    whole = validate(TrainConfig, raw, str(source))
    for name in ("data", "out"):
        if not getattr(whole.train, name):
            raise UserError(
                f"{source}: train.{name} is missing; name {'the shards to train on' if name == 'data' else 'a folder to write to'}"
            )
    return whole.train, whole.ray


def find(config: str | Path) -> Path:
    """The config's file: a path, or the name of a preset in configs/ or configs/train/."""
    if Path(config).is_file():
        return Path(config)
    presets = [Path("configs", *folder, f"{config}.yaml") for folder in ((), ("train",))]
    return next((preset for preset in presets if preset.is_file()), Path(config))


def _of_run(config: RunConfig, where: str) -> tuple[Train, Ray]:
    """Of a corpus config: data and `out` default to the run's own."""
    if not config.train:
        raise UserError(f"{where}: there is no section train; add one, as train: {{model: ViT-B-32, epochs: 5}}")
    train = validate(Train, config.train, where, "train")
    folder = f"{config.run.root.rstrip('/')}/{config.run.name}"
    options = dict(config.run.storage_options)
    filled: dict[str, Any] = {}
    if not train.data:
        if not Store(folder, options).exists("shards/manifest.json"):
            raise UserError(f"{where}: train: {folder} has no shards yet; make them first: shardmill run {where}")
        filled["data"] = [Source(shards=folder, storage_options=options)]
    if train.out is None:
        filled |= {"out": f"{folder}/train", "storage_options": {**options, **train.storage_options}}
    return train.model_copy(update=filled), config.ray


def whole_paths(wanted: Train) -> Train:
    """Local paths made absolute: workers may have another current folder."""

    def whole(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    data = [
        source.model_copy(
            update={"shards": [whole(path) for path in ([source.shards] if isinstance(source.shards, str) else source.shards)]}
        )
        for source in wanted.data
    ]
    model = wanted.model
    named = {name: getattr(model, name) for name in ("name", "pretrained")}
    changed = {name: whole(value) for name, value in named.items() if value and "://" not in value and Path(value).exists()}
    measured = [whole(wanted.eval.data)] if isinstance(wanted.eval.data, str) else [whole(path) for path in wanted.eval.data or []]
    evaluation = wanted.eval.model_copy(update={"data": measured or None})
    update = {"data": data, "out": whole(wanted.out or ""), "model": model.model_copy(update=changed), "eval": evaluation}
    return wanted.model_copy(update=update)


def check_ready() -> None:
    """Raises UserError where the extra is not installed."""
    if missing := [name for name in WANTED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f'train: needs the extra train ({missing[0]} is missing): make setup EXTRAS=train, or pip install "shardmill[train]"'
        )


def _check_writable(store: Store) -> None:
    try:
        store.write(".probe", b"shardmill")
        store.remove(".probe")
    except OSError as err:
        raise UserError(f"train.out: cannot write to {store.url}: {err}") from err


def _identity(wanted: Train) -> str:
    """Of what `train.eval` evaluates, and on what: shards by their content, so that they may be moved."""
    from stages.train.corpus import open_corpora

    options = measured(wanted)
    corpora = open_corpora(list(options.data), options.storage_options, key=options.data_key)
    return f"{'model_ema' if wanted.ema else 'model'} on {corpora.fingerprint}"


def _evaluate(wanted: Train, identity: str, folder: str, epochs: int) -> None:
    """Evaluates the model in `folder` after so many epochs, into OUT/eval.json and OUT/evals/."""
    from pipeline import evaluate
    from stages.evaluate import scorers
    from stages.train import loop

    store = Store(wanted.out or "", dict(wanted.storage_options))
    scorer = scorers.load(folder, None, "cuda" if wanted.gpus else "cpu", store.options)
    found = evaluate.evaluate(scorer, measured(wanted))
    for path in (loop.EVAL, loop.EVALS.format(epochs)):
        store.write_json(path, {"epochs": epochs, "measured": identity, **found})


def measured(wanted: Train) -> Options:
    """What `train.eval` evaluates on."""
    from pipeline import evaluate

    given = wanted.eval.storage_options
    options = dict(wanted.storage_options if given is None else given)
    return evaluate.Options(data=evaluate.listed(wanted.eval.data or []), data_key="train.eval.data", storage_options=options)


def _terminal() -> Quiet:
    show = for_terminal()
    if isinstance(show, Lines):
        logging.basicConfig(format="%(levelname)s %(message)s")
        log.setLevel(logging.INFO)
    return show


def _told(result: Result) -> None:
    """The summary on the terminal."""
    loss = f", loss {result.last['loss']:.4f}" if result.last else ""
    sys.stdout.write(
        f"trained {result.step} of {result.steps} steps{loss}\nmodel {result.folder}/model\nmetrics {result.folder}/metrics.jsonl\n"
    )
