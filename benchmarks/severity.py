"""Is severity what it says? The same pairs drawn from barely visible to gross, and how much of each is seen.

    python benchmarks/severity.py RUN --work WORK

RUN is a trained run; nothing in it is changed. At each level the same places are filled with the same seeds, normal images and masks,
without a gate. Seen is the mean Lab difference to the normal image under the mask. Writes
benchmarks/results/<date>-severity-<product>.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from pages import hardware, save
from scipy.stats import spearmanr
from skimage.color import rgb2lab

import anomalydiffusion as ad
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import read_image, read_mask

LEVELS = (0.4, 0.7, 1.0, 1.5, 2.2)
OPEN_GATE = "gate = {visible = 0.0, change = 0.0, copy = 1.0, strict = 0.0}\n"
FIXED = ("config.toml", "run.json", "split.json", "adapter")

Seen = dict[tuple[str, int], float]  # defect type and place -> Lab units


def drawn(run: Path, work: Path, severity: float, num: int) -> Seen:
    """What is seen of each pair at one level; drawn in a folder of its own, which is kept."""
    folder = work / f"severity-{severity:g}"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in FIXED:
            source = run / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (work / "open.toml").write_text(OPEN_GATE)
    ad.generate(folder, num, severity=severity, config=work / "open.toml")
    found: Seen = {}
    for record in Manifest(folder / "manifest.jsonl").records():
        image, normal = (rgb2lab(read_image(folder / str(record[name]))) for name in ("image", "normal"))
        mask = read_mask(folder / str(record["mask"]))
        place = f"{record['product']}/{record['defect']}", int(Path(str(record["image"])).stem)
        found[place] = float(np.linalg.norm(image - normal, axis=2)[mask].mean())
    return found


def correlation(levels: list[Seen], keys: list[tuple[str, int]]) -> float:
    """The mean over places of Spearman's correlation of level and what is seen: 1 where every step up shows more."""
    return float(np.mean([spearmanr(LEVELS, [seen[key] for seen in levels]).statistic for key in keys]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the pairs are kept")
    parser.add_argument("--num", type=int, default=16, help="pairs a defect type and level")
    given = parser.parse_args()
    levels = [drawn(given.run, given.work, severity, given.num) for severity in LEVELS]
    keys = sorted(set.intersection(*(set(seen) for seen in levels)))
    types = list(dict.fromkeys(kind for kind, _ in keys))
    products = sorted({kind.split("/")[0] for kind in types})
    heads = [f"severity {level:g}" for level in LEVELS]
    lines = [
        f"# Severity on {', '.join(products)}", "", f"    python benchmarks/severity.py RUN --work WORK --num {given.num}", "",
        "Mean Lab difference to the normal image under the mask, median over pairs with their 10th to 90th percentile; and Spearman's "
        "correlation of level and difference within a pair (same seed, normal image and mask), mean over pairs.", "",
        "| defect type | pairs | " + " | ".join(heads) + " | Spearman |", "|---" * (len(heads) + 3) + "|",
    ]  # fmt: skip
    for kind in types:
        own = [key for key in keys if key[0] == kind]
        bands = [np.percentile([seen[key] for key in own], [50, 10, 90]) for seen in levels]
        cells = [f"{middle:.1f} [{low:.1f}, {high:.1f}]" for middle, low, high in bands]
        lines.append("| " + " | ".join([kind, str(len(own)), *cells, f"{correlation(levels, own):.2f}"]) + " |")
    settings = json.loads((given.run / "run.json").read_text())
    lines += ["", f"All types: {correlation(levels, keys):.2f}.", "", "## Settings", "", f"- {hardware()}",
              f"- preset default, split {settings['split_digest']}, gate open"]  # fmt: skip
    save(f"severity-{'-'.join(products)}", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
