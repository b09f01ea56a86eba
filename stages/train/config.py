"""The options of training, typed: the section `train` of a corpus config, or of a file of its own (configs/train/)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.stage import Strict
from stages.train.augment import Augment

OFFLINE_SCORER = "offline-scorer"


class Model(Strict):
    """Which model, where its weights come from, and what of it is trained. `model: ViT-B-32` is short for `model: {name: ViT-B-32}`."""

    name: str
    """An open_clip model's name, `ViT-tiny` (ours, for tests and samples), `hf-hub:ORG/NAME`, a folder with open_clip_config.json,
    a model config of open_clip's form (path or URL of a .json), or `offline-scorer`."""
    pretrained: str | None = None
    """A tag of open_clip's weights, or a file of weights or a checkpoint (path or URL), ours or open_clip's; null starts at random."""
    image_size: int | None = Field(None, ge=1)
    """Overrides the model's own input size (pixels, square)."""
    context_length: int | None = Field(None, ge=1)
    """Overrides the number of tokens of a text."""
    lock_image: bool = False
    """Trains the text tower to a locked image tower (LiT, Zhai et al. 2022), by open_clip's own lock."""
    lock_image_unlocked_groups: int = Field(0, ge=0)
    """How many of the image tower's last layer groups stay trainable."""
    lock_text: bool = False
    """Locks the text tower."""
    lock_text_unlocked_layers: int = Field(0, ge=0)
    """How many of the text tower's last layers stay trainable."""
    patch_dropout: float | None = Field(None, ge=0, lt=1)
    """Share of image patches that a training step leaves out (FLIP, Li et al. 2023); null leaves the model's own."""
    drop: float | None = Field(None, ge=0, lt=1)
    """Dropout before the head of a timm image tower; null leaves the model's own."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth of a timm image tower; null leaves the model's own."""

    @model_validator(mode="after")
    def _locks(self) -> Model:
        for part, kind in (("image", "groups"), ("text", "layers")):
            if getattr(self, f"lock_{part}_unlocked_{kind}") and not getattr(self, f"lock_{part}"):
                raise ValueError(
                    f"lock_{part}_unlocked_{kind} leaves a part of a locked tower trainable; set lock_{part}: true, or leave it out"
                )
        return self


class Source(Strict):
    """One corpus of the mixture."""

    shards: str | list[str]
    """A run's folder, a folder of shards, or tars by glob or brace list; paths or URLs."""
    weight: float | None = Field(None, gt=0)
    """Its share of every epoch, relative to the other corpora's; null for all of them: as many as each holds."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for this corpus. Secrets belong into the environment."""


class Loss(Strict):
    """What is minimised: open_clip's own losses."""

    kind: Literal["auto", "clip", "siglip", "coca"] = "auto"
    """`auto`: coca for a CoCa model, siglip where the model has a logit bias, else clip."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of the cross entropies (clip and coca)."""
    contrastive_weight: float = Field(1.0, ge=0)
    """CoCa: alpha, the weight of the contrastive loss (Yu et al. 2022, and open_clip's default)."""
    caption_weight: float = Field(2.0, ge=0)
    """CoCa: beta, the weight of the captioning loss (Yu et al. 2022, and open_clip's default)."""
    learnable: bool = False
    """CoCa: both weights are learnt, by the losses' homoscedastic uncertainty (Kendall, Gal and Cipolla 2018), from those above on."""
    local: bool = True
    """Each rank scores its own rows against all (open_clip's --local-loss); false: every rank computes the whole matrix."""
    gather_with_grad: bool = True
    """Gradients flow through gathered features (open_clip's --gather-with-grad). Only so do n ranks give the gradient of one."""


