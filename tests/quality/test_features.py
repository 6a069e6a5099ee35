"""The offline extractor really sees; the optional ones say which file lacks, and agree with their packages once they have it."""

import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import skimage.data
import torch
import torchvision

from anomalydiffusion.core.errors import ConfigError, DataError, ExtractorError
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.quality import features
from anomalydiffusion.quality.features import EfficientNetLite0, FeatureExtractor, InceptionV3, Lpips, extractor
from anomalydiffusion.quality.scores import perceptual_distance

ESPRESSO, CATS = 967, (281, 282, 285)  # ImageNet classes


@pytest.fixture(scope="module")
def lite() -> FeatureExtractor:
    return extractor("efficientnet-lite0")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    out = []
    for photo in (skimage.data.coffee(), skimage.data.chelsea()):
        side = min(photo.shape[:2])
        y, x = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        out.append(photo[y : y + side, x : x + side])
    return out


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _one_line(error: pytest.ExceptionInfo[ExtractorError], *words: str) -> None:
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_it_knows_coffee_and_a_cat(lite: FeatureExtractor, photos: list[np.ndarray]) -> None:
    found = lite.probabilities(photos)
    assert found.shape == (2, 1000) and found.sum(1).numpy() == pytest.approx(1, abs=1e-5)
    assert found[0].argmax() == ESPRESSO and found[1].argmax() in CATS
    blue = lite.probabilities([photos[1][..., ::-1]])
    assert blue[0, CATS].sum() < found[1, CATS].sum()  # it sees colours in their order


