"""Draw pictures of materials from nothing but a seed: metals, plastics, fabrics, ceramics, wood, boards, objects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

__all__ = ["MATERIALS", "draw_material", "field"]

Rng = np.random.Generator
Grey = np.ndarray


def field(rng: Rng, size: int, slope: float = 1.5, stretch: float = 1.0, angle: float = 0.0) -> Grey:
    """Draw a Gaussian random field with spectrum `1 / f**slope`, zero mean and unit variance.

    `stretch` > 1 elongates the grain along `angle` (radians, 0 = horizontal).
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    radius = np.sqrt((along * stretch) ** 2 + (across / max(stretch**0.25, 1.0)) ** 2)
    gain = (radius + 1.0 / size) ** -slope
    gain[0, 0] = 0.0
    out = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * gain).real
    return (out - out.mean()) / (out.std() + 1e-9)


def _grid(size: int) -> tuple[Grey, Grey]:
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float64)
    return yy, xx


def _colour(rng: Rng, saturation: float = 0.3, low: float = 0.15, high: float = 0.85) -> Grey:
    """A random RGB colour in 0..1 around a random grey."""
    grey = rng.uniform(low, high)
    return np.clip(grey + saturation * rng.uniform(-0.5, 0.5, 3), 0.02, 0.98)


def _tint(height: Grey, colour: Grey, contrast: float) -> Grey:
    """A grey field (unit variance) as small brightness changes of one colour."""
    return colour[None, None] * (1 + contrast * height[..., None])


def _axis(rng: Rng) -> float:
    """Mostly horizontal or vertical, sometimes oblique: as parts lie under a camera."""
    return float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)], p=[0.4, 0.4, 0.2]))


def brushed_metal(rng: Rng, size: int) -> tuple[Grey, str]:
    angle = _axis(rng)
    lines = field(rng, size, rng.uniform(0.3, 0.9), rng.uniform(8, 60), angle)
    slow = field(rng, size, 2.2)
    grain = rng.standard_normal((size, size))
    height = rng.uniform(0.05, 0.2) * lines + rng.uniform(0.02, 0.15) * slow + rng.uniform(0.01, 0.06) * grain
    return _tint(height, _colour(rng, 0.08), 1.0), "brushed metal"


def ground_tile(rng: Rng, size: int) -> tuple[Grey, str]:
    """A ground dark ceramic face: faint streaks, blotches, sometimes an edge with shadow behind it."""
    angle = float(rng.choice([0.0, np.pi / 2]))
    lines = field(rng, size, rng.uniform(0.5, 1.0), rng.uniform(10, 80), angle)
    height = rng.uniform(0.03, 0.14) * lines + rng.uniform(0.03, 0.15) * field(rng, size, 1.8)
    image = _tint(height + rng.uniform(0.02, 0.07) * rng.standard_normal((size, size)), _colour(rng, 0.03, 0.15, 0.6), 1)
    return image, "ground ceramic tile"


def cast_metal(rng: Rng, size: int) -> tuple[Grey, str]:
    bumps = ndimage.gaussian_filter(rng.standard_normal((size, size)), rng.uniform(0.8, 2.5))
    light = ndimage.sobel(bumps, axis=int(rng.integers(2)))
    light /= light.std()
    return _tint(rng.uniform(0.04, 0.2) * light + 0.08 * field(rng, size, 2.0), _colour(rng, 0.06), 1.0), "cast metal"


def rolled_steel(rng: Rng, size: int) -> tuple[Grey, str]:
    height = 0.1 * field(rng, size, 1.3, rng.uniform(2, 6), _axis(rng)) + 0.04 * rng.standard_normal((size, size))
    return _tint(height * rng.uniform(0.5, 1.5), _colour(rng, 0.05), 1.0), "rolled steel"


def plastic(rng: Rng, size: int) -> tuple[Grey, str]:
    yy, xx = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * xx + np.sin(angle) * yy) / size - 0.5
    grain = ndimage.gaussian_filter(rng.standard_normal((size, size)), rng.uniform(0.3, 1.2))
    height = rng.uniform(0, 0.4) * slope + rng.uniform(0.005, 0.06) * grain / grain.std()
    return _tint(height, _colour(rng, 0.9), 1.0), "smooth plastic"


