"""Fill a run's slots by several workers: processes of this machine, or whatever else takes tasks and gives records."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from anomalydiffusion.core.errors import DataError, GenerationError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from anomalydiffusion.generation.leftout import LeftOut
from anomalydiffusion.generation.shards import FAILURES, Slot, next_batch, open_slots, put_in_order, records_of, slot_of, sweep

__all__ = ["PATIENCE", "Crew", "Draw", "ProcessCrew", "Records", "cause", "fill_together"]

log = logging.getLogger(__name__)

AHEAD = 2  # batches that a worker has at once: one that it draws, one that waits for it
PATIENCE = 3  # times that an item may fail, on its own, before it is left out
IMPATIENCE = 60.0  # seconds without any worker after which that is said
LOSSES = 3  # workers in a row, a worker of the crew, that may be lost without a single pair between them

Records = list[dict[str, Any]]
Draw = Callable[[Sequence[Any]], Records]  # given tasks, makes, judges and writes pairs, whose lines are not in the manifest yet; or trains


class Crew(Protocol):
    """Workers that draw; each has its own model."""

    @property
    def size(self) -> int: ...

    @property
    def lost(self) -> tuple[type[BaseException], ...]:
        """What a future raises whose worker is gone."""
        ...

    def submit(self, worker: int, tasks: Sequence[Any]) -> Future[Records]:
        """Hand tasks to a worker, which takes one batch after the other; of no task it only says that it is ready."""
        ...

    def replace(self, worker: int) -> None:
        """Put a new worker in the place of one that is gone; it may have to wait for room."""
        ...

    def close(self) -> None:
        """Let all workers go, and what waits for them."""
        ...


@dataclass(slots=True)
class _Own:
    """What a worker process keeps between batches."""

    draw: Draw | None = None


_OWN = _Own()


def _work(build: Callable[[], Draw], threads: int, parent: int, tasks: Sequence[Any]) -> Records:
    """Draw in a worker process, which makes its model for the first batch; what goes wrong then is said as it is."""
    if _OWN.draw is None:
        torch.set_num_threads(threads)
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()
        _OWN.draw = build()
    return _OWN.draw(tasks) if tasks else []


def _outlive(parent: int) -> None:
    """End this process when the one that began it is gone: killed, it could not say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class ProcessCrew:
    """Processes of this machine, which share out its processors; `build` makes each one's `Draw` and must be picklable."""

    lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, size: int, build: Callable[[], Draw]) -> None:
        self.size, self.build = size, build
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, cores // size)
        self.processes = [self._new() for _ in range(size)]

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, worker: int, tasks: Sequence[Any]) -> Future[Records]:
        return self.processes[worker].submit(_work, self.build, self.threads, os.getpid(), list(tasks))

    def replace(self, worker: int) -> None:
        self.processes[worker].shutdown(wait=False, cancel_futures=True)
        self.processes[worker] = self._new()

    def close(self) -> None:
        for pool in self.processes:
            pool.shutdown(wait=True, cancel_futures=True)


Item = tuple[Slot, int]  # a slot and its attempt


