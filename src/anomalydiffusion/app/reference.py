"""Begin a run from one defect image, with nothing to train: its pairs look at that defect while they are drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anomalydiffusion.app.opened import library_versions, run_split
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import Settings, placed, prior_of, resolve, to_toml
from anomalydiffusion.app.source import shots_of
from anomalydiffusion.conditioning.adapter import Adapter, Origin
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.data.arrange import clean
from anomalydiffusion.data.folders import GOOD, images_in
from anomalydiffusion.data.split import single_split, to_json
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.training.recipes import Shots, measures

__all__ = ["begin_from_reference", "untrained"]

# Nothing is learned, so the condition is the defect's name alone, and what it looks like comes from the reference.
UNTRAINED: dict[str, Any] = {
    "train": {"adapter": {"anomaly_tokens": 1, "spatial_tokens": 0, "lora_rank": 0}},
    "generate": {"graft": 1.0, "condition_noise": 0.0},
}


def untrained(prior: LatentPrior, settings: Settings, shots: Shots, split_digest: str = "") -> Adapter:
    """An adapter that has learned nothing: the anomaly vector of each defect is the mean of its name's word embeddings."""
    origin = Origin(prior_digest=prior.digest, split_digest=split_digest, measures=measures(shots))
    adapter = Adapter(prior, sorted(shots), settings.train.adapter, origin).eval()
    with torch.no_grad():
        for (_, defect), own in zip(adapter.keys, adapter.tokens.vectors, strict=True):
            if words := prior.tokenize(defect.replace("_", " ")):
                own.copy_(prior.word_embeddings(words).mean(0, keepdim=True).expand_as(own))
    return adapter


def begin_from_reference(
    folder: Path, reference: Path, mask: Path | None, normals: Path | None, *, product: Sequence[str] | None = None,
    defect: Sequence[str] | None = None, prior: str | None = None, config: Path | str | None = None, device: str | None = None,
    dtype: str | None = None, dry_run: bool = False, quiet: bool = False,
) -> Run | None:  # fmt: skip
    """Make a run of one defect image, its mask and a folder of normal images; one that is there is gone on with.

    `product` and `defect` name what it shows, one each; the prior draws from the name of the defect, so a plain word is best. Raises
    `ConfigError` on what is missing or cannot be a name, `RunError` where `folder` holds a run of anything else. With `dry_run`
    nothing is written, and nothing comes back but a run that is there.
    """
    if mask is None:
        raise ConfigError(f"--reference {reference}: give its mask too, --reference-mask, white where the defect is")
    if (run := _begun(folder, reference)) is not None and run.adapter.exists():
        _refuse_others(run, mask, normals)
        return run
    if normals is None:
        raise ConfigError(f"--reference {reference}: give a folder of normal images to draw on, --normals")
    names = [_name(given, what) for given, what in ((product, "product"), (defect, "defect"))]
    settings = placed(resolve(config=config, base=UNTRAINED, prior=prior, device=device, dtype=dtype))
    split, root = single_split(reference, mask, normals, *names)
    if dry_run:
        say(f"plan: a run of one {names[1]} of {names[0]}, nothing to train; {len(split.normals)} normal images", quiet=quiet)
        return None
    loaded = prior_of(settings)
    run = Run.create(folder, reference=split.sha256[split.shots[0].path])
    with run.lock():
        write_atomic(run.split, (json.dumps(to_json(split, root), indent=1, ensure_ascii=False) + "\n").encode())
        write_atomic(run.config, to_toml(settings).encode())
        untrained(loaded, settings, shots_of(split), split.digest).save(run.adapter)
        run.update(
            prior=settings.prior, prior_digest=loaded.digest, split_digest=split.digest, status="trained", versions=library_versions(),
        )  # fmt: skip
    say(f"{folder}: a run of one {names[1]} of {names[0]}, nothing to train; {len(split.normals)} normal images", quiet=quiet)
    return run


def _begun(folder: Path, reference: Path) -> Run | None:
    """The run in a folder, which must be of this reference; None where there is none."""
    if not (folder / "run.json").exists():
        return None
    run = Run.open(folder)
    if "reference" not in run.record:
        raise RunError(f"{folder}: is a trained run; --reference begins one of its own, give a new folder")
    try:
        same = digest_file(reference) == run.record["reference"]
    except OSError as error:
        raise DataError(f"{reference}: cannot be read ({error.strerror})") from error
    if not same:
        raise RunError(f"{folder}: was begun from another picture than {reference}; give a new folder")
    return run


def _refuse_others(run: Run, mask: Path, normals: Path | None) -> None:
    """Refuse a mask, or normal images, other than a run was begun with: it would go on with its own."""
    split = run_split(run)
    own = {split.sha256[shot.mask_path] for shot in split.shots}, {split.sha256[normal.path] for normal in split.normals}
    try:
        if digest_file(mask) not in own[0]:
            raise RunError(f"{run.folder}: was begun with another mask than {mask}; give a new folder")
        if normals is not None and {digest_file(path) for path in images_in(normals)} != own[1]:
            raise RunError(f"{run.folder}: was begun with other normal images than those in {normals}; give a new folder")
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _name(given: Sequence[str] | None, what: str) -> str:
    if given is not None and len(given) > 1:
        raise ConfigError(f"--{what}: a reference shows one; give one name")
    name = given[0] if given else what
    if clean(name) != name or name.casefold() == GOOD:
        raise ConfigError(f"--{what} {name!r}: cannot be the name of a folder of defects; give a plain word")
    return name
