"""Tables on a terminal: a data set, scores with one line an arm and the verdicts below, plain figures with one line each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from anomalydiffusion.app.findings import Health
    from anomalydiffusion.data.check import Report

__all__ = ["bench_table", "check_table", "figure_text", "figures_list", "health_table", "scores_table", "yield_table"]

NAMES = {  # figure -> heading, factor, decimals
    "pixel_ap": ("pixel\nAP", 100, 1), "gain": ("against\nreal-only", 100, 1), "pixel_auroc": ("pixel\nAUROC", 100, 1),
    "pixel_f1_max": ("pixel\nF1-max", 100, 1), "pro": ("PRO", 100, 1), "iou": ("IoU", 100, 1), "image_auroc": ("image\nAUROC", 100, 1),
    "image_ap": ("image\nAP", 100, 1), "accuracy": ("accuracy", 100, 1), "balanced_accuracy": ("balanced\naccuracy", 100, 1),
    "kid": ("KID\nx 1000", 1000, 1), "inception_score": ("IS", 1, 2), "ic_lpips": ("IC-LPIPS", 1, 3),
    "spread": ("spread", 1, 3), "similarity": ("similarity\nto real", 1, 3), "mask_agreement": ("mask\nagreement", 1, 2),
}  # fmt: skip


def _console(width: int) -> Console:
    """What prints names as they are, brackets too; `width`: columns where no terminal says how many."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else width)


