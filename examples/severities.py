"""One defect on one picture, from barely visible to gross, side by side.

python examples/severities.py RUN normal.png severities.png --defect crack
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import anomalydiffusion as ad

LEVELS = (0.4, 0.7, 1.0, 1.5, 2.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--product")
    parser.add_argument("--defect")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(given.run)
    pipe.set_progress_bar_config(disable=True)
    words = {"product": given.product, "defect": given.defect, "seed": given.seed}
    drawn = [pipe(given.image, severity=level, **words) for level in LEVELS]
    width, height = drawn[0].image.size
    sheet = Image.new("RGB", (width * len(drawn), height))
    for column, one in enumerate(drawn):
        sheet.paste(one.image, (column * width, 0))
    sheet.save(given.output)
    print(f"{given.output}: severity {', '.join(map(str, LEVELS))}")


if __name__ == "__main__":
    main()
