"""The same classifier for every arm: it learns types, is tested on held-out defects only, and says what it found."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion.core.errors import ConfigError, DataError, SplitError, TrainingError
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.classifiers import NETWORKS, PRESETS, ClassifierConfig, build_classifier, look, train_classifier
from anomalydiffusion.downstream.classify import ClassStage, class_arms, class_order, compare_classes, shuffled_types
from anomalydiffusion.downstream.comparison import Comparison
from anomalydiffusion.downstream.samples import Generated, Sample, gather, made_sample
from tests.downstream.conftest import plate, same_on_another_device, second_device, write_pairs, write_plates

QUICK = ClassifierConfig(side=32, steps=2, batch_size=4, checks=1)
LEARNS = replace(QUICK, rate=3e-3, steps=60, batch_size=8, checks=3)
KINDS = ("pit", "spot")
Data = tuple[Split, list[Generated], Path]


def plates(count: int, seed: int, *kinds: str) -> list[Sample]:
    """Spots and pits, in memory."""
    random, made = np.random.default_rng(seed), []
    for index in range(count):
        for kind in kinds or KINDS:
            image, mask = plate(random, defect=True, kind=kind)
            made.append(made_sample(f"{kind} {index}", kind, image, Mask(pixels_HW=mask, origin="real")))
    return made


def types(samples: list[Sample]) -> list[str]:
    return [sample.defect for sample in samples]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Two types in one product, four pairs of each."""
    root = tmp_path_factory.mktemp("two")
    write_plates(root, {"train/good": 4, "test/good": 1, "test/spot": 9, "test/pit": 9})
    split = few_shot_split(read_folder(root))
    return split, [pair for kind in KINDS for pair in write_pairs(split, root / "pairs" / kind, 4, defect=kind)], root


def without_hours(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if name != "hours"}


def test_it_learns_spots_and_pits_and_keeps_its_best_state() -> None:
    found = train_classifier([plates(3, 0), plates(3, 1)], plates(2, 2), KINDS, LEARNS, seed=0)
    tests = plates(8, 3)
    assert np.mean([answer == truth for answer, truth in zip(found.answers(tests), types(tests), strict=True)]) > 0.9
    assert found.accuracy == 1 and found.loss < 0.5 and found.step in (50, 55, 60)
    # the surer it grows, the worse it is on such a validation part
    wrong = [replace(sample, defect={"spot": "pit", "pit": "spot"}[sample.defect]) for sample in plates(2, 2)]
    kept = []
    for rate, seed in ((1e-2, 0), (3e-3, 1)):
        steady = replace(LEARNS, rate=rate, cycle=False)
        many, last = (train_classifier([plates(3, 0)], wrong, KINDS, replace(steady, checks=checks), seed=seed) for checks in (15, 1))
        assert last.step == 60 and (many.accuracy, -many.loss) >= (last.accuracy, -last.loss - 1e-6)
        kept.append(many.step)
    assert min(kept) < 60


