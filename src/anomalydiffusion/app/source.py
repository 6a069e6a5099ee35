"""What the pairs of a run are made of: normal images, masks and the shots that the gate holds them against."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from anomalydiffusion.app.given import given_masks_of, given_normals
from anomalydiffusion.app.limits import limits_json, real_in
from anomalydiffusion.app.settings import Drawing, Kind, Settings
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.pixels import digest_file, read_image, read_mask, read_size
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.core.version import __version__
from anomalydiffusion.data.folders import load
from anomalydiffusion.data.regions import Region, digest_of, ground_of, grounds_of, regions_of
from anomalydiffusion.generation.pairs import Item, other_mask
from anomalydiffusion.generation.shards import Slot, Task
from anomalydiffusion.generation.transplant import seen_through, transplant
from anomalydiffusion.masks import learned, matched, warped
from anomalydiffusion.quality.features import extractor
from anomalydiffusion.quality.gate import Carried, Exemplar, Gate
from anomalydiffusion.quality.places import Places

__all__ = ["Source", "laid_by", "shots_of"]

log = logging.getLogger(__name__)

Key = tuple[str, str]
TRIES = 8  # normal images that may be unusable, one after the other, before an attempt is given up
LAID = 4  # raised where the same settings lay real defects otherwise
CARRIED = 32  # shots of a type that are laid on normal images, for the gate to know what a right label scores


def shots_of(split: Split) -> dict[Key, list[tuple[np.ndarray, Mask]]]:
    """The pixels of a split's shots, by defect type. Raises `DataError` where a file is not the one that was split."""
    out: dict[Key, list[tuple[np.ndarray, Mask]]] = {}
    for shot in split.shots:
        for path in (shot.path, shot.mask_path):
            _same(path, split.sha256[path])
        out.setdefault(shot.key, []).append(load(shot))
    return out


def laid_by(settings: Settings, normals: Path | None, split: Split, regions: dict[str, dict[str, Region]]) -> str:
    """The digests of what decides where a run's real defects are laid on normal images, and how."""
    return f"{Drawing.of(settings, normals, None, '', digest_of(regions)).laying} {split.digest} {LAID}"


def _same(path: Path, sha256: str) -> None:
    if digest_file(path) != sha256:
        raise DataError(f"{path}: changed since the split was made; restore it, or train again into another folder")


