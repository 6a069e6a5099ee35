"""Every setting of a run in one place: presets, a TOML file, the command line; the later wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomalydiffusion.core.config import dumps, from_dict, merge, read_toml, to_dict
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.downstream.classifiers import ClassifierConfig
from anomalydiffusion.downstream.detectors import DetectorConfig
from anomalydiffusion.generation.pairs import GenerateConfig
from anomalydiffusion.masks.warped import WarpedConfig
from anomalydiffusion.quality.gate import GateConfig
from anomalydiffusion.training.recipes import TrainConfig

__all__ = ["PRESETS", "Drawing", "Settings", "resolve", "to_toml"]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"train": {"loop": {"steps": 300}}, "generate": {"steps": 10}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `config.toml` of a run holds."""

    preset: str = "default"
    prior: str = "tiny"
    seed: int = 0
    rotation: int = 0  # thirds by which each defect type's groups are turned before its shots are taken
    device: str = "cpu"
    train: TrainConfig = field(default_factory=TrainConfig)
    masks: WarpedConfig = field(default_factory=WarpedConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What decides how a pair looks and whether it is kept, beside prior and adapter; its digest stands in the manifest."""

    seed: int
    generate: GenerateConfig
    masks: WarpedConfig
    gate: GateConfig
    normals: str = ""  # a folder of the user's; "" = the run's own
    given_masks: str = ""

    @classmethod
    def of(cls, settings: Settings, normals: Path | None, given_masks: Path | None) -> Drawing:
        """Leaves out what changes no pair: how many are drawn at once, and how often."""
        plain = GenerateConfig()
        return cls(
            seed=settings.seed, masks=settings.masks, gate=settings.gate,
            generate=replace(settings.generate, batch_size=plain.batch_size, attempts=plain.attempts),
            normals=str(normals.resolve()) if normals else "", given_masks=str(given_masks.resolve()) if given_masks else "",
        )  # fmt: skip


def resolve(preset: str | None = None, config: Path | None = None, base: Mapping[str, Any] | None = None, **given: Any) -> Settings:
    """Put settings together: preset, then `base` (a run's own), then the TOML file, then what was given (None = not given)."""
    from_file = read_toml(config) if config else {}
    name = preset or from_file.get("preset") or (base or {}).get("preset") or "default"
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    start = merge(PRESETS[name], {} if preset else (base or {}))
    return from_dict(Settings, {**merge(merge(start, from_file), given), "preset": name})


def to_toml(settings: Settings | Drawing) -> str:
    """The settings as TOML; those of a run are ready to be read back by `resolve`."""
    return dumps(to_dict(settings)).strip() + "\n"
