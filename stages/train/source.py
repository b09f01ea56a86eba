"""Where a rank's batches come from: shards read in the order of (seed, epoch), or features of frozen towers computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.errors import UserError
from stages.train import loop
from stages.train.config import Train
from stages.train.corpus import open_corpora
from stages.train.loader import Batch, Loader
from stages.train.models import Model
from stages.train.order import Order
from stages.train.prepare import Prepare


class Shards:
    """A rank's loader, as the loop wants it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.samples: int = loader.corpora.n
        self.fingerprint: str = loader.corpora.fingerprint

    def steps(self, epoch: int) -> int:
        return self.loader.steps(epoch)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        return self.loader.batches(epoch, start_step)

    def close(self) -> None:
        self.loader.close()


def open_shards(config: Train, model: Model, context: loop.Context) -> Any:
    """The source that a config names. Raises UserError for data that cannot be trained on."""
    data, options = [source.shards for source in config.data], [source.storage_options for source in config.data]
    corpora = open_corpora(data, options, quiet=context.rank > 0)
    weights = tuple(source.weight for source in config.data if source.weight is not None)
    order = Order(corpora.sizes, config.batch, config.seed, weights or None, config.order.chunk, config.order.window)
    for at, (source, quota) in enumerate(zip(config.data, order.quotas, strict=True)):
        if not quota:
            names = source.shards if isinstance(source.shards, str) else ", ".join(source.shards)
            raise UserError(f"train.data.{at}.weight: {source.weight} takes no sample of {names} in an epoch; raise it, or leave that out")
    prepare = Prepare(
        tokenizer=model.tokenizer,
        image_size=model.image_size,
        augment=config.augment,
        resize=model.resize,
        caption=config.caption,
        seed=config.seed,
    )
    if config.frozen_features:
        from stages.train import frozen

        return frozen.open_features(config, model, context, corpora, order, prepare)
    workers, pin = config.loader_workers, bool(config.gpus)
    return Shards(Loader(corpora, order, context.rank, context.world, workers, prepare, epochs=config.epochs, pin=pin))
