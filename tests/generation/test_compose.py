"""Outside the feather nothing changes; inside, exactly what was generated does."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.generation.compose import _scaled, feather, paste


def _scene(seed: int = 0, size: tuple[int, int] = (150, 200), side: int = 128):
    random = np.random.default_rng(seed)
    normal = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, bool)
    mask[60:80, 90:130] = True
    box = crop_box((90, 60, 130, 80), size, 2.5, 64)
    view = resize(extract(normal, box), side)
    decoded = ndimage.gaussian_filter(view.astype(float), (1, 1, 0))
    return normal, mask, box, view, decoded


def test_background_is_untouched_bit_for_bit() -> None:
    normal, mask, box, view, decoded = _scene()
    out, touched = paste(normal, np.random.default_rng(1).uniform(0, 255, decoded.shape), decoded, view, box, mask, width=3)
    far = ndimage.distance_transform_edt(~mask) >= 3
    assert (out[far] == normal[far]).all()
    assert (out[mask] != normal[mask]).mean() > 0.9
    rows, columns = np.nonzero(~far)
    assert touched == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_sample_equal_to_the_round_trip_gives_the_normal_back() -> None:
    normal, mask, box, view, decoded = _scene()
    out, _ = paste(normal, decoded, decoded, view, box, mask, grain=1.0)
    assert (out == normal).all()


def test_without_grain_the_smooth_round_trip_shows() -> None:
    normal, mask, box, view, decoded = _scene(side=100)  # the crop's own size: nothing is resized
    assert box[2] - box[0] == 100
    out, _ = paste(normal, decoded, decoded, view, box, mask, grain=0.0, match=False)
    inner = mask[box[1] : box[3], box[0] : box[2]]
    assert np.abs(out[box[1] : box[3], box[0] : box[2]][inner] - decoded[inner]).max() <= 0.5 + 1e-9


def test_a_sample_equal_to_its_starts_round_trip_gives_the_start() -> None:
    normal, mask, box, _, _ = _scene(side=100)
    start = normal.copy()
    start[mask] = np.random.default_rng(3).integers(0, 256, (mask.sum(), 3))
    view = resize(extract(start, box), 100)
    decoded = ndimage.gaussian_filter(view.astype(float), (1, 1, 0))
    out, _ = paste(normal, decoded, decoded, view, box, mask, start_HWC=start)
    assert (out == start).all()
    darker, _ = paste(normal, decoded - 10 * mask[box[1] : box[3], box[0] : box[2], None], decoded, view, box, mask, start_HWC=start)
    assert (np.clip(start[mask].astype(int) - 10, 0, 255) == darker[mask]).all()


def test_colours_follow_the_normal_on_the_ring() -> None:
    normal, mask, box, view, decoded = _scene()
    out, _ = paste(normal, decoded + 20, decoded, view, box, mask, match=True)
    assert (out == normal).all()  # the whole crop is brighter: that is the prior's error, not a defect


def test_grey_stays_grey_and_a_crop_may_stick_out() -> None:
    normal = np.repeat(np.random.default_rng(0).integers(50, 200, (40, 300, 1), dtype=np.uint8), 3, axis=2)
    mask = np.zeros((40, 300), bool)
    mask[30:40, 5:30] = True
    box = crop_box((5, 30, 30, 40), (40, 300), 3.0, 64)
    view = resize(extract(normal, box), 64)
    sample = np.random.default_rng(1).uniform(0, 255, (64, 64, 3))
    out, _ = paste(normal, sample, view.astype(float), view, box, mask)
    assert out.shape == normal.shape and (out == out[..., :1]).all() and (out[mask] != normal[mask]).any()


def test_a_crop_that_sticks_out_at_the_top_and_the_left_lands_where_it_would_in_a_larger_image() -> None:
    normal, mask = np.random.default_rng(0).integers(100, 150, (50, 60, 3), dtype=np.uint8), np.zeros((50, 60), bool)
    mask[5:30, 4:34] = True
    ramp, nothing = np.stack([*np.mgrid[:32, :32], np.full((32, 32), 9)], 2) * 3.0, np.zeros((32, 32, 3))
    own, touched = paste(normal, ramp, nothing, nothing, (-20, -20, 44, 44), mask, match=False)
    larger = np.pad(normal, ((20, 20), (20, 20), (0, 0)), mode="edge")
    whole, there = paste(larger, ramp, nothing, nothing, (0, 0, 64, 64), np.pad(mask, 20), match=False)
    assert np.abs(own.astype(int) - whole[20:-20, 20:-20]).max() <= 1
    assert touched == tuple(side - 20 for side in there)
    assert (own[mask] != normal[mask]).mean() > 0.9


def test_the_feather_falls_like_a_cosine_and_ends_at_its_width() -> None:
    mask = np.zeros((1, 6), bool)
    mask[0, 0] = True
    assert feather(mask, 3.0)[0] == pytest.approx([1, 0.75, 0.25, 0, 0, 0])
    assert (feather(mask, 0.0) == mask).all()


def _large(side: int = 64):
    """A rough normal whose crop of 256 pixels is worked on at 64."""
    normal, mask, _, _, _ = _scene(size=(300, 320))
    box = (20, 10, 276, 266)
    return normal, mask, box, resize(extract(normal, box), side)


def test_without_grain_nothing_finer_than_the_working_grid_stays() -> None:
    normal, mask, box, view = _large()
    decoded = ndimage.gaussian_filter(view.astype(float), (1, 1, 0))
    hole = np.full(view.shape, 40.0)  # a smooth dark hole
    out, _ = paste(normal, hole, decoded, view, box, mask, grain=0.0, match=False)
    assert (out[mask] == 40).all()
    far = ndimage.distance_transform_edt(~mask) >= 3
    assert (out[far] == normal[far]).all()
    half, _ = paste(normal, hole, decoded, view, box, mask, grain=0.5, match=False)
    assert 0.4 < half[mask].std() / normal[mask].std() < 0.6


def test_with_full_grain_all_that_is_finer_stays() -> None:
    normal, mask, box, view = _large()
    decoded = ndimage.gaussian_filter(view.astype(float), (1, 1, 0))
    out, _ = paste(normal, decoded + 20, decoded, view, box, mask, grain=1.0, match=False)
    assert (out[mask] == np.clip(normal[mask].astype(int) + 20, 0, 255)).all()
    sample = np.random.default_rng(4).uniform(0, 255, decoded.shape)
    change = np.stack([np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BICUBIC))
                       for p in (sample - decoded).astype(np.float32).transpose(2, 0, 1)], axis=2)  # fmt: skip
    out, _ = paste(normal, sample, decoded, view, box, mask, grain=1.0, match=False)
    there = mask[10:266, 20:276]
    expected = np.clip(normal[10:266, 20:276][there] + change[there].astype(float) + 0.5, 0, 255).astype(np.uint8)
    assert (out[10:266, 20:276][there] == expected).all()


def test_of_a_crop_that_sticks_far_out_what_is_seen_is_what_the_whole_would_show() -> None:
    change = np.random.default_rng(0).normal(0, 30, (32, 32, 2))
    for side in (20, 77):
        whole, seen = _scaled(change, side, (0, 0, side, side)), (3, 7, side - 5, 12)
        assert whole.shape == (side, side, 2)
        assert np.abs(_scaled(change, side, seen) - whole[7:12, 3 : side - 5]).max() < 1e-3
