"""Networks begin where they say they do."""

import timm
import torch

from anomalydiffusion.core.imagenet import lite0_file, renamed
from anomalydiffusion.downstream.networks import build_network


def test_the_light_network_sees_what_imagenet_taught_and_keeps_its_first_stages() -> None:
    model = build_network("light", 8, 0).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    known = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    known.load_state_dict(renamed(torch.load(lite0_file(), weights_only=True), known), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model.network.encoder(x)[3], known(x)[2], atol=1e-3, rtol=1e-3)
    encoder = model.network.encoder.model
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).mean().backward()
    optimiser.step()
    same = {name: torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items()}
    assert all(same[name] for name in same if name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")))
    assert not same["blocks.3.0.conv_pw.weight"] and not same["blocks.3.0.bn1.running_mean"]


def test_the_seed_draws_the_new_weights() -> None:
    once, again, other = (build_network("light", 8, seed).network.segmentation_head[0].weight for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
