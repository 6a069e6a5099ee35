"""A prior that is told what surrounds a hole: what it is told, in which order, and that pairs and masks are made with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.masks.learned import draw_shape
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.recipes import TrainConfig, train_adapter
from anomalydiffusion.training.shots import PoolConfig, build_pool
from tests.conftest import build_prior_folder

KEY = ("plate", "hole")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> LatentPrior:
    return load_prior(str(build_prior_folder(tmp_path_factory.mktemp("inpainting") / "prior", family="inpainting")))


def _shot(seed: int = 0) -> tuple[np.ndarray, Mask]:
    random = np.random.default_rng(seed)
    pixels = np.zeros((90, 110), bool)
    pixels[40:60, 30:64] = True
    return np.clip(random.normal(128, 12, (90, 110, 3)), 0, 255).astype(np.uint8), Mask(pixels_HW=pixels, origin="real")


def test_it_is_told_the_hole_and_the_rest_and_nothing_of_what_was_in_the_hole(prior: LatentPrior, small_prior: LatentPrior) -> None:
    pictures, mask = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    mask[:, :, 17:30, 8:9] = 1
    told = prior.surroundings(pictures, mask)
    assert told is not None and told.shape == (2, 5, 8, 8)
    assert told[0, 0].nonzero().tolist() == [[2, 1], [3, 1]]
    emptied = torch.where(mask > 0, torch.zeros(()), pictures)
    torch.testing.assert_close(told[:, 1:], torch.cat([prior.encode(row[None]) for row in emptied]))
    other = torch.where(mask > 0, torch.rand(()), pictures)
    assert torch.equal(prior.surroundings(other, mask), told)  # type: ignore[arg-type]
    assert small_prior.surroundings(pictures, mask) is None and not small_prior.inpaints


def test_latent_mask_and_surroundings_go_in_in_this_order(prior: LatentPrior) -> None:
    context = prior.embed((prior.tokenize("a crack"), []), torch.zeros(1, 0, prior.token_width))
    z, t, told = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 5, 8, 8)
    with torch.no_grad():
        expected = prior.unet(torch.cat([z, told], 1), t, encoder_hidden_states=context.tokens_BND).sample
        torch.testing.assert_close(prior.predict(z, t, replace(context, surroundings=told)), expected)
        grey = prior.surroundings(torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64))
        torch.testing.assert_close(prior.predict(z, t, context), prior.predict(z, t, replace(context, surroundings=grey)))


def test_the_pool_keeps_what_surrounds_each_view(prior: LatentPrior, small_prior: LatentPrior) -> None:
    pool = build_pool(prior, {KEY: [_shot()]}, PoolConfig(crops=40), seed=0)
    assert pool.surroundings is not None and pool.surroundings.shape == (40, 5, 8, 8)
    assert torch.equal(pool.surroundings[:, :1], pool.latent_masks)
    assert build_pool(small_prior, {KEY: [_shot()]}, PoolConfig(crops=2), seed=0).surroundings is None


def test_learned_and_drawn_with_it(tmp_path: Path) -> None:
    prior = load_prior(str(build_prior_folder(tmp_path / "prior", family="inpainting")))
    config = replace(TrainConfig(), batch_size=2, adapter=AdapterConfig(lora_rank=2), pool=PoolConfig(crops=4))
    config = replace(config, loop=replace(config.loop, steps=2, mixed_precision="no"), gradient_checkpointing=True)  # no trial
    seen, predict = [], prior.predict

    def spy(z, t, context, *steered):  # type: ignore[no-untyped-def]
        seen.append(context.surroundings)
        return predict(z, t, context, *steered)

    prior.predict = spy  # type: ignore[method-assign]
    adapter = train_adapter(prior, {KEY: [_shot()]}, config, tmp_path / "checkpoints", seed=0)
    assert len(seen) == 2 and all(told is not None for told in seen)
    seen.clear()
    image, mask = _shot(1)
    item = Item(key=KEY, normal_HWC=image, normal="n.png", normal_sha256="0", mask=mask, seed=5)
    generate = GenerateConfig(steps=3, batch_size=2, guidance=2.0, strength=1.0)
    (pair,) = make_pairs(prior, adapter, [item], generate)
    assert seen and all(told is not None for told in seen), "the frozen prior, which guidance leads away from, is told too"
    assert (pair.image_HWC != image).any(2)[mask.pixels_HW].mean() > 0.5
    beside = make_pairs(prior, adapter, [replace(item, seed=6), item], generate)[1]
    assert np.abs(beside.image_HWC.astype(int) - pair.image_HWC).max() <= 2
    seen.clear()
    masks = Adapter(prior, [KEY], AdapterConfig(spatial_tokens=0, lora_rank=0), Origin(prior_digest=prior.digest), name="masks")
    draw_shape(masks, KEY, seed=0, steps=2, guidance=2.0)
    train_adapter(prior, {KEY: [_shot()]}, config, tmp_path / "masks", seed=0, name="more", from_nothing=True)
    assert len(seen) == 6 and all(told is None for told in seen)
