"""The networks that a comparison can train, from RGB in -1..1: to one logit a pixel, and the classifier that ImageNet began."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from anomalydiffusion.core.imagenet import lite0_file, renamed

__all__ = ["NETWORKS", "DiscriminativeUNet", "Pretrained", "build_network", "pretrained_classifier"]

LITE0 = "tf_efficientnet_lite0"


def _double(inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inner, outer):
        layers += [nn.Conv2d(width, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _widen(inner: int, outer: int) -> nn.Sequential:
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(up, nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


class DiscriminativeUNet(nn.Module):
    """The discriminative sub-network of DRAEM [arXiv 2108.07610, section 3.2]: six levels, two convolutions each, skips joined.

    B x 3 x H x W (H, W multiples of 32) -> B x 2 x H x W, the logits of normal and defect. `width` is that of the first
    level: 64 as published (28 M parameters). DRAEM feeds it image and reconstruction side by side; here, as in
    AnomalyDiffusion's localisation, it sees the image alone.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(_double(inner, outer) for inner, outer in zip([3, *widths], widths, strict=False))
        below = widths[-1]
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for skip, outer in zip(widths[-2::-1], [8 * width, 4 * width, 2 * width, width, width], strict=True):
            self.up.append(_widen(below, outer))
            self.join.append(_double(outer + skip, outer))
            below = outer
        self.head = nn.Conv2d(below, 2, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x_BCHW = block(x_BCHW if level == 0 else nn.functional.max_pool2d(x_BCHW, 2))
            skips.append(x_BCHW)
        for skip, up, join in zip(skips[-2::-1], self.up, self.join, strict=True):
            x_BCHW = join(torch.cat([up(x_BCHW), skip], dim=1))
        return self.head(x_BCHW)


class _Margin(nn.Module):
    """Two logits as one: softmax over (normal, defect) is the sigmoid of their difference."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits = self.network(x_BCHW)
        return logits[:, 1:] - logits[:, :1]


class Pretrained(nn.Module):
    """A network whose `encoder`, an EfficientNet-Lite0, begins as ImageNet taught it; its first stages, up to stride 8, stay so.

    With a handful of defects what an encoder has learned elsewhere is worth more than what it can learn here, and stages that
    stay are quick to train.
    """

    def __init__(self, network: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.network = network
        weights = torch.load(lite0_file(), weights_only=True, map_location="cpu")
        encoder.load_state_dict(renamed(weights, encoder), strict=False)  # it lacks the counters of batches only
        parts: Any = encoder
        self.kept: list[nn.Module] = [parts.conv_stem, parts.bn1, *parts.blocks[:3]]
        for module in self.kept:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Pretrained:
        super().train(mode)
        for module in self.kept:
            module.eval()
        return self

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.network(x_BCHW)


def _light(width: int) -> nn.Module:
    decoder = (4 * width, 2 * width, width, width // 2)
    import segmentation_models_pytorch as smp

    unet = smp.Unet(f"tu-{LITE0}", encoder_weights=None, encoder_depth=4, decoder_channels=decoder, in_channels=3, classes=1)
    return Pretrained(unet, unet.encoder.model)


def _segformer(width: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=8 * width, in_channels=3, classes=1)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "draem": lambda width: _Margin(DiscriminativeUNet(width)),
    "light": _light,
    "segformer": _segformer,
}


def build_network(name: str, width: int, seed: int) -> nn.Module:
    """Build one of `NETWORKS` its new weights drawn from `seed`: B x 3 x H x W in -1..1 -> B x 1 x H x W logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](width)
    return network.to(memory_format=torch.channels_last)


def pretrained_classifier(classes: int) -> nn.Module:
    """EfficientNet-Lite0 with new last weights: B x 3 x H x W in -1..1 -> B x `classes` logits."""
    import timm

    encoder = timm.create_model(LITE0, pretrained=False, num_classes=0)
    return Pretrained(nn.Sequential(encoder, nn.Linear(encoder.num_features, classes)), encoder)
