"""What a user would do without us: Perlin masks with foreign texture, pasted and blended real defects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from anomalydiffusion.core.crops import extract, resize
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.seams import poisson_blend
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.materials import draw_material

__all__ = ["BASELINES", "cut_out", "cutpaste", "perlin", "poisson"]

Rng = np.random.Generator
Made = tuple[np.ndarray, Mask]  # image_HWC uint8, where it was changed
Window = tuple[slice, slice]

THRESHOLD = 0.5  # of Perlin noise in -1..1: marks about a twentieth of an image, in blots or streaks
FINEST = 5  # at most 2**5 lattice cells along an axis
CELL = 4  # pixels that a lattice cell is long at least
DRAWN = 1024  # the noise is smooth: longer images get it enlarged from this size
TEXTURE = 256  # pixels that a foreign texture is drawn with
KEPT = (0.1, 0.8)  # weight that the normal image keeps under the texture
SCALE = (0.7, 1.4)  # of a pasted defect's lengths
TRIES = 100  # places for a pasted defect before one is taken that lies partly off the object


def _check(image_HWC: np.ndarray, what: str) -> None:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise DataError(f"{what}: expected a uint8 RGB image, got {image_HWC.dtype} of shape {image_HWC.shape}")


def _finish(normal_HWC: np.ndarray, window: Window, inside: np.ndarray, values: np.ndarray, origin: str, seed: int) -> Made:
    """Round `values` (one row of 0..255 for each pixel of `inside`) into the window; every other pixel stays."""
    image, pixels_HW = normal_HWC.copy(), np.zeros(normal_HWC.shape[:2], bool)
    image[window][inside] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    pixels_HW[window] = inside
    return image, Mask(pixels_HW=pixels_HW, origin=origin, seed=seed)


def _noise(size_hw: tuple[int, int], random: Rng) -> np.ndarray:
    """Perlin's gradient noise, -1..1: a random power of two of lattice cells along each axis, turned by a random angle."""
    cells = [2 ** int(random.integers(0, 1 + min(FINEST, max(0, int(math.log2(size / CELL)))))) for size in size_hw]
    angle, step = random.uniform(-np.pi / 2, np.pi / 2), math.ceil(max(size_hw) / DRAWN)
    drawn = [math.ceil(size / step) for size in size_hw]
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) * (size / n) - size / 2 for n, size in zip(drawn, size_hw, strict=True))
    turned = y[:, None] * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y[:, None] * math.sin(angle)
    places = [at * (count / size) + random.random() for at, count, size in zip(turned, cells, size_hw, strict=True)]
    corner = [np.floor(at).astype(np.int32) for at in places]
    part = [at - low for at, low in zip(places, corner, strict=True)]
    corner = [low - low.min() for low in corner]
    directions = random.uniform(0, 2 * np.pi, [int(low.max()) + 2 for low in corner])
    slopes = np.stack([np.sin(directions), np.cos(directions)], dtype=np.float32)
    fade_y, fade_x = (t * t * t * (t * (6 * t - 15) + 10) for t in part)
    out = np.zeros(drawn, np.float32)
    for dy, weight_y in ((0, 1 - fade_y), (1, fade_y)):
        for dx, weight_x in ((0, 1 - fade_x), (1, fade_x)):
            slope_y, slope_x = slopes[:, corner[0] + dy, corner[1] + dx]
            out += weight_y * weight_x * (slope_y * (part[0] - dy) + slope_x * (part[1] - dx))
    out *= math.sqrt(2)  # a cell's centre reaches sqrt(1/2)
    return out if step == 1 else np.asarray(Image.fromarray(out).resize(size_hw[::-1], Image.Resampling.BICUBIC))


def _texture(size_hw: tuple[int, int], grey: bool, random: Rng) -> np.ndarray:
    """Another material of the size of an image: its light, contrast, tones and scale jittered, mirrored where it ends."""
    drawn = draw_material(random, TEXTURE)[0][..., random.permutation(3)] / 255
    drawn = np.clip(drawn, 0, 1) ** np.exp(random.uniform(-0.7, 0.7))
    drawn = 0.5 + random.choice([1, 1, 1, -1]) * random.uniform(0.7, 1.4) * (drawn - 0.5) + random.uniform(-0.15, 0.15)
    if grey:
        drawn = np.repeat(drawn.mean(-1, keepdims=True), 3, -1)
    picture = np.rot90((np.clip(drawn, 0, 1) * 255 + 0.5).astype(np.uint8), int(random.integers(4)))
    side = round(TEXTURE * np.exp(random.uniform(np.log(0.5), np.log(max(2.0, max(size_hw) / TEXTURE / 2)))))
    y, x = random.integers(0, side, 2).tolist()
    return extract(resize(np.ascontiguousarray(picture), side), (x, y, x + size_hw[1], y + size_hw[0]))


