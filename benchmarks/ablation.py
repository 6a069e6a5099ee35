"""What each part of the method gives: the same proof with one part changed at a time, unattended and resumable.

    python benchmarks/ablation.py DATA --product magnetic_tile --work WORK

Every row is a run of its own in WORK/<product>-ablation/<processor>/<rotation>/<row>; rows that learn with the default's settings take
over its adapter, and all take over its detector without pairs, which is the same for each. What a row gave is kept in
benchmarks/results/ablation-<product>/<processor>/<row>-r<rotation>.json and is not done again under the same settings. Processors round
differently, and one training differs by up to two points between them, so that rows are compared with the default of their own processor;
after each, benchmarks/results/<date>-ablation-<product>.md is written from all that are there, a table a processor.
"""

from __future__ import annotations

import argparse
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from pages import RESULTS, as_typed, hardware, save

import anomalydiffusion as ad
from anomalydiffusion.core import errors as ad_errors
from anomalydiffusion.core.config import dumps
from anomalydiffusion.core.runs import replace_folder, write_atomic
from anomalydiffusion.downstream.verdict import difference, summary
from downstream import arguments, interval, kept, known, settings_of, typed_mean, values

DEFAULT = "default"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> what it changes, in words and as settings
    DEFAULT: ("nothing", {}),
    "no-spatial": ("no spatial embedding", {"train": {"adapter": {"spatial_tokens": 0}}}),
    "plain-loss": ("the loss counts every cell alike", {"train": {"masked": False}}),
    "inside-only": ("no loss outside the mask", {"train": {"outside": 0.0}}),
    "summed-loss": ("the loss is not divided by the mask's area", {"train": {"normalise": False}}),
    "nearest-cells": (
        "a cell of the latent grid is marked as the pixel in its middle is, not where any of its pixels is",
        {"train": {"pool": {"cells": "nearest"}}, "generate": {"cells": "nearest"}},
    ),
    "embeddings": ("embeddings alone, no LoRA", {"train": {"adapter": {"lora_rank": 0}}}),
    "resnet50": ("the paper's trunk of the spatial encoder", {"train": {"adapter": {"backbone": "resnet50"}}}),
    "no-condition-noise": ("no noise on the condition", {"train": {"condition_noise": 0.0}, "generate": {"condition_noise": 0.0}}),
    "reweight-off": ("no re-weighting", {"generate": {"reweight": "off"}}),
    "reweight-paper": ("re-weighting by decoded distances, no bound", {"generate": {"reweight": "paper"}}),
    "from-noise": ("drawn from noise alone", {"generate": {"strength": 1.0}}),
    "from-noise-reweight-off": ("drawn from noise alone, no re-weighting", {"generate": {"strength": 1.0, "reweight": "off"}}),
    "from-noise-reweight-paper": ("drawn from noise alone, the paper's re-weighting", {"generate": {"strength": 1.0, "reweight": "paper"}}),
    "from-noise-no-grain": ("drawn from noise alone, the normal's grain not added again", {"generate": {"strength": 1.0, "grain": "off"}}),
    "steps-200": ("as many steps as the paper", {"generate": {"steps": 200}}),
    "fast": ("one step that is walked instead of two, as the preset of that name draws", {"generate": {"steps": 10}}),
    "bfloat16": ("drawn by networks in bfloat16", {"dtype": "bfloat16"}),
    "from-noise-steps-10": ("drawn from noise alone, half of the steps", {"generate": {"strength": 1.0, "steps": 10}}),
    "from-noise-dpm-10": (
        "drawn from noise alone, half of the steps, by DPM-Solver++",
        {"generate": {"strength": 1.0, "steps": 10, "solver": "dpm"}},
    ),
    "from-noise-reuse": (
        "drawn from noise alone, the denoiser's inner levels at every second step",
        {"generate": {"strength": 1.0, "reuse": 2}},
    ),
    "from-noise-interpolated": (
        "drawn from noise alone, conditions up to half the way to another shot's mask",
        {"generate": {"strength": 1.0, "interpolate": 0.5}},
    ),
    "no-fresh-noise": ("nothing random between the steps: eta 0", {"generate": {"eta": 0.0}}),
    "unguided": ("the adapted prediction alone", {"generate": {"guidance": 1.0}}),
    "largest-crops": ("the largest square of the image, not one around the defect", {"generate": {"ratio": [64.0, 64.0]}}),
    "no-match": ("no colour match on the ring", {"generate": {"match": False}}),
    "no-feather": ("pasted with a hard edge", {"generate": {"feather": 0.0}}),
    "masks-near": ("what was at the rim stays there", {"masks": {"warped": {"place": "near"}}}),
    "carried": ("what the mask's own shot shows is warped with it", {"masks": {"warped": {"carry": True}}}),
    "gaps-fitted": ("gaps are placed, bent and filled as other defects are", {"masks": {"warped": {"carry": False, "place": "mixed"}}}),
    "carried-near": (
        "the same, and what was at the rim stays there, hardly turned",
        {"masks": {"warped": {"carry": True, "place": "near", "rotation": 25.0}}},
    ),
    "masks-alike": ("of eight normal images and places those most like a shot's", {"masks": {"alike": 8}}),
    "masks-alike-grafted": (
        "such masks, and the shot's keys and values in self-attention take part",
        {"masks": {"alike": 8}, "generate": {"graft": 1.0}},
    ),
    "masks-matched": ("masks where a normal image looks as a shot does around its defect", {"masks": {"source": "matched"}}),
    "seam-median": ("one shift of colours for the whole of a carried defect", {"generate": {"seam": "median"}}),
    "grafted": ("the shot's keys and values in self-attention take part", {"generate": {"graft": 1.0}}),
    "severity-range": ("each pair's severity its own, 0.5 to 1.5", {"generate": {"severity": [0.5, 1.5]}}),
    "strength-range": ("each pair's strength its own, 0.1 to 1", {"generate": {"strength": [0.1, 1.0]}}),
    "refitted": ("labels fitted to what is seen", {"gate": {"refit": True}}),
    "masks-learned": ("masks drawn by the prior", {"masks": {"source": "learned"}}),
    "adapted": ("the prior learns the run's own normal images first", {"adapt": {"steps": 600}}),
    "no-gate": ("every pair is taken", {"gate": {"visible": 0.0, "change": 0.0, "copy": 1.0, "strict": 0.0}}),
}


