"""Where proposed masks lie: on the object, and in places like those of real defects. No model is drawn with.

    python benchmarks/placement.py DATA --product cookie

For each defect type masks are proposed as `generate` does: warped, with and without `[masks] alike`, and matched. Printed and written to
benchmarks/results/<date>-placement-<product>.md: the share of their area that lies on the object, as the product finds it and, where
the object stands before a plain background, as Otsu's threshold does, which placing does not use; how like the surroundings of a
random shot's defect theirs are, beside those of another shot of the type; and whether the shot's defect, carried there, is seen, and how
well the mask fits what is then seen to change.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pages import hardware, save
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label

from anomalydiffusion.app.settings import MaskConfig, Settings
from anomalydiffusion.app.source import Source
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.generation.shards import next_batch, plan
from anomalydiffusion.quality.gate import GateConfig, visibility
from anomalydiffusion.quality.scores import mask_agreement

FEW = 8
GATE = GateConfig()


def by_otsu(image_HWC: np.ndarray) -> np.ndarray:
    """The largest part that is brighter, or darker, than Otsu's threshold and does not touch all sides; holes filled."""
    grey = image_HWC.astype(np.float64).mean(2)
    bright = grey > threshold_otsu(grey)
    edge = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    parts = label(bright if edge.mean() < 0.5 else ~bright)
    return np.asarray(ndimage.binary_fill_holes(parts == np.bincount(parts.flat)[1:].argmax() + 1))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def row(source: Source, key: tuple[str, str], num: int, name: str) -> str:
    """One line of the table."""
    own, otsu, alike, seen, fits = [], [], [], [], []
    for task in next_batch([(slot, 0) for slot in plan([key], num)], num, source.settings.seed):
        item = source.item(task)
        marked = item.mask.pixels_HW
        own.append(float(source.ground(key, Path(item.normal), item.normal_sha256)[marked].mean()))
        otsu.append(float(by_otsu(item.normal_HWC)[marked].mean()))
        alike.append(float(source.places(key).likeness(source.target(task), item.normal_HWC, [item.mask])[0]))
        assert item.start_HWC is not None
        change, variation = visibility(item.start_HWC, item.normal_HWC, item.mask)
        seen.append(change >= GATE.change and change >= GATE.visible * variation)
        fits.append(mask_agreement(item.start_HWC, item.normal_HWC, item.mask))
    percent = 100 * sum(seen) / len(seen)
    return f"| {key[1]} | {name} | {spread(own)} | {spread(otsu)} | {spread(alike)} | {percent:.0f} % | {spread(fits)} |"


def among_shots(source: Source, key: tuple[str, str]) -> str:
    """How like each other the surroundings of the shots of different parts are."""
    around, groups = source.places(key).around, source.groups[key]
    pairs = [float(around[a] @ around[b]) for a in range(len(groups)) for b in range(a) if groups[a] != groups[b]]
    return f"| {key[1]} | shots of different parts | | | {spread(pairs) if pairs else '-'} | | |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--product", required=True)
    parser.add_argument("--num", type=int, default=40, help="masks a defect type")
    given = parser.parse_args()
    split = few_shot_split(read_folder(given.data), products=[given.product])
    rows = []
    ways = {"warped": MaskConfig(), f"of {FEW} warped the most alike": MaskConfig(alike=FEW), "matched": MaskConfig(source="matched")}
    for name, masks in ways.items():
        source = Source(split, replace(Settings(), masks=masks), None, None)
        for key in sorted(source.shots):
            rows.append(row(source, key, given.num, name))
            sys.stderr.write(rows[-1] + "\n")
    rows += [among_shots(source, key) for key in sorted(source.shots)]
    lines = [
        f"# Placement on {given.product}", "", f"    python benchmarks/placement.py DATA --product {given.product}", "",
        f"{given.num} proposed masks a defect type, the default preset: mean [least, most] of the share of a mask's area on the object, as "
        "the product finds it and by Otsu's threshold (which means something only where the object stands before a plain background), and "
        "of the likeness (cosine) of what surrounds the mask to what surrounds the defect of a random shot; in how many a shot's defect, "
        "carried under the mask, is seen as the gate asks; and how well the mask fits what is then seen to change (IoU).", "",
        "| defect | places | on the object | by Otsu | likeness | seen | fits |", "|---|---|---|---|---|---|---|", *sorted(rows), "",
        "## Settings", "", f"- {hardware()}", f"- split digest: {split.digest}",
    ]  # fmt: skip
    save(f"placement-{given.product}", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
