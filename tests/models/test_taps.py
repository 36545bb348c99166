"""What a module computes on the way, whatever it hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.core.run import RunError
from stillhouse.models.adapters import adapter, resized, shaped
from stillhouse.models.taps import as_map, as_tokens, as_vector, chosen, ends_of_stages, layers, penultimate, tapped


@dataclass
class Output:
    last_hidden_state: Tensor
    other: int = 3


class Inner(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        y = self.linear(x) * scale
        return {"tuple": (None, y), "dict": {"a": y}, "object": Output(y), "tensor": y}[self.kind]


class Net(nn.Module):
    def __init__(self, kind: str = "tensor"):
        super().__init__()
        self.stem, self.inner, self.head, self.unused = nn.Linear(3, 4), Inner(kind), nn.Linear(4, 5), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.stem(x), scale=2.0)
        y = y[1] if isinstance(y, tuple) else y["a"] if isinstance(y, dict) else getattr(y, "last_hidden_state", y)
        return self.head(y)


BATCH = {"inputs": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), "labels": torch.zeros(2, dtype=torch.long)}


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "object"])
def test_what_a_layer_gives_and_gets_is_read_whatever_its_form(kind: str):
    net = Net(kind)
    logits, seen = tapped(net, BATCH, ["inner", "inner:in", "head:in"])
    stem = net.stem(BATCH["inputs"])
    assert torch.equal(seen["inner:in"], stem)
    assert torch.equal(seen["inner"], 2 * net.inner.linear(stem)) and torch.equal(seen["head:in"], seen["inner"])
    assert torch.equal(logits, net.head(seen["inner"]))
    assert seen["inner"].requires_grad  # gradients flow through a tap


def test_hooks_go_even_if_the_pass_fails():
    net = Net()
    with pytest.raises(RuntimeError):
        tapped(net, {"inputs": torch.zeros(2, 7), "labels": torch.zeros(2)}, ["inner"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layers_that_do_not_run_or_do_not_exist():
    with pytest.raises(RunError, match="'unused' of Net did not run"):
        tapped(Net(), BATCH, ["unused"])
    with pytest.raises(RunError, match="no layer 'sten'; did you mean 'stem'"):
        tapped(Net(), BATCH, ["sten"])


def test_a_dry_run_lists_what_can_be_tapped():
    found = layers(Net(), BATCH)
    assert [(layer.name, layer.shape, layer.came) for layer in found] == [
        ("stem", (4,), (3,)), ("inner.linear", (4,), (4,)), ("inner", (4,), (4,)), ("head", (5,), (4,)),
    ]  # fmt: skip
    assert [layer.parameters for layer in found] == [16, 20, 20, 25]
    assert penultimate(found, 5) == "head:in"
    with pytest.raises(RunError, match="no linear layer gives the 7 logits"):
        penultimate(found, 7)


def test_globs_stop_at_dots():
    found = layers(Net(), BATCH)
    assert chosen(found, ["*"]) == ["stem", "inner", "head"]
    assert chosen(found, ["inner.*", "head:in"]) == ["inner.linear", "head:in"]


class Stages(nn.Module):
    """As channels-last code mixes them: maps [H, W, C] between maps [C, H, W]."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.b(y).mean((-2, -1)))


def test_stages_end_where_the_resolution_does():
    batch = {"inputs": torch.randn(2, 3, 8, 8), "labels": torch.zeros(2, dtype=torch.long)}
    assert ends_of_stages(layers(Stages(), batch)) == ["a", "b"]


def test_forms():
    maps = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 2, 2)
    assert torch.equal(as_map(as_tokens(maps)), maps)
    with_class = torch.cat([torch.full((2, 1, 3), -1.0), as_tokens(maps)], 1)
    assert torch.equal(as_map(with_class), maps)
    assert torch.equal(as_vector(maps), maps.mean((2, 3))) and as_tokens(as_vector(maps)).shape == (2, 1, 3)
    assert shaped((65, 12), "map") == (12, 8, 8) and shaped((3, 4, 4), "vector") == (3,)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((9, 6), (17, 8)), ((6,), (4,)), ((3, 5, 4), (3, 2, 2))],
)
def test_adapters_reach_the_teachers_shape(mine: tuple[int, ...], theirs: tuple[int, ...]):
    assert adapter(mine, theirs)(torch.randn(2, *mine)).shape == (2, *theirs)


def test_an_adapter_keeps_the_form():
    with pytest.raises(ValueError, match="keeps the form"):
        adapter((3, 4, 4), (5,))
    assert isinstance(adapter((3,), (3,), always=False), nn.Identity)


def test_a_map_is_averaged_down():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(resized(x, (2, 2)), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert resized(x, (4, 4)) is x
