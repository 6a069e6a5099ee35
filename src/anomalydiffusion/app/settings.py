"""Every setting of a run in one place: presets, a TOML file, the command line; the later wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from anomalydiffusion.app.trackers import Tracker
from anomalydiffusion.conditioning.adapter import AdapterConfig
from anomalydiffusion.core.config import digest, dumps, from_dict, merge, read_toml, to_dict
from anomalydiffusion.core.crops import WHOLE
from anomalydiffusion.core.devices import find_device, find_dtype
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.names import shown
from anomalydiffusion.downstream.classifiers import PRESETS as CLASSIFIERS
from anomalydiffusion.downstream.classifiers import ClassifierConfig
from anomalydiffusion.downstream.detectors import PRESETS as DETECTORS
from anomalydiffusion.downstream.detectors import DetectorConfig
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.masks.learned import LearnedConfig
from anomalydiffusion.masks.matched import MatchedConfig
from anomalydiffusion.masks.warped import WarpedConfig
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.quality.gate import GateConfig
from anomalydiffusion.training.adapt import AdaptConfig
from anomalydiffusion.training.loop import LoopConfig
from anomalydiffusion.training.recipes import TrainConfig
from anomalydiffusion.training.shots import PoolConfig

__all__ = ["PRESETS", "Drawing", "Kind", "MaskConfig", "Settings", "check_steps", "placed", "prior_of", "resolve", "to_toml"]

# The paper's values; where it names none, those of its released code (rate, threshold and border of masks, steps of masks).
_WHOLE = {"crops": 4096, "ratio": [WHOLE, WHOLE], "light": 0.0, "together": True}
_PAPER: dict[str, Any] = {
    "train": {
        "batch_size": 4, "outside": 0.0, "normalise": False, "condition_noise": 0.0,
        "gradient_checkpointing": True,
        "adapter": {"anomaly_tokens": 8, "spatial_tokens": 4, "backbone": "resnet50", "initial_word": "anomaly", "lora_rank": 0},
        "pool": {**_WHOLE, "ratio": [2.0, 64.0]},  # what is longer than a 64th of the picture is seen in the whole of it, too
        "loop": {"steps": 300_000, "learning_rate": 0.02, "checkpointing_steps": 2000, "mixed_precision": "no"},
    },
    "masks": {
        "source": "learned",
        "learned": {"steps": 100, "guidance": 5.0, "threshold": 0.9, "frame": "image", "area": [0.0, math.inf], "border": 1 / 3},
        "train": {
            "batch_size": 4, "gradient_checkpointing": True,
            "adapter": {"anomaly_tokens": 4, "prompt": "a photo of {}", "initial_word": "anomaly", "lora_rank": 0},
            "pool": _WHOLE, "loop": {"steps": 5000, "learning_rate": 0.02, "checkpointing_steps": 500, "mixed_precision": "no"},
        },
    },
    "generate": {
        "steps": 200, "eta": 1.0, "guidance": 1.0, "strength": 1.0, "ratio": [WHOLE, WHOLE], "together": True, "condition_noise": 0.0,
        "reweight": "paper", "match": False, "grain": "off",
    },
    "detector": to_dict(DETECTORS["paper"]), "classifier": to_dict(CLASSIFIERS["paper"]),
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": _PAPER,
    "fast": {"train": {"loop": {"steps": 300}}, "generate": {"steps": 10}},
}


Kind = Literal["warped", "matched", "learned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskConfig:
    """Where masks come from: real ones, warped or put where they fit; or the prior, which `train` teaches the shots' masks first.

    "auto": matched masks for those defect types whose defects fit their labels clearly better there than under warped ones.
    """

    source: Literal["warped", "matched", "auto", "learned"] = "auto"
    matched_for: tuple[str, ...] | None = None  # with "auto": "product/defect" of those that have matched ones; None = found (`app.fits`)
    alike: int | None = None  # of so many normal images and so many places on it those that are most like a shot's; None = the first
    warped: WarpedConfig = field(default_factory=WarpedConfig)
    matched: MatchedConfig | None = None  # None = its defaults
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            masked=False,
            condition_noise=0.0,
            pool=PoolConfig(crops=512, ratio=(WHOLE, WHOLE), minimum_side=8, light=0.0),
            adapter=AdapterConfig(anomaly_tokens=4, spatial_tokens=0, prompt="a binary mask of {}"),
            loop=LoopConfig(steps=500, learning_rate=1e-3, warmup=20, checkpointing_steps=100, mixed_precision="auto"),
        )
    )

    def __post_init__(self) -> None:
        if self.source not in ("warped", "matched", "auto", "learned"):
            raise ConfigError(f"mask source '{self.source}' is not known; known: warped, matched, auto, learned")
        if self.matched_for is not None and self.source != "auto":
            raise ConfigError(f'matched_for is for source = "auto"; this one is "{self.source}", for all defect types')
        if self.alike is not None and not 1 <= self.alike <= 1000:
            raise ConfigError(f"alike = {self.alike}: expected 1..1000, or leave it away")
        if self.train.masked or self.train.adapter.spatial_tokens:
            raise ConfigError("train: masks are learned without a mask; give masked = false, spatial_tokens = 0")

    def kind(self, key: tuple[str, str]) -> Kind:
        """Where a type's masks come from; warped ones where that is left open and not found yet (`app.fits`)."""
        if self.source != "auto":
            return self.source
        return "matched" if "/".join(key) in (self.matched_for or ()) else "warped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `config.toml` of a run holds."""

    preset: str = "default"
    prior: str = "tiny"
    seed: int = 0
    rotation: int = 0  # thirds by which each defect type's groups are turned before its shots are taken
    device: str = "cpu"
    dtype: str = "float32"  # of the prior's networks; what is learned is always float32
    compile: bool | None = None  # the denoiser, where pairs are drawn: minutes at the start with a large prior, then faster; None = not
    report_to: Tracker = "tensorboard"  # where a training's loss goes, beside train_log.jsonl
    preview_steps: int | None = None  # training steps between sheets of what is drawn so far, RUN/previews; None = none
    adapt: AdaptConfig | None = None  # how the prior learns the run's own normal images before anything else; None = it does not
    train: TrainConfig = field(default_factory=TrainConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed}: expected a number of at most 63 bits")
        if self.preview_steps is not None and self.preview_steps < 1:
            raise ConfigError(f"preview_steps = {self.preview_steps}: expected at least 1, or leave it away")
        if self.compile and (self.generate.reuse or 1) > 1:
            raise ConfigError("a compiled denoiser is one piece and remembers nothing: give compile or [generate] reuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What decides how a pair looks and whether it is kept, beside prior and adapter; its digest stands in the manifest."""

    seed: int
    dtype: str
    generate: GenerateConfig
    masks: MaskConfig
    gate: GateConfig
    normals: str = ""  # a folder of the user's; "" = the run's own
    given_masks: str = ""
    mask_adapter: str = ""  # the digest of what draws learned masks
    regions: str | None = None  # the digest of the drawn regions that proposals keep to

    @classmethod
    def of(
        cls, settings: Settings, normals: Path | None, given_masks: Path | None, mask_adapter: str, regions: str | None = None
    ) -> Drawing:  # fmt: skip
        """Leaves out what changes no pair: how many are drawn at once, and how often."""
        plain = GenerateConfig()
        return cls(
            seed=settings.seed, dtype=settings.dtype, masks=settings.masks, gate=settings.gate,
            generate=replace(settings.generate, batch_size=plain.batch_size, attempts=plain.attempts),
            normals=str(normals.resolve()) if normals else "", given_masks=str(given_masks.resolve()) if given_masks else "",
            mask_adapter="" if given_masks else mask_adapter, regions=None if given_masks else regions,
        )  # fmt: skip

    @property
    def laying(self) -> str:
        """The digest of what decides where real defects are laid on normal images, and how they are fitted there."""
        return digest(replace(self, dtype="", gate=GateConfig(), generate=GenerateConfig(seam=self.generate.seam)))

    @property
    def settings_digest(self) -> str:
        """The digest of what decides how a pair's picture looks: not of the gate, which only judges it."""
        return digest(replace(self, gate=GateConfig()))


def prior_of(settings: Settings) -> LatentPrior:
    """Load the prior where and how the settings say."""
    return load_prior(settings.prior, device=settings.device, dtype=find_dtype(settings.dtype, find_device(settings.device)))


def placed(settings: Settings) -> Settings:
    """The same settings with a prior that lies on this disk named from its root: a run may be used from another place."""
    path = Path(settings.prior).expanduser()
    return replace(settings, prior=str(path.resolve())) if settings.prior != "tiny" and path.exists() else settings


def check_steps(settings: Settings, prior: LatentPrior) -> None:
    """Raises `ConfigError` where more steps are to be walked than a prior has."""
    walked = {"--steps": settings.generate.steps}
    if settings.masks.source == "learned":
        walked["[masks.learned] steps ="] = settings.masks.learned.steps
    for name, steps in walked.items():
        if steps > len(prior.alphas):
            raise ConfigError(f"{name} {steps}: the prior has {len(prior.alphas)} steps at most")


def resolve(preset: str | None = None, config: Path | str | None = None, base: Mapping[str, Any] | None = None, **given: Any) -> Settings:
    """Put settings together: preset, then `base` (a run's own), then the TOML file, then what was given (None = not given).

    Raises `ConfigError`, which names the file where that is what is refused.
    """
    from_file = read_toml(config) if config else {}
    name = preset or from_file.get("preset") or (base or {}).get("preset") or "default"
    if not isinstance(name, str) or name not in PRESETS:
        where = f"{config}: " if not preset and "preset" in from_file else ""
        raise ConfigError(f"{where}unknown preset {shown(name)}; known: {', '.join(PRESETS)}")
    if base and not preset and name != (own := base.get("preset", "default")):
        raise ConfigError(
            f"{config}: preset = {shown(name)}: this run began with '{own}', and has its own settings by now; name the values"
        )
    start = {**merge(PRESETS[name], {} if preset else (base or {})), "preset": name}
    told = {**merge(start, from_file), "preset": name}
    try:
        return from_dict(Settings, {**merge(told, given), "preset": name})
    except ConfigError as refused:
        found = _refusal(told)
        if config and found and not _refusal(start):
            raise ConfigError(f"{config}: {found}") from refused
        raise


def _refusal(values: dict[str, Any]) -> ConfigError | None:
    """Why these would be no settings, if they are not."""
    try:
        from_dict(Settings, values)
    except ConfigError as error:
        return error
    return None


def to_toml(settings: Settings | Drawing) -> str:
    """The settings as TOML; those of a run are ready to be read back by `resolve`."""
    return dumps(to_dict(settings)).strip() + "\n"
