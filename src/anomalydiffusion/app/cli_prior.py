"""The commands of `prior`: words -> one call -> print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomalydiffusion.app.options import AsJson, Debug, Quiet, print_figures

__all__ = ["prior_app"]

prior_app = typer.Typer(no_args_is_help=True, help="Train, or describe, the prior that everything is drawn from.")


@prior_app.command("train")
def prior_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    config: Annotated[Path | None, typer.Option("--config", help="The recipe, such as recipes/tiny.toml.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Instead: a folder of normal images that --start is adapted to.")] = None,
    start: Annotated[str, typer.Option("--start", help="With --images: the prior to go on from.")] = "tiny",
    name: Annotated[str | None, typer.Option("--name", help="With --images: what they show, in a word or two.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="With --images: training steps.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="With --images: everything random follows from it.")] = 0,
    textures: Annotated[Path | None, typer.Option("--textures", help="The folder of texture pictures that the recipe needs.")] = None,
    work: Annotated[Path | None, typer.Option("--work", help="Where checkpoints and caches go (default: OUTPUT-work).")] = None,
    as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train a small prior from a recipe, or adapt one to your normal images; typed again, it goes on where it was."""
    from anomalydiffusion.app.prior import prior_train as call

    print_figures(
        call(config, output, work=work, textures=textures, images=images, start=start, name=name, steps=steps, seed=seed, quiet=quiet),
        as_json,
    )


@prior_app.command("convert")
def prior_convert(
    source: Annotated[str, typer.Argument(help="A .safetensors or .ckpt of original weights, a diffusers folder, or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    original_config: Annotated[Path | None, typer.Option("--original-config", help="The file's yaml (default: beside it).")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float16 or bfloat16 (default: as it is kept).")] = "",
    as_json: AsJson = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Write a prior as a diffusers folder of safetensors, with its SHA-256 sums."""
    from anomalydiffusion.app.prior import prior_convert as call

    print_figures(call(source, output, original_config=original_config, dtype=dtype), as_json)


@prior_app.command("info")
def prior_info(
    name: Annotated[str, typer.Argument(help="tiny, a diffusers folder, one file of weights, or a hub id.")] = "tiny",
    images: Annotated[Path | None, typer.Option("--images", help="A folder: say how well the autoencoder keeps its pictures.")] = None,
    samples: Annotated[Path | None, typer.Option("--samples", help="A PNG to write: what the prior draws from each --caption.")] = None,
    caption: Annotated[list[str] | None, typer.Option("--caption", help="Words to draw from; repeatable.")] = None,
    as_json: AsJson = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Describe a prior: family, sizes, parameters, memory, digest; what its autoencoder loses on your images; what it draws from words."""
    from anomalydiffusion.app.prior import prior_info as call

    print_figures(call(name, images=images, samples=samples, caption=caption or ()), as_json)
