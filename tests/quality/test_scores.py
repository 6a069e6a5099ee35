"""Known answers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torchmetrics.image.kid import poly_mmd

from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.quality.scores import (
    inception_score,
    intra_cluster_distance,
    kid,
    mask_agreement,
    mask_evenness,
    masked_features,
    masked_similarity,
    masked_spread,
    perceptual_distance,
)


def _normal(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def _mask(height: int, width: int, view: tuple[slice, slice]) -> Mask:
    pixels = np.zeros((height, width), bool)
    pixels[view] = True
    return Mask(pixels_HW=pixels, origin="user")


def test_kid_of_two_points_by_hand() -> None:
    zeros, ones = torch.zeros(5, 4), torch.ones(5, 4)
    assert kid(zeros, ones, subset_size=5, subsets=2, seed=0) == (1 + 8 - 2, 0)  # k(0,0) = k(0,1) = 1, k(1,1) = 2^3
    assert kid(ones, ones, subset_size=2, subsets=3, seed=0) == (0, 0)


def test_kid_of_whole_samples_is_torchmetrics() -> None:
    a, b = _normal(50, 16, 0), 1.3 * _normal(50, 16, 1) + 0.2
    assert kid(a, b, subset_size=50, subsets=1, seed=0)[0] == pytest.approx(float(poly_mmd(a.double(), b.double())))


def test_kid_of_one_law_is_near_zero_and_of_two_is_not() -> None:
    whole = [kid(_normal(60, 8, seed), _normal(60, 8, 1000 + seed), subset_size=60, subsets=1, seed=0)[0] for seed in range(60)]
    spread = np.std(whole)
    assert abs(np.mean(whole)) < 3 * spread / math.sqrt(60) and min(whole) < 0 < max(whole)  # no bias, for so few images
    mean, deviation = kid(_normal(400, 8, 1), _normal(300, 8, 2), subset_size=60, subsets=40, seed=0)
    assert abs(mean) < 3 * deviation and deviation == pytest.approx(spread, rel=0.5)
    shifted, _ = kid(_normal(400, 8, 1), _normal(300, 8, 2) + 0.7, subset_size=60, subsets=40, seed=0)
    assert shifted > 5 * deviation


def test_kid_depends_on_its_seed_alone() -> None:
    a, b = _normal(40, 4, 0), _normal(30, 4, 1)
    first = kid(a, b, subset_size=10, subsets=5, seed=3)
    torch.manual_seed(99)
    assert kid(a, b, subset_size=10, subsets=5, seed=3) == first != kid(a, b, subset_size=10, subsets=5, seed=4)


def test_kid_refuses_in_words() -> None:
    a = _normal(10, 4, 0)
    for b, size, subsets, words in (
        (_normal(7, 4, 1), 8, 1, "subsets of 8 needs as many images on both sides, but 10 and 7 came"),
        (_normal(10, 5, 1), 8, 1, "4 and 5 wide"),
        (a, 1, 1, "at least 1 subset of 2"),
        (a, 2, 0, "at least 1 subset of 2"),
        (torch.full((10, 4), math.nan), 8, 1, "40 of 40 numbers are not finite"),
        (torch.zeros(4), 2, 1, "one row for each image"),
    ):
        with pytest.raises(DataError, match=words):
            kid(a, b, subset_size=size, subsets=subsets, seed=0)


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_known_answers(splits: int) -> None:
    alike = torch.tensor([[0.7, 0.2, 0.1]]).repeat(8, 1)
    assert inception_score(alike, splits) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert inception_score(torch.eye(5).repeat(splits, 1), splits) == (pytest.approx(5), pytest.approx(0, abs=1e-6))


def test_inception_score_parts_differ_and_nonsense_is_refused() -> None:
    varied, alike = torch.eye(4), torch.eye(4)[:1].repeat(4, 1)
    assert inception_score(torch.cat([varied, alike]), 2) == (pytest.approx(2.5), pytest.approx(1.5))
    for rows, splits in ((varied, 5), (varied, 0), (2 * varied, 1), (torch.tensor([[1.5, -0.5]]), 1)):
        with pytest.raises(DataError):
            inception_score(rows, splits)


def test_inception_score_is_torch_fidelitys() -> None:
    logits = 3 * _normal(40, 12, 0)
    theirs = isc_features_to_metric(logits, splits=4, shuffle=False)
    wanted = pytest.approx((theirs[KEY_METRIC_ISC_MEAN], theirs[KEY_METRIC_ISC_STD]), rel=1e-5)
    assert inception_score(logits.softmax(1), 4) == wanted


def test_perceptual_distance_known_answers() -> None:
    ones = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)]
    for layer in ones:
        layer[:, 0] = 7.0  # only its direction counts
    across = [layer.roll(1, dims=1) for layer in ones]
    half = [ones[0], across[1]]
    both = [torch.cat(layers) for layers in zip(ones, across, half, [-layer for layer in ones], strict=True)]
    assert perceptual_distance(ones, both).tolist() == [[pytest.approx(each) for each in (0, 2, 1, 4)]]
    weighted = perceptual_distance(ones, both, [torch.tensor([0.5, 0.0]), torch.tensor([0.0, 3.0, 9.0])])
    assert weighted[0, :3].tolist() == [pytest.approx(each) for each in (0, 0.5 + 3, 3)]
    table = perceptual_distance(both, both)
    assert torch.equal(table, table.T) and not table.diagonal().any()
    for maps, weights in ((ones[:1], None), ([ones[1], ones[0]], None), (ones, [torch.ones(2), torch.ones(2)])):
        with pytest.raises(DataError):
            perceptual_distance(ones, maps, weights)


def test_intra_cluster_distance_by_hand() -> None:
    to_shots = torch.tensor([[0.1, 0.9, 2], [0.2, 0.8, 2], [0.3, 0.9, 2], [0.9, 0.1, 2], [0.9, 0.2, 2], [3, 3, 2]])
    apart = torch.full((6, 6), 50.0)
    apart[:3, :3] = torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])
    apart[3:5, 3:5] = torch.tensor([[0.0, 8], [8, 0]])
    assert intra_cluster_distance(to_shots, apart) == pytest.approx((2 + 8) / 2)  # the third cluster has one member
    assert intra_cluster_distance(to_shots, torch.zeros(6, 6)) == 0
    assert math.isnan(intra_cluster_distance(to_shots[[0, 3]], torch.zeros(2, 2)))
    with pytest.raises(DataError, match="square"):
        intra_cluster_distance(to_shots, apart[:4])


def test_masked_spread_is_nothing_of_copies_and_one_of_strangers() -> None:
    copies, strangers = torch.tensor([[1.0, 2, 0], [2, 4, 0], [0.5, 1, 0]]), torch.eye(3)
    assert masked_spread(copies) == pytest.approx(0, abs=1e-6) and masked_spread(strangers) == pytest.approx(1)
    assert masked_spread(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(2)
    assert masked_spread(torch.tensor([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx(2 / 3)  # two of three pairs are strangers
    assert math.isnan(masked_spread(torch.ones(1, 4)))


def test_masked_similarity_sees_what_is_under_the_mask_only() -> None:
    view = np.s_[8:24, 16:32]
    mask, rest = _mask(32, 48, view), _mask(32, 48, np.s_[:, :])

    def maps(direction: list[float], seed: int) -> list[torch.Tensor]:
        out = []
        for stride in (4, 8):
            layer = _normal(32 * 48 * 3 // stride**2, 1, seed).reshape(1, 3, 32 // stride, 48 // stride)
            layer[:, :, 8 // stride : 24 // stride, 16 // stride : 32 // stride] = torch.tensor(direction)[None, :, None, None]
            out.append(layer)
        return out

    red, blue, minus = (masked_features(maps(each, seed), [mask]) for seed, each in enumerate(([1.0, 0, 0], [0, 2.0, 0], [-3.0, 0, 0])))
    assert red.shape == (1, 6)
    again = masked_features(maps([5.0, 0, 0], 9), [mask])
    assert masked_similarity(torch.cat([again, blue]), red).tolist() == [pytest.approx(1), pytest.approx(0, abs=1e-6)]
    assert float(masked_similarity(minus, red)) == pytest.approx(-1)
    assert masked_similarity(red, torch.cat([blue, minus, again])).tolist() == [pytest.approx(1)]  # the nearest counts
    assert float(masked_similarity(masked_features(maps([5.0, 0, 0], 9), [rest]), red)) < 0.99
    with pytest.raises(MaskError):
        masked_features(maps([1.0, 0, 0], 0), [mask, mask])
    with pytest.raises(DataError, match="wide"):
        masked_similarity(red, red[:, :3])


def test_a_cell_counts_by_its_marked_share() -> None:
    layer = torch.zeros(1, 2, 1, 3)
    layer[0, :, 0, 0], layer[0, :, 0, 1], layer[0, :, 0, 2] = (torch.tensor(each) for each in ([1.0, 0], [0, 1.0], [-9.0, -9]))
    found = masked_features([layer], [_mask(8, 24, np.s_[:, 0:10])])  # a whole cell and a quarter of the next
    assert found[0].tolist() == [pytest.approx(each / math.sqrt(17)) for each in (4, 1)]


def test_a_speck_of_a_mask_counts_however_coarse_the_maps() -> None:
    layer = torch.zeros(1, 2, 3, 4)
    layer[:, 0], layer[0, :, 1, 2] = 1.0, torch.tensor([0.0, 1.0])
    assert masked_features([layer], [_mask(48, 64, np.s_[20:21, 40:41])]).tolist() == [[0, 1]]


def _changed(mask: Mask, by: int, texture: float = 0, noise: float = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    normal = 130 + texture * random.standard_normal((*mask.pixels_HW.shape, 1)) + np.zeros(3)
    image = normal - by * mask.pixels_HW[..., None] + noise * random.standard_normal(normal.shape)
    return np.clip(image, 0, 255).astype(np.uint8), np.clip(normal, 0, 255).astype(np.uint8)


@given(st.integers(0, 60), st.integers(0, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from([-90, -70, 70, 110]))
def test_a_mask_that_the_change_fills_agrees_fully(top: int, left: int, height: int, width: int, by: int) -> None:
    mask = _mask(100, 130, np.s_[top : top + height, left : left + width])
    assert mask_agreement(*_changed(mask, by), mask) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("by, wanted", [(0, 0), (3, 0), (12, 1)])
def test_what_nobody_sees_is_no_change(by: int, wanted: float) -> None:
    mask = _mask(100, 130, np.s_[30:60, 40:80])
    assert mask_agreement(*_changed(mask, by), mask) == pytest.approx(wanted, abs=0.02)


def test_a_scratch_of_one_pixel_agrees_fully() -> None:
    pixels = np.eye(100, 130, 15, dtype=bool)
    mask = Mask(pixels_HW=pixels, origin="user")
    assert mask_agreement(*_changed(mask, 60), mask) == 1


@pytest.mark.parametrize("texture, noise", [(20, 0), (0, 2), (10, 2)])
def test_texture_and_noise_do_not_count_as_change(texture: float, noise: float) -> None:
    mask = _mask(100, 130, np.s_[30:60, 40:80])
    image, normal = _changed(mask, 50, texture, noise)
    assert mask_agreement(image, normal, mask) > 0.95
    image, normal = _changed(mask, 0, texture, noise)
    assert mask_agreement(image, normal, mask) < 0.05


@pytest.mark.parametrize("shift, wanted", [(20, 1 / 3), (10, 3 / 5), (50, 0), (80, 0)])
def test_a_mask_beside_its_change_agrees_by_what_they_share(shift: int, wanted: float) -> None:
    image, normal = _changed(_mask(100, 200, np.s_[30:70, 30 + shift : 70 + shift]), 50)
    assert mask_agreement(image, normal, _mask(100, 200, np.s_[30:70, 30:70])) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("by", [0, 3, 50])
def test_a_mask_that_shows_alike_everywhere_is_even(by: int) -> None:
    mask = _mask(100, 200, np.s_[30:70, 20:180])
    assert mask_evenness(*_changed(mask, by), mask) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("drawn", [np.s_[30:70, 20:100], np.s_[50:70, 20:180], np.s_[30:50, :]])
def test_a_half_that_does_not_show_is_uneven(drawn: Any) -> None:
    """The rest of the half near the drawn one shows a little, by smoothing; the whole of it is nearly nothing."""
    mask = _mask(100, 200, np.s_[30:70, 20:180])
    part = Mask(pixels_HW=mask.pixels_HW & _mask(100, 200, drawn).pixels_HW, origin="user")
    assert mask_evenness(*_changed(part, 50), mask) < -4


def test_halves_of_another_strength_are_compared_as_they_are_seen() -> None:
    left, right = _mask(100, 200, np.s_[30:70, 20:100]), _mask(100, 200, np.s_[30:70, 100:180])
    image, normal = _changed(left, 60)
    other, _ = _changed(right, 30)
    both = np.where(right.pixels_HW[..., None], other, image)
    whole = Mask(pixels_HW=left.pixels_HW | right.pixels_HW, origin="user")
    lab = [float(np.linalg.norm(rgb2lab(np.full((1, 1, 3), level, np.uint8)) - rgb2lab(normal[:1, :1]))) for level in (130 - 60, 130 - 30)]
    assert mask_evenness(both, normal, whole) == pytest.approx(np.log2(lab[1] / lab[0]), abs=0.1)


def test_a_pixel_has_no_halves() -> None:
    mask = _mask(20, 20, np.s_[4:5, 4:5])
    assert mask_evenness(*_changed(mask, 50), mask) == 0


@pytest.mark.parametrize("measured", [mask_agreement, mask_evenness])
def test_a_mask_of_another_size_is_refused(measured: Any) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(MaskError, match="one size"):
        measured(image, image, _mask(20, 21, np.s_[:4, :4]))
