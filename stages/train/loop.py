"""The training loop of one rank: batches in, steps, metrics and checkpoints out; what it does follows from config and data alone.

Everything that ranks must agree on travels in one small all-reduce a step: the loss, whether it is finite, whether to stop. On a GPU its
answer is looked at one step later, so that the GPU never waits for it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipeline.errors import ShardmillError, TransientError, UserError
from pipeline.storage import Store
from stages.train import checkpoint, losses, models, optim
from stages.train.config import Train, difference, resumable, shown
from stages.train.metrics import Line, Metrics
from stages.train.step import Stepper, parallel
from stages.train.window import Taken, Window, digest

log = logging.getLogger("shardmill")
DONE, STOPPED, FAILED = "done", "stopped", "failed"
BAD_SHARE, FROM_SAMPLES = 0.5, 1000  # of the samples so far, above which training ends; from how many on that is looked at
SKIPPED = 40  # steps in a row without an update because fp16 overflowed; the scale is halved each time, from 65,536 to 6e-8
EVAL, EVALS = "eval.json", "evals/epoch-{:05d}.json"  # where `Context.evaluate` writes what it found


class Source(Protocol):
    """What gives batches: the loader of shards, or of frozen features, or a test's own."""

    samples: int
    fingerprint: str

    def steps(self, epoch: int) -> int:
        """Batches of an epoch, the same on all ranks."""
        ...

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """This rank's share of each global batch: step, ids, image, text, keys, replaced."""
        ...


