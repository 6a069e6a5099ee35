"""Train the same detector on every arm, test all on the same held-out real images, and say whether generated pairs help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.core.seeds import derive
from anomalydiffusion.core.types import Split
from anomalydiffusion.downstream.arms import GARBAGE, MORE, OURS, REAL, arms, pools
from anomalydiffusion.downstream.comparison import (
    LOCALIZATION,
    Comparison,
    Found,
    Ledger,
    Record,
    Redecode,
    Trainings,
    block,
    closing,
    values,
)
from anomalydiffusion.downstream.detectors import DetectorConfig, image_score
from anomalydiffusion.downstream.leaks import guard
from anomalydiffusion.downstream.localise import Localiser, train_localiser
from anomalydiffusion.downstream.metrics import auroc, average_precision, f1_max, iou, precision_by_recall, pro
from anomalydiffusion.downstream.samples import Generated, Material, Sample, gather, hold_back, made_sample, set_apart
from anomalydiffusion.downstream.verdict import controls_hold, qualified, summary

__all__ = ["METRICS", "Comparison", "Redecode", "compare", "trainings"]

METRICS = ("pixel_ap", "pixel_auroc", "pixel_f1_max", "pro", "iou", "image_auroc", "image_ap", "image_f1_max")
RECALLS = tuple(round(0.02 * step, 2) for step in range(51))  # of the curves that are shown
REDECODED = 48  # normal images of a product that are sent through the prior's autoencoder, for training and for testing

Tested = list[tuple[Sample, np.ndarray, np.ndarray]]  # sample, map_HW, truth_HW


def compare(split: Split, generated: Sequence[Generated], root: Path, comparison: Comparison[DetectorConfig]) -> Record:
    """Train one detector a product, arm and seed, test it on held-out images, and give the verdict; plain values (JSON).

    All arms have the same network, first weights, gradient steps, seeds, normal images and validation part (a part of the shots,
    whole groups, and as many normals, whose parts other normals may show); with made samples, every other defect view is a made
    one. What is made, by us or by a baseline, is made from all shots, so it hands on something of the validation part that
    real-only never sees; to that extent a gain over real-only is more than realism, and the validation figures of such arms are
    flattered. Held-out images are only tested on: state and threshold are chosen on the validation part. Without `controls`
    everything held out is tested on; with them every other group of its defects goes to `more-real`, and all arms are tested on the rest,
    less the normal images of parts that went.
    Metrics are 0..1, means over products, one value a seed; `per_product` and `per_defect` (that type's images and the held-out
    normals) have their own verdicts.
    With `redecode`, half of the normal views of every arm went through the prior's autoencoder in a random region, and
    `shortcut` tells whether detectors take such regions, on held-out normals, for defects.

    Raises `SplitError` on a leak, `DataError` where something needed is missing.
    """
    own = trainings(split, generated, root, comparison)
    return _result(own.run(), own.materials, own.order, split, comparison)


def trainings(split: Split, generated: Sequence[Generated], root: Path, comparison: Comparison[DetectorConfig]) -> Trainings:
    """What `compare` trains. Raises as that does."""
    guard(split, generated, root)
    order = arms(baselines=comparison.baselines, controls=comparison.controls)
    ledger = Ledger(comparison.folder / "arms.jsonl", LOCALIZATION, comparison, split, generated)
    stage = partial(Stage, comparison=comparison, ledger=ledger)
    return Trainings(gather(split, generated), order, comparison, ledger, stage, "validation_ap")


class Stage:
    """One product's material, divided once for all arms and seeds."""

    def __init__(self, material: Material, comparison: Comparison[DetectorConfig], ledger: Ledger) -> None:
        self.material, self.comparison, self.ledger = material, comparison, ledger
        self.extra, self.tests, self.test_normals = _sides(material, comparison)
        self.fitted, validated = hold_back(material.shots, comparison.detector.hold_back)
        groups = {sample.group for sample in validated}
        normals = [normal for normal in material.normals if normal.group not in groups]
        every = max(2, len(normals) // max(1, len(validated)))
        kept_normals = normals[every - 1 :: every][: len(validated)]
        self.validation = [*validated, *kept_normals]
        self.normals = [normal for normal in normals if normal not in kept_normals] or material.normals
        self.redrawn = self._redecoded(self.normals, 0)
        self.redrawn_tests = self._redecoded(self.test_normals, 1)

    def _redecoded(self, normals: Sequence[Sample], seed: int) -> list[Sample]:
        """Normal images with a region from the prior's autoencoder; the mask says where, it is no defect."""
        if (redecode := self.comparison.redecode) is None:
            return []
        chosen = normals[:: max(1, len(normals) // REDECODED)][:REDECODED]
        made = []
        for index, normal in enumerate(chosen):
            image, mask = redecode.call(self.material.product, normal.read()[0], derive(seed, "redecode", index))
            made.append(made_sample(f"{normal.name} redecoded", "", image, mask))
        return made

    def run(self, arm: str, seed: int, best: str, on_step: Callable[[int], None]) -> Record:
        """Train one arm with one seed and test it."""
        began = time.monotonic()
        normals = [self.normals, [made_sample(each.name, "", each.read()[0], None) for each in self.redrawn]]
        own = derive(seed, "detector", self.material.product)
        chosen = pools(arm, self.material, self.fitted, self.extra, seed=own, best=best)
        model = train_localiser(
            chosen, [pool for pool in normals if pool], self.validation, self.comparison.detector, seed=own,
            device=self.comparison.device, on_step=on_step,
        )  # fmt: skip
        tested = list(_tested(model, [*self.tests, *self.test_normals]))
        score = partial(_score, threshold=model.threshold, config=self.comparison.detector)
        figures: Record = {"values": score(tested), "validation_ap": model.validation_ap, "step": model.step}
        figures["per_defect"] = {
            defect: score([one for one in tested if one[0].defect in (defect, "")]) for defect in self.material.defects
        }
        figures["precision"] = precision_by_recall(*_pixels(tested), RECALLS)
        figures["per_image"] = {sample.name: average_precision(scores, truth) for sample, scores, truth in tested if sample.defect}
        if self.redrawn_tests:
            figures["shortcut"] = _shortcut(model, self.redrawn_tests, tested)
        if seed == self.comparison.seeds[0] and arm in (REAL, OURS):
            figures["maps"] = self._keep_maps(arm, tested)
        return {**figures, "best_baseline": best, "seconds": round(time.monotonic() - began, 1)}

    def _keep_maps(self, arm: str, tested: Tested) -> str:
        """The maps of the test images as 8 bit pictures, for people to look at; their folder, below the comparison's."""
        folder = f"maps/{self.material.product}/{arm}-{self.ledger.mark(arm)}"
        for index, (_, scores, _) in enumerate(tested):
            write_atomic(self.comparison.folder / folder / f"{index:06d}.png", encode_png((scores * 255).astype(np.uint8)))
        return folder


def _sides(material: Material, comparison: Comparison[DetectorConfig]) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """(further real defects, defects that are tested on, normals that are tested on): no part shows in the first and in the others."""
    if not comparison.controls:
        return [], material.tests, material.test_normals
    extra, tests = set_apart(material.tests)
    known = {sample.group for sample in extra}
    return extra, tests, [normal for normal in material.test_normals if normal.group not in known]


def _tested(model: Localiser, samples: Iterable[Sample]) -> Iterable[tuple[Sample, np.ndarray, np.ndarray]]:
    for sample in samples:
        image, mask = sample.read()
        yield sample, model.predict(image), mask.pixels_HW if mask else np.zeros(image.shape[:2], bool)


def _pixels(tested: Tested) -> tuple[np.ndarray, np.ndarray]:
    """(scores, truth) of all pixels of all test images."""
    return np.concatenate([scores.ravel() for _, scores, _ in tested]), np.concatenate([truth.ravel() for _, _, truth in tested])


def _score(tested: Tested, threshold: float, config: DetectorConfig) -> dict[str, float]:
    maps, truths = [scores for _, scores, _ in tested], [truth for _, _, truth in tested]
    scores_N, truth_N = _pixels(tested)
    whole, marked = np.array([image_score(each, config) for each in maps]), np.array([truth.any() for truth in truths])
    both = marked.any() and not marked.all()
    undefined = float("nan")
    return {
        "pixel_ap": average_precision(scores_N, truth_N), "pixel_auroc": auroc(scores_N, truth_N),
        "pixel_f1_max": f1_max(scores_N, truth_N), "pro": pro(maps, truths),
        "iou": iou(scores_N >= threshold, truth_N) if np.isfinite(threshold) else undefined,
        "image_auroc": auroc(whole, marked), "image_ap": average_precision(whole, marked) if both else undefined,
        "image_f1_max": f1_max(whole, marked) if both else undefined,
    }  # fmt: skip


def _shortcut(model: Localiser, redrawn: Sequence[Sample], tested: Tested) -> dict[str, float]:
    """Share of pixels above the threshold in regions that only went through the autoencoder, and in untouched normal images."""
    inside, outside = [], [scores.ravel() for sample, scores, _ in tested if not sample.defect]
    for sample in redrawn:
        image, mask = sample.read()
        inside.append(model.predict(image)[mask.pixels_HW if mask else np.ones(image.shape[:2], bool)])
    threshold = model.threshold if np.isfinite(model.threshold) else 0.5
    rates = [float((np.concatenate(some) >= threshold).mean()) for some in (inside, outside)]
    return {"false_positive_rate_redecoded": rates[0], "false_positive_rate_plain": rates[1]}


def _block(found: Found, order: Sequence[str], products: Sequence[str], seeds: Sequence[int], *path: str) -> Record:
    return block(found, order, products, seeds, *path, metrics=METRICS, what="pixel AP")


def _result(found: Found, materials: Sequence[Material], order: Sequence[str], split: Split, comparison: Comparison) -> Record:
    seeds, products = list(comparison.seeds), [material.product for material in materials]
    result = _block(found, order, products, seeds, "values")
    trained = [found[product, arm, seed] for product in products for arm in order for seed in seeds]
    if all(np.isfinite(record.get("precision") or np.nan).all() for record in trained):  # those of earlier versions have none
        curves = {arm: np.mean([found[p, arm, s]["precision"] for p in products for s in seeds], axis=0).tolist() for arm in order}
        result["curves"] = {"recall": list(RECALLS), "precision": curves}
    if comparison.controls:
        real, more, garbage = (values(found, arm, products, seeds, "values", "pixel_ap") for arm in (REAL, MORE, GARBAGE))
        result["controls"] = controls_hold(real, more, garbage)
        result["verdict"] = qualified(result["verdict"], result["controls"])
    if len(products) > 1:
        result["per_product"] = {product: _block(found, order, [product], seeds, "values") for product in products}
    result["per_defect"] = {
        f"{material.product}/{defect}": _block(found, order, [material.product], seeds, "per_defect", defect)
        for material in materials
        for defect in material.defects
    }
    if comparison.redecode is not None:
        names = ("false_positive_rate_plain", "false_positive_rate_redecoded")
        tested = [material.product for material in materials if _sides(material, comparison)[2]]
        result["shortcut"] = {"arms": {
            arm: {name: summary(values(found, arm, tested, seeds, "shortcut", name)) for name in names} for arm in order
        }} if tested else {}  # fmt: skip
    sides = [_sides(material, comparison) for material in materials]
    return {
        **result,
        "n_test": sum(len(tests) + len(normals) for _, tests, normals in sides),
        "n_generated": sum(len(material.generated) for material in materials),
        **closing(found, split, comparison),
    }
