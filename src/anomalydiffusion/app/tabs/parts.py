"""What the tabs share: gradio itself, an editor to paint masks in, what follows the work, and errors that are said on the page."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError
from anomalydiffusion.report.sheets import outlined

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing leaves the machine

try:
    import gradio as gr
    import pandas as pd
except ImportError as missing:
    raise ConfigError(f"the studio needs gradio ({missing}): pip install 'anomalydiffusion[studio]'") from missing

__all__ = ["Live", "canvas_of", "editor_of", "gr", "marks_of", "pd", "told", "whole"]

BRUSH = "#ff2d55"


def told(call: Callable[..., Any]) -> Callable[..., Any]:
    """What goes wrong is said on the page, in one line, and nothing is lost."""

    @functools.wraps(call)
    def wrapped(*args: Any) -> Any:
        try:
            return call(*args)
        except (AnomalyDiffusionError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A part of the page that follows the work: what it shows is read again and again, and sent where it has changed."""

    part: Any
    read: Callable[[], Any]
    show: Callable[[Any], Any] = as_it_is


def whole(value: float | None, what: str) -> int:
    if value is None:
        raise ConfigError(f"{what}: give a number")
    return int(value)


def marks_of(value: dict[str, Any] | None) -> np.ndarray | None:
    """What was painted over the picture in an editor, bool of the picture's size; None without a picture."""
    if not value or value.get("background") is None:
        return None
    height, width = value["background"].shape[:2]
    marks = np.zeros((height, width), bool)
    for layer in value["layers"] or []:
        painted = layer[..., 3] > 127
        if painted.shape != marks.shape:
            rows = np.arange(height) * painted.shape[0] // height
            painted = painted[rows][:, np.arange(width) * painted.shape[1] // width]
        marks |= painted
    return marks


def canvas_of(image_HWC: np.ndarray, marks_HW: np.ndarray | None = None) -> dict[str, Any]:
    """A picture for an editor, with a line around what is marked: gradio's editor shows no layer that it is given."""
    if marks_HW is not None and marks_HW.any():
        image_HWC = outlined("", image_HWC, marks_HW, max(image_HWC.shape[:2])).image_HWC
    return {"background": image_HWC, "layers": [], "composite": None}


def editor_of(label: str, name: str) -> Any:
    return gr.ImageEditor(
        label=label, elem_id=name, type="numpy", format="png", image_mode="RGBA", sources=(), transforms=(),
        layers=False, height=420,
        brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed", default_size=10), eraser=gr.Eraser(default_size=14),
    )  # fmt: skip
