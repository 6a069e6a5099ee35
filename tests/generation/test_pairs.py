"""What guidance and severity do to a pair, and what they leave alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.errors import ConfigError, DataError, GenerationError
from anomalydiffusion.core.pixels import Cells, to_latent_mask
from anomalydiffusion.core.seeds import rng, torch_noise
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs, other_mask
from anomalydiffusion.generation.reweight import attention_gain
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.sampling import Solver
from tests.conftest import build_prior_folder

KEY = ("plate", "hole")
CONFIG = GenerateConfig(steps=3, batch_size=2, guidance=1.0, strength=1.0)
ALONE = replace(CONFIG, batch_size=1, condition_noise=0.0, ratio=(2.0, 2.0))  # what can be drawn again step by step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentPrior, Adapter]:
    """A small prior and an adapter that has moved away from it in every part."""
    prior = load_prior(str(build_prior_folder(tmp_path_factory.mktemp("pairs") / "prior")))
    adapter = Adapter(prior, [KEY], AdapterConfig(), Origin(prior_digest=prior.digest)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.trainable().named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return prior, adapter


@pytest.fixture
def item() -> Item:
    random = np.random.default_rng(2)
    mask = np.zeros((90, 110), bool)
    mask[40:60, 30:64] = True
    normal = np.clip(random.normal(128, 12, (90, 110, 3)), 0, 255).astype(np.uint8)
    return Item(key=KEY, normal_HWC=normal, normal="n.png", normal_sha256="0", mask=Mask(pixels_HW=mask, origin="test"), seed=5)


def _image(made: tuple[LatentPrior, Adapter], item: Item, **changes: float | str | None) -> np.ndarray:
    (pair,) = make_pairs(*made, [item], replace(CONFIG, **changes))
    return pair.image_HWC.astype(int)


def test_severity_is_a_factor_on_the_guidance(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    alone = _image(made, item)
    assert np.abs(_image(made, item, guidance=2.0, severity=0.5) - alone).max() <= 1
    assert np.abs(_image(made, item, guidance=3.0) - _image(made, item, guidance=1.5, severity=2.0)).max() <= 1
    assert (_image(made, item, guidance=2.0) != alone).any()


def test_each_form_of_reweighting_draws_its_own_defect_and_one_pair_is_the_same_in_any_company(
    made: tuple[LatentPrior, Adapter], item: Item
) -> None:
    forms = {form: _image(made, item, reweight=form, steps=6) for form in ("paper", "preview", "off")}
    assert all((forms[one] != forms[other]).any() for one, other in (("paper", "preview"), ("paper", "off"), ("preview", "off")))
    other = replace(item, seed=6)
    for form, alone in forms.items():
        together = make_pairs(*made, [other, item], replace(CONFIG, reweight=form, steps=6))[1].image_HWC.astype(int)
        assert np.abs(together - alone).max() <= 2, form


def _marked(item: Item, kind: Cells | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The item's mask on its crop at a ratio of 2, and the latent cells that are drawn."""
    generator = rng(item.seed, "crop")
    generator.uniform()  # the ratio
    box = crop_box(item.mask.box, (90, 110), 2.0, 64, tuple(generator.uniform(0.2, 0.8) for _ in "yx"))
    mask = torch.from_numpy(resize(extract(item.mask.pixels_HW, box), 64))[None, None].float()
    return mask, to_latent_mask(mask, 8, kind)


