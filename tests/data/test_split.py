"""The split: disjoint, a third, no group on two sides, the same whatever the file system says."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from natsort import natsorted
from PIL import Image

from anomalydiffusion.core.errors import DataError, SplitError
from anomalydiffusion.core.types import Normal, Product, Shot, Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import Sides, divide, few_shot_split, from_json, to_json
from tests.hostile import refused, spoilt


def product(defects: dict[str, list[str]], normals: list[tuple[str, str]] = ()) -> Product:  # type: ignore[assignment]
    """A product on no disk: defect type -> the group of each image; (part, group) of each normal image."""
    root = Path("/nowhere/p")
    shots = {
        name: tuple(Shot(product="p", defect=name, path=root / f"test/{name}/{i}.png", mask_path=root / f"{i}.png", group=group)
                    for i, group in enumerate(groups))
        for name, groups in defects.items()
    }  # fmt: skip
    places = [(root / f"{part}/good/{i}.png", part, group) for i, (part, group) in enumerate(normals)]
    good = tuple(Normal(product="p", path=path, group=group, part=part) for path, part, group in places)
    return Product(name="p", normals=good, defects=shots)


def write(root: Path, files: dict[str, bytes | None], groups: dict[str, str] | None = None, name: str = "p") -> Path:
    """Files of a product (content is the name unless given); each defect image gets a mask. No picture is decoded here."""
    for file, content in files.items():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name}/{file}".encode() if content is None else content)
        part, kind, _ = file.split("/")
        if part == "test" and kind != "good":
            mask = root / name / "ground_truth" / kind / f"{path.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(b"one mask for all")
    if groups:
        table = "file,group\n" + "".join(f"{file},{group}\n" for file, group in groups.items())
        (root / name / "groups.csv").write_text(table)
    return root


def numbered(kind: str, n: int) -> dict[str, bytes | None]:
    return dict.fromkeys(f"{kind}/{i}.png" for i in range(n))


MASK = "ground_truth/d/0_mask.png"
GOOD = {**numbered("train/good", 3), **numbered("test/good", 2)}
groups_of_a_type = st.lists(st.sampled_from([f"g{i}" for i in range(7)]), min_size=1, max_size=12)
products = st.builds(
    product,
    st.dictionaries(st.sampled_from("abcd"), groups_of_a_type, min_size=1),
    st.lists(st.tuples(st.sampled_from(["train", "test"]), st.sampled_from([f"g{i}" for i in range(12)])), max_size=8),
)


@given(products)
@settings(max_examples=300, deadline=None)
def test_no_group_stands_on_two_sides(thing: Product) -> None:
    sides = divide(thing)
    learned = {item.group for item in (*sides.shots, *sides.normals)}
    tested = {item.group for item in (*sides.held_out, *sides.held_out_normals)}
    assert not learned & tested
    dealt = [shot for name, shots in thing.defects.items() if name not in sides.refused for shot in shots]
    assert len(sides.shots) + len(sides.held_out) == len(dealt) and {*sides.shots, *sides.held_out} == set(dealt)
    assert all(normal.part == "train" for normal in sides.normals)
    for name, shots in thing.defects.items():
        if name not in sides.refused:
            assert {name} <= {s.defect for s in sides.shots} & {s.defect for s in sides.held_out}
        if len({s.group for s in shots}) < 2:
            assert name in sides.refused
    for n in thing.normals:  # dropped: only a test image of a part that is learned from
        assert (n in sides.normals) + (n in sides.held_out_normals) == 1 or (n.part == "test" and n.group in learned)
    again = divide(thing)
    assert again == sides


@given(groups_of_a_type)
@settings(max_examples=300, deadline=None)
def test_one_type_takes_whole_groups_up_to_a_third(groups: list[str]) -> None:
    sides = divide(product({"d": groups}))
    if len(set(groups)) < 2:
        assert list(sides.refused) == ["d"] and not sides.shots
        return
    assert not sides.refused and sides.shots and sides.held_out
    taken, order = {s.group for s in sides.shots}, list(dict.fromkeys(groups))
    if len(sides.shots) > len(groups) // 3 or order[0] not in taken:  # the first was too large: the smallest one instead
        assert groups.count(order[0]) > len(groups) // 3
        assert len(taken) == 1 and len(sides.shots) == min(map(groups.count, groups))
    else:
        assert taken == set(order[: len(taken)])
        assert len(sides.shots) + groups.count(order[len(taken)]) > len(groups) // 3


@given(st.dictionaries(st.sampled_from("abc"), st.integers(2, 40), min_size=1))
@settings(deadline=None)
def test_without_groups_the_first_third_is_learned_from(counts: dict[str, int]) -> None:
    sides = divide(product({name: [f"{name}{i}" for i in range(n)] for name, n in counts.items()}))
    for name, n in counts.items():
        assert [int(s.path.stem) for s in sides.shots if s.defect == name] == list(range(max(1, n // 3)))
        assert [int(s.path.stem) for s in sides.held_out if s.defect == name] == list(range(max(1, n // 3), n))


def test_a_type_that_would_lose_a_side_is_dealt_first() -> None:
    alone = divide(product({"a": list("123456789")}))
    assert [s.group for s in alone.shots] == ["1", "2", "3"]
    sides = divide(product({"a": list("123456789"), "b": ["8", "9"]}))  # dealt second, both of b's parts would be held out
    assert not sides.refused
    assert [s.group for s in sides.shots if s.defect == "b"] == ["8"]
    assert [s.group for s in sides.shots if s.defect == "a"] == ["1", "2", "8"]


def test_what_cannot_be_divided_is_refused() -> None:
    sides = divide(product({"a": ["1", "2"], "b": ["2", "3"], "c": ["3", "1"]}))  # two sides, an odd circle
    assert len(sides.refused) == 1 and "one side empty" in next(iter(sides.refused.values()))
    assert isinstance(sides, Sides) and {s.defect for s in sides.shots} | set(sides.refused) == {"a", "b", "c"}


def test_normals_of_a_held_out_part_are_held_out() -> None:
    groups = [("train", "1"), ("train", "3"), ("train", "x"), ("test", "1"), ("test", "2"), ("test", "x"), ("test", "y")]
    sides = divide(product({"d": ["1", "2", "3"]}, groups))
    assert [n.group for n in sides.normals] == ["1", "x"]
    assert [(n.part, n.group) for n in sides.held_out_normals] == [("train", "3"), ("test", "2"), ("test", "y")]


stem = st.text("ab 1029é.", min_size=1, max_size=6).filter(lambda text: not text.startswith(".") and bool(text.strip(" .")))
names = st.lists(stem, min_size=2, max_size=9, unique=True)


@given(names, st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_listing_changes_nothing(stems: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder).resolve(), {**GOOD, **dict.fromkeys(f"test/d/{stem}.png" for stem in stems)})
        one, iterdir = few_shot_split(read_folder(root)), Path.iterdir

        def shuffled(self: Path) -> list[Path]:
            found = sorted(iterdir(self))
            random.Random(seed).shuffle(found)
            return found

        with patch.object(Path, "iterdir", shuffled):
            other = few_shot_split(read_folder(root))
        assert to_json(one, root) == to_json(other, root)
        expected = natsorted(sorted(f"{stem}.png" for stem in stems))[: max(1, len(stems) // 3)]
        assert [s.path.name for s in one.shots] == expected


def test_the_record_comes_back_and_follows_the_files(tmp_path: Path) -> None:
    groups = {"test/d/0.png": "one", "test/d/1.png": "one", "train/good/0.png": "one"}
    root = write(tmp_path / "a", {**GOOD, **numbered("test/d", 7)}, groups)
    split = few_shot_split(read_folder(root))
    assert [s.path.name for s in split.shots] == ["0.png", "1.png"]
    record = json.loads(json.dumps(to_json(split, root)))
    assert len(record["digest"]) == 16
    assert {file["role"] for file in record["files"]} == {"shot", "held_out", "normal", "held_out_normal"}
    shot = record["files"][0]
    assert shot["path"] == "p/test/d/0.png" and shot["mask"] == "p/ground_truth/d/0_mask.png" and shot["group"] == "one"
    assert shot["sha256"] == split.sha256[root / "p/test/d/0.png"]
    back = from_json(record, root)
    assert to_json(back, root) == record and back.sha256 == split.sha256 and isinstance(back, Split)
    root = root.rename(tmp_path / "b")
    moved = from_json(record, root)
    assert moved.shots[0].path == root / "p/test/d/0.png" and moved.normals[0].part == "train"
    assert few_shot_split(read_folder(root)).digest == split.digest  # the place does not count
    (root / "p/test/d/6.png").unlink()
    with pytest.raises(DataError, match=r"6\.png: no such file"):
        from_json(record, root)
    with pytest.raises(DataError, match="damaged"):
        from_json({"files": [{}], "digest": ""}, root)


@pytest.mark.parametrize("file", ["test/d/0.png", "test/d/5.png", "train/good/0.png", "test/good/1.png", MASK])
def test_another_file_is_another_digest(tmp_path: Path, file: str) -> None:
    root = write(tmp_path, {**GOOD, **numbered("test/d", 6)})
    before = few_shot_split(read_folder(root)).digest
    (root / "p" / file).write_bytes(b"changed")
    assert few_shot_split(read_folder(root)).digest != before


def test_the_choice_leaves_out_but_never_moves(tmp_path: Path) -> None:
    groups = {f"test/{d}/{i}.png": f"part {i}" for d in "de" for i in range(6)}
    root = write(tmp_path, {**GOOD, **numbered("test/d", 6), **numbered("test/e", 6), **numbered("test/one", 1)}, groups)
    write(root, {**GOOD, **numbered("test/f", 3)}, name="q")
    write(root, GOOD, name="flawless")
    data = read_folder(root)
    with pytest.raises(SplitError, match=r"p/one: 1 image .*--defect"):
        few_shot_split(data)
    both, only = few_shot_split(data, defects=["d", "e"]), few_shot_split(data, products=["p"], defects=["e"])
    assert {s.product for s in both.shots} == {"p"} and {n.product for n in both.normals} == {"p"}
    assert [s.path for s in only.shots] == [s.path for s in both.shots if s.defect == "e"]
    assert {n.product for n in few_shot_split(data, defects=["f", "d"]).normals} == {"p", "q"}
    for wrong, words in (
        ({"products": ["r"]}, "no product 'r'.*: p, q"),
        ({"products": ["flawless"]}, "no product 'flawless'"),
        ({"defects": ["g"]}, "no defect type 'g'.*: d, e, one, f"),
        ({"products": ["q"], "defects": ["d"]}, "no defect type 'd'.*: f$"),
    ):
        with pytest.raises(SplitError, match=words):
            few_shot_split(data, **wrong)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {**numbered("test/good", 2), **numbered("test/d", 6)})
    with pytest.raises(SplitError, match=r"p: no normal image.*p/train/good"):
        few_shot_split(read_folder(root))
    write(root, GOOD)
    data = read_folder(root)
    (root / "p/test/d/3.png").unlink()
    with pytest.raises(DataError, match=r"d/3\.png: cannot be read"):
        few_shot_split(data)
    with pytest.raises(SplitError, match="no defect image with a mask"):
        few_shot_split(read_folder(write(tmp_path / "other", GOOD)))


def test_one_part_for_all_images_of_a_type_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {**GOOD, **numbered("test/d", 3)}, {f"test/d/{i}.png": "same" for i in range(3)})
    with pytest.raises(SplitError, match=r"p/d: all 3 images are of one group"):
        few_shot_split(read_folder(root))


def test_a_broken_table_of_groups_stops_the_split(tmp_path: Path) -> None:
    root = write(tmp_path, {**GOOD, **numbered("test/d", 6)})
    (root / "p" / "groups.csv").write_text("datei;gruppe\n")
    with pytest.raises(DataError, match=r"groups\.csv: no column"):
        few_shot_split(read_folder(root))
    with pytest.raises(DataError, match=r"groups\.csv: no column"):
        few_shot_split(read_folder(root / "p"))


@pytest.mark.parametrize("name", ["0.png", "p/test/d/0.png", "d/0.png"])
def test_a_table_of_groups_that_names_none_of_the_images_stops_the_split(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, {**GOOD, **numbered("test/d", 6)}, {name: "a"})
    with pytest.raises(
        SplitError, match=rf"groups\.csv: names none of the images of p, first {name}; name each relative to .*/p, as test/d/0"
    ):
        few_shot_split(read_folder(root))
    (root / "p" / "groups.csv").write_text(f"file,group\n{name},a\ntest/d/0.png,a\n")
    few_shot_split(read_folder(root))


def test_copies_across_the_split_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {**GOOD, **numbered("test/d", 6), "test/d/5.png": b"p/test/d/0.png"})
    with pytest.raises(DataError, match=r"same content.*0\.png.*5\.png"):
        few_shot_split(read_folder(root))


def test_three_rotations_learn_from_three_different_thirds() -> None:
    one = product({"d": [f"g{i // 2}" for i in range(18)]}, [("train", "a")])
    shots = [{shot.path for shot in divide(one, rotation).shots} for rotation in range(3)]
    assert all(len(some) == 6 for some in shots) and len(set.union(*shots)) == 18
    assert divide(one, 3) == divide(one) == divide(one, 0)


@given(products, st.integers(1, 2))
def test_a_rotation_keeps_groups_whole(one: Product, rotation: int) -> None:
    sides = divide(one, rotation)
    learned, tested = {shot.group for shot in sides.shots}, {shot.group for shot in sides.held_out}
    assert not learned & tested and {shot.path for shot in (*sides.shots, *sides.held_out)} == {
        shot.path for name, shots in one.defects.items() if name not in sides.refused for shot in shots
    }


@pytest.mark.parametrize(
    "other",
    [{"path": "../outside.png"}, {"path": "/etc/hostname"}, {"mask": "../outside.png"}, {"product": "../.."}, {"defect": "a/b"},
     {"product": None}, {"path": "x" * 5000}, {"path": 5}, {"role": []}, {"role": "king"}, {"path": "a\0b"}],
)  # fmt: skip
def test_a_record_that_leads_out_of_the_data_set_is_refused(tmp_path: Path, other: dict) -> None:
    root = write(tmp_path / "a", {**GOOD, **numbered("test/d", 3)})
    (tmp_path / "outside.png").write_bytes(b"x")
    record = json.loads(json.dumps(to_json(few_shot_split(read_folder(root)), root)))
    record["files"][0] |= other
    with pytest.raises(DataError, match=r"the record of the split is damaged .*; train anew"):
        from_json(record, root)


@given(data=spoilt({"digest": "0", "root": ".", "files": [
    {"path": "p/test/d/0.png", "sha256": "0", "role": "shot", "product": "p", "defect": "d", "group": "g", "mask": "m.png",
     "mask_sha256": "0"},
    {"path": "p/train/good/0.png", "sha256": "0", "role": "normal", "product": "p", "defect": None, "group": "g", "mask": None},
]}))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_whatever_a_record_holds_is_one_line(data: bytes) -> None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return
    refused(lambda: from_json(record, Path("nowhere")))
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("role", ["shot", "held_out", "normal", "held_out_normal"])
def test_a_record_that_gives_a_file_another_role_is_refused(role: str, tmp_path: Path) -> None:
    mask = None if role in ("shot", "held_out") else "m.png"
    file = {"path": "a.png", "sha256": "0", "role": role, "product": "p", "defect": "d", "group": "g", "mask": mask, "mask_sha256": None}
    with pytest.raises(DataError, match="the mask of a file that is"):
        from_json({"digest": "0", "files": [file]}, tmp_path)


def test_groups_are_read_where_a_product_lies_that_holds_a_folder_of_its_name(tmp_path: Path) -> None:
    root = tmp_path / "tile"
    for place, count in (("train/good", 3), ("test/good", 1), ("test/crack", 6), ("ground_truth/crack", 6)):
        (root / place).mkdir(parents=True)
        for number in range(count):
            suffix, shade = ("_mask", 255) if "ground" in place else ("", 10 * number + len(place))
            Image.fromarray(np.full((16, 16), shade, np.uint8)).save(root / place / f"{number}{suffix}.png")
    (root / "tile").mkdir()
    (root / "groups.csv").write_text("picture,part\n")
    with pytest.raises(DataError, match="groups"):
        few_shot_split(read_folder(root))
