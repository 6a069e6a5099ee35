"""What detectors are trained and tested on: images with their masks, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.pixels import read_image, read_mask
from anomalydiffusion.core.types import Mask, Normal, Shot, Split
from anomalydiffusion.data.folders import load, load_normal
from anomalydiffusion.data.regions import Regions, regions_of

__all__ = ["Generated", "Material", "Sample", "gather", "hold_back", "made_sample", "set_apart"]

Marked = tuple[np.ndarray, Mask | None]  # uint8 H x W x 3; None = nothing is wrong with it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One image; `read` gives its pixels and its mask (None where it is normal)."""

    name: str
    defect: str  # "" = normal
    group: str
    read: Callable[[], Marked]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """A generated pair on disk, the normal image that it was made on and the real defect, if any, that it began from."""

    product: str
    defect: str
    image: Path
    mask: Path
    normal: Path
    normal_sha256: str
    reference: Path | None = None

    @property
    def sources(self) -> list[Path]:
        """The real images that went into it."""
        return [self.normal] if self.reference is None else [self.normal, self.reference]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """Everything about one product: what may be learned from and what is only ever tested on."""

    product: str
    shots: list[Sample]
    normals: list[Sample]
    tests: list[Sample]
    test_normals: list[Sample]
    generated: list[Sample] = field(default_factory=list)
    regions: Regions = field(default_factory=dict)  # where the user allows defects

    @property
    def defects(self) -> list[str]:
        """The defect types that are tested on, in their order."""
        return list(dict.fromkeys(sample.defect for sample in self.tests))


def _of_shot(shot: Shot) -> Sample:
    return Sample(name=str(shot.path), defect=shot.defect, group=shot.group, read=partial(load, shot))


def _of_normal(normal: Normal) -> Sample:
    return Sample(name=str(normal.path), defect="", group=normal.group, read=lambda: (load_normal(normal), None))


def _read_pair(pair: Generated) -> Marked:
    image_HWC, pixels_HW = read_image(pair.image), read_mask(pair.mask)
    if image_HWC.shape[:2] != pixels_HW.shape:
        raise MaskError(f"{pair.mask}: {pixels_HW.shape[::-1]} pixels for an image of {image_HWC.shape[1::-1]}; draw the pair again")
    return image_HWC, Mask(pixels_HW=pixels_HW, origin="generated")


def _of_pair(pair: Generated) -> Sample:
    return Sample(name=str(pair.image), defect=pair.defect, group=str(pair.normal), read=partial(_read_pair, pair))


def made_sample(name: str, defect: str, image_HWC: np.ndarray, mask: Mask | None) -> Sample:
    """A sample that exists in memory only."""
    return Sample(name=name, defect=defect, group=name, read=lambda: (image_HWC, mask))


def gather(split: Split, generated: Sequence[Generated]) -> list[Material]:
    """Sort a split and its pairs by product. Raises `DataError` on a pair of an unknown product, and on a product without what it needs."""
    known = list(dict.fromkeys(shot.product for shot in split.shots))
    for pair in generated:
        if pair.product not in known:
            raise DataError(f"generated {pair.product}/{pair.defect}: no such product in the split; known here: {', '.join(known)}")
    out, regions = [], regions_of(split)
    for product in known:
        material = Material(
            product=product,
            shots=[_of_shot(shot) for shot in split.shots if shot.product == product],
            normals=[_of_normal(normal) for normal in split.normals if normal.product == product],
            tests=[_of_shot(shot) for shot in split.held_out if shot.product == product],
            test_normals=[_of_normal(normal) for normal in split.held_out_normals if normal.product == product],
            generated=[_of_pair(pair) for pair in generated if pair.product == product],
            regions=regions[product],
        )
        if not material.normals:
            raise DataError(f"{product}: no normal image to train a detector on; put some into {product}/train/good")
        if not material.tests:
            raise DataError(f"{product}: no held-out defect image to test on; add images of other parts, or train on fewer defect types")
        if not material.generated:
            raise DataError(f"{product}: no generated pair to compare with; generate some first")
        out.append(material)
    return out


def _by_group(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return groups


def hold_back(samples: Sequence[Sample], every: int) -> tuple[list[Sample], list[Sample]]:
    """(fitted, validated): of each defect type every `every`-th group is held back for validation, no part showing on both sides.

    Of fewer groups than `every` the last one is. A group stays where holding it back would leave a defect type nothing to be
    fitted on; where all of these stay, one that can go is taken. Where none can, every `every`-th image of a type goes
    (photographs of one part are then on both sides).
    """
    defects = list(dict.fromkeys(sample.defect for sample in samples))
    back: set[str] = set()

    def leaves_some(held: set[str]) -> bool:
        return all(any(sample.defect == defect and sample.group not in held for sample in samples) for defect in defects)

    for defect in defects:
        groups = list(_by_group([sample for sample in samples if sample.defect == defect]))
        for group in groups[every - 1 :: every] or groups[-1:]:
            if leaves_some(back | {group}):
                back.add(group)
    if not back:
        back = set([group for group in _by_group(samples) if leaves_some({group})][-1:])
    if back:
        return [s for s in samples if s.group not in back], [s for s in samples if s.group in back]
    by_defect = [[sample for sample in samples if sample.defect == defect] for defect in defects]
    validated = [sample for own in by_defect for sample in own[every - 1 :: every]]
    return [sample for sample in samples if sample not in validated], validated


def set_apart(tests: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """(extra, tests): every other group of the held-out defects, for the positive control; the rest is what all arms are tested on.

    Groups are dealt in their order, a group that shows several defect types once. Raises `DataError` where a defect type is left
    without test images or without extra ones.
    """
    side: dict[str, bool] = {}
    for defect in dict.fromkeys(sample.defect for sample in tests):
        free = [group for group in _by_group([s for s in tests if s.defect == defect]) if group not in side]
        behind = sum(side[g] for g in _by_group([s for s in tests if s.defect == defect]) if g in side) * 2
        behind -= sum(g in side for g in _by_group([s for s in tests if s.defect == defect]))
        for index, group in enumerate(free):
            side[group] = (index % 2 == 0) == (behind <= 0)
    extra, rest = [s for s in tests if side[s.group]], [s for s in tests if not side[s.group]]
    for what, some in (("further real images", extra), ("test images", rest)):
        if lacking := {s.defect for s in tests} - {s.defect for s in some}:
            raise DataError(
                f"{sorted(lacking)[0]}: too few held-out groups for the controls, it is left without {what}; leave the controls out"
            )
    return extra, rest
