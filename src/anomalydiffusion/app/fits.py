"""Which defect types have matched masks where the settings leave that open: found from the shots, kept in run.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.settings import Kind, Settings
from anomalydiffusion.app.source import Source, laid_by
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.regions import regions_of
from anomalydiffusion.quality.scores import mask_agreement

__all__ = ["as_noted", "settled"]

KINDS: tuple[Kind, Kind] = ("warped", "matched")
COMPARED = 16  # defects of a type that are laid under masks of either kind
FITTER = 1.3  # times as well as under warped masks that they must fit their labels for matched ones to be taken


def settled(
    run: Run, settings: Settings, split: Split, normals: Path | None = None, *, note: bool = True, quiet: bool = False
) -> Settings:  # fmt: skip
    """The settings with `masks.matched_for` filled in where `masks.source` is "auto".

    Of each defect type 16 real defects are laid under warped masks and 16 under matched ones, each on a random normal image, and the
    overlap of label and visible change (`quality.scores.mask_agreement`) is averaged over either kind. Masks are matched where that is
    1.3 times the other: where a defect is one only in its place, as the break of a track is, what is laid anywhere hardly shows.
    Shots and normal images alone are looked at. What was found is kept in run.json, where `note` allows, and found anew where
    something that it follows from has changed.
    """
    masks = settings.masks
    if masks.source != "auto" or masks.matched_for is not None:
        return settings
    asked = laid_by(settings, normals, split, regions_of(split))
    if _noted(run).get("asked") == asked:
        return as_noted(run, settings)
    source = Source(split, settings, normals, None)
    found = []
    with bar("masks that fit", len(source.shots), quiet=quiet) as shown:
        for number, key in enumerate(sorted(source.shots), 1):
            if _fits(source, key):
                found.append("/".join(key))
            shown.at(number, "/".join(key))
    if note:
        run.update(matched_masks={"asked": asked, "for": found})
    if found:
        others = "" if len(found) == len(source.shots) else "; the others fit warped masks as well"
        say(f"masks are put where the surroundings are alike for {', '.join(found)}{others}", quiet=quiet)
    return _with(settings, found)


def as_noted(run: Run, settings: Settings) -> Settings:
    """The same for one who has no normal images to look at: what the run has found last, if it has."""
    left_open = settings.masks.source == "auto" and settings.masks.matched_for is None
    return _with(settings, _noted(run)["for"]) if left_open and _noted(run) else settings


def _noted(run: Run) -> dict[str, Any]:
    """What run.json keeps; nothing where that is not as this module writes it."""
    noted = run.record.get("matched_masks")
    if not isinstance(noted, dict) or not isinstance(noted.get("for"), list) or not all(isinstance(each, str) for each in noted["for"]):
        return {}
    return dict(noted)


def _with(settings: Settings, types: Sequence[str]) -> Settings:
    return replace(settings, masks=replace(settings.masks, matched_for=tuple(types)))


def _fits(source: Source, key: tuple[str, str]) -> bool:
    """Whether defects of a type fit their labels clearly better under matched masks."""
    warped, matched = (
        [mask_agreement(each.image_HWC, each.normal_HWC, each.mask) for each in source.carried(key, COMPARED, kind)] for kind in KINDS
    )
    return bool(matched) and float(np.mean(matched)) >= FITTER * float(np.mean(warped or [0.0]))
