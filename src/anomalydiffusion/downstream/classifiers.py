"""Train one classifier of defect types; its best state is chosen on a validation part, never on test images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.errors import ConfigError, DataError, TrainingError
from anomalydiffusion.core.pixels import to_batch
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.downstream.descent import Descent, looks
from anomalydiffusion.downstream.detectors import shrink
from anomalydiffusion.downstream.metrics import accuracy
from anomalydiffusion.downstream.networks import pretrained_classifier
from anomalydiffusion.downstream.samples import Sample

__all__ = ["NETWORKS", "PRESETS", "Classifier", "ClassifierConfig", "build_classifier", "look", "train_classifier"]

View = Callable[[Sample], np.ndarray]  # uint8 side x side x 3
CACHE = 512 * 2**20  # bytes of views that a training keeps in memory
BATCH = 32  # views that are named at once
AROUND = 2.0  # a crop's side in lengths of the defect's box


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """One classifier of defect types; the same for every arm of a comparison."""

    network: Literal["light", "resnet18", "resnet34"] = "light"
    side: int = 64  # pixels of what it sees
    crops: bool = True  # a square around the defect: which type is it, given where it is; else the whole image, resized
    rate: float = 1e-3  # learning rate, the highest of a cycle
    cycle: bool = True  # one cycle of AdamW; else Adam at a constant rate
    steps: int = 300
    batch_size: int = 16
    checks: int = 2  # how often in the last quarter the validation part is looked at; the best state is kept
    hold_back: int = 4  # one group of shots in so many is for validation

    def __post_init__(self) -> None:
        if self.side < 32:
            raise ConfigError(f"side = {self.side}: expected 32 pixels or more")
        if self.steps < 1 or self.batch_size < 2 or self.checks < 1 or self.hold_back < 2:
            raise ConfigError("batch_size, hold_back, steps, checks: expected at least 2, 2, 1 and 1")
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"rate = {self.rate}: expected a finite number above 0")


PRESETS: dict[str, ClassifierConfig] = {
    "cpu": ClassifierConfig(),
    # The paper names ResNet-34 and leaves the rest open: pixels, Adam, rate, batch and steps are those of its localisation. Its
    # released code begins with ImageNet's weights; here every arm begins with random ones.
    "paper": ClassifierConfig(network="resnet34", side=256, crops=False, rate=1e-4, cycle=False, steps=20_000, batch_size=8),
}


def _resnet(name: str, classes: int) -> nn.Module:
    from torchvision import models  # slow to import, and most commands never need it

    network: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "light": pretrained_classifier,
    "resnet18": partial(_resnet, "resnet18"),
    "resnet34": partial(_resnet, "resnet34"),
}


def build_classifier(name: str, classes: int, seed: int) -> nn.Module:
    """Build one of `NETWORKS` its new weights drawn from `seed`: B x 3 x H x W in -1..1 -> B x `classes` logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](classes)
    return network.to(memory_format=torch.channels_last)


