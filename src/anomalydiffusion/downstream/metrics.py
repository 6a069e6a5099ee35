"""How well a detector tells defect from normal, finds where a defect is and names its type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.shapes import EIGHT

__all__ = ["accuracy", "auroc", "average_precision", "f1_max", "f1_threshold", "iou", "per_class_accuracy", "precision_by_recall", "pro"]


def _flat(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as vectors. Raises `DataError` where they cannot be compared."""
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.shape != truth.shape or not scores.size:
        raise DataError(f"scores of shape {scores.shape} for a truth of shape {truth.shape}: give one score for each")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite; the detector went wrong")
    if truth.dtype != bool and not np.isin(truth, (0, 1)).all():
        raise DataError(f"a truth of {truth.dtype} with values other than 0 and 1; give bool, or 0 = normal and 1 = defect")
    return scores.ravel(), truth.ravel().astype(bool)


def _coded(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N codes, the numbers by code), rising: equal scores share a code. The 65,536 numbers of half precision need no sorting."""
    if scores.dtype != np.float16:
        numbers, codes = np.unique(scores, return_inverse=True)
        return codes.ravel(), numbers
    bits = (scores + np.float16(0)).view(np.uint16)  # -0 becomes 0
    every = np.arange(2**16, dtype=np.uint16)
    return np.where(bits >> 15, ~bits, bits | 0x8000), np.where(every >> 15, every & 0x7FFF, ~every).view(np.float16)


def _tally(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, defects, normal items): each distinct score, rising, and how many items of either kind have it."""
    scores, truth = _flat(scores, truth)
    codes, numbers = _coded(scores)
    defects, both = np.bincount(codes[truth], minlength=len(numbers)), np.bincount(codes, minlength=len(numbers))
    there = both > 0
    return numbers[there], defects[there], (both - defects)[there]


def _weighted(scores: np.ndarray, defects: np.ndarray, normals: np.ndarray) -> dict[str, np.ndarray]:
    """A tally as scikit-learn's weighted samples: each score as a defect and as a normal item."""
    truth, weight = np.repeat([True, False], len(scores)), np.append(defects, normals)
    return {"y_true": truth, "y_score": np.tile(scores.astype(np.float64), 2), "sample_weight": weight}


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a defect scores higher than a normal item, 0..1; equal scores count half, so a constant gives 0.5.

    `scores`: any finite numbers, higher = more defect; `truth`: bool of the same shape. Pixels or images alike; of half
    precision they are counted without sorting, much faster where there are millions.
    NaN where there is no defect or no normal item. Raises `DataError` on unlike shapes, none at all, scores not finite.
    """
    from sklearn.metrics import roc_auc_score

    numbers, defects, normals = _tally(scores, truth)
    return float(roc_auc_score(**_weighted(numbers, defects, normals))) if defects.any() and normals.any() else float("nan")


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Sum over all thresholds of (R_n - R_(n-1)) P_n, 0..1: not interpolated; a constant gives the share of defects.

    NaN where there is no defect; 1 where there is nothing else. Arrays and errors as in `auroc`.
    """
    from sklearn.metrics import average_precision_score

    numbers, defects, normals = _tally(scores, truth)
    return float(average_precision_score(**_weighted(numbers, defects, normals))) if defects.any() else float("nan")


