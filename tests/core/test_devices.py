"""A device or a number format that does not work here is refused by name, before anything is loaded."""

from types import SimpleNamespace

import pytest
import torch

from anomalydiffusion.core import devices
from anomalydiffusion.core.devices import find_device, find_dtype, idle_card, scarce
from anomalydiffusion.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "says"),
    [("foo", "'foo' is not known; give cpu, cuda, mps"), ("meta", "'meta' is not supported"), ("mps", "no Apple graphics")],
)
def test_a_device_that_does_not_work_is_refused_by_name(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=says):
        find_device(name)
    assert find_device("cpu").type == "cpu"


def test_cuda_without_cuda_and_beyond_the_last_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA device here; give cpu"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"'cuda:3': this machine has 2 CUDA devices"):
        find_device("cuda:3")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert find_device("cuda") == torch.device("cuda") and not chosen
    assert find_device("cuda:1").index == 1 and chosen == [torch.device("cuda:1")]


def test_a_card_that_stands_idle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, name in ((True, False, "cuda"), (False, True, "mps"), (False, False, "")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert idle_card("cpu") == name and idle_card("cuda") == ""


def test_memory_is_scarce_on_small_cards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, small in ((8e9, True), (24e9, False)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, total=total: SimpleNamespace(total_memory=total))
        assert scarce(torch.device("cuda", 0)) == small
    assert not scarce(torch.device("cpu")) and not scarce(torch.device("mps"))


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_where_the_processor_lacks_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "native_bf16", lambda device: native)
    assert find_dtype("float32", cpu) == torch.float32
    if native:
        assert find_dtype("bfloat16", cpu) == torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="cpu has no instructions for it"):
            find_dtype("bfloat16", cpu)
    with pytest.raises(ConfigError, match="no processor computes in it; give float32"):
        find_dtype("float16", cpu)
    with pytest.raises(ConfigError, match="'half' is not known; give float32, bfloat16, float16"):
        find_dtype("half", cpu)
    assert find_dtype("float16", torch.device("cuda")) == torch.float16
