"""A frozen denoiser's convolutions on a processor: their weights are brought into the order of its products once, not at each call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn

from anomalydiffusion.core.devices import native_bf16

__all__ = ["Packing"]


class PackedConv2d(nn.Conv2d):
    """A convolution in bfloat16 whose weights can be packed; then it answers as before, but without a gradient.

    Where a file has the weights as they are, they are read from there and those that are mapped stay unread; others are given back, and
    until they are unpacked nothing but NaN stands in their place. So they are in memory once.
    """

    source: tuple[Path, str] | None = None  # a file that holds the weights as they were loaded, and their name in it
    version = 0  # how often they had been written then
    packed: torch.Tensor | None = None  # as in those that peft makes of the same class for LoRA weights
    away = False

    @property
    def _how(self) -> Any:
        return self.padding, self.stride, self.dilation, self.groups

    def _mapped(self) -> torch.Tensor | None:
        """The weights by a mapping of their own, which ends with them: what was read of a mapped file counts as memory until then."""
        path, name = self.source or (None, "")
        if path is None or not path.is_file() or self.weight._version != self.version:
            return None
        with safe_open(path, "pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found if found.dtype == self.weight.dtype and found.shape == self.weight.shape else None

    def pack(self) -> None:
        mapped = self._mapped()
        self.packed, self.away = (self.weight.detach() if mapped is None else mapped).to_mkldnn(), mapped is None
        del mapped  # two copies at a time, never three
        if self.away:
            self.weight.data = torch.full((1,) * self.weight.dim(), torch.nan, dtype=self.weight.dtype).expand(self.weight.shape)
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(self.packed, *self._how)

    def unpack(self) -> None:
        if self.packed is not None and self.away:
            self.weight.data = self.packed.to_dense()
        self.packed = None

    def _save_to_state_dict(self, *given: Any) -> None:  # where all weights of a network are read ...
        self.unpack()
        super()._save_to_state_dict(*given)

    def _apply(self, *given: Any, **named: Any) -> nn.Module:  # ... or moved
        self.unpack()
        return super()._apply(*given, **named)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            return super().forward(input)
        out: torch.Tensor = torch.mkldnn_convolution(input, self.packed, self.bias, *self._how)
        return out


class Packing:
    """When a network's convolutions are packed: with its first call without a gradient, and never again after one with a gradient.

    The products of bfloat16 on a processor read weights in blocks. Plain convolutions bring them into that order at each call, which with
    the small grids and many channels of a denoiser is half of its time. Where the processor has no such products, or the network another
    number format, nothing is done. `files`: safetensors that hold the weights by the network's own names.
    """

    def __init__(self, network: nn.Module, files: Iterable[Path] = ()) -> None:
        self.waiting, self.packed = list[PackedConv2d](), list[PackedConv2d]()
        if not native_bf16(torch.device("cpu")) or not torch.backends.mkldnn.is_available():
            return
        held: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                held |= dict.fromkeys(file.keys(), path)
        for name, module in network.named_modules():
            if type(module) is not nn.Conv2d or (module.weight.dtype, module.weight.device.type) != (torch.bfloat16, "cpu"):
                continue
            if module.padding_mode == "zeros" and not isinstance(module.padding, str):
                module.__class__ = PackedConv2d
                own, weight = cast(PackedConv2d, module), f"{name}.weight"
                own.source, own.version = (held[weight], weight) if weight in held else None, module.weight._version
                self.waiting.append(own)
        self.waiting.sort(key=lambda each: each.weight.numel())

    def ready(self) -> None:
        """Before a call of the network: pack, or unpack for good where a gradient may be wanted."""
        if torch.is_grad_enabled():
            self.end()
        while self.waiting:  # the largest first: what it gives back has room for the next
            self.waiting[-1].pack()
            self.packed.append(self.waiting.pop())

    def end(self) -> None:
        """Unpack for good."""
        for each in self.packed:
            each.unpack()
        self.waiting, self.packed = [], []
