"""Batches for one rank: read, decoded and tokenised in processes of their own, in the order that `Order` gives.

A loader worker has a range of the rank's positions, and yields its part of every step; the parts of a step are put side by side. So
what a batch holds depends neither on the number of workers nor on that of ranks. While a group of batches is worked on, the
next one's chunks are fetched, spread over its steps.

Memory of a rank: compressed, at most 1.3 times its share of batch * chunk samples (256 * 32 of 20 KB: 0.2 GB; a smaller chunk takes
less, at more requests), and a few batches of pixels. Workers hand tensors over in shared memory (/dev/shm).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import ShardmillError, TransientError, UserError
from stages.train.corpus import Corpora
from stages.train.order import Order
from stages.train.prepare import Part, Parts, Prepare, with_frames
from stages.train.reading import Reader, Sample, Samples, Span

__all__ = ["Batch", "Loader", "Samples"]

AHEAD = 2  # batches of each worker, and assembled ones, that wait for the trainer
READ_BY = 0.75  # of a group's steps: by then all of the next one's chunks are asked for
CLOSE_S = 30.0  # how long closing waits for a worker that is in the middle of a read
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, b samples. `step` counts within the epoch.

    `ids`: int64 (b,), the order's; `image`: uint8 (b, 3, H, W), of clips (b, T, 3, H, W), channels last in memory; `text`: int64
    (b, context); `keys`: of the samples that are really there; `replaced`: how many of them stand for a bad one; `wait_s`:
    seconds that the trainer waited for it.
    """

    step: int
    ids: Any
    image: Any
    text: Any
    keys: list[str]
    replaced: int
    wait_s: float = 0.0


