"""Words -> one call -> print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer

from anomalydiffusion.app.cli_prior import prior_app
from anomalydiffusion.app.cli_tools import tools_app
from anomalydiffusion.app.options import (
    AsJson,
    Compile,
    Config,
    Debug,
    Defect,
    Device,
    DryRun,
    Dtype,
    OnlyTable,
    Preset,
    Product,
    Quiet,
    Resume,
    Run,
    Seed,
    dashed,
    number_or_range,
    offered,
    print_json,
)
from anomalydiffusion.core.version import __version__

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": dashed},
    help="Learn industrial defects from a handful of images and generate exactly labelled new ones.",
)  # fmt: skip
app.add_typer(tools_app)
app.add_typer(prior_app, name="prior")


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
        print_json(report.to_dict())
    else:
        from anomalydiffusion.app.tables import check_table

        check_table(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command("import")
def import_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the data set in MVTec AD layout.")],
    source: Annotated[Path | None, typer.Argument(help="VisA's folder, a COCO or Label Studio JSON, YOLO's folder; or pictures.")] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="visa, coco, yolo, labelstudio or folders (default: by files).",
                     autocompletion=offered("visa", "coco", "yolo", "labelstudio", "folders")),
    ] = None,
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
    preset: Preset = None, config: Config = None, seed: Seed = None,
    rotation: Annotated[int | None, typer.Option("--rotation", help="0, 1 or 2: which third of each defect type is learned from.")] = None,
    max_train_steps: Annotated[int | None, typer.Option("--max-train-steps", help="Steps to train.")] = None,
    report_to: Annotated[
        str | None,
        typer.Option("--report-to", help="tensorboard, wandb, mlflow, trackio, none.",
                     autocompletion=offered("tensorboard", "wandb", "mlflow", "trackio", "none")),
    ] = None,
    extend: Annotated[Path | None, typer.Option("--extend", help="An earlier run, or the authors' files; adds the other defects.")] = None,
    adapt_prior: Annotated[bool, typer.Option("--adapt-prior", help="First teach the prior your normal images.")] = False,
    preview_steps: Annotated[int | None, typer.Option("--preview-steps", help="Steps between sheets of defects: RUN/previews.")] = None,
    device: Device = None, dtype: Dtype = None, resume: Resume = True, dry_run: DryRun = False, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Learn defects from their few shots."""
    from anomalydiffusion.app.train import train as call

    call(data, output, product=product, defect=defect, prior=prior, preset=preset, config=config, seed=seed, rotation=rotation,
         max_train_steps=max_train_steps, report_to=report_to, extend=extend, adapt_prior=adapt_prior,
         preview_steps=preview_steps, device=device, dtype=dtype, resume=resume, dry_run=dry_run, quiet=quiet)  # fmt: skip


