"""Features in, float out: how near generated defects are to real ones, how varied, and how well their masks fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from torch import nn

from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask

__all__ = [
    "inception_score", "intra_cluster_distance", "kid", "mask_agreement", "mask_evenness", "masked_features", "masked_similarity",
    "masked_spread", "perceptual_distance",
]  # fmt: skip

WAYS = 8  # directions across which a mask is halved
FAINT = 1.5  # Lab units: a smoothed change below it is not seen; the gate asks for as much


def _table(values: torch.Tensor, what: str) -> torch.Tensor:
    """N x D finite numbers as float64. Raises `DataError` otherwise."""
    if values.ndim != 2 or not values.numel():
        raise DataError(f"{what} of shape {tuple(values.shape)}; one row for each image is needed")
    if not values.isfinite().all():
        raise DataError(f"{what}: {int((~values.isfinite()).sum())} of {values.numel()} numbers are not finite")
    return values.double()


def _mmd2(x_ND: torch.Tensor, y_ND: torch.Tensor) -> float:
    """Unbiased MMD^2 of two samples of one size: mean k(x, x') + mean k(y, y') - 2 mean k(x, y), x and x' never the same."""

    def kernel(a_ND: torch.Tensor, b_ND: torch.Tensor) -> torch.Tensor:
        return (a_ND @ b_ND.T / a_ND.shape[1] + 1) ** 3

    count = len(x_ND)
    within = [(k_NN.sum() - k_NN.trace()) / (count * (count - 1)) for k_NN in (kernel(x_ND, x_ND), kernel(y_ND, y_ND))]
    return float(within[0] + within[1] - 2 * kernel(x_ND, y_ND).mean())


def kid(features_a: torch.Tensor, features_b: torch.Tensor, *, subset_size: int, subsets: int, seed: int) -> tuple[float, float]:
    """Measure how far two laws are apart: (mean, standard deviation) of the unbiased MMD^2 over random subsets.

    k(x, y) = (x . y / D + 1)^3  [arXiv 1801.01401, Kernel Inception Distance]. Features are N x D and M x D. Near 0 for
    one law, and as often below it as above: the estimate has no bias, whatever the number of images. Not multiplied by
    100 or 1000. Subsets are drawn without replacement, so large ones overlap and their deviation tells too little: it is
    0 where a subset is everything. Raises `DataError` where either side has fewer images than a subset.
    """
    a_ND, b_MD = _table(features_a, "features"), _table(features_b, "features")
    if a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(f"features {a_ND.shape[1]} and {b_MD.shape[1]} wide; take both with one extractor")
    if subset_size < 2 or subsets < 1:
        raise DataError(f"KID over {subsets} subsets of {subset_size}; at least 1 subset of 2 is needed")
    if min(len(a_ND), len(b_MD)) < subset_size:
        raise DataError(f"KID over subsets of {subset_size} needs as many images on both sides, but {len(a_ND)} and {len(b_MD)} came")
    values = []
    for number in range(subsets):
        random = rng(seed, "kid", number)
        drawn = [side[torch.from_numpy(random.choice(len(side), subset_size, replace=False))] for side in (a_ND, b_MD)]
        values.append(_mmd2(*drawn))
    return float(np.mean(values)), float(np.std(values))


def inception_score(probabilities: torch.Tensor, splits: int) -> tuple[float, float]:
    """Measure how sure and how varied a classifier finds images: (mean, standard deviation) over `splits` neighbouring parts.

    exp(mean_x KL(p(y | x) || p(y)))  [arXiv 1606.03498]. Probabilities are N x K, rows summing to 1, in random order. From
    1 (all alike) to K, but never above the images in a part: compare equal numbers of images only. The paper takes 10
    parts of 5000. Raises `DataError` where rows are no probabilities or a part would be empty.
    """
    p_NK = _table(probabilities, "probabilities")
    if bool((p_NK < 0).any()) or bool(((p_NK.sum(1) - 1).abs() > 1e-3).any()):
        raise DataError("probabilities: every row must be at least 0 and sum to 1")
    if not 1 <= splits <= len(p_NK):
        raise DataError(f"inception score in {splits} parts of {len(p_NK)} images; give 1 to {len(p_NK)} parts")
    values = [float((torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))).sum(1).mean().exp()) for part in p_NK.tensor_split(splits)]
    return float(np.mean(values)), float(np.std(values))


