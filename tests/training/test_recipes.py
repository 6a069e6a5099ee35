"""The grain of a defect is measured where the answer is known; an adapter is learned alike with more or less memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.seeds import torch_noise
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.loop import LoopConfig
from anomalydiffusion.training.recipes import TrainConfig, grain_ratio, measures, train_adapter
from anomalydiffusion.training.shots import PoolConfig, build_pool


def _shot(inside: float, around: float = 8.0, side: int = 40, seed: int = 0) -> tuple[np.ndarray, Mask]:
    """A dark square of `side` pixels whose grain has the deviation `inside`, on a surface of deviation `around`."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((120, 140), bool)
    pixels[30 : 30 + side, 40 : 40 + side] = True
    grey = np.where(pixels, 90.0, 150.0) + random.standard_normal(pixels.shape) * np.where(pixels, inside, around)
    image = np.clip(grey + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), Mask(pixels_HW=pixels, origin="real")


def test_a_smooth_hole_has_no_grain() -> None:
    assert grain_ratio(*_shot(0.0)) == pytest.approx(0.0, abs=0.02)


def test_the_same_texture_has_all_of_it() -> None:
    assert grain_ratio(*_shot(8.0)) == pytest.approx(1.0, abs=0.1)


def test_it_is_a_ratio_of_amplitudes() -> None:
    assert grain_ratio(*_shot(4.0)) == pytest.approx(0.5, abs=0.06)  # a ratio of energies would be 0.25
    assert grain_ratio(*_shot(16.0)) == pytest.approx(2.0, abs=0.2)


def test_shading_is_not_grain() -> None:
    image, mask = _shot(8.0)
    bent = np.where(mask.pixels_HW, 30 * np.sin(np.mgrid[:120, :140][1] / 15), 0)
    shaded = np.clip(image + ndimage.gaussian_filter(bent, 3)[..., None], 0, 255).astype(np.uint8)
    assert grain_ratio(shaded, mask) == pytest.approx(1.0, abs=0.12)


def test_too_few_pixels_tell_nothing() -> None:
    assert grain_ratio(*_shot(8.0, side=6)) is None  # 2 x 2 are left after the rim of two pixels
    whole = Mask(pixels_HW=np.ones((60, 60), bool), origin="real")
    assert grain_ratio(np.full((60, 60, 3), 100, np.uint8), whole) is None  # nothing lies around it


def test_each_defect_type_gets_the_median_of_its_shots_cut_to_one() -> None:
    found = measures({
        ("plate", "hole"): [_shot(0.0), _shot(0.0, seed=1), _shot(8.0, seed=2), _shot(8.0, side=6)],
        ("plate", "rough"): [_shot(20.0)], ("plate", "scratch"): [_shot(8.0, side=5)],
    })  # fmt: skip
    assert set(found) == {"plate/hole", "plate/rough", "plate/scratch"}
    assert found["plate/hole"]["grain"] < 0.05
    assert found["plate/rough"] == {"grain": 1.0} and found["plate/scratch"] == {"grain": 1.0}


def test_less_memory_learns_the_same(small_folder: Path, tmp_path: Path) -> None:
    learned = {}
    for sparing in (False, True):
        config = replace(TrainConfig(), batch_size=2, pool=PoolConfig(crops=4), adapter=AdapterConfig(lora_rank=2),
                         gradient_checkpointing=sparing)  # fmt: skip
        config = replace(config, loop=replace(config.loop, steps=2, mixed_precision="no"))
        prior = load_prior(str(small_folder))
        adapter = train_adapter(prior, {("plate", "hole"): [_shot(8.0)]}, config, tmp_path / str(sparing), seed=0)
        assert not prior.unet.is_gradient_checkpointing
        learned[sparing] = {name: value.detach() for name, value in adapter.trainable().named_parameters()}
    for name, value in learned[False].items():
        torch.testing.assert_close(learned[True][name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_the_loss_of_a_step_is_the_weighted_error_in_the_mask_and_a_part_of_that_around_it(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, masked: bool
) -> None:
    config = TrainConfig(
        batch_size=3, masked=masked, outside=0.25, pool=PoolConfig(crops=4), adapter=AdapterConfig(lora_rank=2),
        loop=LoopConfig(steps=1, log_every=1),
    )  # fmt: skip
    prior, shots = load_prior(str(small_folder)), {("plate", "hole"): [_shot(8.0)]}
    prior.prediction_type = kind
    said: list[tuple[torch.Tensor, ...]] = []
    losses, predict = [], Adapter.predict

    def heard(self: Adapter, z: torch.Tensor, t: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        said.append((z, t, predict(self, z, t, *rest, **more)))
        return said[-1][2]

    monkeypatch.setattr(Adapter, "predict", heard)
    train_adapter(prior, shots, config, tmp_path, seed=0, progress=lambda step, means: losses.append(means["loss"]))
    z, t, answer = said[-1]
    a, noise = prior.alphas[t].float().view(-1, 1, 1, 1), torch_noise(tuple(z.shape), 0, "train-noise", 0, 0)
    clean, pool = (z - (1 - a).sqrt() * noise) / a.sqrt(), build_pool(prior, shots, config.pool, seed=0)
    away = (clean[:, None] - pool.latents).square().mean((2, 3, 4))
    assert away.amin(1).max() < 1e-4, "what is noised are crops of the pool"
    error = ((noise if kind == "epsilon" else clean) - answer).square().mean(1)
    error = error if kind == "epsilon" else error / (1 - a[:, 0]).clamp_min(0.05)
    marks = pool.latent_masks[away.argmin(1), 0].bool()
    each = [row[inside].mean() + 0.25 * row[~inside].mean() if masked else row.mean() for row, inside in zip(error, marks, strict=True)]
    assert losses == [pytest.approx(float(torch.stack(each).mean().detach()), rel=1e-3)]


def test_float16_is_for_drawing_alone(small_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(str(small_folder), dtype=torch.float16)
    config = replace(TrainConfig(), pool=PoolConfig(crops=2))
    with pytest.raises(ConfigError, match="learn in float32 or bfloat16"):
        train_adapter(prior, {("plate", "hole"): [_shot(8.0)]}, config, tmp_path, seed=0)


def test_a_training_that_goes_on_encodes_no_crop_again(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TrainConfig(), batch_size=2, pool=PoolConfig(crops=4), adapter=AdapterConfig(lora_rank=0))
    config = replace(config, loop=replace(config.loop, steps=3, log_every=1, checkpointing_steps=1, mixed_precision="no"))
    encoded: list[int] = []

    def learn(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        def progress(step: int, means: dict[str, float]) -> None:
            if step == stop:
                raise KeyboardInterrupt

        encoded.clear()
        prior = load_prior(str(small_folder))
        encode = prior.encode
        monkeypatch.setattr(prior, "encode", lambda x: encoded.append(len(x)) or encode(x))
        adapter = train_adapter(prior, {("plate", "hole"): [_shot(8.0)]}, config, folder, seed=0, progress=progress)
        assert not (folder / "pool.safetensors").exists()
        return {name: value.detach() for name, value in adapter.trainable().named_parameters()}

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "stopped", stop=2)
    assert encoded and (tmp_path / "stopped" / "pool.safetensors").is_file()
    resumed = learn(tmp_path / "stopped")
    assert not encoded
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["outside", "condition_noise"])
def test_weights_that_are_no_numbers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = nan"):
        TrainConfig(**{name: float("nan")})
