"""LoRA weights inside a denoiser: put there under an adapter's name, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.names import shown

__all__ = ["LoraParameters", "add_lora"]


def add_lora(denoiser: Any, rank: int, targets: Sequence[str], name: str) -> None:
    """Put new weights of one adapter into a denoiser, in float32 whatever its own are.

    W' = W + B A, A of `rank` rows drawn at random and B zero, so that nothing changes yet  [arXiv 2106.09685]. `targets` end the names of
    the layers that get them. Raises `ConfigError` where no layer is called so.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import cast_adapter_dtype

    try:
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=True), name)
    except ValueError as error:  # peft's word for names that fit no layer
        raise ConfigError(f"lora_targets = {shown(list(targets))}: {shown(str(error))}") from error
    cast_adapter_dtype(denoiser, name)


class LoraParameters(nn.Module):
    """Only one adapter's LoRA parameters of a denoiser, under flat names, so that a checkpoint does not hold the frozen prior."""

    def __init__(self, denoiser: nn.Module, adapter: str) -> None:
        super().__init__()
        for name, parameter in denoiser.named_parameters():
            if "lora_" in name and f".{adapter}." in name:
                self.register_parameter(name.replace(".", "__"), parameter)
