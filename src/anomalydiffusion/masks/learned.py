"""Propose masks that the prior draws from what it learned of the real ones [arXiv 2312.05767v2, masks].

A mask embedding is an adapter of its own, learned without a masked loss on pictures of the shots' masks, white on black.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.crops import shrunk
from anomalydiffusion.core.errors import ConfigError, MaskError
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.shapes import measure
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.masks.geometry import accept, largest
from anomalydiffusion.masks.placing import put_inside
from anomalydiffusion.priors.samples import from_noise, spoken

__all__ = ["LearnedConfig", "draw_shape", "pictures", "propose"]

ROOM = 1.25  # side of a defect's frame over the longer side of its box
SIZES = 1.2  # most that a drawn shape is larger or smaller than the reference whose size it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedConfig:
    """How masks are drawn."""

    steps: int = 20
    guidance: float = 2.0  # 1 = none
    threshold: float = 0.5  # grey level, 0..1, above which a pixel is marked
    frame: Literal["defect", "image"] = "defect"  # defect: a shape, to be placed on the object; image: all marks where they were learned
    area: tuple[float, float] = (0.5, 2.0)  # of the smallest and the largest area of the shots' masks; (0, inf): any
    border: float = 0.5  # largest share of one side of the picture that may be marked
    tries: int = 12

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tries < 1 or not 0 < self.threshold < 1 or not 0 <= self.guidance <= 100:
            raise ConfigError("learned masks: steps and tries at least 1, threshold within 0..1, guidance 0..100")
        if not 0 <= self.border <= 1:
            raise ConfigError(f"learned masks: border = {self.border}: expected a share, 0..1")
        if len(self.area) != 2 or not 0 <= self.area[0] <= 1 <= self.area[1]:
            raise ConfigError(f"learned masks: area = {list(self.area)}, expected (low, high) with 0 <= low <= 1 <= high")


def _longer(mask: Mask) -> int:
    """Pixels of the longer side of a mask's box."""
    x0, y0, x1, y1 = mask.box
    return max(x1 - x0, y1 - y0)


def _scaled(marks_HW: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Marks in another size: none is lost where they shrink, edges stay smooth where they grow."""
    if size_wh[0] < marks_HW.shape[1] or size_wh[1] < marks_HW.shape[0]:
        return shrunk(marks_HW, size_wh)
    return np.asarray(Image.fromarray(marks_HW.astype(np.uint8) * 255).resize(size_wh, Image.Resampling.BICUBIC)) > 127


def pictures(references: Sequence[Mask], config: LearnedConfig, size: int) -> list[tuple[np.ndarray, Mask]]:
    """The masks of one defect type as what is learned: square pictures of `size` pixels, white on black, each with its own marks.

    `frame = "defect"`: each mask in the middle, its longer side four fifths of the picture's, so that shapes are learned apart
    from sizes; "image": the whole image's mask, squeezed to a square.
    """
    out = []
    for mask in references:
        whole = mask.pixels_HW
        if config.frame == "defect":
            side, (x0, y0, x1, y1) = round(ROOM * _longer(mask)) + 1, mask.box
            whole = np.zeros((side, side), bool)
            y, x = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
            whole[y : y + y1 - y0, x : x + x1 - x0] = mask.pixels_HW[y0:y1, x0:x1]
        marks = _scaled(whole, (size, size))
        picture = np.repeat(marks[..., None].astype(np.uint8) * 255, 3, axis=2)
        out.append((picture, Mask(pixels_HW=marks, origin=mask.origin)))
    return out


@torch.no_grad()
def draw_shape(adapter: Adapter, key: tuple[str, str], *, seed: int, steps: int, guidance: float) -> np.ndarray:
    """Draw one mask of a defect type as a grey picture: uint8 S x S, S the prior's working size.

    Follows `f_empty + guidance (f_learned - f_empty)`, `f_empty` the adapter's answer to no words: without LoRA that is the prior's,
    as in the paper; with it, what all types have in common, so that guidance brings out what is this type's own.
    """
    prior = adapter.prior
    unused = torch.zeros(1, 1, prior.working_size, prior.working_size, device=prior.device)
    learned, empty = adapter.context([key], unused), spoken(prior, "")

    def answer(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told = adapter.predict(z, t, learned)
        return told if guidance == 1 else adapter.predict(z, t, empty).lerp(told, guidance)

    return np.asarray(Image.fromarray(from_noise(prior, answer, seed=seed, steps=steps)).convert("L"))


def _sized(shape_HW: np.ndarray, references: Sequence[Mask], random: np.random.Generator) -> np.ndarray:
    """A shape cut out and brought to about the size of a random reference."""
    if not shape_HW.any():
        return shape_HW
    x0, y0, x1, y1 = Mask(pixels_HW=shape_HW, origin="learned").box
    longer = _longer(references[int(random.integers(len(references)))]) * SIZES ** random.uniform(-1, 1)
    factor = longer / max(x1 - x0, y1 - y0)
    return _scaled(shape_HW[y0:y1, x0:x1], (max(1, round(factor * (x1 - x0))), max(1, round(factor * (y1 - y0)))))


def propose(
    adapter: Adapter, key: tuple[str, str], references: Sequence[Mask], normal_HWC: np.ndarray, *, seed: int, image: str = "",
    config: LearnedConfig | None = None, foreground_HW: np.ndarray | None = None,
) -> Mask:  # fmt: skip
    """Draw a mask for a normal image from a mask embedding, cut it at `threshold` and put it on the object.

    With `frame = "defect"` the drawing gives the shape, a random reference the size (up to a fifth more or less), and a shape
    keeps no more parts, the largest, than a reference has. What is empty, of an area far from the `references`', larger than the
    object or lies off it, covers most of a side or of the picture, is drawn again with another seed. `image` is part of the
    seed: another image gets other drawings. Raises `MaskError` when `config.tries` drawings are refused.
    """
    config = config or LearnedConfig()
    ground = foreground(normal_HWC) if foreground_HW is None else foreground_HW
    areas = [mask.area if config.frame == "image" else float(mask.pixels_HW.sum()) for mask in references]
    most = max(measure(mask).parts for mask in references)
    refused: Counter[str] = Counter()
    for attempt in range(config.tries):
        own = derive(seed, "mask", "learned", image, attempt)
        drawn = draw_shape(adapter, key, seed=own, steps=config.steps, guidance=config.guidance)
        if config.frame == "image":
            size = ground.shape[1], ground.shape[0]
            marks = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.BILINEAR)) > 255 * config.threshold
        else:
            marks = _sized(largest(drawn > 255 * config.threshold, most), references, rng(own, "size"))
        found = marks.mean() if config.frame == "image" else marks.sum()
        pixels: np.ndarray | str = marks
        if not marks.any():
            pixels = "is empty"
        elif not config.area[0] * min(areas) <= found <= config.area[1] * max(areas):
            pixels = "has an area that no reference has"
        elif config.frame == "defect":
            pixels = put_inside(marks, ground, rng(own, "place"))
        if not isinstance(pixels, str):
            mask = Mask(pixels_HW=pixels, origin="learned", seed=seed)
            reason = accept(mask, foreground_HW=ground, max_border=config.border)
            if reason is None:
                return mask
            pixels = reason.split(" (")[0]
        refused[pixels] += 1
    reason, times = refused.most_common(1)[0]
    raise MaskError(
        f"no learned mask fits this {normal_HWC.shape[1]} x {normal_HWC.shape[0]} image: {times} of {config.tries} drawings of "
        f"{'/'.join(key)} failed because the mask {reason}; learn the masks for more steps, or take warped ones"
    )
