"""Train a whole small prior: pictures -> autoencoder -> cached latents -> denoiser and text encoder -> diffusers folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import ConfigError, DataError, PriorError, RunError
from anomalydiffusion.core.pixels import to_batch
from anomalydiffusion.core.runs import replace_folder
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.data.corpus import CorpusConfig, Texture, draw_corpus, load_textures
from anomalydiffusion.priors.files import learned_from, note_learned
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.priors.save import save_prior
from anomalydiffusion.training.autoencoder import AutoencoderConfig, build_autoencoder, level_channels, linear_start, train_autoencoder
from anomalydiffusion.training.denoiser import Denoiser, DenoiserConfig, build_denoiser, build_tokenizer, schedule, train_denoiser, vary
from anomalydiffusion.training.loop import Progress, latest_checkpoint

if TYPE_CHECKING:  # slow to import, and most commands never need them
    from diffusers import AutoencoderDC
    from transformers import CLIPTokenizer

__all__ = ["PriorConfig", "train_prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """Everything about one prior; `recipes/tiny.toml` holds the bundled one's."""

    seed: int = 0
    textures: str = ""
    start: str = ""  # a prior to go on from ("tiny", or a folder): its autoencoder is kept, its denoiser and text encoder learn on
    anew: bool = False  # with `start`: keep its autoencoder alone; tokenizer, denoiser and text encoder begin from nothing
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def __post_init__(self) -> None:
        if self.anew and not self.start:
            raise ConfigError("anew: keeps the autoencoder of a prior; name that prior with 'start'")


def _check_origin(path: Path, made: str, tables: str) -> None:
    """Refuse what other settings left in the work folder; what bears no digest comes from before digests were kept and passes."""
    if path.exists() and path.read_text() != made:
        raise RunError(f"{path.parent}: was begun with other settings of {tables} or another seed; give another --work, or delete it")


def _begin(work: Path, name: str, config: DenoiserConfig | AutoencoderConfig) -> None:
    """Refuse to go on with a network's training under other settings; how long it lasts and how often it is kept may change."""
    made = digest(replace(config, loop=replace(config.loop, steps=1, minutes=0.0, checkpointing_steps=1)))
    _check_origin(work / f"{name}-begun.digest", made, f"[{name}]")
    (work / f"{name}-begun.digest").write_text(made)


def _corpus_digest(config: PriorConfig) -> str:
    return f"{digest(config.corpus)}-{config.seed}"


