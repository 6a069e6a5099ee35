"""Plan what is to be made, claim what is still open, write what is done: a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from anomalydiffusion.core.errors import ConfigError, DataError, GenerationError
from anomalydiffusion.core.imprint import Imprint
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import Run, hold, write_atomic
from anomalydiffusion.core.seeds import derive
from anomalydiffusion.core.types import Pair, Verdict
from anomalydiffusion.generation.leftout import LeftOut

__all__ = [
    "FAILURES", "Shard", "Slot", "Task", "discard", "files_of", "fill", "next_batch", "open_slots", "plan", "put_in_order", "records_of",
    "slot_of", "sweep", "write_pair",
]  # fmt: skip

T = TypeVar("T")
Key = tuple[str, str]
FAILURES = 5  # items of a defect type that may fail, one after the other, before it is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One wanted pair: number `index` of a defect type."""

    key: Key
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One attempt at a slot; everything random in it follows from `seed`, but for whose mask's turn it is."""

    slot: Slot
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of `count` commands that work on a run together, `number` 1..`count`: it has every `count`-th slot, or training."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"shard {self.number}/{self.count}: expected i/n with 1 <= i <= n, such as 2/8")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as it is typed: "2/8"."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ConfigError(f"--shard {text}: expected i/n, such as 2/8")
        return cls(number=int(number), count=int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[T]) -> list[T]:
        return list(items[self.number - 1 :: self.count])

    @contextmanager
    def lock(self, run: Run, what: str = "") -> Iterator[None]:
        """Hold this shard of a run, beside other shards and those of other work (`what`).

        Raises `RunError` when a command works on it, or on the run for itself.
        """
        with run.lock(shared=True):
            held = f"{run.folder}: another command is working on shard {self}; wait for it or stop it"
            with hold(run.folder / f".lock-{what}{self.number}-of-{self.count}", held):
                yield


def plan(keys: Sequence[Key], num: int) -> list[Slot]:
    """`num` slots per defect type, type by type."""
    return [Slot(key=key, index=index) for key in keys for index in range(num)]


def slot_of(record: dict[str, Any]) -> Slot:
    """The slot that a manifest's record is an attempt at."""
    index = str(record["image"]).rsplit("/", 1)[1].split(".")[0].split("-")[0]
    return Slot(key=(str(record["product"]), str(record["defect"])), index=int(index))


def open_slots(slots: Sequence[Slot], records: Iterable[dict[str, Any]], attempts: int) -> list[tuple[Slot, int]]:
    """The slots that have neither an accepted pair nor used up their attempts, each with its next attempt."""
    tried: dict[Slot, int] = {}
    done = set()
    for record in records:
        slot = slot_of(record)
        tried[slot] = max(tried.get(slot, 0), int(record["attempt"]) + 1)
        if record["accepted"]:
            done.add(slot)
    return [(slot, tried.get(slot, 0)) for slot in slots if slot not in done and tried.get(slot, 0) < attempts]


def next_batch(open_: Sequence[tuple[Slot, int]], size: int, seed: int) -> list[Task]:
    """The first `size` open slots as tasks."""
    return [
        Task(slot=slot, attempt=attempt, seed=derive(seed, "pair", *slot.key, slot.index, attempt) % 2**53)
        for slot, attempt in open_[:size]
    ]


def files_of(slot: Slot, attempt: int, *, keep: bool, refitted: bool) -> dict[str, str]:
    """Where an attempt's files lie, from the run's folder, under the names that its record has for them."""
    base, stem = PurePosixPath("generated", *slot.key), f"{slot.index:06d}"
    if keep:
        found = {"image": base / "images" / f"{stem}.png", "mask": base / "masks" / f"{stem}.png"}
        requested = base / "requested" / f"{stem}.png"
    else:
        stem, base = f"{stem}-{attempt}", base / "rejected"
        found = {"image": base / f"{stem}.png", "mask": base / f"{stem}_mask.png"}
        requested = base / f"{stem}_requested.png"
    return {name: str(path) for name, path in {**found, "requested_mask": requested if refitted else found["mask"]}.items()}


