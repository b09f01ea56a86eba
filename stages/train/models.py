"""Models: open_clip's own, by name, folder or JSON, behind one forward that takes what our loader gives.

The loader hands out uint8 images (a fourth of the bytes of floats); they are normalised here, on the device. A video clip's
frames are mean-pooled through the image tower.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ShardmillError, UserError
from stages.lib import hub, torchvision_shim
from stages.train.config import OFFLINE_SCORER, Train
from stages.train.config import Model as Wanted

CONFIGS = Path(__file__).parent / "configs"
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Model:
    """A model with what has to be known to feed it and to write it down."""

    net: Any  # the torch module, as open_clip made it
    image_size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: Callable[[list[str]], Any]  # texts -> int64[n, context_length]
    context_length: int
    loss: str  # clip, siglip or coca
    resize: Any = "shortest"  # open_clip's mode for pictures of another shape
    description: dict[str, Any] = field(default_factory=dict)  # what a folder of ours holds beside the weights
    described_in: str = "open_clip_config.json"  # the description's file, by which evaluation knows whose weights these are

    @property
    def pad_id(self) -> int:
        return int(getattr(self.net, "pad_id", 0))


def build(config: Train) -> Model:
    """The model of a config, on the CPU, in float32, locked as asked; its random weights follow from `seed` alone.

    Raises UserError for a model or weights that are not there, and for a model that takes no picture or text of its own size.
    """
    import torch

    torchvision_shim.ensure()
    torch.manual_seed(config.seed)
    if config.model.name == OFFLINE_SCORER:
        from stages.train import frozen

        return _locked(frozen.build(config), config)
    import open_clip

    register()
    wanted = config.model
    name = resolve(wanted.name)
    brings = name.startswith(("hf-hub:", "local-dir:"))
    if brings and wanted.pretrained:
        raise UserError(f"train.model.pretrained: {wanted.name} brings its own weights; leave it out")
    if away := hub.lacking(name):
        raise UserError(f"train.model: {away}")
    weights = "its own weights" if brings else wanted.pretrained or "random weights"
    options: dict[str, Any] = {}
    with _Local(wanted.pretrained) as pretrained, hushed(), asked(f"train.model: open_clip cannot make {wanted.name} with {weights}"):
        described = _describe(open_clip, name, wanted)
        if config.loss.kind == "siglip" and "init_logit_bias" not in described:
            options = {"init_logit_scale": math.log(10), "init_logit_bias": -10}  # as open_clip's own training does for --siglip
        net = open_clip.create_model(
            name,
            pretrained=pretrained,
            output_dict=True,
            weights_only=True,
            require_pretrained=brings,  # else it takes random ones without a word where a folder has none
            force_image_size=wanted.image_size,
            force_context_length=wanted.context_length,
            **{key: described[key] for key in _overridden(wanted) if key in described},
            **options,
        )
        if hasattr(net, "text_decoder") and wanted.pretrained is None and not brings:
            projection = net.text_decoder.text_projection  # open_clip 3.3 leaves it as the memory was; its own rule elsewhere is this one
            torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
        tokenizer = open_clip.get_tokenizer(name, context_length=wanted.context_length)
        _try(net, tokenizer)
    kind = _kind(net, config)
    model_cfg = {**described, **options}
    model_cfg.pop("custom_text", None)
    if not isinstance(net, open_clip.CLIP):
        model_cfg["custom_text"] = True
    preprocess = dict(net.visual.preprocess_cfg)
    made = Model(
        net=net,
        image_size=_size(net),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        tokenizer=tokenizer,
        context_length=int(tokenizer.context_length),
        loss=kind,
        resize=preprocess.get("resize_mode") or "shortest",
        description={"model_cfg": model_cfg, "preprocess_cfg": {key: preprocess[key] for key in PREPROCESS}},
    )
    return _locked(made, config)


@contextlib.contextmanager
def asked(what: str) -> Iterator[None]:
    """Whatever open_clip, a package below it or a storage raises for what a user asked for, as a UserError that begins with `what`."""
    try:
        yield
    except (ShardmillError, MemoryError):
        raise
    except Exception as err:  # there is no list: a width that heads do not divide is an AssertionError, an unknown key a TypeError …
        said = " ".join(str(err).split())[:300]
        if isinstance(err, EOFError | pickle.UnpicklingError):  # torch's own advice is to load it unsafely
            said = "the file holds no weights, or more than weights"
        raise UserError(f"{what}: {type(err).__name__}: {said}") from err


def _size(net: Any) -> tuple[int, int]:
    size = net.visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _try(net: Any, tokenizer: Any) -> None:
    """Has a blank picture and a text go through: sizes that do not fit are told before any data is read."""
    import torch

    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, *_size(net)), tokenizer(["a picture"]))
    net.train()


def register() -> None:
    """Makes our own model configs known to open_clip, once."""
    import open_clip
    from open_clip import factory

    if CONFIGS not in factory._MODEL_CONFIG_PATHS:
        open_clip.add_model_config(CONFIGS)


def resolve(name: str) -> str:
    """The name by which open_clip knows a model; registers a JSON of the user's. Raises UserError for what it does not know."""
    import open_clip

    if name.endswith(".json"):
        return _register_json(name)
    if Path(name).is_dir():
        if not (Path(name) / "open_clip_config.json").is_file():
            raise UserError(f"train.model: {name} has no open_clip_config.json; give a folder as open_clip's hub models have")
        return f"local-dir:{name}"
    if name.startswith(("hf-hub:", "local-dir:")) or name in open_clip.list_models():
        return name
    near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"train.model: open_clip knows no model {name}, and there is no such folder or .json{hint}")


