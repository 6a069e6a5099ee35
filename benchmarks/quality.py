"""How near to real defects are the pairs, beside what would be made without a generator?

    python benchmarks/quality.py RUN [RUN ...]

Each RUN is a trained run of one product with its pairs, one a rotation of the split; `evaluate --task quality --baselines` is run in each.
Nothing is trained, and the held-out images choose nothing. Writes benchmarks/results/<date>-quality-<product>.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from pages import hardware, save

import anomalydiffusion as ad
from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.core.runs import Run
from downstream import shared

FIGURES = {"kid": ("KID x 1000", 1000, 1), "similarity": ("likeness to held-out defects", 1, 3), "spread": ("spread", 1, 3),
           "inception_score": ("IS", 1, 2), "ic_lpips": ("IC-LPIPS", 1, 3)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    given = parser.parse_args()
    settings = {shared(run_settings(Run.open(run))) for run in given.runs}
    found = [ad.evaluate(run, task="quality", baselines=True) for run in given.runs]
    blocks = {(rotation, kind): block["arms"] for rotation, scores in enumerate(found) for kind, block in scores["per_defect"].items()}
    kinds = list(dict.fromkeys(kind for _, kind in blocks))
    product = "-".join(sorted({kind.split("/")[0] for kind in kinds}))
    arms = list(next(iter(blocks.values())))

    def figure(arm: str, name: str, kind: str = "") -> str:
        """Its mean over defect types and rotations; of types that too few images show it is not known."""
        own = [block[arm][name]["mean"] for (_, other), block in blocks.items() if kind in ("", other)]
        known = [value for value in own if value is not None]
        return f"{FIGURES[name][1] * float(np.mean(known)):.{FIGURES[name][2]}f}" if known else "-"

    heads = ["arm", *(words for words, _, _ in FIGURES.values()), *(f"KID x 1000, {kind.split('/')[1]}" for kind in kinds)]
    lines = [
        f"# Image quality on {product}", "", "    python benchmarks/quality.py" + " RUN" * len(given.runs), "",
        f"Crops around defects, as {found[0]['extractor']} sees them: means over defect types and {len(found)} splits. KID (lower is "
        "nearer) and likeness are against held-out real defects, IC-LPIPS is around the shots, spread among the defects themselves. "
        'The row "real" is the shots against the held-out, or the held-out by themselves.', "",
        "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
        *(f"| {arm} | " + " | ".join([*(figure(arm, name) for name in FIGURES), *(figure(arm, "kid", kind) for kind in kinds)]) + " |"
          for arm in arms),
        "", "## Settings", "", f"- {hardware()}",
        "- pairs a run: " + ", ".join(str(sum(block["n_generated"] for block in scores["per_defect"].values())) for scores in found),
        f"- each RUN: `train DATA --product {product} --rotation R`, then `generate RUN`; digest of their settings: {', '.join(settings)}",
        "- split digests: " + ", ".join(json.loads((run / "run.json").read_text())["split_digest"] for run in given.runs),
    ]  # fmt: skip
    save(f"quality-{product}", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
