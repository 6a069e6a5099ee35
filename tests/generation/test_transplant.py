"""A real defect, carried under another mask, keeps what it looks like and how it stands out."""

from dataclasses import replace
from itertools import product as combined

import numpy as np
import pytest

from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.transplant import Seam, seen_through, transplant
from anomalydiffusion.masks.warped import WarpedConfig, propose


def _mask(size: tuple[int, int], *where: tuple[slice, slice]) -> Mask:
    pixels = np.zeros(size, bool)
    for part in where:
        pixels[part] = True
    return Mask(pixels_HW=pixels, origin="test")


def _flat(size: tuple[int, int], level: int) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_the_same_mask_gives_the_shots_own_pixels_mirrored_or_not() -> None:
    shot, mask = _flat((60, 80), 100), _mask((60, 80), np.s_[20:30, 30:55])
    shot[20:30, 30:55] = np.random.default_rng(0).integers(20, 90, (10, 25, 3))
    normal = _flat((60, 80), 100)
    found = set()
    for seed in range(12):
        out, which = transplant(normal, mask, [(shot, mask)], seed=seed)
        assert which == 0 and (out[~mask.pixels_HW] == normal[~mask.pixels_HW]).all()
        inside, own = out[20:30, 30:55].astype(int), shot[20:30, 30:55].astype(int)
        mirrored = [own[::down, ::across] for down in (1, -1) for across in (1, -1)]
        fits = [number for number, each in enumerate(mirrored) if np.abs(inside - each).max() <= 1]
        assert fits, "neither the shot nor a mirror image of it"
        found.update(fits)
        assert (out == transplant(normal, mask, [(shot, mask)], seed=seed)[0]).all()
    assert len(found) > 1


def test_a_defect_stands_out_from_its_surroundings_as_it_did() -> None:
    shot, own = _flat((60, 80), 150), _mask((60, 80), np.s_[20:30, 30:40])
    shot[own.pixels_HW] = (110, 120, 130)
    normal, mask = _flat((90, 90), 70), _mask((90, 90), np.s_[50:62, 10:25])
    out, _ = transplant(normal, mask, [(shot, own)], seed=1)
    assert (out[mask.pixels_HW] == (30, 40, 50)).all()


@pytest.mark.parametrize("seam", ["membrane", "median"])
@pytest.mark.parametrize("where", [np.s_[3:4, 20:80], np.s_[110:111, 40:44], np.s_[60:61, 60:61], np.s_[20:90, 7:8]])
def test_a_line_or_a_spot_of_a_pixel_stands_out_as_it_did_too(where: tuple[slice, slice], seam: Seam) -> None:
    shot, own = _flat((200, 120), 150), _mask((200, 120), np.s_[100:101, 30:90])
    shot[:80] = 60  # another surface, 20 pixels from the defect
    shot[own.pixels_HW] = 110
    normal, mask = _flat((120, 120), 90), _mask((120, 120), where)
    out, _ = transplant(normal, mask, [(shot, own)], seed=1, seam=seam)
    assert (np.abs(out[mask.pixels_HW].astype(int) - 50) <= 2).all(), "forty grey levels darker, as in the shot"


@pytest.mark.parametrize("turn", [False, True])
def test_a_longer_mask_stretches_the_defect_and_is_filled(turn: bool) -> None:
    shot, own = _flat((40, 90), 100), _mask((40, 90), np.s_[18:22, 30:60])
    shot[18:22, 30:45], shot[18:22, 45:60] = 40, 60
    mask = _mask((120, 120), np.s_[10:110, 50:58] if turn else np.s_[50:58, 10:110])
    out, _ = transplant(_flat((120, 120), 100), mask, [(shot, own)], seed=0)
    along = out[..., 0].T if turn else out[..., 0]
    ends = {int(along[54, 20]), int(along[54, 100])}
    assert ends == {40, 60}
    assert along[50:58, 10:110].max() <= 60, "nothing of the shot's surroundings comes along"