def look(sample: Sample, config: ClassifierConfig) -> np.ndarray:
    """What a classifier sees of a sample: uint8 RGB, `side` x `side`.

    With `crops`, the square around the defect's box, twice as long as that and `side` pixels at least, at native resolution;
    shrunk to `side` where it is longer. Else the whole image, its sides' ratio lost. Raises `DataError` where a crop has no mask.
    """
    image, mask = sample.read()
    if not config.crops:
        return shrink(image, np.zeros(image.shape[:2], bool), config.side)[0]
    if mask is None:
        raise DataError(f"{sample.name}: no mask to cut the defect out by; give one, or let the classifier see whole images")
    return resize(extract(image, crop_box(mask.box, image.shape[:2], AROUND, config.side)), config.side)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A trained classifier; `accuracy` and `loss` are those on the validation part, NaN where there was none."""

    model: nn.Module
    config: ClassifierConfig
    classes: tuple[str, ...]
    accuracy: float
    loss: float
    step: int

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """The most probable type of each sample."""
        logits_NK = _logits(self.model, samples, lambda sample: look(sample, self.config))
        return [self.classes[index] for index in logits_NK.argmax(1).tolist()]


@torch.inference_mode()
def _logits(model: nn.Module, samples: Sequence[Sample], view: View) -> torch.Tensor:
    """N x classes, on the CPU. The model is put into evaluation mode and left there. Raises `DataError` on NaN from it."""
    model.eval()
    device, parts = next(model.parameters()).device, []
    for begin in range(0, len(samples), BATCH):
        x_BCHW = to_batch(np.stack([view(sample) for sample in samples[begin : begin + BATCH]]))
        parts.append(model(x_BCHW.to(device, memory_format=torch.channels_last)).cpu())
    logits_NK = torch.cat(parts)
    if not torch.isfinite(logits_NK).all():
        raise DataError("the classifier answered with numbers that are not finite; lower its rate")
    return logits_NK


def train_classifier(
    pools: Sequence[Sequence[Sample]], validation: Sequence[Sample], classes: Sequence[str], config: ClassifierConfig, *,
    seed: int, device: torch.device | str = "cpu", on_step: Callable[[int], None] = lambda step: None,
) -> Classifier:  # fmt: skip
    """Train for `config.steps` gradient steps of cross entropy, on `device`, on views that are mirrored at random.

    Every class gives as many views as any other, and of a class every pool that shows it gives as many as any other, however
    many each holds. `config.checks` times in the last quarter `validation` is looked at, and the state with the highest accuracy
    is kept, of equal ones that with the lowest loss, then the earliest; with nothing in `validation` the last one is. One seed,
    one result, on a processor; a graphics card sums in another order each time.
    Raises `DataError` on a class that no pool shows, `TrainingError` on a loss that is not finite.
    """
    by_class = [[own for pool in pools if (own := [sample for sample in pool if sample.defect == name])] for name in classes]
    if lacking := [name for name, own in zip(classes, by_class, strict=True) if not own]:
        raise DataError(f"{lacking[0]}: no image to learn this type from; add shots of it, or leave the type out")
    model = build_classifier(config.network, len(classes), seed).to(device).train()
    descent = Descent(model, rate=config.rate, steps=config.steps, cycle=config.cycle)
    view = lru_cache(maxsize=CACHE // (3 * config.side**2))(lambda sample: look(sample, config))
    looked = looks(config.steps, config.checks)
    best = Classifier(model=model, config=config, classes=tuple(classes), accuracy=-1.0, loss=math.inf, step=0)
    for step in range(config.steps):
        generator, views = rng(seed, "views", step), []
        turns = step * config.batch_size + np.arange(config.batch_size)
        for turn in turns.tolist():
            showing = by_class[turn % len(classes)]
            pool = showing[turn // len(classes) % len(showing)]
            flip_y, flip_x = generator.choice([1, -1], 2).tolist()
            views.append(view(pool[int(generator.integers(len(pool)))])[::flip_y, ::flip_x])
        truth_B = torch.from_numpy(turns % len(classes)).to(device)
        x_BCHW = to_batch(np.stack(views)).to(device, memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(x_BCHW), truth_B)
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"classifier, step {step}: the loss is {float(loss.detach())}; check the images, or lower its rate")
        descent.step(loss)
        if step + 1 in looked:
            best = _better(best, model, validation, view, step + 1)
            model.train()
        on_step(step + 1)
    return best


def _better(best: Classifier, model: nn.Module, validation: Sequence[Sample], view: View, step: int) -> Classifier:
    """The better of the best so far and the model as it is now, on the validation part."""
    if not validation:
        return Classifier(model=model, config=best.config, classes=best.classes, accuracy=math.nan, loss=math.nan, step=step)
    logits_NK = _logits(model, validation, view)
    truth_N = torch.tensor([best.classes.index(sample.defect) for sample in validation])
    found = accuracy(logits_NK.argmax(1).tolist(), truth_N.tolist())
    loss = float(nn.functional.cross_entropy(logits_NK, truth_N))
    if (found, -loss) <= (best.accuracy, -best.loss):
        return best
    return Classifier(model=copy.deepcopy(model), config=best.config, classes=best.classes, accuracy=found, loss=loss, step=step)