@app.command()
def masks(
    run: Run, num: Annotated[int, typer.Option("--num", help="Proposals per defect type.")] = 8,
    source: Annotated[
        str | None,
        typer.Option("--source", help="warped: real masks, changed; matched: put where they fit; auto: whichever suits a type; "
                     "learned: drawn by the prior.", autocompletion=offered("auto", "warped", "matched", "learned")),
    ] = None,
    product: Product = None, defect: Defect = None,
    prior: Annotated[str | None, typer.Option("--prior", help="Where the run's prior lies now, if it was moved.")] = None,
    config: Config = None, seed: Seed = None, device: Device = None, dtype: Dtype = None, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Choose where masks come from, and show those that generation would use."""
    from anomalydiffusion.app.masks import masks as call

    call(run, num=num, source=source, product=product, defect=defect, prior=prior, config=config, seed=seed, device=device,
         dtype=dtype, quiet=quiet)  # fmt: skip


@app.command()
def generate(
    run: Run, num: Annotated[int | None, typer.Option("--num", help="Accepted pairs per defect type.")] = None,
    like: Annotated[Path | None, typer.Option("--like", help="A picture that this run drew: draw just that pair again.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --like: the PNG to write (default: in RUN/again).")] = None,
    reference: Annotated[Path | None, typer.Option("--reference", help="The one picture of a defect: begins RUN, untrained.")] = None,
    reference_mask: Annotated[Path | None, typer.Option("--reference-mask", help="Its mask; give --normals and --defect too.")] = None,
    product: Product = None, defect: Defect = None,
    prior: Annotated[str | None, typer.Option("--prior", help="Where the run's prior lies now, if it was moved.")] = None,
    seed: Seed = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    severity: Annotated[str | None, typer.Option("--severity", help="1 = as learned; lower is fainter; 0.5:1.5 = each its own.")] = None,
    normals: Annotated[Path | None, typer.Option("--normals", help="A folder of normal images to draw on.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="A folder of masks to use, or with <product>/<defect>/ in it.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs at once.")] = None,
    attempts: Annotated[int | None, typer.Option("--attempts", help="Draws per pair before it is given up.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that draw, each with its own model.")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="local, or a Ray cluster's address: its actors draw.")] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: this command's part where n of them share the work.")] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="A folder or URL that pairs are copied to: s3://bucket/tiles")] = None,
    config: Config = None, device: Device = None, dtype: Dtype = None, compile: Compile = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on, or throw these types' pairs away first.")] = True,
    dry_run: DryRun = False, as_json: AsJson = False,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Make pairs of image and mask until NUM per defect type are accepted, or one again, as its picture says."""
    from anomalydiffusion.app.generate import generate as call

    records = call(
        run, num, like=like, output=output, product=product, defect=defect, prior=prior, seed=seed, steps=steps,
        severity=number_or_range(severity, "--severity"), normals=normals, masks=masks, batch_size=batch_size, attempts=attempts,
        workers=workers, ray=ray, shard=shard, mirror=mirror, config=config, reference=reference, reference_mask=reference_mask,
        device=device, dtype=dtype, compile=compile, resume=resume, dry_run=dry_run, quiet=quiet,
    )  # fmt: skip
    if as_json and like is not None:
        print_json(records[0] if records else {})
    elif as_json:
        print_json({"drawn": len(records), "accepted": sum(bool(r["accepted"]) for r in records)})


@app.command()
def curate(
    run: Run,
    refit: Annotated[bool | None, typer.Option("--refit/--no-refit", help="Fit each label to what is seen of its defect.")] = None,
    visible: Annotated[float | None, typer.Option("--visible", help="Least change in the mask, over the variation around it.")] = None,
    change: Annotated[float | None, typer.Option("--change", help="Least change in the mask, in Lab units.")] = None,
    copy: Annotated[float | None, typer.Option("--copy", help="Correlation with a shot from which a pair is its copy.")] = None,
    strict: Annotated[float | None, typer.Option("--strict", help="Allowed deviations below real defects; 0 = no such limits.")] = None,
    agreement: Annotated[float | None, typer.Option("--agreement", help="Least overlap of the label with what changed.")] = None,
    similarity: Annotated[float | None, typer.Option("--similarity", help="Least likeness to a shot of the type.")] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="Least likeness to the type above that to others.")] = None,
    evenness: Annotated[float | None, typer.Option("--evenness", help="Least log2 of its fainter half over its stronger, -20..0.")] = None,
    from_shots: Annotated[bool, typer.Option("--from-shots", help="Forget limits that were given: they are the shots' again.")] = False,
    from_verdicts: Annotated[bool, typer.Option("--from-verdicts", help="--visible, --strict as pairs judged by hand ask.")] = False,
    config: Config = None, dry_run: DryRun = False, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Judge a run's pairs anew with other limits; nothing is deleted, and generate draws others for what is no longer kept."""
    from anomalydiffusion.app.curate import curate as call

    figures = call(run, refit=refit, visible=visible, change=change, copy=copy, strict=strict, agreement=agreement,
                   similarity=similarity, margin=margin, evenness=evenness, from_shots=from_shots, from_verdicts=from_verdicts,
                   config=config, dry_run=dry_run, quiet=quiet)  # fmt: skip
    if as_json:
        print_json(figures)
    elif not quiet:
        from anomalydiffusion.app.tables import yield_table

        yield_table(figures)


