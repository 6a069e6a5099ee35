"""All that is needed to draw a run's pairs, loaded once: by the command itself, or by each of its workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomalydiffusion.app.learning import load_masks
from anomalydiffusion.app.settings import Drawing, Settings, check_steps, prior_of
from anomalydiffusion.app.source import Source
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Pair, Split
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.generation.shards import Task, write_pair
from anomalydiffusion.quality.refit import fitted

__all__ = ["Drawer", "Order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be drawn, and with what; small enough to be sent to a worker."""

    folder: Path
    settings: Settings
    split: Split
    drawing: Drawing
    normals: Path | None
    masks: Path | None


class Drawer:
    """Prior, adapter, masks, normal images and gate of one order. Called with tasks, it draws, judges and writes their pairs."""

    def __init__(self, order: Order) -> None:
        settings = order.settings
        self.order, self.run, self.digest = order, Run.open(order.folder), digest(order.drawing)
        self.prior = prior_of(settings)
        check_steps(settings, self.prior)
        self.adapter = Adapter.load(self.run.adapter, self.prior)
        learned = load_masks(self.run, settings, self.prior) if settings.masks.source == "learned" and not order.masks else None
        if settings.compile:
            self.prior.compile()
        self.source = Source(order.split, settings, order.normals, order.masks, learned)
        self.gate = self.source.gate(self.run.limits)
        write_atomic(self.run.limits, self.source.gate_json(self.gate))

    def make(self, tasks: Sequence[Task]) -> list[Pair]:
        """Draw pairs, their labels fitted where the settings say so."""
        settings = self.order.settings
        pairs = make_pairs(self.prior, self.adapter, [self.source.item(task) for task in tasks], settings.generate)
        pairs = [replace(pair, provenance=replace(pair.provenance, config_digest=self.digest)) for pair in pairs]
        return [fitted(pair) for pair in pairs] if settings.gate.refit else pairs

    def __call__(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Draw, judge and write pairs; the records that the manifest shall hold of them."""
        began = time.monotonic()
        pairs = self.make(tasks)
        seconds, said = (time.monotonic() - began) / len(tasks), self.order.drawing.settings_digest
        return [write_pair(self.run, task, pair, self.gate.check(pair), seconds, said) for task, pair in zip(tasks, pairs, strict=True)]
