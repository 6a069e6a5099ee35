"""What pairs are made of: a run's own normal images and masks, or the user's."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anomalydiffusion.app.limits import real_in
from anomalydiffusion.app.pipeline import AnomalyDiffusionPipeline
from anomalydiffusion.app.settings import MaskConfig, Settings
from anomalydiffusion.app.source import Source, shots_of
from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.pixels import read_mask
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.generation.shards import Slot, Task
from anomalydiffusion.masks.matched import MatchedConfig
from anomalydiffusion.masks.warped import WarpedConfig
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.quality.gate import Gate, GateConfig
from anomalydiffusion.quality.places import surroundings, unit_vectors

KEY = ("plate", "hole")


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _picture(seed: int, height: int = 90, width: int = 110) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 160, (height, width, 3)).astype(np.uint8)


def _disc(height: int = 90, width: int = 110, x: int = 50, y: int = 40, radius: int = 9) -> np.ndarray:
    yy, xx = np.mgrid[:height, :width]
    return (np.hypot(yy - y, xx - x) < radius).astype(np.uint8) * 255


@pytest.fixture
def split(tmp_path: Path) -> Split:
    root = tmp_path / "data" / "plate"
    for i in range(4):
        _save(root / "train" / "good" / f"{i}.png", _picture(i))
        _save(root / "test" / "good" / f"{i}.png", _picture(10 + i))
    for defect in ("hole", "stain"):
        for i in range(3):
            seed = 20 + i + 10 * (defect == "stain")
            _save(root / "test" / defect / f"{i}.png", _picture(seed))
            _save(root / "ground_truth" / defect / f"{i}_mask.png", _disc(x=30 + seed, radius=6 + i))
    return few_shot_split(read_folder(tmp_path / "data"))


def test_what_a_drawing_starts_from_is_a_shot_of_its_type_and_is_named(split: Split) -> None:
    source = Source(split, Settings(), None, None)
    item = source.item(_task())
    assert Path(item.reference) in [shot.path for shot in split.shots if shot.key == KEY]
    assert item.start_HWC is not None
    changed = (item.start_HWC != item.normal_HWC).any(2)
    assert changed[item.mask.pixels_HW].any() and not changed[~item.mask.pixels_HW].any()
    alone = Source(split, Settings(generate=GenerateConfig(strength=1.0)), None, None).item(_task())
    toward = Source(split, Settings(generate=GenerateConfig(interpolate=0.5)), None, None)
    assert toward.item(_task()).other in [mask for _, mask in toward.shots[KEY]] and item.other is None
    assert alone.start_HWC is None and alone.reference == "" and (alone.mask.pixels_HW == item.mask.pixels_HW).all()


def _biscuit(seed: int, notch: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A round biscuit on a dark table, and where a notch is broken out of its rim."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :140]
    on = np.hypot(y - 60, x - 70) < 45
    gone = on & (np.abs(y - 60) < 4 + 0.35 * (x - 85)) & (x > 80) & notch
    return np.where((on & ~gone)[..., None], random.integers(150, 180, (120, 140, 3)), random.integers(20, 30, (120, 140, 3))), gone


@pytest.fixture
def broken(tmp_path: Path) -> Split:
    root = tmp_path / "data" / "biscuit"
    for i in range(4):
        _save(root / "train" / "good" / f"{i}.png", _biscuit(i)[0].astype(np.uint8))
    for i in range(6):
        image, gone = _biscuit(20 + i, notch=True)
        _save(root / "test" / "broken" / f"{i}.png", image.astype(np.uint8))
        _save(root / "ground_truth" / "broken" / f"{i}_mask.png", gone.astype(np.uint8) * 255)
    return few_shot_split(read_folder(tmp_path / "data"))


def _opens(mask: np.ndarray, normal: np.ndarray) -> bool:
    return bool((ndimage.binary_dilation(mask, iterations=4) & (normal.max(2) < 40)).any())


def test_gaps_keep_their_outline_and_open_at_the_rim_at_whatever_strength(broken: Split) -> None:
    key, shots = ("biscuit", "broken"), shots_of(broken)
    source = Source(broken, Settings(), None, None)
    alone = Source(broken, Settings(generate=GenerateConfig(strength=1.0)), None, None)
    plain = Source(broken, Settings(masks=MaskConfig(warped=WarpedConfig(carry=False, place="mixed"))), None, None)
    assert source.through(key) == [True] * len(shots[key])
    opens = {"gap": 0, "plain": 0}
    for index in range(8):
        item, other = source.item(_task(index, key)), plain.item(_task(index, key))
        assert item.mask.trace is not None and item.mask.reference == source.target(_task(index, key)) and other.mask.trace is None
        assert item.start_HWC is not None and (item.start_HWC[item.mask.pixels_HW].max(1) < 60).mean() > 0.9, "the table fills it"
        assert (alone.item(_task(index, key)).mask.pixels_HW == item.mask.pixels_HW).all()
        opens["gap"] += _opens(item.mask.pixels_HW, item.normal_HWC)
        opens["plain"] += _opens(other.mask.pixels_HW, other.normal_HWC)
    assert opens["gap"] == 8 > opens["plain"]
    carried = list(source.carried(key, 4))
    assert len(carried) == 4 and all(_opens(each.mask.pixels_HW, each.normal_HWC) for each in carried), "the gate measures by such"


def test_so_they_do_where_one_is_drawn_from_python(broken: Split) -> None:
    key, prior = ("biscuit", "broken"), load_prior("tiny")
    adapter = Adapter(prior, [key], AdapterConfig(lora_rank=0), Origin(prior_digest=prior.digest)).eval()
    pipe = AnomalyDiffusionPipeline(prior, adapter, shots_of(broken), Settings())
    pipe.set_progress_bar_config(disable=True)
    normal = _biscuit(50)[0].astype(np.uint8)
    for seed in range(4):
        masks = [np.asarray(pipe(Image.fromarray(normal), seed=seed, strength=strength, steps=5).mask) > 0 for strength in (0.1, 1.0)]
        assert (masks[0] == masks[1]).all() and _opens(masks[0], normal)


def test_every_shot_s_mask_has_its_turn_before_any_has_its_next(split: Split, tmp_path: Path) -> None:
    for i in range(3, 9):
        _save(tmp_path / "data" / "plate" / "test" / "hole" / f"{i}.png", _picture(40 + i))
        _save(tmp_path / "data" / "plate" / "ground_truth" / "hole" / f"{i}_mask.png", _disc(x=30 + 3 * i, radius=6 + i))
    split = few_shot_split(read_folder(tmp_path / "data"))
    settings = Settings(masks=MaskConfig(source="warped", warped=WarpedConfig(carry=True)))
    source, count = Source(split, settings, None, None), sum(shot.key == KEY for shot in split.shots)
    assert count == 3
    taken = [source.item(_task(index)).mask.reference for index in range(4 * count)]
    rounds = [taken[begin : begin + count] for begin in range(0, len(taken), count)]
    assert all(sorted(each) == list(range(count)) for each in rounds)
    again = replace(_task(0), attempt=1)
    assert source.target(again) == source.target(_task(1)) != source.target(_task(0)), "another attempt takes another shot's"


def _task(index: int = 0, key: tuple[str, str] = KEY) -> Task:
    return Task(slot=Slot(key=key, index=index), attempt=0, seed=100 + index)


def test_a_matched_item_carries_its_own_shot_s_defect_and_is_found_again_on_its_normal_image(split: Split) -> None:
    matched = replace(Settings(), masks=MaskConfig(source="matched"))
    source, one = Source(split, matched, None, None), replace(matched, masks=replace(matched.masks, matched=MatchedConfig(images=1)))
    shots, number = source.shots[KEY], {path: row for row, path in enumerate(source.names[KEY])}
    assert {source.item(_task(i)).normal for i in range(8)} != {Source(split, one, None, None).item(_task(0)).normal}
    for index in range(4):
        item = source.item(_task(index))
        assert item.mask.origin == "matched" and item.mask.reference == number[item.reference] == source.target(_task(index))
        assert item.shot is not None and item.shot[0] is shots[item.mask.reference][0]
        again = Source(split, matched, None, None).item_on(_task(index), item.normal_sha256)
        assert (again.mask.pixels_HW == item.mask.pixels_HW).all() and again.start_HWC is not None and item.start_HWC is not None
        assert (again.start_HWC == item.start_HWC).all()


def test_the_gate_of_matched_masks_measures_by_matched_ones(split: Split) -> None:
    source = Source(split, replace(Settings(), masks=MaskConfig(source="matched")), None, None)
    assert {each.mask.origin for each in source.carried(KEY, 2)} == {"matched"}


def test_what_real_defects_score_is_found_once_and_anew_where_it_follows_from_something_else(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[object] = []
    one = Source._one_carried
    monkeypatch.setattr(Source, "_one_carried", lambda self, *given: laid.append(given) or one(self, *given))
    file, own, masks = tmp_path / "gate.json", tmp_path / "own", tmp_path / "masks"
    _save(own / "a.png", _picture(70))
    for defect in ("hole", "stain"):
        _save(masks / "plate" / defect / "a.png", _disc())

    def gate(settings: Settings, normals: Path | None = None, masks: Path | None = None, of: Split = split) -> tuple[Gate, int]:
        """A gate by what the file tells, which then tells of it; and how many defects had to be laid."""
        laid.clear()
        source = Source(of, settings, normals, masks)
        found = source.gate(file)
        file.write_bytes(source.gate_json(found))
        return found, len(laid)

    first, count = gate(Settings())
    assert count == 2 * 32 and all(first.real.values())
    second, none = gate(Settings())
    assert none == 0 and (second.real, second.limits) == (first.real, first.limits)
    told = json.loads(file.read_text())
    assert set(told["limits"]) == set(told["real"]) == {"plate/hole", "plate/stain"}
    loose, none = gate(Settings(gate=GateConfig(strict=1.0, margin=0.1), dtype="bfloat16", generate=GenerateConfig(guidance=3.0)))
    assert none == 0 and loose.real == first.real and loose.limits[KEY].agreement > first.limits[KEY].agreement
    for other in (Settings(seed=1), Settings(generate=GenerateConfig(seam="median")), Settings(masks=MaskConfig(source="matched"))):
        assert gate(other)[1] > 0
    assert gate(Settings(), own)[1] == count and gate(Settings(), own)[1] == 0
    _save(own / "b.png", _picture(71))  # another picture in the same folder
    assert gate(Settings(), own)[1] == count
    assert gate(Settings(), None, masks)[1] == count
    assert gate(Settings(), of=replace(split, shots=split.shots[1:]))[1] == count / 2  # one type is left
    gate(Settings())
    assert gate(Settings(gate=GateConfig(strict=0.0)))[1] == 0 and gate(Settings())[1] == count  # one without such limits tells of none
    with monkeypatch.context() as patch:
        patch.setattr("anomalydiffusion.app.source.__version__", "next")
        assert gate(Settings())[1] == count
    gate(Settings())
    whole = file.read_bytes()
    number = rb'(agreement": \[\s*)[0-9.]+'
    for damaged in (
        b"", b"[]", b'{"laid_by": 3}', whole.replace(b"real", b"rael"), whole.replace(b"plate/hole", b"x"),
        re.sub(number, rb"\1NaN", whole), re.sub(number, rb"\g<1>1" + 400 * b"0", whole),
    ):  # fmt: skip
        assert damaged != whole
        file.write_bytes(damaged)
        again, anew = gate(Settings())
        assert anew == count and again.limits == first.limits


def test_scores_are_not_kept_while_a_normal_image_cannot_be_read(split: Split, tmp_path: Path) -> None:
    file, broken = tmp_path / "gate.json", next(n.path for n in split.normals if n.product == "plate")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    for expected in (True, True, False):  # the third time it is whole again
        if not expected:
            broken.write_bytes(whole)
        source = Source(split, Settings(), None, None)
        found = source.gate(file)
        file.write_bytes(source.gate_json(found))
        assert source.passed_over == expected and (json.loads(file.read_text())["laid_by"] == "") == expected
    assert real_in(file, source.laid_by, source.shots) == found.real


@pytest.mark.parametrize("masks", ["warped", "matched"])
def test_an_item_follows_from_its_seed_alone(split: Split, masks: str) -> None:
    own = replace(Settings(), masks=MaskConfig(source=masks))
    first, second = Source(split, own, None, None), Source(split, own, None, None)
    backwards = [second.item(_task(i)) for i in (2, 1, 0)][::-1]
    for one, other in zip([first.item(_task(i)) for i in range(3)], backwards, strict=True):
        assert one.normal == other.normal and (one.mask.pixels_HW == other.mask.pixels_HW).all()
    assert {Path(first.item(_task(i)).normal).parent.name for i in range(12)} == {"good"}
    assert all("train" in first.item(_task(i)).normal for i in range(12))


def test_of_several_normal_images_and_places_those_are_taken_that_are_most_like_a_shots(split: Split) -> None:
    few = replace(Settings(), masks=MaskConfig(alike=4))
    source, plain = Source(split, few, None, None), Source(split, Settings(), None, None)
    features, gains = source.features(), []
    for task in [_task(index) for index in range(6)]:
        item, other = source.item(task), plain.item_on(task, source.item(task).normal_sha256)
        shot = source.target(task)
        image, mask = source.shots[KEY][shot]
        around, wanted, one_place = unit_vectors([surroundings(*each) for each in [
            (item.normal_HWC, item.mask), (image, mask), (other.normal_HWC, other.mask)]], features)  # fmt: skip
        gains.append(float((around - one_place) @ wanted))
        looks = {path: source.looks(KEY, path, sha)[shot] for path, sha in source.normals["plate"]}
        assert looks[Path(item.normal)] == max(looks.values())  # there are no more than four
        again = Source(split, few, None, None).item_on(task, item.normal_sha256)
        assert (again.mask.pixels_HW == item.mask.pixels_HW).all()
    assert min(gains) >= -1e-6 and max(gains) > 0
    one = Source(split, replace(Settings(), masks=MaskConfig(alike=1)), None, None)
    assert all((one.item(_task(i)).mask.pixels_HW == plain.item(_task(i)).mask.pixels_HW).all() for i in range(3))


def test_a_normal_that_cannot_be_used_is_named_and_another_taken(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    whole = [Source(split, Settings(), None, None).item(_task(i)).normal for i in range(8)]
    broken = Path(whole[0])
    broken.write_bytes(broken.read_bytes()[:100])
    source = Source(split, Settings(), None, None)
    now = [source.item(_task(i)).normal for i in range(8)]
    assert str(broken) not in now and caplog.text.count(str(broken)) == 1
    assert all(a == b for a, b in zip(whole, now, strict=True) if a != str(broken))
    for path in broken.parent.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"changed since the split"):
        Source(split, Settings(), None, None).item(_task())


def test_a_shot_that_was_changed_is_refused(split: Split) -> None:
    _save(split.shots[0].path, _picture(99))
    with pytest.raises(DataError, match=r"changed since the split was made"):
        shots_of(split)


def test_own_normals_are_used_and_held_out_ones_refused_also_saved_anew(split: Split, tmp_path: Path) -> None:
    own = tmp_path / "own"
    _save(own / "a.png", _picture(50))
    (own / "._a.png").write_bytes(b"what a Mac leaves behind")
    assert Source(split, Settings(), own, None).item(_task()).normal == str(own / "a.png")
    Image.open(split.held_out_normals[0].path).save(own / "b.bmp")
    with pytest.raises(DataError, match=r"b\.bmp: is held out"):
        Source(split, Settings(), own, None)


def test_own_masks_go_to_their_defect_type_and_to_normals_of_their_size(split: Split, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    _save(folder / "plate" / "hole" / "0.png", _disc(radius=3))
    with pytest.raises(DataError, match=r"none for plate/stain"):
        Source(split, Settings(), None, folder).item(_task(key=("plate", "stain")))
    _save(folder / "plate" / "stain" / "0.png", _disc(radius=15))
    source = Source(split, Settings(), None, folder)
    assert source.item(_task()).mask.area < 0.01 < source.item(_task(key=("plate", "stain"))).mask.area
    own = tmp_path / "own"
    _save(own / "small.png", _picture(50))
    _save(own / "large.png", _picture(51, 120, 130))
    _save(folder / "plate" / "hole" / "1.png", _disc(120, 130))
    source = Source(split, Settings(), own, folder)
    assert [Path(source.item(_task(i)).normal).stem for i in range(4)] == ["small", "large"] * 2
    _save(folder / "plate" / "hole" / "1.png", _disc(33, 44, 20, 20))
    with pytest.raises(MaskError, match=r"1\.png: no normal image is 44 x 33"):
        Source(split, Settings(), own, folder).item(_task(1))
    _save(folder / "plate" / "hole" / "1.png", _disc() * 0)
    with pytest.raises(MaskError, match=r"1\.png: marks no pixel"):
        Source(split, Settings(), own, folder).item(_task(1))


def test_the_truth_of_held_out_images_is_no_mask_to_draw_on(split: Split, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held out for testing"):
        Source(split, Settings(), None, split.held_out[0].mask_path.parents[2] / "ground_truth")
    _save(tmp_path / "masks" / "again.bmp", read_mask(split.held_out[0].mask_path).astype(np.uint8))  # 0 and 1, in another format
    with pytest.raises(DataError, match=r"again\.bmp: is the mask of .*held out for testing"):
        Source(split, Settings(), None, tmp_path / "masks")