def _textures_digest(textures: Sequence[Texture]) -> str:
    hashed = hashlib.sha256()
    for image, name in textures:
        hashed.update(name.encode() + str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return hashed.hexdigest()[:16]


def draw_pictures(
    config: PriorConfig, work: Path, textures: Path | Sequence[Texture] | None, progress: Progress | None
) -> tuple[np.ndarray, list[str]]:
    """Draw the corpus once into `work/pictures.npy` (N x size x size x 3 uint8) and `captions.json`; later calls read it."""
    done, captions, origin = work / "pictures.npy", work / "captions.json", work / "pictures.digest"
    made, tables = _corpus_digest(config), "[corpus]"
    if textures is not None and not isinstance(textures, Path):
        made, tables = f"{made}-{_textures_digest(textures)}", "[corpus], other pictures"
    if done.exists():
        _check_origin(origin, made, tables)
    else:
        size = config.corpus.size
        part = work / "pictures.part.npy"
        array = np.lib.format.open_memmap(part, "w+", np.uint8, (config.corpus.pictures, size, size, 3))
        words = []
        given = load_textures(textures) if isinstance(textures, Path) else textures or []
        for index, picture in enumerate(draw_corpus(config.corpus, given, config.seed)):
            array[index] = picture.image_HWC
            words.append(picture.caption)
            if progress and (index + 1) % 500 == 0:
                progress(index + 1, {})
        array.flush()
        captions.write_text(json.dumps(words))
        origin.write_text(made)
        part.rename(done)
    return np.load(done, mmap_mode="r"), list(json.loads(captions.read_text()))


def round_trip(vae: AutoencoderDC) -> Callable[[torch.Tensor], torch.Tensor]:
    """Encode and decode, as a function of images."""
    return lambda x_BCHW: vae.decode(vae.encode(x_BCHW).latent).sample


@torch.no_grad()
def cache_latents(vae: AutoencoderDC, images: np.ndarray, path: Path) -> np.ndarray:
    """Encode every picture once into `path` (N x C x h x w, half precision)."""
    if not path.exists():
        grid = images.shape[1] // vae.spatial_compression_ratio
        part = path.with_suffix(".part.npy")
        out = np.lib.format.open_memmap(part, "w+", np.float16, (len(images), vae.config.latent_channels, grid, grid))
        for start in range(0, len(images), 64):
            out[start : start + 64] = vae.encode(to_batch(images[start : start + 64])).latent.half().numpy()
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def _kept(images: np.ndarray) -> int:
    """How many of the last pictures the autoencoder is measured on."""
    return max(1, min(200, len(images) // 10))


def make_autoencoder(
    config: PriorConfig, images: np.ndarray, work: Path, progress: Progress | None
) -> tuple[AutoencoderDC, dict[str, dict[str, float]]]:
    """Train the autoencoder once into `work/vae`; later calls read it. Returns it with its measured numbers."""
    done, made = work / "vae", f"{_corpus_digest(config)}-{digest(config.autoencoder)}-levelled"
    if (done / "config.json").exists():
        _check_origin(work / "vae.digest", made, "[corpus] or [autoencoder]")
        from diffusers import AutoencoderDC

        return AutoencoderDC.from_pretrained(done), json.loads((done / "numbers.json").read_text())
    kept = _kept(images)
    vae = build_autoencoder(config.autoencoder)
    linear_start(vae, to_batch(images[: min(2000, len(images) - kept)]))
    numbers = {"linear": measure_autoencoder(round_trip(vae), images[-kept:])}
    _begin(work, "autoencoder", config.autoencoder)
    trained: Any = train_autoencoder(vae, images[:-kept], config.autoencoder, work / "autoencoder", seed=config.seed, progress=progress)
    level_channels(trained)
    numbers["autoencoder"] = measure_autoencoder(round_trip(trained.eval()), images[-kept:])
    (work / "vae.digest").write_text(made)
    with replace_folder(done) as target:
        trained.save_pretrained(target)
        (target / "numbers.json").write_text(json.dumps(numbers))
    return trained, numbers


def make_tokenizer(config: PriorConfig, captions: list[str], work: Path) -> CLIPTokenizer:
    """Learn the tokenizer once into `work/tokenizer`; later calls read it.

    It is kept because merges that are equally frequent come in a random order: another one gives the words other numbers.
    """
    done, origin = work / "tokenizer", work / "tokenizer.digest"
    made = f"{_corpus_digest(config)}-{config.denoiser.vocabulary}-{config.denoiser.max_tokens}"
    if done.exists():
        _check_origin(origin, made, "[corpus] or [denoiser]")
    else:
        if latest_checkpoint(work / "denoiser"):
            raise RunError(f"{work / 'denoiser'}: was begun before tokenizers were kept, and its own is lost; delete it to train it anew")
        said = sorted({vary(caption, rng(0, "words", i), 0.0) for i, caption in enumerate(captions)})
        origin.write_text(made)
        with replace_folder(done) as target:
            build_tokenizer(said, config.denoiser.vocabulary, config.denoiser.max_tokens).save_pretrained(target)
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(done, local_files_only=True)


def _check_output(output: Path, work: Path) -> None:
    """Refuse, before hours of training, an output that the finished prior must not replace."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file of this name is in the way; give another --output")
    if output.is_dir() and any(output.iterdir()) and not (output / "model_index.json").exists():
        raise DataError(f"{output}: holds other things than a prior, which would replace them; give a new or an empty folder as --output")
    if work.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{work}: lies in the output, which is replaced at the end; give another --work")


def load_start(config: PriorConfig) -> LatentPrior:
    """The prior to go on from. Raises `PriorError` where it is not one that `train_prior` makes for pictures of this size."""
    begun = load_prior(config.start)
    if begun.family != "own" or begun.prediction_type == "epsilon" or begun.working_size != config.corpus.size:
        raise PriorError(
            f"{config.start}: cannot be gone on from; 'start' takes a prior that 'prior train' made, "
            f"for pictures of {config.corpus.size} pixels"
        )
    return begun


def train_prior(
    config: PriorConfig, output: Path, work: Path, *, textures: Sequence[Texture] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Train a prior from its recipe into the diffusers folder `output`; `work` keeps what a resumed run needs.

    `textures`: pictures that take the place of those in the recipe's folder.

    With `config.start` another prior's autoencoder is kept, and its denoiser and text encoder go on learning, on its noise
    schedule (then the shapes in [denoiser] do not count), or begin from nothing with `config.anew`; [autoencoder] does not count
    in either case. Returns the autoencoder's measured numbers. The last 200 pictures (at most a tenth) are held out of its
    training and measured on; but they are crops of the same texture files as the rest, and the denoiser does train on all
    pictures. Raises `DataError` when `output` holds anything but a prior, `RunError` when `work` comes from other settings,
    `PriorError` on a start that does not fit.
    """
    _check_output(output, work)
    folder = Path(config.textures).expanduser() if config.textures and textures is None else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of textures with 'textures' in the recipe")
    begun = load_start(config) if config.start else None
    known = learned_from(Path(config.start).expanduser())  # OUTPUT may lie where that does
    origin = (f"{begun.digest} anew" if config.anew else begun.digest) if begun else ""
    work.mkdir(parents=True, exist_ok=True)
    _check_origin(work / "start.digest", origin, "start")
    (work / "start.digest").write_text(origin)
    torch.manual_seed(config.seed)
    images, captions = draw_pictures(config, work, folder if textures is None else textures, progress)
    if begun:
        vae, numbers = begun.vae, {"autoencoder": measure_autoencoder(round_trip(begun.vae), images[-_kept(images) :])}
        if config.anew:
            level_channels(vae)
    else:
        vae, numbers = make_autoencoder(config, images, work, progress)
    latents = cache_latents(vae, images, work / "latents.npy")
    if begun and not config.anew:
        tokenizer, scheduler = begun.tokenizer, begun.scheduler
        model = Denoiser(begun.unet, begun.text_encoder).requires_grad_(True)
    else:
        scale = 1.0 / float(np.asarray(latents[:: max(1, len(latents) // 2000)]).astype(np.float32).std())
        vae.register_to_config(scaling_factor=scale)
        tokenizer, scheduler = make_tokenizer(config, captions, work), schedule()
        torch.manual_seed(derive(config.seed, "denoiser"))  # whether its autoencoder was made just now or before
        model = build_denoiser(config.denoiser, vae.config.latent_channels, latents.shape[-1], tokenizer)
    for part in (vae, model.unet):
        part.register_to_config(_name_or_path="")  # a kept one would name the folder that it was read from
    model.train()
    _begin(work, "denoiser", config.denoiser)
    best: Any = train_denoiser(
        model,
        latents,
        captions,
        tokenizer,
        scheduler,
        float(vae.config.scaling_factor),
        config.denoiser,
        work / "denoiser",
        seed=config.seed,
        progress=progress,
    )
    parts = {"vae": vae, "unet": best.unet, "text_encoder": best.text_encoder, "scheduler": scheduler, "tokenizer": tokenizer}
    save_prior(parts, output, torch.float16)
    note_learned(output, known)
    return numbers
