"""The command that asks, on held-out real images, whether a run's pairs help."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.opened import run_settings, run_split, typed
from anomalydiffusion.app.progress import bar
from anomalydiffusion.app.settings import Settings, prior_of
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.devices import find_device
from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError, DataError, RunError, SplitError
from anomalydiffusion.core.manifest import Manifest, accepted, judged
from anomalydiffusion.core.pixels import decode_png, encode_png, read_image, read_mask
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Shot, Split
from anomalydiffusion.data.folders import load
from anomalydiffusion.downstream import classifiers, detectors
from anomalydiffusion.downstream.arms import OURS, REAL, arms, baseline_samples
from anomalydiffusion.downstream.baselines import BASELINES
from anomalydiffusion.downstream.classify import class_arms, compare_classes
from anomalydiffusion.downstream.comparison import Comparison, Redecode
from anomalydiffusion.downstream.evaluate import compare
from anomalydiffusion.downstream.leaks import guard
from anomalydiffusion.downstream.samples import Generated, Sample, gather
from anomalydiffusion.generation.roundtrip import redecode
from anomalydiffusion.quality.features import extractor
from anomalydiffusion.quality.measure import View, measure_quality, view
from anomalydiffusion.report.sheets import contact_sheet, fitted, heat

__all__ = ["TASKS", "evaluate", "round_trip"]

log = logging.getLogger(__name__)
TASKS = ("localization", "classification", "quality")
MOST = 200  # views of a defect type that are measured
SHOWN = 4  # test images at each end of the sheet


def _pairs(run: Run) -> list[Generated]:
    """The accepted pairs of a run. Raises `RunError` where there are none, or the files of one are gone."""
    records = accepted(judged(Manifest(run.manifest).pairs(), run.folder))
    if not records:
        raise RunError(f"{run.folder}: no accepted pairs to evaluate; run 'anomalydiffusion generate {run.folder} --num 40' first")
    pairs = [
        Generated(product=r["product"], defect=r["defect"], image=run.folder / r["image"], mask=run.folder / r["mask"],
                  normal=run.folder / r["normal"], normal_sha256=r["normal_sha256"],
                  reference=run.folder / r["reference"] if r.get("reference") else None)
        for r in records
    ]  # fmt: skip
    if lost := next((path for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()), None):
        raise RunError(f"{lost}: gone, but the manifest names it; restore it, or draw the pairs anew with generate --no-resume")
    return pairs


def round_trip(run: Run, settings: Settings) -> Redecode | None:
    """The prior's round trip, with the grain that a drawing from noise gets back.

    One that begins from a real defect gets all of it: what its pairs show of the autoencoder is less. None, and said, where the prior is
    not to be had, or all that it loses is handed back, so that there is nothing to see.
    """
    try:
        prior = prior_of(settings)
        measured = Adapter.load(run.adapter, prior).origin.measures
    except AnomalyDiffusionError as error:
        log.warning("the shortcut check is left out: %s", error)
        return None

    config = settings.generate
    shares = {key: config.handed_back(own.get("grain", 1.0)) for key, own in sorted(measured.items())}
    if all(share == 1 for share in shares.values()):
        log.info("the shortcut check is left out: pairs get all of the normal image's grain back, and show nothing of the autoencoder")
        return None

    def call(product: str, image_HWC: np.ndarray, seed: int) -> tuple[np.ndarray, Mask]:
        grains = [share for key, share in shares.items() if key.split("/")[0] == product] or [1.0]
        grain = grains[int(rng(seed, "grain").integers(len(grains)))]
        return redecode(prior, image_HWC, config, grain=grain, seed=seed)

    way = {"prior": prior.digest, "shares": shares, "ratio": config.ratio, "side": config.minimum_side, "feather": config.feather}
    return Redecode(call=call, digest=hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:16])


def evaluate(
    run: Path | str, *, task: str = "localization", seeds: int = 1, baselines: bool = False, controls: bool = False,
    detector: str | None = None, steps: int | None = None, shortcut: bool = True, features: str = "efficientnet-lite0",
    config: Path | str | None = None, device: str | None = None, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Ask on held-out real images what a run's accepted pairs are worth; writes RUN/scores.json and returns this task's scores.

    `localization`: train the same detector with and without the pairs, with a verdict. `baselines` adds what one would do
    without us (Perlin noise with foreign texture, pasted and blended defects) and ours with the best of them; `controls` adds
    further real defects and misplaced labels, and says whether the comparison counts; `shortcut` looks whether detectors take
    the prior's autoencoder for a defect. `detector` is one of `PRESETS`. Finished trainings are kept in RUN/evaluation, so a
    killed call goes on; a sheet of the best and worst test images lies beside them.
    `classification`: the same question for telling the defect types of a product apart, given where the defect is.
    `quality`: how near the pairs are to real defects, how varied, how well labelled, as `features` (an extractor) sees them.
    """
    if task not in TASKS:
        raise ConfigError(f"--task {task}: known are {', '.join(TASKS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    known: dict[str, dict[str, Any]] = {"localization": {**detectors.PRESETS}, "classification": {**classifiers.PRESETS}}
    presets = known.get(task, {})
    if task == "quality" and (controls or steps is not None):
        raise ConfigError("--task quality trains nothing: leave out --controls and --steps")
    if detector is not None and detector not in presets:
        raise ConfigError(f"--detector {detector}: known for {task} are {', '.join(presets) or 'none'}")
    opened = Run.open(Path(run))
    if elsewhere := opened.record.get("elsewhere"):
        raise SplitError(
            f"{opened.folder}: its adapter is from {elsewhere}, and which images that was learned from is not recorded; no held-out image "
            "can be shown to be new to it, so nothing is evaluated: train an adapter here for a proof"
        )
    settings = run_settings(opened, config=config, device=device)
    split, pairs, root = run_split(opened), _pairs(opened), Path(json.loads(opened.split.read_text(encoding="utf-8"))["root"])
    with opened.lock():
        if task == "quality":
            if not {(pair.product, pair.defect) for pair in pairs} & {shot.key for shot in split.held_out}:
                raise DataError(f"{opened.folder}: no held-out defect image to hold the pairs against; it takes at least 2 of a type")
            guard(split, pairs, root)
            scores = {**_quality(split, pairs, features, quiet, baselines=baselines), "split_digest": split.digest}
        else:
            own: Any = settings.detector if task == "localization" else settings.classifier
            chosen = replace(presets[detector] if detector else own, **({} if steps is None else {"steps": steps}))
            call: Any = compare if task == "localization" else compare_classes
            named = arms if task == "localization" else class_arms
            total = chosen.steps * seeds * len(named(baselines=baselines, controls=controls)) * len({shot.product for shot in split.shots})
            with bar("evaluate", total, quiet=quiet) as shown:
                scores = call(split, pairs, root, Comparison(
                    detector=chosen, folder=opened.evaluation, seeds=range(seeds), baselines=baselines, controls=controls,
                    redecode=round_trip(opened, settings) if shortcut and task == "localization" else None,
                    device=str(find_device(settings.device)), progress=lambda done, total, what: shown.at(done, what),
                ))  # fmt: skip
            if task == "localization":
                _sheets(opened, split, pairs)
        record = {**_before(opened, split), task: scores}
        write_atomic(opened.scores, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        opened.update(command=typed("evaluate"))
    return scores


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
    normal = read_image(pair.normal) if pair.normal.is_file() else None
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


def _latest(run: Run, product: str) -> dict[str, dict[str, Any]]:
    """The newest lines of real-only and ours that were compared under the same settings, on the same images; none without."""
    seen: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    newest: dict[str, dict[str, Any]] = {}
    for line in Manifest(run.evaluation / "arms.jsonl").records():
        if line.get("product") == product and line.get("maps") and all(line.get(name) is not None for name in ("arm", "detector", "split")):
            both = seen.setdefault(tuple(line[name] for name in ("detector", "split", "controls", "redecoded")), {})
            both[line["arm"]] = line
            newest = both if {REAL, OURS} <= both.keys() else newest
    return newest


def _sheets(run: Run, split: Split, pairs: Sequence[Generated]) -> None:
    """For each product, the test images on which ours gains and loses most against real-only: image, truth and both maps."""
    for material in gather(split, pairs):
        latest = _latest(run, material.product)
        if not latest:
            continue
        figures = {arm: line["per_image"] for arm, line in latest.items()}
        order = list(figures[OURS])
        gains = {name: figures[OURS][name] - figures[REAL][name] for name in order}
        ranked = sorted(gains, key=gains.__getitem__)
        worst, best = ranked[:SHOWN], ranked[-SHOWN:][::-1]
        samples = {sample.name: sample for sample in material.tests}
        lines = []
        for name in dict.fromkeys([*best, *worst]):
            image, mask = samples[name].read()
            truth = mask.pixels_HW if mask else np.zeros(image.shape[:2], bool)
            drawn = [fitted("test image", image), fitted("truth", heat(truth.astype(np.float32)).astype(np.uint8))]
            for arm in (REAL, OURS):
                found = decode_png((run.evaluation / latest[arm]["maps"] / f"{order.index(name):06d}.png").read_bytes())
                drawn.append(fitted(arm, heat(found / 255).astype(np.uint8)))
            figure = " to ".join(f"{100 * figures[arm][name]:.0f}" for arm in (REAL, OURS))
            lines.append((f"{samples[name].defect}/{Path(name).name}: pixel AP {figure}", drawn))
        if lines:
            write_atomic(run.evaluation / f"{material.product}.png", encode_png(contact_sheet(lines)))
