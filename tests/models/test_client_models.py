"""Several networks as one student: kept as each would be alone, averaged when asked together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.models.clients import Clients, ClientState, several, weight_bytes
from stillhouse.models.toys import MLP, ConvNet

UNLIKE = Clients(
    members=(MLP(inputs=16, classes=3), ConvNet(channels=1, classes=3, width=4), MLP(inputs=16, classes=3, depth=1))
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def test_saved_and_loaded(run: Run, tmp_path: Path):
    module = UNLIKE.build(run)
    (tmp_path / "kept").mkdir()
    UNLIKE.save(module, tmp_path / "kept", run)
    again = UNLIKE.load(tmp_path / "kept", run)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["client0", "client1", "client2"]
    assert [type(m) for m in again.children()] == [type(m) for m in module.children()]
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(RunError, match="holds 3 clients, not the 2"):
        Clients(members=UNLIKE.members[:2]).load(tmp_path / "kept", run)
    alone = UNLIKE.members[1].load(tmp_path / "kept" / "client1", run)
    inputs = torch.randn(2, 1, 4, 4)
    assert torch.equal(alone(inputs), module.get_submodule("client1")(inputs))


def test_together_they_answer_with_their_average(run: Run):
    module, inputs = UNLIKE.build(run).requires_grad_(False), torch.randn(5, 1, 4, 4)
    scores = module.each(inputs)
    assert len(module) == len(scores) == 3
    for row in range(5):
        for label in range(3):
            by_hand = sum(float(s[row, label]) for s in scores) / 3
            assert float(module(inputs)[row, label]) == pytest.approx(by_hand, abs=1e-6)


def test_first_weights_differ_between_clients_and_follow_the_seed(run: Run):
    spec = Clients(members=(MLP(inputs=4, classes=2),) * 2)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(spec.build(run))
    assert torch.equal(made[0].client1.head.weight, made[1].client1.head.weight)
    assert not torch.equal(made[0].client0.head.weight, made[0].client1.head.weight)


def test_each_client_is_a_group_and_what_is_frozen_is_none(run: Run):
    module = UNLIKE.build(run)
    state = ClientState(student=module, sent=UNLIKE.build(run).requires_grad_(False))
    assert list(state.groups()) == ["client0", "client1", "client2"]
    assert state.groups()["client1"] is module.get_submodule("client1")
    moved = [id(p) for group in state.groups().values() for p in group.parameters()]
    assert sorted(moved) == sorted(id(p) for p in module.parameters())
    module.client0.requires_grad_(False)
    assert list(state.groups()) == ["client1", "client2"]


def test_bytes_by_hand(run: Run):
    module = MLP(inputs=4, classes=2, width=3, depth=1).build(run)
    assert weight_bytes(module) == 4 * (4 * 3 + 3 + 3 * 2 + 2)
    assert weight_bytes(module.to(torch.bfloat16)) == 2 * 23


def test_what_is_not_several(run: Run):
    assert several(UNLIKE.build(run), 3)
    with pytest.raises(RunError, match="needs several models"):
        several(MLP(inputs=4, classes=2).build(run), 2)
    with pytest.raises(RunError, match="the student has 3 clients, the data 4; set data.clients=3"):
        several(UNLIKE.build(run), 4)
    with pytest.raises(ValueError, match="at least one model"):
        Clients(members=())
