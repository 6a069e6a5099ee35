"""Turn a few shots into a pool of augmented, encoded crops, once, so that the frozen autoencoder never runs in the loop."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from anomalydiffusion.core.config import to_dict
from anomalydiffusion.core.crops import clusters, crop_box, extract, resize
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import Cells, digest_pixels, to_latent_mask, to_tensor
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.latent import LatentPrior

__all__ = ["Pool", "PoolConfig", "augment", "build_pool", "kept_pool"]

log = logging.getLogger(__name__)

ENCODED = 32 * 128**2  # pixels of views that are encoded at once: the autoencoder's first grids are a hundred times as large


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Augmentation of the shots; the crop's side is `ratio` (drawn log-uniformly) times the mask's box."""

    crops: int = 1536
    ratio: tuple[float, float] = (1.5, 5.0)
    minimum_side: int = 64
    rotation: float = 20.0
    flips: bool = True
    light: float = 0.08
    together: bool | None = None  # a mask's parts are in one view, however far apart; None = then in views of their own
    cells: Cells | None = None  # of the latent grid, that the loss counts as marked: of "any" marked pixel, or by the "nearest"; None = any

    def __post_init__(self) -> None:
        if not 1.0 <= self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio = {self.ratio}: expected two rising, finite numbers of at least 1")
        for name, least in (("crops", 1), ("minimum_side", 8), ("rotation", 0), ("light", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least {least}")
        if self.cells not in (None, "any", "nearest"):
            raise ConfigError(f"cells '{self.cells}' is not known; known: any, nearest")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Encoded crops: latents N x C x h x w, pixel masks N x 1 x S x S, latent masks N x 1 x h x w, defect of each.

    For an inpainting prior also what it is told of the surroundings, N x (1 + C) x h x w.
    """

    latents: torch.Tensor
    masks: torch.Tensor
    latent_masks: torch.Tensor
    keys: list[tuple[str, str]]
    surroundings: torch.Tensor | None = None


def augment(
    image: np.ndarray, mask: Mask, groups: Sequence[Mask], size: int, config: PoolConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One random square view of a shot around one of its mask's groups: uint8 size x size x 3 and bool size x size.

    The square holds the whole group, and is not turned where that would cost the group more than a tenth of its pixels.
    All that is marked in view is in the mask, whichever group it belongs to.
    """
    part = groups[int(generator.integers(len(groups)))]
    low, high = np.log(config.ratio[0]), np.log(config.ratio[1])
    ratio = float(np.exp(generator.uniform(low, high)))
    place = (float(generator.uniform(0.02, 0.98)), float(generator.uniform(0.02, 0.98)))
    height, width = mask.pixels_HW.shape
    box = crop_box(part.box, (height, width), ratio, config.minimum_side, place)
    if config.rotation and box[2] - box[0] <= min(height, width):
        # turn a larger square, so that the corners of the wanted one exist
        angle = float(generator.uniform(-config.rotation, config.rotation))
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        grown = int((box[2] - box[0]) * 0.35)
        outer = (box[0] - grown, box[1] - grown, box[2] + grown, box[3] + grown)
        middle = (centre[0] - outer[0], centre[1] - outer[1])
        inner = slice(grown, grown + box[2] - box[0])

        def turn(marked: Image.Image) -> np.ndarray:
            return np.asarray(marked.rotate(angle, Image.Resampling.BILINEAR, center=middle))[inner, inner] > 127

        x0, y0, x1, y1 = part.box
        alone = Image.new("L", (outer[2] - outer[0], outer[3] - outer[1]))  # neither other groups nor reflections count
        alone.paste(_grey(part.pixels_HW[y0:y1, x0:x1]), (x0 - outer[0], y0 - outer[1]))
        if turn(alone).sum() >= 0.9 * part.pixels_HW.sum():
            turned = Image.fromarray(extract(image, outer)).rotate(angle, Image.Resampling.BICUBIC, center=middle)
            view, marks = np.asarray(turned)[inner, inner], turn(_grey(extract(mask.pixels_HW, outer)))
        else:
            view, marks = extract(image, box), extract(mask.pixels_HW, box)
    else:
        view, marks = extract(image, box), extract(mask.pixels_HW, box)
    view, marks = resize(view, size), resize(marks, size)
    if config.flips:
        if generator.random() < 0.5:
            view, marks = view[:, ::-1], marks[:, ::-1]
        if generator.random() < 0.5:
            view, marks = view[::-1], marks[::-1]
    gain = 1 + generator.uniform(-config.light, config.light)
    return np.clip(view * gain + 0.5, 0, 255).astype(np.uint8), np.ascontiguousarray(marks)


def _grey(marks_HW: np.ndarray) -> Image.Image:
    """Marks as a picture, 0 or 255."""
    return Image.fromarray(marks_HW.astype(np.uint8) * 255)


def build_pool(
    prior: LatentPrior, shots: dict[tuple[str, str], list[tuple[np.ndarray, Mask]]], config: PoolConfig, *, seed: int,
    progress: Callable[[int], None] | None = None,
) -> Pool:  # fmt: skip
    """Draw `config.crops` views, every defect type equally often and every shot of it in turn, and encode them.

    A view shows the whole defect, or one group of its parts where these lie too far apart for one close look. Raises `ConfigError`
    where there are fewer views than types.
    """
    keys = sorted(shots)
    if config.crops < len(keys):
        raise ConfigError(f"[train.pool] crops = {config.crops}: {len(keys)} defect types need a crop each, and better hundreds")
    latents, masks, cells, owners, around = [], [], [], [], []
    size = prior.working_size
    batch = max(1, ENCODED // size**2)
    groups = {key: [[mask] if config.together else clusters(mask, size // 2) for _, mask in shots[key]] for key in keys}
    for start in range(0, config.crops, batch):
        views = []
        for index in range(start, min(start + batch, config.crops)):
            key = keys[index % len(keys)]
            shot = (index // len(keys)) % len(shots[key])
            image, mask = shots[key][shot]
            view, marks = augment(image, mask, groups[key][shot], size, config, rng(seed, "pool", index))
            views.append(to_tensor(view))
            masks.append(torch.from_numpy(marks)[None, None])
            owners.append(key)
        latents.append(prior.encode(torch.cat(views)).cpu())
        marked = torch.cat(masks[start:]).float()
        cells.append(to_latent_mask(marked, prior.factor, config.cells))
        if (told := prior.surroundings(torch.cat(views), marked)) is not None:
            around.append(told.cpu())
        if progress:
            progress(min(start + batch, config.crops))
    return Pool(
        latents=torch.cat(latents), masks=torch.cat(masks), latent_masks=torch.cat(cells), keys=owners,
        surroundings=torch.cat(around) if around else None,
    )  # fmt: skip


def kept_pool(
    path: Path, prior: LatentPrior, shots: dict[tuple[str, str], list[tuple[np.ndarray, Mask]]], config: PoolConfig, *, seed: int,
    progress: Callable[[int], None] | None = None,
) -> Pool:  # fmt: skip
    """What `build_pool` builds, taken from the file `path` where that holds just this, else kept there.

    A training that goes on need not encode its crops anew, which takes a large prior on a processor as long as many steps.
    """
    marked = {"/".join(key): [(digest_pixels(image), digest_pixels(mask.pixels_HW)) for image, mask in shots[key]] for key in sorted(shots)}
    asked = json.dumps({"prior": prior.digest, "dtype": str(prior.dtype), "pool": to_dict(config), "seed": seed, "shots": marked})
    try:
        with safe_open(path, "pt") as file:
            if (noted := file.metadata() or {}).get("asked") == asked:
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
                return Pool(**found, keys=[(product, defect) for product, defect in json.loads(noted["keys"])])
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: cannot be read (%s), the crops are encoded anew", path, error)
    pool = build_pool(prior, shots, config, seed=seed, progress=progress)
    named = {"latents": pool.latents, "masks": pool.masks, "latent_masks": pool.latent_masks, "surroundings": pool.surroundings}
    tensors = {name: value.contiguous() for name, value in named.items() if value is not None}
    write_atomic(path, save(tensors, metadata={"asked": asked, "keys": json.dumps(pool.keys)}))
    return pool
