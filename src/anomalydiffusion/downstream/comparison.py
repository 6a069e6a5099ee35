"""What every comparison shares: its settings, the ledger of finished trainings, the way through the arms, figures of several seeds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.downstream.arms import BEST, MORE, OURS, REAL
from anomalydiffusion.downstream.baselines import BASELINES
from anomalydiffusion.downstream.samples import Generated, Material
from anomalydiffusion.downstream.verdict import difference, summary, verdict

__all__ = [
    "CLASSIFICATION",
    "LOCALIZATION",
    "Comparison",
    "Found",
    "Ledger",
    "Record",
    "Redecode",
    "Training",
    "Trainings",
    "block",
    "closing",
    "values",
]

EARLIER = {"device": "cpu"}  # of lines of earlier versions, which do not say it
CHOSEN = "late"  # how a training's state is chosen; lines of trainings that chose otherwise do not count
LOCALIZATION, CLASSIFICATION = "localization", "classification"  # the tasks, as the ledger names them

Progress = Callable[[int, int, str], None]
Record = dict[str, Any]
Training = tuple[str, str, int]  # product, arm, seed
Found = Mapping[Training, Record]  # what each gave


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Redecode:
    """The prior's round trip in a random region of a normal image."""

    call: Callable[[str, np.ndarray, int], tuple[np.ndarray, Mask]]  # product, image, seed -> image, where it was redrawn
    digest: str  # of all that decides what comes of it


