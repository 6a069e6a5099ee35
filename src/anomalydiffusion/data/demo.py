"""The demo data set: photographs of real textures with defects drawn into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import replace_folder
from anomalydiffusion.core.seeds import rng

__all__ = ["DEFECTS", "SIDE", "draw", "make_demo"]

Rng = np.random.Generator
Drawing = Callable[[Rng, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SIDE = 176  # pixels: a tile of a 512 x 512 photograph, larger than one crop of the bundled prior
IMAGES, SHOTS, TRAIN_GOOD, TEST_GOOD = 12, 4, 24, 8
NOISE = 1.5  # grey levels of sensor noise, drawn anew for each image
ABOUT = "ABOUT.txt"
WORDS = """Demo data set of anomalydiffusion, drawn by its `demo` command; running it again replaces this folder.

The textures are the photographs `brick` and `gravel` of scikit-image (from ambientCG, CC0 1.0), 512 x 512 pixels each.
The left half of each gives train/good and the first 4 images of each defect type, the right half all the others, so
no pixel is both learned from and tested on. Within one half tiles overlap. The defects are drawn, not photographed.
"""


def _to_line(yy: np.ndarray, xx: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance in pixels from each pixel to a line through `points` (N x 2; y, x)."""
    best = np.full(yy.shape, np.inf)
    for (y0, x0), (dy, dx) in zip(points[:-1], np.diff(points, axis=0), strict=True):
        along = np.clip(((yy - y0) * dy + (xx - x0) * dx) / (dy * dy + dx * dx + 1e-9), 0, 1)
        best = np.minimum(best, np.hypot(yy - y0 - along * dy, xx - x0 - along * dx))
    return best


