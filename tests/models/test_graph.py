"""Graph networks against their dense formulas, on nodes with and without neighbours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.core.run import Run, RunError
from stillhouse.data.graphs import Blocks, Graph, NodeSplit
from stillhouse.models.graph import GCN, SAGE, Averaging, Geometric, GraphNetwork, NodeMLP, OnEdges, OnFeatures, Smoothing
from stillhouse.teachers.graph import FrozenNodes, NodeTeacher


def graph(n: int = 12, inputs: int = 5) -> Graph:
    """Random, in double precision; the last node has no neighbour."""
    draw = torch.Generator().manual_seed(0)
    edges = torch.randint(n - 1, (2, 20), generator=draw)
    return Graph.of(torch.randn(n, inputs, generator=draw, dtype=torch.float64), edges)


def adjacency(made: Graph) -> Tensor:
    dense = torch.zeros(len(made), len(made), dtype=torch.float64)
    dense[made.edges[1], made.edges[0]] = 1
    return dense


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    data = Blocks(nodes=120, classes=3, inputs=8, split=NodeSplit(labels=5, valid=5, test=30), setting="inductive")
    made.recipe = type("Recipe", (), {"data": data})
    return made


def test_a_graph_convolution_node_by_node():
    """Kipf and Welling's Eq. 2, by loops."""
    made, layer = graph(), Smoothing(5, 3).double()
    nn.init.normal_(layer.bias)
    looped = adjacency(made) + torch.eye(12)
    degree = looped.sum(1)
    rows = []
    for i in range(12):
        total = sum(
            looped[i, j] / (degree[i] * degree[j]).sqrt() * layer.linear.weight @ made.features[j] for j in range(12)
        )
        rows.append(total + layer.bias)
    assert torch.allclose(layer(made.features, made), torch.stack(rows))
    alone = layer.linear.weight @ made.features[11] + layer.bias
    assert torch.allclose(layer(made.features, made)[11], alone)


def test_a_layer_of_graphsage_node_by_node():
    made, layer = graph(), Averaging(5, 3).double()
    dense = adjacency(made)
    rows = []
    for i in range(12):
        others = [made.features[j] for j in range(12) if dense[i, j]]
        mean = sum(others) / len(others) if others else torch.zeros(5, dtype=torch.float64)
        rows.append(layer.own.weight @ made.features[i] + layer.own.bias + layer.others.weight @ mean)
    assert torch.allclose(layer(made.features, made), torch.stack(rows))


@pytest.mark.parametrize("layer", [Smoothing, Averaging])
def test_gradients_in_double_precision(layer: Any):
    torch.manual_seed(0)
    made, net = graph(6, 3), GraphNetwork(layer, [3, 4, 2]).double()

    def logits(features: Tensor) -> Tensor:
        return net.everything(Graph(features, made.edges, made.degree))[1]

    assert torch.autograd.gradcheck(logits, made.features.clone().requires_grad_())


@pytest.mark.parametrize("layer", [Smoothing, Averaging])
def test_without_edges_it_is_an_mlp(layer: Any):
    features = torch.randn(7, 4)
    made, net = Graph.of(features, torch.zeros(2, 0, dtype=torch.long)), GraphNetwork(layer, [4, 6, 3])
    one, two = net.layers

    def linear(part: Any, x: Tensor) -> Tensor:
        return part.linear(x) + part.bias if layer is Smoothing else part.own(x)

    assert torch.allclose(net(features, torch.arange(7), made), linear(two, linear(one, features).relu()), atol=1e-6)


@pytest.mark.parametrize("layer", [Smoothing, Averaging])
def test_the_order_of_nodes_does_not_matter(layer: Any):
    made, net = graph(), GraphNetwork(layer, [5, 6, 3]).double()
    order = torch.randperm(12)
    assert torch.allclose(net.everything(made.part(order))[1], net.everything(made)[1][order])


@pytest.mark.parametrize("layer", [Smoothing, Averaging])
def test_an_answer_needs_the_neighbourhood_alone(layer: Any):
    made, net = graph(), GraphNetwork(layer, [5, 6, 4, 3]).double()
    nodes = torch.tensor([2, 11])
    near, number = made.around(nodes, net.hops)
    assert torch.allclose(net(near.features[number], number, near), net(made.features[nodes], nodes, made))


