"""What planning, claiming, putting in order and resuming cost as a run grows, without a model and without pictures.

    python benchmarks/scale.py --work WORK

For each number of pairs a manifest of that many accepted lines is written, as a run's workers would hand them over, then everything is
timed that a command does with a whole manifest. Writes benchmarks/results/<date>-scale.md: seconds, those for each pair, and the memory
at its highest.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from pages import hardware, save

from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.generation.shards import Shard, Slot, files_of, next_batch, open_slots, plan, put_in_order, records_of

KEYS = [(f"product{number:03d}", defect) for number in range(100) for defect in ("crack", "hole")]
PARTS = ("plan", "share out", "write", "claim", "put in order", "resume", "hand out")
KEPT = 1000  # lines that are appended one by one, synced to the disk each; the rest is written at once


def line(slot: Slot) -> dict[str, object]:
    """A record of the size that a real one has."""
    paths = files_of(slot, 0, keep=True, refitted=False)
    return {
        "product": slot.key[0], "defect": slot.key[1], "seed": slot.index * 7919, "attempt": 0, "normal": "/data/normals/000000.png",
        "normal_sha256": "0" * 64, "mask_origin": "warped", "touched_box": [10, 20, 60, 90], "prior_digest": "0" * 16,
        "adapter_digest": "0" * 16, "config_digest": "0" * 16, "steps": 20, "severity": 1.0, "version": "0", "reference": "/data/a.png",
        **paths, "image_sha256": "0" * 64, "mask_sha256": "0" * 64, "accepted": True, "reasons": [],
        "measures": dict.fromkeys(("change", "variation", "likeness", "agreement", "similarity", "margin"), 0.1234), "seconds": 0.5,
    }  # fmt: skip


def timed(num: int, folder: Path) -> dict[str, float]:
    """Seconds of each part, of a run of `num` pairs."""
    shutil.rmtree(folder, ignore_errors=True)
    run = Run.create(folder)
    manifest, marks = Manifest(run.manifest), [time.perf_counter()]
    slots = plan(KEYS, num // len(KEYS))
    marks.append(time.perf_counter())
    shares = [Shard(number=number, count=64).of(slots) for number in range(1, 65)]
    mixed = [slot for share in shares for slot in share]  # the order in which shards' lines come in
    marks.append(time.perf_counter())
    write_atomic(run.manifest, (json.dumps(line(slot)).encode() + b"\n" for slot in mixed[:-KEPT]))
    for slot in mixed[-KEPT:]:
        manifest.append(line(slot))
    marks.append(time.perf_counter())
    missing = [*slots, *(Slot(key=key, index=num) for key in KEYS)]
    assert len(next_batch(open_slots(missing, manifest.each_pair(), 5), 8, 0)) == 8
    marks.append(time.perf_counter())
    put_in_order(run)
    marks.append(time.perf_counter())
    assert open_slots(slots, Manifest(Run.open(folder).manifest).each_pair(), 5) == []
    marks.append(time.perf_counter())
    assert len(records_of(run, slots)) == num  # as `generate` returns them
    marks.append(time.perf_counter())
    shutil.rmtree(folder)
    return dict(zip(PARTS, (after - before for before, after in pairwise(marks)), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--nums", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help="only this number, as JSON: each is measured in a process of its own")
    given = parser.parse_args()
    if given.one:
        seconds = timed(given.one, given.work / "run")
        sys.stdout.write(json.dumps({**seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}) + "\n")
        return 0
    rows = []
    for num in given.nums:
        typed = [sys.executable, __file__, "--work", str(given.work), "--one", str(num)]
        found = json.loads(subprocess.run(typed, capture_output=True, text=True, check=True).stdout)
        cells = [f"{found[part]:.2f} ({1e6 * found[part] / num:.1f})" for part in PARTS]
        rows.append("| " + " | ".join([f"{num:,}", *cells, f"{found['megabytes']:.0f}"]) + " |")
        sys.stderr.write(rows[-1] + "\n")
    lines = [
        "# Scale", "", "    python benchmarks/scale.py --work WORK", "",
        "Seconds, and in brackets microseconds for each pair; no model, no pictures. Of the lines, the last thousand are appended one by "
        "one and synced, as a command does with each.", "",
        "| pairs | " + " | ".join(PARTS) + " | MB at most |", "|---" * (len(PARTS) + 2) + "|", *rows, "", "## Settings", "",
        f"- {hardware()}",
    ]  # fmt: skip
    save("scale", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
