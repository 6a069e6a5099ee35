"""What the paper's authors released: their spatial encoder, and the two files that their training leaves.

Facts of https://github.com/sjtuplayer/anomalydiffusion (MIT): names, sizes and order of the layers, layout of the files. The
encoder is the residual network of face recognition [ArcFace, arXiv 1801.07698] with the style heads of pSp [arXiv 2008.00951].
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.names import is_folder, shown
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.priors.weights import Weights, read_pickle, read_weights

__all__ = ["EMBEDDINGS", "ENCODER", "ReleasedEncoder", "digest_released", "is_released", "read_released"]

EMBEDDINGS, ENCODER = "embeddings.pt", "spatial_encoder.pt"
SIDE = 256  # pixels of the masks that it was made for: its heads shrink a quarter of that to a point
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # width and residual units, the first of each at half the size
Key = tuple[str, str]


class _Unit(nn.Module):
    """A residual unit that normalises before its convolutions."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in), nn.Conv2d(width_in, width, 3, 1, 1, bias=False), nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shortcut_layer(x) + self.res_layer(x)
        return out


class _Scaled(nn.Linear):
    """A linear layer whose weights are kept sqrt(features) times too large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / self.in_features**0.5, self.bias)


class _Head(nn.Module):
    """One token from the finest level of the pyramid: strided convolutions to a point, and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range((SIDE // 4).bit_length() - 1):
            layers += [nn.Conv2d(512 if index == 0 else width, width, 3, 2, 1), nn.LeakyReLU()]
        self.convs, self.linear = nn.Sequential(*layers), _Scaled(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.convs(x).flatten(1))
        return out


class ReleasedEncoder(nn.Module):
    """The spatial encoder S as released: `e_s = S(m)`, n tokens; its parameters have the released file's names.

    It is only read, never trained here: its batch norm always takes the statistics that it was released with, so that a mask's
    tokens do not depend on its batch. Masks of other sizes are brought to 256 pixels.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        units, before, self.ends = [], 64, []
        for stage, count in STAGES:
            units += [_Unit(before if index == 0 else stage, stage, 2 if index == 0 else 1) for index in range(count)]
            before = stage
            self.ends.append(len(units) - 1)
        self.body = nn.Sequential(*units)
        self.styles = nn.ModuleList(_Head(width) for _ in range(tokens))
        self.latlayer1, self.latlayer2 = nn.Conv2d(256, 512, 1), nn.Conv2d(128, 512, 1)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ReleasedEncoder:
        """Stays as it was released."""
        super().train(False)
        return self

    def forward(self, mask_B1HW: torch.Tensor) -> torch.Tensor:
        """Masks (float 0 / 1, any size) -> spatial tokens B x n x D."""
        if mask_B1HW.shape[-2:] != (SIDE, SIDE):
            mask_B1HW = F.interpolate(mask_B1HW, (SIDE, SIDE), mode="nearest-exact")
        x = self.input_layer((2 * mask_B1HW - 1).repeat(1, 3, 1, 1))
        levels = []
        for index, unit in enumerate(self.body):
            x = unit(x)
            if index in self.ends[1:]:
                levels.append(x)
        fine, middle, coarse = levels
        level = coarse
        for side in (self.latlayer1(middle), self.latlayer2(fine)):
            level = F.interpolate(level, side.shape[-2:], mode="bilinear", align_corners=True) + side
        return torch.stack([head(level) for head in self.styles], dim=1)


class _Held:
    """Stands for torch's dictionary of parameters in a pickle: takes what it holds, builds nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.held = {str(name): value for name, value in state.get("_parameters", {}).items()}


def is_released(folder: Path) -> bool:
    """Whether a folder holds what their training leaves, by its file's name."""
    return (folder / EMBEDDINGS).is_file()


def digest_released(folder: Path) -> str:
    """16 hexadecimal digits that tell one released checkpoint from another."""
    files = [digest_file(path) for name in (EMBEDDINGS, ENCODER) if (path := folder / name).is_file()]
    return hashlib.sha256("".join(files).encode()).hexdigest()[:16]


def read_released(folder: Path) -> tuple[dict[Key, torch.Tensor], Weights]:
    """(anomaly vectors k x D by (product, defect), weights of the spatial encoder) of a released checkpoint's folder.

    The folder holds `embeddings.pt` and, unless nothing but vectors was learned, `spatial_encoder.pt`. Names are `product+defect`.
    Raises `PriorError` where a file names anything to be built, `RunError` where it is of another layout.
    """
    path = folder / EMBEDDINGS
    found = read_pickle(path, [(_Held, "torch.nn.modules.container.ParameterDict"), set])
    held = found.get("string_to_param") if isinstance(found, dict) else None
    vectors = dict(getattr(held, "held", {}) if isinstance(held, _Held) else held or {})
    out: dict[Key, torch.Tensor] = {}
    for name, value in vectors.items():
        product, plus, defect = str(name).partition("+")
        if not plus or not is_folder(product) or not is_folder(defect) or not isinstance(value, torch.Tensor) or value.ndim != 2:
            raise RunError(f"{path}: {shown(name)} is no vectors of a product+defect; give the folder of a released checkpoint")
        out[product, defect] = value.detach().float()
    if len({value.shape for value in out.values()}) != 1:
        raise RunError(f"{path}: holds no anomaly vectors, or of several sizes; give the folder of a released checkpoint")
    return out, read_weights(folder / ENCODER) if (folder / ENCODER).exists() else {}
