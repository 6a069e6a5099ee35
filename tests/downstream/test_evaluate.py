"""The comparison trains every arm alike, tests on held-out images only, goes on where it was, and says what it found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.arms import arms
from anomalydiffusion.downstream.comparison import Ledger, Redecode, Trainings
from anomalydiffusion.downstream.detectors import DetectorConfig
from anomalydiffusion.downstream.evaluate import METRICS, Comparison, Stage, _shortcut, _tested, compare
from anomalydiffusion.downstream.localise import Localiser
from anomalydiffusion.downstream.samples import Generated, Material, Sample, gather, made_sample
from tests.downstream.conftest import write_pairs, write_plates

QUICK = DetectorConfig(side=64, steps=2, batch_size=4, checks=1)
LEARNS = replace(QUICK, steps=60, batch_size=8, width=8)


def corner(product: str, image_HWC: np.ndarray, seed: int) -> tuple[np.ndarray, Mask]:
    mask = np.zeros(image_HWC.shape[:2], bool)
    mask[:8, :8] = True
    return image_HWC, Mask(pixels_HW=mask, origin="round trip")


redecode = Redecode(call=corner, digest="corner")


def test_every_arm_is_trained_and_reported_and_typed_again_goes_on(
    split: Split, pairs: list[Generated], plates: Path, tmp_path: Path
) -> None:
    heard: list[tuple[int, int, str]] = []
    comparison = Comparison(detector=QUICK, folder=tmp_path, seeds=(0, 1), baselines=True, controls=True, redecode=redecode,
                            progress=lambda *said: heard.append(said))  # fmt: skip
    scores = compare(split, pairs, plates, comparison)
    assert list(scores["arms"]) == ["real-only", "perlin", "cutpaste", "poisson", "ours", "ours+best", "more-real", "garbage"]
    for values in scores["arms"].values():
        assert set(values) == {*METRICS, "gain"} and len(values["pixel_ap"]["values"]) == 2
        assert values["pixel_ap"]["mean"] == pytest.approx(np.mean(values["pixel_ap"]["values"]))
    assert scores["arms"]["real-only"]["gain"]["values"] == [0, 0]
    assert set(scores["per_defect"]) == {"plate/spot"} and "not a proof" in scores["verdict"]
    assert scores["controls"]["counts"] is None and scores["split_digest"] == split.digest
    assert scores["shortcut"]["arms"]["ours"]["false_positive_rate_redecoded"]["mean"] is not None
    assert heard[-1][:2] == (2 * 8 * 2, 2 * 8 * 2)
    json.dumps(scores, allow_nan=False)
    curves = scores["curves"]
    assert list(curves["precision"]) == list(scores["arms"]) and curves["recall"][0] == 0 and curves["recall"][-1] == 1
    for arm, own in curves["precision"].items():  # the area below the interpolated curve is a little above the average precision
        assert own == sorted(own, reverse=True) and np.mean(own) > scores["arms"][arm]["pixel_ap"]["mean"] - 0.03
    (maps,) = (tmp_path / "maps/plate").glob("ours-*")
    assert len(list(maps.iterdir())) == len(split.held_out) // 2 + len(split.held_out_normals)

    lines = (tmp_path / "arms.jsonl").read_text().splitlines()
    assert len(lines) == 16 and json.loads(lines[5])["best_baseline"] in ("perlin", "cutpaste", "poisson")
    old = [json.dumps({key: value for key, value in json.loads(line).items() if key not in ("precision", "device")}) for line in lines]
    (tmp_path / "arms.jsonl").write_text("\n".join(old) + "\n")
    assert "curves" not in compare(split, pairs, plates, comparison), "what an earlier version found has none"
    (tmp_path / "arms.jsonl").write_text("\n".join(lines[:9]) + "\n")
    heard.clear()
    assert _without_hours(compare(split, pairs, plates, comparison)) == _without_hours(scores)
    assert heard[0][0] == 9 * 2 + 1, "what was found counts as done, but is not told as if it had been done now"
    assert len((tmp_path / "arms.jsonl").read_text().splitlines()) == 16
    drawn_anew = write_pairs(split, tmp_path / "anew", len(pairs), misplaced=True)
    compare(split, drawn_anew, plates, comparison)
    added = [json.loads(line)["arm"] for line in (tmp_path / "arms.jsonl").read_text().splitlines()[16:]]
    assert added == ["ours", "ours+best", "garbage"] * 2  # real images teach the same, and so do as many pasted ones
    compare(split, pairs[:-1], plates, comparison)
    added = [json.loads(line)["arm"] for line in (tmp_path / "arms.jsonl").read_text().splitlines()[22:]]
    assert added == ["perlin", "cutpaste", "poisson", "ours", "ours+best", "garbage"] * 2
    other = replace(comparison, detector=replace(QUICK, steps=3), baselines=False, controls=False, seeds=(0,))
    compare(split, pairs, plates, other)
    assert len((tmp_path / "arms.jsonl").read_text().splitlines()) == 36  # other settings: nothing is taken up


def test_a_baseline_counts_again_where_no_other_region_was_drawn(
    split: Split, pairs: list[Generated], plates: Path, tmp_path: Path
) -> None:
    def known() -> set[str]:
        return {arm for _, arm, _ in Ledger(tmp_path / "arms.jsonl", "localization", comparison, split, pairs).known}

    comparison = Comparison(detector=QUICK, folder=tmp_path, seeds=(0,))
    ledger = Ledger(tmp_path / "arms.jsonl", "localization", comparison, split, pairs)
    every = {"real-only", "poisson", "ours", "ours+best", "more-real"}
    for arm in every:
        ledger.add("plate", arm, 0, {})
    assert known() == every
    region = plates / "plate" / "roi.png"
    try:
        Image.fromarray(np.full((96, 128), 255, np.uint8)).save(region)
        assert known() == every - {"poisson", "ours+best"}
    finally:
        region.unlink()
    assert known() == every


class Told:
    """A stage that trains nothing and tells which baseline it was given."""

    def __init__(self, material: Material) -> None:
        self.material = material

    def run(self, arm: str, seed: int, best: str, on_step: Callable[[int], None]) -> dict[str, object]:
        return {"given": best}


@pytest.mark.parametrize(
    ("figures", "best"),
    [((None, 0.3, 0.6), "poisson"), ((0.7, 0.3, 0.6), "perlin"), ((None, 0.0, None), "cutpaste"), ((None, None, None), "perlin")],
)
def test_the_best_baseline_is_the_one_with_the_best_figure_on_the_validation_part(
    split: Split, pairs: list[Generated], tmp_path: Path, figures: tuple[float | None, ...], best: str
) -> None:
    comparison = Comparison(detector=QUICK, folder=tmp_path)
    ledger = Ledger(tmp_path / "arms.jsonl", "localization", comparison, split, pairs)
    for arm, figure in zip(("perlin", "cutpaste", "poisson"), figures, strict=True):
        ledger.add("plate", arm, 0, {"validation_ap": figure, "values": {"pixel_ap": {"perlin": 0.1, "cutpaste": 0.9}.get(arm, 0.5)}})
    own = Trainings(gather(split, pairs), arms(baselines=True), comparison, ledger, Told, "validation_ap")
    assert ("plate", "ours+best", 0) in own.ready()
    assert own.train(("plate", "ours+best", 0))["given"] == best


def test_no_part_is_both_fitted_and_validated_on(split: Split, pairs: list[Generated], tmp_path: Path) -> None:
    def some(defect: str, count: int) -> list[Sample]:
        image, mask = np.zeros((8, 8, 3), np.uint8), Mask(pixels_HW=np.eye(8, dtype=bool), origin="real")
        return [replace(made_sample(f"{defect}{i}", defect, image, mask if defect else None), group=f"part-{i}") for i in range(count)]

    shots, normals = some("spot", 8), some("", 20)
    material = Material(product="plate", shots=shots, normals=normals, tests=[], test_normals=[])
    comparison = Comparison(detector=QUICK, folder=tmp_path)
    stage = Stage(material, comparison, Ledger(tmp_path / "arms.jsonl", "localization", comparison, split, pairs))
    assert [bool(sample.defect) for sample in stage.validation] == [True, True, False, False]
    assert not {sample.group for sample in stage.validation} & {sample.group for sample in [*stage.fitted, *stage.normals]}
    assert len(stage.fitted) == 6 and len(stage.normals) == 20 - 2 - 2


def test_a_shortcut_is_the_share_of_redrawn_regions_and_of_normal_pixels_that_are_taken_for_defects() -> None:
    fires_on_white = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        fires_on_white.weight.fill_(9.0)
        fires_on_white.bias.zero_()
    model = Localiser(model=fires_on_white, config=QUICK, threshold=0.5, validation_ap=1.0, step=1)
    image, pixels = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), bool)
    pixels[10:20, 5:30] = True
    redrawn = np.where(pixels[..., None], 255, image).astype(np.uint8)
    tests = [made_sample("plain", "", image, None), made_sample("defect", "spot", redrawn, Mask(pixels_HW=pixels, origin="real"))]
    region = made_sample("redrawn", "", redrawn, Mask(pixels_HW=pixels, origin="round trip"))
    found = _shortcut(model, [region], list(_tested(model, tests)))
    assert found == {"false_positive_rate_redecoded": 1.0, "false_positive_rate_plain": 0.0}


def test_with_controls_no_normal_image_of_a_part_that_more_real_knows_is_tested_on(tmp_path: Path) -> None:
    counts = {"train/good": 6, "test/good": 9, "test/spot": 9}
    write_plates(tmp_path / "data", counts)
    product = tmp_path / "data" / "plate"
    rows = [f"test/{kind}/{i}.png,part-{i}" for kind in ("good", "spot") for i in range(9)]
    (product / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    split = few_shot_split(read_folder(tmp_path / "data"))
    pairs = write_pairs(split, tmp_path / "pairs", 2)
    (material,) = gather(split, pairs)
    told: dict[bool, Stage] = {}
    for controls in (False, True):
        comparison = Comparison(detector=QUICK, folder=tmp_path / f"{controls}", controls=controls)
        ledger = Ledger(comparison.folder / "arms.jsonl", "localization", comparison, split, pairs)
        assert ("normals" in ledger.facts) == controls, "figures of earlier versions, which tested on them, do not count"
        told[controls] = Stage(material, comparison, ledger)
    extra = {sample.group for sample in told[True].extra}
    assert extra and not extra & {sample.group for sample in [*told[True].tests, *told[True].test_normals]}
    assert len(told[True].test_normals) == len(told[False].test_normals) - len(extra) > 0
    scores = compare(split, pairs, tmp_path / "data", Comparison(detector=QUICK, folder=tmp_path / "run", controls=True))
    assert scores["n_test"] == len(told[True].tests) + len(told[True].test_normals)


def _without_hours(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if name != "hours"}


@pytest.mark.slow
def test_good_pairs_teach_and_garbage_is_not_to_be_used(split: Split, plates: Path, tmp_path: Path) -> None:
    good = compare(split, write_pairs(split, tmp_path / "good", 8), plates,
                   Comparison(detector=LEARNS, folder=tmp_path / "a", seeds=(0, 1, 2)))  # fmt: skip
    assert good["arms"]["ours"]["pixel_ap"]["mean"] > 0.8 and not good["verdict"].startswith("do not")
    bad = compare(split, write_pairs(split, tmp_path / "bad", 8, misplaced=True), plates,
                  Comparison(detector=LEARNS, folder=tmp_path / "b", seeds=(0, 1, 2)))  # fmt: skip
    assert bad["verdict"].startswith("do not use it")


def test_what_is_missing_is_said(split: Split, pairs: list[Generated], plates: Path, tmp_path: Path) -> None:
    comparison = Comparison(detector=QUICK, folder=tmp_path)
    for broken, words in (
        (replace(split, held_out=()), "plate: no held-out defect image"),
        (replace(split, normals=()), "plate: no normal image to train"),
    ):
        with pytest.raises(DataError, match=words):
            compare(broken, pairs, plates, comparison)
    with pytest.raises(DataError, match="no generated pair"):
        compare(split, [], plates, comparison)
    with pytest.raises(DataError, match="no such product"):
        compare(split, [replace(pairs[0], product="disc")], plates, comparison)
    with pytest.raises(DataError, match="seeds that differ"):
        replace(comparison, seeds=(0, 0))


def test_without_held_out_normals_image_figures_are_undefined_not_zero(
    split: Split, pairs: list[Generated], plates: Path, tmp_path: Path
) -> None:
    scores = compare(replace(split, held_out_normals=()), pairs, plates, Comparison(detector=QUICK, folder=tmp_path, redecode=redecode))
    assert scores["arms"]["ours"]["image_auroc"]["mean"] is None and scores["arms"]["ours"]["pixel_ap"]["mean"] is not None
    assert scores["shortcut"] == {}


def test_a_training_counts_only_beside_those_of_the_same_round_trip(split: Split, pairs: list[Generated], tmp_path: Path) -> None:
    comparison = Comparison(detector=QUICK, folder=tmp_path, redecode=redecode)

    def known(other: Comparison) -> bool:
        return Ledger(tmp_path / "arms.jsonl", "localization", other, split, pairs).get("plate", "real-only", 0) is not None

    Ledger(tmp_path / "arms.jsonl", "localization", comparison, split, pairs).add("plate", "real-only", 0, {"validation_ap": 0.5})
    assert known(comparison)
    assert not known(replace(comparison, redecode=None))
    assert not known(replace(comparison, redecode=Redecode(call=corner, digest="another")))
