"""Which layouts there are, by the names that `export --format` takes."""

from __future__ import annotations

from anomalydiffusion.report.formats import anomalib, coco, imagefolder, labelstudio, mvtec, yolo
from anomalydiffusion.report.formats.coco import run_lengths
from anomalydiffusion.report.formats.common import Goods, Record, Writer
from anomalydiffusion.report.formats.parts import outline

__all__ = ["FORMATS", "Goods", "Record", "outline", "run_lengths"]

FORMATS: dict[str, Writer] = {
    "mvtec": mvtec.write, "anomalib": anomalib.write, "coco": coco.write, "yolo": yolo.write, "imagefolder": imagefolder.write,
    "labelstudio": labelstudio.write,
}  # fmt: skip
