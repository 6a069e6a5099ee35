from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.shapes import border_shares
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks.geometry import accept
from anomalydiffusion.masks.warped import WarpedConfig, area_range, propose

SURFACE = np.full((160, 200, 3), 120, dtype=np.uint8)
EVERYTHING = np.ones((160, 200), dtype=bool)
NEAR = WarpedConfig(place="near", rotation=25.0)
SIDES = ("top", "bottom", "left", "right")


def draw(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Mask:
    pixels = np.zeros(shape, dtype=bool)
    for y0, y1, x0, x1 in boxes:
        pixels[y0:y1, x0:x1] = True
    return Mask(pixels_HW=pixels, origin="real")


def disk(shape: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - center[0], x - center[1]) <= radius


def parts(pixels: np.ndarray) -> int:
    return int(ndimage.label(pixels, np.ones((3, 3)))[1])


def touched(mask: Mask) -> set[str]:
    return {side for side, share in border_shares(mask.pixels_HW).items() if share > 0}


BLOB = Mask(pixels_HW=disk((160, 200), (80, 70), 9), origin="real")
CHIP = Mask(pixels_HW=disk((160, 200), (0, 60), 14), origin="real")  # at the top side


def test_same_seed_same_mask_other_seed_other_mask() -> None:
    first, again, other = (propose([BLOB, CHIP], SURFACE, seed=seed, foreground_HW=EVERYTHING) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels_HW, again.pixels_HW)
    assert not np.array_equal(first.pixels_HW, other.pixels_HW)
    assert (first.origin, first.seed) == ("warped", 5)
    assert len({propose([BLOB], SURFACE, seed=seed, foreground_HW=EVERYTHING).box for seed in range(20)}) > 15


def test_references_and_images_stay_as_they_were() -> None:
    before, image = BLOB.pixels_HW.copy(), SURFACE.copy()
    propose([BLOB], image, seed=0)
    assert np.array_equal(before, BLOB.pixels_HW)
    assert np.array_equal(image, SURFACE)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**62), height=st.integers(24, 200), width=st.integers(24, 200),
    box=st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 40), st.integers(1, 40)),
    config=st.builds(
        WarpedConfig, rotation=st.floats(0, 180), elastic=st.floats(0, 0.15), thickness=st.floats(0, 0.5),
        flip=st.booleans(), place=st.sampled_from(["near", "anywhere", "mixed"]),
    ),
)  # fmt: skip
def test_any_reference_gives_an_acceptable_mask(
    seed: int, height: int, width: int, box: tuple[int, int, int, int], config: WarpedConfig
) -> None:
    reference = draw((100, 100), (box[0], box[0] + box[2], box[1], box[1] + box[3]))
    everything = np.ones((height, width), dtype=bool)
    mask = propose([reference], np.zeros((height, width, 3), np.uint8), seed=seed, config=config, foreground_HW=everything)
    assert mask.pixels_HW.shape == (height, width)
    assert accept(mask, foreground_HW=everything, max_border=1) is None
    if config.place == "anywhere":
        assert not touched(mask)


def test_masks_lie_on_the_object() -> None:
    ground = disk((160, 200), (70, 120), 45)
    for seed in range(30):
        pixels = propose([BLOB], SURFACE, seed=seed, foreground_HW=ground).pixels_HW
        assert not (pixels & ~ground).any()
    found = np.full((160, 200, 3), 30, dtype=np.uint8)
    found[ground] = 200
    middle = [np.argwhere(propose([BLOB], found, seed=seed).pixels_HW).mean(0) for seed in range(10)]
    assert all(np.hypot(y - 70, x - 120) < 45 for y, x in middle)


def test_interior_masks_stay_inside() -> None:
    assert all(not touched(propose([BLOB], SURFACE, seed=seed, foreground_HW=EVERYTHING)) for seed in range(40))


