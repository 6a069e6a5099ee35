"""A name, a diffusers folder, a hub id or one original file -> Prior; the bundled prior takes the same way as Stable Diffusion."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anomalydiffusion.core.devices import find_device
from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.priors.architectures import build
from anomalydiffusion.priors.files import BUNDLED, NETWORKS, digest_folder, weight_files
from anomalydiffusion.priors.folders import parts_in
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.original import UNET, components_of
from anomalydiffusion.priors.weights import PICKLES, read_weights

__all__ = ["BUNDLED", "digest_folder", "load_prior", "precision"]

RANDOM = "random:"  # before the name of an architecture
SINGLE = (".safetensors", *PICKLES)


def _find(name_or_path: str) -> Path:
    if name_or_path == "tiny":
        if not (BUNDLED / "model_index.json").exists():
            raise PriorError("tiny: its weights are missing from this installation; install anomalydiffusion again")
        return BUNDLED
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    if path.suffix in SINGLE or name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise PriorError(f"{name_or_path}: no such prior; give 'tiny', a diffusers folder, one file of original weights, or a hub id")
    return _fetched(name_or_path)


def _fetched(name: str) -> Path:
    """The folder of a prior on the hub, or in the hub's cache: safetensors, and pickles only where a network has none at all."""
    from huggingface_hub import snapshot_download

    try:
        for ending in ("safetensors", "fp16.safetensors", "bin"):
            wanted = ["model_index.json", "*/*.json", "*/*.txt", *(f"{network}/*model.{ending}" for network in NETWORKS)]
            folder = Path(snapshot_download(name, allow_patterns=wanted))
            if all(weight_files(folder / network) for network in NETWORKS if (folder / network).is_dir()):
                break
        return folder
    except Exception as error:  # whatever the network layer raises, the user needs the same advice
        raise PriorError(
            f"{name}: could not be fetched ({type(error).__name__}); on a machine with internet run "
            f"'hf download {name} --local-dir FOLDER', copy FOLDER here and give its path; of it model_index.json is needed, and the "
            "folders scheduler, tokenizer, unet, vae (or vqvae) and text_encoder (or bert), each with its .json, its .txt and the file "
            "that ends in model.safetensors (or model.bin)"
        ) from error


def _placed(
    where: str, parts: dict[str, Any], place: torch.device, dtype: torch.dtype, digest: str, earlier: Callable[[], str] | None = None
) -> LatentPrior:
    """The prior on its device; an autoencoder overflows in float16, and computes in single precision."""
    for role in ("vae", "unet", "text_encoder"):
        parts[role].to(place, torch.float32 if role == "vae" and dtype == torch.float16 else None)
    try:
        return LatentPrior(**parts, digest=digest, earlier=earlier)
    except PriorError as error:
        raise PriorError(f"{where}: {error}") from error


def _tokenizer_files(path: Path, names: tuple[str, ...], hub: str) -> Path:
    """The folder that holds a tokenizer's files: beside the weights, or wherever the hub's cache or the hub has them."""
    for folder in (path.parent / "tokenizer", path.parent):
        if all((folder / name).is_file() for name in names):
            return folder
    from huggingface_hub import hf_hub_download

    try:
        folders = [Path(hf_hub_download(hub, name)).parent for name in names]
        return folders[0]
    except Exception as error:  # whatever the network layer raises, the user needs the same advice
        raise PriorError(
            f"{path}: one file has no tokenizer; fetch {' and '.join(names)} of {hub} ('hf download {hub} {' '.join(names)}' on a machine "
            f"with internet) and put them into {path.parent / 'tokenizer'}"
        ) from error


