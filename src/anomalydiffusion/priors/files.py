"""A prior's folder on the disk: which files are read, where the bundled one lies, its digest, and whether it is as it was written."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from anomalydiffusion.core.names import is_below
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.runs import write_atomic

__all__ = [
    "BUNDLED", "LEARNED", "NETWORKS", "PARTS", "SUMS", "changed_files", "digest_folder", "learned_from", "note_learned", "variant_of",
    "weight_files",
]  # fmt: skip

BUNDLED = Path(__file__).with_name("tiny")
SUMS = "SHA256SUMS"  # as sha256sum writes it and checks it
LEARNED = "LEARNED_FROM"  # a SHA-256 a line; no part of the digest
PARTS = {"vae": ("vae", "vqvae"), "text_encoder": ("text_encoder", "bert"), "tokenizer": ("tokenizer",),
         "scheduler": ("scheduler",), "unet": ("unet",)}  # fmt: skip
VARIANTS = ("", "fp16", "bf16")  # of a file of weights, "NAME.fp16.safetensors": the one that says nothing is the most exact
NETWORKS = [name for role in ("vae", "text_encoder", "unet") for name in PARTS[role]]


def variant_of(file: Path) -> str:
    """What stands between a file's name and its ending, the count of its shards apart; "" where nothing does."""
    return re.sub(r"-\d{5}-of-\d{5}", "", file.stem).partition(".")[2]


def weight_files(part: Path) -> list[Path]:
    """The files of weights in the folder of a prior's part that count: safetensors, or pickles where there are none.

    Of several `VARIANTS` of them it is the first; of other ones, such as non_ema, none is taken.
    """
    kinds = [sorted(part.glob(f"*{ending}")) for ending in (".safetensors", ".bin")]
    found = ([file for file in files if variant_of(file) == variant] for files in kinds for variant in VARIANTS)
    return next((files for files in found if files), [])


def digest_folder(folder: Path, *, everything: bool = False) -> str:
    """SHA-256 over names and contents of a prior's weights and configurations that are read, 16 hexadecimal digits.

    `everything`: of all that lies there, as earlier versions counted; but other programs put more files into a hub's folder.
    """
    total, kinds = hashlib.sha256(), (".json", ".txt")
    if everything:
        files = {path for path in folder.rglob("*") if path.suffix in (".safetensors", *kinds)}
    else:
        files = {path for names in PARTS.values() for name in names for path in (folder / name).glob("*") if path.suffix in kinds}
        files = {path for path in [*files, folder / "model_index.json"] if ".index." not in path.name and path.is_file()}
    for path in sorted(files.union(*(weight_files(folder / name) for name in NETWORKS))):
        total.update(f"{path.relative_to(folder).as_posix()}:{digest_file(path)}\n".encode())
    return total.hexdigest()[:16]


def learned_from(folder: Path) -> set[str]:
    """The SHA-256 of each picture that a prior was adapted to; none where it was not, or does not say so."""
    try:
        return set((folder / LEARNED).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return set()


def note_learned(folder: Path, known: set[str]) -> None:
    """Write that list, where there is something to say."""
    if known:
        write_atomic(folder / LEARNED, "".join(f"{sha256}\n" for sha256 in sorted(known)).encode())


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
