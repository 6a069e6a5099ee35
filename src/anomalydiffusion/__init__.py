"""Learn industrial defects from a handful of images and generate exactly labelled new ones.

Names are handed on lazily: importing this package, and `anomalydiffusion --help`, loads neither torch nor diffusers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from anomalydiffusion.core.version import __version__

_DOOR = {
    "AnomalyDiffusionPipeline": "anomalydiffusion.app.pipeline",
    "DefectDataset": "anomalydiffusion.app.dataset",
    "add_generated": "anomalydiffusion.app.datamodule",
    "bench": "anomalydiffusion.app.bench",
    "check": "anomalydiffusion.data.check",
    "curate": "anomalydiffusion.app.curate",
    "demo": "anomalydiffusion.app.demo",
    "doctor": "anomalydiffusion.app.doctor",
    "evaluate": "anomalydiffusion.app.evaluate",
    "export": "anomalydiffusion.app.export",
    "generate": "anomalydiffusion.app.generate",
    "import_data": "anomalydiffusion.data.imports",
    "load_prior": "anomalydiffusion.priors.load",
    "masks": "anomalydiffusion.app.masks",
    "prior_convert": "anomalydiffusion.app.prior",
    "prior_info": "anomalydiffusion.app.prior",
    "prior_train": "anomalydiffusion.app.prior",
    "report": "anomalydiffusion.report.page",
    "studio": "anomalydiffusion.app.studio",
    "train": "anomalydiffusion.app.train",
}
__all__ = ["__version__", *_DOOR]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        return getattr(import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'anomalydiffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Command(ModuleType):
    """A floor that has a command's name, `masks` or `report`: calling it calls the command."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_DOOR[name]), name)(*args, **options)


class _Door(ModuleType):
    """This package: importing a floor puts it in the place of the command of its name, so it must be callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DOOR and isinstance(value, ModuleType):
            value.__class__ = _Command
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
