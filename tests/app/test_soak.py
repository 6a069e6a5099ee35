"""What the soak bench calls flat, and what it calls whole; benchmarks/soak.py itself runs for hours."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import soak

    return soak


def test_growth_is_told_from_noise_and_from_outliers(soak: ModuleType) -> None:
    x = np.arange(0, 20_000, 10)
    noise = np.random.default_rng(0).normal(0, 20, x.size)
    noise[::50] += 3000  # a worker that is beginning
    still, growing, falling = (soak.trend(x, 1000 * (1 + share * x / x[-1]) + noise) for share in (0.0, 0.12, -0.12))
    assert still.flat and still.lasting and abs(still.growth) < 0.01 and still.low < 0 < still.high
    assert not growing.flat and growing.growth == pytest.approx(0.12, abs=0.01) and growing.low > 0.05
    assert falling.flat and not falling.lasting
    assert still.noise == pytest.approx(0.0135, abs=0.003)  # 20 of 1000, by the median
    few = soak.trend([1, 2, 3, 4], [4.0, 2.4, 3.2, 2.9])  # falls by a quarter, which four points cannot tell from chance
    assert few.growth < -0.05 and few.lasting
    assert soak.trend([1, 2], [1, 2]) is None and soak.trend([], []) is None


def test_growth_in_one_command_is_not_that_from_command_to_command(soak: ModuleType) -> None:
    x, command = np.arange(1000), np.arange(1000) // 100
    steps, saw = 100.0 + command, 100 + (x % 100) * 0.05
    assert soak.inner_growth(x, steps, command) == 0 and soak.trend(x, steps).growth > 0.08
    assert soak.inner_growth(x, saw, command) == pytest.approx(0.5, abs=0.05) and abs(soak.trend(x, saw).growth) < 0.05
    assert soak.inner_growth([1, 2], [5.0, 5.0], [1, 2]) is None


def test_samples_count_after_a_warm_up_and_with_all_workers(soak: ModuleType) -> None:
    def sample(pairs: int, workers: int = 2) -> dict:
        return {"event": "sample", "pairs": pairs, "workers": workers, "time": float(pairs) / 2}

    noted = [{"event": "begin", "pairs": 0}, sample(5), sample(10), sample(20), {"event": "kill", "pairs": 25}, sample(30), sample(40, 1),
             sample(50), sample(70)]  # fmt: skip
    found = soak.settled(noted, 10, 2)
    assert [(each["pairs"], each["stretch"]) for each in found] == [(10, 1), (20, 1), (50, 2), (70, 2)]
    assert soak.rates(found) == ([15.0, 60.0], [2.0, 2.0])


def test_what_is_missing_double_or_left_over_is_found(soak: ModuleType, made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    assert soak.missing(run, 2) == []
    assert len(soak.missing(run, 3)) == 2 and len(soak.missing(run, 1)) == 2
    manifest = run / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    first = json.loads(lines[0])
    manifest.write_text("\n".join([*lines, lines[1], "{half", ""]))
    (run / first["image"]).write_bytes(b"half")
    (run / first["image"]).with_name(".part-x.png").touch()
    found = soak.missing(run, 2)
    assert len(found) == 5 and all(any(word in each for each in found) for word in ("damaged", "there 2 times", "not what", "half written"))


def test_kills_are_of_both_kinds_and_the_same_each_time(soak: ModuleType) -> None:
    from argparse import Namespace

    given = Namespace(seed=3, num=1000, kills=40)
    found = soak.schedule(given)
    assert found == soak.schedule(given) and [at for at, _ in found] == sorted({at for at, _ in found})
    assert [what for _, what in found].count("command") == 20
