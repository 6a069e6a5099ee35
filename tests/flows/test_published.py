"""The published method on the published family of priors: the preset's own values, only fewer steps, pictures and crops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from anomalydiffusion.app.settings import resolve
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.masks.learned import draw_shape, pictures
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.recipes import TrainConfig, train_adapter
from tests.conftest import build_prior_folder

KEY = ("plate", "hole")


def _few(config: TrainConfig) -> TrainConfig:
    return replace(config, batch_size=2, pool=replace(config.pool, crops=2), loop=replace(config.loop, steps=2))


def test_it_learns_defects_and_masks_and_draws_and_leaves_the_prior_as_it_was(tmp_path: Path) -> None:
    paper, prior = resolve("paper"), load_prior(str(build_prior_folder(tmp_path / "prior", "ldm")))
    networks = torch.nn.ModuleList([prior.vae, prior.unet, prior.text_encoder])
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    pixels = np.zeros((90, 110), bool)
    pixels[40:60, 30:64] = True
    image = np.clip(np.random.default_rng(0).normal(128, 12, (90, 110, 3)), 0, 255).astype(np.uint8)
    mask = Mask(pixels_HW=pixels, origin="real")
    start = prior.word_embeddings(prior.tokenize("anomaly")).mean(0)

    adapter = train_adapter(prior, {KEY: [(image, mask)]}, _few(paper.train), tmp_path / "defects", seed=0)
    assert 0 < (adapter.tokens.vectors[0] - start).abs().mean() < 0.3 * start.std(), "begins at the initial word"
    marks = torch.from_numpy(pixels)[None, None].float()
    with torch.no_grad():
        context = adapter.context([KEY], marks)
    assert context.span == (4, 4 + 8 + 4), "behind the start and 'a photo of'"

    drawn = {KEY: pictures([mask], paper.masks.learned, prior.working_size)}
    masks = train_adapter(prior, drawn, _few(paper.masks.train), tmp_path / "masks", seed=0, name="masks", from_nothing=True)
    shape = draw_shape(masks, KEY, seed=0, steps=2, guidance=paper.masks.learned.guidance)
    assert shape.shape == (64, 64) and masks.context([KEY], marks).span == (4, 4 + 4)

    item = Item(key=KEY, normal_HWC=image, normal="n.png", normal_sha256="0", mask=mask, seed=5)
    (pair,) = make_pairs(prior, adapter, [item], replace(paper.generate, steps=3, batch_size=1))
    changed = (pair.image_HWC != image).any(2)
    assert changed[pixels].mean() > 0.5
    assert not changed[ndimage.distance_transform_edt(~pixels) >= paper.generate.feather].any()
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())
