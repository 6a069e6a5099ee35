"""What a detector is: its network, how it looks at an image, how it is trained; and its maps and scores of whole images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from anomalydiffusion.core.crops import extract
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.pixels import to_tensor

__all__ = ["PRESETS", "DetectorConfig", "image_score", "predict", "shrink"]

POOL = 21  # pixels [DRAEM, arXiv 2108.07610, section 3.3]
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """One detector; the same for every arm of a comparison."""

    network: Literal["light", "draem", "segformer"] = "light"
    width: int = 16  # channels of its first or last level
    side: int = 128  # pixels of what it sees at once
    tiles: bool = True  # squares of the image at native resolution; else the whole image, resized
    loss: Literal["focal", "dice"] = "dice"  # dice: cross entropy + Dice
    rate: float = 2e-3  # learning rate, the highest of a cycle
    cycle: bool = True  # one cycle of AdamW; else Adam at a constant rate
    steps: int = 1000
    batch_size: int = 8
    checks: int = 2  # how often in the last quarter the validation part is looked at; the best state is kept
    hold_back: int = 4  # one group of shots in so many is for validation

    def __post_init__(self) -> None:
        if self.side % 32 or self.side < 32:
            raise ConfigError(f"side = {self.side}: expected a multiple of 32")
        if self.width < 2 or self.steps < 1 or self.batch_size < 2 or self.checks < 1 or self.hold_back < 2:
            raise ConfigError("width, batch_size, hold_back, steps, checks: expected at least 2, 2, 2, 1 and 1")
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"rate = {self.rate}: expected a finite number above 0")


PRESETS: dict[str, DetectorConfig] = {
    "cpu": DetectorConfig(),
    "paper": DetectorConfig(network="draem", width=64, side=256, tiles=False, loss="focal", rate=1e-4, cycle=False, steps=20_000),
    "segformer": DetectorConfig(network="segformer", width=16, rate=1e-3),
}


def shrink(image_HWC: np.ndarray, mask_HW: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A whole image and its mask as `side` x `side`; a cell that any marked pixel touches is marked."""
    x = nn.functional.interpolate(to_tensor(image_HWC), (side, side), mode="bilinear", antialias=True)
    small = ((x[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    marked = nn.functional.adaptive_max_pool2d(torch.from_numpy(mask_HW[None, None].astype(np.float32)), (side, side))
    return small, marked[0, 0].numpy() > 0


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin along one side: neighbours share a quarter, the last is flush with the end."""
    return [*range(0, length - side, side - side // 4), length - side]


def _probability(model: nn.Module, x_BCHW: torch.Tensor) -> np.ndarray:
    device = next(model.parameters()).device
    return np.asarray(torch.sigmoid(model(x_BCHW.to(device, memory_format=torch.channels_last)))[:, 0].float().cpu())


@torch.inference_mode()
def predict(model: nn.Module, image_HWC: np.ndarray, config: DetectorConfig) -> np.ndarray:
    """Probability of defect for each pixel: uint8 RGB H x W x 3 -> float16 H x W, 0..1; the metrics are quick with half precision.

    With `tiles`, squares at native resolution, blended where they overlap with weights that fall towards a tile's border; an
    image that is smaller is reflected up to one tile. Else the whole image at `side` x `side`, and its map enlarged again.
    The model is put into evaluation mode and left there. Raises `DataError` on another kind of image, and on NaN from the model.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise DataError(f"expected a uint8 RGB image, got {image_HWC.dtype} of shape {image_HWC.shape}")
    model.eval()
    height, width = image_HWC.shape[:2]
    if config.tiles:
        found = _stitched(model, image_HWC, config.side)[:height, :width]
    else:
        small, _ = shrink(image_HWC, np.zeros((height, width), bool), config.side)
        coarse = torch.from_numpy(_probability(model, to_tensor(small)))[:, None]
        found = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0, 0].numpy()
    if not np.isfinite(found).all():
        raise DataError("the detector answered with numbers that are not finite; lower its rate")
    return found.astype(np.float16)


def _stitched(model: nn.Module, image_HWC: np.ndarray, side: int) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    padded = extract(image_HWC, (0, 0, max(width, side), max(height, side)))
    ramp = np.minimum(np.arange(side) + 1, side - np.arange(side)) / (side / 2)
    weight = np.outer(ramp, ramp)
    total, weights = np.zeros(padded.shape[:2]), np.zeros(padded.shape[:2])
    places = [(y, x) for y in _starts(padded.shape[0], side) for x in _starts(padded.shape[1], side)]
    for begin in range(0, len(places), BATCH):
        some = places[begin : begin + BATCH]
        maps = _probability(model, torch.cat([to_tensor(padded[y : y + side, x : x + side]) for y, x in some]))
        for (y, x), probability in zip(some, maps, strict=True):
            total[y : y + side, x : x + side] += weight * probability
            weights[y : y + side, x : x + side] += weight
    return np.asarray(total / weights)


def image_score(map_HW: np.ndarray, config: DetectorConfig) -> float:
    """One score for an image: the maximum of its map averaged over 21 x 21 pixels, zeros outside [DRAEM, section 3.3].

    They are pixels of what the network sees: without `tiles`, of the image at `side` x `side`.
    """
    sides = [POOL if config.tiles else max(1, round(POOL * length / config.side)) for length in map_HW.shape]
    return float(ndimage.uniform_filter(map_HW.astype(np.float64), sides, mode="constant").max())
