"""Crops hold the whole mask, whatever the image."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.crops import crop_box, extract, resize


@given(st.integers(1, 300), st.integers(1, 300), st.floats(1, 8), st.integers(8, 96), st.floats(0, 1), st.floats(0, 1), st.data())
def test_a_crop_is_square_and_holds_the_mask(h, w, ratio, minimum, down, across, data) -> None:
    x0, y0 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, w)), data.draw(st.integers(y0 + 1, h))
    a, b, c, d = crop_box((x0, y0, x1, y1), (h, w), ratio, minimum, (down, across))
    assert c - a == d - b >= minimum
    assert a <= x0 and b <= y0 and c >= x1 and d >= y1
    assert (a >= 0 and c <= w) or c - a > w
    assert (b >= 0 and d <= h) or d - b > h


def test_what_lies_outside_is_reflected() -> None:
    image = np.arange(12).reshape(3, 4)
    expected = np.pad(image, ((2, 2), (3, 3)), mode="reflect")
    assert (extract(image, (-3, -2, 7, 5)) == expected).all()
    assert (extract(np.ones((1, 1)), (-4, -4, 6, 6)) == 1).all()


def test_a_thin_mask_survives_shrinking() -> None:
    mask = np.zeros((400, 400), bool)
    mask[:, 133] = True
    assert resize(mask, 64).any(1).all()
