"""One public function per command, with the command's name and options; the CLI and the studio only call these."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.settings import Settings, resolve, to_toml
from anomalydiffusion.app.source import Source, shots_of
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest, from_dict, read_toml
from anomalydiffusion.core.errors import ConfigError, DataError, GenerationError, MaskError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import encode_png, read_image, read_mask
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.seeds import derive
from anomalydiffusion.core.types import Pair, Split, Verdict
from anomalydiffusion.data.folders import SUFFIXES, read_folder
from anomalydiffusion.data.split import few_shot_split, from_json, to_json
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.generation.shards import Task, fill, plan
from anomalydiffusion.masks.geometry import accept
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.quality.gate import check_pair
from anomalydiffusion.training.loop import latest_checkpoint
from anomalydiffusion.training.prior import PriorConfig, train_prior
from anomalydiffusion.training.recipes import train_adapter

__all__ = ["evaluate", "generate", "masks", "prior_info", "prior_train", "train"]

Key = tuple[str, str]


def _typed(name: str) -> str:
    """The command line as it was typed, or the function's name when called from Python."""
    started = Path(sys.argv[0]).name
    return shlex.join(["anomalydiffusion", *sys.argv[1:]]) if started.startswith("anomalydiffusion") else f"# Python: {name}(...)"


def _settings(run: Run, **given: Any) -> Settings:
    """The run's own settings with what was given on top."""
    return resolve(base=read_toml(run.config), **given)


def _split(run: Run) -> Split:
    try:
        record = json.loads(run.split.read_text(encoding="utf-8"))
        return from_json(record, Path(record["root"]))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run.split}: missing or damaged ({error}); train again into another folder") from error


def _chosen(split: Split, product: Sequence[str] | None, defect: Sequence[str] | None) -> list[Key]:
    keys = sorted({shot.key for shot in split.shots})
    for asked, known, what in ((product, {k[0] for k in keys}, "product"), (defect, {k[1] for k in keys}, "defect")):
        if missing := set(asked or ()) - known:
            raise ConfigError(f"unknown {what} '{sorted(missing)[0]}'; this run knows {', '.join(sorted(known))}")
    return [key for key in keys if (not product or key[0] in product) and (not defect or key[1] in defect)]


def train(
    data: Path | str, output: Path | str, *, product: Sequence[str] | None = None, defect: Sequence[str] | None = None,
    prior: str | None = None, preset: str | None = None, config: Path | None = None, seed: int | None = None,
    max_train_steps: int | None = None, device: str | None = None, resume: bool = True, dry_run: bool = False, quiet: bool = False,
) -> Run:  # fmt: skip
    """Learn every defect of DATA (or the chosen ones) from its few shots; a killed training goes on from its checkpoint.

    Raises `SplitError`, `DataError`, `RunError` in one line each. A run that was trained with other settings or other
    data is not overwritten.
    """
    given: dict[str, Any] = {"prior": prior, "seed": seed, "device": device, "train": {"loop": {"steps": max_train_steps}}}
    settings = resolve(preset, config, **given)
    data, output = Path(data), Path(output)
    split = few_shot_split(read_folder(data), products=product, defects=defect)
    counts = ", ".join(f"{'/'.join(key)} {sum(shot.key == key for shot in split.shots)}" for key in _chosen(split, None, None))
    say(f"shots: {counts}; {len(split.held_out)} defect images held out; {len(split.normals)} normals", quiet=quiet)
    if dry_run:
        say(
            f"plan: {settings.train.pool.crops} crops, {settings.train.loop.steps} steps of {settings.train.batch_size}, "
            f"prior '{settings.prior}'",
            quiet=quiet,
        )
        return Run(output, {})
    run = Run.create(output)
    with run.lock():
        if not resume:
            if run.manifest.exists():
                raise RunError(f"{output}: holds pairs that its adapter made; give another --output to train anew")
            for old in (run.checkpoints, run.adapter.parent):
                shutil.rmtree(old, ignore_errors=True)
            run.train_log.unlink(missing_ok=True)
        elif run.split.exists() and run.config.exists():
            before = from_dict(Settings, read_toml(run.config))
            if json.loads(run.split.read_text())["digest"] != split.digest:
                raise RunError(f"{output}: was made from other data or other defects; give another --output, or --no-resume to start over")
            if digest(before.train) != digest(settings.train) or (before.prior, before.seed) != (settings.prior, settings.seed):
                raise RunError(f"{output}: was made with other settings; give another --output, or --no-resume to start over")
            if run.adapter.exists():
                say(f"{output}: already trained", quiet=quiet)
                return run
        loaded = load_prior(settings.prior, device=settings.device)
        write_atomic(run.split, (json.dumps(to_json(split, data.resolve()), indent=1, ensure_ascii=False) + "\n").encode())
        write_atomic(run.config, to_toml(settings).encode())
        run.update(
            command=_typed("train"),
            prior=settings.prior,
            prior_digest=loaded.digest,
            split_digest=split.digest,
            status="training",
        )
        _learn(run, settings, split, loaded, quiet)
        run.update(status="trained")
    return run


