"""(normal, mask, defect, seed) -> Pair, in batches whose size changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch

from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.crops import clusters, crop_box, extract, resize
from anomalydiffusion.core.errors import DataError, GenerationError
from anomalydiffusion.core.pixels import to_latent_mask, to_tensor
from anomalydiffusion.core.seeds import derive, rng, torch_noise
from anomalydiffusion.core.types import Box, Mask, Pair, Provenance
from anomalydiffusion.core.version import __version__
from anomalydiffusion.generation.compose import paste
from anomalydiffusion.generation.reweight import attention_gain
from anomalydiffusion.generation.settings import GenerateConfig, drawn_number
from anomalydiffusion.priors.base import Context, Estimate, Graft, Memory
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.sampling import sample, strided_steps

__all__ = ["Item", "make_pairs", "other_mask", "to_levels"]


OnStep = Callable[[int, int, torch.Tensor], torch.Tensor | None]  # what goes on from here; None = the latents as they are


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One pair to be made; its seed decides everything random in it."""

    key: tuple[str, str]
    normal_HWC: np.ndarray
    normal: str
    normal_sha256: str
    mask: Mask
    seed: int
    attempt: int = 0
    start_HWC: np.ndarray | None = None  # the normal image with a real defect under the mask; needed below a strength of 1
    shot: tuple[np.ndarray, Mask] | None = None  # the one that this defect is from, H x W x 3 with its mask; needed for `graft`
    other: Mask | None = None  # as `other_mask` finds it; needed for `interpolate`
    reference: str = ""  # and its name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """One group of an item's mask, to be drawn on its own crop."""

    item: Item
    strength: float
    severity: float

    @classmethod
    def of(cls, item: Item, config: GenerateConfig) -> _Part:
        return cls(item=item, **{name: drawn_number(getattr(config, name), item.seed, name) for name in ("strength", "severity")})

    def start(self) -> np.ndarray:
        """What the drawing begins from: at full strength nothing but noise, so the normal image stands for it.

        `severity` scales how far the real defect is from the normal image.
        """
        if self.strength == 1:
            return self.item.normal_HWC
        if self.item.start_HWC is None:
            raise GenerationError(f"strength = {self.strength}: give a start, a real defect under the mask; or a strength of 1")
        if self.severity == 1:
            return self.item.start_HWC
        normal = self.item.normal_HWC.astype(np.float64)
        return np.clip(normal + self.severity * (self.item.start_HWC - normal) + 0.5, 0, 255).astype(np.uint8)

    def first(self, steps: int) -> int:
        """The first of `steps` that is walked."""
        return 0 if self.strength == 1 else steps - max(1, round(self.strength * steps))


def _walk(parts: Sequence[_Part], config: GenerateConfig, train_steps: int) -> tuple[list[int], list[int]]:
    """The steps that are walked, and the one at which each part begins.

    One strength is the share of the schedule that is walked back, in as many steps as of `config.steps` fall to it, one at least. Of
    several strengths each begins at the nearest of `config.steps`.
    """
    if not isinstance(config.strength, tuple):
        steps = strided_steps(max(1, round(config.strength * train_steps)), max(1, round(config.strength * config.steps)))
        return steps, [steps[0]] * len(parts)
    every = strided_steps(train_steps, config.steps)
    firsts = [every[part.first(config.steps)] for part in parts]
    return [t for t in every if t <= max(firsts)], firsts