def _on(ground_HW: np.ndarray | None, normal_HWC: np.ndarray) -> np.ndarray:
    """Where a defect may be: on the object, or anywhere."""
    if ground_HW is None:
        return np.ones(normal_HWC.shape[:2], bool)
    if ground_HW.shape != normal_HWC.shape[:2] or not ground_HW.any():
        raise DataError(f"an object of {int(ground_HW.sum())} pixels in {ground_HW.shape} for an image of {normal_HWC.shape[:2]}")
    return ground_HW


def perlin(normal_HWC: np.ndarray, *, seed: int, ground_HW: np.ndarray | None = None) -> Made:
    """Blend a foreign texture A into a normal image I under a mask M of thresholded Perlin noise.

    `out = (1 - M) I + (1 - beta) M A + beta M I` [DRAEM, arXiv 2108.07610, simulated anomalies], beta uniform in 0.1..0.8: the
    texture always has a fifth of the weight, so what M marks does change. M is where the noise, scaled to -1..1 by its bound,
    exceeds 0.5 (not half of what one image's noise spans, which would mark half the image) on the object `ground_HW` (bool;
    None = everywhere); drawn again where it marks nothing. `normal_HWC`: uint8 RGB of any size; returns an image of that size,
    and M. Raises `DataError` on other images and on an object that is empty or of another size.

    Differs from DRAEM: the texture is procedural, not a photograph, and grey where the image is grey, so that colour does not
    give it away; beta is at least 0.1 (released code: 0); the lattice is turned, not its picture: no corner stays empty.
    """
    _check(normal_HWC, "normal image")
    random, size_hw = rng(seed, "baseline", "perlin"), normal_HWC.shape[:2]
    ground = _on(ground_HW, normal_HWC)
    while not (inside := (_noise(size_hw, random) > THRESHOLD) & ground).any():
        pass
    beta, grey = random.uniform(*KEPT), bool((normal_HWC == normal_HWC[..., :1]).all())
    blend = beta * normal_HWC[inside].astype(np.float32) + (1 - beta) * _texture(size_hw, grey, random)[inside]
    return _finish(normal_HWC, np.s_[:, :], inside, blend, "perlin", seed)