def write_pair(run: Run, task: Task, pair: Pair, verdict: Verdict, seconds: float, settings_digest: str) -> dict[str, Any]:
    """Write image and mask; the record that the manifest shall hold of them. The image says itself how it was drawn."""
    said = Imprint.of(pair.provenance, index=task.slot.index, settings_digest=settings_digest)
    paths = files_of(task.slot, task.attempt, keep=verdict.keep, refitted=pair.mask is not pair.requested)
    pixels = {"requested_mask": pair.requested.pixels_HW, "image": pair.image_HWC, "mask": pair.mask.pixels_HW}
    hashes = {}
    for path, array in {paths[name]: array for name, array in pixels.items()}.items():  # the mask that was asked for may be the mask
        data = encode_png(array, said.chunk() if path == paths["image"] else None)
        write_atomic(run.folder / path, data)
        hashes[path] = hashlib.sha256(data).hexdigest()
    return {
        **pair.provenance.to_dict(), **paths, "image_sha256": hashes[paths["image"]], "mask_sha256": hashes[paths["mask"]],
        "touched_box": list(pair.provenance.touched_box), "accepted": verdict.keep, "reasons": list(verdict.reasons),
        "measures": verdict.measures, "seconds": round(seconds, 3),
    }  # fmt: skip


def sweep(run: Run) -> None:
    """Take away what a killed command has half written; not while another is writing."""
    for left_over in (run.folder / "generated").rglob(".part-*"):
        left_over.unlink(missing_ok=True)


def discard(run: Run, keys: Sequence[Key]) -> None:
    """Throw away every pair of these defect types: first their lines, then their files."""
    manifest = Manifest(run.manifest)
    if kept := [record for record in manifest.each_pair() if (record["product"], record["defect"]) not in keys]:
        manifest.rewrite(kept, pairs=True)
    elif manifest.path.exists():
        manifest.rewrite([], pairs=True)  # damaged lines are no pairs to throw away
        manifest.path.unlink()
    for key in keys:
        shutil.rmtree(run.folder / "generated" / key[0] / key[1], ignore_errors=True)


def fill(
    run: Run, slots: Sequence[Slot], make: Callable[[Sequence[Task]], list[Pair]], judge: Callable[[Pair], Verdict], *,
    seed: int, batch_size: int, attempts: int, settings_digest: str = "", progress: Callable[[dict[str, Any]], None] | None = None,
    shard: Shard | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make pairs until every slot is filled or has used up its attempts; returns the manifest's records of these slots.

    A rejected attempt is recorded and drawn again with another seed. An item that cannot be made of what there is, a `DataError`, is left
    out and named in RUN/left_out.jsonl, by a shard in a file of its own; the error is raised when `FAILURES` of one defect type fail in a
    row. When all is done the manifest is `put_in_order`, so that an
    interrupted run ends with the same lines as an undisturbed one; not by a `shard`, where others fill other slots at
    the same time. `settings_digest`: of what the pairs are drawn with, for their pictures to say.
    """
    if shard is None:
        sweep(run)
    manifest, left_out, in_a_row = Manifest(run.manifest), LeftOut(), Counter[Key]()
    queue, suspects = deque(open_slots(slots, manifest.each_pair(), attempts)), deque[tuple[Slot, int]]()
    while queue or suspects:
        items = [suspects.popleft()] if suspects else [queue.popleft() for _ in range(min(batch_size, len(queue)))]
        batch = next_batch(items, batch_size, seed)
        began = time.monotonic()
        try:
            pairs = make(batch)
        except DataError as error:  # what one of them is made of; each is tried by itself
            if len(items) > 1:
                suspects.extend(items)
                continue
            slot, attempt = items[0]
            in_a_row[slot.key] += 1
            if in_a_row[slot.key] >= FAILURES:
                raise
            left_out.add(slot.key, slot.index, attempt, error)
            continue
        in_a_row -= Counter({slot.key: in_a_row[slot.key] for slot, _ in items})
        if len(pairs) != len(batch):
            raise GenerationError(f"{len(batch)} pairs were asked for, {len(pairs)} came")
        seconds = (time.monotonic() - began) / len(batch)
        for task, pair in zip(batch, pairs, strict=True):
            record = write_pair(run, task, pair, judge(pair), seconds, settings_digest)
            manifest.append(record)  # last of all
            if not record["accepted"] and task.attempt + 1 < attempts:
                queue.append((task.slot, task.attempt + 1))
            if progress:
                progress(record)
    left_out.write(run, "" if shard is None else f"{shard.number}-of-{shard.count}")
    if shard is None:
        put_in_order(run)
    return sorted(records_of(run, slots), key=_order)


def records_of(run: Run, slots: Sequence[Slot]) -> list[dict[str, Any]]:
    """The manifest's records of these slots."""
    wanted = set(slots)
    return [record for record in Manifest(run.manifest).each_pair() if slot_of(record) in wanted]


def put_in_order(run: Run) -> None:
    """Sort the manifest by product, defect, number and attempt; an attempt that two commands made at once stays once."""
    Manifest(run.manifest).arrange(_order)


def _order(record: dict[str, Any]) -> tuple[Key, int, int]:
    slot = slot_of(record)
    return slot.key, slot.index, int(record["attempt"])