def _tokenizer(path: Path, family: str, positions: int) -> Any:
    import transformers

    if family == "ldm-text2img":
        folder, kind, more = _tokenizer_files(path, ("vocab.txt",), "google-bert/bert-base-uncased"), transformers.BertTokenizer, {}
    else:
        folder, kind = _tokenizer_files(path, ("vocab.json", "merges.txt"), "openai/clip-vit-large-patch14"), transformers.CLIPTokenizer
        more = {"pad_token": "!" if family == "stable-diffusion-2" else "<|endoftext|>"}  # OpenCLIP pads with token 0
    try:
        return kind.from_pretrained(folder, local_files_only=True, model_max_length=positions, **more)
    except Exception as error:
        raise PriorError(f"{folder}: the tokenizer's files are damaged ({str(error).splitlines()[0]}); fetch them again") from error


def _from_file(path: Path, original: Path | None, place: torch.device, dtype: torch.dtype) -> LatentPrior:
    """A prior from one file of original weights (and the yaml beside it)."""
    if original is None and path.with_suffix(".yaml").is_file():
        original = path.with_suffix(".yaml")
    family, parts = components_of(read_weights(path), path, original, dtype)
    tokenizer = _tokenizer(path, family, int(parts["text_encoder"].config.max_position_embeddings))
    rows, words = parts["text_encoder"].get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        raise PriorError(f"{path}: its text encoder knows {rows} words, the tokenizer beside it has {words}; put the model's own there")
    sources = [path, *([original] if original else [])]
    digest = hashlib.sha256("".join(map(digest_file, sources)).encode()).hexdigest()[:16]
    return _placed(str(path), {**parts, "tokenizer": tokenizer}, place, dtype, digest)


def _random(name: str, place: torch.device, dtype: torch.dtype) -> LatentPrior:
    """A published architecture with random weights; its words are the bundled prior's, since they mean nothing anyway."""
    import transformers

    parts = build(name, dtype)
    positions = int(parts["text_encoder"].config.max_position_embeddings)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer", local_files_only=True, model_max_length=positions)
    return _placed(f"{RANDOM}{name}", {**parts, "tokenizer": tokenizer}, place, dtype, f"{RANDOM}{name}")


def precision(name_or_path: str) -> torch.dtype:
    """The precision that most of a denoiser's weights are kept in, without loading it; single where it is an unusual one."""
    path = _find(name_or_path)
    files = [path] if path.is_file() else weight_files(path / "unet")
    weights = (item for file in files for item in read_weights(file).items())
    kinds = Counter(value.dtype for name, value in weights if path.is_dir() or name.startswith(UNET))
    most = kinds.most_common(1)[0][0] if kinds else torch.float32
    return most if most in (torch.float32, torch.float16, torch.bfloat16) else torch.float32


def load_prior(
    name_or_path: str = "tiny", *, device: str = "cpu", dtype: torch.dtype = torch.float32, original_config: Path | str | None = None
) -> LatentPrior:  # fmt: skip
    """Load "tiny" (bundled), a diffusers folder, a hub id, one file of original weights, or "random:ARCHITECTURE", frozen.

    Stable Diffusion 1 and 2's family, their inpainting models among them, and LDM text2img. The family is read from
    `model_index.json` or from the weights, never from the path's name. Of pickles nothing but tensors is built. On a CPU, weights that
    their file holds in `dtype` stay mapped: they are no second copy of it. `original_config`: the file's yaml (default: NAME.yaml beside
    it, if there is one). `dtype` is that of the networks; a float16 prior's autoencoder computes in float32. Raises `ConfigError` on a
    device that is not to be had, `PriorError` naming the part that is missing, damaged or not supported, and what to fetch where offline.
    """
    import transformers

    place = find_device(device)
    transformers.utils.logging.disable_progress_bar()
    if name_or_path.startswith(RANDOM):
        return _random(name_or_path.removeprefix(RANDOM), place, dtype)
    folder = _find(name_or_path)
    if folder.is_file():
        return _from_file(folder, Path(original_config) if original_config else None, place, dtype)
    return _placed(str(folder), parts_in(folder, dtype), place, dtype, digest_folder(folder),
                   partial(digest_folder, folder, everything=True))  # fmt: skip
