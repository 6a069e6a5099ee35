"""What it costs that a crew draws instead of one process: the same items, each of a second, by the plain loop and by crews of one.

    python benchmarks/crews.py --work WORK

A drawing is a wait of `--seconds` and a small picture, so that all that differs is what brings tasks to workers and records to the
manifest; arms take turns, `--rounds` times. A crew's start is reported by itself: its workers load a model once, whatever they draw.
Writes benchmarks/results/<date>-crews.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pages import hardware, save

from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Mask, Pair, Provenance, Verdict
from anomalydiffusion.generation.crew import Crew, ProcessCrew, fill_together
from anomalydiffusion.generation.rayed import RayCrew
from anomalydiffusion.generation.shards import Task, fill, plan, write_pair

KEYS = [("plate", "hole")]
ARMS = ("plain loop", "one process", "one Ray actor")
KEPT = Verdict(keep=True, reasons=())


def drawn(task: Task, seconds: float) -> Pair:
    """A picture that takes `seconds`."""
    time.sleep(seconds)
    image = np.random.default_rng(task.seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    marked = np.zeros(image.shape[:2], bool)
    marked[100:140, 100:140] = True
    mask = Mask(pixels_HW=marked, origin="bench", seed=task.seed)
    provenance = Provenance(
        product=task.slot.key[0], defect=task.slot.key[1], seed=task.seed, attempt=task.attempt, normal="n.png", normal_sha256="0",
        mask_origin="bench", touched_box=(100, 100, 140, 140), prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0,
        version="0",
    )  # fmt: skip
    return Pair(image_HWC=image, mask=mask, normal_HWC=image, requested=mask, provenance=provenance)


class Drawing:
    """A worker's own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.run, self.seconds = Run.open(folder), seconds

    def __call__(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        return [write_pair(self.run, task, drawn(task, self.seconds), KEPT, self.seconds, "") for task in tasks]


def timed(arm: str, folder: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds until the first item can be drawn, and seconds for each item from then on."""
    shutil.rmtree(folder, ignore_errors=True)
    run, slots, began, ready = Run.create(folder), plan(KEYS, given.num), time.perf_counter(), [0.0]

    def once_ready() -> None:
        ready[0] = time.perf_counter()

    how: dict[str, Any] = {"seed": 0, "batch_size": given.batch_size, "attempts": 1}
    if arm == ARMS[0]:
        once_ready()
        fill(run, slots, lambda tasks: [drawn(task, given.seconds) for task in tasks], lambda pair: KEPT, **how)
        ended = time.perf_counter()
    else:
        build = partial(Drawing, folder, given.seconds)
        crew: Crew = ProcessCrew(1, build) if arm == ARMS[1] else RayCrew("local", 1, build)
        last = [0.0]
        fill_together(run, slots, crew, once_ready=once_ready, progress=lambda record: last.__setitem__(0, time.perf_counter()), **how)
        ended = last[0]
    return ready[0] - began, (ended - ready[0]) / given.num


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one item")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for turn in range(given.rounds):
        for arm in ARMS:
            found[arm].append(timed(arm, given.work / "run", given))
            sys.stderr.write(f"round {turn + 1}, {arm}: begins after {found[arm][-1][0]:.1f} s, {found[arm][-1][1]:.3f} s an item\n")
    plain = [item for _, item in found[ARMS[0]]]
    rows = []
    for arm in ARMS:
        items = [item for _, item in found[arm]]
        over = [100 * (own / base - 1) for own, base in zip(items, plain, strict=True)]
        begins = statistics.median(start for start, _ in found[arm])
        rows.append(
            f"| {arm} | {begins:.1f} | {statistics.median(items):.3f} [{min(items):.3f}, {max(items):.3f}] "
            f"| {statistics.median(over):+.1f} % [{min(over):+.1f}, {max(over):+.1f}] |"
        )
    lines = [
        "# Crews", "", "    python benchmarks/crews.py --work WORK", "",
        f"Items of {given.seconds:g} s, {given.num} in batches of {given.batch_size}, {given.rounds} rounds in turns: "
        "median [least, most], overhead against the plain loop of its round. Between machines the wire comes on top; this does not show.",
        "", "| arm | begins after s | s an item | overhead |", "|---|---|---|---|", *rows, "", "## Settings", "", f"- {hardware()}",
    ]  # fmt: skip
    save("crews", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