@pytest.mark.parametrize("side", SIDES)
def test_rim_masks_stay_on_their_rim(side: str) -> None:
    turned = {"top": CHIP.pixels_HW, "bottom": CHIP.pixels_HW[::-1], "left": CHIP.pixels_HW.T, "right": CHIP.pixels_HW.T[:, ::-1]}
    reference = Mask(pixels_HW=np.ascontiguousarray(turned[side]), origin="real")
    fixed = [propose([reference], SURFACE, seed=seed, config=replace(NEAR, flip=False), foreground_HW=EVERYTHING) for seed in range(12)]
    assert all(touched(mask) == {side} for mask in fixed)
    assert len({mask.box for mask in fixed}) > 8
    opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}[side]
    flipped = [touched(propose([reference], SURFACE, seed=seed, config=NEAR, foreground_HW=EVERYTHING)) for seed in range(12)]
    assert all(sides in ({side}, {opposite}) for sides in flipped)
    assert {side} in flipped and {opposite} in flipped


def test_half_of_the_mixed_masks_keep_to_their_rim_and_what_lies_inside_turns_freely() -> None:
    many = [propose([CHIP], SURFACE, seed=seed, config=WarpedConfig(place="mixed"), foreground_HW=EVERYTHING) for seed in range(60)]
    assert 18 <= sum(bool(touched(mask)) for mask in many) <= 42
    bar = draw((160, 200), (75, 85, 60, 120))
    turned = [propose([bar], SURFACE, seed=seed, config=WarpedConfig(place="near"), foreground_HW=EVERYTHING).box for seed in range(20)]
    assert any(y1 - y0 > x1 - x0 for x0, y0, x1, y1 in turned) and any(y1 - y0 < x1 - x0 for x0, y0, x1, y1 in turned)
    rim = [propose([CHIP], SURFACE, seed=seed, config=replace(NEAR, rotation=180.0), foreground_HW=EVERYTHING) for seed in range(20)]
    mild = [propose([CHIP], SURFACE, seed=seed, config=NEAR, foreground_HW=EVERYTHING) for seed in range(20)]
    assert [mask.box for mask in rim] == [mask.box for mask in mild]  # a chip at a rim keeps about its direction, whatever others may


def test_a_region_that_leaves_the_picture_stays_large() -> None:
    reference = draw((160, 200), (0, 60, 0, 200))
    kept, free = (
        [propose([reference], SURFACE, seed=seed, config=WarpedConfig(place=place), foreground_HW=EVERYTHING).area for seed in range(20)]
        for place in ("near", "anywhere")
    )
    assert np.median(kept) == reference.area > 1.15 * np.median(free)


def test_corners_stay_corners_and_bands_stay_bands() -> None:
    corner, band = draw((100, 100), (0, 20, 80, 100)), draw((100, 100), (40, 50, 0, 100))
    config = replace(NEAR, flip=False)
    for seed in range(10):
        assert touched(propose([corner], SURFACE, seed=seed, config=config, foreground_HW=EVERYTHING)) == {"top", "right"}
        mask = propose([band], SURFACE, seed=seed, config=config, foreground_HW=EVERYTHING)
        assert touched(mask) == {"left", "right"}
        assert mask.pixels_HW.any(0).all() and parts(mask.pixels_HW) == 1


def test_a_small_gap_to_the_side_stays_small() -> None:
    near = draw((160, 200), (60, 100, 190, 195))
    for seed in range(12):
        x0, _, x1, _ = propose([near], SURFACE, seed=seed, config=replace(NEAR, flip=False), foreground_HW=EVERYTHING).box
        assert 188 < x1 < 200 and x0 > 165


