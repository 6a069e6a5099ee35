"""`train`: learn the defects of a data set from their few shots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalydiffusion.app.launched import Launched
from anomalydiffusion.app.learning import learn, learn_masks, learn_prior, refuse_another, take_over, take_released
from anomalydiffusion.app.opened import chosen, library_versions, own_words, run_settings, typed
from anomalydiffusion.app.preview import Preview
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import Settings, placed, prior_of, resolve, to_toml
from anomalydiffusion.app.source import shots_of
from anomalydiffusion.app.trackers import check_tracker
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.conditioning.released import digest_released, is_released
from anomalydiffusion.core.config import read_toml
from anomalydiffusion.core.devices import find_device, find_dtype, idle_card
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.names import placed_at
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split, to_json
from anomalydiffusion.training.loop import latest_checkpoint
from anomalydiffusion.training.recipes import check_learnable

__all__ = ["train"]


def _say_left(run: Run, settings: Settings, config: Path | str | None, quiet: bool) -> None:
    """Tell what a file asks of other commands than this one, which has nothing to do: a run's settings stay as they are."""
    own = run_settings(run)
    left = [f"[{name}]" for name in ("masks", "generate", "gate") if getattr(settings, name) != getattr(own, name)]
    if config is not None and left:
        say(f"{config}: {', '.join(left)} not taken over; give the file to the command that uses it, with --config", quiet=quiet)


