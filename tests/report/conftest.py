"""A small run on disk, as `train` and `generate` leave one: drawn textures, drawn defects, real files, real hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.manifest import FIELDS, Manifest

SIZES = {"tile": (200, 260), "wood": (160, 160)}  # height, width
KINDS = {("tile", "crack"): 5, ("tile", "spot"): 3, ("wood", "scratch"): 4}


def texture(product: str, seed: int) -> np.ndarray:
    rng, (height, width) = np.random.default_rng(seed), SIZES[product]
    y, x = np.mgrid[:height, :width]
    wave = np.sin(x / 9 + 0.6 * np.sin(y / 31 + seed)) if product == "wood" else np.sin(x / 23) * np.sin(y / 19)
    grey = 150 + 22 * wave + rng.normal(0, 7, (height, width))
    tint = np.array([1.0, 0.82, 0.6] if product == "wood" else [0.95, 1.0, 1.03])
    return np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)


def defect_mask(defect: str, size: tuple[int, int], seed: int) -> np.ndarray:
    rng, (height, width) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
    if defect == "spot":
        return (x - cx) ** 2 + ((y - cy) * 1.4) ** 2 < rng.uniform(5, 11) ** 2
    bent = (y - cy) - 0.5 * (x - cx) - 5 * np.sin((x - cx) / 7)
    return (np.abs(bent) < (2.2 if defect == "crack" else 1.3)) & (np.abs(x - cx) < 0.16 * width)


def save(path: Path, array: np.ndarray, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(path, **options)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_run(folder: Path) -> Path:
    """RUN with 12 attempts of three kinds, every fourth rejected; DATA beside it, whose second normal image is a JPEG."""
    data, run = folder / "data", folder / "run"
    files, normals = [], {}
    for product in SIZES:
        normals[product] = []
        for index in range(3):
            path = data / product / "train/good" / (f"{index}.jpg" if index == 1 else f"{index}.png")
            digest = save(path, texture(product, index))
            normals[product].append((path, digest))
            files.append((path, digest, "normal", product, None))
        for role, part in (("held_out_normal", "good"), ("shot", "crack"), ("held_out", "crack")):
            path = data / product / "test" / part / f"{role}.png"
            files.append((path, save(path, texture(product, 50 + len(files))), role, product, None if part == "good" else part))
    split = [{"path": path.relative_to(data).as_posix(), "sha256": digest, "role": role, "product": product, "defect": defect,
              "group": path.stem, "mask": None} for path, digest, role, product, defect in files]  # fmt: skip
    run.mkdir(parents=True)
    (run / "split.json").write_text(json.dumps({"digest": "5b117ab1e5b117ab", "root": str(data), "files": split}))
    records: list[dict[str, Any]] = []
    count = 0
    for (product, defect), attempts in KINDS.items():
        for index in range(attempts):
            count += 1
            normal, normal_sha256 = normals[product][2 * (index % 2)]
            image = np.asarray(Image.open(normal)).copy()
            mask = defect_mask(defect, SIZES[product], count)
            image[mask] = (image[mask] * 0.4).astype(np.uint8)
            names = {part: f"generated/{product}/{defect}/{part}/{index:06d}.png" for part in ("images", "masks")}
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            good = count % 4 != 0
            record = dict.fromkeys(FIELDS) | {
                "product": product, "defect": defect, "seed": 1000 + count, "attempt": 0, "image": names["images"],
                "mask": names["masks"], "requested_mask": names["masks"], "image_sha256": save(run / names["images"], image),
                "mask_sha256": save(run / names["masks"], mask), "normal": str(normal), "normal_sha256": normal_sha256,
                "mask_origin": "warped", "touched_box": [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1],
                "prior_digest": "9f02c4d1aa37be60", "adapter_digest": "41c8e07755d2f3a9", "config_digest": "d0e1f2a3b4c5d6e7",
                "steps": 50, "severity": 1.0, "accepted": good, "measures": {"coverage": 0.7 + count / 100, "visibility": 3.25},
                "reasons": [] if good else [f"label covers 0.{count} of the change, below 0.50"], "seconds": 1.5 + count / 10,
                "version": "0.1.0",
            }  # fmt: skip
            records.append(record)
    Manifest(run / "manifest.jsonl").rewrite(records)
    about = {
        "format": 2, "created": "2026-03-05T10:00:00", "status": "done", "versions": {"torch": "2.9", "python": "3.11"},
        "commands": [f"anomalydiffusion train {data} --output {run}", f"anomalydiffusion generate {run} --num 3 --seed 7"],
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(about))
    (run / "config.toml").write_text('preset = "default"\n[generation]\nsteps = 50\nname = "<script>alert(1)</script>"\n')
    return run


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("original")).parent


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the run, and of its data set, that a test may change."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    for name in ("manifest.jsonl", "split.json", "run.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(str(original), str(tmp_path)))
    return tmp_path / "run"