def test_rim_follows_the_object_when_the_references_show_theirs() -> None:
    object_there, object_here = disk((160, 200), (80, 100), 60), disk((160, 200), (75, 110), 50)
    notch = disk((160, 200), (20, 100), 14) & object_there  # at the top of a round object
    reference = Mask(pixels_HW=notch, origin="real")
    angles = []
    for seed in range(25):
        pixels = propose(
            [reference], SURFACE, seed=seed, config=NEAR, foreground_HW=object_here, reference_foregrounds=[object_there & ~notch]
        ).pixels_HW
        assert not (pixels & ~object_here).any()
        assert (ndimage.binary_dilation(pixels, np.ones((3, 3))) & ~object_here).any()
        y, x = np.argwhere(pixels).mean(0)
        angles.append(np.arctan2(y - 75, x - 110))
    assert len({int(a // (np.pi / 2)) for a in angles}) == 4  # all around


def test_area_stays_in_the_range_of_the_references() -> None:
    references = [Mask(pixels_HW=disk((160, 200), (80, 100), radius), origin="real") for radius in (5, 8, 12)]
    low, high = area_range(references)
    assert (low, high) == (disk((160, 200), (80, 100), 5).sum(), disk((160, 200), (80, 100), 12).sum())
    areas = np.array([propose(references, SURFACE, seed=seed, foreground_HW=EVERYTHING).pixels_HW.sum() for seed in range(60)])
    assert areas.min() >= 0.9 * low and areas.max() <= 1.1 * high + 4
    assert areas.max() > 3 * areas.min()
    assert len(set(areas)) > 30


@pytest.mark.parametrize("width", [1, 2])
def test_a_thin_crack_stays_thin_and_whole(width: int) -> None:
    crack = draw((160, 200), (20, 110, 90, 90 + width))
    for seed in range(30):
        pixels = propose([crack], SURFACE, seed=seed, foreground_HW=EVERYTHING).pixels_HW
        assert parts(pixels) == 1
        assert ndimage.distance_transform_edt(np.pad(pixels, 1)).max() <= width / 2 + 1.5
        y, x = np.argwhere(pixels).T
        assert np.hypot(np.ptp(y), np.ptp(x)) > 45


def test_one_pixel_is_enough_of_a_reference() -> None:
    for seed in range(10):
        mask = propose([draw((50, 50), (20, 21, 30, 31))], SURFACE, seed=seed, foreground_HW=EVERYTHING)
        assert 4 <= mask.pixels_HW.sum() <= 9 and parts(mask.pixels_HW) == 1


def test_tall_narrow_images_and_large_references() -> None:
    narrow = np.zeros((400, 24, 3), dtype=np.uint8)
    for reference in (BLOB, CHIP, draw((300, 600), (100, 250, 50, 500)), draw((300, 600), (100, 104, 50, 500))):
        for seed in range(5):
            mask = propose([reference], narrow, seed=seed)
            assert accept(mask, max_border=1) is None
            assert mask.pixels_HW.shape == (400, 24)


def test_several_parts_do_not_become_more() -> None:
    two = draw((160, 200), (40, 52, 40, 60), (60, 66, 40, 48))
    counts = {parts(propose([two], SURFACE, seed=seed, foreground_HW=EVERYTHING).pixels_HW) for seed in range(20)}
    assert counts <= {1, 2} and 2 in counts


def test_errors_are_one_line_and_say_what_to_do() -> None:
    with pytest.raises(MaskError, match="at least one reference"):
        propose([], SURFACE, seed=0)
    with pytest.raises(MaskError, match="1 references, but 2 foregrounds"):
        propose([BLOB], SURFACE, seed=0, reference_foregrounds=[None, None])
    with pytest.raises(MaskError, match="1 references, but 2 words on whether they are gaps"):
        propose([BLOB], SURFACE, seed=0, through=[True, True])
    for ground in (np.zeros((160, 200), dtype=bool), np.ones((10, 10), dtype=bool)):
        with pytest.raises(MaskError, match="not empty"):
            propose([BLOB], SURFACE, seed=0, foreground_HW=ground)
    speckle = np.zeros((160, 200), dtype=bool)
    speckle[::3, ::3] = True
    with pytest.raises(MaskError, match=r"no warped mask fits this 200 x 160 image: \d+ of 60 tries .* check the image") as caught:
        propose([BLOB], SURFACE, seed=0, foreground_HW=speckle)
    assert "lies off the object" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [{"rotation": -1}, {"rotation": float("nan")}, {"elastic": 0.5}, {"thickness": 1.0}, {"tries": 0}, {"scale": (1.2, 1.4)},
     {"scale": (0, 1)}, {"place": "rim"}],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        WarpedConfig(**bad)  # type: ignore[arg-type]


def test_sixty_megapixels_work() -> None:
    shape = (7750, 7750)
    reference, normal = draw(shape, (3000, 3300, 4000, 4020)), np.zeros((1, 1, 3), np.uint8)
    big = np.broadcast_to(normal, (*shape, 3))
    ground = np.ones(shape, dtype=bool)
    mask = propose([reference], big, seed=1, foreground_HW=ground)
    assert mask.pixels_HW.shape == shape
    assert mask.pixels_HW.sum() == pytest.approx(reference.pixels_HW.sum(), rel=0.1)