def test_beyond_the_shots_shape_its_nearest_pixel_goes_on() -> None:
    shot, own = _flat((60, 60), 100), _mask((60, 60), np.s_[20:40, 28:32], np.s_[28:32, 20:40])
    shot[own.pixels_HW] = 30
    mask = _mask((60, 60), np.s_[15:45, 15:45])
    out, _ = transplant(_flat((60, 60), 100), mask, [(shot, own)], seed=0)
    assert (out[mask.pixels_HW] == 30).all()


def test_crumbs_at_the_edge_of_a_gap_are_not_drawn_out_into_rays() -> None:
    shot, own = _flat((90, 90), 160), _mask((90, 90), np.s_[20:70, 35:55], np.s_[35:55, 20:70])
    shot[own.pixels_HW] = 30
    shot[22:34:4, 35] = 160  # along one edge of an arm
    mask = _mask((90, 90), np.s_[20:70, 20:70])
    drawn, mirrored = (
        (transplant(_flat((90, 90), 160), mask, [(shot, own)], seed=0, through=[given])[0][mask.pixels_HW] > 95).all(1).sum()
        for given in (False, True)
    )
    assert drawn > 12, "each a ray"
    assert 1 <= mirrored <= 6, "each itself, smoothed where lengths differ"


def test_a_gap_beyond_whose_box_the_mask_reaches_is_filled_with_what_it_shows() -> None:
    rng = np.random.default_rng(0)
    shot, own = _flat((90, 90), 160), _mask((90, 90), np.s_[30:60, 40:50])
    shot[own.pixels_HW] = rng.integers(10, 50, (300, 3))
    wide = _mask((90, 90), np.s_[30:60, 25:65])
    mask = replace(wide, reference=0, trace=np.argwhere(wide.pixels_HW).T.astype(np.float64))
    drawn, mirrored = (transplant(_flat((90, 90), 160), mask, [(shot, own)], seed=0, through=[given])[0] for given in (False, True))
    assert (drawn[30:60, 25:40] == drawn[30:60, 25:26]).all(), "one column of pixels, over and over"
    assert np.ptp(mirrored[30:60, 25:40], axis=1).mean() > 15, "grain as the gap has it"


def test_the_shot_of_the_nearest_shape_is_taken() -> None:
    size = (100, 100)
    thin, round_ = _mask(size, np.s_[10:90, 50:53]), _mask(size, np.s_[40:60, 40:60])
    shots = [(_flat(size, 10), thin), (_flat(size, 20), round_)]
    for seed in range(5):
        assert transplant(_flat(size, 100), _mask(size, np.s_[48:51, 15:80]), shots, seed=seed)[1] == 0
        assert transplant(_flat(size, 100), _mask(size, np.s_[30:55, 30:52]), shots, seed=seed)[1] == 1


def test_one_pixel_and_the_whole_image_are_filled() -> None:
    size = (30, 40)
    dot, whole = _mask(size, np.s_[3:4, 3:4]), _mask(size, np.s_[:, :])
    shot = _flat(size, 100)
    shot[3, 3] = 10
    for (mask, own), seam in combined(((dot, dot), (whole, dot), (dot, whole)), ("median", "membrane")):
        out, _ = transplant(_flat(size, 100), mask, [(shot, own)], seed=0, seam=seam)
        assert out.shape == (*size, 3) and (out[~mask.pixels_HW] == 100).all()


