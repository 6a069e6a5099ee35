"""Hand the accepted pairs of a run, the real defects that it learned from, or both, to other tools."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import DEFECT, IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, PRODUCT, Manifest, accepted, judged
from anomalydiffusion.core.names import is_below, is_folder, shown
from anomalydiffusion.core.runs import Run, replace_folder
from anomalydiffusion.report.formats.common import ROLE, is_real
from anomalydiffusion.report.formats.together import grouped, key_of
from anomalydiffusion.report.layouts import FORMATS, Goods, Record
from anomalydiffusion.report.learned_from import NORMAL, SHOT, read_role

__all__ = ["CONTENTS", "FORMATS", "ExportSummary", "export"]

log = logging.getLogger(__name__)
LINEAGE = "lineage.jsonl"
CONTENTS = ("synthetic", "mixed", "real")
GOOD = re.compile(r"[^/]+/train/good/\d{6}\.png")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was written where.

    `counts` maps (product, defect) to pairs, `real` to real defects, `normals` a product to its normal images; `pictures` hold these
    pairs and real defects.
    """

    format: str
    output: Path
    counts: dict[tuple[str, str], int]
    normals: dict[str, int]
    pictures: int = 0
    real: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)


def export(
    run: Path, output: Path, format: str = "mvtec", *, product: Sequence[str] | None = None,
    defect: Sequence[str] | None = None, normals: bool = True, together: int = 1, contents: str = "synthetic",
) -> ExportSummary:  # fmt: skip
    """Copy the accepted pairs of `run`, with the normal images that were learned from, to the new folder `output`.

    `mvtec` is the layout of MVTec AD, which anomalib reads: `<product>/test/<defect>/000000.png`,
    `<product>/ground_truth/<defect>/000000_mask.png` (8 bit, 0 or 255) and `<product>/train/good/000000.png`; pairs are in
    the order of product, defect and image path. `lineage.jsonl` beside the products names the manifest's record of each
    pair. Held-out images, normal or not, are never exported: a detector that saw them could not be tested on them any
    more. So there is no `test/good`; take those from the data set itself.

    `anomalib`: a folder for each product with `normal/`, `abnormal/`, `mask/`, a `folder.yaml` for anomalib's Folder datamodule, and
    `textures/`, the defects cut out, for models that draw their own anomalies. `coco`: `annotations.json` with exact run
    lengths and boxes for each connected part, and `images/`. `yolo`: `data.yaml`, `images/` and `labels/` with a polygon for each
    connected part. `imagefolder`: `train/` and `validation/` with images, masks and `metadata.jsonl` for Hugging Face's `datasets`,
    and a dataset card. `labelstudio`: `tasks.json` with polygons to correct, `labels.xml`, `images/`, and a README on how to
    import them. `yolo` and `imagefolder` are divided so that all pictures from one normal image, or of one part, are on one side.

    `contents`: `synthetic` is the pairs alone, `mixed` also the real defects that were learned from, `real` those and no pair; the lineage
    tells one from the other. Where both are there, the real ones are all for training: pairs were begun from them.

    `together`: so many defects are in one picture at most, of one type or of several: pairs that were drawn on one normal image and
    whose changes lie apart (`report.formats.together`). Its mask is that of all its defects; `coco`, `yolo` and `labelstudio` have each
    defect under its own type. A picture of several types is of type `combined`, as in MVTec AD.
    `product` and `defect` keep only these names; `normals=False` leaves `train/good` out. Every file is compared with its
    SHA-256 first. An `output` that holds an older export is replaced; one that holds anything else is refused. Raises
    `ConfigError` on an unknown format, `RunError` on everything that is missing, changed or cannot be written.
    """
    write = FORMATS.get(format)
    if write is None:
        raise ConfigError(f"format '{format}' is not known; known: {', '.join(FORMATS)}")
    if together < 1:
        raise ConfigError(f"together = {together}: expected at least 1")
    if contents not in CONTENTS:
        raise ConfigError(f"contents '{contents}': known are {', '.join(CONTENTS)}")
    run, output = Path(run), Path(output).resolve()
    Run.refuse_newer(run)
    pairs = [] if contents == "real" else _pairs(run, product, defect)
    shots = [] if contents == "synthetic" else _shots(run, product, defect)
    files = _normals(run, sorted({record[PRODUCT] for record in [*pairs, *shots]})) if normals else {}
    goods = Goods(files=files, parts=_parts(run))
    _check_output(output)
    groups = [*grouped(run, pairs, together), *((shot,) for shot in shots)]
    groups.sort(key=lambda group: (*key_of(group), is_real(group[0]), group[0][IMAGE]))
    try:
        with replace_folder(output) as part:
            lineage = write(run, part, groups, goods)
            (part / LINEAGE).write_text("".join(json.dumps(line) + "\n" for line in lineage), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error}); check free space and permissions") from error
    counts, real = (dict(Counter((record[PRODUCT], record[DEFECT]) for record in own)) for own in (pairs, shots))
    return ExportSummary(format=format, output=output, counts=counts, normals={name: len(g) for name, g in files.items()},
                         pictures=len(groups), real=real)  # fmt: skip


