"""Make the pictures of these pages from the demo data: `python docs/pictures.py` (about 10 minutes on two cores)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.app.opened import run_split
from anomalydiffusion.app.source import shots_of
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.core.pixels import read_image, read_mask
from anomalydiffusion.core.runs import Run
from anomalydiffusion.data.demo import make_demo
from anomalydiffusion.report.sheets import Cell, Row, cells, contact_sheet, outlined

HERE = Path(__file__).parent / "pictures"
COLOURS = 96  # of a picture's palette: grey textures with a few coloured lines need no more
CELL, AROUND = 150, 88  # pixels of a cell, and of the square around a mask that it shows
Line = tuple[str, list[Cell]]


def _save(name: str, sheet_HWC: np.ndarray, scale: float = 1.0) -> None:
    HERE.mkdir(exist_ok=True)
    sheet = Image.fromarray(sheet_HWC)
    sheet = sheet.resize((round(sheet.width * scale), round(sheet.height * scale)), Image.Resampling.LANCZOS)
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / name, optimize=True)
    print(f"{HERE / name}: {(HERE / name).stat().st_size // 1000} kB")  # noqa: T201


def shots(run: Run) -> list[Line]:
    """What is learned from: the four shots of each defect type, with the outline of their masks."""
    found = shots_of(run_split(run))
    return [("/".join(key), [outlined(f"shot {n}", image, mask.pixels_HW) for n, (image, mask) in enumerate(own, 1)])
            for key, own in sorted(found.items())]  # fmt: skip


def pairs(run: Run) -> list[Line]:
    """The first kept pair of each defect type."""
    first: dict[str, Line] = {}
    for record in accepted(Manifest(run.manifest).records()):
        word = f"{record['product']}/{record['defect']}"
        image, normal = read_image(run.folder / str(record["image"])), read_image(Path(str(record["normal"])))
        row = Row(image_HWC=image, mask_HW=read_mask(run.folder / str(record["mask"])), box=tuple(record["touched_box"]), normal_HWC=normal)
        first.setdefault(word, (word, cells(row)))
    return list(first.values())


def turned(run: Run, setting: str, values: list[float]) -> list[Line]:
    """One defect type a line, each cell the same normal image, mask and seed with another value of a setting."""
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(run.folder)
    pipe.set_progress_bar_config(disable=True)
    lines: list[Line] = []
    for product, defect in pipe.defects:
        normal = next(each.path for each in run_split(run).normals if each.product == product)
        drawn = [pipe(normal, product=product, defect=defect, seed=3, **{setting: value}) for value in values]
        mask = np.asarray(drawn[0].mask) > 0
        view = _around(mask)
        label = outlined("mask", read_image(normal)[view], mask[view])
        shown = [("mask", label.image_HWC), *((f"{setting} {value:g}", np.asarray(each.image)[view])
                 for value, each in zip(values, drawn, strict=True))]  # fmt: skip
        lines.append((f"{product}/{defect}", [Cell(label=name, image_HWC=_sized(picture)) for name, picture in shown]))
    return lines


def _around(mask_HW: np.ndarray) -> tuple[slice, slice]:
    """A square of the picture with the mask in its middle, as far as the sides let it."""
    middle = np.argwhere(mask_HW).mean(0)
    corner = [int(np.clip(at - AROUND / 2, 0, side - AROUND)) for at, side in zip(middle, mask_HW.shape, strict=True)]
    return slice(corner[0], corner[0] + AROUND), slice(corner[1], corner[1] + AROUND)


def _sized(picture_HWC: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture_HWC).resize((CELL, CELL), Image.Resampling.BICUBIC))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--work", type=Path, default=Path("build/pictures"), help="where demo data and run are kept")
    words.add_argument("--steps", type=int, default=200, help="training steps")
    asked = words.parse_args()
    data = asked.work / "data"
    if not data.exists():
        make_demo(data)
    run = ad.train(data, asked.work / "run", max_train_steps=asked.steps)
    ad.masks(run.folder, num=4)
    ad.generate(run.folder, 2)
    _save("shots.png", contact_sheet(shots(run)), 0.6)
    _save("pairs.png", contact_sheet(pairs(run)))
    _save("severity.png", contact_sheet(turned(run, "severity", [0.5, 1.0, 1.5])))
    _save("strength.png", contact_sheet(turned(run, "strength", [0.1, 0.5, 1.0])))
    with Image.open(run.masks / "sheet.png") as sheet:
        _save("masks.png", np.asarray(sheet.convert("RGB")), 0.6)


if __name__ == "__main__":
    main()
