"""Images -> features: the Protocol FeatureExtractor and its adapters to networks that others have trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from anomalydiffusion.core.errors import ConfigError, DataError, ExtractorError
from anomalydiffusion.core.imagenet import lite0_file, renamed
from anomalydiffusion.core.pixels import to_batch

__all__ = ["EfficientNetLite0", "FeatureExtractor", "InceptionV3", "Lpips", "extractor"]

BATCH = 8  # images of one size in a network at a time: VGG-16's widest layer then takes 0.5 GB at 512 pixels
SIDE = 224  # pixels: what EfficientNet-Lite0 was trained at
STAGES = {1: 4, 2: 8, 4: 16}  # its last stage of each stride -> that stride
SMALLEST = 32  # pixels: below it, LPIPS's pooling leaves nothing


class FeatureExtractor(Protocol):
    """What turns images (uint8 RGB, H x W x 3) into float32 features on the CPU, without gradients.

    An adapter whose network has no published use of one kind raises `ExtractorError` there.
    """

    name: str  # goes beside every number that was made with it
    layer_weights: list[torch.Tensor] | None  # learned for distances: one of C for each of `maps`, at least 0; None = equal

    def pooled(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """One vector for each image, whatever their sizes: N x D."""

    def probabilities(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Probabilities of the network's classes, whatever the images' sizes: N x K, each row sums to 1."""

    def maps(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Feature maps of images of one size at several strides, fine to coarse: each N x C x h x w."""


def _batches(images: Sequence[np.ndarray], *, one_size: bool = False) -> Iterator[np.ndarray]:
    """Neighbours of one size, `BATCH` at most -> uint8 n x H x W x 3, in order."""
    if not len(images):
        raise DataError("no image to take features from")
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(f"image {number} is {image.dtype} of shape {image.shape}; features need uint8 RGB, height x width x 3")
        if one_size and image.shape != images[0].shape:
            raise DataError(f"image {number} is {image.shape[:2]}, image 0 {images[0].shape[:2]}; feature maps need images of one size")
    for _, neighbours in groupby(images, key=lambda image: image.shape):
        same = list(neighbours)
        for start in range(0, len(same), BATCH):
            yield np.stack(same[start : start + BATCH])


def _package(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ExtractorError(f"{name}: its package cannot be used ({error}); pip install 'anomalydiffusion[eval]'") from error


def _stored(name: str, given: Path | None, url: str) -> Path:
    """The file that was given, or that of `url` where torch hub keeps it; nothing is downloaded."""
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if not path.is_file():
        raise ExtractorError(f"{name}: no weights at {path}; fetch {url} on a machine with internet and put it there, or give its path")
    return path


def _read(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Read a file of named tensors; one that holds anything else is refused before it runs."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can fail in many ways, the advice is the same
        raise ExtractorError(f"{name}: {path} cannot be read as weights ({type(error).__name__}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise ExtractorError(f"{name}: {path} holds no named tensors; give its own file")
    return state


def _fill(name: str, path: Path, module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put `state` into `module` and freeze it. Raises `ExtractorError` where any tensor lacks or has another shape."""
    own = module.state_dict()
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    wrong = [key for key in wanted if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise ExtractorError(f"{name}: {path}: {len(wrong)} of {len(wanted)} tensors did not fit, first {wrong[0]}; give its own file")
    module.load_state_dict(own | state)
    module.eval().requires_grad_(False)


class EfficientNetLite0:
    """EfficientNet-Lite0 as trained on ImageNet; its weights come inside a package, so it works offline.

    For `pooled` (1280 wide, after the last activation) and `probabilities` (1000 classes) both sides are resized to
    224, without a crop: bicubic, antialiased, not clipped. Numbers made with it cannot be compared with published ones,
    which are Inception's. Raises `ExtractorError` where a file that was given has other tensors.
    """

    name = "efficientnet-lite0"
    layer_weights: list[torch.Tensor] | None = None

    def __init__(self, weights: Path | None = None) -> None:
        import timm

        path = weights or lite0_file()
        self._net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        _fill(self.name, path, self._net, renamed(_read(self.name, path), self._net))

    @torch.no_grad()
    def _vectors(self, images: Sequence[np.ndarray], *, logits: bool) -> torch.Tensor:
        out = []
        for batch in _batches(images):
            x_BCHW = nn.functional.interpolate(to_batch(batch), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
            out.append(self._net.forward_head(self._net.forward_features(x_BCHW), pre_logits=not logits))
        return torch.cat(out)

    def pooled(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self._vectors(images, logits=False)

    def probabilities(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self._vectors(images, logits=True).softmax(1)

    @torch.no_grad()
    def maps(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """24, 40 and 112 channels at strides 4, 8 and 16 of the native size: ceil(H / stride) x ceil(W / stride) cells.

        Any size goes: the last row and column are repeated up to the next multiple of 16, cells beyond the image dropped.
        """
        out: dict[int, list[torch.Tensor]] = {stride: [] for stride in STAGES.values()}
        for batch in _batches(images, one_size=True):
            height, width = batch.shape[1:3]
            x_BCHW = nn.functional.pad(to_batch(batch), (0, -width % 16, 0, -height % 16), mode="replicate")
            x_BCHW = self._net.bn1(self._net.conv_stem(x_BCHW))
            for number, stage in enumerate(self._net.blocks[: max(STAGES) + 1]):
                x_BCHW = stage(x_BCHW)
                if stride := STAGES.get(number):
                    out[stride].append(x_BCHW[..., : -(-height // stride), : -(-width // stride)])
        return [torch.cat(parts) for parts in out.values()]


class InceptionV3:
    """The Inception v3 of TensorFlow (2015) that published FID, KID and IS are made with, through torch-fidelity.

    `pooled` is its last pooling (2048 wide), `probabilities` the softmax of its logits without their bias (1008 classes).
    torch-fidelity resizes both sides to 299. Raises `ExtractorError` without the package or its weights.
    """

    name = "inception-v3"
    layer_weights: list[torch.Tensor] | None = None

    def __init__(self, weights: Path | None = None) -> None:
        package = _package(self.name, "torch_fidelity.feature_extractor_inceptionv3")
        path = _stored(self.name, weights, package.URL_INCEPTION_V3)
        _read(self.name, path)  # torch-fidelity would unpickle whatever the file names
        try:
            self._net: Any = package.FeatureExtractorInceptionV3(self.name, ["2048", "logits_unbiased"], str(path))
        except RuntimeError as error:
            raise ExtractorError(f"{self.name}: {path} did not fit; give its own file") from error

    @torch.no_grad()
    def _outputs(self, images: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self._net(torch.from_numpy(batch).permute(0, 3, 1, 2)) for batch in _batches(images)]
        return torch.cat([pooled for pooled, _ in pairs]), torch.cat([logits for _, logits in pairs])

    def pooled(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self._outputs(images)[0]

    def probabilities(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self._outputs(images)[1].softmax(1)

    def maps(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        raise ExtractorError(f"{self.name} gives no feature maps; take efficientnet-lite0, lpips-vgg or lpips-alex")


class Lpips:
    """LPIPS 0.1 [arXiv 1801.03924] over VGG-16 ("vgg") or AlexNet ("alex"): five maps and their learned weights, native size.

    With `scores.perceptual_distance` it gives the package's own distances; published IC-LPIPS takes "vgg" at 256 x 256.
    Over VGG-16 the maps of one such image take 32 MB: measure many in blocks. Only the backbone's features are read from
    torchvision's file. Raises `ExtractorError` without the package or that file.
    """

    def __init__(self, net: str, weights: Path | None = None) -> None:
        from torchvision import models

        urls = {"vgg": models.VGG16_Weights.IMAGENET1K_V1.url, "alex": models.AlexNet_Weights.IMAGENET1K_V1.url}
        if net not in urls:
            raise ConfigError(f"lpips over '{net}' is not known; give vgg or alex")
        self.name = f"lpips-{net}"
        package = _package(self.name, "lpips")
        path = _stored(self.name, weights, urls[net])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips asks torchvision in a way that it now warns of
            model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
        state = _read(self.name, path)
        named = {key: "features." + key.split(".", 1)[1] for key in model.net.state_dict()}  # slice1.0.bias -> features.0.bias
        _fill(self.name, path, model.net, {key: state[name] for key, name in named.items() if name in state})
        self._net, self._scale = model.net, model.scaling_layer
        self.layer_weights: list[torch.Tensor] | None = [layer.model[-1].weight.detach().flatten() for layer in model.lins]

    def pooled(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        raise ExtractorError(f"{self.name} gives no pooled features; take efficientnet-lite0 or inception-v3")

    def probabilities(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        raise ExtractorError(f"{self.name} gives no probabilities; take efficientnet-lite0 or inception-v3")

    @torch.no_grad()
    def maps(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        parts = []
        for batch in _batches(images, one_size=True):
            if min(batch.shape[1:3]) < SMALLEST:
                raise DataError(f"{self.name} needs images of at least {SMALLEST} pixels a side, these are {batch.shape[1:3]}")
            parts.append(self._net(self._scale(to_batch(batch))))
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def extractor(name: str, *, weights: Path | None = None) -> FeatureExtractor:
    """Make the extractor of that name: "efficientnet-lite0" (works offline), "inception-v3", "lpips-vgg" or "lpips-alex".

    `weights` is a file to use instead of the usual one. Raises `ConfigError` for another name, `ExtractorError` where a
    package or weights lack; nothing is ever downloaded.
    """
    makers: dict[str, Callable[[Path | None], FeatureExtractor]] = {
        "efficientnet-lite0": EfficientNetLite0, "inception-v3": InceptionV3, "lpips-vgg": partial(Lpips, "vgg"),
        "lpips-alex": partial(Lpips, "alex"),
    }  # fmt: skip
    if name not in makers:
        raise ConfigError(f"feature extractor '{name}' is not known; give one of {', '.join(makers)}")
    return makers[name](weights)
