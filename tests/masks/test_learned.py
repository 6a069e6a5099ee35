"""Masks that the prior draws: what is learned, what is refused, and that a seed decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks import learned
from anomalydiffusion.masks.learned import LearnedConfig, draw_shape, pictures, propose
from anomalydiffusion.priors.latent import LatentPrior

KEY = ("plate", "hole")
CONFIG = LearnedConfig(steps=2, tries=3, area=(0.0, 10.0))
NORMAL = np.full((80, 120, 3), 128, np.uint8)
GROUND = np.ones((80, 120), bool)


def _mask(box: tuple[int, int, int, int], shape: tuple[int, int] = (80, 120)) -> Mask:
    x0, y0, x1, y1 = box
    pixels = np.zeros(shape, bool)
    pixels[y0:y1, x0:x1] = True
    return Mask(pixels_HW=pixels, origin="real")


@pytest.fixture
def adapter(small_prior: LatentPrior) -> Adapter:
    config = AdapterConfig(anomaly_tokens=4, spatial_tokens=0, lora_rank=2)
    made = Adapter(small_prior, [KEY], config, Origin(prior_digest=small_prior.digest), name="masks").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.trainable().parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


def test_a_defects_frame_holds_each_shape_in_its_middle_whatever_its_size() -> None:
    references = [_mask((10, 20, 50, 28)), _mask((60, 30, 70, 50)), _mask((300, 100, 700, 101), (500, 900))]
    framed = pictures(references, CONFIG, 64)
    for (picture, mask), (height, width) in zip(framed, [(64 * 0.8 / 5, 64 * 0.8), (64 * 0.8, 64 * 0.4), (1, 64 * 0.8)], strict=True):
        assert picture.shape == (64, 64, 3)
        x0, y0, x1, y1 = mask.box
        assert (y1 - y0, x1 - x0) == (pytest.approx(height, abs=2), pytest.approx(width, abs=2))
        assert (picture[mask.pixels_HW] == 255).all() and (picture[~mask.pixels_HW] == 0).all()
        assert np.abs(np.array(ndimage.center_of_mass(mask.pixels_HW)) - 31.5).max() <= 1.5
    whole = pictures(references, replace(CONFIG, frame="image"), 64)
    assert all(mask.pixels_HW.shape == (64, 64) for _, mask in whole)
    y, x = ndimage.center_of_mass(whole[0][1].pixels_HW)
    assert (y / 64, x / 64) == (pytest.approx(23.5 / 80, abs=0.02), pytest.approx(29.5 / 120, abs=0.02))


def test_a_line_is_not_lost_where_one_side_shrinks_and_the_other_grows() -> None:
    ((_, mask),) = pictures([_mask((700, 0, 701, 200), (200, 1000))], replace(CONFIG, frame="image"), 512)
    assert mask.pixels_HW.any(1).all()


def test_a_speck_is_not_lost_in_a_squeezed_picture() -> None:
    ((_, mask),) = pictures([_mask((500, 300, 501, 301), (600, 900))], replace(CONFIG, frame="image"), 64)
    assert mask.pixels_HW.sum() == 1


def test_a_seed_decides_and_guidance_counts(adapter: Adapter) -> None:
    one, again, other = (draw_shape(adapter, KEY, seed=seed, steps=2, guidance=5.0) for seed in (1, 1, 2))
    assert one.shape == (64, 64) and one.dtype == np.uint8
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(one, draw_shape(adapter, KEY, seed=1, steps=2, guidance=1.0))


@pytest.fixture
def asked() -> list[dict[str, float]]:
    """How each of the `drawings` was asked for."""
    return []


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, float]]) -> list[np.ndarray]:
    """What the prior draws, one after the other, in place of what an untrained one would."""
    queue: list[np.ndarray] = []
    monkeypatch.setattr(learned, "draw_shape", lambda adapter, key, **how: asked.append(how) or queue.pop(0))
    return queue


def _bar(length: int) -> np.ndarray:
    picture = np.zeros((64, 64), np.uint8)
    picture[30:34, 10 : 10 + length] = 255
    return picture


def test_a_shape_takes_a_references_size_and_lies_on_the_object(adapter: Adapter, drawings: list[np.ndarray]) -> None:
    references = [_mask((20, 20, 50, 24)), _mask((20, 20, 23, 26))]
    ground = np.zeros((80, 120), bool)
    ground[:, 55:] = True
    drawings += [_bar(40)] * 20
    places, lengths = set(), []
    for seed in range(20):
        mask = propose(adapter, KEY, references, NORMAL, seed=seed, config=CONFIG, foreground_HW=ground)
        x0, y0, x1, y1 = mask.box
        assert (y1 - y0) == pytest.approx((x1 - x0) / 10, abs=1)
        assert ground[mask.pixels_HW].all() and mask.origin == "learned" and mask.seed == seed
        places.add((x0, y0))
        lengths.append(x1 - x0)
    assert len(places) > 10
    assert all(5 <= length <= 8 or 24 <= length <= 36 for length in lengths) and len(set(lengths)) > 5, "6 or 30, a fifth more or less"


def test_what_cannot_be_used_is_drawn_again(adapter: Adapter, drawings: list[np.ndarray]) -> None:
    references = [_mask((20, 20, 60, 24))]
    empty, speckled = np.zeros((64, 64), np.uint8), _bar(30)
    speckled[5, 5] = speckled[60, 60] = 255
    square = np.zeros((64, 64), np.uint8)
    square[10:50, 10:50] = 255
    drawings += [empty, square, speckled]
    mask = propose(adapter, KEY, references, NORMAL, seed=0, config=replace(CONFIG, area=(0.3, 3.0)), foreground_HW=GROUND)
    assert not drawings
    assert ndimage.label(mask.pixels_HW)[1] == 1, "no more parts than a reference has"
    drawings += [empty] * 3
    with pytest.raises(MaskError, match=r"3 of 3 drawings of plate/hole failed because the mask is empty"):
        propose(adapter, KEY, references, NORMAL, seed=0, config=CONFIG, foreground_HW=GROUND)
    drawings += [_bar(40)] * 3
    small = np.zeros((80, 120), bool)
    small[:10, :10] = True
    with pytest.raises(MaskError, match="is larger than the object"):
        propose(adapter, KEY, references, NORMAL, seed=0, config=CONFIG, foreground_HW=small)


def test_each_try_and_each_image_has_a_seed_of_its_own_and_the_settings_steps_and_guidance(
    adapter: Adapter, drawings: list[np.ndarray], asked: list[dict[str, float]]
) -> None:
    drawings += [np.zeros((64, 64), np.uint8)] * 6
    config = replace(CONFIG, steps=7, guidance=3.5)
    for image in ("a.png", "b.png"):
        with pytest.raises(MaskError, match="is empty"):
            propose(adapter, KEY, [_mask((20, 20, 60, 24))], NORMAL, seed=0, image=image, config=config, foreground_HW=GROUND)
    assert len({how["seed"] for how in asked}) == 6
    assert all((how["steps"], how["guidance"]) == (7, 3.5) for how in asked)


def test_whole_pictures_keep_place_and_stretch_to_the_image(adapter: Adapter, drawings: list[np.ndarray]) -> None:
    config = replace(CONFIG, frame="image", border=1 / 3)
    drawings += [_bar(40)]
    mask = propose(adapter, KEY, [_mask((20, 20, 60, 24))], NORMAL, seed=0, config=config, foreground_HW=GROUND)
    assert np.array(mask.box) == pytest.approx(np.array([10 / 64 * 120, 30 / 64 * 80, 50 / 64 * 120, 34 / 64 * 80]), abs=2)
    rim = np.zeros((64, 64), np.uint8)
    rim[:4, :30] = 255
    drawings += [rim] * 3
    with pytest.raises(MaskError, match="touches most of a border"):
        propose(adapter, KEY, [_mask((20, 20, 60, 24))], NORMAL, seed=0, config=config, foreground_HW=GROUND)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"steps": 0}, {"threshold": 1.0}, {"guidance": -1.0}, {"border": 2.0}, {"area": (2.0, 3.0)}, {"tries": 0}):
        with pytest.raises(ConfigError, match="learned masks"):
            LearnedConfig(**wrong)
