"""A matched mask lies where the image looks as the shot does around its defect, whole, on the object, and knows where it is from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.transplant import transplant
from anomalydiffusion.masks.matched import MatchedConfig, propose

EXACT = MatchedConfig(places=1, scale=(1.0, 1.0), elastic=0.0)
SHAPE = (120, 160)


def clouds(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A surface of which no two places are alike."""
    soft = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 4)
    return np.repeat((120 + 30 * soft / soft.std())[..., None], 3, 2).clip(0, 255).astype(np.uint8)


def marked(region: tuple[slice, slice], shape: tuple[int, int] = SHAPE) -> Mask:
    pixels = np.zeros(shape, bool)
    pixels[region] = True
    return Mask(pixels_HW=pixels, origin="real")


def tracks(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Dark bars of another width and place for each seed on bright ground."""
    random, image = np.random.default_rng(seed), np.full((*shape, 3), 220, np.uint8)
    for left in range(10, shape[1] - 20, 40):
        start = left + int(random.integers(0, 12))
        image[:, start : start + int(random.integers(8, 14))] = 30
    return image


def test_on_the_shot_s_own_surface_it_is_put_where_it_was() -> None:
    own = marked(np.s_[50:62, 90:101])
    shot = clouds()
    shot[own.pixels_HW] = 255
    mask, misfit = propose(shot, own, clouds(), seed=3, config=EXACT, reference=5)
    assert np.array_equal(mask.pixels_HW, own.pixels_HW) and misfit < 1e-3
    assert mask.reference == 5 and mask.origin == "matched"
    assert mask.trace is not None and np.array_equal(mask.trace, np.argwhere(own.pixels_HW).T)


@pytest.mark.parametrize("seed", range(6))
def test_a_break_of_a_track_goes_to_a_track(seed: int) -> None:
    """The break spans the bar it is in: on every other picture its mask spans a bar too, as far as widths allow."""
    shot = tracks(100)
    bar = np.flatnonzero(shot[0, :, 0] < 100)
    first = bar[: int(np.flatnonzero(np.diff(bar, append=1000) > 1)[0]) + 1]
    own = marked(np.s_[70:78, first[0] : first[-1] + 1])
    shot[own.pixels_HW] = 220
    normal = tracks(seed)
    mask, _ = propose(shot, own, normal, seed=seed)
    assert (normal[mask.pixels_HW] < 100).mean() > 0.55, "it lies on dark bars, which are a quarter of the picture"
    assert (normal[..., 0] < 100).mean() < 0.35


def test_what_hardly_occurs_is_not_put_where_there_is_nothing_like_it() -> None:
    """One place on the picture is like the break's; the four next best are plain ground, of which most of its surroundings are too."""
    shot, normal = (np.full((*SHAPE, 3), 220, np.uint8) for _ in range(2))
    shot[:, 40:46] = normal[:, 100:106] = 30
    normal[0:24, 100:106] = normal[44:, 100:106] = 220  # the bar is short: the break fits it in one place
    shot[0:24, 40:46] = shot[44:, 40:46] = 220
    own = marked(np.s_[30:38, 38:48])
    shot[own.pixels_HW] = 220
    for seed in range(8):
        mask, misfit = propose(shot, own, normal, seed=seed, config=MatchedConfig(scale=(1.0, 1.0), elastic=0.0))
        assert np.array_equal(mask.pixels_HW, np.roll(own.pixels_HW, 60, 1)) and misfit < 0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), turn=st.booleans(), flip=st.booleans())