def _pairs(run: Path, products: Sequence[str] | None, defects: Sequence[str] | None) -> list[Record]:
    """The accepted records to export, checked and in order."""
    path = run / "manifest.jsonl"
    if not path.is_file():
        raise RunError(f"{path}: no such file, so there are no pairs; make some with: anomalydiffusion generate {run} --num 100")
    last = {str(record.get(IMAGE)): record for record in Manifest(path).records()}.values()  # the last word on it
    records = accepted(judged(last, run))
    for record in records:
        for name in (PRODUCT, DEFECT, IMAGE, MASK, IMAGE_SHA256, MASK_SHA256):
            if not isinstance(record.get(name), str):
                raise RunError(f"{path}: the record of {shown(record.get(IMAGE))} lacks '{name}'; remove its line or repair it")
        for name in (PRODUCT, DEFECT):
            if not is_folder(record[name]):
                raise RunError(f"{path}: {name} {shown(record[name])} cannot be a folder's name; rename it in data and run")
        for name in (IMAGE, MASK):
            if not is_below(record[name]):
                raise RunError(f"{path}: {name} {shown(record[name])} may lie outside of {run}; remove its line or repair it")
        if record[DEFECT].lower() == "good":
            raise RunError(f"{path}: a defect named {record[DEFECT]!r} would be read as 'no defect'; rename it in data and run")
    for kind, wanted, field in (("product", products, PRODUCT), ("defect", defects, DEFECT)):
        known = sorted({record[field] for record in records})
        if records and wanted is not None and (unknown := sorted(set(wanted) - set(known))):
            raise RunError(f"{run}: no accepted pair of {kind} {', '.join(unknown)}; there are: {', '.join(known)}")
    records = [r for r in records if (products is None or r[PRODUCT] in products) and (defects is None or r[DEFECT] in defects)]
    if not records:
        raise RunError(f"{run}: no accepted pairs to export; make some with: anomalydiffusion generate {run} --num 100")
    return sorted(records, key=lambda r: (r[PRODUCT], r[DEFECT], r[IMAGE]))


def _shots(run: Path, products: Sequence[str] | None, defects: Sequence[str] | None) -> list[Record]:
    """The real defects that the split lets be learned from, as records with whole paths, checked and in order."""
    path = run / "split.json"
    advice = 'export the pairs alone (contents="synthetic", --contents synthetic) or train the run again'
    try:
        root, rows = read_role(run, SHOT)
        for row in rows:
            if not all(is_below(row[name]) for name in ("path", "mask")) or not all(is_folder(row[name]) for name in (PRODUCT, DEFECT)):
                raise ValueError(f"{shown(row['path'])} of {shown(row[PRODUCT])}/{shown(row[DEFECT])} may lie outside of {root}")
        found = [
            {PRODUCT: row[PRODUCT], DEFECT: row[DEFECT], IMAGE: str(root / row["path"]), MASK: str(root / row["mask"]),
             IMAGE_SHA256: str(row["sha256"]), MASK_SHA256: str(row["mask_sha256"]), ROLE: SHOT, "group": str(row["group"])}
            for row in rows if (products is None or row[PRODUCT] in products) and (defects is None or row[DEFECT] in defects)
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({type(error).__name__}: {error}); {advice}") from error
    if not found:
        known = ", ".join(sorted({f"{row[PRODUCT]}/{row[DEFECT]}" for row in rows}))
        raise RunError(f"{run}: no real defects of these names were learned from; there are: {known or 'none'}")
    return sorted(found, key=lambda r: (r[PRODUCT], r[DEFECT], r[IMAGE]))


def _parts(run: Path) -> dict[str, str]:
    """Which part each image of the split shows, by SHA-256: what `groups.csv` calls a group; nothing where there is no such split."""
    try:
        rows = [row for role in (SHOT, NORMAL) for row in read_role(run, role)[1]]
        return {str(row["sha256"]): f"{row[PRODUCT]}/{row['group']}" for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # who needs the split is told by those that read it


def _normals(run: Path, products: list[str]) -> dict[str, list[tuple[Path, str]]]:
    """Path and SHA-256 of the normal images that the split lets be learned from, by product."""
    path = run / "split.json"
    advice = "export without normal images (normals=False, --no-normals) or train the run again"
    try:
        root, rows = read_role(run, NORMAL)
        found = {name: [(root / r["path"], r["sha256"]) for r in rows if r["product"] == name] for name in products}
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file; {advice}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({type(error).__name__}: {error}); {advice}") from error
    for name, files in found.items():
        if not files:
            log.warning("%s: no normal images of %s; %s/train/good will be missing", path, name, name)
    return found


def _check_output(output: Path) -> None:
    """Refuse a folder whose replacement would lose anything that an export did not put there."""
    if not output.exists():
        return
    if not output.is_dir():
        raise RunError(f"{output}: is a file; name a new folder")
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if not present:
        return
    if LINEAGE not in present:
        raise RunError(f"{output}: is not empty and not an export of ours (no {LINEAGE}); name a new folder")
    lines = Manifest(output / LINEAGE).records()
    ours = {LINEAGE, *(str(value) for line in lines for name, value in line.items() if name.startswith("exported_"))}
    products = {name.split("/")[0] for name in ours}
    strange = sorted(n for n in present - ours if not (GOOD.fullmatch(n) and n.split("/")[0] in products))
    if strange:
        raise RunError(f"{output / strange[0]}: is not of an export and would be lost; move it away or name a new folder")