@pytest.mark.parametrize(("kind", "guidance"), [(None, 1.0), ("nearest", 1.0), (None, 2.5)])
def test_each_step_is_the_posterior_in_the_mask_and_the_noised_normal_image_around_it(
    made: tuple[LatentPrior, Adapter], item: Item, kind: Cells | None, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, adapter = made
    encoded, encode, steps = [], prior.encode, []
    monkeypatch.setattr(prior, "encode", lambda x: encoded.append(encode(x)) or encoded[-1])
    config = replace(ALONE, reweight="off", steps=4, cells=kind, guidance=guidance)
    make_pairs(prior, adapter, [item], config, lambda index, t, z: steps.append((t, z.clone())))
    normal, (mask, cells) = encoded[0], _marked(item, kind)
    assert (kind is None) == torch.equal(cells, to_latent_mask(mask, 8))
    assert 0 < cells.sum() < cells.numel() and cells.unique().tolist() == [0, 1]

    def drawn(purpose: str, t: int) -> torch.Tensor:
        return torch_noise(tuple(normal.shape[1:]), item.seed, purpose, t)[None]

    z, marks = drawn("start", 0), cells.bool().expand_as(normal)
    with torch.no_grad():
        context = adapter.context([KEY], mask)
        for (t, found), s in zip(steps, [*(t for t, _ in steps[1:]), -1], strict=True):
            adapted = adapter.predict(z, torch.tensor([t]), context)
            frozen = adapter.frozen(z, torch.tensor([t]), Context(tokens_BND=adapter.plain(1)))
            told = prior.estimate(z, frozen + guidance * (adapted - frozen), torch.tensor([t])).clean
            a_t, a_s = float(prior.alphas[t]), float(prior.alphas[s]) if s >= 0 else 1.0
            # q(x_s | x_t, x_0) of the noising chain itself [arXiv 2006.11239, section 2]
            mean = a_s**0.5 * (1 - a_t / a_s) / (1 - a_t) * told + (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t) * z
            step = mean + ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5 * drawn("step", t)
            around = a_s**0.5 * normal + (1 - a_s) ** 0.5 * drawn("background", s)
            torch.testing.assert_close(found[marks], step[marks], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[~marks], around[~marks], atol=1e-5, rtol=1e-5)
            z = found
    assert len(steps) == 4 and torch.equal(z[~marks], normal[~marks])


def test_a_preview_asks_at_each_step_by_how_far_the_last_estimate_is_from_the_normal_image(
    made: tuple[LatentPrior, Adapter], item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, adapter = made
    encoded, encode, gains, clean, predict = [], prior.encode, [], [], adapter.predict
    monkeypatch.setattr(prior, "encode", lambda x: encoded.append(encode(x)) or encoded[-1])

    def told(z: torch.Tensor, t: torch.Tensor, context: Context, gain: torch.Tensor | None, *rest: object, **more: object) -> torch.Tensor:
        answer = predict(z, t, context, gain, *rest, **more)
        gains.append(gain)
        clean.append(prior.estimate(z, answer, t).clean)
        return answer

    monkeypatch.setattr(adapter, "predict", told)
    make_pairs(prior, adapter, [item], replace(ALONE, reweight="preview", reweight_bound=1.5))
    assert len(gains) == 3 and gains[0] is None
    for gain, estimate in zip(gains[1:], clean, strict=False):
        distance = (estimate - encoded[0]).square().mean(1, keepdim=True)
        torch.testing.assert_close(gain, attention_gain(distance, _marked(item)[1], bound=1.5))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("grain", "off", "full"), ("grain", "measured", "off"), ("match", True, False), ("condition_noise", 0.0, 0.5)],
)
def test_a_setting_changes_the_drawing(made: tuple[LatentPrior, Adapter], item: Item, name: str, one: object, other: object) -> None:
    inside = item.mask.pixels_HW
    assert (_image(made, item, **{name: one})[inside] != _image(made, item, **{name: other})[inside]).mean() > 0.1


