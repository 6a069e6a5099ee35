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
from anomalydiffusion.core.shapes import EIGHT
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.masks.geometry import accept
from anomalydiffusion.masks.placing import frame, paste, put
from anomalydiffusion.masks.stencils import MIN_PIXELS, Stencil, cut, stencil_of, warp

__all__ = ["WarpedConfig", "area_range", "propose"]

MAX_AREA = 0.6  # what `accept` allows
PATIENCE = 15  # tries before another reference gets its turn
SHRINK = 0.93  # scale after a shape that found no place
MAX_RIM_LOSS = 0.35  # share of a shape that the object's outline may cut off
STIFF = 0.25  # of `elastic`, for gaps: what breaks does not bend


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpedConfig:
    """How far a proposal may go from its reference."""

    rotation: float = 180.0  # degrees, either way
    scale: tuple[float, float] = (0.7, 1.4)  # of lengths
    elastic: float = 0.08  # largest usual displacement, as a share of the long side of the mask's box
    thickness: float = 0.15  # relative change of the width at unchanged length, either way
    flip: bool = True  # mirror left-right and top-bottom
    place: Literal["near", "anywhere", "mixed"] | None = (
        None  # near: what was at a rim stays; mixed: half of the masks; None = so, gaps near
    )
    carry: bool | None = None  # what the mask's own shot shows is warped with it, else what one of its shape shows; None = of gaps alone
    tries: int = 60

    def __post_init__(self) -> None:
        for name, low, high in (("rotation", 0.0, 180.0), ("elastic", 0.0, 0.3), ("thickness", 0.0, 0.9), ("tries", 1, 10_000)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"warped masks: {name} = {getattr(self, name)}, expected {low:g}..{high:g}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= 1 <= self.scale[1] <= 10:
            raise ConfigError(f"warped masks: scale = {self.scale}, expected (low, high) with 0 < low <= 1 <= high <= 10")
        if self.place not in (None, "near", "anywhere", "mixed"):
            raise ConfigError(f'warped masks: place = "{self.place}", expected "near", "anywhere" or "mixed"')


def area_range(references: Sequence[Mask]) -> tuple[float, float]:
    """The smallest and the largest area of the references, in pixels."""
    areas = [int(mask.pixels_HW.sum()) for mask in references]
    return float(min(areas)), float(max(areas))


Placed = tuple[np.ndarray, tuple[int, int]]  # the mask's pixels, and where in the image the shape's corner lies


def _put(patch: np.ndarray, stencil: Stencil, ground_HW: np.ndarray, random: np.random.Generator) -> Placed | str:
    """Place a shape that lies inside or at image sides; or the reason why there is no place."""
    object_box = frame(ground_HW)
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    trim = ((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1))
    ranges = []
    for axis, (low, high) in enumerate(stencil.touch):
        (start, stop), (begin, end) = object_box[axis], trim[axis]
        if (low and begin != 0) or (high and end != patch.shape[axis]):
            return "leaves the rim"
        start, stop = start + (not low), stop - (not high)
        first, last = (start, start) if low else (stop - end + begin,) * 2 if high else (start, stop - end + begin)
        if (gap := stencil.gap[axis]) is not None and last >= first:
            kept = round((gap if gap >= 0 else -1 - gap) * random.uniform(0.5, 1.5)) - 1
            first = last = min(first + kept, last) if gap >= 0 else max(last - kept, first)
        if last < first or first < start or (high and not low and first <= object_box[axis][0]) or (low and last + end - begin > stop):
            return "is larger than the object"
        ranges.append((first, last))
    small = patch[trim[0][0] : trim[0][1], trim[1][0] : trim[1][1]]
    found = put(small, (ranges[0], ranges[1]), ground_HW, random, least=0.98 if any(map(any, stencil.touch)) else 1.0)
    return found if isinstance(found, str) else (found[0], (found[1][0] - trim[0][0], found[1][1] - trim[1][0]))


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
    stencil: Stencil, limits: tuple[float, float], fit: float, ground_HW: np.ndarray, config: WarpedConfig,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | str:  # fmt: skip
    """One warped and placed mask, and where each of its marked pixels was in the reference (2 x N); or the reason why not."""
    (top, bottom), (left, right) = frame(ground_HW)
    sizes = bottom - top, right - left
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
        distance, _, source = warp(replace(stencil, outward=None), (scale[0], scale[1]), angle, sizes, config.elastic, random)
        found = _put(cut(distance, wanted, stencil.parts), stencil, ground_HW, random)
        if isinstance(found, str):
            return found
        pixels, (y, x) = found
    else:
        point, outward, step = spot
        # `warp` turns (y, x) to (y cos + x sin, x cos - y sin): a direction atan2(y, x) grows by the angle.
        distance, anchor, source = warp(stencil, (scale[0], scale[1]), outward - stencil.outward + angle, sizes, config.elastic, random)
        y, x = np.round(point + (1.0 + step) * np.array([math.sin(outward), math.cos(outward)]) - anchor).astype(int).tolist()
        pixels, stayed = paste(cut(distance, wanted, stencil.parts), (y, x), ground_HW)
        if stayed >= 1 - MAX_RIM_LOSS:  # what the outline cuts off is added elsewhere
            pixels, stayed = paste(cut(distance, wanted / stayed, stencil.parts), (y, x), ground_HW)
        if stayed < 1 - MAX_RIM_LOSS:
            return "lies off the object"
        if stayed == 1 or ndimage.label(pixels, EIGHT)[1] > stencil.parts:
            return "leaves the rim"
    if not 0.9 * low <= pixels.sum() <= 1.1 * high + 4:
        return "has an area that no reference has"
    rows, columns = np.nonzero(pixels)
    return pixels, source[:, rows - y, columns - x]


def _unmirrored(trace_2N: np.ndarray, mirror: tuple[slice, slice], reference: Mask) -> np.ndarray:
    """Places in a mirrored reference as places in the reference itself."""
    sizes = reference.pixels_HW.shape
    return np.stack([size - 1 - row if part.step == -1 else row for row, part, size in zip(trace_2N, mirror, sizes, strict=True)])


def _bent(config: WarpedConfig, *, gap: bool, calm: bool) -> WarpedConfig:
    """How far a shape may go now: a gap is bent little, and one that is hard to place (`calm`) neither bent nor turned far."""
    elastic = config.elastic * (STIFF if gap else 1.0)
    return replace(config, rotation=config.rotation / 4, elastic=elastic / 4) if calm else replace(config, elastic=elastic)


def propose(
    references: Sequence[Mask], normal_HWC: np.ndarray, *, seed: int, config: WarpedConfig | None = None,
    foreground_HW: np.ndarray | None = None, reference_foregrounds: Sequence[np.ndarray | None] | None = None, first: int | None = None,
    through: Sequence[bool] | None = None,
) -> Mask:  # fmt: skip
    """Draw a mask for a normal image: a reference, warped and placed; a function of its arguments alone.

    The reference is that of number `first`, or where that is None or does not fit, a random one.

    The reference's signed distance is scaled, turned and bent, then cut at the level that marks the wanted number of
    pixels, so thin cracks stay thin and whole. The area is log-uniform over what `scale` reaches within the references'
    range; smaller only where the object is too small. With `place="near"` a reference that touches image sides touches
    them again (mirrored with flips, slid along), one that touches the object's outline does so at a random point of the
    outline, turned with it (known only with `reference_foregrounds`, one bool H x W per reference or None), both turned further
    by 25 degrees at most, and any other lies wholly inside; "mixed" does so with half of the masks. `foreground_HW`: bool, the
    object in `normal_HWC`; `foreground` finds it when it is not given.
    `accept` agrees with every result (`max_border=1` where image sides are touched). With `carry` the mask knows its reference and
    its trace in it. Raises MaskError when nothing fits.

    References through which the background is seen, as `through` says (by default of none), are gaps; unless `carry` is false, they
    are carried, for their crumbs stand along their own outline, and bent a quarter as much; and where `place` is left open, they open at
    the rim as they did: in the midst of an object a gap's open end would be a wall.
    """
    config = config or WarpedConfig()
    if not references:
        raise MaskError("warped masks: expected at least one reference mask, got none")
    if reference_foregrounds is not None and len(reference_foregrounds) != len(references):
        raise MaskError(f"warped masks: {len(references)} references, but {len(reference_foregrounds)} foregrounds of references")
    if through is not None and len(through) != len(references):
        raise MaskError(f"warped masks: {len(references)} references, but {len(through)} words on whether they are gaps")
    ground = foreground(normal_HWC) if foreground_HW is None else foreground_HW
    if ground.shape != normal_HWC.shape[:2] or ground.dtype != bool or not ground.any():
        shape = normal_HWC.shape[:2]
        raise MaskError(f"warped masks: the object must be bool {shape} and not empty, got {ground.dtype} {ground.shape}")
    random, limits, fit = rng(seed, "mask", "warped"), area_range(references), 1.0
    refused: Counter[str] = Counter()
    for attempt in range(config.tries):
        next_turn = attempt % PATIENCE == 0
        if next_turn:
            drawn = int(random.integers(len(references)))
            which = drawn if attempt or first is None else first
            gap = config.carry is not False and through is not None and through[which]
            turned = slice(None, None, -1 if config.flip and random.random() < 0.5 else 1)
            mirror = turned, slice(None, None, -1 if config.flip and random.random() < 0.5 else 1)
            place = config.place or ("near" if gap else "mixed")
            near = place == "near" or (place == "mixed" and random.random() < 0.5)
        now = _bent(config, gap=gap, calm=attempt >= config.tries // 2)
        if next_turn:
            known = reference_foregrounds[which] if reference_foregrounds is not None else None
            stencil = stencil_of(
                references[which].pixels_HW[mirror], None if known is None else known[mirror],
                rotation=now.rotation, elastic=now.elastic, near=near,
            )  # fmt: skip
        found = _attempt(stencil, limits, fit, ground, now, random)
        if not isinstance(found, str):
            pixels, trace = found
            mask = Mask(pixels_HW=pixels, origin="warped", seed=seed)
            reason = accept(mask, foreground_HW=ground, max_border=1.0 if any(map(any, stencil.touch)) else 0.5)
            if reason is None:
                if not (config.carry or gap):
                    return mask
                return replace(mask, reference=which, trace=_unmirrored(trace, mirror, references[which]))
            found = reason.split(" (")[0]
        refused[found] += 1
        if found != "leaves the rim":
            fit *= SHRINK
    reason, times = refused.most_common(1)[0]
    raise MaskError(
        f"no warped mask fits this {normal_HWC.shape[1]} x {normal_HWC.shape[0]} image: {times} of {config.tries} tries failed "
        f"because the mask {reason}; check the image's foreground, allow a smaller scale or more tries, or draw the mask by hand"
    )
