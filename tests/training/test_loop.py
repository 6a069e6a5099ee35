"""A resumed loop ends where an undisturbed one does."""

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from anomalydiffusion.core.devices import native_bf16
from anomalydiffusion.core.errors import ConfigError, TrainingError
from anomalydiffusion.training import loop
from anomalydiffusion.training.loop import LoopConfig, Objective, accelerator_on, latest_checkpoint, run_loop


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
    calm_log: list[tuple[int, float]] = []
    calm = run_loop(model, objective, CONFIG, tmp_path / "calm", progress=lambda step, means: calm_log.append((step, means["loss"])))
    shaken_log: list[tuple[int, float]] = []
    for stop_after in (5, 9, None):
        model, objective = _problem()
        calls = iter(range(1000))
        begun = int(found.name[5:]) if (found := latest_checkpoint(tmp_path / "shaken")) else 0

        def stop(begun: int = begun, calls=calls, stop_after=stop_after) -> bool:
            return stop_after is not None and begun + next(calls) >= stop_after

        shaken = run_loop(
            model, objective, CONFIG, tmp_path / "shaken", stop=stop, progress=lambda step, means: shaken_log.append((step, means["loss"]))
        )
    for a, b in zip(calm.parameters(), shaken.parameters(), strict=True):
        assert torch.equal(a, b)
    assert shaken_log == calm_log