def _figure(name: str, summary: Mapping[str, Any]) -> str:
    """A figure in its unit, its interval behind it where there is one."""
    if summary["mean"] is None:
        return "-"
    _, factor, decimals = NAMES[name]
    sign = "+" if name == "gain" else ""
    mean, low, high = (f"{factor * summary[part]:{sign}.{decimals}f}" for part in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def figure_text(arms: Mapping[str, Mapping[str, Any]], first: str = "trained on") -> tuple[list[str], list[list[str]]]:
    """The heads and rows of a table of arms: a figure and its interval in a cell."""
    shown = [name for name in NAMES if any(name in values for values in arms.values())]
    rows = [
        [arm, *("" if (arm, name) == ("real-only", "gain") else _figure(name, values[name]) for name in shown)]
        for arm, values in arms.items()
    ]
    return [first, *(NAMES[name][0] for name in shown)], rows


def _table(first: str, arms: Mapping[str, Mapping[str, Any]]) -> Table:
    heads, rows = figure_text(arms, first)
    table = Table(Column(heads[0], no_wrap=True), *heads[1:], box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _quality_table(console: Console, scores: Mapping[str, Any]) -> None:
    rows = {f"{key}, {arm}": values for key, block in scores["per_defect"].items() for arm, values in block["arms"].items()}
    if len(scores["per_defect"]) > 1:
        rows |= {f"mean of types, {arm}": values for arm, values in scores["arms"].items()}
    console.print(_table("images", rows))
    console.print(_masks_table(scores["per_defect"]))
    console.print(f"features of {scores['extractor']}, crops of {scores['view']} pixels around each defect; \"real\" reads the others: "
                  f"shots against held-out images; split {scores['split_digest']}", soft_wrap=True)  # fmt: skip


def _masks_table(blocks: Mapping[str, Mapping[str, Any]]) -> Table:
    """How masks are shaped: medians, 10th to 90th percentile behind them, and how far they are from the shots'."""
    heads = ("area,\nhundredths", "length\nover width", "parts", "to a side,\nhundredths", "distance to the shots'")
    table = Table(Column("masks", no_wrap=True), *heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for key, block in blocks.items():
        for arm, own in block.get("masks", {}).items():
            cells = [
                f"{factor * own[name]['mean']:.{digits}f} [{factor * own[name]['low']:.{digits}f}, {factor * own[name]['high']:.{digits}f}]"
                for name, factor, digits in (("area", 100, 1), ("elongation", 1, 1), ("parts", 1, 0), ("margin", 100, 0))
            ]
            far = ", ".join(f"{name} {value:.2f}" for name, value in own["distance"].items())
            table.add_row(f"{key}, {arm}", *cells, "" if arm == "shots" else far)
    return table


def scores_table(scores: Mapping[str, Any]) -> None:
    """Print the arms' figures, what the controls and the shortcut check say, and the verdicts."""
    console = _console(180)
    if "verdict" not in scores:
        _quality_table(console, scores)
        return
    console.print(_table("trained on", scores["arms"]))
    console.print(
        f"{scores['n_test']} held-out images tested, {scores['n_generated']} generated pairs, {len(scores['seeds'])} seed(s), "
        f"{scores['network']} for {scores['steps']} steps; split {scores['split_digest']}",
        soft_wrap=True,
    )  # fmt: skip
    if "controls" in scores and scores["controls"]["counts"] is not False:  # else the verdict says it
        console.print(f"controls: {scores['controls']['says']}", soft_wrap=True)
    if ours := scores.get("shortcut", {}).get("arms", {}).get("ours"):
        plain, redecoded = (ours[f"false_positive_rate_{name}"]["mean"] for name in ("plain", "redecoded"))
        if plain is not None and redecoded is not None:
            console.print(f"shortcut: {100 * redecoded:.2f} % of normal pixels that went through the autoencoder are taken for "
                          f"a defect, {100 * plain:.2f} % of untouched ones", soft_wrap=True)  # fmt: skip
    types = scores.get("per_defect", scores.get("per_class", {}))
    blocks = {**scores.get("per_product", {}), **(types if len(types) > 1 else {})}
    for name, block in blocks.items():
        console.print(f"{name}: {block['verdict']}", soft_wrap=True)
    console.print(scores["verdict"], soft_wrap=True, style="bold")


MEASURED = {  # of a bench: figure -> what it is, the plain way's figure beside it, their ratio
    "call": ("one call of the denoiser", "call", "call"), "embed": ("text encoder", "", ""), "encode": ("picture to latent", "", ""),
    "decode": ("latent to picture", "", ""), "mask_warped": ("a mask warped from a real one", "", ""),
    "mask_learned": ("a mask drawn", "", ""), "pair": ("a pair", "", ""),
    "pair_default": ("a pair, preset default", "pair", "pair_default"),
    "pair_fast": ("a pair, preset fast", "pair", "pair_fast"),
    "train_step": ("a training step", "", ""), "train_sample": ("a training step, for each sample", "train_sample", "train_step"),
}  # fmt: skip


def _seconds(figures: Mapping[str, float]) -> str:
    median, least, most = (f"{figures[name]:.3g}" for name in ("median", "least", "most"))
    return median if least == most else f"{median} [{least}, {most}]"


def bench_table(found: Mapping[str, Any]) -> None:
    """Print what was measured on this machine, the plain way beside it where that was measured too."""
    console = _console(120)
    ours, plain, ratios = found["ours"], found.get("plain", {}), found.get("ratios", {})
    columns = ["ours", *(["plain", "plain / ours"] if plain else [])]
    table = Table(
        Column("seconds: median [least, most]", no_wrap=True), *columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for name, (what, beside, ratio) in MEASURED.items():
        if name in ours:
            other = [_seconds(plain[beside]) if beside in plain else "", f"{ratios[ratio]:.1f}" if ratio in ratios else ""]
            table.add_row(what, _seconds(ours[name]), *(other if plain else []))
    for part, held in ours["peak_mb"].items():
        other = [f"{plain['peak_mb'][part] / 1000:.2f}" if part in plain["peak_mb"] else "",
                 f"{ratios['memory']:.1f}" if part == "pair" else ""] if plain else []  # fmt: skip
        table.add_row(f"most memory up to '{part}', GB", f"{held / 1000:.2f}", *other)
    console.print(table)
    limits = ", ".join(f"{name} {value:.0f}" for name, value in found["limit_gflops"].items())
    reached = f"; the denoiser's call reaches {100 * ours['share']:.0f} % of that" if "share" in ours else ""
    many = f"{ours['pairs_per_second']:.2f} pairs a second in full batches; " if "pairs_per_second" in ours else ""
    compiled = f", the denoiser's first call compiled in {ours['compile']:.0f} s" if "compile" in ours else ""
    console.print(f"{found['prior']} in {found['dtype']}: {many}loaded in {ours['load']:.1f} s{compiled}", soft_wrap=True)
    console.print(f"products of large matrices here, GFLOP/s: {limits}{reached}", soft_wrap=True)
    console.print(", ".join(f"{name} {value}" for name, value in found["hardware"].items()), soft_wrap=True)


def check_table(report: Report) -> None:
    """Print what a data set holds, a line a defect type, and below it every problem with its remedy."""
    console = _console(160)
    named = [Column(word, overflow="fold", min_width=10) for word in ("product", "defect")]  # names are never cut
    counted = ("images", "shots", "train\ngood", "test\ngood", "size", "groups", "pixels")
    table = Table(*named, *counted, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for product in report.products:
        (w0, h0), (w1, h1) = product.sizes
        size = f"{w0} x {h0}" if (w0, h0) == (w1, h1) else f"{w0} x {h0} .. {w1} x {h1}"
        common = [str(product.normals_train), str(product.normals_test), size, str(product.groups), ", ".join(product.modes)]
        for row, (defect, count) in enumerate(product.defects.items()):
            shots = str(product.shots.get(defect, 0))
            table.add_row(product.name if row == 0 else "", defect, str(count), shots, *(common if row == 0 else [""] * 5))
        if not product.defects:
            table.add_row(product.name, "-", "0", "0", *common)
    console.print(table)
    for problem in report.problems:
        console.print(f"{problem.level}: {problem.file}: {problem.message}; {problem.remedy}", soft_wrap=True)
    warned = any(problem.level == "warning" for problem in report.problems)
    ready = "ready; read the warnings above" if warned else "nothing wrong"
    console.print(ready if report.ok else "not ready: mend the errors above")


def health_table(health: Health) -> None:
    """Print what was looked at, a line each, and below it every problem with its remedy."""
    console = _console(160)
    table = Table(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for finding in health.findings:
        table.add_row(finding.name, finding.level, finding.found)
    console.print(table)
    for finding in health.findings:
        if finding.level != "ok":
            console.print(f"{finding.level}: {finding.name}: {finding.remedy}", soft_wrap=True)
    if health.next:
        console.print(f"next: {health.next}", soft_wrap=True)
    console.print("ready" if health.ok else "not ready: mend the errors above")


def figures_list(figures: Mapping[str, Any]) -> None:
    """Print figures by name, one line each; what belongs together on one line, counts with their thousands apart."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name.replace('_', ' ')} {said(inner)}" for name, inner in value.items())
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)

    table = Table(Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), said(value))
    _console(180).print(table)


def yield_table(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what the gate keeps of each defect type, and why it keeps no more."""
    console = _console(160)
    limits = [f"least\n{name}" for name in ("agreement", "similarity", "margin", "evenness")]
    heads = ("drawn", "kept\nbefore", "kept", "label\noverlap", *limits, "reasons")
    table = Table(Column("defect", no_wrap=True), *heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, own in figures.items():
        drawn = ["-" if value is None else f"{value:.2f}" for value in own["limits"].values()]
        reasons = ", ".join(f"{reason} {count}" for reason, count in own["reasons"].items())
        counts = [str(own[each]) for each in ("drawn", "kept_before", "kept")]
        table.add_row(name, *counts, f"{own['label_overlap']:.2f}", *(drawn or ["-"] * len(limits)), reasons)
    console.print(table)
