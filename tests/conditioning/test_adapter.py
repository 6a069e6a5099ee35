"""One file holds what was learned, and fits only the prior it was learned on."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.conditioning.spatial import SpatialEncoder
from anomalydiffusion.core.errors import ConfigError, GenerationError, RunError
from anomalydiffusion.priors.load import load_prior
from tests.conftest import build_prior_folder
from tests.hostile import damaged, refused, spoilt

KEYS = [("tile", "crack"), ("tile", "hole")]


def _adapter(prior, rank: int = 2) -> Adapter:
    config = AdapterConfig(anomaly_tokens=3, spatial_tokens=2, lora_rank=rank)
    adapter = Adapter(prior, KEYS, config, Origin(prior_digest=prior.digest, measures={"tile/crack": {"grain": 0.7}}))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.trainable().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter.eval()


def _answer(adapter: Adapter) -> torch.Tensor:
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 20:30, 5:50] = 1
    with torch.no_grad():
        context = adapter.context(KEYS, mask)
        return adapter.predict(torch.ones(2, 4, 8, 8), torch.tensor([100, 500]), context)


def test_a_saved_adapter_answers_as_before(small_folder: Path, tmp_path: Path) -> None:
    first = load_prior(str(small_folder))
    adapter = _adapter(first)
    expected = _answer(adapter)
    adapter.save(tmp_path / "adapter.safetensors")
    second = load_prior(str(small_folder))
    loaded = Adapter.load(tmp_path / "adapter.safetensors", second)
    torch.testing.assert_close(_answer(loaded), expected)
    assert loaded.keys == KEYS and loaded.origin.measures["tile/crack"]["grain"] == 0.7
    assert loaded.digest == adapter.digest != ""


def test_only_what_is_learned_wants_a_gradient(small_prior) -> None:
    adapter = _adapter(small_prior)
    learned = {id(p) for p in adapter.trainable().parameters()}
    wanting = {id(p) for part in (adapter, small_prior.unet, small_prior.vae) for p in part.parameters() if p.requires_grad}
    assert wanting == learned


def test_frozen_is_the_priors_own_answer(small_folder: Path) -> None:
    prior, plain = load_prior(str(small_folder)), load_prior(str(small_folder))
    adapter = _adapter(prior)
    context = plain.embed((plain.tokenize("a"), []), torch.zeros(1, 0, plain.token_width))
    z, t = torch.ones(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        own = plain.predict(z, t, context)
        torch.testing.assert_close(adapter.frozen(z, t, context), own)
        assert not torch.allclose(adapter.predict(z, t, context), own)


@pytest.mark.parametrize("ranks", [(2, 3), (2, 0), (0, 2)])
def test_adapters_that_share_a_prior_do_not_hear_each_other(small_folder: Path, tmp_path: Path, ranks: tuple[int, int]) -> None:
    alone = [_adapter(load_prior(str(small_folder)), rank) for rank in ranks]
    expected = [_answer(adapter) for adapter in alone]
    names, prior = ("default", "masks"), load_prior(str(small_folder))
    for adapter, name in zip(alone, names, strict=True):
        adapter.save(tmp_path / f"{name}.safetensors")
    shared = [Adapter.load(tmp_path / f"{name}.safetensors", prior, name=name) for name in names]
    for _ in range(2):
        for adapter, answer in zip(shared, expected, strict=True):
            torch.testing.assert_close(_answer(adapter), answer)
    for adapter, name in zip(shared, names, strict=True):
        adapter.save(tmp_path / f"{name}-again.safetensors")
        again = (tmp_path / f"{name}-again.safetensors").read_bytes()
        assert again == (tmp_path / f"{name}.safetensors").read_bytes()
    learned = [{id(p) for p in adapter.trainable().parameters()} for adapter in shared]
    assert not learned[0] & learned[1]


def test_a_defect_added_later_leaves_the_others_as_they_were(small_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(str(small_folder))
    _adapter(prior).save(tmp_path / "adapter.safetensors")
    grown = Adapter.load(tmp_path / "adapter.safetensors", load_prior(str(small_folder)))
    before = _answer(grown)
    grown.extend([("tile", "dent")], Origin(prior_digest=prior.digest, measures={"tile/dent": {"grain": 0.2}}), seed=3)
    learned = [name for name, parameter in grown.trainable().named_parameters() if parameter.requires_grad]
    assert learned == ["tokens.vectors.2"]
    other = Adapter(load_prior(str(small_folder)), KEYS, AdapterConfig(), Origin(prior_digest=prior.digest), seed=3)
    other.extend([("tile", "dent")], Origin(prior_digest=prior.digest), seed=3)
    assert not torch.equal(other.tokens.vectors[0], other.tokens.vectors[2])
    with torch.no_grad():
        grown.tokens.vectors[2].add_(1.0)
    torch.testing.assert_close(_answer(grown), before, atol=0, rtol=0)
    assert grown.keys == [*KEYS, ("tile", "dent")] and set(grown.origin.measures) == {"tile/crack", "tile/dent"}
    torch.testing.assert_close(grown.tokens.spread(KEYS), Adapter.load(
        tmp_path / "adapter.safetensors", load_prior(str(small_folder))).tokens.spread(KEYS), atol=0, rtol=0)  # fmt: skip
    grown.save(tmp_path / "grown.safetensors")
    again = Adapter.load(tmp_path / "grown.safetensors", load_prior(str(small_folder)))
    torch.testing.assert_close(_answer(again), before)
    torch.testing.assert_close(again.tokens.rows([("tile", "dent")]), grown.tokens.rows([("tile", "dent")]))


def test_what_is_learned_is_single_precision_on_a_half_precision_prior(small_folder: Path, tmp_path: Path) -> None:
    expected = _answer(_adapter(load_prior(str(small_folder))))
    half = load_prior(str(small_folder), dtype=torch.bfloat16)
    adapter = _adapter(half)
    assert {p.dtype for p in adapter.trainable().parameters()} == {torch.float32} and half.unet.dtype == torch.bfloat16
    adapter.save(tmp_path / "adapter.safetensors")
    again = Adapter.load(tmp_path / "adapter.safetensors", load_prior(str(small_folder), dtype=torch.bfloat16))
    assert {p.dtype for p in again.trainable().parameters()} == {torch.float32}
    found = _answer(again)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert (found - _answer(adapter)).abs().max() == 0 and (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_refusals_say_why(small_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(str(small_folder))
    path = tmp_path / "adapter.safetensors"
    _adapter(prior).save(path)
    other = load_prior(str(build_prior_folder(tmp_path / "other", seed=1)))
    with pytest.raises(RunError, match="trained on prior"):
        Adapter.load(path, other)
    with pytest.raises(RunError, match="no adapter here"):
        Adapter.load(tmp_path / "none.safetensors", prior)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="damaged"):
        Adapter.load(path, load_prior(str(small_folder)))
    with pytest.raises(GenerationError, match="knows tile/crack, tile/hole"):
        _adapter(load_prior(str(small_folder))).context([("tile", "dent")], torch.ones(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="must hold"):
        AdapterConfig(prompt="a photo")


@pytest.mark.parametrize("backbone", ["small", "resnet50"])
def test_a_masks_tokens_do_not_depend_on_its_batch(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = SpatialEncoder(4, 24, backbone).train()
    masks = (torch.rand(3, 1, 64, 64) > 0.8).float()
    together = encoder(masks)
    assert together.shape == (3, 4, 24)
    torch.testing.assert_close(together[1:2], encoder(masks[1:2]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1])


RECORD = {
    "format": 1, "keys": [["tile", "crack"]],
    "config": {"anomaly_tokens": 2, "spatial_tokens": 0, "lora_rank": 0, "prompt": "a photo of {}", "lora_targets": ["to_q"]},
    "origin": {"prior_digest": "0", "measures": {"tile/crack": {"grain": 0.5}}},
}  # fmt: skip


def _file(record: object, **tensors: torch.Tensor) -> bytes:
    noted = record if isinstance(record, str) else json.dumps(record)
    return save({"tokens.vectors": torch.zeros(1, 2, 32), **tensors}, metadata={"anomalydiffusion": noted})


@settings(max_examples=60, deadline=None)
@given(noted=spoilt(RECORD), raw=damaged(_file(RECORD)))
def test_whatever_a_file_notes_is_vectors_or_one_line(tmp_path_factory: pytest.TempPathFactory, noted: bytes, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("a") / "theirs.safetensors"
    for data in (_file(noted.decode()), raw):
        path.write_bytes(data)
        said = refused(lambda: Adapter.vectors_of(path))
        assert not said or "theirs.safetensors" in said


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + _file(RECORD)[8:])
    with pytest.raises(RunError, match=r"theirs\.safetensors: .*damaged or not ours.*; train again"):
        Adapter.vectors_of(path)


@pytest.mark.parametrize(
    "other",
    [
        {"keys": [["../..", "crack"]]}, {"keys": [["tile", "a/b"]]}, {"keys": [["tile", "crack"]] * 2}, {"keys": [["tile"]]},
        {"keys": None}, {"format": None, "keys": 5}, {"config": {**RECORD["config"], "anomaly_tokens": 10**9}},
        {"origin": {"steps": "x"}},
        {"config": {**RECORD["config"], "spatial_tokens": 10**9}}, {"config": {**RECORD["config"], "lora_rank": 10**9}},
        {"config": {"prompt": 5}},
        {"config": {**RECORD["config"], "spatial_tokens": 10**6, "backbone": "released"}},
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_and_sizes_beyond_the_weights_are_refused_before_anything_is_built(
    small_folder: Path, tmp_path: Path, other: dict
) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(_file(RECORD | other))
    for read in (Adapter.vectors_of, lambda path: Adapter.load(path, load_prior(str(small_folder)))):
        with pytest.raises(RunError, match=r"theirs\.safetensors: .*damaged or not ours.*; train again"):
            read(path)


def test_weights_that_do_not_fit_are_one_line(small_folder: Path, tmp_path: Path) -> None:
    prior, path = load_prior(str(small_folder)), tmp_path / "theirs.safetensors"
    record = {**RECORD, "origin": {"prior_digest": prior.digest}}
    path.write_bytes(save({"tokens.vectors": torch.zeros(1, 2, 31)}, metadata={"anomalydiffusion": json.dumps(record)}))
    with pytest.raises(RunError, match="vectors are 31 wide, this prior's 32"):
        Adapter.load(path, prior)
    record["config"] = {**RECORD["config"], "spatial_tokens": 1}
    path.write_bytes(_file(record, **{"spatial.heads.0.weight": torch.zeros(1)}))
    with pytest.raises(RunError, match=r"theirs\.safetensors: does not fit this prior .*; train again"):
        Adapter.load(path, prior)
    record["config"] = {**RECORD["config"], "lora_rank": 3, "lora_targets": ["no_such_layer"]}
    path.write_bytes(_file(record, **{"lora.no_such_layer.lora_A.weight": torch.zeros(3, 4)}))
    with pytest.raises(RunError, match=r"theirs\.safetensors: does not fit this prior .*; train again"):
        Adapter.load(path, prior)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("initial_word", " ", "initial_word is empty"), ("lora_targets", ("to_nothing",), r"lora_targets = \['to_nothing'\]: .*not found"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused_in_words(name: str, value: object, said: str, small_prior) -> None:
    with pytest.raises(ConfigError, match=said):
        Adapter(small_prior, [("p", "spot")], AdapterConfig(**{name: value}), Origin(prior_digest=small_prior.digest))
