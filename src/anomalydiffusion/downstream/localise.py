"""Train one detector on tiles of defects and normals; its best state is chosen on a validation part, never on test images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from anomalydiffusion.core.crops import crop_box, extract
from anomalydiffusion.core.errors import TrainingError
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.downstream.descent import Descent, looks
from anomalydiffusion.downstream.detectors import DetectorConfig, predict, shrink
from anomalydiffusion.downstream.metrics import average_precision, f1_threshold
from anomalydiffusion.downstream.networks import build_network
from anomalydiffusion.downstream.samples import Sample

__all__ = ["Localiser", "focal_loss", "train_localiser", "typed_ap"]

Rng = np.random.Generator
CACHE = 512 * 2**20  # bytes of pictures that a training keeps in memory
GAMMA = 2.0  # of the focal loss, as published


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Localiser:
    """A trained detector; `threshold` is the best one (F1) on the validation part, NaN where there was none."""

    model: nn.Module
    config: DetectorConfig
    threshold: float
    validation_ap: float
    step: int

    def predict(self, image_HWC: np.ndarray) -> np.ndarray:
        return predict(self.model, image_HWC, self.config)


def focal_loss(logits_B1HW: torch.Tensor, mask_B1HW: torch.Tensor, gamma: float = GAMMA) -> torch.Tensor:
    """`-(1 - p)^gamma log p`, p = the probability of the right class, mean over pixels [arXiv 1708.02002, without class weights]."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits_B1HW, mask_B1HW, reduction="none")
    return (-torch.expm1(-entropy)).pow(gamma).mul(entropy).mean()


def dice_loss(logits_B1HW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy + 1 - 2 sum(p m) / (sum p + sum m): the second term keeps small defects from being ignored."""
    p = torch.sigmoid(logits_B1HW)
    dice = 1 - (2 * (p * mask_B1HW).sum() + 1) / (p.sum() + mask_B1HW.sum() + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits_B1HW, mask_B1HW) + dice


LOSSES = {"focal": focal_loss, "dice": dice_loss}


def _view(generator: Rng, image: np.ndarray, mask: Mask | None, config: DetectorConfig) -> tuple[np.ndarray, np.ndarray]:
    """What is trained on: a random tile, with a part of the defect where there is one, or the whole image; mirrored at random."""
    height, width = image.shape[:2]
    pixels = mask.pixels_HW if mask else np.zeros((height, width), bool)
    if config.tiles:
        if mask:
            y, x = np.argwhere(pixels)[generator.integers(int(pixels.sum()))].tolist()
        else:
            y, x = int(generator.integers(height)), int(generator.integers(width))
        box = crop_box((x, y, x + 1, y + 1), (height, width), 1.0, config.side, (generator.random(), generator.random()))
        image, pixels = extract(image, box), extract(pixels, box)
    else:
        image, pixels = shrink(image, pixels, config.side)
    flip_y, flip_x = generator.choice([1, -1], 2).tolist()
    return image[::flip_y, ::flip_x], pixels[::flip_y, ::flip_x]


def _pick(generator: Rng, pool: Sequence[Sample]) -> Sample:
    """A defect type first, each as often as the others; then one of its samples."""
    kinds = list(dict.fromkeys(sample.defect for sample in pool))
    kind = kinds[int(generator.integers(len(kinds)))]
    some = [sample for sample in pool if sample.defect == kind]
    return some[int(generator.integers(len(some)))]


def train_localiser(
    pools: Sequence[Sequence[Sample]], normals: Sequence[Sequence[Sample]], validation: Sequence[Sample], config: DetectorConfig, *,
    seed: int, device: torch.device | str = "cpu", on_step: Callable[[int], None] = lambda step: None,
) -> Localiser:  # fmt: skip
    """Train for `config.steps` gradient steps on `device`; half of each batch shows a defect, the other half is normal.

    Every pool of defect samples gives the same share of the defect views, however many it holds, and so does every pool of
    normals. `config.checks` times in the last quarter the pixel AP of each defect type in `validation` is measured, and the state
    with the best mean of them is kept; with no defect in `validation` the last one is. Raises `TrainingError` on a loss that is
    not finite.
    """
    model = build_network(config.network, config.width, seed).to(device).train()
    descent = Descent(model, rate=config.rate, steps=config.steps, cycle=config.cycle)
    first = pools[0][0].read()[0]
    read = lru_cache(maxsize=max(8, CACHE // (2 * first.nbytes)))(lambda sample: sample.read())
    looked = looks(config.steps, config.checks)
    best = Localiser(model=model, config=config, threshold=math.nan, validation_ap=-1.0, step=0)
    for step in range(config.steps):
        generator = rng(seed, "views", step)
        views = []
        for index in range(config.batch_size):
            turn = index // 2
            sample = _pick(generator, pools[turn % len(pools)] if index % 2 == 0 else normals[turn % len(normals)])
            image, mask = read(sample)
            views.append(_view(generator, image, mask, config))
        x_BCHW = torch.cat([to_tensor(view) for view, _ in views]).to(device, memory_format=torch.channels_last)
        mask_B1HW = torch.from_numpy(np.stack([marked for _, marked in views])[:, None].astype(np.float32)).to(device)
        loss = LOSSES[config.loss](model(x_BCHW), mask_B1HW)
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"detector, step {step}: the loss is {float(loss.detach())}; check the images, or lower its rate")
        descent.step(loss)
        if step + 1 in looked:
            best = _better(best, model, validation, step + 1)
            model.train()
        on_step(step + 1)
    return best


def _better(best: Localiser, model: nn.Module, validation: Sequence[Sample], step: int) -> Localiser:
    """The better of the best so far and the model as it is now, by the mean over defect types of the pixel AP on the validation part.

    Large defects shall not outvote small ones: by one figure of all pixels, states won that saw no small defect.
    """
    if not any(sample.defect for sample in validation):
        return Localiser(model=model, config=best.config, threshold=math.nan, validation_ap=math.nan, step=step)
    scores, truths = [], []
    for sample in validation:
        image, mask = sample.read()
        scores.append(predict(model, image, best.config).ravel())
        truths.append((mask.pixels_HW if mask else np.zeros(image.shape[:2], bool)).ravel())
    scores_N, truth_N = np.concatenate(scores), np.concatenate(truths)
    found = typed_ap([sample.defect for sample in validation], scores, truths)
    if found <= best.validation_ap:
        return best
    threshold = f1_threshold(scores_N, truth_N)
    return Localiser(model=copy.deepcopy(model), config=best.config, threshold=threshold, validation_ap=found, step=step)


def typed_ap(defects: Sequence[str], scores: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The mean over defect types of the pixel AP on the images of each one and the normal ones, whose defect is ""."""
    found = []
    for defect in sorted(set(defects) - {""}):
        own = [row for row, other in enumerate(defects) if other in (defect, "")]
        found.append(average_precision(*(np.concatenate([some[row] for row in own]) for some in (scores, truths))))
    return float(np.mean(found))
