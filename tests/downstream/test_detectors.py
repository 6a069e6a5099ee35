"""A detector sees what it should, answers for every pixel, and is trained as its settings say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalydiffusion.core.errors import ConfigError, DataError, TrainingError
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.core.types import Mask
from anomalydiffusion.downstream.descent import looks
from anomalydiffusion.downstream.detectors import PRESETS, DetectorConfig, image_score, predict, shrink
from anomalydiffusion.downstream.localise import dice_loss, focal_loss, train_localiser, typed_ap
from anomalydiffusion.downstream.metrics import average_precision
from anomalydiffusion.downstream.networks import DiscriminativeUNet, build_network
from anomalydiffusion.downstream.samples import Sample, made_sample
from tests.downstream.conftest import plate, same_on_another_device, second_device

SMALL = DetectorConfig(side=64, width=8, steps=90, checks=3)


def plates(count: int, seed: int, *, defect: bool) -> list[Sample]:
    random = np.random.default_rng(seed)
    made = [plate(random, defect=defect) for _ in range(count)]
    return [
        made_sample(str(i), "spot" if defect else "", image, Mask(pixels_HW=mask, origin="real") if defect else None)
        for i, (image, mask) in enumerate(made)
    ]


@pytest.mark.slow
def test_it_learns_bright_squares_and_keeps_its_best_state() -> None:
    validation = [*plates(2, 5, defect=True), *plates(2, 6, defect=False)]
    found = train_localiser([plates(4, 0, defect=True)], [plates(3, 1, defect=False)], validation, SMALL, seed=0)
    image, mask = plate(np.random.default_rng(9), defect=True)
    scores = found.predict(image)
    assert scores.shape == mask.shape and scores[mask].mean() > scores[~mask].mean() + 0.3
    assert found.validation_ap > 0.8 and 0 < found.threshold < 1 and found.step in (75, 82, 90)
    normal = found.predict(plate(np.random.default_rng(8), defect=False)[0])
    assert image_score(scores, found.config) > image_score(normal, found.config)


def test_states_are_compared_late_and_by_the_mean_of_defect_types() -> None:
    assert looks(1000, 2) == {875, 1000} and looks(90, 3) == {75, 82, 90} and looks(1, 4) == {1} and looks(300, 1) == {300}
    truths = [np.repeat([True, False], 500), np.repeat([True, False], [10, 990]), np.zeros(1000, bool)]  # a large one, a small one, none
    nothing = np.full(1000, 0.2)
    large_only = [np.where(truths[0], 0.9, 0.2), nothing, nothing]
    both = [np.where(truths[0] & (np.arange(1000) % 10 < 7), 0.9, 0.2), np.where(truths[1], 0.9, 0.2), nothing]  # a part of the large one
    pooled = [average_precision(np.concatenate(scores), np.concatenate(truths)) for scores in (large_only, both)]
    found = [typed_ap(["stain", "pit", ""], scores, truths) for scores in (large_only, both)]
    assert pooled[0] > pooled[1] and found[1] > found[0] + 0.2
    assert typed_ap(["pit", ""], large_only[1:], truths[1:]) == pytest.approx(10 / 2000)  # constant scores find as much as is there


def test_the_same_seed_gives_the_same_detector_and_no_validation_its_last_state() -> None:
    config = replace(SMALL, steps=2, checks=1)
    once, again = (train_localiser([plates(2, 0, defect=True)], [plates(2, 1, defect=False)], [], config, seed=3) for _ in range(2))
    image = plate(np.random.default_rng(9), defect=True)[0]
    np.testing.assert_array_equal(once.predict(image), again.predict(image))
    assert math.isnan(once.threshold) and once.step == 2


def test_it_learns_on_the_device_it_is_told() -> None:
    config = replace(SMALL, network="draem", width=2, side=32, steps=1, batch_size=2)
    pools = [plates(1, 0, defect=True)], [plates(1, 1, defect=False)]
    there, here = (train_localiser(*pools, [], config, seed=0, device=device).model for device in (second_device(), "cpu"))
    same_on_another_device(there, here, build_network("draem", 2, 0))


def test_an_images_score_is_the_highest_mean_of_21_x_21_pixels() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1), (5, 60), (50, 41)):
        scores = random.random(shape).astype(np.float16)
        pooled = F.avg_pool2d(torch.from_numpy(scores).double()[None, None], 21, stride=1, padding=10)
        assert image_score(scores, SMALL) == pytest.approx(float(pooled.max()))


def test_without_tiles_they_are_pixels_of_what_the_network_sees() -> None:
    whole = replace(SMALL, tiles=False, side=64)
    seen = F.interpolate(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), (64, 64), mode="bilinear")
    large = F.interpolate(seen, (256, 128), mode="bilinear")[0, 0].numpy()
    assert image_score(large, whole) == pytest.approx(image_score(seen[0, 0].numpy(), whole), rel=0.02)
    assert image_score(large, SMALL) > 1.05 * image_score(large, whole)


def test_one_tile_is_the_networks_own_answer_and_every_size_is_answered() -> None:
    model = build_network("light", 16, 0).eval()
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = torch.sigmoid(model(x))[0, 0].numpy()
    found = predict(model, image, DetectorConfig())
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=2**-10)
    for shape in ((1, 1), (40, 128), (130, 257)):
        assert predict(model, np.zeros((*shape, 3), np.uint8), DetectorConfig()).shape == shape
    with pytest.raises(DataError, match="uint8 RGB"):
        predict(model, image.astype(np.float32), DetectorConfig())


def test_the_tiles_of_a_large_image_fit_together_to_what_the_whole_would_answer() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 217, 3), dtype=np.uint8)
    model = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        whole = torch.sigmoid(model(to_tensor(image)))[0, 0].numpy()
    np.testing.assert_allclose(predict(model, image, SMALL), whole, atol=1e-3)


def test_a_whole_image_is_shrunk_with_its_defect() -> None:
    mask = np.zeros((300, 200), bool)
    mask[7, 100] = True
    image, small = shrink(np.full((300, 200, 3), 9, np.uint8), mask, 64)
    assert image.shape == (64, 64, 3) and (image == 9).all() and small.sum() >= 1
    model = build_network("draem", 4, 0)
    assert predict(model, np.zeros((50, 70, 3), np.uint8), replace(SMALL, network="draem", width=4, tiles=False)).shape == (50, 70)


def test_the_published_network_has_its_size_and_two_answers() -> None:
    network = DiscriminativeUNet(64)
    assert 26e6 < sum(p.numel() for p in network.parameters()) < 30e6
    assert DiscriminativeUNet(4)(torch.zeros(2, 3, 64, 32)).shape == (2, 2, 64, 32)
    assert PRESETS["paper"].network == "draem" and PRESETS["paper"].loss == "focal" and PRESETS["paper"].rate == 1e-4


def test_the_focal_loss_is_cross_entropy_at_gamma_0_and_forgets_what_is_sure() -> None:
    logits, truth = torch.tensor([[[[3.0, -1.0, 0.2]]]]), torch.tensor([[[[1.0, 0.0, 1.0]]]])
    assert focal_loss(logits, truth, gamma=0.0) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, truth)))
    p = torch.sigmoid(logits)
    right = torch.where(truth > 0, p, 1 - p)
    assert focal_loss(logits, truth) == pytest.approx(float((-((1 - right) ** 2) * right.log()).mean()))


def test_the_dice_loss_is_cross_entropy_and_what_is_not_shared() -> None:
    truth = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert float(dice_loss(torch.zeros(1, 1, 2, 2), truth)) == pytest.approx(math.log(2) + 1 - (2 * 0.5 + 1) / (2 + 1 + 1))


def test_nonsense_is_refused() -> None:
    for wrong, name in (({"side": 100}, "side"), ({"steps": 0}, "steps"), ({"rate": math.inf}, "rate"), ({"hold_back": 1}, "hold_back")):
        with pytest.raises(ConfigError, match=name):
            DetectorConfig(**wrong)
    with pytest.raises(TrainingError, match="the loss is"):
        train_localiser([plates(2, 0, defect=True)], [plates(2, 1, defect=False)], [], replace(SMALL, rate=1e30, cycle=False), seed=0)


def test_a_detector_that_answers_nan_is_refused() -> None:
    model = build_network("draem", 4, 0)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="not finite"):
        predict(model, np.zeros((64, 64, 3), np.uint8), replace(SMALL, network="draem", width=4))