def test_an_images_features_do_not_depend_on_its_company(
    lite: FeatureExtractor, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH", 2)
    images = [photos[0], _noise(40, 90), _noise(40, 90, 1), _noise(40, 90, 2), photos[1]]
    together = lite.pooled(images)
    assert together.shape == (5, 1280) and together.dtype == torch.float32 and not together.requires_grad
    for number in (0, 3):
        assert torch.allclose(lite.pooled([images[number]])[0], together[number], atol=1e-4)
    for layer, alone in zip(lite.maps(images[1:4]), lite.maps(images[3:4]), strict=True):
        assert layer.shape[0] == 3 and torch.allclose(layer[2], alone[0], atol=1e-4)


def test_maps_cover_an_image_of_any_size_at_its_own_resolution(lite: FeatureExtractor) -> None:
    maps = lite.maps([_noise(50, 71), _noise(50, 71, 1)])
    assert [tuple(layer.shape) for layer in maps] == [(2, 24, 13, 18), (2, 40, 7, 9), (2, 112, 4, 5)]
    assert [tuple(layer.shape) for layer in lite.maps([_noise(7, 5)])] == [(1, 24, 2, 2), (1, 40, 1, 1), (1, 112, 1, 1)]


def test_maps_repeat_the_border_up_to_a_whole_cell(lite: FeatureExtractor) -> None:
    image = _noise(50, 71)
    whole = lite.maps([np.pad(image, ((0, 14), (0, 9), (0, 0)), mode="edge")])
    for layer, wider in zip(lite.maps([image]), whole, strict=True):
        assert torch.equal(layer, wider[..., : layer.shape[2], : layer.shape[3]])


@pytest.mark.parametrize("place", [(20, 100), (70, 40)])
def test_a_change_shows_where_it_is(lite: FeatureExtractor, place: tuple[int, int]) -> None:
    plain = np.full((100, 130, 3), 128, np.uint8)
    spotted = plain.copy()
    spotted[place[0] - 4 : place[0] + 4, place[1] - 4 : place[1] + 4] = 20
    for layer, stride in zip(lite.maps([plain, spotted]), (4, 8, 16), strict=True):
        change = (layer[1] - layer[0]).norm(dim=0)
        y, x = divmod(int(change.argmax()), change.shape[1])
        assert abs((y + 0.5) * stride - place[0]) <= 1.5 * stride and abs((x + 0.5) * stride - place[1]) <= 1.5 * stride


def test_what_is_no_image_is_refused(lite: FeatureExtractor) -> None:
    for images in ([], [np.zeros((40, 40, 3))], [np.zeros((40, 40), np.uint8)], [np.zeros((0, 40, 3), np.uint8)]):
        with pytest.raises(DataError):
            lite.pooled(images)
    with pytest.raises(DataError, match="one size"):
        lite.maps([_noise(40, 40), _noise(40, 41)])


def test_weights_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    for content, words in (
        ({"a": torch.zeros(32, 3, 3, 3)}, r"246 of 247 tensors did not fit, first bn1\.weight"),
        ({str(number): torch.zeros(2) for number in range(247)}, r"of 247 tensors did not fit, first conv_stem\.weight"),
        ([torch.zeros(2)], "no named tensors"),
        ({"a": Path("x")}, "cannot be read"),  # not only tensors: refused unread
    ):
        torch.save(content, path)
        with pytest.raises(ExtractorError, match=words) as error:
            extractor("efficientnet-lite0", weights=path)
        _one_line(error, "efficientnet-lite0", str(path))
    path.write_bytes(b"not weights")
    with pytest.raises(ExtractorError, match="cannot be read as weights"):
        EfficientNetLite0(path)


@pytest.mark.parametrize(
    "name, file",
    [
        ("inception-v3", "weights-inception-2015-12-05-6726825d.pth"),
        ("lpips-vgg", "vgg16-397923af.pth"),
        ("lpips-alex", "alexnet-owt-7be5be79.pth"),
    ],
)
def test_without_weights_the_file_its_source_and_its_place_are_named(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # also where this machine has them
    with pytest.raises(ExtractorError) as error:
        extractor(name)
    _one_line(error, name, str(tmp_path / "hub" / "checkpoints" / file), "fetch https://", f"/{file} ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, module", [("inception-v3", "torch_fidelity"), ("lpips-vgg", "lpips")])
def test_without_the_package_its_installation_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [each for each in sys.modules if each.split(".")[0] == module] or [module]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(ExtractorError, match=r"anomalydiffusion\[eval\]") as error:
        extractor(name)
    _one_line(error, name)


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite0, inception-v3, lpips-vgg, lpips-alex"):
        extractor("inception")
    with pytest.raises(ConfigError, match="vgg or alex"):
        Lpips("squeeze")


def test_inception_reads_its_file_and_agrees_with_its_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "random.pth"
    torch.save(torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False).state_dict(), path)
    found = extractor("inception-v3", weights=path)
    images = [_noise(40, 50), _noise(64, 64)]
    pooled, probabilities = found.pooled(images), found.probabilities(images)
    assert pooled.shape == (2, 2048) and probabilities.shape == (2, 1008)
    assert probabilities.sum(1).numpy() == pytest.approx(1, abs=1e-5)
    own = torch.load(path, weights_only=True)
    assert torch.allclose((pooled @ own["fc.weight"].T).softmax(1), probabilities, atol=1e-6)  # the bias has no part
    with pytest.raises(ExtractorError, match="no feature maps"):
        found.maps(images)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ExtractorError, match="did not fit"):
        InceptionV3(path)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips's own call, see Lpips
def test_lpips_distances_are_the_packages_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "random.pth"
    features = torchvision.models.alexnet(weights=None).features
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, path)
    found = extractor("lpips-alex", weights=path)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(found._net.state_dict())
    a, b = [_noise(64, 80, seed) for seed in range(2)], [_noise(64, 80, 2), skimage.data.coffee()[:64, :80]]
    ours = perceptual_distance(found.maps(a), found.maps(b), found.layer_weights)
    with torch.no_grad():
        wanted = torch.tensor([[float(theirs(to_tensor(x), to_tensor(y))) for y in b] for x in a])
    assert torch.allclose(ours, wanted, rtol=1e-3) and (wanted > 0).all()
    for refused in (found.pooled, found.probabilities):
        with pytest.raises(ExtractorError, match="take efficientnet-lite0 or inception-v3"):
            refused(a)
    with pytest.raises(DataError, match="at least 32"):
        found.maps([_noise(20, 80)])
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(ExtractorError, match="9 of 10 tensors did not fit"):
        Lpips("alex", path)
