"""The small segmenter of the downstream proof, and its maps and scores of whole images."""

from __future__ import annotations

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn

from anomalydiffusion.core.crops import extract
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import to_tensor

__all__ = ["TILE", "image_score", "predict", "segmenter"]

TILE = 128  # pixels, at native resolution
STRIDE = 96  # neighbouring tiles share 32 pixels
POOL = 21  # pixels [DRAEM, arXiv 2108.07610, section 3.3]
BATCH = 8
ENCODER = "tu-mobilenetv3_small_100"  # the quickest of the light timm encoders to train on two CPU cores


def segmenter(seed: int) -> nn.Module:
    """Build a U-Net with random weights drawn from `seed`: RGB tiles in -1..1 (B x 3 x 128 x 128) -> one logit a pixel.

    1.0 M parameters; the paper uses DRAEM's discriminative sub-network (28 M, two-class softmax) at 256 pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = smp.Unet(
            ENCODER, encoder_weights=None, encoder_depth=4, decoder_channels=(64, 32, 16, 8), in_channels=3, classes=1
        )
    return model.to(memory_format=torch.channels_last)


def _starts(length: int) -> list[int]:
    """Where tiles begin along one side: every `STRIDE`, the last flush with the end."""
    return [*range(0, length - TILE, STRIDE), length - TILE]


def predict(model: nn.Module, image_HWC: np.ndarray) -> np.ndarray:
    """Probability of defect for each pixel: uint8 RGB H x W x 3 -> float32 H x W, 0..1.

    Tiles of 128 pixels at native resolution, blended where they overlap with weights that fall towards a tile's border.
    An image that is smaller is reflected up to one tile. The model is put into evaluation mode and left there.
    Raises `DataError` on another kind of image.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise DataError(f"expected a uint8 RGB image, got {image_HWC.dtype} of shape {image_HWC.shape}")
    height, width = image_HWC.shape[:2]
    padded = extract(image_HWC, (0, 0, max(width, TILE), max(height, TILE)))
    ramp = np.minimum(np.arange(TILE) + 1, TILE - np.arange(TILE)) / (TILE / 2)
    weight = np.outer(ramp, ramp)
    total, weights = np.zeros(padded.shape[:2]), np.zeros(padded.shape[:2])
    places = [(y, x) for y in _starts(padded.shape[0]) for x in _starts(padded.shape[1])]
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        for begin in range(0, len(places), BATCH):
            some = places[begin : begin + BATCH]
            tiles = torch.cat([to_tensor(padded[y : y + TILE, x : x + TILE]) for y, x in some])
            maps = torch.sigmoid(model(tiles.to(device, memory_format=torch.channels_last)))[:, 0].cpu().numpy()
            for (y, x), probability in zip(some, maps, strict=True):
                total[y : y + TILE, x : x + TILE] += weight * probability
                weights[y : y + TILE, x : x + TILE] += weight
    return (total / weights).astype(np.float32)[:height, :width]


def image_score(map_HW: np.ndarray) -> float:
    """One score for an image: the maximum of its map averaged over 21 x 21 pixels, zeros outside [DRAEM, section 3.3]."""
    pooled = nn.functional.avg_pool2d(torch.from_numpy(map_HW).float()[None, None], POOL, stride=1, padding=POOL // 2)
    return float(pooled.max())
