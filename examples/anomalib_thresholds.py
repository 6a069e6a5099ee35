"""Fit an anomalib model whose thresholds are set on generated pairs, so that no test image is spent on them.

    pip install anomalib
    python examples/anomalib_thresholds.py RUN DATA tile

DATA is in MVTec AD layout. `--no-weights` takes a network of random weights, to see the way without a download.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Padim

import anomalydiffusion as ad


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("product")
    parser.add_argument("--no-weights", dest="weights", action="store_false")
    parser.add_argument("--output", type=Path, default=Path("anomalib-results"))
    given = parser.parse_args()
    datamodule = ad.add_generated(MVTecAD(root=given.data, category=given.product, num_workers=0), given.run, product=given.product)
    model = Padim(backbone="resnet18", pre_trained=given.weights)
    engine = Engine(default_root_dir=given.output)
    engine.fit(model, datamodule=datamodule)
    (found,) = engine.test(model, datamodule=datamodule)
    print({name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