def _crack(generator: Rng, grey: np.ndarray, yy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A jagged dark line; the edge that faces the light is bright."""
    heading = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, 0.55, int(generator.integers(6, 12))))
    steps = generator.uniform(5, 13, heading.size)[:, None] * np.stack([np.sin(heading), np.cos(heading)], 1)
    points = np.cumsum(steps, 0)
    points += generator.uniform(0.35, 0.65, 2) * SIDE - points.mean(0)
    width = generator.uniform(1.4, 2.6)
    core = np.clip(width / 2 + 0.5 - _to_line(yy, xx, points), 0, 1)
    rim = np.clip(1.1 - _to_line(yy, xx, points + width / 2 + 0.4), 0, 1) * (1 - core)
    out = grey * (1 - core) + core * generator.uniform(18, 40)
    return out + rim * generator.uniform(35, 60), np.maximum(core, rim)


def _hole(generator: Rng, grey: np.ndarray, yy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A drilled hole: its far wall catches the light, and a burr stands around it."""
    y, x = generator.uniform(0.2, 0.8, 2) * SIDE
    radius, light = generator.uniform(4.5, 10), generator.normal(0.8, 0.3)
    away = np.hypot(yy - y, xx - x)
    inside, burr = np.clip(radius - away + 0.5, 0, 1), np.clip(1.2 - abs(away - radius - 0.6), 0, 1)
    wall = ((xx - x) * np.cos(light) + (yy - y) * np.sin(light)) / radius
    floor = 28 + 45 * np.clip(wall, 0, 1) ** 2 * (away / radius) ** 2
    out = grey * (1 - inside) + inside * floor
    return out + burr * (1 - inside) * (15 - 40 * wall), np.maximum(inside, burr)


def _oil(generator: Rng, grey: np.ndarray, yy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops that run together: the wet stones are darker and glossy."""
    drop, level = generator.uniform(0.25, 0.75, 2) * SIDE, np.zeros_like(grey)
    for _ in range(int(generator.integers(3, 7))):
        radius = generator.uniform(6, 13)
        level += np.exp(-((yy - drop[0]) ** 2 + (xx - drop[1]) ** 2) / radius**2)
        drop = drop + generator.uniform(-1.3, 1.3, 2) * radius
    wet = np.clip((level - 0.5) / 0.15, 0, 1)
    dark = grey * generator.uniform(0.4, 0.6)
    gloss = np.clip(grey - ndimage.gaussian_filter(grey, 3) - 16, 0, None) * generator.uniform(2.0, 3.5)
    return grey * (1 - wet) + np.clip(dark + gloss, 0, 235) * wet, wet


def _wire(generator: Rng, grey: np.ndarray, yy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A bent round wire that lies on top and throws a shadow; the shadow belongs to the mask."""
    turn, length, bend = generator.uniform(0, np.pi), generator.uniform(40, 90), generator.uniform(-30, 30)
    along, across = np.array([np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), -np.sin(turn)])
    t = np.linspace(-1, 1, 15)[:, None]
    points = generator.uniform(0.35, 0.65, 2) * SIDE + t * length / 2 * along + (t**2 - 0.5) * bend * across
    half = generator.uniform(1.3, 2.4)
    body = np.clip(half + 0.5 - _to_line(yy, xx, points), 0, 1)
    shade = np.clip(half + 0.8 - _to_line(yy, xx, points + half + 0.6), 0, 1) * (1 - body)
    bright = np.exp(-((_to_line(yy, xx, points - 0.4 * half) / half) ** 2) * 2)
    out = grey * (1 - 0.65 * shade)
    return out * (1 - body) + body * (70 + generator.uniform(90, 140) * bright), np.maximum(body, shade)


DEFECTS: dict[str, dict[str, Drawing]] = {"brick": {"crack": _crack, "hole": _hole}, "gravel": {"oil": _oil, "wire": _wire}}


def draw(generator: Rng, grey_HW: np.ndarray, product: str, defect: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one defect into a tile (float grey levels, SIDE x SIDE); return the new tile and its bool mask.

    The mask marks each pixel that is at least a quarter defect; no other pixel differs from the tile.
    """
    yy, xx = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    out, share = DEFECTS[product][defect](generator, grey_HW, yy, xx)
    mask = share >= 0.25  # what is fainter is taken back, so that the mask is exact
    return np.where(mask, out, grey_HW), mask


def _photograph(product: str) -> np.ndarray:
    from skimage import data

    try:
        return np.asarray({"brick": data.brick, "gravel": data.gravel}[product](), dtype=float)
    except Exception as error:
        raise DataError(f"scikit-image has no photograph of {product} ({error}); reinstall scikit-image") from error


def _tile(generator: Rng, half: np.ndarray) -> np.ndarray:
    """A place in `half`, mirrored or not, a little lighter or darker."""
    top, left = (int(generator.integers(length - SIDE + 1)) for length in half.shape)
    tile = half[top : top + SIDE, left : left + SIDE]
    return tile[:, :: 1 if generator.random() < 0.5 else -1] * generator.uniform(0.94, 1.06)


def _shoot(generator: Rng, grey: np.ndarray) -> bytes:
    noisy = grey + generator.normal(0, NOISE, grey.shape)
    return encode_png(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))


def make_demo(output: Path, *, seed: int = 0) -> Path:
    """Write the demo data set (MVTec AD layout, 8-bit grey PNGs of 176 x 176) as the folder `output`; return it.

    Two products with two defect types each; per type 12 images with exact masks, per product 24 + 8 normal ones. The left
    half of each photograph is only learned from (train/good and the 4 images of a type that the split makes shots), the
    right half only tested on. The defects share no code with those of the bundled prior's training (`data.flaws`).
    The folder is whole or absent and the same for the same `seed`; an earlier demo data set there is replaced.
    Raises `DataError` where `output` is a file or a folder that holds something else.
    """
    if output.exists() and not (output.is_dir() and ((output / ABOUT).exists() or not any(output.iterdir()))):
        raise DataError(f"{output}: holds something else than demo data; name a folder that is empty or new")
    with replace_folder(output) as root:
        (root / ABOUT).write_text(WORDS, encoding="utf-8")
        for product, defects in DEFECTS.items():
            photograph = _photograph(product)
            middle = photograph.shape[1] // 2
            learn, test = photograph[:, :middle], photograph[:, middle:]
            plan = [("train/good", TRAIN_GOOD, TRAIN_GOOD), ("test/good", TEST_GOOD, 0)]
            for folder, count, learned in (*plan, *((f"test/{defect}", IMAGES, SHOTS) for defect in defects)):
                defect = folder.split("/")[1]
                (root / product / folder).mkdir(parents=True)
                if defect in defects:
                    (root / product / "ground_truth" / defect).mkdir(parents=True)
                for index in range(count):
                    generator = rng(seed, "demo", product, folder, index)
                    tile = _tile(generator, learn if index < learned else test)
                    if defect in defects:
                        tile, mask = draw(generator, tile, product, defect)
                        (root / product / "ground_truth" / defect / f"{index:03d}_mask.png").write_bytes(encode_png(mask))
                    (root / product / folder / f"{index:03d}.png").write_bytes(_shoot(generator, tile))
    return output
