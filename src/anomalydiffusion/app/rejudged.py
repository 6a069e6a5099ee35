"""The gate by which a run's pairs are judged again: its limits are of real defects that were laid as the pairs of each type were."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalydiffusion.app.fits import settled
from anomalydiffusion.app.settings import Drawing, Settings
from anomalydiffusion.app.source import Source
from anomalydiffusion.core.config import from_dict, read_toml
from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.generation.shards import Key, slot_of
from anomalydiffusion.quality.gate import Gate

__all__ = ["drawing_of", "gate_again"]

log = logging.getLogger(__name__)


def drawing_of(run: Run, name: str) -> Drawing:
    """The settings that pairs were drawn with, by their digest as the manifest has it."""
    return from_dict(Drawing, read_toml(run.folder / "settings" / f"{name}.toml"))


def gate_again(
    run: Run, settings: Settings, split: Split, records: Sequence[dict[str, Any]], *, note: bool, quiet: bool
) -> tuple[Gate, str]:  # fmt: skip
    """The gate for a run's records, and for `limits_json` the digest of what it follows from, "" where types differ in that.

    Limits follow from the normal images and the kind of masks that a type's pairs were drawn with, a user's own too; from the run's,
    which is said, where those cannot be used any more. What types without pairs would get is as for the first type with some. Raises
    `RunError` where there are no records.
    """
    if not records:
        raise RunError(f"{run.folder}: no pairs to judge; run 'anomalydiffusion generate {run.folder} --num 40' first")
    regions = digest_of(regions_of(split))
    groups: dict[str, tuple[Drawing, list[Key]]] = {}
    for key, name in sorted({(slot_of(record).key, str(record["config_digest"])) for record in records}):
        drawing = replace(drawing_of(run, name), mask_adapter="", regions=regions)
        groups.setdefault(drawing.laying, (drawing, []))[1].append(key)
    found = []
    for drawing, keys in groups.values():
        source = _source(run, settings, split, drawing, note=note, quiet=quiet)
        gate = source.gate(run.limits)
        found.append((gate, keys, "" if source.passed_over or not settings.gate.strict else source.laid_by))
    (first, _, laid_by), *others = found
    if not others:
        return first, laid_by
    return first.knowing({key: gate.real[key] for gate, keys, _ in others for key in keys if key in gate.real}), ""


def _source(run: Run, settings: Settings, split: Split, drawing: Drawing, *, note: bool, quiet: bool) -> Source:
    """The normal images and masks that pairs were drawn with, as far as they are there."""
    normals, masks = (Path(folder) if folder else None for folder in (drawing.normals, drawing.given_masks))
    told = replace(settings, seed=drawing.seed, masks=drawing.masks, generate=replace(settings.generate, seam=drawing.generate.seam))
    try:
        return Source(split, told, normals, masks)
    except DataError as error:
        if normals is None and masks is None:
            raise
        log.warning("pairs were drawn with what cannot be used any more (%s); they are judged by limits of the run's own pictures", error)
    return Source(split, settled(run, settings, split, note=note, quiet=quiet), None, None)
