"""One public function per command, with the command's name and options; the CLI and the studio only call these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anomalydiffusion.app.again import draw_again
from anomalydiffusion.app.learning import learn, learn_masks, load_masks, refuse_another, take_over, take_released
from anomalydiffusion.app.opened import run_settings, run_split, typed
from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.settings import Drawing, prior_of, resolve, to_toml
from anomalydiffusion.app.source import Source, limits_json, shots_of
from anomalydiffusion.app.trackers import check_tracker
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.conditioning.released import digest_released, is_released
from anomalydiffusion.core.config import digest, read_toml
from anomalydiffusion.core.errors import ConfigError, GenerationError, RunError
from anomalydiffusion.core.manifest import PARKED, Manifest, accepted
from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Pair, Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.data.split import few_shot_split, to_json
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.generation.shards import Task, discard, fill, next_batch, plan
from anomalydiffusion.quality.refit import fitted
from anomalydiffusion.report.sheets import Cell, contact_sheet, outlined, shaded
from anomalydiffusion.training.loop import latest_checkpoint
from anomalydiffusion.training.recipes import check_learnable

__all__ = ["Key", "generate", "masks", "train"]

Key = tuple[str, str]
SHOWN = 8  # masks of one defect type on the sheet
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")


def _chosen(split: Split, product: Sequence[str] | None, defect: Sequence[str] | None) -> list[Key]:
    keys = sorted({shot.key for shot in split.shots})
    for asked, known, what in ((product, {k[0] for k in keys}, "product"), (defect, {k[1] for k in keys}, "defect")):
        if missing := set(asked or ()) - known:
            raise ConfigError(f"unknown {what} '{sorted(missing)[0]}'; this run knows {', '.join(sorted(known))}")
    return [key for key in keys if (not product or key[0] in product) and (not defect or key[1] in defect)]


def train(
    data: Path | str, output: Path | str, *, product: Sequence[str] | None = None, defect: Sequence[str] | None = None,
    prior: str | None = None, preset: str | None = None, config: Path | None = None, seed: int | None = None,
    rotation: int | None = None, max_train_steps: int | None = None, report_to: str | None = None, extend: Path | str | None = None,
    device: str | None = None, dtype: str | None = None, resume: bool = True, dry_run: bool = False, quiet: bool = False,
) -> Run:  # fmt: skip
    """Learn every defect of DATA (or the chosen ones) from its few shots; a killed training goes on from its checkpoint.

    `extend`: an earlier run whose settings and adapter are taken over; only the defects that it does not know are learned, by
    vectors of their own, and the others stay as they are. Or a folder of the files that the paper's authors released. `report_to`: a
    tracker for the loss: "tensorboard" (RUN/logs, the default), "wandb", "mlflow", "trackio", "none". Raises
    `SplitError`, `DataError`, `RunError` in one line each. A run that was trained with other settings or other data is not
    overwritten.
    """
    given: dict[str, Any] = {
        "prior": prior,
        "seed": seed,
        "rotation": rotation,
        "device": device,
        "dtype": dtype,
        "report_to": report_to,
        "train": {"loop": {"steps": max_train_steps}},
    }
    released = Path(extend) if extend is not None and is_released(Path(extend)) else None
    earlier = Run.open(Path(extend)) if extend is not None and released is None else None
    settings = resolve(preset, config, base=read_toml(earlier.config) if earlier else None, **given)
    check_tracker(settings.report_to)
    if settings.prior != "tiny" and Path(settings.prior).expanduser().is_dir():  # the run may be used from another place
        settings = replace(settings, prior=str(Path(settings.prior).expanduser().resolve()))
    extends = digest_released(released) if released else Adapter.digest_of(earlier.adapter) if earlier else ""
    data, output = Path(data), Path(output)
    split = few_shot_split(read_folder(data), products=product, defects=defect, rotation=settings.rotation)
    counts = ", ".join(f"{'/'.join(key)} {sum(shot.key == key for shot in split.shots)}" for key in _chosen(split, None, None))
    say(f"shots: {counts}; {len(split.held_out)} defect images held out; {len(split.normals)} normals", quiet=quiet)
    if dry_run:
        say(
            f"plan: {settings.train.pool.crops} crops, {settings.train.loop.steps} steps of {settings.train.batch_size}, "
            f"prior '{settings.prior}'",
            quiet=quiet,
        )
        return Run(output, {})
    if earlier is not None and earlier.folder.resolve() == output.resolve():
        raise ConfigError(f"--extend {extend}: the run to be extended stays as it is; give another --output")
    run = Run.create(output)
    with run.lock():
        if not resume and run.manifest.exists():
            raise RunError(f"{output}: holds pairs that its adapter made; give another --output to train anew")
        begun = run.adapter.exists() or latest_checkpoint(run.checkpoints) is not None
        if resume and begun:
            refuse_another(run, settings, split, extends)
            if run.adapter.exists() and (settings.masks.source == "warped" or run.mask_adapter.exists()):
                say(f"{output}: already trained", quiet=quiet)
                return run
        shots = shots_of(split)
        loaded = prior_of(settings)
        for learned in (settings.train, settings.masks.train):
            check_learnable(loaded, learned)
        begin = take_over(earlier, split, loaded) if earlier else None
        if released is not None:
            begin = take_released(released, split, shots, loaded)
        if not resume:  # only now, when nothing that was typed can be wrong any more
            for old in (run.checkpoints, run.adapter.parent):
                shutil.rmtree(old, ignore_errors=True)
            for log in (run.train_log, run.mask_log):
                log.unlink(missing_ok=True)
        write_atomic(run.split, (json.dumps(to_json(split, data.resolve()), indent=1, ensure_ascii=False) + "\n").encode())
        write_atomic(run.config, to_toml(settings).encode())
        run.update(
            command=typed("train"), prior=settings.prior, prior_digest=loaded.digest, split_digest=split.digest, status="training",
            versions={name: version(name) for name in LIBRARIES}, extends=extends,
            earlier_shots=begin.shots if begin else [], extended=str(earlier.folder.resolve()) if earlier else "",
            elsewhere=begin.elsewhere if begin else "",
        )  # fmt: skip
        if not run.adapter.exists():
            learn(run, settings.train, settings, split.digest, shots, loaded, quiet, start=begin.adapter if begin else None)
        if settings.masks.source == "learned":
            learn_masks(run, settings, split.digest, shots, loaded, quiet)
        run.update(status="trained")
    return run


def generate(
    run: Path | str, num: int | None = None, *, like: Path | str | None = None, output: Path | str | None = None,
    product: Sequence[str] | None = None, defect: Sequence[str] | None = None, prior: str | None = None,
    seed: int | None = None, steps: int | None = None, severity: float | tuple[float, float] | None = None, normals: Path | None = None,
    masks: Path | None = None, batch_size: int | None = None, attempts: int | None = None, config: Path | None = None,
    device: str | None = None, dtype: str | None = None, resume: bool = True, dry_run: bool = False, quiet: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make `num` accepted pairs per defect type; what the manifest already holds is not made again.

    Pairs of one defect type are all made with the same settings; with `resume=False` those that are there are thrown away
    first. Returns the manifest's records. Raises `GenerationError` when not one pair of a defect type was accepted.

    `like`, instead of `num`: a picture that this run drew, of which just this pair is drawn again, to `output` (`app.again`).
    """
    opened = Run.open(Path(run))
    if like is not None:
        _refuse_beside_like(
            num=None if num == 1 else num, product=product, defect=defect, seed=seed, steps=steps, severity=severity, attempts=attempts,
            config=config, dtype=dtype, no_resume=None if resume else True,
        )  # fmt: skip
        if dry_run:
            say(f"plan: the pair of {like} again", quiet=quiet)
            return []
        return [draw_again(opened, Path(like), Path(output) if output else None, prior=prior, normals=normals, masks=masks,
                           batch_size=batch_size, device=device, quiet=quiet)]  # fmt: skip
    if output is not None:
        raise ConfigError("--output: is for --like; pairs go to the run's own folder")
    if num is None:
        raise ConfigError("give --num, how many pairs, or --like, a picture to draw again")
    if num < 1:
        raise ConfigError(f"--num {num}: expected at least 1")
    given = {"prior": prior, "seed": seed, "device": device, "dtype": dtype,
             "generate": {"steps": steps, "severity": severity, "batch_size": batch_size, "attempts": attempts}}  # fmt: skip
    settings = run_settings(opened, config=config, **given)
    drawn_by = Adapter.digest_of(opened.mask_adapter) if settings.masks.source == "learned" and opened.mask_adapter.exists() else ""
    split = run_split(opened)
    drawing = Drawing.of(settings, normals, masks, drawn_by, digest_of(regions_of(split)))
    keys = _chosen(split, product, defect)
    if dry_run:
        say(f"plan: {num} pairs each of {', '.join('/'.join(key) for key in keys)}, {settings.generate.steps} steps", quiet=quiet)
        return []
    with opened.lock():
        if resume:
            _refuse_mixing(opened, keys, drawing)
        loaded = prior_of(settings)
        if settings.generate.steps > len(loaded.alphas):
            raise ConfigError(f"--steps {settings.generate.steps}: the prior has {len(loaded.alphas)} steps at most")
        adapter = Adapter.load(opened.adapter, loaded)
        learned = load_masks(opened, settings, loaded) if settings.masks.source == "learned" and not masks else None
        source = Source(split, settings, normals, masks, learned)
        if not resume:
            discard(opened, keys)
        opened.update(command=typed("generate"))
        write_atomic(opened.folder / "settings" / f"{digest(drawing)}.toml", to_toml(drawing).encode())
        slots = plan(keys, num)

        def make(tasks: Sequence[Task]) -> list[Pair]:
            pairs = make_pairs(loaded, adapter, [source.item(task) for task in tasks], settings.generate)
            pairs = [replace(pair, provenance=replace(pair.provenance, config_digest=digest(drawing))) for pair in pairs]
            return [fitted(pair) for pair in pairs] if settings.gate.refit else pairs

        gate = source.gate()
        write_atomic(opened.limits, limits_json(gate))

        kept = {record["image"] for record in accepted(Manifest(opened.manifest).records())}
        with bar("generate", len(slots), quiet=quiet) as shown:

            def progress(record: dict[str, Any]) -> None:
                if record["accepted"]:
                    kept.add(record["image"])
                shown.at(len(kept), f"{record['product']}/{record['defect']}")

            records = fill(opened, slots, make, gate.check, seed=settings.seed, batch_size=settings.generate.batch_size,
                           attempts=settings.generate.attempts, settings_digest=drawing.settings_digest, progress=progress)  # fmt: skip
        opened.update(status="generated")
    _shortfall(keys, num, records, settings.generate.attempts, quiet)
    return records


