"""Pair -> Verdict: is the defect there, where its label says, like the real ones, and a new one?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.types import Mask, Pair, Verdict
from anomalydiffusion.quality.features import FeatureExtractor
from anomalydiffusion.quality.measure import view
from anomalydiffusion.quality.scores import FAINT, mask_agreement, mask_evenness, masked_features, masked_similarity

__all__ = ["Carried", "Exemplar", "Gate", "GateConfig", "Limits", "Reason", "reason_of", "visibility"]

SIDE = 32  # pixels of the thumbnails that are compared with the shots
FLIPS = [np.s_[::down, ::across] for down in (1, -1) for across in (1, -1)]  # those that shots are learned in
REACH = 8  # pixels from the label beyond which nothing may be seen to change
FEWEST = 3  # shots of a type, or carried ones, from which a limit is drawn
SPREAD = 0.05  # least deviation that a limit is drawn with: a few shots that are much alike do not forbid all others
SPREADS = {"evenness": 0.35}  # other ones, in their figure's own unit
RANGES = {"agreement": (0, 1), "similarity": (-1, 1), "margin": (-2, 2), "evenness": (-20, 0)}  # of what limits are drawn for

COPY_OF, LIKE = "near copy of ", "looks like "  # how reasons begin that go on with a name

Key = tuple[str, str]
Real = dict[str, tuple[float, float]]  # mean and deviation of what real defects score, by name


class Reason(StrEnum):
    """Why a pair is refused: the words of its verdict, without the name that some end with."""

    UNSEEN = "not visible"
    COPY = "near copy"
    STRAYED = "background changed"
    LABEL = "label does not fit what is seen"
    PART = "shows only in part"
    UNLIKE = "unlike the shots"
    OTHER = "looks like another type"


def reason_of(reason: str) -> str:
    """A verdict's reason without the name in it; what the gate does not say, such as a person's own, as it is."""
    if reason.startswith(COPY_OF):
        return Reason.COPY
    return Reason.OTHER if reason.startswith(LIKE) else reason


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """When a pair is kept."""

    visible: float = 1.0  # smoothed change in the mask over the normal variation around it
    change: float = 1.5  # smallest mean smoothed change in the mask, in Lab units
    copy: float = 0.985  # correlation with a shot's crop, mirrored or not, from which a pair counts as its copy
    strict: float = 3.0  # the limits below are this many deviations under the mean of what real defects score; 0 = none of them
    agreement: float | None = None  # least overlap (IoU) of the label with what is seen to change; None = from the shots
    similarity: float | None = None  # least likeness to the nearest shot of the type, as features see it; None = from the shots
    margin: float | None = None  # least of that likeness less the likeness to any other type; None = from the shots
    evenness: float | None = None  # least of how much its fainter half shows beside the other, in doublings; None = from the shots
    refit: bool = False  # labels are fitted to what is seen before they are judged

    def __post_init__(self) -> None:
        for name, (least, most) in {
            "visible": (0, math.inf),
            "change": (0, math.inf),
            "strict": (0, 100),
            "copy": (0, 1),
            **RANGES,
        }.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and least <= value <= most):
                raise ConfigError(f"{name} = {value}: expected {least}..{most}")
        if self.copy == 0:
            raise ConfigError("copy = 0: would refuse everything; expected above 0")

    @property
    def compares(self) -> bool:
        """Whether pairs are held against the shots by their features at all."""
        return self.strict > 0 or any(each is not None for each in (self.agreement, self.similarity, self.margin, self.evenness))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exemplar:
    """A shot that pairs are compared with; shots of one `group` show one part, and say nothing about each other."""

    image_HWC: np.ndarray
    mask: Mask
    name: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried:
    """A real defect of one `group`, laid under a mask of a normal image: its label is as right as a label can be."""

    image_HWC: np.ndarray
    normal_HWC: np.ndarray
    mask: Mask
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pair of one defect type must reach; None = anything goes."""

    agreement: float | None = None
    similarity: float | None = None
    margin: float | None = None
    evenness: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """What the gate keeps of a type's shots: thumbnails flips x SIDE x SIDE, features N x D, names and groups."""

    thumbnails: list[np.ndarray] = field(default_factory=list)
    features_ND: torch.Tensor | None = None
    names: list[str] = field(default_factory=list)


