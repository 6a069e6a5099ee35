"""A prior's folder on the disk: where the bundled one lies, its digest, and whether its files are as they were written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from anomalydiffusion.core.names import is_below
from anomalydiffusion.core.pixels import digest_file

__all__ = ["BUNDLED", "SUMS", "changed_files", "digest_folder"]

BUNDLED = Path(__file__).with_name("tiny")
SUMS = "SHA256SUMS"  # as sha256sum writes it and checks it


def digest_folder(folder: Path) -> str:
    """SHA-256 over names and contents of a prior's weights and configurations, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".txt")):
        total.update(f"{path.relative_to(folder).as_posix()}:{digest_file(path)}\n".encode())
    return total.hexdigest()[:16]


def changed_files(folder: Path) -> list[str]:
    """The files of a prior that are gone, or not as its sums say; the sums themselves where they are gone or damaged."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return [SUMS]
    pairs = [(line[:64], line[66:]) for line in lines if line.strip()]
    if any(len(line) < 67 or line[64:66] != "  " or not is_below(line[66:]) for line in lines if line.strip()):
        return [SUMS]
    return [name for sha256, name in pairs if not (folder / name).is_file() or digest_file(folder / name) != sha256]