def test_a_wider_feather_changes_more_around_the_mask_and_nothing_beyond_its_width(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    changed = (_image(made, item, feather=9.0) != item.normal_HWC).any(2)
    distance = ndimage.distance_transform_edt(~item.mask.pixels_HW)
    assert changed[(distance >= 3) & (distance < 7)].mean() > 0.5 and not changed[distance >= 9].any()


def test_a_pair_alone_is_the_pair_among_eight_in_a_batch_of_one_or_of_eight(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    items = [replace(item, seed=seed) for seed in range(8)]
    eight = make_pairs(*made, items, replace(CONFIG, batch_size=8))
    for one, among in [(items[0], eight[0]), (items[5], eight[5])]:
        (alone,) = make_pairs(*made, [one], replace(CONFIG, batch_size=1))
        assert np.abs(alone.image_HWC.astype(int) - among.image_HWC).max() <= 1
    assert (eight[0].image_HWC != eight[5].image_HWC).any()


def test_where_memory_is_scarce_nothing_is_drawn_while_the_text_encoder_is_there(
    made: tuple[LatentPrior, Adapter], item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, as_ever, events = made[0], _image(made, item, guidance=2.0), []
    move = prior.text_encoder.to
    monkeypatch.setattr(prior.text_encoder, "to", lambda place: events.append("away" if place == "cpu" else "there") or move(place))
    monkeypatch.setattr(prior, "spares", True)
    with prior.unet.register_forward_pre_hook(lambda *given: events.append("draws")):
        assert (_image(made, item, guidance=2.0) == as_ever).all()
    assert events.index("away") < events.index("draws") and "there" not in events[events.index("away") :]


def test_severity_zero_is_what_the_prior_alone_draws(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    adapter = made[1]
    none, vectors = _image(made, item, severity=0.0), adapter.tokens.vectors[0]
    learned = vectors.detach().clone()
    try:
        with torch.no_grad():
            vectors.neg_()
        assert (_image(made, item, severity=0.0) == none).all()
        assert (_image(made, item) != none).any()
    finally:
        with torch.no_grad():
            vectors.copy_(learned)


def test_outside_the_touched_box_nothing_changes_at_any_severity(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    (pair,) = make_pairs(*made, [item], replace(CONFIG, severity=4.0))
    x0, y0, x1, y1 = pair.provenance.touched_box
    changed = (pair.image_HWC != item.normal_HWC).any(2)
    assert changed[item.mask.pixels_HW].mean() > 0.5
    changed[y0:y1, x0:x1] = False
    assert not changed.any()


def test_parts_far_apart_are_each_drawn_and_nothing_between_them(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    mask = np.zeros((90, 110), bool)
    mask[8:20, 6:16] = mask[66:80, 90:104] = True
    two = replace(item, mask=Mask(pixels_HW=mask, origin="test"))
    (pair,) = make_pairs(*made, [two], CONFIG)
    changed = (pair.image_HWC != two.normal_HWC).any(2)
    assert changed[8:20, 6:16].mean() > 0.5 and changed[66:80, 90:104].mean() > 0.5
    assert not changed[ndimage.distance_transform_edt(~mask) >= CONFIG.feather].any()
    assert pair.mask.pixels_HW is mask
    steps: list[int] = []
    for together in (None, True):
        make_pairs(*made, [two], replace(CONFIG, together=together), lambda index, t, z: steps.append(index))
    assert len(steps) == 3 * CONFIG.steps, "two drawings, one after the other, and one of both"
    beside = make_pairs(*made, [item, two], CONFIG)[1]
    assert np.abs(beside.image_HWC.astype(int) - pair.image_HWC).max() <= 2


def _begun(item: Item, levels: int) -> Item:
    """The item with a start that is so much brighter in the mask."""
    start = item.normal_HWC.copy()
    start[item.mask.pixels_HW] = np.clip(start[item.mask.pixels_HW].astype(int) + levels, 0, 255)
    return replace(item, start_HWC=start, reference="shot.png")


def test_severity_scales_how_far_the_defect_is_from_the_normal_image(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    begun, inside = _begun(item, -50), item.mask.pixels_HW
    means = [_image(made, begun, strength=0.01, steps=100, severity=s)[inside].mean() for s in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert (np.diff(means) < -10).all()


def test_below_full_strength_it_begins_from_a_real_defect(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    begun, bright = _begun(item, -80), _begun(item, 60)
    config, inside = replace(CONFIG, steps=100), item.mask.pixels_HW
    far = ndimage.distance_transform_edt(~inside) >= config.feather
    away, apart = [], []
    for strength in (0.01, 0.9):
        ones = [make_pairs(*made, [one], replace(config, strength=strength))[0] for one in (begun, bright)]
        assert all((one.image_HWC[far] == item.normal_HWC[far]).all() and one.provenance.reference == "shot.png" for one in ones)
        dark, light = (one.image_HWC[inside].astype(int) for one in ones)
        away.append(np.abs(dark - begun.start_HWC[inside]).mean())
        apart.append(np.abs(dark - light).mean())
    assert away[0] + 5 < away[1], "the less noise, the nearer to the real defect"
    assert apart[0] > apart[1] + 10 > 10, "and the more it matters which"
    assert (_image(made, begun) == _image(made, item)).all(), "from noise alone the start is of no account"
    with pytest.raises(GenerationError, match=r"strength = 0\.5: give a start"):
        make_pairs(*made, [item], replace(CONFIG, strength=0.5))


def test_fewer_steps_begin_from_no_more_noise(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    begun = replace(item, start_HWC=255 - item.normal_HWC, reference="shot.png")
    walked: dict[int, list[int]] = {}
    for steps in (1, 5, 15, 20, 100):
        config = replace(CONFIG, strength=0.1, steps=steps)
        make_pairs(*made, [begun], config, lambda index, t, z, own=walked.setdefault(steps, []): own.append(int(t)))
    first = round(0.1 * len(made[0].alphas)) - 1
    assert all(own[0] == first for own in walked.values())
    assert [len(own) for own in walked.values()] == [1, 1, 2, 2, 10]


def test_further_attempts_are_guided_more_where_that_is_asked_for(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    growing = replace(CONFIG, guidance=1.5, guidance_growth=2.0)
    third = replace(item, attempt=2)
    assert (_image(made, item, guidance=1.5, guidance_growth=2.0) == _image(made, item, guidance=1.5)).all()
    assert (_image(made, third, guidance=1.5, guidance_growth=2.0) == _image(made, item, guidance=6.0)).all()
    assert (_image(made, third, guidance=1.5) == _image(made, item, guidance=1.5)).all()
    assert growing.guidance_at(9) == 10.0
    with pytest.raises(ConfigError, match="guidance_growth"):
        replace(CONFIG, guidance_growth=0.5)


def test_numbers_that_are_not_finite_make_no_picture(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    with pytest.raises(DataError, match="not finite"):
        make_pairs(*made, [item], CONFIG, lambda index, t, z: torch.full_like(z, torch.nan))


@pytest.mark.parametrize("solver", [None, "dpm"])
def test_of_a_range_each_pair_takes_its_own_and_is_drawn_as_if_alone(
    made: tuple[LatentPrior, Adapter], item: Item, solver: Solver | None
) -> None:
    items = [replace(item, seed=seed, start_HWC=255 - item.normal_HWC, reference="shot.png") for seed in (5, 6)]
    config = replace(CONFIG, steps=12, strength=(0.2, 1.0), severity=(0.5, 2.0), solver=solver)
    pairs = make_pairs(*made, items, config)
    strengths = [rng(one.seed, "strength").uniform(0.2, 1.0) for one in items]
    assert round(strengths[0] * 12) != round(strengths[1] * 12), "two different first steps, or this shows nothing"
    for one, pair, strength in zip(items, pairs, strengths, strict=True):
        severity = pair.provenance.severity
        assert severity == rng(one.seed, "severity").uniform(0.5, 2.0)
        (alone,) = make_pairs(*made, [one], replace(config, strength=(strength, strength), severity=severity))
        assert np.abs(alone.image_HWC.astype(int) - pair.image_HWC).max() <= 2
    (other,) = make_pairs(*made, items[:1], replace(config, strength=(strengths[1],) * 2, severity=pairs[0].provenance.severity))
    assert (other.image_HWC != pairs[0].image_HWC).any()


def test_each_solver_draws_its_own_defect_on_the_same_background(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    plain, named, other = (make_pairs(*made, [item], replace(CONFIG, solver=solver))[0] for solver in (None, "ddim", "dpm"))
    assert (plain.image_HWC == named.image_HWC).all()
    x0, y0, x1, y1 = plain.provenance.touched_box
    assert plain.provenance.touched_box == other.provenance.touched_box
    differs = (plain.image_HWC != other.image_HWC).any(2)
    assert differs[y0:y1, x0:x1].any() and not differs[:y0].any() and not differs[y1:].any()


def test_refuses_what_it_cannot_do(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    assert make_pairs(*made, [], CONFIG) == []
    with pytest.raises(GenerationError, match="3 items do not fit a batch of 2"):
        make_pairs(*made, [item] * 3, CONFIG)
    for wrong in (
        {"guidance": 0.0},
        {"severity": -1.0},
        {"eta": 2.0},
        {"solver": "euler"},
        {"steps": 0},
        {"strength": 0.0},
        {"strength": 1.5},
        {"strength": (0.5, 0.2)},
    ):
        with pytest.raises(ConfigError):
            replace(CONFIG, **wrong)


@pytest.mark.parametrize(("reuse", "whole"), [(None, 4), (1, 4), (2, 2), (3, 2), (4, 1)])
def test_inner_levels_are_asked_at_every_so_many_steps_for_each_kind_of_call(
    made: tuple[LatentPrior, Adapter], item: Item, reuse: int | None, whole: int
) -> None:
    asked: list[bool] = []
    block = made[0].unet.mid_block.resnets[0]
    handle = block.register_forward_hook(lambda module, given, answer: asked.append(made[1]._tuned()[0].disable_adapters))
    drawn = _image(made, item, steps=4, guidance=2.0, reuse=reuse)
    handle.remove()
    assert asked == [False, True] * whole  # adapted and frozen, in turn
    plain = _image(made, item, steps=4, guidance=2.0)
    assert (drawn != plain).any() == ((reuse or 1) > 1)
    assert np.abs(drawn - plain).mean() < np.abs(plain - item.normal_HWC).mean()


def test_what_is_remembered_between_steps_is_a_pair_s_own_in_any_company(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    config = replace(CONFIG, steps=4, guidance=2.0, reuse=2)
    together = make_pairs(*made, [replace(item, seed=6), item], config)[1].image_HWC.astype(int)
    assert np.abs(together - _image(made, item, steps=4, guidance=2.0, reuse=2)).max() <= 2
    assert (_image(made, item, steps=4, reuse=2) != _image(made, item, steps=4, guidance=2.0, reuse=2)).any()
    with pytest.raises(ConfigError, match="reuse = 0"):
        replace(CONFIG, reuse=0)
    with pytest.raises(ConfigError, match="one strength"):
        replace(CONFIG, reuse=2, strength=(0.5, 1.0))


def test_a_condition_goes_toward_that_of_another_mask_and_the_label_stays(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    long = np.zeros((70, 120), bool)
    long[30:34, 5:115] = True
    toward = replace(item, other=Mask(pixels_HW=long, origin="real"))
    plain = make_pairs(*made, [item], CONFIG)[0]
    none, some = (make_pairs(*made, [toward], replace(CONFIG, interpolate=most))[0] for most in (0.0, 1.0))
    assert (none.image_HWC == plain.image_HWC).all() and (some.image_HWC != plain.image_HWC).any()
    assert (some.mask.pixels_HW == item.mask.pixels_HW).all() and some.provenance.touched_box == plain.provenance.touched_box
    with pytest.raises(GenerationError, match="give another shot's mask"):
        make_pairs(*made, [item], replace(CONFIG, interpolate=0.5))
    shots = [(item.normal_HWC, mask) for mask in (item.mask, Mask(pixels_HW=long, origin="real"))]
    drawn = [other_mask(shots, seed, GenerateConfig(interpolate=0.5)) for seed in (*range(20), 3)]
    assert {id(mask) for mask in drawn} == {id(mask) for _, mask in shots} and drawn[3] is drawn[-1]
    assert other_mask([], 0, GenerateConfig()) is None


def test_a_graft_looks_at_its_own_shot_alone_and_at_nothing_beside_the_defect(made: tuple[LatentPrior, Adapter], item: Item) -> None:
    def shot(level: int, around: int = 128) -> tuple[np.ndarray, Mask]:
        image, marked = np.full((80, 80, 3), around, np.uint8), np.zeros((80, 80), bool)
        marked[30:50, 20:60] = True
        image[marked] = level
        return image, Mask(pixels_HW=marked, origin="real")

    plain = _image(made, item)
    with pytest.raises(GenerationError, match="give a shot"):
        _image(made, item, graft=1.0)
    dark, light = replace(item, shot=shot(20)), replace(item, shot=shot(230))
    assert np.abs(_image(made, dark, graft=0.0) - plain).max() <= 1  # twice as many rows may be multiplied by other kernels
    assert (_image(made, dark, graft=1.0) != plain).any() and (_image(made, dark, graft=1.0) != _image(made, light, graft=1.0)).any()
    other = replace(item, seed=6, shot=shot(230))
    together = make_pairs(*made, [other, dark], replace(CONFIG, graft=1.0))[1].image_HWC.astype(int)
    assert np.abs(together - _image(made, dark, graft=1.0)).max() <= 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("graft", 1.5), ("interpolate", 1.5), ("feather", math.nan), ("feather", -1.0), ("condition_noise", math.nan),
        ("reweight_bound", math.inf), ("minimum_side", 0), ("ratio", (1.8, math.inf)), ("ratio", (math.nan, 4.0)),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerateConfig(**{name: value})


def test_what_is_handed_back_is_what_the_settings_say() -> None:
    assert [GenerateConfig(grain=grain).handed_back(0.3) for grain in ("measured", "full", "off")] == [0.3, 1.0, 0.0]