def _thumbnail(image_HWC: np.ndarray, mask: Mask) -> np.ndarray:
    box = crop_box(mask.box, mask.pixels_HW.shape[:2], 1.5, 24)
    grey = resize(np.ascontiguousarray(extract(image_HWC, box)), SIDE).astype(np.float64).mean(2)
    flat = grey - grey.mean()
    return flat / (np.linalg.norm(flat) + 1e-9)


def _thumbnails(image_HWC: np.ndarray, mask: Mask) -> np.ndarray:
    return np.stack([_thumbnail(image_HWC[flip], Mask(pixels_HW=mask.pixels_HW[flip], origin=mask.origin)) for flip in FLIPS])


def visibility(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask) -> tuple[float, float]:
    """(mean change inside the mask, normal variation around it), both in Lab units after smoothing by one pixel.

    The variation is the median change between the normal image and itself moved by 2 to 4 pixels, near the mask: what
    a person would call its texture.
    """
    x0, y0, x1, y1 = mask.box
    pad = 16 + max(x1 - x0, y1 - y0) // 4
    near = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    inside = mask.pixels_HW[near]
    after, before = rgb2lab(image_HWC[near]), rgb2lab(normal_HWC[near])
    change = float(_size(after - before)[inside].mean())
    shifts = [_size(before - np.roll(before, (dy, dx), (0, 1))) for dy, dx in ((0, 3), (3, 0), (2, 2))]
    return change, float(np.median([np.median(shift) for shift in shifts]))


def _size(difference_HWC: np.ndarray) -> np.ndarray:
    """Length of a Lab difference smoothed by one pixel."""
    return np.asarray(np.linalg.norm(ndimage.gaussian_filter(difference_HWC, (1.0, 1.0, 0.0)), axis=2))


def _strayed(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask) -> bool:
    """Whether anything is seen to change farther than `REACH` from the label."""
    moved = (image_HWC != normal_HWC).any(2)
    moved[mask.pixels_HW] = True
    x0, y0, x1, y1 = Mask(pixels_HW=moved, origin="moved").box
    near = np.s_[max(0, y0 - REACH) : y1 + REACH, max(0, x0 - REACH) : x1 + REACH]
    far = ndimage.distance_transform_edt(~mask.pixels_HW[near]) > REACH
    if not (moved[near] & far).any():
        return False
    return bool((_size(rgb2lab(image_HWC[near]) - rgb2lab(normal_HWC[near]))[far] > FAINT).any())


