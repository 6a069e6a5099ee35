"""The gate keeps what is there and new, and says why it does not."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.types import Mask, Pair, Provenance, Verdict
from anomalydiffusion.quality.features import EfficientNetLite0, FeatureExtractor
from anomalydiffusion.quality.gate import Carried, Exemplar, Gate, GateConfig, Limits

KEY = ("p", "d")


def _pair(image: np.ndarray, normal: np.ndarray, mask: Mask, defect: str = "d") -> Pair:
    provenance = Provenance(
        product="p", defect=defect, seed=0, attempt=0, normal="n", normal_sha256="", mask_origin="user", touched_box=mask.box,
        prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0, version="0",
    )  # fmt: skip
    return Pair(image_HWC=image, mask=mask, normal_HWC=normal, requested=mask, provenance=provenance)


def _check(pair: Pair, shots: Sequence[tuple[np.ndarray, Mask, str]] = ()) -> Verdict:
    """What the gate says without limits from the shots."""
    exemplars = [Exemplar(image_HWC=image, mask=mask, name=name, group=name) for image, mask, name in shots]
    return Gate({KEY: exemplars}, {}, GateConfig(strict=0)).check(pair)


def _normal(noise: float, seed: int = 0) -> np.ndarray:
    grey = 120 + noise * np.random.default_rng(seed).standard_normal((100, 120, 1))
    return np.repeat(np.clip(grey, 0, 255), 3, axis=2).astype(np.uint8)


def _mask() -> Mask:
    pixels = np.zeros((100, 120), bool)
    pixels[40:60, 50:80] = True
    return Mask(pixels_HW=pixels, origin="user")


def _darkened(normal: np.ndarray, mask: Mask, by: float) -> np.ndarray:
    out = normal.astype(float)
    out[mask.pixels_HW] -= by
    return np.clip(out, 0, 255).astype(np.uint8)


def test_nothing_there_is_not_visible_and_a_defect_is() -> None:
    normal, mask = _normal(4), _mask()
    assert _check(_pair(normal, normal, mask)).reasons == ("not visible",)
    verdict = _check(_pair(_darkened(normal, mask, 60), normal, mask))
    assert verdict.keep and verdict.measures["grey_inside"] > 50 and verdict.measures["grey_outside"] == 0


def test_a_rough_surface_asks_for_more() -> None:
    mask = _mask()
    faint = [_check(_pair(_darkened(n, mask, 10), n, mask)).keep for n in (_normal(2), _normal(45))]
    assert faint == [True, False]


def test_a_copy_of_a_shot_is_caught_and_named() -> None:
    normal, mask = _normal(3), _mask()
    shot = _darkened(normal, mask, 70)
    verdict = _check(_pair(shot, normal, mask), [(shot, mask, "shot.png")])
    assert verdict.reasons == ("near copy of shot.png",)
    random = np.random.default_rng(5).integers(0, 256, shot.shape, dtype=np.uint8)
    assert _check(_pair(shot, normal, mask), [(random, mask, "other.png")]).keep


def _slanted(size: tuple[int, int], top: int, left: int) -> tuple[np.ndarray, Mask]:
    """A rough surface with a bent scratch that is like none of its own mirror images."""
    image = np.random.default_rng(1).integers(60, 200, (*size, 3), dtype=np.uint8)
    pixels = np.zeros(size, bool)
    for step in range(25):
        pixels[top + step : top + step + 4, left + step * step // 20 : left + step * step // 20 + 3] = True
    image[pixels] = 10
    return image, Mask(pixels_HW=pixels, origin="real")


def _mended(image: np.ndarray, mask: Mask) -> np.ndarray:
    """The normal image that a defect could have been drawn on."""
    out = image.copy()
    out[mask.pixels_HW] = 120
    return out


@pytest.mark.parametrize("place", [(30, 41), (0, 6)])
@pytest.mark.parametrize("flip", [np.s_[:, :], np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]], ids=["as is", "across", "down", "both"])
def test_a_mirrored_copy_is_a_copy(place: tuple[int, int], flip: tuple[slice, ...]) -> None:
    shot, mask = _slanted((100, 121), *place)
    copy, moved = np.ascontiguousarray(shot[flip]), Mask(pixels_HW=mask.pixels_HW[flip], origin="user")
    verdict = _check(_pair(copy, _mended(copy, moved), moved), [(shot, mask, "shot.png")])
    assert verdict.reasons == ("near copy of shot.png",) and verdict.measures["likeness"] > 0.999


def test_a_turned_shot_is_no_copy() -> None:
    shot, mask = _slanted((100, 100), 30, 41)
    image, moved = np.rot90(shot).copy(), Mask(pixels_HW=np.rot90(mask.pixels_HW), origin="user")
    assert _check(_pair(image, _mended(image, moved), moved), [(shot, mask, "shot.png")]).keep


def test_what_changes_far_from_the_label_is_seen_and_what_cannot_be_seen_is_not() -> None:
    normal, mask = _normal(4), _mask()
    drawn = _darkened(normal, mask, 60)
    smeared = drawn.copy()
    smeared[70:95] = ndimage.gaussian_filter(smeared[70:95], (3, 3, 0))
    assert _check(_pair(smeared, normal, mask)).reasons == ("background changed",)
    moved = drawn.copy()
    moved[0, 0] ^= 1  # one level of one pixel
    assert _check(_pair(moved, normal, mask)).keep


@pytest.fixture(scope="module")
def lite() -> FeatureExtractor:
    return EfficientNetLite0()


def _drawn(kind: str, seed: int, normal: np.ndarray) -> tuple[np.ndarray, Mask]:
    """A dark round hole, or bright stripes in a round place."""
    random = np.random.default_rng(seed)
    yy, xx = np.mgrid[:100, :120]
    pixels = np.hypot(yy - random.integers(30, 70), xx - random.integers(30, 90)) < random.integers(9, 15)
    image = normal.astype(float)
    amount = -70.0 if kind == "hole" else 60 * np.sin((yy + xx) / 1.5)[pixels][:, None]
    image[pixels] += amount * random.uniform(0.8, 1.2)
    return np.clip(image, 0, 255).astype(np.uint8), Mask(pixels_HW=pixels, origin="user")


@pytest.fixture(scope="module")
def gate(lite: FeatureExtractor) -> Gate:
    shots = {
        ("p", kind): [
            Exemplar(image_HWC=image, mask=mask, name=f"{kind}{n}.png", group=str(n))
            for n, (image, mask) in ((n, _drawn(kind, n, _normal(4, n))) for n in range(6))
        ]
        for kind in ("hole", "stripes")
    }
    carried = {
        ("p", kind): [
            Carried(image_HWC=image, normal_HWC=_normal(4, n), mask=mask, group="others")
            for n, (image, mask) in ((n, _drawn(kind, n, _normal(4, n))) for n in range(20, 26))
        ]
        for kind in ("hole", "stripes")
    }
    return Gate(shots, carried, GateConfig(copy=1.0), lite)  # these discs are all much alike


def test_limits_are_drawn_from_real_defects_and_a_given_figure_takes_their_place(gate: Gate, lite: FeatureExtractor) -> None:
    own = gate.limits["p", "hole"]
    assert own.agreement and own.agreement > 0.7 and own.similarity and 0.5 < own.similarity < 1 and own.margin and own.margin > 0
    image, mask = _drawn("hole", 0, _normal(4))
    shots = {KEY: [Exemplar(image_HWC=image, mask=mask, name="a", group="one part")] * 4}
    carried = {KEY: [Carried(image_HWC=image, normal_HWC=_normal(4), mask=mask, group="one part")] * 4}
    drawn = Gate(shots, carried, GateConfig(), lite).limits[KEY]
    assert drawn == Limits(agreement=0.85, evenness=drawn.evenness), "one part says nothing of others; they agree whole"
    assert drawn.evenness is not None and -1.2 < drawn.evenness <= -1.05, "three of the least deviations below nearly even"
    assert Gate(shots, {}, GateConfig(margin=0.25), lite).limits[KEY] == Limits(margin=0.25)
    assert Gate(shots, carried, GateConfig(margin=0.25, strict=0), lite).limits[KEY] == Limits(margin=0.25)
    assert Gate(shots, carried, GateConfig(strict=0), lite).limits[KEY] == Limits()
    for wrong in ({"strict": np.inf}, {"agreement": 5.0}, {"visible": np.nan}, {"copy": 0.0}, {"margin": -3.0}, {"evenness": 1.0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} = "):
            GateConfig(**wrong)


@pytest.mark.parametrize("kind", ["hole", "stripes"])
def test_the_depth_of_a_pair_is_the_least_strictness_that_keeps_it(gate: Gate, kind: str) -> None:
    normal = _normal(4, 41)
    image, mask = _drawn(kind, 41, normal)
    pair = _pair(image, normal, Mask(pixels_HW=np.roll(mask.pixels_HW, 2, 0), origin="user"), kind)
    depth = gate.depth(("p", kind), gate.check(pair).measures)
    assert depth > 0.1
    asked = [gate.asking(replace(gate.config, strict=depth + by)).check(pair).keep for by in (-0.01, 0.01)]
    assert asked == [False, True]


def test_a_limit_below_which_nothing_can_lie_is_none(gate: Gate) -> None:
    assert set(gate.asking(replace(gate.config, strict=100)).limits.values()) == {Limits()}


def test_carried_defects_are_looked_at_one_by_one_and_let_go(lite: FeatureExtractor) -> None:
    """Each may be a picture of many megapixels: the last one may still be held while the next is made, no more."""
    image, mask = _drawn("hole", 0, _normal(4))
    shots = {KEY: [Exemplar(image_HWC=image, mask=mask, name="a", group="one part")] * 4}
    made: list[weakref.ref[np.ndarray]] = []

    def carried() -> Iterator[Carried]:
        for n in range(20, 26):
            assert sum(each() is not None for each in made) <= 1
            laid, own = _drawn("hole", n, _normal(4, n))
            made.append(weakref.ref(laid))
            yield Carried(image_HWC=laid, normal_HWC=_normal(4, n), mask=own, group="others")
            del laid, own

    assert Gate(shots, {KEY: carried()}, GateConfig(), lite).limits[KEY].agreement is not None
    assert len(made) == 6


def test_good_pairs_pass_and_each_kind_of_bad_one_is_refused_by_its_name(gate: Gate) -> None:
    verdicts: dict[str, list[Verdict]] = {"good": [], "elsewhere": [], "faint half": [], "other type": [], "other thing": []}
    for seed in range(40, 52):
        normal = _normal(4, seed)
        image, mask = _drawn("hole", seed, normal)
        verdicts["good"].append(gate.check(_pair(image, normal, mask, "hole")))
        moved = Mask(pixels_HW=np.roll(mask.pixels_HW, (20, -20), (0, 1)), origin="user")
        verdicts["elsewhere"].append(gate.check(_pair(image, normal, moved, "hole")))
        half = image.copy()
        columns = np.flatnonzero(mask.pixels_HW.any(0))
        half[:, : int(columns.mean())] = normal[:, : int(columns.mean())]
        verdicts["faint half"].append(gate.check(_pair(half, normal, mask, "hole")))
        verdicts["other type"].append(gate.check(_pair(image, normal, mask, "stripes")))
        strange = image.copy()
        strange[mask.pixels_HW] = np.random.default_rng(seed).integers(0, 256, (int(mask.pixels_HW.sum()), 3))
        verdicts["other thing"].append(gate.check(_pair(strange, normal, mask, "hole")))
    kept = {name: sum(verdict.keep for verdict in own) for name, own in verdicts.items()}
    assert kept["good"] >= 11 and kept == {**dict.fromkeys(kept, 0), "good": kept["good"]}
    assert all("label does not fit what is seen" in verdict.reasons for verdict in verdicts["faint half"])
    assert all("shows only in part" in verdict.reasons for verdict in verdicts["faint half"])
    assert not any("shows only in part" in verdict.reasons for verdict in verdicts["good"])
    assert all("looks like hole" in verdict.reasons for verdict in verdicts["other type"])
    assert all("unlike the shots" in verdict.reasons for verdict in verdicts["other thing"])
    assert {"agreement", "similarity", "margin", "evenness"} <= verdicts["good"][0].measures.keys()
