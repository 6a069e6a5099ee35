"""How much memory a step of learning takes, and how much is to be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["available", "fits", "kept"]

SHARE = 0.6  # of what is available that the inner results of a step may take


def kept(call: Callable[[], torch.Tensor], *modules: nn.Module) -> int:
    """Bytes of inner results that wait for the way back from `call`; the parameters of `modules` are there anyway."""
    own = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that waits for its own way back would hold itself for ever

    def unpack(tensor: Any) -> Any:
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, unpack):
        answer = call()  # while it lives, so does all that it was made of, and no place is counted twice
    del answer
    return sum(found.values())


def available(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)


def fits(bytes_of: Callable[[int], int], batch: int, device: torch.device) -> bool:
    """Whether what a batch keeps can be had; told by what one sample and what two keep, for some of it does not grow."""
    one = bytes_of(1)
    whole = one if batch == 1 else one + (batch - 1) * max(0, bytes_of(2) - one)
    return whole <= SHARE * available(device)
