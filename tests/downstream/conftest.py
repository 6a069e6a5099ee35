"""Grey plates with bright squares (spot) or dark discs (pit): data that is learned in seconds, on disk, and pairs of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion.core.pixels import digest_file, encode_png
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.samples import Generated

SIZE = (64, 72)


def plate(random: np.random.Generator, *, defect: bool, kind: str = "spot") -> tuple[np.ndarray, np.ndarray]:
    """An image, and where its defect is."""
    image = np.repeat(random.normal(120, 8, (*SIZE, 1)), 3, axis=2)
    mask = np.zeros(SIZE, bool)
    if defect:
        y, x = random.integers(4, 46, 2)
        down, across = np.mgrid[:14, :14] - 6.5
        mask[y : y + 14, x : x + 14] = (down**2 + across**2 < 49) | (kind != "pit")
        image[mask] += -90 if kind == "pit" else 90
    return np.clip(image, 0, 255).astype(np.uint8), mask


@cache
def second_device() -> str:
    """PyTorch's lazy backend: a device of its own that every machine has, and that refuses tensors of another."""
    import torch._lazy.ts_backend

    torch._lazy.ts_backend.init()
    return "lazy"


def same_on_another_device(there: torch.nn.Module, here: torch.nn.Module, first: torch.nn.Module) -> None:
    """Both learned the same from where `first` is; where a gradient is all but zero, its sign and so Adam's step are chance."""
    assert {p.device.type for p in there.parameters()} == {"lazy"}
    own, other, begun = (torch.cat([p.detach().cpu().ravel() for p in model.parameters()]) for model in (there, here, first))
    moved = (other - begun).abs() > 1e-6
    assert moved.float().mean() > 0.2 and torch.isclose(own, other, rtol=0, atol=1e-6)[moved].float().mean() > 0.95


def write_plates(root: Path, counts: dict[str, int], seed: int = 0, product: str = "plate") -> None:
    """Plates in MVTec layout: part, such as "test/spot", -> how many."""
    random = np.random.default_rng(seed)
    for part, count in counts.items():
        for index in range(count):
            defect, kind = not part.endswith("good"), part.split("/")[1]
            image, mask = plate(random, defect=defect, kind=kind)
            write_atomic(root / product / part / f"{index}.png", encode_png(image))
            if defect:
                write_atomic(root / product / "ground_truth" / kind / f"{index}_mask.png", encode_png(mask))


def write_pairs(
    split: Split, folder: Path, count: int, *, misplaced: bool = False, defect: str = "spot", product: str = "plate"
) -> list[Generated]:
    """Pairs on the split's normals; with `misplaced` the label is where the defect is not."""
    random, pairs = np.random.default_rng(77), []
    normals = [normal for normal in split.normals if normal.product == product]
    for index in range(count):
        image, mask = plate(random, defect=True, kind=defect)
        mask = np.roll(mask, (SIZE[0] // 2, SIZE[1] // 2), (0, 1)) if misplaced else mask
        normal = normals[index % len(normals)]
        names = [folder / part / f"{index:06d}.png" for part in ("images", "masks")]
        for path, array in zip(names, (image, mask), strict=True):
            write_atomic(path, encode_png(array))
        pairs.append(Generated(product=product, defect=defect, image=names[0], mask=names[1], normal=normal.path,
                               normal_sha256=digest_file(normal.path)))  # fmt: skip
    return pairs


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plates")
    write_plates(root, {"train/good": 6, "test/good": 3, "test/spot": 12})
    return root


@pytest.fixture(scope="module")
def split(plates: Path) -> Split:
    return few_shot_split(read_folder(plates))


@pytest.fixture(scope="module")
def pairs(split: Split, tmp_path_factory: pytest.TempPathFactory) -> list[Generated]:
    return write_pairs(split, tmp_path_factory.mktemp("pairs"), 6)
