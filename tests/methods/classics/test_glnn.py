"""GLNN's loss against a loop over nodes, its limits, and that nothing leaks from nodes that arrive later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.core.run import Run
from stillhouse.core.signal import Signal
from stillhouse.core.stage import execute
from stillhouse.data.graphs import UNKNOWN, Blocks, Graph, NodeSplit
from stillhouse.methods.classics.glnn import GLNN, recipe
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.teachers.graph import FrozenNodes

N, CLASSES = 9, 4


class Table(nn.Module):
    """Logits of every node as parameters; a graph network and a network on features alike."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
        return self.logits[node]


def drawn(seed: int) -> Tensor:
    return 2 * torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = drawn(1), drawn(2)
LABELS = torch.tensor([2, UNKNOWN, 0, UNKNOWN, UNKNOWN, 1, UNKNOWN, UNKNOWN, UNKNOWN])
GRAPH = Graph.of(torch.zeros(N, 2), torch.tensor([[0, 1, 2], [1, 2, 3]]))


def batch(nodes: Any = range(N)) -> dict[str, Any]:
    node = torch.tensor(list(nodes))
    inputs = {"features": GRAPH.features[node], "node": node, "graph": GRAPH}
    known = LABELS[node] >= 0
    return {"inputs": inputs, "labels": LABELS[node], "weight": torch.ones(len(node)), "label_weight": N / 3 * known}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.teachers = {"teacher": FrozenNodes(Table(TEACHER))}
    return made


def update(method: Any, student: nn.Module, given: Any, run: Run) -> Any:
    (made,) = method.step(method.setup(student, run), given, run)
    return made


def by_hand(hard: float) -> float:
    """The authors' `NLLLoss()` over labelled nodes and `KLDivLoss("batchmean", log_target=True)` over all, in plain sums."""
    ce = sum(-float(STUDENT[v].log_softmax(0)[LABELS[v]]) for v in range(N) if LABELS[v] >= 0) / 3
    kl = 0.0
    for v in range(N):
        for k in range(CLASSES):
            p, q = float(TEACHER[v].softmax(0)[k]), float(STUDENT[v].softmax(0)[k])
            kl += p * torch.log(torch.tensor(p / q, dtype=torch.float64)).item() / N
    return hard * ce + (1 - hard) * kl


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_the_loss_is_the_loop(run: Run, hard: float):
    made = update(GLNN(hard=hard), Table(STUDENT), batch(), run)
    assert int(made.count) == N
    assert float(made.loss.detach() / made.count) == pytest.approx(by_hand(hard), rel=1e-6)


def test_parts_of_a_batch_add_up(run: Run):
    whole = update(GLNN(hard=0.3), Table(STUDENT), batch(), run)
    parts = [update(GLNN(hard=0.3), Table(STUDENT), batch(part), run) for part in ([0, 1], [2, 5, 8], [3, 4, 6, 7])]
    assert float(sum(p.loss for p in parts).detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-12)


def test_gradients_in_double_precision(run: Run):
    def loss(logits: Tensor) -> Tensor:
        class Said(nn.Module):
            def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
                return logits[node]

        return update(GLNN(hard=0.3), Said(), batch(), run).loss

    assert torch.autograd.gradcheck(loss, STUDENT.clone().requires_grad_())


def test_a_student_like_its_teacher_has_nothing_to_learn(run: Run):
    student = Table(TEACHER)
    made = update(GLNN(), student, batch(), run)
    made.loss.backward()
    assert float(made.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.logits.grad.abs().max()) < 1e-14  # type: ignore[union-attr]


def test_with_the_labels_alone_it_is_supervised(run: Run):
    glnn, supervised = Table(STUDENT), Table(STUDENT)
    made = update(GLNN(hard=1.0), glnn, batch(), run)
    made.loss.backward()
    other = update(Supervised(), supervised, batch(), run)
    other.loss.backward()
    one, two = glnn.logits.grad / made.count, supervised.logits.grad / other.count  # type: ignore[operator]
    assert torch.allclose(one, two, rtol=1e-6)


def test_a_batch_without_labels(run: Run):
    made = update(GLNN(hard=0.5), Table(STUDENT), batch([1, 3]), run)
    assert int(made.count) == 2 and float(made.logs["cross_entropy"]) == 0


def test_nodes_that_arrive_later_reach_neither_teacher_nor_student(tmp_path: Path):
    """Change everything about them, their features and their edges, and training ends at the same bits."""
    split = NodeSplit(labels=5, valid=5, test=60, unseen=0.5)
    made = recipe("smoke").set("data", Blocks(nodes=200, classes=4, inputs=8, setting="inductive", split=split))
    made = made.set("teacher.steps", 5).set("train.steps", 5)
    made = replace(made, stages={name: made.stages[name] for name in ("teacher", "train")})
    weights, spied = [], []
    for number in range(2):
        run = Run(tmp_path / str(number), device=torch.device("cpu"))
        run.recipe = made
        splits = run.sources()
        whole, seen = splits["test"].graph, splits["train"].graph
        if number:  # `test` alone may notice
            whole.features[len(seen) :] = 1e6
            whole.edges[:, (whole.edges >= len(seen)).any(0)] = len(whole) - 1
        execute(made, run)
        weights.append([made.stages[s].student or made.student for s in ("teacher", "train")])
        weights[-1] = [
            spec.load(run.path(s), run).state_dict() for spec, s in zip(weights[-1], ("teacher", "train"), strict=True)
        ]
        spied.append([graph for graph, _, _ in run.teacher.known])  # type: ignore[attr-defined]
        assert spied[-1] == [seen]
    for one, two in zip(*weights, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_teacher_without_logits(run: Run):
    class Mute:
        gives = frozenset({"text"})

        def __call__(self, batch: Any, want: Any) -> Signal:
            return Signal(text=[])

    run.teachers = {"mute": Mute()}  # type: ignore[dict-item]
    with pytest.raises(LookupError, match="the method needs 'logits', but the teacher gave text"):
        update(GLNN(), Table(STUDENT), batch(), run)


def test_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="hard must be between 0 and 1, not 1.5"):
        GLNN(hard=1.5)


def test_the_papers_numbers_are_with_the_papers_setting():
    made = recipe("paper")
    assert made.data.setting == "transductive" and made.data.split.test == 0 and made.data.largest
    assert {e.value for e in made.expect} == {0.8054}
    assert not recipe("small").expect
