"""Plan what is to be made, claim what is still open, write what is done: a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.seeds import derive
from anomalydiffusion.core.types import Pair, Verdict

__all__ = ["Slot", "Task", "discard", "fill", "next_batch", "open_slots", "plan"]

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One wanted pair: number `index` of a defect type."""

    key: Key
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One attempt at a slot; everything random in it follows from `seed`."""

    slot: Slot
    attempt: int
    seed: int


def plan(keys: Sequence[Key], num: int) -> list[Slot]:
    """`num` slots per defect type, type by type."""
    return [Slot(key=key, index=index) for key in keys for index in range(num)]


def _place(record: dict[str, Any]) -> tuple[str, str, int]:
    return str(record["product"]), str(record["defect"]), int(str(record["image"]).rsplit("/", 1)[1].split(".")[0].split("-")[0])


def open_slots(slots: Sequence[Slot], records: Sequence[dict[str, Any]], attempts: int) -> list[tuple[Slot, int]]:
    """The slots that have neither an accepted pair nor used up their attempts, each with its next attempt."""
    tried: dict[tuple[str, str, int], int] = {}
    done = set()
    for record in records:
        place = _place(record)
        tried[place] = max(tried.get(place, 0), int(record["attempt"]) + 1)
        if record["accepted"]:
            done.add(place)
    out = []
    for slot in slots:
        place = (*slot.key, slot.index)
        if place not in done and tried.get(place, 0) < attempts:
            out.append((slot, tried.get(place, 0)))
    return out


def next_batch(open_: Sequence[tuple[Slot, int]], size: int, seed: int) -> list[Task]:
    """The first `size` open slots as tasks."""
    return [
        Task(slot=slot, attempt=attempt, seed=derive(seed, "pair", *slot.key, slot.index, attempt) % 2**53)
        for slot, attempt in open_[:size]
    ]


def _write(run: Run, task: Task, pair: Pair, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """Image, mask, and last of all the manifest's line."""
    product, defect = task.slot.key
    base = Path("generated") / product / defect
    stem = f"{task.slot.index:06d}"
    if verdict.keep:
        image, mask = base / "images" / f"{stem}.png", base / "masks" / f"{stem}.png"
    else:
        image, mask = base / "rejected" / f"{stem}-{task.attempt}.png", base / "rejected" / f"{stem}-{task.attempt}_mask.png"
    hashes = {}
    for name, path, array in (("image", image, pair.image_HWC), ("mask", mask, pair.mask.pixels_HW)):
        data = encode_png(array)
        write_atomic(run.folder / path, data)
        hashes[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
    record = {
        **pair.provenance.to_dict(), "image": image.as_posix(), "mask": mask.as_posix(), **hashes,
        "requested_mask": mask.as_posix(), "touched_box": list(pair.provenance.touched_box),
        "accepted": verdict.keep, "reasons": list(verdict.reasons), "measures": verdict.measures, "seconds": round(seconds, 3),
    }  # fmt: skip
    Manifest(run.manifest).append(record)
    return record


def discard(run: Run, keys: Sequence[Key]) -> None:
    """Throw away every pair of these defect types: first their lines, then their files."""
    manifest = Manifest(run.manifest)
    if kept := [record for record in manifest.records() if (record["product"], record["defect"]) not in keys]:
        manifest.rewrite(kept)
    else:
        manifest.path.unlink(missing_ok=True)
    for key in keys:
        shutil.rmtree(run.folder / "generated" / key[0] / key[1], ignore_errors=True)


def fill(
    run: Run, slots: Sequence[Slot], make: Callable[[Sequence[Task]], list[Pair]], judge: Callable[[Task, Pair], Verdict], *,
    seed: int, batch_size: int, attempts: int, progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make pairs until every slot is filled or has used up its attempts; returns the manifest's records of these slots.

    A rejected attempt is recorded and drawn again with another seed. When all is done the manifest is put into order
    (product, defect, number, attempt), so that an interrupted run ends with the same lines as an undisturbed one.
    """
    for left_over in (run.folder / "generated").rglob(".part-*"):  # a killed command's half-written files
        left_over.unlink(missing_ok=True)
    manifest = Manifest(run.manifest)
    records = manifest.records()
    while batch := next_batch(open_slots(slots, records, attempts), batch_size, seed):
        began = time.monotonic()
        pairs = make(batch)
        if len(pairs) != len(batch):
            raise GenerationError(f"{len(batch)} pairs were asked for, {len(pairs)} came")
        seconds = (time.monotonic() - began) / len(batch)
        for task, pair in zip(batch, pairs, strict=True):
            record = _write(run, task, pair, judge(task, pair), seconds)
            records.append(record)
            if progress:
                progress(record)
    ordered = sorted(records, key=lambda record: (*_place(record), int(record["attempt"])))
    if ordered != manifest.records():
        manifest.rewrite(ordered)
    wanted = {(*slot.key, slot.index) for slot in slots}
    return [record for record in ordered if _place(record) in wanted]
