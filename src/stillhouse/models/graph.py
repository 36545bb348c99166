"""Networks for the nodes of a graph, called with a batch's `features` [B, d], `node` [B] and `graph`.

A network on features alone is any module with an adapter; graph networks answer for `node` from the whole `graph`.
Every spec builds one module and keeps its weights, never the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from ..data.graphs import Graph
from .toys import Kept, Perceptron, sizes_of


@dataclass(frozen=True, kw_only=True)
class NodeMLP(Kept):
    """A multilayer perceptron on a node's features: it never sees an edge."""

    inputs: int | None = None  # features of a node; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have
    width: int = 128
    depth: int = 1  # hidden layers
    dropout: float = 0.0

    def build(self, run: Run) -> nn.Module:
        """Features `[B, d]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.inputs is None else (self.inputs,), self.classes)
        return OnFeatures(Perceptron(shape[0], classes, self.width, self.depth, self.dropout))


@dataclass(frozen=True, kw_only=True)
class GCN(Kept):
    """A graph convolutional network (Kipf, Welling 2017, arXiv 1609.02907): H' = relu(D^-1/2 (A + I) D^-1/2 H W)."""

    inputs: int | None = None
    classes: int | None = None
    width: int = 64
    depth: int = 1  # hidden layers
    dropout: float = 0.0  # of what a hidden layer gives

    def build(self, run: Run) -> nn.Module:
        """Nodes of a graph to logits `[B, classes]`."""
        return _network(self, run, Smoothing)


@dataclass(frozen=True, kw_only=True)
class SAGE(Kept):
    """GraphSAGE with means (Hamilton et al. 2017, arXiv 1706.02216), all neighbours: H' = relu(H W + mean(H) V)."""

    inputs: int | None = None
    classes: int | None = None
    width: int = 128
    depth: int = 1  # hidden layers
    dropout: float = 0.0

    def build(self, run: Run) -> nn.Module:
        """Nodes of a graph to logits `[B, classes]`."""
        return _network(self, run, Averaging)


@dataclass(frozen=True, kw_only=True)
class Geometric(Kept):
    """One of the networks of torch-geometric's `nn.models`: GCN, GraphSAGE, GAT, GIN, PNA, ..."""

    name: str = "GAT"
    inputs: int | None = None
    classes: int | None = None
    width: int = 64
    depth: int = 1  # hidden layers
    dropout: float = 0.0

    def build(self, run: Run) -> nn.Module:
        """Nodes of a graph to logits `[B, classes]`."""
        try:
            kind = getattr(import_module("torch_geometric.nn.models"), self.name)
        except ImportError as error:
            raise RunError("this network needs torch-geometric: pip install torch-geometric") from error
        except AttributeError as error:
            raise RunError(f"torch_geometric.nn.models has no {self.name!r}") from error
        shape, classes = sizes_of(run, None if self.inputs is None else (self.inputs,), self.classes)
        return OnEdges(kind(shape[0], self.width, self.depth + 1, out_channels=classes, dropout=self.dropout))


class OnFeatures(nn.Module):
    """Any module on features, among nodes: it is given the features and nothing else."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, features: Tensor, node: Tensor | None = None, graph: Graph | None = None) -> Any:
        """Whatever the module says about the features `[B, d]`."""
        return self.module(features)


class OnEdges(nn.Module):
    """Any module that is called with all features and an edge index `[2, E]`, as torch-geometric's are."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
        """Logits `[B, classes]` of the nodes."""
        graph = graph.on(node.device)
        return self.module(graph.features, graph.edges)[node]


class Smoothing(nn.Module):
    """One graph convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """`[N, inputs]` to `[N, outputs]`; the projection comes first because it is the narrower one."""
        return graph.smooth(_project(x, self.linear)) + self.bias


class Averaging(nn.Module):
    """One layer of GraphSAGE."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.own = nn.Linear(inputs, outputs)
        self.others = nn.Linear(inputs, outputs, bias=False)
        for linear in (self.own, self.others):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """`[N, inputs]` to `[N, outputs]`; a node without neighbours has itself alone."""
        return _project(x, self.own) + graph.mean(_project(x, self.others))


class GraphNetwork(nn.Module):
    """Graph layers with ReLU and dropout between them."""

    def __init__(self, layer: type[Smoothing] | type[Averaging], widths: list[int], dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList([layer(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.dropout = dropout

    @property
    def hops(self) -> int:
        """How far an answer looks."""
        return len(self.layers)

    def everything(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """(last hidden state [N, width], logits [N, classes]) of all nodes."""
        x = graph.compact.to(next(self.parameters()).dtype)
        for layer in self.layers[:-1]:
            x = F.dropout(layer(x, graph).relu(), self.dropout, self.training)
        return x, self.layers[-1](x, graph)

    def forward(self, features: Tensor, node: Tensor, graph: Graph) -> Tensor:
        """Logits `[B, classes]` of the nodes; their features are those in the graph."""
        return self.everything(graph.on(node.device))[1][node]


def _project(x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(x)`, also of a sparse matrix."""
    if x.layout == torch.strided:
        return linear(x)
    y = torch.sparse.mm(x, linear.weight.T)
    return y if linear.bias is None else y + linear.bias


def _network(spec: GCN | SAGE, run: Run, layer: type[Smoothing] | type[Averaging]) -> GraphNetwork:
    shape, classes = sizes_of(run, None if spec.inputs is None else (spec.inputs,), spec.classes)
    return GraphNetwork(layer, [shape[0], *[spec.width] * spec.depth, classes], spec.dropout)
