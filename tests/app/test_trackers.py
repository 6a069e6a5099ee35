"""The loss of a training is found where the user looks for it."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import anomalydiffusion as ad
from anomalydiffusion.app import trackers
from anomalydiffusion.app.settings import resolve
from anomalydiffusion.app.trackers import tracked
from anomalydiffusion.core.errors import ConfigError
from tests.app.conftest import Spoken


def test_the_event_file_holds_the_loss_of_the_log(made: Path) -> None:
    logged = [json.loads(line) for line in (made / "run" / "train_log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(made / "run" / "logs" / "train"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found and found == [(line["step"], pytest.approx(line["loss"], abs=1e-5)) for line in logged]


def test_no_tracker_leaves_no_trace(tmp_path: Path) -> None:
    accelerator = tracked("none", tmp_path, "train", {}, device=torch.device("cpu"))
    accelerator.log({"loss": 1.0}, step=1)
    accelerator.end_training()
    assert not accelerator.trackers and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spelling", ["--report-to", "--report_to"])
def test_a_tracker_that_is_not_there_names_its_package(
    made: Path, tmp_path: Path, spoken: Spoken, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, said = spoken("train", made / "data", "--output", tmp_path / "run", spelling, "wandb")
    assert code == 2 and said == "error: --report-to wandb: its package is not installed; pip install wandb\n"
    assert not (tmp_path / "run").exists()


def test_a_tracker_is_a_setting(made: Path, tmp_path: Path) -> None:
    assert resolve(report_to="none").report_to == "none" and resolve().report_to == "tensorboard"
    with pytest.raises(ConfigError, match="report_to: expected one of 'tensorboard', 'wandb', 'mlflow', 'trackio', 'none', got 'paper'"):
        ad.train(made / "data", tmp_path / "run", report_to="paper", quiet=True)
