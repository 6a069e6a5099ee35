"""Put a shape on an object.

Axes: 0 = y, 1 = x. A range is (first, last), both inside; a box by axis is (low, high), high outside.
"""

from __future__ import annotations

import numpy as np

__all__ = ["frame", "paste", "put", "put_inside"]

PLACES = 24  # places tried for one shape
Range = tuple[int, int]


def frame(marks_HW: np.ndarray) -> tuple[Range, Range]:
    """(low, high) by axis of what is marked."""
    rows, columns = np.flatnonzero(marks_HW.any(1)), np.flatnonzero(marks_HW.any(0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def paste(patch: np.ndarray, at: tuple[int, int], ground_HW: np.ndarray) -> tuple[np.ndarray, float]:
    """Put a patch on an empty picture, cut by the object; and the share of the patch that stayed."""
    pixels = np.zeros(ground_HW.shape, dtype=bool)
    (y, x), (height, width) = at, patch.shape
    top, left, bottom, right = max(0, y), max(0, x), min(ground_HW.shape[0], y + height), min(ground_HW.shape[1], x + width)
    if top < bottom and left < right:
        pixels[top:bottom, left:right] = patch[top - y : bottom - y, left - x : right - x] & ground_HW[top:bottom, left:right]
    return pixels, int(pixels[max(0, top) : bottom, max(0, left) : right].sum()) / int(patch.sum())


def put(
    patch: np.ndarray, corners: tuple[Range, Range], ground_HW: np.ndarray, random: np.random.Generator, *, least: float = 1.0
) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Try random places, the patch's first corner within `corners`, until a share of `least` lies on the object.

    Returns the mask's pixels and the place, or the reason why there is none.
    """
    for _ in range(PLACES):
        y, x = (int(random.integers(first, last + 1)) for first, last in corners)
        here = ground_HW[y : y + patch.shape[0], x : x + patch.shape[1]]
        if here[patch].mean() >= least:
            return paste(patch, (y, x), ground_HW)[0], (y, x)
    return "lies off the object"


def put_inside(shape_HW: np.ndarray, ground_HW: np.ndarray, random: np.random.Generator) -> np.ndarray | str:
    """Put what a picture marks anywhere on the object, whole, and off the sides of the object's box."""
    (top, bottom), (left, right) = frame(shape_HW)
    small = shape_HW[top:bottom, left:right]
    corners = [(low + 1, high - 1 - size) for (low, high), size in zip(frame(ground_HW), small.shape, strict=True)]
    if any(last < first for first, last in corners):
        return "is larger than the object"
    found = put(small, (corners[0], corners[1]), ground_HW, random)
    return found if isinstance(found, str) else found[0]