def _coded(height: int, width: int) -> np.ndarray:
    """Each pixel says where it is: row and column as red and green."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 90)], 2).astype(np.uint8)


def test_a_defect_is_warped_like_its_mask() -> None:
    image, pixels = _coded(100, 120), np.zeros((100, 120), bool)
    pixels[40:52, 30:70] = pixels[52:70, 30:40] = True  # an L, like none of its mirror images
    shots = [(np.zeros_like(image), Mask(pixels_HW=np.roll(pixels, 3, 0), origin="real")), (image, Mask(pixels_HW=pixels, origin="real"))]
    normal = np.full((160, 180, 3), 90, np.uint8)
    for seed in range(12):
        even = WarpedConfig(thickness=0, carry=True)
        mask = propose([own for _, own in shots], normal, seed=seed, config=even, foreground_HW=np.ones((160, 180), bool))
        assert mask.trace is not None and mask.trace.shape == (2, mask.pixels_HW.sum())
        rows, columns = np.clip(np.round(mask.trace).astype(int), 0, [[99], [119]])
        assert shots[mask.reference][1].pixels_HW[rows, columns].mean() > 0.8, "the marked pixels were marked there too"
        if mask.reference == 0:
            continue
        made, number = transplant(normal, mask, shots, seed=seed, seam="median")
        assert number == 1 and (made[~mask.pixels_HW] == 90).all()
        shift = made[mask.pixels_HW].astype(float) - np.stack([*mask.trace, np.full(len(rows), 90)], 1)
        spread = np.abs(shift - np.median(shift, axis=0))
        assert np.median(spread) < 1.5, "but for the colours' common shift each pixel is what it was there"


def test_without_any_change_the_defect_is_the_shots_own() -> None:
    random = np.random.default_rng(0)
    image, pixels = random.integers(60, 200, (100, 120, 3), dtype=np.uint8), np.zeros((100, 120), bool)
    pixels[40:52, 30:70] = pixels[52:70, 30:40] = True
    shots = [(image, Mask(pixels_HW=pixels, origin="real"))]
    still = WarpedConfig(rotation=0, scale=(1.0, 1.0), elastic=0, thickness=0, flip=False, carry=True)
    mask = propose([shots[0][1]], image, seed=3, config=still, foreground_HW=np.ones((100, 120), bool))
    assert mask.trace is not None and mask.pixels_HW.sum() == pixels.sum()
    made, _ = transplant(image, mask, shots, seed=0, seam="median")
    moved = np.argwhere(mask.pixels_HW).T - mask.trace
    assert np.ptp(moved, axis=1).max() < 1e-3, "every pixel moved alike"
    shift = made[mask.pixels_HW].astype(int) - image[pixels]
    assert np.abs(shift - np.median(shift, axis=0)).mean() < 20, "half a pixel of interpolation at most"
    fitted = propose([shots[0][1]], image, seed=3, config=replace(still, carry=False), foreground_HW=np.ones((100, 120), bool))
    assert fitted.trace is None and (fitted.pixels_HW == mask.pixels_HW).all()


def test_without_a_word_on_it_gaps_alone_keep_to_their_outline_and_to_the_rim() -> None:
    pixels = np.zeros((100, 120), bool)
    pixels[40:52, 30:70] = pixels[52:70, 30:40] = True
    masks = [Mask(pixels_HW=np.roll(pixels, down, 0), origin="real") for down in (0, 3)]
    normal = np.full((160, 180, 3), 90, np.uint8)

    def drawn(which: int, through: list[bool] | None, config: WarpedConfig) -> Mask:
        return propose(masks, normal, seed=5, config=config, foreground_HW=np.ones((160, 180), bool), first=which, through=through)

    gap, told = drawn(0, [True, False], WarpedConfig()), drawn(0, None, WarpedConfig(carry=True, place="near", elastic=0.02))
    assert gap.trace is not None and told.trace is not None and gap.reference == told.reference == 0
    assert (gap.pixels_HW == told.pixels_HW).all() and (gap.trace == told.trace).all()
    mixed = WarpedConfig(place="mixed")
    for which, through, config in (
        (1, [True, False], WarpedConfig()),
        (0, None, WarpedConfig()),
        (0, [True, True], WarpedConfig(carry=False)),
    ):
        plain, other = drawn(which, through, config), drawn(which, None, mixed)
        assert plain.trace is None and (plain.pixels_HW == other.pixels_HW).all()
    assert drawn(0, [True, True], WarpedConfig(place="anywhere")).trace is not None
    asked = drawn(0, [True, False], WarpedConfig(carry=True))
    assert (asked.pixels_HW == gap.pixels_HW).all() and drawn(1, [True, False], WarpedConfig(carry=True)).trace is not None


def _plane(height: int, width: int, down: float, across: float, level: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.repeat((level + down * y + across * x)[..., None], 3, axis=2)


@pytest.mark.parametrize("carry", [False, True])
def test_with_a_membrane_light_that_crosses_the_edge_goes_on_across_it(carry: bool) -> None:
    size = 120, 140
    own = _mask(size, np.s_[50:62, 40:80])
    shot = _plane(*size, 0.4, 0.0, 80)
    shot[own.pixels_HW] -= 30  # a dent, under light that falls from below
    normal = _plane(*size, 0.0, -0.5, 170)
    shots, image = [(np.rint(shot).astype(np.uint8), own)], np.rint(normal).astype(np.uint8)
    for seed in range(4):
        mask = _mask(size, np.s_[30:42, 60:100])
        if carry:
            mask = propose([own], image, seed=seed, config=WarpedConfig(carry=True), foreground_HW=np.ones(size, bool))
        made, _ = transplant(image, mask, shots, seed=seed)
        assert (made[~mask.pixels_HW] == image[~mask.pixels_HW]).all()
        depth = made[mask.pixels_HW].astype(float) - normal[mask.pixels_HW]
        assert np.abs(depth + 30).max() < 5, "the dent is as deep everywhere, whatever the light"
        plain, _ = transplant(image, mask, shots, seed=seed, seam="median")
        assert np.abs(plain[mask.pixels_HW].astype(float) - normal[mask.pixels_HW] + 30).max() > 5


def test_with_the_median_a_track_that_does_not_quite_meet_leaves_the_colours_alone() -> None:
    """Half of the surroundings are a dark track, half bright ground; the place is off by two pixels, so that the halves do not agree."""
    size = 80, 90
    shot, normal = (np.full((*size, 3), 240, np.uint8) for _ in range(2))
    shot[:, 10:47] = 10
    normal[:, 10:45] = 10
    own = _mask(size, np.s_[30:44, 40:52])
    shot[own.pixels_HW] = 120  # rust, half on the track and half beside it
    traced = replace(own, trace=np.argwhere(own.pixels_HW).T.astype(float), reference=0)
    made, _ = transplant(normal, traced, [(shot, own)], seed=0, seam="median")
    assert np.abs(made[own.pixels_HW].astype(int) - 120).max() <= 1


def _plate(shade: float) -> np.ndarray:
    """A round plate under light that falls from one side, on a dark table."""
    y, x = np.mgrid[:200, :240]
    image = np.repeat((150 + shade * (x - 120))[..., None], 3, axis=2)
    image[np.hypot(y - 100, x - 120) > 80] = 30
    return np.rint(image).astype(np.uint8)


def test_the_background_is_seen_through_a_break_and_not_through_a_stain() -> None:
    broken, stained = _plate(0.0), _plate(0.0)
    gap, stain = _mask((200, 240), np.s_[90:110, 90:240]), _mask((200, 240), np.s_[90:110, 100:150])
    broken[90:110, 90:240], stained[stain.pixels_HW] = 30, 90
    assert seen_through([(broken, gap), (stained, stain)]) == [True, False]
    assert seen_through([(broken, gap), (stained, stain), (broken, gap)]) == [True] * 3, "what most of a type are, all are"


def test_over_what_is_seen_through_a_defect_the_object_s_shade_is_not_spread() -> None:
    broken, normal, gap = _plate(0.0), _plate(0.4), _mask((200, 240), np.s_[90:110, 90:240])
    broken[gap.pixels_HW] = 30
    mask = _mask((200, 240), np.s_[70:90, 80:160])
    plain, through = (transplant(normal, mask, [(broken, gap)], seed=0, through=given)[0] for given in (None, [True]))
    assert np.ptp(through[mask.pixels_HW]) <= 2 < 10 < np.ptp(plain[mask.pixels_HW])
