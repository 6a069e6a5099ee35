"""Does generated data help? The same question over seeds and rotations of the split, unattended and resumable.

    python benchmarks/downstream.py DATA --product magnetic_tile --work WORK

For each rotation a run is trained and generated in WORK/<product>-r<rotation> and evaluated with baselines and controls; what is
finished is not done again. Writes benchmarks/results/<date>-downstream-<product>.md: one row an arm.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import anomalydiffusion as ad
from anomalydiffusion.downstream.verdict import controls_hold, difference, summary, verdict

METRICS = {"pixel_ap": "pixel AP", "pixel_auroc": "pixel AUROC", "pro": "PRO", "image_auroc": "image AUROC", "image_ap": "image AP"}


def interval(found: dict[str, Any]) -> str:
    """Mean and interval in hundredths."""
    if found["mean"] is None:
        return "-"
    return f"{100 * found['mean']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def hardware() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def one_rotation(given: argparse.Namespace, rotation: int) -> dict[str, Any]:
    """Train, generate and evaluate one rotation; returns its scores."""
    folder = given.work / f"{given.product}-r{rotation}"
    defects = given.defect or None
    ad.train(given.data, folder, product=[given.product], defect=defects, rotation=rotation, max_train_steps=given.train_steps)
    ad.generate(folder, given.num, config=given.config)
    scores = ad.evaluate(
        folder, seeds=given.seeds, baselines=given.baselines, controls=given.controls, detector=given.detector, steps=given.steps
    )
    ad.report(folder)
    return dict(scores)


def values(found: list[dict[str, Any]], arm: str, metric: str, defect: str = "") -> list[float]:
    """One figure a rotation and seed, in that order."""
    blocks = [scores["per_defect"][defect] if defect else scores for scores in found]
    return [float("nan") if value is None else value for block in blocks for value in block["arms"][arm][metric]["values"]]


def typed_mean(found: list[dict[str, Any]], arm: str) -> list[float]:
    """The mean over defect types of each one's pixel AP, one figure a rotation and seed: large defects count no more than small ones."""
    own = [[values([scores], arm, "pixel_ap", defect) for defect in scores["per_defect"]] for scores in found]
    return [sum(figures) / len(figures) for rotation in own for figures in zip(*rotation, strict=True)]


def table(found: list[dict[str, Any]], defect: str = "") -> list[str]:
    arms = list(found[0]["arms"])
    heads = [*METRICS.values(), "pixel AP against real-only", *([] if defect else ["pixel AP, mean of types"])]
    lines = ["| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    real = values(found, "real-only", "pixel_ap", defect)
    for arm in arms:
        own = [interval(summary(values(found, arm, metric, defect))) for metric in METRICS]
        gain = "" if arm == "real-only" else interval(difference(real, values(found, arm, "pixel_ap", defect)))
        last = [] if defect else [interval(summary(typed_mean(found, arm)))]
        lines.append("| " + " | ".join([arm, *own, gain, *last]) + " |")
    return lines


def page(given: argparse.Namespace, found: list[dict[str, Any]], typed: str) -> str:
    real, ours = (values(found, arm, "pixel_ap") for arm in ("real-only", "ours"))
    other = f", with {'; '.join(given.config.read_text().split(chr(10))).strip('; ')}" if given.config else ""
    lines = [
        f"# Downstream proof on {given.product}", "", f"    {typed}", "",
        f"Rotations of the split: {len(found)}; seeds: {given.seeds}; figures in hundredths, mean and 95 % t-interval over all of them, "
        "gains paired by rotation and seed. Rotations share images, so the intervals are narrower than fresh data would make them.",
        "", f"**{verdict(real, ours)}**", "", *table(found), "",
    ]  # fmt: skip
    if given.controls:
        more, garbage = (values(found, arm, "pixel_ap") for arm in ("more-real", "garbage"))
        lines += [f"Controls: {controls_hold(real, more, garbage)['says']}.", ""]
    for defect in found[0]["per_defect"]:
        if all(defect in scores["per_defect"] for scores in found):
            lines += [f"## {defect}", "", *table(found, defect), ""]
    lines += ["## Settings", "", f"- {hardware()}", f"- detector: {found[0]['network']}, {found[0]['steps']} steps an arm",
              f"- {given.num} pairs a defect type, adapter trained for {given.train_steps} steps, preset default" + other,
              "- split digests: " + ", ".join(scores["split_digest"] for scores in found),
              f"- held-out images: {', '.join(str(scores['n_test']) for scores in found)} by rotation",
              f"- detectors' training and testing: {sum(scores['hours'] for scores in found):.2f} hours"]  # fmt: skip
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
    parser.add_argument("--config", type=Path, help="a TOML file with other settings of masks, generate and gate, for ablations")
    parser.add_argument("--name", default="downstream", help="what the page is called: DATE-NAME-PRODUCT.md")
    parser.add_argument("--no-baselines", dest="baselines", action="store_false")
    parser.add_argument("--no-controls", dest="controls", action="store_false")
    given = parser.parse_args()
    found = [one_rotation(given, rotation) for rotation in range(given.rotations)]
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    typed = " ".join(["python benchmarks/downstream.py DATA", *(word for word in sys.argv[1:] if word not in (str(given.data),))])
    target = results / f"{datetime.date.today().isoformat()}-{given.name}-{given.product}.md"
    target.write_text(page(given, found, typed.replace(str(given.work), "WORK")))
    (given.work / f"{given.product}.json").write_text(json.dumps(found))
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