def test_it_is_a_function_of_its_seed_whole_and_traced(seed: int, turn: bool, flip: bool) -> None:
    own = marked(np.s_[30:42, 60:90])
    shot = tracks(7)
    shot[own.pixels_HW] = 128
    normal, config = tracks(8), MatchedConfig(turn=turn, flip=flip)
    (mask, misfit), (again, _) = (propose(shot, own, normal, seed=seed, config=config) for _ in range(2))
    assert np.array_equal(mask.pixels_HW, again.pixels_HW) and misfit >= 0
    assert 0.7**2 * own.pixels_HW.sum() < mask.pixels_HW.sum() < 1.3**2 * own.pixels_HW.sum()
    assert mask.trace is not None and mask.trace.shape == (2, mask.pixels_HW.sum())
    laid, _ = transplant(normal, replace(mask, reference=0), [(shot, own)], seed=0, seam="median")
    assert np.ptp(laid[mask.pixels_HW].astype(int)) <= 2, "every marked pixel shows the defect, which is of one grey"
    (y, x), at = np.argwhere(mask.pixels_HW).T, np.rint(mask.trace).astype(int)
    assert own.pixels_HW[tuple(at)].all()
    tall = (y.max() - y.min()) > (x.max() - x.min())
    assert turn or not tall


@pytest.mark.parametrize("region, sides", [(np.s_[0:10, 60:80], "top"), (np.s_[110:120, 60:80], "bottom"), (np.s_[40:60, 0:9], "left")])
def test_what_touches_a_side_touches_it_or_its_mirror_again(region: tuple[slice, slice], sides: str) -> None:
    own = marked(region)
    for seed in range(8):
        mask, _ = propose(tracks(1), own, tracks(seed + 2, (150, 201)), seed=seed)
        x0, y0, x1, y1 = mask.box
        touched = {"top": y0 == 0, "bottom": y1 == 150, "left": x0 == 0, "right": x1 == 201}
        mirrored = {"top": "bottom", "bottom": "top", "left": "right"}[sides]
        assert touched[sides] or touched[mirrored]
        assert sum(touched.values()) == 1


def test_what_reaches_from_side_to_side_does_so_again() -> None:
    mask, _ = propose(tracks(1), marked(np.s_[40:60, :]), tracks(2, (90, 233)), seed=0)
    x0, y0, x1, y1 = mask.box
    assert (x0, x1) == (0, 233) and 0 < y0 < y1 < 90


def test_it_keeps_to_the_object() -> None:
    own, ground = marked(np.s_[30:50, 60:80]), np.zeros(SHAPE, bool)
    ground[60:, :80] = True
    for seed in range(8):
        mask, _ = propose(tracks(1), own, tracks(2), seed=seed, ground_HW=ground)
        assert ground[mask.pixels_HW].all()


def test_what_little_lies_off_the_object_is_cut_off() -> None:
    own, ground = marked(np.s_[20:70, 60:120]), np.ones(SHAPE, bool)
    ground[::10, ::10] = False  # a hundredth of it, wherever the mask is put
    mask, _ = propose(tracks(1), own, tracks(2), seed=0, ground_HW=ground, config=MatchedConfig(elastic=0.0))
    assert ground[mask.pixels_HW].all() and mask.trace is not None and mask.trace.shape[1] == mask.pixels_HW.sum()


def test_no_bend_leaves_the_object() -> None:
    own, ground = marked(np.s_[30:50, 60:80]), np.zeros(SHAPE, bool)
    ground[20:42, 30:53] = True  # room for the defect and hardly more
    wild = MatchedConfig(scale=(1.0, 1.0), elastic=0.3)
    shapes = set()
    for seed in range(24):
        mask, _ = propose(tracks(1), own, tracks(2), seed=seed, ground_HW=ground, config=wild)
        assert ground[mask.pixels_HW].all()
        shapes.add(int(mask.pixels_HW.sum()))
    assert own.pixels_HW.sum() in shapes and len(shapes) > 1, "some would have left it, and some are bent"


def test_what_lies_partly_off_its_own_object_does_so_again_only_where_it_must() -> None:
    own, half, rim = marked(np.s_[30:50, 60:80]), np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    half[:40], rim[:20] = True, True
    mask, _ = propose(tracks(1), own, tracks(2), seed=0, ground_HW=half, own_ground_HW=half)
    assert half[mask.pixels_HW].all()
    own_ground = np.zeros(SHAPE, bool)
    own_ground[40:, 70:] = True  # a quarter of the defect
    mask, _ = propose(tracks(1), own, tracks(2), seed=0, ground_HW=rim, own_ground_HW=own_ground)
    assert 0.2 < rim[mask.pixels_HW].mean() < 0.98
    with pytest.raises(MaskError, match="no place"):
        propose(tracks(1), own, tracks(2), seed=0, ground_HW=rim)


