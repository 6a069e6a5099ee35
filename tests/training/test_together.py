"""Several processes learn what one learns, whoever computed which part of a step."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.training.loop import LoopConfig, latest_checkpoint, run_loop
from anomalydiffusion.training.together import Together

LEARN = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from tests.training.test_together import learn
torch.set_num_threads(1)
together = Accelerator(cpu=True)
learn(Path(sys.argv[1]), together, int(sys.argv[2]))
together.end_training()  # else threads that still wait for the other process may abort this one as it ends
"""
CONFIG = LoopConfig(steps=12, learning_rate=0.05, warmup=2, checkpointing_steps=4, average=0.9, gradient_accumulation_steps=4, log_every=3)


def learn(folder: Path, accelerator, until: int = 1000) -> None:
    """Fit a small network, as far as to step `until`; what was learned and reported goes to files."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    calls, said = iter(range(1000)), []
    begun = int(found.name[5:]) if (found := latest_checkpoint(folder / "steps")) else 0

    def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(100 * step + micro))
        return {"loss": (model(x) - x[:, :2]).square().mean()}

    learned = run_loop(
        model, objective, CONFIG, folder / "steps", accelerator=accelerator, stop=lambda: begun + next(calls) >= until,
        progress=lambda step, means: said.append((step, means["loss"])),
    )  # fmt: skip
    (folder / f"rank-{accelerator.process_index}.pt").unlink(missing_ok=True)
    torch.save([*learned.state_dict().values(), torch.tensor(said)], folder / f"rank-{accelerator.process_index}.pt")


def _launch(folder: Path, count: int, until: int = 1000) -> list[list[torch.Tensor]]:
    """What each of `count` processes learned."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [  # the launcher tells nothing where there is one
        subprocess.Popen(
            [sys.executable, "-c", LEARN, str(folder), str(until)],
            env={**os.environ, **({**told, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})},
        )
        for rank in range(count)
    ]
    assert [process.wait(240) for process in processes] == [0] * count
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(count)]


def test_two_processes_learn_and_report_what_one_does_and_each_goes_on_from_the_others(tmp_path: Path) -> None:
    ((*alone, said),) = _launch(tmp_path / "alone", 1)
    (*first, reported), (*second, silent) = _launch(tmp_path / "both", 2)
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert torch.equal(b, c)
    torch.testing.assert_close(said, reported, rtol=0, atol=1e-5)
    assert len(said) == 4 and len(silent) == 0

    _launch(tmp_path / "changing", 2, until=5)
    assert latest_checkpoint(tmp_path / "changing" / "steps").name == "step-000005"
    _launch(tmp_path / "changing", 1, until=9)
    (*mixed, _), _ = _launch(tmp_path / "changing", 2)
    for a, b in zip(alone, mixed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_more_processes_than_parts_of_a_step_are_refused() -> None:
    class Many:
        num_processes, process_index = 3, 0

    with pytest.raises(ConfigError, match=r"3 processes share .* there are 2: give gradient_accumulation_steps = 3 or more"):
        Together(Many(), 2)
    assert [list(Together(type("P", (), {"num_processes": 3, "process_index": rank})(), 7).mine) for rank in range(3)] == [
        [0, 3, 6], [1, 4], [2, 5],
    ]  # fmt: skip
