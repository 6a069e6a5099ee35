"""Build the captioned pictures on which a prior is trained: photographs of textures, drawn materials, flaws, shapes."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.data.flaws import draw_flaw, draw_shape
from anomalydiffusion.data.folders import SUFFIXES
from anomalydiffusion.data.materials import draw_material

__all__ = ["CorpusConfig", "Picture", "Texture", "draw_corpus", "load_textures"]

Texture = tuple[np.ndarray, str]  # uint8 RGB, and what it shows

log = logging.getLogger(__name__)

NAMED = [
    "stone",
    "brick",
    "wood",
    "metal",
    "concrete",
    "grass",
    "dirt",
    "sand",
    "rock",
    "snow",
    "mud",
    "marble",
    "plaster",
    "carpet",
    "floor",
    "wall",
    "tile",
    "panel",
    "road",
    "paving",
    "roof",
    "cliff",
    "ice",
    "rust",
    "gravel",
    "plants",
    "water",
    "asphalt",
    "door",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """What the corpus holds; shares are of all pictures and sum to at most 1 (the rest are photographs)."""

    pictures: int = 24_000
    size: int = 128
    drawn: float = 0.5
    shapes: float = 0.06
    flawed: float = 0.5  # share of photographs and drawn materials that get a defect drawn into them
    scale: tuple[float, float] = (0.5, 2.5)  # side of a photograph's crop over `size`: below 1 it is enlarged, as soft as a camera's
    grey: float = 0.5  # share of pictures turned to grey: many inspection cameras have no colour
    camera: float = 0.6  # share of pictures that get a lens's blur, a sensor's noise and JPEG's losses

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.size < 16:
            raise ConfigError(f"corpus: pictures = {self.pictures}, size = {self.size}: expected at least 1 picture of 16 pixels")
        for name in ("drawn", "shapes", "flawed", "grey", "camera"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"corpus: {name} = {getattr(self, name)}: expected a share, 0..1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"corpus: scale = {list(self.scale)}: expected two rising numbers above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One square uint8 RGB picture and its caption."""

    image_HWC: np.ndarray
    caption: str


def _name(path: str) -> str:
    words = re.sub(r"[^a-z]+", " ", Path(path).stem.split(".")[0].lower())
    found = [word for word in NAMED if word in words]
    return " ".join(found[:2]) + " texture" if found else "texture"


def load_textures(folder: Path) -> list[Texture]:
    """Read every texture below `folder` as uint8 RGB with a name in words (from ATTRIBUTION.csv where there is one)."""
    original = {}
    if (folder / "ATTRIBUTION.csv").exists():
        try:
            with (folder / "ATTRIBUTION.csv").open(newline="", encoding="utf-8") as handle:
                original = {row.get("file"): row.get("path") for row in csv.DictReader(handle)}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{folder / 'ATTRIBUTION.csv'}: cannot be read as a table ({error}); save it as CSV in UTF-8") from error
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no pictures found; name a folder that holds .png or .jpg textures")
    out = [(read_image(path), _name(original.get(path.name) or path.name)) for path in files]
    if all(name == "texture" for _, name in out):
        log.warning("%s: no file is named after a material, so all are captioned 'texture'; is ATTRIBUTION.csv missing there?", folder)
    return out


def _crop(generator: np.random.Generator, image: np.ndarray, size: int, scale: tuple[float, float]) -> np.ndarray:
    """A random square of the image, its side `scale` times `size`, brought to `size`, turned and mirrored."""
    short = min(image.shape[:2])
    side = int(min(short, size * generator.uniform(*scale)))
    top = int(generator.integers(image.shape[0] - side + 1))
    left = int(generator.integers(image.shape[1] - side + 1))
    square = Image.fromarray(image[top : top + side, left : left + side])
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS)
    out = np.rot90(np.asarray(square), int(generator.integers(4)))
    return np.ascontiguousarray(out[:, ::-1] if generator.random() < 0.5 else out)


def _photograph(
    generator: np.random.Generator, textures: Sequence[Texture], size: int, scale: tuple[float, float]
) -> tuple[np.ndarray, str]:
    image, name = textures[int(generator.integers(len(textures)))]
    out = _crop(generator, image, size, scale).astype(np.float64)
    out = (out - out.mean()) * generator.uniform(0.4, 1.2) + out.mean() * generator.uniform(0.6, 1.3)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8), name


def _camera(generator: np.random.Generator, image_HWC: np.ndarray) -> np.ndarray:
    """The picture as a camera hands it over: a lens's blur, a sensor's noise, often JPEG's losses.

    Without it fine detail is as strong as the coarse, which game textures and drawings have and photographs of parts have not.
    """
    blurred = ndimage.gaussian_filter(image_HWC.astype(np.float64), (sigma := generator.uniform(0.0, 0.9), sigma, 0))
    noise = ndimage.gaussian_filter(generator.standard_normal(image_HWC.shape[:2]), generator.uniform(0.2, 0.6))
    noisy = blurred + (generator.uniform(0, 4) * noise / noise.std())[..., None]
    seen = np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
    if generator.random() < 0.5:
        return seen
    file = io.BytesIO()
    Image.fromarray(seen).save(file, "JPEG", quality=int(generator.integers(70, 97)))
    return np.asarray(Image.open(file))


def draw_corpus(config: CorpusConfig, textures: Sequence[Texture], seed: int) -> Iterator[Picture]:
    """Draw `config.pictures` captioned pictures; picture i depends on (seed, i) alone."""
    for index in range(config.pictures):
        generator = rng(seed, "corpus", index)
        kind = generator.random()
        if kind < config.shapes:
            image, caption = draw_shape(generator, config.size)
            yield Picture(image_HWC=image, caption=caption)
            continue
        if kind < config.shapes + config.drawn or not textures:
            image, name = draw_material(generator, config.size)
        else:
            image, name = _photograph(generator, textures, config.size, config.scale)
        if generator.random() < config.grey:
            grey = np.asarray(Image.fromarray(image).convert("L"))
            image, name = np.repeat(grey[..., None], 3, axis=2), f"grey {name}"
        caption = f"a photo of {name}"
        if generator.random() < config.flawed:
            image, _, flaw = draw_flaw(generator, image)
            caption = f"{flaw} on {name}"
        if generator.random() < config.camera:
            image = _camera(generator, image)
        yield Picture(image_HWC=image, caption=caption)
