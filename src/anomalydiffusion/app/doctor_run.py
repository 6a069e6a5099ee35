"""Whether a run's files are whole, by their names and counts alone, and which command comes next."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomalydiffusion.app.findings import Finding, Health, broken, doubtful, well
from anomalydiffusion.core.config import read_toml
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import PARKED, Manifest, accepted, digest_of
from anomalydiffusion.core.names import is_below, is_file
from anomalydiffusion.core.runs import Run
from anomalydiffusion.report.scores import PAIRS

__all__ = ["examine"]

Key = tuple[str, str]
Record = dict[str, Any]
ANEW = "restore it, or train again into another folder"
FILES = ("image", "mask", "requested_mask")


def examine(folder: Path) -> Health:
    """Count what a run holds and what of it is gone; no picture is read. What is no run is an error."""
    try:
        run = Run.open(folder)
    except RunError as error:
        text, _, remedy = str(error).rpartition("; ")
        return Health(findings=(broken("run", text or remedy, remedy),), finished=False)
    if not any(path.is_file() for path in (run.config, run.split, run.adapter)):
        begun = doubtful("run", "begun, but nothing was learned yet", f"type the command again: {_train(run)}")
        return Health(findings=(begun,), finished=False, next=_train(run))
    learned, keys = _learned(run)
    records = Manifest(run.manifest).pairs()
    findings = [_settings(run), _prior(run), _split(run), learned, _pairs(run, records), _busy(run)]
    kept = Counter((str(record.get("product")), str(record.get("defect"))) for record in accepted(records))
    done, step = _next(run, records, kept, keys, _provable(run))
    findings.append(well("run", f"{run.record.get('status', 'begun')}; {'finished' if done else 'not finished'}"))
    counts = {"drawn": len(records), "accepted": sum(kept.values()), **{"/".join(key): count for key, count in sorted(kept.items())}}
    return Health(findings=tuple(findings), counts=counts, finished=done, next=step)


def _settings(run: Run) -> Finding:
    try:
        read_toml(run.config)
    except ConfigError as error:
        return broken("settings", str(error), ANEW)
    return well("settings", run.config.name)


def _prior(run: Run) -> Finding:
    """Whether the prior that the run was trained on is where it was; the bundled one may be another in another version."""
    name = str(run.record.get("prior", "?"))
    with suppress(ConfigError):  # which is told where the settings are looked at
        name = str(run.prior) if "adapt" in read_toml(run.config) and run.prior.is_dir() else name
    if name == "tiny":
        from anomalydiffusion.priors.files import BUNDLED, digest_folder

        if (here := digest_folder(BUNDLED)) != (own := run.record.get("prior_digest")):
            maker = run.record.get("version")
            return broken("prior", f"trained on another bundled prior ({own}, here is {here})", f"install version {maker}, or train again")
    elif Path(name).is_absolute() and not Path(name).exists():
        return doubtful("prior", f"{name}: is not there any more", "put it back, or give commands --prior and its place")
    return well("prior", name)


def _split(run: Run) -> Finding:
    """The data set's files that the split names."""
    try:
        record = json.loads(run.split.read_text(encoding="utf-8"))
        root = Path(record["root"])
        files = [(str(item["role"]), item["path"], item["mask"]) for item in record["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return broken("split", f"{run.split}: missing or damaged ({error})", ANEW)
    said = ", ".join(f"{count} {role.replace('_', ' ')}" for role, count in Counter(role for role, *_ in files).items())
    gone = [root / str(name) for _, *names in files for name in names if name and not (is_below(name) and is_file(root / str(name)))]
    if gone:
        return broken("split", f"{said}; {len(gone)} files are gone, the first is {str(gone[0])[:300]}", "put the data set back")
    return well("split", said)


def _provable(run: Run) -> bool:
    """Whether there are held-out defects that the adapter is known not to have seen; True where the split cannot tell."""
    try:
        roles = {str(item["role"]) for item in json.loads(run.split.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True
    return "held_out" in roles and not run.record.get("elsewhere")


def _learned(run: Run) -> tuple[Finding, list[Key]]:
    """The adapter and what it can draw; or how far its training is, and nothing."""
    from safetensors import SafetensorError, safe_open

    if not run.adapter.is_file():
        points = sorted(
            (path.name for path in run.checkpoints.glob("step-*") if (path / "state.json").is_file()), key=lambda own: (len(own), own)
        )
        found = f"the last checkpoint is {points[-1]}" if points else "there is no checkpoint"
        return doubtful("adapter", f"not learned yet; {found}", f"type the command again: {_train(run)}"), []
    try:
        with safe_open(run.adapter, "np") as file:
            record = json.loads((file.metadata() or {})["anomalydiffusion"])
        keys = [(str(product), str(defect)) for product, defect in record["keys"]]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return broken("adapter", f"{run.adapter}: damaged ({error})", ANEW), []
    return well("adapter", ", ".join(map("/".join, keys))), keys


def _train(run: Run) -> str:
    """The command that the training was begun with."""
    own = [str(words) for words in run.record.get("commands", []) if " train " in str(words)]
    return own[-1] if own else _command("train", "DATA", "--output", run.folder)


def _command(*words: object) -> str:
    """A command as it is typed: a name with blanks in quotes."""
    return shlex.join(["anomalydiffusion", *map(str, words)])


def _pairs(run: Run, records: list[Record]) -> Finding:
    """The manifest's lines against the files."""
    lines = sum(bool(line.strip()) for line in run.manifest.read_bytes().split(b"\n")) if run.manifest.is_file() else 0
    named = {str(record[name]) for record in records for name in FILES if name in record}
    there = {path.relative_to(run.folder).as_posix() for path in (run.folder / "generated").rglob("*.png")}
    said = f"{len(records)} lines, {len(accepted(records))} accepted; {len(named)} files"
    if parked := sum(PARKED in record.get("reasons", ()) for record in records):
        return broken("pairs", f"{parked} were being judged when that was cut short", _curate(run))
    elif gone := named - there:
        return broken("pairs", f"{said}, of which {len(gone)} are gone, such as {min(gone)}", "put them back, or generate with --no-resume")
    elif lines > len(records):
        return doubtful("pairs", f"{said}; {lines - len(records)} lines cannot be read", "type the generate command again")
    elif strays := there - named:
        strange = f"{said}; {len(strays)} files that no line names, such as {min(strays)}"
        return doubtful("pairs", strange, "delete them: a pair without its line does not exist")
    else:
        return well("pairs", said)


def _curate(run: Run) -> str:
    return _command("curate", run.folder)


def _busy(run: Run) -> Finding:
    """Whether another command holds the run's lock."""
    try:
        if (run.folder / ".lock").exists():
            with run.lock():
                pass
    except RunError:
        return well("work", "another command is working on this run: what is counted here changes")
    except OSError as error:
        return broken("work", f"{run.folder}: cannot be written ({error.strerror})", "mend its permissions")
    return well("work", "no command is working on this run")


def _up_to_date(run: Run) -> bool:
    """Whether some figures are of the pairs that are kept now; those that do not tell are taken to be."""
    try:
        scores = json.loads(run.scores.read_text(encoding="utf-8"))
        now = digest_of(Manifest(run.manifest).records())
        return any(own.get(PAIRS) in (None, now) for own in scores.values())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _next(run: Run, records: list[Record], kept: Counter[Key], keys: list[Key], provable: bool) -> tuple[bool, str]:
    """Whether the run has kept pairs of all that it learned, and the command that comes next; `provable`: on held-out defects."""
    if not keys:
        return False, _train(run)
    if any(PARKED in record.get("reasons", ()) for record in records):
        return False, _curate(run)
    if any(key not in kept for key in keys):
        return False, _command("generate", run.folder, "--num", 40)
    if provable and not _up_to_date(run):
        return True, _command("evaluate", run.folder, "--seeds", 3)
    return True, _command("export", run.folder, "--output", "OUT")
