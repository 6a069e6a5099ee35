"""Does generated data help? The same question over seeds and rotations of the split, unattended and resumable.

    python benchmarks/downstream.py DATA --product magnetic_tile --work WORK

For each rotation a run is trained and generated in WORK/<product>-r<rotation> and evaluated with baselines and controls, by detectors
and, where there are several defect types, by classifiers of them. What a rotation gave is kept in
benchmarks/results/downstream-<product>/ and is not done again under the same settings, on whichever machine; after each,
benchmarks/results/<date>-downstream-<product>.md is written from all that are there: one row an arm.

With `--take NAME` arms of real images alone, which do not depend on pairs, are taken from what NAME has kept of the same splits, seeds and
detectors, instead of being trained again.

With `--rotation R` only that rotation is done. Small networks gain little from a second thread, so two rotations beside each other, each
with OMP_NUM_THREADS=1, finish sooner on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any

from pages import RESULTS, as_typed, hardware, save

import anomalydiffusion as ad
from anomalydiffusion.app.compared import round_trip
from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.settings import Settings, resolve
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.downstream.arms import MORE, REAL
from anomalydiffusion.downstream.classify import METRICS as OF_CLASSES
from anomalydiffusion.downstream.comparison import CLASSIFICATION, LOCALIZATION, Comparison, Ledger
from anomalydiffusion.downstream.detectors import PRESETS as DETECTORS
from anomalydiffusion.downstream.evaluate import METRICS as OF_MAPS
from anomalydiffusion.downstream.verdict import controls_hold, difference, summary, verdict

METRICS = {"pixel_ap": "pixel AP", "pixel_auroc": "pixel AUROC", "pro": "PRO", "image_auroc": "image AUROC", "image_ap": "image AP"}
CLASS_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
SHORTCUT = {"false_positive_rate_plain": "untouched", "false_positive_rate_redecoded": "redecoded regions"}

ASKED = ("product", "defect", "num", "train_steps", "detector", "steps", "seeds", "baselines", "controls")  # that figures depend on
DEVELOPED_ON = {"a88325438c8edb84", "02e34afc2f584100", "503014b8cb81058a"}  # of splits by whose held-out figures defaults were chosen

Scores = list[dict[str, Any]]  # what `evaluate` returned, one a rotation


def interval(found: dict[str, Any]) -> str:
    """Mean and interval in hundredths."""
    if found["mean"] is None:
        return "-"
    return f"{100 * found['mean']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def shared(settings: Settings) -> str:
    """The digest of what rotations have in common."""
    return digest(replace(settings, rotation=0))


def settings_of(given: argparse.Namespace, config: Path | None) -> dict[str, Any]:
    """What figures must share to stand in one table."""
    settings = resolve(config=config, train={"loop": {"steps": given.train_steps}})
    return {**{name: value for name, value in vars(given).items() if name in ASKED}, "digest": shared(settings)}


def known(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What `file` keeps, if it was made under the same settings."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    return kept if kept.get("settings") == settings else None


def kept(file: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, made at most once under the same settings."""
    found = known(file, settings)
    if found is None:
        found = {"settings": settings, "hardware": hardware(), "date": datetime.date.today().isoformat(), **make()}
        write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())
    return found


def made(given: argparse.Namespace, rotation: int) -> Path:
    """The run of one rotation, trained and generated."""
    folder = given.work / f"{given.product}-r{rotation}"
    steps, defects = given.train_steps, given.defect or None
    ad.train(given.data, folder, product=[given.product], defect=defects, rotation=rotation, config=given.config, max_train_steps=steps)
    run = Run.open(folder)
    begun = run.record["adapted"]["start"] if run_settings(run).adapt else run_settings(run).prior  # an adapted prior is the run's own
    if shared(replace(run_settings(run), prior=begun)) != settings_of(given, given.config)["digest"]:
        raise ConfigError(f"{folder}: was trained under other settings; give another --work")
    ad.generate(folder, given.num)
    return folder


