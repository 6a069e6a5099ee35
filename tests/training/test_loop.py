"""A resumed loop ends where an undisturbed one does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from anomalydiffusion.core.errors import TrainingError
from anomalydiffusion.training.loop import LoopConfig, latest_checkpoint, native_bf16, run_loop


def _problem():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(100 * step + micro))
        return {"loss": (model(x) - x[:, :2]).square().mean()}

    return model, objective


CONFIG = LoopConfig(steps=12, learning_rate=0.05, warmup=2, checkpointing_steps=4, average=0.9, gradient_accumulation_steps=2, log_every=3)


def test_resumed_equals_undisturbed(tmp_path: Path) -> None:
    model, objective = _problem()
    calm = run_loop(model, objective, CONFIG, tmp_path / "calm")
    for stop_after in (5, 9, None):
        model, objective = _problem()
        calls = iter(range(1000))
        begun = int(found.name[5:]) if (found := latest_checkpoint(tmp_path / "shaken")) else 0

        def stop(begun: int = begun, calls=calls, stop_after=stop_after) -> bool:
            return stop_after is not None and begun + next(calls) >= stop_after

        shaken = run_loop(model, objective, CONFIG, tmp_path / "shaken", stop=stop)
    for a, b in zip(calm.parameters(), shaken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_logs_and_keeps_two_checkpoints(tmp_path: Path) -> None:
    model, objective = _problem()
    seen = []
    run_loop(model, objective, CONFIG, tmp_path, progress=lambda step, means: seen.append((step, means["loss"])))
    assert [step for step, _ in seen] == [3, 6, 9, 12] and seen[-1][1] < seen[0][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000008", "step-000012"]
    assert all(p.suffix in (".safetensors", ".json") for p in tmp_path.rglob("*") if p.is_file())


def test_a_cut_checkpoint_and_a_wild_loss_are_named(tmp_path: Path) -> None:
    model, objective = _problem()
    run_loop(model, objective, CONFIG, tmp_path / "a")
    weights = tmp_path / "a" / "step-000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(TrainingError, match=r"step-000012: this checkpoint cannot be read"):
        run_loop(model, objective, CONFIG, tmp_path / "a")
    with pytest.raises(TrainingError, match="the loss is nan"):
        run_loop(model, lambda s, m: {"loss": model(torch.full((1, 3), torch.nan)).sum()}, CONFIG, tmp_path / "b")
    assert latest_checkpoint(tmp_path / "b") is None


def test_the_average_forgets_its_random_start(tmp_path: Path) -> None:
    model, objective = _problem()
    start = [p.detach().clone() for p in model.parameters()]
    config = LoopConfig(steps=40, learning_rate=0.05, average=0.9999, log_every=40)
    averaged = run_loop(model, objective, config, tmp_path)
    for first, kept, last in zip(start, averaged.parameters(), model.parameters(), strict=True):
        assert (kept - last).norm() < 0.5 * (first - last).norm()


def test_half_precision_products_learn_the_same_and_only_where_asked(tmp_path: Path) -> None:
    kinds = []

    def train(precision: str) -> nn.Module:
        model, plain = _problem()

        def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
            kinds.append(model(torch.ones(1, 3)).dtype)
            return {"loss": plain(step, micro)["loss"].float()}

        return run_loop(model, objective, replace(CONFIG, mixed_precision=precision), tmp_path / precision)

    full = train("no")
    assert set(kinds) == {torch.float32}
    kinds.clear()
    half = train("bf16")
    assert set(kinds) == {torch.bfloat16}
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.float32 and torch.allclose(a, b, atol=0.03)
    kinds.clear()
    train("auto")
    assert set(kinds) == {torch.bfloat16 if native_bf16(torch.device("cpu")) else torch.float32}
    with pytest.raises(TrainingError, match="mixed_precision is"):
        replace(CONFIG, mixed_precision="fp8")
