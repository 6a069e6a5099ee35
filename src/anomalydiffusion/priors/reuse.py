"""The denoiser's inner levels, computed at some steps of a drawing and remembered at the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook

from anomalydiffusion.priors.base import Memory

__all__ = ["remembering"]

NAME = "anomalydiffusion.reuse"  # of the hooks


class _Inner(ModelHook):
    """Stands before one inner block, and answers for it while the memory is not fresh."""

    def __init__(self, memory: Memory, number: int) -> None:
        super().__init__()
        self.memory, self.number = memory, number

    def new_forward(self, module: Any, *given: Any, **named: Any) -> Any:
        if self.memory.fresh or self.number not in self.memory.answers:
            self.memory.answers[self.number] = self.fn_ref.original_forward(*given, **named)
        return self.memory.answers[self.number]


@contextmanager
def remembering(unet: Any, memory: Memory) -> Iterator[None]:
    """While this lasts, all blocks of `unet` (a `UNet2DConditionModel`) but those of the finest grid fill `memory` or go by it."""
    blocks = [block for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]) if block is not None]
    registries = [HookRegistry.check_if_exists_or_initialize(block) for block in blocks]
    for number, registry in enumerate(registries):
        registry.register_hook(_Inner(memory, number), NAME)
    try:
        yield
    finally:
        for registry in registries:
            registry.remove_hook(NAME, recurse=False)
