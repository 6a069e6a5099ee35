"""See defects while they are learned: from time to time a small sheet of what is drawn by now."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from anomalydiffusion.app.pipeline import AnomalyDiffusionPipeline
from anomalydiffusion.app.settings import Settings
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.regions import regions_of
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.report.sheets import Cell, Row, cells, contact_sheet
from anomalydiffusion.training.recipes import Shots

__all__ = ["Preview"]

log = logging.getLogger(__name__)

Key = tuple[str, str]
MOST = 6  # defect types of a sheet: it shall cost little
STEPS = 10  # of denoising at most: enough to see what a defect will look like
CELL = 128  # pixels of a picture


class Preview:
    """Draws each defect type that is being learned, the first `MOST` of them, into RUN/previews/step-000100.png.

    The normal image, the mask, warped from a shot's, and the seed of a type are the same each time, so that two sheets differ by what was
    learned between them.
    """

    def __init__(self, run: Run, settings: Settings, split: Split, shots: Shots, prior: LatentPrior, start: Adapter | None) -> None:
        self.run, self.shots, self.prior, self.regions = run, shots, prior, regions_of(split)
        self.settings = replace(settings, generate=replace(settings.generate, steps=min(STEPS, settings.generate.steps)))
        self.keys = [key for key in sorted(shots) if start is None or key not in start.keys][:MOST]
        self.normals = {product: next(each.path for each in split.normals if each.product == product)
                        for product in {key[0] for key in self.keys} & {each.product for each in split.normals}}  # fmt: skip
        self.unusable: set[Key] = set()

    def __call__(self, step: int, adapter: Adapter) -> None:
        """Write the sheet of a step where it is time for one, and at the end. A type that cannot be drawn is named once and left out."""
        loop, every = self.settings.train.loop, self.settings.preview_steps
        if every is None or (step % every >= loop.log_every and step != loop.steps):
            return
        pipe = AnomalyDiffusionPipeline(self.prior, adapter, self.shots, self.settings, None, self.regions)
        pipe.set_progress_bar_config(disable=True)
        if lines := [(f"{'/'.join(key)}, step {step}", drawn) for key in self.keys if (drawn := self._drawn(pipe, key))]:
            write_atomic(self.run.previews / f"step-{step:06d}.png", encode_png(contact_sheet(lines)))

    def _drawn(self, pipe: AnomalyDiffusionPipeline, key: Key) -> list[Cell]:
        """The pictures of one type; none where it cannot be drawn."""
        if key[0] not in self.normals or key in self.unusable:
            return []
        try:
            normal_HWC = read_image(self.normals[key[0]])
            drawn = pipe(normal_HWC, product=key[0], defect=key[1])
        except (DataError, MaskError, OSError) as error:
            log.warning("%s: no preview of %s", error, "/".join(key))
            self.unusable.add(key)
            return []
        image_HWC, mask_HW = np.asarray(drawn.image), np.asarray(drawn.mask) > 0
        row = Row(image_HWC=image_HWC, mask_HW=mask_HW, box=drawn.provenance.touched_box, normal_HWC=normal_HWC)
        return cells(row, cell=CELL)
