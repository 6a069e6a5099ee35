"""`masks`: where masks come from, and what those of a run look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomalydiffusion.app.fits import settled
from anomalydiffusion.app.grounds import tell_grounds
from anomalydiffusion.app.learning import learn_masks
from anomalydiffusion.app.opened import Key, chosen, run_settings, run_split, typed
from anomalydiffusion.app.progress import bar, say
from anomalydiffusion.app.settings import check_steps, prior_of, to_toml
from anomalydiffusion.app.source import Source, shots_of
from anomalydiffusion.app.trackers import check_tracker
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import encode_png
from anomalydiffusion.core.runs import Run, write_atomic
from anomalydiffusion.generation.shards import next_batch, plan
from anomalydiffusion.report.sheets import Cell, contact_sheet, outlined, shaded
from anomalydiffusion.training.recipes import check_learnable

__all__ = ["masks"]

SHOWN = 8  # masks of one defect type on the sheet


def masks(run: Path | str, *, num: int = 8, source: str | None = None, product: Sequence[str] | None = None,
          defect: Sequence[str] | None = None, prior: str | None = None, config: Path | str | None = None, seed: int | None = None,
          device: str | None = None, dtype: str | None = None, quiet: bool = False) -> list[Path]:  # fmt: skip
    """Write the masks of each defect type's first `num` pairs to RUN/masks, as 8 bit PNG 0 / 255 of their normal images' size.

    `source` is "warped", "matched", "auto" or "learned"; learned masks are learned first, where that was not done yet. Source and
    settings of masks become the run's. In RUN/masks/sheet.png the first masks are drawn on their normal images, dark where none may lie:
    off the region that was drawn, or the object that was found. Where none is found, that is said.
    """
    if num < 1:
        raise ConfigError(f"--num {num}: expected at least 1")
    opened = Run.open(Path(run))
    settings = run_settings(opened, config=config, prior=prior, seed=seed, device=device, dtype=dtype, masks={"source": source})
    split = run_split(opened)
    keys = chosen(split, product, defect)
    with opened.lock():
        adapter = None
        if settings.masks.source == "learned":
            loaded = prior_of(settings)
            check_steps(settings, loaded)
            check_learnable(loaded, settings.masks.train)
            check_tracker(settings.report_to)
            of_the_run = replace(settings, seed=run_settings(opened).seed)  # --seed is for what is drawn
            adapter = learn_masks(opened, of_the_run, split.digest, shots_of(split), loaded, quiet)
        tell_grounds(split, keys, None, quiet=quiet)
        proposals = Source(split, settled(opened, settings, split, quiet=quiet), None, None, adapter)
        written: list[Path] = []
        slots = plan(keys, num)
        lines: dict[Key, list[Cell]] = {key: [] for key in keys}
        with bar("masks", len(slots), quiet=quiet) as shown:
            for task in next_batch([(slot, 0) for slot in slots], len(slots), settings.seed):
                slot, item = task.slot, proposals.item(task)
                path = opened.masks / slot.key[0] / slot.key[1] / f"{slot.index:06d}.png"
                write_atomic(path, encode_png(item.mask.pixels_HW))
                written.append(path)
                if slot.index < SHOWN:
                    ground = proposals.ground(slot.key, Path(item.normal), item.normal_sha256)
                    seen = item.normal_HWC if ground.all() else shaded(item.normal_HWC, ground)
                    lines[slot.key].append(outlined(str(slot.index), seen, item.mask.pixels_HW))
                shown.at(len(written), "/".join(slot.key))
        for old in {path for key in keys for path in (opened.masks / key[0] / key[1]).glob("[0-9]" * 6 + ".png")} - set(written):
            old.unlink()  # of an earlier call
        sheet = contact_sheet([("/".join(key), line) for key, line in lines.items()])
        write_atomic(opened.masks / "sheet.png", encode_png(sheet))
        if (known := run_settings(opened)).masks != settings.masks:
            write_atomic(opened.config, to_toml(replace(known, masks=settings.masks)).encode())
            whose = "" if settings.masks.source == "auto" else f"{settings.masks.source} "
            say(f"{opened.folder}: pairs are drawn on {whose}masks like these from now on", quiet=quiet)
        opened.update(command=typed("masks"))
    say(f"{len(written)} masks in {opened.masks}; the first of them drawn on their normal images: sheet.png", quiet=quiet)
    return written
