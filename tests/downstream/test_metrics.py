"""Known answers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.downstream.metrics import (
    accuracy,
    auroc,
    average_precision,
    f1_max,
    f1_threshold,
    iou,
    per_class_accuracy,
    precision_by_recall,
    pro,
)

TRUTH = np.array([0, 0, 1, 1], bool)


def test_known_answers() -> None:
    perfect, wrong, constant = np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1]), np.ones(4)
    assert (auroc(perfect, TRUTH), average_precision(perfect, TRUTH), f1_max(perfect, TRUTH)) == (1, 1, 1)
    assert auroc(wrong, TRUTH) == 0
    assert (auroc(constant, TRUTH), average_precision(constant, TRUTH)) == (0.5, 0.5)
    assert f1_max(constant, TRUTH) == pytest.approx(2 / 3)
    assert precision_by_recall(perfect, TRUTH, (0, 0.5, 1)) == [1, 1, 1]
    assert precision_by_recall(wrong, TRUTH, (0, 0.5, 0.51, 1)) == pytest.approx([0.5, 0.5, 0.5, 0.5])
    assert precision_by_recall(np.array([1.0, 3, 2, 4]), TRUTH, (0, 0.5, 0.51, 1)) == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert np.isnan(precision_by_recall(constant, np.zeros(4, bool), (0, 1))).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_against_counting_by_hand(items: list) -> None:
    scores, truth = np.array([s for s, _ in items], float), np.array([t for _, t in items])
    if not truth.any() or truth.all():
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert auroc(scores, truth) == pytest.approx(np.mean(pairs))
    best = 0.0
    for threshold in scores:
        hit = scores >= threshold
        best = max(best, 2 * (hit & truth).sum() / (hit.sum() + truth.sum()))
    assert f1_max(scores, truth) == pytest.approx(best)
    for recall, precision in zip((0, 0.3, 1), precision_by_recall(scores, truth, (0, 0.3, 1)), strict=True):
        marked = [scores >= threshold for threshold in scores]
        assert precision == pytest.approx(max(truth[each].mean() for each in marked if truth[each].sum() >= recall * truth.sum()))
    hit = scores >= f1_threshold(scores, truth)
    assert 2 * (hit & truth).sum() / (hit.sum() + truth.sum()) == pytest.approx(best)


@given(st.lists(st.tuples(st.floats(-2, 2, width=16) | st.sampled_from([-0.0, 0.0]), st.booleans()), min_size=2, max_size=40))
def test_half_precision_is_counted_as_other_numbers_are_sorted(items: list) -> None:
    half, truth = np.array([s for s, _ in items], np.float16), np.array([t for _, t in items])
    for metric in (auroc, average_precision, f1_max, f1_threshold):
        assert metric(half, truth) == pytest.approx(metric(half.astype(float), truth), nan_ok=True)
    maps = [half[None], half[None, ::-1]], [truth[None], truth[None, ::-1]]
    assert pro(*maps) == pytest.approx(pro([each.astype(float) for each in maps[0]], maps[1]), nan_ok=True)


def test_no_defect_is_undefined_and_nonsense_is_refused() -> None:
    assert np.isnan(auroc(np.ones(3), np.zeros(3, bool))) and np.isnan(average_precision(np.ones(3), np.zeros(3, bool)))
    for scores, truth in ((np.array([np.nan, 1]), np.array([0, 1])), (np.ones(2), np.ones(3)), (np.ones(2), np.array([0, 2]))):
        with pytest.raises(DataError):
            auroc(scores, truth)


def test_the_f1_threshold_is_the_highest_that_attains_it_whatever_the_number_type() -> None:
    truth = np.array([1, 0, 1, 0], bool)
    assert f1_threshold(np.array([9, 5, 5, 5], np.uint8), truth) == 9  # 2 / 3 at 9 and at 5
    assert f1_threshold(np.array([0.1, 0.9, 0.3, 0.2], np.float32), ~truth) == np.float32(0.2)  # 2 / 3 at 0.9, 4 / 5 at 0.2
    assert f1_threshold(truth, truth) == 1
    assert np.isnan(f1_threshold(np.ones(3), np.zeros(3, bool)))


def regions() -> np.ndarray:
    truth = np.zeros((9, 11), bool)
    truth[1, 1] = truth[5:8, 4:9] = True
    return truth


def test_pro_known_answers() -> None:
    truth = regions()
    for limit in (0.05, 0.3, 1.0):
        assert pro([truth.astype(np.uint8)], [truth], limit=limit) == pytest.approx(1)
        assert pro([np.full(truth.shape, 7.0)], [truth], limit=limit) == pytest.approx(limit / 2)
        assert pro([1.0 - truth], [truth], limit=limit) == pytest.approx(0, abs=1e-12)
    small = truth & (np.arange(11) < 3)
    assert pro([small.astype(float)], [truth]) == pytest.approx(0.5 + 0.5 * 0.15)  # one of two regions; the rest comes evenly


def test_pro_joins_regions_at_corners_and_weighs_them_alike() -> None:
    diagonal = np.eye(4, dtype=bool)
    one_of_four = np.zeros((4, 4))
    one_of_four[0, 0] = 1
    assert pro([one_of_four], [diagonal]) == pytest.approx(0.25 + 0.75 * 0.15)  # one region, not four
    other = np.zeros((2, 3), bool)
    other[0, 0] = True
    maps = [one_of_four, other.astype(float)]
    assert pro(maps, [diagonal, other]) == pytest.approx((0.25 + 1) / 2 + 0.375 * 0.15)  # one region in each image


def slow_pro(maps: list[np.ndarray], truths: list[np.ndarray], limit: float) -> float:
    """Every threshold one by one, regions by flooding, the area under each straight piece by its formula."""
    parts: list[tuple[int, set[tuple[int, int]]]] = []
    for index, truth in enumerate(truths):
        left = {(int(y), int(x)) for y, x in np.argwhere(truth)}
        while left:
            grown, front = set(), {left.pop()}
            while front:
                grown |= front
                front = {(y + dy, x + dx) for y, x in front for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= front
            parts.append((index, grown))
    normal = sum(int((~truth).sum()) for truth in truths)
    curve = [(0.0, 0.0)]
    for threshold in sorted({float(value) for one in maps for value in one.ravel()}, reverse=True):
        false = sum(int(((one >= threshold) & ~truth).sum()) for one, truth in zip(maps, truths))
        found = [np.mean([maps[index][place] >= threshold for place in part]) for index, part in parts]
        curve.append((false / normal, float(np.mean(found))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_pro_against_every_threshold_one_by_one(seed: int, levels: int, limit: float) -> None:
    draw = np.random.default_rng(seed)
    sizes = [tuple(draw.integers(1, 7, 2)) for _ in range(int(draw.integers(1, 4)))]
    truths = [draw.random(size) < 0.35 for size in sizes]
    maps = [draw.integers(0, levels, size).astype(np.float32) + (draw.random(size) < 0.3) * draw.random(size) for size in sizes]
    if any(truth.any() for truth in truths) and not all(truth.all() for truth in truths):
        assert pro(maps, truths, limit=limit) == pytest.approx(slow_pro(maps, truths, limit))
    else:
        assert np.isnan(pro(maps, truths, limit=limit))


def test_pro_refuses_what_it_cannot_compare() -> None:
    ones, truth = np.ones((2, 2)), np.eye(2, dtype=bool)
    for maps, truths in (
        ([], []),
        ([ones], [truth, truth]),
        ([ones], [truth[:1]]),
        ([np.ones(4)], [truth.ravel()]),
        ([ones * np.inf], [truth]),
    ):
        with pytest.raises(DataError):
            pro(maps, truths)
    for limit in (0.0, 1.1):
        with pytest.raises(DataError, match="limit"):
            pro([ones], [truth], limit=limit)


def test_iou_known_answers() -> None:
    a, b, none = np.array([[1, 1, 0]], bool), np.array([[0, 1, 1]], bool), np.zeros((1, 3), bool)
    assert (iou(a, a), iou(a, b), iou(a, none)) == (1, pytest.approx(1 / 3), 0)
    assert np.isnan(iou(none, none))
    for bad in (a.astype(float), a[0]):
        with pytest.raises(DataError, match="two bool arrays"):
            iou(bad, a)


def test_accuracy_known_answers() -> None:
    truth, predicted = ["crack", "crack", "hole", "crack"], ["crack", "hole", "hole", "stain"]
    assert accuracy(predicted, truth) == 0.5
    assert per_class_accuracy(predicted, truth) == {"crack": pytest.approx(1 / 3), "hole": 1.0}
    for measure in (accuracy, per_class_accuracy):
        for wrong in ([], ["crack"]):
            with pytest.raises(DataError, match="one class for each"):
                measure(wrong, truth if wrong else [])
