"""What is said about nodes, in both settings, and what the time to an answer is taken of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.audits.nodes import NodeClassification, around_median
from stillhouse.core.run import Run
from stillhouse.core.stage import Subjects
from stillhouse.data.graphs import Blocks, NodeSplit
from stillhouse.models.graph import GCN, GraphNetwork, NodeMLP


def audited(folder: Path, setting: str, student: Any, split: str = "test") -> tuple[Any, list[Any]]:
    run = Run(folder, device=torch.device("cpu"))
    data = Blocks(nodes=200, classes=4, inputs=8, setting=setting, split=NodeSplit(labels=5, valid=5, test=60))  # type: ignore[arg-type]
    run.recipe = type("Recipe", (), {"data": data, "student": student})
    check = NodeClassification(split=split, draws=50, repeats=5)
    return run, list(check(run, Subjects(run, ("start",))))


@pytest.mark.parametrize("student", [NodeMLP(width=4), GCN(width=4)])
def test_both_settings(tmp_path: Path, student: Any):
    run, found = audited(tmp_path / "inductive", "inductive", student)
    by_name = {f.name: f for f in found}
    module, splits = Subjects(run, ("start",)).load("start"), run.sources()
    for name, split in (("accuracy", "test"), ("accuracy_observed", "observed")):
        source = splits[split]
        batch = source.batch(range(len(source)), 0)
        right = (module(**batch["inputs"]).argmax(1) == batch["labels"]).float().mean()
        assert by_name[name].value == pytest.approx(float(right)) and by_name[name].n == len(source)
        assert by_name[name].split == split
    assert "block model" in by_name["accuracy"].note
    latency = by_name["latency"]
    assert 0 < latency.low <= latency.value <= latency.high and latency.n == 5  # type: ignore[operator]
    names = {f.name for f in audited(tmp_path / "transductive", "transductive", student)[1]}
    assert "accuracy_observed" not in names and "items_per_second" not in names
    assert "accuracy_observed" not in {f.name for f in audited(tmp_path / "valid", "inductive", student, "valid")[1]}


def test_a_graph_network_is_timed_on_the_neighbourhood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    inside = GraphNetwork.everything
    monkeypatch.setattr(GraphNetwork, "everything", lambda net, graph: sizes.append(len(graph)) or inside(net, graph))
    audited(tmp_path, "transductive", GCN(width=4))
    assert sizes[0] == 200 and len(sizes) == 1 + 3 + 5
    assert all(10 <= size < 200 for size in sizes[1:])


def test_the_interval_of_a_median():
    assert around_median(5) == (0, 4)
    low, high = around_median(40)
    assert low < 19 < 20 < high and high - low < 16
