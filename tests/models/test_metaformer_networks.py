"""MetaFormers: published sizes, what each mixer computes and reaches, StarReLU's constants, the stages that are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Digits
from stillhouse.models.metaformer import (
    HEAD,
    UNIT,
    Block,
    ImageNorm,
    LayerNorm,
    MapAttention,
    MetaFormer,
    Mix,
    Pooling,
    RandomMixing,
    StarReLU,
)
from stillhouse.models.taps import ends_of_stages, layers, penultimate, tapped

MIXERS: tuple[Mix, ...] = ("identity", "random", "pool", "conv", "attention")
WIDTHS = (64, 128, 320, 512)
PUBLISHED: dict[str, Any] = {"widths": WIDTHS, "patch": 4, "shape": (3, 224, 224), "classes": 1000}
S12: dict[str, Any] = PUBLISHED | {"depths": (2, 2, 6, 2), "norm": "image"}
S18: dict[str, Any] = PUBLISHED | {"depths": (3, 3, 9, 3), "head": "perceptron"}
SMALL = MetaFormer(widths=(8, 12), depths=(1, 2), shape=(1, 9, 9), classes=3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def seeded(spec: Any, run: Run, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return spec.build(run)


def of(mix: Mix) -> MetaFormer:
    return replace(SMALL, mixers=(mix, mix))


# -- sizes -----------------------------------------------------------------------------------------------------------


def counted(depths: tuple[int, ...], mixers: tuple[str, ...], head: int) -> int:
    """The learned numbers of a published network, summed part by part."""
    count = 49 * 3 * 64 + 64 + 64  # the stem, its bias and its norm
    count += sum(a + 9 * a * b + b for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))  # norm, 3x3 convolution, bias
    for i, (width, depth, mixer) in enumerate(zip(WIDTHS, depths, mixers, strict=True)):
        block = 2 * width + 8 * width**2 + 2 + (2 * width if i > 1 else 0)  # norms, perceptron, its StarReLU, scales of x
        block += {"conv": 4 * width**2 + 98 * width + 2, "attention": 4 * width**2}.get(mixer, 0)
        count += depth * block
    return count + 2 * 512 + head  # the last norm


@pytest.mark.parametrize(("spec", "frozen", "published"), [
    # The authors' table has 11.9 M, 11.9 + 0.2 M and 11.9 M; timm's has 26.77 M and 26.34 M.
    (MetaFormer(mixers=("identity",) * 4, **S12), 0, 11.9e6),
    (MetaFormer(mixers=("identity", "identity", "random", "random"), **S12), 6 * 196**2 + 2 * 49**2, 11.9e6),
    (MetaFormer(mixers=("pool",) * 4, **S12), 0, 11.9e6),
    (MetaFormer(mixers=("conv",) * 4, **S18), 0, 26.77e6),
    (MetaFormer(mixers=("conv", "conv", "attention", "attention"), **S18), 0, 26.34e6),
])  # fmt: skip
def test_the_published_number_of_parameters(run: Run, spec: MetaFormer, frozen: int, published: float) -> None:
    head = 512 * 1000 + 1000
    if spec.head == "perceptron":
        head = 512 * 2048 + 2048 + 2 * 2048 + 2048 * 1000 + 1000
    with torch.device("meta"):
        net = spec.build(run)
    count = sum(p.numel() for p in net.parameters())
    assert count == counted(spec.depths, spec.mixers, head)
    assert count == pytest.approx(published, abs=0.5e5 if published == 11.9e6 else 0.5e4)
    assert sum(b.numel() for b in net.buffers()) == frozen


def test_the_published_sizes_of_the_maps(run: Run) -> None:
    """56, 28, 14 and 7 positions a side, of 224 pixels."""
    with torch.device("meta"):
        net = MetaFormer(mixers=("identity",) * 4, **(S12 | {"widths": (4, 4, 4, 4), "depths": (1, 1, 1, 1)})).build(run)
        x, sides = torch.zeros(1, 3, 224, 224), []
        for stage in net.stages:
            x = stage(x)
            sides.append(tuple(x.shape[2:]))
    assert sides == [(56, 56), (28, 28), (14, 14), (7, 7)]


# -- as any other network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [
    *map(of, MIXERS), replace(of("identity"), norm="image", head="perceptron"), replace(of("conv"), activation="gelu"),
    replace(of("attention"), widths=(8, 40), drop_path=0.3), replace(of("random"), patch=1, shape=(1, 5, 7)),
], ids=repr)  # fmt: skip
def test_shapes_seeds_gradients_and_how_it_is_kept(run: Run, tmp_path: Path, spec: MetaFormer) -> None:
    net, twin, other = seeded(spec, run), seeded(spec, run), seeded(spec, run, 1)
    assert spec.shape is not None
    x = torch.rand(4, *spec.shape)
    assert net(x).shape == (4, 3)
    F.cross_entropy(net.eval()(x), torch.tensor([0, 1, 2, 0])).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in twin.state_dict().items())
    assert not torch.equal(next(twin.parameters()), next(other.parameters()))
    torch.testing.assert_close(net(x), torch.cat([net(part) for part in x.split([1, 3])]))
    spec.save(net, tmp_path, run)
    torch.manual_seed(7)
    again = spec.load(tmp_path, run)
    assert torch.equal(net(x), again.eval()(x))  # a random mixer's matrix is kept too
    weights = [p for p in again.parameters() if p.ndim == 4 and p.shape[2:] != (1, 1)]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert net.bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("mix", MIXERS)
def test_sizes_come_from_the_data_and_it_learns(run: Run, mix: Mix) -> None:
    spec = MetaFormer(mixers=(mix, mix), widths=(16, 32), depths=(1, 1))
    run.recipe = Recipe(id="r", student=spec, data=Digits(), stages={})
    batch = run.sources()["train"].batch(range(32), 0)
    net = seeded(spec, run)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(net(batch["inputs"]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("mix", MIXERS)
def test_its_stages_are_found(run: Run, mix: Mix) -> None:
    four = MetaFormer(mixers=(mix,) * 4, widths=(4, 8, 8, 12), depths=(1, 1, 2, 1), ratio=1.0, shape=(3, 32, 32), classes=5)
    batch = {"inputs": torch.rand(2, 3, 32, 32), "labels": torch.zeros(2)}
    net = seeded(four, run).eval()
    found = layers(net, batch)
    assert ends_of_stages(found) == ["stages.0", "stages.1", "stages.2", "stages.3"]
    shapes = {layer.name: layer.shape for layer in found}
    assert [shapes[f"stages.{i}"] for i in range(4)] == [(4, 16, 16), (8, 8, 8), (8, 4, 4), (12, 2, 2)]
    assert {"stages.2.0", "stages.2.1.mixer", "stages.2.2.mlp.1", "norm", "head"} <= shapes.keys()
    assert penultimate(found, 5) == "head:in"
    logits, seen = tapped(net, batch, ["stages.3", "head:in"])
    torch.testing.assert_close(net.norm(seen["stages.3"].mean((2, 3))), seen["head:in"])
    torch.testing.assert_close(net.head(seen["head:in"]), logits)
    deep = seeded(replace(four, head="perceptron"), run)
    assert penultimate(layers(deep, batch), 5) == "head.3:in"


def test_it_can_be_named(still: Callable[..., Any]) -> None:
    settings = ("--set", "mixers=[pool, random]", "--set", "depths=[1, 3]", "--shape", "1x14x14", "--classes", "7")
    result = still("layers", "models.metaformer.MetaFormer", *settings)
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "RandomMixing" in lines["stages.1.3.mixer"] and "64 x 4 x 4" in lines["stages.1"]
    assert [name for name, line in lines.items() if line.rstrip().endswith("end of a stage")] == ["stages.0", "stages.1"]
    result = still("layers", "models.metaformer.MetaFormer", "--set", "mixers=[pool, random, conv]")
    assert result.exit_code == 1 and "a mixer, a width and a depth for each stage" in result.stderr
    result = still("layers", "models.metaformer.MetaFormer", "--set", "mixers=[pool, poool]")
    assert result.exit_code == 1


def test_what_does_not_fit_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="for each stage"):
        MetaFormer(depths=(1, 2, 3))
    with pytest.raises(ValueError, match="patch is 1 or more, drop_path"):
        MetaFormer(drop_path=1.0)
    with pytest.raises(RunError, match=r"items of shape \[3, 2, 2\] are too small for steps of 4 pixels"):
        MetaFormer(patch=4, shape=(3, 2, 2), classes=2).build(run)


# -- mixers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mix", "reach"), [("identity", 0), ("pool", 1), ("conv", 3), ("random", 8), ("attention", 8)])
def test_how_far_a_block_carries_what_one_position_says(mix: Mix, reach: int) -> None:
    torch.manual_seed(0)
    block = Block(SMALL, mix, 6, 81, True, 0.0).double()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    moved = x.clone()
    moved[0, :, 4, 4] += torch.randn(6, dtype=torch.float64)
    changed = (block(moved) - block(x)).abs().amax(1)[0] > 1e-12
    rows, columns = changed.nonzero(as_tuple=True)
    near = min(reach, 4)
    assert changed.sum() == (2 * near + 1) ** 2
    assert max(int((rows - 4).abs().max()), int((columns - 4).abs().max())) == near


def test_a_norm_over_the_image_lets_positions_know_of_each_other() -> None:
    """Why the benchmark's networks have norms over channels."""
    block = Block(replace(SMALL, norm="image"), "identity", 6, 81, False, 0.0).double()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0, 4, 4] += 1.0
    assert float((block(moved) - block(x)).detach().abs().amax(1).min()) > 1e-12


