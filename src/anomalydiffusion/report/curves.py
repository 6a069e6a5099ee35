"""Curves of a page, as points of lines with the figures along their axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.report.figures import is_figure, text

__all__ = ["loss_curves", "precision_curves"]

Record = dict[str, Any]
COLOURS = 6  # of the other arms' curves
BINS = 240  # points of the loss curve
LARGEST = 1e100  # of what is drawn: beyond, differences have no end


def precision_curves(scores: Record | None) -> Record | None:
    """The precision-recall curves of localization, a line for each arm; None where `evaluate` wrote none, or none that can be drawn."""
    try:
        curves = (scores or {})["localization"]["curves"]
        recall, arms = curves["recall"], curves["precision"]
        paths = {str(arm): " ".join(f"{1000 * x:.1f},{300 * (1 - y):.1f}" for x, y in zip(recall, own, strict=True))
                 for arm, own in arms.items()}  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    looks = {"real-only": "real", "ours": "ours"}
    others = (arm for arm in paths if arm not in looks)
    looks |= {arm: f"arm{number % COLOURS}" for number, arm in enumerate(others)}
    return {"lines": [(arm, looks[arm], path) for arm, path in paths.items()], "ticks": _ticks(0.0, 1.0)}


def _ticks(low: float, high: float) -> list[tuple[str, float]]:
    """About four round figures between `low` and `high`, each with its place in percent."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    first = math.ceil(low / step - 1e-9)
    values = [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(f"{value:,.6g}", round(100 * (value - low) / (high - low), 2)) for value in values]


def loss_curves(path: Path, name: str) -> list[Record]:
    """Training loss by step of what was learned, one curve a stage."""
    stages: dict[str, dict[float, float]] = {}
    for line in Manifest(path).records():
        step, loss = line.get("step"), line.get("loss")
        if is_figure(step) and is_figure(loss) and abs(step) < LARGEST and abs(loss) < LARGEST:
            stages.setdefault(text(line.get("stage") or name), {})[step] = loss  # a resumed step counts once
    return [_curve(name, np.array(sorted(points.items()), float)) for name, points in stages.items() if len(points) > 1]


def _curve(name: str, points: np.ndarray) -> Record:
    size = -(-len(points) // BINS)
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    middle = np.array([part.mean(0) for part in bins])
    wide = max(1, len(bins) // 20)
    kernel = np.ones(2 * wide + 1) / (2 * wide + 1)
    smooth = np.convolve(np.pad(middle[:, 1], wide, mode="edge"), kernel, "valid")
    first, last = min(0.0, points[0, 0]), points[-1, 0]
    low, high = float(middle[:, 1].min()), float(middle[:, 1].max())
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def path(y: np.ndarray) -> str:
        xs, ys = 1000 * (middle[:, 0] - first) / (last - first), 300 * (high - y) / (high - low)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))

    return {"name": name, "raw": path(middle[:, 1]), "smooth": path(smooth), "x": _ticks(first, last), "y": _ticks(low, high),
            "steps": f"{last:,.0f}", "start": text(float(smooth[0])), "end": text(float(smooth[-1]))}  # fmt: skip
