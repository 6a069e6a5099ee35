"""Crops hold the whole mask, whatever the image."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from anomalydiffusion.core.crops import clusters, crop_box, extract, resize, shrunk
from anomalydiffusion.core.types import Mask


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


@pytest.mark.parametrize("cells", [64, 96, 768])
def test_each_mark_goes_to_the_cell_of_its_centre_and_none_is_lost(cells: int) -> None:
    for length in (cells, cells + 1, 3 * cells // 2, 101 + cells, 2003):
        # a centre on the border of two cells belongs to the first
        cell, order = ((2 * np.arange(length) + 1) * cells - 1) // (2 * length), np.random.default_rng(0).permutation(length)
        marks, expected = np.eye(length, dtype=bool)[order], np.zeros((cells, cells), bool)
        expected[cell, cell[order]] = True
        assert (resize(marks, cells) == expected).all()
        lines = shrunk(marks, (cells, length))
        assert (lines.sum(1) == 1).all() and (lines.argmax(1) == cell[order]).all()


@given(seed=st.integers(0, 1000), spots=st.integers(1, 9), side=st.integers(8, 120), most=st.integers(1, 4))
def test_clusters_share_out_every_pixel_and_keep_near_parts_together(seed: int, spots: int, side: int, most: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.zeros((120, 160), bool)
    for y, x in random.integers(0, (115, 155), (spots, 2)):
        pixels[y : y + 5, x : x + 5] = True
    mask = Mask(pixels_HW=pixels, origin="real")
    groups = clusters(mask, side, most=most)
    assert 1 <= len(groups) <= most and (np.sum([group.pixels_HW for group in groups], axis=0) == pixels).all()
    assert [group.area for group in groups] == sorted((group.area for group in groups), reverse=True)
    x0, y0, x1, y1 = mask.box
    if max(x1 - x0, y1 - y0) <= side:
        assert groups == [mask]
    for one, other in itertools.combinations(groups, 2):
        assert ndimage.distance_transform_edt(~one.pixels_HW)[other.pixels_HW].min() > side / 4 - 1.5
