"""Processes that learn together: each computes some parts of a step, and all of them apply the same sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from anomalydiffusion.core.errors import ConfigError

__all__ = ["Together"]


class Together:
    """The processes that `torchrun` or `accelerate launch` began, as one of them sees them; or this one alone.

    A step has `parts` micro batches, whoever computes them, so the effective batch and what is learned do not depend on how many
    processes there are, but for the order of a sum. Raises `ConfigError` where there are more processes than parts.
    """

    def __init__(self, accelerator: Accelerator, parts: int) -> None:
        self.accelerator, self.count, self.rank = accelerator, int(accelerator.num_processes), int(accelerator.process_index)
        if self.count > parts:
            raise ConfigError(
                f"{self.count} processes share the micro batches of a step, and there are {parts}: give "
                f"gradient_accumulation_steps = {self.count} or more, with a batch_size that is as many times smaller"
            )
        self.mine = range(self.rank, parts, self.count)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum_up(self, parameters: Sequence[nn.Parameter], figures: dict[str, float]) -> dict[str, float]:
        """Add up what the processes found: gradients in place, and the figures that are returned. Nothing where there is one.

        A parameter that had a part in no process's loss has no gradient afterwards either: an optimiser leaves it where it is, while
        zeros would let its momentum go on.
        """
        if self.count == 1:
            return figures
        names = sorted(figures)
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        told = torch.tensor(
            [*(figures[name] for name in names), *(float(each.grad is not None) for each in parameters)],
            device=own[0].device, dtype=own[0].dtype,
        )  # fmt: skip
        whole = self.accelerator.reduce(torch.cat([told, *(each.flatten() for each in own)]), reduction="sum")
        pieces = whole[len(told) :].split([each.numel() for each in own])
        for parameter, piece, had in zip(parameters, pieces, whole[len(names) : len(told)].tolist(), strict=True):
            parameter.grad = piece.view_as(parameter).clone() if had else None
        return dict(zip(names, whole[: len(names)].tolist(), strict=True))

    def told(self, value: float) -> float:
        """What the leading process says; so that all of them end at the same step."""
        if self.count == 1:
            return value
        return float(broadcast(torch.tensor([value], dtype=torch.float64, device=self.accelerator.device))[0])
