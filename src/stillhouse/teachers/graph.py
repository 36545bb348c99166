"""A graph network as teacher: it looks at a graph once and answers for any of its nodes from then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.run import Run
from ..core.signal import Batch, Kind, Signal
from ..data.graphs import Graph
from ..models.call import dense, pick_logits
from .module import Frozen, ModuleTeacher


class FrozenNodes(Frozen):
    """Gives a network's logits, and its last hidden state as the feature `hidden` if it tells it."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.gives: frozenset[Kind] = frozenset({"logits", "features"} if hasattr(module, "everything") else {"logits"})
        self.known: list[tuple[Graph, Tensor, Tensor | None]] = []  # the graphs it has looked at

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """logits [B, classes], features hidden [B, width]."""
        node, graph = batch["inputs"]["node"], batch["inputs"]["graph"]
        hidden, logits = self._all(graph, node.device)
        features = {"hidden": hidden[node]} if "features" in want and hidden is not None else None
        return Signal(logits=logits[node], features=features)

    def _all(self, graph: Graph, device: torch.device) -> tuple[Tensor | None, Tensor]:
        for seen, logits, hidden in self.known:
            if seen is graph and logits.device == device:
                return hidden, logits
        whole, hidden = graph.on(device), None
        if "features" in self.gives:
            hidden, logits = self.module.everything(whole)  # type: ignore[operator]
        else:
            said: Any = self.module(features=whole.features, node=torch.arange(len(whole), device=device), graph=whole)
            found = pick_logits(said, type(self.module).__name__)
            logits = dense(found)
        self.known.append((graph, logits, hidden))
        return hidden, logits


@dataclass(frozen=True, kw_only=True)
class NodeTeacher(ModuleTeacher):
    """A teacher from the spec of a graph network, with the weights that training stage `stage` of this run left."""

    def build(self, run: Run) -> FrozenNodes:
        """The frozen network on the run's device."""
        return FrozenNodes(super().build(run).module)
