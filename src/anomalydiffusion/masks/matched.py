"""Propose masks where a normal image looks as a shot does around its defect: a chip of a rim goes to a rim, a break of a track to a track.

Axes: 0 = y, 1 = x. A place of a template is that of its top left pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks.stencils import bend

__all__ = ["MatchedConfig", "propose"]

AROUND = 8  # least pixels around a defect's box that are compared, or half the box's longer side
HALO = 2  # pixels around a mask that may still show the defect
SEARCHED = 384  # pixels of an image's longer side that are searched; places found there are made exact on the image itself
ON = 0.98  # share of a mask that must lie on the object; the rest is cut off
NEAR = 8.0  # pixels from the defect over which surroundings come to count a third
ALIKE = 2.0  # times the best place's misfit up to which others are as good
NOISE = 16.0  # mean square of grey levels that any two photographs differ by
APART = 6  # pixels between two places
LEAST = 16  # pixels around a defect to compare by

Place = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedConfig:
    """How masks are matched."""

    images: int = 4  # normal images that are searched, of which the one with the best place is drawn on
    places: int = 5  # best places in an image, of which one is taken at random
    scale: tuple[float, float] = (0.85, 1.2)  # of lengths
    elastic: float = 0.15  # largest usual displacement within the defect, as a share of the long side of its box
    turn: bool = False  # also by quarter turns: for surfaces without a direction of their own
    flip: bool = True  # also mirrored

    def __post_init__(self) -> None:
        if not 0 <= self.elastic <= 0.3:
            raise ConfigError(f"matched masks: elastic = {self.elastic}, expected 0..0.3")
        if not (1 <= self.images <= 8 and 1 <= self.places <= 1000):
            raise ConfigError(f"matched masks: images = {self.images}, places = {self.places}; expected 1..8 and 1..1000")
        if len(self.scale) != 2 or not 0.2 <= self.scale[0] <= self.scale[1] <= 5:
            raise ConfigError(f"matched masks: scale = {self.scale}, expected (low, high) with 0.2 <= low <= high <= 5")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Template:
    """A shot's defect with its surroundings, turned, mirrored and scaled: grey h x w, its marks, and where each pixel was in the shot."""

    grey_hw: np.ndarray
    marks_hw: np.ndarray
    at_2hw: np.ndarray
    touch: tuple[tuple[bool, bool], tuple[bool, bool]]  # by axis: does the defect touch the image's side there
    weights_hw: np.ndarray  # how much the surroundings count


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """A template's place, searched for in steps of `step` pixels; how unlike it is there, and usually is."""

    template: _Template
    place: Place
    step: int
    misfit: float
    usual: float


