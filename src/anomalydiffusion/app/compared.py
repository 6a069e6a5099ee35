"""What `evaluate` compares of a run, and how: the same in its own process and in workers that train beside each other."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.opened import own_words, run_split
from anomalydiffusion.app.settings import Settings, prior_of
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.devices import find_device
from anomalydiffusion.core.errors import AnomalyDiffusionError, RunError, SplitError, TrainingError
from anomalydiffusion.core.manifest import Manifest, accepted, judged
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.downstream.classify import class_trainings, compare_classes
from anomalydiffusion.downstream.comparison import LOCALIZATION, Comparison, Found, Ledger, Progress, Record, Redecode, Training, Trainings
from anomalydiffusion.downstream.evaluate import compare, trainings
from anomalydiffusion.downstream.samples import Generated
from anomalydiffusion.generation.crew import PATIENCE, Crew, Records, cause
from anomalydiffusion.generation.roundtrip import redecode
from anomalydiffusion.priors.files import learned_from

__all__ = ["Asked", "Trainer", "pairs_of", "refuse_learned", "round_trip", "share_out"]

log = logging.getLogger(__name__)


def pairs_of(run: Run) -> list[Generated]:
    """The accepted pairs of a run. Raises `RunError` where there are none, or the files of one are gone."""
    records = accepted(judged(Manifest(run.manifest).pairs(), run.folder))
    if not records:
        raise RunError(f"{run.folder}: no accepted pairs to evaluate; run 'anomalydiffusion generate {run.folder} --num 40' first")
    pairs = [
        Generated(product=r["product"], defect=r["defect"], image=run.folder / r["image"], mask=run.folder / r["mask"],
                  normal=run.folder / r["normal"], normal_sha256=r["normal_sha256"],
                  reference=run.folder / r["reference"] if r.get("reference") else None)
        for r in records
    ]  # fmt: skip
    if lost := next((path for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()), None):
        raise RunError(f"{lost}: gone, but the manifest names it; restore it, or draw the pairs anew with generate --no-resume")
    return pairs


def refuse_learned(run: Run, split: Split) -> None:
    """Raises `SplitError` where the run's prior was adapted to a picture that is held out, as `prior train --images` may."""
    prior = str(own_words(run).get("prior", ""))
    known = learned_from(Path(prior).expanduser())
    if path := next((path for path in split.tested if split.sha256[path] in known), None):
        raise SplitError(
            f"{path}: held out, but the prior {prior} has learned from it; train with one that has not ('train --adapt-prior' takes none)"
        )


def round_trip(run: Run, settings: Settings) -> Redecode | None:
    """The prior's round trip, with the grain that a drawing from noise gets back.

    One that begins from a real defect gets all of it: what its pairs show of the autoencoder is less. None, and said, where the prior is
    not to be had, or all that it loses is handed back, so that there is nothing to see.
    """
    try:
        prior = prior_of(settings)
        measured = Adapter.load(run.adapter, prior).origin.measures
    except AnomalyDiffusionError as error:
        log.warning("the shortcut check is left out: %s", error)
        return None

    config = settings.generate
    shares = {key: config.handed_back(own.get("grain", 1.0)) for key, own in sorted(measured.items())}
    if all(share == 1 for share in shares.values()):
        log.info("the shortcut check is left out: pairs get all of the normal image's grain back, and show nothing of the autoencoder")
        return None

    def call(product: str, image_HWC: np.ndarray, seed: int) -> tuple[np.ndarray, Mask]:
        grains = [share for key, share in shares.items() if key.split("/")[0] == product] or [1.0]
        grain = grains[int(rng(seed, "grain").integers(len(grains)))]
        return redecode(prior, image_HWC, config, grain=grain, seed=seed)

    way = {"prior": prior.digest, "shares": shares, "ratio": config.ratio, "side": config.minimum_side, "feather": config.feather}
    return Redecode(call=call, digest=hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was typed; small enough to be sent to a worker."""

    folder: Path
    settings: Settings
    task: str
    detector: Any  # a DetectorConfig, or where classes are told apart a ClassifierConfig
    seeds: int
    baselines: bool
    controls: bool
    shortcut: bool
    elsewhere: bool = False  # others train, perhaps on cards that this machine does not have

    def _given(self, progress: Progress | None = None) -> tuple[Split, list[Generated], Path, Comparison[Any]]:
        run = Run.open(self.folder)
        root = Path(json.loads(run.split.read_text(encoding="utf-8"))["root"])
        comparison = Comparison(
            detector=self.detector, folder=run.evaluation, seeds=range(self.seeds), baselines=self.baselines, controls=self.controls,
            device=self.settings.device if self.elsewhere else str(find_device(self.settings.device)),
            redecode=round_trip(run, self.settings) if self.shortcut and self.task == LOCALIZATION else None,
            **({} if progress is None else {"progress": progress}),
        )  # fmt: skip
        return run_split(run), pairs_of(run), root, comparison

    def trainings(self) -> Trainings:
        return (trainings if self.task == LOCALIZATION else class_trainings)(*self._given())

    def compare(self, progress: Progress) -> tuple[Record, Found]:
        """Train what is left; what came of all, and of each training."""
        split, pairs, root, comparison = self._given(progress)
        record = (compare if self.task == LOCALIZATION else compare_classes)(split, pairs, root, comparison)
        return record, Ledger(comparison.folder / "arms.jsonl", self.task, comparison, split, pairs).known


class Trainer:
    """What a worker holds: the run's images, divided once. Called with trainings, it trains them; their lines are in the ledger then."""

    def __init__(self, asked: Asked) -> None:
        self.trainings = asked.trainings()

    def __call__(self, tasks: Sequence[Training]) -> Records:
        return [self.trainings.train(task) for task in tasks]


def share_out(crew: Crew, tasks: Sequence[Training], done: Callable[[Training], None]) -> None:
    """Let a crew train, one training a worker at a time; the crew is let go at the end.

    What a lost worker was training, another trains. Raises `TrainingError` where that is the same `PATIENCE` times, and whatever else a
    worker raises.
    """
    queue, lost, idle = deque(tasks), Counter[Training](), list(range(crew.size))
    running = dict[Future[Records], tuple[int, Training]]()
    try:
        while queue or running:
            while queue and idle:
                worker = idle.pop()
                task = queue.popleft()
                try:
                    future = crew.submit(worker, [task])
                except crew.lost:  # while it had nothing to do
                    crew.replace(worker)
                    future = crew.submit(worker, [task])
                running[future] = worker, task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, task = running.pop(future)
                if (error := future.exception()) is None:
                    done(task)
                elif isinstance(error, crew.lost):
                    lost[task] += 1
                    if lost[task] == PATIENCE:
                        raise TrainingError(
                            f"{_named(task)}: its worker was lost {PATIENCE} times; is there memory enough for {crew.size} at once?"
                        ) from error
                    log.warning("a worker was lost at %s (%s); another takes its place", _named(task), error or type(error).__name__)
                    crew.replace(worker)
                    queue.append(task)
                else:
                    raise cause(error)
                idle.append(worker)
    except Exception as error:
        log.warning("%s; waiting for what the other workers are training", error)
        raise
    finally:
        crew.close()


def _named(task: Training) -> str:
    return f"{task[0]}, {task[1]}, seed {task[2]}"
