"""The segmentation networks that a comparison can train: each maps RGB in -1..1 to one logit a pixel."""

from __future__ import annotations

from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from torch import nn

from anomalydiffusion.core.imagenet import lite0_file, renamed

__all__ = ["NETWORKS", "DiscriminativeUNet", "LightUNet", "build_network"]

LITE0 = "tu-tf_efficientnet_lite0"


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


class LightUNet(nn.Module):
    """A U-Net on EfficientNet-Lite0 as trained on ImageNet; the encoder's first stages, up to stride 8, stay as they are.

    B x 3 x H x W (H, W multiples of 16) -> B x 1 x H x W. `width` is a quarter of the decoder's widest level. With a handful of
    defects what an encoder learned elsewhere is worth more than what it can learn here, and frozen stages are quick to train.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        decoder = (4 * width, 2 * width, width, width // 2)
        self.unet = smp.Unet(LITE0, encoder_weights=None, encoder_depth=4, decoder_channels=decoder, in_channels=3, classes=1)
        encoder = self.unet.encoder.model
        weights = torch.load(lite0_file(), weights_only=True, map_location="cpu")
        encoder.load_state_dict(renamed(weights, encoder), strict=False)  # it lacks the counters of batches only
        self.frozen = [encoder.conv_stem, encoder.bn1, *encoder.blocks[:3]]
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> LightUNet:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.unet(x_BCHW)


def _segformer(width: int) -> nn.Module:
    return smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=8 * width, in_channels=3, classes=1)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "draem": lambda width: _Margin(DiscriminativeUNet(width)),
    "light": LightUNet,
    "segformer": _segformer,
}


def build_network(name: str, width: int, seed: int) -> nn.Module:
    """Build one of `NETWORKS` its new weights drawn from `seed`: B x 3 x H x W in -1..1 -> B x 1 x H x W logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](width)
    return network.to(memory_format=torch.channels_last)
