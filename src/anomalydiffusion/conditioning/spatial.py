"""Mask -> spatial tokens: where and of what shape the defect shall be, said in the text encoder's language."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

__all__ = ["Backbone", "SpatialEncoder"]

Backbone = Literal["resnet50", "small", "released"]


def _norm(channels: int) -> nn.Module:
    """Group norm: a mask's tokens must not depend on the other masks of its batch, in training or after it."""
    return nn.GroupNorm(min(32, channels // 4), channels)


class _SmallTrunk(nn.Module):
    """Four strided convolutions: enough for a binary picture, 40 times cheaper than ResNet-50."""

    widths = (16, 32, 64, 96)

    def __init__(self) -> None:
        from torchvision.ops import Conv2dNormActivation  # slow to import, and most commands never need it

        super().__init__()
        sizes = (1, *self.widths)
        self.stages = nn.ModuleList(
            Conv2dNormActivation(a, b, 3, stride=2, norm_layer=_norm, activation_layer=nn.SiLU)
            for a, b in zip(sizes, self.widths, strict=False)
        )

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        out: OrderedDict[str, torch.Tensor] = OrderedDict()
        for index, stage in enumerate(self.stages):
            x = stage(x)
            out[str(index)] = x
        return out


class SpatialEncoder(nn.Module):
    """The spatial encoder S: `e_s = S(m)`, n tokens [arXiv 2312.05767v2, spatial embedding].

    A convolutional trunk, a feature pyramid over its stages, and one fully connected head per token, randomly
    initialised and shared by all products and defects. `resnet50` is the paper's trunk; we use group norm in place of
    batch norm. `small` is the default for the bundled prior.
    """

    def __init__(self, tokens: int, width: int, backbone: Backbone = "small", pyramid: int = 32) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        if backbone == "resnet50":
            from torchvision.models import resnet50
            from torchvision.models._utils import IntermediateLayerGetter

            layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
            self.trunk: nn.Module = IntermediateLayerGetter(resnet50(weights=None, norm_layer=_norm), layers)
            widths: tuple[int, ...] = (256, 512, 1024, 2048)
        else:
            self.trunk, widths = _SmallTrunk(), _SmallTrunk.widths
        self.three = backbone == "resnet50"
        self.pyramid = FeaturePyramidNetwork(list(widths), pyramid)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.heads = nn.ModuleList(nn.Linear(pyramid * len(widths) * 16, width) for _ in range(tokens))
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, mask_B1HW: torch.Tensor) -> torch.Tensor:
        """Masks (float 0 / 1, any size) -> spatial tokens B x n x D."""
        x = mask_B1HW.repeat(1, 3, 1, 1) if self.three else mask_B1HW
        levels = self.pyramid(self.trunk(x)).values()
        flat = torch.cat([self.pool(level).flatten(1) for level in levels], dim=1)
        return torch.stack([head(flat) for head in self.heads], dim=1) * self.scale
