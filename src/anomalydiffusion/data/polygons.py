"""Draw outlines and run lengths as exact masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from anomalydiffusion.core.errors import DataError

__all__ = ["Outline", "Runs", "decode_counts", "fill", "numbers"]

FARTHEST = 1e9  # no picture is that wide: a coordinate beyond is a mistake, not an outline that leaves the picture
MOST_BITS = 60  # of one run length


def numbers(values: Any, where: str) -> np.ndarray:
    """The finite numbers in a list as float64. Raises `DataError` that begins with `where`."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.array([np.nan])
    if found.ndim != 1 or not (np.abs(found) <= FARTHEST).all():
        raise DataError(f"{where}: something in its list of numbers is none, or is far out of any picture; draw it again")
    return found


def fill(canvas_HW: np.ndarray, points_N2: np.ndarray) -> None:
    """Mark each pixel of a bool canvas whose middle lies within a closed outline of (x, y) corners, in pixels from the top left.

    What lies outside the canvas is cut off. Where the outline crosses itself, what it goes around twice is outside. Two outlines
    that share an edge share no pixel.
    """
    height, width = canvas_HW.shape
    x0, y0 = (max(0, int(low)) for low in np.floor(points_N2.min(0)))
    x1, y1 = (min(most, int(high)) for most, high in zip((width, height), np.ceil(points_N2.max(0)), strict=True))
    if x0 >= x1 or y0 >= y1:
        return
    crossed = np.zeros((y1 - y0, x1 - x0 + 1), dtype=bool)  # between which middles of a row the outline passes, once or thrice
    corners = points_N2.tolist()
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        (ax, ay), (bx, by) = sorted((start, end), key=lambda corner: corner[1])
        first, last = max(ceil(ay - 0.5), y0), min(ceil(by - 0.5), y1)
        if first < last:
            rows = np.arange(first, last)
            x = ax + (rows + 0.5 - ay) * ((bx - ax) / (by - ay))
            crossed[rows - y0, np.clip(np.ceil(x - 0.5), x0, x1).astype(int) - x0] ^= True
    canvas_HW[y0:y1, x0:x1] |= np.logical_xor.accumulate(crossed[:, :-1], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """A closed outline of (x, y) corners: in pixels, or in shares of the picture's width and height."""

    points_N2: np.ndarray
    shares: bool = False

    @classmethod
    def of(cls, flat: Any, where: str, *, shares: bool = False, whole: float = 1.0) -> Outline:
        """From x, y, x, y ..; `whole` is what stands for the full width or height. Raises `DataError` that begins with `where`."""
        found = numbers(flat, where)
        if len(found) < 2 or len(found) % 2:
            raise DataError(f"{where}: {len(found)} numbers, expected an x and a y for each corner; draw it again")
        return cls(points_N2=found.reshape(-1, 2) / whole, shares=shares)

    def draw(self, canvas_HW: np.ndarray) -> None:
        """Mark what lies within."""
        height, width = canvas_HW.shape
        fill(canvas_HW, self.points_N2 * (width, height) if self.shares else self.points_N2)


def decode_counts(text: str, where: str) -> list[int]:
    """Run lengths from COCO's compressed form.

    A character holds 5 bits, least first, and whether more of the number follow; the last one's top bit is the sign. From the
    fourth number on, the difference to the last but one is kept. Raises `DataError` that begins with `where`.
    """
    counts: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > MOST_BITS:
            raise DataError(f"{where}: its run lengths are not COCO's compressed form; export it again")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise DataError(f"{where}: its run lengths end in the middle of a number; export it again")
    return counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """COCO's run lengths, column by column, unmarked first; `counts` compressed or plain, `size` (height, width)."""

    counts: str | Sequence[Any]
    size: tuple[int, int]
    where: str

    def draw(self, canvas_HW: np.ndarray) -> None:
        """Mark the runs. Raises `DataError` when they are not of the canvas's size; until that is known nothing is allocated."""
        (height, width), (h, w) = canvas_HW.shape, self.size
        if (height, width) != (h, w):
            raise DataError(f"{self.where}: run lengths for {w} x {h} pixels, but the picture is {width} x {height}; export it again")
        counts = decode_counts(self.counts, self.where) if isinstance(self.counts, str) else numbers(self.counts, self.where).tolist()
        if any(count < 0 or count != int(count) for count in counts) or sum(counts) != h * w:
            raise DataError(f"{self.where}: its run lengths do not add up to {w} x {h} pixels; export it again")
        lengths = np.array(counts, dtype=np.int64)
        canvas_HW |= np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(w, h).T
