"""A trained run as one callable: a normal image in, an image with a defect and its mask out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from anomalydiffusion.app.fits import as_noted
from anomalydiffusion.app.learning import load_masks
from anomalydiffusion.app.opened import own_words, run_split
from anomalydiffusion.app.settings import Settings, prior_of, resolve, to_toml
from anomalydiffusion.app.source import shots_of
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.formats import check_format
from anomalydiffusion.core.pixels import encode_png, read_image, read_mask, to_mask, to_rgb
from anomalydiffusion.core.runs import Run, replace_folder, write_atomic
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Provenance
from anomalydiffusion.data.regions import NAME, Regions, copy_regions, digest_of, ground_of, grounds_of, read_regions, regions_of
from anomalydiffusion.generation.pairs import Item, make_pairs, other_mask
from anomalydiffusion.generation.transplant import seen_through, transplant
from anomalydiffusion.masks import learned, matched, warped
from anomalydiffusion.priors.latent import LatentPrior

__all__ = ["AnomalyDiffusionPipeline", "Drawn"]

Key = tuple[str, str]
Shots = Mapping[Key, Sequence[tuple[np.ndarray, Mask]]]
Picture = Image.Image | np.ndarray | Path | str
OnStepEnd = Callable[["AnomalyDiffusionPipeline", int, int, dict[str, torch.Tensor]], Any]
INDEX, FORMAT = "pipeline.json", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a pipeline makes: an RGB image, its mask (8 bit, 0 or 255, of the same size), and where they come from."""

    image: Image.Image
    mask: Image.Image
    provenance: Provenance


