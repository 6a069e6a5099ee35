"""Means, intervals and words have known answers."""

import math

import pytest

from anomalydiffusion.downstream.verdict import controls_hold, difference, qualified, summary, verdict


def test_a_summary_is_the_t_interval_from_three_seeds_on() -> None:
    found = summary([1.0, 2.0, 3.0])
    half = 4.302652729749464 / math.sqrt(3)  # t quantile with 2 degrees of freedom; deviation 1
    assert found["mean"] == 2.0 and found["low"] == pytest.approx(2 - half) and found["high"] == pytest.approx(2 + half)
    assert (summary([0.2, 0.4])["low"], summary([0.2, 0.4])["high"]) == (0.2, 0.4)
    assert summary([0.2, math.nan]) == {"mean": None, "low": None, "high": None, "values": [0.2, None]}
    assert summary([])["mean"] is None


def test_differences_are_paired() -> None:
    assert difference([0.1, 0.5, 0.9], [0.2, 0.6, 1.0])["low"] == pytest.approx(0.1)  # the same gain with every seed: no doubt


def test_verdicts() -> None:
    assert verdict([0.1, 0.1, 0.11], [0.5, 0.52, 0.51]).startswith("use it: +40.7 points of pixel AP")
    assert verdict([0.5, 0.52, 0.51], [0.1, 0.1, 0.11]).startswith("do not use it")
    assert verdict([0.1, 0.5, 0.3], [0.2, 0.4, 0.3]).startswith("no measurable difference")
    assert "1 seed: not a proof" in verdict([0.1], [0.9])
    assert verdict([math.nan], [0.9]).startswith("no verdict")


def test_controls() -> None:
    real, up, down = [0.3, 0.31, 0.32], [0.5, 0.52, 0.51], [0.1, 0.11, 0.12]
    assert controls_hold(real, up, down)["counts"] is True and controls_hold(real, up, real)["counts"] is True
    lost = controls_hold(real, down, down)
    assert lost["counts"] is False and "did not help" in lost["says"]
    assert "misplaced labels helped" in controls_hold(real, up, up)["says"]
    assert controls_hold([0.1], [0.5], [0.1])["counts"] is None
    assert qualified("use it", lost).startswith("use it; but the comparison does not count: further real defects did not help")
    for held in (controls_hold(real, up, down), controls_hold([0.1], [0.5], [0.1])):
        assert qualified("use it", held) == "use it"
