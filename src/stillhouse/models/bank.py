"""What was said of every item, or of the items of a class: numbers that a method keeps from one step to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.run import RunError
from ..core.signal import Batch


class Bank(nn.Module):
    """A row of `width` numbers for each of `size` items. It is a part of the state, so a resumed run finds it again.

    A method's `step` reads rows (`row`) and hands over new ones (`note`); its `advance` writes them down (`write`), so that
    no micro-batch sees what another one of the same step has said. It is kept by one process: ranks do not exchange rows.
    """

    rows: Tensor
    met: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("met", torch.zeros(size, dtype=torch.bool))
        self.noted: list[tuple[Tensor, Tensor]] = []

    def row(self, items: Tensor, otherwise: Tensor) -> Tensor:
        """What was written of these items [B], `otherwise` [B, width] of those of which nothing was."""
        return torch.where(self.met[items].unsqueeze(-1), self.rows[items], otherwise.to(self.rows.dtype))

    def note(self, items: Tensor, values: Tensor) -> None:
        """Remember values [B, width] for `write`."""
        self.noted.append((items, values.detach().to(self.rows.dtype)))

    @torch.no_grad()
    def write(self) -> None:
        """Write down what was noted since the last time; of an item that was met twice the last counts."""
        for items, values in self.noted:
            row_of = {item: row for row, item in enumerate(items.tolist())}
            rows = torch.tensor(list(row_of.values()), dtype=torch.long, device=items.device)
            self.rows[items[rows]] = values[rows]
            self.met[items] = True
        self.noted = []


class ClassMeans(nn.Module):
    """The mean of what was said of the items of each class so far; a part of the state too, read and written like a bank."""

    sums: Tensor
    met: Tensor

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, width))
        self.register_buffer("met", torch.zeros(classes))
        self.noted: list[tuple[Tensor, Tensor]] = []

    def row(self, labels: Tensor, otherwise: Tensor) -> Tensor:
        """The means of these classes [B], `otherwise` [B, width] where nothing was said or the label is negative."""
        known = labels.clamp(min=0)
        there = (self.met[known] > 0) & (labels >= 0)
        mean = self.sums[known] / self.met[known].clamp(min=1).unsqueeze(-1)
        return torch.where(there.unsqueeze(-1), mean, otherwise.to(mean.dtype))

    def note(self, labels: Tensor, values: Tensor) -> None:
        """Remember values [B, width] for `write`; those of items without a label (negative) are left out."""
        known = labels >= 0
        self.noted.append((labels[known], values[known].detach().to(self.sums.dtype)))

    @torch.no_grad()
    def write(self) -> None:
        """Add up what was noted since the last time."""
        for labels, values in self.noted:
            self.sums.index_add_(0, labels, values)
            self.met.index_add_(0, labels, torch.ones_like(labels, dtype=self.met.dtype))
        self.noted = []


def items_of(batch: Batch, owner: str) -> Tensor:
    """The numbers of a batch's items in the training split, [B]; RunError if the data do not give them."""
    if "items" not in batch:
        raise RunError(f"{owner} keeps something for every item, and these data do not number theirs: it takes images")
    return batch["items"]
