"""Read a file of weights without running what is in it, and build networks around them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from anomalydiffusion.core.errors import PriorError

__all__ = ["PICKLES", "Weights", "converted", "count", "filled", "part", "read_pickle", "read_weights"]

log = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class _Named:
    """Stands for a class that a trainer's checkpoint only names; it does nothing."""


def _nothing(*given: object) -> _Named:
    """Stands for what would build a number that is no weight."""
    return _Named()


# What trainers leave beside the weights. The names are allowed, the classes behind them are not built: `_Named` is.
INERT: list[Any] = [
    *((_Named, f"{package}.callbacks.{name}") for package in ("pytorch_lightning", "lightning.pytorch") for name in (
        "model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "lr_monitor.LearningRateMonitor")),
    *((_nothing, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]  # fmt: skip


def _unpickled(path: Path, known: Sequence[Any]) -> Any:
    with torch.serialization.safe_globals([*INERT, *known]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of before 2020 cannot be mapped


def read_pickle(path: Path, known: Sequence[Any] = ()) -> Any:
    """What a pickle holds: tensors, plain values, and of classes only stand-ins, with those in `known`, (class, name) each.

    Raises `PriorError` on a file that is missing, cut short, or that names anything else to be built, and never builds it.
    """
    if not path.is_file():
        raise PriorError(f"{path}: no such file")
    try:
        return _unpickled(path, known)
    except Exception as error:  # a damaged pickle can fail in any way
        named = re.search(r"GLOBAL (\S*\.\S+)", str(error))
        if named:
            raise PriorError(
                f"{path}: refused, it wants {named[1]} built, which weights do not need and which could run code; get the model as "
                ".safetensors"
            ) from error
        raise PriorError(f"{path}: damaged, cut short, or no file of weights at all ({type(error).__name__}); copy it anew") from error


def read_weights(path: Path) -> Weights:
    """Read the tensors of one file by name, mapped into memory where the format allows it (not pickles of before 2020).

    A pickle (`PICKLES`) is read as `torch.load(weights_only=True)` reads it, with the few inert names more that Lightning's
    checkpoints hold; tensors below "state_dict" are taken. Raises `PriorError` on a file that is missing, cut short, of another
    format, or that names anything else to be built, and never builds it.
    """
    if not path.is_file():
        raise PriorError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise PriorError(f"{path}: damaged, cut short, or no file of weights at all ({type(error).__name__}); copy it anew") from error
    if path.suffix not in PICKLES:
        raise PriorError(f"{path}: not a file of weights; give one that ends in .safetensors or {', '.join(PICKLES)}")
    found = read_pickle(path)
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    tensors = (
        {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise PriorError(f"{path}: holds no tensors by name; give a model's checkpoint")
    return tensors


def converted(path: Path, dtype: torch.dtype) -> Weights:
    """Read safetensors by name as numbers of `dtype`, mapping the file anew for each tensor.

    What was read of a mapped file counts as memory in use for as long as it stays mapped: so it is never more than one tensor. Raises
    `PriorError` as `read_weights` does.
    """
    out = {}
    for name in read_weights(path):
        with safe_open(path, "pt") as file:
            out[name] = file.get_tensor(name).to(dtype)
    return out


def part(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def count(weights: Weights, before: str, after: str = "") -> int:
    """How many numbers, from 0 on, stand between `before` and `after` in the names."""
    count = 0
    while any(name.startswith(f"{before}{count}.{after}") for name in weights):
        count += 1
    return count


def filled(model_of: Any, weights: Weights, dtype: torch.dtype, what: str) -> nn.Module:
    """Build a network around its weights (never two copies of them); refuse, naming `what`, where one is missing or has another shape."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = model_of()
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    if missing := sorted(set(wanted) - set(weights)):
        raise PriorError(f"{what}: lacks {len(missing)} of {len(wanted)} weights ({', '.join(missing[:3])}); get the whole file")
    if other := [
        f"{name} {tuple(weights[name].shape)}, not {tuple(shape)}" for name, shape in wanted.items() if weights[name].shape != shape
    ]:
        raise PriorError(f"{what}: has weights of other shapes than the rest tells ({'; '.join(other[:2])})")
    if beyond := sorted(set(weights) - set(model.state_dict())):
        log.warning("%s: %d weights have no place and are left out: %s", what, len(beyond), ", ".join(beyond[:20]))
    model.load_state_dict({name: weights[name].to(dtype) for name in wanted}, assign=True, strict=False)
    return model
