"""The arms of a comparison: what each detector is trained on, besides the same network, steps, seeds and normals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.data.regions import region_for
from anomalydiffusion.downstream.baselines import BASELINES
from anomalydiffusion.downstream.samples import Material, Sample, made_sample

__all__ = ["BEST", "GARBAGE", "MORE", "OURS", "REAL", "arms", "baseline_samples", "misplaced", "pools"]

REAL, OURS, BEST, MORE, GARBAGE = "real-only", "ours", "ours+best", "more-real", "garbage"
OVERLAP = 0.05  # share of a misplaced label that may lie on the true one
TRIES = 20

Pools = list[list[Sample]]


def arms(*, baselines: bool = False, controls: bool = False) -> list[str]:
    """The arms in the order in which they are trained; `ours+best` needs the baselines before it.

    real-only: the shots. perlin, cutpaste, poisson, ours: the shots and as many made samples, half and half. ours+best: the
    shots, ours, and the baseline with the best validation figure. more-real, a positive control: further real defects of other
    parts besides. garbage, a negative one: ours, with the labels elsewhere.
    """
    return [REAL, *(BASELINES if baselines else ()), OURS, *([BEST] if baselines else []), *([MORE, GARBAGE] if controls else [])]


def baseline_samples(name: str, material: Material, *, seed: int) -> list[Sample]:
    """As many samples of each defect type as there are generated pairs of it, by the baseline `name`, on training normals.

    Made of every shot, the validation part's too, and where defects may lie alone: the generator has learned from all of them and
    knows where the object is, and nobody shall know less.
    """
    out: list[Sample] = []
    for defect in dict.fromkeys(pair.defect for pair in material.generated):
        shots = [shot for sample in material.shots if sample.defect == defect and (shot := _marked(sample)) is not None]
        if not shots:
            raise DataError(f"{material.product}/{defect}: no shot of this type; generate pairs of types that have shots")
        region = region_for(material.regions, defect)
        for index in range(sum(pair.defect == defect for pair in material.generated)):
            own = derive(seed, name, defect, index)
            normal, _ = material.normals[int(rng(own, "normal").integers(len(material.normals)))].read()
            ruled = region is not None and region.fits(normal.shape[:2])
            ground = region.on(normal.shape[:2]) if region is not None and ruled else foreground(normal)
            image, mask = BASELINES[name](normal, shots, seed=own, ground_HW=ground)
            out.append(made_sample(f"{name} {defect} {index}", defect, image, mask))
    return out


def _marked(sample: Sample) -> tuple[np.ndarray, Mask] | None:
    image, mask = sample.read()
    return None if mask is None else (image, mask)


def misplaced(sample: Sample, *, seed: int) -> Sample:
    """The sample with its label moved (around the image's borders) to where its defect is not."""

    def read() -> tuple[np.ndarray, Mask | None]:
        image, mask = sample.read()
        if mask is None:
            return image, mask
        generator, true = rng(seed, "misplaced"), mask.pixels_HW
        moved = true
        for _ in range(TRIES):
            offset = [int(generator.integers(side // 4, max(side // 4 + 1, side - side // 4))) for side in true.shape]
            moved = np.roll(true, offset, (0, 1))
            if (moved & true).sum() <= OVERLAP * true.sum():
                break
        return image, Mask(pixels_HW=moved, origin="misplaced", seed=seed)

    return Sample(name=sample.name, defect=sample.defect, group=sample.group, read=read)


def pools(
    arm: str, material: Material, fitted: Sequence[Sample], extra: Sequence[Sample], *, seed: int, best: str = ""
) -> Pools:  # fmt: skip
    """The pools of defect samples that `arm` is trained on, each giving the same share; `best` names the best baseline."""
    real = list(fitted)
    if arm == REAL:
        return [real]
    if arm == OURS:
        return [real, material.generated]
    if arm == MORE:
        return [[*real, *extra]]
    if arm == GARBAGE:
        return [real, [misplaced(pair, seed=derive(seed, number)) for number, pair in enumerate(material.generated)]]
    made = baseline_samples(best if arm == BEST else arm, material, seed=seed)
    return [real, material.generated, made] if arm == BEST else [real, made]