class AnomalyDiffusionPipeline:
    """Draws learned defects on normal images.

        pipe = AnomalyDiffusionPipeline.from_pretrained("RUN")
        drawn = pipe("normal.png", product="tile", defect="crack", seed=7)

    A run needs its shots: masks are warped from theirs, and drawings begin from their defects. `save_pretrained` writes them
    beside the adapter, so that a saved pipeline needs no data set.
    """

    def __init__(self, prior: LatentPrior, adapter: Adapter, shots: Shots, settings: Settings, mask_adapter: Adapter | None = None,
                 regions: Mapping[str, Regions] | None = None) -> None:  # fmt: skip
        self.regions = regions or {}
        self.prior, self.adapter, self.shots, self.settings, self.mask_adapter = prior, adapter, shots, settings, mask_adapter
        self.through: dict[Key, list[bool]] = {}  # what `seen_through` says of shots that were drawn from
        self.bar: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls, path: Path | str, *, prior: str | None = None, device: str | None = None, dtype: str | None = None,
        compile: bool | None = None,
    ) -> AnomalyDiffusionPipeline:  # fmt: skip
        """Open a run's folder, what `save_pretrained` wrote, or a repository on the Hugging Face hub that holds it.

        `prior`: where the prior lies now, if it is not where the run was trained. `compile`: its first drawings take a minute or more,
        those after them less than otherwise. Raises `RunError` on what is missing, damaged, newer or was trained on another prior.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = _fetched(str(path))
        own = Run(folder, {})
        regions: Mapping[str, Regions]
        if saved := (folder / INDEX).is_file():
            shots = _saved_shots(folder)
            regions = {product: read_regions(folder / NAME / product) for product in {key[0] for key in shots}}
        else:
            own = Run.open(folder)
            split = run_split(own)
            shots, regions = shots_of(split), regions_of(split)
        settings = as_noted(
            own, resolve(base=own_words(own), prior=prior, device=device, dtype=dtype, compile=compile)
        )  # after the formats are known
        loaded = prior_of(settings)
        masks = None
        if settings.masks.source == "learned":
            masks = Adapter.load(own.mask_adapter, loaded, name="masks") if saved else load_masks(own, settings, loaded)
        adapter = Adapter.load(own.adapter, loaded)
        if settings.compile:
            loaded.compile()
        return cls(loaded, adapter, shots, settings, masks, regions)

    @staticmethod
    def made_of(run: Path) -> tuple[str, ...]:
        """What `from_pretrained` reads of a run, as digests and words: where they are others, a pipeline that is open is out of date."""
        own = Run.open(run)
        settings, regions = as_noted(own, resolve(base=own_words(own))), regions_of(run_split(own))
        return Adapter.digest_of(own.adapter), to_toml(settings), digest_of(regions) or ""

    @property
    def defects(self) -> list[Key]:
        """(product, defect) of everything that can be drawn."""
        return [key for key in self.adapter.keys if key in self.shots]

    def set_progress_bar_config(self, **options: Any) -> None:
        """What tqdm is told, such as `disable=True`."""
        self.bar = options

    def __call__(
        self, image: Picture, mask: Picture | None = None, *, product: str | None = None, defect: str | None = None, seed: int = 0,
        severity: float | None = None, strength: float | None = None, steps: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Drawn:  # fmt: skip
        """Draw one defect on a normal image; the same arguments give the same picture.

        `image`: a picture or its file. `mask`: anything but black is drawn on, of the image's size; without one it is proposed as the
        run's settings say, but for `[masks] alike`, which chooses among images and places and is a run's alone. `product` and `defect` may
        be left out where there is but one. `severity`, `strength` and `steps` are those of `[generate]`.
        `callback_on_step_end(pipe, index, t, {"latents": z})` sees each step and, as with diffusers, may return a dictionary with other
        `latents` to go on with. Pixels beyond the feather of the mask stay the normal image's, bit for bit. Raises `ConfigError` on an
        unknown defect, `DataError` and `MaskError` on unusable pictures.
        """
        key = self._key(product, defect)
        normal = _rgb(image)
        given: dict[str, Any] = {"severity": severity, "strength": strength, "steps": steps, "batch_size": 1}
        config = replace(self.settings.generate, **{name: value for name, value in given.items() if value is not None})
        if config.steps > len(self.prior.alphas):
            raise ConfigError(f"steps = {config.steps}: the prior has {len(self.prior.alphas)} at most")
        asked = self._proposed(key, normal, seed) if mask is None else _mask(mask, normal)
        start, shot = None, None
        if config.needs_shot:
            start, number = transplant(normal, asked, self.shots[key], seed=seed, seam=config.seam, through=self._through(key))
            shot = self.shots[key][number]
        item = Item(key=key, normal_HWC=normal, normal=str(image) if isinstance(image, Path | str) else "", normal_sha256="", mask=asked,
                    seed=seed, start_HWC=start, shot=shot, other=other_mask(self.shots[key], seed, config))  # fmt: skip
        with tqdm(**{"desc": "/".join(key), "leave": False, **self.bar}) as bar:

            def on_step(index: int, t: int, z: torch.Tensor) -> torch.Tensor | None:
                bar.update()
                answer = None if callback_on_step_end is None else callback_on_step_end(self, index, t, {"latents": z})
                return answer.get("latents") if isinstance(answer, dict) else None

            (pair,) = make_pairs(self.prior, self.adapter, [item], config, on_step)
        return Drawn(
            image=Image.fromarray(pair.image_HWC),
            mask=Image.fromarray(pair.mask.pixels_HW.astype(np.uint8) * 255),
            provenance=pair.provenance,
        )

    def _through(self, key: Key) -> list[bool]:
        if key not in self.through:
            self.through[key] = seen_through(self.shots[key])
        return self.through[key]

    def _key(self, product: str | None, defect: str | None) -> Key:
        fitting = [key for key in self.defects if product in (None, key[0]) and defect in (None, key[1])]
        if len(fitting) != 1:
            known = ", ".join("/".join(key) for key in self.defects)
            what = "several defects fit" if fitting else "no such defect"
            raise ConfigError(f"product {product!r}, defect {defect!r}: {what}; known: {known}")
        return fitting[0]

    def _proposed(self, key: Key, normal: np.ndarray, seed: int) -> Mask:
        masks, references = self.settings.masks, [mask for _, mask in self.shots[key]]
        regions: Regions = self.regions.get(key[0], {})
        ground = ground_of(regions, key[1], normal)
        if self.mask_adapter is not None:
            return learned.propose(self.mask_adapter, key, references, normal, seed=seed, config=masks.learned, foreground_HW=ground)
        grounds = grounds_of(regions, key[1], self.shots[key])
        if masks.kind(key) == "matched":
            number = int(rng(seed, "alike").integers(len(self.shots[key])))
            return matched.propose(
                *self.shots[key][number], normal, seed=seed, config=masks.matched, reference=number, ground_HW=ground,
                own_ground_HW=grounds[number],
            )[0]  # fmt: skip
        return warped.propose(
            references, normal, seed=seed, config=masks.warped, foreground_HW=ground, reference_foregrounds=grounds,
            through=self._through(key),
        )  # fmt: skip

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write adapter, settings and shots to `folder`; the prior stays where it is and is named. The shots are real images of the user's.

        What stood there before is replaced, whole or not at all, where it is a saved pipeline too; else `RunError`.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / INDEX).is_file() and any(folder.iterdir()):
            raise RunError(f"{folder}: exists already and is no saved pipeline; name a new folder")
        index: list[dict[str, str]] = []
        with replace_folder(folder) as part:
            own = Run(part, {})
            for adapter, path in ((self.adapter, own.adapter), (self.mask_adapter, own.mask_adapter)):
                if adapter is not None:
                    adapter.save(path)
            write_atomic(own.config, to_toml(self.settings).encode())
            for number, key in enumerate(sorted(self.shots)):
                for row, (image, mask) in enumerate(self.shots[key]):
                    names = {"image": f"shots/{number:03d}-{row:06d}.png", "mask": f"shots/{number:03d}-{row:06d}_mask.png"}
                    write_atomic(part / names["image"], encode_png(image))
                    write_atomic(part / names["mask"], encode_png(mask.pixels_HW))
                    index.append({"product": key[0], "defect": key[1], **names})
            for product, regions in self.regions.items():
                copy_regions(regions, part / NAME / product)
            record = {"format": FORMAT, "prior": self.settings.prior, "prior_digest": self.prior.digest, "shots": index}
            write_atomic(part / INDEX, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return folder

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes, the shots too, to the Hugging Face hub, in private by default; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "pipeline")
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "pipeline").repo_url)
            except Exception as error:  # the hub's client has many, the advice is the same
                raise RunError(f"{repo_id}: cannot be uploaded ({error}); check the connection and the token") from error


def _fetched(name: str) -> Path:
    """A repository's files from the hub, or from the hub's cache."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise RunError(f"{name}: no such folder; give a run, a saved pipeline, or a hub repository as user/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[INDEX, "config.toml", "adapter/*.safetensors", "shots/*.png", f"{NAME}/*"]))
    except Exception as error:
        raise RunError(f"{name}: no such folder, and not to be had from the hub ({error}); fetch it where there is a connection") from error


