"""Train the same small segmenter with and without generated pairs and test both on held-out real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from anomalydiffusion.core.crops import crop_box, extract
from anomalydiffusion.core.errors import DataError, SplitError, TrainingError
from anomalydiffusion.core.pixels import digest_pixels, read_image, to_tensor
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.types import Mask, Normal, Shot, Split
from anomalydiffusion.data.folders import load, load_normal
from anomalydiffusion.downstream.detectors import TILE, image_score, predict, segmenter
from anomalydiffusion.downstream.metrics import auroc, average_precision, f1_max

__all__ = ["OURS", "REAL", "Generated", "compare", "train_segmenter", "verdict"]

Rng = np.random.Generator
Generated = tuple[tuple[str, str], np.ndarray, np.ndarray]  # (product, defect), image_HWC uint8, mask_HW bool
Progress = Callable[[int, int, str], None]
Marked = tuple[np.ndarray, Mask]
Maps = list[tuple[str, np.ndarray, np.ndarray]]  # defect type ("" = normal), map_HW, truth_HW

REAL, OURS = "real-only", "ours"
METRICS = ("pixel_ap", "pixel_auroc", "pixel_f1_max", "image_auroc", "image_ap")
LEARNING_RATE = 3e-3  # AdamW, one cycle
ENOUGH = 3  # seeds from which a t-interval says something


def _guard(split: Split, generated: Sequence[Generated], lineage: Sequence[str]) -> None:
    """Refuse pairs that saw what they will be tested on: by the hash of a normal's file, or pixel for pixel."""
    held: list[Shot | Normal] = [*split.held_out, *split.held_out_normals]
    by_file = {split.sha256[item.path]: item.path for item in held}
    for digest in lineage:
        if digest in by_file:
            raise SplitError(f"{by_file[digest]}: held out, but generated pairs were made on it; generate them on training images")
    by_pixels = {digest_pixels(read_image(item.path)): item.path for item in held} if generated else {}
    for (product, defect), image, _ in generated:
        if (path := by_pixels.get(digest_pixels(image))) is not None:
            raise SplitError(f"{path}: held out, but a generated {product}/{defect} image is the same picture; remove that pair")


def _tile(generator: Rng, image: np.ndarray, mask: Mask | None) -> tuple[np.ndarray, np.ndarray]:
    """A random place of 128 x 128 pixels, with a part of the defect where there is one; mirrored at random."""
    height, width = image.shape[:2]
    pixels = mask.pixels_HW if mask else np.zeros((height, width), bool)
    if mask:
        y, x = np.argwhere(pixels)[generator.integers(int(pixels.sum()))].tolist()
    else:
        y, x = int(generator.integers(height)), int(generator.integers(width))
    box = crop_box((x, y, x + 1, y + 1), (height, width), 1.0, TILE, (generator.random(), generator.random()))
    flip_y, flip_x = generator.choice([1, -1], 2).tolist()
    return extract(image, box)[::flip_y, ::flip_x], extract(pixels, box)[::flip_y, ::flip_x]