def _register_json(path: str) -> str:
    import fsspec
    import open_clip

    with asked(f"train.model: {path} cannot be read"), fsspec.open(path, "rt") as handle:
        config = json.load(handle)
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - set(config if isinstance(config, dict) else ()):
        raise UserError(f"train.model: {path} lacks {', '.join(sorted(missing))}; see the configs of open_clip/model_configs")
    name = path.rpartition("/")[2].removesuffix(".json")
    if name in open_clip.list_models() and open_clip.get_model_config(name) != config:
        raise UserError(f"train.model: {path}: open_clip has another model named {name}; give the file another name")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
    return name


def _describe(open_clip: Any, name: str, wanted: Wanted) -> dict[str, Any]:
    """open_clip's config of a model with the overrides of ours."""
    config: dict[str, Any] = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    given = {"image_size": wanted.image_size, "patch_dropout": wanted.patch_dropout}
    timm = {"timm_drop": wanted.drop, "timm_drop_path": wanted.drop_path}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # nothing is fetched that was not asked for
        given |= timm
    elif set_ := [key.removeprefix("timm_") for key, value in timm.items() if value is not None]:
        raise UserError(f"train.model.{set_[0]}: {wanted.name} has no timm image tower; use patch_dropout")
    vision.update({key: value for key, value in given.items() if value is not None})
    if wanted.context_length is not None:
        text["context_length"] = wanted.context_length
        if "multimodal_cfg" in config:
            config["multimodal_cfg"]["context_length"] = wanted.context_length
    return config


