"""A run's accepted pairs as a data set to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anomalydiffusion.app.opened import among
from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.manifest import Manifest, accepted, judged
from anomalydiffusion.core.pixels import read_image, read_mask
from anomalydiffusion.core.runs import Run
from anomalydiffusion.generation.shards import slot_of

__all__ = ["DefectDataset"]

Example = dict[str, Any]


class DefectDataset:
    """The accepted pairs of a run, in the manifest's order; what torch's `DataLoader` takes as a map-style data set.

        DefectDataset("RUN")[0] -> {"image": RGB picture, "mask": picture 0 or 255, "product": .., "defect": .., "record": ..}

    `transform` changes an example before it is handed out, image and mask together. Nothing is kept in memory. Raises `RunError`
    where there is no run or no accepted pair, `ConfigError` on a product or defect that it does not have.
    """

    def __init__(
        self, run: Path | str, *, product: Sequence[str] | None = None, defect: Sequence[str] | None = None,
        transform: Callable[[Example], Any] | None = None,
    ) -> None:  # fmt: skip
        opened = Run.open(Path(run))
        self.folder, self.transform = opened.folder, transform
        records = accepted(judged(Manifest(opened.manifest).pairs(), opened.folder))
        if not records:
            raise RunError(f"{opened.folder}: no accepted pairs; run 'anomalydiffusion generate {opened.folder} --num 40' first")
        keys = set(among(sorted({slot_of(record).key for record in records}), product, defect))
        self.records = [record for record in records if slot_of(record).key in keys]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        example = {
            "image": Image.fromarray(read_image(self.folder / str(record["image"]))),
            "mask": Image.fromarray(read_mask(self.folder / str(record["mask"]))).convert("L"),
            "product": record["product"], "defect": record["defect"], "record": record,
        }  # fmt: skip
        return self.transform(example) if self.transform else example

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))
