"""What an opened run says: its settings, its split, and the command line that is being noted in it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anomalydiffusion.app.settings import Settings, resolve
from anomalydiffusion.core.config import read_toml
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import plain
from anomalydiffusion.data.split import from_json

__all__ = ["Key", "among", "chosen", "library_versions", "own_words", "run_settings", "run_split", "typed"]

Key = tuple[str, str]
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")


def typed(name: str) -> str:
    """The command line as it was typed, or the function's name when called from Python."""
    if not Path(sys.argv[0]).name.startswith("anomalydiffusion") or "studio" in sys.argv[1:2]:  # whose words may hold a password
        return f"# Python: {name}(...)"
    return shlex.join(["anomalydiffusion", *sys.argv[1:]])


def library_versions() -> dict[str, str]:
    """The versions of what a run depends on most."""
    return {name: version(name) for name in LIBRARIES}


def own_words(run: Run) -> dict[str, Any]:
    """What a run's config.toml says; of the prior that it adapted, where that lies now: the run may have been moved."""
    own = read_toml(run.config)
    return {**own, "prior": str(run.prior.resolve())} if "adapt" in own and run.prior.is_dir() else own


def run_settings(run: Run, **given: Any) -> Settings:
    """The run's own settings with what was given on top. Raises `ConfigError`, which names the run's file where that is refused, and
    `RunError` where its training never began.
    """
    if not run.config.is_file() and not run.split.is_file():
        raise RunError(f"{run.folder}: nothing was learned here yet; type its train command again")
    own = own_words(run)
    try:
        return resolve(base=own, **given)
    except ConfigError:
        try:
            resolve(base=own)
        except ConfigError as error:
            raise ConfigError(f"{run.config}: {error}") from error
        raise


def run_split(run: Run) -> Split:
    """The run's split. Raises `RunError` where its file is missing or damaged."""
    try:
        record = json.loads(run.split.read_text(encoding="utf-8"))
        return from_json(record, Path(record["root"]))
    except DataError as error:
        raise DataError(f"{run.split}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{run.split}: missing or damaged ({error}); train again into another folder") from error


def chosen(split: Split, product: Sequence[str] | None, defect: Sequence[str] | None) -> list[Key]:
    """The (product, defect) of a split that were asked for, or all (`among`)."""
    return among(sorted({shot.key for shot in split.shots}), product, defect)


def among(keys: Sequence[Key], product: Sequence[str] | None, defect: Sequence[str] | None) -> list[Key]:
    """Those of some (product, defect) that were asked for, or all. Raises `ConfigError` on an unknown name, and where no product has
    such a defect.
    """
    wanted = [{plain(name): name for name in some or ()} for some in (product, defect)]  # however accents were typed
    for number, (asked, what) in enumerate(zip(wanted, ("product", "defect"), strict=True)):
        known = {key[number] for key in keys}
        if missing := asked.keys() - set(map(plain, known)):
            raise ConfigError(f"unknown {what} '{asked[min(missing)]}'; this run knows {', '.join(sorted(known))}")
    found = [key for key in keys if all(not asked or plain(name) in asked for asked, name in zip(wanted, key, strict=True))]
    if keys and not found:
        raise ConfigError(f"no {' or '.join(defect or ())} of {' or '.join(product or ())}; there are {', '.join(map('/'.join, keys))}")
    return found
