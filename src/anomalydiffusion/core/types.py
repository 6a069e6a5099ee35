"""The nouns that travel between the floors; an impossible one cannot be built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.core.errors import DataError, MaskError

__all__ = ["Box", "DefectSet", "Mask", "Normal", "Pair", "Product", "Provenance", "Shot", "Split", "Verdict"]

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; x1 and y1 are outside


def _check_image(image_HWC: np.ndarray, what: str) -> None:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise DataError(f"{what}: expected a uint8 RGB image, got {image_HWC.dtype} of shape {image_HWC.shape}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """Where a defect is: bool H x W, never empty. `origin` says who drew it ("real", "warped", "matched", "user", "file").

    A mask that was warped from another one may know from which: number `reference`, and for each of its N marked pixels, in reading
    order, where that was in it: `trace`, 2 x N rows and columns.
    """

    pixels_HW: np.ndarray
    origin: str
    seed: int = 0
    reference: int = -1  # not known
    trace: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pixels_HW.dtype != bool or self.pixels_HW.ndim != 2:
            raise MaskError(f"{self.origin} mask: expected bool H x W, got {self.pixels_HW.dtype} {self.pixels_HW.shape}")
        if not self.pixels_HW.any():
            raise MaskError(f"{self.origin} mask (seed {self.seed}) marks no pixel")

    @property
    def box(self) -> Box:
        """The smallest box around all marked pixels."""
        rows, columns = np.flatnonzero(self.pixels_HW.any(1)), np.flatnonzero(self.pixels_HW.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def area(self) -> float:
        """Share of the image that is marked, 0..1."""
        return float(self.pixels_HW.mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shot:
    """One real defect image with its mask, on disk; `load` in `data.folders` reads the pixels."""

    product: str
    defect: str
    path: Path
    mask_path: Path
    group: str

    @property
    def key(self) -> tuple[str, str]:
        return self.product, self.defect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normal:
    """One real image without a defect, on disk."""

    product: str
    path: Path
    group: str
    part: str  # "train" or "test": the folder that it lies in


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product of a data set: its normal images and its defect images by type, both in natural order."""

    name: str
    normals: tuple[Normal, ...]
    defects: dict[str, tuple[Shot, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectSet:
    """A data set on disk."""

    root: Path
    products: dict[str, Product]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Who may be learned from and who is only ever tested on; `sha256` maps every path to its file's hash."""

    shots: tuple[Shot, ...]
    held_out: tuple[Shot, ...]
    normals: tuple[Normal, ...]
    held_out_normals: tuple[Normal, ...]
    sha256: dict[Path, str]
    digest: str

    def __post_init__(self) -> None:
        learned = {self.sha256[path] for path in [*(shot.path for shot in self.shots), *(normal.path for normal in self.normals)]}
        tested = {self.sha256[path] for path in self.tested}
        if both := learned & tested:
            names = [str(path) for path, digest in self.sha256.items() if digest in both]
            raise DataError(f"the same content is on both sides of the split: {', '.join(names[:6])}; remove the copies")

    @property
    def tested(self) -> list[Path]:
        """Every image that is only ever tested on."""
        return [*(shot.path for shot in self.held_out), *(normal.path for normal in self.held_out_normals)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a generated pair comes from: enough to make it again."""

    product: str
    defect: str
    seed: int
    attempt: int
    normal: str
    normal_sha256: str
    mask_origin: str
    touched_box: Box
    prior_digest: str
    adapter_digest: str
    config_digest: str
    steps: int
    severity: float
    version: str
    reference: str = ""  # the shot that the drawing started from; "" = from noise alone

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A generated image and its mask, of the size of the normal image they were made on."""

    image_HWC: np.ndarray
    mask: Mask
    normal_HWC: np.ndarray
    requested: Mask
    provenance: Provenance

    def __post_init__(self) -> None:
        _check_image(self.image_HWC, "generated image")
        sizes = {self.image_HWC.shape[:2], self.normal_HWC.shape[:2], self.mask.pixels_HW.shape, self.requested.pixels_HW.shape}
        if len(sizes) != 1:
            raise DataError(f"image, normal and masks of a pair differ in size: {sorted(sizes)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's word on one pair."""

    keep: bool
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)