def _overridden(wanted: Wanted) -> set[str]:
    """The sections of open_clip's config that `create_model` has no argument of its own for."""
    changed = {"vision_cfg"} if (wanted.patch_dropout, wanted.drop, wanted.drop_path) != (None, None, None) else set()
    return changed | ({"multimodal_cfg"} if wanted.context_length is not None else set())


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """open_clip warns of random weights, on the root logger; here they are what was asked for. What it logs as an error it raises too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class _Local:
    """A local name for a file of weights at a path or URL for the time of the block; tags pass as they are."""

    def __init__(self, pretrained: str | None) -> None:
        self.pretrained, self.folder = pretrained, tempfile.TemporaryDirectory()

    def __enter__(self) -> str | None:
        if self.pretrained is None or "://" not in self.pretrained:
            return self.pretrained
        import fsspec

        with asked(f"train.model.pretrained: {self.pretrained} cannot be read"):
            fs, path = fsspec.core.url_to_fs(self.pretrained)
            local = Path(self.folder.name) / path.rpartition("/")[2]
            fs.get_file(path, str(local))
        return str(local)

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def _kind(net: Any, config: Train) -> str:
    """The loss that a model is trained with. Raises UserError where it cannot be."""
    captions = hasattr(net, "text_decoder")
    biased = getattr(net, "logit_bias", None) is not None
    kind = config.loss.kind
    if kind == "auto":
        return "coca" if captions else "siglip" if biased else "clip"
    if (kind == "coca") != captions:
        has = "a captioning decoder" if captions else "no captioning decoder"
        raise UserError(f"train.loss.kind: {kind} does not go with {config.model.name}, which has {has}; leave it at auto")
    return kind


def _locked(model: Model, config: Train) -> Model:
    """Locks towers by open_clip's own functions (CoCa has none of its own, its towers do), and what the loss leaves out."""
    wanted, net = config.model, model.net
    with asked(f"train.model: open_clip cannot lock {wanted.name} so"):
        if wanted.lock_image:
            lock = getattr(net, "lock_image_tower", None) or net.visual.lock
            lock(unlocked_groups=wanted.lock_image_unlocked_groups, freeze_bn_stats=True)
        if wanted.lock_text:
            lock = getattr(net, "lock_text_tower", None) or net.text.lock
            lock(wanted.lock_text_unlocked_layers)
    if model.loss != "siglip" and getattr(net, "logit_bias", None) is not None:
        net.logit_bias.requires_grad_(False)  # no other loss uses it; DDP waits for the gradient of all that has one
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError("train.model: nothing is left to train; unlock a tower")
    if config.strategy == "fsdp":
        _vectors(net)
    return model


def _vectors(net: Any) -> None:
    """Scalars (logit scale and bias) as vectors of one element: FSDP2 shards no scalars. Checkpoints hold scalars again."""
    import torch

    for part in net.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(part, name, torch.nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad))


def train_mode(module: Any) -> None:
    """Training mode for what is trained; whatever is frozen whole stays in evaluation mode (no dropout, no running statistics)."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def wrap(model: Model, learnable: tuple[float, float] | None = None) -> Any:
    """The module that is trained: `forward(image, text)` -> open_clip's dictionary of outputs.

    image: uint8[b, 3, h, w], or [b, t, 3, h, w] for clips of t frames, or features of a frozen tower; text: int64[b, length].
    `learnable`: the first weights of the contrastive and the captioning loss, where they are to be learnt.
    """
    import torch

    class Trained(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net
            if learnable is not None:
                self.loss_log_variance = torch.nn.Parameter(-torch.log(torch.tensor(learnable)))
            for name in ("mean", "std"):
                value = torch.tensor(getattr(model, name)).view(1, 3, 1, 1) if getattr(model, name) else torch.zeros(0)
                self.register_buffer(name, value, persistent=False)

        def forward(self, image: Any, text: Any) -> dict[str, Any]:
            frames = image.shape[1] if image.ndim == 5 else 0
            if frames:
                image = image.flatten(0, 1)
            if image.dtype == torch.uint8 and self.mean.numel():
                image = image.float().div_(255).sub_(self.mean).div_(self.std)
                if image.device.type == "cuda":
                    image = image.contiguous(memory_format=torch.channels_last)
            out = _of_clips(model, image, text, frames) if frames else self.net(image, text)
            if learnable is not None:
                out["loss_log_variance"] = self.loss_log_variance.clone()
            return dict(out)

    return Trained()


def _of_clips(model: Model, frames: Any, text: Any, number: int) -> dict[str, Any]:
    """Outputs for clips of `number` frames each; frames: float[b * number, 3, h, w]. Frames' features are averaged, then normalised."""
    from torch.nn import functional

    net = model.net

    def pooled(value: Any) -> Any:
        return value.unflatten(0, (-1, number)).mean(1)

    if model.loss == "coca":
        latent, tokens = net._encode_image(frames, normalize=False)
        out: dict[str, Any] = net(None, text, image_latent=functional.normalize(pooled(latent), dim=-1), image_embs=pooled(tokens))
        return out
    features = functional.normalize(pooled(net.encode_image(frames)), dim=-1)
    out = {"image_features": features, "text_features": net.encode_text(text, normalize=True), "logit_scale": net.logit_scale.exp()}
    if getattr(net, "logit_bias", None) is not None:
        out["logit_bias"] = net.logit_bias
    return out