class Gate:
    """Judges pairs: visible, in its place, like the real defects of its type, and no copy of one.

    `shots` are the real defects of each type, `carried` some of them laid under masks on normal images, as good as pairs can be; one of
    those is looked at at a time.
    Besides the fixed thresholds of `GateConfig` there are limits that those set: `strict` deviations (of 0.05 at least, of 0.35 for the
    evenness) under the mean of what the carried defects score in

    - `agreement`: `scores.mask_agreement`;
    - `similarity`: `scores.masked_similarity` to the nearest shot of their type that shows another part;
    - `margin`: that less the similarity to the nearest shot of any other type of the product;
    - `evenness`: `scores.mask_evenness`.

    Types with fewer than 3 such figures, or with so scattered ones that nothing can lie below, have no limit of that kind; a figure in
    `GateConfig` takes its place.
    `extractor` is only asked for features where there are such limits. `real` holds, by type and name, mean and deviation of those
    figures; where an earlier gate's are given, nothing is carried.
    """

    def __init__(
        self, shots: Mapping[Key, Sequence[Exemplar]], carried: Mapping[Key, Iterable[Carried]], config: GateConfig,
        extractor: FeatureExtractor | None = None, *, real: Mapping[Key, Real] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.extractor = config, extractor if config.compares else None
        self.known = {
            key: _Known(
                thumbnails=[_thumbnails(each.image_HWC, each.mask) for each in own],
                features_ND=self._features([(each.image_HWC, each.mask) for each in own]),
                names=[each.name for each in own],
            )
            for key, own in shots.items()
        }
        self.real: dict[Key, Real] = (
            {key: self._real(key, [each.group for each in own], carried.get(key, ())) for key, own in shots.items()}
            if real is None else {key: dict(real[key]) for key in shots}
        )  # fmt: skip
        self.limits = {key: self._limits(key) for key in shots}

    def asking(self, config: GateConfig) -> Gate:
        """This gate with other settings, without a look at the shots again; it asks for no features where it asked for none before."""
        other = copy.copy(self)
        other.config, other.extractor = config, self.extractor if config.compares else None
        other.limits = {key: other._limits(key) for key in self.limits}
        return other

    def knowing(self, real: Mapping[Key, Real]) -> Gate:
        """This gate with other figures of what the real defects of some types score."""
        other = copy.copy(self)
        other.real = {**self.real, **real}
        other.limits = {key: other._limits(key) for key in self.limits}
        return other

    def depth(self, key: Key, measures: Mapping[str, float]) -> float:
        """How many deviations the lowest of a pair's figures lies under the mean of real defects: the least `strict` that keeps it.

        Below 0 where all lie above it, -inf where there is no figure to tell; those with a limit in `GateConfig` are left out.
        """
        real = {name: own for name, own in self.real.get(key, {}).items() if getattr(self.config, name) is None and name in measures}
        return max(((mean - measures[name]) / deviation for name, (mean, deviation) in real.items()), default=-math.inf)

    def _features(self, defects: Sequence[tuple[np.ndarray, Mask]]) -> torch.Tensor | None:
        if self.extractor is None or not defects:
            return None
        views = [view(image, mask) for image, mask in defects]
        return masked_features(self.extractor.maps([each.image_HWC for each in views]), [each.mask for each in views])

    def _real(self, key: Key, groups: Sequence[str], carried: Iterable[Carried]) -> Real:
        """Mean and deviation of what a type's carried defects score, where enough of them do; each is looked at once, and let go."""
        if self.extractor is None:
            return {}
        scored: dict[str, list[float]] = {"agreement": [], "similarity": [], "margin": [], "evenness": []}
        for each in carried:
            scored["agreement"].append(mask_agreement(each.image_HWC, each.normal_HWC, each.mask))
            scored["evenness"].append(mask_evenness(each.image_HWC, each.normal_HWC, each.mask))
            features = self._features([(each.image_HWC, each.mask)])
            assert features is not None
            own = self._likeness(key, features, [row for row, group in enumerate(groups) if group != each.group])
            if own is None:
                continue
            scored["similarity"].append(own)
            if others := [like for other in self._others(key) if (like := self._likeness(other, features)) is not None]:
                scored["margin"].append(own - max(others))
        return {
            name: (float(np.mean(own)), max(SPREADS.get(name, SPREAD), float(np.std(own, ddof=1))))
            for name, own in scored.items() if len(own) >= FEWEST
        }  # fmt: skip

    def _limits(self, key: Key) -> Limits:
        if self.extractor is None:
            return Limits()
        real = self.real[key] if self.config.strict else {}
        drawn = {name: mean - self.config.strict * deviation for name, (mean, deviation) in real.items()}
        drawn = {name: limit for name, limit in drawn.items() if limit > RANGES[name][0]}  # others refuse nothing
        given = {each.name: getattr(self.config, each.name) for each in fields(Limits)}
        return Limits(**{name: drawn.get(name) if value is None else value for name, value in given.items()})

    def _others(self, key: Key) -> list[Key]:
        return [other for other in self.known if other[0] == key[0] and other != key]

    def _likeness(self, key: Key, own_1D: torch.Tensor, rows: Sequence[int] | None = None) -> float | None:
        """The likeness of one defect to the nearest of a type's shots, or of those `rows`; None where there is none."""
        features = self.known[key].features_ND
        if features is None or (rows is not None and not rows):
            return None
        return float(masked_similarity(own_1D, features if rows is None else features[list(rows)])[0])

    def check(self, pair: Pair) -> Verdict:
        """Judge one pair. Where its type has no shots here it is only asked to be visible and to keep to its label."""
        key = (pair.provenance.product, pair.provenance.defect)
        known, limits = self.known.get(key, _Known()), self.limits.get(key, Limits())
        change, variation = visibility(pair.image_HWC, pair.normal_HWC, pair.mask)
        own = _thumbnail(pair.image_HWC, pair.mask)
        copies = [float((own * each).sum((1, 2)).max()) for each in known.thumbnails]
        nearest = int(np.argmax(copies)) if copies else -1
        measures = {"change": change, "variation": variation, "likeness": max(copies, default=0.0), **_grey(pair)}
        reasons: list[str] = []
        if change < self.config.change or change < self.config.visible * variation:
            reasons.append(Reason.UNSEEN)
        if copies and copies[nearest] >= self.config.copy:
            reasons.append(f"{COPY_OF}{known.names[nearest]}")
        if _strayed(pair.image_HWC, pair.normal_HWC, pair.requested):
            reasons.append(Reason.STRAYED)
        if self.extractor is not None:
            measures["agreement"] = mask_agreement(pair.image_HWC, pair.normal_HWC, pair.mask)
            if _below(measures["agreement"], limits.agreement):
                reasons.append(Reason.LABEL)
            measures["evenness"] = mask_evenness(pair.image_HWC, pair.normal_HWC, pair.mask)
            if _below(measures["evenness"], limits.evenness):
                reasons.append(Reason.PART)
            features = self._features([(pair.image_HWC, pair.mask)])
            assert features is not None
            reasons += self._unlike(key, features, limits, measures)
        return Verdict(keep=not reasons, reasons=tuple(reasons), measures={k: round(v, 4) for k, v in measures.items()})

    def _unlike(self, key: Key, own_1D: torch.Tensor, limits: Limits, measures: dict[str, float]) -> list[str]:
        """Why a defect is not like those of its type; its figures go into `measures`."""
        if key not in self.known or (own := self._likeness(key, own_1D)) is None:
            return []
        measures["similarity"] = own
        reasons: list[str] = [Reason.UNLIKE] if _below(own, limits.similarity) else []
        others = {other: like for other in self._others(key) if (like := self._likeness(other, own_1D)) is not None}
        if others:
            nearest = max(others, key=lambda other: others[other])
            measures["margin"] = own - others[nearest]
            if _below(measures["margin"], limits.margin):
                reasons.append(f"{LIKE}{nearest[1]}")
        return reasons


def _below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _grey(pair: Pair) -> dict[str, float]:
    """Mean change in grey levels inside the label, and outside of it over the whole image."""
    boxes = np.array([pair.provenance.touched_box, pair.mask.box])
    (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)  # beyond, nothing moved
    inside = pair.mask.pixels_HW[y0:y1, x0:x1]
    moved = np.abs(pair.image_HWC[y0:y1, x0:x1].astype(np.int16) - pair.normal_HWC[y0:y1, x0:x1]).mean(2)
    outside = pair.mask.pixels_HW.size - int(inside.sum())
    return {"grey_inside": float(moved[inside].mean()), "grey_outside": float(moved[~inside].sum()) / max(1, outside)}
