"""How well scores tell defect from normal: area under ROC, average precision, best F1."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalydiffusion.core.errors import DataError

__all__ = ["auroc", "average_precision", "f1_max"]


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


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a defect scores higher than a normal item, 0..1; equal scores count half, so a constant gives 0.5.

    `scores`: any finite numbers, higher = more defect; `truth`: bool of the same shape. Pixels or images alike.
    NaN where there is no defect or no normal item. Raises `DataError` on unlike shapes, none at all, scores not finite.
    """
    scores, truth = _flat(scores, truth)
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else float("nan")


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Sum over all thresholds of (R_n - R_(n-1)) P_n, 0..1: not interpolated; a constant gives the share of defects.

    NaN where there is no defect; 1 where there is nothing else. Arrays and errors as in `auroc`.
    """
    scores, truth = _flat(scores, truth)
    return float(average_precision_score(truth, scores)) if truth.any() else float("nan")


def f1_max(scores: np.ndarray, truth: np.ndarray) -> float:
    """The best 2 P R / (P + R) over every threshold that the scores offer, 0..1, not over a grid of them.

    NaN where there is no defect. Arrays and errors as in `auroc`.
    """
    scores, truth = _flat(scores, truth)
    if not truth.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(truth, scores)
    total = precision + recall
    return float(np.max(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)))
