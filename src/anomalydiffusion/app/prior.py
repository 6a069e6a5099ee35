"""The commands that train or describe a prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.core.config import from_dict, merge, read_toml
from anomalydiffusion.core.devices import DTYPES
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.data.folders import GOOD, SUFFIXES, plain, read_groups
from anomalydiffusion.priors.files import learned_from, note_learned
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import digest_folder, load_prior, precision
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.priors.samples import draw
from anomalydiffusion.priors.save import SUMS, save_prior
from anomalydiffusion.quality.features import EfficientNetLite0
from anomalydiffusion.quality.scores import perceptual_distance
from anomalydiffusion.report.sheets import contact_sheet, fitted
from anomalydiffusion.training.adapt import MOST, AdaptConfig, adapt_prior
from anomalydiffusion.training.prior import PriorConfig, train_prior

__all__ = ["adapted", "prior_convert", "prior_info", "prior_train"]

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
SAMPLES = 6  # pictures a caption


def prior_train(
    config: Path | str | None, output: Path | str, *, work: Path | str | None = None, textures: Path | str | None = None,
    images: Path | str | None = None, start: str = "tiny", name: str | None = None, steps: int | None = None, seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train a prior from a recipe, or go on with one on a folder of normal `images`; typed again, it goes on where it was.

    `work` (default: OUTPUT with '-work' behind it) keeps what a resumed run needs. With `images` the prior `start` learns what they
    look like, as a picture of `name` (default: "texture"), for `steps`; `config` then holds settings of `AdaptConfig`. Returns
    figures: of the autoencoder, and with `images` how far the denoiser is from images that were held back, before and after, with a
    sheet of what both draw.
    """
    output = Path(output)
    work = Path(work) if work else output.with_name(output.name + "-work")
    if images is not None:
        if textures is not None:
            raise ConfigError("--textures: are a recipe's; with --images leave them away")
        found = sorted(p for p in Path(images).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{images}: no pictures found; give a folder of normal images")
        given = from_dict(AdaptConfig, merge(read_toml(config) if config else {}, {"steps": steps}))
        groups = _groups_of(found, Path(images))
        return adapted(found, name or "texture", start, output, work, given, seed=seed, groups=groups, quiet=quiet)
    if config is None:
        raise ConfigError("give --config, a recipe, or --images, a folder of normal images to adapt a prior to")
    recipe = read_toml(config)
    if textures is not None:
        recipe["textures"] = str(textures)
    settings = from_dict(PriorConfig, recipe)

    def progress(step: int, means: dict[str, float]) -> None:
        say(f"{step} " + " ".join(f"{name} {value:.4f}" for name, value in means.items()), quiet=quiet)

    return train_prior(settings, output, work, progress=progress)


def adapted(
    images: Sequence[Path], name: str, start: str, output: Path, work: Path, config: AdaptConfig, *, seed: int,
    groups: Sequence[str] | None, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Adapt the prior `start` to normal images; the figures of `adapt_prior`, and where the sheet of samples is."""
    if len(images) > MOST:
        say(f"{len(images)} normal images: {MOST} of them, drawn at random, are taken", quiet=quiet)
    with bar("adapt the prior", config.steps, quiet=quiet) as shown:

        def progress(step: int, means: dict[str, float]) -> None:
            if "loss" in means:
                shown.at(step, f"loss {means['loss']:.3f}")

        figures = adapt_prior(images, name, start, output, work, config, seed=seed, groups=groups, progress=progress)
    sheet = work / "before-after.png"
    drawn = [(when, load_prior(which)) for when, which in (("before", start), ("after", str(output)))]
    lines = [
        (f"{when}: a photo of {name}", [fitted(f"seed {seed}", draw(prior, f"a photo of {name}", seed=seed, steps=20), prior.working_size)
                                        for seed in range(SAMPLES)])
        for when, prior in drawn
    ]  # fmt: skip
    write_atomic(sheet, encode_png(contact_sheet(lines)))
    numbers = f"{figures['before']:.4f} before, {figures['after']:.4f} after (lower is better)"
    say(f"{figures['images']} normal images learned from, {figures['held_back']} held back: {numbers}", quiet=quiet)
    return {**figures, "sheet": str(sheet)}


def _groups_of(images: Sequence[Path], folder: Path) -> list[str]:
    """Which part each picture shows, as the nearest `groups.csv` above it in `folder` says, or that of the product `folder` is of."""
    whole = folder.resolve()
    product = [whole.parents[1]] if whole.parts[-2:] == ("train", GOOD) else []
    known: dict[Path, dict[str, str]] = {}
    found = []
    for path in (whole / path.relative_to(folder) for path in images):
        within = path.parents[: len(path.relative_to(whole).parents)]
        place = next((each for each in (*within, *product) if (each / "groups.csv").exists()), None)
        if place is not None and place not in known:
            known[place] = read_groups(place)
        own = None if place is None else known[place].get(plain(path.relative_to(place).as_posix()))
        found.append(str(path) if own is None else f"{place}/{own}")
    return found


def prior_convert(source: str, output: Path | str, *, original_config: Path | str | None = None, dtype: str = "") -> dict[str, Any]:
    """Write a prior, such as one file of original weights, as a diffusers folder of safetensors; returns its SHA-256 sums.

    `dtype`: "float32", "float16", "bfloat16", or "" for the precision that the denoiser's weights have in a file.
    """
    output = Path(output)
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype}: expected one of {', '.join(DTYPES)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already; give a new or an empty folder as --output")
    wanted = DTYPES[dtype] if dtype else precision(source)
    loaded = load_prior(source, dtype=wanted, original_config=original_config)
    save_prior({part: getattr(loaded, part) for part in PARTS}, output, wanted)
    note_learned(output, learned_from(Path(source).expanduser()))
    sums = {name: sha256 for sha256, name in (line.split("  ", 1) for line in (output / SUMS).read_text().splitlines())}
    return {"family": loaded.family, "output": str(output), "digest": digest_folder(output), "sha256": sums}


def prior_info(
    name: str = "tiny", *, images: Path | str | None = None, samples: Path | str | None = None, caption: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe a prior: family, sizes, parameters, memory in each number format, digest.

    With `images`, a folder, also how well its autoencoder keeps them: PSNR, gradient-energy ratio, and how unlike they look afterwards
    to EfficientNet-Lite0 (`quality.scores.perceptual_distance`: 0 = the same, 4 at most).

    With `samples`, a PNG file to write, and one `caption` or more, it draws a sheet of what the prior makes of each.
    """
    if bool(samples) != bool(caption):
        raise ConfigError("samples and caption belong together: give the picture's file and at least one caption")
    loaded = load_prior(name)
    if samples is not None:
        lines = [
            (words, [fitted(f"seed {seed}", draw(loaded, words, seed=seed), loaded.working_size) for seed in range(SAMPLES)])
            for words in caption
        ]
        write_atomic(Path(samples), encode_png(contact_sheet(lines)))
    kept: dict[str, Any] = {}
    if images is not None:
        files = sorted(p for p in Path(images).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{images}: no pictures found; give a folder of normal images")
        pictures, seen = (read_image(path) for path in files), EfficientNetLite0()
        found = measure_autoencoder(
            lambda x: loaded.decode(loaded.encode(x)), pictures, factor=loaded.factor,
            distance=lambda *both: float(perceptual_distance(*(seen.maps([each]) for each in both))),
        )  # fmt: skip
        kept = {"images": len(files), **found}
    parameters = {part: sum(p.numel() for p in getattr(loaded, part).parameters()) for part in ("vae", "unet", "text_encoder")}
    return {
        "name": name, "family": loaded.family, "digest": loaded.digest,
        "autoencoder": type(loaded.vae).__name__, "text_encoder": type(loaded.text_encoder).__name__,
        "factor": loaded.factor, "latent_channels": loaded.latent_channels, "working_size": loaded.working_size,
        "prediction_type": loaded.prediction_type, "inpaints": loaded.inpaints, "max_tokens": loaded.max_tokens, "parameters": parameters,
        "megabytes": {name: _megabytes(loaded, dtype) for name, dtype in DTYPES.items()},
        **({"autoencoder_keeps": kept} if kept else {}),
    }  # fmt: skip


def _megabytes(prior: LatentPrior, dtype: torch.dtype) -> float:
    """What a prior's weights take when it is loaded in a number format; its autoencoder stays single where float16 overflows."""
    kept = {"vae": torch.float32 if dtype == torch.float16 else dtype, "unet": dtype, "text_encoder": dtype}
    return round(sum(p.numel() * kind.itemsize for part, kind in kept.items() for p in getattr(prior, part).parameters()) / 1e6, 1)