def train(
    data: Path | str, output: Path | str, *, product: Sequence[str] | None = None, defect: Sequence[str] | None = None,
    prior: str | None = None, preset: str | None = None, config: Path | str | None = None, seed: int | None = None,
    rotation: int | None = None, max_train_steps: int | None = None, report_to: str | None = None, extend: Path | str | None = None,
    adapt_prior: bool = False, preview_steps: int | None = None, device: str | None = None, dtype: str | None = None, resume: bool = True,
    dry_run: bool = False, quiet: bool = False,
) -> Run:  # fmt: skip
    """Learn every defect of DATA (or the chosen ones) from its few shots; a killed training goes on from its checkpoint.

    `extend`: an earlier run whose settings and adapter are taken over; only the defects that it does not know are learned, by
    vectors of their own, and the others stay as they are. Or a folder of the files that the paper's authors released. `report_to`: a
    tracker for the loss: "tensorboard" (RUN/logs, the default), "wandb", "mlflow", "trackio", "none". `preview_steps`: every so many
    steps one defect of each type is drawn, RUN/previews (`app.preview`); what is learned stays the same. Raises `SplitError`,
    `DataError`, `RunError` in one line each. A run that was trained with other settings or other data is not
    overwritten. `adapt_prior`: the prior first learns what the run's normal images look like, none of those held out
    (`training.adapt`): RUN/prior, what that changed in run.json and prior.png; everything else is learned on it.

    Begun by `torchrun` or `accelerate launch` in several processes, they share the micro batches of each step (`training.together`), and
    the first one writes the run.
    """
    launched = Launched.here()
    quiet = quiet or not launched.leads
    given: dict[str, Any] = {
        "prior": prior,
        "seed": seed,
        "rotation": rotation,
        "device": device,
        "dtype": dtype,
        "report_to": report_to,
        "preview_steps": preview_steps,
        "adapt": {} if adapt_prior else None,
        "train": {"loop": {"steps": max_train_steps}},
    }
    released = Path(extend) if extend is not None and is_released(Path(extend)) else None
    earlier = Run.open(Path(extend)) if extend is not None and released is None else None
    settings = resolve(preset, config, base=own_words(earlier) if earlier else None, **given)
    check_tracker(settings.report_to)
    settings = placed(settings)
    if extend is not None and adapt_prior:
        raise ConfigError("--adapt-prior: an adapter fits the prior it was learned on; leave it away beside --extend")
    adapts = settings.adapt is not None and extend is None
    if adapts and launched.count > 1:
        raise ConfigError(
            "--adapt-prior: is for one process; adapt the prior by itself, with 'anomalydiffusion prior train --images', and give it"
        )
    extends = digest_released(released) if released else Adapter.digest_of(earlier.adapter) if earlier else ""
    data, output = placed_at(data), Path(output)
    split = few_shot_split(read_folder(data), products=product, defects=defect, rotation=settings.rotation)
    counts = ", ".join(f"{'/'.join(key)} {sum(shot.key == key for shot in split.shots)}" for key in chosen(split, None, None))
    say(f"shots: {counts}; {len(split.held_out)} defect images held out; {len(split.normals)} normals", quiet=quiet)
    if card := idle_card(settings.device):
        say(f"the processor computes; this machine has a graphics card too: --device {card}", quiet=quiet)
    if dry_run:
        say(
            f"plan: {settings.train.pool.crops} crops, {settings.train.loop.steps} steps of {settings.train.batch_size}, "
            f"prior '{settings.prior}'" + (", adapted to the normal images" if adapts else ""),
            quiet=quiet,
        )
        return Run(output, {})
    if earlier is not None and earlier.folder.resolve() == output.resolve():
        raise ConfigError(f"--extend {extend}: the run to be extended stays as it is; give another --output")
    run, cpu = Run.create(output) if launched.leads else Run(output, {}), settings.device == "cpu"
    with run.lock() if launched.leads else nullcontext():
        launched.meet(cpu=cpu)
        run = run if launched.leads else Run.open(output)
        if not resume and run.manifest.exists():
            raise RunError(f"{output}: holds pairs that its adapter made; give another --output to train anew")
        begun = run.adapter.exists() or latest_checkpoint(run.checkpoints) is not None
        own, known = str(run.prior.resolve()), run.record.get("adapted", {})  # the prior that the run's own settings name, once adapted
        where = {own, str(run.record.get("prior"))} if known else {own}  # also from where it was: the run may have been moved
        beginning = str(known.get("start", own)) if settings.prior in where else settings.prior
        settings = replace(settings, prior=own) if adapts else replace(settings, adapt=None)
        if resume and begun:
            refuse_another(run, settings, split, extends, str(read_toml(earlier.config).get("prior", "")) if earlier else "")
            if run.adapter.exists() and (settings.masks.source != "learned" or run.mask_adapter.exists()):
                say(f"{output}: already trained", quiet=quiet)
                _say_left(run, settings, config, quiet)
                return run
        shots = shots_of(split)
        if adapts:
            find_dtype(settings.dtype, find_device(settings.device))  # before minutes are spent
            learn_prior(run, settings, split, beginning, quiet, resume=resume)
        loaded = prior_of(settings)
        if resume and begun and not loaded.is_known_as(run.record.get("prior_digest", loaded.digest)):
            raise RunError(
                f"{output}: was begun on prior {run.record['prior_digest']}, but '{settings.prior}' is {loaded.digest} by now; "
                "put that back, or give another --output"
            )
        for learned in (settings.train, settings.masks.train):
            check_learnable(loaded, learned)
        begin = take_over(earlier, split, loaded) if earlier else None
        if released is not None:
            begin = take_released(released, split, shots, loaded)
        launched.meet(cpu=cpu)  # nobody looks at what was there any more
        if launched.leads:
            if not resume:  # only now, when nothing that was typed can be wrong any more
                for old in (run.checkpoints, run.adapter.parent, run.previews):
                    shutil.rmtree(old, ignore_errors=True)
                for log in (run.train_log, run.mask_log):
                    log.unlink(missing_ok=True)
            write_atomic(run.split, (json.dumps(to_json(split, data), indent=1, ensure_ascii=False) + "\n").encode())
            write_atomic(run.config, to_toml(settings).encode())
            run.update(
                command=typed("train"), prior=settings.prior, prior_digest=loaded.digest, split_digest=split.digest, status="training",
                versions=library_versions(), extends=extends,
                earlier_shots=begin.shots if begin else [], extended=str(earlier.folder.resolve()) if earlier else "",
                elsewhere=begin.elsewhere if begin else "",
            )  # fmt: skip
        launched.meet(cpu=cpu)
        run = run if launched.leads else Run.open(output)  # what it extends is known by now
        if not run.adapter.exists():
            start = begin.adapter if begin else None
            watch = Preview(run, settings, split, shots, loaded, start) if settings.preview_steps else None
            learn(run, settings.train, settings, split.digest, shots, loaded, quiet, start=start, watch=watch)
        launched.meet(cpu=cpu)
        if settings.masks.source == "learned":
            learn_masks(run, settings, split.digest, shots, loaded, quiet)
        if launched.leads:
            run.update(status="trained")
    return run