def leather(rng: Rng, size: int) -> tuple[Grey, str]:
    count = int(rng.integers(120, 900))
    points = rng.uniform(0, size, (count, 2))
    seeds = np.ones((size, size), bool)
    seeds[points[:, 0].astype(int), points[:, 1].astype(int)] = False
    distance, (iy, ix) = ndimage.distance_transform_edt(seeds, return_indices=True)
    label = iy * size + ix
    edge = (label != np.roll(label, 1, 0)) | (label != np.roll(label, 1, 1))
    crease = ndimage.gaussian_filter(edge.astype(float), rng.uniform(0.6, 1.3))
    height = -rng.uniform(0.2, 0.9) * crease + 0.02 * distance + 0.05 * rng.standard_normal((size, size))
    return _tint(height, _colour(rng, 0.5, 0.15, 0.6), 1.0), "leather"


def fabric(rng: Rng, size: int) -> tuple[Grey, str]:
    yy, xx = _grid(size)
    period = rng.uniform(3, 14)
    wobble = 0.4 * period * 0.2 * field(rng, size, 2.0)
    phase = rng.uniform(0, 2 * np.pi, 2)
    if rng.random() < 0.4:
        height = np.sin(2 * np.pi * (xx + yy * rng.choice([-1, 1]) + wobble) / period + phase[0])
    else:
        warp = np.sin(2 * np.pi * (xx + wobble) / period + phase[0])
        weft = np.sin(2 * np.pi * (yy + wobble) / period + phase[1])
        height = np.maximum(warp, weft) + 0.5 * np.sign(warp * weft)
    height = height + rng.uniform(0.1, 0.5) * field(rng, size, 0.5)
    return _tint(height, _colour(rng, 0.7), rng.uniform(0.05, 0.25)), "woven fabric"


def wood(rng: Rng, size: int) -> tuple[Grey, str]:
    yy, xx = _grid(size)
    if rng.random() < 0.5:
        yy, xx = xx, yy
    rings = yy + rng.uniform(2, 18) * field(rng, size, 2.2, rng.uniform(1, 5), 0.0)
    height = np.sin(2 * np.pi * rings / rng.uniform(5, 28)) + 0.6 * field(rng, size, 0.8, 20, 0.0)
    base = np.array([rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.6), rng.uniform(0.1, 0.4)])
    return _tint(height, base, rng.uniform(0.04, 0.16)), "wood grain"


def ceramic(rng: Rng, size: int) -> tuple[Grey, str]:
    image = _tint(0.02 * field(rng, size, 2.0) + 0.01 * rng.standard_normal((size, size)), _colour(rng, 0.3, 0.4, 0.95), 1)
    if rng.random() < 0.5:
        spots = field(rng, size, 0.6) > rng.uniform(1.2, 2.4)
        image = np.where(spots[..., None], image * rng.uniform(0.4, 0.9), image)
    return image, "glazed ceramic"


def concrete(rng: Rng, size: int) -> tuple[Grey, str]:
    height = 0.1 * field(rng, size, 1.0) + 0.06 * rng.standard_normal((size, size))
    image = _tint(height * rng.uniform(0.5, 1.6), _colour(rng, 0.1, 0.3, 0.8), 1.0)
    pores = ndimage.gaussian_filter((rng.random((size, size)) < 0.002).astype(float), 0.8) * 4
    return image * (1 - np.clip(pores, 0, 0.6))[..., None], "concrete"


def marble(rng: Rng, size: int) -> tuple[Grey, str]:
    vein = np.abs(field(rng, size, 1.8))
    dark = np.exp(-vein * rng.uniform(3, 12))
    image = _tint(0.04 * field(rng, size, 1.2), _colour(rng, 0.2, 0.5, 0.9), 1.0)
    return image * (1 - rng.uniform(0.2, 0.6) * dark)[..., None], "polished marble"


def circuit_board(rng: Rng, size: int) -> tuple[Grey, str]:
    """Straight tracks, pads and vias on a plain ground, two tones."""
    copper = np.zeros((size, size), bool)
    yy, xx = _grid(size)
    width = rng.uniform(4, 18)
    for _ in range(int(rng.integers(1, 7))):
        horizontal = bool(rng.random() < 0.5)
        position, start, stop = rng.uniform(0, size), rng.uniform(-size / 2, size), rng.uniform(0, 1.5 * size)
        across, along = (yy, xx) if horizontal else (xx, yy)
        copper |= (np.abs(across - position) < width / 2) & (along > min(start, stop)) & (along < max(start, stop))
    for _ in range(int(rng.integers(0, 6))):
        cy, cx = rng.uniform(0, size, 2)
        r = rng.uniform(4, 18)
        disc = np.hypot(yy - cy, xx - cx)
        copper = (copper | (disc < r)) & ~((disc < r * 0.4) & (rng.random() < 0.6))
    if rng.random() < 0.5:
        copper = ~copper
    ground, track = (_colour(rng, 0.5), _colour(rng, 0.5)) if rng.random() < 0.6 else (np.zeros(3), np.ones(3))
    soft = ndimage.gaussian_filter(copper.astype(float), rng.uniform(0.2, 0.9))[..., None]
    image = ground * (1 - soft) + track * soft
    return image + rng.uniform(0, 0.03) * rng.standard_normal((size, size, 1)), "a circuit board"