def _refuse_beside_like(**told: Any) -> None:
    if wrong := [f"--{name.replace('_', '-')}" for name, value in told.items() if value not in (None, [], ())]:
        raise ConfigError(f"--like draws one pair, as its picture says; leave {', '.join(wrong)} away")


def _refuse_mixing(run: Run, keys: Sequence[Key], drawing: Drawing) -> None:
    """Pairs of one defect type share their settings: other ones would be ignored by what is already made."""
    for record in Manifest(run.manifest).records():
        if PARKED in record["reasons"]:
            raise RunError(
                f"{run.folder}: its pairs were being judged when that was cut short; run 'anomalydiffusion curate {run.folder}' first"
            )
        if (record["product"], record["defect"]) in keys and record.get("config_digest") != digest(drawing):
            raise RunError(
                f"{run.folder}: holds {record['product']}/{record['defect']} pairs made with other settings "
                f"(settings/{record.get('config_digest')}.toml); use those again, or throw the pairs away with --no-resume"
            )


def _shortfall(keys: Sequence[Key], num: int, records: Sequence[dict[str, Any]], attempts: int, quiet: bool) -> None:
    """Say how many were accepted; that a defect type did not reach its number, and why, is said to the quiet too."""
    for key in keys:
        own = [r for r in records if (r["product"], r["defect"]) == key]
        made = len(accepted(own))
        reasons = [reason for r in own for reason in r["reasons"]]
        often = max(set(reasons), key=reasons.count) if reasons else ""
        if made == 0:
            raise GenerationError(
                f"{'/'.join(key)}: all {len(own)} attempts were rejected, mostly '{often}'; train longer into another folder, "
                "or draw anew with --no-resume and a higher --severity or a looser gate"
            )
        say(f"{'/'.join(key)}: {made} accepted of {len(own)} drawn" + (f", mostly rejected as '{often}'" if reasons else ""), quiet=quiet)
        if made < num:
            say(f"{'/'.join(key)}: {num - made} short of {num}; --attempts {2 * attempts} goes on")


