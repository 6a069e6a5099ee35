"""The tree of things that go wrong; every message says what was expected, what came, and what to do."""

from __future__ import annotations

__all__ = [
    "AnomalyDiffusionError", "BusyError", "ConfigError", "DataError", "ExtractorError", "GenerationError", "MaskError", "PriorError",
    "RunError", "SplitError", "TrainingError",
]  # fmt: skip


class AnomalyDiffusionError(Exception):
    """Anything that this package refuses or cannot do, in one line for the user."""


class ConfigError(AnomalyDiffusionError):
    """A setting is unknown, or its value makes no sense."""


class DataError(AnomalyDiffusionError):
    """A file or folder that the user gave cannot be used."""


class MaskError(DataError):
    """A mask marks nothing, or does not fit its image."""


class SplitError(DataError):
    """Shots, held-out images and normals cannot be kept apart."""


class PriorError(AnomalyDiffusionError):
    """A prior's files are missing, damaged or of another kind."""


class RunError(AnomalyDiffusionError):
    """A run folder is missing something, damaged, locked or of a newer version."""


class BusyError(RunError):
    """Another process works on what is wanted; it is free again when that one ends."""


class TrainingError(AnomalyDiffusionError):
    """Training cannot start or went wrong."""


class GenerationError(AnomalyDiffusionError):
    """Pairs could not be made."""


class ExtractorError(AnomalyDiffusionError):
    """A feature extractor's package or weights are missing, damaged or of another kind, or it is not made for the task."""
