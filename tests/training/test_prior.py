"""A small prior is trained, kept and loaded; nothing of other settings is taken up, nothing of the user's replaced."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion.core.errors import ConfigError, DataError, PriorError, RunError
from anomalydiffusion.data.corpus import CorpusConfig
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.autoencoder import AutoencoderConfig
from anomalydiffusion.training.denoiser import DenoiserConfig, time_steps
from anomalydiffusion.training.loop import LoopConfig
from anomalydiffusion.training.prior import PriorConfig, draw_pictures, train_prior

LOOP = LoopConfig(steps=2, warmup=0)
CONFIG = PriorConfig(
    corpus=CorpusConfig(pictures=12, size=64, drawn=1.0, shapes=0.0),
    autoencoder=AutoencoderConfig(latent_channels=8, encoder_layers=(1, 1), decoder_layers=(1, 1), crop=32, batch_size=2, loop=LOOP),
    denoiser=DenoiserConfig(widths=(32,), text_width=32, text_layers=1, vocabulary=600, batch_size=2, loop=LOOP),
)


def test_a_prior_is_trained_and_a_second_call_takes_up_what_is_there(tmp_path: Path) -> None:
    output, work = tmp_path / "prior", tmp_path / "work"
    numbers = train_prior(CONFIG, output, work)
    assert set(numbers) == {"linear", "autoencoder"} and numbers["linear"]["psnr"] > 10
    prior = load_prior(str(output))
    assert (prior.factor, prior.latent_channels, prior.working_size, prior.max_tokens) == (4, 8, 64, 32)
    assert train_prior(CONFIG, output, work) == numbers and load_prior(str(output)).digest == prior.digest
    longer = replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, loop=replace(LOOP, steps=3)))
    for other in (longer, replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, grain=0.5))):
        with pytest.raises(RunError, match=r"work: was begun with other settings of \[corpus\] or \[autoencoder\]"):
            train_prior(other, output, work)
    with pytest.raises(RunError, match=r"\[corpus\] or \[denoiser\]"):
        train_prior(replace(CONFIG, denoiser=replace(CONFIG.denoiser, vocabulary=500)), output, work)
    (work / "vae.digest").unlink()  # as older work folders are
    assert train_prior(longer, output, work) == numbers
    shutil.rmtree(work / "tokenizer")
    with pytest.raises(RunError, match="denoiser: was begun before tokenizers were kept"):
        train_prior(longer, output, work)
    assert not any(str(tmp_path) in path.read_text() for path in output.rglob("*.json"))


def test_a_prior_is_gone_on_from_with_its_own_autoencoder_words_and_shapes(tmp_path: Path, small_folder: Path) -> None:
    train_prior(CONFIG, tmp_path / "first", tmp_path / "first-work")
    more = replace(CONFIG, seed=5, start=str(tmp_path / "first"), denoiser=replace(CONFIG.denoiser, widths=(64,), vocabulary=999))
    numbers = train_prior(more, tmp_path / "second", tmp_path / "second-work")
    first, second = load_prior(str(tmp_path / "first")), load_prior(str(tmp_path / "second"))
    assert set(numbers) == {"autoencoder"} and numbers["autoencoder"]["psnr"] > 10
    for part in ("vae", "unet", "text_encoder"):
        old, new = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old) == (part == "vae")
    assert first.prediction_type == second.prediction_type == "v_prediction"
    assert first.vae.config.scaling_factor == second.vae.config.scaling_factor
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "second").rglob("*.json"))
    with pytest.raises(RunError, match="other settings of start"):
        train_prior(replace(more, start=""), tmp_path / "third", tmp_path / "second-work")
    with pytest.raises(PriorError, match="cannot be gone on from"):
        train_prior(replace(more, start=str(small_folder)), tmp_path / "third", tmp_path / "third-work")
    assert not (tmp_path / "third-work").exists()


def test_an_autoencoder_alone_is_kept(tmp_path: Path) -> None:
    train_prior(CONFIG, tmp_path / "first", tmp_path / "first-work")
    anew = replace(CONFIG, seed=5, start=str(tmp_path / "first"), anew=True, denoiser=replace(CONFIG.denoiser, widths=(64,)))
    train_prior(anew, tmp_path / "second", tmp_path / "second-work")
    first, second = load_prior(str(tmp_path / "first")), load_prior(str(tmp_path / "second"))
    assert [list(prior.unet.config.block_out_channels) for prior in (first, second)] == [[32], [64]]
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.allclose(first.decode(first.encode(x)), second.decode(second.encode(x)), atol=2e-2)
    with pytest.raises(RunError, match="other settings of start"):
        train_prior(replace(anew, anew=False), tmp_path / "third", tmp_path / "second-work")
    with pytest.raises(ConfigError, match="name that prior with 'start'"):
        replace(anew, start="")


def test_a_start_keeps_its_schedule_and_what_it_answers_and_an_autoencoder_alone_gets_new_ones(tmp_path: Path) -> None:
    train_prior(CONFIG, tmp_path / "first", tmp_path / "first-work")
    path = tmp_path / "first" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.0001", "0.00085").replace("v_prediction", "sample"))
    more = replace(CONFIG, start=str(tmp_path / "first"))
    train_prior(more, tmp_path / "on", tmp_path / "on-work")
    train_prior(replace(more, anew=True), tmp_path / "new", tmp_path / "new-work")
    first, on, new = (load_prior(str(tmp_path / name)) for name in ("first", "on", "new"))
    assert torch.equal(first.alphas, on.alphas) and not torch.allclose(first.alphas, new.alphas)
    assert (first.prediction_type, on.prediction_type, new.prediction_type) == ("sample", "sample", "v_prediction")


def test_time_steps_come_where_shapes_form_and_evenly() -> None:
    generator = np.random.default_rng(0)
    evenly, focused = (time_steps(generator, 20_000, 1000, focus) for focus in (0.0, 1.0))
    assert evenly.min() == 0 and evenly.max() == 999 and abs(evenly.mean() - 499.5) < 10
    assert focused.min() >= 0 and focused.max() <= 999 and abs(np.median(focused) - 1000 / (1 + np.exp(-0.4))) < 10
    assert np.mean(focused < 100) < 0.02


def test_shares_outside_0_to_1_are_refused_by_name() -> None:
    for kind, name, value in ((DenoiserConfig, "focus", 1.2), (DenoiserConfig, "floor", 0.0), (CorpusConfig, "camera", -0.1)):
        with pytest.raises(ConfigError, match=name):
            kind(**{name: value})
    with pytest.raises(ConfigError, match="scale"):
        CorpusConfig(scale=(2.0, 1.0))


def test_pictures_of_another_corpus_or_seed_are_not_taken_up(tmp_path: Path) -> None:
    images, captions = draw_pictures(CONFIG, tmp_path, None, None)
    longer = replace(CONFIG, denoiser=replace(CONFIG.denoiser, loop=replace(LOOP, minutes=5.0)))
    again, _ = draw_pictures(replace(longer, textures="moved"), tmp_path, None, None)
    assert len(captions) == 12 and np.array_equal(images, again)
    for other in (replace(CONFIG, corpus=replace(CONFIG.corpus, grey=0.9)), replace(CONFIG, seed=1)):
        with pytest.raises(RunError, match=r"begun with other settings of \[corpus\] or another seed; give another --work"):
            draw_pictures(other, tmp_path, None, None)
        origin = (tmp_path / "pictures.digest").rename(tmp_path / "kept")
        assert len(draw_pictures(other, tmp_path, None, None)[1]) == 12  # an older work folder has none
        origin.rename(tmp_path / "pictures.digest")


def test_an_output_that_is_no_prior_is_refused_before_the_training(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="photos: holds other things than a prior"):
        train_prior(CONFIG, tmp_path / "photos", work)
    with pytest.raises(DataError, match=r"dear\.jpg: a file of this name is in the way"):
        train_prior(CONFIG, tmp_path / "photos" / "dear.jpg", work)
    with pytest.raises(DataError, match="lies in the output"):
        train_prior(CONFIG, tmp_path / "prior", tmp_path / "prior" / "work")
    assert not work.exists() and not (tmp_path / "prior").exists()


def test_a_network_is_not_gone_on_with_under_other_settings_but_for_longer(tmp_path: Path) -> None:
    output, work = tmp_path / "prior", tmp_path / "work"

    def trained(**other: object) -> str:
        train_prior(replace(CONFIG, denoiser=replace(CONFIG.denoiser, **other)), output, work)
        return load_prior(str(output)).digest

    first = trained()
    for other in ({"batch_size": 3}, {"focus": 0.0}, {"loop": replace(LOOP, learning_rate=0.1)}):
        with pytest.raises(RunError, match=r"work: was begun with other settings of \[denoiser\]"):
            trained(**other)
    assert load_prior(str(output)).digest == first
    assert trained(loop=replace(LOOP, steps=3, minutes=60.0)) != first
    shutil.rmtree(work / "vae")  # as where it was stopped while the autoencoder learned
    with pytest.raises(RunError, match=r"\[autoencoder\]"):
        train_prior(replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, batch_size=3)), output, work)
