"""A real mask as a stencil: its signed distance, the rims that it touches, and how it is turned, bent and cut anew.

Axes: 0 = y, 1 = x. A point is (y, x) in pixels; pixel i covers i..i+1, so its centre is i + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.shapes import EIGHT
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks.geometry import largest

__all__ = ["MIN_PIXELS", "Stencil", "bend", "cut", "stencil_of", "warp"]

MIN_PIXELS = 4  # what `accept` asks for
# A gap to an image side, up to these shares of the picture and of the mask's length, is contact; or is kept about as it is.
TOUCH_PICTURE, TOUCH_LONG = 0.01, 0.1
HOLD_PICTURE, HOLD_LONG = 0.04, 0.6
RIM_TURN = math.radians(25)  # what lies at a rim keeps about its direction
FAR_OUTSIDE = -1e6  # signed distance where the reference says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stencil:
    """A reference ready to be warped. `touch[axis]` = (touches the low side, touches the high side) of the image."""

    depth: np.ndarray  # H x W, signed distance to the outline, positive inside, of the box and a margin
    origin: tuple[int, int]  # the reference's point that is depth's corner
    box: tuple[tuple[int, int], tuple[int, int]]  # (low, high) by axis
    touch: tuple[tuple[bool, bool], tuple[bool, bool]]
    gap: tuple[int | None, int | None]  # kept by axis: to the low side, or -1 - gap to the high side
    anchor: tuple[float, float]  # the point that stays where it is put
    outward: float | None  # direction from the anchor off the object, radians; None when not at the object's outline
    turn: float  # largest rotation, radians
    area: int
    parts: int

    @property
    def long(self) -> int:
        return max(high - low for low, high in self.box)


def _outline_contact(inside: np.ndarray, ground: np.ndarray) -> tuple[tuple[float, float], float] | None:
    """The outermost point where a mask meets the object's outline, and the direction off the object there."""
    reach = max(2, round(0.03 * max(inside.shape)))
    # Slivers between the drawn mask and the object found are no outside.
    outside = ndimage.binary_opening(np.pad(~(ground | inside), reach, mode="edge"), EIGHT, reach)[reach:-reach, reach:-reach]
    if not outside.any():
        return None
    away = ndimage.distance_transform_edt(~outside)
    labels, count = ndimage.label(inside & (away <= reach + 1.5), EIGHT)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    points = np.argwhere(labels == largest)
    center = points.mean(0)
    anchor = points[int(np.argmin(((points - center) ** 2).sum(1)))]
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(outside.astype(np.float32), 0.1 * max(inside.shape), mode="nearest"))
    at = int(anchor[0]), int(anchor[1])
    angle, rest = math.atan2(slope_y[at], slope_x[at]), float(away[at] - away[labels == largest].min())
    return (at[0] + 0.5 + rest * math.sin(angle), at[1] + 0.5 + rest * math.cos(angle)), angle


def stencil_of(pixels_HW: np.ndarray, ground_HW: np.ndarray | None, *, rotation: float, elastic: float, near: bool) -> Stencil:
    """Classify a reference (interior, at image sides, at the object's outline) and measure its signed distance."""
    x0, y0, x1, y1 = Mask(pixels_HW=pixels_HW, origin="reference").box
    box, long = ((y0, y1), (x0, x1)), max(y1 - y0, x1 - x0)
    gaps = tuple((low, size - high) for (low, high), size in zip(box, pixels_HW.shape, strict=True))
    touch_y, touch_x = (
        (near and low <= (most := int(min(TOUCH_PICTURE * size, TOUCH_LONG * long))), near and high <= most)
        for (low, high), size in zip(gaps, pixels_HW.shape, strict=True)
    )
    gap: list[int | None] = [None, None]
    inside = pixels_HW[y0:y1, x0:x1]
    anchor, outward, turn = [(y0 + y1) / 2, (x0 + x1) / 2], None, math.radians(rotation)
    if any((*touch_y, *touch_x)):
        turn = min(turn, RIM_TURN)
    for axis, (low, high) in enumerate((touch_y, touch_x)):
        if low != high:
            anchor[axis] = float(box[axis][0 if low else 1])
            if not any((touch_x, touch_y)[axis]):
                contact = np.flatnonzero(np.moveaxis(inside, axis, 0)[0 if low else -1])
                anchor[1 - axis] = box[1 - axis][0] + float(contact.mean()) + 0.5
                turn *= max(0.25, 1 - len(contact) / long)  # what lies flat along a side keeps lying there
        elif near and not low and min(gaps[axis]) <= min(HOLD_PICTURE * pixels_HW.shape[axis], HOLD_LONG * long):
            gap[axis] = gaps[axis][0] if gaps[axis][0] < gaps[axis][1] else -1 - gaps[axis][1]
            if inside.shape[1 - axis] > 2 * inside.shape[axis]:
                turn = 0.25 * min(turn, RIM_TURN)
    sides = sum((*touch_y, *touch_x))
    if sides > 1:
        turn *= 0.25
    if near and sides == 0 and ground_HW is not None:
        grow = long // 4 + 8
        wide = slice(max(0, y0 - grow), y1 + grow), slice(max(0, x0 - grow), x1 + grow)
        if (found := _outline_contact(pixels_HW[wide], ground_HW[wide])) is not None:
            anchor, outward = [found[0][0] + wide[0].start, found[0][1] + wide[1].start], found[1]
            turn = min(turn, RIM_TURN)
    # Beyond an image side that it touches, the defect goes on; elsewhere there is nothing.
    beyond, margin = math.ceil((2 * elastic + math.sin(min(turn, math.pi / 2))) * long) + 4, long // 8 + 6
    on = [tuple(beyond if side else 0 for side in axis) for axis in (touch_y, touch_x)]
    off = [tuple(0 if side else margin for side in axis) for axis in (touch_y, touch_x)]
    padded = np.pad(np.pad(inside, on, mode="edge"), off)
    edt = ndimage.distance_transform_edt
    distance = np.where(padded, edt(padded) - 0.5, 0.5 - edt(~padded)).astype(np.float32)
    return Stencil(
        depth=distance, origin=(y0 - on[0][0] - off[0][0], x0 - on[1][0] - off[1][0]), box=box,
        touch=(touch_y, touch_x), gap=(gap[0], gap[1]), anchor=(anchor[0], anchor[1]), outward=outward, turn=turn,
        area=int(inside.sum()), parts=int(ndimage.label(inside, EIGHT)[1]),
    )  # fmt: skip


