"""What is lost when commands are killed, disks fill and the power goes: each fault at random points, many times, counted.

    python benchmarks/faults.py --work WORK

A small run is trained on toy data and filled undisturbed once. Then, for each fault and each time, a copy of it is filled by the same
command, `anomalydiffusion generate`, and disturbed: at a random one of its operations on files (counted in the undisturbed run), or at a
random moment. What is there afterwards must be whole, and the same command, typed again, must give the same files and the same lines as
the undisturbed one. One copy in eight has also to find which masks fit, as a new run has; the others have that of the first, to save time.
What was counted is kept in WORK, so that a stopped bench goes on; benchmarks/results/<date>-faults.md is the table.

    sigkill, sigterm, sigint   the signal, before an operation on a file
    moment                     SIGKILL at a moment of its own, in the middle of whatever is computed
    full, read-only            from an operation on, whatever writes below the run fails with ENOSPC or EROFS
    clock                      from an operation on, the clock is up to ten years off, either way
    power                      SIGKILL; then what had not been brought to the disk is gone: of files a part of what was written since, of
                               renames, new names and removals any choice
    worker                     one of two worker processes is killed at a moment of its own; the command goes on by itself
    driver                     of a command with two workers, the command is killed
"""

from __future__ import annotations

import argparse
import datetime
import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pages import hardware, save

from anomalydiffusion.app.main import main as type_command
from anomalydiffusion.core import runs
from anomalydiffusion.data.demo import make_demo

NUM = 4
NEW = 8  # one copy in so many is as new
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod")  # of Python's audit events; and os.fsync
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STRUCK = {"sigkill": signal.SIGKILL, "sigterm": signal.SIGTERM, "sigint": signal.SIGINT, "power": signal.SIGKILL, "driver": signal.SIGKILL}
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
CREWED = ("worker", "driver")
FAULTS = ("sigkill", "sigterm", "sigint", "moment", "full", "read-only", "clock", "power", "worker", "driver")
SHORT = """\
[train.pool]
crops = 16
[gate]
visible = 0.0
change = 0.0
strict = 0.0
[generate]
steps = 2
"""  # hardly learned, quickly drawn, always kept
CONFIG = "[train.adapter]\nlora_rank = 0\n" + SHORT + "batch_size = 3\n"  # and quickly loaded


class Shim:
    """Counts a process's operations on files below `root`, strikes at number `at`, and notes what is on its way to the disk."""

    def __init__(self, root: Path, fault: str, at: int, notes: Path, seed: int) -> None:
        self.root, self.fault, self.at, self.notes, self.random = str(root.resolve()), fault, at, notes, random.Random(seed)
        self.count, self.down, self.pid, self.shadows = 0, False, os.getpid(), 0
        self.fsync, self.inside = os.fsync, False

    def install(self) -> None:
        sys.addaudithook(self.heard)
        os.fsync = self.synced

    def mine(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(self.root)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside or event not in OPERATIONS or os.getpid() != self.pid or not self.mine(args[0]):
            return
        if event == "open" and not ((args[2] or 0) & WRITES or (args[1] and set(args[1]) & set("wax+"))):
            return
        self.inside = True
        try:
            self.strike(args[0])
            self.note(event, args)
        finally:
            self.inside = False

    def synced(self, handle: Any) -> None:
        """os.fsync, with its strike and its note."""
        number = handle if isinstance(handle, int) else handle.fileno()
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        if not self.inside and path.startswith(self.root):
            self.inside = True
            try:
                self.strike(path)
                self.fsync(number)
                self.write({"event": "fsync", "path": path, "size": os.fstat(number).st_size, "folder": Path(path).is_dir()})
            finally:
                self.inside = False
        else:
            self.fsync(number)

    def strike(self, path: Any) -> None:
        self.count += 1
        if self.fault in ERRORS and (self.down or self.count == self.at):
            self.down = True
            self.notes.with_suffix(".struck").touch()
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]), os.fspath(path))
        if self.count != self.at:
            return
        if self.fault == "clock" or self.fault in STRUCK:
            self.notes.with_suffix(".struck").touch()
        if self.fault == "clock":
            jump(self.random.choice([-1, 1]) * self.random.uniform(0, 10 * 365 * 86400))
        elif self.fault in STRUCK:
            os.kill(os.getpid(), STRUCK[self.fault])

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """What may be undone by a power cut, with what there was before."""
        if self.fault != "power":
            return
        target = Path(args[1] if event == "os.rename" else args[0]).absolute()
        before = ""
        if event in ("os.rename", "os.remove") and target.is_file():
            self.shadows += 1
            before = f"{self.notes}.{self.shadows}"
            shutil.copyfile(target, before)
        if event == "os.rename":
            self.write({"event": event, "path": str(target), "source": str(Path(args[0]).absolute()), "before": before})
        elif event == "os.remove":
            self.write({"event": event, "path": str(target), "before": before})
        elif not target.exists() and event in ("open", "os.mkdir"):
            self.write({"event": "new", "path": str(target)})

    def write(self, said: dict[str, Any]) -> None:
        if self.fault == "power":
            with self.notes.open("a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")