def masks(run: Path | str, *, num: int = 8, source: str | None = None, product: Sequence[str] | None = None,
          defect: Sequence[str] | None = None, prior: str | None = None, config: Path | None = None, seed: int | None = None,
          device: str | None = None, dtype: str | None = None, quiet: bool = False) -> list[Path]:  # fmt: skip
    """Write the masks of each defect type's first `num` pairs to RUN/masks, as 8 bit PNG 0 / 255 of their normal images' size.

    `source` is "warped" or "learned"; learned masks are learned first, where that was not done yet. Source and settings of
    masks become the run's. In RUN/masks/sheet.png the first masks are drawn on their normal images.
    """
    if num < 1:
        raise ConfigError(f"--num {num}: expected at least 1")
    opened = Run.open(Path(run))
    settings = run_settings(opened, config=config, prior=prior, seed=seed, device=device, dtype=dtype, masks={"source": source})
    split = run_split(opened)
    keys = _chosen(split, product, defect)
    with opened.lock():
        adapter = None
        if settings.masks.source == "learned":
            loaded = prior_of(settings)
            check_learnable(loaded, settings.masks.train)
            check_tracker(settings.report_to)
            of_the_run = replace(settings, seed=run_settings(opened).seed)  # --seed is for what is drawn
            adapter = learn_masks(opened, of_the_run, split.digest, shots_of(split), loaded, quiet)
        proposals = Source(split, settings, None, None, adapter)
        written: list[Path] = []
        slots = plan(keys, num)
        lines: dict[Key, list[Cell]] = {key: [] for key in keys}
        with bar("masks", len(slots), quiet=quiet) as shown:
            for task in next_batch([(slot, 0) for slot in slots], len(slots), settings.seed):
                slot, item = task.slot, proposals.item(task)
                path = opened.masks / slot.key[0] / slot.key[1] / f"{slot.index:06d}.png"
                write_atomic(path, encode_png(item.mask.pixels_HW))
                written.append(path)
                if slot.index < SHOWN:
                    region = proposals.region(slot.key)
                    seen = item.normal_HWC if region is None else shaded(item.normal_HWC, region.on(item.normal_HWC.shape[:2]))
                    lines[slot.key].append(outlined(str(slot.index), seen, item.mask.pixels_HW))
                shown.at(len(written), "/".join(slot.key))
        for old in {path for key in keys for path in (opened.masks / key[0] / key[1]).glob("[0-9]" * 6 + ".png")} - set(written):
            old.unlink()  # of an earlier call
        sheet = contact_sheet([("/".join(key), line) for key, line in lines.items()])
        write_atomic(opened.masks / "sheet.png", encode_png(sheet))
        if (known := run_settings(opened)).masks != settings.masks:
            write_atomic(opened.config, to_toml(replace(known, masks=settings.masks)).encode())
            say(f"{opened.folder}: pairs are drawn on {settings.masks.source} masks like these from now on", quiet=quiet)
        opened.update(command=typed("masks"))
    say(f"{len(written)} masks in {opened.masks}; the first of them drawn on their normal images: sheet.png", quiet=quiet)
    return written
