"""Planted faults: each is named, with its file, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.data.check import Problem, check
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split

SIZE = 128


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """Coarse blotches and fine grain, another for each seed."""
    rng = np.random.default_rng(seed)
    blotches = np.kron(rng.integers(40, 200, (4, 4)), np.ones((size[0] // 4 + 1, size[1] // 4 + 1)))[: size[0], : size[1]]
    return np.clip(blotches[..., None] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture(scope="module")
def sound_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[30:50, 40:60] = 255
    for i in range(10):
        save(root / f"tile/test/crack/{i}.png", picture(i))
        save(root / f"tile/ground_truth/crack/{i}_mask.png", mask)
    for i in range(4):
        save(root / f"tile/train/good/{i}.png", picture(100 + i))
        save(root / f"tile/test/good/{i}.png", picture(200 + i))
    return root


@pytest.fixture
def sound(sound_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_once, tmp_path / "data"))


def test_a_sound_data_set_has_no_problem(sound: Path) -> None:
    report = check(str(sound))
    assert report.ok and report.problems == () and report.root == sound
    (tile,) = report.products
    assert (tile.name, tile.normals_train, tile.normals_test, tile.groups) == ("tile", 4, 4, 18)
    assert tile.defects == {"crack": 10} and tile.shots == {"crack": 3}
    assert tile.sizes == ((SIZE, SIZE), (SIZE, SIZE)) and tile.modes == {"8-bit RGB": 18}
    assert json.loads(json.dumps(report.to_dict()))["products"][0]["shots"] == {"crack": 3}


IMAGE, MASK = "tile/test/crack/4.png", "tile/ground_truth/crack/4_mask.png"


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def jpeg_cut(root: Path, image: str = IMAGE) -> None:
    save((root / image).with_suffix(".jpg"), picture(4), quality=95)
    cut((root / image).with_suffix(".jpg"), 0.98)
    (root / image).unlink()


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(4)).save(root / IMAGE, exif=exif)


def table(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "tile/groups.csv").write_text(text)


def wrong_name(root: Path) -> None:
    lines = [f"{p.relative_to(root / 'tile').as_posix()},{i}\n" for i, p in enumerate(root.glob("tile/t*/*/*.png"))]
    table("file,group\nnope.png,1\n" + "".join(lines))(root)


def fewer(root: Path) -> None:
    for i in range(4):
        (root / f"tile/test/crack/{i}.png").unlink()
        (root / f"tile/ground_truth/crack/{i}_mask.png").unlink()


def saved_anew(root: Path) -> None:
    Image.open(root / "tile/test/crack/0.png").save(root / "tile/test/crack/8.jpg", quality=85)
    (root / "tile/test/crack/8.png").unlink()


FULL, EMPTY = np.full((SIZE, SIZE), 255, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
FAULTS: list[tuple[str, Callable[[Path], object], str, str, str]] = [
    ("empty file", lambda r: (r / IMAGE).write_bytes(b""), "error", IMAGE, "empty"),
    ("not a picture", lambda r: (r / IMAGE).write_bytes(b"hello"), "error", IMAGE, "cannot be read"),
    ("half a PNG", lambda r: cut(r / IMAGE, 0.5), "error", IMAGE, "cannot be read"),
    ("nearly a whole PNG", lambda r: cut(r / IMAGE, 0.97), "error", IMAGE, "cannot be read"),
    ("nearly a whole JPEG", jpeg_cut, "error", IMAGE.replace("png", "jpg"), "cannot be read"),
    ("half a normal", lambda r: cut(r / "tile/train/good/1.png", 0.5), "error", "tile/train/good/1.png", "cannot be read"),
    ("half a test normal", lambda r: cut(r / "tile/test/good/1.png", 0.5), "error", "tile/test/good/1.png", "cannot be read"),
    ("dead link", lambda r: (r / "tile/train/good/x.png").symlink_to("no"), "error", "tile/train/good/x.png", "no such file"),
    ("half a mask", lambda r: cut(r / MASK, 0.5), "error", MASK, "cannot be read"),
    ("empty mask file", lambda r: (r / MASK).write_bytes(b""), "error", MASK, "empty"),
    ("no mask", lambda r: (r / MASK).unlink(), "error", IMAGE, "has no mask"),
    ("mask alone", lambda r: (r / IMAGE).unlink(), "warning", MASK, "no image in test/crack"),
    ("mask of no type", lambda r: save(r / "tile/ground_truth/dent/1_mask.png", FULL), "warning",
     "tile/ground_truth/dent/1_mask.png", "no image in test/dent"),
    ("mask marks nothing", lambda r: save(r / MASK, EMPTY), "error", MASK, "marks no pixel"),
    ("mask marks all", lambda r: save(r / MASK, FULL), "warning", MASK, "marks every pixel"),
    ("mask of another size", lambda r: save(r / MASK, np.eye(64, SIZE, dtype=np.uint8)), "error", MASK, "128 x 64 pixels, but"),
    ("JPEG mask", lambda r: (Image.open(r / MASK).save((r / MASK).with_suffix(".jpg")), (r / MASK).unlink()), "warning",
     MASK.replace("png", "jpg"), "lossy"),
    ("one mask for two", lambda r: save(r / "tile/test/crack/4.bmp", picture(44)), "warning", IMAGE, "the same mask as 4.bmp"),
    ("copy across", lambda r: shutil.copy(r / "tile/test/crack/0.png", r / "tile/test/crack/8.png"), "error",
     "tile/test/crack/8.png", "same content as tile/test/crack/0.png: on both sides"),
    ("copy of a normal across", lambda r: shutil.copy(r / "tile/train/good/0.png", r / "tile/test/good/0.png"), "error",
     "tile/test/good/0.png", "both sides"),
    ("normal and defect", lambda r: shutil.copy(r / "tile/train/good/0.png", r / "tile/test/crack/0.png"), "error",
     "tile/test/crack/0.png", "once normal, once a defect"),
    ("copy on one side", lambda r: shutil.copy(r / "tile/test/crack/7.png", r / "tile/test/crack/8.png"), "warning",
     "tile/test/crack/8.png", "same content"),
    ("saved anew", saved_anew, "warning", "tile/test/crack/8.jpg", "nearly the same picture as test/crack/0.png"),
    ("one pixel", lambda r: save(r / "tile/train/good/1.png", picture(1, (1, 1))), "error", "tile/train/good/1.png", "too small"),
    ("small", lambda r: save(r / "tile/train/good/1.png", picture(1, (90, 200))), "note", "tile/train/good/1.png", "under 128"),
    ("one image of a type", lambda r: (save(r / "tile/test/dent/1.png", picture(50)),
                                       save(r / "tile/ground_truth/dent/1.png", np.eye(SIZE, dtype=np.uint8) * 255)), "error",
     "tile/test/dent", "1 image"),
    ("few shots", fewer, "note", "tile/test/crack", "only 2"),
    ("no normals", lambda r: shutil.rmtree(r / "tile/train"), "error", "tile/train/good", "no normal image"),
    ("no test normals", lambda r: shutil.rmtree(r / "tile/test/good"), "note", "tile/test/good", "no normal image to test"),
    ("no defects", lambda r: (shutil.rmtree(r / "tile/test/crack"), shutil.rmtree(r / "tile/ground_truth")), "warning", "tile",
     "nothing to learn"),
    ("slip of the pen", lambda r: save(r / MASK, np.pad(np.full((1, 3), 255, np.uint8), ((0, SIZE - 1), (0, SIZE - 3)))), "note", MASK,
     "marks 3 pixels, masks of crack usually 400: a slip"),
    ("turned", turned, "warning", IMAGE, "EXIF"),
    ("table without columns", table("a;b\n"), "error", "tile/groups.csv", "no column file and group"),
    ("table names nothing", wrong_name, "warning", "tile/groups.csv", "names nope.png"),
    ("table of other names", table("file,group\ntile/test/crack/0.png,1\n0.png,1\n"), "error", "tile/groups.csv",
     "names none of the images, first tile/test/crack/0.png"),
    ("table is not whole", table("file,group\ntest/crack/0.png,1\n"), "note", "tile/groups.csv", "does not list 17 of"),
    ("other kind", lambda r: (r / "tile/train/good/5.webp").write_bytes(b"RIFF"), "warning",
     "tile/train/good/5.webp", "not a kind"),
    ("folder too deep", lambda r: save(r / "tile/test/crack/more/1.png", picture(9)), "warning",
     "tile/test/crack/more", "not read"),
    ("region of no type", lambda r: save(r / "tile/roi/dent.png", FULL), "warning", "tile/roi/dent.png", "no images of a defect type"),
    ("region marks nothing", lambda r: save(r / "tile/roi.png", EMPTY), "error", "tile/roi.png", "marks no pixel"),
    ("region of another size", lambda r: save(r / "tile/roi.png", FULL[:64]), "error", "tile/roi.png", "as only 0 of 4"),
    ("region in other words", lambda r: (r / "tile/roi.json").write_text('{"x": 1}'), "error", "tile/roi.json", "something else"),
    ("defects in train", lambda r: save(r / "tile/train/crack/1.png", picture(9)), "warning",
     "tile/train/crack", "only train/good"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "level", "file", "words"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_named(sound: Path, plant: Callable[[Path], object], level: str, file: str, words: str) -> None:
    plant(sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check(sound)
    assert [(p.level, p.file) for p in report.problems] == [(level, file)], report.problems
    (problem,) = report.problems
    assert words in problem.message and problem.remedy and "\n" not in problem.message
    assert str(sound) not in problem.message.replace(f"'{sound}", "")  # the file is named once, relative to the data
    assert report.ok == (level != "error")


def test_what_stops_the_split_is_an_error_of_the_check(sound: Path) -> None:
    shutil.copy(sound / "tile/test/crack/0.png", sound / "tile/test/crack/8.png")
    with pytest.raises(DataError):
        few_shot_split(read_folder(sound))
    assert not check(sound).ok


def test_groups_quiet_the_word_on_near_copies(sound: Path) -> None:
    saved_anew(sound)
    (sound / "tile/groups.csv").write_text("file,group\ntest/crack/0.png,a\ntest/crack/8.jpg,a\n")
    assert [p.level for p in check(sound).problems] == ["note"]


def test_other_photographs_of_one_still_scene_are_no_copies(tmp_path: Path) -> None:
    scene = picture(1).astype(float)  # one flat, fixed scene: only the grain differs
    scene = np.full_like(scene, 128) + np.linspace(0, 60, SIZE)[None, :, None]
    for i in range(6):
        grain = np.random.default_rng(i).normal(0, 3, scene.shape)
        save(tmp_path / f"p/{'train' if i < 3 else 'test'}/good/{i}.png", np.clip(scene + grain, 0, 255).astype(np.uint8))
    assert [p.message for p in check(tmp_path).problems if p.level != "warning" or "nearly" in p.message] == []


def test_a_product_alone_and_many_faults_in_order(sound: Path) -> None:
    (sound / "tile/train/good/0.png").write_bytes(b"")
    save(sound / "tile/ground_truth/crack/5_mask.png", EMPTY)
    save(sound / "tile/ground_truth/crack/6_mask.png", FULL)
    report = check(sound / "tile")
    assert [(p.level, p.file) for p in report.problems] == [
        ("error", "ground_truth/crack/5_mask.png"), ("error", "train/good/0.png"), ("warning", "ground_truth/crack/6_mask.png"),
    ]  # fmt: skip
    assert isinstance(report.problems[0], Problem) and report.products[0].modes == {"8-bit RGB": 17}


def test_no_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no product"):
        check(tmp_path)


@pytest.mark.skipif("ANOMALYDIFFUSION_DATA" not in os.environ, reason="ANOMALYDIFFUSION_DATA names no folder of sound data")
def test_real_data_are_clean() -> None:
    report = check(os.environ["ANOMALYDIFFUSION_DATA"])
    assert report.products and [p for p in report.problems if p.level != "note"] == []


def test_a_name_that_cannot_be_written_down_is_named_before_anything_is_learned(sound: Path) -> None:
    save(Path(os.fsdecode(os.fsencode(sound / "tile/train/good") + b"/kratzer_\xe4.png")), picture(77))
    (problem,) = check(sound).problems
    assert (problem.level, problem.remedy) == ("error", "rename it") and "not UTF-8" in problem.message
    assert problem.file.encode("utf-8").decode().startswith("tile/train/good/kratzer_")
    with pytest.raises(DataError, match=r"kratzer_.*not UTF-8.*; rename it"):
        few_shot_split(read_folder(sound))


def test_an_accent_written_in_two_ways_is_one_name_in_the_table_of_groups(sound: Path) -> None:
    names = []
    for path in sorted((sound / "tile/train/good").iterdir()):
        names.append(path.rename(path.with_name(unicodedata.normalize("NFD", f"Kr\u00e4tzer {path.name}"))))
    names += [path for place in ("test/good", "test/crack") for path in sorted((sound / "tile" / place).iterdir())]
    rows = [f"{unicodedata.normalize('NFC', path.relative_to(sound / 'tile').as_posix())},{number}" for number, path in enumerate(names)]
    table("\n".join(["file,group", *rows]) + "\n")(sound)
    assert check(sound).problems == ()


@pytest.mark.parametrize(("bits", "level"), [(10, "error"), (12, "error"), (14, "warning"), (16, None)])
def test_pictures_of_cameras_with_fewer_bits_than_their_files_are_told(sound: Path, bits: int, level: str | None) -> None:
    for number, path in enumerate(sorted((sound / "tile").rglob("t*/*/?.png"))):
        noise = np.random.default_rng(number).integers(0, 2**bits, (SIZE, SIZE))
        Image.fromarray((noise | (2 ** (bits - 1))).astype(np.uint16)).save(path)
    found = [problem for problem in check(sound).problems if "16-bit" in problem.message]
    assert [problem.level for problem in found] == [level] * (level is not None)
    if found:
        assert f"use {bits} bits" in found[0].message and found[0].remedy == f"multiply their values by {2 ** (16 - bits)}"


def test_masks_that_mark_all_but_the_defect_are_told_once(sound: Path) -> None:
    for path in sorted((sound / "tile" / "ground_truth" / "crack").glob("*.png")):
        save(path, 255 - np.asarray(Image.open(path)))
    (problem,) = check(sound).problems
    assert problem.level == "warning" and "masks of crack usually mark 98 % of an image" in problem.message


def test_files_of_several_pictures_are_told(sound: Path) -> None:
    first, second = (Image.fromarray(picture(500 + i)) for i in range(2))
    first.save(sound / "tile/train/good/two.tif", save_all=True, append_images=[second])
    (problem,) = check(sound).problems
    assert problem.file == "tile/train/good/two.tif" and "2 pictures in one file, of which the first is read" in problem.message
