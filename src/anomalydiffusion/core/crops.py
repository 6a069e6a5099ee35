"""Square crops at native resolution: what shares one, where they lie, how they leave an image, their working grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image
from scipy import ndimage

from anomalydiffusion.core.shapes import EIGHT
from anomalydiffusion.core.types import Box, Mask

__all__ = ["WHOLE", "clusters", "crop_box", "extract", "resize", "shrunk"]

WHOLE = 4096.0  # a ratio that takes the largest square of any picture, around however small a mask
SNUG = 1.2  # the tightest square around a box that still shows what surrounds it


def clusters(mask: Mask, side: int, *, most: int = 4) -> list[Mask]:
    """Split a mask whose parts lie far apart, so that each group can be looked at closely; the largest group first.

    Only a mask whose box is longer than `side` pixels is split: parts nearer than a quarter of `side` stay together, and
    that distance is doubled until there are at most `most` groups. Every marked pixel is in exactly one group.
    """
    x0, y0, x1, y1 = mask.box
    if max(x1 - x0, y1 - y0) <= side:
        return [mask]
    inside = mask.pixels_HW[y0:y1, x0:x1]
    away, gap = ndimage.distance_transform_edt(~inside), side / 4
    while (found := ndimage.label(away <= gap / 2, EIGHT))[1] > most:
        gap *= 2
    grown, count = found
    parts = np.where(inside, grown, 0)
    groups = []
    for label in 1 + np.argsort(-np.bincount(parts.ravel(), minlength=count + 1)[1:], kind="stable"):
        pixels = np.zeros_like(mask.pixels_HW)
        pixels[y0:y1, x0:x1] = parts == label
        groups.append(replace(mask, pixels_HW=pixels))
    return groups


def crop_box(mask_box: Box, size_hw: tuple[int, int], ratio: float, minimum: int, place: tuple[float, float] = (0.5, 0.5)) -> Box:
    """A square of `ratio` times the longer side of `mask_box`, at least `minimum` pixels, that holds the whole box.

    A square larger than the image's shorter side would show reflections and shrink the defect: there it is cut down to
    that side, but not below `SNUG` times the box.
    `place` (0..1 each, down and across) says where in the free room the box lies. The square stays inside the image
    where it fits; where the image is smaller than the square, it sticks out on both sides alike (`extract` reflects).
    """
    x0, y0, x1, y1 = mask_box
    longer = max(x1 - x0, y1 - y0)
    side = max(min(round(ratio * longer), max(min(size_hw), round(SNUG * longer))), minimum, longer)
    corner = []
    for low, high, length, share in ((y0, y1, size_hw[0], place[0]), (x0, x1, size_hw[1], place[1])):
        start = low - round(share * (side - (high - low)))
        start = min(max(start, 0), length - side) if side <= length else -((side - length) // 2)
        corner.append(start)
    return corner[1], corner[0], corner[1] + side, corner[0] + side


def _reflected(low: int, high: int, length: int) -> np.ndarray:
    """Indices low..high-1 into 0..length-1, reflected at both ends as often as needed."""
    if length == 1:
        return np.zeros(high - low, int)
    index = np.arange(low, high) % (2 * length - 2)
    return np.minimum(index, 2 * length - 2 - index)


def extract(image: np.ndarray, box: Box) -> np.ndarray:
    """Cut `box` out of H x W (x C); what lies outside the image is reflected at its border."""
    x0, y0, x1, y1 = box
    return image[np.ix_(_reflected(y0, y1, image.shape[0]), _reflected(x0, x1, image.shape[1]))]


def shrunk(marks_HW: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """A bool mask in a smaller size: a cell is marked where the centre of any marked pixel lies in it, so that no mark is lost."""
    begins = [
        np.minimum((2 * np.arange(cells) * length - cells) // (2 * cells) + 1, length - 1)
        for cells, length in zip(size_wh[::-1], marks_HW.shape, strict=True)
    ]
    return np.asarray(np.logical_or.reduceat(np.logical_or.reduceat(marks_HW, begins[0], 0), begins[1], 1))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 square RGB -> `size` x `size` (Lanczos), or a bool mask -> bool (no mark is lost: `shrunk`)."""
    if image.shape[0] == size:
        return image
    if image.dtype == bool:
        if image.shape[0] > size:
            return shrunk(image, (size, size))
        return np.asarray(Image.fromarray(image.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)) > 127
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