def test_it_is_bent_within_the_defect_alone_and_knows_how() -> None:
    own = marked(np.s_[50:74, 90:101])
    shot = clouds()
    shot[own.pixels_HW] = 255
    bent, shapes = replace(EXACT, elastic=0.15, flip=False), set()
    for seed in range(6):
        mask, misfit = propose(shot, own, clouds(), seed=seed, config=bent)
        assert misfit < 1e-3 and mask.trace is not None, "where it lies is told by what surrounds it as it is"
        assert ndimage.binary_dilation(own.pixels_HW, iterations=5)[mask.pixels_HW].all() and (mask.pixels_HW & own.pixels_HW).sum() > 150
        assert own.pixels_HW[tuple(np.rint(mask.trace).astype(int))].all(), "what is marked was marked in the shot"
        shapes.add(mask.pixels_HW.tobytes())
    assert len(shapes) == 6
    with pytest.raises(ConfigError, match="elastic"):
        MatchedConfig(elastic=0.5)


def test_in_a_large_image_the_place_is_exact_too() -> None:
    shape = (900, 1300)
    random = np.random.default_rng(0)
    normal = np.repeat(random.integers(0, 255, (90, 130), np.uint8).repeat(10, 0).repeat(10, 1)[..., None], 3, 2)
    own = marked(np.s_[433:470, 711:760], shape)
    shot = normal.copy()
    shot[own.pixels_HW] = 255
    mask, misfit = propose(shot, own, normal, seed=0, config=EXACT)
    assert np.array_equal(mask.pixels_HW, own.pixels_HW) and misfit < 1e-3


def test_where_no_place_is_it_says_so() -> None:
    with pytest.raises(MaskError, match="no place of this 40 x 30 image"):
        propose(tracks(1), marked(np.s_[20:90, 20:90]), tracks(2, (30, 40)), seed=0)
    with pytest.raises(MaskError, match="no place"):
        propose(tracks(1), marked(np.s_[20:30, 20:30]), tracks(2), seed=0, ground_HW=np.zeros(SHAPE, bool))
    with pytest.raises(MaskError, match="matched masks: mask"):
        propose(tracks(1), marked(np.s_[20:30, 20:30], (50, 50)), tracks(2), seed=0)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"images": 9}, {"places": 0}, {"scale": (1.2, 0.8)}, {"scale": (0.01, 1.0)}])
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="matched masks"):
        MatchedConfig(**wrong)


@pytest.mark.parametrize("seed", range(8))
def test_a_defect_that_would_be_cut_off_is_put_smaller(seed: int) -> None:
    rows, columns = np.ogrid[:256, :256]
    disc = Mask(pixels_HW=np.hypot(rows - 127.5, columns - 127.5) < 118, origin="real")
    shot = clouds((256, 256))
    marks = propose(shot, disc, clouds((256, 256)), seed=seed, config=MatchedConfig(elastic=0.0))[0].pixels_HW
    assert not any(side.sum() > 40 for side in (marks[0], marks[-1], marks[:, 0], marks[:, -1]))
    assert abs(np.ptp(np.flatnonzero(marks.any(1))) - np.ptp(np.flatnonzero(marks.any(0)))) <= 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("end", [0, -1])
def test_one_at_the_rim_that_does_not_fit_is_cut_off_at_its_other_end(axis: int, end: int) -> None:
    marks = np.zeros((100, 100), bool)
    marks[10:, 40:60] = True
    marks = marks if end else marks[::-1]
    own = Mask(pixels_HW=np.ascontiguousarray(marks if axis == 0 else marks.T), origin="real")
    shape = (60, 100) if axis == 0 else (100, 60)
    config = MatchedConfig(flip=False, elastic=0.0, scale=(1.0, 1.0))
    mask = propose(clouds((100, 100)), own, clouds(shape), seed=0, config=config)[0]
    assert round(mask.trace[axis].max()) == 99 if end else round(mask.trace[axis].min()) == 0
    assert np.take(mask.pixels_HW, end, axis).any()
