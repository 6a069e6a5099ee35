"""A user's own normal images and masks: found in their folders, and refused where they are held out for testing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import digest_file, digest_pixels, read_image, read_mask
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import folders_in, images_in

__all__ = ["given_masks_of", "given_normals"]

Key = tuple[str, str]


def _anywhere(folder: Path) -> list[Path]:
    """The pictures in a folder and its visible sub-folders."""
    return [*images_in(folder), *(path for below in folders_in(folder) for path in _anywhere(below))]


def given_normals(folder: Path, split: Split) -> list[tuple[Path, str]]:
    """A user's own normal images with their hashes; refuses those that are held out, also when saved anew.

    Whole paths: a manifest's relative ones begin at its run.
    """
    files = [(path, digest_file(path)) for path in images_in(folder.resolve())]
    if not files:
        raise DataError(f"{folder}: no normal images to generate on; give --normals a folder of pictures")
    held = {split.sha256[path] for path in split.tested}
    held_pixels = {digest_pixels(read_image(path)) for path in split.tested}
    for path, sha256 in files:
        if sha256 in held or digest_pixels(read_image(path)) in held_pixels:
            raise DataError(f"{path}: is held out for testing; take it out of --normals")
    return files


def _marks(path: Path, sha256: str) -> str:
    """What tells a mask from others, however it is saved; its file's hash where it marks nothing, as many may, or cannot be read."""
    try:
        pixels = read_mask(path)
    except (DataError, OSError):
        return sha256
    return digest_pixels(pixels) if pixels.any() else sha256


def given_masks_of(folder: Path, keys: Iterable[Key], split: Split) -> dict[Key, list[Path]]:
    """A user's own masks by defect type: those in FOLDER/<product>/<defect> or FOLDER/<defect>, or all for each where there is neither.

    Refuses those that are held out, also when saved anew.
    """
    if not (everything := _anywhere(folder)):
        raise DataError(f"{folder}: no masks found; give --masks a folder of PNG files")
    held = {_marks(shot.mask_path, split.sha256[shot.mask_path]): shot.path for shot in split.held_out}
    for path in everything:
        if (tested := held.get(_marks(path, digest_file(path)))) is not None:
            raise DataError(f"{path}: is the mask of {tested}, which is held out for testing; take it out of --masks")
    places = {key: (folder / key[0] / key[1], folder / key[1]) for key in keys}
    if not any(place.is_dir() for own in places.values() for place in own):
        return dict.fromkeys(places, everything)
    return {key: next(filter(None, map(_anywhere, own)), []) for key, own in places.items()}