def _learn(run: Run, settings: Settings, split: Split, loaded: Any, quiet: bool) -> None:
    accelerator = Accelerator(cpu=settings.device == "cpu", log_with="tensorboard", project_dir=run.folder / "logs")
    accelerator.init_trackers("train")
    lines = []
    if run.train_log.exists() and (found := latest_checkpoint(run.checkpoints)):
        last = int(found.name.split("-")[1])
        lines = [line for line in run.train_log.read_text().splitlines() if json.loads(line)["step"] <= last]
    write_atomic(run.train_log, "".join(line + "\n" for line in lines).encode())
    steps = settings.train.loop.steps
    with (
        bar("encode the shots", settings.train.pool.crops, quiet=quiet) as pool_bar,
        bar("train", steps, quiet=quiet) as train_bar,
    ):

        def progress(step: int, means: dict[str, float]) -> None:
            train_bar.at(step, f"loss {means['loss']:.3f}")
            with run.train_log.open("a") as log:
                log.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in means.items()}}) + "\n")

        adapter = train_adapter(
            loaded, shots_of(split), settings.train, run.checkpoints, seed=settings.seed, split_digest=split.digest,
            progress=progress, pool_progress=pool_bar.at, accelerator=accelerator,
        )  # fmt: skip
    accelerator.end_training()
    adapter.save(run.adapter)


