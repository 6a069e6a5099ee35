"""The arms of a comparison: what each detector is trained on, besides the same network, steps, seeds and normals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

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

    Each is made when it is read, and not kept. Made of every shot, the validation part's too, and where defects may lie alone: the
    generator has learned from all of them and knows where the object is, and nobody shall know less.
    """

    @lru_cache(maxsize=1)  # of the type that is being made
    def shots(defect: str) -> list[tuple[np.ndarray, Mask]]:
        return [shot for sample in material.shots if sample.defect == defect and (shot := _marked(sample)) is not None]

    out: list[Sample] = []
    for defect in dict.fromkeys(pair.defect for pair in material.generated):
        if not any(sample.defect == defect for sample in material.shots):
            raise DataError(f"{material.product}/{defect}: no shot of this type; generate pairs of types that have shots")
        for index in range(sum(pair.defect == defect for pair in material.generated)):
            called = f"{name} {defect} {index}"
            made = partial(_made, name, material, defect, shots, derive(seed, name, defect, index))
            out.append(Sample(name=called, defect=defect, group=called, read=made))
    return out


def _made(
    name: str, material: Material, defect: str, shots: Callable[[str], Sequence[tuple[np.ndarray, Mask]]], seed: int
) -> tuple[np.ndarray, Mask]:  # fmt: skip
    """One sample of a baseline."""
    normal, _ = material.normals[int(rng(seed, "normal").integers(len(material.normals)))].read()
    region = region_for(material.regions, defect)
    ruled = region is not None and region.fits(normal.shape[:2])
    ground = region.on(normal.shape[:2]) if region is not None and ruled else foreground(normal)
    return BASELINES[name](normal, shots(defect), seed=seed, ground_HW=ground)


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
    few = baseline_samples(best if arm == BEST else arm, material, seed=seed)
    made = [made_sample(sample.name, sample.defect, *sample.read()) for sample in few]  # once: a training looks at each many times
    return [real, material.generated, made] if arm == BEST else [real, made]
