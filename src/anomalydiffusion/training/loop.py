"""One training loop: step, accumulate, average, log, save, resume; it knows no loss."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from anomalydiffusion.core.errors import TrainingError
from anomalydiffusion.core.runs import replace_folder

__all__ = ["LoopConfig", "Objective", "Progress", "latest_checkpoint", "native_bf16", "run_loop"]

log = logging.getLogger(__name__)
Objective = Callable[[int, int], dict[str, torch.Tensor]]
Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How a loop runs; `minutes` ends it early (0 = never) and the schedule then follows the clock, not the steps."""

    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: int = 50
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
            raise TrainingError(f"mixed_precision is 'no', 'bf16' or 'auto', not '{self.mixed_precision}'")
        if self.steps < 1 or self.gradient_accumulation_steps < 1 or self.checkpointing_steps < 1:
            raise TrainingError("steps, gradient_accumulation_steps and checkpointing_steps must be at least 1")


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`, or None."""
    found = sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())
    return found[-1] if found else None


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average whose decay grows with the steps done, so that the random start is soon forgotten."""

    def average(kept: list[torch.Tensor], new: list[torch.Tensor], done: torch.Tensor) -> None:
        count = float(done)
        torch._foreach_lerp_(kept, new, 1 - min(decay, (1 + count) / (10 + count)))

    return average


def _save(folder: Path, step: int, seconds: float, model: nn.Module, average: AveragedModel | None,
          optimizer: torch.optim.Optimizer, keep: int) -> None:  # fmt: skip
    parts: dict[str, dict[str, torch.Tensor]] = {"model": dict(model.state_dict()), "optimizer": {}}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            parts["optimizer"][f"{index}.{key}"] = torch.as_tensor(value)
    if average is not None:
        parts["average"] = dict(average.state_dict())
    with replace_folder(folder / f"step-{step:06d}") as target:
        for name, tensors in parts.items():
            save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, target / f"{name}.safetensors")
        (target / "state.json").write_text(json.dumps({"step": step, "seconds": seconds}))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def _load(path: Path, model: nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    try:
        state = json.loads((path / "state.json").read_text())
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
    return int(state["step"]), float(state["seconds"])


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

    A batch is a function of its step, so a resumed loop sees what an undisturbed one would have seen. Returns the
    averaged module where `config.average` > 0, else `trainable` itself. `rate` scales one parameter's learning rate.
    A loop that `stop` ends, or Ctrl-C, saves first.
    Raises `TrainingError` on a loss that is not finite and on a damaged checkpoint.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    trainable.to(accelerator.device)
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if rate(p) == each], "rate": each} for each in sorted({rate(p) for p in parameters})]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    half = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and native_bf16(accelerator.device))
    # on a CPU the backward pass of the fused attention kernel takes a third of a step
    attention = partial(sdpa_kernel, SDPBackend.MATH) if accelerator.device.type == "cpu" else nullcontext
    average = None
    if config.average:
        average = AveragedModel(trainable, multi_avg_fn=_moving_average(config.average))
    folder.mkdir(parents=True, exist_ok=True)
    step, before = 0, 0.0
    if resume and (found := latest_checkpoint(folder)):
        step, before = _load(found, trainable, average, optimizer)
        log.info("resumed %s at step %d", found, step)
    began, saved = time.monotonic(), step
    totals: dict[str, float] = {}

    def done() -> float:
        clock = (before + time.monotonic() - began) / (60 * config.minutes) if config.minutes else 0.0
        return max(clock, step / config.steps)

    try:
        while done() < 1.0 and not (stop and stop()):
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * min(done(), 1.0)))
                group["lr"] = group["rate"] * config.learning_rate * min(1.0, (step + 1) / config.warmup) * (0.02 + 0.98 * decay)
            for micro in range(config.gradient_accumulation_steps):
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half), attention():
                    terms = objective(step, micro)
                accelerator.backward(terms["loss"] / config.gradient_accumulation_steps)
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach()) / config.gradient_accumulation_steps
            if not math.isfinite(totals["loss"]):
                raise TrainingError(f"step {step}: the loss is {totals['loss']}; lower the learning rate")
            accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if average is not None:
                average.update_parameters(trainable)
            if step % config.log_every == 0 or step == config.steps:
                means = {name: value / ((step - 1) % config.log_every + 1) for name, value in totals.items()}
                if accelerator.trackers:
                    accelerator.log(means, step=step)
                if progress:
                    progress(step, means)
                totals = {}
            if step % config.checkpointing_steps == 0:
                _save(folder, step, before + time.monotonic() - began, trainable, average, optimizer, config.checkpoints_total_limit)
                saved = step
    finally:
        if step > saved and all(torch.isfinite(p).all() for p in parameters):
            _save(folder, step, before + time.monotonic() - began, trainable, average, optimizer, config.checkpoints_total_limit)
    result: nn.Module = average.module if average is not None else trainable
    return result