def perceptual_distance(
    maps_a: Sequence[torch.Tensor], maps_b: Sequence[torch.Tensor], layer_weights: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Measure how unlike every image of one set looks to every image of another: N x M, at least 0; 0 for itself.

    d = sum_l mean_hw sum_c w_lc (a_lc - b_lc)^2, a and b of length 1 along the channels  [arXiv 1801.03924, LPIPS].
    Maps are an extractor's, of images of one size, `layer_weights` its own: with learned ones this is LPIPS, without them
    every channel counts 1 / layers, and d is 4 at most. Raises `DataError` where maps do not fit each other.
    """
    if not maps_a or len(maps_a) != len(maps_b) or any(a.shape[1:] != b.shape[1:] for a, b in zip(maps_a, maps_b, strict=True)):
        sizes = [[tuple(layer.shape) for layer in maps] for maps in (maps_a, maps_b)]
        raise DataError(f"feature maps {sizes[0]} and {sizes[1]}; take both with one extractor from images of one size")
    weights = layer_weights or [torch.full((layer.shape[1],), 1 / len(maps_a)) for layer in maps_a]
    if [len(each) for each in weights] != [layer.shape[1] for layer in maps_a]:
        raise DataError(f"weights for {[len(each) for each in weights]} channels, but maps have {[layer.shape[1] for layer in maps_a]}")
    total = torch.zeros(len(maps_a[0]), len(maps_b[0]))
    for a_NCHW, b_MCHW, weight_C in zip(maps_a, maps_b, weights, strict=True):
        root = (weight_C / a_NCHW[0, 0].numel()).sqrt()[:, None, None]
        rows = [(nn.functional.normalize(side, dim=1) * root).flatten(1) for side in (a_NCHW, b_MCHW)]
        total += torch.cdist(rows[0], rows[1], compute_mode="donot_use_mm_for_euclid_dist").square()  # the fast way loses small ones
    return total


def intra_cluster_distance(distance_to_shots_NM: torch.Tensor, pairwise_NN: torch.Tensor) -> float:
    """Measure how varied images are around the shots they were learned from: with LPIPS distances, this is IC-LPIPS.

    Every generated image joins its nearest shot; the mean distance between members of a cluster, averaged over clusters
    [arXiv 2104.06820]. 0 where each cluster holds copies. Clusters of fewer than two members are left out; NaN if none is
    left. Published figures resize to 256 x 256 and bound the members of a cluster, here all count. Raises `DataError`
    where the tables do not fit.
    """
    to_shots, pairwise = _table(distance_to_shots_NM, "distances to shots"), _table(pairwise_NN, "pairwise distances")
    if pairwise.shape != (len(to_shots), len(to_shots)):
        raise DataError(f"pairwise distances of shape {tuple(pairwise.shape)} for {len(to_shots)} images; a square table is needed")
    nearest, values = to_shots.argmin(1), []
    for shot in range(to_shots.shape[1]):
        members = torch.nonzero(nearest == shot)[:, 0]
        if len(members) >= 2:
            inside = pairwise[members][:, members]
            values.append(float((inside.sum() - inside.trace()) / (len(members) * (len(members) - 1))))
    return float(np.mean(values)) if values else float("nan")


def masked_features(maps: Sequence[torch.Tensor], masks: Sequence[Mask]) -> torch.Tensor:
    """Describe what lies under each mask: N x D, D the channels of all layers.

    The mask is average-pooled to a layer's cells, features are averaged with it as their weight and scaled to length 1,
    layers are joined. Maps are an extractor's, of N images of one size; masks are of those images. A border's cell counts
    by its marked share, but sees its surroundings too. Raises `MaskError` where masks do not fit each other or the maps.
    """
    sizes = {mask.pixels_HW.shape for mask in masks}
    if len(sizes) != 1 or any(len(layer) != len(masks) for layer in maps):
        raise MaskError(f"{len(masks)} masks of {len(sizes)} sizes for maps of {[len(layer) for layer in maps]} images; one size, one each")
    pixels_N1HW = torch.from_numpy(np.stack([mask.pixels_HW for mask in masks]))[:, None].float()
    out = []
    for layer_NCHW in maps:
        weight_N1HW = nn.functional.adaptive_avg_pool2d(pixels_N1HW, (layer_NCHW.shape[2], layer_NCHW.shape[3]))
        out.append(nn.functional.normalize((layer_NCHW * weight_N1HW).sum((2, 3)) / weight_N1HW.sum((2, 3)), dim=1))
    return torch.cat(out, 1)


def masked_similarity(generated_ND: torch.Tensor, real_MD: torch.Tensor) -> torch.Tensor:
    """Find how like the nearest real defect each generated one is: N cosines in -1..1, 1 = alike in every layer.

    Both sides are `masked_features` of one extractor, and may come from images of several sizes. Layers weigh the same.
    Our own measure: an extractor's features have much in common, so compare it with what a sound surface scores.
    """
    generated, real = _table(generated_ND, "generated features"), _table(real_MD, "real features")
    if generated.shape[1] != real.shape[1]:
        raise DataError(f"features {generated.shape[1]} and {real.shape[1]} wide; take both with one extractor")
    return (nn.functional.normalize(generated, dim=1) @ nn.functional.normalize(real, dim=1).T).amax(1).clamp(-1, 1).float()


def masked_spread(features_ND: torch.Tensor) -> float:
    """Measure how varied defects are among themselves: mean of 1 - cosine over all pairs, 0 (copies) to 2; NaN of fewer than two.

    Of `masked_features`, so surroundings count little, unlike in IC-LPIPS. Our own measure: read it by what real defects of the type
    score, of which photographs of one part are counted as they are.
    """
    features = nn.functional.normalize(_table(features_ND, "masked features"), dim=1)
    count = len(features)
    return float(1 - ((features @ features.T).sum() - count) / (count * (count - 1))) if count > 1 else float("nan")


def _halfway(values_HW: np.ndarray) -> float:
    """Otsu's threshold, as the middle between the means of its two classes: it lies there, but in a gap any place does as well."""
    threshold = float(threshold_otsu(values_HW))
    above = values_HW > threshold
    return float(values_HW[above].mean() + values_HW[~above].mean()) / 2 if above.any() else threshold


def mask_agreement(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask) -> float:
    """Measure how well a mask covers what changed between a normal image and one made on it (uint8 RGB): IoU, 0..1.

    The change is the length of the Lab difference, smoothed by one pixel and cut at Otsu's threshold, but not below
    `FAINT`. The mask is smoothed and cut likewise, so that one the change fills evenly gives 1, however thin; 0 where they
    do not meet. Both are looked at in the mask's box widened by half its longer side (at least 8 pixels): Otsu needs
    normal surface to tell from, and a change beyond is not seen. Raises `MaskError` where sizes differ.
    """
    x0, y0, x1, y1 = mask.box
    change, marks = _changed(image_HWC, normal_HWC, mask, max(8, max(x1 - x0, y1 - y0) // 2))
    soft = ndimage.gaussian_filter(marks.astype(np.float64), 1.0)
    changed, marked = change > max(_halfway(change), FAINT), soft > min(_halfway(soft), 0.5)
    return float((changed & marked).sum() / (changed | marked).sum())


def _changed(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of the Lab difference, smoothed by one pixel, and the mask, in the mask's box widened by `pad` pixels."""
    if image_HWC.shape != normal_HWC.shape or image_HWC.shape[:2] != mask.pixels_HW.shape:
        raise MaskError(f"a mask of {mask.pixels_HW.shape} for images of {image_HWC.shape} and {normal_HWC.shape}; one size is needed")
    x0, y0, x1, y1 = mask.box
    view = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    difference = rgb2lab(image_HWC[view]) - rgb2lab(normal_HWC[view])
    return np.linalg.norm(ndimage.gaussian_filter(difference, (1.0, 1.0, 0.0)), axis=2), mask.pixels_HW[view]


def mask_evenness(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask) -> float:
    """Measure how evenly a defect shows over its mask: how much fainter its fainter half is, in doublings; 0 = both alike, below worse.

    The mask is halved at the median across each of `WAYS` directions; of each half the mean change is taken (uint8 RGB, smoothed Lab as in
    `mask_agreement`), and the least of log2((weaker + c) / (stronger + c)) over the directions is returned, c = `FAINT` / 6, so that two
    halves that do not show are alike. Where a part of a defect was not drawn, the mask still fits what is seen to some degree, but one
    half of it shows next to nothing. Raises `MaskError` where sizes differ.
    """
    change, marks = _changed(image_HWC, normal_HWC, mask, 6)
    places, seen, found = np.argwhere(marks), change[marks], [0.0]
    for angle in np.linspace(0, np.pi, WAYS, endpoint=False):
        along = places @ np.array([np.sin(angle), np.cos(angle)])
        near = along <= np.median(along)
        if 0 < near.sum() < len(near):
            means = sorted((float(seen[near].mean()), float(seen[~near].mean())))
            found.append(float(np.log2((means[0] + FAINT / 6) / (means[1] + FAINT / 6))))
    return min(found)
