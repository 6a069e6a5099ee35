"""What one defect image is worth, untrained: how like defects that were never looked at the pairs are, and how varied.

    python benchmarks/reference.py DATA --product magnetic_tile --work WORK

From each of the first shots of every defect type a run is begun (`generate --reference`), and pairs are drawn on normal images: from
noise alone or from the reference under the mask (`strength`), with its keys and values in self-attention or not (`graft`). Held-out
images are not touched: the judges are the type's other shots. Writes benchmarks/results/<date>-reference-<product>.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product as combined
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pages import hardware, save

import anomalydiffusion as ad
from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.core.pixels import read_image, read_mask
from anomalydiffusion.core.types import Mask, Shot
from anomalydiffusion.data.folders import load, read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.quality.features import FeatureExtractor, extractor
from anomalydiffusion.quality.measure import view
from anomalydiffusion.quality.scores import masked_features, masked_similarity, masked_spread

STRENGTHS, GRAFTS = (0.1, 0.3, 0.5, 1.0), (None, 0.5, 1.0)


class Figures(NamedTuple):
    """What the pairs of one reference reach; `to_others` NaN where the type has no other shot."""

    accepted: float
    to_reference: float
    to_others: float
    spread: float


def features(extract: FeatureExtractor, defects: Sequence[tuple[np.ndarray, Mask]]):  # type: ignore[no-untyped-def]
    views = [view(image, mask) for image, mask in defects]
    return masked_features(extract.maps([each.image_HWC for each in views]), [each.mask for each in views])


def drawn(folder: Path, shot: Shot, normals: Path, config: Path, num: int) -> tuple[list[tuple[np.ndarray, Mask]], float]:
    """The accepted pairs of one reference, and their share of what was drawn."""
    try:
        ad.generate(folder, num, reference=shot.path, reference_mask=shot.mask_path, normals=normals, product=[shot.product],
                    defect=[shot.defect], config=config, quiet=True)  # fmt: skip
    except GenerationError:
        return [], 0.0
    records = Manifest(folder / "manifest.jsonl").records()
    kept = accepted(records)
    pairs = [(read_image(folder / str(r["image"])), Mask(pixels_HW=read_mask(folder / str(r["mask"])), origin="file")) for r in kept]
    return pairs, len(kept) / len(records)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--product", required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--references", type=int, default=2, help="of each defect type")
    parser.add_argument("--num", type=int, default=8, help="pairs of each reference and arm")
    given = parser.parse_args()
    split = few_shot_split(read_folder(given.data), products=[given.product])
    extract = extractor("efficientnet-lite0")
    lines, rows = [], []
    for strength, graft in combined(STRENGTHS, GRAFTS):
        name = f"strength {strength:g}, " + ("no graft" if graft is None else f"graft {graft:g}")
        config = given.work / f"{name.replace(', ', '-').replace(' ', '-')}.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        # the untrained run's own graft is overruled; 0 looks at the reference without taking anything
        config.write_text(f"[generate]\nstrength = {strength}\ngraft = {0.0 if graft is None else graft}\n")
        found = []
        for defect in sorted({shot.defect for shot in split.shots}):
            shots = [shot for shot in split.shots if shot.defect == defect]
            for number, shot in enumerate(shots[: given.references]):
                pairs, share = drawn(given.work / f"{config.stem}-{defect}-{number}", shot, split.normals[0].path.parent, config, given.num)
                if not pairs:
                    found.append(Figures(0.0, np.nan, np.nan, np.nan))
                    continue
                own = features(extract, pairs)
                others = [load(other) for other in shots if other.group != shot.group]
                to_others = float(masked_similarity(own, features(extract, others)).mean()) if others else np.nan
                to_own = float(masked_similarity(own, features(extract, [load(shot)])).mean())
                found.append(Figures(share, to_own, to_others, masked_spread(own)))
        rows.append(f"| {name} | " + " | ".join(f"{np.nanmean(column):.3f}" for column in np.array(found).T) + " |")
        sys.stderr.write(rows[-1] + "\n")
    real = [masked_spread(features(extract, [load(shot) for shot in split.shots if shot.defect == defect]))
            for defect in {shot.defect for shot in split.shots}]  # fmt: skip
    lines = [
        f"# One reference, untrained, on {given.product}", "",
        f"    python benchmarks/reference.py DATA --product {given.product} --work WORK"
        f" --references {given.references} --num {given.num}", "",
        "Mean over defect types and references: the share that the gate kept; how like the reference, and like the nearest other shot of "
        "its type (of another part), what lies under the masks is (cosine of masked features); and how varied it is among itself "
        f"(mean of 1 - cosine; real shots of a type: {np.mean(real):.3f}).", "",
        "| arm | kept | like the reference | like the type's other shots | spread |", "|---" * 5 + "|", *rows, "",
        "## Settings", "", f"- {hardware()}", f"- prior tiny, seed 0, split {split.digest}; features: efficientnet-lite0",
    ]  # fmt: skip
    save(f"reference-{given.product}", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
