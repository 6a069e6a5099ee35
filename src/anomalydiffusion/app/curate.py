"""The commands that judge a run's pairs anew: by the gate, or by hand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anomalydiffusion.app.limits import limits_json
from anomalydiffusion.app.opened import run_settings, run_split, typed
from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.rejudged import drawing_of, gate_again
from anomalydiffusion.app.settings import to_toml
from anomalydiffusion.app.verdicts import KEPT, REFUSED, agreed
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import PARKED, Manifest
from anomalydiffusion.core.names import is_file
from anomalydiffusion.core.pixels import digest_file, encode_png, read_image, read_mask
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.core.types import Mask, Pair, Provenance, Verdict
from anomalydiffusion.generation.shards import Slot, files_of, slot_of
from anomalydiffusion.quality.gate import Gate
from anomalydiffusion.quality.refit import fitted

__all__ = ["curate", "decide"]

Record = dict[str, Any]
FILES = ("image", "mask", "requested_mask")
GONE = "gone or changed since it was made; restore it, or draw the pairs anew with generate --no-resume"
OTHER = "another attempt is kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A record, the gate's word on it, and its refitted label as PNG; None = the one that was asked for."""

    record: Record
    verdict: Verdict
    label: bytes | None
    overlap: float  # of the label with the one that was asked for


