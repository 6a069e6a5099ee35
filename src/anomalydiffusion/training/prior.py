"""Train a whole small prior: pictures -> autoencoder -> cached latents -> denoiser and text encoder -> diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.pixels import to_batch
from anomalydiffusion.core.runs import replace_folder
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.data.corpus import CorpusConfig, draw_corpus, load_textures
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.training.autoencoder import AutoencoderConfig, build_autoencoder, linear_start, train_autoencoder
from anomalydiffusion.training.loop import LoopConfig, Progress, latest_checkpoint, run_loop

__all__ = ["DenoiserConfig", "PriorConfig", "train_prior"]

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """Shape and training of the denoiser and the text encoder."""

    widths: tuple[int, ...] = (128, 192, 256)
    layers_per_block: int = 1
    head_width: int = 32
    text_width: int = 192
    text_layers: int = 3
    max_tokens: int = 32
    vocabulary: int = 1500
    batch_size: int = 32
    drop_caption: float = 0.1
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1_000_000, minutes=50.0, learning_rate=6e-4, warmup=300, weight_decay=0.01, average=0.999)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """Everything about one prior; `recipes/tiny.toml` holds the bundled one's."""

    seed: int = 0
    textures: str = ""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)


def _check_origin(path: Path, made: str, tables: str) -> None:
    """Refuse what other settings left in the work folder; what bears no digest comes from before digests were kept and passes."""
    if path.exists() and path.read_text() != made:
        raise RunError(f"{path.parent}: was begun with other settings of {tables} or another seed; give another --work, or delete it")


def _corpus_digest(config: PriorConfig) -> str:
    return f"{digest(config.corpus)}-{config.seed}"


def draw_pictures(config: PriorConfig, work: Path, textures: Path | None, progress: Progress | None) -> tuple[np.ndarray, list[str]]:
    """Draw the corpus once into `work/pictures.npy` (N x size x size x 3 uint8) and `captions.json`; later calls read it."""
    done, captions, origin = work / "pictures.npy", work / "captions.json", work / "pictures.digest"
    if done.exists():
        _check_origin(origin, _corpus_digest(config), "[corpus]")
    else:
        size = config.corpus.size
        part = work / "pictures.part.npy"
        array = np.lib.format.open_memmap(part, "w+", np.uint8, (config.corpus.pictures, size, size, 3))
        words = []
        for index, picture in enumerate(draw_corpus(config.corpus, load_textures(textures) if textures else [], config.seed)):
            array[index] = picture.image_HWC
            words.append(picture.caption)
            if progress and (index + 1) % 500 == 0:
                progress(index + 1, {})
        array.flush()
        captions.write_text(json.dumps(words))
        origin.write_text(_corpus_digest(config))
        part.rename(done)
    return np.load(done, mmap_mode="r"), list(json.loads(captions.read_text()))


def round_trip(vae: AutoencoderDC) -> Callable[[torch.Tensor], torch.Tensor]:
    """Encode and decode, as a function of images."""
    return lambda x_BCHW: vae.decode(vae.encode(x_BCHW).latent).sample


def build_tokenizer(captions: Sequence[str], size: int, max_tokens: int) -> CLIPTokenizer:
    """Learn byte-pair merges on the captions, in CLIP's own format."""
    plain = CLIPTokenizer()
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = plain.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=[START, END], initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([*captions, " ".join(alphabet)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges: list[Any] = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_tokens)


class Denoiser(nn.Module):
    """Denoiser and text encoder as one trainable module."""

    def __init__(self, config: DenoiserConfig, latent_channels: int, grid: int, vocabulary: int, end_id: int, start_id: int) -> None:
        super().__init__()
        down = ("CrossAttnDownBlock2D",) * len(config.widths)
        up = ("CrossAttnUpBlock2D",) * len(config.widths)
        self.unet = UNet2DConditionModel(
            sample_size=grid, in_channels=latent_channels, out_channels=latent_channels, block_out_channels=config.widths,
            layers_per_block=config.layers_per_block, cross_attention_dim=config.text_width, norm_num_groups=32,
            attention_head_dim=tuple(width // config.head_width for width in config.widths),
            down_block_types=down, up_block_types=up, use_linear_projection=True,
        )  # fmt: skip
        self.text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=config.text_width, intermediate_size=3 * config.text_width,
            num_hidden_layers=config.text_layers, num_attention_heads=config.text_width // 32,
            max_position_embeddings=config.max_tokens, projection_dim=config.text_width,
            bos_token_id=start_id, eos_token_id=end_id, pad_token_id=end_id,
        ))  # fmt: skip


def vary(caption: str, generator: np.random.Generator, drop: float) -> str:
    """One of several ways to say a caption: with or without the material, by name or as "an anomaly", or nothing."""
    if generator.random() < drop:
        return ""
    flaw, on, ground = caption.partition(" on ")
    if not on or flaw.startswith(("a photo", "a binary")):
        return caption
    if generator.random() < 0.25:
        flaw = str(generator.choice(["an anomaly", "a defect"]))
    said = flaw if generator.random() < 0.3 else f"{flaw} on {ground}"
    return f"a photo of {said}" if generator.random() < 0.6 else said


def _schedule() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        steps_offset=0, prediction_type="sample", timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip


