"""The compiled denoiser answers as the other one does, and only where nothing is learned."""

import torch
from torch import _dynamo
from torch._dynamo.utils import counters

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior


def test_compiled_calls_answer_as_plain_ones_and_learning_stays_plain(small_prior: LatentPrior) -> None:
    _dynamo.reset()  # nothing that was compiled before counts
    adapter = Adapter(small_prior, [("plate", "hole")], AdapterConfig(lora_targets=("to_q", "conv1")), Origin(prior_digest="")).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapter.trainable().named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([600, 200])
    context = Context(tokens_BND=torch.randn(2, small_prior.max_tokens, small_prior.token_width), span=(3, 15))
    gain = torch.rand(2, 1, 8, 8) * 3

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            return [adapter.predict(z, t, context, gain), adapter.frozen(z, t, context)]

    plain = answers()
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    small_prior.compile()
    before = counters["stats"]["unique_graphs"]
    compiled = answers()
    assert counters["stats"]["unique_graphs"] == before + 2  # one of each kind of call ...
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    again = answers()
    assert counters["stats"]["unique_graphs"] == before + 2  # ... and none anew
    assert all(torch.equal(one, other) for one, other in zip(again, compiled, strict=True))
    with torch.no_grad():
        small_prior.unet.conv_in.weight.add_(1.0)
    built_in = answers()  # nothing of the network's own weights is read any more: they are packed
    assert all(torch.equal(one, other) for one, other in zip(built_in, compiled, strict=True))

    loss = adapter.predict(z, t, context).square().mean()  # with a gradient
    loss.backward()
    assert counters["stats"]["unique_graphs"] == before + 2
    learned = dict(adapter.trainable().named_parameters())
    assert all(parameter.grad is not None for name, parameter in learned.items() if "lora_" in name)
