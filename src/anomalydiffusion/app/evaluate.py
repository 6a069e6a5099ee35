"""The command that asks, on held-out real images, whether a run's pairs help."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.compared import Asked, Trainer, pairs_of, refuse_learned, share_out
from anomalydiffusion.app.opened import run_settings, run_split, typed
from anomalydiffusion.app.progress import Bar, bar, say
from anomalydiffusion.core.errors import ConfigError, DataError, SplitError, TrainingError
from anomalydiffusion.core.manifest import Manifest, digest_of
from anomalydiffusion.core.pixels import decode_png, digest_file, encode_png, read_image, read_mask
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Mask, Shot, Split
from anomalydiffusion.data.folders import load
from anomalydiffusion.downstream import classifiers, detectors
from anomalydiffusion.downstream.arms import OURS, REAL, arms, baseline_samples
from anomalydiffusion.downstream.baselines import BASELINES
from anomalydiffusion.downstream.classify import class_arms
from anomalydiffusion.downstream.comparison import Found, Training
from anomalydiffusion.downstream.leaks import guard
from anomalydiffusion.downstream.samples import Generated, Sample, gather
from anomalydiffusion.generation.crew import Crew, ProcessCrew
from anomalydiffusion.generation.rayed import RayCrew
from anomalydiffusion.generation.shards import Shard
from anomalydiffusion.quality.features import extractor
from anomalydiffusion.quality.measure import View, measure_quality, view
from anomalydiffusion.report.scores import PAIRS
from anomalydiffusion.report.sheets import contact_sheet, fitted, heat

__all__ = ["TASKS", "evaluate"]

log = logging.getLogger(__name__)
TASKS = ("localization", "classification", "quality")
MOST = 200  # views of a defect type that are measured
SHOWN = 4  # test images at each end of the sheet


def evaluate(
    run: Path | str, *, task: str = "localization", seeds: int = 1, baselines: bool = False, controls: bool = False,
    detector: str | None = None, steps: int | None = None, shortcut: bool = True, features: str = "efficientnet-lite0",
    workers: int | None = None, ray: str | None = None, shard: str | None = None, config: Path | str | None = None,
    device: str | None = None, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Ask on held-out real images what a run's accepted pairs are worth; writes RUN/scores.json and returns this task's scores.

    `localization`: train the same detector with and without the pairs, with a verdict. `baselines` adds what one would do
    without us (Perlin noise with foreign texture, pasted and blended defects) and ours with the best of them; `controls` adds
    further real defects and misplaced labels, and says whether the comparison counts; `shortcut` looks whether detectors take
    the prior's autoencoder for a defect. `detector` is one of `PRESETS`. Finished trainings are kept in RUN/evaluation, so a
    killed call goes on; a sheet of the best and worst test images lies beside them.
    `workers`: processes of this machine that train beside each other, or with `ray`, the address of a cluster or "local", its actors: by
    default as many as there is room for. `shard`: "i/n", the i-th of n commands that share the trainings out, on one machine or on several
    that see the same folder; it only trains, and returns how many: the same call without it gives the verdict.
    `classification`: the same question for telling the defect types of a product apart, given where the defect is.
    `quality`: how near the pairs are to real defects, how varied, how well labelled, as `features` (an extractor) sees them.
    """
    if task not in TASKS:
        raise ConfigError(f"--task {task}: known are {', '.join(TASKS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: expected at least 1")
    part = None if shard is None else Shard.parse(shard)
    if part is not None and (ray is not None or workers not in (None, 1)):
        raise ConfigError("--shard: is one of several commands; --workers and --ray share out the work by themselves")
    known: dict[str, dict[str, Any]] = {"localization": {**detectors.PRESETS}, "classification": {**classifiers.PRESETS}}
    presets = known.get(task, {})
    if task == "quality" and (controls or steps is not None):
        raise ConfigError("--task quality trains nothing: leave out --controls and --steps")
    if task == "quality" and (workers, ray, shard) != (None, None, None):
        raise ConfigError("--task quality trains nothing: leave out --workers, --ray and --shard")
    if detector is not None and detector not in presets:
        raise ConfigError(f"--detector {detector}: known for {task} are {', '.join(presets) or 'none'}")
    opened = Run.open(Path(run))
    if elsewhere := opened.record.get("elsewhere"):
        raise SplitError(
            f"{opened.folder}: its adapter is from {elsewhere}, and which images that was learned from is not recorded; no held-out image "
            "can be shown to be new to it, so nothing is evaluated: train an adapter here for a proof"
        )
    settings = run_settings(opened, config=config, device=device)
    split, pairs, root = run_split(opened), pairs_of(opened), Path(json.loads(opened.split.read_text(encoding="utf-8"))["root"])
    refuse_learned(opened, split)
    with opened.lock() if part is None else part.lock(opened, "evaluate-"):
        if task == "quality":
            if not {(pair.product, pair.defect) for pair in pairs} & {shot.key for shot in split.held_out}:
                raise DataError(f"{opened.folder}: no held-out defect image to hold the pairs against; it takes at least 2 of a type")
            guard(split, pairs, root)
            scores = {**_quality(split, pairs, features, quiet, baselines=baselines), "split_digest": split.digest}
        else:
            own: Any = settings.detector if task == "localization" else settings.classifier
            asked = Asked(
                folder=opened.folder.resolve(), settings=settings, task=task, seeds=seeds, baselines=baselines, controls=controls,
                detector=replace(presets[detector] if detector else own, **({} if steps is None else {"steps": steps})), shortcut=shortcut,
                elsewhere=ray is not None,
            )  # fmt: skip
            if part is not None:
                return {"trained": _part(asked, part, quiet)}
            if ray is not None or workers not in (None, 1):
                _together(asked, workers, ray, quiet)
            named = (arms if task == "localization" else class_arms)(baselines=baselines, controls=controls)
            total = asked.detector.steps * seeds * len(named) * len({shot.product for shot in split.shots})
            with bar("evaluate", total, quiet=quiet) as shown:
                scores, found = asked.compare(lambda done, total, what: shown.at(done, what))
        scores[PAIRS] = digest_of(Manifest(opened.manifest).records())
        record = {**_before(opened, split), task: scores}
        write_atomic(opened.scores, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        opened.update(command=typed("evaluate"))
        if task == "localization":
            _sheets(opened, split, pairs, found)
    return scores


def _part(asked: Asked, part: Shard, quiet: bool) -> int:
    """Train what is this shard's; how many that were. What waits for other trainings is nobody's: it is trained for the verdict."""
    own = asked.trainings()
    mine = part.of([each for each in own.all if not own.needed(each)])
    with bar("evaluate", len(mine), quiet=quiet) as shown:
        for done, (product, arm, seed) in enumerate(mine):
            shown.at(done, f"{product}, {arm}, seed {seed}")
            own.train((product, arm, seed))
        shown.at(len(mine), "")
    say(f"shard {part} is done, {len(mine)} of {len(own.all)} trainings; the same command without --shard gives the verdict", quiet=quiet)
    return len(mine)


def _together(asked: Asked, workers: int | None, ray: str | None, quiet: bool) -> None:
    """Train what is left by several workers: first what waits for nothing, then what did."""
    card = ray is not None and asked.settings.device.startswith("cuda")
    order = replace(asked, elsewhere=False)
    if card:  # each worker sees its own alone
        order = replace(order, settings=replace(asked.settings, device="cuda"))
    own = asked.trainings()
    while tasks := own.ready():
        size, build = min(workers or len(tasks), len(tasks)), partial(Trainer, order)
        crew: Crew = ProcessCrew(size, build) if ray is None else RayCrew(ray, None if workers is None else size, build, card=card)
        with bar("train", len(tasks), quiet=quiet) as shown:
            done = list[Training]()

            def ended(task: Training, done: list[Training] = done, shown: Bar = shown) -> None:
                done.append(task)
                shown.at(len(done), f"{task[0]}, {task[1]}, seed {task[2]}")

            share_out(crew, tasks, ended)
        if strange := [task for task in own.ready() if task in tasks]:
            raise TrainingError(
                f"{asked.folder}: what workers trained does not count here ({strange[0][1]}, say): they have another prior or other "
                "files than this command; give every node the same"
            )


def _quality(split: Split, pairs: Sequence[Generated], features: str, quiet: bool, *, baselines: bool) -> dict[str, Any]:
    """The pairs' image scores, and those of as many samples of each baseline; at most `MOST` views of a type, evenly spaced."""
    looked: list[dict[tuple[str, str], list[View]]] = []
    made: list[list[tuple[tuple[str, str], Callable[[], View]]]] = [
        [((pair.product, pair.defect), partial(_pair_view, pair)) for pair in pairs],
        [(shot.key, partial(_shot_view, shot)) for shot in split.shots],
        [(shot.key, partial(_shot_view, shot)) for shot in split.held_out],
    ]
    names = list(BASELINES) if baselines else []
    materials = gather(split, pairs) if baselines else []
    made += [
        [((material.product, sample.defect), partial(_sample_view, sample))
         for material in materials for sample in baseline_samples(name, material, seed=0)]
        for name in names
    ]  # fmt: skip
    with bar("look at the images", sum(map(len, made)), quiet=quiet) as shown:
        done = 0
        for some in made:
            views: dict[tuple[str, str], list[View]] = {}
            for key in dict.fromkeys(key for key, _ in some):
                own = [read for other, read in some if other == key]
                views[key] = [own[i]() for i in sorted({round(i) for i in np.linspace(0, len(own) - 1, MOST)})]
                done += len(own)
                shown.at(done, "/".join(key))
            looked.append(views)
    generated, shots, real, *others = looked
    return measure_quality(generated, shots, real, extractor(features), others=dict(zip(names, others, strict=True)))


def _pair_view(pair: Generated) -> View:
    """Without the normal image where that is gone, or another by now: then it does not tell what changed."""
    there = pair.normal.is_file() and digest_file(pair.normal) == pair.normal_sha256
    normal = read_image(pair.normal) if there else None
    return view(read_image(pair.image), Mask(pixels_HW=read_mask(pair.mask), origin="generated"), normal)


def _shot_view(shot: Shot) -> View:
    return view(*load(shot))


def _sample_view(sample: Sample) -> View:
    image, mask = sample.read()
    if mask is None:
        raise DataError(f"{sample.name}: shows no defect")
    return view(image, mask)


def _before(run: Run, split: Split) -> dict[str, Any]:
    """What other tasks found before, where it was on the same split."""
    try:
        record = json.loads(run.scores.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = record.items() if isinstance(record, dict) else ()
    return {name: own for name, own in known if isinstance(own, dict) and own.get("split_digest") == split.digest}


def _sheets(run: Run, split: Split, pairs: Sequence[Generated], found: Found) -> None:
    """For each product, the test images on which ours gains and loses most against real-only: image, truth and both maps."""
    for material in gather(split, pairs):
        both = {arm: found.get((material.product, arm, 0), {}) for arm in (REAL, OURS)}
        samples = {sample.name: sample for sample in material.tests}
        if not all(line.get("maps") and line["per_image"].keys() <= samples.keys() for line in both.values()):
            continue  # not of the first seed, or of images that lay elsewhere
        figures = {arm: line["per_image"] for arm, line in both.items()}
        order = list(figures[OURS])
        gains = {name: figures[OURS][name] - figures[REAL][name] for name in order}
        ranked = sorted(gains, key=gains.__getitem__)
        worst, best = ranked[:SHOWN], ranked[-SHOWN:][::-1]
        lines = []
        for name in dict.fromkeys([*best, *worst]):
            image, mask = samples[name].read()
            truth = mask.pixels_HW if mask else np.zeros(image.shape[:2], bool)
            drawn = [fitted("test image", image), fitted("truth", heat(truth.astype(np.float32)).astype(np.uint8))]
            files = [(arm, run.evaluation / both[arm]["maps"] / f"{order.index(name):06d}.png") for arm in (REAL, OURS)]
            if not all(path.is_file() for _, path in files):
                log.warning("%s: maps were removed; the sheet of test images lacks %s", run.evaluation / "maps", Path(name).name)
                continue
            drawn += [fitted(arm, heat(decode_png(path.read_bytes()) / 255).astype(np.uint8)) for arm, path in files]
            figure = " to ".join(f"{100 * figures[arm][name]:.0f}" for arm in (REAL, OURS))
            lines.append((f"{samples[name].defect}/{Path(name).name}: pixel AP {figure}", drawn))
        if lines:
            write_atomic(run.evaluation / f"{material.product}.png", encode_png(contact_sheet(lines)))
