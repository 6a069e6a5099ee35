"""Validation parts and extra images are whole groups; nobody is left with nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.downstream.samples import Sample, hold_back, made_sample, set_apart


def samples(*groups: tuple[str, str]) -> list[Sample]:
    image = np.zeros((4, 4, 3), np.uint8)
    return [Sample(name=str(i), defect=defect, group=group, read=lambda: (image, None)) for i, (defect, group) in enumerate(groups)]


def test_every_fourth_group_is_held_back_or_the_last() -> None:
    fitted, validated = hold_back(samples(*[("a", str(i // 2)) for i in range(16)]), 4)
    assert {s.group for s in validated} == {"3", "7"} and len(fitted) == 12
    fitted, validated = hold_back(samples(("a", "1"), ("a", "2"), ("b", "3"), ("b", "1")), 4)
    assert {s.group for s in validated} == {"2"} and {s.defect for s in fitted} == {"a", "b"}
    fitted, validated = hold_back(samples(("a", "2"), *[("a", "1")] * 3, ("b", "1")), 4)
    assert {s.group for s in validated} == {"2"}  # the last group of each type must stay
    fitted, validated = hold_back(samples(*[("a", "one")] * 8), 4)
    assert len(fitted) == 6 and len(validated) == 2
    assert hold_back(samples(("a", "one")), 4)[1] == []


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123456")), min_size=1, max_size=20))
def test_no_part_shows_on_both_sides_and_every_type_is_fitted(groups: list[tuple[str, str]]) -> None:
    some = samples(*groups)
    fitted, validated = hold_back(some, 4)
    assert len(fitted) + len(validated) == len(some) and {s.defect for s in fitted} == {s.defect for s in some}
    if len({s.group for s in validated}) and {s.group for s in fitted} & {s.group for s in validated}:
        # only where no group could go
        for group in {group for _, group in groups}:
            assert {s.defect for s in some} != {s.defect for s in some if s.group != group}


def test_extra_images_are_of_other_parts() -> None:
    some = samples(("a", "1"), ("a", "1"), ("a", "2"), ("a", "3"), ("b", "2"), ("b", "4"), ("b", "5"))
    extra, rest = set_apart(some)
    assert not {s.group for s in extra} & {s.group for s in rest}
    assert {s.defect for s in extra} == {s.defect for s in rest} == {"a", "b"} and len(extra) + len(rest) == len(some)
    with pytest.raises(DataError, match="b: too few held-out groups for the controls"):
        set_apart(samples(("a", "1"), ("a", "2"), ("b", "3")))


def test_a_made_sample_is_what_was_made() -> None:
    image = np.ones((4, 4, 3), np.uint8)
    sample = made_sample("one", "a", image, None)
    assert sample.read() == (image, None) and sample.defect == "a"
