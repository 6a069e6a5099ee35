"""Learn a run's adapters, its defects and its masks, and refuse to mix them with what was learned otherwise."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomalydiffusion.app.launched import Launched
from anomalydiffusion.app.opened import own_words
from anomalydiffusion.app.prior import adapted
from anomalydiffusion.app.progress import bar
from anomalydiffusion.app.settings import Settings
from anomalydiffusion.app.trackers import tracked
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest, from_dict, to_dict
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.names import is_file
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Normal, Shot, Split
from anomalydiffusion.data.copies import near_copies
from anomalydiffusion.data.looks import see
from anomalydiffusion.masks.learned import pictures
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.training.loop import latest_checkpoint
from anomalydiffusion.training.recipes import Shots, TrainConfig, Watch, measures, train_adapter

__all__ = ["Beginning", "learn", "learn_masks", "learn_prior", "load_masks", "refuse_another", "take_over", "take_released"]

REMEDY = "give the same data and --rotation"  # where an earlier run knows what is held out


def refuse_another(run: Run, settings: Settings, split: Split, extends: str, moved: str = "") -> None:
    """A training that has begun goes on only with its own data, settings and beginning; `moved` is what its prior was called before."""
    remedy = "give another --output, or --no-resume to start over"
    try:
        before, known = from_dict(Settings, own_words(run)), json.loads(run.split.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise RunError(f"{run.folder}: its split.json or config.toml is missing or damaged ({error}); {remedy}") from error
    if known != split.digest:
        raise RunError(f"{run.folder}: was made from other data or other defects; {remedy}")
    if run.record.get("extends", "") != extends:
        raise RunError(f"{run.folder}: was begun from another adapter; {remedy}")
    if before.prior == moved:
        before = replace(before, prior=settings.prior)
    was, now = ((digest(each.train), each.prior, each.seed, each.dtype) for each in (before, settings))
    if was != now:
        raise RunError(f"{run.folder}: was made with other settings; {remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """An earlier adapter, and what it and its prior were learned from: [SHA-256, product, group] of each image, "" = a group of its own."""

    adapter: Adapter
    shots: list[list[str]]
    elsewhere: str = ""  # where it was read from, if nobody recorded which images it was learned from


def take_over(earlier: Run, split: Split, prior: LatentPrior) -> Beginning:
    """The adapter of an earlier run, to be extended.

    Raises `RunError` where it has learned from an image that `split` holds out, also saved anew where that is still there, or from another
    photograph of its part, and where it knows every defect already.
    """
    adapter = Adapter.load(earlier.adapter, prior)
    try:
        record = json.loads(earlier.split.read_text(encoding="utf-8"))
        roles = ("shot", "normal") if "adapt" in own_words(earlier) else ("shot",)  # of what it, or its prior, has learned from
        shots = [
            [str(item["sha256"]), str(item["product"]), "" if f"/{item['path']}".endswith(f"/{item['group']}") else str(item["group"])]
            for item in record["files"]
            if item["role"] in roles
        ]
        own = {split.sha256[path] for path in [*(s.path for s in split.shots), *(n.path for n in split.normals)]}  # learned here too
        files = [
            Path(record["root"]) / str(item["path"]) for item in record["files"] if item["role"] in roles and item["sha256"] not in own
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{earlier.split}: missing or damaged ({error}); what its adapter was learned from is not known") from error
    shots = sorted(map(list, {tuple(shot) for shot in [*shots, *earlier.record.get("earlier_shots", [])]}))
    learned, parts = {shot[0] for shot in shots}, {(shot[1], shot[2]) for shot in shots if shot[2]}
    tested: list[Shot | Normal] = [*split.held_out, *split.held_out_normals]
    for item in tested:
        if split.sha256[item.path] in learned or (item.product, item.group) in parts:
            raise RunError(
                f"{item.path}: is held out here, but {earlier.folder} has learned from it or from a photograph of the same part; {REMEDY}"
            )
    used, held = [path for path in files if is_file(path)], [item.path for item in tested]
    for one, other in near_copies(used, held, {path: see(path, is_mask=False) for path in {*used, *held}}):
        raise RunError(f"{other}: is held out here, but {earlier.folder} has learned from {one}, nearly the same picture; {REMEDY}")
    if all(shot.key in adapter.keys for shot in split.shots):
        raise RunError(f"{earlier.folder}: knows every defect of this data already; there is nothing to add")
    return Beginning(adapter=adapter, shots=shots, elsewhere=earlier.record.get("elsewhere", ""))


def take_released(folder: Path, split: Split, shots: Shots, prior: LatentPrior) -> Beginning:
    """The adapter in a folder of the authors' own files, with the grain of what `shots` show of its defects."""
    adapter = Adapter.from_released(folder, prior)
    known = {key: own for key, own in shots.items() if key in adapter.keys}
    adapter.origin = replace(adapter.origin, split_digest=split.digest, measures=measures(known))
    return Beginning(adapter=adapter, shots=[], elsewhere=str(folder.resolve()))


