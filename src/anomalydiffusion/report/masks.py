"""A defect type's masks in numbers, those of the pairs beside the real ones that were learned from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalydiffusion.core.errors import AnomalyDiffusionError
from anomalydiffusion.core.names import is_below
from anomalydiffusion.core.pixels import read_mask
from anomalydiffusion.core.shapes import Shape, measure
from anomalydiffusion.core.types import Mask
from anomalydiffusion.report.learned_from import SHOT, read_role
from anomalydiffusion.report.sheets import heat

__all__ = ["Masks", "evenly", "masks_of", "shot_masks"]

log = logging.getLogger(__name__)
MOST = 200  # of a defect type: more of them change no figure that is shown, and each is read from disk
GRID = 64  # cells a side of the picture that shows where masks lie
RANGE = (10, 50, 90)  # percentiles: the ends leave out what is rare


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masks:
    """Figures of several masks: low, middle and high (the percentiles `RANGE`) of each; `where` is uint8 `GRID` x `GRID` x 3."""

    count: int
    area: tuple[float, float, float]  # percent of the image
    parts: tuple[float, float, float]
    elongation: tuple[float, float, float]  # length over width, 1 = round
    margin: tuple[float, float, float]  # from the nearest side of the image, percent of its shorter one
    at_side: float  # percent of the masks that touch a side of the image
    shapes: tuple[Shape, ...]
    where: np.ndarray  # bright where many masks lie, the image's width and height stretched to one square


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    return [items[i] for i in sorted({round(i) for i in np.linspace(0, len(items) - 1, most)})] if items else []


def masks_of(paths: Iterable[Path]) -> Masks | None:
    """Measure the masks in files; None where none can be read."""
    shapes, place = [], np.zeros((GRID, GRID))
    for path in evenly(list(paths), MOST):
        try:
            mask = Mask(pixels_HW=read_mask(path), origin="file")
        except (AnomalyDiffusionError, OSError) as error:
            log.warning("%s: not measured in the report (%s)", path, error)
            continue
        shapes.append(measure(mask))
        place += np.asarray(Image.fromarray(mask.pixels_HW.astype(np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BOX)) / 255
    if not shapes:
        return None

    def spread(values: list[float]) -> tuple[float, float, float]:
        low, middle, high = np.percentile(values, RANGE)
        return float(low), float(middle), float(high)

    return Masks(
        count=len(shapes), area=spread([100 * each.area for each in shapes]), parts=spread([each.parts for each in shapes]),
        elongation=spread([each.elongation for each in shapes]), margin=spread([100 * each.margin for each in shapes]),
        shapes=tuple(shapes), at_side=100 * float(np.mean([each.margin == 0 for each in shapes])),
        where=heat(place / max(place.max(), 1e-9)).round().astype(np.uint8),
    )  # fmt: skip


def shot_masks(run: Path) -> dict[tuple[str, str], list[Path]]:
    """The masks of the real defects that were learned from, by product and defect; none, with a warning, where the split is damaged."""
    found: dict[tuple[str, str], list[Path]] = {}
    try:
        root, rows = read_role(run, SHOT)
        for row in rows:
            if is_below(row["mask"]) and (root / row["mask"]).is_file():
                found.setdefault((str(row["product"]), str(row["defect"])), []).append(root / row["mask"])
    except FileNotFoundError:
        pass  # pairs of another tool, say
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); real masks are left out", run / "split.json", error)
    return found