@torch.no_grad()
def cache_latents(vae: AutoencoderDC, images: np.ndarray, path: Path) -> np.ndarray:
    """Encode every picture once into `path` (N x C x h x w, half precision)."""
    if not path.exists():
        grid = images.shape[1] // 8
        part = path.with_suffix(".part.npy")
        out = np.lib.format.open_memmap(part, "w+", np.float16, (len(images), vae.config.latent_channels, grid, grid))
        for start in range(0, len(images), 64):
            out[start : start + 64] = vae.encode(to_batch(images[start : start + 64])).latent.half().numpy()
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def train_denoiser(
    model: Denoiser, latents: np.ndarray, captions: list[str], tokenizer: CLIPTokenizer, scale: float, config: DenoiserConfig,
    folder: Path, *, seed: int, progress: Progress | None = None,
) -> nn.Module:  # fmt: skip
    """Minimise `|| z_0 - f_theta(z_t, t, c) ||^2 / max(1 - a_t, 0.05)` over denoiser and text encoder on cached latents.

    The network answers with the clean latent: with 48 channels and few features it cannot carry the noise through, and
    samples of a noise- or v-predicting one stay noisy. The weight makes the loss that of v-prediction, but near t = 0.
    """
    alphas = _schedule().alphas_cumprod
    model.unet.to(memory_format=torch.channels_last)
    ids = {text: torch.tensor(tokenizer(text, padding="max_length", truncation=True).input_ids) for text in [""]}

    def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
        generator = rng(seed, "denoiser", step, micro)
        rows = np.sort(generator.integers(0, len(latents), config.batch_size))
        clean = torch.from_numpy(latents[rows]).float() * scale
        words = [vary(captions[row], generator, config.drop_caption) for row in rows]
        for text in set(words) - set(ids):
            ids[text] = torch.tensor(tokenizer(text, padding="max_length", truncation=True).input_ids)
        t = torch.from_numpy(generator.integers(0, len(alphas), config.batch_size))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(derive(seed, "noise", step, micro)))
        alpha = alphas[t].view(-1, 1, 1, 1)
        context = model.text_encoder(torch.stack([ids[text] for text in words]))[0]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        answer = model.unet(noisy, t, encoder_hidden_states=context).sample.float()
        return {"loss": ((answer - clean).square().flatten(1).mean(1) / (1 - alphas[t]).clamp_min(0.05)).mean()}

    return run_loop(model, objective, config.loop, folder, progress=progress)


def make_autoencoder(
    config: PriorConfig, images: np.ndarray, work: Path, progress: Progress | None
) -> tuple[AutoencoderDC, dict[str, dict[str, float]]]:
    """Train the autoencoder once into `work/vae`; later calls read it. Returns it with its measured numbers."""
    done, made = work / "vae", f"{_corpus_digest(config)}-{digest(config.autoencoder)}"
    if (done / "config.json").exists():
        _check_origin(work / "vae.digest", made, "[corpus] or [autoencoder]")
        return AutoencoderDC.from_pretrained(done), json.loads((done / "numbers.json").read_text())
    kept = max(1, min(200, len(images) // 10))
    vae = build_autoencoder(config.autoencoder)
    linear_start(vae, to_batch(images[: min(2000, len(images) - kept)]))
    numbers = {"linear": measure_autoencoder(round_trip(vae), images[-kept:])}
    trained: Any = train_autoencoder(vae, images[:-kept], config.autoencoder, work / "autoencoder", seed=config.seed, progress=progress)
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
    return CLIPTokenizer.from_pretrained(done, local_files_only=True)


def _check_output(output: Path, work: Path) -> None:
    """Refuse, before hours of training, an output that the finished prior must not replace."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file of this name is in the way; give another --output")
    if output.is_dir() and any(output.iterdir()) and not (output / "model_index.json").exists():
        raise DataError(f"{output}: holds other things than a prior, which would replace them; give a new or an empty folder as --output")
    if work.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{work}: lies in the output, which is replaced at the end; give another --work")


def train_prior(config: PriorConfig, output: Path, work: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train a prior from its recipe into the diffusers folder `output`; `work` keeps what a resumed run needs.

    Returns the autoencoder's measured numbers. The last 200 pictures (at most a tenth) are held out of its training and
    measured on; but they are crops of the same texture files as the rest, and the denoiser does train on all pictures.
    Raises `DataError` when `output` holds anything but a prior, `RunError` when `work` comes from other settings.
    """
    _check_output(output, work)
    textures = Path(config.textures).expanduser() if config.textures else None
    if textures is not None and not textures.is_dir():
        raise DataError(f"{textures}: no such folder; name the folder of textures with 'textures' in the recipe")
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    images, captions = draw_pictures(config, work, textures, progress)
    vae, numbers = make_autoencoder(config, images, work, progress)
    latents = cache_latents(vae, images, work / "latents.npy")
    scale = 1.0 / float(np.asarray(latents[:: max(1, len(latents) // 2000)]).astype(np.float32).std())
    vae.register_to_config(scaling_factor=scale, _name_or_path="")  # a kept one would name the work folder
    tokenizer = make_tokenizer(config, captions, work)
    model = Denoiser(config.denoiser, vae.config.latent_channels, config.corpus.size // 8, len(tokenizer),
                     int(tokenizer.eos_token_id), int(tokenizer.bos_token_id))  # fmt: skip
    model.text_encoder.train()
    best: Any = train_denoiser(
        model, latents, captions, tokenizer, scale, config.denoiser, work / "denoiser", seed=config.seed, progress=progress
    )
    save_prior(vae, best, tokenizer, output)
    return numbers


def save_prior(vae: AutoencoderDC, model: Any, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Write a diffusers folder with half-precision safetensors."""
    index = {"_class_name": "StableDiffusionPipeline"}
    with replace_folder(output) as target:
        parts: dict[str, Any] = {
            "vae": vae,
            "unet": model.unet,
            "text_encoder": model.text_encoder,
            "scheduler": _schedule(),
            "tokenizer": tokenizer,
        }
        for name, part in parts.items():
            whole: Any = part.half() if isinstance(part, nn.Module) else part
            whole.save_pretrained(target / name)
            library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
            index[name] = [library, type(part).__name__]  # type: ignore[assignment]
        (target / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