def _step(record: dict[str, Any]) -> float:
    """The step of a line of the training's log; beyond all where it has none."""
    step = record.get("step")
    return step if isinstance(step, int) else math.inf


def learn(
    run: Run, config: TrainConfig, settings: Settings, split_digest: str, shots: Shots, loaded: LatentPrior, quiet: bool, *,
    masks: bool = False, start: Adapter | None = None, watch: Watch | None = None,
) -> Adapter:  # fmt: skip
    """Learn one of a run's adapters, its defects or with `masks` what their masks look like: all of them, or what `start` does not know."""
    checkpoints, log_file = (run.mask_checkpoints, run.mask_log) if masks else (run.checkpoints, run.train_log)
    target, leads = run.mask_adapter if masks else run.adapter, Launched.here().leads
    if start is not None:
        shots = {key: own for key, own in shots.items() if key not in start.keys}
        if not shots:
            if leads:
                start.save(target)
            return start
    facts = {"prior": settings.prior, "seed": settings.seed, "split": split_digest, **_flat(to_dict(config))}
    accelerator = tracked(settings.report_to, run.folder, "masks" if masks else "train", facts, device=loaded.device)
    found = latest_checkpoint(checkpoints)
    last = int(found.name.split("-")[1]) if found else -1
    if leads:
        lines = [json.dumps(record) for record in Manifest(log_file).records() if _step(record) <= last]
        write_atomic(log_file, "".join(line + "\n" for line in lines).encode())
        for sheet in run.previews.glob("step-*.png") if not masks else ():
            if int(sheet.stem.removeprefix("step-")) > last:
                sheet.unlink()
    with (
        bar("encode the masks" if masks else "encode the shots", config.pool.crops, quiet=quiet) as pool_bar,
        bar("learn masks" if masks else "train", config.loop.steps, quiet=quiet) as train_bar,
    ):

        def progress(step: int, means: dict[str, float]) -> None:
            train_bar.at(step, f"loss {means['loss']:.3f}")
            with log_file.open("a") as log:
                log.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in means.items()}}) + "\n")

        adapter = train_adapter(
            loaded, shots, config, checkpoints, seed=settings.seed, split_digest=split_digest,
            progress=progress, pool_progress=pool_bar.at, accelerator=accelerator, name="masks" if masks else "default",
            from_nothing=masks, start=start, watch=watch,
        )  # fmt: skip
    for tracker in accelerator.trackers:  # not `end_training`, which parts from the other processes: masks may be learned next
        tracker.finish()
    if leads:
        adapter.save(target)
    return adapter


