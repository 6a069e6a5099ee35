"""One training loop: step, accumulate, average, log, save, resume; it knows no loss."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from anomalydiffusion.core.devices import native_bf16
from anomalydiffusion.core.errors import ConfigError, TrainingError
from anomalydiffusion.core.names import shown
from anomalydiffusion.core.runs import replace_folder, write_atomic
from anomalydiffusion.training.together import Together

__all__ = ["LoopConfig", "Objective", "Progress", "accelerator_on", "attention", "latest_checkpoint", "precision", "run_loop"]

log = logging.getLogger(__name__)
Objective = Callable[[int, int], dict[str, torch.Tensor]]
Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How a loop runs; `minutes` ends it early (0 = never) and the schedule then follows the clock, not the steps."""

    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: int = 50  # steps in which the learning rate rises; 0 = none
    weight_decay: float = 0.0
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    average: float = 0.0  # decay of the exponential moving average of the weights; 0 = none
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    log_every: int = 10
    minutes: float = 0.0
    mixed_precision: str = "no"  # no, bf16, or auto: bf16 where the processor multiplies it natively (elsewhere it is far slower)

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("no", "bf16", "auto"):
            raise ConfigError(f"mixed_precision {shown(self.mixed_precision)} is not known; known: no, bf16, auto")
        if self.warmup < 0:
            raise ConfigError(f"warmup = {self.warmup}: expected at least 0")
        for name in ("steps", "gradient_accumulation_steps", "checkpointing_steps", "checkpoints_total_limit", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a finite number above 0")
        for name, bound in (("weight_decay", math.inf), ("minutes", math.inf), ("average", 1.0)):
            if not 0 <= getattr(self, name) < bound:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 0 and below {bound}")


@dataclass(slots=True)
class _Place:
    """Where a loop is: steps done, seconds spent, and what was summed over how many steps since the last logged line."""

    step: int = 0
    seconds: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)
    summed: int = 0

    def means(self) -> dict[str, float]:
        """The means since the last call; summing starts anew."""
        means = {name: value / self.summed for name, value in self.totals.items()}
        self.totals, self.summed = {}, 0
        return means


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`, or None."""
    found = [path for path in _checkpoints(folder) if (path / "state.json").exists()]
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, oldest first."""
    steps = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average whose decay grows with the steps done, so that the random start is soon forgotten."""

    def average(kept: list[torch.Tensor], new: list[torch.Tensor], done: torch.Tensor) -> None:
        count = float(done)
        torch._foreach_lerp_(kept, new, 1 - min(decay, (1 + count) / (10 + count)))

    return average


def _save(folder: Path, place: _Place, model: nn.Module, average: AveragedModel | None,
          optimizer: torch.optim.Optimizer, keep: int) -> None:  # fmt: skip
    parts: dict[str, dict[str, torch.Tensor]] = {"model": dict(model.state_dict()), "optimizer": {}}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            parts["optimizer"][f"{index}.{key}"] = torch.as_tensor(value)
    if average is not None:
        parts["average"] = dict(average.state_dict())
    with replace_folder(folder / f"step-{place.step:06d}") as target:
        for name, tensors in parts.items():
            # not save_file: its error on a full disk is no OSError
            write_atomic(target / f"{name}.safetensors", to_bytes({k: v.detach().contiguous().clone() for k, v in tensors.items()}))
        write_atomic(target / "state.json", json.dumps(asdict(place)).encode())
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def _load(path: Path, model: nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer) -> _Place:
    try:
        place = _Place(**json.loads((path / "state.json").read_text()))
        model.load_state_dict(load_file(path / "model.safetensors"))
        if average is not None:
            average.load_state_dict(load_file(path / "average.safetensors"))
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:
        raise TrainingError(f"{path}: this checkpoint cannot be read ({error}); delete the folder to go on from an older one") from error
    return place


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """The attention kernel to learn with: on a CPU the backward pass of the fused one takes a third of a step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def accelerator_on(device: torch.device, **options: Any) -> Accelerator:
    """An accelerator for this kind of device. By itself accelerate stays with the first that a process has asked it for.

    The number format is the loop's (`precision`), whatever a launcher says: with fp16 accelerate would scale every gradient.
    """
    cpu = device.type == "cpu"
    if PartialState._shared_state and PartialState().num_processes == 1 and (PartialState().device.type == "cpu") != cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=cpu, mixed_precision="no", **options)


def precision(device: torch.device, config: LoopConfig) -> AbstractContextManager[Any]:
    """The number format to learn in."""
    half = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and native_bf16(device))
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


@contextmanager
def _unbroken() -> Iterator[None]:
    """Ctrl-C comes at the end of this, not amid it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # no Ctrl-C comes here
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def run_loop(
    trainable: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    resume: bool = True,
    progress: Progress | None = None,
    accelerator: Accelerator | None = None,
    stop: Callable[[], bool] | None = None,
    rate: Callable[[nn.Parameter], float] = lambda parameter: 1.0,
) -> nn.Module:
    """Minimise `objective(step, micro_batch)["loss"]` over the parameters of `trainable` that want a gradient.

    Several processes (`torchrun`, `accelerate launch`) share the micro batches of a step; the first one reports and saves, and any number
    may go on from what it saved. All must be given the same.
    A batch is a function of its step, so a resumed loop sees what an undisturbed one would have seen. Returns the
    averaged module where `config.average` > 0, else `trainable` itself. `rate` scales one parameter's learning rate.
    Without an `accelerator` it is trained where it lies.
    A loop that `stop` ends, or Ctrl-C, saves first. Raises `TrainingError` on a loss that is not finite and on a damaged
    checkpoint, `OSError` when a checkpoint cannot be written.
    """
    accelerator = accelerator or accelerator_on(next(trainable.parameters()).device)
    together = Together(accelerator, config.gradient_accumulation_steps)
    trainable.to(accelerator.device)
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if rate(p) == each], "rate": each} for each in sorted({rate(p) for p in parameters})]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    average = None
    if config.average:
        average = AveragedModel(trainable, multi_avg_fn=_moving_average(config.average))
    folder.mkdir(parents=True, exist_ok=True)
    place = _Place()
    if resume and (found := latest_checkpoint(folder)):
        place = _load(found, trainable, average, optimizer)
        log.info("resumed %s at step %d", found, place.step)
    began, saved = time.monotonic() - place.seconds, place.step
    whole = True  # parameters, average and number of steps belong together

    def done() -> float:
        clock = (time.monotonic() - began) / (60 * config.minutes) if config.minutes else 0.0
        return max(clock, place.step / config.steps)

    def keep() -> None:
        nonlocal saved
        if together.leads and place.step > saved and all(torch.isfinite(p).all() for p in parameters):
            place.seconds = time.monotonic() - began
            _save(folder, place, trainable, average, optimizer, config.checkpoints_total_limit)
            saved = place.step

    try:
        while (share := together.told(1.0 if stop and stop() else done())) < 1.0:
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * share))
                warm = min(1.0, (place.step + 1) / max(config.warmup, 1))
                group["lr"] = group["rate"] * config.learning_rate * warm * (0.02 + 0.98 * decay)
            sums: dict[str, float] = {}
            for micro in together.mine:
                with attention(accelerator.device):  # on the way back too: there inner results may be computed again
                    with precision(accelerator.device, config):
                        terms = objective(place.step, micro)
                    accelerator.backward(terms["loss"] / config.gradient_accumulation_steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / config.gradient_accumulation_steps
            sums = together.sum_up(parameters, sums)
            if not math.isfinite(sums["loss"]):
                raise TrainingError(f"step {place.step}: the loss is {sums['loss']}; lower the learning rate")
            accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
            with _unbroken():
                whole = False
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update_parameters(trainable)
                place.totals = {name: place.totals.get(name, 0.0) + value for name, value in sums.items()}
                place.summed += 1
                place.step += 1
                whole = True
            if place.step % config.log_every == 0 or place.step == config.steps:
                means = place.means()
                if accelerator.trackers:
                    accelerator.log(means, step=place.step)
                if progress and together.leads:
                    progress(place.step, means)
            if place.step % config.checkpointing_steps == 0:
                keep()
        keep()
    except BaseException as stopped:
        if whole and not isinstance(stopped, OSError):  # a disk that is full stays full: the first error is the one to show
            keep()
        raise
    result: nn.Module = average.module if average is not None else trainable
    return result
