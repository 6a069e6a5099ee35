"""Draw another pair in the place of one: reject it by hand, and fill its place as `generate` does."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from anomalydiffusion.app.curate import decide
from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.app.settings import Drawing, to_toml
from anomalydiffusion.app.words import chosen
from anomalydiffusion.core.config import dumps, read_toml
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.generation.shards import slot_of

__all__ = ["redraw"]


def redraw(run: Path | str, image: str) -> list[str]:
    """Reject by hand the pair whose image the manifest names `image`, and return the words of the command that draws another.

    It draws with the settings that this pair was drawn with, written to RUN/studio/redraw.toml, and fills whatever else of the type is
    missing too. Raises `RunError` where the image is not in the manifest (any more), `ConfigError` where another attempt is kept in
    its place, and where the run's settings have got one since that this pair was drawn without.
    """
    opened = Run.open(Path(run))
    records = Manifest(opened.manifest).pairs()
    record = next((each for each in records if each["image"] == image), None)
    if record is None:
        raise RunError(f"{opened.folder / image}: is not in the manifest, or was judged meanwhile; look again")
    slot = slot_of(record)
    if not record["accepted"] and any(each["accepted"] and slot_of(each) == slot for each in records):
        raise ConfigError("another attempt is kept in its place; reject that one")
    drawn, given = read_toml(opened.folder / "settings" / f"{record['config_digest']}.toml"), opened.folder / "studio" / "redraw.toml"
    how = {name: drawn[name] for name in ("seed", "dtype", "generate", "masks", "gate")}
    how["generate"] = {name: value for name, value in drawn["generate"].items() if name not in ("batch_size", "attempts")}  # the run's own
    write_atomic(given, (dumps(how).strip() + "\n").encode())
    now = tomllib.loads(to_toml(Drawing.of(run_settings(opened, config=given), None, None, "")))
    if added := [name for part in ("generate", "masks", "gate") for name in _added(now[part], drawn[part], part)]:
        raise ConfigError(f"{image}: was drawn without {', '.join(added)}, which the run's config.toml has by now; take that out there")
    if record["accepted"]:
        decide(opened.folder, {image: False})
    own = [each for each in records if slot_of(each).key == slot.key]
    count = 1 + max(slot_of(each).index for each in own)
    attempts = 1 + max(int(each["attempt"]) for each in own) + run_settings(opened).generate.attempts
    places = [("--normals", drawn["normals"]), ("--masks", drawn["given_masks"])]
    return [
        "generate", str(opened.folder), "--num", str(count), "--attempts", str(attempts), "--config", str(given),
        *(word for option, folder in places if folder for word in (option, folder)), *chosen(["/".join(slot.key)]),
    ]  # fmt: skip


def _added(now: dict[str, Any], then: dict[str, Any], part: str) -> list[str]:
    """What a part of the settings names by now that it did not, as one would look for it in a file."""
    own = [f"[{part}] {name}" for name in sorted(set(now) - set(then))]
    within = [name for name, value in now.items() if isinstance(value, dict) and isinstance(then.get(name), dict)]
    return [*own, *(each for name in sorted(within) for each in _added(now[name], then[name], f"{part}.{name}"))]
