"""Several networks as one student: clients that learn beside each other, of one architecture or each of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import State
from ..core.run import Run, RunError
from .call import dense, logits_of
from .toys import MLP


class Several(nn.Module):
    """The children `client0`, `client1`, ...; called as one, they answer with the average of their class scores."""

    def __init__(self, clients: tuple[nn.Module, ...]):
        super().__init__()
        for number, client in enumerate(clients):
            self.add_module(f"client{number}", client)

    def __len__(self) -> int:
        return len(self._modules)

    def each(self, inputs: Any) -> list[Tensor]:
        """Every client's class scores (logits), [B, classes]."""
        return [dense(logits_of(client, {"inputs": inputs})) for client in self.children()]

    def forward(self, inputs: Any) -> Tensor:
        """The consensus, [B, classes]."""
        return torch.stack(self.each(inputs)).mean(0)


class ClientState(State):
    """`student` is Several, and every client is a group of its own name, with its own optimizer."""

    def groups(self) -> dict[str, nn.Module]:
        """The clients. The student as a whole is not a group: what it holds moves once."""
        return {n: m for n, m in self.student.named_children() if any(p.requires_grad for p in m.parameters())}


@dataclass(frozen=True, kw_only=True)
class Clients:
    """One spec for each client; each is built, and kept in a folder of its own, as it would be alone."""

    members: tuple[Any, ...] = (MLP(), MLP(), MLP(), MLP())  # any ModelSpec

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must name at least one model")

    def build(self, run: Run) -> Several:
        """The clients, with first weights that differ between them."""
        return Several(tuple(spec.build(run) for spec in self.members))

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Each client to `client0/`, `client1/`, ... ."""
        for spec, (name, client) in zip(self.members, module.named_children(), strict=True):
            (folder / name).mkdir()
            spec.save(client, folder / name, run)

    def load(self, folder: Path, run: Run) -> Several:
        """The inverse of `save`."""
        found = sum(p.is_dir() for p in folder.glob("client*"))
        if found != len(self.members):
            raise RunError(f"{folder} holds {found} clients, not the {len(self.members)} of this recipe")
        return Several(tuple(spec.load(folder / f"client{n}", run) for n, spec in enumerate(self.members)))


def several(student: nn.Module, clients: int) -> Several:
    """The student, if it is as many clients as the data have; RunError otherwise."""
    if not isinstance(student, Several):
        raise RunError("this method needs several models: give it `student: {use: models.clients.Clients, members: [...]}`")
    if len(student) != clients:
        raise RunError(f"the student has {len(student)} clients, the data {clients}; set data.clients={len(student)}")
    return student


def weight_bytes(module: nn.Module) -> int:
    """The size of all weights and buffers: what it takes to send the module once."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())
