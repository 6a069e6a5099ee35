"""`generate`: pairs until enough are accepted, or one pair again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anomalydiffusion.app.again import draw_again
from anomalydiffusion.app.drawer import Drawer, Order
from anomalydiffusion.app.fits import settled
from anomalydiffusion.app.grounds import tell_grounds
from anomalydiffusion.app.launched import Launched
from anomalydiffusion.app.opened import Key, chosen, run_settings, run_split, typed
from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.reference import begin_from_reference
from anomalydiffusion.app.settings import Drawing, to_toml
from anomalydiffusion.app.shortfall import tell_shortfall
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import Manifest, judged
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.generation.crew import Crew, ProcessCrew, fill_together
from anomalydiffusion.generation.mirror import Mirror
from anomalydiffusion.generation.rayed import RayCrew
from anomalydiffusion.generation.shards import Shard, Slot, discard, fill, open_slots, plan, put_in_order, records_of, slot_of

__all__ = ["generate"]


def generate(
    run: Path | str, num: int | None = None, *, like: Path | str | None = None, output: Path | str | None = None,
    product: Sequence[str] | None = None, defect: Sequence[str] | None = None, prior: str | None = None,
    seed: int | None = None, steps: int | None = None, severity: float | tuple[float, float] | None = None,
    normals: Path | str | None = None, masks: Path | str | None = None, batch_size: int | None = None, attempts: int | None = None,
    shard: str | None = None, workers: int | None = None, ray: str | None = None, mirror: str | None = None,
    config: Path | str | None = None, reference: Path | str | None = None, reference_mask: Path | str | None = None,
    device: str | None = None, dtype: str | None = None, compile: bool | None = None, resume: bool = True, dry_run: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make `num` accepted pairs per defect type; what the manifest already holds is not made again.

    Pairs of one defect type are all made with the same settings; with `resume=False` those that are there are thrown away
    first. Returns the manifest's records. Raises `GenerationError` when not one pair of a defect type was accepted.

    `shard`: "i/n", the i-th of n commands that share the work, on one machine or on several that see the same folder; each has every
    n-th pair, and the pairs are the same as without.
    Processes that `accelerate launch` or `torchrun` began are such commands, each with the graphics card of its number.
    `workers`: processes of this machine that draw, each with a model of its own; with `ray`, the address of a cluster or "local", its
    actors (`generation.crew`): by default as many as there is room for. The pairs are the same, within a grey level.
    `mirror`: a folder or a URL, such as s3://bucket/tiles, that the run's pairs are copied to while they are drawn, its manifest last
    (`generation.mirror`).
    `compile`: the denoiser is compiled for this machine first (`LatentPrior.compile`): worth it for large priors and many pairs.
    `like`, instead of `num`: a picture that this run drew, of which just this pair is drawn again, to `output` (`app.again`).
    `reference` and `reference_mask`: the one picture of a defect that there is. Nothing is trained: `run` is begun from it, on the
    `normals`, which must be given the first time; `product` and `defect` name what it shows (`app.reference`).
    """
    normals, masks, launched = Path(normals) if normals else None, Path(masks) if masks else None, Launched.here()
    if launched.count > 1:
        if any(given is not None for given in (shard, workers, ray, like, reference)):
            raise ConfigError("--shard, --workers, --ray, --like and --reference: are not for several processes that a launcher began")
        shard = launched.shard
    told, quiet = quiet, quiet or not launched.leads
    if num is None and like is None:
        raise ConfigError("give --num, how many pairs, or --like, a picture to draw again")
    if reference is not None and like is None:
        begun = begin_from_reference(
            Path(run), Path(reference), Path(reference_mask) if reference_mask else None, normals, product=product, defect=defect,
            prior=prior, config=config, device=device, dtype=dtype, dry_run=dry_run, quiet=quiet,
        )  # fmt: skip
        if begun is None:
            return []
        normals = None  # they are the run's own
    elif reference_mask is not None:
        raise ConfigError("--reference-mask: is for --reference")
    opened = Run.open(Path(run))
    if like is not None:
        _refuse_beside_like(
            num=None if num == 1 else num, product=product, defect=defect, seed=seed, steps=steps, severity=severity, attempts=attempts,
            config=config, dtype=dtype, compile=compile, reference=reference, shard=shard, workers=workers, ray=ray,
            mirror=mirror, no_resume=None if resume else True,
        )  # fmt: skip
        if dry_run:
            say(f"plan: the pair of {like} again", quiet=quiet)
            return []
        return [draw_again(opened, Path(like), Path(output) if output else None, prior=prior, normals=normals, masks=masks,
                           batch_size=batch_size, device=device, quiet=quiet)]  # fmt: skip
    if output is not None:
        raise ConfigError("--output: is for --like; pairs go to the run's own folder")
    if num is None or num < 1:
        raise ConfigError(f"--num {num}: expected at least 1")
    given = {"prior": prior, "seed": seed, "device": device, "dtype": dtype, "compile": compile,
             "generate": {"steps": steps, "severity": severity, "batch_size": batch_size, "attempts": attempts}}  # fmt: skip
    settings = run_settings(opened, config=config, **given)
    settings = replace(settings, device=launched.own(settings.device))
    drawn_by = Adapter.digest_of(opened.mask_adapter) if settings.masks.source == "learned" and opened.mask_adapter.exists() else ""
    split = run_split(opened)
    keys = chosen(split, product, defect)
    part = None if shard is None else Shard.parse(shard)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: expected at least 1")
    if part is not None and (ray is not None or workers not in (None, 1)):
        raise ConfigError("--shard: is one of several commands; --workers and --ray share out the work by themselves")
    if part is not None and not resume:
        raise ConfigError("--no-resume: throws away what other shards have made; do it once, without --shard")
    if dry_run:
        whose = "" if part is None else f"shard {part} of "
        say(f"plan: {whose}{num} pairs each of {', '.join('/'.join(key) for key in keys)}, {settings.generate.steps} steps", quiet=quiet)
        return []
    normals, masks = (folder and folder.resolve() for folder in (normals, masks))  # a worker may begin elsewhere
    with opened.lock() if part is None else part.lock(opened):
        if masks is None:
            if opened.adapter.exists():
                Adapter.check(opened.adapter)  # a damaged one is told at once
            settings = settled(opened, settings, split, normals, note=part is None, quiet=quiet)
            tell_grounds(split, keys, normals, quiet=quiet or (part is not None and part.number > 1))
        drawing = Drawing.of(settings, normals, masks, drawn_by, digest_of(regions_of(split)))
        order = Order(folder=opened.folder.resolve(), settings=settings, split=split, drawing=drawing, normals=normals, masks=masks)
        if resume:
            _refuse_mixing(opened, keys, drawing)

        copy = None if mirror is None else Mirror(opened, mirror)

        def once_ready() -> None:  # when nothing that was typed can be wrong any more
            if not resume:
                discard(opened, keys)
            if part is None:
                opened.update(command=typed("generate"))

        slots = plan(keys, num) if part is None else part.of(plan(keys, num))
        try:
            records = _filled(opened, order, slots, once_ready, anew=not resume, shard=part, workers=workers, ray=ray,
                              mirror=copy, quiet=quiet)  # fmt: skip
        except BaseException:
            if copy is not None:
                copy.stop()
            raise
        if part is None:
            opened.update(status="generated")
            if copy is not None:
                copy.finish()
    last = part is None or _conclude(opened)
    if part is not None and copy is not None:
        copy.finish() if last else copy.wait()
    if launched.count == 1:
        tell_shortfall(slots, records, settings.generate.attempts, quiet)
    elif last:  # one that failed would end the others: the last one judges all
        slots = plan(keys, num)
        tell_shortfall(slots, records_of(opened, slots), settings.generate.attempts, told)
    return records