@app.command()
def evaluate(
    run: Run,
    task: Annotated[
        str,
        typer.Option("--task", help="localization, classification or quality.",
                     autocompletion=offered("localization", "classification", "quality")),
    ] = "localization",
    seeds: Annotated[int, typer.Option("--seeds", help="How many times, with other random numbers; 3 or more give a verdict.")] = 1,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Also pasted, blended and Perlin-noise defects.")] = False,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Also further real defects, and misplaced labels.")] = False,
    detector: Annotated[
        str | None,
        typer.Option("--detector", help="cpu, paper or segformer; cpu or paper for classification.",
                     autocompletion=offered("cpu", "paper", "segformer")),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps of each detector.")] = None,
    shortcut: Annotated[bool, typer.Option("--shortcut/--no-shortcut", help="Are the autoencoder's traces taken for defects?")] = True,
    features: Annotated[str, typer.Option("--features", help="For quality: what looks at the images.")] = "efficientnet-lite0",
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that train beside each other.")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="local, or a Ray cluster's address: its actors train.")] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: only train this command's part, without a verdict.")] = None,
    config: Config = None, device: Device = None, as_json: AsJson = False, quiet: OnlyTable = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train the same detector with and without the pairs; test all on held-out real images; say whether they help."""
    from anomalydiffusion.app.evaluate import evaluate as call

    scores = call(run, task=task, seeds=seeds, baselines=baselines, controls=controls, detector=detector, steps=steps,
                  shortcut=shortcut, features=features, workers=workers, ray=ray, shard=shard, config=config, device=device,
                  quiet=quiet)  # fmt: skip
    if as_json:
        print_json(scores)
    if as_json or shard is not None:
        return
    from anomalydiffusion.app.tables import scores_table

    scores_table(scores)


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the export.")],
    format: Annotated[
        str,
        typer.Option("--format", help="mvtec, anomalib, coco, yolo, imagefolder or labelstudio: the pairs; embeddings: the vectors.",
                     autocompletion=offered("mvtec", "anomalib", "coco", "yolo", "imagefolder", "labelstudio", "embeddings")),
    ] = "mvtec",
    product: Product = None, defect: Defect = None,
    normals: Annotated[bool, typer.Option("--normals/--no-normals", help="Copy the normal images too.")] = True,
    together: Annotated[
        int, typer.Option(min=1, help="Join pairs on one normal image: up to so many defects in a picture, where they lie apart."),
    ] = 1,
    contents: Annotated[
        str,
        typer.Option("--contents", help="synthetic: the pairs; mixed: also the real defects that were learned from; real: those alone.",
                     autocompletion=offered("synthetic", "mixed", "real")),
    ] = "synthetic",
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Hand the accepted pairs, or what they were learned from, to other tools."""
    from anomalydiffusion.app.export import export as call

    summary = call(run, output, format, product=product, defect=defect, normals=normals, together=together, contents=contents)
    if not quiet:
        for (name, kind), count in summary.counts.items():
            typer.echo(f"{name}/{kind}: {count} {'vectors' if format == 'embeddings' else 'pairs'}")
        for (name, kind), count in summary.real.items():
            typer.echo(f"{name}/{kind}: {count} real")
        if together > 1 and summary.pictures:
            typer.echo(f"in {summary.pictures} pictures of up to {together} defects")
        typer.echo(str(summary.output))


@app.command()
def report(run: Run, quiet: Quiet = False, debug: Debug = False) -> None:
    """Write one self-contained page about a run: RUN/report/index.html."""
    from anomalydiffusion.report.page import report as call

    page = call(run)
    if not quiet:
        typer.echo(str(page))
