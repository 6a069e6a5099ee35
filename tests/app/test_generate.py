"""What `generate` does beside drawing."""

from pathlib import Path

import pytest

import anomalydiffusion as ad
from anomalydiffusion.app import generate as command
from anomalydiffusion.core.errors import PriorError


def test_a_full_run_is_told_without_a_prior(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(order: object) -> None:
        raise PriorError("the prior is gone")

    monkeypatch.setattr(command, "Drawer", gone)
    before = (made / "run" / "manifest.jsonl").read_bytes()
    kept = [record for record in ad.generate(made / "run", 2, quiet=True) if record["accepted"]]
    assert len(kept) == 4 and (made / "run" / "manifest.jsonl").read_bytes() == before
    with pytest.raises(PriorError, match="gone"):
        ad.generate(made / "run", 3, quiet=True)
