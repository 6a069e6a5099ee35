"""The options that several commands share, and how figures are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "AsJson",
    "Config",
    "Debug",
    "Defect",
    "Device",
    "DryRun",
    "Dtype",
    "Preset",
    "Product",
    "Quiet",
    "Resume",
    "Run",
    "Seed",
    "dashed",
    "number_or_range",
    "offered",
    "print_figures",
    "print_json",
]  # fmt: skip


def offered(*words: str) -> Callable[[str], list[str]]:
    """What the shell's completion offers as an option's value."""

    def fitting(incomplete: str) -> list[str]:  # by this name typer tells what is typed so far
        return [word for word in words if word.startswith(incomplete)]

    return fitting


Run = Annotated[Path, typer.Argument(help="The run's folder.")]
Product = Annotated[list[str] | None, typer.Option("--product", help="Only this product; repeatable.")]
Defect = Annotated[list[str] | None, typer.Option("--defect", help="Only this defect type; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Everything random follows from it.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings; the command line wins.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 .. or mps.", autocompletion=offered("cpu", "cuda", "mps")),
]  # fmt: skip
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32, bfloat16 or float16: of the prior's networks.", autocompletion=offered("float32", "bfloat16", "float16"),
    ),
]  # fmt: skip
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the denoiser first: minutes with a large prior, then faster.", show_default=False),
]  # fmt: skip
Preset = Annotated[
    str | None, typer.Option("--preset", help="default, paper or fast.", autocompletion=offered("default", "paper", "fast")),
]  # fmt: skip
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors.")]
OnlyTable = Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the last checkpoint, or start over.")]


def dashed(word: str) -> str:
    """The name of an option or a command, where other trainers write "_": `--max_train_steps` is `--max-train-steps`."""
    return word.replace("_", "-")


def number_or_range(text: str | None, option: str) -> float | tuple[float, float] | None:
    """A number, or two with a colon between."""
    try:
        found = [float(part) for part in (text or "").split(":")] if text is not None else []
    except ValueError:
        found = [0.0] * 3
    if len(found) > 2:
        raise typer.BadParameter(f"'{text}': expected a number, or two such as 0.5:1.5", param_hint=option)
    return None if not found else found[0] if len(found) == 1 else (found[0], found[1])


def print_json(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps(figures, indent=1, ensure_ascii=False).encode("utf-8", "replace").decode())


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    """Figures for a reader, or as JSON."""
    if as_json:
        print_json(figures)
        return
    from anomalydiffusion.app.tables import figures_list

    figures_list(figures)
