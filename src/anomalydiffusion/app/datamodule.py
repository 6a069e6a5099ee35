"""A run's accepted pairs in an anomalib datamodule: to set thresholds by, or to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from anomalydiffusion.app.dataset import DefectDataset
from anomalydiffusion.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from anomalib.data import AnomalibDataModule, AnomalibDataset

__all__ = ["add_generated"]

HELD_BACK = 0.2  # share of the training normals in the validation part, where the datamodule asks for none itself


def add_generated(
    datamodule: AnomalibDataModule, run: Path | str, *, to: Literal["val", "train"] = "val", product: str | None = None,
    defect: Sequence[str] | None = None,
) -> AnomalibDataModule:  # fmt: skip
    """Put a run's accepted pairs into one part of an anomalib image datamodule that is not set up yet; returns the datamodule.

        datamodule = add_generated(MVTecAD(category="tile"), "RUN")
        Engine().fit(Padim(), datamodule=datamodule)

    `to="val"`: the validation part, by which anomalib sets thresholds, is then the pairs and a share of the training normals
    (`val_split_ratio`, else 0.2) that are trained on no more; whatever `val_split_mode` says, no test image is in it.
    `to="train"`: they join the training part, for models that learn from anomalies (as SuperSimpleNet, supervised, does).
    Both may be asked for, in two calls. Raises `RunError` where there are no pairs, `ConfigError` where the run has
    several products and none is named, and on a datamodule that is set up already.
    """
    if to not in ("val", "train"):
        raise ConfigError(f"to={to!r}: expected 'val' or 'train'")
    if any(hasattr(datamodule, f"{part}_data") for part in ("train", "val", "test")):
        raise ConfigError(f"{type(datamodule).__name__}: is set up already; add generated pairs first")
    pairs = DefectDataset(run, product=[product] if product else None, defect=defect)
    if len(products := sorted({str(record["product"]) for record in pairs.records})) > 1:
        raise ConfigError(f"{run}: has pairs of {', '.join(products)}; name the product of this datamodule")
    module: Any = datamodule
    split = module._create_val_split  # called once the training and the test part are there, and whenever they are read anew

    def split_with_pairs() -> None:
        if to == "train":
            split()
            module.train_data = _joined(module.train_data, pairs)
        else:
            _validate_on(module, pairs)

    module._create_val_split = split_with_pairs
    return datamodule


def _validate_on(module: Any, pairs: DefectDataset) -> None:
    from anomalib.data.utils.split import random_split

    ratio = module.val_split_ratio if module.val_split_ratio and 0 < module.val_split_ratio < 1 else HELD_BACK
    module.train_data, normals = random_split(module.train_data, float(ratio), seed=module.seed)
    module.val_data = _joined(normals, pairs)


def _joined(part: AnomalibDataset, pairs: DefectDataset) -> AnomalibDataset:
    """A part with the pairs in it, told apart by their label as anomalib's own are."""
    import pandas as pd
    from anomalib.data.utils import LabelName

    rows = pd.DataFrame(
        {
            "image_path": str(pairs.folder / str(record["image"])), "mask_path": str(pairs.folder / str(record["mask"])),
            "label": "abnormal", "label_index": LabelName.ABNORMAL, "split": str(part.samples["split"].iloc[0]),
        }
        for record in pairs.records
    )  # fmt: skip
    joined = part.subsample(range(len(part)))
    task = part.samples.attrs["task"]
    joined.samples = pd.concat([part.samples, rows], ignore_index=True)
    joined.samples.attrs["task"] = task
    return joined
