"""`evaluate` by several workers or commands: the trainings are those of one, each once, and the verdict is given when all are there."""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import anomalydiffusion as ad
from anomalydiffusion.app import evaluate as command
from anomalydiffusion.app.compared import Asked, share_out
from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.core.errors import ConfigError, DataError, TrainingError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from anomalydiffusion.downstream.comparison import Training
from anomalydiffusion.generation.crew import ProcessCrew, Records
from anomalydiffusion.generation.shards import Shard
from tests.app.conftest import Spoken

ASKED: dict[str, Any] = {"steps": 3, "seeds": 2, "baselines": True, "quiet": True}


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def trained(run: Path) -> list[tuple[str, str, int]]:
    return [(line["product"], line["arm"], line["seed"]) for line in Manifest(run / "evaluation" / "arms.jsonl").records()]


def figures(scores: dict[str, Any]) -> dict[str, list[float]]:
    return {arm: own["pixel_auroc"]["values"] for arm, own in scores["arms"].items()}


def test_workers_train_what_one_process_does(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "alone")
    alone, together = ad.evaluate(tmp_path / "alone", **ASKED), ad.evaluate(run, **ASKED, workers=2)
    ours = trained(run)
    assert sorted(ours) == sorted(trained(tmp_path / "alone")) and len(set(ours)) == len(ours) > 8
    best = [index for index, (_, arm, _) in enumerate(ours) if arm == "ours+best"]
    assert best and min(best) > max(index for index, (_, arm, _) in enumerate(ours) if arm == "perlin")  # it waits for baselines
    found, wanted = figures(together), figures(alone)
    assert found.keys() == wanted.keys()
    for arm, values in wanted.items():
        assert found[arm] == pytest.approx(values, abs=1e-3)  # another number of threads adds in another order
    before = (run / "evaluation" / "arms.jsonl").read_bytes()
    assert ad.evaluate(run, **ASKED, workers=3)["arms"] == together["arms"]  # nothing is trained again
    assert (run / "evaluation" / "arms.jsonl").read_bytes() == before


def test_shards_train_and_the_command_without_gives_the_verdict(run: Path, spoken: Spoken) -> None:
    words = ["evaluate", run, "--steps", 3, "--task", "classification", "--controls"]
    for shard, parts in (("1/2", 2), ("2/2", 4), ("2/2", 4)):
        with Shard.parse(shard).lock(Run.open(run)):  # of a drawing: another matter
            code, said = spoken(*words, "--shard", shard)
        assert code == 0 and f"shard {shard} is done, 2 of 4 trainings" in said and not (run / "scores.json").exists()
        assert len(trained(run)) == parts
    with pytest.raises(ConfigError, match="--workers and --ray share out the work by themselves"):
        ad.evaluate(run, shard="1/2", workers=2, quiet=True)
    with pytest.raises(ConfigError, match="leave out --workers, --ray and --shard"):
        ad.evaluate(run, task="quality", shard="1/2", quiet=True)
    with pytest.raises(ConfigError, match="--workers 0: expected at least 1"):
        ad.evaluate(run, workers=0, quiet=True)
    before = trained(run)
    code, _ = spoken(*words, "--quiet")
    assert code == 0 and trained(run) == before and (run / "scores.json").exists()


@dataclass(frozen=True)
class Stranger:
    """A worker whose trainings do not count here, as where a node has another prior."""

    asked: Asked

    def __call__(self, tasks: Sequence[Training]) -> Records:
        return []


def test_trainings_that_do_not_count_end_the_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Trainer", Stranger)
    with pytest.raises(TrainingError, match=r"what workers trained does not count here \(real-only, say\)"):
        ad.evaluate(run, task="classification", steps=2, workers=2, quiet=True)
    assert not (run / "scores.json").exists()


def test_cards_that_only_workers_have_are_not_asked_for(run: Path) -> None:
    settings = run_settings(Run.open(run), device="cuda")
    given = {
        "task": "classification",
        "detector": settings.classifier,
        "seeds": 1,
        "baselines": False,
        "controls": False,
        "shortcut": False,
    }
    asked = Asked(folder=run, settings=settings, elsewhere=True, **given)  # type: ignore[arg-type]
    assert len(asked.trainings().ready()) == 2
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda"):
            replace(asked, elsewhere=False).trainings()


@dataclass(frozen=True)
class Mortal:
    """What dies at training `b` for so many times, and cannot use `d`."""

    folder: Path
    times: int

    def __call__(self, tasks: Sequence[Training]) -> Records:
        ((_, arm, _),) = tasks
        (self.folder / f"{arm}-{len(list(self.folder.iterdir()))}").touch()
        if arm == "b" and len(list(self.folder.glob("b-*"))) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if arm == "d":
            raise DataError("d is damaged")
        return []


@dataclass(frozen=True)
class Build:
    made: Mortal

    def __call__(self) -> Mortal:
        return self.made


def test_what_a_lost_worker_was_training_another_trains(tmp_path: Path) -> None:
    def shared(name: str, times: int, arms: str) -> list[Training]:
        (tmp_path / name).mkdir()
        done = list[Training]()
        share_out(ProcessCrew(2, Build(Mortal(tmp_path / name, times))), [("plate", arm, 0) for arm in arms], done.append)
        return done

    assert sorted(shared("once", 1, "abc")) == [("plate", arm, 0) for arm in "abc"]
    assert len(list((tmp_path / "once").iterdir())) == 4
    with pytest.raises(TrainingError, match=r"plate, b, seed 0: its worker was lost 3 times; is there memory enough for 2 at once"):
        shared("always", 9, "b")
    with pytest.raises(DataError, match="d is damaged"):
        shared("damaged", 0, "d")
