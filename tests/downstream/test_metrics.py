"""Known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.downstream.metrics import auroc, average_precision, f1_max

TRUTH = np.array([0, 0, 1, 1], bool)


def test_known_answers() -> None:
    perfect, wrong, constant = np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1]), np.ones(4)
    assert (auroc(perfect, TRUTH), average_precision(perfect, TRUTH), f1_max(perfect, TRUTH)) == (1, 1, 1)
    assert auroc(wrong, TRUTH) == 0
    assert (auroc(constant, TRUTH), average_precision(constant, TRUTH)) == (0.5, 0.5)
    assert f1_max(constant, TRUTH) == pytest.approx(2 / 3)


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


def test_no_defect_is_undefined_and_nonsense_is_refused() -> None:
    assert np.isnan(auroc(np.ones(3), np.zeros(3, bool))) and np.isnan(average_precision(np.ones(3), np.zeros(3, bool)))
    for scores, truth in ((np.array([np.nan, 1]), np.array([0, 1])), (np.ones(2), np.ones(3)), (np.ones(2), np.array([0, 2]))):
        with pytest.raises(DataError):
            auroc(scores, truth)
