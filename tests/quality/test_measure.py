"""A set of images is measured against real ones; what is like them scores so."""

import json

import numpy as np
import pytest

from anomalydiffusion.core.errors import ExtractorError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.quality.features import extractor
from anomalydiffusion.quality.measure import SIDE, View, measure_quality, view


def look(seed: int, *, bright: bool) -> View:
    random = np.random.default_rng(seed)
    normal = np.repeat(random.normal(120, 6, (90, 100, 1)), 3, 2).clip(0, 255).astype(np.uint8)
    mask = np.zeros((90, 100), bool)
    y, x = random.integers(10, 60, 2)
    mask[y : y + 16, x : x + 16] = True
    image = normal.copy()
    image[mask] = 250 if bright else 5
    return view(image, Mask(pixels_HW=mask, origin="file"), normal)


def test_like_defects_are_near_and_unlike_ones_far() -> None:
    key, net = ("p", "spot"), extractor("efficientnet-lite0")
    shots, real, alike = ([look(start + i, bright=True) for i in range(count)] for start, count in ((0, 3), (10, 8), (20, 8)))
    unlike = [look(30 + i, bright=False) for i in range(8)]
    near, far = (measure_quality({key: some}, {key: shots}, {key: real}, net)["per_defect"]["p/spot"]["arms"] for some in (alike, unlike))
    assert near["ours"]["kid"]["mean"] < far["ours"]["kid"]["mean"]
    assert near["ours"]["similarity"]["mean"] > far["ours"]["similarity"]["mean"] + 0.05
    assert near["ours"]["mask_agreement"]["mean"] > 0.9 and near["real"]["mask_agreement"]["mean"] is None
    assert near["real"]["similarity"]["mean"] < 1.0  # shots against held-out, never an image against itself


def test_what_was_made_otherwise_has_a_row_of_its_own_and_changes_no_other() -> None:
    key, net = ("p", "spot"), extractor("efficientnet-lite0")
    shots, real, own, other = ([look(start + i, bright=start < 30) for i in range(6)] for start in (0, 10, 20, 30))
    alone = measure_quality({key: own}, {key: shots}, {key: real}, net)
    both = measure_quality({key: own}, {key: shots}, {key: real}, net, others={"pasted": {key: other}, "none": {}})
    assert list(both["arms"]) == ["ours", "pasted", "real"]
    assert {arm: both["arms"][arm] for arm in alone["arms"]} == alone["arms"]
    swapped = measure_quality({key: other}, {key: shots}, {key: real}, net)
    assert both["arms"]["pasted"] == swapped["arms"]["ours"] != both["arms"]["ours"]
    assert list(both["per_defect"]["p/spot"]["masks"]) == ["ours", "pasted", "real", "shots"]


def test_masks_are_measured_beside_the_shots() -> None:
    key, net = ("p", "spot"), extractor("efficientnet-lite0")
    some = [look(seed, bright=True) for seed in range(6)]
    found = measure_quality({key: some[:2]}, {key: some}, {key: some[2:]}, net)["per_defect"]["p/spot"]["masks"]
    assert list(found) == ["ours", "real", "shots"] and found["shots"]["distance"]["area"] == 0
    assert found["ours"]["area"] == {"mean": 256 / 9000, "low": 256 / 9000, "high": 256 / 9000}
    assert found["ours"]["parts"]["mean"] == 1 and found["real"]["distance"]["margin"] > 0


def test_too_few_images_leave_figures_undefined_and_types_without_images_out() -> None:
    key, net = ("p", "spot"), extractor("efficientnet-lite0")
    found = measure_quality(
        {key: [look(0, bright=True)], ("p", "none"): []}, {key: [look(1, bright=True)]}, {key: [look(2, bright=True)]}, net
    )
    assert list(found["per_defect"]) == ["p/spot"] and found["extractor"] == "efficientnet-lite0"
    assert found["arms"]["ours"]["kid"]["mean"] is None and found["arms"]["ours"]["similarity"]["mean"] is not None
    assert found["arms"]["ours"]["spread"]["mean"] is None
    json.dumps(found, allow_nan=False)
    assert measure_quality({}, {}, {}, net)["arms"] == {}


def test_copies_have_less_spread_than_defects_that_differ() -> None:
    key, net = ("p", "spot"), extractor("efficientnet-lite0")
    shots, real = ([look(start + i, bright=i % 2 == 0) for i in range(4)] for start in (0, 10))
    arms = measure_quality({key: [look(20, bright=True)] * 4}, {key: shots}, {key: real}, net)["arms"]
    assert arms["ours"]["spread"]["mean"] == pytest.approx(0, abs=1e-6) and arms["real"]["spread"]["mean"] > 0.05


def test_a_view_is_a_square_around_the_defect() -> None:
    seen = look(4, bright=True)
    assert seen.image_HWC.shape == (SIDE, SIDE, 3) and seen.mask.pixels_HW.shape == (SIDE, SIDE)
    assert 0.03 < seen.mask.area < 0.3


class _Partly:
    """An extractor whose network gives some kinds of features only."""

    name, layer_weights = "partly", None

    def __init__(self, *lacks: str) -> None:
        self.net, self.lacks = extractor("efficientnet-lite0"), lacks

    def _given(self, kind: str, images):
        if kind in self.lacks:
            raise ExtractorError(f"no {kind}")
        return getattr(self.net, kind)(images)

    def pooled(self, images):
        return self._given("pooled", images)

    def probabilities(self, images):
        return self._given("probabilities", images)

    def maps(self, images):
        return self._given("maps", images)


@pytest.mark.parametrize(
    ("lacks", "left_out"),
    [(("maps",), {"ic_lpips", "spread", "similarity"}), (("pooled", "probabilities"), {"kid", "inception_score"})],
    ids=["as inception-v3", "as lpips"],
)
def test_figures_whose_features_an_extractor_has_not_are_left_out(lacks: tuple[str, ...], left_out: set[str]) -> None:
    key, views = ("p", "spot"), [look(seed, bright=bool(seed % 2)) for seed in range(12)]
    whole, part = (
        measure_quality({key: views[:4]}, {key: views[4:8]}, {key: views[8:]}, net)["arms"]["ours"] for net in (_Partly(), _Partly(*lacks))
    )
    assert {name for name in whole if part[name]["mean"] is None} - {"mask_agreement"} == left_out
    assert all(part[name] == whole[name] for name in set(whole) - left_out)
