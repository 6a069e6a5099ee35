"""What the pairs of a run are made of: normal images, masks and the shots they must not copy."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from anomalydiffusion.app.settings import Settings
from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.pixels import digest_file, read_image, read_mask
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.folders import SUFFIXES, load
from anomalydiffusion.generation.pairs import Item
from anomalydiffusion.generation.shards import Task
from anomalydiffusion.masks.geometry import foreground
from anomalydiffusion.masks.warped import propose
from anomalydiffusion.quality.gate import reference

__all__ = ["Source", "shots_of"]

Key = tuple[str, str]


def shots_of(split: Split) -> dict[Key, list[tuple[np.ndarray, Mask]]]:
    """The pixels of a split's shots, by defect type."""
    out: dict[Key, list[tuple[np.ndarray, Mask]]] = {}
    for shot in split.shots:
        out.setdefault(shot.key, []).append(load(shot))
    return out


class Source:
    """Normal images, references and mask proposals of a run, each read once."""

    def __init__(self, split: Split, settings: Settings, normals: Path | None, given_masks: Path | None) -> None:
        self.settings = settings
        self.shots = shots_of(split)
        self.grounds = {key: [foreground(image) for image, _ in items] for key, items in self.shots.items()}
        self.references = {
            key: [
                reference(image, mask, shot.path.name)
                for (image, mask), shot in zip(items, [s for s in split.shots if s.key == key], strict=True)
            ]
            for key, items in self.shots.items()
        }
        self.normals: dict[str, list[tuple[Path, str]]] = {}
        for product in {key[0] for key in self.shots}:
            if normals is None:
                self.normals[product] = [(n.path, split.sha256[n.path]) for n in split.normals if n.product == product]
            else:
                files = sorted(p for p in normals.iterdir() if p.suffix.lower() in SUFFIXES) if normals.is_dir() else []
                held = {split.sha256[path] for path in split.tested}
                self.normals[product] = [(p, digest_file(p)) for p in files]
                if both := [p for p, sha in self.normals[product] if sha in held]:
                    raise DataError(f"{both[0]}: is held out for testing; take it out of --normals")
            if not self.normals[product]:
                raise DataError(
                    f"{normals or product}: no normal images to generate on; add some to {product}/train/good or give --normals"
                )
        self.masks = None
        if given_masks is not None:
            self.masks = sorted(p for p in given_masks.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not self.masks:
                raise DataError(f"{given_masks}: no masks found; give a folder of PNG files")
        self.image = lru_cache(maxsize=8)(read_image)  # an image may have 60 megapixels
        self.ground = lru_cache(maxsize=8)(lambda path: foreground(self.image(path)))

    def item(self, task: Task) -> Item:
        """Choose a normal image and a mask for one attempt, from its seed alone."""
        key = task.slot.key
        files = self.normals[key[0]]
        path, sha = files[int(rng(task.seed, "normal").integers(len(files)))]
        image = self.image(path)
        return Item(
            key=key,
            normal_HWC=image,
            normal=str(path),
            normal_sha256=sha,
            mask=self.mask(task, path),
            seed=task.seed,
            attempt=task.attempt,
        )

    def mask(self, task: Task, normal: Path) -> Mask:
        if self.masks is None:
            references = [mask for _, mask in self.shots[task.slot.key]]
            try:
                return propose(references, self.image(normal), seed=task.seed, config=self.settings.masks,
                               foreground_HW=self.ground(normal), reference_foregrounds=self.grounds[task.slot.key])  # fmt: skip
            except MaskError as error:
                raise MaskError(f"{normal}: {error}") from error
        path = self.masks[task.slot.index % len(self.masks)]
        pixels = read_mask(path)
        if pixels.shape != self.image(normal).shape[:2]:
            height, width = self.image(normal).shape[:2]
            raise MaskError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]}, but {normal.name} is {width} x {height}; "
                "masks must have the size of the normal images"
            )
        if not pixels.any():
            raise MaskError(f"{path}: marks no pixel; draw the defect or take the file away")
        return Mask(pixels_HW=pixels, origin="user", seed=task.seed)
