"""What moves the parameters: schedules, decay, clipping, and the masters behind bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stillhouse.core.optim import GroupOptimizer, Optim

PLAIN = Optim(name="sgd", lr=1.0, momentum=0.0, clip=None)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str):
    optim = Optim(lr=2.0, schedule=schedule, warmup=0.1, final=0.25)  # type: ignore[arg-type]
    rates = [optim.rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[100] == pytest.approx(2.0 if schedule == "constant" else 0.5)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    middle = {"constant": 2.0, "linear": 1.25, "cosine": 1.25}
    assert rates[55] == pytest.approx(middle[schedule])


def test_no_warm_up_and_a_single_step():
    assert Optim(lr=1.0, warmup=0.0).rate(0, 10) == 1.0
    assert Optim(lr=1.0).rate(0, 1) == 1.0


def test_sums_are_divided_then_clipped():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = GroupOptimizer(layer, Optim(name="sgd", momentum=0.0, clip=1.0))
    layer.weight.grad = torch.tensor([[30.0, 40.0]])
    norm = optimizer.step(10.0, 1.0)
    assert float(norm) == pytest.approx(5.0)  # reported before clipping
    assert torch.allclose(layer.weight, torch.tensor([[-0.6, -0.8]]), atol=1e-5)
    assert layer.weight.grad is None


def test_matrices_decay_and_vectors_do_not():
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = GroupOptimizer(layer, Optim(weight_decay=0.1))
    for param in layer.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step(1.0, 1.0)
    assert torch.allclose(layer.weight, torch.full((2, 2), 0.9))
    assert torch.equal(layer.bias, torch.ones(2))


def test_a_gradient_that_is_not_finite_is_dropped():
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = GroupOptimizer(layer, PLAIN)
    layer.weight.grad = torch.tensor([[float("nan"), 0.0]])
    assert not torch.isfinite(optimizer.step(1.0, 1.0))
    assert torch.equal(layer.weight, before) and layer.weight.grad is None


def test_a_parameter_that_no_loss_reached_stays():
    layer = nn.Linear(2, 1)
    before = layer.bias.detach().clone()
    optimizer = GroupOptimizer(layer, PLAIN)
    layer.weight.grad = torch.ones(1, 2)
    optimizer.step(1.0, 1.0)
    assert torch.equal(layer.bias, before)


def test_masters_keep_what_bfloat16_loses():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    layer.to(torch.bfloat16)
    optimizer = GroupOptimizer(layer, PLAIN)
    for _ in range(100):  # each step is a hundredth of what bfloat16 can tell from 1
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None  # the master has it
        optimizer.step(1.0, 2e-4)
    assert float(layer.weight.detach()) == pytest.approx(0.98, abs=0.002)
    assert float(optimizer.masters[0].detach()) == pytest.approx(0.98, abs=1e-5)


def test_masters_start_from_the_float32_weights():
    layer = nn.Linear(3, 3)
    exact = {name: p.detach().clone() for name, p in layer.named_parameters()}
    layer.to(torch.bfloat16)
    optimizer = GroupOptimizer(layer, PLAIN, exact)
    assert all(torch.equal(m, exact[n]) for n, m in zip(optimizer.names, optimizer.masters, strict=True))


def test_bfloat16_gradients_are_added_in_float32():
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = GroupOptimizer(layer, PLAIN)
    for part in [256.0] + [1.0] * 64:  # in bfloat16, 256 + 1 is 256
        (layer(torch.ones(1, 1, dtype=torch.bfloat16)) * part).sum().backward()
    assert float(optimizer.masters[0].grad) == 320.0  # type: ignore[arg-type]


def test_tied_weights_have_one_master():
    embedding, head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
    head.weight = embedding.weight
    both = nn.ModuleList([embedding, head]).to(torch.bfloat16)
    optimizer = GroupOptimizer(both, PLAIN)
    head(embedding(torch.tensor([1, 2]))).sum().backward()
    expected = optimizer.masters[0].detach() - optimizer.masters[0].grad  # type: ignore[operator]
    optimizer.step(1.0, 1.0)
    assert len(optimizer.masters) == 1 and torch.equal(optimizer.masters[0], expected)
    assert torch.equal(head.weight, expected.to(torch.bfloat16)) and head.weight is embedding.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_saved_and_loaded_goes_on_alike(dtype: torch.dtype, name: str):
    def push(layer: nn.Module, optimizer: GroupOptimizer, times: int) -> None:
        for i in range(times):
            layer(torch.full((1, 3), 0.1 * (i + 1), dtype=dtype)).square().sum().backward()
            optimizer.step(1.0, 1e-2)

    optim = Optim(name=name)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first = nn.Linear(3, 2).to(dtype)
    before = GroupOptimizer(first, optim)
    push(first, before, 3)
    second = nn.Linear(3, 2).to(dtype)
    second.load_state_dict(first.state_dict())
    after = GroupOptimizer(second, optim)
    after.load_state_dict(copy.deepcopy(before.state_dict()))  # torch would share the moments
    push(first, before, 3)
    push(second, after, 3)
    assert all(torch.equal(a, b) for a, b in zip(before.masters, after.masters, strict=True))
    assert torch.equal(first.weight, second.weight)


def test_hooks_leave_with_the_optimizer():
    layer = nn.Linear(1, 1).to(torch.bfloat16)
    GroupOptimizer(layer, PLAIN).close()
    layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_rotary_frequencies_stay_exact_in_bfloat16(tmp_path):
    from stillhouse.core.engine import Loop
    from stillhouse.core.method import State
    from stillhouse.core.run import Run

    layer = nn.Linear(2, 2)
    layer.register_buffer("frequencies", torch.tensor([1.001]))
    Loop(None, State(student=layer), Run(tmp_path / "run"), PLAIN, bfloat16=True)  # type: ignore[arg-type]
    assert layer.weight.dtype == torch.bfloat16
    assert layer.frequencies.dtype == torch.float32


def test_masters_follow_what_something_else_has_changed():
    layer = nn.Linear(3, 2)
    masters = {name: p.detach().float() for name, p in layer.named_parameters()}
    for param in layer.parameters():
        param.data = param.data.to(torch.bfloat16)
    optimizer = GroupOptimizer(layer, PLAIN, masters)
    kept = [master.clone() for master in optimizer.masters]
    before = optimizer.versions()
    optimizer.take_over(before)  # nothing was changed: the bits that rounding loses are still there
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, kept, strict=True))
    assert not torch.equal(optimizer.masters[0], layer.weight.float())
    with torch.no_grad():
        layer.weight.mul_(0.5)
    optimizer.take_over(before)
    assert torch.equal(optimizer.masters[0], layer.weight.float())
    assert torch.equal(optimizer.masters[1], kept[1])
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step(1.0, 1.0)
    assert torch.equal(layer.weight.float(), optimizer.masters[0].bfloat16().float())
