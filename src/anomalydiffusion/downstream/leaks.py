"""The leak guard: nothing that a detector is tested on may have been used to make or to train anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomalydiffusion.core.errors import SplitError
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.types import Normal, Shot, Split
from anomalydiffusion.data.copies import near_copies
from anomalydiffusion.data.folders import group_named, product_folders, read_groups
from anomalydiffusion.data.looks import Seen, see
from anomalydiffusion.downstream.samples import Generated

__all__ = ["guard"]


def guard(split: Split, generated: Sequence[Generated], root: Path) -> None:
    """Refuse a comparison whose held-out images are known to what is compared; `root` is the data set's folder.

    Looked for, by content hash, by likeness (a picture saved anew, `data.copies`) and by group (another photograph of one
    part, from `groups.csv` as it is now, too): held-out images among the shots and the normals; among the images that pairs
    were made of; among the pairs' own images. Raises `SplitError` naming both files, or the picture or mask that was changed since
    the split was made: figures under two truths do not compare.
    """
    held: list[Shot | Normal] = [*split.held_out, *split.held_out_normals]
    if not held:
        return  # and nothing is compared
    learned: list[Shot | Normal] = [*split.shots, *split.normals]
    _groups(held, learned, generated, root)
    for file, then in split.sha256.items():
        if digest_file(file) != then:
            raise SplitError(f"{file}: changed since the split was made; restore it, or train again into another folder")
    by_content = {split.sha256[item.path]: item.path for item in held}
    sources = {path: digest_file(path) for path in {path for pair in generated for path in pair.sources} if path.is_file()}
    for pair in generated:
        made_of = [pair.normal_sha256, *(sources[path] for path in pair.sources if path in sources)]
        if (path := next((by_content[each] for each in made_of if each in by_content), None)) is not None:
            raise SplitError(f"{path}: held out, but {pair.image} was made of it; generate from training images, or remove that pair")
        if (path := by_content.get(digest_file(pair.image))) is not None:
            raise SplitError(f"{path}: held out, but {pair.image} is the same file; remove that pair")
    used = list(dict.fromkeys([*(item.path for item in learned), *sorted(sources)]))
    seen: dict[Path, Seen] = {path: see(path, is_mask=False) for path in [*used, *(item.path for item in held)]}
    seen |= {pair.image: see(pair.image, is_mask=False) for pair in generated}
    tested = [item.path for item in held]
    for one, other in near_copies(used, tested, seen):
        raise SplitError(f"{other}: held out, but nearly the same picture as {one}, which was learned from; remove one, or group them")
    for one, other in near_copies([pair.image for pair in generated], tested, seen):
        raise SplitError(f"{other}: held out, but the generated {one} is nearly the same picture; remove that pair")


def _groups(held: Sequence[Shot | Normal], learned: Sequence[Shot | Normal], generated: Sequence[Generated], root: Path) -> None:
    """Refuse two photographs of one part on both sides, by the groups of the split and by those that the data set names now."""
    folders = product_folders(root)
    tables = {name: (folder, read_groups(folder)) for name, folder in folders.items()}

    def group_now(product: str, path: Path) -> str | None:
        return group_named(path, *tables.get(product, (root, {})))

    by_group: dict[tuple[str, str], Path] = {}
    for item in held:
        for name in {item.group, group_now(item.product, item.path) or item.group}:
            by_group.setdefault((item.product, name), item.path)
    used = [(item.product, item.path, name, "was learned from") for item in learned
            for name in {item.group, group_now(item.product, item.path) or item.group}]  # fmt: skip
    used += [(pair.product, path, name, f"{pair.image.name} was made of") for pair in generated for path in pair.sources
             if (name := group_now(pair.product, path) or "")]  # fmt: skip
    for product, path, group, how in used:
        if (other := by_group.get((product, group))) is not None:
            raise SplitError(f"{other}: held out, but {path}, which {how}, shows the same part (group {group}); train again, "
                             "so that a new split keeps them on one side")  # fmt: skip
