"""Augmented views keep the defect, their masks keep to it, and the pool is shared out fairly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalydiffusion.core.crops import clusters
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.shots import Pool, PoolConfig, augment, build_pool, kept_pool
from tests.conftest import build_prior_folder


def _shot(height: int, width: int, *boxes: tuple[int, int, int, int]) -> tuple[np.ndarray, Mask]:
    """A dark grey image whose marked pixels alone are bright."""
    pixels = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = True
    return np.where(pixels[..., None], 230, 40).astype(np.uint8).repeat(3, axis=2), Mask(pixels_HW=pixels, origin="real")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(40, 300), width=st.integers(40, 300), top=st.floats(0, 0.7), left=st.floats(0, 0.7))
def test_a_view_shows_the_defect_under_its_mask(seed: int, height: int, width: int, top: float, left: float) -> None:
    y, x = int(top * height), int(left * width)
    image, mask = _shot(height, width, (y, x, y + 9, x + 11))
    view, marks = augment(image, mask, [mask], 64, PoolConfig(), rng(seed, "view"))
    assert view.shape == (64, 64, 3) and view.dtype == np.uint8 and marks.shape == (64, 64) and marks.dtype == bool
    assert marks.any() and view[marks].mean() > 130 and (marks.all() or view[~marks].mean() < 100)


def test_parts_that_lie_apart_are_looked_at_one_by_one() -> None:
    image, mask = _shot(100, 600, (40, 10, 60, 30), (40, 570, 60, 590))
    groups = clusters(mask, 32)
    shares = []
    for seed in range(30):
        _, marks = augment(image, mask, groups, 64, PoolConfig(rotation=0), rng(seed, "view"))
        shares.append(marks.mean())
    assert len(groups) == 2 and min(shares) > 0.02  # in one view of the whole, the two squares would cover 0.002


def test_a_picture_s_parts_may_be_kept_together_and_few_large_views_are_encoded_at_once(small_folder, monkeypatch) -> None:
    prior = load_prior(str(small_folder))
    shots = {("p", "a"): [_shot(300, 300, (20, 10, 40, 30), (240, 270, 260, 290))]}
    apart, together = (
        build_pool(prior, shots, PoolConfig(crops=8, rotation=0, ratio=(1.2, 1.2), minimum_side=8, together=each), seed=3)
        for each in (None, True)
    )
    assert apart.masks.flatten(1).float().mean(1).min() > 0.3 and together.masks.flatten(1).float().mean(1).max() < 0.05
    sizes, encode = [], prior.encode
    monkeypatch.setattr(prior, "encode", lambda views: sizes.append(len(views)) or encode(views))
    monkeypatch.setattr("anomalydiffusion.training.shots.ENCODED", 3 * 64**2)
    parts = build_pool(prior, shots, PoolConfig(crops=8, rotation=0, ratio=(1.2, 1.2), minimum_side=8), seed=3)
    assert sizes == [3, 3, 2] and torch.equal(parts.latent_masks, apart.latent_masks)
    assert torch.allclose(parts.latents, apart.latents, atol=1e-4)


@pytest.mark.parametrize(("left", "beside"), [(30, 12), (0, 60)], ids=["beside another group", "at the image's border"])
def test_a_turn_that_would_cut_the_group_is_not_made(left: int, beside: int) -> None:
    image, part = _shot(120, 120, (40, left, 80, left + 8))
    image[40:48, left : left + 8], image[72:80, left : left + 8] = (230, 0, 0), (0, 0, 230)
    pixels = part.pixels_HW.copy()
    pixels[20:110, left + beside : left + 90] = True
    config, turned = PoolConfig(ratio=(1.1, 1.1), minimum_side=8, light=0.0, rotation=40.0), 0
    for seed in range(150):
        view, marks = augment(image, Mask(pixels_HW=pixels, origin="real"), [part], 120, config, rng(seed, "view"))
        for end in (0, 2):  # each 8 x 8 pixels in a square of 44; a tenth of the whole, half of an end, may be lost
            assert (view[..., end].astype(int) - view[..., 1] > 110).sum() > 0.4 * (8 * 120 / 44) ** 2
        turned += len(np.unique(marks.sum(1))) > 4
    assert turned > 10  # the others still are


def test_every_defect_type_fills_the_same_share_of_the_pool(small_folder) -> None:
    prior = load_prior(str(small_folder))
    shots = {("p", "a"): [_shot(80, 90, (20, 20, 40, 40))], ("p", "b"): [_shot(80, 90, (30, 30, 40, 60)), _shot(70, 70, (5, 5, 9, 9))]}
    pool = build_pool(prior, shots, PoolConfig(crops=12), seed=3)
    assert pool.keys.count(("p", "a")) == pool.keys.count(("p", "b")) == 6
    assert pool.latents.shape == (12, 4, 8, 8) and pool.masks.shape == (12, 1, 64, 64) and pool.latent_masks.shape == (12, 1, 8, 8)
    assert (pool.latent_masks.flatten(1).sum(1) > 0).all()
    again = build_pool(prior, shots, PoolConfig(crops=12), seed=3)
    assert (again.latents == pool.latents).all() and (again.masks == pool.masks).all()
    middles = build_pool(prior, shots, PoolConfig(crops=12, cells="nearest"), seed=3)
    assert torch.equal(middles.masks, pool.masks) and torch.equal(middles.latent_masks, pool.masks[..., 4::8, 4::8].float())
    with pytest.raises(ConfigError):
        PoolConfig(ratio=(3.0, 2.0))
    with pytest.raises(ConfigError, match="cells 'all' is not known"):
        PoolConfig(cells="all")


@pytest.mark.parametrize("family", ["sd", "inpainting"])
def test_what_was_encoded_is_not_encoded_again_unless_something_else_is_asked(tmp_path: Path, family: str, caplog, monkeypatch) -> None:
    prior = load_prior(str(build_prior_folder(tmp_path / "prior", family)))
    shots = {("p", "a"): [_shot(80, 90, (20, 20, 40, 40))], ("p", "b"): [_shot(70, 70, (5, 5, 9, 9))]}
    encoded, encode = [], prior.encode
    monkeypatch.setattr(prior, "encode", lambda x: encoded.append(len(x)) or encode(x))

    def pool(seed: int = 3, **changes: object) -> tuple[Pool, int]:
        encoded.clear()
        return kept_pool(tmp_path / "pool.safetensors", prior, shots, PoolConfig(**{"crops": 6, **changes}), seed=seed), len(encoded)

    first, calls = pool()
    again, none = pool()
    assert calls > 0 == none and again.keys == first.keys and again.masks.dtype == first.masks.dtype
    for name in ("latents", "masks", "latent_masks", "surroundings"):
        own, other = getattr(first, name), getattr(again, name)
        assert (own is None) == (other is None) == (name == "surroundings" and family == "sd")
        assert own is None or torch.equal(own, other)
    assert not torch.equal(pool(seed=4)[0].latents, first.latents)
    assert pool()[1] == calls  # seed 4's are there now
    assert pool(cells="nearest")[1] == calls
    shots["p", "b"][0][0][0, 0] += 1  # another picture
    assert pool(cells="nearest")[1] == calls and pool(cells="nearest")[1] == 0
    (tmp_path / "pool.safetensors").write_bytes((tmp_path / "pool.safetensors").read_bytes()[:999])
    assert pool(cells="nearest")[1] == calls and "pool.safetensors: cannot be read" in caplog.text
    assert pool(cells="nearest")[1] == 0


def test_augmentation_that_cannot_be_is_refused_by_name(small_folder) -> None:
    for name, value in (("rotation", -20.0), ("light", -0.1), ("crops", 0), ("minimum_side", 7), ("rotation", float("nan"))):
        with pytest.raises(ConfigError, match=rf"{name} = {value}: expected at least"):
            PoolConfig(**{name: value})
    with pytest.raises(ConfigError, match="ratio"):
        PoolConfig(ratio=(1.5, float("inf")))
    prior = load_prior(str(small_folder))
    shots = {("p", defect): [(np.zeros((64, 64, 3), np.uint8), Mask(pixels_HW=np.ones((64, 64), bool), origin="real"))] for defect in "abc"}
    with pytest.raises(ConfigError, match=r"crops = 2: 3 defect types need a crop each"):
        build_pool(prior, shots, PoolConfig(crops=2), seed=0)
