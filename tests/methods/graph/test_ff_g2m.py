"""FF-G2M's two terms against loops over edges, their minima, and their special case GLNN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.core.run import Run
from stillhouse.data.graphs import UNKNOWN, Graph
from stillhouse.methods.classics.glnn import GLNN
from stillhouse.methods.graph.ff_g2m import FFG2M
from stillhouse.teachers.graph import FrozenNodes

N, CLASSES = 8, 3
GRAPH = Graph.of(torch.zeros(N, 2), torch.tensor([[0, 1, 2, 0, 4, 5], [1, 2, 3, 3, 5, 6]]))  # node 7 is alone
EDGES = [(int(a), int(b)) for a, b in GRAPH.edges.T]
LABELS = torch.tensor([2, UNKNOWN, 0, UNKNOWN, UNKNOWN, 1, UNKNOWN, UNKNOWN])


class Table(nn.Module):
    """Logits of every node as parameters."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
        return self.logits[node]


def drawn(seed: int) -> Tensor:
    return 2 * torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = drawn(1), drawn(2)


def batch(nodes: Any = range(N), graph: Graph = GRAPH) -> dict[str, Any]:
    node = torch.tensor(list(nodes))
    inputs = {"features": graph.features[node], "node": node, "graph": graph}
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


def kl(target: Tensor, other: Tensor) -> Tensor:
    p, q = target.softmax(0), other.softmax(0)
    return sum(p[k] * (p[k] / q[k]).log() for k in range(CLASSES))  # type: ignore[return-value]


def low_by_loop(t: Tensor, z: Tensor) -> Tensor:
    """Every edge both ways and every loop: a node against the teacher at its neighbour."""
    pairs = [*EDGES, *((i, i) for i in range(N))]
    return sum(kl(t[j], z[i]) for j, i in pairs) / len(pairs)  # type: ignore[return-value]


def high_by_loop(t: Tensor, z: Tensor, tau: float) -> Tensor:
    return sum(kl((t[i] - t[j]).abs() / tau, (z[i] - z[j]).abs() / tau) for j, i in EDGES) / len(EDGES)  # type: ignore[return-value]


def test_the_loss_is_the_loop(run: Run):
    method = FFG2M(hard=0.4, tau=1.3)
    made = update(method, Table(STUDENT), batch(), run)
    ce = sum(-STUDENT[v].log_softmax(0)[LABELS[v]] for v in range(N) if LABELS[v] >= 0) / 3
    low, high = low_by_loop(TEACHER, STUDENT), high_by_loop(TEACHER, STUDENT, 1.3)
    assert float(made.logs["low"] / made.count) == pytest.approx(float(low), rel=1e-6)
    assert float(made.logs["high"] / made.count) == pytest.approx(float(high), rel=1e-6)
    expected = 0.4 * float(ce) + 0.6 * float(low + high)
    assert float(made.loss.detach() / made.count) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_the_loop(run: Run):
    """An edge's difference moves both of its ends, also the one that is not in the batch."""
    student, z = Table(STUDENT), STUDENT.clone().requires_grad_()
    made = update(FFG2M(hard=0.0, tau=1.3), student, batch(), run)
    (made.loss / made.count).backward()
    (low_by_loop(TEACHER, z) + high_by_loop(TEACHER, z, 1.3)).backward()
    assert torch.allclose(student.logits.grad, z.grad, rtol=1e-6, atol=1e-9)  # type: ignore[arg-type]
    student = Table(STUDENT)
    update(FFG2M(hard=0.0, low=0.0), student, batch([0]), run).loss.backward()
    assert student.logits.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 3]  # type: ignore[union-attr]


def test_parts_of_a_batch_add_up(run: Run):
    whole = update(FFG2M(), Table(STUDENT), batch(), run)
    parts = [update(FFG2M(), Table(STUDENT), batch([node]), run) for node in range(N)]
    assert float(sum(p.loss for p in parts).detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-12)


def test_gradients_in_double_precision(run: Run):
    def loss(logits: Tensor) -> Tensor:
        class Said(nn.Module):
            def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
                return logits[node]

        return update(FFG2M(), Said(), batch([0, 2, 5, 7]), run).loss

    assert torch.autograd.gradcheck(loss, STUDENT.clone().requires_grad_())


def test_differences_like_the_teachers_have_nothing_to_teach(run: Run):
    """Also where all logits are moved alike: only differences count."""
    student = Table(TEACHER + torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64))
    made = update(FFG2M(hard=0.0, low=0.0), student, batch(), run)
    made.loss.backward()
    assert float(made.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.logits.grad.abs().max()) < 1e-12  # type: ignore[union-attr]


def test_low_frequencies_are_the_mean_over_the_neighbourhood(run: Run):
    """A node learns the mean of the teacher's distributions at itself and its neighbours: one step of smoothing."""
    p = TEACHER.softmax(1)
    mean = torch.stack([p[[i, *(j for j, k in EDGES if k == i)]].mean(0) for i in range(N)])
    student = Table(mean.log())
    update(FFG2M(hard=0.0, high=0.0), student, batch(), run).loss.backward()
    assert float(student.logits.grad.abs().max()) < 1e-6  # type: ignore[union-attr]


def test_without_edges_it_is_glnn(run: Run):
    bare = Graph.of(torch.zeros(N, 2), torch.zeros(2, 0, dtype=torch.long))
    run.teachers = {"teacher": FrozenNodes(Table(TEACHER))}
    one, two = Table(STUDENT), Table(STUDENT)
    update(FFG2M(hard=0.4), one, batch(graph=bare), run).loss.backward()
    update(GLNN(hard=0.4), two, batch(graph=bare), run).loss.backward()
    assert torch.allclose(one.logits.grad, two.logits.grad, rtol=1e-12)  # type: ignore[arg-type]


def test_a_node_without_neighbours_has_itself(run: Run):
    made = update(FFG2M(hard=0.0), Table(STUDENT), batch([7]), run)
    share = N / (N + len(EDGES))
    assert float(made.loss.detach()) == pytest.approx(share * float(kl(TEACHER[7], STUDENT[7])), rel=1e-9)


@pytest.mark.parametrize(("settings", "message"), [
    ({"hard": -0.1}, "hard must be between 0 and 1"), ({"tau": 0.0}, "tau must be above 0, not 0.0"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        FFG2M(**settings)
