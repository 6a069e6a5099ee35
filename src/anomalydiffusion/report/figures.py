"""How figures and other values are written on a page."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard

__all__ = ["GAIN", "heading", "is_figure", "is_flat", "short", "text", "words"]

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


def short(value: float) -> str:
    """Three digits that count: 36.0, 0.0130."""
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1e3 else text(value)


def words(key: str) -> str:
    """A key of a table as words."""
    return key.replace("_", " ")


def is_flat(value: Any) -> bool:
    """Whether a value fits on one line: no table, no list of lists."""
    return not isinstance(value, dict) and not (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))
