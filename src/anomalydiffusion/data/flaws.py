"""Draw a defect into a picture, with the exact mask of what was touched and a caption of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from anomalydiffusion.data.materials import field

__all__ = ["FLAWS", "draw_flaw", "draw_shape"]

Rng = np.random.Generator


def _blob(rng: Rng, size: int, radius: float, rough: float = 0.25) -> np.ndarray:
    """A closed random outline, true inside."""
    yy, xx = np.mgrid[0:size, 0:size].astype(float)
    cy, cx = rng.uniform(0.15, 0.85, 2) * size
    theta = np.arctan2(yy - cy, xx - cx)
    wave = sum(rng.normal(0, rough) / k * np.cos(k * theta + rng.uniform(0, 6.3)) for k in range(1, 8))
    aspect, turn = rng.uniform(1, 2.5), rng.uniform(0, np.pi)
    u = (xx - cx) * np.cos(turn) + (yy - cy) * np.sin(turn)
    v = -(xx - cx) * np.sin(turn) + (yy - cy) * np.cos(turn)
    inside: np.ndarray = np.hypot(u / np.sqrt(aspect), v * np.sqrt(aspect)) < radius * (1 + wave)
    return inside


def _path(rng: Rng, size: int, bend: float, width: float) -> np.ndarray:
    """A line that wanders, true within half of `width` of it."""
    steps = int(rng.uniform(0.2, 1.0) * size)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], 1), 0)
    points += size / 2 - points.mean(0) + rng.uniform(-0.3, 0.3, 2) * size
    canvas = np.ones((size, size), bool)
    inside = ((points >= 0) & (points < size)).all(1)
    canvas[points[inside, 0].astype(int), points[inside, 1].astype(int)] = False
    near: np.ndarray = ndimage.distance_transform_edt(canvas) <= width / 2
    return near & (not canvas.all())


def _lay(image: np.ndarray, mask: np.ndarray, target: np.ndarray, soft: float) -> np.ndarray:
    """Replace `image` by `target` inside `mask`, with a soft rim that stays inside the mask."""
    alpha = np.clip(ndimage.distance_transform_edt(mask) / max(soft, 0.5), 0, 1)[..., None]
    return image * (1 - alpha) + target * alpha


def scratch(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _path(rng, image.shape[0], 0.02, rng.uniform(1.5, 5))
    bright = rng.uniform(1.3, 2.2) if rng.random() < 0.6 else rng.uniform(0.3, 0.75)
    return _lay(image, mask, np.clip(image * bright + (0.1 if bright > 1 else 0), 0, 1), 1.0), mask


def crack(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _path(rng, image.shape[0], rng.uniform(0.1, 0.35), rng.uniform(1.5, 4.5))
    return _lay(image, mask, image * rng.uniform(0.1, 0.65), 0.9), mask


def hole(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _blob(rng, image.shape[0], rng.uniform(3, 22))
    texture = 1 + 0.15 * field(rng, image.shape[0], 1.2)[..., None]
    return _lay(image, mask, image.mean((0, 1)) * rng.uniform(0.05, 0.65) * texture, rng.uniform(0.8, 3)), mask


def stain(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _blob(rng, image.shape[0], rng.uniform(8, 40))
    colour = rng.uniform(0.4, 1.2) * (1 + 0.3 * rng.uniform(-1, 1, 3))
    return _lay(image, mask, np.clip(image * colour, 0, 1), rng.uniform(1, 8)), mask


def dent(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _blob(rng, image.shape[0], rng.uniform(6, 26), 0.12)
    depth = np.minimum(ndimage.distance_transform_edt(mask), 8)
    slope = ndimage.sobel(ndimage.gaussian_filter(depth, 1.5), axis=int(rng.integers(2)))
    light = 1 + rng.choice([-1, 1]) * rng.uniform(0.3, 0.7) * slope / (np.abs(slope).max() + 1e-9)
    return _lay(image, mask, np.clip(image * light[..., None], 0, 1), 1.0), mask


def chip(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A piece broken away from an edge of the picture, with broken texture below."""
    size = image.shape[0]
    mask = np.roll(_blob(rng, size, rng.uniform(10, 36), 0.3), size // 2, axis=int(rng.integers(2)))
    if rng.random() < 0.7:
        mask = mask & (np.arange(size) < size // 2)[:, None]
    rough = field(rng, size, 1.6)[..., None]
    target = np.clip(image.mean((0, 1)) * rng.uniform(0.2, 1.5) * (1 + 0.25 * rough), 0, 1)
    return _lay(image, mask, target, rng.uniform(0.6, 1.5)), mask


def missing(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ground shows where the part should be."""
    mask = _blob(rng, image.shape[0], rng.uniform(8, 34), 0.3)
    target = np.broadcast_to(rng.uniform(0.02, 0.4) + 0.02 * rng.standard_normal((*mask.shape, 1)), image.shape)
    return _lay(image, mask, np.clip(target, 0, 1), rng.uniform(0.6, 2)), mask


def fray(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _blob(rng, image.shape[0], rng.uniform(12, 40), 0.3)
    rough = field(rng, image.shape[0], 0.8, rng.uniform(1, 8), rng.uniform(0, np.pi))[..., None]
    return _lay(image, mask, np.clip(image * (rng.uniform(0.7, 1.1) + rng.uniform(0.1, 0.3) * rough), 0, 1), 3.0), mask


def uneven(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[0]
    yy, xx = np.mgrid[0:size, 0:size]
    turn = rng.uniform(0, 2 * np.pi)
    u = (xx - size / 2) * np.cos(turn) + (yy - size / 2) * np.sin(turn) + 4 * field(rng, size, 2.2)
    mask = (u > rng.uniform(-0.2, 0.35) * size) & (u < rng.uniform(0.36, 0.8) * size)
    return _lay(image, mask, np.clip(image * rng.choice([0.6, 0.75, 1.3, 1.6]), 0, 1), rng.uniform(1, 14)), mask


def fibre(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _path(rng, image.shape[0], 0.12, rng.uniform(1.5, 4))
    return _lay(image, mask, np.broadcast_to(rng.uniform(0, 1, 3), image.shape), 0.8), mask


def spots(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[0]
    mask = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(2, 7))):
        mask |= _blob(rng, size, rng.uniform(1.5, 6), 0.1)
    return _lay(image, mask, np.clip(image * rng.choice([0.3, 0.5, 1.6, 2.2]), 0, 1), 1.0), mask


def bridge(rng: Rng, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A patch that takes the brightest or the darkest tone of the picture: a short, a spur, a mouse bite."""
    mask = _blob(rng, image.shape[0], rng.uniform(2.5, 12), 0.3)
    tone = np.percentile(image.reshape(-1, 3), rng.choice([2, 98]), axis=0)
    return _lay(image, mask, np.broadcast_to(tone, image.shape), 0.8), mask


FLAWS: dict[str, Callable[[Rng, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "a scratch": scratch, "a crack": crack, "a dark hole": hole, "a stain": stain, "a dent": dent, "a broken edge": chip,
    "a missing piece": missing, "a frayed patch": fray, "an uneven area": uneven, "a foreign fibre": fibre,
    "small spots": spots, "a bridge or bite": bridge,
}  # fmt: skip


def draw_flaw(rng: Rng, image: np.ndarray, name: str | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw the defect `name` (or any) into a square uint8 RGB image; return image, bool mask, caption's first words.

    The mask marks every pixel that was touched and at least one.
    """
    name = name or list(FLAWS)[int(rng.integers(len(FLAWS)))]
    base = image.astype(np.float64) / 255
    for _ in range(50):
        out, mask = FLAWS[name](rng, base)
        if mask.sum() >= 4:
            return np.clip(out * 255 + 0.5, 0, 255).astype(np.uint8), mask, name
    raise RuntimeError(f"{name}: 50 draws in a row marked fewer than 4 pixels")


def draw_shape(rng: Rng, size: int = 128) -> tuple[np.ndarray, str]:
    """Draw a defect's mask as a white shape on black (uint8 RGB), with its caption."""
    ground = np.full((size, size, 3), 128, np.uint8)
    _, mask, name = draw_flaw(rng, ground)
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2), f"a binary mask of {name}"
