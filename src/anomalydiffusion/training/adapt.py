"""Teach a small prior the normal surfaces of one user before defects are learned on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.pixels import digest_file, read_image
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.data.corpus import CorpusConfig
from anomalydiffusion.priors.files import learned_from, note_learned
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.measure import measure_denoiser
from anomalydiffusion.training.denoiser import DenoiserConfig
from anomalydiffusion.training.loop import LoopConfig, Progress
from anomalydiffusion.training.prior import PriorConfig, train_prior

__all__ = ["MOST", "AdaptConfig", "adapt_prior"]

MOST = 200  # images that are learned from: more of one camera's tell little
SIDE = 1024  # pixels of an image that are learned from at most, each way
HELD = 10  # one image in so many is held back, to measure on
SHAPES = 0.06  # share of binary shapes, which learned masks are drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """How a prior is adapted to normal images."""

    pictures: int = 2000  # crops that are learned from
    own: float = 0.8  # share of the user's own images among them; the rest are drawn, so that nothing is forgotten
    flawed: float = 0.35  # share of them that get a drawn and captioned defect: what defects are must not be forgotten either
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        if self.pictures < 20 or self.steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"pictures = {self.pictures}, steps = {self.steps}, batch_size = {self.batch_size}: expected at least 20, 1 and 1"
            )
        if not 0 < self.own <= 1 - SHAPES:
            raise ConfigError(f"own = {self.own}: expected above 0 and at most {1 - SHAPES:.2f}")
        if not 0 <= self.flawed <= 1:
            raise ConfigError(f"flawed = {self.flawed}: expected a share, 0..1")


def adapt_prior(
    images: Sequence[Path], name: str, start: str, output: Path, work: Path, config: AdaptConfig, *, seed: int = 0,
    groups: Sequence[str] | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Go on training the prior `start` on normal images, which are called `name`, into the folder `output`; resumable from `work`.

    The autoencoder is kept, so latents stay what they were. Of more than `MOST` images so many are drawn. One in ten is held back, with
    all that show the same part (`groups`, one a picture; None = each shows its own): `before` and `after` are how far the denoiser is
    from those (`priors.measure.measure_denoiser`; lower is better). Where the part with the fewest images has a third of all, images
    are held back whatever they show. Raises `DataError` where there are fewer than two images, `PriorError` on a prior that
    `train_prior` did not make.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} normal images: at least 2 are needed, one of them to measure on; give more")
    order = rng(seed, "adapt").permutation(len(images))[:MOST]
    held = _held_back(order.tolist(), None if groups is None else list(groups))
    learned = sorted(set(order.tolist()) - set(held))
    own = [(_window(images[row], seed, row), name) for row in learned]
    begun = load_prior(start)
    recipe = PriorConfig(
        seed=seed, start=start,
        corpus=CorpusConfig(
            pictures=config.pictures, size=begun.working_size, drawn=1 - SHAPES - config.own, shapes=SHAPES, flawed=config.flawed,
            scale=(0.7, 2.5), grey=0.0, camera=0.0,
        ),
        denoiser=DenoiserConfig(
            batch_size=config.batch_size,
            loop=LoopConfig(steps=config.steps, learning_rate=config.learning_rate, warmup=min(50, config.steps // 4), weight_decay=0.01,
                            average=0.99, checkpointing_steps=100, mixed_precision="auto"),
        ),
    )  # fmt: skip
    numbers = train_prior(recipe, output, work, textures=own, progress=progress)
    note_learned(output, learned_from(output) | {digest_file(images[row]) for row in learned})  # that of the start is there
    unseen = [_window(images[row], seed, row) for row in sorted(held)]
    adapted = load_prior(str(output))
    before, after = (measure_denoiser(each, unseen, f"a photo of {name}", seed=seed) for each in (begun, adapted))
    return {
        "images": len(learned), "held_back": len(held), "before": round(before, 5), "after": round(after, 5), "digest": adapted.digest,
        **numbers,
    }  # fmt: skip


def _held_back(order: Sequence[int], groups: Sequence[str] | None) -> list[int]:
    """One in ten of some rows at most, in whole groups; where all are larger the smallest; where that is a third or more, single rows."""
    wanted = max(1, len(order) // HELD)
    members: dict[str, list[int]] = {}
    for row in order:
        members.setdefault(str(row) if groups is None else groups[row], []).append(row)
    held: list[int] = []
    for together in members.values():
        held += together if len(held) + len(together) <= wanted else []
    smallest = min(members.values(), key=len)
    return held or (smallest if 3 * len(smallest) < len(order) else list(order[:wanted]))


def _window(path: Path, seed: int, row: int) -> np.ndarray:
    """A picture, or a random window of a very large one."""
    image, generator = read_image(path), rng(seed, "adapt", row)
    y, x = (int(generator.integers(max(1, length - SIDE + 1))) for length in image.shape[:2])
    return np.ascontiguousarray(image[y : y + SIDE, x : x + SIDE])
