"""An impossible noun cannot be built."""

from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.types import Mask, Normal, Pair, Provenance, Shot, Split

SPOT = np.zeros((20, 30), bool)
SPOT[4:7, 10:15] = True


def test_a_mask_knows_its_box_and_area() -> None:
    mask = Mask(pixels_HW=SPOT, origin="real")
    assert mask.box == (10, 4, 15, 7) and mask.area == 15 / 600
    corner = np.zeros((3, 3), bool)
    corner[2, 2] = True
    assert Mask(pixels_HW=corner, origin="real").box == (2, 2, 3, 3)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((4, 4), bool), "marks no pixel"),
        (np.ones((4, 4), np.uint8), "expected bool"),
        (np.ones((4, 4, 1), bool), "expected bool H x W"),
    ],
)
def test_no_empty_or_grey_mask(pixels: np.ndarray, says: str) -> None:
    with pytest.raises(MaskError, match=says):
        Mask(pixels_HW=pixels, origin="user")


def _pair(image: np.ndarray, normal: np.ndarray, mask: np.ndarray) -> Pair:
    marked = Mask(pixels_HW=mask, origin="warped")
    provenance = Provenance(
        product="p", defect="d", seed=1, attempt=0, normal="n.png", normal_sha256="0", mask_origin="warped", touched_box=(0, 0, 1, 1),
        prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0, version="0",
    )  # fmt: skip
    return Pair(image_HWC=image, mask=marked, normal_HWC=normal, requested=marked, provenance=provenance)


def test_a_pair_is_of_one_size_and_8_bit_rgb() -> None:
    grey = np.full((20, 30, 3), 90, np.uint8)
    assert _pair(grey, grey, SPOT).provenance.to_dict()["touched_box"] == (0, 0, 1, 1)
    with pytest.raises(DataError, match="differ in size"):
        _pair(grey, grey[:10], SPOT)
    with pytest.raises(DataError, match="differ in size"):
        _pair(grey, grey, SPOT[:, :20])
    with pytest.raises(DataError, match="expected a uint8 RGB image"):
        _pair(grey.astype(np.float32), grey, SPOT)


def test_a_split_with_one_content_on_both_sides_cannot_be_built() -> None:
    learned = Shot(product="p", defect="d", path=Path("a.png"), mask_path=Path("am.png"), group="1")
    tested = Shot(product="p", defect="d", path=Path("b.png"), mask_path=Path("bm.png"), group="2")
    normal = Normal(product="p", path=Path("n.png"), group="3", part="train")
    parts = {"shots": (learned,), "held_out": (tested,), "normals": (normal,), "held_out_normals": (), "digest": "d"}
    assert Split(**parts, sha256={learned.path: "1", tested.path: "2", normal.path: "3"}).tested == [tested.path]
    for twin in ({learned.path: "1", tested.path: "1", normal.path: "3"}, {learned.path: "1", tested.path: "3", normal.path: "3"}):
        with pytest.raises(DataError, match=r"both sides of the split: .*b\.png"):
            Split(**parts, sha256=twin)
