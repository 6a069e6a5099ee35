"""Words -> one call -> print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalydiffusion.core.version import __version__

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn industrial defects from a handful of images and generate exactly labelled new ones.",
)  # fmt: skip
prior_app = typer.Typer(no_args_is_help=True, help="Train, or describe, the prior that everything is drawn from.")
app.add_typer(prior_app, name="prior")

Run = Annotated[Path, typer.Argument(help="The run's folder.")]
Product = Annotated[list[str] | None, typer.Option("--product", help="Only this product; repeatable.")]
Defect = Annotated[list[str] | None, typer.Option("--defect", help="Only this defect type; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Everything random follows from it.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings; the command line wins.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 .. or mps.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16: of the prior's networks.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the last checkpoint, or start over.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|diffusers|peft|transformers)\b")
    for name in ("diffusers", "transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _range(text: str | None, option: str) -> float | tuple[float, float] | None:
    """A number, or two with a colon between."""
    try:
        found = [float(part) for part in (text or "").split(":")] if text is not None else []
    except ValueError:
        found = [0.0] * 3
    if len(found) > 2:
        raise typer.BadParameter(f"'{text}': expected a number, or two such as 0.5:1.5", param_hint=option)
    return None if not found else found[0] if len(found) == 1 else (found[0], found[1])


def _print(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps(figures, indent=1, ensure_ascii=False))


def _list(figures: dict[str, Any], as_json: bool) -> None:
    """Figures for a reader, or as JSON."""
    if as_json:
        _print(figures)
        return
    from anomalydiffusion.app.tables import figures_list

    figures_list(figures)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="A data set in MVTec AD layout.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read a data set, list what it holds, name every problem with its file."""
    from anomalydiffusion.data.check import check as call

    report = call(data)
    if as_json:
        _print(report.to_dict())
    else:
        from rich import box
        from rich.console import Console
        from rich.table import Column, Table

        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        named = [Column(word, overflow="fold", min_width=10) for word in ("product", "defect")]  # names are never cut
        counted = ("images", "shots", "train\ngood", "test\ngood", "size", "groups", "pixels")
        table = Table(*named, *counted, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for product in report.products:
            (w0, h0), (w1, h1) = product.sizes
            size = f"{w0} x {h0}" if (w0, h0) == (w1, h1) else f"{w0} x {h0} .. {w1} x {h1}"
            common = [str(product.normals_train), str(product.normals_test), size, str(product.groups), ", ".join(product.modes)]
            for row, (defect, count) in enumerate(product.defects.items()):
                shots = str(product.shots.get(defect, 0))
                table.add_row(product.name if row == 0 else "", defect, str(count), shots, *(common if row == 0 else [""] * 5))
            if not product.defects:
                table.add_row(product.name, "-", "0", "0", *common)
        console.print(table)
        for problem in report.problems:
            console.print(f"{problem.level}: {problem.file}: {problem.message}; {problem.remedy}", markup=False, soft_wrap=True)
        console.print("nothing wrong" if report.ok else "not ready: mend the errors above")
    if not report.ok:
        raise typer.Exit(1)


@app.command("import")
def import_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the data set in MVTec AD layout.")],
    source: Annotated[Path | None, typer.Argument(help="VisA's folder, a COCO or Label Studio JSON, YOLO's folder; or pictures.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="visa, coco, yolo, labelstudio or folders (default: by files).")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="The folder of pictures, where it is not found.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="For folders: masks named like the pictures, or NAME_mask.")] = None,
    normals: Annotated[Path | None, typer.Option("--normals", help="For folders: pictures without a defect.")] = None,
    product: Annotated[str | None, typer.Option("--product", help="The product's name; for visa: only this product.")] = None,
    defect: Annotated[str | None, typer.Option("--defect", help="For folders: the defect type's name.")] = None,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Turn another tool's labelled pictures into a data set that check and train read."""
    from anomalydiffusion.data.imports import import_data as call

    summary = call(source, output, format, images=images, masks=masks, normals=normals, product=product, defect=defect)
    if not quiet:
        for name, counts in summary.counts.items():
            typer.echo(f"{name}: " + ", ".join(f"{place} {count}" for place, count in counts.items()))
        typer.echo(str(summary.output))


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A data set in MVTec AD layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder; made if it is not there.")],
    product: Product = None, defect: Defect = None,
    prior: Annotated[str | None, typer.Option("--prior", help="tiny (bundled), a folder, one file of weights, or a hub id.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="default, paper or fast.")] = None,
    config: Config = None, seed: Seed = None,
    rotation: Annotated[int | None, typer.Option("--rotation", help="0, 1 or 2: which third of each defect type is learned from.")] = None,
    max_train_steps: Annotated[int | None, typer.Option("--max-train-steps", "--max_train_steps", help="Steps to train.")] = None,
    extend: Annotated[Path | None, typer.Option("--extend", help="An earlier run, or the authors' files; adds the other defects.")] = None,
    device: Device = None, dtype: Dtype = None, resume: Resume = True, dry_run: DryRun = False, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Learn defects from their few shots."""
    from anomalydiffusion.app import commands

    commands.train(data, output, product=product, defect=defect, prior=prior, preset=preset, config=config, seed=seed,
                   rotation=rotation, max_train_steps=max_train_steps, extend=extend, device=device, dtype=dtype, resume=resume,
                   dry_run=dry_run,
                   quiet=quiet)  # fmt: skip


@app.command()
def masks(
    run: Run, num: Annotated[int, typer.Option("--num", help="Proposals per defect type.")] = 8,
    source: Annotated[str | None, typer.Option("--source", help="warped: real masks, changed; learned: drawn by the prior.")] = None,
    product: Product = None, defect: Defect = None,
    prior: Annotated[str | None, typer.Option("--prior", help="Where the prior that was trained on lies now.")] = None,
    config: Config = None, seed: Seed = None, device: Device = None, dtype: Dtype = None, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Choose where masks come from, and show those that generation would use."""
    from anomalydiffusion.app import commands

    commands.masks(run, num=num, source=source, product=product, defect=defect, prior=prior, config=config, seed=seed, device=device,
                   dtype=dtype, quiet=quiet)  # fmt: skip


@app.command()
def generate(
    run: Run, num: Annotated[int, typer.Option("--num", help="Accepted pairs per defect type.")],
    product: Product = None, defect: Defect = None,
    prior: Annotated[str | None, typer.Option("--prior", help="Where the prior that was trained on lies now.")] = None,
    seed: Seed = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    severity: Annotated[str | None, typer.Option("--severity", help="1 = as learned; lower is fainter; 0.5:1.5 = each its own.")] = None,
    normals: Annotated[Path | None, typer.Option("--normals", help="A folder of normal images to draw on.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="A folder of masks to use, or with <product>/<defect>/ in it.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", "--batch_size", help="Pairs at once.")] = None,
    attempts: Annotated[int | None, typer.Option("--attempts", help="Draws per pair before it is given up.")] = None,
    config: Config = None, device: Device = None, dtype: Dtype = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on, or throw these types' pairs away first.")] = True,
    dry_run: DryRun = False, as_json: AsJson = False,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Make pairs of image and mask until NUM per defect type are accepted."""
    from anomalydiffusion.app import commands

    records = commands.generate(
        run, num, product=product, defect=defect, prior=prior, seed=seed, steps=steps, severity=_range(severity, "--severity"),
        normals=normals, masks=masks, batch_size=batch_size, attempts=attempts, config=config, device=device, dtype=dtype,
        resume=resume, dry_run=dry_run, quiet=quiet,
    )  # fmt: skip
    if as_json:
        _print({"drawn": len(records), "accepted": sum(bool(r["accepted"]) for r in records)})


@app.command()
def curate(
    run: Run,
    refit: Annotated[bool | None, typer.Option("--refit/--no-refit", help="Fit each label to what is seen of its defect.")] = None,
    visible: Annotated[float | None, typer.Option("--visible", help="Least change in the mask, over the variation around it.")] = None,
    change: Annotated[float | None, typer.Option("--change", help="Least change in the mask, in Lab units.")] = None,
    copy: Annotated[float | None, typer.Option("--copy", help="Correlation with a shot from which a pair is its copy.")] = None,
    strict: Annotated[float | None, typer.Option("--strict", help="Deviations below what real defects score; 0 = no such limits.")] = None,
    agreement: Annotated[float | None, typer.Option("--agreement", help="Least overlap of the label with what changed.")] = None,
    similarity: Annotated[float | None, typer.Option("--similarity", help="Least likeness to a shot of the type.")] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="Least likeness to the type above that to others.")] = None,
    from_shots: Annotated[bool, typer.Option("--from-shots", help="Forget limits that were given: they are the shots' again.")] = False,
    config: Config = None, dry_run: DryRun = False, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Judge a run's pairs anew with other limits; nothing is deleted, and generate draws others for what is no longer kept."""
    from anomalydiffusion.app.curate import curate as call

    figures = call(run, refit=refit, visible=visible, change=change, copy=copy, strict=strict, agreement=agreement,
                   similarity=similarity, margin=margin, from_shots=from_shots, config=config, dry_run=dry_run, quiet=quiet)  # fmt: skip
    if as_json:
        _print(figures)
    elif not quiet:
        from anomalydiffusion.app.tables import yield_table

        yield_table(figures)


@app.command()
def evaluate(
    run: Run, task: Annotated[str, typer.Option("--task", help="localization, classification or quality.")] = "localization",
    seeds: Annotated[int, typer.Option("--seeds", help="How many times, with other random numbers; 3 or more give a verdict.")] = 1,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Also what one would do without generation.")] = False,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Also further real defects, and misplaced labels.")] = False,
    detector: Annotated[str | None, typer.Option("--detector", help="cpu, paper or segformer; cpu or paper for classification.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps of each detector.")] = None,
    shortcut: Annotated[bool, typer.Option("--shortcut/--no-shortcut", help="Check for learning the decoder, not the defect.")] = True,
    features: Annotated[str, typer.Option("--features", help="For quality: what looks at the images.")] = "efficientnet-lite0",
    config: Config = None, device: Device = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train the same detector with and without the pairs; test all on held-out real images; say whether they help."""
    from anomalydiffusion.app.evaluate import evaluate as call

    scores = call(run, task=task, seeds=seeds, baselines=baselines, controls=controls, detector=detector, steps=steps,
                  shortcut=shortcut, features=features, config=config, device=device, quiet=quiet)  # fmt: skip
    if as_json:
        _print(scores)
        return
    from anomalydiffusion.app.tables import scores_table

    scores_table(scores)


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the export.")],
    format: Annotated[
        str, typer.Option("--format", help="mvtec, anomalib, coco, yolo, imagefolder or labelstudio: the pairs; embeddings: the vectors."),
    ] = "mvtec",
    product: Product = None, defect: Defect = None,
    normals: Annotated[bool, typer.Option("--normals/--no-normals", help="Copy the normal images too.")] = True,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Hand the accepted pairs to other tools."""
    from anomalydiffusion.app.export import export as call

    summary = call(run, output, format, product=product, defect=defect, normals=normals)
    if not quiet:
        for (name, kind), count in summary.counts.items():
            typer.echo(f"{name}/{kind}: {count} {'vectors' if format == 'embeddings' else 'pairs'}")
        typer.echo(str(summary.output))


@app.command()
def report(run: Run, quiet: Quiet = False, debug: Debug = False) -> None:
    """Write one self-contained page about a run: RUN/report/index.html."""
    from anomalydiffusion.report.page import report as call

    page = call(run)
    if not quiet:
        typer.echo(str(page))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the demo's data and run go.")] = Path("demo-run"),
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """The whole job on the bundled demo data with the bundled prior, offline, on a CPU."""
    from anomalydiffusion.app.demo import demo as call

    typer.echo(call(output, quiet=quiet))


@app.command()
def studio(
    run: Annotated[Path, typer.Argument(help="The run's folder; need not be there yet.")] = Path("run"),
    data: Annotated[Path | None, typer.Option("--data", help="The data set's folder; known already where the run has learned.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve at; others can reach 0.0.0.0, which needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to serve at.", min=1, max=65535)] = 7860,
    auth: Annotated[str | None, typer.Option("--auth", help="USER:PASSWORD that is asked for.")] = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Open the web page: look at data, learn, draw, review, prove, export."""
    from anomalydiffusion.app.studio import studio as call

    call(run, data=data, host=host, port=port, auth=auth)


@app.command()
def bench(
    prior: Annotated[str, typer.Option("--prior", help="As for train; or random:NAME, an architecture with random weights.")] = "tiny",
    what: Annotated[str, typer.Option("--what", help="call, generate, train or all.")] = "all",
    preset: Annotated[str | None, typer.Option("--preset", help="default, paper or fast.")] = None,
    config: Config = None, device: Device = None, dtype: Dtype = None,
    repeat: Annotated[int, typer.Option("--repeat", help="How often each is measured.")] = 3,
    as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Measure speed and memory of a prior on this machine."""
    from anomalydiffusion.app.bench import bench as call

    _list(call(prior, what=what, preset=preset, config=config, device=device, dtype=dtype, repeat=repeat, quiet=quiet or as_json), as_json)


@prior_app.command("train")
def prior_train(
    config: Annotated[Path, typer.Option("--config", help="The recipe, such as recipes/tiny.toml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    textures: Annotated[Path | None, typer.Option("--textures", help="The folder of texture pictures that the recipe needs.")] = None,
    work: Annotated[Path | None, typer.Option("--work", help="Where checkpoints and caches go (default: OUTPUT-work).")] = None,
    as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train a small prior from a recipe; typed again, it goes on where it was."""
    from anomalydiffusion.app.prior import prior_train as call

    _list(call(config, output, work=work, textures=textures, quiet=quiet), as_json)


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

    _list(call(source, output, original_config=original_config, dtype=dtype), as_json)


@prior_app.command("info")
def prior_info(
    name: Annotated[str, typer.Argument(help="tiny, a diffusers folder, or a hub id.")] = "tiny",
    images: Annotated[Path | None, typer.Option("--images", help="A folder: say how well the autoencoder keeps its pictures.")] = None,
    samples: Annotated[Path | None, typer.Option("--samples", help="A PNG to write: what the prior draws from each --caption.")] = None,
    caption: Annotated[list[str] | None, typer.Option("--caption", help="Words to draw from; repeatable.")] = None,
    as_json: AsJson = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Describe a prior: family, sizes, parameters, digest; what its autoencoder loses on your images; what it draws from words."""
    from anomalydiffusion.app.prior import prior_info as call

    _list(call(name, images=images, samples=samples, caption=caption or ()), as_json)
