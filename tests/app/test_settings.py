"""Presets: what the word `paper` stands for, and that each can be written and read back."""

import math
import tomllib
from pathlib import Path

import pytest

from anomalydiffusion.app.settings import PRESETS, Settings, resolve, to_toml
from anomalydiffusion.core.config import from_dict
from anomalydiffusion.core.crops import crop_box
from anomalydiffusion.core.errors import ConfigError


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_the_same_after_a_run_wrote_it_down(preset: str) -> None:
    settings = resolve(preset)
    assert settings.preset == preset
    assert from_dict(Settings, tomllib.loads(to_toml(settings))) == settings
    assert resolve(base=tomllib.loads(to_toml(settings))) == settings


def test_paper_is_the_paper() -> None:
    paper = resolve("paper")
    adapter, masks = paper.train.adapter, paper.masks
    assert (adapter.anomaly_tokens, adapter.spatial_tokens, adapter.backbone, adapter.lora_rank) == (8, 4, "resnet50", 0)
    assert (adapter.initial_word, paper.train.batch_size, paper.train.loop.steps) == ("anomaly", 4, 300_000)
    assert paper.train.masked and not paper.train.normalise and paper.train.outside == 0
    assert (masks.source, masks.train.adapter.anomaly_tokens, masks.train.adapter.lora_rank) == ("learned", 4, 0)
    assert not masks.train.masked and (masks.learned.guidance, masks.learned.steps, masks.learned.frame) == (5.0, 100, "image")
    assert masks.learned.area == (0, math.inf)
    assert (masks.learned.threshold, masks.learned.border, masks.train.loop.steps) == (0.9, 1 / 3, 5000)
    for pool in (paper.train.pool, masks.train.pool):
        assert (pool.rotation, pool.flips, pool.light, pool.together) == (20.0, True, 0.0, True)
    assert paper.train.condition_noise == paper.generate.condition_noise == 0
    generate = paper.generate
    assert generate.together and crop_box((500, 500, 501, 501), (1024, 1024), generate.ratio[0], 64) == (0, 0, 1024, 1024)
    assert (generate.eta, generate.guidance, generate.strength, generate.reweight) == (1.0, 1.0, 1.0, "paper")
    assert (generate.steps, generate.match, generate.grain, generate.graft) == (200, False, "off", None)
    assert (paper.detector.network, paper.detector.side, paper.classifier.network) == ("draem", 256, "resnet34")
    assert (paper.detector.loss, paper.detector.rate, paper.detector.batch_size, paper.detector.cycle) == ("focal", 1e-4, 8, False)


def test_a_file_names_no_other_preset_where_a_run_has_its_own_settings(tmp_path: Path) -> None:
    own, file = tomllib.loads(to_toml(resolve("paper"))), tmp_path / "f.toml"
    file.write_text('preset = "paper"\n[generate]\nsteps = 7\n')
    assert resolve(config=file, base=own).generate.steps == 7
    with pytest.raises(ConfigError, match=r"f.toml: preset = 'paper': this run began with 'default'"):
        resolve(config=file, base=tomllib.loads(to_toml(resolve())))


def test_masks_are_learned_without_a_mask() -> None:
    for wrong in ({"masked": True}, {"adapter": {"spatial_tokens": 2}}):
        with pytest.raises(ConfigError, match="learned without a mask"):
            resolve(masks={"train": wrong})
    with pytest.raises(ConfigError, match="'warped', 'matched', 'auto', 'learned'"):
        resolve(masks={"source": "drawn"})
    with pytest.raises(ConfigError, match='matched_for is for source = "auto"'):
        resolve(masks={"source": "matched", "matched_for": ["tile/crack"]})


def test_a_compiled_denoiser_remembers_nothing() -> None:
    with pytest.raises(ConfigError, match=r"give compile or \[generate\] reuse"):
        resolve(compile=True, generate={"reuse": 2})
    assert resolve(compile=True, generate={"reuse": 1}).compile


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed = {seed}"):
        resolve(seed=seed)
