"""How pairs are drawn: the settings of `[generate]`, refused where they make no sense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import Cells
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.generation.transplant import Seam
from anomalydiffusion.priors.sampling import Solver

__all__ = ["GenerateConfig", "drawn_number"]

Range = tuple[float, float]  # each pair draws its own number between the two, from its seed


def _ends(value: float | Range) -> Range:
    return (value, value) if isinstance(value, int | float) else value


def drawn_number(value: float | Range, seed: int, purpose: str) -> float:
    """A number, or of a range the one that a seed draws for a purpose."""
    return float(rng(seed, purpose).uniform(*value)) if isinstance(value, tuple) else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """How pairs are drawn."""

    steps: int = 20
    solver: Solver | None = None  # "dpm" goes by the last two estimates, and needs fewer steps; None = "ddim"
    eta: float = 1.0
    guidance: float = 2.0  # weight of the adapted prediction against the frozen prior's; 1 = the adapted one alone, as in the paper
    guidance_growth: float | None = None  # factor on guidance at each further attempt at a pair, up to 10; None = stays
    strength: float | Range = (
        0.1  # share of the noise that is walked back; 1 = from noise alone, as in the paper; below, from a real defect
    )
    severity: float | Range = 1.0  # 1 = as learned; a factor on guidance and start: below weaker, above stronger, 0 = as the prior draws
    ratio: tuple[float, float] = (1.8, 4.0)  # crop side over the longer side of the mask's box
    minimum_side: int = 64
    together: bool | None = None  # a mask's parts are drawn on one crop, however far apart; None = then each on its own
    cells: Cells | None = None  # of the latent grid, that are drawn anew: of "any" marked pixel, or by the "nearest"; None = any
    feather: float = 3.0  # pixels of the normal image
    seam: Seam = "membrane"  # how a real defect's colours are fitted to where it is carried; matched masks: always the median
    match: bool = True  # colours on the ring around the mask
    grain: Literal["measured", "full", "off"] = "measured"  # of the normal image, in what begins from noise alone
    reweight: Literal["paper", "preview", "off"] = "preview"  # distances between decoded images, between latents, or none
    reweight_bound: float = 4.0  # of `preview`
    condition_noise: float = 0.02
    interpolate: float | None = None  # 0..1: e_s goes up to so far, each pair its own way, to that of another shot's mask; None = stays
    graft: float | None = None  # 0..1: share of self-attention in the mask that looks at a real defect instead; None = not drawn beside it
    reuse: int | None = None  # the denoiser's inner levels, with their attention, are asked at every so many steps; None = at each
    batch_size: int = 8
    attempts: int = 5

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.solver not in (None, "ddim", "dpm"):
            raise ConfigError(f"solver '{self.solver}' is not known; known: ddim, dpm")
        if self.cells not in (None, "any", "nearest"):
            raise ConfigError(f"cells '{self.cells}' is not known; known: any, nearest")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta = {self.eta}: expected 0..1")
        if not 1 <= self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio = {self.ratio}: expected two rising, finite numbers of at least 1")
        for name, least in (("minimum_side", 1), ("feather", 0), ("reweight_bound", 0), ("condition_noise", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a finite number of at least {least}")
        low, high = _ends(self.strength)
        if not 0 < low <= high <= 1:
            raise ConfigError(f"strength = {self.strength}: expected above 0 and at most 1, or two such numbers that rise")
        low, high = _ends(self.severity)
        if not 0 <= low <= high <= 10:
            raise ConfigError(f"severity = {self.severity}: expected 0..10, or two such numbers that rise")
        if not 0 < self.guidance <= 10:
            raise ConfigError(f"guidance = {self.guidance}: expected above 0 and at most 10")
        if self.guidance_growth is not None and not 1 <= self.guidance_growth <= 10:
            raise ConfigError(f"guidance_growth = {self.guidance_growth}: expected 1..10, or leave it away")
        if self.reuse is not None and self.reuse < 1:
            raise ConfigError(f"reuse = {self.reuse}: expected at least 1, or leave it away")
        if (self.reuse or 1) > 1 and isinstance(self.strength, tuple):
            raise ConfigError("reuse goes by the steps of one strength: give strength as a number, or leave reuse away")
        for name in ("graft", "interpolate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value}: expected 0..1, or leave it away")

    def guidance_at(self, attempt: int) -> float:
        """The guidance of a pair's first attempt, 0, or of a further one."""
        return min(10.0, self.guidance * (self.guidance_growth or 1.0) ** attempt)

    def handed_back(self, measured: float) -> float:
        """The share of a normal image's grain that a drawing from noise gets, of a defect whose shots have that share of it."""
        return {"measured": measured, "full": 1.0, "off": 0.0}[self.grain]

    @property
    def begins_from_real(self) -> bool:
        """Whether some drawings begin from a real defect under the mask."""
        return _ends(self.strength)[0] < 1

    @property
    def needs_shot(self) -> bool:
        """Whether drawings need a real defect: to begin from, or to look at."""
        return self.begins_from_real or self.graft is not None
