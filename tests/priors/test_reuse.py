"""What is remembered between the steps is asked once, answers its own kind of call alone, and leaves every other call as it was."""

import copy

import pytest
import torch

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.base import Context, Memory
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from tests.conftest import build_prior_folder


@pytest.fixture(scope="module", params=["sd", "ldm", "inpainting"])
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LatentPrior:
    return load_prior(str(build_prior_folder(tmp_path_factory.mktemp("reuse") / "prior", request.param)))


def _given(prior: LatentPrior, seed: int) -> tuple[torch.Tensor, torch.Tensor, Context]:
    generator = torch.Generator().manual_seed(seed)
    side = prior.working_size // prior.factor
    z = torch.randn(2, prior.latent_channels, side, side, generator=generator)
    words = Context(tokens_BND=torch.randn(2, prior.max_tokens, prior.token_width, generator=generator))
    return z, torch.tensor([700, 700]), words


def test_inner_levels_are_asked_once_and_the_finest_each_time(prior: LatentPrior) -> None:
    unet, asked = prior.unet, []
    watched = {"first": unet.down_blocks[0], "down": unet.down_blocks[-1], "mid": unet.mid_block, "up": unet.up_blocks[0],
               "last": unet.up_blocks[-1]}  # fmt: skip
    handles = [block.resnets[0].register_forward_hook(lambda *_, name=name: asked.append(name)) for name, block in watched.items()]
    memory, (z, t, words) = Memory(), _given(prior, 0)
    prior.predict(z, t, words, memory=memory)
    whole, asked[:] = list(asked), []
    memory.fresh = False
    prior.predict(z + 0.1, t, words, memory=memory)
    for handle in handles:
        handle.remove()
    assert whole == ["first", "down", "mid", "up", "last"] and asked == ["first", "last"]


def test_the_same_call_again_has_the_same_answer_and_another_latent_another(prior: LatentPrior) -> None:
    memory, (z, t, words) = Memory(), _given(prior, 1)
    plain = prior.predict(z, t, words)
    assert torch.equal(prior.predict(z, t, words, memory=memory), plain)
    memory.fresh = False
    assert torch.equal(prior.predict(z, t, words, memory=memory), plain)
    near = z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    answer, true = prior.predict(near, t, words, memory=memory), prior.predict(near, t, words)
    assert not torch.equal(answer, plain) and not torch.equal(answer, true)
    assert torch.equal(prior.predict(z, t, words), plain)  # without a memory nothing is remembered
    memory.fresh = True
    assert torch.equal(prior.predict(near, t, words, memory=memory), true)


def test_each_kind_of_call_has_its_own(prior: LatentPrior) -> None:
    one, other = Memory(), Memory()
    (z, t, words), (_, _, others) = _given(prior, 3), _given(prior, 4)
    answers = [prior.predict(z, t, said, memory=memory) for said, memory in ((words, one), (others, other))]
    one.fresh = other.fresh = False
    again = [prior.predict(z, t, said, memory=memory) for said, memory in ((words, one), (others, other))]
    assert not torch.equal(*answers) and all(torch.equal(a, b) for a, b in zip(answers, again, strict=True))


def test_nothing_stays_behind_and_a_compiled_denoiser_remembers_nothing(prior: LatentPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    z, t, words = _given(prior, 5)
    plain, memory = prior.predict(z, t, words), Memory()
    prior.predict(z, t, words, memory=memory)
    memory.fresh = False
    memory.answers = {}  # whoever still asked it would fail
    copied = copy.deepcopy(prior.unet)
    answer = copied(z, t, encoder_hidden_states=words.tokens_BND).sample if not prior.inpaints else None
    assert answer is None or torch.equal(answer, plain)
    assert memory.answers == {}
    monkeypatch.setattr(prior, "_compiled", prior.unet)
    with pytest.raises(PriorError, match="remembers nothing"):
        prior.predict(z, t, words, memory=memory)
