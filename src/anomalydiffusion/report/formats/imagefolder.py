"""What Hugging Face's `datasets` reads as an image folder, with a dataset card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anomalydiffusion.core.manifest import (
    ADAPTER_DIGEST,
    DEFECT,
    MASK_ORIGIN,
    NORMAL_SHA256,
    PRIOR_DIGEST,
    PRODUCT,
    SEED,
    SEVERITY,
    VERSION,
)
from anomalydiffusion.core.pixels import decode_png, encode_png
from anomalydiffusion.report.formats.common import (
    COMBINED,
    GOOD,
    Goods,
    Group,
    Record,
    each,
    is_real,
    kinds,
    lineage,
    normals_of,
    put,
    source_of,
    validation,
)  # fmt: skip

__all__ = ["write"]

TRAIN, HELD = "train", "validation"  # names that `datasets` takes for splits
NOTHING = -1  # no null: a column without any value in one split would have another type there, which `datasets` refuses
CARD = """\
# {title}

{what}

| split | generated defect images | real defect images | normal images |
|---|---|---|---|
{table}

{counts}

{how}All that comes from one normal image, or shows one part, is in one split. No image that was held out for testing is here: test
on real ones.
## Columns

- `image`, `mask`: of one size; a mask is 0 or 255, all 0 for a normal image
- `product`, `defect`: `{good}` = none, `{combined}` = of several types, which are in `defects`
- `generated`: false for what is real: normal images, and photographed defects where they are here
- `seed`, `severity`: of the drawing; {nothing} where nothing was drawn, nothing recorded, or each of several defects has its own
- `normal_sha256`: the normal image's file; `mask_origin`, `prior_digest`, `adapter_digest`, `version`: what drew it; all empty for
  a photographed defect, and but for the first for a normal image

```python
from datasets import load_dataset  # 4 or later

data = load_dataset("imagefolder", data_dir="THIS_FOLDER")
```

## Licence

Not chosen here: whoever owns the photographs that were learned from and drawn on decides. Say so in `license:` above before you
hand this on, and mind the terms of the prior. `lineage.jsonl` names folders of the machine that this was made on: leave it out
where that is nobody's business.
"""


GENERATED = "Images of **defects that were not photographed but generated**, with pixel masks, and normal images that they were drawn on."
MIXED = "Images of **defects, some photographed, most generated from those**, with pixel masks, and normal images."
REAL = "**Photographed defects**, with pixel masks, and normal images: what anomalydiffusion learned from. Nothing of it was generated."
HOW = """\
## How it was made

By anomalydiffusion ({versions}), which follows [arXiv 2312.05767](https://arxiv.org/abs/2312.05767): a diffusion model learned
each defect from a few real images and drew it anew under a mask on a normal image; what lies outside the drawn region is that
image's, pixel by pixel. Each pair was kept by an automatic gate, not by a person: look at them before you trust them.
Priors: {priors}. Adapters: {adapters}. `lineage.jsonl` holds the whole record of each pair.

"""


def _head(title: str, splits: Sequence[str], generated: bool) -> str:
    about = {
        "pretty_name": title, "task_categories": ["image-segmentation"],
        "annotations_creators": ["machine-generated" if generated else "expert-generated"],
        "tags": [*(["synthetic"] if generated else []), "anomaly-detection", "industrial-inspection"],
        "configs": [{"config_name": "default", "data_files": [{"split": name, "path": f"{name}/**"} for name in splits]}],
    }  # fmt: skip
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}# license: yours to choose\n---\n\n"


def _row(record: Record, types: Sequence[str]) -> dict[str, Any]:
    """What a line says besides its files; each value of one type in every line."""
    generated = record[DEFECT] != GOOD and not is_real(record)
    seed, severity = (NOTHING if record.get(name) is None else record[name] for name in (SEED, SEVERITY))
    return {
        PRODUCT: record[PRODUCT], DEFECT: record[DEFECT], "defects": list(types), "generated": generated,
        SEED: int(seed), SEVERITY: float(severity),
        **{name: str(record.get(name) or "") for name in (NORMAL_SHA256, MASK_ORIGIN, PRIOR_DIGEST, ADAPTER_DIGEST, VERSION)},
    }  # fmt: skip


def _listed(pairs: Sequence[Record], field: str) -> str:
    return ", ".join(f"`{value}`" for value in sorted({str(pair.get(field) or "not recorded") for pair in pairs}))


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write `train/` and `validation/` (`images/`, `masks/`, `metadata.jsonl`) and the card `README.md`; yields the lineage.

    `file_name` and `mask_file_name` become the image columns `image` and `mask`. Names are numbers alone, since `datasets` takes
    folders with names such as "test" for splits, wherever they are. Normal images are lines of defect `good` with an empty mask.
    """
    held = validation(groups, goods)
    rows: dict[str, list[Record]] = {}

    def add(record: Record, types: Sequence[str], source: str, image_png: bytes, mask_png: bytes) -> dict[str, str]:
        split = HELD if source in held else TRAIN
        own = rows.setdefault(split, [])
        names = {name: f"{folder}/{len(own):06d}.png" for name, folder in (("file_name", "images"), ("mask_file_name", "masks"))}
        put(part / split / names["file_name"], image_png)
        put(part / split / names["mask_file_name"], mask_png)
        own.append({**names, **_row(record, types)})
        return {"image": f"{split}/{names['file_name']}", "mask": f"{split}/{names['mask_file_name']}"}

    for picture in each(run, groups):
        record = {**picture.records[0], DEFECT: picture.key[1]}
        if len(picture.records) > 1:  # each has its own
            record |= {SEED: None, SEVERITY: None}
        types = sorted({key[1] for key, _ in picture.labels})
        yield from lineage(picture, **add(record, types, source_of(record, goods), picture.image_png, picture.mask_png))
    for product, _, sha256, png in normals_of(goods):
        empty = encode_png(np.zeros(decode_png(png).shape[:2], bool))
        about = {PRODUCT: product, DEFECT: GOOD, NORMAL_SHA256: sha256}
        own = add(about, [GOOD], goods.parts.get(sha256, sha256), png, empty)
        yield {f"exported_{name}": path for name, path in own.items()}
    splits = [name for name in (TRAIN, HELD) if name in rows]
    for split in splits:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split])
        put(part / split / "metadata.jsonl", lines.encode())
        yield {"exported_file": f"{split}/metadata.jsonl"}
    records = [record for records in groups for record in records]
    pairs = [record for record in records if not is_real(record)]
    title = f"{'Generated defects' if pairs else 'Defects'}: " + ", ".join(sorted({product for product, _ in kinds(groups)}))
    sums = {split: Counter((row["generated"], row[DEFECT] == GOOD) for row in rows[split]) for split in splits}
    number = Counter((record[PRODUCT], record[DEFECT]) for record in records)
    how = HOW.format(versions=_listed(pairs, VERSION), priors=_listed(pairs, PRIOR_DIGEST), adapters=_listed(pairs, ADAPTER_DIGEST))
    card = CARD.format(
        title=title, what=GENERATED if len(pairs) == len(records) else MIXED if pairs else REAL, how=how if pairs else "",
        table="\n".join(f"| {split} | {own[True, False]} | {own[False, False]} | {own[False, True]} |" for split, own in sums.items()),
        counts="\n".join(f"- `{'/'.join(key)}`: {number[key]}" for key in kinds(groups)), good=GOOD, combined=COMBINED, nothing=NOTHING,
    )  # fmt: skip
    put(part / "README.md", (_head(title, splits, bool(pairs)) + card).encode())
    yield {"exported_file": "README.md"}