def generate(
    run: Path | str, num: int, *, product: Sequence[str] | None = None, defect: Sequence[str] | None = None, seed: int | None = None,
    steps: int | None = None, severity: float | None = None, normals: Path | None = None, masks: Path | None = None,
    batch_size: int | None = None, attempts: int | None = None, config: Path | None = None, device: str | None = None,
    dry_run: bool = False, quiet: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make `num` accepted pairs per defect type; what the manifest already holds is not made again.

    Returns the manifest's records. Raises `GenerationError` when not one pair was accepted.
    """
    if num < 1:
        raise ConfigError(f"--num {num}: expected at least 1")
    opened = Run.open(Path(run))
    given = {"seed": seed, "device": device,
             "generate": {"steps": steps, "severity": severity, "batch_size": batch_size, "attempts": attempts}}  # fmt: skip
    settings = _settings(opened, config=config, **given)
    split = _split(opened)
    keys = _chosen(split, product, defect)
    if dry_run:
        say(f"plan: {num} pairs each of {', '.join('/'.join(key) for key in keys)}, {settings.generate.steps} steps", quiet=quiet)
        return []
    with opened.lock():
        prior = load_prior(settings.prior, device=settings.device)
        adapter = Adapter.load(opened.adapter, prior)
        source = Source(split, settings, normals, masks)
        opened.update(command=_typed("generate"))
        slots = plan(keys, num)
        kept = set()

        def make(tasks: Sequence[Task]) -> list[Pair]:
            return make_pairs(prior, adapter, [source.item(task) for task in tasks], settings.generate)

        def judge(task: Task, pair: Pair) -> Verdict:
            return check_pair(pair, source.references[task.slot.key], settings.gate)

        for record in Manifest(opened.manifest).records():
            if record["accepted"]:
                kept.add(record["image"])
        with bar("generate", len(slots), quiet=quiet) as shown:

            def progress(record: dict[str, Any]) -> None:
                if record["accepted"]:
                    kept.add(record["image"])
                shown.at(len(kept), f"{record['product']}/{record['defect']}")

            records = fill(opened, slots, make, judge, seed=settings.seed, batch_size=settings.generate.batch_size,
                           attempts=settings.generate.attempts, progress=progress)  # fmt: skip
    _shortfall(keys, num, records, quiet)
    return records


def _shortfall(keys: Sequence[Key], num: int, records: Sequence[dict[str, Any]], quiet: bool) -> None:
    """Say which defect types did not reach their number, and why."""
    for key in keys:
        own = [r for r in records if (r["product"], r["defect"]) == key]
        accepted = sum(bool(r["accepted"]) for r in own)
        reasons = [reason for r in own for reason in r["reasons"]]
        often = max(set(reasons), key=reasons.count) if reasons else ""
        if accepted == 0:
            raise GenerationError(
                f"{'/'.join(key)}: all {len(own)} attempts were rejected, mostly '{often}'; "
                "train longer, raise --severity or loosen the gate"
            )
        say(
            f"{'/'.join(key)}: {accepted} accepted of {len(own)} drawn" + (f", mostly rejected as '{often}'" if reasons else ""),
            quiet=quiet,
        )
        if accepted < num:
            say(f"{'/'.join(key)}: {num - accepted} short of {num}; raise --attempts or --severity", quiet=quiet)


def masks(run: Path | str, *, num: int = 8, source: str = "warped", product: Sequence[str] | None = None,
          defect: Sequence[str] | None = None, seed: int | None = None, quiet: bool = False) -> list[Path]:  # fmt: skip
    """Write `num` mask proposals per defect type to RUN/masks, as 8 bit PNG 0 / 255 of the size of their normal images."""
    if source != "warped":
        raise ConfigError(f"mask source '{source}' is not known; known: warped")
    opened = Run.open(Path(run))
    settings = _settings(opened, seed=seed)
    split = _split(opened)
    proposals = Source(split, settings, None, None)
    written = []
    for slot in plan(_chosen(split, product, defect), num):
        task = Task(slot=slot, attempt=0, seed=derive(settings.seed, "preview", *slot.key, slot.index) % 2**53)
        item = proposals.item(task)
        if reason := accept(item.mask, max_border=1.0):
            raise MaskError(f"{'/'.join(slot.key)}: a proposal {reason}")
        path = opened.masks / slot.key[0] / slot.key[1] / f"{slot.index:06d}.png"
        write_atomic(path, encode_png(item.mask.pixels_HW))
        written.append(path)
    say(f"{len(written)} masks in {opened.masks}", quiet=quiet)
    return written


def evaluate(run: Path | str, *, steps: int = 200, seeds: int = 1, quiet: bool = False) -> dict[str, Any]:
    """Train the same small segmenter with and without the accepted pairs, test both on held-out real images.

    Writes RUN/scores.json and returns it.
    """
    from anomalydiffusion.downstream.evaluate import compare  # its networks take seconds to import

    opened = Run.open(Path(run))
    split = _split(opened)
    records = [r for r in Manifest(opened.manifest).records() if r["accepted"]]
    if not records:
        raise RunError(f"{opened.folder}: no accepted pairs to evaluate; run 'anomalydiffusion generate {opened.folder} --num 40' first")
    pairs = [((r["product"], r["defect"]), read_image(opened.folder / r["image"]), read_mask(opened.folder / r["mask"])) for r in records]
    products = len({shot.product for shot in split.shots})
    with bar("evaluate", 2 * seeds * steps * products, quiet=quiet) as shown:
        scores = compare(
            split, pairs, steps=steps, seeds=range(seeds), progress=lambda done, total, what: shown.at(done, what),
            lineage=[r["normal_sha256"] for r in records],
        )  # fmt: skip
    write_atomic(opened.scores, (json.dumps(scores, indent=1) + "\n").encode())
    opened.update(command=_typed("evaluate"))
    return scores


def prior_train(
    config: Path, output: Path, *, work: Path | None = None, textures: Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train a prior from a recipe; `work` (default: OUTPUT with '-work' behind it) keeps what a resumed run needs."""
    recipe = read_toml(config)
    if textures is not None:
        recipe["textures"] = str(textures)
    settings = from_dict(PriorConfig, recipe)

    def progress(step: int, means: dict[str, float]) -> None:
        say(f"{step} " + " ".join(f"{name} {value:.4f}" for name, value in means.items()), quiet=quiet)

    return train_prior(settings, output, work or output.with_name(output.name + "-work"), progress=progress)


def prior_info(name: str = "tiny", *, images: Path | None = None) -> dict[str, Any]:
    """Describe a prior: family, sizes, parameters, digest; with `images`, a folder, how well its autoencoder keeps them."""
    loaded = load_prior(name)
    kept: dict[str, Any] = {}
    if images is not None:
        files = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{images}: no pictures found; give a folder of normal images")
        pictures = (read_image(path) for path in files)
        kept = {"images": len(files), **measure_autoencoder(lambda x: loaded.decode(loaded.encode(x)), pictures, factor=loaded.factor)}
    parameters = {part: sum(p.numel() for p in getattr(loaded, part).parameters()) for part in ("vae", "unet", "text_encoder")}
    return {
        "name": name, "digest": loaded.digest, "autoencoder": type(loaded.vae).__name__, "text_encoder": type(loaded.text_encoder).__name__,
        "factor": loaded.factor, "latent_channels": loaded.latent_channels, "working_size": loaded.working_size,
        "prediction_type": loaded.prediction_type, "max_tokens": loaded.max_tokens, "parameters": parameters,
        "megabytes": {str(dtype).removeprefix("torch."): round(sum(parameters.values()) * dtype.itemsize / 1e6, 1)
                      for dtype in (torch.float32, torch.float16)},
        **({"autoencoder_keeps": kept} if kept else {}),
    }  # fmt: skip
