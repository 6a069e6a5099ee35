"""Simple shapes have known numbers."""

from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.shapes import Shape, border_shares, measure, shape_distances
from anomalydiffusion.core.types import Mask


def mask_of(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Mask:
    pixels = np.zeros(shape, dtype=bool)
    for y0, y1, x0, x1 in boxes:
        pixels[y0:y1, x0:x1] = True
    return Mask(pixels_HW=pixels, origin="test")


def test_measure_knows_simple_shapes() -> None:
    square = measure(mask_of((100, 200), (10, 30, 50, 70)))
    assert square.area == pytest.approx(400 / 20_000)
    assert (square.parts, square.border) == (1, 0.0)
    assert square.elongation == pytest.approx(1.0)
    assert measure(mask_of((100, 200), (10, 12, 50, 90))).elongation == pytest.approx(20.0)
    assert measure(mask_of((9, 9), (4, 5, 4, 5))).elongation == pytest.approx(1.0)
    assert square.margin == 0.1 and measure(mask_of((100, 200), (10, 30, 197, 200))).margin == 0


def test_parts_touch_by_their_corners_and_border_is_the_fullest_side() -> None:
    assert measure(mask_of((20, 20), (2, 4, 2, 4), (4, 6, 4, 6))).parts == 1
    assert measure(mask_of((20, 20), (2, 4, 2, 4), (5, 7, 5, 7))).parts == 2
    shape = mask_of((20, 40), (0, 5, 0, 10))
    assert border_shares(shape.pixels_HW) == {"top": 0.25, "bottom": 0.0, "left": 0.25, "right": 0.0}
    assert measure(mask_of((20, 40), (0, 15, 0, 10))).border == 0.75


def test_shapes_of_one_law_are_no_distance_apart_and_doublings_are_counted() -> None:
    def shape(area: float, elongation: float = 1.0, parts: int = 1, margin: float = 0.1) -> Shape:
        return Shape(area=area, parts=parts, elongation=elongation, border=0.0, margin=margin)

    some = [shape(0.01), shape(0.04)]
    assert shape_distances(some, some * 3) == {"area": 0.0, "elongation": 0.0, "parts": 0.0, "margin": 0.0}
    other = [shape(0.02, 4.0, 3, 0.3), shape(0.08, 4.0, 3, 0.3)]
    assert shape_distances(some, other) == pytest.approx({"area": 1.0, "elongation": 2.0, "parts": 2.0, "margin": 0.2})
    assert shape_distances([shape(0.01)], [shape(0.005), shape(0.04)])["area"] == pytest.approx(1.5)  # half goes down 1, half up 2
    with pytest.raises(DataError, match="shapes of 0 masks"):
        shape_distances([], some)
