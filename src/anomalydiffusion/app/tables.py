"""Scores on a terminal: one line an arm, the verdicts below."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

__all__ = ["scores_table"]

SHOWN = {
    "pixel_ap": "pixel\nAP", "gain": "against\nreal-only", "pixel_auroc": "pixel\nAUROC", "pixel_f1_max": "pixel\nF1-max", "pro": "PRO",
    "iou": "IoU", "image_auroc": "image\nAUROC", "image_ap": "image\nAP",
}  # fmt: skip


def _figure(summary: Mapping[str, Any], signed: bool) -> str:
    """A figure in hundredths, its interval behind it where there is one."""
    if summary["mean"] is None:
        return "undefined"
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * summary[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return mean if len(summary["values"]) < 2 else f"{mean} [{low}, {high}]"


def scores_table(scores: Mapping[str, Any]) -> None:
    """Print the arms' figures, what the controls and the shortcut check say, and the verdicts."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    table = Table(Column("trained on", no_wrap=True), *SHOWN.values(), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for arm, values in scores["arms"].items():
        table.add_row(arm, *("" if arm == "real-only" and name == "gain" else _figure(values[name], name == "gain") for name in SHOWN))
    console.print(table)
    console.print(
        f"{scores['n_test']} held-out images, {scores['n_generated']} generated pairs, {len(scores['seeds'])} seed(s), "
        f"{scores['network']} for {scores['steps']} steps; split {scores['split_digest']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if "controls" in scores:
        console.print(f"controls: {scores['controls']['says']}", markup=False, soft_wrap=True)
    if ours := scores.get("shortcut", {}).get("arms", {}).get("ours"):
        plain, redecoded = (ours[f"false_positive_rate_{name}"]["mean"] for name in ("plain", "redecoded"))
        if plain is not None and redecoded is not None:
            console.print(f"shortcut: {100 * redecoded:.2f} % of normal pixels that went through the autoencoder are taken for "
                          f"a defect, {100 * plain:.2f} % of untouched ones", markup=False, soft_wrap=True)  # fmt: skip
    blocks = {**scores.get("per_product", {}), **(scores["per_defect"] if len(scores["per_defect"]) > 1 else {})}
    for name, block in blocks.items():
        console.print(f"{name}: {block['verdict']}", markup=False, soft_wrap=True)
    console.print(scores["verdict"], markup=False, soft_wrap=True, style="bold")
