"""Graphs: what is read is what was written, splits do not leak, and no file is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data import planetoid
from stillhouse.data.graphs import UNKNOWN, Blocks, Graph, GraphFile, Labelled, NodeSplit

SHELF = Path(__file__).parents[3] / "shared" / "data" / "planetoid"
FEW = NodeSplit(labels=5, valid=5, test=60)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def blocks(run: Run, **settings: Any) -> Any:
    return Blocks(nodes=200, classes=4, inputs=8, split=FEW, **settings).load(run)


def pairs(graph: Graph) -> set[tuple[int, int]]:
    return {(a, b) for a, b in graph.edges.T.tolist()}


def small() -> Graph:
    """0-1-2, 1-3, and 4 alone."""
    edges = torch.tensor([[0, 1, 1, 2, 3, 3], [1, 0, 2, 2, 1, 1]])
    return Graph.of(torch.arange(10.0).reshape(5, 2), edges)


def test_directions_loops_and_repetitions_are_dropped():
    graph = small()
    assert pairs(graph) == {(0, 1), (1, 0), (1, 2), (2, 1), (1, 3), (3, 1)}
    assert graph.degree.tolist() == [1, 3, 1, 1, 0]


def test_neighbours_of_some_nodes():
    position, other = small().neighbours(torch.tensor([1, 4, 0, 1]))
    assert list(zip(position.tolist(), other.tolist(), strict=True)) == [
        (0, 0),
        (0, 2),
        (0, 3),
        (2, 1),
        (3, 0),
        (3, 2),
        (3, 3),
    ]
    position, other = small().neighbours(torch.tensor([4]))
    assert position.numel() == other.numel() == 0


def test_smoothing_and_means_are_the_dense_formulas():
    graph = small()
    dense = torch.zeros(5, 5)
    dense[graph.edges[1], graph.edges[0]] = 1
    looped = dense + torch.eye(5)
    root = looped.sum(1).rsqrt().diag()
    assert torch.allclose(graph.smooth(graph.features), root @ looped @ root @ graph.features)
    mean = dense / dense.sum(1, keepdim=True).clamp(min=1) @ graph.features
    assert torch.allclose(graph.mean(graph.features), mean)
    assert graph.mean(graph.features)[4].tolist() == [0, 0]


def test_the_largest_part():
    assert small().largest().tolist() == [0, 1, 2, 3]
    path = Graph.of(torch.zeros(9, 1), torch.tensor([[7, 5, 3, 1, 0], [5, 3, 1, 8, 2]]))
    assert path.largest().tolist() == [1, 3, 5, 7, 8]


def test_splits_are_apart_and_labels_are_hidden(run: Run):
    splits = blocks(run)
    train, valid, test = splits["train"], splits["valid"], splits["test"]
    known = train.nodes[train.labels >= 0]
    assert set(splits) == {"train", "valid", "test"}
    assert len(train) == 200 and len(known) == 20 and len(valid) == 20 and len(test) == 60
    parts = [set(part.tolist()) for part in (known, valid.nodes, test.nodes)]
    assert len(set.union(*parts)) == 100
    assert (train.labels[valid.nodes] == UNKNOWN).all() and (train.labels[test.nodes] == UNKNOWN).all()
    assert train.labels[known].bincount().tolist() == [5, 5, 5, 5]


def test_who_is_known_depends_on_the_seed_and_who_is_judged_does_not(tmp_path: Path):
    first, second = (blocks(Run(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert torch.equal(first["test"].nodes, second["test"].nodes)
    assert not torch.equal(first["valid"].nodes, second["valid"].nodes)
    assert torch.equal(first["train"].graph.edges, second["train"].graph.edges)
    every = [
        Blocks(nodes=200, classes=4, split=NodeSplit(labels=5, valid=5, test=0)).load(
            Run(tmp_path / f"all{seed}", seed=seed)
        )
        for seed in (0, 1)
    ]
    assert len(every[0]["test"]) == 160
    assert not torch.equal(every[0]["test"].nodes, every[1]["test"].nodes)


def test_nodes_that_arrive_later_are_nowhere_in_training(run: Run):
    """They and their edges are missing from the graph of every split but `test`, and the rest of it is whole."""
    before, after = blocks(run), blocks(run, setting="inductive")
    whole, seen = after["test"].graph, after["train"].graph
    assert len(after["test"]) == 12 and len(after["observed"]) == 48
    assert len(whole) == 200 and len(seen) == 188
    assert (after["test"].nodes >= 188).all()
    for name in ("train", "valid", "observed"):
        assert after[name].graph is seen and int(after[name].nodes.max()) < 188
    assert torch.equal(seen.features, whole.features[:188])
    assert pairs(seen) == {(a, b) for a, b in pairs(whole) if a < 188 and b < 188}
    assert int(seen.degree.sum()) == seen.edges.shape[1] < whole.edges.shape[1] == before["train"].graph.edges.shape[1]
    gone = {tuple(row) for row in whole.features[188:].tolist()}
    assert not gone & {tuple(row) for row in seen.features.tolist()}
    old = before["train"].graph.features
    new = {tuple(row): i for i, row in enumerate(whole.features.tolist())}
    number = torch.tensor([new[tuple(row)] for row in old.tolist()])
    assert {(int(number[a]), int(number[b])) for a, b in pairs(before["train"].graph)} == pairs(whole)


def test_a_batch(run: Run):
    train = blocks(run)["train"]
    batch = train.batch([3, 0], 0)
    assert batch["inputs"]["node"].tolist() == [3, 0]
    assert torch.equal(batch["inputs"]["features"], train.graph.features[[3, 0]])
    every = train.batch(range(200), 0)
    assert float((every["label_weight"] * (every["labels"] >= 0)).sum()) == pytest.approx(200)
    assert train.shape == (8,) and train.classes == 4


def test_what_a_network_needs_to_answer(run: Run):
    graph = blocks(run)["train"].graph
    nodes = torch.tensor([5, 17, 5])
    near, number = graph.around(nodes, 2)
    assert len(near) < len(graph)
    assert torch.equal(near.features[number], graph.features[nodes])
    twice = graph.smooth(graph.smooth(graph.features))[nodes]
    assert torch.allclose(near.smooth(near.smooth(near.features))[number], twice, atol=1e-6)
    assert torch.allclose(
        near.mean(near.mean(near.features))[number], graph.mean(graph.mean(graph.features))[nodes], atol=1e-6
    )
    alone, number = small().around(torch.tensor([4]), 2)
    assert len(alone) == 1 and alone.edges.shape == (2, 0) and number.tolist() == [0]


def test_labelled_nodes_of_the_recipes_data(run: Run):
    class Recipe:
        data = Blocks(nodes=200, classes=4, split=FEW, setting="inductive")

    run.recipe = Recipe
    few = Labelled().load(run)["train"]
    assert len(few) == 20 and (few.labels >= 0).all()
    assert few.graph is run.sources()["train"].graph
    assert few.batch([0], 0)["label_weight"].tolist() == [1.0]


# -- files -----------------------------------------------------------------------------------------------------------


def arrays(n: int = 60) -> dict[str, Any]:
    draw = numpy.random.default_rng(0)
    edges = draw.integers(0, n, (2, 150))
    return {"features": draw.normal(size=(n, 3)).astype("f4"), "edges": edges, "labels": numpy.arange(n) % 3 + 4}


SPLIT = NodeSplit(labels=3, valid=3, test=20)


def test_npz_pt_and_csv_hold_the_same_graph(tmp_path: Path, run: Run):
    held = arrays()
    numpy.savez(tmp_path / "g.npz", **held)
    names = {"features": "x", "edges": "edge_index", "labels": "y"}
    torch.save({names[k]: torch.from_numpy(v) for k, v in held.items()}, tmp_path / "g.pt")
    folder = tmp_path / "csv"
    folder.mkdir()
    rows = [
        f"n{i},class{y},{','.join(map(str, x))}"
        for i, (x, y) in enumerate(zip(held["features"], held["labels"], strict=True))
    ]
    (folder / "nodes.csv").write_text("id,label,a,b,c\n" + "\n".join(rows) + "\n")
    (folder / "edges.csv").write_text("source,target\n" + "".join(f"n{a},n{b}\n" for a, b in held["edges"].T))
    found = [GraphFile(path=str(tmp_path / name), split=SPLIT).load(run) for name in ("g.npz", "g.pt", "csv")]
    for other in found[1:]:
        for name, nodes in found[0].items():
            assert torch.equal(nodes.nodes, other[name].nodes) and torch.equal(nodes.labels, other[name].labels)
        assert torch.allclose(found[0]["train"].graph.features, other["train"].graph.features)
        assert torch.equal(found[0]["train"].graph.edges, other["train"].graph.edges)
    assert found[0]["train"].names == ("4", "5", "6") and found[2]["train"].names == ("class4", "class5", "class6")


def test_the_cpf_collection(tmp_path: Path, run: Run):
    from scipy import sparse

    held = arrays()
    adjacency = sparse.coo_matrix((numpy.ones(150), tuple(held["edges"])), shape=(60, 60)).tocsr()
    words = sparse.csr_matrix(held["features"])
    content: dict[str, Any] = {"labels": held["labels"]}
    for name, matrix in (("adj", adjacency), ("attr", words)):
        content |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    numpy.savez(tmp_path / "cpf.npz", **content)
    numpy.savez(tmp_path / "plain.npz", **held)
    one, other = (GraphFile(path=str(tmp_path / f"{n}.npz"), split=SPLIT).load(run)["train"].graph for n in ("cpf", "plain"))
    assert torch.equal(one.edges, other.edges) and torch.allclose(one.features, other.features)


def test_masks_of_ones_own(tmp_path: Path, run: Run):
    held = arrays()
    number = numpy.arange(60)
    held |= {"train_mask": number < 10, "val_mask": (number >= 10) & (number < 20), "test_mask": number >= 40}
    numpy.savez(tmp_path / "g.npz", **held)
    splits = GraphFile(path=str(tmp_path / "g.npz")).load(run)
    assert (splits["train"].labels >= 0).nonzero().flatten().tolist() == list(range(10))
    assert splits["test"].nodes.tolist() == list(range(40, 60))
    held["test_mask"][5] = True
    numpy.savez(tmp_path / "g.npz", **held)
    with pytest.raises(RunError, match="in two of the masks"):
        GraphFile(path=str(tmp_path / "g.npz")).load(run)


@pytest.mark.parametrize(("change", "message"), [
    ({"edges": numpy.array([[0], [60]])}, "an edge leads to node 60, and there are 60"),
    ({"labels": numpy.zeros(60, int)}, "has 1 classes"),
    ({"labels": numpy.zeros(59, int)}, "do not make a graph"),
    ({"features": numpy.full((60, 3), numpy.nan)}, "not a finite number"),
])  # fmt: skip
def test_graphs_that_are_none(tmp_path: Path, run: Run, change: Any, message: str):
    numpy.savez(tmp_path / "g.npz", **(arrays() | change))
    with pytest.raises(RunError, match=message):
        GraphFile(path=str(tmp_path / "g.npz"), split=SPLIT).load(run)


def test_too_few_nodes_and_missing_files(tmp_path: Path, run: Run):
    numpy.savez(tmp_path / "g.npz", **arrays())
    with pytest.raises(RunError, match="too few for 20 labels and 30 to choose by"):
        GraphFile(path=str(tmp_path / "g.npz"), split=NodeSplit(test=20)).load(run)
    with pytest.raises(RunError, match="no file or folder"):
        GraphFile(path=str(tmp_path / "none.npz")).load(run)


def test_without_data_the_block_model_steps_in_and_says_so(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    run.stage = "teacher"
    splits = GraphFile(otherwise=Blocks(), setting="inductive").load(run)
    assert "block model" in splits["train"].origin and "Cora was not found" in splits["train"].origin
    assert any("block model" in line.get("text", "") for line in run.read("events.jsonl"))
    assert "observed" in splits
    with pytest.raises(RunError, match="set data.path to your graph"):
        GraphFile().load(run)


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, protocol: int):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"it (names|uses)"):
        planetoid.parse(pickle.dumps({"graph": Trap()}, protocol))
    torch.save(Trap(), "g.pt")
    with pytest.raises(RunError, match="reading objects would run them"):
        GraphFile(path="g.pt").load(run)
    assert not Path("trapped").exists()


def test_damaged_planetoid_files():
    good = pickle.dumps([1, 2, 3], 2)
    assert planetoid.parse(good) == [1, 2, 3]
    for size in range(1, len(good)):
        with pytest.raises(ValueError):
            planetoid.parse(good[:size])


@pytest.mark.skipif(not SHELF.is_dir(), reason="the raw files of Planetoid are not here")
@pytest.mark.parametrize(("name", "nodes", "edges", "words", "largest", "unknown"), [
    ("Cora", 2708, 10556, 1433, 2485, 0), ("CiteSeer", 3327, 9104, 3703, 2120, 15),
])  # fmt: skip
def test_planetoid(name: str, nodes: int, edges: int, words: int, largest: int, unknown: int):
    """The published sizes."""
    features, links, labels = planetoid.read(SHELF / name / "raw")
    graph = Graph.of(features, links)
    assert tuple(features.shape) == (nodes, words) and graph.edges.shape[1] == edges
    assert len(graph.largest()) == largest and int((labels < 0).sum()) == unknown
    same = (labels[graph.edges[0]] == labels[graph.edges[1]]).float().mean()
    assert float(same) > 0.73  # the published edge homophily: 0.81 and 0.74