def _f1(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every threshold, falling, and `2 P R / (P + R)` there."""
    numbers, defects, normals = (each[::-1] for each in _tally(scores, truth))
    found, called = np.cumsum(defects), np.cumsum(defects + normals)
    return numbers, 2 * found / (called + defects.sum())


def f1_max(scores: np.ndarray, truth: np.ndarray) -> float:
    """The best 2 P R / (P + R) over every threshold that the scores offer, 0..1, not over a grid of them.

    NaN where there is no defect. Arrays and errors as in `auroc`.
    """
    best = _f1(scores, truth)[1].max()
    return float(best) if np.any(truth) else float("nan")


def precision_by_recall(scores: np.ndarray, truth: np.ndarray, recalls: Sequence[float]) -> list[float]:
    """The precision-recall curve at given recalls: the best precision of any threshold that finds at least that share, 0..1 each.

    Falling, as PASCAL VOC's interpolated precision is; the area below it is a little above `average_precision`, which is not
    interpolated. `recalls`: shares of the defects, 0..1. NaN where there is no defect. Arrays and errors as in `auroc`.
    """
    _, defects, normals = (each[::-1] for each in _tally(scores, truth))
    found, called = np.cumsum(defects), np.cumsum(defects + normals)
    if not found[-1]:
        return [float("nan")] * len(recalls)
    best = np.maximum.accumulate((found / called)[::-1])[::-1]
    return [float(best[index]) for index in np.searchsorted(found / found[-1], recalls)]


def f1_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The threshold that attains `f1_max`, one of the scores: call a defect what scores at least this much.

    The highest where several attain it, so that the fewest items are called defects. NaN where there is no defect.
    Arrays and errors as in `auroc`. Chosen on the data that it is tested on it flatters: take it from validation data.
    """
    numbers, f1 = _f1(scores, truth)
    return float(numbers[np.argmax(f1)]) if np.any(truth) else float("nan")


def pro(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray], *, limit: float = 0.3) -> float:
    """Per-region overlap: how much of each defect is found, a small one counting as much as a large one, 0..1.

    `1 / limit * integral from 0 to limit of PRO(FPR) dFPR`, where PRO is the mean over all regions (8-connected parts of
    the truths) of the share of the region that scores at least the threshold, and FPR that share of all normal pixels of all
    images together [Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021]. Exact: every score is a threshold,
    equal scores move together, and the curve, which starts at (0, 0), is straight between two thresholds and cut at `limit`
    itself. So the truth as its own map gives 1, a constant map limit / 2, the inverted truth 0.

    `maps`: H x W, any finite numbers, higher = more defect, comparable between images; `truths`: bool of the same shapes,
    which may differ from image to image. NaN where there is no region or no normal pixel. Raises `DataError` on unlike
    shapes or numbers, no image, scores not finite, a `limit` outside 0..1.
    """
    if len(maps) != len(truths) or not len(maps):
        raise DataError(f"{len(maps)} maps for {len(truths)} truths: give one map for each")
    if not 0 < limit <= 1:
        raise DataError(f"a false positive rate limit of {limit}; expected 0 < limit <= 1")
    scores, regions, count = [], [], 0
    for map_HW, truth_HW in zip(maps, truths, strict=True):
        if np.ndim(map_HW) != 2:
            raise DataError(f"a map of shape {np.shape(map_HW)}: expected H x W")
        flat, truth = _flat(map_HW, truth_HW)
        labels, found = ndimage.label(truth.reshape(np.shape(truth_HW)), EIGHT)
        scores.append(flat)
        regions.append(np.where(truth, labels.ravel() + count, 0))
        count += found
    region = np.concatenate(regions)
    sizes = np.bincount(region, minlength=count + 1)
    if not count or not sizes[0]:
        return float("nan")
    codes, numbers = _coded(np.concatenate(scores))
    share = 1 / (count * sizes)  # what one pixel of each region adds to the mean overlap
    share[0] = 0
    found_by = np.bincount(codes, share[region], minlength=len(numbers))[::-1].cumsum()
    false_by = np.bincount(codes[region == 0], minlength=len(numbers))[::-1].cumsum()
    overlap, rate = np.append(0, found_by), np.append(0, false_by) / sizes[0]
    inside = rate <= limit
    x, y = np.append(rate[inside], limit), np.append(overlap[inside], np.interp(limit, rate, overlap))
    return float(np.trapezoid(y, x) / limit)


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union `|A and B| / |A or B|` of two bool arrays of one shape, 0..1; NaN where both mark nothing.

    Raises `DataError` on unlike shapes, and on arrays that are not bool: put a threshold to scores first.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or predicted.dtype != bool or truth.dtype != bool:
        what = f"{predicted.dtype} of shape {predicted.shape} and {truth.dtype} of shape {truth.shape}"
        raise DataError(f"intersection over union of {what}: expected two bool arrays of one shape")
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else float("nan")


def _right(predicted: Sequence[str], truth: Sequence[str]) -> list[bool]:
    if len(predicted) != len(truth) or not len(truth):
        raise DataError(f"{len(predicted)} predicted classes for {len(truth)} items: give one class for each")
    return [guess == is_ for guess, is_ in zip(predicted, truth, strict=True)]


def accuracy(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Share of items whose class is named rightly, 0..1. Raises `DataError` on unlike numbers, or none at all."""
    return float(np.mean(_right(predicted, truth)))


def per_class_accuracy(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Share of each true class that is named rightly (its recall), 0..1, by name; their mean is the balanced accuracy.

    A class that is only ever predicted has no entry. Errors as in `accuracy`.
    """
    right = _right(predicted, truth)
    return {name: float(np.mean([hit for hit, is_ in zip(right, truth, strict=True) if is_ == name])) for name in sorted(set(truth))}
