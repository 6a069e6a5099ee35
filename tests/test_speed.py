"""What speed is measured against draws the same as we do, where we are told to draw as published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from anomalydiffusion.app.plain import Learned, Plain, draw, learn
from anomalydiffusion.app.settings import resolve
from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.seeds import rng, torch_noise
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.priors.load import load_prior

KEY = ("plate", "hole")
STEPS = 5  # of the paper's 200: those are walked in the same way


def _item(side: int) -> Item:
    image = np.clip(rng(0, "speed").normal(128, 30, (side, side, 3)), 0, 255).astype(np.uint8)
    pixels = np.zeros((side, side), bool)
    pixels[side // 4 : 3 * side // 4, side // 4 : side // 2] = True  # whole latent cells: pooled in whatever way, the mask is the same
    return Item(key=KEY, normal_HWC=image, normal="", normal_sha256="", mask=Mask(pixels_HW=pixels, origin="user"), seed=7)


@pytest.mark.parametrize("reweight", [False, True])
def test_the_published_settings_draw_what_the_plain_way_draws(small_folder: Path, reweight: bool) -> None:
    settings = resolve("paper", generate={"steps": STEPS, "batch_size": 1, "reweight": "paper" if reweight else "off"})
    prior, ours, plains = load_prior(str(small_folder)), list[torch.Tensor](), list[torch.Tensor]()
    adapter = Adapter(prior, [KEY], AdapterConfig(lora_rank=0), Origin(prior_digest=prior.digest)).eval()
    item = _item(prior.working_size)
    make_pairs(prior, adapter, [item], settings.generate, lambda index, t, z: ours.append(z.clone()))

    def learned(mask: torch.Tensor) -> torch.Tensor:
        assert adapter.spatial is not None
        return torch.cat([adapter.tokens.rows([KEY]), adapter.spatial(mask)], dim=1)

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch_noise((4, 8, 8), item.seed, purpose, t)[None]

    # our steps end on the clean picture and begin at full noise; as the library has them, they are shifted by a few of a thousand
    scheduler = DDIMScheduler.from_config(prior.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)
    plain = Plain(prior, learned, scheduler)
    draw(plain, item.normal_HWC, item.mask.pixels_HW, steps=STEPS, reweight=reweight, noise=noise, on_step=plains.append)
    assert len(ours) == len(plains) == STEPS
    for mine, theirs in zip(ours, plains, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_the_plain_way_learns(small_folder: Path) -> None:
    prior = load_prior(str(small_folder))
    learned, item = Learned(prior.token_width), _item(prior.working_size)
    before = learned.vectors.detach().clone()
    assert len(learn(Plain(prior, learned), learned, item.normal_HWC, item.mask.pixels_HW, steps=1, accumulate=2)) == 1
    assert not torch.equal(before, learned.vectors)
    assert all(parameter.grad is None for parameter in prior.unet.parameters())


def test_both_ways_are_measured_and_judged_by_the_median_of_the_rounds(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from speed_arms import ARMS
    from speed_rows import against

    asked = {"prior": str(small_folder), "dtype": "float32", "repeat": 1, "steps": 200, "walked": 1, "presets": ["default", "no such"],
             "batched": False}  # fmt: skip
    found = {way: ARMS[f"pair_{way}"](asked) for way in ("plain", "ours")}
    assert [len(found["plain"][name]) for name in ("once", "each", "weighed")] == [1, 1, 1] and found["plain"]["peak"] > 0.1
    assert set(found["ours"]) == {"default", "peak"} and len(found["ours"]["default"]) == 1 and found["ours"]["peak"] > 0.1

    def line(least: float) -> str:
        rounds = [{"plain": {"once": [plain]}, "ours": {"default": [0.5, 9.0, 0.5]}} for plain in (2.0, 10.0, 3.0)]
        return str(against("a pair", rounds, "once", "default", least))

    assert line(6) == "| a pair | >= 6x | 0.5 s [0.5, 9] | 3 s [2, 10] | 6x [4, 20] | yes |"
    assert line(7).endswith("| **no** |")
