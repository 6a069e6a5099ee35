"""How detectors and classifiers walk downhill: AdamW in one cycle, or Adam at a constant rate."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Descent", "looks"]

WARM = 0.25  # share of the steps in which a cycle's rate rises
LATE = 0.25  # share of the steps, the last ones, among which a state is chosen


def looks(steps: int, checks: int) -> set[int]:
    """The steps after which the validation part is looked at: evenly spaced over the last quarter, the last one always.

    A validation part of a few shots is too small to tell an early state of luck from a good one: chosen over the whole of a
    training, states half way up the rate's cycle won, and lost on other images.
    """
    return {round(steps * (1 - LATE * (1 - (check + 1) / checks))) for check in range(checks)}


class Descent:
    """The optimizer of `model`, with its schedule; `step(loss)` is one gradient step."""

    def __init__(self, model: nn.Module, *, rate: float, steps: int, cycle: bool) -> None:
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self.optimizer: torch.optim.Optimizer
        if cycle:
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
            length = max(steps, 10) + 1
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=length, pct_start=WARM)
        else:
            self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
