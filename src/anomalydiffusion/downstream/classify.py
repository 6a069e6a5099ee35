"""Train the same classifier of defect types on every arm, test on held-out real defects, say whether generated pairs help."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from natsort import natsorted

from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.types import Split
from anomalydiffusion.downstream.arms import GARBAGE, MORE, OURS, REAL, arms, pools
from anomalydiffusion.downstream.classifiers import ClassifierConfig, train_classifier
from anomalydiffusion.downstream.comparison import CLASSIFICATION, Comparison, Found, Ledger, Record, Trainings, block, closing, values
from anomalydiffusion.downstream.leaks import guard
from anomalydiffusion.downstream.metrics import accuracy, per_class_accuracy
from anomalydiffusion.downstream.samples import Generated, Material, Sample, gather, hold_back, set_apart
from anomalydiffusion.downstream.verdict import controls_hold, qualified

__all__ = ["METRICS", "SHUFFLED", "class_arms", "class_order", "class_trainings", "compare_classes", "shuffled_types"]

log = logging.getLogger(__name__)

METRICS = ("accuracy", "balanced_accuracy")
SHUFFLED = "shuffled"
UNSUITED = ("perlin", GARBAGE)  # Perlin noise shows no type; a misplaced label still names the right one


def class_arms(*, baselines: bool = False, controls: bool = False) -> list[str]:
    """The arms of `arms` that have defect types, in its order; with `controls`, shuffled comes last.

    shuffled, a negative control: ours, every pair under the name of another type.
    """
    suited = [arm for arm in arms(baselines=baselines, controls=controls) if arm not in UNSUITED]
    return [*suited, SHUFFLED] if controls else suited


def class_order(names: Sequence[str]) -> list[str]:
    """The classes of one product: its defect types sorted by name, "2" before "10", whatever the order of folders or files."""
    return natsorted(sorted(set(names)))


def shuffled_types(classes: Sequence[str], *, seed: int) -> dict[str, str]:
    """Each type's wrong name: the types in an order drawn from `seed`, each called by the next, so that none keeps its own."""
    drawn = [classes[index] for index in rng(seed, "shuffled").permutation(len(classes)).tolist()]
    return dict(zip(drawn, [*drawn[1:], drawn[0]], strict=True))


def compare_classes(split: Split, generated: Sequence[Generated], root: Path, comparison: Comparison[ClassifierConfig]) -> Record:
    """Train one classifier a product, arm and seed, test it on held-out defects, and give the verdict; plain values (JSON).

    The classes are the defect types of one product, in `class_order`; a product with a single one is left out. All arms have the
    same network, first weights, gradient steps, seeds and validation part (a part of the shots, whole groups); types are drawn
    evenly, and of a type every pool alike. Held-out defects are only tested on: the state is chosen on the validation part.
    Without `controls` everything held out is tested on; with them every other group of it goes to `more-real`, and all arms are
    tested on the rest. Accuracies are 0..1, means over products, one value a seed; the balanced one is the mean over classes.
    `gain` and verdicts are about the accuracy. `per_class` (the accuracy on that type's images) and `per_product` have their own
    verdicts. `constant_answers` counts the trainings of an arm that name one and the same type whatever they see.

    Raises `SplitError` on a leak, `DataError` where something needed is missing, `ConfigError` with `redecode`: what went
    through the autoencoder is of every type alike, so there is no such shortcut to check.
    """
    own = class_trainings(split, generated, root, comparison)
    stages = {material.product: cast(ClassStage, own.stage(material)) for material in own.materials}
    found = own.run()
    return {
        **_figures(found, own.order, stages, comparison),
        "n_test": sum(len(stage.tests) for stage in stages.values()),
        "n_generated": sum(len(material.generated) for material in own.materials),
        **closing(found, split, comparison),
    }


def class_trainings(split: Split, generated: Sequence[Generated], root: Path, comparison: Comparison[ClassifierConfig]) -> Trainings:
    """What `compare_classes` trains. Raises as that does."""
    if comparison.redecode is not None:
        raise ConfigError("classification: redecode is for localization; leave it out")
    kept, pairs = _several(split, generated)
    guard(split, generated, root)
    order = class_arms(baselines=comparison.baselines, controls=comparison.controls)
    ledger = Ledger(comparison.folder / "arms.jsonl", CLASSIFICATION, comparison, split, pairs)
    materials = gather(kept, pairs)
    stages = {material.product: ClassStage(material, comparison) for material in materials}  # each is looked at before any is trained
    return Trainings(materials, order, comparison, ledger, lambda material: stages[material.product], "validation_accuracy")


