"""The whole job on the demo data: check, train, masks, generate, evaluate, export, report."""

from __future__ import annotations

from pathlib import Path

from anomalydiffusion.app.evaluate import evaluate
from anomalydiffusion.app.export import export
from anomalydiffusion.app.generate import generate
from anomalydiffusion.app.masks import masks
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.train import train
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.data.check import check
from anomalydiffusion.data.demo import make_demo
from anomalydiffusion.report.page import report

__all__ = ["QUICK", "demo"]

QUICK = (2, 40, 10)  # pairs a type, and steps of learning and of each detector: the way in a minute or two, not what it can do


def demo(
    output: Path | str | None = None, *, quick: bool = False, data_only: bool = False, num: int = 16, max_train_steps: int = 500,
    evaluate_steps: int = 200, seeds: int = 1, quiet: bool = False,
) -> Path:  # fmt: skip
    """Run every step once on a CPU, offline; returns the report's path. Typed again, it goes on where it was.

    `quick`: as few steps and pairs as `QUICK` says, whatever is given. `data_only`: draws the data set alone, to `output`, which is
    returned. Without `output` it is a folder here, demo-run, demo-quick or demo-data.
    """
    output = Path(output or ("demo-data" if data_only else "demo-quick" if quick else "demo-run"))
    if data_only:
        return make_demo(output)
    if quick:
        num, max_train_steps, evaluate_steps = QUICK
    data, run = output / "data", output / "run"
    if not data.exists():
        make_demo(data)
    findings = check(data)
    if not findings.ok:
        raise DataError(f"{data}: {findings.problems[0].file}: {findings.problems[0].message}; delete {output} and start again")
    say(f"1/6 data: {', '.join(f'{p.name} ({len(p.defects)} defect types)' for p in findings.products)}", quiet=quiet)
    train(data, run, max_train_steps=max_train_steps, quiet=quiet)
    say("2/6 masks", quiet=quiet)
    masks(run, num=4, quiet=quiet)
    say("3/6 generate", quiet=quiet)
    generate(run, num, quiet=quiet)
    say("4/6 does it help? (a first small check, not a proof)", quiet=quiet)
    scores = evaluate(run, steps=evaluate_steps, seeds=seeds, quiet=quiet)
    for arm, values in scores["arms"].items():
        mean = values["pixel_ap"]["mean"]
        say(f"    {arm}: pixel AP {'undefined' if mean is None else f'{100 * mean:.1f}'} on held-out images", quiet=quiet)
    say("5/6 export", quiet=quiet)
    export(run, output / "export", "mvtec")
    page = report(run)
    say("6/6 report", quiet=quiet)
    return page