def cut_out(
    image_HWC: np.ndarray, mask: Mask, *, mirror: bool = False, angle: float = 0.0, scale: float = 1.0,
    within: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Cut a defect out with one pixel around it, mirrored left-right, turned clockwise by `angle`, lengths times `scale` > 0.

    `angle`: radians; `within`: height and width that the mask must fit into, the scale is cut down to that. Returns float
    h x w x 3 in about 0..255 (cubic, smoothed first where it shrinks; beyond the image its border pixels go on) and bool h x w
    (nearest), unmarked just at its border. One marked pixel lies exactly on the new grid, so something is always marked, and
    without any change every pixel is the image's own. Raises `DataError` where the image is not uint8 RGB of the mask's size.
    """
    _check(image_HWC, "shot")
    if image_HWC.shape[:2] != mask.pixels_HW.shape:
        raise DataError(f"a shot of {image_HWC.shape[:2]} pixels with a mask of {mask.pixels_HW.shape}; give both the same size")
    points = np.argwhere(mask.pixels_HW)
    anchor, (top, left), (bottom, right) = points[len(points) // 2], points.min(0), points.max(0) + 1
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    moved = (points - anchor) @ (forth := turn @ np.diag([1.0, -1.0 if mirror else 1.0])).T
    if within is not None:  # a pixel reaches sqrt(1/2) to each side; n pixels lie within a length of n - 1
        scale = min(scale, *(np.maximum(np.array(within) - 1, 0.5) / (np.ptp(moved, 0) + math.sqrt(2))))
    low, high = np.floor(scale * moved.min(0) - scale).astype(int) - 1, np.ceil(scale * moved.max(0) + scale).astype(int) + 2
    margin = math.ceil(2 / scale) + 2
    near = np.s_[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    back = np.linalg.inv(forth) / scale
    at = {"matrix": back, "offset": anchor - [near[0].start, near[1].start] + back @ low, "output_shape": tuple(high - low)}
    marked = ndimage.affine_transform(mask.pixels_HW[near], order=0, mode="grid-constant", **at)
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    trim = np.s_[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]
    blur = max(0.0, (1 / scale - 1) / 2)
    crop = ndimage.gaussian_filter(image_HWC[near].astype(np.float64), (blur, blur, 0), mode="nearest")
    patch = np.stack([ndimage.affine_transform(crop[..., c], order=3, mode="nearest", **at) for c in range(3)], -1)
    return patch[trim], marked[trim]


def _place(
    normal_HWC: np.ndarray, shots: Sequence[tuple[np.ndarray, Mask]], seed: int, ground_HW: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, Window]:  # fmt: skip
    """A changed defect of a random shot, and where it goes: patch, mask and window, cut at the image's sides.

    The first of some random places where it is wholly on the object, else the one where most of it is.
    """
    _check(normal_HWC, "normal image")
    if not len(shots):
        raise DataError("no shots: pasting needs at least one real defect image with its mask")
    random, size_hw = rng(seed, "baseline", "patch"), normal_HWC.shape[:2]
    image, mask = shots[int(random.integers(len(shots)))]
    mirror, angle, scale = bool(random.integers(2)), random.uniform(0, 2 * np.pi), random.uniform(*SCALE)
    patch, inside = cut_out(image, mask, mirror=mirror, angle=angle, scale=scale, within=size_hw)
    ground, best = np.pad(_on(ground_HW, normal_HWC), 1), -1
    for _ in range(TRIES):
        tried = [int(random.integers(-1, size - length + 2)) for size, length in zip(size_hw, inside.shape, strict=True)]
        there = ground[tried[0] + 1 : tried[0] + 1 + inside.shape[0], tried[1] + 1 : tried[1] + 1 + inside.shape[1]]
        if (on := int((inside & there).sum())) > best:
            best, corner = on, tried
        if best == inside.sum():
            break
    part_y, part_x = (slice(max(0, -low), size - low) for low, size in zip(corner, size_hw, strict=True))
    inside, (y, x) = inside[part_y, part_x], (max(0, low) for low in corner)
    return patch[part_y, part_x], inside, np.s_[y : y + inside.shape[0], x : x + inside.shape[1]]


def cutpaste(
    normal_HWC: np.ndarray, shots: Sequence[tuple[np.ndarray, Mask]], *, seed: int, ground_HW: np.ndarray | None = None
) -> Made:  # fmt: skip
    """Paste a real defect, with a hard edge, somewhere on a normal image.

    A random shot's pixels under its mask, mirrored or not, turned by any angle, 0.7 to 1.4 times as long (less where it would
    be larger than the image), at a place drawn uniformly from those where the whole of it is inside the image and on the object
    `ground_HW` (bool; None = everywhere); where a hundred tries find none, the best of them. `normal_HWC`: uint8 RGB; `shots`:
    uint8 RGB images with their masks, of any sizes. Returns an image of the normal one's size and the pasted mask. Raises
    `DataError` where there are no shots, one that does not fit its mask, or an object that is empty or of another size.

    Differs from CutPaste [arXiv 2104.04015], which pastes rectangles of the normal image itself.
    """
    patch, inside, window = _place(normal_HWC, shots, seed, ground_HW)
    return _finish(normal_HWC, window, inside, patch[inside], "cutpaste", seed)


def poisson(
    normal_HWC: np.ndarray, shots: Sequence[tuple[np.ndarray, Mask]], *, seed: int, ground_HW: np.ndarray | None = None
) -> Made:  # fmt: skip
    """Blend a real defect into a normal image: the patch and the place of `cutpaste` with the same seed, by `poisson_blend`.

    What the shot shows around its defect, one pixel wide, is taken for what the normal image shows around the place, so only
    the difference from it is carried over. Arguments, result and errors as in `cutpaste`; outside the mask the image stays
    bit for bit. Differs from the paper: no mixed gradients; clipped to 0..255.
    """
    patch, inside, window = _place(normal_HWC, shots, seed, ground_HW)
    return _finish(normal_HWC, window, inside, poisson_blend(patch, normal_HWC[window], inside)[inside], "poisson", seed)


BASELINES: dict[str, Callable[..., Made]] = {  # each: (normal_HWC, shots, *, seed, ground_HW)
    "perlin": lambda normal_HWC, shots, *, seed, ground_HW=None: perlin(normal_HWC, seed=seed, ground_HW=ground_HW),
    "cutpaste": cutpaste,
    "poisson": poisson,
}
