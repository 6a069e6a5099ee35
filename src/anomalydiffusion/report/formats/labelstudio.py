"""Tasks for Label Studio: each label as a polygon to look at and correct."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from anomalydiffusion.core.manifest import DEFECT, NORMAL_SHA256, PRODUCT, SEED, VERSION
from anomalydiffusion.core.pixels import decode_png
from anomalydiffusion.report.formats.common import GOOD, Goods, Group, Picture, Record, each, is_real, kinds, lineage, normals_of, put
from anomalydiffusion.report.formats.parts import outline, parts

__all__ = ["write"]

SERVED = "/data/local-files/?d="  # Label Studio's address of files below LOCAL_FILES_DOCUMENT_ROOT
README = """\
# Into Label Studio

1. Start it so that it may show the pictures of this folder, and no others:

       LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/path/to/this/folder label-studio start

2. Make a project; Settings, Labeling Interface, Code: paste `labels.xml`.
3. Settings, Cloud Storage, Add Source Storage, Local files: `/path/to/this/folder/images`. Save it, do not sync it: the tasks are
   in the next file, but pictures are only shown where a storage of the project holds them.
4. Import `tasks.json`. Labels come as predictions, since nobody has looked at them yet; submit what is right, correct the rest. Those of
   real defects, where they are here, are annotations already.

Behind another web server, put its address in the place of `/data/local-files/?d=` in `tasks.json`. Polygons run along the edges
of pixels; a hole in a label is filled. The masks themselves are in the run, and in every other export.
"""


def _polygons(picture: Picture, first: int) -> list[dict[str, Any]]:
    """Each connected part as a region; corners in percent of width and height."""
    height, width = decode_png(picture.mask_png).shape
    found = [(key, own) for key, mask_png in picture.labels for own in parts(decode_png(mask_png) > 0)]
    return [
        {
            "id": f"part-{first + index:06d}", "type": "polygonlabels", "from_name": "label", "to_name": "image",
            "original_width": width, "original_height": height, "image_rotation": 0,
            "value": {
                "points": [[100 * x / width, 100 * y / height] for x, y in outline(own)], "closed": True,
                "polygonlabels": ["/".join(key)],
            },
        }
        for index, (key, own) in enumerate(found)
    ]  # fmt: skip


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write `tasks.json`, `labels.xml` (the labeling interface), `README.md` and `images/`; yields the lineage.

    A label is `product/defect`. Pictures are named by their place below this export, which Label Studio must be told to serve, so
    that the folder may be moved. Real defects are annotated already. Normal images are tasks without a prediction.
    """
    tasks: list[Record] = []
    count = 0

    def add(name: str, png: bytes, product: str, defect: str, more: Record, labels: Record) -> None:
        put(part / name, png)
        about = {"image": SERVED + quote(name), PRODUCT: product, DEFECT: defect, **more}
        tasks.append({"data": about, "predictions": [], **labels})

    for picture in each(run, groups):
        name = f"images/{picture.key[0]}/{picture.key[1]}/{picture.number:06d}.png"
        regions, first = _polygons(picture, count), picture.records[0]
        count += len(regions)
        model = f"anomalydiffusion {first.get(VERSION) or ''}".rstrip()
        more = {SEED: first.get(SEED) if len(picture.records) == 1 else None, NORMAL_SHA256: first.get(NORMAL_SHA256)}
        drawn = {"predictions": [{"model_version": model, "result": regions}]}
        add(name, picture.image_png, *picture.key, more, {"annotations": [{"result": regions}]} if is_real(first) else drawn)
        yield from lineage(picture, image=name)
    for product, index, sha256, png in normals_of(goods):
        name = f"images/{product}/{GOOD}/{index:06d}.png"
        add(name, png, product, GOOD, {SEED: None, NORMAL_SHA256: sha256}, {})
        yield {"exported_image": name}
    labels = "".join(f"    <Label value={quoteattr('/'.join(key))}/>\n" for key in kinds(groups))
    interface = f"""\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="label" toName="image" strokeWidth="1">
{labels}  </PolygonLabels>
</View>
"""
    for name, text in (("tasks.json", json.dumps(tasks)), ("labels.xml", interface), ("README.md", README)):
        put(part / name, text.encode())
        yield {"exported_file": name}
