"""Propose masks without a network: real masks, moved, turned, bent, thickened.

Axes: 0 = y, 1 = x. A point is (y, x) in pixels; pixel i covers i..i+1, so its centre is i + 0.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks.geometry import EIGHT, accept, foreground

__all__ = ["WarpedConfig", "area_range", "propose"]

MIN_PIXELS, MAX_AREA = 4, 0.6  # what `accept` asks for
PLACES = 24  # places tried for one warped shape
PATIENCE = 15  # tries before another reference gets its turn
SHRINK = 0.93  # scale after a shape that found no place
# A gap to an image side, up to these shares of the picture and of the mask's length, is contact; or is kept about as it is.
TOUCH_PICTURE, TOUCH_LONG = 0.01, 0.1
HOLD_PICTURE, HOLD_LONG = 0.04, 0.6
FAR_OUTSIDE = -1e6  # signed distance where the reference says nothing
MAX_RIM_LOSS = 0.35  # share of a shape that the object's outline may cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpedConfig:
    """How far a proposal may go from its reference."""

    rotation: float = 25.0  # degrees, either way
    scale: tuple[float, float] = (0.75, 1.35)  # of lengths
    elastic: float = 0.08  # largest usual displacement, as a share of the long side of the mask's box
    thickness: float = 0.15  # relative change of the width at unchanged length, either way
    flip: bool = True  # mirror left-right and top-bottom
    place: Literal["near", "anywhere"] = "near"  # near: what was at the rim stays at such a rim
    tries: int = 60

    def __post_init__(self) -> None:
        for name, low, high in (("rotation", 0.0, 180.0), ("elastic", 0.0, 0.3), ("thickness", 0.0, 0.9), ("tries", 1, 10_000)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"warped masks: {name} = {getattr(self, name)}, expected {low:g}..{high:g}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= 1 <= self.scale[1] <= 10:
            raise ConfigError(f"warped masks: scale = {self.scale}, expected (low, high) with 0 < low <= 1 <= high <= 10")
        if self.place not in ("near", "anywhere"):
            raise ConfigError(f'warped masks: place = "{self.place}", expected "near" or "anywhere"')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stencil:
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


def area_range(references: Sequence[Mask]) -> tuple[float, float]:
    """The smallest and the largest area of the references, in pixels."""
    areas = [int(mask.pixels_HW.sum()) for mask in references]
    return float(min(areas)), float(max(areas))


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


def _stencil(pixels_HW: np.ndarray, ground_HW: np.ndarray | None, config: WarpedConfig) -> _Stencil:
    """Classify a reference (interior, at image sides, at the object's outline) and measure its signed distance."""
    x0, y0, x1, y1 = Mask(pixels_HW=pixels_HW, origin="reference").box
    box, long = ((y0, y1), (x0, x1)), max(y1 - y0, x1 - x0)
    near = config.place == "near"
    gaps = tuple((low, size - high) for (low, high), size in zip(box, pixels_HW.shape, strict=True))
    touch_y, touch_x = (
        (near and low <= (most := int(min(TOUCH_PICTURE * size, TOUCH_LONG * long))), near and high <= most)
        for (low, high), size in zip(gaps, pixels_HW.shape, strict=True)
    )
    gap: list[int | None] = [None, None]
    inside = pixels_HW[y0:y1, x0:x1]
    anchor, outward, turn = [(y0 + y1) / 2, (x0 + x1) / 2], None, math.radians(config.rotation)
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
                turn *= 0.25
    sides = sum((*touch_y, *touch_x))
    if sides > 1:
        turn *= 0.25
    if near and sides == 0 and ground_HW is not None:
        grow = long // 4 + 8
        wide = slice(max(0, y0 - grow), y1 + grow), slice(max(0, x0 - grow), x1 + grow)
        if (found := _outline_contact(pixels_HW[wide], ground_HW[wide])) is not None:
            anchor, outward = [found[0][0] + wide[0].start, found[0][1] + wide[1].start], found[1]
    # Beyond an image side that it touches, the defect goes on; elsewhere there is nothing.
    beyond, margin = math.ceil((2 * config.elastic + math.sin(min(turn, math.pi / 2))) * long) + 4, long // 8 + 6
    on = [tuple(beyond if side else 0 for side in axis) for axis in (touch_y, touch_x)]
    off = [tuple(0 if side else margin for side in axis) for axis in (touch_y, touch_x)]
    padded = np.pad(np.pad(inside, on, mode="edge"), off)
    edt = ndimage.distance_transform_edt
    distance = np.where(padded, edt(padded) - 0.5, 0.5 - edt(~padded)).astype(np.float32)
    return _Stencil(
        depth=distance, origin=(y0 - on[0][0] - off[0][0], x0 - on[1][0] - off[1][0]), box=box,
        touch=(touch_y, touch_x), gap=(gap[0], gap[1]), anchor=(anchor[0], anchor[1]), outward=outward, turn=turn,
        area=int(inside.sum()), parts=int(ndimage.label(inside, EIGHT)[1]),
    )  # fmt: skip


def _bend(shape: tuple[int, int], long: float, random: np.random.Generator) -> np.ndarray:
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


def _warp(
    stencil: _Stencil, scale: tuple[float, float], angle: float, frame: tuple[int, int], config: WarpedConfig,
    random: np.random.Generator,
) -> tuple[np.ndarray, tuple[float, float]]:  # fmt: skip
    """The signed distance after scaling, turning and bending, cut at the sides that it touches; and the anchor in it."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners = np.array([[y, x] for y in stencil.box[0] for x in stencil.box[1]], dtype=np.float64) - stencil.anchor
    corners = corners * scale @ np.array([[cos, -sin], [sin, cos]])  # (y, x) -> (y cos + x sin, x cos - y sin)
    margin = 1.5 * config.elastic * stencil.long * max(scale) + 3
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
    bend = 0.5 * config.elastic * stencil.long * _bend((shape[0], shape[1]), stencil.long * max(scale), random)
    offset = [stencil.anchor[axis] - stencil.origin[axis] - 0.5 for axis in (0, 1)]
    source = np.stack([(y * cos - x * sin) / scale[0] + offset[0], (y * sin + x * cos) / scale[1] + offset[1]]) + bend
    warped = ndimage.map_coordinates(stencil.depth, source, order=1, cval=FAR_OUTSIDE)
    return warped * math.sqrt(scale[0] * scale[1]), (anchor[0], anchor[1])


def _cut(distance_HW: np.ndarray, pixels: float, parts: int) -> np.ndarray:
    """Mark the `pixels` deepest pixels; lines that broke are thickened by at most one pixel, and crumbs are dropped."""
    count = min(max(MIN_PIXELS, round(pixels)), distance_HW.size)
    level = float(np.partition(distance_HW, distance_HW.size - count, axis=None)[distance_HW.size - count])
    deepest = float(distance_HW.max())
    level = min(max(level, -1.5 - 0.5 * max(deepest, 0.0)), 0.5 * deepest if deepest > 0 else level)
    for thicker in (0.0, 0.2, 0.4, 0.5):
        labels, count = ndimage.label(distance_HW >= level - thicker, EIGHT)
        if count <= parts:
            break
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.argsort(-sizes, kind="stable")[: min(parts, count)])


def _paste(patch: np.ndarray, at: tuple[int, int], ground_HW: np.ndarray) -> tuple[np.ndarray, float]:
    """Put a patch on an empty picture, cut by the object; and the share of the patch that stayed."""
    pixels = np.zeros(ground_HW.shape, dtype=bool)
    (y, x), (height, width) = at, patch.shape
    top, left, bottom, right = max(0, y), max(0, x), min(ground_HW.shape[0], y + height), min(ground_HW.shape[1], x + width)
    if top < bottom and left < right:
        pixels[top:bottom, left:right] = patch[top - y : bottom - y, left - x : right - x] & ground_HW[top:bottom, left:right]
    return pixels, int(pixels[max(0, top) : bottom, max(0, left) : right].sum()) / int(patch.sum())


def _frame(ground_HW: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """(low, high) of the object by axis."""
    rows, columns = np.flatnonzero(ground_HW.any(1)), np.flatnonzero(ground_HW.any(0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _put(patch: np.ndarray, stencil: _Stencil, ground_HW: np.ndarray, random: np.random.Generator) -> np.ndarray | str:
    """Place a shape that lies inside or at image sides: the mask's pixels, or the reason why there is no place."""
    frame = _frame(ground_HW)
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    trim = ((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1))
    ranges = []
    for axis, (low, high) in enumerate(stencil.touch):
        (start, stop), (begin, end) = frame[axis], trim[axis]
        if (low and begin != 0) or (high and end != patch.shape[axis]):
            return "leaves the rim"
        start, stop = start + (not low), stop - (not high)
        first, last = (start, start) if low else (stop - end + begin,) * 2 if high else (start, stop - end + begin)
        if (gap := stencil.gap[axis]) is not None and last >= first:
            kept = round((gap if gap >= 0 else -1 - gap) * random.uniform(0.5, 1.5)) - 1
            first = last = min(first + kept, last) if gap >= 0 else max(last - kept, first)
        if last < first or first < start or (high and not low and first <= frame[axis][0]) or (low and last + end - begin > stop):
            return "is larger than the object"
        ranges.append((first, last))
    small = patch[trim[0][0] : trim[0][1], trim[1][0] : trim[1][1]]
    sides = any(map(any, stencil.touch))
    for _ in range(PLACES):
        y, x = (int(random.integers(first, last + 1)) for first, last in ranges)
        here = ground_HW[y : y + small.shape[0], x : x + small.shape[1]]
        if (here | ~small).all() if not sides else here[small].mean() >= 0.98:
            return _paste(small, (y, x), ground_HW)[0]
    return "lies off the object"


def _outline_point(ground_HW: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, float, int] | None:
    """A random point of the object's outline, the direction off the object there, and the point's precision in pixels."""
    step = max(1, max(ground_HW.shape) // 512)
    small = ground_HW[::step, ::step]
    outline = np.argwhere(small & ~ndimage.binary_erosion(small, EIGHT, border_value=1))
    if len(outline) == 0:
        return None
    y, x = outline[int(random.integers(len(outline)))]
    near = small[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13].astype(np.float32)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(near, 4.0, mode="nearest"))
    at = min(y, 12), min(x, 12)
    return np.array([y, x]) * step + 0.5, math.atan2(-slope_y[at], -slope_x[at]), step


def _attempt(
    stencil: _Stencil, limits: tuple[float, float], fit: float, ground_HW: np.ndarray, config: WarpedConfig,
    random: np.random.Generator,
) -> np.ndarray | str:  # fmt: skip
    """One warped and placed mask, or the reason why not."""
    frame = _frame(ground_HW)
    sizes = frame[0][1] - frame[0][0], frame[1][1] - frame[1][0]
    # What reaches from side to side is stretched to this image; the other lengths are free.
    ratios = [size / (end - begin) for size, (begin, end) in zip(sizes, stencil.box, strict=True)]
    spans = [all(touch) for touch in stencil.touch]
    free, stretch = spans.count(False), math.prod(ratio for ratio, span in zip(ratios, spans, strict=True) if span)
    fit = min([fit, *(ratio * (1 - 2 / (size + 2)) for ratio, size, span in zip(ratios, sizes, spans, strict=True) if not span)])
    high = max(MIN_PIXELS, min(limits[1] * max(1.0, stretch), 0.95 * MAX_AREA * ground_HW.size))
    low = min(high, max(MIN_PIXELS, limits[0] * min(1.0, stretch) * fit * fit))
    least, most = (math.log(min(max(stencil.area * stretch * (s * fit) ** free, low), high)) for s in config.scale)
    wanted = math.exp(random.uniform(least, most))
    thicker = math.exp(random.uniform(-1, 1) * math.log1p(config.thickness))
    even = (wanted / (stencil.area * stretch * thicker)) ** (1 / max(1, free))
    scale = [ratio if span else even for ratio, span in zip(ratios, spans, strict=True)]
    angle = random.uniform(-stencil.turn, stencil.turn)
    spot = _outline_point(ground_HW, random) if stencil.outward is not None else None
    if spot is None or stencil.outward is None:
        distance, _ = _warp(replace(stencil, outward=None), (scale[0], scale[1]), angle, sizes, config, random)
        pixels = _put(_cut(distance, wanted, stencil.parts), stencil, ground_HW, random)
    else:
        point, outward, step = spot
        # _warp turns (y, x) to (y cos + x sin, x cos - y sin): a direction atan2(y, x) grows by the angle.
        distance, anchor = _warp(stencil, (scale[0], scale[1]), outward - stencil.outward + angle, sizes, config, random)
        y, x = np.round(point + (1.0 + step) * np.array([math.sin(outward), math.cos(outward)]) - anchor).astype(int)
        pixels, stayed = _paste(_cut(distance, wanted, stencil.parts), (int(y), int(x)), ground_HW)
        if stayed >= 1 - MAX_RIM_LOSS:  # what the outline cuts off is added elsewhere
            pixels, stayed = _paste(_cut(distance, wanted / stayed, stencil.parts), (int(y), int(x)), ground_HW)
        if stayed < 1 - MAX_RIM_LOSS:
            return "lies off the object"
        if stayed == 1 or ndimage.label(pixels, EIGHT)[1] > stencil.parts:
            return "leaves the rim"
    if not isinstance(pixels, str) and not 0.9 * low <= pixels.sum() <= 1.1 * high + 4:
        return "has an area that no reference has"
    return pixels


def propose(
    references: Sequence[Mask], normal_HWC: np.ndarray, *, seed: int, config: WarpedConfig | None = None,
    foreground_HW: np.ndarray | None = None, reference_foregrounds: Sequence[np.ndarray | None] | None = None,
) -> Mask:  # fmt: skip
    """Draw a mask for a normal image: a random reference, warped and placed; a function of its arguments alone.

    The reference's signed distance is scaled, turned and bent, then cut at the level that marks the wanted number of
    pixels, so thin cracks stay thin and whole. The area is log-uniform over what `scale` reaches within the references'
    range; smaller only where the object is too small. With `place="near"` a reference that touches image sides touches
    them again (mirrored with flips, slid along), one that touches the object's outline does so at a random point of the
    outline, turned with it (known only with `reference_foregrounds`, one bool H x W per reference or None), and any other
    lies wholly inside. `foreground_HW`: bool, the object in `normal_HWC`; `foreground` finds it when it is not given.
    `accept` agrees with every result (`max_border=1` where image sides are touched). Raises MaskError when nothing fits.
    """
    config = config or WarpedConfig()
    if not references:
        raise MaskError("warped masks: expected at least one reference mask, got none")
    if reference_foregrounds is not None and len(reference_foregrounds) != len(references):
        raise MaskError(f"warped masks: {len(references)} references, but {len(reference_foregrounds)} foregrounds of references")
    ground = foreground(normal_HWC) if foreground_HW is None else foreground_HW
    if ground.shape != normal_HWC.shape[:2] or ground.dtype != bool or not ground.any():
        shape = normal_HWC.shape[:2]
        raise MaskError(f"warped masks: the object must be bool {shape} and not empty, got {ground.dtype} {ground.shape}")
    random, limits, fit = rng(seed, "mask", "warped"), area_range(references), 1.0
    refused: Counter[str] = Counter()
    calm = replace(config, rotation=config.rotation / 4, elastic=config.elastic / 4)
    for attempt in range(config.tries):
        now = config if attempt < config.tries // 2 else calm  # a shape that is hard to place is bent less
        if attempt % PATIENCE == 0:
            which = int(random.integers(len(references)))
            turned = slice(None, None, -1 if config.flip and random.random() < 0.5 else 1)
            mirror = turned, slice(None, None, -1 if config.flip and random.random() < 0.5 else 1)
            known = reference_foregrounds[which] if reference_foregrounds is not None else None
            stencil = _stencil(references[which].pixels_HW[mirror], None if known is None else known[mirror], now)
        pixels = _attempt(stencil, limits, fit, ground, now, random)
        if not isinstance(pixels, str):
            mask = Mask(pixels_HW=pixels, origin="warped", seed=seed)
            reason = accept(mask, foreground_HW=ground, max_border=1.0 if any(map(any, stencil.touch)) else 0.5)
            if reason is None:
                return mask
            pixels = reason.split(" (")[0]
        refused[pixels] += 1
        if pixels != "leaves the rim":
            fit *= SHRINK
    reason, times = refused.most_common(1)[0]
    raise MaskError(
        f"no warped mask fits this {normal_HWC.shape[1]} x {normal_HWC.shape[0]} image: {times} of {config.tries} tries failed "
        f"because the mask {reason}; check the image's foreground, allow a smaller scale or more tries, or draw the mask by hand"
    )