def _batch(
    generator: Rng, pools: Sequence[Sequence[Marked]], normals: Sequence[np.ndarray], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the tiles show a defect, from each pool in turn; the others come from normal images."""
    tiles = []
    for index in range(size):
        if index % 2 == 0:
            pool = pools[index // 2 % len(pools)]
            tiles.append(_tile(generator, *pool[int(generator.integers(len(pool)))]))
        else:
            tiles.append(_tile(generator, normals[int(generator.integers(len(normals)))], None))
    x_BCHW = torch.cat([to_tensor(image) for image, _ in tiles]).contiguous(memory_format=torch.channels_last)
    return x_BCHW, torch.from_numpy(np.stack([mask for _, mask in tiles])[:, None].astype(np.float32))


def _loss(logits_B1HW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy + 1 - 2 sum(p m) / (sum p + sum m): the second term keeps small defects from being ignored."""
    p = torch.sigmoid(logits_B1HW)
    dice = 1 - (2 * (p * mask_B1HW).sum() + 1) / (p.sum() + mask_B1HW.sum() + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits_B1HW, mask_B1HW) + dice


def train_segmenter(
    pools: Sequence[Sequence[Marked]], normals: Sequence[np.ndarray], *, steps: int, seed: int, batch_size: int = 8,
    on_step: Callable[[int], None] = lambda step: None,
) -> nn.Module:  # fmt: skip
    """Train a segmenter for `steps` gradient steps of `batch_size` tiles: AdamW, one cycle to 3e-3, cross entropy + Dice.

    Every pool of (uint8 image, mask) gives the same share of the defect tiles, however many pairs it holds. The paper uses the
    focal loss (gamma 2) and Adam at 1e-4, which needs far more steps. Raises `TrainingError` on a loss that is not finite.
    """
    model = segmenter(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 10) + 1, pct_start=0.25)
    for step in range(steps):
        x_BCHW, mask_B1HW = _batch(rng(seed, "tiles", step), pools, normals, batch_size)
        loss = _loss(model(x_BCHW), mask_B1HW)
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"segmenter, step {step}: the loss is {float(loss.detach())}; check the images")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1)
    return model


def _score(maps: Maps) -> dict[str, float]:
    scores = np.concatenate([scores.ravel() for _, scores, _ in maps])
    truth = np.concatenate([truth.ravel() for _, _, truth in maps])
    whole = np.array([image_score(scores) for _, scores, _ in maps])
    marked = np.array([truth.any() for _, _, truth in maps])
    return {
        "pixel_ap": average_precision(scores, truth), "pixel_auroc": auroc(scores, truth), "pixel_f1_max": f1_max(scores, truth),
        "image_auroc": auroc(whole, marked), "image_ap": average_precision(whole, marked) if not marked.all() else float("nan"),
    }  # fmt: skip


