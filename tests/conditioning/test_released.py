"""The authors' checkpoints are read as they wrote them, compute what they computed, and nothing in them is run."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import PriorError, RunError
from anomalydiffusion.priors.latent import LatentPrior
from tests.conftest import build_released_folder


def _norm(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])


def _tokens(w: dict[str, torch.Tensor], mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Their encoder step by step from its weights: 3 + 4 + 14 + 3 units, levels behind the units 6, 20 and 23."""
    x = F.conv2d((mask * 2 - 1).repeat(1, 3, 1, 1), w["input_layer.0.weight"], padding=1)
    x = F.prelu(_norm(x, w, "input_layer.1"), w["input_layer.2.weight"])
    levels = {}
    for unit in range(24):
        at, stride = f"body.{unit}.res_layer.", 2 if unit in (0, 3, 7, 21) else 1
        y = F.prelu(F.conv2d(_norm(x, w, at + "0"), w[at + "1.weight"], padding=1), w[at + "2.weight"])
        y = _norm(F.conv2d(y, w[at + "3.weight"], stride=stride, padding=1), w, at + "4")
        way = f"body.{unit}.shortcut_layer."
        short = x[..., ::stride, ::stride]
        x = y + (_norm(F.conv2d(short, w[way + "0.weight"]), w, way + "1") if unit in (3, 7, 21) else short)
        levels[unit] = x
    for unit, name in ((20, "latlayer1"), (6, "latlayer2")):
        side = F.conv2d(levels[unit], w[name + ".weight"], w[name + ".bias"])
        x = F.interpolate(x, size=side.shape[-2:], mode="bilinear", align_corners=True) + side
    out = []
    for head in range(tokens):
        z = x
        for layer in range(6):
            z = F.leaky_relu(F.conv2d(z, w[f"styles.{head}.convs.{2 * layer}.weight"], w[f"styles.{head}.convs.{2 * layer}.bias"], 2, 1))
        z, weight = z.flatten(1), w[f"styles.{head}.linear.weight"]
        out.append(F.linear(z, weight / weight.shape[1] ** 0.5, w[f"styles.{head}.linear.bias"]))
    return torch.stack(out, 1)


def test_their_files_are_read_and_answer_as_they_did(small_prior: LatentPrior, tmp_path: Path) -> None:
    width = small_prior.token_width
    vectors = build_released_folder(tmp_path, width)
    adapter = Adapter.from_released(tmp_path, small_prior)
    assert adapter.keys == [("bottle", "broken_large"), ("metal_nut", "scratch")]
    assert (adapter.config.anomaly_tokens, adapter.config.spatial_tokens) == (3, 2)
    torch.testing.assert_close(adapter.tokens.rows([("metal_nut", "scratch")])[0], vectors["metal_nut+scratch"])
    mask = torch.zeros(2, 1, 256, 256)
    mask[0, 0, 40:90, 100:220] = mask[1, 0, 10:20, 5:250] = 1
    adapter.train()  # changes nothing: its batch norm is as released
    assert adapter.spatial is not None
    with torch.no_grad():
        found = adapter.spatial(mask)
        expected = _tokens(torch.load(tmp_path / "spatial_encoder.pt", weights_only=True), mask, 2)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(adapter.spatial(mask[1:]), found[1:], atol=1e-5, rtol=1e-4)
        context = adapter.context([("bottle", "broken_large")], mask[:1, :, ::4, ::4])
    assert context.span[1] - context.span[0] == 5


def test_it_is_saved_and_extended_like_any_other(small_prior: LatentPrior, tmp_path: Path) -> None:
    build_released_folder(tmp_path, small_prior.token_width)
    adapter = Adapter.from_released(tmp_path, small_prior)
    adapter.save(tmp_path / "adapter.safetensors")
    again = Adapter.load(tmp_path / "adapter.safetensors", small_prior)
    mask = (torch.rand(1, 1, 64, 64) > 0.9).float()
    with torch.no_grad():
        for key in adapter.keys:
            torch.testing.assert_close(again.context([key], mask).tokens_BND, adapter.context([key], mask).tokens_BND)
    again.extend([("bottle", "dent")], again.origin, seed=0)
    assert [n for n, p in again.trainable().named_parameters() if p.requires_grad] == ["tokens.vectors.2"]


class _Bad:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


def test_what_is_not_theirs_is_refused(small_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PriorError, match=r"embeddings\.pt: no such file"):
        Adapter.from_released(tmp_path, small_prior)
    build_released_folder(tmp_path, small_prior.token_width + 8)
    with pytest.raises(RunError, match="vectors are 40 wide, this prior's 32"):
        Adapter.from_released(tmp_path, small_prior)
    build_released_folder(tmp_path, small_prior.token_width)
    torch.save({"other.weight": torch.zeros(2), "styles.0.x": torch.zeros(1)}, tmp_path / "spatial_encoder.pt")
    with pytest.raises(RunError, match=r"spatial_encoder\.pt: is no released spatial encoder"):
        Adapter.from_released(tmp_path, small_prior)
    for wrong in (
        {"string_to_param": {"crack": torch.zeros(2, 32)}},
        {"string_to_param": {"../x+crack": torch.zeros(2, 32)}},
        {"string_to_param": {"x+a\0b": torch.zeros(2, 32)}},
        {"string_to_param": {300 * "x" + "+crack": torch.zeros(2, 32)}},
        {"string_to_param": {}},
        {"weights": torch.zeros(2)},
        [1],
    ):
        torch.save(wrong, tmp_path / "embeddings.pt")
        with pytest.raises(RunError, match=r"embeddings\.pt: "):
            Adapter.from_released(tmp_path, small_prior)
    torch.save({"string_to_param": _Bad()}, tmp_path / "embeddings.pt")
    with pytest.raises(PriorError, match="refused, it wants"):
        Adapter.from_released(tmp_path, small_prior)
    assert not (tmp_path / "was-run").exists()