def bend(shape: tuple[int, int], long: float, random: np.random.Generator) -> np.ndarray:
    """A smooth random field 2 x H x W: wide waves of unit variance and finer ones of a fifth of that height."""
    field = np.zeros((2, *shape), dtype=np.float32)
    for height, width in ((1.0, long / 5), (0.2, long / 16)):
        weights = []
        for length in shape:
            nodes = np.arange(-2 * width, length + 3 * width, width)
            bumps = np.exp(-0.5 * ((np.arange(length)[:, None] + 0.5 - nodes) / width) ** 2)
            weights.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
        noise = random.standard_normal((2, weights[0].shape[1], weights[1].shape[1])).clip(-2, 2).astype(np.float32)
        field += height * (weights[0] @ noise @ weights[1].T)
    return field


def warp(
    stencil: Stencil, scale: tuple[float, float], angle: float, frame: tuple[int, int], elastic: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:  # fmt: skip
    """The signed distance after scaling, turning and bending, cut at the sides that it touches; the anchor in it; and where each of
    its pixels was in the reference, 2 x h x w rows and columns."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners = np.array([[y, x] for y in stencil.box[0] for x in stencil.box[1]], dtype=np.float64) - stencil.anchor
    corners = corners * scale @ np.array([[cos, -sin], [sin, cos]])  # (y, x) -> (y cos + x sin, x cos - y sin)
    margin = 1.5 * elastic * stencil.long * max(scale) + 3
    shape, anchor = [0, 0], [0.0, 0.0]
    for axis, (low, high) in enumerate(stencil.touch):
        before, after = math.ceil(margin - corners[:, axis].min()), math.ceil(corners[:, axis].max() + margin)
        if low and high:
            shape[axis], anchor[axis] = frame[axis], frame[axis] / 2
        else:
            before, after = 0 if low else before, 0 if high else after
            # A random part of a pixel breaks ties between pixels that lie symmetrically.
            shape[axis], anchor[axis] = before + after, before + (0.0 if low or high else random.uniform(-0.5, 0.5))
    y = (np.arange(shape[0], dtype=np.float32) + 0.5 - anchor[0])[:, None]
    x = (np.arange(shape[1], dtype=np.float32) + 0.5 - anchor[1])[None, :]
    bent = 0.5 * elastic * stencil.long * bend((shape[0], shape[1]), stencil.long * max(scale), random)
    offset = [stencil.anchor[axis] - stencil.origin[axis] - 0.5 for axis in (0, 1)]
    source = np.stack([(y * cos - x * sin) / scale[0] + offset[0], (y * sin + x * cos) / scale[1] + offset[1]]) + bent
    warped = ndimage.map_coordinates(stencil.depth, source, order=1, cval=FAR_OUTSIDE)
    return warped * math.sqrt(scale[0] * scale[1]), (anchor[0], anchor[1]), source + np.array(stencil.origin, np.float32)[:, None, None]


def cut(distance_HW: np.ndarray, pixels: float, parts: int) -> np.ndarray:
    """Mark the `pixels` deepest pixels; lines that broke are thickened by at most one pixel, and crumbs are dropped."""
    count = min(max(MIN_PIXELS, round(pixels)), distance_HW.size)
    level = float(np.partition(distance_HW, distance_HW.size - count, axis=None)[distance_HW.size - count])
    deepest = float(distance_HW.max())
    level = min(max(level, -1.5 - 0.5 * max(deepest, 0.0)), 0.5 * deepest if deepest > 0 else level)
    for thicker in (0.0, 0.2, 0.4, 0.5):
        marks = distance_HW >= level - thicker
        if ndimage.label(marks, EIGHT)[1] <= parts:
            break
    return largest(marks, parts)