def test_sparse_features_give_what_dense_ones_do():
    draw = torch.Generator().manual_seed(0)
    words = (torch.rand(1200, 1000, generator=draw) < 0.02).float()
    made = Graph.of(words, torch.randint(1200, (2, 3000), generator=draw))
    assert made.compact.is_sparse
    for layer in (Smoothing, Averaging):
        net = GraphNetwork(layer, [1000, 8, 3])
        found = net.everything(made)[1]
        found.square().sum().backward()
        sparse = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
        net.zero_grad()
        plain = Graph(made.features, made.edges, made.degree)
        plain.__dict__["compact"] = made.features
        again = net.everything(plain)[1]
        again.square().sum().backward()
        assert torch.allclose(found, again, atol=1e-5)
        for a, p in zip(sparse, net.parameters(), strict=True):
            assert torch.allclose(a, p.grad, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [GCN(width=6), SAGE(width=6, depth=2), NodeMLP(width=6)])
def test_specs_save_weights_and_no_graph(spec: Any, run: Run, tmp_path: Path):
    torch.manual_seed(0)
    built = spec.build(run)
    batch = run.sources()["train"].batch([0, 4], 0)
    assert built(**batch["inputs"]).shape == (2, 3)
    spec.save(built, tmp_path, run)
    loaded = spec.load(tmp_path, run)
    assert torch.equal(loaded(**batch["inputs"]), built(**batch["inputs"]))
    largest = 8 * 6 + 8 * 6 + 6 * 6 * 2 + 6 * 3 * 2 + 30
    assert sum(value.numel() for value in built.state_dict().values()) <= largest


def test_the_mlp_sees_no_edge(run: Run):
    batch = run.sources()["train"].batch(range(20), 0)
    net = NodeMLP(width=6).build(run)
    assert torch.equal(net(**batch["inputs"]), net(batch["inputs"]["features"]))
    own = OnFeatures(nn.Linear(8, 3))
    assert torch.equal(own(**batch["inputs"]), own.module(batch["inputs"]["features"]))


def test_a_network_of_torch_geometrics_kind(run: Run):
    """Anything that is called with features and an edge index."""

    class Sum(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])

    made = run.sources()["train"].graph
    nodes = torch.tensor([3, 1])
    expected = torch.stack([made.features[made.neighbours(node[None])[1]].sum(0) for node in nodes])
    assert torch.allclose(OnEdges(Sum())(made.features[nodes], nodes, made), expected, atol=1e-6)


def test_without_torch_geometric(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(RunError, match="pip install torch-geometric"):
        Geometric(name="GAT").build(run)


# -- as teachers -----------------------------------------------------------------------------------------------------


def test_a_teacher_looks_at_a_graph_once(run: Run):
    teacher = NodeTeacher(spec=GCN(width=6)).build(run)
    assert isinstance(teacher, FrozenNodes) and teacher.gives == {"logits", "features"}
    looked: list[Any] = []
    teacher.module.register_forward_pre_hook(lambda *_: looked.append(1))
    inside = teacher.module.everything
    teacher.module.everything = lambda made: looked.append(len(made)) or inside(made)
    train, test = run.sources()["train"], run.sources()["test"]
    for _ in range(3):
        said = teacher(train.batch([5, 2], 0), frozenset({"logits", "features"}))
    arrived = teacher(test.batch([0], 0), frozenset({"logits"}))
    assert looked == [len(train.graph), len(test.graph)]
    hidden, logits = inside(train.graph)
    assert torch.equal(said.need("logits"), logits[[5, 2]]) and torch.equal(said.need("features")["hidden"], hidden[[5, 2]])
    assert torch.equal(arrived.need("logits"), inside(test.graph)[1][test.nodes[[0]]])
    assert arrived.features is None


def test_a_teacher_of_another_make(run: Run):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.linear(x)

    teacher = FrozenNodes(OnEdges(Linear()))
    batch = run.sources()["train"].batch([5, 2], 0)
    assert teacher.gives == {"logits"}
    said = teacher(batch, frozenset({"logits"})).need("logits")
    assert torch.allclose(said, teacher.module.module.linear(batch["inputs"]["features"]), atol=1e-6)
