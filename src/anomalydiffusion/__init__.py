"""Learn industrial defects from a handful of images and generate exactly labelled new ones.

Names are handed on lazily: importing this package, and `anomalydiffusion --help`, loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_DOOR = {
    "check": "anomalydiffusion.data.check",
}
__all__ = ["__version__", *_DOOR]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        return getattr(import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'anomalydiffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
