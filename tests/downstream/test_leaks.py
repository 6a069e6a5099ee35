"""The leak guard bites: a planted copy, a picture saved anew, a group mate, a pair with the wrong ancestor."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.errors import SplitError
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.copies import near_copies
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.looks import see
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.leaks import guard
from anomalydiffusion.downstream.samples import Generated
from tests.downstream.conftest import write_pairs, write_plates

Case = tuple[Split, list[Generated], Path]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_plates(tmp_path, {"train/good": 3, "test/good": 2, "test/spot": 6})
    split = few_shot_split(read_folder(tmp_path))
    return split, write_pairs(split, tmp_path / "pairs", 2), tmp_path


def test_a_clean_comparison_passes(case: Case) -> None:
    guard(*case)


def test_a_pair_made_on_a_held_out_image(case: Case) -> None:
    split, pairs, root = case
    held = split.held_out_normals[0]
    with pytest.raises(SplitError, match=r"held out, but .*000000.png was made of it"):
        guard(split, [replace(pairs[0], normal=held.path, normal_sha256=split.sha256[held.path])], root)


def test_a_pair_begun_from_a_held_out_defect(case: Case) -> None:
    split, pairs, root = case
    held, copied = split.held_out[0], root / "copied.png"
    guard(split, [replace(pairs[0], reference=split.shots[0].path), replace(pairs[1], reference=root / "gone.png")], root)
    shutil.copy(held.path, copied)
    for path in (held.path, copied):
        with pytest.raises(SplitError, match=r"held out, but .*000000.png was made of it"):
            guard(split, [replace(pairs[0], reference=path)], root)
    image = np.asarray(Image.open(held.path)).copy()
    image[1, 1] += 1
    Image.fromarray(image).save(copied)
    with pytest.raises(SplitError, match=r"nearly the same picture as .*copied\.png"):
        guard(split, [replace(pairs[0], reference=copied)], root)
    name, other = held.path.relative_to(root / "plate").as_posix(), root / "plate" / "train" / "good" / "mate.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, image.shape, dtype=np.uint8)).save(other)
    (root / "plate" / "groups.csv").write_text(f"file,group\ntrain/good/mate.png,part-7\n{name},part-7\n")
    with pytest.raises(SplitError, match=r"was made of, shows the same part \(group part-7\)"):
        guard(split, [replace(pairs[0], reference=other)], root)


def test_a_pair_made_on_a_held_out_image_saved_anew(case: Case) -> None:
    split, pairs, root = case
    again = root / "again.bmp"
    Image.open(split.held_out_normals[0].path).save(again)
    with pytest.raises(SplitError, match=r"nearly the same picture as .*again\.bmp"):
        guard(split, [replace(pairs[0], normal=again, normal_sha256="unknown")], root)


def test_a_held_out_image_among_the_pairs(case: Case) -> None:
    split, pairs, root = case
    shutil.copy(split.held_out[0].path, pairs[1].image)
    with pytest.raises(SplitError, match="is the same file"):
        guard(split, pairs, root)
    image = np.asarray(Image.open(split.held_out[0].path)).copy()
    image[0, 0] += 1
    Image.fromarray(image).save(pairs[1].image)
    with pytest.raises(SplitError, match="is nearly the same picture"):
        guard(split, pairs, root)


def test_a_shot_saved_anew_among_the_held_out(case: Case) -> None:
    split, pairs, root = case
    image = np.asarray(Image.open(split.shots[0].path)).copy()
    image[1, 1] += 1
    Image.fromarray(image).save(split.held_out[0].path)
    with pytest.raises(SplitError, match="changed since the split was made"):
        guard(split, pairs, root)
    with pytest.raises(SplitError, match="nearly the same picture"):
        guard(few_shot_split(read_folder(root)), pairs, root)


def test_a_copy_among_other_photographs_of_one_still_scene(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scene = 100 + 40 * np.repeat(np.linspace(0, 1, 256)[None], 256, 0)

    def photograph(path: Path, image: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image + 0.5, 0, 255).astype(np.uint8)).save(path)
        return path

    frames = [scene + random.normal(0, 2, scene.shape) for _ in range(24)]
    learned = [photograph(tmp_path / f"learned/{i}.png", frame) for i, frame in enumerate(frames)]
    others = [photograph(tmp_path / f"other/{i}.png", scene + random.normal(0, 2, scene.shape)) for i in range(4)]
    brighter = photograph(tmp_path / "brighter.png", 1.004 * frames[17])
    smaller = tmp_path / "smaller.jpg"
    Image.open(learned[5]).resize((200, 200)).save(smaller, quality=98)
    tested = [*others, brighter, smaller]
    seen = {path: see(path, is_mask=False) for path in [*learned, *tested]}
    assert list(near_copies(learned, tested, seen)) == [(learned[17], brighter), (learned[5], smaller)]


def test_a_run_without_held_out_images_leaks_nothing(case: Case) -> None:
    split, pairs, root = case
    guard(replace(split, held_out=(), held_out_normals=()), pairs, root / "not-a-data-set")


def test_a_group_that_was_named_after_the_split(case: Case) -> None:
    split, pairs, root = case
    learned, held = (item.path.relative_to(root / "plate").as_posix() for item in (split.normals[0], split.held_out[0]))
    (root / "plate" / "groups.csv").write_text(f"file,group\n{learned},part-7\n{held},part-7\n")
    with pytest.raises(SplitError, match=r"shows the same part \(group part-7\)"):
        guard(split, pairs, root)


def test_a_group_mate_whose_name_is_written_in_another_form(case: Case) -> None:
    split, pairs, root = case
    composed, decomposed = "r\u00fcckseite.png", "ru\u0308ckseite.png"
    fresh = root / "plate" / "train" / "good" / decomposed
    shutil.copy(split.normals[0].path, fresh)
    held = split.held_out[0].path.relative_to(root / "plate").as_posix()
    (root / "plate" / "groups.csv").write_text(f"file,group\ntrain/good/{composed},part-7\n{held},part-7\n", encoding="utf-8")
    with pytest.raises(SplitError, match=r"shows the same part \(group part-7\)"):
        guard(split, [replace(pairs[0], normal=fresh)], root)


@pytest.mark.parametrize("which", ["held-out mask", "shot", "shot's mask", "normal"])
def test_what_was_changed_since_the_split_is_refused(which: str, case: Case) -> None:
    split, pairs, root = case
    path = {
        "held-out mask": split.held_out[0].mask_path, "shot": split.shots[0].path, "shot's mask": split.shots[0].mask_path,
        "normal": split.normals[0].path,
    }[which]  # fmt: skip
    marks = np.asarray(Image.open(path)).copy()
    marks[0, 0] ^= 255
    Image.fromarray(marks).save(path)
    with pytest.raises(SplitError, match=rf"{path.name}: changed since the split was made"):
        guard(split, pairs, root)
