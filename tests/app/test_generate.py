"""What `generate` does beside drawing."""

from pathlib import Path

import pytest
import torch

import anomalydiffusion as ad
from anomalydiffusion.app import generate as command
from anomalydiffusion.core.errors import ConfigError, PriorError
from tests.app.conftest import Spoken


def test_a_full_run_is_told_without_a_prior(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(order: object) -> None:
        raise PriorError("the prior is gone")

    monkeypatch.setattr(command, "Drawer", gone)
    before = (made / "run" / "manifest.jsonl").read_bytes()
    kept = [record for record in ad.generate(made / "run", 2, quiet=True) if record["accepted"]]
    assert len(kept) == 4 and (made / "run" / "manifest.jsonl").read_bytes() == before
    with pytest.raises(PriorError, match="gone"):
        ad.generate(made / "run", 3, quiet=True)


def test_without_a_compiler_nothing_is_compiled_and_nothing_lost(made: Path, spoken: Spoken) -> None:
    before = (made / "run" / "manifest.jsonl").read_bytes()
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        code, said = spoken("generate", made / "run", "--num", 3, "--compile")
        assert code == 2 and "compiling the denoiser for this machine" in said
        assert said.splitlines()[-1].startswith("error: --compile: torch cannot compile for this cpu")
        assert said.rstrip().endswith("install g++, or leave --compile away")
        with pytest.raises(ConfigError, match="leave --compile away"):
            ad.AnomalyDiffusionPipeline.from_pretrained(made / "run", compile=True)
    assert (made / "run" / "manifest.jsonl").read_bytes() == before
