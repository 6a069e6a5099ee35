"""The demo runs from nothing to a report with the bundled prior, and typed again it only says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion.app.cli import app
from anomalydiffusion.app.demo import QUICK, demo
from anomalydiffusion.app.evaluate import evaluate
from anomalydiffusion.core.errors import ConfigError


@pytest.mark.slow
def test_demo_from_data_to_report(tmp_path: Path) -> None:
    page = demo(tmp_path / "demo", quick=True, quiet=True)
    run = tmp_path / "demo" / "run"
    assert page == run / "report" / "index.html" and "brick" in page.read_text()
    records = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["accepted"]]
    assert {(r["product"], r["defect"]) for r in kept} == {("brick", "crack"), ("brick", "hole"), ("gravel", "oil"), ("gravel", "wire")}
    for record in kept:
        image, normal = (np.asarray(Image.open(run / record[key]).convert("RGB")).astype(int) for key in ("image", "normal"))
        mask = np.asarray(Image.open(run / record["mask"])) > 0
        change = np.abs(image - normal).mean(2)
        assert change[mask].mean() > 10 * change[~mask].mean()
    assert sorted(p.name for p in (tmp_path / "demo" / "export").iterdir())[:2] == ["brick", "gravel"]
    assert set(json.loads((run / "scores.json").read_text())["localization"]["arms"]) == {"real-only", "ours"}
    assert (run / "evaluation" / "brick.png").is_file() and "Test images of brick" in page.read_text()
    printed = CliRunner().invoke(app, ["evaluate", str(run), "--task", "quality", "--baselines", "--quiet"])
    assert (
        printed.exit_code == 0
        and "mask" in printed.output
        and "brick/crack, ours" in printed.output
        and "mean of types, poisson" in printed.output
    ), printed.output
    assert list(json.loads((run / "scores.json").read_text())["quality"]["arms"]) == ["ours", "perlin", "cutpaste", "poisson", "real"]
    assert list(json.loads((run / "scores.json").read_text())) == ["localization", "quality"]
    printed = CliRunner().invoke(app, ["evaluate", str(run), "--steps", str(QUICK[-1]), "--quiet"])
    assert printed.exit_code == 0 and "not a proof" in printed.output and "shortcut:" in printed.output, printed.output
    assert list(json.loads((run / "scores.json").read_text())) == ["localization", "quality"]
    assert len(list((run / "evaluation" / "maps" / "brick").iterdir())) == 2  # of real-only and ours, under these settings
    shutil.rmtree(run / "evaluation" / "maps")  # to make room: the scores are there all the same
    (run / "scores.json").unlink()
    printed = CliRunner().invoke(app, ["evaluate", str(run), "--steps", str(QUICK[-1]), "--quiet"])
    assert printed.exit_code == 0 and (run / "scores.json").is_file()
    with pytest.raises(ConfigError, match="trains nothing"):
        evaluate(run, task="quality", controls=True)
    printed = CliRunner().invoke(app, ["evaluate", str(run), "--task", "classification", "--steps", "4", "--quiet"])
    assert printed.exit_code == 0 and "accuracy" in printed.output and "brick/hole" in printed.output, printed.output
    before = (run / "manifest.jsonl").read_bytes()
    printed = CliRunner().invoke(app, ["demo", "--quick", "--output", str(tmp_path / "demo")])
    assert printed.exit_code == 0 and printed.output.splitlines()[-1] == str(page)
    assert (run / "manifest.jsonl").read_bytes() == before
