"""How figures and other values are written on a page."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

__all__ = ["is_figure", "text"]


def is_figure(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text(value: Any) -> str:
    """A figure with four significant digits, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else ", ".join(map(text, value)) if isinstance(value, list) else str(value)
