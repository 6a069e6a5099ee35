"""How fast are we, against the published way written plainly, on this machine and in the same run?

    python benchmarks/speed.py --work WORK

Times differ from machine to machine and from hour to hour, so what counts are ratios: each round measures the plain way
(anomalydiffusion.app.plain: float32, one at a time, the default allocator, 200 steps, nothing kept) and then ours, in a process each,
beside the machine's own limit in that minute. The paper's prior has random weights, saved and loaded like any other. What was measured
is kept in WORK and not measured again by the same code with the same options, so that a stopped command goes on. Writes
benchmarks/results/<date>-speed.md: median, least and most of the rounds. Needs a quiet machine, 16 GB of memory, 8 GB of disk and about
an hour, with --whole half a day; --row measures only one row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pages import RESULTS, as_typed, hardware, save
from speed_lab import Lab
from speed_rows import LINES, Line

from anomalydiffusion.core.devices import native_bf16


def page(lab: Lab, lines: Sequence[Line]) -> str:
    given = lab.given
    walked = "all walked" if given.whole else f"{given.plain_steps} walked, the others counted like the median of those"
    weighed = 10 if given.whole else given.plain_steps
    prior = f"{given.prior}, float32 files" if given.prior.startswith("random:") else Path(given.prior).name
    threads, versions = lab.same["threads"] or "as torch chooses", f"torch {lab.same['torch']}, diffusers {lab.same['diffusers']}"
    out = [
        "# Speed", "", f"    {as_typed(WORK=given.work, RESULTS=given.output)}", "",
        f"Median, least and most of {given.rounds} rounds; in each the plain way was measured and then ours, in processes of their own. "
        "Plain is the published way written with today's libraries (anomalydiffusion.app.plain): float32, one at a time, the default "
        "allocator, 200 DDIM steps on the whole picture. A row without a dash compares with the cheapest reading of it: the text "
        "encoder once for each pair, no re-weighting, as the released code does by default. Ratios are of the medians of each round.", "",
        "| what | wanted | ours | plain | plain / ours | reached |", "|---|---|---|---|---|---|", *map(str, lines), "",
        "## Settings", "",
        f"- {hardware()}, {versions}, threads: {threads}; load before a process began at most {max(lab.loads, default=0):.1f}",
        f"- paper's size: {prior}; ours in {given.dtype}; tiny prior in {given.tiny_dtype}",
        f"- the plain way's 200 steps at the paper's size: {walked}; with re-weighting {weighed}; with the tiny prior all, and 10",
        "- ours in training: the `default` preset's settings, each sample with its share of the crops that are encoded beforehand",
        "- memory: the most that was resident in a process, its libraries included",
    ]  # fmt: skip
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="where what was measured is kept")
    parser.add_argument("--row", choices=list(LINES), action="append", help="only this row; may be given several times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3, help="calls, steps and batches that are timed in a round")
    parser.add_argument("--whole", action="store_true", help="walk all steps of the plain way, and fill a run of 10,000 pairs")
    parser.add_argument("--plain-steps", type=int, default=6, help="of the plain way's 200, where not --whole")
    parser.add_argument("--prior", default="random:ldm-text2im-large-256", help="of the rows of the paper's size")
    parser.add_argument("--dtype", help="of those (default: bfloat16 where the processor has it)")
    parser.add_argument("--tiny-dtype", default="float32")
    parser.add_argument("--train-batch", type=int, default=4, help="at the paper's size, where 16 need much memory; 0 = the preset's")
    parser.add_argument("--nums", type=int, nargs="+", default=[10, 100, 1000], help="pairs of growing runs, multiples of 5 from 10 on")
    parser.add_argument("--num-pairs", type=int, default=10_000, help="of the run that is reported on and resumed")
    parser.add_argument("--num-images", type=int, default=2000, help="of the data set that is checked")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # what a process of this command measures
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        from speed_arms import ARMS

        sys.stdout.write(json.dumps(ARMS[given.arm](given.options)) + "\n")
        return 0
    if given.dtype is None:
        import torch

        given.dtype = "bfloat16" if native_bf16(torch.device("cpu")) else "float32"
    lab = Lab(given)
    lines = [line for row in given.row or LINES for line in LINES[row](lab)]
    sys.stdout.write("\n".join(map(str, lines)) + "\n")
    save("-".join(["speed", *(given.row or ())]), page(lab, lines), given.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
