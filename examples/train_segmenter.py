"""Train a segmentation network on a run's pairs and its normal images, in plain PyTorch.

    pip install 'anomalydiffusion[eval]'
    python examples/train_segmenter.py RUN segmenter.pt --steps 500

A start for your own trainer: the pairs come as a map-style data set, every crop is changed together with its mask. Whether such pairs
help is another question, which `anomalydiffusion evaluate RUN` answers on images that nothing was learned from.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

import anomalydiffusion as ad
from anomalydiffusion.core.pixels import read_image

SIDE = 128
CHANGE = v2.Compose([
    v2.ToImage(), v2.RandomCrop(SIDE, pad_if_needed=True, padding_mode="reflect"), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
    v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.float32}, scale=True),
])  # fmt: skip


def crop(run: Path, example: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop of a pair, or as often of the normal image it was drawn on, which has an empty mask."""
    image, mask = example["image"], v2.functional.pil_to_tensor(example["mask"]) / 255
    if random.random() < 0.5:
        image, mask = Image.fromarray(read_image(run / example["record"]["normal"])), torch.zeros_like(mask)
    picture, truth = CHANGE(image, tv_tensors.Mask(mask))
    return picture, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path, help="the state of the network")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    torch.manual_seed(given.seed)
    loader = DataLoader(ad.DefectDataset(given.run, transform=partial(crop, given.run)), batch_size=8, shuffle=True)
    network = smp.Unet("resnet18", encoder_weights=None, classes=1)
    loss_of, optimizer = smp.losses.FocalLoss("binary"), torch.optim.AdamW(network.parameters(), 1e-3)
    step = 0
    while step < given.steps:
        for pictures, truths in loader:
            loss = loss_of(network(pictures), truths)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == given.steps:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == given.steps:
                break
    torch.save(network.state_dict(), given.output)


if __name__ == "__main__":
    main()
