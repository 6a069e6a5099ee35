"""What a step keeps is counted, and where it cannot be had, it is computed again, to the same result."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training import memory
from anomalydiffusion.training.loop import LoopConfig
from anomalydiffusion.training.memory import available, fits, kept
from anomalydiffusion.training.recipes import TrainConfig, train_adapter
from anomalydiffusion.training.shots import PoolConfig


def test_what_waits_for_the_way_back_is_counted_once_and_without_weights() -> None:
    first, second = nn.Linear(100, 50, bias=False), nn.Linear(50, 10, bias=False)
    x = torch.randn(8, 100)  # waits for the first layer's weights; what relu made waits for itself and for the second's
    counted = kept(lambda: second(torch.relu(first(x))), first, second)
    assert counted == 4 * (8 * 100 + 8 * 50)
    assert kept(lambda: second(torch.relu(first(x)))) == counted + 4 * 50 * 10  # the weights that a gradient is passed on by
    with torch.no_grad():
        assert kept(lambda: first(x), first) == 4 * 8 * 100  # a gradient is wanted, whatever is around


def test_what_was_counted_is_let_go() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def call() -> torch.Tensor:
        hidden = torch.randn(10, requires_grad=True).exp()  # which waits for its own way back
        made.append(weakref.ref(hidden))
        return hidden.sum()

    assert kept(call) == 40 and made[0]() is None


@pytest.mark.parametrize(("free", "batch", "enough"), [(1000, 1, True), (1000, 5, True), (1000, 6, False), (100, 1, False)])
def test_a_batch_is_told_by_one_sample_and_two(monkeypatch: pytest.MonkeyPatch, free: int, batch: int, enough: bool) -> None:
    monkeypatch.setattr(memory, "available", lambda device: free)
    assert fits(lambda count: 100 + 100 * count, batch, torch.device("cpu")) is enough  # of which 600 of 1000 may be taken


def test_on_a_processor_what_can_be_had_is_what_the_machine_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=16_000, available=3_000, free=1_000))
    assert available(torch.device("cpu")) == 3_000


def test_a_machine_with_little_memory_learns_the_same(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((64, 64), bool)
    pixels[20:40, 24:44] = True
    shots = {
        ("plate", "hole"): [(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), Mask(pixels_HW=pixels, origin="x"))]
    }
    config = TrainConfig(
        batch_size=2, pool=PoolConfig(crops=4), loop=LoopConfig(steps=2, learning_rate=1e-3, log_every=1, mixed_precision="no")
    )

    def learned(name: str) -> tuple[dict[str, torch.Tensor], list[bool]]:
        prior, spared = load_prior(str(small_folder)), list[bool]()

        def watch(step: int, adapter: Adapter) -> None:
            spared.append(any(getattr(module, "gradient_checkpointing", False) for module in prior.unet.modules()))

        adapter = train_adapter(prior, shots, config, tmp_path / name, seed=0, watch=watch)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in prior.unet.modules())
        return adapter.trainable().state_dict(), spared

    plain, spared = learned("much")
    assert spared == [False, False]
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    little, spared = learned("little")
    assert spared == [True, True]
    for name, tensor in plain.items():
        torch.testing.assert_close(little[name], tensor, rtol=0, atol=1e-6, msg=name)
