"""Rebuild the folder of photographed textures that the bundled prior was trained on, from the Debian packages they came in.

    python recipes/textures.py src/anomalydiffusion/priors/tiny/ATTRIBUTION.csv textures

ATTRIBUTION.csv names file, licence, package and path of each texture. Needs `apt-get` and `dpkg-deb` (Debian or Ubuntu,
or debs already downloaded into the folder PACKAGES with --packages), about 3.3 GB to fetch and 2 GB of room.
Each texture becomes an RGB JPEG (quality 90) whose short side is at most 512 pixels.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

SHORT_SIDE, QUALITY = 512, 90


def fetch(package: str, folder: Path) -> Path:
    """The package's deb in `folder`, downloaded when it is not there."""
    if not (found := sorted(folder.glob(f"{package}_*.deb"))):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
    return found[-1]


def contents(root: Path) -> Iterator[tuple[str, zipfile.ZipFile | None]]:
    """Every file below `root` by its path, and every member of the archives that games keep their data in."""
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix in (".zip", ".pk3"):
            archive = zipfile.ZipFile(path)
            yield from ((name, archive) for name in archive.namelist())
        else:
            yield path.relative_to(root).as_posix(), None


def shrink(data: bytes) -> Image.Image:
    """RGB, with a short side of at most SHORT_SIDE."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    return image if scale >= 1 else image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def rebuild(rows: list[dict[str, str]], package: str, packages: Path, output: Path) -> list[str]:
    """Write the textures of one package; return the listed paths that it does not hold."""
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        root = Path(scratch)
        subprocess.run(["dpkg-deb", "-x", str(fetch(package, packages)), str(root)], check=True)
        found: dict[str, list[tuple[str, zipfile.ZipFile | None]]] = {}
        for name, archive in contents(root):
            found.setdefault(PurePosixPath(name).name, []).append((name, archive))
        missing = []
        for row in rows:
            wanted = PurePosixPath(row["path"]).parts
            # the list's paths begin with a word for the package; the longest common end decides
            best = max(found.get(wanted[-1], []), key=lambda item: common_end(PurePosixPath(item[0]).parts, wanted), default=None)
            if best is None:
                missing.append(row["path"])
                continue
            data = best[1].read(best[0]) if best[1] else (root / best[0]).read_bytes()
            shrink(data).save(output / row["file"], quality=QUALITY)
    return missing


def common_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many last parts two paths share."""
    return next((i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("attribution", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages", type=Path, help="folder of downloaded debs (default: OUTPUT/packages)")
    parser.add_argument("--only", help="one package alone")
    given = parser.parse_args()
    packages = (given.packages or given.output / "packages").resolve()
    packages.mkdir(parents=True, exist_ok=True)
    given.output.mkdir(parents=True, exist_ok=True)
    with given.attribution.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    shutil.copyfile(given.attribution, given.output / "ATTRIBUTION.csv")
    lost = []
    for package in sorted({row["package"].split()[0] for row in rows}):
        if given.only in (None, package):
            mine = [row for row in rows if row["package"].split()[0] == package]
            missing = rebuild(mine, package, packages, given.output)
            sys.stdout.write(f"{package}: {len(mine) - len(missing)} of {len(mine)} textures\n")
            lost += missing
    for path in lost:
        sys.stderr.write(f"{path}: not in the package that is offered today\n")
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