def _grey(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC.astype(np.float64).mean(2)


def _weights(marks_hw: np.ndarray) -> np.ndarray:
    """How much the surroundings of a defect count: less the farther from it, and nothing on it and its halo."""
    clear = ~ndimage.binary_dilation(marks_hw, iterations=HALO)
    clear = clear if clear.sum() >= LEAST else ~marks_hw
    return np.asarray(clear * np.exp(-ndimage.distance_transform_edt(~marks_hw) / NEAR))


def _templates(shot_HWC: np.ndarray, own: Mask, shape: tuple[int, int], scale: float, config: MatchedConfig) -> Iterator[_Template]:
    """Every way in which a shot's defect may lie in an image of `shape`.

    It is scaled by less than `scale`, down to the least of `config`, where it would not fit; one that does not fit then is cut off.
    """
    grey, sizes = _grey(shot_HWC), own.pixels_HW.shape
    x0, y0, x1, y1 = own.box
    boxes = ((y0, y1), (x0, x1))
    touch = [(start == 0, stop == size) for (start, stop), size in zip(boxes, sizes, strict=True)]
    pad = max(AROUND, max(y1 - y0, x1 - x0) // 2)
    flips = (1, -1) if config.flip else (1,)
    for turned, down, across in itertools.product((False, True) if config.turn else (False,), flips, flips):
        axes = (1, 0) if turned else (0, 1)
        most = [size / np.ptp(boxes[axis]) for axis, size in zip(axes, shape, strict=True) if not all(touch[axis])]
        fitting = max(config.scale[0], min([scale, *most]))
        ways = []
        for axis, step, size in zip(axes, (down, across), shape, strict=True):
            (start, stop), whole = boxes[axis], sizes[axis]
            factor = size / whole if all(touch[axis]) else fitting  # what reaches from side to side does so again
            room = math.floor(size / factor)
            wide = min(pad, max(0, (room - (stop - start)) // 2))
            start, stop = max(0, start - wide), min(whole, stop + wide)
            full = size if all(touch[axis]) else max(1, round((stop - start) * factor))
            if (count := min(size, full)) < full and touch[axis] == (False, True):
                start = stop - count / factor  # cut off at the end that is not the rim's
            ways.append((start + (np.arange(count) + 0.5) / factor - 0.5)[::step].clip(0, whole - 1))
        at = np.stack(np.meshgrid(*ways, indexing="ij"))
        at = at[::-1] if turned else at
        marks = own.pixels_HW[tuple(np.rint(at).astype(int))]
        sides = [touch[axis] if step == 1 else touch[axis][::-1] for axis, step in zip(axes, (down, across), strict=True)]
        if marks.any() and not marks.all():
            seen = ndimage.map_coordinates(grey, at, order=1, mode="nearest")
            yield _Template(grey_hw=seen, marks_hw=marks, at_2hw=at, touch=(sides[0], sides[1]), weights_hw=_weights(marks))


def _sums(image_HW: np.ndarray, weights_hw: np.ndarray) -> np.ndarray:
    """The weighted sum under a template at each of its places."""
    from scipy.signal import fftconvolve  # half a second to import, and most runs have no matched masks

    return np.asarray(fftconvolve(image_HW, weights_hw[::-1, ::-1], mode="valid"))


def _misfit(grey_HW: np.ndarray, template: np.ndarray, weights_hw: np.ndarray) -> np.ndarray:
    """Mean squared difference of the surroundings at each place."""
    squares = _sums(grey_HW**2, weights_hw) - 2 * _sums(grey_HW, weights_hw * template) + float((weights_hw * template**2).sum())
    return np.maximum(squares, 0) / weights_hw.sum()


def _flush(touch: tuple[bool, bool], count: int) -> np.ndarray:
    """Which of `count` places along an axis are at the image's side where the shot's defect is."""
    low, high = touch
    number = np.arange(count)
    return ~((low and not high) & (number > 0)) & ~((high and not low) & (number < count - 1))


def _allowed(template: _Template, marks_hw: np.ndarray, ground_HW: np.ndarray, least: float) -> np.ndarray:
    """The places where enough of the mask lies on the object, and at the image's sides where the shot's does."""
    inside = _sums(ground_HW.astype(np.float64), marks_hw.astype(np.float64)) >= (least - 1e-6) * marks_hw.sum()
    rows, columns = (_flush(touch, count) for touch, count in zip(template.touch, inside.shape, strict=True))
    return inside & rows[:, None] & columns


def _smaller(array: np.ndarray, step: int) -> np.ndarray:
    """Means of `step` x `step` pixels; what is left over at the end is left away."""
    height, width = (size // step * step for size in array.shape)
    return array[:height, :width].astype(np.float64).reshape(height // step, step, width // step, step).mean((1, 3))


def _places(template: _Template, grey_HW: np.ndarray, ground_HW: np.ndarray, least: float, config: MatchedConfig) -> Iterator[_Found]:
    """The best places of a template, local minima all; a large image is searched in a smaller one."""
    step = max(1, min(-(-max(grey_HW.shape) // SEARCHED), min(template.grey_hw.shape) // AROUND))
    if step > 1:
        grey, seen, weights, marks, ground = (
            _smaller(each, step) for each in (grey_HW, template.grey_hw, template.weights_hw, template.marks_hw, ground_HW)
        )
        cost = _misfit(grey, seen, weights)
        cost[~_allowed(template, marks, ground, least - 0.02)] = np.inf
    else:
        cost = _misfit(grey_HW, template.grey_hw, template.weights_hw)
        cost[~_allowed(template, template.marks_hw, ground_HW, least)] = np.inf
    lowest = np.argwhere((cost == ndimage.minimum_filter(cost, -(-APART // step) * 2 + 1, mode="nearest")) & np.isfinite(cost))
    usual = float(np.median(cost[np.isfinite(cost)])) if len(lowest) else math.inf
    for misfit, y, x in sorted((float(cost[y, x]), int(y), int(x)) for y, x in lowest)[: config.places]:
        yield _Found(misfit=misfit, usual=usual, place=(y * step, x * step), step=step, template=template)


def _exact(found: _Found, grey_HW: np.ndarray, ground_HW: np.ndarray, least: float) -> _Found | None:
    """The best place within a step of one that was found in a smaller image; None where none there is allowed."""
    if found.step == 1:
        return found
    template, weights, exact = found.template, found.template.weights_hw, None
    sizes = template.grey_hw.shape
    ways = [
        [
            start
            for start in range(at - found.step, at + found.step + 1)
            if 0 <= start <= size - own and _flush(touch, size - own + 1)[start]
        ]
        for at, size, own, touch in zip(found.place, grey_HW.shape, sizes, template.touch, strict=True)
    ]
    for y, x in itertools.product(*ways):
        under = np.s_[y : y + sizes[0], x : x + sizes[1]]
        misfit = float((weights * (grey_HW[under] - template.grey_hw) ** 2).sum() / weights.sum())
        better = exact is None or misfit < exact.misfit
        if better and ground_HW[under][template.marks_hw].mean() >= least - 1e-6:
            exact = replace(found, misfit=misfit, place=(y, x))
    return exact


def _chosen(
    templates: Sequence[_Template], grey_HW: np.ndarray, ground_HW: np.ndarray, least: float, config: MatchedConfig,
    random: np.random.Generator,
) -> _Found | None:  # fmt: skip
    """At random one of the best places of all templates, no worse than twice the best; None where there is none."""
    coarse = (each for template in templates for each in _places(template, grey_HW, ground_HW, least, config))
    found = [exact for each in coarse if (exact := _exact(each, grey_HW, ground_HW, least)) is not None]
    best = sorted(found, key=lambda each: (each.misfit, each.place))[: config.places]
    best = [each for each in best if each.misfit <= ALIKE * best[0].misfit + NOISE]
    return best[int(random.integers(len(best)))] if best else None


def _bent(template: _Template, own: Mask, elastic: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The marks and where each pixel was in the shot, bent within the defect and less the farther from it; one at an image's side stays."""
    if not elastic or any(map(any, template.touch)):
        return template.marks_hw, template.at_2hw
    x0, y0, x1, y1 = own.box
    rows, columns = np.nonzero(template.marks_hw)
    long = max(np.ptp(rows), np.ptp(columns)) + 1
    near = np.exp(-ndimage.distance_transform_edt(~template.marks_hw) / NEAR)
    shift = 0.5 * elastic * max(y1 - y0, x1 - x0) * near * bend(template.marks_hw.shape, float(long), random)
    most = np.array(own.pixels_HW.shape)[:, None, None] - 1
    at = (template.at_2hw + shift).clip(0, most)
    marks = own.pixels_HW[tuple(np.rint(at).astype(int))]
    return (marks, at) if marks.any() else (template.marks_hw, template.at_2hw)


def propose(
    shot_HWC: np.ndarray, own: Mask, normal_HWC: np.ndarray, *, seed: int, config: MatchedConfig | None = None,
    ground_HW: np.ndarray | None = None, own_ground_HW: np.ndarray | None = None, reference: int = -1,
) -> tuple[Mask, float]:  # fmt: skip
    """Put a shot's mask where the normal image looks as the shot does around its defect; the mask, and how far from alike it is there.

    The shot's surroundings, scaled at random, mirrored and as `config` says turned, are laid on every place of the image; what is compared
    is the mean square of what their grey levels differ by, off the defect and its halo and the less the farther from it, over the
    image's usual one: 0 = alike, 1 = no more alike than elsewhere. Of at most `places` with the least, local minima all and none with
    over twice the best one's, one is taken at random. There the mask is bent a little. It lies on the object `ground_HW` (bool; None =
    everywhere), at most 2 % of its area cut off, or, where it fits nowhere so, with the share that the shot's own has on `own_ground_HW`;
    what touches image sides in the shot touches them again. It knows the shot by its number, `reference`, and its trace in it, so that what
    is drawn begins from that very defect. A function of its arguments alone. Raises `MaskError` where there is
    no such place.
    """
    config = config or MatchedConfig()
    random, shape = rng(seed, "mask", "matched"), normal_HWC.shape[:2]
    ground = np.ones(shape, bool) if ground_HW is None else ground_HW
    if own.pixels_HW.shape != shot_HWC.shape[:2] or ground.shape != shape:
        raise MaskError(f"matched masks: mask {own.pixels_HW.shape} of shot {shot_HWC.shape[:2]}, object {ground.shape} of image {shape}")
    shares = [ON, *([] if own_ground_HW is None else [float(own_ground_HW[own.pixels_HW].mean()) - 0.02])]
    scale = math.exp(random.uniform(*np.log(config.scale)))
    grey = _grey(normal_HWC)
    templates = list(_templates(shot_HWC, own, (shape[0], shape[1]), scale, config))
    chosen = ((each, least) for least in shares if (each := _chosen(templates, grey, ground, least, config, random)))
    found, least = next(chosen, (None, 0.0))
    if found is None:
        raise MaskError(f"no place of this {shape[1]} x {shape[0]} image takes a shot's mask; give other normal images or wider regions")
    (y, x), template = found.place, found.template
    height, width = template.marks_hw.shape
    under = np.s_[y : y + height, x : x + width]
    marks, at = _bent(template, own, config.elastic, random)
    if ground[under][marks].mean() < least - 1e-6:  # bent off the object
        marks, at = template.marks_hw, template.at_2hw
    if least == ON:
        marks = marks & ground[under]
    pixels = np.zeros(shape, bool)
    pixels[under] = marks
    mask = Mask(pixels_HW=pixels, origin="matched", seed=seed, reference=reference, trace=at[:, marks])
    return mask, found.misfit / max(found.usual, NOISE)
