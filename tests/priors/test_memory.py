"""What the paper's full-size prior needs on a graphics card, counted tensor by tensor: on "meta" nothing is filled or computed."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anomalydiffusion.app.settings import resolve
from anomalydiffusion.conditioning.spatial import SpatialEncoder
from anomalydiffusion.priors.architectures import build
from anomalydiffusion.priors.attention import install

CARD = 8e9  # bytes


class _Counted(TorchDispatchMode):
    """Bytes of all storages that were made within and still live, and the most of them at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.most = 0

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, key)
        self.most = max(self.most, self.now)
        return out


def _weights(parts: dict[str, Any], vae: torch.dtype) -> int:
    parts["vae"].to(vae)
    return sum(p.numel() * p.element_size() for name in ("unet", "vae", "text_encoder") for p in parts[name].parameters())


def _parts(dtype: torch.dtype) -> dict[str, Any]:
    with torch.device("meta"):
        parts = build("ldm-text2im-large-256", dtype)
    for name in ("unet", "vae", "text_encoder"):
        parts[name].requires_grad_(False).eval()
    install(parts["unet"])
    return parts


def test_counting_counts() -> None:
    with _Counted() as counted:
        a = torch.empty(1000, device="meta")
        b = a.view(10, 100)  # the same storage
        c = a + 1
        del c
        d = b * 2
    assert counted.most == 2 * 4000 and counted.now == 2 * 4000 and d.shape == (10, 100)


def test_a_pair_at_256_pixels_fits_a_card_of_8_gb() -> None:
    parts = _parts(torch.float16)
    weights = _weights(parts, torch.float32)  # as load_prior puts them: the autoencoder stays single
    with torch.no_grad(), torch.device("meta"):
        with _Counted() as drawing:
            parts["unet"](torch.empty(2, 4, 32, 32, dtype=torch.float16), torch.empty(2, dtype=torch.long),
                          encoder_hidden_states=torch.empty(2, 77, 1280, dtype=torch.float16))  # fmt: skip
        with _Counted() as decoding:
            parts["vae"].decode(torch.empty(1, 4, 32, 32))
    assert 3e9 < weights < 3.5e9
    assert drawing.most > 1e7 and decoding.most > 1e8
    assert weights + max(drawing.most, decoding.most) < CARD


def _learning(sparing: bool) -> tuple[int, int]:
    """Bytes of the frozen weights, and the most that one step of four pictures makes besides."""
    parts = _parts(torch.bfloat16)
    weights, unet = _weights(parts, torch.bfloat16), parts["unet"]
    if sparing:
        unet.enable_gradient_checkpointing()
    with torch.device("meta"), _Counted() as counted:
        tokens = torch.empty(4, 77, 1280, dtype=torch.bfloat16, requires_grad=True)
        out = unet(torch.empty(4, 4, 32, 32, dtype=torch.bfloat16), torch.empty(4, dtype=torch.long), encoder_hidden_states=tokens).sample
        out.float().square().mean().backward()
    assert tokens.grad is not None
    return weights, counted.most


def test_learning_at_256_pixels_fits_it_where_inner_results_are_computed_again() -> None:
    paper = resolve("paper").train
    assert paper.batch_size == 4 and paper.gradient_checkpointing
    with torch.device("meta"):
        encoder = SpatialEncoder(paper.adapter.spatial_tokens, 1280, paper.adapter.backbone)
    learned = 4 * 4 * sum(p.numel() for p in encoder.parameters())  # single precision: itself, its gradients, AdamW's two moments
    weights, most = _learning(True)
    assert weights + learned + most < CARD
    assert most < 0.6 * _learning(False)[1]
