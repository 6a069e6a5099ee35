"""Turn a seed and a purpose into noise for one item, whatever the batch, the worker or the world size."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["derive", "rng", "torch_noise"]


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed that depends on `seed` and on every word of `purpose`, on nothing else."""
    text = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """Make a numpy generator for one purpose of one item."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_noise(shape: tuple[int, ...], seed: int, *purpose: str | int) -> torch.Tensor:
    """Draw standard normal noise of `shape` (float32, CPU) for one purpose of one item."""
    generator = torch.Generator().manual_seed(derive(seed, *purpose))
    return torch.randn(shape, generator=generator)
