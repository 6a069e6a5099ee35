"""How few steps do: steps x solver x reuse x where a drawing begins -> what pairs are like, what they take, and what they are worth.

    python benchmarks/steps.py RUN --work WORK

RUN is a trained run; nothing in it is changed. Of each cell of the table the same places are filled with the same seeds, normal images
and masks, in a folder of its own in WORK, which is kept. With --seeds a detector is trained with each cell's pairs as well, and tested
on the held-out images, which takes some ten minutes a cell and seed. Seconds are those of one process beside whatever else the machine
does: run it on a quiet one. Writes benchmarks/results/<date>-steps-<product>.md after each cell.
"""

from __future__ import annotations

import argparse
import json
from itertools import product as combined
from pathlib import Path
from typing import Any

from ablation import copy
from pages import as_typed, hardware, save

import anomalydiffusion as ad
from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.downstream.verdict import summary
from downstream import interval, typed_mean, values

STRENGTHS, SOLVERS, REUSES, STEPS = (0.1, 1.0), ("ddim", "dpm"), (1, 2, 4), (5, 10, 20, 50, 200)
LEARNED = ("config.toml", "run.json", "split.json", "adapter", "gate.json", "evaluation")


def drawn(run: Path, folder: Path, num: int, settings: dict[str, float | str]) -> list[dict[str, Any]]:
    """The manifest's lines of one cell."""
    if not folder.exists():
        copy(run, folder, *(path.name for path in run.iterdir() if path.name not in LEARNED))
    config = folder.parent / f"{folder.name}.toml"
    config.write_text("[generate]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    ad.generate(folder, num, config=config)
    return Manifest(folder / "manifest.jsonl").records()


def walked(strength: float, steps: int) -> int:
    """The steps of a drawing at which the denoiser is asked, as `generation.pairs` counts them."""
    return steps if strength == 1 else max(1, round(strength * steps))


def cell(given: argparse.Namespace, strength: float, solver: str, reuse: int, steps: int) -> str:
    """One row of the table."""
    folder = given.work / f"strength-{strength:g}-{solver}-{steps}-reuse-{reuse}"
    calls = walked(strength, steps)
    named = f"| strength {strength:g}, {solver}, {steps} steps, reuse {reuse} | {calls} | {-(-calls // reuse)} |"
    try:
        records = drawn(given.run, folder, given.num, {"strength": strength, "solver": solver, "steps": steps, "reuse": reuse})
    except GenerationError as error:
        return f"{named} could not be made: {error} | | | | | | |"
    kept, seconds = accepted(records), sum(float(record["seconds"]) for record in records)
    looked = ad.evaluate(folder, task="quality")["arms"]["ours"]
    shown = [f"{looked[name]['mean']:.4f}" if looked[name]["mean"] is not None else "-" for name in ("kid", "similarity", "mask_agreement")]
    worth = ["", ""]
    if given.seeds:
        scores = [ad.evaluate(folder, seeds=given.seeds, shortcut=False)]
        worth = [interval(summary(found)) for found in (values(scores, "ours", "pixel_ap"), typed_mean(scores, "ours"))]
    return " | ".join([f"{named} {len(kept)} of {len(records)}", *shown, f"{seconds / len(kept):.2f}", *worth]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the pairs are kept")
    parser.add_argument("--num", type=int, default=40, help="pairs a defect type and cell")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS)
    parser.add_argument("--reuse", type=int, nargs="+", default=REUSES, help="inner levels are asked at every so many steps")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--seeds", type=int, default=0, help="detectors a cell; 0 = none")
    given = parser.parse_args()
    split = json.loads((given.run / "run.json").read_text())["split_digest"]
    products = sorted({record["product"] for record in json.loads((given.run / "split.json").read_text())["files"]})
    heads = ["cell", "calls a drawing", "whole ones", "kept of drawn", "KID", "likeness to held-out defects", "label agreement",
             "seconds a kept pair", "pixel AP", "mean of types"]  # fmt: skip
    lines = [
        f"# Steps on {', '.join(products)}", "", f"    {as_typed(RUN=given.run, WORK=given.work)}", "",
        "Whole calls ask all of the denoiser, the others its finest level, and remember the rest (`reuse`). Means over defect types; KID "
        "(lower is nearer) and likeness of crops around defects to held-out real ones, as efficientnet-lite0 sees them; pixel AP in "
        "hundredths, mean and 95 % t-interval over seeds.", "",
        "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
    ]  # fmt: skip
    closing = ["", "## Settings", "", f"- {hardware()}", f"- {given.num} pairs a defect type, seeds: {given.seeds}, split {split}"]
    for strength, solver, reuse, steps in combined(given.strengths, given.solvers, given.reuse, given.steps):
        if any(less < reuse and less >= walked(strength, steps) for less in given.reuse):
            continue  # the same drawings: the first call alone is whole
        lines.append(cell(given, strength, solver, reuse, steps))
        save(f"steps-{'-'.join(products)}", "\n".join([*lines, *closing]) + "\n", partly=True)
    save(f"steps-{'-'.join(products)}", "\n".join([*lines, *closing]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
