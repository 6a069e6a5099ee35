"""Where on a product defects may lie, as its user drew it; else where the object is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import digest_file, read_mask
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.folders import SUFFIXES, plain
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.data.polygons import Outline

__all__ = [
    "NAME",
    "Region",
    "Regions",
    "copy_regions",
    "digest_of",
    "ground_of",
    "grounds_of",
    "read_regions",
    "region_files",
    "region_for",
    "regions_of",
]

NAME = "roi"  # <product>/roi.png for all defect types, <product>/roi/<defect>.png for one
EVERY = ""  # stands for all defect types


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A legal region: the pixels of a picture, or outlines in shares of width and height, which fit images of any size."""

    path: Path
    pixels_HW: np.ndarray | None = None
    outlines: tuple[Outline, ...] = ()

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be laid on an image of `shape`."""
        return self.pixels_HW is None or self.pixels_HW.shape == shape

    def on(self, shape: tuple[int, ...]) -> np.ndarray:
        """The region on an image of `shape` (height, width): bool H x W, never empty. Raises `DataError` where it does not fit."""
        (height, width), pixels = shape[:2], self.pixels_HW
        if pixels is None:
            pixels = np.zeros(shape, dtype=bool)
            for outline in self.outlines:
                outline.draw(pixels)
            if not pixels.any():
                raise DataError(f"{self.path}: marks no pixel of a {width} x {height} image; draw larger outlines")
        if not self.fits(shape):
            own_height, own_width = pixels.shape
            raise DataError(
                f"{self.path}: {own_width} x {own_height} pixels, but an image has {width} x {height}; draw it at that size, or as "
                f"outlines in {self.path.stem}.json, in shares of width and height"
            )
        return pixels


Regions = Mapping[str, Region]  # by defect type; EVERY = all that have none of their own


def _read(path: Path) -> Region:
    if path.suffix.lower() != ".json":
        pixels = read_mask(path)
        if not pixels.any():
            raise DataError(f"{path}: marks no pixel; paint white where defects may lie, or remove it")
        return Region(path=path, pixels_HW=pixels)
    wanted = "write a list of outlines, each a list of [x, y] corners in shares of width and height, 0 to 1"
    try:
        corners = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {wanted}") from error
    listed = isinstance(corners, list) and corners and all(isinstance(each, list) and len(each) > 2 for each in corners)
    if not listed or not all(isinstance(corner, list) and len(corner) == 2 for each in corners for corner in each):
        raise DataError(f"{path}: holds something else; {wanted}")
    outlines = tuple(Outline.of([number for corner in each for number in corner], str(path), shares=True) for each in corners)
    if any((outline.points_N2 < 0).any() or (outline.points_N2 > 1).any() for outline in outlines):
        raise DataError(f"{path}: has corners beyond 0 to 1; {wanted}")
    return Region(path=path, outlines=outlines)


def region_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a product that say where defects may lie, each with its defect type."""
    places = [(EVERY, path) for path in sorted(folder.glob(f"{NAME}.*"))]
    places += [(plain(path.stem), path) for path in sorted((folder / NAME).glob("*")) if not path.name.startswith(".")]
    return [(defect, path) for defect, path in places if path.suffix.lower() in (*SUFFIXES, ".json") and path.is_file()]


def read_regions(folder: Path) -> dict[str, Region]:
    """What a product's folder says: `roi.png` or `roi.json` for all defect types, `roi/<defect>.png` or `.json` for one; often nothing.

    A picture marks with anything but black, at the normal images' size; JSON holds outlines in shares of width and height.
    Raises `DataError` on a file that is none of these, and on two for the same.
    """
    found: dict[str, Region] = {}
    for defect, path in region_files(folder):
        if defect in found:
            raise DataError(f"{path}: stands beside {found[defect].path.name}; keep one of them")
        found[defect] = _read(path)
    return found


def regions_of(split: Split) -> dict[str, dict[str, Region]]:
    """The regions of each product that a split has shots of."""
    folders = {shot.product: shot.path.parent.parent.parent for shot in split.shots}  # <product>/test/<defect>/<image>
    return {product: read_regions(folder) for product, folder in folders.items()}


def region_for(regions: Regions, defect: str) -> Region | None:
    """The region of one defect type, its own before that of all."""
    return regions.get(plain(defect), regions.get(EVERY))


def ground_of(regions: Regions, defect: str, image_HWC: np.ndarray) -> np.ndarray:
    """Where on an image defects of a type may lie, bool H x W: the drawn region, without one the object that `foreground` finds."""
    region = region_for(regions, defect)
    return foreground(image_HWC) if region is None else region.on(image_HWC.shape[:2])


def grounds_of(regions: Regions, defect: str, shots: Iterable[tuple[np.ndarray, Mask]]) -> list[np.ndarray | None]:
    """The same for each of a type's shots; None where the drawn region says nothing of one: another size, or a defect mostly outside."""
    region = region_for(regions, defect)
    return [
        ground_of(regions, defect, image) if region is None or (region.fits(mask.pixels_HW.shape) and _mostly(mask, region)) else None
        for image, mask in shots
    ]


def _mostly(mask: Mask, region: Region) -> bool:
    return bool(region.on(mask.pixels_HW.shape)[mask.pixels_HW].mean() > 0.5)


def copy_regions(regions: Regions, folder: Path) -> None:
    """Write the files of a product's regions to another folder, where `read_regions` finds them again."""
    for defect, region in regions.items():
        place = folder / NAME if defect != EVERY else folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(region.path, place / region.path.name)


def digest_of(products: Mapping[str, Regions]) -> str | None:
    """A digest of all drawn regions; None where nothing is drawn."""
    files: Iterable[tuple[str, str, str]] = (
        (product, defect and region.path.stem, digest_file(region.path))
        for product, own in products.items()
        for defect, region in own.items()
    )
    listed = sorted(files)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16] if listed else None
