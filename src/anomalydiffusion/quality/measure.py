"""Scores of a set of generated defects against real ones, and of real ones against real ones to read them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.errors import ExtractorError
from anomalydiffusion.core.shapes import Shape, measure, shape_distances
from anomalydiffusion.core.types import Mask
from anomalydiffusion.quality.features import FeatureExtractor
from anomalydiffusion.quality.scores import (
    inception_score,
    intra_cluster_distance,
    kid,
    mask_agreement,
    masked_features,
    masked_similarity,
    masked_spread,
    perceptual_distance,
)  # fmt: skip

__all__ = ["View", "measure_quality", "view"]

SIDE = 128  # pixels of a view
RATIO, LEAST = 2.0, 64  # a view's side over the longer side of the defect's box, and its least in the image's own pixels
SUBSETS = 50
SHAPES = ("area", "elongation", "parts", "margin")
FEWEST = 4  # images on a side from which KID is measured

Key = tuple[str, str]
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A defect and its surroundings, SIDE x SIDE; `agreement` how well its label covers what changed, NaN for a real one."""

    image_HWC: np.ndarray
    mask: Mask
    shape: Shape  # of the whole mask in the whole image
    agreement: float = math.nan


def view(image_HWC: np.ndarray, mask: Mask, normal_HWC: np.ndarray | None = None) -> View:
    """Look at a defect: a square twice as long as its box, at least 64 pixels, brought to 128.

    With the normal image that a pair was made on, `scores.mask_agreement` of the whole pair is taken down too.
    """
    box = crop_box(mask.box, mask.pixels_HW.shape, RATIO, LEAST)
    pixels = resize(extract(mask.pixels_HW, box), SIDE)
    agreement = math.nan if normal_HWC is None else mask_agreement(image_HWC, normal_HWC, mask)
    small = Mask(pixels_HW=pixels, origin=mask.origin)
    return View(image_HWC=resize(extract(image_HWC, box), SIDE), mask=small, shape=measure(mask), agreement=agreement)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Features:
    """What an extractor sees in some views; None where its network has no published use of a kind."""

    pooled: torch.Tensor | None
    probabilities: torch.Tensor | None
    maps: list[torch.Tensor] | None
    masked: torch.Tensor | None

    @classmethod
    def of(cls, views: Sequence[View], extractor: FeatureExtractor) -> _Features:
        images = [each.image_HWC for each in views]
        maps = _or_none(extractor.maps, images)
        return cls(pooled=_or_none(extractor.pooled, images), probabilities=_or_none(extractor.probabilities, images), maps=maps,
                   masked=None if maps is None else masked_features(maps, [each.mask for each in views]))  # fmt: skip


def _or_none(kind: Callable[[Sequence[np.ndarray]], Given], images: Sequence[np.ndarray]) -> Given | None:
    try:
        return kind(images)
    except ExtractorError:
        return None


