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
    """Stands before one inner block."""

    memory: Memory | None = None

    def new_forward(self, module: Any, *given: Any, **named: Any) -> Any:
        if self.memory is None:
            return self.fn_ref.original_forward(*given, **named)
        if self.memory.fresh or self not in self.memory.answers:
            self.memory.answers[self] = self.fn_ref.original_forward(*given, **named)
        return self.memory.answers[self]


def _inner(unet: Any) -> list[_Inner]:
    """The hooks on all blocks but those of the finest grid, put there when they are first asked for."""
    blocks = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    hooks = []
    for block in blocks:
        registry = HookRegistry.check_if_exists_or_initialize(block)
        if registry.get_hook(NAME) is None:
            registry.register_hook(_Inner(), NAME)
        hooks.append(registry.get_hook(NAME))
    return hooks


@contextmanager
def remembering(unet: Any, memory: Memory) -> Iterator[None]:
    """While this lasts, calls of `unet` (a `UNet2DConditionModel`) fill `memory` or go by it."""
    hooks = _inner(unet)
    for hook in hooks:
        hook.memory = memory
    try:
        yield
    finally:
        for hook in hooks:
            hook.memory = None
