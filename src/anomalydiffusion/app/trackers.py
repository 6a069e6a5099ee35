"""Where the figures of a training go beside the run's own log: the trackers that accelerate knows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.training.loop import accelerator_on

__all__ = ["Tracker", "check_tracker", "tracked"]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
PROJECT = "anomalydiffusion"  # under which the services list runs; tensorboard has the run's own folder


def check_tracker(name: Tracker) -> None:
    """Raises `ConfigError` where a tracker's package is not installed: accelerate would then report to nobody."""
    if name != "none" and find_spec(name) is None:
        raise ConfigError(f"--report-to {name}: its package is not installed; pip install {name}")


def tracked(name: Tracker, run: Path, part: str, config: dict[str, Any], *, device: torch.device) -> Accelerator:
    """An accelerator that reports the training `part` of a run, and `config`, plain values by name, to a tracker.

    tensorboard writes to RUN/logs/<part>; the others show the run under its folder's name and part. Let its trackers `finish` when it is
    done.
    """
    if name == "none":
        return accelerator_on(device)
    accelerator = accelerator_on(device, log_with=name, project_dir=run / "logs")
    title = f"{run.resolve().name}-{part}"
    if name == "tensorboard":
        accelerator.init_trackers(part)
    else:
        accelerator.init_trackers(PROJECT, config, {name: {"run_name" if name == "mlflow" else "name": title}})
    return accelerator