def curate(
    run: Path | str, *, refit: bool | None = None, visible: float | None = None, change: float | None = None, copy: float | None = None,
    strict: float | None = None, agreement: float | None = None, similarity: float | None = None, margin: float | None = None,
    evenness: float | None = None,
    from_shots: bool = False, from_verdicts: bool = False, config: Path | str | None = None, dry_run: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Judge every pair of a run anew, kept and rejected ones, with other settings of the gate; they become the run's.

    `refit` fits each label to what is seen of the defect (`quality.refit`); the mask that was asked for is kept beside it. The
    other settings are those of `GateConfig`; with `from_shots`, limits that were given earlier are the shots' again; with
    `from_verdicts`, `visible` and `strict`, unless given, are what agrees best with the pairs judged by hand (`quality.verdicts`).
    Verdicts go to the manifest, nothing is deleted; a pair that is no longer kept moves to `rejected/`, and `generate` draws another
    in its place. With `dry_run` nothing is written. What `decide` said stays. Returns, by defect type, how many were drawn, were and
    are kept, the reasons, and the limits. Raises `RunError` where there is nothing to judge, or a file that the manifest names is
    gone or changed; `DataError` where too few pairs were judged by hand.
    """
    opened = Run.open(Path(run))
    given = {"refit": refit, "visible": visible, "change": change, "copy": copy, "strict": strict}
    settings = run_settings(opened, config=config, gate=given)
    limits = {"agreement": agreement, "similarity": similarity, "margin": margin, "evenness": evenness}
    asked: dict[str, Any] = {name: value for name, value in limits.items() if from_shots or value is not None}
    settings = replace(settings, gate=replace(settings.gate, **asked))
    with opened.lock():
        manifest = Manifest(opened.manifest)
        records, split = manifest.pairs(), run_split(opened)
        gate, laid_by = gate_again(opened, settings, split, records, note=not dry_run, quiet=quiet)
        if from_verdicts:
            found = agreed(records, gate, [name for name in ("visible", "strict") if given[name] is not None])
            say(f"limits from verdicts by hand: {found.says}", quiet=quiet)
            settings = replace(settings, gate=replace(settings.gate, visible=found.visible, strict=found.strict))
            gate = gate.asking(settings.gate)
        drawn_by = {str(record["config_digest"]) for record in records}
        drawings = {name: replace(drawing_of(opened, name), gate=settings.gate) for name in drawn_by}
        judged: list[_Judged] = []
        kept = {slot_of(record) for record in records if KEPT in record["reasons"]}
        with bar("curate", len(records), quiet=quiet) as shown:
            for record in records:
                judged.append(_judge(opened, record, gate, kept))
                if judged[-1].verdict.keep:
                    kept.add(slot_of(record))
                shown.at(len(judged), f"{record['product']}/{record['defect']}")
        if not dry_run:
            for drawing in drawings.values():
                write_atomic(opened.folder / "settings" / f"{digest(drawing)}.toml", to_toml(drawing).encode())
            new = [_moved(opened, each, digest(drawings[str(each.record["config_digest"])])) for each in judged]
            labels = {str(after["mask"]): each.label for after, each in zip(new, judged, strict=True) if each.label is not None}
            _settle(opened, records, new, labels)
            write_atomic(opened.config, to_toml(replace(run_settings(opened), gate=settings.gate)).encode())
            write_atomic(opened.limits, limits_json(gate, laid_by))
            opened.update(command=typed("curate"))
    return _figures(judged, gate)


def decide(run: Path | str, verdicts: Mapping[str, bool], seen: Mapping[str, Sequence[str]] | None = None) -> list[Record]:
    """Keep (True) or reject (False) pairs by hand, each named by its image as the manifest has it; returns their records.

    The gate does not overrule it later. Keeping an attempt rejects the one that stood in its place. `seen`: the reasons that were shown
    of these images, so that nobody overrules a verdict unseen. Raises `RunError` where an image is not in the manifest (any more:
    another verdict moves a pair's files), its reasons are others by now or a file of it is gone, `ConfigError` for two kept attempts at
    one pair.
    """
    opened = Run.open(Path(run))
    with opened.lock():
        records = Manifest(opened.manifest).pairs()
        wanted = {str(record["image"]): record for record in records if record["image"] in verdicts}
        if missing := set(verdicts) - set(wanted):
            raise RunError(f"{opened.folder / sorted(missing)[0]}: is not in the manifest, or was judged meanwhile; look again")
        for name, shown in (seen or {}).items():
            now = [str(reason) for reason in wanted[name]["reasons"]]
            if now != list(shown) and now != [KEPT if verdicts[name] else REFUSED]:
                raise RunError(f"{opened.folder / name}: was judged meanwhile ({', '.join(now) or 'kept'}); look again")
        taken = Counter(slot_of(record) for name, record in wanted.items() if verdicts[name])
        if twice := [slot for slot, count in taken.items() if count > 1]:
            raise ConfigError(f"{'/'.join(twice[0].key)} {twice[0].index:06d}: two attempts at one pair cannot both be kept; keep one")
        new, labels = [], {}
        for record in records:
            keep = verdicts.get(str(record["image"]))
            if keep is None and record["accepted"] and slot_of(record) in taken:
                keep = False
            if keep is None:
                new.append(record)
                continue
            refitted = record["mask"] != record["requested_mask"]
            paths = files_of(slot_of(record), int(record["attempt"]), keep=keep, refitted=refitted)
            new.append({**record, **paths, "accepted": keep, "reasons": [KEPT if keep else REFUSED]})
            if refitted:
                labels[paths["mask"]] = _file(opened, record, "mask").read_bytes()
        _settle(opened, records, new, labels)
        return [after for before, after in zip(records, new, strict=True) if str(before["image"]) in verdicts]


def _judge(run: Run, record: Record, gate: Gate, kept: set[Slot]) -> _Judged:
    """The gate's word on one record; `kept` are the places that are filled already."""
    pair = _pair(run, record)
    if gate.config.refit:
        pair = fitted(pair)
    verdict = gate.check(pair)
    if by_hand := [reason for reason in record["reasons"] if reason in (KEPT, REFUSED)]:
        verdict = replace(verdict, keep=by_hand == [KEPT], reasons=tuple(by_hand))
    elif verdict.keep and slot_of(record) in kept:
        verdict = replace(verdict, keep=False, reasons=(OTHER,))
    mask, asked = pair.mask.pixels_HW, pair.requested.pixels_HW
    label = None if pair.mask is pair.requested else encode_png(mask)
    return _Judged(record=record, verdict=verdict, label=label, overlap=float((mask & asked).sum() / (mask | asked).sum()))


def _file(run: Run, record: Record, name: str) -> Path:
    """A file of a record, as the manifest knows it. Raises `RunError` where it is gone or changed."""
    path = _there(run, record, name)
    if f"{name}_sha256" in record and digest_file(path) != record[f"{name}_sha256"]:
        raise RunError(f"{path}: {GONE}")
    return path


def _there(run: Run, record: Record, name: str) -> Path:
    """The same, also where it was changed: what is rejected may be damaged."""
    path = run.folder / str(record[name])
    if not is_file(path):
        raise RunError(f"{path}: {GONE}")
    return path


def _pair(run: Run, record: Record) -> Pair:
    """A manifest's record with its pixels, its mask the one that was asked for."""
    _file(run, record, "mask")
    image, normal = read_image(_file(run, record, "image")), read_image(_file(run, record, "normal"))
    requested = Mask(pixels_HW=read_mask(_file(run, record, "requested_mask")), origin=str(record["mask_origin"]), seed=int(record["seed"]))
    facts = {name: record[name] for name in Provenance.__dataclass_fields__ if name in record}
    try:
        provenance = Provenance(**{**facts, "touched_box": tuple(record["touched_box"])})
    except TypeError as error:
        raise RunError(f"{run.manifest}: the record of {record['image']} is not whole ({error}); remove its line") from error
    return Pair(image_HWC=image, mask=requested, normal_HWC=normal, requested=requested, provenance=provenance)


def _moved(run: Run, judged: _Judged, config_digest: str) -> Record:
    """The record with its new verdict, its files named where that belongs."""
    record, verdict, label = judged.record, judged.verdict, judged.label
    paths = files_of(slot_of(record), int(record["attempt"]), keep=verdict.keep, refitted=label is not None)
    sha256 = digest_file(_there(run, record, "requested_mask")) if label is None else hashlib.sha256(label).hexdigest()
    return {
        **record, **paths, "mask_sha256": sha256, "config_digest": config_digest, "accepted": verdict.keep,
        "reasons": list(verdict.reasons), "measures": verdict.measures,
    }  # fmt: skip


def _parked(run: Run, before: Record, after: Record) -> Record:
    """The record on its way to another place or label: rejected, its label the one that was asked for, under names of its own."""
    if all(before[name] == after[name] for name in (*FILES, "mask_sha256")):
        return before
    paths = files_of(slot_of(before), int(before["attempt"]), keep=False, refitted=True)
    sha256 = digest_file(_there(run, before, "requested_mask"))
    by_hand = [reason for reason in before["reasons"] if reason in (KEPT, REFUSED)]
    return {**before, **paths, "mask": paths["requested_mask"], "mask_sha256": sha256, "accepted": False, "reasons": [*by_hand, PARKED]}


def _settle(run: Run, before: list[Record], after: list[Record], labels: Mapping[str, bytes]) -> None:
    """Bring the manifest and the files from `before` to `after`, by way of parked records.

    So no file is ever overwritten that the manifest names, and a killed command leaves nothing half written. Raises `RunError`, before
    anything is written, where a file that is to be moved is gone.
    """
    for old, new in zip(before, after, strict=True):
        for name in FILES if any(old[name] != new[name] for name in FILES) else ():
            _there(run, old, name)
    parked = [_parked(run, *each) for each in zip(before, after, strict=True)]
    _step(run, before, parked, {})
    _step(run, parked, after, labels)


def _step(run: Run, before: list[Record], after: list[Record], labels: Mapping[str, bytes]) -> None:
    """Copy files to where the records `after` name them, labels from `labels`; put those into the manifest; sweep what none names."""
    for old, new in zip(before, after, strict=True):
        for name in ("image", "requested_mask"):
            if new[name] != old[name]:
                write_atomic(run.folder / str(new[name]), (run.folder / str(old[name])).read_bytes())
        if new["mask"] != new["requested_mask"] and (new["mask"], new["mask_sha256"]) != (old["mask"], old["mask_sha256"]):
            write_atomic(run.folder / str(new["mask"]), labels[str(new["mask"])])
    Manifest(run.manifest).rewrite(after, pairs=True)
    named, gone = ({str(record[name]) for record in some for name in FILES} for some in (after, before))
    for path in gone - named:
        (run.folder / path).unlink(missing_ok=True)


def _figures(judged: list[_Judged], gate: Gate) -> dict[str, Any]:
    """What `curate` returns."""
    out: dict[str, Any] = {}
    for key in sorted({slot_of(each.record).key for each in judged}):
        own = [each for each in judged if slot_of(each.record).key == key]
        reasons = Counter(reason for each in own for reason in each.verdict.reasons)
        out["/".join(key)] = {
            "drawn": len(own), "kept_before": sum(bool(each.record["accepted"]) for each in own),
            "kept": sum(each.verdict.keep for each in own), "reasons": dict(reasons.most_common()),
            "label_overlap": round(sum(each.overlap for each in own) / len(own), 4),
            "limits": asdict(gate.limits[key]) if key in gate.limits else {},
        }  # fmt: skip
    return out