def _ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def _error() -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("where", "what", "kept"),
    [("objective", _ctrl_c, 6), ("step", _ctrl_c, 7), ("average", _ctrl_c, 7),  # a step that is being applied is finished first
     ("objective", _error, 6), ("step", _error, 4), ("average", _error, 4)],
)  # fmt: skip
def test_an_end_anywhere_applies_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, where: str, what: Callable[[], None], kept: int
) -> None:
    model, objective = _problem()
    calm = run_loop(model, objective, CONFIG, tmp_path / "calm")
    model, objective = _problem()

    def interrupted(real, at: int):
        calls = iter(range(1000))

        def call(*given, **named):
            answer = real(*given, **named)
            if next(calls) == at:
                what()  # after the work, before anybody has counted it
            return answer

        return call

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    heard = signal.getsignal(signal.SIGINT)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(torch.optim.AdamW, "step", interrupted(torch.optim.AdamW.step, 6))
        if where == "average":
            patch.setattr(AveragedModel, "update_parameters", interrupted(AveragedModel.update_parameters, 6))
        given = interrupted(objective, 13) if where == "objective" else objective  # the second of two micro batches
        with pytest.raises(KeyboardInterrupt if what is _ctrl_c else RuntimeError):
            run_loop(model, given, CONFIG, tmp_path / "shaken")
    assert signal.getsignal(signal.SIGINT) is heard
    found = latest_checkpoint(tmp_path / "shaken")
    assert found is not None and found.name == f"step-{kept:06d}"
    model, objective = _problem()
    shaken = run_loop(model, objective, CONFIG, tmp_path / "shaken")
    for a, b in zip(calm.parameters(), shaken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_disk_without_room_is_one_plain_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    model = nn.Linear(64, 64)
    loss = lambda step, micro: {"loss": model(torch.ones(1, 64)).square().mean()}  # noqa: E731
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # a file that grows beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match="too large") as caught:
            run_loop(model, loss, replace(CONFIG, average=0.0), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.__context__ is None  # tried once, and hidden behind nothing
    assert list(tmp_path.iterdir()) == []  # nothing half written


def test_an_interrupt_that_cannot_be_saved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = _problem()

    def full(*given) -> None:
        raise OSError(28, "No space left on device")

    def stop() -> bool:
        if latest_checkpoint(tmp_path):
            monkeypatch.setattr("anomalydiffusion.training.loop.write_atomic", full)
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return False

    calls: list[None] = []
    with pytest.raises(OSError, match="No space left"):
        run_loop(model, objective, CONFIG, tmp_path, stop=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mixed_precision", "fp8"), ("steps", 0), ("gradient_accumulation_steps", 0), ("checkpointing_steps", 0),
        ("checkpoints_total_limit", 0), ("log_every", 0), ("warmup", -1), ("learning_rate", 0.0), ("learning_rate", math.nan),
        ("max_grad_norm", math.inf), ("max_grad_norm", 0.0), ("weight_decay", -0.1), ("weight_decay", math.inf), ("average", 1.0),
        ("average", math.nan), ("minutes", math.inf), ("minutes", -1.0),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(CONFIG, **{name: value})


def test_without_warmup_the_first_step_is_a_whole_one(tmp_path: Path) -> None:
    moved = []
    for warmup in (0, 1, 10):
        model, objective = _problem()
        start = model.weight.detach().clone()
        run_loop(model, objective, replace(CONFIG, steps=1, warmup=warmup, average=0.0), tmp_path / str(warmup))
        moved.append(float((model.weight - start).norm().detach()))
    assert moved[0] == moved[1] > 5 * moved[2]


def _climbing() -> tuple[nn.Module, Objective]:
    """A model whose gradient is 1 at every step, so that each step of Adam is as long as the learning rate."""
    model = nn.Linear(1, 1, bias=False)
    return model, lambda step, micro: {"loss": -model.weight.sum()}


def _moves(config: LoopConfig, folder: Path) -> torch.Tensor:
    """How far the weight goes at each step."""
    model, objective = _climbing()
    weights = [float(model.weight.detach())]
    run_loop(model, objective, config, folder, progress=lambda step, means: weights.append(float(model.weight.detach())))
    return torch.tensor(weights).diff()


EACH = LoopConfig(steps=40, learning_rate=0.1, warmup=0, log_every=1)


def test_the_learning_rate_falls_like_a_cosine_to_nearly_nothing(tmp_path: Path) -> None:
    moves = _moves(EACH, tmp_path)
    assert [float(moves[step]) for step in (0, 20)] == pytest.approx([0.1, 0.051], rel=1e-3)
    assert 0 < moves[-1] < 0.05 * moves.max()


def test_after_its_minutes_it_ends_and_the_learning_rate_has_fallen_by_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    moves = _moves(replace(EACH, steps=1000, minutes=0.2), tmp_path)
    assert len(moves) == 11  # of twelve seconds, one a step, one is over before the first
    assert moves[-1] < 0.05 * moves[0]


def test_weights_decay_by_their_share_of_the_learning_rate(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    run_loop(model, lambda step, micro: {"loss": 0 * model.weight.sum()}, replace(EACH, steps=1, weight_decay=0.5), tmp_path)
    torch.testing.assert_close(model.weight.detach(), start * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("most", "same"), [(1.0, True), (1e9, False)])
def test_a_huge_gradient_counts_like_a_large_one_where_it_is_cut(tmp_path: Path, most: float, same: bool) -> None:
    ends = []
    for scale in (100.0, 1e5):
        model, plain = _problem()

        def objective(step: int, micro: int, plain: Objective = plain, scale: float = scale) -> dict[str, torch.Tensor]:
            return {"loss": plain(step, micro)["loss"] * (1.0 if step else scale)}

        run_loop(model, objective, replace(CONFIG, average=0.0, max_grad_norm=most), tmp_path / str(scale))
        ends.append(model.weight.detach())
    assert torch.allclose(*ends, atol=1e-4) is same


def test_checkpoints_are_told_by_their_number(tmp_path: Path) -> None:
    for step in (999000, 999500, 1000000):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text("{}")
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step-1000000"


def test_it_learns_where_the_network_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(loop, "accelerator_on", lambda device: asked.append(device) or accelerator_on(device))
    model, objective = _problem()
    run_loop(model, objective, replace(CONFIG, steps=1), tmp_path)
    assert asked == [next(model.parameters()).device]


def test_an_accelerator_is_of_the_device_that_is_asked_for_though_an_earlier_one_was_not() -> None:
    accelerator_on(torch.device("cpu"))
    PartialState._shared_state["device"] = torch.device("meta")  # as if it had been another
    assert accelerator_on(torch.device("cpu")).device.type == "cpu"
