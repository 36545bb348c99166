"""The networks for images from scratch: published sizes, names, seeds, how they are kept, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.core.engine import Loop
from stillhouse.core.method import State
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Digits
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.call import pick_logits
from stillhouse.models.encoder import inside
from stillhouse.models.taps import ends_of_stages, layers, penultimate, tapped
from stillhouse.models.vision import Mixer, Mobile, ResNet, ViT

WIDE = {"preactivated": True, "classes": 100, "channels": 3}
CONVOLUTIONAL: list[Any] = [
    ResNet(depth=8, channels=3, classes=5),
    ResNet(depth=8, norm="group", dropout=0.2, channels=3, classes=5),
    ResNet(depth=10, preactivated=True, channels=3, classes=5),
    Mobile(channels=3, classes=5),
]
PATCHED: list[Any] = [
    ViT(shape=(3, 16, 16), classes=5, depth=2, width=16),
    ViT(shape=(3, 16, 16), classes=5, depth=2, width=16, class_token=False, dropout=0.1),
    ViT(shape=(3, 16, 16), classes=5, depth=2, width=16, distilled=True),
    Mixer(shape=(3, 16, 16), classes=5, depth=2, width=16),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def seeded(spec: Any, run: Run, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return spec.build(run)


@pytest.mark.parametrize(("spec", "published"), [
    # The counts of the CIFAR-100 networks that papers on distillation share, and of DeiT-Ti with its distillation token.
    (ResNet(depth=20, channels=3, classes=100), 278_324),
    (ResNet(depth=56, channels=3, classes=100), 861_620),
    (ResNet(depth=110, channels=3, classes=100), 1_736_564),
    (ResNet(depth=8, stem=32, widths=(64, 128, 256), channels=3, classes=100), 1_233_540),
    (ResNet(depth=32, stem=32, widths=(64, 128, 256), channels=3, classes=100), 7_433_860),
    (ResNet(depth=16, widths=(32, 64, 128), **WIDE), 703_284),
    (ResNet(depth=40, widths=(16, 32, 64), **WIDE), 569_780),
    (ResNet(depth=40, widths=(32, 64, 128), **WIDE), 2_255_156),
    (ViT(shape=(3, 224, 224), patch=16, width=192, depth=12, heads=3, distilled=True, classes=1000), 5_910_800),
])  # fmt: skip
def test_the_published_number_of_parameters(run: Run, spec: Any, published: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in spec.build(run).parameters()) == published


@pytest.mark.parametrize("spec", [*CONVOLUTIONAL, *PATCHED], ids=repr)
def test_shapes_seeds_gradients_and_how_it_is_kept(run: Run, tmp_path: Path, spec: Any) -> None:
    net, twin, other = seeded(spec, run), seeded(spec, run), seeded(spec, run, 1)
    x = torch.rand(4, 3, 16, 16)
    torch.manual_seed(0)
    logits = net(x)
    assert logits.shape == (4, 5)
    F.cross_entropy(logits, torch.arange(4)).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("key.bias") for name in silent)  # a key's bias moves all scores alike: softmax does not see it
    fresh = seeded(spec, run).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in twin.state_dict().items())
    assert not torch.equal(next(twin.parameters()), next(other.parameters()))
    spec.save(net, tmp_path, run)  # after a pass, so that running means have moved
    again = spec.load(tmp_path, run)
    assert torch.equal(net.eval()(x), again.eval()(x))
    assert net.bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", CONVOLUTIONAL, ids=repr)
def test_channels_are_last_when_built_and_when_loaded(run: Run, tmp_path: Path, spec: Any) -> None:
    net = seeded(spec, run)
    spec.save(net, tmp_path, run)
    for module in (net, spec.load(tmp_path, run)):
        weights = [p for p in module.parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    plain = seeded(spec, run).to(memory_format=torch.contiguous_format).eval()
    x = torch.rand(2, 3, 9, 7)  # any size will do, odd ones too
    torch.testing.assert_close(net.eval()(x), plain(x))


def test_a_batch_norm_sees_how_a_batch_is_split_and_a_group_norm_does_not(run: Run) -> None:
    x = torch.rand(6, 3, 8, 8)
    for norm, same in (("group", True), ("batch", False)):
        net = seeded(ResNet(depth=8, norm=norm, channels=3, classes=3), run)  # type: ignore[arg-type]
        parts = torch.cat([net(x[:2]), net(x[2:])])
        assert torch.allclose(net(x), parts, atol=1e-5) is same


def test_names_to_tap(run: Run) -> None:
    batch = {"inputs": torch.rand(2, 3, 16, 16), "labels": torch.zeros(2)}
    net = seeded(ResNet(depth=14, channels=3, classes=5), run).eval()
    names = [layer.name for layer in layers(net, batch)]
    assert {"stem", "stages.0", "stages.0.1", "stages.2.1.relu2", "head"} <= set(names)
    shapes = {layer.name: layer.shape for layer in layers(net, batch)}
    assert [shapes[n] for n in ("stages.0", "stages.1", "stages.2")] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert [name.split(".")[1] for name in ends_of_stages(layers(net, batch))] == ["0", "1", "2"]
    logits, seen = tapped(net, batch, ["stages.2", "stages.2.1.relu2:in", "head:in"])
    assert torch.equal(seen["stages.2"], seen["stages.2.1.relu2:in"].relu()) and (seen["stages.2.1.relu2:in"] < 0).any()
    torch.testing.assert_close(net.head(seen["stages.2"].mean((-2, -1))), logits)
    vit = seeded(ViT(shape=(3, 16, 16), classes=5, distilled=True), run)
    found = layers(vit, batch)
    assert {"stem", "blocks.3", "norm", "head"} <= {layer.name for layer in found}
    assert penultimate(found, 5) == "head:in"


def test_a_distillation_token_has_a_head_of_its_own(run: Run) -> None:
    x = torch.rand(2, 3, 16, 16)
    spec = ViT(shape=(3, 16, 16), classes=5, distilled=True)
    net = seeded(spec, run)
    each = net(x, each=True)
    torch.testing.assert_close(each["logits"], (each["class"] + each["distilled"]) / 2)
    assert torch.equal(net(x), pick_logits(each))
    each["distilled"].sum().backward()
    assert net.head.weight.grad is None and net.extra.grad[0, 1].any()
    assert set(seeded(ViT(shape=(3, 16, 16), classes=5), run)(x, each=True)) == {"logits", "class"}


def test_the_scores_inside_a_vision_transformer_are_those_it_attends_by(run: Run) -> None:
    net = seeded(ViT(shape=(3, 16, 16), classes=5, depth=2, width=16, heads=2), run).double()
    seen = inside(net, {"inputs": torch.rand(2, 3, 16, 16, dtype=torch.float64)})
    assert [s.shape for s in seen.scores] == [(2, 2, 17, 17)] * 2
    block = net.blocks[0]
    x = block.norm1(seen.hidden[0])
    value = block.attention.value(x).unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (seen.scores[0].softmax(-1) @ value).transpose(1, 2).flatten(-2)
    after = seen.hidden[0] + block.attention.out(mixed)
    torch.testing.assert_close(seen.hidden[1], after + block.mlp(block.norm2(after)))


def test_patches_of_a_transformer_are_only_told_apart_by_their_positions(run: Run) -> None:
    net = seeded(ViT(shape=(1, 8, 8), classes=3), run)
    x = torch.rand(2, 1, 8, 8)
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)  # the left and the right half change places
    assert not torch.allclose(net(x), net(swapped), atol=1e-5)
    with torch.no_grad():
        net.position.zero_()
    torch.testing.assert_close(net(x), net(swapped))


def test_sizes_come_from_the_data_and_it_learns(run: Run) -> None:
    for spec in (ResNet(depth=8), ViT(patch=2, width=32, depth=2), Mixer(patch=2), Mobile(depth=1)):
        run.recipe = Recipe(id="r", student=spec, data=Digits(), stages={})
        batch = run.sources()["train"].batch(range(32), 0)
        net = seeded(spec, run)
        optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
        losses = []
        for _ in range(30):
            loss = F.cross_entropy(net(batch["inputs"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0], type(spec).__name__


def test_what_does_not_fit_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="3 stages has depth 8, 14, 20, …, not 18"):
        ResNet(depth=18)
    with pytest.raises(ValueError, match="3 stages has depth 10, 16, 22, …, not 20"):
        ResNet(depth=20, preactivated=True)
    with pytest.raises(ValueError, match="multiple of the heads"):
        ViT(width=10, heads=4)
    with pytest.raises(ValueError, match="beside a class token"):
        ViT(distilled=True, class_token=False)
    with pytest.raises(RunError, match=r"patches of 4 pixels do not fill items of shape \[3, 30, 32\]"):
        ViT(shape=(3, 30, 32), classes=2).build(run)
    with pytest.raises(RunError, match="do not fill"):
        Mixer(shape=(3, 30, 32), classes=2).build(run)


def test_batch_norms_stay_whole_in_bfloat16_and_the_rest_learns(tmp_path: Path) -> None:
    run = Run(tmp_path, device=torch.device("cpu"))
    run.horizon = 4
    torch.manual_seed(0)
    module = ResNet(depth=6, stem=4, widths=(4, 8), channels=3, classes=3).build(run).train()
    batch = {"inputs": torch.randn(6, 3, 8, 8), "labels": torch.arange(6) % 3}
    loop = Loop(Supervised(), State(student=module), run, Optim(lr=1e-2), bfloat16=True)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert norms and all(part.weight.dtype == part.running_mean.dtype == torch.float32 for part in norms)
    assert convolutions and all(part.weight.dtype == torch.bfloat16 for part in convolutions)
    means = [part.running_mean.clone() for part in norms]
    losses = []
    for run.step in range(4):
        losses.append(loop.step([batch])["student/loss"])
    assert losses[-1] < losses[0]
    assert not any(torch.equal(part.running_mean, before) for part, before in zip(norms, means, strict=True))
