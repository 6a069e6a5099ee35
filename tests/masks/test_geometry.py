from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion.core.errors import MaskError
from anomalydiffusion.masks.geometry import accept
from tests.core.test_shapes import mask_of


def test_accept_says_each_reason() -> None:
    left = np.zeros((50, 100), dtype=bool)
    left[:, :50] = True
    assert accept(mask_of((50, 100), (10, 20, 10, 20)), foreground_HW=left) is None
    assert accept(mask_of((50, 100), (10, 11, 10, 12))) == "marks 2 pixels, fewer than 4"
    assert accept(mask_of((50, 100), (10, 11, 10, 11))) == "marks 1 pixel, fewer than 4"
    assert "covers too much of the image (90%" in str(accept(mask_of((50, 100), (0, 45, 0, 100))))
    assert "touches most of a border (60% of the bottom side" in str(accept(mask_of((50, 100), (48, 50, 10, 70))))
    assert accept(mask_of((50, 100), (48, 50, 10, 70)), max_border=1) is None
    assert accept(mask_of((50, 100), (48, 50, 10, 60))) is None  # just half
    assert "lies off the object (43% on it" in str(accept(mask_of((50, 100), (10, 20, 47, 54)), foreground_HW=left))
    with pytest.raises(MaskError, match="object's pixels are"):
        accept(mask_of((50, 100), (10, 20, 10, 20)), foreground_HW=left[:, :50])
