"""Find pictures of a data set that are the same picture: byte for byte, or saved anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.core.types import Normal, Shot
from anomalydiffusion.data.folders import GOOD
from anomalydiffusion.data.looks import THUMB, Seen
from anomalydiffusion.data.split import Sides

__all__ = ["Level", "Say", "check_copies", "check_near_copies", "near_copies"]

Level = Literal["error", "warning", "note"]
Say = Callable[[Level, Path, str, str], None]

SAME_MEAN, SAME_MOST, SAME_DETAIL = 1.0, 6.0, 0.8  # a copy's thumbnail: mean and largest difference in grey levels; its detail
LOOKED = 4  # learned pictures whose detail is compared with that of one that is tested


def _paths(*items: Iterable[Shot | Normal]) -> list[Path]:
    return [item.path for some in items for item in some]


def check_copies(sides: list[Sides], seen: dict[Path, Seen], paths: Iterable[Path], say: Say) -> None:
    """Report files of the same content: an error where they stand on both sides of the split or are once normal, once a defect."""
    learned = {path for side in sides for path in _paths(side.shots, side.normals)}
    tested = {path for side in sides for path in _paths(side.held_out, side.held_out_normals)}
    by_content: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if seen[path].sha256:
            by_content[seen[path].sha256].append(path)
    for first, *others in by_content.values():
        everyone = {first, *others}
        across = bool(everyone & learned and everyone & tested)
        mixed = len({path.parent.name == GOOD for path in everyone}) == 2
        where = ": once normal, once a defect" if mixed else ": on both sides of the split" if across else ""
        for path in others:
            beside = first.relative_to(first.parents[3]).as_posix()
            say("error" if across or mixed else "warning", path, f"the same content as {beside}{where}", "remove one of them")


def _detail(path: Path, size: tuple[int, int]) -> np.ndarray:
    """What the thumbnail does not show, unit length: noise and texture, which two photographs never share."""
    grey = Image.fromarray(read_image(path)).convert("L").resize(size)
    smooth = grey.resize((THUMB, THUMB), Image.Resampling.BOX).resize(size)
    rest = np.asarray(grey, dtype=np.float32) - np.asarray(smooth, dtype=np.float32)
    return rest / max(float(np.linalg.norm(rest)), 1e-6)


def near_copies(learned: Sequence[Path], tested: Sequence[Path], seen: Mapping[Path, Seen]) -> Iterator[tuple[Path, Path]]:
    """(learned, tested) for each tested picture that is a learned one saved anew: alike as a thumbnail and in its detail.

    Files of the same content are left out, `check_copies` has them; so are those that cannot be read.
    """
    learned, tested = ([path for path in paths if not seen[path].fault] for paths in (learned, tested))
    if not learned or not tested:
        return
    learned_ND, tested_ND = (np.stack([seen[path].thumb for path in paths]) for paths in (learned, tested))  # type: ignore[misc]
    cells = THUMB // 4  # the difference of 4 x 4 means is never more than that of the thumbnails, and is cheap
    coarse = [x_ND.reshape(-1, 4, cells, 4, cells).mean((2, 4)).reshape(-1, 16) for x_ND in (learned_ND, tested_ND)]
    close_NM = cdist(*coarse, "cityblock") < 16 * SAME_MEAN
    for m in np.flatnonzero(close_NM.any(0)):
        rows = np.flatnonzero(close_NM[:, m])
        apart, other = np.abs(learned_ND[rows] - tested_ND[m]), tested[m]
        rows = rows[(apart.mean(1) < SAME_MEAN) & (apart.max(1) < SAME_MOST)]
        rows = np.array([row for row in rows if seen[learned[row]].sha256 != seen[other].sha256], dtype=int)
        for row in rows[_by_own(learned_ND[rows], tested_ND[m])][:LOOKED]:
            one = learned[row]
            size = min(seen[one].size, seen[other].size, key=lambda size: size[0] * size[1])
            if float((_detail(one, size) * _detail(other, size)).sum()) > SAME_DETAIL:
                yield one, other
                break


def _by_own(thumbs_ND: np.ndarray, thumb_D: np.ndarray) -> np.ndarray:
    """The order of pictures by how alike one they are in what is not common to all of them: those of a fixed camera differ by little else.

    Light and contrast do not count, so that a copy that was made a little brighter comes before another photograph in the same light.
    """
    all_ND = np.concatenate([thumbs_ND, thumb_D[None]])
    all_ND = all_ND - all_ND.mean(1, keepdims=True)
    all_ND = all_ND / np.maximum(np.linalg.norm(all_ND, axis=1, keepdims=True), 1e-6)
    own_ND = all_ND - all_ND.mean(0)
    own_ND = own_ND / np.maximum(np.linalg.norm(own_ND, axis=1, keepdims=True), 1e-6)
    return np.argsort(-(own_ND[:-1] @ own_ND[-1]), kind="stable")


def check_near_copies(sides: Sides, seen: dict[Path, Seen], say: Say) -> None:
    """Warn of a tested image that is a learned one saved anew."""
    for one, other in near_copies(_paths(sides.shots, sides.normals), _paths(sides.held_out, sides.held_out_normals), seen):
        say("warning", other, f"nearly the same picture as {one.relative_to(one.parents[2]).as_posix()}, "
            "which is learned from", "remove one of them, or give both one group in groups.csv")  # fmt: skip
