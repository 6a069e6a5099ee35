"""The command that asks, on held-out real images, whether a run's pairs help."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.commands import run_settings, run_split, typed
from anomalydiffusion.app.progress import bar
from anomalydiffusion.app.settings import Settings
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError, RunError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.core.pixels import decode_png, encode_png
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.downstream.arms import OURS, REAL, arms
from anomalydiffusion.downstream.detectors import PRESETS
from anomalydiffusion.downstream.evaluate import Comparison, Redecode, compare
from anomalydiffusion.downstream.samples import Generated, gather
from anomalydiffusion.generation.roundtrip import redecode
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.report.sheets import contact_sheet, fitted, heat

__all__ = ["TASKS", "evaluate"]

log = logging.getLogger(__name__)
TASKS = ("localization",)
SHOWN = 4  # test images at each end of the sheet


def _pairs(run: Run) -> list[Generated]:
    """The accepted pairs of a run. Raises `RunError` where there are none, or the files of one are gone."""
    records = accepted(Manifest(run.manifest).records())
    if not records:
        raise RunError(f"{run.folder}: no accepted pairs to evaluate; run 'anomalydiffusion generate {run.folder} --num 40' first")
    pairs = [
        Generated(product=r["product"], defect=r["defect"], image=run.folder / r["image"], mask=run.folder / r["mask"],
                  normal=run.folder / r["normal"], normal_sha256=r["normal_sha256"])
        for r in records
    ]  # fmt: skip
    if lost := next((path for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()), None):
        raise RunError(f"{lost}: gone, but the manifest names it; restore it, or draw the pairs anew with generate --no-resume")
    return pairs


def _redecode(run: Run, settings: Settings) -> Redecode | None:
    """The prior's round trip with the grain that generation hands back; None, with a warning, where the prior is not to be had."""
    try:
        prior = load_prior(settings.prior, device=settings.device)
        measured = Adapter.load(run.adapter, prior).origin.measures
    except AnomalyDiffusionError as error:
        log.warning("the shortcut check is left out: %s", error)
        return None

    def call(product: str, image_HWC: np.ndarray, seed: int) -> tuple[np.ndarray, Mask]:
        grains = [own.get("grain", 1.0) for key, own in sorted(measured.items()) if key.split("/")[0] == product] or [1.0]
        grain = grains[int(rng(seed, "grain").integers(len(grains)))]
        return redecode(prior, image_HWC, settings.generate, grain=grain, seed=seed)

    return call


def evaluate(
    run: Path | str, *, task: str = "localization", seeds: int = 1, baselines: bool = False, controls: bool = False,
    detector: str | None = None, steps: int | None = None, shortcut: bool = True, config: Path | None = None,
    device: str | None = None, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train the same detector with and without the accepted pairs, test both on held-out real images, give a verdict.

    `baselines` adds what one would do without us (Perlin noise with foreign texture, pasted and blended defects) and ours with
    the best of them; `controls` adds further real defects and misplaced labels, and says whether the comparison counts.
    `detector` is one of `PRESETS`. Finished trainings are kept in RUN/evaluation, so a killed call goes on. Writes
    RUN/scores.json and a sheet of the best and worst test images, and returns the scores.
    """
    if task not in TASKS:
        raise ConfigError(f"--task {task}: known are {', '.join(TASKS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    if detector is not None and detector not in PRESETS:
        raise ConfigError(f"--detector {detector}: known are {', '.join(PRESETS)}")
    opened = Run.open(Path(run))
    settings = run_settings(opened, config=config, device=device)
    chosen = settings.detector if detector is None else PRESETS[detector]
    chosen = chosen if steps is None else replace(chosen, steps=steps)
    split, pairs, root = run_split(opened), _pairs(opened), Path(json.loads(opened.split.read_text(encoding="utf-8"))["root"])
    total = chosen.steps * seeds * len(arms(baselines=baselines, controls=controls)) * len({shot.product for shot in split.shots})
    with opened.lock(), bar("evaluate", total, quiet=quiet) as shown:
        scores = compare(split, pairs, root, Comparison(
            detector=chosen, folder=opened.evaluation, seeds=range(seeds), baselines=baselines, controls=controls,
            redecode=_redecode(opened, settings) if shortcut else None, progress=lambda done, total, what: shown.at(done, what),
        ))  # fmt: skip
        record = {**_before(opened, split), task: scores}
        write_atomic(opened.scores, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        _sheets(opened, split, pairs, controls)
        opened.update(command=typed("evaluate"))
    return scores


def _before(run: Run, split: Split) -> dict[str, Any]:
    """What other tasks found before, where it was on the same split."""
    try:
        record = json.loads(run.scores.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = record.items() if isinstance(record, dict) else ()
    return {name: own for name, own in known if isinstance(own, dict) and own.get("split_digest") == split.digest}


def _sheets(run: Run, split: Split, pairs: Sequence[Generated], controls: bool) -> None:
    """For each product, the test images on which ours gains and loses most against real-only: image, truth and both maps."""
    lines_by_product: dict[str, list[dict[str, Any]]] = {}
    for line in Manifest(run.evaluation / "arms.jsonl").records():
        lines_by_product.setdefault(line["product"], []).append(line)
    for material in gather(split, pairs):
        latest = {line["arm"]: line for line in lines_by_product.get(material.product, []) if line.get("maps")}
        if not {REAL, OURS} <= latest.keys():
            continue
        figures = {arm: latest[arm]["per_image"] for arm in (REAL, OURS)}
        order = list(figures[OURS])
        gains = {name: figures[OURS][name] - figures[REAL][name] for name in order if name in figures[REAL]}
        ranked = sorted(gains, key=gains.__getitem__)
        worst, best = ranked[:SHOWN], ranked[-SHOWN:][::-1]
        samples = {sample.name: sample for sample in material.tests}
        lines = []
        for name in dict.fromkeys([*best, *worst]):
            image, mask = samples[name].read()
            truth = mask.pixels_HW if mask else np.zeros(image.shape[:2], bool)
            drawn = [fitted("test image", image), fitted("truth", heat(truth.astype(np.float32)).astype(np.uint8))]
            for arm in (REAL, OURS):
                found = decode_png((run.evaluation / "maps" / material.product / arm / f"{order.index(name):06d}.png").read_bytes())
                drawn.append(fitted(arm, heat(found / 255).astype(np.uint8)))
            figure = " to ".join(f"{100 * figures[arm][name]:.0f}" for arm in (REAL, OURS))
            lines.append((f"{samples[name].defect}/{Path(name).name}: pixel AP {figure}", drawn))
        if lines:
            write_atomic(run.evaluation / f"{material.product}.png", encode_png(contact_sheet(lines)))
