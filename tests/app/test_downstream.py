"""The benchmark of the proof: what one page kept of real images alone stands for another page's training."""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import anomalydiffusion as ad
from anomalydiffusion.app.compared import round_trip
from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run

REAL = ("real-only", "more-real")
ASKED = {"seeds": 2, "controls": True, "detector": "cpu", "steps": 2}


@pytest.fixture
def downstream(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delitem(sys.modules, "downstream", raising=False)  # a script
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import downstream

    return downstream


def lines(run: Path) -> list[dict]:
    return Manifest(run / "evaluation" / "arms.jsonl").records()


def test_arms_of_real_images_alone_are_taken_and_not_trained_again(
    downstream: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (shutil.copytree(made / "run", tmp_path / name) for name in ("first", "second"))
    for run in (first, second):
        text = (run / "config.toml").read_text()
        assert text.count("steps = 300\n") == 1  # of the classifier
        (run / "config.toml").write_text(text.replace("steps = 300\n", "steps = 30\n"))
    kept = {
        "r0": ad.evaluate(first, **ASKED, quiet=True),
        "classes-r0": ad.evaluate(first, task="classification", seeds=2, controls=True, quiet=True),
    }
    monkeypatch.setattr(downstream, "RESULTS", tmp_path)
    given = argparse.Namespace(take="page", product="plate", **ASKED)
    for name, scores in kept.items():
        (tmp_path / "page-plate").mkdir(exist_ok=True)
        record = {"settings": {**ASKED, "product": "plate"}, "hardware": "an abacus", "scores": scores}
        (tmp_path / "page-plate" / f"{name}.json").write_text(json.dumps(record))
    assert downstream.take_over(given, 0, Run.open(second)) == "taken from page: more-real, real-only; trained on an abacus"
    taken, trained = lines(second), [line for line in lines(first) if line["arm"] in REAL]
    assert len(taken) == len(trained) == 8
    for line in taken:
        (own,) = [each for each in trained if all(each[name] == line[name] for name in ("task", "arm", "seed"))]
        assert {name: own[name] for name in line if name != "seconds"} == {name: line[name] for name in line if name != "seconds"}
    again = ad.evaluate(second, **ASKED, quiet=True)
    assert {arm: again["arms"][arm] for arm in REAL} == {arm: kept["r0"]["arms"][arm] for arm in REAL}
    assert {line["arm"] for line in lines(second)[len(taken) :]} == {"ours", "garbage"}, "those alone were trained"
    downstream.take_over(given, 0, Run.open(second))
    assert len(lines(second)) == len(taken) + 4, "nothing is taken twice"
    with pytest.raises(ConfigError, match="of another split, detector, seeds or controls"):
        downstream.take_over(argparse.Namespace(**{**vars(given), "seeds": 3}), 0, Run.open(second))


def test_the_round_trip_hands_back_what_the_run_s_pairs_get_back(made: Path) -> None:
    run = Run.open(made / "run")
    settings, image = run_settings(run), np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    ways = {}
    for grain in ("measured", "full", "off"):
        ways[grain] = round_trip(run, replace(settings, generate=replace(settings.generate, grain=grain)))
    assert ways["full"] is None, "nothing would be seen"
    changed, mask = ways["off"].call("plate", image, 0)
    assert (changed != image)[mask.pixels_HW].mean() > 0.3
    wide = round_trip(run, replace(settings, generate=replace(settings.generate, grain="off", feather=9.0)))
    assert wide.digest != ways["off"].digest and wide.digest != (ways["measured"].digest if ways["measured"] else "")
