"""Draw a pair once more, from what its picture says of itself."""

from __future__ import annotations

import hashlib
import reprlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.learning import load_masks
from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import Drawing, prior_of
from anomalydiffusion.app.source import Source
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.config import digest, from_dict, read_toml
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.imprint import Imprint, read_imprint
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import encode_png, read_image, read_size
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.version import __version__
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.generation.shards import Slot, Task
from anomalydiffusion.quality.refit import fitted

__all__ = ["draw_again"]


def draw_again(
    run: Run, like: Path, output: Path | None = None, *, prior: str | None = None, normals: Path | None = None, masks: Path | None = None,
    batch_size: int | None = None, device: str | None = None, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Draw the pair whose picture is `like` anew, and write it to `output` (.png; default: RUN/again), its mask beside it.

    The run must be the one that drew it: prior, adapter and settings are compared by their digests. `prior`, `normals` and `masks` say
    where those that were used lie now. Returns what the manifest would say of the pair, and whether the pixels are `identical` to
    those of `like`. Raises `DataError` where `like` says nothing, or its normal image is not there any more, `RunError` where another
    run drew it.
    """
    said = read_imprint(like)
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: give a new file that ends in .png")
    if there := next((path for path in (output, _mask_beside(output)) if path.exists()), None) if output is not None else None:
        raise ConfigError(f"--output {output}: {there} is there already; give a new file that ends in .png")
    split = run_split(run)
    if said.key not in {shot.key for shot in split.shots}:
        raise DataError(f"{like}: is of {reprlib.repr('/'.join(said.key))}, which {run.folder} does not know; name the run that drew it")
    drawing = _drawing(run, said, digest_of(regions_of(split)))
    own = run_settings(run, prior=prior, device=device, generate={"batch_size": batch_size})
    settings = replace(
        own, seed=drawing.seed, dtype=drawing.dtype, compile=None, masks=drawing.masks, gate=drawing.gate,
        generate=replace(drawing.generate, batch_size=own.generate.batch_size),
    )  # fmt: skip
    normals = normals or (Path(drawing.normals) if drawing.normals else None)
    masks = masks or (Path(drawing.given_masks) if drawing.given_masks else None)
    loaded = prior_of(settings)
    adapter = Adapter.load(run.adapter, loaded)
    learned = load_masks(run, settings, loaded) if drawing.mask_adapter else None
    source = Source(split, settings, normals, masks, learned)
    task = Task(slot=Slot(key=said.key, index=said.index), attempt=said.attempt, seed=said.seed)
    (pair,) = make_pairs(loaded, adapter, [source.item_on(task, said.normal_sha256)], settings.generate)
    pair = fitted(pair) if drawing.gate.refit else pair
    differs = _difference(like, pair.image_HWC, said)
    image = output or run.folder / "again" / said.product / said.defect / f"{said.index:06d}-{said.attempt}.png"
    mask = _mask_beside(image)
    again = Imprint.of(pair.provenance, index=said.index, settings_digest=said.settings_digest)
    data = {"image": encode_png(pair.image_HWC, again.chunk()), "mask": encode_png(pair.mask.pixels_HW)}
    for name, path in (("image", image), ("mask", mask)):
        write_atomic(path, data[name])
    say(f"{image}: {f'differs from {like} in {differs}' if differs else f'the same pixels as {like}'}", quiet=quiet and not differs)
    return {
        **pair.provenance.to_dict(), "config_digest": digest(drawing), "touched_box": list(pair.provenance.touched_box),
        "image": str(image), "mask": str(mask), "identical": not differs,
        **{f"{name}_sha256": hashlib.sha256(each).hexdigest() for name, each in data.items()},
    }  # fmt: skip


def _mask_beside(image: Path) -> Path:
    return image.with_name(f"{image.stem}_mask.png")


def _drawing(run: Run, said: Imprint, regions: str | None) -> Drawing:
    """The settings that the picture was drawn with. Raises `RunError` naming what of the run is another than what drew it."""
    found: dict[str, Drawing] = {}
    for path in sorted((run.folder / "settings").glob("*.toml")):
        with suppress(ConfigError):  # of another version, or damaged: then it is not what is looked for
            found[path.stem] = from_dict(Drawing, read_toml(path))
    fitting = {name: each for name, each in found.items() if each.settings_digest == said.settings_digest}
    noted = [
        str(record["config_digest"])
        for record in Manifest(run.manifest).pairs()
        if (record["product"], record["defect"], record["seed"]) == (*said.key, said.seed)
    ]
    drawing = next((fitting[name] for name in [*noted, *fitting] if name in fitting), None)  # those that differ by their gate look the same
    other = [
        *(["prior"] if said.prior_digest != run.record.get("prior_digest") else []),
        *(["adapter"] if said.adapter_digest != Adapter.digest_of(run.adapter) else []),
        *(["settings"] if drawing is None else []),
        *(["drawn regions"] if drawing and drawing.regions != (None if drawing.given_masks else regions) else []),
        *(["adapter of masks"] if drawing and drawing.mask_adapter and drawing.mask_adapter != _digest(run.mask_adapter) else []),
    ]
    if other or drawing is None:
        raise RunError(f"{run.folder}: did not draw this picture: its {' and '.join(other)} differ from what the picture names; "
                       "name the run that drew it")  # fmt: skip
    return drawing


def _digest(path: Path) -> str:
    return Adapter.digest_of(path) if path.is_file() else ""


def _difference(like: Path, image_HWC: np.ndarray, said: Imprint) -> str:
    """How a picture differs from what was drawn now, in words; "" where every pixel is the same."""
    width, height = read_size(like)
    if (height, width) != image_HWC.shape[:2]:
        return f"size: that is {width} x {height}, so it was cut or scaled since it was drawn"
    differences = np.abs(read_image(like).astype(np.int16) - image_HWC).max(axis=2)
    if not differences.any():
        return ""
    versions = "" if said.version == __version__ else f" (it was drawn by {said.version}, this is {__version__})"
    return (
        f"{int((differences > 0).sum())} of {differences.size} pixels, by at most {int(differences.max())} of 255; a little may come of "
        f"another --batch-size, processor or version{versions}, more means that the file was changed, or drawn by an "
        "earlier state of the program"
    )