def _plain(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    values = [mean, mean if low is None else low, mean if high is None else high]
    return dict(zip(("mean", "low", "high"), [v if math.isfinite(v) else None for v in values], strict=True))


def _scores(
    some: _Features, shots: _Features, real: _Features, extractor: FeatureExtractor, agreements: Sequence[float], seed: int
) -> dict[str, Any]:
    """All scores of one set. A figure that too few images leave undefined, or features that the extractor has not, is None."""
    near = spread = sure = varied = among = alike = math.nan
    band = [math.nan, math.nan]
    if some.pooled is not None and real.pooled is not None and (fewest := min(len(some.pooled), len(real.pooled))) >= FEWEST:
        near, spread = kid(some.pooled, real.pooled, subset_size=max(2, fewest // 2), subsets=SUBSETS, seed=seed)
    if some.probabilities is not None:
        sure = inception_score(some.probabilities, 1)[0]
    if some.maps is not None and shots.maps is not None:
        varied = intra_cluster_distance(
            *(perceptual_distance(some.maps, maps, extractor.layer_weights) for maps in (shots.maps, some.maps))
        )
    if some.masked is not None and real.masked is not None:
        likeness = masked_similarity(some.masked, real.masked)
        among, alike, band = masked_spread(some.masked), float(likeness.mean()), np.percentile(likeness.numpy(), [10, 90]).tolist()
    agreed = [each for each in agreements if math.isfinite(each)]
    return {
        "kid": _plain(near, near - spread, near + spread),
        "inception_score": _plain(sure),
        "ic_lpips": _plain(varied),
        "spread": _plain(among),
        "similarity": _plain(alike, *band),
        "mask_agreement": _plain(*([float(np.mean(agreed)), *np.percentile(agreed, [10, 90]).tolist()] if agreed else [math.nan])),
    }


def measure_quality(
    generated: Mapping[Key, Sequence[View]], shots: Mapping[Key, Sequence[View]], real: Mapping[Key, Sequence[View]],
    extractor: FeatureExtractor, *, others: Mapping[str, Mapping[Key, Sequence[View]]] | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure each defect type's generated views, and its held-out real ones as if they had been generated.

    `others`: views that were made by other means, by what these are called; they get rows of their own.

    `kid` against the held-out real views (for the row "real" the shots against them), its band one standard deviation over
    subsets; `inception_score`; `ic_lpips` around the shots; `spread` of what lies under the masks, among themselves, and its
    `similarity` to the nearest held-out real defect, its band the 10th to 90th percentile; `mask_agreement`, likewise. "arms" is
    the mean over types. Which extractor made the figures stands beside them: figures of different extractors, or of other views
    than these crops, do not compare.
    "masks" says how large, long, parted and near to the image's sides masks are (median, band as above), and how far from the
    shots' (`core.shapes.shape_distances`).
    Nothing is chosen by any of this. Types without generated, shot or real views are left out.
    """
    per_defect: dict[str, Any] = {}
    for key in sorted(key for key in generated if generated[key] and shots.get(key) and real.get(key)):
        few, held = (_Features.of(some[key], extractor) for some in (shots, real))
        made = {"ours": generated[key], **{name: some[key] for name, some in (others or {}).items() if some.get(key)}}
        per_defect["/".join(key)] = {
            "n_generated": len(generated[key]), "n_real": len(real[key]),
            "arms": {
                **{
                    name: _scores(_Features.of(some, extractor), few, held, extractor, [each.agreement for each in some], seed)
                    for name, some in made.items()
                },
                "real": {**_scores(held, few, held, extractor, [], seed), **_between(few, held, extractor, seed)},
            },
            "masks": {
                arm: _shapes([each.shape for each in views], [each.shape for each in shots[key]])
                for arm, views in {**made, "real": real[key], "shots": shots[key]}.items()
            },
        }  # fmt: skip
    blocks = [block["arms"] for block in per_defect.values()]
    return {"arms": {arm: _mean([block[arm] for block in blocks]) for arm in blocks[0] if all(arm in block for block in blocks)}
            if blocks else {},
            "per_defect": per_defect, "extractor": extractor.name, "view": SIDE}  # fmt: skip


def _shapes(some: Sequence[Shape], shots: Sequence[Shape]) -> dict[str, Any]:
    """Median and 10th to 90th percentile of each number of a mask, and the distance to the shots'."""
    bands = {name: np.percentile([getattr(shape, name) for shape in some], [50, 10, 90]).tolist() for name in SHAPES}
    return {**{name: _plain(*band) for name, band in bands.items()}, "distance": shape_distances(some, shots)}


def _between(few: _Features, held: _Features, extractor: FeatureExtractor, seed: int) -> dict[str, Any]:
    """What shots score against the held-out: the figures that a set cannot have against itself."""
    found = _scores(few, few, held, extractor, [], seed)
    return {name: found[name] for name in ("kid", "similarity")}


def _mean(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over defect types of each figure, its band left out; None where one type has none."""
    out = {}
    for name in blocks[0]:
        values = [block[name]["mean"] for block in blocks]
        out[name] = _plain(math.nan if any(value is None for value in values) else float(np.mean(values)))
    return out