def test_random_mixing_position_by_position() -> None:
    torch.manual_seed(0)
    mixing, x = RandomMixing(6), torch.randn(2, 3, 2, 3)
    r = mixing.weights
    assert torch.allclose(r.sum(1), torch.ones(6)) and bool((r > 0).all()) and not list(mixing.parameters())
    found = mixing(x)
    for m in range(6):
        wanted = sum(r[m, n] * x[:, :, n // 3, n % 3] for n in range(6))
        assert torch.allclose(found[:, :, m // 3, m % 3], wanted, atol=1e-6)


def test_pooling_position_by_position() -> None:
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            near = x[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            assert float(Pooling()(x)[0, 0, i, j]) == pytest.approx(float(near.mean() - x[0, 0, i, j]))


@torch.no_grad()
def test_attention_position_by_position() -> None:
    torch.manual_seed(0)
    width = 2 * HEAD + 1  # two heads, as many numbers as they have
    attention = MapAttention(width).double()
    x = torch.randn(2, width, 2, 2, dtype=torch.float64)
    assert attention.heads == 2 and attention.out.weight.shape == (width, 2 * HEAD, 1, 1)
    found = attention(x)
    for item in range(2):
        tokens = [x[item, :, n // 2, n % 2] for n in range(4)]
        said = [attention.qkv.weight[:, :, 0, 0] @ token for token in tokens]
        for n in range(4):
            mixed = []
            for head in range(2):
                part = slice(head * HEAD, (head + 1) * HEAD)
                q, k, v = (torch.stack([s[i * 2 * HEAD :][part] for s in said]) for i in range(3))
                weights = [math.exp(float(q[n] @ k[m]) / math.sqrt(HEAD)) for m in range(4)]
                mixed.append(sum(w / sum(weights) * v[m] for m, w in enumerate(weights)))
            wanted = attention.out.weight[:, :, 0, 0] @ torch.cat(mixed)
            assert torch.allclose(found[item, :, n // 2, n % 2], wanted)


# -- blocks, norms, activations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXERS)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_block_is_its_equation(mix: Mix, scaled: bool) -> None:
    torch.manual_seed(0)
    block = Block(SMALL, mix, 6, 12, scaled, 0.0).double()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    r1, r2 = block.scales if scaled else (1.0, 1.0)
    assert (block.scales is not None) is scaled
    y = r1 * x + block.mixer(block.norm1(x))
    w1, act, w2 = block.mlp
    inner = torch.einsum("oc,bchw->bohw", w1.weight[:, :, 0, 0], block.norm2(y))
    active = act.scale * inner.clamp(min=0) ** 2 + act.bias
    torch.testing.assert_close(block(x), r2 * y + torch.einsum("oc,bchw->bohw", w2.weight[:, :, 0, 0], active))


def test_x_is_scaled_in_the_last_two_stages(run: Run) -> None:
    spec = MetaFormer(mixers=("pool",) * 3, widths=(4, 4, 4), depths=(1, 2, 1), shape=(1, 16, 16), classes=2)
    names = {name for name, _ in seeded(spec, run).named_parameters() if "scales" in name}
    assert names == {"stages.1.1.scales", "stages.1.2.scales", "stages.2.1.scales"}


def test_blocks_are_skipped_in_training_the_later_the_more(run: Run) -> None:
    spec = MetaFormer(mixers=("pool",) * 2, widths=(4, 4), depths=(2, 3), drop_path=0.4, shape=(1, 8, 8), classes=2)
    blocks = [part for part in seeded(spec, run).modules() if isinstance(part, Block)]
    assert [block.drop for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    block = Block(SMALL, "pool", 4, 9, False, 0.25)
    torch.nn.init.zeros_(block.mlp[2].weight)
    x = torch.randn(2000, 4, 3, 3)
    added, usual = block(x) - x, block.eval()(x) - x
    skipped = (added == 0).flatten(1).all(1)
    assert 0.21 < float(skipped.float().mean()) < 0.29
    torch.testing.assert_close(added[~skipped], usual[~skipped] / 0.75, atol=1e-5, rtol=1e-4)


def test_what_the_norms_divide_by() -> None:
    x = 3 + 5 * torch.randn(2, 8, 4, 5)
    for norm, over in ((LayerNorm(8), (1,)), (ImageNorm(8), (1, 2, 3))):
        y = norm(x)
        assert torch.allclose(y.mean(over), torch.zeros(()), atol=1e-5)
        assert torch.allclose(y.var(over, unbiased=False), torch.ones(()), atol=1e-4)
        with torch.no_grad():
            norm.weight.copy_(torch.arange(8.0))
        torch.testing.assert_close(norm(x), y * torch.arange(8.0).reshape(8, 1, 1))


def test_starrelu_with_its_constants_keeps_mean_0_and_variance_1() -> None:
    """E relu(x)² = 1/2 and E relu(x)⁴ = 3/2 for x ~ N(0, 1)."""
    scale, bias = UNIT
    assert (round(scale, 4), round(bias, 4)) == (0.8944, -0.4472)
    assert scale / 2 + bias == pytest.approx(0) and scale**2 * (3 / 2 - 1 / 4) == pytest.approx(1)
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    y = StarReLU(*UNIT).double()(x).detach()
    mean = torch.trapezoid(y * density, x)
    assert float(mean) == pytest.approx(0, abs=1e-6)
    assert float(torch.trapezoid((y - mean).square() * density, x)) == pytest.approx(1, abs=1e-6)
    drawn = StarReLU(*UNIT)(torch.randn(200_000, generator=torch.Generator().manual_seed(0))).detach()
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.var()) - 1) < 0.02


def test_starrelu_learns_its_constants_and_begins_as_a_squared_relu() -> None:
    star, x = StarReLU(), torch.tensor([-2.0, 0.0, 1.5, 3.0])
    assert star(x).tolist() == [0, 0, 2.25, 9]
    star(x).sum().backward()
    assert star.scale.grad == 11.25 and star.bias.grad == 4