class Optimizer(Strict):
    """AdamW; norms, biases, vectors and the logit scale are not decayed (open_clip's rule)."""

    lr: float = Field(5e-4, gt=0)
    """The peak learning rate (open_clip's default for CLIP)."""
    weight_decay: float = Field(0.2, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    """Gradients whose joint 2-norm is larger are scaled down to it; null: never."""


class Schedule(Strict):
    """The learning rate by step."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls from the peak to `final` at the last step."""
    warmup: int | float = 0.1
    """Steps (a whole number), or a share of all steps (below 1), over which it rises linearly from 0."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak that is left at the last step."""

    @field_validator("warmup")
    @classmethod
    def _warmup(cls, value: int | float) -> int | float:
        if value < 0 or (isinstance(value, float) and value >= 1 and not value.is_integer()):
            raise ValueError("give a whole number of steps, or a share below 1")
        return value if value < 1 else int(value)


class Checkpoint(Strict):
    """When the state of training is written; also at each epoch's end, when training is stopped, and at its end."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; null: at the ends of epochs alone."""
    keep: int = Field(2, ge=1)
    """How many of the latest are kept."""


class Order(Strict):
    """How finely the order is shuffled, and how sequentially it is read (stages/train/order.py)."""

    chunk: int = Field(32, ge=1)
    """Consecutive samples that are read at once."""
    window: int = Field(16, ge=1)
    """Shards whose chunks are shuffled among one another."""


class Eval(Strict):
    """Evaluation while training, as `shardmill eval` does it."""

    every_epochs: int = Field(1, ge=1)
    """Epochs between two evaluations; after the last epoch there is always one."""
    data: str | list[str] | None = None
    """The shards to evaluate on; null: none is made."""
    storage_options: dict[str, Any] | None = None
    """Passed to fsspec for `data`; null: those of `train.out`. Secrets belong into the environment."""


class Train(Strict):
    """`shardmill train`: open_clip's models and losses on shards, the same samples in the same order on any number of workers."""

    model: Model
    data: list[Source] = []
    """The corpora to train on; in a corpus config, empty means that run's own shards."""
    out: str | None = None
    """Folder or URL for metrics, checkpoints and the trained model; in a corpus config, null means RUN/train."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for `out`."""
    batch: int = Field(256, ge=2)
    """Samples a step, over all workers: the number of negatives, the same on any number of workers."""
    accumulate: int = Field(1, ge=1)
    """Each worker computes its share of a batch in so many pieces, and still contrasts the whole batch (twice the forward passes)."""
    epochs: int = Field(1, ge=1)
    """Passes over the data; each sample stands at most once in each."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast; the weights stay float32. `auto`: bf16 on GPUs, fp32 on CPUs. fp16 scales its gradients."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every worker holds the whole state. fsdp: weights, gradients and optimizer state are sharded (FSDP2; ZeRO-3's equivalent)."""
    grad_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory for about a third more work."""
    compile: bool = False
    """torch.compile."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, kept and written beside them; null: none."""
    augment: Augment = Augment()
    order: Order = Order()
    frozen_features: int = Field(0, ge=0)
    """For models whose towers are frozen up to a head: features of so many augmented views a sample are computed once; 0: off."""
    caption: str = "txt"
    """Which caption: the member `txt`, or the name of a key of the sample's json (a list of captions is drawn from by seed)."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Decides about the order, augmentation, the first weights and dropout."""
    workers: int = Field(1, ge=1)
    """Processes that train together; more than one are started by Ray."""
    loader_workers: int = Field(1, ge=0)
    """Processes a worker that read, decode and augment; 0 does it in the worker itself."""
    gpus: float = Field(0, ge=0, le=1)
    """GPUs a worker (0 or 1); 0 trains on CPUs."""
    cpus: float = Field(1, gt=0)
    """CPUs that Ray sets aside for a worker, its loader's included."""
    launch: Literal["auto", "process", "ray"] = "auto"
    """`auto`: one worker trains in the command's own process, more are Ray's."""
    max_failures: int = Field(3, ge=0)
    """How often Ray begins again from the last checkpoint after a worker was lost."""
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
    tensorboard: bool = True
    """Writes the metrics for tensorboard too, under OUT/tensorboard."""

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.batch % (self.workers * self.accumulate):
            raise ValueError(
                f"batch {self.batch} cannot be cut into workers x accumulate = {self.workers} x {self.accumulate} equal pieces"
            )
        if self.launch == "process" and self.workers > 1:
            raise ValueError("launch: process trains with one worker; set workers: 1 or launch: ray")
        weights = [source.weight is None for source in self.data]
        if any(weights) and not all(weights):
            raise ValueError("data: give every corpus a weight, or none")
        if self.gpus not in (0, 1):
            raise ValueError("gpus: 0 or 1 a worker")
        if self.model.name == OFFLINE_SCORER:
            self._check_offline()
        return self

    def _check_offline(self) -> None:
        """The offline scorer's towers are frozen and stand outside its state: nothing about them can be chosen."""
        model = self.model
        given = {"grad_checkpointing": self.grad_checkpointing, "model.lock_image": model.lock_image, "model.lock_text": model.lock_text}
        given |= {
            f"model.{name}": getattr(model, name) is not None for name in ("image_size", "context_length", "patch_dropout", "drop_path")
        }
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise ValueError(f"{wrong[0]}: {OFFLINE_SCORER} has frozen towers of its own and takes no such option; leave it out")


def shown(config: Train) -> dict[str, Any]:
    """A config as it is kept beside the weights: without the options of storages, which may hold secrets."""
    return config.model_dump(
        mode="json", exclude={"storage_options": True, "data": {"__all__": {"storage_options"}}, "eval": {"storage_options"}}
    )


def resumable(before: dict[str, Any], now: Train) -> list[str]:
    """Names of the options that changed since a checkpoint and merely steer. Raises UserError where its state would not fit any more.

    `before`: what `shown` gave. Models and weights may lie elsewhere now: of these the last part of the path counts.
    """
    current = shown(now)
    fixed = ("model", "batch", "seed", "loss", "augment", "order", "frozen_features", "caption")
    for name in fixed:
        was, now_is = before.get(name), current[name]
        if name == "model":
            was, now_is = _placeless(was or {}), _placeless(now_is)
        if found := difference(was, now_is, name):
            raise UserError(
                f"train.{found[0]}: it was {found[1]} when the checkpoints in train.out were written, and is {found[2]} now; "
                "set it back, or give another train.out"
            )
    was, now_is = ([source["weight"] for source in told.get("data", [])] for told in (before, current))
    if was != now_is:
        raise UserError(
            f"train.data: the weights were {was} when the checkpoints in train.out were written, and are {now_is} now, which is another "
            "order; set them back, or give another train.out"
        )
    return sorted(name for name, value in current.items() if before.get(name) != value)


def difference(before: Any, now: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first value in which two of JSON's trees differ: its dotted name below `name`, before, now; None where they are equal."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    parts = (difference(before.get(key), now.get(key), f"{name}.{key}") for key in sorted({*before, *now}))
    return next((found for found in parts if found), None)


def _placeless(model: dict[str, Any]) -> dict[str, Any]:
    """Without the folders of the model's and the weights' files: what the one holds is compared apart, the other mattered at the start."""
    return model | {name: str(model[name]).rstrip("/").rpartition("/")[2] for name in ("name", "pretrained") if model.get(name)}
