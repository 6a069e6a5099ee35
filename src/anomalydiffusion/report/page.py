"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from anomalydiffusion.core import manifest as field
from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.manifest import Manifest, accepted, judged
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.shapes import shape_distances
from anomalydiffusion.report.blocks import blocks
from anomalydiffusion.report.curves import loss_curves, precision_curves
from anomalydiffusion.report.figures import is_figure, is_flat, short, text, words
from anomalydiffusion.report.masks import Masks, evenly, masks_of, shot_masks
from anomalydiffusion.report.pairs import row_of
from anomalydiffusion.report.scores import as_of
from anomalydiffusion.report.sheets import Cell, Row, amplification, cells, contact_sheet, strength

__all__ = ["report"]

log = logging.getLogger(__name__)
CELL = 220  # pixels of a picture's longer side: sharp where five stand side by side on a laptop's screen
MOST_PAIRS = 120  # on the whole page, which keeps it near 10 MB however many defect types there are
SHOWN_REASONS = 12
OVERVIEW = 2  # pairs of each defect type, one where they would not fit into so many lines
OVERVIEW_LINES, OVERVIEW_TYPES = 6, 24
Record = dict[str, Any]


def report(run: Path, *, max_pairs: int = 12) -> Path:
    """Write `run`/report/index.html and return its path: what was made, from what, how well, and how to make it again.

    The page needs nothing else: pictures are inside, nothing is fetched. It shows up to `max_pairs` accepted pairs of each
    defect type, evenly spaced, fewer where there are so many types that the page would grow heavy; the same pairs go into a
    contact sheet beside it, `run`/report/<product>-<defect>.png, and the first of each type, or of the first 24, into overview.png.
    Masks are measured beside those of the shots, where the data set is still there. The training curves and the scores appear where
    their logs and scores.json exist. However large the images are, only those of one pair are in memory at a time.
    Raises `RunError` where run.json or the manifest is missing, a newer version made the run, or a `curate` of its was cut short.
    """
    run = Path(run)
    about = _json(run / "run.json")
    if about is None:
        raise RunError(f"{run}: no readable run.json, so not a run; make one with: anomalydiffusion train DATA --output {run}")
    Run.refuse_newer(run)
    path = run / "manifest.jsonl"
    if not path.is_file():
        raise RunError(f"{path}: no such file, nothing to report; make pairs with: anomalydiffusion generate {run} --num 100")
    records = judged(Manifest(path).records(), run)
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((str(record.get(field.PRODUCT)), str(record.get(field.DEFECT))), []).append(record)
    most = max(1, min(max_pairs, MOST_PAIRS // max(len(groups), 1)))
    limits = (_json(run / "gate.json") or {}).get("limits")
    kinds = [{**_kind(run, key, group, most), "limits": _limits(limits, key)} for key, group in sorted(groups.items())]
    environment = Environment(loader=PackageLoader("anomalydiffusion.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    settings = run / "config.toml"
    html = environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        products=sorted({product for product, _ in groups}),
        date=_date(about, path),
        kinds=kinds,
        totals=_totals(records, len(kinds)),
        reasons=_reasons(records),
        scores=sorted(blocks(as_of(_json(run / "scores.json") or {}, records)), key=lambda block: block["table"] is None),
        precision=precision_curves(_json(run / "scores.json")),
        tested=list(_tested(run)),
        masks=_masks(run, groups),
        curves=[*loss_curves(run / "train_log.jsonl", "defects"), *loss_curves(run / "mask_log.jsonl", "masks")],
        origin=_origin(about, records),
        commands=[str(line) for line in about.get("commands") or []],
        settings=settings.read_text(encoding="utf-8", errors="replace").strip() if settings.is_file() else "",
    )
    shown = [kind for kind in kinds if kind["sheet"]["first"]][:OVERVIEW_TYPES]
    each = OVERVIEW if len(shown) * OVERVIEW <= OVERVIEW_LINES else 1
    overview = [(f"{kind['product']}/{kind['defect']} {label}", line) for kind in shown for label, line in kind["sheet"]["first"][:each]]
    if overview:
        write_atomic(run / "report" / "overview.png", encode_png(contact_sheet(overview)))
    target = run / "report" / "index.html"
    write_atomic(target, html.encode("utf-8", "replace"))
    return target


def _json(path: Path) -> Record | None:
    """The object in a JSON file; None, with a warning where there is a file, when there is none."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); left out", path, error)
        return None
    return value if isinstance(value, dict) else None


def _date(about: Record, manifest: Path) -> str:
    """The day that run.json names, else that of the last pair."""
    named = next((str(about[key]) for key in ("finished", "updated", "created", "started", "date") if about.get(key)), "")
    return named[:10] or datetime.datetime.fromtimestamp(manifest.stat().st_mtime).date().isoformat()


# What was made -------------------------------------------------------------------------------------------------------


def _totals(records: list[Record], kinds: int) -> list[tuple[str, str, str]]:
    """The headline: figure, name, explanation."""
    kept, seconds = len(accepted(records)), [s for r in records if is_figure(s := r.get(field.SECONDS))]
    share = f"{100 * kept / len(records):.0f} %" if records else "–"
    found = [(f"{kept:,}", "accepted pairs", "image and label, ready to export"),
             (f"{len(records) - kept:,}", "rejected", "kept on disk, never exported"),
             (share, "yield", f"of {len(records):,} attempts"),
             (f"{kinds:,}", "defect type" if kinds == 1 else "defect types", "with their own pictures below")]  # fmt: skip
    return [*found, (f"{median(seconds):.2g} s", "an attempt", "median, on the machine that made them")] if seconds else found


def _reasons(records: Iterable[Record]) -> list[tuple[str, int]]:
    """Reasons of rejection and how often each was given; reasons that differ only in a figure count as one."""
    given = Counter(
        re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "…", str(reason))
        for record in records
        if record.get(field.ACCEPTED) is not True
        for reason in _reasons_of(record) or ["no reason recorded"]
    )
    shown = given.most_common(SHOWN_REASONS)
    rest = given.total() - sum(count for _, count in shown)
    return [*shown, ("other reasons", rest)] if rest else shown


def _reasons_of(record: Record) -> list[Any]:
    """A record's reasons, where it has a list of them."""
    reasons = record.get(field.REASONS)
    return reasons if isinstance(reasons, list) else []


def _file_name(key: tuple[str, str]) -> str:
    """What a type's sheet is called: the type, where that can be a file's name."""
    whole = "-".join(key)
    name = re.sub(r"[^\w .+()-]", "_", whole)[:60]
    if name == whole and not any("-" in part for part in key):
        return name
    return f"{name}-{hashlib.sha256(repr(key).encode('utf-8', 'replace')).hexdigest()[:8]}"


def _kind(run: Path, key: tuple[str, str], records: list[Record], most: int) -> Record:
    """One product's defect type: counts and sampled pictures; writes its contact sheet."""
    kept = accepted(records)
    rejected = [record for record in records if record.get(field.ACCEPTED) is not True]
    return {
        "product": key[0], "defect": key[1], "attempts": len(records), "accepted": len(kept), "rejected": len(rejected),
        "percent": 100 * len(kept) / len(records), "reasons": _reasons(rejected),
        "sheet": _sheet(run, kept, most, run / "report" / f"{_file_name(key)}.png"),
        "rejected_sheet": _sheet(run, rejected, max(1, most // 4)),
    }  # fmt: skip


def _limits(told: Any, key: tuple[str, str]) -> str:
    """What gate.json says that a type's pairs must reach, in words; "" where it says nothing."""
    own = told.get("/".join(key)) if isinstance(told, dict) else None
    own = own if isinstance(own, dict) else {}
    return ", ".join(f"{words(name)} at least {short(value)}" for name, value in own.items() if is_figure(value))


def _sheet(run: Path, records: list[Record], most: int, file: Path | None = None) -> Record:
    """Evenly spaced records as pictures, and as a contact sheet in `file`; those that cannot be read are left out and counted.

    The files are read twice, for the amplification and for the pictures: full-size images of all would not fit in memory.
    """
    picks: list[Record] = evenly(records, most)
    readable: list[tuple[Record, float | None]] = []
    for record in picks:
        if row := _row(run, record):
            readable.append((record, strength(row)))
        del row  # before the next one is read
    amplify = amplification(change for _, change in readable)
    pairs: list[Record] = []
    lines: list[tuple[str, list[Cell]]] = []
    for record, _ in readable:
        if row := _row(run, record):
            drawn = cells(row, cell=CELL, amplify=amplify)
            lines.append((row.label, drawn))
            pairs.append({
                "cells": [(c.label, _uri(c.image_HWC), *c.image_HWC.shape[1::-1]) for c in drawn],
                "caption": _caption(record), "name": row.label, "reasons": "; ".join(map(str, _reasons_of(record))),
            })  # fmt: skip
        del row
    if file and lines:
        write_atomic(file, encode_png(contact_sheet(lines)))
    first = [(label, [replace(each, label=each.label.partition(" ×")[0]) for each in line]) for label, line in lines[:OVERVIEW]]
    return {"pairs": pairs, "first": first, "of": len(records), "unreadable": len(picks) - len(pairs)}


def _tested(run: Path) -> Iterator[tuple[str, str]]:
    """Name and picture of each sheet of test images that can be read."""
    for path in sorted((run / "evaluation").glob("*.png")):
        try:
            yield path.stem, _uri(read_image(path))
        except DataError as error:
            log.warning("%s; left out", error)


def _row(run: Path, record: Record) -> Row | None:
    try:
        return row_of(run, record)
    except (DataError, TypeError, ValueError, OverflowError) as error:
        log.warning("%s: not shown in the report (%s)", record.get(field.IMAGE), error)
        return None


def _caption(record: Record) -> str:
    parts = [f"{name} {text(record[key])}" for name, key in (
        ("seed", field.SEED), ("attempt", field.ATTEMPT), ("severity", field.SEVERITY), ("mask", field.MASK_ORIGIN),
    ) if record.get(key) is not None]  # fmt: skip
    if record.get(field.REFERENCE):
        parts.append(f"begun from {Path(str(record[field.REFERENCE])).name}")
    measures = record.get(field.MEASURES)
    shown = list(measures.items())[:4] if isinstance(measures, dict) else []
    return " · ".join([*parts, *(f"{words(str(name))} {text(value)}" for name, value in shown)])


def _uri(image_HWC: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _masks(run: Path, groups: dict[tuple[str, str], list[Record]]) -> list[Record]:
    """A line for each defect type's accepted masks, and one for the real ones that were learned from, where they are still there."""
    real = shot_masks(run)
    lines: list[Record] = []
    for key, group in sorted(groups.items()):
        kept = [run / str(record[field.MASK]) for record in accepted(group) if isinstance(record.get(field.MASK), str)]
        own = [(title, found) for title, paths in (("real", real.get(key, [])), ("generated", kept)) if (found := masks_of(paths))]
        away = shape_distances(own[1][1].shapes, own[0][1].shapes) if len(own) == 2 else {}
        lines += [_mask_line(key, title, found, len(own) - row, away if row else {}) for row, (title, found) in enumerate(own)]
    return lines


def _mask_line(key: tuple[str, str], title: str, found: Masks, lines: int, away: dict[str, float]) -> Record:
    """`lines`: of this defect type that are left, for the cell that spans them; `away`: how far its figures are from the real ones'."""
    figures = []
    for name, unit, times, shown in (
        ("area", " doublings", 1, short), ("parts", "", 1, text), ("elongation", " doublings", 1, short), ("margin", " %", 100, short),
    ):  # fmt: skip
        low, middle, high = getattr(found, name)
        apart = f"{short(times * away[name])}{unit} away" if name in away else ""
        figures.append((shown(middle), shown(low), shown(high), apart))
    return {"key": "/".join(key), "title": title, "count": found.count, "figures": figures, "at_side": f"{found.at_side:.0f} %",
            "where": _uri(found.where), "lines": lines}  # fmt: skip


# How well, from what -------------------------------------------------------------------------------------------------


def _origin(about: Record, records: list[Record]) -> list[tuple[str, str]]:
    """Where the pairs come from: what run.json says, and each digest that the records name with its number of pairs."""
    found = [(words(key), text(value)) for key, value in about.items() if key != "commands" and is_flat(value)]
    for key, value in about.items():
        if isinstance(value, dict):
            found += [(f"{words(key)}: {name}", text(item)) for name, item in value.items() if is_flat(item)]
    for key in (field.PRIOR_DIGEST, field.ADAPTER_DIGEST, field.CONFIG_DIGEST, field.VERSION):
        counts = Counter(str(record[key]) for record in records if record.get(key))
        for name, count in counts.items():
            found.append((f"{words(key)} of the pairs", f"{name} ({count:,} attempts)" if len(counts) > 1 else name))
    return found