def _saved_shots(folder: Path) -> Shots:
    try:
        record = dict(json.loads((folder / INDEX).read_text(encoding="utf-8")))
        check_format(folder / INDEX, record, reads=FORMAT, oldest=FORMAT, anew="save the pipeline again")
        out: dict[Key, list[tuple[np.ndarray, Mask]]] = {}
        for each in record["shots"]:
            paths = [_inside(folder, str(each[name])) for name in ("image", "mask")]
            shot = read_image(paths[0]), Mask(pixels_HW=read_mask(paths[1]), origin="real")
            out.setdefault((str(each["product"]), str(each["defect"])), []).append(shot)
        return out
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{folder / INDEX}: damaged ({error}); save the pipeline again") from error


def _inside(folder: Path, name: str) -> Path:
    plain = PurePosixPath(name)  # by its words: a hub's cache is full of links
    if plain.is_absolute() or ".." in plain.parts:
        raise RunError(f"{folder / INDEX}: names '{name}', which lies outside; save the pipeline again")
    return folder / plain


def _rgb(picture: Picture) -> np.ndarray:
    """uint8 RGB of a picture, an array or a file."""
    if isinstance(picture, Path | str):
        return read_image(Path(picture))
    array = to_rgb(picture) if isinstance(picture, Image.Image) else np.asarray(picture)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(f"image: expected uint8 of shape H x W or H x W x 3, got {array.dtype} of {array.shape}")
    return np.ascontiguousarray(array)


def _mask(picture: Picture, normal: np.ndarray) -> Mask:
    """A user's mask of the normal image's size: anything but black is marked."""
    pixels = read_mask(Path(picture)) if isinstance(picture, Path | str) else to_mask(picture)
    if pixels.shape != normal.shape[:2]:
        raise DataError(
            f"mask: {pixels.shape[1]} x {pixels.shape[0]}, but the image is {normal.shape[1]} x {normal.shape[0]}; draw it at its size"
        )
    return Mask(pixels_HW=pixels, origin="user")