@dataclass(frozen=True)
class Context:
    """Where a rank stands, and whom it talks to: all but `note` is called on rank 0 alone. `device`: a torch device's name."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    begin: Callable[[int, int], None] = lambda _step, _steps: None
    note: Callable[[str], None] = lambda _text: None  # what goes on before the first step
    report: Callable[[Line], None] = lambda _line: None
    stop: Callable[[], bool] = lambda: False
    evaluate: Callable[[str, int], None] | None = None  # folder of a model, epochs done; writes EVALS
    measured: str = ""  # what `evaluate` evaluates on; a file of EVALS tells the same where it is of the same data


@dataclass
class Outcome:
    """How a rank's training ended: done, stopped (the same command goes on) or failed (`error` says what to mend).

    `unmeasured` says which evaluations failed, and of what; "": none.
    """

    state: str
    step: int = 0
    steps: int = 0
    error: str = ""
    unmeasured: str = ""
    last: Line = field(default_factory=dict)


class NotFiniteError(UserError):
    """The loss or the gradients are not numbers any more."""


def train(config: Train, context: Context, open_source: Callable[[Train, models.Model, Context], Source]) -> Outcome:
    """Trains from the last checkpoint in `config.out` (or from the start) to the end, on this rank.

    Raises UserError for what can be mended in the config, and where the loss is not finite; TransientError for what may pass.
    """
    import torch

    store = Store(config.out or "", dict(config.storage_options))
    try:
        rank = _Rank(config, context, store, open_source)
        try:
            return rank.run()
        finally:
            rank.close()
    except OSError as err:  # of metrics' files
        raise TransientError(f"train: {store.url}: {err.strerror or err}; mend that, then repeat the command") from err
    except torch.OutOfMemoryError as err:
        said = " ".join(str(err).split())[:200]
        mend = "raise train.accumulate, set train.grad_checkpointing or train.strategy: fsdp, or lower the batch"
        raise UserError(
            f"train.batch: {config.batch} on {config.workers} workers need more memory than the GPU has; {mend} ({said})"
        ) from err


class _Rank:
    """One rank's training: its state and the loop over it."""

    def __init__(self, config: Train, context: Context, store: Store, open_source: Any) -> None:
        import torch

        self.config, self.context, self.store = config, context, store
        self.model = models.build(config)
        self.source: Source = open_source(config, self.model, context)
        self.steps_of = [self.source.steps(epoch) for epoch in range(config.epochs)]
        self.steps = sum(self.steps_of)
        self.stepper = _stepper(config, self.model, context, torch.device(context.device))
        self.share = config.batch // context.world
        self.step = 0  # steps taken
        self.pending: Taken | None = None
        self.window = Window()
        self.skipped = 0  # steps in a row whose gradients were no numbers
        self.replaced = 0  # samples of the lines so far, on all ranks
        self.last: Line = {}
        self.stopping = False
        self.unmeasured: list[int] = []  # epochs whose evaluation failed
        self.fault = ""  # of the last of them
        self._resume()
        self._check_end()
        self.metrics = Metrics(store, self.step, config.tensorboard) if context.rank == 0 else None

    def _resume(self) -> None:
        state = checkpoint.latest(self.store)
        if state is None:
            return
        where = self.store.address(checkpoint.FOLDER)
        told = json.loads(state["described"]) if "described" in state else None
        if told and (found := difference(told, json.loads(json.dumps(self.model.description)), "")):
            raise UserError(
                f"train.model: {self.config.model.name}: {found[0].lstrip('.')} was {found[1]} when the checkpoints in {where} were "
                f"written, and is {found[2]} now; set it back, or give another train.out"
            )
        for name in resumable(json.loads(state["config"]), self.config):
            if self.context.rank == 0:
                log.info("train.%s differs from what it was when the checkpoint in %s was written", name, where)
        if state["fingerprint"] != self.source.fingerprint:
            raise UserError(f"train.data: the shards are not those that the checkpoints in {where} were trained on; give another train.out")
        checkpoint.restore(self.stepper.module, self.stepper.optimizer, self.stepper.ema, state)
        if state["scaler"]:  # without, it was written in another precision: fp16 begins with its first scale
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.replaced = int(state["replaced"])
        self.window = Window.resumed(state["window"], self.context.rank)
        if self.step >= self.steps and self.config.ema and not state["ema"]:
            raise UserError(
                f"train.ema: the training in {self.store.url} is done and kept no moving average; take ema out, or give another train.out"
            )

    def _check_end(self) -> None:
        """Raises UserError where the checkpoint is of a longer training than the config's."""
        if self.step > self.steps:
            raise UserError(
                f"train.epochs: {self.config.epochs} would be {self.steps} steps, and the checkpoint in "
                f"{self.store.address(checkpoint.FOLDER)} is of step {self.step}; raise epochs again, or give another train.out"
            )

    def run(self) -> Outcome:
        epoch, start = self._place()
        if self.context.rank == 0:
            self._drop_evals(epoch)
            self.context.begin(self.step, self.steps)
        models.train_mode(self.stepper.inner)
        # A kill may have come between checkpoint and evaluation, or the latter was asked for since, or the model was removed.
        if epoch and not start and (self._due(epoch) or (epoch == self.config.epochs and not self._exported())):
            self._export(checkpoint.gather(self.stepper.module, self.stepper.optimizer, self.stepper.ema))
            self._evaluate(epoch)
        while epoch < self.config.epochs:
            for batch, wait_s in _timed(self.source.batches(epoch, start)):
                self._take(batch, wait_s, epoch)
                start += 1
                every = self.config.checkpoint.every_steps
                if start < self.steps_of[epoch] and (self.stopping or (every and self.step % every == 0)):
                    self._save()
                if self.stopping and start < self.steps_of[epoch]:
                    return self._outcome(STOPPED)
            epoch, start = epoch + 1, 0
            self._save(epoch)
            self._evaluate(epoch)
            if self.stopping and epoch < self.config.epochs:
                return self._outcome(STOPPED)
        return self._outcome(DONE)

    def _place(self) -> tuple[int, int]:
        """The epoch and the step in it at which training goes on."""
        epoch, start = 0, self.step
        while epoch < self.config.epochs and start >= self.steps_of[epoch]:
            start -= self.steps_of[epoch]
            epoch += 1
        return epoch, start

    def _take(self, batch: Any, wait_s: float, epoch: int) -> None:
        rate = optim.learning_rate(self.config.optimizer, self.config.schedule, self.step, self.steps)
        parts = self.stepper(batch.image, batch.text, rate, self.step)
        order = digest(batch.ids, self.step, self.context.rank * self.share)
        self.step += 1
        names, values, ready = self._shared(parts)
        self._settle()
        self.pending = Taken(self.step, epoch, rate, names, values, ready, batch.keys, wait_s, int(batch.replaced), order)
        if ready is None:
            self._settle()

    def _shared(self, parts: dict[str, Any]) -> tuple[list[str], Any, Any]:
        """Averages a step's figures over the ranks and starts to bring them to the CPU: names, values, and an event to wait for."""
        import torch

        names = [*parts, "stop"]
        wants = float(self.context.rank == 0 and self.context.stop())
        with torch.no_grad():
            figures = [value.detach().float().reshape(()) for value in parts.values()]
            values = torch.stack([*figures, torch.tensor(wants, device=self.stepper.device)])
        if self.context.world > 1:
            torch.distributed.all_reduce(values)
            values /= self.context.world
        ready = None
        if values.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        return names, values, ready

    def _settle(self) -> None:
        """Looks at the figures of the step before: raises where they are no numbers, notes whether to stop, writes metrics."""
        taken, self.pending = self.pending, None
        if taken is None:
            return
        self.window.add(taken)
        if taken.ready is not None:
            taken.ready.synchronize()
        figures = dict(zip(taken.names, taken.values.tolist(), strict=True))
        self.stopping = self.stopping or figures.pop("stop") > 0
        norm, scale = figures.pop("grad_norm"), figures.pop("scale")
        loss = sum(figures.values())
        self.skipped = 0 if np.isfinite(norm) else self.skipped + 1
        bound = SKIPPED if self.stepper.scaler.is_enabled() else 1  # gradients that overflow are what fp16's scaler looks for
        if not np.isfinite(loss) or self.skipped >= bound:
            self._refuse(taken, loss, norm)
        if taken.step % self.config.log_every == 0 or taken.step == self.steps:
            parts = figures if len(figures) > 1 else {}
            self._log(taken, {"loss": loss, **parts, "scale": scale, "grad_norm": None if self.skipped else norm})

    def _log(self, taken: Taken, figures: dict[str, float | None]) -> None:
        import torch

        window, self.window = self.window, Window(taken.at)
        counts = window.shared(self.context.world, self.stepper.device)
        self.replaced += counts["replaced"]
        self._check_data(taken.step * self.config.batch, self.replaced)
        if self.metrics is None:
            return
        seconds = max(taken.at - window.began, 1e-9)
        line: Line = {"step": taken.step, "epoch": taken.epoch, "samples_seen": taken.step * self.config.batch, **figures, "lr": taken.rate}
        line |= {"samples_per_s": window.steps * self.config.batch / seconds, "data_wait_share": min(window.wait_s / seconds, 1.0)}
        line |= {"replaced": counts["replaced"], "order": f"{counts['order']:016x}"}
        if self.stepper.device.type == "cuda":
            line["memory_bytes"] = torch.cuda.max_memory_allocated(self.stepper.device)
        self.metrics.write(line)
        self.last = line
        self.context.report(line)

    def _check_data(self, seen: int, replaced: int) -> None:
        """Raises UserError on all ranks where most of what was seen stood for something bad: few samples, again and again."""
        if seen >= min(FROM_SAMPLES, self.steps_of[0] * self.config.batch) and replaced > BAD_SHARE * seen:
            raise UserError(
                f"train.data: {replaced} of {seen} samples so far cannot be trained on, and others stood for them; the log names "
                "them and their shards (a warning each): mend these shards or leave them out, and give another train.out"
            )

    def _refuse(self, taken: Taken, loss: float, norm: float) -> None:
        """Writes the keys of the global batch down, in order. Raises NotFiniteError on all ranks."""
        import torch

        keys: list[list[str]] = [taken.keys] * self.context.world
        if self.context.world > 1:
            torch.distributed.all_gather_object(keys, taken.keys)
        path = f"not_finite/step-{taken.step:09d}.json"
        if self.context.rank == 0:
            flat = [key for part in keys for key in part]
            told = {"step": taken.step, "epoch": taken.epoch, "loss": str(loss), "grad_norm": str(norm), "lr": taken.rate, "keys": flat}
            self.store.write_json(path, told)
        again = f", the {self.skipped}th step in a row without an update" if self.skipped > 1 else ""
        raise NotFiniteError(
            f"train: step {taken.step} gave the loss {loss} and the gradient norm {norm}{again}; its keys are in "
            f"{self.store.address(path)}. Look at these samples, or lower train.optimizer.lr, set train.optimizer.clip_norm, or use bf16; "
            "the last checkpoint is from before"
        )

    def _save(self, epochs: int | None = None) -> None:
        """A checkpoint of the steps taken so far, if all was finite; after a whole number of `epochs` the model too, where it is wanted."""
        self._settle()
        stepper = self.stepper
        state = checkpoint.gather(stepper.module, stepper.optimizer, stepper.ema)
        state["window"] = self.window.shared(self.context.world, stepper.device)
        if epochs is not None:
            self._check_data(self.step * self.config.batch, self.replaced + state["window"]["replaced"])
        if self.metrics is None:
            return
        self.metrics.flush()
        if epochs is not None and (epochs == self.config.epochs or self._due(epochs)):
            self._export(state)
        held = {"step": self.step, "samples_seen": self.step * self.config.batch, "epoch": self._place()[0]}
        told: dict[str, Any] = {"replaced": self.replaced, "fingerprint": self.source.fingerprint, "config": json.dumps(shown(self.config))}
        told["described"] = json.dumps(self.model.description)
        checkpoint.save(
            self.store, {**held, **told, **state, "scaler": stepper.scaler.state_dict()}, self.step, self.config.checkpoint.keep
        )

    def _export(self, state: dict[str, Any]) -> None:
        """Writes the model of a gathered state, and that of its moving average; on rank 0."""
        if self.context.rank:
            return
        checkpoint.export(self.store, self.model, state["state_dict"], "model", self.step)
        if self.stepper.ema is not None:
            checkpoint.export(self.store, self.model, checkpoint.averaged(state), "model_ema", self.step)

    def _exported(self) -> bool:
        """Whether all of that is there, as it is after this step."""
        folders = ("model", "model_ema") if self.config.ema else ("model",)
        return all(checkpoint.exported(self.store, self.model, folder) == self.step for folder in folders)

    def _due(self, epochs: int) -> bool:
        """Whether a model is evaluated after so many epochs, and was not yet, on this data."""
        wanted, path = self.config.eval, EVALS.format(epochs)
        if self.context.evaluate is None or not (epochs % wanted.every_epochs == 0 or epochs == self.config.epochs):
            return False
        return not self.store.exists(path) or self.store.read_json(path).get("measured") != self.context.measured

    def _drop_evals(self, epochs: int) -> None:
        """Figures after more epochs are of another training, or of steps that are taken again; metrics are cut back alike."""
        folder, _, last = EVALS.format(epochs).rpartition("/")
        later = [name for name in self.store.names(folder, ".json") if name > last]
        for name in later:
            self.store.remove(f"{folder}/{name}")
        if later or not self.step:
            self.store.remove(EVAL)

    def _evaluate(self, epochs: int) -> None:
        """On rank 0, unless it was done before. What fails there costs the figures, and no step of training."""
        if self.context.rank or self.context.evaluate is None or not self._due(epochs):
            return
        began = time.monotonic()
        try:
            self.context.evaluate(self.store.address("model_ema" if self.config.ema else "model"), epochs)
        except Exception as err:  # the model or the data may not suit it, its storage may fail
            self.unmeasured.append(epochs)
            self.fault = str(err) if isinstance(err, ShardmillError) else f"{type(err).__name__}: {err}"
            log.warning("train: the evaluation after epoch %d failed: %s", epochs, self.fault, exc_info=not isinstance(err, ShardmillError))
            self.store.remove(EVAL)  # it is of an earlier model
        self.window.began += time.monotonic() - began  # its time is not training's

    def _outcome(self, state: str) -> Outcome:
        self._settle()
        after = ", ".join(map(str, self.unmeasured))
        failed = f"{'epochs' if len(self.unmeasured) > 1 else 'epoch'} {after} failed: {self.fault}"
        unmeasured = f"train.eval: the evaluation after {failed}; mend it, then repeat the command, or take train.eval out" if after else ""
        return Outcome(state, self.step, self.steps, unmeasured=unmeasured, last=self.last)

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        getattr(self.source, "close", lambda: None)()


def _timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds that the loop waited for it."""
    began = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - began
        began = time.monotonic()


def _stepper(config: Train, model: models.Model, context: Context, device: Any) -> Stepper:
    """Loss, module, optimizer and all else that a step needs, on the device."""
    import torch

    weights = (config.loss.contrastive_weight, config.loss.caption_weight)
    lossy = losses.build(config.loss, model.loss, model.pad_id, context.rank, context.world)
    if config.grad_checkpointing:
        model.net.set_grad_checkpointing(True)
    inner = models.wrap(model, weights if config.loss.learnable else None).to(device)
    if config.compile:
        inner.compile()
    module = parallel(inner, config.strategy, context.world, device)
    ema = optim.Ema.of(inner, config.ema) if config.ema is not None else None
    precision = config.precision if config.precision != "auto" else ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    optimizer = optim.build(inner, config.optimizer)
    return Stepper(config, module, inner, lossy, optimizer, scaler, ema, device, dtype, context.rank, context.world)
