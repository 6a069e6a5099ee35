"""Figures of several seeds -> mean, interval, and plain words: does it help?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["ENOUGH", "controls_hold", "difference", "qualified", "summary", "verdict"]

ENOUGH = 3  # seeds from which a t-interval says something
CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean with a 95 % t-interval over `values`, or with their range where there are fewer than 3; None where one is not defined."""
    if not values or not np.isfinite(values).all():
        return {"mean": None, "low": None, "high": None, "values": [v if math.isfinite(v) else None for v in values]}
    mean, low, high = float(np.mean(values)), min(values), max(values)
    if len(values) >= ENOUGH:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * float(stats.sem(values))
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The summary of `after - before`, paired: one value a seed, in the same order. Pairing takes off what a seed does to both."""
    return summary([b - a for a, b in zip(before, after, strict=True)])


def verdict(real: Sequence[float], ours: Sequence[float], what: str = "pixel AP") -> str:
    """Say in plain words whether generated pairs raise a figure (0..1; one value a seed, in the same order).

    "use it" and "do not use it" need 3 seeds and a 95 % t-interval of the paired differences that leaves out 0; with fewer
    seeds the difference alone is told, marked as no proof. Differences are in points, hundredths of the figure.
    """
    found = difference(real, ours)
    if found["mean"] is None:
        return f"no verdict: {what} is not defined on these held-out images"
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    if len(real) < ENOUGH:
        seeds = f"{len(real)} seed{'s' * (len(real) > 1)}"
        return f"{what} {mean:+.1f} points with generated pairs ({seeds}: not a proof, which takes {ENOUGH} seeds or more)"
    figures = f"{mean:+.1f} points of {what} [{low:+.1f}, {high:+.1f}], 95 % interval over {len(real)} seeds"
    if low > 0:
        return f"use it: {figures}"
    return f"do not use it: {figures}" if high < 0 else f"no measurable difference: {figures}"


def controls_hold(
    real: Sequence[float], more: Sequence[float], garbage: Sequence[float], wrong: str = "misplaced labels"
) -> dict[str, Any]:  # fmt: skip
    """Whether a comparison could have shown anything: more real defects must help beyond chance, `wrong` ones must not.

    All three have one value a seed, in the same order. `counts` is None with fewer than 3 seeds or undefined figures.
    """
    up, down = difference(real, more), difference(real, garbage)
    if len(real) < ENOUGH or up["mean"] is None or down["mean"] is None:
        return {"counts": None, "says": f"the controls need {ENOUGH} seeds", "more_real": up, "wrong": down}
    faults = []
    if up["low"] <= 0:
        faults.append("further real defects did not help measurably, so this protocol cannot tell good data from bad")
    if down["low"] > 0:
        faults.append(f"{wrong} helped, so this protocol rewards more than good labels")
    says = (
        "the comparison does not count: " + "; ".join(faults)
        if faults
        else "the comparison counts: more real defects help, garbage does not"
    )
    return {"counts": not faults, "says": says, "more_real": up, "wrong": down}


def qualified(said: str, controls: Mapping[str, Any]) -> str:
    """A verdict with what `controls_hold` found behind it, where that forbids to count on it."""
    return f"{said}; but {controls['says']}" if controls["counts"] is False else said
