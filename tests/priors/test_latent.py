"""Splicing, parametrisations, schedules."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from tests.conftest import build_prior_folder


def test_learned_tokens_stand_where_the_span_says(small_prior: LatentPrior) -> None:
    learned = torch.randn(1, 3, small_prior.token_width)
    head = small_prior.tokenize("a photo of")
    table, encoder = small_prior.text_encoder.get_input_embeddings(), small_prior.text_encoder
    embeddings = getattr(encoder, "text_model", encoder).embeddings  # transformers 5 has one level less
    seen = []
    spy = embeddings.register_forward_hook(lambda module, given, answer: seen.append(answer))
    context = small_prior.embed((head, small_prior.tokenize("metal")), learned)
    spy.remove()
    start, stop = context.span
    assert (start, stop) == (1 + len(head), 1 + len(head) + 3)
    words = (seen[0] - embeddings.position_embedding.weight[: small_prior.max_tokens])[0]  # what the encoder was given
    torch.testing.assert_close(words[start:stop], learned[0])
    said = [small_prior.tokenizer.bos_token_id, *head], [*small_prior.tokenize("metal"), small_prior.tokenizer.eos_token_id]
    torch.testing.assert_close(words[:start], table.weight[said[0]])
    torch.testing.assert_close(words[stop : stop + len(said[1])], table.weight[said[1]])
    # a spliced word embedding must do exactly what the word itself does
    words = small_prior.tokenize("a crack")
    with torch.no_grad():
        spliced = small_prior.embed((head, []), table.weight[words][None]).tokens_BND
        ids = [small_prior.tokenizer.bos_token_id, *head, *words, small_prior.tokenizer.eos_token_id]
        ids += [small_prior.tokenizer.pad_token_id] * (small_prior.max_tokens - len(ids))
        plain = small_prior.text_encoder(torch.tensor([ids]))[0]
    torch.testing.assert_close(spliced, plain)
    assert not table._forward_hooks


@pytest.mark.parametrize("family", ["sd", "ldm"])
def test_words_are_encoded_as_each_family_s_pipeline_does_also_where_they_are_spliced(tmp_path: Path, family: str) -> None:
    prior = load_prior(str(build_prior_folder(tmp_path / family, family)))
    ids = prior.tokenizer("a photo of a crack", padding="max_length", max_length=32, return_tensors="pt").input_ids
    learned = prior.word_embeddings(prior.tokenize("crack"))[None]
    with torch.no_grad():
        expected = prior.text_encoder(ids)[0]
        whole = prior.embed((prior.tokenize("a photo of a crack"), []), torch.zeros(1, 0, prior.token_width))
        spliced = prior.embed((prior.tokenize("a photo of a"), []), learned)
    torch.testing.assert_close(whole.tokens_BND, expected)
    torch.testing.assert_close(spliced.tokens_BND, expected)
    assert spliced.span == (5, 5 + learned.shape[1])  # behind the start and four words


def test_gradients_reach_the_learned_tokens_and_nothing_else(small_prior: LatentPrior) -> None:
    learned = torch.randn(1, 2, small_prior.token_width, requires_grad=True)
    small_prior.embed((small_prior.tokenize("a"), []), learned).tokens_BND.square().sum().backward()
    assert learned.grad is not None and learned.grad.abs().sum() > 0
    assert all(p.grad is None for p in small_prior.text_encoder.parameters())


def test_learned_tokens_are_never_cut_off(small_prior: LatentPrior) -> None:
    with pytest.raises(PriorError, match="positions"):
        small_prior.embed((small_prior.tokenize("a photo of"), []), torch.randn(1, 40, small_prior.token_width))
    with pytest.raises(PriorError, match="wide"):
        small_prior.embed(([], []), torch.randn(1, 2, small_prior.token_width + 1))


@pytest.mark.parametrize(("said", "kept"), [(10**30, 32), (512, 32), (20, 20)])
def test_a_prompt_is_as_long_as_both_tokenizer_and_text_encoder_allow(small_prior: LatentPrior, said: int, kept: int) -> None:
    small_prior.tokenizer.model_max_length = said
    parts = {name: getattr(small_prior, name) for name in ("vae", "unet", "text_encoder", "tokenizer")}
    prior = LatentPrior(**parts, scheduler=DDIMScheduler(), digest="")
    assert prior.max_tokens == kept
    assert prior.embed((prior.tokenize("a photo of"), []), torch.zeros(1, 2, prior.token_width)).tokens_BND.shape[1] == kept


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_right_answer_gives_back_clean_and_noise(small_prior: LatentPrior, kind: str) -> None:
    small_prior.prediction_type = kind
    clean, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([5, 400, 800])
    z = small_prior.noised(clean, noise, t)
    estimate = small_prior.estimate(z, small_prior.target(clean, noise, t), t)
    torch.testing.assert_close(estimate.clean, clean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(estimate.noise, noise, atol=1e-3, rtol=1e-3)


def test_an_error_in_the_clean_picture_weighs_by_how_little_noise_there_is_up_to_20(small_prior: LatentPrior) -> None:
    t = torch.tensor([0, 400, 900])
    noise = 1 - small_prior.alphas[t].float()
    for kind, expected in (("epsilon", torch.ones(3)), ("v_prediction", torch.ones(3)), ("sample", (1 / noise).clamp_max(20))):
        small_prior.prediction_type = kind
        torch.testing.assert_close(small_prior.weight(t), expected.view(3, 1, 1, 1))
    assert noise[0] < 0.05 < noise[1]


def test_the_autoencoder_is_the_same_in_half_the_precision_and_latents_lie_as_a_file_keeps_them(small_folder: Path) -> None:
    whole, half = load_prior(str(small_folder)), load_prior(str(small_folder), dtype=torch.bfloat16)
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kernels = [each.weight for each in half.vae.modules() if isinstance(each, torch.nn.Conv2d) and each.kernel_size != (1, 1)]
    assert kernels and all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)  # or each picture is turned
    latents = [prior.encode(picture) for prior in (whole, half)]
    assert all(z.is_contiguous() and z.dtype == torch.float32 for z in latents)  # a resumed training reads them from a file
    for one, other in (latents, [prior.decode(latents[0]) for prior in (whole, half)]):
        assert (one - other).abs().max() < 0.05 * one.abs().max()
