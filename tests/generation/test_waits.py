"""Between the steps of a drawing nothing waits for the device: no number is asked of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.overrides import TorchFunctionMode

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.priors.load import load_prior
from tests.conftest import build_prior_folder

KEY = ("plate", "hole")
ASK = {"item", "cpu", "numpy", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__", "equal", "allclose", "masked_select"}


class Waits(TorchFunctionMode):
    """Counts what a graphics card would have to finish its work for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ASK
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["sd", "inpainting"])
@pytest.mark.parametrize("changes", [{}, {"solver": "dpm", "graft": 0.5, "interpolate": 1.0}, {"strength": (0.5, 1.0)}, {"reuse": 2}])
def test_more_steps_ask_the_device_for_no_more_numbers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    prior = load_prior(str(build_prior_folder(tmp_path / "prior", family)))
    adapter = Adapter(prior, [KEY], AdapterConfig(), Origin(prior_digest=prior.digest)).eval()
    pixels = np.zeros((64, 64), bool)
    pixels[20:40, 20:44] = True
    normal, mask = np.full((64, 64, 3), 120, np.uint8), Mask(pixels_HW=pixels, origin="test")
    item = Item(key=KEY, normal_HWC=normal, normal="n.png", normal_sha256="", mask=mask, seed=1, start_HWC=normal, shot=(normal, mask),
                other=mask)  # fmt: skip

    def asked(steps: int) -> int:
        config = GenerateConfig(**{"steps": steps, "batch_size": 1, "strength": 1.0, **changes})
        with Waits() as waits:
            make_pairs(prior, adapter, [item], config)
        return waits.count

    few = asked(3)
    assert asked(9) == few > 0  # the picture itself is asked for at the end