def take_over(given: argparse.Namespace, rotation: int, run: Run) -> str:
    """Put the arms of real images alone that `--take` has kept into a run's ledger, as if they had been trained for it; says so."""
    split, own, taken = run_split(run), run_settings(run), set()
    detector = DETECTORS[given.detector] if given.steps is None else replace(DETECTORS[given.detector], steps=given.steps)
    for name, task, recipe, metrics, parts in (
        (f"r{rotation}", LOCALIZATION, detector, OF_MAPS, "per_defect"),
        (f"classes-r{rotation}", CLASSIFICATION, own.classifier, OF_CLASSES, "per_class"),
    ):
        kept = json.loads((RESULTS / f"{given.take}-{given.product}" / f"{name}.json").read_text())
        scores, told = kept["scores"], {key: kept["settings"][key] for key in ("seeds", "detector", "steps", "controls")}
        if not scores:  # one defect type: nothing was classified
            continue
        same = scores["split_digest"] == split.digest and (scores["network"], scores["steps"]) == (recipe.network, recipe.steps)
        if not same or told != {key: getattr(given, key) for key in told}:
            raise ConfigError(f"--take {given.take}: its {name} is of another split, detector, seeds or controls; leave --take away")
        comparison: Comparison[Any] = Comparison(detector=recipe, folder=run.evaluation, controls=given.controls,
                                                 redecode=round_trip(run, own) if task == LOCALIZATION else None)  # fmt: skip
        ledger = Ledger(run.evaluation / "arms.jsonl", task, comparison, split, [])
        of_part = metrics if task == LOCALIZATION else metrics[:1]
        for arm, seed in product((REAL, MORE), range(given.seeds)):
            constant = scores.get("constant_answers", {}).get(arm, 0)  # it is not kept of which seed, so those are trained again
            line = ledger.get(given.product, arm, seed)
            if arm in scores["arms"] and not constant and line is None:
                at = partial(figures_at, scores, arm, seed)
                figures = {"values": at(metrics), parts: {part.split("/")[1]: at(of_part, parts, part) for part in scores[parts]}}
                shown = {"constant": ""} if task == CLASSIFICATION else {}
                if scores.get("shortcut"):
                    shown = {"shortcut": at(tuple(SHORTCUT), "shortcut")}
                line = ledger.add(given.product, arm, seed, {**figures, **shown, "seconds": 0.0})
            if line is not None and not line["seconds"]:  # taken now, or before this was begun again
                taken.add(arm)
    return f"taken from {given.take}: {', '.join(sorted(taken)) or 'nothing'}; trained on {kept['hardware']}"


def figures_at(scores: dict[str, Any], arm: str, seed: int, metrics: Sequence[str], *path: str) -> dict[str, Any]:
    """What one training gave, as its ledger line has it; `path` leads to the arms of a part."""
    figures = reduce(getitem, [*path, "arms", arm], scores)
    return {name: figures[name]["values"][seed] for name in metrics}


def located(given: argparse.Namespace, rotation: int) -> dict[str, Any]:
    folder = made(given, rotation)
    taken = {"taken": take_over(given, rotation, Run.open(folder))} if given.take else {}
    asked = {"seeds": given.seeds, "baselines": given.baselines, "controls": given.controls}
    scores = ad.evaluate(folder, detector=given.detector, steps=given.steps, **asked)
    ad.report(folder)
    return {"rotation": rotation, "scores": dict(scores), **taken}


def classified(given: argparse.Namespace, rotation: int) -> dict[str, Any]:
    """Nothing where there is one defect type, or one that lacks what it needs."""
    folder = made(given, rotation)
    asked = {"seeds": given.seeds, "baselines": given.baselines, "controls": given.controls}
    try:
        scores = ad.evaluate(folder, task="classification", **asked)
    except DataError as error:
        sys.stderr.write(f"no classification: {error}\n")
        scores = {}
    ad.report(folder)
    return {"rotation": rotation, "scores": dict(scores)}


def values(found: Scores, arm: str, metric: str, *path: str) -> list[float]:
    """One figure a rotation and seed, in that order; `path` leads to the arms of a part."""
    out = []
    for scores in found:
        figures = reduce(getitem, [*path, "arms", arm, metric, "values"], scores)
        out += [float("nan") if value is None else value for value in figures]
    return out


