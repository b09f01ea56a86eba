"""`shardmill eval`: what a model is worth on data, as figures in eval.json and a table on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import train
from pipeline.errors import TransientError, UserError
from pipeline.storage import Store
from stages.evaluate import captioning, data, judgements, pairs, retrieval, scorers, zeroshot
from stages.evaluate.embedding import Embedded, Item, embed
from stages.train import checkpoint

NAMED = 20  # keys of unusable images, and damaged shards, that eval.json names; all images are counted
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")
DATA = "eval: --data"


@dataclass(frozen=True)
class Options:
    """What to evaluate on what; the command's options one by one (docs/guide/evaluate.md)."""

    data: tuple[str, ...] = ()
    images: str | None = None
    judgements: tuple[str, str] | None = None
    prefix: str = ""
    caption_key: str | None = None
    label_key: str | None = None
    classes: str | None = None
    templates: str = "openai"
    write_captions: bool = True
    batch: int = 64
    seed: int = 0
    storage_options: dict[str, Any] = field(default_factory=dict)
    data_options: tuple[dict[str, Any], ...] = ()  # for each of `data`; none: storage_options for all
    data_key: str = DATA  # the option that names `data`, for messages
    trained_on: bool = False  # `data` is what the model was trained on


def run(
    model: str,
    options: Options,
    pretrained: str | None = None,
    device: str | None = None,
    out: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Evaluates, writes `out` (a file or URL; by default eval.json beside the model) and returns its content.

    `model` may be a config (a file or preset), with `overrides` as `shardmill train` takes them: what was trained by it is evaluated.
    """
    if model.endswith(WEIGHT_FILES):
        raise UserError(
            f"eval: {model} is a file of weights, which names no model; give the folder that training left (its out), or open_clip's name "
            f"of the model and --pretrained {model}"
        )
    config = None if Path(model).is_dir() else train.find(model)
    if config is not None and config.is_file():
        model, options, beside = of_config(config, overrides or [], options)
        out = out or beside
    elif overrides:
        raise UserError(f"eval: --set goes with a config; {model} is none")
    if not options.data and options.judgements is None:
        raise UserError("eval: nothing to evaluate on; give --data, --judgements or both")
    where = out or _beside(model, options.storage_options)
    store, name = _writable(where, options.storage_options)
    scorers.check_ready()
    given = read(options)
    began = time.monotonic()
    scorer = scorers.load(model, pretrained, device or _device(), options.storage_options)
    try:
        found = evaluate(scorer, options, given)
    except Exception as err:
        if type(err).__name__ != "OutOfMemoryError":  # torch's, which a scorer need not have
            raise
        raise UserError(f"eval: --batch {options.batch}: {' '.join(str(err).split())[:200]}; lower it") from err
    found["seconds"] = round(time.monotonic() - began, 1)
    store.write_json(name, found)
    return {**found, "written": where}


def _writable(where: str, storage_options: dict[str, Any]) -> tuple[Store, str]:
    """The folder of the figures, and their file's name in it. Raises UserError where it cannot be written."""
    folder, _, name = where.rpartition("/")
    store = Store(folder or ("/" if where.startswith("/") else "."), storage_options)
    if not name or (store.local and Path(store.full(name)).is_dir()):
        raise UserError(f"eval: --out {where}: a folder; give a file, for example {where.rstrip('/')}/eval.json")
    try:
        store.write(f".{name}.probe", b"shardmill")
        store.remove(f".{name}.probe")
    except (OSError, TransientError) as err:
        raise UserError(f"eval: --out {where}: cannot be written: {err}") from err
    return store, name


def of_config(config: Path, overrides: list[str], options: Options) -> tuple[str, Options, str]:
    """What was trained by a config: the model's folder, on what it is evaluated, and where the figures go.

    Unless `options` name data, it is `train.eval.data`, or without that the shards it was trained on. Raises UserError where nothing was
    trained yet.
    """
    wanted = train.resolve(config, overrides)[0]
    store, folder = Store(wanted.out or "", dict(wanted.storage_options)), "model_ema" if wanted.ema else "model"
    if not store.exists(f"{folder}/{checkpoint.WEIGHTS}"):
        if wanted.ema and store.exists(f"model/{checkpoint.WEIGHTS}"):
            raise UserError(
                f"{config}: train.ema: {store.url} has a model and no moving average of it, as training without ema leaves it; "
                "leave ema out to measure that model: --set train.ema=null"
            )
        raise UserError(f"{config}: {store.url} has no {folder} yet; train it first: shardmill train {config}")
    options = replace(options, storage_options={**wanted.storage_options, **options.storage_options})
    if not options.data and options.judgements is None:
        if wanted.eval.data:
            given = train.measured(wanted)
            options = replace(options, data=given.data, data_options=(given.storage_options,) * len(given.data))
        else:
            pairs_ = [(name, dict(source.storage_options)) for source in wanted.data for name in listed(source.shards)]
            options = replace(options, data=tuple(a for a, _ in pairs_), data_options=tuple(b for _, b in pairs_), trained_on=True)
    root = store.url.rstrip("/")
    return f"{root}/{folder}", options, f"{root}/eval.json"


def listed(names: str | list[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _beside(model: str, storage_options: dict[str, Any]) -> str:
    """eval.json in the model's folder, or in that of the training which left it; in the current folder for a model by name."""
    folder = scorers.found_folder(model, storage_options)
    if folder is None:
        return "eval.json"
    return f"{folder if folder == model.rstrip('/') else folder.rpartition('/')[0]}/eval.json"


def _device() -> str:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Given:
    """What the options name, found and looked through before any work: data with what is known of it, judgements with their images."""

    items: data.Shards | data.Table | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    templates: str | None = None  # the text of their file
    judged: list[judgements.Judged] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # of the judged images, name -> address


def read(options: Options) -> Given:
    """Raises UserError for whatever of it is not there, or cannot be used."""
    found, facts = items(options) if options.data else (None, {})
    if isinstance(found, data.Shards):
        data.check_names(found)
    classes, templates = _named(options) if options.data else (None, None)
    given = Given(found, facts, classes, templates)
    if options.judgements is None:
        return given
    table, folder = options.judgements
    judged = judgements.read(data.text_of(table, options.storage_options), table)
    files = data.files_in(folder, options.storage_options)
    if not any(one.image in files for one in judged):
        raise UserError(f"{folder}: holds none of the images that {table} judges ({judged[0].image}, …)")
    return replace(given, judged=judged, files=files)


def evaluate(scorer: scorers.Scorer, options: Options, given: Given | None = None) -> dict[str, Any]:
    """All figures that the data and the model allow; `left_out` says which were not computed, and why. `given`: what `read` gave."""
    given = given or read(options)
    found: dict[str, Any] = {"model": scorer.about, "seed": options.seed}
    left_out: dict[str, str] = {}
    if options.data:
        found |= _on_data(scorer, options, given, left_out)
    if options.judgements:
        found["judgements"] = _on_judgements(scorer, *options.judgements, options, given, left_out)
    return {**found, "left_out": left_out}


def _on_data(scorer: scorers.Scorer, options: Options, given: Given, left_out: dict[str, str]) -> dict[str, Any]:
    facts = dict(given.facts)
    embedded = embed(scorer, _watched(given.items or ()), options.batch, _captioner(scorer, options, left_out))
    facts |= {"images": len(embedded.image), "captions": len(embedded.text), "unusable": len(embedded.unusable)}
    facts["unusable_keys"] = embedded.unusable[:NAMED]
    if isinstance(given.items, data.Shards):  # known only now that all were read
        samples = given.items.samples
        facts |= {"missing": samples.missing, "damaged_shards": dict(list(samples.damaged.items())[:NAMED])}
    if not len(embedded.image):
        raise UserError(f"eval: {', '.join(options.data)}: no image that can be decoded")
    found: dict[str, Any] = {"data": facts}
    if len(embedded.text) and len(embedded.image) > 1:
        found["retrieval"] = retrieval.recalls(retrieval.ranks(embedded.image, embedded.text, embedded.owner))
        found["pairs"] = pairs.figures(embedded.image, embedded.text, embedded.owner, options.seed)
    else:
        lacking = "" if len(embedded.text) else " (.txt, or --caption KEY of the json)"
        left_out["retrieval, pairs"] = f"{len(embedded.image)} images with {len(embedded.text)} captions{lacking}"
    labels = [label for label in embedded.labels if label is not None]
    if not labels:
        left_out["zeroshot"] = "the data has no labels (.cls, or --label)"
    elif options.classes is None and all(label.isdecimal() for label in labels):
        left_out["zeroshot"] = "the data's labels are numbers; give the class names by --classes, one a line in that order"
    else:
        found["zeroshot"] = _zeroshot(scorer, embedded, options, given.classes, given.templates)
    if embedded.written and len(embedded.text):
        found["captioning"] = _captioning(embedded)
    return found


def items(options: Options) -> tuple[data.Shards | data.Table, dict[str, Any]]:
    """The data, and what is known of it beforehand. Raises UserError where it is not there."""
    fields = data.Fields(options.caption_key, options.label_key)
    facts: dict[str, Any] = {"sources": list(options.data)} | ({"trained_on": True} if options.trained_on else {})
    tables = [source for source in options.data if source.endswith((".csv", ".tsv"))]
    if tables and options.data_key != DATA:
        raise UserError(
            f"{options.data_key}: {tables[0]}: a table, and training is evaluated on shards; leave it out, and after training give "
            f"shardmill eval CONFIG --data {tables[0]} --images FOLDER"
        )
    if not tables and options.images is None:
        return data.of_shards(options.data, fields, options.data_options or options.storage_options, options.data_key), facts
    if options.images is None or len(options.data) > 1:
        raise UserError(
            f"{options.data_key}: {tables[0] if tables else options.data[0]}: one table goes with one folder: --data CSV --images FOLDER"
        )
    table = data.of_table(options.data[0], options.images, fields, options.storage_options)
    return table, {**facts, "images_in": options.images, "rows_without_image": table.absent}


def _captioner(scorer: scorers.Scorer, options: Options, left_out: dict[str, str]) -> captioning.Captioner | None:
    if not isinstance(scorer, scorers.OpenClip) or not scorer.captions:
        left_out["captioning"] = "the model writes no captions (CoCa does)"
    elif not options.write_captions:
        left_out["captioning"] = "not asked for (--no-captioning)"
    elif not captioning.ready():
        left_out["captioning"] = "needs pycocoevalcap: pip install pycocoevalcap==1.2"
    else:
        return captioning.Captioner(scorer)
    return None


def _named(options: Options) -> tuple[list[str] | None, str | None]:
    """The classes, and the text of the templates, where files name them. Raises UserError for what cannot be used."""
    classes = data.text_of(options.classes, options.storage_options) if options.classes else None
    listed = None if classes is None else [line.strip() for line in classes.splitlines() if line.strip()]
    if listed is not None and not listed:
        raise UserError(f"{options.classes}: holds no class names; give one a line")
    in_file = "/" in options.templates or Path(options.templates).is_file()
    lines = data.text_of(options.templates, options.storage_options) if in_file else None
    if options.templates != "openai":
        zeroshot.templates(options.templates, lines)
    return listed, lines


def _zeroshot(scorer: scorers.Scorer, embedded: Embedded, options: Options, listed: list[str] | None, lines: str | None) -> dict[str, Any]:
    names, places = data.classes_of(embedded.labels, listed)
    prompts = zeroshot.templates(options.templates, lines)
    weights = zeroshot.classifier(scorer, names, prompts)
    labelled = np.flatnonzero(np.array(places) >= 0)
    found = zeroshot.figures(embedded.image[labelled], np.array(places)[labelled], weights)
    return {**found, "templates": options.templates, "templates_count": len(prompts), "unlabelled": len(places) - len(labelled)}


def _captioning(embedded: Embedded) -> dict[str, Any]:
    references: list[list[str]] = [[] for _ in embedded.written]
    for caption, at in zip(embedded.captions, embedded.owner, strict=True):
        references[at].append(caption)
    having = [at for at, some in enumerate(references) if some]
    written = [embedded.written[at] for at in having]
    scores = captioning.scored(written, [references[at] for at in having])
    return {**scores, "examples": [{"written": one, "given": references[at][0]} for one, at in zip(written[:5], having, strict=False)]}


def _on_judgements(
    scorer: scorers.Scorer, table: str, folder: str, options: Options, given: Given, left_out: dict[str, str]
) -> dict[str, Any]:
    judged, files = given.judged, given.files
    embedded = embed(scorer, _watched(judgements.items(judged, files, options.storage_options, options.prefix)), options.batch)
    usable, scores = judgements.scored(judged, files, embedded)
    if not usable:
        raise UserError(f"{folder}: none of the images that {table} judges can be decoded ({embedded.unusable[0]}, …)")
    facts = {"table": table, "images_in": folder, "prefix": options.prefix, "left_out": len(judged) - len(usable)}
    found = judgements.figures(usable, scores)
    if found["tau_c"] is None:
        left_out["judgements tau_c"] = "all ratings, or all similarities, are alike: there is no order to agree with"
    return {**facts, **found}


def _watched(items: Iterable[Item]) -> Iterable[Item]:
    """The same items, counted on the terminal as they go by."""
    from rich.console import Console
    from rich.progress import track

    return track(items, "samples", console=Console(stderr=True), transient=True)


SHOWN = {
    "retrieval": tuple(f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in retrieval.KS),
    "zeroshot": ("top1", "top5", "mean_per_class"),
    "pairs": ("auc",),
    "captioning": ("bleu4", "cider"),
    "judgements": ("tau_c", "tau_c_others"),
}


def show(found: dict[str, Any]) -> None:
    """Prints the figures; all that was measured, and on what, stands in eval.json."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    grid = Table("measure", "figure", "of", title=f"{found['model'].get('model', 'model')}", title_style="bold")
    for section, names in SHOWN.items():
        for name in names:
            if (value := found.get(section, {}).get(name)) is not None:
                grid.add_row(f"{section} {name}", f"{value:.4f}", _of(section, name, found[section]))
    console.print(grid)
    if stand_in := found["model"].get("demonstration"):
        console.print(Text(f"{found['model']['model']}: {stand_in}"), soft_wrap=True)
    if found.get("data", {}).get("trained_on"):
        console.print("measured on what it was trained on: this shows that all parts work, not what the model is worth")
    for what, why in found.get("left_out", {}).items():
        console.print(Text(f"not measured: {what}: {why}"), soft_wrap=True)
    if keys := found.get("data", {}).get("unusable_keys"):
        count = found["data"]["unusable"]
        console.print(Text(f"left out, their image cannot be decoded: {count} samples: {', '.join(keys)}"), soft_wrap=True)
    for shard, what in found.get("data", {}).get("damaged_shards", {}).items():
        console.print(Text(f"damaged, what is lost counts nowhere: {shard}: {what}"), soft_wrap=True)
    console.print(Text(f"written to {found['written']}"), soft_wrap=True)


def _of(section: str, name: str, figures: dict[str, Any]) -> str:
    if section == "retrieval":
        way = name.partition("_R@")[0]
        return f"{figures[f'{way}_queries']} {'images' if way.startswith('image') else 'captions'}"
    if section == "judgements":
        return f"{figures['pairs_others'] if name.endswith('others') else figures['pairs']} pairs"
    return f"{figures['pairs']} pairs" if section == "pairs" else f"{figures['images']} images"