def _summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean with a 95 % t-interval, or with the range where there are fewer than 3 seeds; None where a value is not defined."""
    if not np.isfinite(values).all():
        return {"mean": None, "low": None, "high": None, "values": [v if math.isfinite(v) else None for v in values]}
    mean, low, high = float(np.mean(values)), min(values), max(values)
    if len(values) >= ENOUGH:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * float(stats.sem(values))
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def verdict(real: Sequence[float], ours: Sequence[float]) -> str:
    """Say in plain words whether generated pairs raise pixel AP (0..1; one value a seed, in the same order).

    From 3 seeds on by the 95 % t-interval of the paired differences; with fewer the difference alone, marked as no proof.
    """
    difference = _summary([b - a for a, b in zip(real, ours, strict=True)])
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    if mean is None:
        return "no verdict: pixel AP is not defined on these held-out images"
    if len(real) < ENOUGH:
        seeds = f"{len(real)} seed{'s' * (len(real) > 1)}"
        return f"pixel AP {mean:+.3f} with generated pairs ({seeds}: not a proof; run evaluate with more seeds)"
    figures = f"{mean:+.3f} pixel AP [{low:+.3f}, {high:+.3f}], 95 % interval over {len(real)} seeds"
    if low > 0:
        return f"use it: {figures}"
    return f"do not use it: {figures}" if high < 0 else f"no measurable difference: {figures}"


def _by_product(split: Split, generated: Sequence[Generated]) -> dict[str, list[list[Marked]]]:
    """For each product the real pool and the generated one."""
    pools: dict[str, list[list[Marked]]] = {shot.product: [[], []] for shot in split.shots}
    for shot in split.shots:
        pools[shot.product][0].append(load(shot))
    for (product, defect), image, pixels in generated:
        if product not in pools:
            raise DataError(f"generated {product}/{defect}: no such product in the split; known here: {', '.join(pools)}")
        if image.shape[:2] != pixels.shape:
            raise DataError(f"generated {product}/{defect}: a mask of {pixels.shape} for an image of {image.shape[:2]}")
        pools[product][1].append((image, Mask(pixels_HW=pixels, origin="generated")))
    for product, (_, made) in pools.items():
        if not made:
            raise DataError(f"{product}: no generated pair to compare with; generate some first")
    return pools


def compare(
    split: Split, generated: Sequence[Generated], *, steps: int = 150, seeds: Sequence[int] = (0,), batch_size: int = 8,
    lineage: Sequence[str] = (), progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one segmenter a product on shots + normals ("real-only") and one with generated pairs besides ("ours"); test both.

    Both arms have the same network, first weights, number of steps and seeds; with pairs, every other defect tile is a
    generated one. Held-out images are only tested on, after the last step: nothing is chosen by them. Figures are means over
    products, one value a seed; `per_defect` is over the images of that type and the product's held-out normals. `generated`
    holds ((product, defect), uint8 RGB image, bool mask); `lineage` the SHA-256 of each normal image's file that a pair was
    made on; `progress` hears (steps done, steps in all, what). The result is made of plain values (JSON).

    Raises `SplitError` where a pair or its normal image is held out, `DataError` on a product without pairs or test images.
    """
    if steps < 1 or batch_size < 2 or not seeds or len(set(seeds)) != len(seeds):
        raise DataError(f"expected steps >= 1, batch_size >= 2, seeds that differ; got {steps}, {batch_size}, {list(seeds)}")
    _guard(split, generated, lineage)
    pools = _by_product(split, generated)
    total, done = steps * len(seeds) * len(pools) * 2, 0
    found: dict[str, list[dict[str, float]]] = {REAL: [], OURS: []}  # by arm: one mapping a product and seed
    defects: dict[str, dict[str, list[float]]] = {}
    for product, (real, made) in pools.items():
        normals = [load_normal(item) for item in split.normals if item.product == product]
        tests = [(shot.defect, *load(shot)) for shot in split.held_out if shot.product == product]
        if not normals or not tests:
            raise DataError(f"{product}: needs normal images to train on and held-out defect images to test on")
        good = [load_normal(item) for item in split.held_out_normals if item.product == product]
        for seed in seeds:
            for arm, chosen in ((REAL, [real]), (OURS, [real, made])):

                def on_step(step: int, arm: str = arm, product: str = product, before: int = done) -> None:
                    if progress:
                        progress(before + step, total, f"{product}, {arm}")

                model = train_segmenter(
                    chosen, normals, steps=steps, seed=derive(seed, "segmenter", product), batch_size=batch_size, on_step=on_step
                )
                done += steps
                maps: Maps = [(defect, predict(model, image), mask.pixels_HW) for defect, image, mask in tests]
                maps += [("", predict(model, image), np.zeros(image.shape[:2], bool)) for image in good]
                found[arm].append(_score(maps))
                for defect in dict.fromkeys(defect for defect, _, _ in tests):
                    figure = _score([one for one in maps if one[0] in (defect, "")])["pixel_ap"]
                    defects.setdefault(f"{product}/{defect}", {}).setdefault(arm, []).append(figure)
    return _result(found, defects, split, steps, list(seeds))


def _result(
    found: Mapping[str, Sequence[Mapping[str, float]]], defects: Mapping[str, Mapping[str, list[float]]], split: Split,
    steps: int, seeds: list[int],
) -> dict[str, Any]:  # fmt: skip
    means = {
        arm: {name: [float(np.mean([row[name] for row in rows[i :: len(seeds)]])) for i in range(len(seeds))] for name in METRICS}
        for arm, rows in found.items()
    }
    return {
        "verdict": verdict(means[REAL]["pixel_ap"], means[OURS]["pixel_ap"]),
        "arms": {arm: {name: _summary(values) for name, values in metrics.items()} for arm, metrics in means.items()},
        "per_defect": {key: {arm: {"pixel_ap": _summary(v)} for arm, v in arms.items()} for key, arms in defects.items()},
        "n_test": len(split.held_out) + len(split.held_out_normals), "seeds": seeds, "steps": steps, "split_digest": split.digest,
    }  # fmt: skip
