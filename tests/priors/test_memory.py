"""What a prior holds, counted tensor by tensor: the paper's full-size one on "meta", where nothing is filled; and loading, on files."""

import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from anomalydiffusion.app.settings import resolve
from anomalydiffusion.conditioning.spatial import SpatialEncoder
from anomalydiffusion.priors.architectures import build
from anomalydiffusion.priors.attention import install
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.weights import converted, read_weights
from tests.priors.test_original import Models, write

CARD = 8e9  # bytes


class _Counted(TorchDispatchMode):
    """Bytes of all storages that were made within and still live, and the most of them at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.most = 0

    def counts(self, storage: torch.UntypedStorage) -> bool:
        return True

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live and self.counts(storage):
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


def test_a_batch_of_pairs_at_256_pixels_fits_a_card_of_8_gb() -> None:
    parts, batch = _parts(torch.float16), resolve("paper").generate.batch_size
    weights = _weights(parts, torch.float32)  # as load_prior puts them: the autoencoder stays single
    steered = {"gain": torch.empty(batch, 1, 32, 32, device="meta"), "span": (5, 17)}
    with torch.no_grad(), torch.device("meta"):
        with _Counted() as drawing:
            parts["unet"](torch.empty(batch, 4, 32, 32, dtype=torch.float16), torch.empty(batch, dtype=torch.long),
                          encoder_hidden_states=torch.empty(batch, 77, 1280, dtype=torch.float16),
                          cross_attention_kwargs=steered)  # fmt: skip
        with _Counted() as decoding:
            parts["vae"].decode(torch.empty(1, 4, 32, 32))
    assert batch == 8 and 3e9 < weights < 3.5e9
    assert drawing.most > 1e7 and decoding.most > 1e8
    assert weights + max(drawing.most, decoding.most) < CARD
    said = sum(p.nbytes for p in parts["text_encoder"].parameters())  # what leaves while it draws
    assert said > 1.1e9 and weights - said + max(drawing.most, decoding.most) < 0.75 * CARD


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


MAPS = Path("/proc/self/maps")


def _mapped(address: int) -> bool:
    """Whether it is a file of weights that lies at an address of this process."""
    for line in MAPS.read_text().splitlines():
        ends, _, rest = line.partition(" ")
        low, high = (int(end, 16) for end in ends.split("-"))
        if low <= address < high:
            return rest.endswith((".safetensors", ".bin", ".ckpt"))
    return False


class _Beside(_Counted):
    """Only what is held beside files that are mapped."""

    def counts(self, storage: torch.UntypedStorage) -> bool:
        return storage.device.type == "cpu" and not _mapped(storage.data_ptr())


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not say what is mapped")
@pytest.mark.parametrize("kind", ["folder", "pickles", ".safetensors", ".ckpt"])
def test_weights_stay_in_their_file_and_loading_holds_no_second_copy(kind: str, small_folder: Path, tmp_path: Path) -> None:
    path = small_folder
    if kind == "pickles":
        path = shutil.copytree(small_folder, tmp_path / "pickles")
        for file in list(path.glob("*/*.safetensors")):
            torch.save({name: value.clone() for name, value in load_file(file).items()}, file.with_name(
                "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"))  # fmt: skip
            file.unlink()
    elif kind != "folder":
        path = write(Models("stable-diffusion-1", tmp_path), tmp_path / f"model{kind}")
    with _Beside() as beside:
        prior = load_prior(str(path))
    weights = [each for part in (prior.vae, prior.unet, prior.text_encoder) for each in part.parameters()]
    assert all(_mapped(each.data_ptr()) for each in weights)
    assert beside.most < 0.3 * sum(each.nbytes for each in weights)


class _Resident(TorchDispatchMode):
    """The most that was in memory of a mapped file, in bytes, at any step of torch's."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.most = str(file), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, found, named = func(*args, **(kwargs or {})), 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                named = line.endswith(self.file)
            elif named and line.startswith("Rss:"):
                found += 1024 * int(line.split()[1])
        self.most = max(self.most, found)
        return out


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not say what is mapped")
def test_a_denoiser_that_is_converted_is_not_held_twice(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({f"{number}.weight": torch.full((1 << 18,), 1 / (number + 1)) for number in range(32)}, file)
    with _Resident(file) as whole:
        expected = {name: value.to(torch.bfloat16) for name, value in read_weights(file).items()}
    with _Resident(file) as single:
        found = converted(file, torch.bfloat16)
    assert whole.most > 30 << 20 and single.most < 4 << 20
    assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())
