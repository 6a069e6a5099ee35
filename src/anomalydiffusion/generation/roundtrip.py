"""Send a region of a normal image through the prior's autoencoder and back, as generation does, drawing no defect."""

from __future__ import annotations

import numpy as np

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.compose import paste
from anomalydiffusion.generation.pairs import to_levels
from anomalydiffusion.generation.settings import GenerateConfig
from anomalydiffusion.priors.latent import LatentPrior

__all__ = ["redecode"]

RADII = (0.04, 0.2)  # of the region, over the image's short side


def redecode(
    prior: LatentPrior, image_HWC: np.ndarray, config: GenerateConfig, *, grain: float, seed: int
) -> tuple[np.ndarray, Mask]:  # fmt: skip
    """The image with an elliptic region at a random place decoded and pasted back as a generated defect would be, and that region.

    What a detector could learn in place of the defect: the autoencoder's trace, less the `grain` that is handed back (0..1; 1
    gives the image back unchanged). A label of such an image is "normal".
    """
    generator, (height, width) = rng(seed, "round trip"), image_HWC.shape[:2]
    low, high = np.log(RADII)
    radii = np.maximum(np.exp(generator.uniform(low, high, 2)) * min(height, width), 2.0)
    y, x = generator.uniform(0, height), generator.uniform(0, width)
    rows, columns = np.ogrid[:height, :width]
    inside = ((rows - y) / radii[0]) ** 2 + ((columns - x) / radii[1]) ** 2 <= 1
    inside[int(y), int(x)] = True
    mask = Mask(pixels_HW=inside, origin="round trip", seed=seed)
    ratio = float(np.exp(generator.uniform(*np.log(config.ratio))))
    box = crop_box(mask.box, (height, width), ratio, config.minimum_side, (generator.uniform(0.2, 0.8), generator.uniform(0.2, 0.8)))
    view = resize(extract(image_HWC, box), prior.working_size)
    decoded = to_levels(prior.decode(prior.encode(to_tensor(view))))
    out, _ = paste(image_HWC, decoded, decoded, view, box, inside, width=config.feather, grain=grain, match=False, cell=prior.factor)
    return out, mask
