"""A command that is disturbed anywhere, and typed again, ends as an undisturbed one does; benchmarks/faults.py does it for hours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_whatever_befalls_a_command_nothing_is_lost(made: Path, tmp_path: Path) -> None:
    faults = ["sigkill", "sigterm", "moment", "full", "read-only", "clock", "power"]
    typed = [sys.executable, BENCHMARKS / "faults.py", "--work", tmp_path, "--base", made / "run", "--times", "2", "--no-page",
             "--fault", *faults]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in typed], capture_output=True, text=True, check=False, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [each["fault"] for each in found] == [fault for fault in faults for _ in range(2)]
    assert not any(each["problem"] or each["lost"] for each in found) and any(each["struck"] for each in found)