class Recipe(Protocol):
    """What a comparison must know of what it trains, whichever it is."""

    @property
    def network(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def hold_back(self) -> int: ...


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison(Generic[R]):
    """How to compare; `folder` keeps what is finished, so that a killed comparison goes on."""

    detector: R  # what is trained on every arm: a DetectorConfig for `compare`, a ClassifierConfig for `compare_classes`
    folder: Path
    seeds: Sequence[int] = (0,)
    baselines: bool = False
    controls: bool = False
    redecode: Redecode | None = None  # None = it is not checked whether detectors take it for a defect
    device: str = "cpu"  # where detectors and classifiers are trained; arms of one comparison all on the same kind
    progress: Progress = lambda done, total, what: None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise DataError(f"expected seeds that differ, got {list(self.seeds)}")


class Ledger:
    """One line a finished training; those of another task, of other settings or data do not count, nor those of other pairs.

    An arm counts again with other pairs where it does not depend on them: one of real images alone on none of them, a baseline
    only on how many there are of each type, and on the regions that a user drew, as what the best one is added to does.
    """

    def __init__(self, path: Path, task: str, comparison: Comparison, split: Split, generated: Sequence[Generated]) -> None:
        self.lines = Manifest(path)
        self.files = sorted((pair.product, pair.defect, digest_file(pair.image), digest_file(pair.mask)) for pair in generated)
        self.regions = digest_of(regions_of(split))
        self.facts = {
            "task": task, "chosen": CHOSEN, "detector": digest(comparison.detector), "split": split.digest,
            "controls": comparison.controls, "redecoded": comparison.redecode.digest if comparison.redecode else False,
            "device": comparison.device.split(":")[0],
        }  # fmt: skip
        both = [{(item.product, item.group) for item in some} for some in (split.held_out, split.held_out_normals)]
        if task == LOCALIZATION and comparison.controls and both[0] & both[1]:
            self.facts["normals"] = "of no part in more-real"  # before, all were tested on
        self.known = dict[Training, Record]()
        self.read()

    def read(self) -> None:
        """Take note of the lines that are there now: others may train too."""
        self.known = {
            (line["product"], line["arm"], line["seed"]): line
            for line in self.lines.records()
            if all(isinstance(line.get(name), kind) for name, kind in (("product", str), ("arm", str), ("seed", int)))
            and all({**EARLIER, **line}.get(name) == value for name, value in {**self.facts, "pairs": self.pairs(line["arm"])}.items())
        }

    def pairs(self, arm: str) -> str:
        """A digest of what `arm` depends on in the generated pairs; "" = nothing."""
        if arm in (REAL, MORE):
            return ""
        depends: Any = self.files
        if arm in BASELINES:
            depends = Counter("/".join(file[:2]) for file in self.files)
        if arm in (*BASELINES, BEST) and self.regions:
            depends = [depends, self.regions]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    def mark(self, arm: str) -> str:
        """A short digest of all that a line of `arm` must agree in to count."""
        return hashlib.sha256(json.dumps([self.facts, self.pairs(arm)]).encode()).hexdigest()[:8]

    def get(self, product: str, arm: str, seed: int) -> Record | None:
        return self.known.get((product, arm, seed))

    def add(self, product: str, arm: str, seed: int, figures: Record) -> Record:
        record = {"product": product, "arm": arm, "seed": seed, **self.facts, "pairs": self.pairs(arm), **figures}
        self.lines.append(record)
        return record


class Stage(Protocol):
    """One product's material, divided once for all arms and seeds."""

    def run(self, arm: str, seed: int, best: str, on_step: Callable[[int], None]) -> Record:
        """Train one arm with one seed and test it; `best` names the best baseline where the arm needs it."""


class Trainings:
    """Every training of a comparison, product by product, seed by seed, arm by arm; those that the ledger knows are done.

    `stage` divides a product's material, when it is first trained on; `figure` is what the best baseline is chosen by, a record's key.
    """

    def __init__(
        self, materials: Sequence[Material], order: Sequence[str], comparison: Comparison[Any], ledger: Ledger,
        stage: Callable[[Material], Stage], figure: str,
    ) -> None:  # fmt: skip
        self.materials, self.order, self.comparison, self.ledger, self.figure = materials, order, comparison, ledger, figure
        self.all = [(each.product, arm, seed) for each in materials for seed in comparison.seeds for arm in order]
        self.found = self._known()
        self.stage, self._materials = stage, {each.product: each for each in materials}
        self._last: tuple[str, Stage] | None = None  # of the product that was trained on last: a stage may hold many images

    def _known(self) -> dict[Training, Record]:
        return {each: record for each in self.all if (record := self.ledger.get(*each)) is not None}

    def ready(self) -> list[Training]:
        """Those that are left now and need no other that is: what a best baseline is added to waits for all baselines."""
        self.ledger.read()
        self.found = self._known()
        return [each for each in self.all if each not in self.found and all(other in self.found for other in self.needed(each))]

    def needed(self, training: Training) -> list[Training]:
        """The trainings that this one waits for."""
        product, arm, seed = training
        return [(product, name, seed) for name in BASELINES if name in self.order] if arm == BEST else []

    def train(self, training: Training, on_step: Callable[[int], None] = lambda step: None) -> Record:
        """What comes of one training, whose line is in the ledger then."""
        if training not in self.found:
            product, arm, seed = training
            if self._last is None or self._last[0] != product:
                self._last = None
                self._last = product, self.stage(self._materials[product])
            best = self._best_baseline(training) if arm == BEST else ""
            self.found[training] = self.ledger.add(product, arm, seed, self._last[1].run(arm, seed, best, on_step))
        return self.found[training]

    def _best_baseline(self, training: Training) -> str:
        """The baseline with the best figure on the validation part; the first of equals, and where there is no such figure."""
        figures = {other[1]: self.found[other][self.figure] for other in self.needed(training)}
        return max(figures, key=lambda name: -1.0 if figures[name] is None or np.isnan(figures[name]) else figures[name])

    def run(self) -> Found:
        """Train what is left, one after the other.

        What the ledger knows is not reported as progress: a rate is that of the work, not of what was found.
        """
        steps, total = self.comparison.detector.steps, self.comparison.detector.steps * len(self.all)
        for index, (product, arm, seed) in enumerate(self.all):
            said, before = f"{product}, {arm}, seed {seed}", index * steps

            def on_step(step: int, said: str = said, before: int = before) -> None:
                self.comparison.progress(before + step, total, said)

            self.train((product, arm, seed), on_step)
        self.comparison.progress(total, total, "")
        return self.found


def values(found: Found, arm: str, products: Sequence[str], seeds: Sequence[int], *path: str) -> list[float]:
    """One figure a seed: the mean over products of what stands at `path` in the records."""
    out = []
    for seed in seeds:
        figures = []
        for product in products:
            value: Any = found[product, arm, seed]
            for key in path:
                value = value[key]
            figures.append(float("nan") if value is None else float(value))
        out.append(float(np.mean(figures)))
    return out


def block(
    found: Found, order: Sequence[str], products: Sequence[str], seeds: Sequence[int], *path: str, metrics: Sequence[str], what: str
) -> Record:
    """The arms' figures with intervals, each arm's gain against real-only, and the verdict on ours.

    Gain and verdict are about the first of `metrics`, which the verdict calls `what`; `path` leads to the figures in a record.
    """
    figures = {arm: {name: values(found, arm, products, seeds, *path, name) for name in metrics} for arm in order}
    main = metrics[0]
    real = figures[REAL][main]
    return {
        "verdict": verdict(real, figures[OURS][main], what),
        "arms": {
            arm: {**{name: summary(each) for name, each in own.items()}, "gain": difference(real, own[main])}
            for arm, own in figures.items()
        },
    }


def closing(found: Found, split: Split, comparison: Comparison) -> Record:
    """What was compared and how long it took, for the end of a result."""
    return {
        "seeds": list(comparison.seeds), "steps": comparison.detector.steps, "network": comparison.detector.network,
        "split_digest": split.digest, "hours": round(sum(record["seconds"] for record in found.values()) / 3600, 3),
    }  # fmt: skip