def learn_prior(run: Run, settings: Settings, split: Split, start: str, quiet: bool, *, resume: bool = True) -> None:
    """Teach the prior `start` the run's normal images, none of them held out, into RUN/prior; nothing happens where that was done.

    Raises `RunError` where the prior there was adapted otherwise.
    """
    assert settings.adapt is not None
    work = run.folder / "prior-work"
    asked = {"start": start, "settings": digest(settings.adapt), "seed": settings.seed, "split": split.digest}
    if not resume:
        for old in (run.prior, work):
            shutil.rmtree(old, ignore_errors=True)
    known = run.record.get("adapted", {})
    if (run.prior.exists() or work.exists()) and {name: known.get(name) for name in asked} != asked:
        raise RunError(
            f"{run.prior}: was adapted with other settings or to other images; give another --output, or --no-resume to start over"
        )
    if run.prior.exists() and "after" in known:
        return
    run.update(adapted=asked)
    products = {normal.product for normal in split.normals}
    name = products.pop() if len(products) == 1 else "texture"
    figures = adapted(
        [normal.path for normal in split.normals], name, start, run.prior, work, settings.adapt, seed=settings.seed,
        groups=[f"{normal.product}/{normal.group}" for normal in split.normals], quiet=quiet,
    )  # fmt: skip
    write_atomic(run.prior_sheet, Path(figures.pop("sheet")).read_bytes())
    run.update(adapted={**asked, **figures})
    shutil.rmtree(work, ignore_errors=True)  # pictures and checkpoints, many times the prior's size


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by names such as `loop.steps`, lists as text: what every tracker takes."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{above}{name}.")
        else:
            out[above + name] = str(value) if isinstance(value, list) else value
    return out


def learn_masks(run: Run, settings: Settings, split_digest: str, shots: Shots, loaded: LatentPrior, quiet: bool) -> Adapter:
    """What draws a run's masks; learned where the run, or the one that it extends, does not know it yet."""
    if run.mask_adapter.exists():
        return load_masks(run, settings, loaded)
    start, begun = _earlier_masks(run, settings, loaded)
    if latest_checkpoint(run.mask_checkpoints) is not None:
        _refuse_other_masks(run, settings)
        if run.record.get("masks_begun_from", begun) != begun:
            raise RunError(
                f"{run.mask_checkpoints}: these masks were begun from those of {run.record.get('extended')}, which are gone or others by "
                "now; delete that folder to learn them from the beginning"
            )
    if Launched.here().leads:
        run.update(masks=_learned_as(settings), masks_begun_from=begun)
    drawn = {key: pictures([mask for _, mask in items], settings.masks.learned, loaded.working_size) for key, items in shots.items()}
    return learn(run, settings.masks.train, settings, split_digest, drawn, loaded, quiet, masks=True, start=start)


def _earlier_masks(run: Run, settings: Settings, loaded: LatentPrior) -> tuple[Adapter | None, str]:
    """What draws the masks of the run that this one extends, and its digest; nothing where that is gone, or another run by now."""
    with suppress(RunError, ConfigError):
        before = Run.open(Path(run.record["extended"])) if run.record.get("extended") else None
        if before is not None and before.mask_adapter.exists() and before.record.get("masks") == _learned_as(settings):
            same = Adapter.digest_of(before.adapter) == run.record.get("extends")
            return (load_masks(before, settings, loaded), Adapter.digest_of(before.mask_adapter)) if same else (None, "")
    return None, ""


def _learned_as(settings: Settings) -> dict[str, Any]:
    """What must be the same when masks are drawn as when they were learned."""
    return {"frame": settings.masks.learned.frame, "train": digest(settings.masks.train)}


def _refuse_other_masks(run: Run, settings: Settings) -> None:
    if run.record.get("masks") != _learned_as(settings):
        raise RunError(
            f"{run.folder}: its masks were learned with other settings (masks.train, or masks.learned.frame); use those again, or delete "
            f"{run.mask_adapter.relative_to(run.folder)} and {run.mask_checkpoints.relative_to(run.folder)} to learn anew"
        )


def load_masks(run: Run, settings: Settings, loaded: LatentPrior) -> Adapter:
    """What draws a run's masks. Raises `RunError` where none were learned, or with other settings."""
    if not run.mask_adapter.exists():
        raise RunError(f"{run.folder}: no masks were learned; 'anomalydiffusion masks {run.folder} --source learned' does it")
    _refuse_other_masks(run, settings)
    return Adapter.load(run.mask_adapter, loaded, name="masks")
