"""Whether this machine is ready, and a run whole: packages, devices, memory, disk, the bundled prior."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from anomalydiffusion.app.doctor_run import examine
from anomalydiffusion.app.findings import Finding, Health, broken, doubtful, well
from anomalydiffusion.app.main import ALLOCATOR, MARK
from anomalydiffusion.core.version import __version__

__all__ = ["doctor"]

NAME = "anomalydiffusion"
EXTRAS = {"studio": "the web page", "eval": "KID and IC-LPIPS with the usual networks"}
NAMED = ("torch", "diffusers", "transformers", "accelerate", "gradio")  # whose versions are shown
MEMORY, DISK = 2.5e9, 2e9  # bytes: learning with the bundled prior holds 2 GB, a run with a thousand pairs of a megapixel as much
LEAST_DISK = 1e8


def doctor(run: Path | str | None = None) -> Health:
    """Look at this machine, and at a run where one is given; nothing is changed, computed or fetched. Takes a few seconds.

    An "error" keeps this package from working here, a "warning" makes it slow or leaves something out.
    """
    folder = Path.cwd() if run is None else Path(run)
    findings = [_python(), *_system(), *_packages(), *_devices(), _memory(), _disk(folder), _writable(folder), _allocator(), _prior()]
    if run is None:
        return Health(findings=tuple(findings))
    own = examine(folder)
    return Health(findings=(*findings, *own.findings), counts=own.counts, finished=own.finished, next=own.next)


def _python() -> Finding:
    here = platform.python_version()
    try:
        asked = metadata(NAME)["Requires-Python"] or ""
    except PackageNotFoundError:
        return doubtful("python", f"{here}; {NAME} {__version__} is not installed, so what it asks for is not known", "pip install .")
    if not SpecifierSet(asked).contains(here, prereleases=True):
        return broken("python", f"{here}, {NAME} asks for {asked}", "make an environment with another Python")
    return well("python", f"{here} on {platform.system()} {platform.machine()}, {NAME} {__version__}")


def _system() -> Iterator[Finding]:
    """Whether files are swapped and locked as long commands need it."""
    if platform.system() == "Windows":
        yield broken("system", "Windows swaps and locks files in its own ways, and long commands fail", "work in WSL, Windows' own Linux")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wrong(needed: Requirement) -> str:
    """What is wrong with a package that is asked for; "" where nothing is."""
    here = _installed(needed.name)
    if here is None:
        return f"{needed.name} is missing"
    return "" if needed.specifier.contains(here, prereleases=True) else f"{needed.name} {here} is not {needed.specifier}"


def _packages() -> Iterator[Finding]:
    """Whether what `pyproject.toml` asks for is there: needed packages, then those of the extras that users choose."""
    try:
        asked = [Requirement(line) for line in requires(NAME) or ()]
    except PackageNotFoundError:
        return
    needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    shown = ", ".join(f"{name} {here}" for name in NAMED if (here := _installed(name)))
    if wrong := {f"'{each.name}{each.specifier}'": text for each in needed if (text := _wrong(each))}:
        yield broken("packages", ", ".join(wrong.values()), f"pip install {' '.join(wrong)}")
    else:
        yield well("packages", f"all {len(needed)} as asked for: {shown}")
    for extra, what in EXTRAS.items():
        own = [each for each in asked if each not in needed and each.marker and each.marker.evaluate({"extra": extra})]
        if texts := [text for each in own if (text := _wrong(each))]:
            yield doubtful(extra, f"{', '.join(texts)}: no {what}", f"pip install '{NAME}[{extra}]'")


def _devices() -> Iterator[Finding]:
    """What can compute here. Imports torch, of which a broken installation is common."""
    try:
        import torch

        from anomalydiffusion.core.devices import native_bf16
    except (ImportError, OSError) as error:
        yield broken("torch", f"cannot be loaded ({str(error).splitlines()[0]})", "install it anew as https://pytorch.org says")
        return
    everything = os.cpu_count() or 1
    threads, used = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everything, torch.get_num_threads()
    half = f"{'with' if native_bf16(torch.device('cpu')) else 'without'} native bfloat16"
    said = f"{threads} of {everything} threads may be used, torch uses {used}; {half}"
    if used > threads:
        yield doubtful("processor", said, f"set OMP_NUM_THREADS={threads}: more threads than that wait for each other")
    else:
        yield well("processor", said)
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        named = ", ".join(f"cuda:{row} {each.name} {each.total_memory / 1e9:.0f} GB" for row, each in enumerate(cards))
        yield well("graphics", f"{named}; used where a command is told --device cuda")
    elif torch.backends.mps.is_available():
        yield well("graphics", "mps; used where a command is told --device mps")
    elif Path("/dev/nvidia0").exists():
        remedy = "install a PyTorch with CUDA that fits the driver, as https://pytorch.org says"
        yield doubtful("graphics", "a card is here, but PyTorch cannot use it", remedy)
    else:
        yield well("graphics", "none: the CPU does everything")


def _number(path: str) -> int | None:
    """The whole number in a file of the kernel's; None where there is none."""
    try:
        return int(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _memory() -> Finding:
    """Free memory, as the kernel and a container's limit say."""
    if not Path("/proc/meminfo").is_file():
        return well("memory", "this system does not tell how much is free")
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, held = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and held is not None:
        free = min(free, limit - held)
    said = f"{free / 1e9:.1f} GB free"
    if free < MEMORY:
        return doubtful("memory", f"{said}; learning with the bundled prior holds 2 GB, with others more",
                        "close other programs, or learn with a smaller [train] batch_size")  # fmt: skip
    return well("memory", said)


def _there(folder: Path) -> Path:
    """The nearest folder above that exists."""
    folder = folder.resolve()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(_there(folder)).free
    said, remedy = f"{free / 1e9:.1f} GB free at {_there(folder)}", "make room, or work in another folder"
    if free < DISK:
        return (broken if free < LEAST_DISK else doubtful)("disk", said, remedy)
    return well("disk", said)


def _writable(folder: Path) -> Finding:
    places = dict.fromkeys((_there(folder), Path(tempfile.gettempdir())))
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"x")
        except OSError as error:
            return broken("writing", f"{place}: cannot be written ({error.strerror})", "work in a folder that you may write to")
    return well("writing", " and ".join(map(str, places)))


def _allocator() -> Finding:
    """glibc's settings, which each long command gives itself, unless the one that it asks for is set already."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return well("allocator", "nothing to set on this system")
    if MARK not in os.environ:
        return well("allocator", "each long command sets it for itself")
    if other := [f"{name}={os.environ.get(name, '')}" for name, value in ALLOCATOR.items() if os.environ.get(name) != value]:
        said = f"{' '.join(other)}: commands leave what is set as it is, and training on a CPU may then take twice as long"
        return doubtful("allocator", said, f"unset {MARK}")
    return well("allocator", "as it should be")


def _prior() -> Finding:
    try:
        from anomalydiffusion.priors.files import BUNDLED, changed_files, digest_folder
    except (ImportError, OSError):
        return broken("bundled prior", "cannot be looked at without torch", "mend torch first")
    if changed := changed_files(BUNDLED):
        return broken("bundled prior", f"gone or changed: {', '.join(changed[:3])}", f"install {NAME} again")
    return well("bundled prior", f"tiny, digest {digest_folder(BUNDLED)}")
