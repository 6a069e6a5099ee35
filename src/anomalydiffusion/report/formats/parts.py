"""The connected parts of a mask, and their borders along the edges of pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.shapes import EIGHT

__all__ = ["outline", "parts"]


def parts(marks_HW: np.ndarray) -> Iterator[np.ndarray]:
    """Each connected part of a mask, as large as the mask."""
    labels, count = ndimage.label(marks_HW, EIGHT)
    for label in range(1, count + 1):
        yield labels == label


def outline(marks_HW: np.ndarray) -> list[tuple[int, int]]:
    """The outer border of one connected part along the edges of its pixels, (x, y) corners in turn; filled, it is the part.

    Where pixels touch by a corner alone the border passes that corner twice. Holes are not cut out.
    """
    padded = np.pad(marks_HW, 1)
    inside = padded[1:-1, 1:-1]
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), (start, end) in {
        (-1, 0): ((0, 0), (1, 0)), (0, 1): ((1, 0), (1, 1)), (1, 0): ((1, 1), (0, 1)), (0, -1): ((0, 1), (0, 0)),
    }.items():  # fmt: skip  # the neighbour beyond an edge; the edge's ends, clockwise around the pixel
        beyond = padded[1 + dy : 1 + dy + inside.shape[0], 1 + dx : 1 + dx + inside.shape[1]]
        for y, x in np.argwhere(inside & ~beyond).tolist():
            ahead.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    top = int(np.flatnonzero(inside.any(1))[0])
    first = (int(np.flatnonzero(inside[top])[0]), top)
    corners, at, step = [first], first, (1, 0)
    while True:
        left = (at[0] + step[1], at[1] - step[0])  # at a corner that two pixels share, on to the other one
        end = left if left in ahead[at] else ahead[at][0]
        turned = (end[0] - at[0], end[1] - at[1])
        if turned != step and at != first:
            corners.append(at)
        if end == first:
            return corners
        at, step = end, turned