@dataclass(slots=True)
class _Work:
    """What is still to be drawn, what is being drawn, and by whom."""

    crew: Crew
    queue: deque[Item] = field(default_factory=deque)
    suspects: deque[Item] = field(default_factory=deque)  # of batches that failed: drawn one at a time, with nothing beside them
    failed: Counter[Item] = field(default_factory=Counter)
    running: dict[Future[Records], tuple[int, list[Item]]] = field(default_factory=dict)
    coming: dict[Future[Records], int] = field(default_factory=dict)  # workers that do not have their model yet
    ready: list[int] = field(default_factory=list)
    idle_losses: int = 0  # workers that were lost since the last pair
    left_out: LeftOut = field(default_factory=LeftOut)
    in_a_row: Counter[tuple[str, str]] = field(default_factory=Counter)  # of a defect type, that cannot be made of what there is

    def begin(self) -> None:
        """Let every worker make its model; returns when one has it, and the others are on their way."""
        for worker in range(self.crew.size):
            self.coming[self.crew.submit(worker, [])] = worker
        while not self.ready:
            self.await_any()

    def await_any(self) -> list[Future[Records]]:
        """Wait until something happens, and take note of workers that came or are gone; returns the batches that ended."""
        done = wait([*self.running, *self.coming], return_when=FIRST_COMPLETED, timeout=None if self.running else IMPATIENCE).done
        if not done:
            log.warning("no worker is ready; waiting for room for one")
        gone = []
        for future in [each for each in done if each in self.coming]:
            worker = self.coming.pop(future)
            if (error := future.exception()) is None:
                self.ready.append(worker)
            elif isinstance(error, self.crew.lost):
                gone.append((worker, error))
            else:
                raise cause(error)
        self.replace(gone)
        return [each for each in done if each in self.running]

    def replace(self, gone: Sequence[tuple[int, BaseException]]) -> None:
        """Put new workers in the place of those that are gone. Raises `GenerationError` after too many losses without a pair."""
        for worker, error in gone:
            if worker in self.ready:
                self.ready.remove(worker)
            for future in [each for each, (own, _) in self.running.items() if own == worker]:
                self.suspects.extend(self.running.pop(future)[1])  # it waited behind what was being drawn
            self.idle_losses += 1
            if self.idle_losses > LOSSES * self.crew.size:
                raise GenerationError(
                    f"{self.idle_losses} workers were lost and nothing was made; is there memory enough for --workers {self.crew.size}?"
                )
            log.warning("a worker was lost (%s); another takes its place", error or type(error).__name__)
            self.crew.replace(worker)
            self.coming[self.crew.submit(worker, [])] = worker

    def hand_out(self, batch_size: int, seed: int) -> None:
        """Give every worker that is ready what it should have."""
        gone = []
        for worker in self.ready:
            while items := self.next(worker, batch_size):
                try:
                    future = self.crew.submit(worker, next_batch(items, len(items), seed))
                except self.crew.lost as error:  # while it had nothing to do
                    self.queue.extendleft(reversed(items))
                    gone.append((worker, error))
                    break
                self.running[future] = worker, items
        self.replace(gone)

    def busy(self, worker: int) -> int:
        return sum(own == worker for own, _ in self.running.values())

    def next(self, worker: int, batch_size: int) -> list[Item]:
        """What a worker gets now; nothing where it has enough."""
        busy = self.busy(worker)
        if self.suspects:
            return [self.suspects.popleft()] if busy == 0 else []
        if busy >= AHEAD or not self.queue:
            return []
        return [self.queue.popleft() for _ in range(min(batch_size, len(self.queue)))]

    def blame(self, items: Sequence[Item], error: BaseException) -> None:
        """Take note that items failed together; one that failed on its own too often is left out, and at once one that cannot be made.

        Raises the last error where `FAILURES` of one defect type cannot be made, one after the other.
        """
        if len(items) > 1:
            self.suspects.extend(items)
            return
        (item,) = items
        if isinstance(why := cause(error), DataError):  # it would fail again
            self.in_a_row[item[0].key] += 1
            if self.in_a_row[item[0].key] >= FAILURES:
                raise why
            self.left_out.add(item[0].key, item[0].index, item[1], why)
            return
        self.failed[item] += 1
        if self.failed[item] < PATIENCE:
            self.suspects.append(item)
            return
        slot, attempt = item
        self.left_out.add(slot.key, slot.index, attempt, why, times=PATIENCE)


def fill_together(
    run: Run, slots: Sequence[Slot], crew: Crew, *, seed: int, batch_size: int, attempts: int,
    once_ready: Callable[[], None] | None = None, progress: Callable[[dict[str, Any]], None] | None = None,
) -> Records:  # fmt: skip
    """Like `shards.fill`, by the workers of a crew, which is let go at the end; the pairs are the same whoever draws them.

    `once_ready` is called when a worker has its model, and nothing has been drawn or swept yet.
    Lines come into the manifest here, as each batch is done. What a lost worker was drawing is drawn again, one at a time, by others until
    a new one is ready; an item that fails three times on its own, or cannot be made of what there is, is left out, and named with its error
    in RUN/left_out.jsonl: the same command tries it again. Raises `GenerationError` where workers are lost one after the other and nothing
    is made, and whatever a worker says that cannot begin at all.
    """
    manifest, work = Manifest(run.manifest), _Work(crew)
    try:
        work.begin()
        if once_ready:
            once_ready()
        sweep(run)
        work.queue.extend(open_slots(slots, manifest.each_pair(), attempts))
        while work.queue or work.suspects or work.running:
            work.hand_out(batch_size, seed)
            gone = list[tuple[int, BaseException]]()
            for future in work.await_any():
                worker, items = work.running.pop(future)
                if (error := future.exception()) is None:
                    work.idle_losses = 0
                    work.in_a_row -= Counter({slot.key: work.in_a_row[slot.key] for slot, _ in items})
                    for record in future.result():
                        manifest.append(record)
                        if not record["accepted"] and int(record["attempt"]) + 1 < attempts:
                            work.queue.append((slot_of(record), int(record["attempt"]) + 1))
                        if progress:
                            progress(record)
                    continue
                work.blame(items, error)
                if isinstance(error, crew.lost) and worker not in [lost for lost, _ in gone]:
                    gone.append((worker, error))
            work.replace(gone)
    finally:
        crew.close()
        put_in_order(run)
        work.left_out.write(run)
    return records_of(run, slots)


def cause(error: BaseException) -> BaseException:
    """What went wrong in a worker, without what its messenger says."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