def test_one_seed_gives_one_classifier_and_no_validation_its_last_state() -> None:
    once, again, other = (train_classifier([plates(2, 0)], [], KINDS, QUICK, seed=seed) for seed in (3, 3, 4))
    weights = [list(found.model.parameters())[-1] for found in (once, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert math.isnan(once.accuracy) and once.step == 2


def test_it_learns_on_the_device_it_is_told() -> None:
    config = replace(QUICK, network="resnet18", steps=1, batch_size=2)
    there, here = (train_classifier([plates(1, 0)], [], KINDS, config, seed=3, device=each).model for each in (second_device(), "cpu"))
    same_on_another_device(there, here, build_classifier("resnet18", 2, 3))


def test_types_are_drawn_evenly_and_of_each_its_pools_in_equal_shares() -> None:
    read: list[str] = []

    def heard(sample: Sample, pool: str) -> Sample:
        def reading():
            read.append(f"{pool} {sample.defect}")
            return sample.read()

        return replace(sample, read=reading)

    # far more samples than views, so that few are drawn twice: what is kept in memory is not read, so not heard, again
    small, large, only = ([heard(one, name) for one in own] for name, own in (
        ("small", plates(60, 0)), ("large", plates(150, 1)), ("only", plates(80, 2, "pit")),
    ))  # fmt: skip
    seen: dict[str, int] = {}
    train_classifier([small, large, only], [], KINDS, replace(QUICK, steps=12, batch_size=6), seed=0)
    for name in read:
        seen[name] = seen.get(name, 0) + 1
    most = {"small pit": 12, "large pit": 12, "only pit": 12, "small spot": 18, "large spot": 18}
    assert seen.keys() == most.keys() and all(most[name] - 5 <= seen[name] <= most[name] for name in most)


def test_a_crop_is_twice_the_defect_and_never_enlarged() -> None:
    image, pixels = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8), np.zeros((200, 240), bool)
    pixels[90:100, 100:110] = True
    small = made_sample("small", "spot", image, Mask(pixels_HW=pixels, origin="real"))
    np.testing.assert_array_equal(look(small, QUICK), image[79:111, 89:121])
    pixels = pixels.copy()
    pixels[60:130, 100:140] = True
    large = made_sample("large", "spot", image, Mask(pixels_HW=pixels, origin="real"))
    assert look(large, QUICK).shape == (32, 32, 3)
    np.testing.assert_array_equal(look(large, replace(QUICK, side=140)), image[25:165, 50:190])
    assert look(large, replace(QUICK, crops=False)).shape == (32, 32, 3)
    with pytest.raises(DataError, match="bare: no mask"):
        look(made_sample("bare", "spot", image, None), QUICK)


def test_every_network_names_every_class_and_the_published_one_has_its_size() -> None:
    for name in NETWORKS:
        with torch.no_grad():
            assert build_classifier(name, 5, 0).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert 21e6 < sum(p.numel() for p in build_classifier("resnet34", 2, 0).parameters()) < 22e6
    assert PRESETS["paper"].network == "resnet34" and PRESETS["paper"].side == 256 and not PRESETS["paper"].crops


def test_classes_have_an_order_of_their_own_and_shuffling_leaves_none_its_name() -> None:
    assert class_order(["type 10", "type 2", "b", "type 2", "a"]) == ["a", "b", "type 2", "type 10"]
    for names in (["a", "b"], ["a", "b", "c"], list("abcdefg")):
        for seed in range(5):
            wrong = shuffled_types(names, seed=seed)
            assert sorted(wrong) == sorted(wrong.values()) == names and all(name != other for name, other in wrong.items())
            assert wrong == shuffled_types(names, seed=seed)
    assert len({tuple(sorted(shuffled_types(list("abcdefg"), seed=seed).items())) for seed in range(5)}) > 1


def test_arms_have_types() -> None:
    assert class_arms() == ["real-only", "ours"]
    assert class_arms(baselines=True, controls=True) == ["real-only", "cutpaste", "poisson", "ours", "ours+best", "more-real", "shuffled"]


def test_shuffled_pairs_keep_their_pictures_and_lose_their_types(data: Data, tmp_path: Path) -> None:
    split, pairs, _ = data
    (material,) = gather(split, pairs)
    stage = ClassStage(material, Comparison(detector=QUICK, folder=tmp_path, controls=True))
    ours, shuffled = stage.pools("ours", 1, ""), stage.pools("shuffled", 1, "")
    assert [s.name for s in ours[1]] == [s.name for s in shuffled[1]] and types(ours[0]) == types(shuffled[0])
    assert types(shuffled[1]) == [{"spot": "pit", "pit": "spot"}[kind] for kind in types(ours[1])]
    assert types(stage.pools("ours", 1, "")[1]) == types(ours[1])  # the material itself is left alone
    held = {sample.name for sample in stage.tests}
    for arm in class_arms(baselines=True, controls=True):
        assert not held & {sample.name for pool in stage.pools(arm, 1, "cutpaste") for sample in pool}


def test_every_arm_is_trained_and_reported_and_typed_again_goes_on(data: Data, tmp_path: Path) -> None:
    split, pairs, root = data
    heard: list[tuple[int, int, str]] = []
    comparison = Comparison(detector=QUICK, folder=tmp_path, seeds=(0, 1), baselines=True, controls=True,
                            progress=lambda *said: heard.append(said))  # fmt: skip
    scores = compare_classes(split, pairs, root, comparison)
    order = class_arms(baselines=True, controls=True)
    assert list(scores["arms"]) == order and list(scores["constant_answers"]) == order
    for figures in scores["arms"].values():
        assert set(figures) == {"accuracy", "balanced_accuracy", "gain"} and len(figures["accuracy"]["values"]) == 2
        assert figures["accuracy"]["mean"] == pytest.approx(np.mean(figures["accuracy"]["values"]))
    assert scores["arms"]["real-only"]["gain"]["values"] == [0, 0]
    assert list(scores["per_class"]) == ["plate/pit", "plate/spot"] and "per_product" not in scores
    means = [scores["per_class"][f"plate/{kind}"]["arms"]["ours"]["accuracy"]["mean"] for kind in KINDS]
    assert np.mean(means) == pytest.approx(scores["arms"]["ours"]["balanced_accuracy"]["mean"])
    assert scores["controls"]["counts"] is None and "wrong" in scores["controls"]
    assert scores["n_test"] == len(split.held_out) // 2 and scores["n_generated"] == 8
    assert (scores["network"], scores["steps"], scores["seeds"], scores["split_digest"]) == ("light", 2, [0, 1], split.digest)
    assert heard[-1][:2] == (2 * 7 * 2, 2 * 7 * 2)
    json.dumps(scores, allow_nan=False)

    ledger = tmp_path / "arms.jsonl"
    lines = ledger.read_text().splitlines()
    assert len(lines) == 14 and json.loads(lines[4])["best_baseline"] in ("cutpaste", "poisson")
    assert {json.loads(line)["task"] for line in lines} == {"classification"}
    ledger.write_text("\n".join(lines[:9]) + "\n")
    assert without_hours(compare_classes(split, pairs, root, comparison)) == without_hours(scores)
    assert len(ledger.read_text().splitlines()) == 14
    compare_classes(split, pairs, root, replace(comparison, controls=False, baselines=False, seeds=(0,)))
    assert len(ledger.read_text().splitlines()) == 16  # without controls more is tested on: nothing is taken up
    renamed = ledger.read_text().replace('"classification"', '"localization"')
    ledger.write_text(renamed)
    compare_classes(split, pairs, root, replace(comparison, controls=False, baselines=False, seeds=(0,)))
    assert len(ledger.read_text().splitlines()) == 18  # nor is another task's line


def test_shuffled_types_are_not_to_be_used(data: Data, tmp_path: Path) -> None:
    split, pairs, root = data
    other = [replace(pair, defect={"spot": "pit", "pit": "spot"}[pair.defect]) for pair in pairs]
    scores = compare_classes(split, other, root, Comparison(detector=LEARNS, folder=tmp_path, seeds=(0, 1, 2)))
    assert scores["verdict"].startswith("do not use it") and "points of accuracy" in scores["verdict"]
    assert scores["arms"]["real-only"]["accuracy"]["mean"] > 0.9


def test_a_classifier_that_answers_one_type_gets_no_verdict(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split, pairs, root = data
    still = replace(QUICK, network="resnet18", steps=1, rate=1e-9, cycle=False)  # random weights as they were drawn
    scores = compare_classes(split, pairs, root, Comparison(detector=still, folder=tmp_path, seeds=(0, 1, 2)))
    assert scores["verdict"].startswith("no verdict: every classifier answers the same type")
    assert scores["constant_answers"] == {"real-only": 3, "ours": 3} and "whatever it sees" in caplog.text
    assert scores["arms"]["ours"]["balanced_accuracy"]["mean"] == 0.5


def test_products_count_alike_and_one_with_a_single_type_is_left_out(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_plates(tmp_path, {"train/good": 2, "test/pit": 4, "test/spot": 4}, seed=1)
    write_plates(tmp_path, {"train/good": 2, "test/pit": 6, "test/spot": 4}, seed=2, product="bolt")
    write_plates(tmp_path, {"train/good": 2, "test/spot": 4}, seed=3, product="nut")
    split = few_shot_split(read_folder(tmp_path))
    pairs = [pair for product in ("plate", "bolt") for kind in KINDS
             for pair in write_pairs(split, tmp_path / "pairs" / product / kind, 2, defect=kind, product=product)]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        scores = compare_classes(split, pairs, tmp_path, Comparison(detector=QUICK, folder=tmp_path / "found"))
    assert "nut: left out of the classification, spot is its only defect type" in caplog.text
    assert list(scores["per_product"]) == ["bolt", "plate"] and "nut/spot" not in scores["per_class"]
    each = [scores["per_product"][product]["arms"]["ours"]["accuracy"]["mean"] for product in ("bolt", "plate")]
    assert scores["arms"]["ours"]["accuracy"]["mean"] == pytest.approx(np.mean(each))
    only = few_shot_split(read_folder(tmp_path), products=["nut"])
    with pytest.raises(DataError, match=r"no product has two defect types to tell apart \(nut: spot\)"):
        compare_classes(only, [], tmp_path, Comparison(detector=QUICK, folder=tmp_path / "found"))


def test_what_is_missing_is_said(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split, pairs, root = data
    comparison = Comparison(detector=QUICK, folder=tmp_path)
    for broken, words in (
        (replace(split, held_out=tuple(s for s in split.held_out if s.defect == "spot")), "plate/pit: no held-out image"),
        (replace(split, shots=tuple(s for s in split.shots if s.defect == "spot")), "plate/pit: no shot is left"),
        (replace(split, normals=()), "plate: no normal image"),
    ):
        with pytest.raises(DataError, match=words):
            compare_classes(broken, pairs, root, comparison)
    with pytest.raises(DataError, match="no generated pair"):
        compare_classes(split, [], root, comparison)
    with pytest.raises(DataError, match="plate/dent: no such defect type"):
        compare_classes(split, [*pairs, replace(pairs[0], defect="dent")], root, comparison)
    with pytest.raises(DataError, match="no such product"):
        compare_classes(split, [replace(pairs[0], product="disc")], root, comparison)
    with pytest.raises(SplitError, match="was made of it"):
        compare_classes(split, [replace(pairs[0], normal_sha256=split.sha256[split.held_out[0].path])], root, comparison)
    with pytest.raises(ConfigError, match="redecode"):
        compare_classes(split, pairs, root, replace(comparison, redecode=lambda product, image, seed: (image, pairs)))
    assert not (tmp_path / "arms.jsonl").exists()
    compare_classes(split, [pair for pair in pairs if pair.defect == "spot"], root, comparison)
    assert "no generated pair of pit" in caplog.text


def test_nonsense_is_refused() -> None:
    for wrong, name in (({"side": 16}, "side"), ({"steps": 0}, "steps"), ({"rate": math.nan}, "rate"), ({"hold_back": 1}, "hold_back")):
        with pytest.raises(ConfigError, match=name):
            ClassifierConfig(**wrong)
    with pytest.raises(TrainingError, match="the loss is"):
        train_classifier([plates(2, 0)], [], KINDS, replace(QUICK, steps=9, rate=1e30, cycle=False), seed=0)
    with pytest.raises(DataError, match="pit: no image to learn"):
        train_classifier([plates(2, 0, "spot")], [], KINDS, QUICK, seed=0)
    found = train_classifier([plates(2, 0)], [], KINDS, QUICK, seed=0)
    with torch.no_grad():
        next(found.model.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="not finite"):
        found.answers(plates(1, 1))