def copy(source: Path, target: Path, *without: str) -> None:
    """Copy a folder, whole or not at all."""
    with replace_folder(target) as part:
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)


def one_row(given: argparse.Namespace, name: str, config: Path, settings: dict[str, Any], rotation: int) -> dict[str, Any]:
    """Train or take over, generate and evaluate one row on one rotation; returns its scores."""
    folder, first = config.with_suffix(""), config.parent / DEFAULT
    learned = (folder / "adapter" / "adapter.safetensors").exists()
    if name != DEFAULT and not settings.keys() & {"train", "adapt"} and not learned and first.exists():
        copy(first, folder, "generated", "manifest.jsonl", "report", "scores.json", "logs", "masks")
        learned = True
    if name != DEFAULT and not (folder / "evaluation").exists() and first.exists():
        copy(first / "evaluation", folder / "evaluation")
    if not learned:
        ad.train(given.data, folder, product=[given.product], defect=given.defect or None, rotation=rotation, config=config,
                 max_train_steps=given.train_steps)  # fmt: skip
    if settings.get("masks"):
        ad.masks(folder, config=config)
    ad.generate(folder, given.num, config=config)
    scores = ad.evaluate(folder, seeds=given.seeds, detector=given.detector, steps=given.steps, shortcut=False)
    return {"row": name, "rotation": rotation, "scores": dict(scores)}


def place(given: argparse.Namespace, name: str, rotation: int) -> Path:
    """The configuration of a row, which its run stands beside; written."""
    config: Path = given.work / f"{given.product}-ablation" / processor() / f"r{rotation}" / f"{name}.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config, (dumps(ROWS[name][1]).strip() + "\n").encode())
    return config


