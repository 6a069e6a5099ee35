"""Does the gate refuse bad pairs and let good ones pass? Planted ones, made of real held-out defects that it has never seen.

    python benchmarks/gate.py DATA --product magnetic_tile

Good pairs are held-out defects laid under warped masks of normal images, or with `--source matched` under matched ones. Each bad kind is
made of a good pair: nothing drawn, the label elsewhere, half of the defect missing, another type's defect, a blurred background; and shots
handed over as they are. Nothing is trained. Writes benchmarks/results/<date>-gate-<product>.md: one row a kind.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from pages import as_typed, save
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from anomalydiffusion.app.settings import MaskConfig, Settings
from anomalydiffusion.app.source import Source
from anomalydiffusion.core.errors import MaskError
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.core.types import Mask, Pair, Provenance, Split
from anomalydiffusion.data.folders import load, load_normal, read_folder
from anomalydiffusion.data.regions import grounds_of
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.arms import misplaced
from anomalydiffusion.downstream.samples import made_sample
from anomalydiffusion.generation.transplant import seen_through, transplant
from anomalydiffusion.masks import matched
from anomalydiffusion.masks.matched import MatchedConfig
from anomalydiffusion.masks.warped import propose

Key = tuple[str, str]
Rng = np.random.Generator
AREA = 512  # pixels of the longer side up to which a shot's defect is filled in


def pair_of(image: np.ndarray, normal: np.ndarray, mask: Mask, key: Key) -> Pair:
    provenance = Provenance(
        product=key[0], defect=key[1], seed=0, attempt=0, normal="", normal_sha256="", mask_origin=mask.origin, touched_box=mask.box,
        prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0, version="",
    )  # fmt: skip
    return Pair(image_HWC=image, normal_HWC=normal, mask=mask, requested=mask, provenance=provenance)


class Planter:
    """Good and bad pairs of one product."""

    def __init__(self, split: Split, source: Source, product: str) -> None:
        self.matched = source.matched if source.settings.masks.source == "matched" else None
        self.held = {key: [load(shot) for shot in split.held_out if shot.key == key] for key in source.shots if key[0] == product}
        self.through = {key: seen_through(own) for key, own in self.held.items()}
        self.grounds = {key: grounds_of(source.regions[product], key[1], own) for key, own in self.held.items()}
        self.shots, self.normals = source.shots, [normal for normal in split.normals if normal.product == product]

    def good(self, key: Key, seed: int) -> Pair:
        """A held-out defect on a normal image of the training part."""
        if self.matched is not None:
            return self._matched(key, seed, self.matched)
        for attempt in range(20):
            own = derive(seed, "good", *key, attempt)
            normal = load_normal(self.normals[int(rng(own, "normal").integers(len(self.normals)))])
            try:
                mask = propose(
                    [mask for _, mask in self.held[key]], normal, seed=own, reference_foregrounds=self.grounds[key],
                    through=self.through[key],
                )  # fmt: skip
            except MaskError:
                continue
            laid, _ = transplant(normal, mask, self.held[key], seed=own, through=self.through[key])
            return pair_of(laid, normal, mask, key)
        raise MaskError(f"{'/'.join(key)}: no mask fits any normal image that was tried")

    def _matched(self, key: Key, seed: int, config: MatchedConfig) -> Pair:
        """The same where one of a few normal images looks as the held-out one does around its defect."""
        random, found = rng(seed, "good", *key), list[tuple[float, int, np.ndarray, Mask]]()
        row = int(random.integers(len(self.held[key])))
        for number in range(20):
            normal = load_normal(self.normals[int(random.integers(len(self.normals)))])
            with suppress(MaskError):
                mask, misfit = matched.propose(*self.held[key][row], normal, seed=seed, config=config, reference=row)
                found.append((misfit, number, normal, mask))
            if len(found) == config.images:
                break
        if not found:
            raise MaskError(f"{'/'.join(key)}: no place for a held-out defect on any normal image that was tried")
        _, _, normal, mask = min(found, key=lambda each: each[:2])
        return pair_of(transplant(normal, mask, self.held[key], seed=seed, through=self.through[key])[0], normal, mask, key)

    def nothing(self, key: Key, seed: int) -> Pair:
        """Grain under the mask, no defect."""
        good = self.good(key, seed)
        image, grain = good.normal_HWC.copy(), rng(seed, "grain").normal(0, 2, good.normal_HWC.shape)
        inside = good.mask.pixels_HW
        image[inside] = np.clip(image[inside] + grain[inside] + 0.5, 0, 255).astype(np.uint8)
        return replace(good, image_HWC=image)

    def elsewhere(self, key: Key, seed: int) -> Pair:
        """The label where the defect is not."""
        good = self.good(key, seed)
        moved = misplaced(made_sample("", key[1], good.image_HWC, good.mask), seed=seed).read()[1]
        assert moved is not None
        return replace(good, mask=moved, requested=moved)

    def half(self, key: Key, seed: int) -> Pair:
        """Half of the defect's pixels, those on one side, as before."""
        good = self.good(key, seed)
        axis = int(rng(seed, "half").integers(2))
        places = np.argwhere(good.mask.pixels_HW)
        away = places[places[:, axis] <= np.median(places[:, axis])]
        image = good.image_HWC.copy()
        image[tuple(away.T)] = good.normal_HWC[tuple(away.T)]
        return replace(good, image_HWC=image)

    def wrong_type(self, key: Key, seed: int) -> Pair:
        """Another type's defect, in its own shape, under this type's name."""
        others = [other for other in self.held if other != key]
        good = self.good(others[int(rng(seed, "other").integers(len(others)))], seed)
        return replace(good, provenance=replace(good.provenance, defect=key[1]))

    def smeared(self, key: Key, seed: int) -> Pair:
        """A blurred stripe across the image, off the defect."""
        good = self.good(key, seed)
        blurred = ndimage.gaussian_filter(good.image_HWC, (4, 4, 0))
        rows = np.flatnonzero(~ndimage.binary_dilation(good.mask.pixels_HW.any(1), iterations=10))
        image = good.image_HWC.copy()
        if len(rows):
            image[rows[: max(1, len(rows) // 3)]] = blurred[rows[: max(1, len(rows) // 3)]]
        return replace(good, image_HWC=image)

    def copy(self, key: Key, seed: int) -> Pair:
        """A shot as it is, mirrored or not; its normal image is the shot with the defect filled in from around."""
        image, mask = self.shots[key][seed % len(self.shots[key])]
        x0, y0, x1, y1 = mask.box
        near = np.s_[max(0, y0 - 16) : y1 + 16, max(0, x0 - 16) : x1 + 16]
        step = -(-max(mask.pixels_HW[near].shape) // AREA)
        filled = inpaint_biharmonic(image[near][::step, ::step] / 255.0, mask.pixels_HW[near][::step, ::step], channel_axis=2)
        whole = np.repeat(np.repeat(filled, step, 0), step, 1)[: image[near].shape[0], : image[near].shape[1]]
        normal = image.copy()
        normal[mask.pixels_HW] = np.clip(whole * 255 + 0.5, 0, 255).astype(np.uint8)[mask.pixels_HW[near]]
        flip = np.s_[:: int(rng(seed, "flip").choice([1, -1])), :: int(rng(seed, "flop").choice([1, -1]))]
        marked = Mask(pixels_HW=np.ascontiguousarray(mask.pixels_HW[flip]), origin="real")
        return pair_of(np.ascontiguousarray(image[flip]), np.ascontiguousarray(normal[flip]), marked, key)


KINDS: dict[str, tuple[str, Callable[[Planter, Key, int], Pair]]] = {
    "good": ("held-out defects, rightly labelled: lost", Planter.good),
    "nothing": ("no defect drawn: caught", Planter.nothing),
    "elsewhere": ("label off the defect: caught", Planter.elsewhere),
    "half": ("half of the defect missing: caught", Planter.half),
    "wrong-type": ("another type's defect: caught", Planter.wrong_type),
    "smeared": ("background blurred: caught", Planter.smeared),
    "copy": ("a shot as it is: caught", Planter.copy),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--product", required=True)
    parser.add_argument("--num", type=int, default=40, help="pairs of each kind and type")
    parser.add_argument("--rotation", type=int, default=0)
    parser.add_argument("--source", choices=["warped", "matched"], default="warped", help="how masks are placed")
    parser.add_argument("--strict", type=float, default=Settings().gate.strict)
    given = parser.parse_args()
    split = few_shot_split(read_folder(given.data), products=[given.product], rotation=given.rotation)
    settings = Settings(gate=replace(Settings().gate, strict=given.strict), masks=MaskConfig(source=given.source))
    source = Source(split, settings, None, None)
    gate, planter = source.gate(), Planter(split, source, given.product)
    keys = sorted(planter.held)
    kinds = [kind for kind in KINDS if kind != "wrong-type" or len(keys) > 1]
    refused: dict[tuple[str, Key], int] = {}
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for kind in kinds:
        for key in keys:
            verdicts = [gate.check(KINDS[kind][1](planter, key, derive(seed, "planted", kind))) for seed in range(given.num)]
            refused[kind, key] = sum(not verdict.keep for verdict in verdicts)
            reasons[kind].update(reason.split(" of ")[0] for verdict in verdicts for reason in verdict.reasons)
    lines = [f"# The gate on planted pairs of {given.product}", "", f"    {as_typed(DATA=given.data)}", "",
             f"{given.num} pairs of each kind and type; refused (strict = {given.strict:g}), in per cent. Split {split.digest}.", "",
             "| kind | what | all | " + " | ".join(key[1] for key in keys) + " | reasons |", "|---" * (len(keys) + 4) + "|"]  # fmt: skip
    for kind in kinds:
        own = [100 * refused[kind, key] / given.num for key in keys]
        named = ", ".join(f"{reason} {count}" for reason, count in reasons[kind].most_common())
        lines.append(f"| {kind} | {KINDS[kind][0]} | {np.mean(own):.1f} | " + " | ".join(f"{each:.0f}" for each in own) + f" | {named} |")
    lines += ["", "Limits that the shots set: " + "; ".join(
        f"{key[1]} " + ", ".join(f"{name} {value:.2f}" for name in ("agreement", "similarity", "margin", "evenness")
                                 if (value := getattr(gate.limits[key], name)) is not None) for key in keys) + "."]  # fmt: skip
    told = (("r", given.rotation, 0), ("strict", given.strict, Settings().gate.strict))
    other = "".join(f"-{name}{value:g}" for name, value, usual in told if value != usual) + "-matched" * (given.source == "matched")
    save(f"gate-{given.product}{other}", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
