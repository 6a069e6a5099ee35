"""Packed convolutions answer as plain ones, hold their weights once, and give them back where they are wanted."""

from pathlib import Path

import pytest
import torch
from torch import nn

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.devices import native_bf16
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.packed import PackedConv2d, Packing
from anomalydiffusion.priors.save import save_prior

pytestmark = pytest.mark.skipif(not native_bf16(torch.device("cpu")), reason="weights are packed for products of bfloat16")
Given = tuple[torch.Tensor, torch.Tensor, Context]


@pytest.fixture
def half_folder(small_folder: Path, tmp_path: Path) -> Path:
    """The same prior, kept in bfloat16."""
    held = load_prior(str(small_folder))
    parts = {name: getattr(held, name) for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}
    save_prior(parts, tmp_path / "half", torch.bfloat16)
    return tmp_path / "half"


def half(folder: Path) -> LatentPrior:
    return load_prior(str(folder), dtype=torch.bfloat16)


def given(prior: LatentPrior, count: int = 2) -> Given:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, prior.max_tokens, prior.token_width, generator=random)
    return torch.randn(count, 4, 8, 8, generator=random), torch.full((count,), 600), Context(tokens_BND=tokens)


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they differ by no more than the order in which bfloat16's products are added up."""
    return bool((one - other).abs().max() <= 0.02 * other.abs().max())


def convolutions(network: nn.Module) -> list[PackedConv2d]:
    return [each for each in network.modules() if isinstance(each, PackedConv2d)]


@pytest.mark.parametrize("kept", ["small_folder", "half_folder"])
def test_packed_is_as_plain(kept: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kept)
    prior, plain = half(folder), half(folder)
    wanted = plain.predict(*given(plain))  # with a gradient: never packed
    with torch.no_grad():
        assert alike(prior.predict(*given(prior)), wanted) and torch.equal(plain.predict(*given(plain)), wanted)
        one = prior.predict(*given(prior, 1))
    packed = convolutions(prior.unet)
    assert len(packed) > 10 and all(each.packed is not None for each in packed)
    assert all(each.packed is None for each in convolutions(plain.unet))
    away = kept == "small_folder"  # what was converted is in memory once; what is mapped lies in its file
    assert all(bool(each.weight.isnan().all()) == away for each in packed)

    assert alike(prior.predict(*given(prior, 1)), one)  # for a gradient they come back and stay
    assert all(each.packed is None for each in packed)
    with torch.no_grad():
        assert torch.equal(prior.predict(*given(prior)), wanted)
    assert all(torch.equal(each, other) for each, other in zip(prior.unet.parameters(), plain.unet.parameters(), strict=True))


def test_a_gradient_goes_through_what_was_packed(small_folder: Path) -> None:
    prior, plain = half(small_folder), half(small_folder)
    with torch.no_grad():
        prior.predict(*given(prior))
    slopes = []
    for each in (prior, plain):
        z, t, context = given(each)
        each.predict(z.requires_grad_(), t, context).square().mean().backward()
        slopes.append(z.grad)
    assert slopes[0] is not None and slopes[0].abs().max() > 0 and torch.equal(slopes[0], slopes[1])


@pytest.mark.parametrize("output", [torch.bfloat16, torch.float32])
def test_weights_are_read_and_moved_as_if_nothing_were_packed(small_folder: Path, output: torch.dtype) -> None:
    prior, plain = half(small_folder), half(small_folder)
    with torch.no_grad():
        prior.predict(*given(prior))
    read = prior.unet.state_dict() if output == torch.bfloat16 else prior.unet.to(output).state_dict()
    wanted = plain.unet.to(output).state_dict()
    assert read.keys() == wanted.keys() and all(torch.equal(value, wanted[name]) for name, value in read.items())
    with torch.no_grad():
        z, t, context = given(prior)
        answers = [each(z.to(output), t, encoder_hidden_states=context.tokens_BND.to(output)).sample for each in (prior.unet, plain.unet)]
    assert torch.equal(*answers)


def test_what_was_changed_before_the_first_call_is_heard(half_folder: Path) -> None:
    prior, plain = half(half_folder), half(half_folder)
    with torch.no_grad():
        for each in (prior, plain):
            each.unet.conv_in.weight.mul_(2)
        changed = prior.predict(*given(prior))
    assert alike(changed, plain.predict(*given(plain)))
    assert not alike(changed, half(half_folder).predict(*given(plain)))


def test_a_file_that_is_gone_is_not_asked(half_folder: Path) -> None:
    prior, plain = half(half_folder), half(half_folder)
    wanted = plain.predict(*given(plain))
    (file,) = (half_folder / "unet").glob("*.safetensors")
    file.unlink()
    with torch.no_grad():
        assert alike(prior.predict(*given(prior)), wanted)


def test_lora_weights_are_added_to_packed_ones(small_folder: Path) -> None:
    answers = []
    for draws in (True, False):
        prior = half(small_folder)
        adapter = Adapter(prior, [("plate", "hole")], AdapterConfig(lora_targets=("to_q", "conv1")), Origin(prior_digest="")).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in adapter.trainable().named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
        with torch.set_grad_enabled(not draws):
            answers += [adapter.predict(*given(prior)), adapter.frozen(*given(prior))]
        assert any(each.packed is not None for each in convolutions(prior.unet)) == draws
    assert alike(answers[0], answers[2]) and alike(answers[1], answers[3]) and not alike(answers[0], answers[1])


def test_other_number_formats_and_unusual_convolutions_stay_as_they_are(small_prior: LatentPrior) -> None:
    with torch.no_grad():
        small_prior.predict(*given(small_prior))
    assert not convolutions(small_prior.unet)
    kinds = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv1d(4, 4, 3))
    packing = Packing(kinds.bfloat16())
    assert not packing.waiting and not convolutions(kinds)