def _conclude(run: Run) -> bool:
    """Put the manifest into order where no other shard is at work: the last one that ends does it, and is told so."""
    with ExitStack() as held:
        try:
            held.enter_context(run.lock())
        except RunError:
            return False
        put_in_order(run)
        run.update(command=typed("generate"), status="generated")
    return True


def _filled(
    run: Run, order: Order, slots: Sequence[Slot], once_ready: Callable[[], None], *, anew: bool, shard: Shard | None, workers: int | None,
    ray: str | None, mirror: Mirror | None, quiet: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Fill the slots, by this process or by others; the manifest's records of them."""
    write_atomic(run.folder / "settings" / f"{digest(order.drawing)}.toml", to_toml(order.drawing).encode())
    config, seed, wanted = order.settings.generate, order.settings.seed, set(slots)
    manifest = Manifest(run.manifest)
    if not anew and not open_slots(slots, manifest.each_pair(), config.attempts):  # then nothing has to be loaded
        once_ready()
        if shard is None:
            put_in_order(run)
        return records_of(run, slots)
    if order.settings.compile:
        say("compiling the denoiser for this machine: takes some minutes before the first pairs with a large prior", quiet=quiet)
    kept = {slot for record in manifest.each_pair() if record["accepted"] and (slot := slot_of(record)) in wanted}
    with bar("generate", len(slots), quiet=quiet) as shown:

        def progress(record: dict[str, Any]) -> None:
            if record["accepted"]:
                kept.add(slot_of(record))
            if mirror is not None:
                mirror.put(record)
            shown.at(len(kept), f"{record['product']}/{record['defect']}")

        if ray is None and workers in (None, 1):
            drawer = Drawer(order)
            once_ready()
            return fill(run, slots, drawer.make, drawer.gate.check, seed=seed, batch_size=config.batch_size, attempts=config.attempts,
                        settings_digest=order.drawing.settings_digest, progress=progress, shard=shard)  # fmt: skip
        card = ray is not None and order.settings.device.startswith("cuda")
        if card:  # each worker sees its own alone
            order = replace(order, settings=replace(order.settings, device="cuda"))
        build = partial(Drawer, order)
        crew: Crew = ProcessCrew(workers or 1, build) if ray is None else RayCrew(ray, workers, build, card=card)
        return fill_together(run, slots, crew, seed=seed, batch_size=config.batch_size, attempts=config.attempts, once_ready=once_ready,
                             progress=progress)  # fmt: skip


def _refuse_beside_like(**told: Any) -> None:
    if wrong := [f"--{name.replace('_', '-')}" for name, value in told.items() if value not in (None, [], ())]:
        raise ConfigError(f"--like draws one pair, as its picture says; leave {', '.join(wrong)} away")


def _refuse_mixing(run: Run, keys: Sequence[Key], drawing: Drawing) -> None:
    """Pairs of one defect type share their settings: other ones would be ignored by what is already made."""
    wanted = digest(drawing)
    for record in Manifest(run.manifest).each_pair():
        judged([record], run.folder)
        if (record["product"], record["defect"]) in keys and record.get("config_digest") != wanted:
            raise RunError(
                f"{run.folder}: holds {record['product']}/{record['defect']} pairs made with other settings "
                f"(settings/{record.get('config_digest')}.toml); use those again, or throw the pairs away with --no-resume"
            )