def perforated(rng: Rng, size: int) -> tuple[Grey, str]:
    yy, xx = _grid(size)
    pitch = rng.uniform(14, 48)
    oy, ox = rng.uniform(0, pitch, 2)
    hole = np.hypot((yy + oy) % pitch - pitch / 2, (xx + ox) % pitch - pitch / 2) < pitch * rng.uniform(0.15, 0.4)
    depth = ndimage.gaussian_filter(hole.astype(float), 0.7)
    image = _tint(0.06 * field(rng, size, 1.0), _colour(rng, 0.2, 0.3, 0.9), 1.0)
    return image * (1 - rng.uniform(0.4, 0.95) * depth)[..., None], "a perforated plate"


def _speckled(rng: Rng, size: int) -> Grey:
    return _tint(0.12 * field(rng, size, 1.1) + 0.05 * rng.standard_normal((size, size)), _colour(rng, 0.5), 1.0)


def part_on_tray(rng: Rng, size: int) -> tuple[Grey, str]:
    """An object of one material on a ground of another, shaded towards its rim: the rim crosses the picture."""
    yy, xx = _grid(size)
    cy, cx = rng.uniform(-0.2, 1.2, 2) * size
    r = rng.uniform(0.3, 1.1) * size
    theta = np.arctan2(yy - cy, xx - cx)
    rough = sum(rng.uniform(0, 0.06) / k * np.cos(k * theta + rng.uniform(0, 6.3)) for k in range(1, 6))
    if rng.random() < 0.5:
        inside = r * (1 + rough) - np.hypot(yy - cy, xx - cx)
    else:
        inside = r * (1 + 0.2 * rough) - np.maximum(np.abs(yy - cy), np.abs(xx - cx))
    alpha = 1 / (1 + np.exp(-np.clip(inside / rng.uniform(0.4, 1.5), -50, 50)))
    shade = 1 - rng.uniform(0, 0.5) * np.exp(-np.clip(inside, 0, None) / rng.uniform(3, 20))
    front, name = SURFACES[int(rng.integers(len(SURFACES)))](rng, size)
    back = _tint(0.04 * field(rng, size, 1.2), _colour(rng, 0.2, 0.05, 0.5), 1.0)
    return (front * shade[..., None]) * alpha[..., None] + back * (1 - alpha[..., None]), f"a part of {name} on a tray"


def baked(rng: Rng, size: int) -> tuple[Grey, str]:
    image = _speckled(rng, size) * np.array([1.1, 0.85, 0.6])
    for _ in range(int(rng.integers(0, 6))):
        cy, cx = rng.uniform(0, size, 2)
        yy, xx = _grid(size)
        blob = np.exp(-((np.hypot(yy - cy, xx - cx) / rng.uniform(3, 14)) ** 4))
        image = image * (1 - rng.uniform(0.4, 0.85) * blob)[..., None]
    return image, "baked dough"


SURFACES: tuple[Callable[[Rng, int], tuple[Grey, str]], ...] = (
    brushed_metal, ground_tile, cast_metal, rolled_steel, plastic, leather, fabric, wood, ceramic, concrete, marble, baked,
)  # fmt: skip
MATERIALS = (*SURFACES, ground_tile, brushed_metal, circuit_board, perforated, part_on_tray, part_on_tray)


def draw_material(rng: Rng, size: int = 128) -> tuple[np.ndarray, str]:
    """Draw one material: uint8 RGB of `size` x `size` and its name in words."""
    image, name = MATERIALS[int(rng.integers(len(MATERIALS)))](rng, size)
    if rng.random() < 0.5:
        light = 1 + rng.uniform(0, 0.2) * np.clip(field(rng, size, 3.0), -2, 2)[..., None]
        image = image * light
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), name