def typed_mean(found: Scores, arm: str) -> list[float]:
    """The mean over defect types of each one's pixel AP, one figure a rotation and seed: large defects count no more than small ones."""
    own = [[values([scores], arm, "pixel_ap", "per_defect", defect) for defect in scores["per_defect"]] for scores in found]
    return [sum(figures) / len(figures) for rotation in own for figures in zip(*rotation, strict=True)]


def table(found: Scores, metrics: dict[str, str], *path: str, gains: int = 1) -> list[str]:
    """One row an arm: its figures, and the gains of the first `gains` of `metrics` against real-only."""
    typed = not path and "pixel_ap" in metrics
    gained = list(metrics)[:gains]
    heads = [*metrics.values(), *(f"{metrics[name]} against real-only" for name in gained), *(["pixel AP, mean of types"] if typed else [])]
    lines = ["| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in found[0]["arms"]:
        own = {name: values(found, arm, name, *path) for name in metrics}
        against = [
            "" if arm == "real-only" else interval(difference(values(found, "real-only", name, *path), own[name])) for name in gained
        ]
        last = [interval(summary(typed_mean(found, arm)))] if typed else []
        lines.append("| " + " | ".join([arm, *(interval(summary(each)) for each in own.values()), *against, *last]) + " |")
    return lines


def judged(found: Scores, metrics: dict[str, str], *path: str, gains: int = 1) -> list[str]:
    """The verdict on ours, and the table that it is of."""
    main = next(iter(metrics))
    real, ours = (values(found, arm, main, *path) for arm in ("real-only", "ours"))
    return [f"**{verdict(real, ours, metrics[main])}**", "", *table(found, metrics, *path, gains=gains), ""]


def controlled(found: Scores, main: str, wrong: str) -> list[str]:
    """Whether the comparison counts, by its controls: further real defects, and the arm `wrong`."""
    controls = controls_hold(*(values(found, arm, main) for arm in ("real-only", "more-real", wrong)), wrong=f"the arm {wrong}")
    return [f"Controls: {controls['says']}.", ""]


def shortcut(found: Scores) -> list[str]:
    """How often detectors take what only went through the prior's autoencoder for a defect, on held-out normal images."""
    lines = ["## Shortcut check", "", "Share of pixels above the detector's threshold, in hundredths, in held-out normal images and in "
             "those of their regions that went through the prior's autoencoder.", "",
             "| arm | " + " | ".join(SHORTCUT.values()) + " |", "|---" * 3 + "|"]  # fmt: skip
    for arm in found[0]["shortcut"]["arms"]:
        own = [interval(summary(values(found, arm, name, "shortcut"))) for name in SHORTCUT]
        lines.append("| " + " | ".join([arm, *own]) + " |")
    return [*lines, ""]


def chosen_on(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the page owes its reader where some rotation's held-out images helped to choose the defaults."""
    developed = [row for row in rows if row["scores"]["split_digest"] in DEVELOPED_ON]
    if not developed:
        return []
    names = ", ".join(str(row["rotation"]) for row in developed)
    lines = [f"**Rotation {names} is a development split**: defaults of masks, generation and detector were chosen by its held-out "
             "figures; the baselines were not tuned.", ""]  # fmt: skip
    others = [row["scores"] for row in rows if row not in developed]
    return [*lines, "## Without the development split", "", *judged(others, METRICS)] if others else lines


def undeveloped(found: Scores, main: str, called: str, *path: str) -> list[str]:
    """The verdict of those rotations that chose nothing, where some did."""
    others = [scores for scores in found if scores["split_digest"] not in DEVELOPED_ON]
    if not others or len(others) == len(found):
        return []
    real, ours = (values(others, arm, main, *path) for arm in ("real-only", "ours"))
    return [f"Without the development split: {verdict(real, ours, called)}.", ""]


def page(given: argparse.Namespace, rows: Sequence[dict[str, Any]], of_classes: Sequence[dict[str, Any]], typed: str) -> str:
    found, classes = ([row["scores"] for row in some if row["scores"]] for some in (rows, of_classes))
    other = f", with {'; '.join(given.config.read_text().split(chr(10))).strip('; ')}" if given.config else ""
    numbers = ", ".join(str(row["rotation"]) for row in rows)
    lines = [
        f"# Downstream proof on {given.product}", "", f"    {typed}", "",
        f"Rotations of the split: {numbers}; seeds: {given.seeds}; figures in hundredths, mean and 95 % t-interval over all of them, "
        "gains paired by rotation and seed. Rotations share images, so the intervals are narrower than fresh data would make them.",
        "", *judged(found, METRICS),
    ]  # fmt: skip
    lines += controlled(found, "pixel_ap", "garbage") if given.controls else []
    lines += chosen_on(rows)
    lines += shortcut(found) if all(scores.get("shortcut") for scores in found) else []
    hours = sum(scores["hours"] for scores in found)
    if classes:
        whole = ", ".join(str(row["rotation"]) for row in of_classes if row["scores"])
        lines += ["## Classification", "", f"Which type is it, given where it is ({classes[0]['network']}, "
                  f"{classes[0]['steps']} steps an arm; rotations {whole}).", "", *judged(classes, CLASS_METRICS, gains=2)]  # fmt: skip
        lines += undeveloped(classes, "accuracy", "accuracy") + undeveloped(classes, "balanced_accuracy", "balanced accuracy")
        lines += controlled(classes, "accuracy", "shuffled") if given.controls else []
        hours += sum(scores["hours"] for scores in classes)
    for defect in found[0]["per_defect"]:
        if all(defect in scores["per_defect"] for scores in found):
            lines += [f"## {defect}", "", *judged(found, METRICS, "per_defect", defect)]
            lines += undeveloped(found, "pixel_ap", METRICS["pixel_ap"], "per_defect", defect)
    taken = sorted({row["taken"] for row in rows if "taken" in row})
    lines += ["## Settings", "", *(f"- {each}" for each in sorted({row["hardware"] for row in rows})), *(f"- {each}" for each in taken),
              f"- detector: {found[0]['network']}, {found[0]['steps']} steps an arm",
              f"- {given.num} pairs a defect type, adapter trained for {given.train_steps} steps, preset default" + other,
              "- split digests: " + ", ".join(scores["split_digest"] for scores in found),
              f"- held-out images: {', '.join(str(scores['n_test']) for scores in found)} by rotation",
              f"- training and testing of detectors and classifiers: {hours:.2f} hours"]  # fmt: skip
    return "\n".join(lines) + "\n"


def arguments(about: str | None, rotations: int) -> argparse.ArgumentParser:
    """What every benchmark of detectors is told; `rotations` is the default."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--product", required=True)
    parser.add_argument("--defect", action="append", help="only this defect type; repeatable")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--rotations", type=int, default=rotations)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=40, help="pairs a defect type")
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--detector", default="cpu")
    parser.add_argument("--steps", type=int, help="training steps of each detector")
    return parser


def main() -> int:
    parser = arguments(__doc__, rotations=3)
    parser.add_argument("--config", type=Path, help="a TOML file with other settings")
    parser.add_argument("--name", default="downstream", help="what the page is called: DATE-NAME-PRODUCT.md")
    parser.add_argument("--no-baselines", dest="baselines", action="store_false")
    parser.add_argument("--no-controls", dest="controls", action="store_false")
    parser.add_argument("--rotation", type=int, help="do this one alone")
    parser.add_argument("--take", help="the name of a page whose real-only and more-real are taken")
    given = parser.parse_args()
    folder, settings = RESULTS / f"{given.name}-{given.product}", settings_of(given, given.config)
    command = re.sub(r" --rotation \d+", "", as_typed(DATA=given.data, WORK=given.work))
    command = command.replace(str(given.config), given.config.name) if given.config else command
    for rotation in range(given.rotations) if given.rotation is None else [given.rotation]:
        for name, make in ((f"r{rotation}", located), (f"classes-r{rotation}", classified)):
            kept(folder / f"{name}.json", settings, partial(make, given, rotation))
            rows, of_classes = (
                [row for file in sorted(folder.glob(names)) if (row := known(file, settings))] for names in ("r*.json", "classes-r*.json")
            )
            save(f"{given.name}-{given.product}", page(given, rows, of_classes, command), partly=True)
    save(f"{given.name}-{given.product}", page(given, rows, of_classes, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