def make_pairs(
    prior: LatentPrior, adapter: Adapter, items: Sequence[Item], config: GenerateConfig, on_step: OnStep | None = None
) -> list[Pair]:  # fmt: skip
    """Generate one pair per item by blended latent diffusion on crops of each normal image.

    A mask whose parts lie far apart is drawn group by group, each on a crop of its own, so that none is too small to be
    seen; with `config.together` in one drawing, as published. All noise of an item comes from its seed alone, and a batch is
    always filled up to `config.batch_size`, so that an item is computed by the same kernels however many there are.
    `on_step(index, t, z)` is called after each step of each group of parts, with the latents, and may return others that it goes on
    with. Raises `GenerationError` for unknown defects or latents of another shape, `DataError` where a drawing is not finite.
    """
    if len(items) > config.batch_size:
        raise GenerationError(f"{len(items)} items do not fit a batch of {config.batch_size}")
    groups = [[item.mask] if config.together else clusters(item.mask, prior.working_size // 2) for item in items]
    wholes = [_Part.of(item, config) for item in items]
    images, boxes = [item.normal_HWC for item in items], [list[Box]() for _ in items]
    for turn in range(max(map(len, groups), default=0)):
        rows = [row for row, parts in enumerate(groups) if turn < len(parts)]
        seeds = [derive(items[row].seed, "group", turn) if turn else items[row].seed for row in rows]
        todo = [
            replace(wholes[row], item=replace(items[row], normal_HWC=images[row], mask=groups[row][turn], seed=seed))
            for row, seed in zip(rows, seeds, strict=True)
        ]
        for row, (image, touched) in zip(rows, _draw(prior, adapter, todo, config, on_step), strict=True):
            images[row] = image
            boxes[row].append(touched)
    pairs = []
    for item, whole, image, mine in zip(items, wholes, images, boxes, strict=True):
        x0, y0, x1, y1 = np.array(mine).T
        provenance = Provenance(
            product=item.key[0], defect=item.key[1], seed=item.seed, attempt=item.attempt, normal=item.normal,
            normal_sha256=item.normal_sha256, mask_origin=item.mask.origin,
            touched_box=(int(x0.min()), int(y0.min()), int(x1.max()), int(y1.max())), prior_digest=prior.digest,
            adapter_digest=adapter.digest, config_digest=digest(config), steps=config.steps, severity=whole.severity, version=__version__,
            reference=item.reference,
        )  # fmt: skip
        pairs.append(Pair(image_HWC=image, mask=item.mask, normal_HWC=item.normal_HWC, requested=item.mask, provenance=provenance))
    return pairs


@torch.no_grad()
def _draw(
    prior: LatentPrior, adapter: Adapter, parts: Sequence[_Part], config: GenerateConfig, on_step: OnStep | None
) -> list[tuple[np.ndarray, Box]]:  # fmt: skip
    """Draw a defect into one crop of each item's image; the new image and the box of what may have changed.

        z_{t-1} = p_theta(z_{t-1} | z_t, e) (.) m  +  q(y_{t-1} | y_0) (.) (1 - m)   [arXiv 2312.05767v2, generation]

    With `strength` 1 it begins from noise alone, as published; below, from a real defect under the mask, noised to that share of
    the schedule [SDEdit, arXiv 2108.01073]: how strong and how rough a defect is, is then the shots', and the prior redraws it.

    `p_theta` follows `f_prior + guidance severity (f_adapted - f_prior)`: a few shots teach a small prior a faint defect,
    and what tells it from the normal surface is the difference. Guidance may grow from attempt to attempt.
    """
    filled = [*parts, *[parts[-1]] * (config.batch_size - len(parts))]
    items = [part.item for part in filled]
    size, device, channels = prior.working_size, prior.device, prior.latent_channels
    boxes, views, marks, starts, ratios = [], [], [], [], []
    for part, item in zip(filled, items, strict=True):
        generator = rng(item.seed, "crop")
        ratio = float(np.exp(generator.uniform(*np.log(config.ratio))))
        place = (float(generator.uniform(0.2, 0.8)), float(generator.uniform(0.2, 0.8)))
        box = crop_box(item.mask.box, item.mask.pixels_HW.shape[:2], ratio, config.minimum_side, place)
        boxes.append(box)
        ratios.append(ratio)
        views.append(resize(extract(item.normal_HWC, box), size))
        marks.append(resize(extract(item.mask.pixels_HW, box), size))
        starts.append(resize(extract(part.start(), box), size))
    mask = torch.from_numpy(np.stack(marks))[:, None].float().to(device)
    latent_mask = to_latent_mask(mask, prior.factor, config.cells)
    pictures = torch.cat([to_tensor(view)[:1] for view in views]).to(device)
    normal = torch.cat([prior.encode(picture[None]) for picture in pictures])
    grid = (channels, *normal.shape[-2:])

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch.stack([torch_noise(grid, item.seed, purpose, t) for item in items]).to(device)

    tokens, keys = adapter.config.anomaly_tokens + adapter.config.spatial_tokens, [item.key for item in items]
    spread = config.condition_noise * adapter.tokens.spread(keys)
    jitter = torch.stack([torch_noise((tokens, prior.token_width), item.seed, "condition") for item in items]).to(device) * spread
    around = prior.surroundings(pictures, mask)
    toward = None if config.interpolate is None else _toward(prior, items, ratios, config, config.interpolate)
    context = adapter.context(keys, mask, jitter, around, toward=toward)
    graft = None if config.graft is None else _grafted(prior, items, ratios, config, config.graft, latent_mask, noise("graft", 0))
    weight = torch.tensor([config.guidance_at(part.item.attempt) * part.severity for part in filled], device=device)[:, None, None, None]
    plain = adapter.plain(len(filled)) if bool((weight != 1).any()) else None
    prior.all_said()
    gain: list[torch.Tensor | None] = [None]
    memories = (Memory(), Memory()) if (config.reuse or 1) > 1 else None  # of the adapted and of the frozen prediction
    own, frozen = memories or (None, None)
    asked = count()

    def denoise(z: torch.Tensor, t: torch.Tensor) -> Estimate:
        walked = next(asked)
        for memory in memories or ():
            memory.fresh = walked % (config.reuse or 1) == 0
        answer = adapter.predict(z, t, context, gain[0], graft, memory=own)
        if plain is not None:
            said = Context(tokens_BND=plain, surroundings=around)
            answer = adapter.frozen(z, t, said, memory=frozen).lerp(answer, weight.to(answer.dtype))
        return prior.estimate(z, answer, t)

    steps, firsts = _walk(filled, config, len(prior.alphas))
    began = torch.cat([prior.encode(to_tensor(start)) for start in starts]) if config.begins_from_real else normal
    alone = noise("start", 0)
    noised = [prior.noised(began[row : row + 1], alone[row : row + 1], torch.full((1,), t, device=device)) for row, t in enumerate(firsts)]
    first = torch.cat([alone[row : row + 1] if part.strength == 1 else noised[row] for row, part in enumerate(filled)])

    def blend(z: torch.Tensor, t: int, s: int, estimate: Estimate) -> torch.Tensor:
        if config.reweight == "preview":
            distance = (estimate.clean - normal).square().mean(1, keepdim=True)
            gain[0] = attention_gain(distance, latent_mask, bound=config.reweight_bound)
        elif config.reweight == "paper":  # decoded one by one, as at the end
            seen = torch.cat([prior.decode(estimate.clean[row : row + 1]) for row in range(len(filled))])
            gain[0] = attention_gain((seen - pictures).square().sum(1, keepdim=True), mask, bound=None)
        here = torch.full((len(filled),), max(s, 0), device=device)
        background = normal if s < 0 else prior.noised(normal, noise("background", s), here)
        z = z * latent_mask + background * (1 - latent_mask)
        if fresh := [row for row, begins in enumerate(firsts) if begins == s]:  # what these were drawn until now is of no account
            z[fresh] = first[fresh]
            if gain[0] is not None:
                gain[0][fresh] = 1.0
        other = None if on_step is None else on_step(steps.index(t), t, z)
        if other is not None and other.shape != z.shape:
            raise GenerationError(f"a callback gave latents of shape {tuple(other.shape)}, where {tuple(z.shape)} are needed")
        return z if other is None else other.to(z)

    z = sample(denoise, first, prior.alphas, steps, solver=config.solver or "ddim", eta=config.eta, noise=noise, after_step=blend,
               begins=firsts)  # fmt: skip
    if wrong := [row for row in range(len(parts)) if not bool(torch.isfinite(z[row]).all())]:
        raise DataError(f"{'/'.join(parts[wrong[0]].item.key)}: the denoiser's answer is not finite; lower guidance or severity, "
                        "or draw in another --dtype than float16")  # fmt: skip
    # one by one: the autoencoder is convolutional, a batch gains nothing on a CPU and costs memory everywhere
    out = []
    for row, part in enumerate(parts):
        drawn = to_levels(prior.decode(z[row : row + 1]))
        decoded = to_levels(prior.decode(began[row : row + 1]))
        measured = adapter.origin.measures.get("/".join(part.item.key), {}).get("grain", 1.0)
        grain = 1.0 if part.strength < 1 else config.handed_back(measured)
        out.append(
            paste(part.item.normal_HWC, drawn, decoded, starts[row], boxes[row], part.item.mask.pixels_HW,
                  width=config.feather, grain=grain, match=config.match, cell=prior.factor, start_HWC=part.start())
        )  # fmt: skip
    return out


def other_mask(shots: Sequence[tuple[np.ndarray, Mask]], seed: int, config: GenerateConfig) -> Mask | None:
    """The mask of a shot of the item's type, drawn from the item's seed; None where no condition goes to it."""
    return None if config.interpolate is None else shots[int(rng(seed, "other mask").integers(len(shots)))][1]


def _toward(
    prior: LatentPrior, items: Sequence[Item], ratios: Sequence[float], config: GenerateConfig, most: float
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Each item's other mask, seen as widely as its own, and how far its condition goes there."""
    marks = []
    for item, ratio in zip(items, ratios, strict=True):
        if item.other is None:
            raise GenerationError(f"interpolate = {most}: give another shot's mask; or leave interpolate away")
        box = crop_box(item.other.box, item.other.pixels_HW.shape, ratio, config.minimum_side)
        marks.append(resize(extract(item.other.pixels_HW, box), prior.working_size))
    shares = torch.tensor([drawn_number((0.0, most), item.seed, "interpolate") for item in items], device=prior.device)
    return torch.from_numpy(np.stack(marks))[:, None].float().to(prior.device), shares


def _grafted(
    prior: LatentPrior, items: Sequence[Item], ratios: Sequence[float], config: GenerateConfig, weight: float,
    here_B1hw: torch.Tensor, noise_BChw: torch.Tensor,
) -> Graft:  # fmt: skip
    """What drawings look at: each item's shot, cut out as widely around its defect as the item's crop is around its mask."""
    views, marks = [], []
    for item, ratio in zip(items, ratios, strict=True):
        if item.shot is None:
            raise GenerationError(f"graft = {weight}: give a shot, a real defect with its mask; or leave graft away")
        image, mask = item.shot
        box = crop_box(mask.box, mask.pixels_HW.shape, ratio, config.minimum_side)
        views.append(resize(extract(image, box), prior.working_size))
        marks.append(resize(extract(mask.pixels_HW, box), prior.working_size))
    there = torch.from_numpy(np.stack(marks))[:, None].float().to(prior.device)
    pictures = torch.cat([to_tensor(each)[:1] for each in views]).to(prior.device)
    return Graft(
        reference_BChw=torch.cat([prior.encode(each[None]) for each in pictures]), noise_BChw=noise_BChw, weight=weight,
        there_B1hw=to_latent_mask(there, prior.factor), here_B1hw=here_B1hw, surroundings=prior.surroundings(pictures, there),
    )  # fmt: skip


def to_levels(x_1CHW: torch.Tensor) -> np.ndarray:
    """-1..1 -> float 0..255, H x W x 3, clipped but not rounded: rounding belongs to the last step."""
    return ((x_1CHW[0].float().cpu() + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).double().numpy()