class Loader:
    """The batches of rank `rank` of `world`; `workers` processes (0: in this one). `epochs`: the run's number, to read no further.

    `threads`: requests at once of a worker; by default 8, or 2 where all is on local disks. Raises UserError where ranks cannot
    share a batch evenly. Close it at the end (or use `with`): its processes go on reading ahead otherwise.
    """

    def __init__(  # noqa: PLR0913
        self,
        corpora: Corpora,
        order: Order,
        rank: int,
        world: int,
        workers: int,
        prepare: Prepare,
        *,
        epochs: int | None = None,
        threads: int | None = None,
        pin: bool = False,
    ) -> None:
        if order.batch % world:
            raise UserError(f"train.batch: {order.batch} samples cannot be shared evenly by {world} workers; choose a multiple of {world}")
        if order.sizes != corpora.sizes:
            raise UserError("the order was made for other shards")
        self.corpora, self.order, self.epochs, self.pin = corpora, order, epochs, pin
        share = order.batch // world
        self.positions = (rank * share, (rank + 1) * share)
        self.workers = min(workers, share)
        local = all("://" not in shard.url for shard, _ in corpora.shards)
        self.threads = threads or (2 if local else 8)
        self.prepare = with_frames(Reader(corpora, order.chunk), prepare)
        self._stream: _Stream | None = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def steps(self, epoch: int) -> int:
        return self.order.steps(epoch)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start_step` on. Asked for the next epoch, the same workers go on.

        Raises UserError for data that cannot be trained on, TransientError for storage that fails.
        """
        if self._stream is None or self._stream.at != (epoch, start_step):
            self.close()
            self._stream = _Stream(self, epoch, start_step)
        stream = self._stream
        steps = self.order.steps(epoch)
        for step in range(start_step, steps):
            began = time.perf_counter()
            try:
                batch = replace(stream.get(), wait_s=time.perf_counter() - began)
            except Exception:
                self.close()  # whoever tries again starts anew
                raise
            if batch.step != step:
                raise RuntimeError(f"step {batch.step} came instead of {step}")
            stream.at = (epoch, step + 1) if step + 1 < steps else (epoch + 1, 0)
            yield batch

    def parts(self, epoch: int, step: int, worker: int, workers: int) -> Iterator[tuple[int, Part]]:
        """(step, part) of one of `workers`, from that step on through all epochs. Runs in the worker's process."""
        first, last = self.positions
        share = last - first
        held = slice(first + share * worker // workers, first + share * (worker + 1) // workers)
        reader = Reader(self.corpora, self.order.chunk)
        made = Parts(reader, self.prepare)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="read") as pool:
            groups = self._groups(epoch, step, held)
            group = next(groups, None)
            coming = group and _Coming(reader, pool, group[2])
            while group and coming:
                number, begin, ids = group
                ready = coming.all()
                group = next(groups, None)
                coming = group and _Coming(reader, pool, group[2])
                for column in range(ids.shape[1]):
                    if coming:
                        coming.advance(min(1.0, (column + 1) / (READ_BY * ids.shape[1])))
                    yield begin + column, made.make(number, np.ascontiguousarray(ids[:, column]), ready)

    def _groups(self, epoch: int, step: int, positions: slice) -> Iterator[tuple[int, int, np.ndarray]]:
        end = None if self.epochs is None else max(self.epochs, epoch + 1)
        while end is None or epoch < end:
            for begin, ids in self.order.groups(epoch, step, positions):
                yield epoch, begin, ids
            epoch, step = epoch + 1, 0


class _Coming:
    """The samples of a group on their way: spans are fetched by threads, and parsed here, little by little."""

    def __init__(self, reader: Reader, pool: ThreadPoolExecutor, ids: np.ndarray) -> None:
        self.reader, self.pool, self.wanted = reader, pool, set(ids.ravel().tolist())
        self.spans = reader.spans(ids.ravel())
        self.fetched: list[tuple[Span, Future[bytes]]] = []
        self.begun = 0
        self.held: dict[int, Sample] = {}

    def advance(self, share: float) -> None:
        """Begins to fetch up to that share of the spans, and parses what has come."""
        target = min(len(self.spans), int(np.ceil(len(self.spans) * share)))
        room = target - self.begun
        for span in self.spans[self.begun : target]:
            self.fetched.append((span, self.pool.submit(self.reader.fetch, span)))
        self.begun = target
        for _ in range(room + 1):
            if not (self.fetched and self.fetched[0][1].done()):
                break
            self._take()

    def all(self) -> dict[int, Sample]:
        """Waits for all."""
        self.advance(1.0)
        while self.fetched:
            self._take()
        return self.held

    def _take(self) -> None:
        span, future = self.fetched.pop(0)
        found = self.reader.parse(span, future.result())
        self.held |= {id_: sample for id_, sample in found.items() if id_ in self.wanted}


class _Stream:
    """Batches one after the other through all epochs, from (epoch, step) on; `at` is what comes next."""

    def __init__(self, loader: Loader, epoch: int, step: int) -> None:
        self.loader, self.at = loader, (epoch, step)
        self.stopped = threading.Event()
        if not loader.workers:
            self.inline = loader.parts(epoch, step, 0, 1)
            return
        self.ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self.source = _processes(loader, epoch, step)
        self.thread = threading.Thread(target=self._assemble, daemon=True, name="batches")
        self.thread.start()

    def get(self) -> Batch:
        if not self.loader.workers:
            step, part = next(self.inline)
            return self._batch(step, [part])
        found = self.ready.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        if not self.loader.workers:
            self.inline.close()  # type: ignore[attr-defined]
            return
        self.stopped.set()
        end = time.monotonic() + CLOSE_S
        while self.thread.is_alive() and time.monotonic() < end:
            with suppress(queue.Empty):  # room for what the thread is about to put
                self.ready.get_nowait()
            self.thread.join(0.01)
        # torch has no public way, and a trace that someone holds keeps the iterator, and with it its processes, alive.
        self.source._shutdown_workers()  # type: ignore[attr-defined]

    def _assemble(self) -> None:
        try:
            while not self.stopped.is_set():
                found = [next(self.source) for _ in range(self.loader.workers)]
                fault = next((one for one in found if isinstance(one, BaseException)), None)
                if fault is not None:
                    raise fault
                self._put(self._batch(found[0][0], [part for _, part in found]))
        except (ConnectionError, EOFError) as err:
            said = f"a loader worker died ({type(err).__name__}: {err}); the system's log tells whether for want of memory"
            self._put(TransientError(f"train: {said}; the same command goes on"))
        except BaseException as err:  # noqa: BLE001 - raised where the batch is asked for
            self._put(err)

    def _put(self, item: Batch | BaseException) -> None:
        while not self.stopped.is_set():
            try:
                self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def _batch(self, step: int, parts: list[Part]) -> Batch:
        import torch

        whole = parts[0]
        if len(parts) > 1:
            whole = Part(
                np.concatenate([part.ids for part in parts]),
                torch.cat([part.pixels for part in parts]),
                torch.cat([part.text for part in parts]),
                [key for part in parts for key in part.keys],
                [fault for part in parts for fault in part.faults],
                sum(part.replaced for part in parts),
            )
        for id_, key, why in whole.faults:
            log.warning("sample %d (%s) is bad, another stands for it: %s", id_, key, why)
        image, text = (whole.image.pin_memory(), whole.text.pin_memory()) if self.loader.pin else (whole.image, whole.text)
        return Batch(step, whole.ids, image, text, whole.keys, whole.replaced)


def _processes(loader: Loader, epoch: int, step: int) -> Iterator[Any]:
    """torch's DataLoader over the workers' parts: it takes one from each in turn."""
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn of their threads in forked processes

    class Data(IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            import cv2

            cv2.setNumThreads(0)  # a pool of threads does not survive the fork
            info = get_worker_info()
            try:
                yield from loader.parts(epoch, step, info.id, info.num_workers)
            except ShardmillError as err:
                yield err  # torch would bury its text in a trace

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than CPUs: that is the user's choice
        made = DataLoader(Data(), batch_size=None, num_workers=loader.workers, prefetch_factor=AHEAD, collate_fn=_same)
        return iter(made)


def _same(part: Any) -> Any:
    return part
