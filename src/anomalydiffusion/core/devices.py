"""Where and how precisely things are computed: the one place that knows devices and number formats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from anomalydiffusion.core.errors import ConfigError

__all__ = ["DTYPES", "compiled", "find_device", "find_dtype", "idle_card", "native_bf16", "scarce"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KNOWN = ("cpu", "cuda", "mps")
ROOM = 12e9  # bytes of a graphics card, below which what is not in use leaves it


def find_device(name: str) -> torch.device:
    """The device of a name such as "cpu", "cuda", "cuda:1" or "mps". Raises `ConfigError` where it is not to be had here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is not known; give {', '.join(KNOWN)}") from error
    if device.type not in KNOWN:
        raise ConfigError(f"device '{name}' is not supported; give {', '.join(KNOWN)}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device '{name}': PyTorch finds no Apple graphics here; give cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device '{name}': PyTorch finds no CUDA device here; give cpu, or install a driver and a PyTorch with CUDA")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices, counted from 0; give one of them"
            )
        if device.index is not None:
            torch.cuda.set_device(device)  # what asks for plain "cuda", as accelerate does, then gets this one
    return device


def idle_card(device: str) -> str:
    """The name of a graphics card that this machine has while `device` is the processor; "" = none stands idle."""
    if device != "cpu":
        return ""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else ""


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name in `DTYPES`. Raises `ConfigError` where the device has no instructions for it."""
    if name not in DTYPES:
        raise ConfigError(f"dtype '{name}' is not known; give {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("dtype 'float16': no processor computes in it; give float32, or bfloat16 where the processor has that")
    if name == "bfloat16" and not native_bf16(device):
        raise ConfigError(f"dtype 'bfloat16': this {device.type} has no instructions for it and would be far slower; give float32")
    return DTYPES[name]


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def scarce(device: torch.device) -> bool:
    """Whether a graphics card has so little memory that what is not in use should wait elsewhere."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < ROOM


def compiled(module: nn.Module, device: torch.device) -> Callable[..., Any]:
    """What answers as `module` does without a gradient, by machine code that its first calls make for this device: a minute or more each.

    On a processor its weights are built into that code, in the order that is read fastest, and must stay as they are from then on; on
    a CUDA card a call is one graph. Raises `ConfigError` where nothing can be compiled, as without a C++ compiler.
    """
    from torch._inductor import config  # takes a second

    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # of diffusers', which holds a version's number
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # whatever compilers raise, the user needs the same advice
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--compile: torch cannot compile for this {device.type} ({said}); install g++, or leave --compile away"
        ) from error
    made = torch.compile(module, options={"triton.cudagraphs": True} if device.type == "cuda" else None)

    @wraps(module.forward)
    def call(*given: Any, **named: Any) -> Any:
        with config.patch(freezing=device.type == "cpu"):  # as an option of torch.compile it comes too late to be heard
            return made(*given, **named)

    return call