class Source:
    """Normal images, references and masks of a run; the pictures in use are kept, a few at a time.

    `mask_adapter`: what draws learned masks; without it, masks are warped or matched ones.
    """

    def __init__(
        self, split: Split, settings: Settings, normals: Path | None, given_masks: Path | None, mask_adapter: Adapter | None = None
    ) -> None:
        self.settings, self.mask_adapter = settings, mask_adapter
        self.matched = settings.masks.matched or matched.MatchedConfig()
        self.shots = shots_of(split)
        self.regions = regions_of(split)
        self.grounds = {key: grounds_of(self.regions[key[0]], key[1], items) for key, items in self.shots.items()}
        self.names = {key: [str(shot.path) for shot in split.shots if shot.key == key] for key in self.shots}
        self.groups = {key: [shot.group for shot in split.shots if shot.key == key] for key in self.shots}
        given = None if normals is None else given_normals(normals, split)
        self.normals: dict[str, list[tuple[Path, str]]] = {}
        for product in {key[0] for key in self.shots}:
            self.normals[product] = given or [(n.path, split.sha256[n.path]) for n in split.normals if n.product == product]
            if not self.normals[product]:
                raise DataError(f"{product}: no normal images to generate on; add some to {product}/train/good or give --normals")
        self.masks = None if given_masks is None else given_masks_of(given_masks, self.shots, split)
        files = [(product, str(path), sha256) for product, own in sorted(self.normals.items()) for path, sha256 in own]
        told = (laid_by(settings, normals, split, self.regions), files, self.masks is None, __version__)
        self.laid_by = hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()[:16]  # what decides how real defects are laid
        self.passed_over = False  # whether one was not, for a file that could not be read
        self.named: set[Path] = set()  # unusable normal images that were warned of
        self.image = lru_cache(maxsize=8)(self._read)  # an image may have 60 megapixels
        self.ground_bits = lru_cache(maxsize=4096)(self._ground)
        self.size = lru_cache(maxsize=None)(_size)
        self.through = lru_cache(maxsize=None)(lambda key: seen_through(self.shots[key]))
        self.features = lru_cache(maxsize=1)(lambda: extractor("efficientnet-lite0"))
        self.places = lru_cache(maxsize=None)(lambda key: Places(self.shots[key], self.features()))
        self.looks = lru_cache(maxsize=None)(self._looks)

    def _read(self, path: Path, sha256: str) -> np.ndarray:
        _same(path, sha256)
        return read_image(path)

    def _ground(self, key: Key, path: Path, sha256: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """Where in a normal image a defect may lie, eight pixels to a byte, and its size."""
        found = ground_of(self.regions[key[0]], key[1], self.image(path, sha256))
        return np.packbits(found), found.shape

    def ground(self, key: Key, path: Path, sha256: str) -> np.ndarray:
        """Where in a normal image a defect may lie: bool H x W."""
        bits, shape = self.ground_bits(key, path, sha256)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)

    def item(self, task: Task) -> Item:
        """Choose a normal image and a mask for one attempt, from its seed and whose turn it is.

        With `masks.alike`, of so many random normal images the one that looks most like the picture of the `target`, and of so many
        warped masks on it the one whose surroundings are most like that shot's defect's. A normal image that cannot be used is named
        once and passed over. Raises the last error when `TRIES` in a row fail.
        """
        given = self._given(task)
        return self._on(task, *self._chosen(task, given, self.settings.masks.kind(task.slot.key)))

    def _chosen(self, task: Task, given: Mask | None, kind: Kind) -> tuple[Path, str, np.ndarray, Mask]:
        """A normal image and the mask on it: the first that can be used, or of several the one where a matched mask fits best."""
        problem: Exception = DataError(f"{task.slot.key[0]}: no normal image can be used")
        searched = self.matched.images if given is None and kind == "matched" else 1
        found: list[tuple[float, tuple[Path, str, np.ndarray, Mask]]] = []
        for _, (path, sha256) in zip(range(TRIES), self._likeliest(task, given), strict=False):
            try:
                image = self.image(path, sha256)
                mask, misfit = (given, 0.0) if given else self._proposed(task, path, sha256, kind)
            except (DataError, MaskError, OSError) as error:
                problem = error
                self.passed_over |= not isinstance(error, MaskError)
                if path not in self.named:
                    log.warning("%s; another normal image is taken", error)
                self.named.add(path)
                continue
            found.append((misfit, (path, sha256, image, mask)))
            if len(found) == searched:
                break
        if not found:
            raise problem
        return min(found, key=lambda each: each[0])[1]

    def item_on(self, task: Task, sha256: str) -> Item:
        """The same on the normal image of this hash. Raises `DataError` where there is none, or it was changed."""
        path = next((path for path, known in self.normals[task.slot.key[0]] if known == sha256), None)
        if path is None:
            raise DataError(
                f"no normal image of {task.slot.key[0]} has the SHA-256 {sha256[:16]}..; give the one that was drawn on: --normals"
            )
        image = self.image(path, sha256)
        return self._on(
            task, path, sha256, image, self._given(task) or self._proposed(task, path, sha256, self.settings.masks.kind(task.slot.key))[0]
        )

    def _on(self, task: Task, path: Path, sha256: str, image: np.ndarray, mask: Mask) -> Item:
        """One pair to be made, of a normal image and a mask."""
        start, shot, name = None, None, ""
        config, shots = self.settings.generate, self.shots[task.slot.key]
        if config.needs_shot:
            start, number = transplant(image, mask, shots, seed=task.seed, seam=config.seam, through=self.through(task.slot.key))
            shot, name = shots[number], self.names[task.slot.key][number]
        return Item(
            key=task.slot.key, normal_HWC=image, normal=str(path), normal_sha256=sha256, mask=mask, seed=task.seed,
            attempt=task.attempt, start_HWC=start, shot=shot, reference=name, other=other_mask(shots, task.seed, config),
        )  # fmt: skip

    def gate(self, kept: Path | None = None) -> Gate:
        """The gate of this run, with limits that its shots set.

        What real defects score is taken from the file `kept` where that was found in the same way (`gate_json`).
        """
        config = self.settings.gate
        exemplars = {
            key: [
                Exemplar(image_HWC=image, mask=mask, name=Path(name).name, group=group)
                for (image, mask), name, group in zip(items, self.names[key], self.groups[key], strict=True)
            ]
            for key, items in self.shots.items()
        }
        if not config.compares:
            return Gate(exemplars, {}, config)
        if config.strict and kept is not None and (real := real_in(kept, self.laid_by, self.shots)) is not None:
            return Gate(exemplars, {}, config, self.features(), real=real)
        count = CARRIED if config.strict else 0
        carried = {key: self.carried(key, count) for key in self.shots}
        return Gate(exemplars, carried, config, self.features())

    def gate_json(self, gate: Gate) -> bytes:
        """A gate as a file: what each type's pairs must reach, what real defects score, and a digest of what those follow from.

        Without the digest, what they score is found anew: where none were laid, or a normal image could not be read.
        """
        return limits_json(gate, "" if self.passed_over or not self.settings.gate.strict else self.laid_by)

    def carried(self, key: Key, count: int, kind: Kind | None = None) -> Iterator[Carried]:
        """Shots' defects under masks of a kind, each on a random normal image; fewer where the images that were tried take no mask.

        The kind is by default that of the type's pairs, and warped beside learned or given masks. They are made one by one: images of a
        line camera would fill the memory.
        """
        usual: Kind = "matched" if self.masks is None and self.settings.masks.kind(key) == "matched" else "warped"
        return (each for index in range(count) if (each := self._one_carried(key, kind or usual, index)))

    def _one_carried(self, key: Key, kind: Kind, index: int) -> Carried | None:
        task = Task(slot=Slot(key=key, index=index), attempt=0, seed=derive(self.settings.seed, "gate", *key, index))
        image, mask = None, None
        if kind == "matched":
            with suppress(DataError, MaskError, OSError):
                _, _, image, mask = self._chosen(task, None, kind)
        else:
            for _, (path, sha256) in zip(range(TRIES), self._candidates(task, None), strict=False):
                try:
                    image = self.image(path, sha256)
                    mask = self._warped(task, path, sha256)
                    break
                except (DataError, MaskError, OSError) as error:  # named when a pair is wanted of it
                    self.passed_over |= not isinstance(error, MaskError)
        if image is None or mask is None:
            return None
        seam, through = self.settings.generate.seam, self.through(key)
        laid, shot = transplant(image, mask, self.shots[key], seed=task.seed, seam=seam, through=through)
        return Carried(image_HWC=laid, normal_HWC=image, mask=mask, group=self.groups[key][shot])

    def _candidates(self, task: Task, given: Mask | None) -> Iterator[tuple[Path, str]]:
        """Normal images in a random order; for a mask of the user's those of its size."""
        files = self.normals[task.slot.key[0]]
        generator = rng(task.seed, "normal")
        first = int(generator.integers(len(files)))
        order = [first, *(int(row) for row in generator.permutation(len(files)) if row != first)]
        fitting = [files[row] for row in order if given is None or self.size(files[row][0]) == given.pixels_HW.shape]
        if not fitting and given is not None:
            height, width = given.pixels_HW.shape
            raise MaskError(f"{self._file(task)}: no normal image is {width} x {height} like this mask; draw it at the size of one")
        yield from fitting

    def target(self, task: Task) -> int:
        """The shot whose mask an attempt takes, and whose picture and place its own shall be like.

        Each shot has its turn before any has its next, in an order that is drawn anew: no shot is left out, and none is everywhere.
        """
        count = len(self.shots[task.slot.key])
        round_, place = divmod(task.slot.index + task.attempt, count)
        return int(rng(self.settings.seed, "shots", *task.slot.key, round_).permutation(count)[place])

    def _looks(self, key: Key, path: Path, sha256: str) -> np.ndarray:
        """How like each shot's picture a normal image looks; nothing like any where it cannot be read."""
        try:
            return self.places(key).looks(self.image(path, sha256))
        except (DataError, OSError):
            return np.full(len(self.shots[key]), -np.inf)

    def _likeliest(self, task: Task, given: Mask | None) -> Iterator[tuple[Path, str]]:
        """The same, with the first few in the order of their looks."""
        files = self._candidates(task, given)
        few = list(islice(files, self.settings.masks.alike or 1))
        if len(few) > 1:
            shot = self.target(task)
            few.sort(key=lambda file: -self.looks(task.slot.key, *file)[shot])
        yield from few
        yield from files

    def _file(self, task: Task) -> Path | None:
        if self.masks is None:
            return None
        if not (files := self.masks[task.slot.key]):
            raise DataError(f"--masks: none for {'/'.join(task.slot.key)}; put some into a folder of that name")
        return files[task.slot.index % len(files)]

    def _given(self, task: Task) -> Mask | None:
        """The user's mask for this slot, if there are any."""
        path = self._file(task)
        if path is None:
            return None
        pixels = read_mask(path)
        if not pixels.any():
            raise MaskError(f"{path}: marks no pixel; draw the defect or take the file away")
        return Mask(pixels_HW=pixels, origin="user", seed=task.seed)

    def _proposed(self, task: Task, normal: Path, sha256: str, kind: Kind) -> tuple[Mask, float]:
        """A mask, and how far its surroundings are from those of its shot, as far as that is known."""
        if kind == "matched":
            return self._matched(task, normal, sha256)
        if self.mask_adapter is None:
            return self._placed(task, normal, sha256), 0.0
        try:
            drawn = learned.propose(
                self.mask_adapter, task.slot.key, [mask for _, mask in self.shots[task.slot.key]], self.image(normal, sha256),
                seed=task.seed, image=sha256, config=self.settings.masks.learned, foreground_HW=self.ground(task.slot.key, normal, sha256),
            )  # fmt: skip
        except MaskError as error:
            raise MaskError(f"{normal}: {error}") from error
        return drawn, 0.0

    def _matched(self, task: Task, normal: Path, sha256: str) -> tuple[Mask, float]:
        key, number = task.slot.key, self.target(task)
        try:
            return matched.propose(
                *self.shots[key][number], self.image(normal, sha256), seed=task.seed, config=self.matched, reference=number,
                ground_HW=self.ground(key, normal, sha256), own_ground_HW=self.grounds[key][number],
            )  # fmt: skip
        except MaskError as error:
            raise MaskError(f"{normal}: {error}") from error

    def _placed(self, task: Task, normal: Path, sha256: str) -> Mask:
        """A warped mask; of several, the one whose surroundings are most like those of the attempt's shot."""
        first = self._warped(task, normal, sha256)
        few = [first]
        for number in range(1, self.settings.masks.alike or 1):
            with suppress(MaskError):
                few.append(self._warped(replace(task, seed=derive(task.seed, "place", number)), normal, sha256))
        if len(few) == 1:
            return first
        alike = self.places(task.slot.key).likeness(self.target(task), self.image(normal, sha256), few)
        return few[int(alike.argmax())]

    def _warped(self, task: Task, normal: Path, sha256: str) -> Mask:
        key = task.slot.key
        try:
            return warped.propose(
                [mask for _, mask in self.shots[key]], self.image(normal, sha256), seed=task.seed, config=self.settings.masks.warped,
                foreground_HW=self.ground(key, normal, sha256), reference_foregrounds=self.grounds[key], first=self.target(task),
                through=self.through(key),
            )  # fmt: skip
        except MaskError as error:
            raise MaskError(f"{normal}: {error}") from error


def _size(path: Path) -> tuple[int, int] | None:
    """Height and width, from the file's head alone; None where it cannot be read."""
    try:
        width, height = read_size(path)
    except DataError:
        return None
    return height, width