def rotations_of(given: argparse.Namespace, folder: Path, name: str, make: bool = False) -> list[dict[str, Any]]:
    """A row as it was measured on one processor, one a rotation; empty where one is missing and is not to be made."""
    found = []
    for rotation in range(given.rotations):
        config, file = place(given, name, rotation), folder / f"{name}-r{rotation}.json"
        settings, made = settings_of(given, config), partial(one_row, given, name, config, ROWS[name][1], rotation)
        row = kept(file, settings, made) if make else known(file, settings)
        if row is None:
            return []
        found.append(row)
    return found


def row(name: str, changed: str, scores: list[dict[str, Any]], arm: str, default: list[dict[str, Any]]) -> str:
    own = values(scores, arm, "pixel_ap")
    against = "" if name == DEFAULT else interval(difference(values(default, "ours", "pixel_ap"), own))
    gained = "" if arm == "real-only" else interval(difference(values(scores, "real-only", "pixel_ap"), own))
    others = interval(summary(typed_mean(scores, arm))), interval(summary(values(scores, arm, "image_auroc")))
    return f"| {name} | {changed} | {interval(summary(own))} | {against} | {gained} | {others[0]} | {others[1]} |"


def table(found: dict[str, list[dict[str, Any]]], failed: dict[str, str]) -> list[str]:
    """What was measured on one processor, one row a changed part, its name first; what a part gave is what is lost without it."""
    scores = {name: [row["scores"] for row in rows] for name, rows in found.items()}
    return [
        "| row | changed | pixel AP | against default | against real-only | mean of types | image AUROC |", "|---" * 7 + "|",
        row("real-only", "no pairs", scores[DEFAULT], "real-only", scores[DEFAULT]),
        *(row(name, ROWS[name][0], own, "ours", scores[DEFAULT]) for name, own in scores.items()),
        *(f"| {name} | {ROWS[name][0]} | could not be made: {error} | | | |" for name, error in failed.items()),
    ]  # fmt: skip


def page(given: argparse.Namespace, folder: Path, failed: dict[str, str], typed: str) -> str:
    """A table a processor, those that were refused with that of this one."""
    lines = [
        f"# Ablation on {given.product}", "", f"    {typed}", "",
        f"Rotations of the split: {given.rotations}; seeds: {given.seeds}; pixel AP in hundredths of a detector trained with the pairs, "
        "mean and 95 % t-interval over all of them, differences paired by rotation and seed, and of figures of one processor. Held-out "
        "images chose nothing here, but what is kept because of this table has been chosen by them.",
    ]  # fmt: skip
    digests: set[str] = set()
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {name: rows for name in ROWS if (rows := rotations_of(given, each, name))}
        if DEFAULT not in found:
            continue
        first = found[DEFAULT][0]
        lines += ["", f"## {first['hardware']}", "", *table(found, failed if each.name == processor() else {})]
        digests |= {row["scores"]["split_digest"] for row in found[DEFAULT]}
    lines += ["", "## Settings", "", f"- detector: {first['scores']['network']}, {first['scores']['steps']} steps an arm",
              f"- {given.num} pairs a defect type, adapters trained for {given.train_steps} steps",
              "- split digests: " + ", ".join(sorted(digests))]  # fmt: skip
    return "\n".join(lines) + "\n"


def processor() -> str:
    """This machine's processor, as a folder is called."""
    return re.sub(r"\W+", "-", hardware().split(",")[0].lower()).strip("-") or "unknown"


def main() -> int:
    parser = arguments(__doc__, rotations=1)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="only these, besides the default")
    given = parser.parse_args()
    folder = RESULTS / f"ablation-{given.product}"
    failed: dict[str, str] = {}
    command = re.sub(r" --rows( (?!--)\S+)+", "", as_typed(DATA=given.data, WORK=given.work))
    for name in [DEFAULT, *(name for name in given.rows if name != DEFAULT)]:
        try:
            rotations_of(given, folder / processor(), name, make=True)
        except ad_errors.AnomalyDiffusionError as error:
            if name == DEFAULT:
                raise
            failed[name] = str(error)
        save(f"ablation-{given.product}", page(given, folder, failed, command), partly=True)
    save(f"ablation-{given.product}", page(given, folder, failed, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
