"""Pictures drawn from words: by seed alone, and guidance is a line through two answers."""

import numpy as np
import pytest
import torch

from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.samples import draw, spoken


def test_the_same_seed_gives_the_same_picture_of_the_working_size(small_prior: LatentPrior) -> None:
    one, again, other = (draw(small_prior, "a crack on metal", seed=seed, steps=3) for seed in (4, 4, 5))
    assert one.shape == (small_prior.working_size, small_prior.working_size, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_words_count_only_as_far_as_guidance_says(small_prior: LatentPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = draw(small_prior, "", seed=0, steps=3, guidance=1.0)
    assert np.array_equal(draw(small_prior, "", seed=0, steps=3, guidance=7.0), bare)  # a line through two equal answers
    lean = draw(small_prior, "a crack on metal", seed=0, steps=3, guidance=0.0)
    assert np.abs(lean.astype(int) - bare).max() <= 1
    predict, said = small_prior.predict, []
    monkeypatch.setattr(small_prior, "predict", lambda z, t, context: said.append(context.tokens_BND) or predict(z, t, context))
    draw(small_prior, "a crack on metal", seed=0, steps=2, guidance=1.0)
    assert len(said) == 2 and torch.equal(said[0], said[1])  # no second call where guidance asks for none


def test_of_a_caption_that_is_too_long_what_fits_is_said(small_prior: LatentPrior) -> None:
    words = small_prior.tokenize("a crack " * 40)
    assert len(words) > small_prior.max_tokens
    whole = spoken(small_prior, "a crack " * 40).tokens_BND
    assert torch.equal(whole, small_prior.embed((words[: small_prior.max_tokens - 2], []), torch.zeros(1, 0, whole.shape[2])).tokens_BND)
    assert not torch.equal(whole, spoken(small_prior, "a crack").tokens_BND)


def test_where_memory_is_scarce_the_text_encoder_is_there_while_words_are_encoded_and_not_while_it_draws(
    small_prior: LatentPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ever = draw(small_prior, "a crack on metal", seed=0, steps=2)
    events, encoder = [], small_prior.text_encoder
    move = encoder.to
    monkeypatch.setattr(encoder, "to", lambda place: events.append("away" if place == "cpu" else "there") or move(place))
    encoder.register_forward_pre_hook(lambda *given: events.append("says"))
    small_prior.unet.register_forward_pre_hook(lambda *given: events.append("draws"))
    small_prior.spares = True
    assert np.array_equal(draw(small_prior, "a crack on metal", seed=0, steps=2), as_ever)
    assert events == [*["there", "says"] * 2, "away", *["draws"] * 4]
