"""How figures and other values are written on a page."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard

__all__ = ["GAIN", "heading", "is_figure", "text"]

GAIN = "gain"  # of an arm's first figure against real-only's
TERMS = {"ap": "AP", "auroc": "AUROC", "f1": "F1", "pro": "PRO", "iou": "IoU", "kid": "KID", "ic": "IC", "lpips": "LPIPS"}


def is_figure(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def text(value: Any) -> str:
    """A figure with four significant digits, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else ", ".join(map(text, value)) if isinstance(value, list) else str(value)


def heading(name: str) -> str:
    """The words for a figure by its name in scores.json, as the field has them."""
    return "against real-only" if name == GAIN else " ".join(TERMS.get(word, word) for word in name.split("_"))