def _several(split: Split, generated: Sequence[Generated]) -> tuple[Split, list[Generated]]:
    """The products with several defect types, and their pairs; a product with one is left out with a warning."""
    types: dict[str, set[str]] = {shot.product: set() for shot in split.shots}
    for shot in [*split.shots, *split.held_out]:
        if shot.product in types:
            types[shot.product].add(shot.defect)
    single = {product: "".join(own) for product, own in types.items() if len(own) < 2}
    if len(single) == len(types):
        what = ", ".join(f"{product}: {defect}" for product, defect in single.items())
        raise DataError(f"no product has two defect types to tell apart ({what}); add shots of another type, or run localization")
    for product, defect in single.items():
        log.warning("%s: left out of the classification, %s is its only defect type", product, defect)
    kept = replace(
        split,
        shots=tuple(shot for shot in split.shots if shot.product not in single),
        held_out=tuple(shot for shot in split.held_out if shot.product not in single),
    )
    return kept, [pair for pair in generated if pair.product not in single]


class ClassStage:
    """One product's material, divided once for all arms and seeds. Raises `DataError` on a type without what it needs."""

    def __init__(self, material: Material, comparison: Comparison[ClassifierConfig]) -> None:
        self.material, self.config, self.device = material, comparison.detector, comparison.device
        self.classes = class_order([sample.defect for sample in [*material.shots, *material.tests]])
        self.fitted, self.validation = hold_back(material.shots, comparison.detector.hold_back)
        self._check()
        self.extra, self.tests = set_apart(material.tests) if comparison.controls else ([], material.tests)

    def _check(self) -> None:
        product = self.material.product
        tested, learned, drawn = ({s.defect for s in some} for some in (self.material.tests, self.fitted, self.material.generated))
        for name in self.classes:
            if name not in tested:
                raise DataError(f"{product}/{name}: no held-out image to test on; add images of other parts, or leave the type out")
            if name not in learned:
                raise DataError(f"{product}/{name}: no shot is left to train on beside the validation part; add shots of other parts")
        if unknown := class_order(list(drawn.difference(self.classes))):
            raise DataError(f"generated {product}/{unknown[0]}: no such defect type in the split; known here: {', '.join(self.classes)}")
        if lacking := [name for name in self.classes if name not in drawn]:
            log.warning("%s: no generated pair of %s, so ours learns that from shots alone", product, ", ".join(lacking))

    def pools(self, arm: str, seed: int, best: str) -> list[list[Sample]]:
        """The pools of samples that `arm` is trained on."""
        chosen = pools(OURS if arm == SHUFFLED else arm, self.material, self.fitted, self.extra, seed=seed, best=best)
        if arm == SHUFFLED:
            wrong = shuffled_types(self.classes, seed=seed)
            chosen[1] = [replace(pair, defect=wrong[pair.defect]) for pair in chosen[1]]
        return chosen

    def run(self, arm: str, seed: int, best: str, on_step: Callable[[int], None]) -> Record:
        """Train one arm with one seed and test it."""
        began, product = time.monotonic(), self.material.product
        own = derive(seed, "classifier", product)
        model = train_classifier(
            self.pools(arm, own, best), self.validation, self.classes, self.config, seed=own, device=self.device, on_step=on_step
        )
        truth, answers = [sample.defect for sample in self.tests], model.answers(self.tests)
        by_class = per_class_accuracy(answers, truth)
        if constant := answers[0] if len(set(answers)) == 1 else "":
            log.warning("%s, %s, seed %d: whatever it sees, the classifier answers %s", product, arm, seed, constant)
        return {
            "values": {"accuracy": accuracy(answers, truth), "balanced_accuracy": float(np.mean(list(by_class.values())))},
            "per_class": {name: {"accuracy": share} for name, share in by_class.items()},
            "answers": {sample.name: answer for sample, answer in zip(self.tests, answers, strict=True)},
            "constant": constant, "validation_accuracy": model.accuracy, "step": model.step,
            "best_baseline": best, "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip


def _judged(found: Found, order: Sequence[str], products: Sequence[str], seeds: Sequence[int]) -> Record:
    """Figures and verdict, or no verdict where neither real-only nor ours learned anything."""
    result = block(found, order, products, seeds, "values", metrics=METRICS, what="accuracy")
    if all(found[product, arm, seed]["constant"] for product in products for arm in (REAL, OURS) for seed in seeds):
        result["verdict"] = "no verdict: every classifier answers the same type whatever it sees; train for more steps, or change its rate"
    return result


def _figures(found: Found, order: Sequence[str], stages: dict[str, ClassStage], comparison: Comparison) -> Record:
    seeds, products = list(comparison.seeds), list(stages)
    result = _judged(found, order, products, seeds)
    if comparison.controls:
        real, more, wrong = (values(found, arm, products, seeds, "values", "accuracy") for arm in (REAL, MORE, SHUFFLED))
        result["controls"] = controls_hold(real, more, wrong, "shuffled types")
        result["verdict"] = qualified(result["verdict"], result["controls"])
    if len(products) > 1:
        result["per_product"] = {product: _judged(found, order, [product], seeds) for product in products}
    result["per_class"] = {
        f"{product}/{name}": block(found, order, [product], seeds, "per_class", name, metrics=METRICS[:1], what="accuracy")
        for product, stage in stages.items()
        for name in stage.classes
    }
    constant = {arm: sum(bool(found[product, arm, seed]["constant"]) for product in products for seed in seeds) for arm in order}
    return {**result, "constant_answers": constant}
