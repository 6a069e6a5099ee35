"""What the studio can do, without its page: every answer is plain values or pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalydiffusion.app.curate import curate, decide
from anomalydiffusion.app.export import export
from anomalydiffusion.app.jobs import Job, Jobs
from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.pipeline import AnomalyDiffusionPipeline
from anomalydiffusion.app.redraw import redraw
from anomalydiffusion.app.settings import resolve
from anomalydiffusion.app.verdicts import suggest
from anomalydiffusion.app.words import begun, chosen
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.names import is_folder, placed_at
from anomalydiffusion.core.pixels import encode_png, read_image, read_mask
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.check import check
from anomalydiffusion.data.folders import GOOD, folders_in, images_in, mask_of, masks_in, named, plain, product_folders, read_folder
from anomalydiffusion.quality.gate import GateConfig, reason_of
from anomalydiffusion.quality.verdicts import Agreed
from anomalydiffusion.report.pairs import row_of
from anomalydiffusion.report.scores import as_of
from anomalydiffusion.report.sheets import Row, cells

__all__ = ["Desk"]

Record = dict[str, Any]
VERDICTS = ("kept", "rejected", "all")
POINTS = 500  # of the training's curve
SHEETS = 10  # previews of one training


def _point(line: bytes) -> tuple[int, float] | None:
    """Step and loss in a line of the training's log; None where it has none."""
    try:
        record = json.loads(line)
        return int(record["step"]), float(record["loss"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class Desk:
    """One run and its data set. A run that is not there yet is made by `learn`."""

    def __init__(self, run: Path, data: Path | None = None) -> None:
        self.folder = run
        self.given = data
        self.jobs = Jobs(run / "studio")
        self.pipe: tuple[tuple[str, ...], AnomalyDiffusionPipeline] | None = None  # beside what it was made of
        self.seen: tuple[int, list[tuple[int, float]]] = (0, [])  # bytes of the training's log, and what they say
        self.drawn: tuple[tuple[int, int], list[list[Any]]] = ((0, 0), [])  # size and time of the manifest, and what it counts

    # Data ------------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The data set's folder: what was given, else the one that the run was made from. Raises `DataError` where neither is known."""
        if self.given is not None:
            return self.given
        try:
            return Path(json.loads(Run(self.folder, {}).split.read_text(encoding="utf-8"))["root"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError("no data set yet: give the folder that holds your products") from error

    def look(self) -> tuple[list[list[Any]], list[list[str]]]:
        """(one row a defect type: product, defect, images, shots, normals; one row a problem: level, file, what, remedy)."""
        report = check(self.data)
        rows = [
            [product.name, defect, count, product.shots.get(defect, 0), product.normals_train, product.normals_test]
            for product in report.products
            for defect, count in (product.defects or {"-": 0}).items()
        ]
        return rows, [[each.level, each.file, each.message, each.remedy] for each in report.problems]

    def products(self) -> dict[str, list[str]]:
        """Defect types by product, in the data set: those that can be learned."""
        return {name: list(product.defects) for name, product in read_folder(self.data).products.items()}

    def kinds(self) -> dict[str, list[str]]:
        """Defect types by product, in the data set: those without any mask too."""
        return {
            name: [place.name for place in folders_in(folder / "test") if place.name.casefold() != GOOD]
            for name, folder in product_folders(self.data).items()
        }

    def _pictures(self, product: str, defect: str) -> dict[str, tuple[Path, Path | None]]:
        """A type's images by file name, each with its mask if it has one; none of a type that is not there."""
        folder = product_folders(self.data).get(product) if self.data.is_dir() and folders_in(self.data) else None
        if folder is None or not is_folder(defect):
            return {}
        masks = masks_in(named(folder / "ground_truth", defect))
        return {path.name: (path, mask_of(path, masks)) for path in images_in(folder / "test" / defect)}

    def labelled(self, product: str, defect: str) -> list[str]:
        """The names of a type's images."""
        return list(self._pictures(product, defect))

    def label(self, product: str, defect: str, name: str) -> tuple[np.ndarray, np.ndarray, str]:
        """An image, uint8 RGB, its mask, bool, and what is wrong with that; an unusable one is empty, as one that is not there."""
        if (found := self._pictures(product, defect).get(name)) is None:
            raise DataError(f"{product}/{defect}: no image {name}; read the data set again")
        image_HWC, empty = read_image(found[0]), ""
        if found[1] is not None:
            try:
                mask = read_mask(found[1])
                if mask.shape == image_HWC.shape[:2]:
                    return image_HWC, mask, ""
                empty = f"{found[1].name} is {mask.shape[1]} x {mask.shape[0]}, the image {image_HWC.shape[1]} x {image_HWC.shape[0]}"
            except DataError as error:
                empty = str(error)
        return image_HWC, np.zeros(image_HWC.shape[:2], bool), empty

    @staticmethod
    def opened(path: Path) -> np.ndarray:
        """A picture's pixels, uint8 RGB. Raises `DataError` on what is none."""
        return read_image(path)

    def save_label(self, product: str, defect: str, marks_HW: np.ndarray, name: str, new: np.ndarray | None = None) -> Path:
        """Write the mask of an image of the data set, or of a `new` one, which is written too; returns the mask's file.

        Names are one path component each. Raises `DataError` on another kind of name, where a new image's name is taken, and on a
        mask of another size; `MaskError` where nothing is marked.
        """
        for word in (product, defect, name):
            if not is_folder(word) or word.startswith("."):
                raise DataError(f"'{word}': give a plain name, without folders")
        if defect.casefold() == GOOD:
            raise DataError(f"'{defect}' is what the folder of normal images is called; give the defect another name")
        mask, found = Mask(pixels_HW=marks_HW, origin="user"), self._pictures(product, defect).get(name)
        if new is None and found is None:
            raise DataError(f"{product}/{defect}: no image {name}; read the data set again")
        image_HWC = read_image(found[0]) if new is None and found is not None else new
        assert image_HWC is not None
        if marks_HW.shape != image_HWC.shape[:2]:
            raise DataError(f"the mask is {marks_HW.shape[1]} x {marks_HW.shape[0]}, the image {image_HWC.shape[1]} x {image_HWC.shape[0]}")
        folder, stem = self._folder(product), Path(name).stem
        image, target = folder / "test" / defect / f"{stem}.png", named(folder / "ground_truth", defect) / f"{stem}_mask.png"
        if new is None and found is not None:
            before = found[1] or target
            target = before if before.suffix.lower() == ".png" else before.with_suffix(".png")
            write_atomic(target, encode_png(mask.pixels_HW))
            if target != before:  # of two masks the new one is read, so that it may be killed here
                before.unlink(missing_ok=True)
            return target
        beside = {plain(path.stem).casefold() for folder in (image.parent, target.parent) for path in images_in(folder)}
        if beside & {plain(name).casefold() for name in (stem, f"{stem}_mask")}:  # some file systems take x.png for X.png
            raise DataError(f"{image}: a picture or mask of this name is there already; give another name")
        write_atomic(image, encode_png(image_HWC))
        write_atomic(target, encode_png(mask.pixels_HW))
        return target

    def _folder(self, product: str) -> Path:
        """Where a product of the data set lies, or would: the data set may be one product itself, and then holds no other."""
        try:
            folders = product_folders(self.data)
        except DataError:  # nothing there yet
            return self.data / product
        if product not in folders and placed_at(self.data) in folders.values():
            raise DataError(f"{product}: this data set is the one product {next(iter(folders))}; give that name")
        return folders.get(product, self.data / product)

    # Learn, draw many, prove: commands that take long ------------------------------------------------------------------------

    def learn(self, defects: Sequence[str], steps: int | None, preset: str) -> None:
        """Put `train` in line, or go on with it as it began; `defects` are words "product/defect", none = all, or what it began with."""
        own = Run(self.folder, {}).config
        told = ["--config", str(own)] if own.is_file() else [] if preset == "default" else ["--preset", preset]
        length = [] if steps is None else ["--max-train-steps", str(steps)]
        planned = resolve(None, own).train if own.is_file() else resolve(preset).train
        every = ["--preview-steps", str(max(1, -(-(steps or planned.loop.steps) // SHEETS)))]
        self.jobs.add(["train", str(self.data), "--output", str(self.folder), *told, *length, *every,
                       *(chosen(defects) if defects else begun(self.folder, self.data))])  # fmt: skip

    def draw_many(self, num: int, defects: Sequence[str], severity: str) -> None:
        """Put `generate` in line, or go on with it; no `severity` is that of the run's settings."""
        told = ["--severity", severity.strip()] if severity.strip() else []
        self.jobs.add(["generate", str(self.folder), "--num", str(num), *told, *chosen(defects)])

    def prove(self, task: str, seeds: int, baselines: bool, controls: bool = False, steps: int | None = None) -> None:
        """Put `evaluate` in line, or go on with it; `steps`: of each detector's training, None = as the run's settings say."""
        words = ["evaluate", str(self.folder), "--task", task, *(["--baselines"] if baselines else [])]
        if task != "quality":
            words += ["--seeds", str(seeds), *(["--controls"] if controls else [])]
            words += [] if steps is None else ["--steps", str(steps)]
        self.jobs.add(words)

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the training so far, at most `POINTS` of them."""
        log = Run(self.folder, {}).train_log
        size = log.stat().st_size if log.is_file() else 0
        if size != self.seen[0]:
            lines = log.read_bytes().split(b"\n")[:-1] if size else []  # the last one may be half written
            every = -(-len(lines) // POINTS) or 1
            records = [record for line in lines[::every] if (record := _point(line)) is not None]
            self.seen = size, records
        return self.seen[1]

    def preview(self) -> tuple[str, int] | None:
        """The newest sheet of what was drawn while it learned, and when it was written; None before there is one."""
        found = max(Run(self.folder, {}).previews.glob("step-*.png"), default=None, key=lambda path: (len(path.name), path.name))
        return (str(found), found.stat().st_mtime_ns) if found else None

    def counts(self) -> list[list[Any]]:
        """(defect, kept, drawn) of each type that has pairs."""
        path = Run(self.folder, {}).manifest
        known = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0)
        if known != self.drawn[0]:
            records = Manifest(path).pairs() if known[0] else []
            words = sorted({f"{record['product']}/{record['defect']}" for record in records})
            self.drawn = known, [[word, *self._count(records, word)] for word in words]
        return self.drawn[1]

    @staticmethod
    def _count(records: Sequence[Record], word: str) -> tuple[int, int]:
        own = [record for record in records if word == f"{record['product']}/{record['defect']}"]
        return sum(bool(record["accepted"]) for record in own), len(own)

    # Draw one --------------------------------------------------------------------------------------------------------------

    def defects(self) -> list[str]:
        """What the run can draw, as words "product/defect"; none before it has learned."""
        own = Run(self.folder, {})
        return ["/".join(key) for key in Adapter.vectors_of(own.adapter)] if own.adapter.is_file() else []

    def normals(self, product: str) -> list[str]:
        """The files of the product's normal images that may be drawn on."""
        return [str(normal.path) for normal in run_split(Run.open(self.folder)).normals if normal.product == product]

    def normal(self, word: str, path: str) -> np.ndarray:
        """A normal image that a defect may be drawn on, uint8 RGB. Raises `DataError` on any other file."""
        if path not in self.normals(product := word.partition("/")[0]):
            raise DataError(f"{path}: is no normal image of {product} in this run")
        return read_image(Path(path))

    def draw(self, word: str, normal: str, marks_HW: np.ndarray | None, severity: float, seed: int) -> list[tuple[np.ndarray, str]]:
        """Pictures with captions of one defect on a normal image of the run, under a mask or a proposed one."""
        product, _, defect = word.partition("/")
        normal_HWC = self.normal(word, normal)
        made_of = AnomalyDiffusionPipeline.made_of(self.folder)
        if self.pipe is None or self.pipe[0] != made_of:
            pipe = AnomalyDiffusionPipeline.from_pretrained(self.folder)
            pipe.set_progress_bar_config(disable=True)
            self.pipe = made_of, pipe
        given = None if marks_HW is None or not marks_HW.any() else marks_HW
        drawn = self.pipe[1](normal, given, product=product, defect=defect, severity=severity, seed=seed)
        image, mask = np.asarray(drawn.image), np.asarray(drawn.mask) > 0
        row = Row(image_HWC=image, mask_HW=mask, box=drawn.provenance.touched_box, normal_HWC=normal_HWC)
        return [(each.image_HWC, each.label) for each in cells(row, cell=320)]

    # Review ----------------------------------------------------------------------------------------------------------------

    def pairs(self, word: str, verdict: str, reason: str = "") -> list[Record]:
        """The manifest's records of one defect type ("" = all) that are kept, rejected, or both, and have a reason ("" = any, or none)."""
        if verdict not in VERDICTS:
            raise ConfigError(f"'{verdict}': known are {', '.join(VERDICTS)}")
        return [
            record
            for record in Manifest(Run(self.folder, {}).manifest).pairs()
            if word in ("", f"{record['product']}/{record['defect']}")
            and (verdict == "all" or record["accepted"] is (verdict == "kept"))
            and (not reason or reason in map(reason_of, record["reasons"]))
        ]

    def reasons(self, word: str, verdict: str) -> dict[str, int]:
        """How many of these records have each reason, the most frequent one first."""
        return dict(
            Counter(reason for record in self.pairs(word, verdict) for reason in {*map(reason_of, record["reasons"])}).most_common()
        )

    def show(self, record: Record) -> list[tuple[np.ndarray, str]]:
        """A pair's pictures with captions: whole, normal, result, label, difference."""
        return [(each.image_HWC, each.label) for each in cells(row_of(self.folder, record), cell=320)]

    def thumbnail(self, record: Record, side: int = 160) -> Image.Image:
        """A pair's image, small; grey where it cannot be read."""
        try:
            picture = Image.fromarray(read_image(self.folder / str(record["image"])))
        except DataError:
            return Image.new("RGB", (side, side), "grey")
        picture.thumbnail((side, side))
        return picture

    def decide(self, image: str, keep: bool, seen: Sequence[str] | None = None) -> Record:
        """Keep or reject one pair by hand, of which the reasons `seen` were shown; returns its record, whose files may have moved."""
        return decide(self.folder, {image: keep}, None if seen is None else {image: seen})[0]

    def redraw(self, image: str) -> Job:
        """Reject one pair by hand and start `generate`, which draws another in its place, as it was drawn (`app.redraw`)."""
        self.jobs.refuse_busy()  # before the pair is rejected
        return self.jobs.start(redraw(self.folder, image))

    def gate(self) -> GateConfig:
        """The gate's settings of the run, or those that it will have."""
        own = Run(self.folder, {})
        return run_settings(own).gate if own.config.is_file() else GateConfig()

    def judge(self, *, visible: float, agreement: float | None, strict: float, refit: bool) -> dict[str, Any]:
        """Judge all pairs anew with other limits; an agreement of None is the shots'."""
        known = self.gate()
        return curate(
            self.folder, visible=visible, agreement=agreement, similarity=known.similarity, margin=known.margin, evenness=known.evenness,
            strict=strict, refit=refit, from_shots=True, quiet=True,
        )  # fmt: skip

    def suggest(self) -> Agreed:
        """The gate's limits as the verdicts by hand ask for them; `judge` makes them the run's."""
        return suggest(self.folder)

    # Proof and export --------------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, Any]:
        """What `evaluate` found, by task; empty before it ran."""
        path = Run(self.folder, {}).scores
        if not path.is_file():
            return {}
        try:
            return as_of(dict(json.loads(path.read_text(encoding="utf-8"))), Manifest(Run(self.folder, {}).manifest).records())
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: damaged ({error}); run evaluate again") from error

    def tested(self) -> list[Path]:
        """The sheets of the best and the worst test images."""
        return sorted(Run(self.folder, {}).evaluation.glob("*.png"))

    def hand_out(self, format: str, output: Path, together: int = 1, contents: str = "synthetic") -> str:
        """Export the kept pairs, the real defects, or both; what was written, in words."""
        done = export(self.folder, output, format, together=together, contents=contents)
        real = f" and {sum(done.real.values())} real defects" if done.real else ""
        return f"{sum(done.counts.values())} pairs{real} in {done.pictures} pictures, in {done.output}"
