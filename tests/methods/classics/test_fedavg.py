"""FedAvg: the average by hand, the common start, and the identity with one big SGD when a round is one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train
from stillhouse.data.clients import Federation
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics.fedavg import FedAvg
from stillhouse.models.clients import Clients
from stillhouse.models.toys import MLP

SGD = Optim(name="sgd", lr=0.1, momentum=0.0, clip=None, schedule="constant", warmup=0.0)
DATA = Federation(source=Clusters(train=96, valid=8, test=8), clients=3)
ALIKE = Clients(members=(MLP(width=8),) * 3)


def begin(tmp_path: Path, method: Any, **changed: Any) -> tuple[Loop, Any]:
    run = Run(tmp_path / "run", device=torch.device("cpu"), stage="train")
    stages = {"train": Train(method=method, steps=8, batch=8, optim=SGD)}
    run.recipe = replace(Recipe(id="fedavg", student=ALIKE, data=DATA, stages=stages), **changed)
    torch.manual_seed(0)
    return Loop(method, method.setup(run.recipe.student.build(run), run), run, SGD), run.sources()["train"]


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def clients(loop: Loop) -> list[Tensor]:
    return [weights(client) for client in loop.state.student.children()]


def test_all_begin_alike_and_are_alike_after_every_round(tmp_path: Path):
    loop, source = begin(tmp_path, FedAvg(local=3))
    for step in range(7):
        apart = max(float((c - clients(loop)[0]).abs().max()) for c in clients(loop))
        assert (apart == 0) == (step % 3 == 0)
        fit(loop, source, steps=step + 1, size=8, start=step)


def test_the_average_is_weighted_by_how_many_items_each_has(tmp_path: Path):
    loop, source = begin(tmp_path / "apart", FedAvg(local=3))
    fit(loop, source, steps=2, size=8)
    loop.method = FedAvg(local=100)  # the third step without the average
    fit(loop, source, steps=3, size=8, start=2)
    sizes = [len(part) for part in source.private]
    assert len(set(sizes)) > 1
    by_hand = sum(n * w for n, w in zip(sizes, clients(loop), strict=True)) / sum(sizes)
    together, _ = begin(tmp_path / "together", FedAvg(local=3))
    fit(together, source, steps=3, size=8)
    for found in clients(together):
        assert torch.allclose(found, by_hand, atol=1e-6)


def test_with_rounds_of_one_step_it_is_sgd_on_everybody_s_items(tmp_path: Path):
    """FedSGD, Section 2: the average of steps from one point is a step along the average gradient."""
    loop, source = begin(tmp_path, FedAvg(local=1))
    start = begin(tmp_path / "again", FedAvg(local=1))[0].state.student.get_submodule("client0")
    fit(loop, source, steps=1, size=8)
    from stillhouse.core.engine import micro_batches

    (batch,) = micro_batches(source, step=0, size=8, accumulate=1, seed=0)
    total = sum(map(len, source.private))
    loss = sum(
        len(part) / total * F.cross_entropy(start(own["inputs"]), own["labels"])
        for part, own in zip(source.private, batch["private"], strict=True)
    )
    loss.backward()  # type: ignore[union-attr]
    expected = torch.cat([(p - SGD.lr * p.grad).detach().flatten() for p in start.parameters()])  # type: ignore[operator]
    for found in clients(loop):
        assert torch.allclose(found, expected, atol=1e-6)


def test_only_some_take_part(tmp_path: Path):
    method = FedAvg(local=2, fraction=0.34)
    loop, source = begin(tmp_path, method)
    rounds = []
    for step in range(40):
        loop.run.step = step
        rounds.append(tuple(method.taking_part(3, loop.run)))
    assert rounds[::2] == rounds[1::2] and all(len(r) == 1 for r in rounds) and len(set(rounds)) == 3
    fit(loop, source, steps=1, size=8)
    (chosen,) = rounds[0]
    before = clients(begin(tmp_path / "again", method)[0])[0]
    assert [not torch.equal(c, before) for c in clients(loop)] == [k == chosen for k in range(3)]
    moved = clients(loop)[chosen]
    fit(loop, source, steps=2, size=8, start=1)
    assert all(torch.equal(c, clients(loop)[0]) and not torch.equal(c, moved) for c in clients(loop))


def test_bytes_by_hand(tmp_path: Path):
    loop, _ = begin(tmp_path, FedAvg())
    one = 4 * (8 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4)
    assert FedAvg().traffic(loop.state.student, classes=4, public=10, items=8) == 2 * 3 * one
    assert FedAvg(fraction=0.34).traffic(loop.state.student, classes=4, public=10, items=8) == 2 * one
    assert [FedAvg(local=10).rounds(n) for n in (9, 10, 25)] == [0, 1, 2]


def test_what_does_not_fit(tmp_path: Path):
    with pytest.raises(RunError, match="one architecture"):
        begin(tmp_path / "a", FedAvg(), student=Clients(members=(MLP(width=8), MLP(width=8), MLP(width=9))))
    with pytest.raises(RunError, match="the student has 3 clients, the data 4"):
        begin(tmp_path / "b", FedAvg(), data=replace(DATA, clients=4))
    loop, source = begin(tmp_path / "c", FedAvg(local=1))
    loop = Loop(loop.method, loop.state, loop.run, SGD, bfloat16=True)
    with pytest.raises(RunError, match="leave precision at float32"):
        fit(loop, source, steps=1, size=8)


@pytest.mark.parametrize(("settings", "message"), [
    ({"local": 0}, "local must be 1"), ({"fraction": 0.0}, "fraction must be above 0"), ({"fraction": 1.5}, "at most 1"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        FedAvg(**settings)
