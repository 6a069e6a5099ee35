"""The gate's thresholds move to where verdicts by hand are, and no farther."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.quality.gate import GateConfig
from anomalydiffusion.quality.verdicts import Agreed, Judged, agree


def _judged(kept: Sequence[tuple[float, float]], rejected: Sequence[tuple[float, float]]) -> list[Judged]:
    """Pairs by what they measure: (visible, depth)."""
    return [Judged(kept=keep, visible=visible, depth=depth)
            for keep, pairs in ((True, kept), (False, rejected)) for visible, depth in pairs]  # fmt: skip


def test_faint_pairs_that_were_rejected_raise_what_must_be_seen_and_no_more() -> None:
    found = agree(_judged([(2.0, 1.0)] * 4, [(1.2, 1.0), (1.3, 0.5), (1.41, 1.0)]), GateConfig())
    assert (found.visible, found.strict) == (1.45, 3.0)  # the next step above the best of the rejected ones
    assert found.wrongly_passed == (3, 0) and found.wrongly_refused == (0, 0)
    assert found.says.startswith("visible 1 -> 1.45, strict stays 3; of 3 rejected by hand the gate passes 0 (before: 3)")


def test_pairs_unlike_the_shots_make_it_stricter_and_kept_ones_below_the_limits_loosen_it() -> None:
    found = agree(_judged([(2.0, 0.5)] * 3, [(2.0, 2.02)] * 3), GateConfig())
    assert (found.visible, found.strict) == (1.0, 2.0)
    found = agree(_judged([(0.62, 4.2), (0.9, 1.0), (3.0, 1.0)], [(0.2, 9.0)] * 3), GateConfig())
    assert (found.visible, round(found.strict, 6)) == (0.6, 4.2) and found.wrongly_refused == (2, 0) and found.wrongly_passed == (0, 0)


def test_verdicts_that_the_measures_do_not_explain_move_nothing() -> None:
    same = [(2.0, 1.0), (3.0, 0.5), (1.5, 2.0)]
    found = agree(_judged(same, same), GateConfig())
    assert (found.visible, found.strict) == (1.0, 3.0) and found.wrongly_passed == (3, 3)
    other = [Judged(kept=each.kept, visible=each.visible, depth=each.depth, refused=not each.kept)
             for each in _judged([(2.0, 1.0)] * 3, [(1.2, 1.0)] * 3)]  # fmt: skip
    assert agree(other, GateConfig()).visible == 1.0, "another limit refuses them already"


def test_what_is_given_stays_and_limits_that_are_off_stay_off() -> None:
    judged = _judged([(2.0, 1.0)] * 3, [(1.2, 2.5)] * 3)
    assert agree(judged, GateConfig(), ["visible"]).visible == 1.0 and agree(judged, GateConfig(), ["visible"]).strict == 2.4
    assert agree(judged, GateConfig(), ["strict"]).strict == 3.0 and agree(judged, GateConfig(), ["strict"]).visible == 1.25
    off = agree(_judged([(2.0, -math.inf)] * 3, [(1.2, -math.inf)] * 3), GateConfig(strict=0))
    assert (off.visible, off.strict) == (1.25, 0.0)


def test_few_verdicts_say_nothing() -> None:
    with pytest.raises(DataError, match="3 kept and 2 rejected by hand; limits are drawn from 3 of each"):
        agree(_judged([(2.0, 1.0)] * 3, [(1.2, 2.5)] * 2), GateConfig())


def _wrong(found: Agreed, now: int) -> float:
    return found.wrongly_refused[now] / found.kept + found.wrongly_passed[now] / found.rejected


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 6), st.floats(-3, 12)), min_size=6, max_size=20))
def test_it_never_agrees_less_than_before_and_counts_as_the_gate_does(pairs: list[tuple[bool, float, float]]) -> None:
    judged = [Judged(kept=True, visible=2.0, depth=1.0)] * 3 + [Judged(kept=False, visible=0.1, depth=9.0)] * 3
    judged += [Judged(kept=kept, visible=visible, depth=depth) for kept, visible, depth in pairs]
    found = agree(judged, GateConfig())
    assert _wrong(found, 1) <= _wrong(found, 0)
    passes = np.array([each.visible >= found.visible and each.depth <= found.strict for each in judged])
    kept = np.array([each.kept for each in judged])
    assert found.wrongly_refused[1] == (kept & ~passes).sum() and found.wrongly_passed[1] == (~kept & passes).sum()