def jump(seconds: float) -> None:
    """From now on every clock but the monotonic one is off."""
    real = time.time
    time.time = lambda: real() + seconds  # type: ignore[assignment]
    time.time_ns = lambda: int((real() + seconds) * 1e9)  # type: ignore[assignment]

    class Off(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(real() + seconds, tz)

    runs.datetime = Off  # type: ignore[attr-defined]


def cut_power(root: Path, notes: Path, draw: random.Random) -> None:
    """Take back what was not on the disk: content beyond the last sync, and names whose folder was not synced since."""
    said = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    sizes: dict[str, int] = {}
    pending: dict[str, list[dict[str, Any]]] = {}
    for each in said:
        path, folder = each["path"], str(Path(each["path"]).parent)
        if each["event"] == "fsync":
            if each["folder"]:
                pending.pop(path, None)
            else:
                sizes[path] = each["size"]
            continue
        if each["event"] == "os.rename" and each["source"] in sizes:
            sizes[path] = sizes.pop(each["source"])
        elif each["event"] in ("new", "os.rename"):
            sizes.setdefault(path, 0)
        pending.setdefault(folder, []).append(each)
    for path, size in sizes.items():
        if Path(path).is_file() and (there := Path(path).stat().st_size) > size:
            os.truncate(path, draw.randint(size, there))
    for changes in pending.values():
        kept = draw.randint(0, len(changes))  # a file system brings a folder's changes to the disk in their order
        for each in reversed(changes[kept:]):
            path = Path(each["path"])
            if each["event"] == "new" and path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if each.get("before"):
                shutil.copyfile(each["before"], path)


def command(run: Path, *words: str) -> None:
    """The command line, in this process."""
    os.environ["MALLOC_TOP_PAD_"] = "268435456"  # it would begin anew to set it
    sys.argv = ["anomalydiffusion", "generate", str(run), "--num", str(NUM), "--quiet", *words]
    type_command()


def child(run: Path, notes: Path, fault: str, at: int, seed: int, words: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    handle = os.open(notes.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    shim = Shim(run, fault, at, notes, seed)
    if fault:
        shim.install()
    try:
        command(run, *words)
    except SystemExit as ended:
        notes.with_suffix(".count").write_text(str(shim.count))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def begin(run: Path, notes: Path, fault: str = "", at: int = 0, seed: int = 0, words: tuple[str, ...] = ()) -> multiprocessing.Process:
    """The command in a process of its own; what it imports is there, for this one has typed it once."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(run, notes, fault, at, seed, words))
    process.start()
    return process


def ended(process: multiprocessing.Process, seconds: float = 600) -> int:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError("a command hangs")
    return process.exitcode


def records(run: Path) -> list[dict[str, Any]]:
    file = run / "manifest.jsonl"
    out = []
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        with suppress(ValueError):
            out.append({name: value for name, value in json.loads(line).items() if name != "seconds"})
    return out


def files(run: Path) -> dict[str, str]:
    """What the data set is: every file below `generated`, by its hash."""
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((run / "generated").rglob("*")) if path.is_file()}  # fmt: skip


def broken(run: Path, whole: dict[str, str]) -> str:
    """What is wrong with what a disturbed command left; "" where nothing is."""
    found = {name: sha for name, sha in files(run).items() if not Path(name).name.startswith(".part-")}
    if wrong := [name for name, sha in found.items() if sha != whole.get(name)]:
        return f"half written: {wrong[0]}"
    for record in records(run):
        if (lost := next((record[name] for name in ("image", "mask") if record[name] not in found), None)) is not None:
            return f"a line without its file: {lost}"
    return ""


def victim(process: multiprocessing.Process, draw: random.Random) -> bool:
    """Kill one worker of a command, if it has any by now."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False).stdout
    workers = [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    return bool(workers)


def one(base: Path, folder: Path, fault: str, number: int, calm: dict[bool, Calm], whole: Any) -> dict[str, Any]:
    """Disturb one filling; what became of it. `calm`: an undisturbed one of a new copy, and of one that is not."""
    draw = random.Random(f"{fault} {number}")
    run, notes = folder / "run", folder / "notes"
    shutil.rmtree(folder, ignore_errors=True)
    new = number % NEW == 0
    copy(base, run, new)
    words = ("--workers", "2") if fault in CREWED else ()
    process = begin(run, notes, fault, draw.randint(1, calm[new].operations), number, words)
    struck = False
    if fault in ("moment", "worker"):
        process.join(draw.uniform(0.05, calm[new].seconds))
        struck = fault == "worker" and victim(process, draw)
        if fault == "moment":
            process.kill()
    code = ended(process)
    struck = struck or notes.with_suffix(".struck").exists() or (fault == "moment" and code != 0)
    if fault == "power":
        cut_power(run, notes, draw)
    said = notes.with_suffix(".out").read_text()
    problem = broken(run, whole[0])
    if fault in ("clock", "worker") and code != 0:
        problem = problem or f"ended with {code}: {said.strip()[-200:]}"
    if fault in ERRORS and code and ("Traceback" in said or not said.startswith("error: ")):
        problem = problem or "no clear line"
    again = ended(begin(run, notes))
    if again != 0:
        problem = problem or f"cannot go on: {notes.with_suffix('.out').read_text().strip()[-200:]}"
    lost = len(set(whole[0]) - set(files(run)))
    if (files(run), records(run)) != whole:
        problem = problem or "another data set than the undisturbed one"
    return {"fault": fault, "number": number, "struck": struck, "problem": problem, "lost": lost}


def copy(base: Path, run: Path, new: bool = True) -> None:
    """A run of its own that has learned, and has drawn nothing; unless it is new it knows which masks fit, if `base` does."""
    never = ("generated", "manifest*.jsonl", "settings", "gate.json", "checkpoints", ".lock*")
    shutil.copytree(base, run, ignore=shutil.ignore_patterns(*never))
    if new:
        runs.Run.open(run).update(matched_masks=None)


def typed_once(base: Path, run: Path) -> Path:
    """A copy that was filled in this process, for what that imports; it knows which masks fit."""
    torch.set_num_threads(1)
    shutil.rmtree(run, ignore_errors=True)
    copy(base, run)
    try:
        command(run)
    except SystemExit as left:
        if left.code:
            raise
    return run


def trained(work: Path) -> Path:
    """A run of two defect types on the toy data, trained for a few steps."""
    base, config = work / "base", work / "config.toml"
    if config.exists() and config.read_text() != CONFIG:
        raise SystemExit(f"{work}: was begun with other settings; give another --work")
    if not (base / "adapter").exists():
        shutil.rmtree(base, ignore_errors=True)
        config.write_text(CONFIG)
        make_demo(work / "data")
        typed = [sys.executable, "-m", "anomalydiffusion", "train", work / "data", "--output", base, "--config", config, "--quiet",
                 "--max-train-steps", "2", "--product", "brick"]  # fmt: skip
        subprocess.run([str(word) for word in typed], check=True)
    return base


class Calm(NamedTuple):
    """A run filled without a fault, the seconds that it took, and the operations on files of the command's own process."""

    run: Path
    seconds: float
    operations: int


def undisturbed(base: Path, work: Path, new: bool, *words: str) -> Calm:
    """Fill a copy without a fault."""
    name = f"whole{len(words)}{'-new' if new else ''}"
    run, notes = work / name, work / f"{name}-notes"
    shutil.rmtree(run, ignore_errors=True)
    copy(base, run, new)
    began = time.monotonic()
    if ended(begin(run, notes, "count", 0, 0, words)):
        raise SystemExit(notes.with_suffix(".out").read_text())
    return Calm(run, time.monotonic() - began, int(notes.with_suffix(".count").read_text()))


def page(found: list[dict[str, Any]], operations: int, typed: str) -> str:
    lines = [
        "# Faults", "", f"    {typed}", "",
        f"`anomalydiffusion generate` with {NUM} pairs a defect type, disturbed at a random one of its operations on files "
        f"({operations} where it is new) or at a random moment; then typed again. Survived: what was left was whole, and files and lines "
        "ended as the undisturbed ones.",
        "", "| fault | times injected | times struck | times survived | lost files |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for fault in FAULTS:
        own = [each for each in found if each["fault"] == fault]
        if own:
            survived, struck = sum(not each["problem"] for each in own), sum(each["struck"] for each in own)
            lines.append(f"| {fault} | {len(own)} | {struck} | {survived} | {sum(each['lost'] for each in own)} |")
    problems = [f"- {each['fault']} {each['number']}: {each['problem']}" for each in found if each["problem"]]
    wrong = ["## What went wrong", "", *problems, ""] if problems else []
    return "\n".join([*lines, "", *wrong, "## Settings", "", f"- {hardware()}"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--base", type=Path, help="a trained run to disturb copies of, instead of one of toy data")
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--no-page", dest="page", action="store_false", help="only try")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    base, log = given.base or trained(given.work), given.work / "faults.jsonl"
    base = typed_once(base, given.work / "typed")
    alone = {new: undisturbed(base, given.work, new) for new in (True, False)}
    crewed = any(fault in CREWED for fault in given.fault)
    together = {new: undisturbed(base, given.work, new, "--workers", "2") for new in alone} if crewed else alone
    whole = files(alone[True].run), records(alone[True].run)
    if any((files(each.run), records(each.run)) != whole for each in (*alone.values(), *together.values())):
        raise SystemExit("two workers, or a copy that is not new, give another data set than one process on a new one")
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    sys.stderr.write(f"undisturbed: {alone[True].seconds:.1f} s, {alone[True].operations} operations on files, {len(whole[0])} files\n")
    for fault in given.fault:
        for number in range(given.times):
            if any((each["fault"], each["number"]) == (fault, number) for each in found):
                continue
            found.append(one(base, given.work / "one", fault, number, together if fault in CREWED else alone, whole))
            with log.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
            sys.stderr.write(f"\r{fault} {number + 1}/{given.times} {found[-1]['problem']}" + ("\n" if found[-1]["problem"] else ""))
        sys.stderr.write("\n")
    if given.page:
        save("faults", page(found, alone[True].operations, f"python benchmarks/faults.py --work WORK --times {given.times}"))
    return int(any(each["problem"] for each in found))


if __name__ == "__main__":
    raise SystemExit(main())
