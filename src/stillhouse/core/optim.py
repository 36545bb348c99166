"""Optimizers and schedules as two words in a recipe, and the float32 master weights behind bfloat16 parameters."""

# pyright: reportUnknownMemberType=false
# (torch leaves arguments of some methods untyped)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How one group of parameters moves."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)  # adamw
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.0  # matrices only: norms and biases are never decayed
    clip: float | None = 1.0  # norm of the group's gradient
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = 0.05  # share of the steps
    final: float = 0.0  # share of `lr` at the last step

    def rate(self, step: int, horizon: int) -> float:
        """The learning rate of step `step` (from 0) of `horizon`."""
        warm = max(1, round(self.warmup * horizon)) if self.warmup else 0
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - warm) / max(1, horizon - warm))
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * (self.final + (1 - self.final) * left)


class GroupOptimizer:
    """Moves one group. Gradients arrive as sums; `step` divides them by the count.

    A bfloat16 parameter has a float32 master: each micro-batch's gradient is added to the master's in float32 as soon
    as autograd has finished it (the bfloat16 gradient is freed), and the parameter is a rounded copy of the master.
    """

    def __init__(self, module: nn.Module, optim: Optim, masters: dict[str, Tensor] | None = None):
        self.optim = optim
        self.names: list[str] = []
        self.params: list[nn.Parameter] = []
        for name, param in module.named_parameters():
            if param.requires_grad:
                self.names.append(name)
                self.params.append(param)
        self.masters: list[Tensor] = []
        self.hooks: list[Any] = []
        for name, param in zip(self.names, self.params, strict=True):
            if param.dtype in (torch.bfloat16, torch.float16):
                source = param.detach() if masters is None else masters[name]
                master = source.to(param.device, torch.float32, copy=True)
                self.hooks.append(param.register_post_accumulate_grad_hook(_gather_into(master)))
                self.masters.append(master)
            else:
                self.masters.append(param)
        decayed = [m for m in self.masters if m.ndim > 1]
        plain = [m for m in self.masters if m.ndim <= 1]
        parts = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        parts = [p for p in parts if p["params"]]
        if optim.name == "adamw":
            self.torch: torch.optim.Optimizer = torch.optim.AdamW(parts, lr=optim.lr, betas=optim.betas, fused=True)
        else:
            self.torch = torch.optim.SGD(parts, lr=optim.lr, momentum=optim.momentum)

    @torch.no_grad()
    def step(self, count: float, rate: float) -> Tensor:
        """Divide the gradient sums by `count`, clip, move with learning rate `rate`. Returns the gradient norm."""
        grads = [self._grad(m) for m in self.masters]
        if dist.is_initialized():
            for grad in grads:
                dist.all_reduce(grad)
        torch._foreach_div_(grads, count)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        norm = nn.utils.get_total_norm(grads)
        if not bool(torch.isfinite(norm)):
            self.clear()
            return norm
        if self.optim.clip is not None:
            nn.utils.clip_grads_with_norm_(self.masters, self.optim.clip, norm)
        for part in self.torch.param_groups:
            part["lr"] = rate
        self.torch.step()
        self.publish()
        self.clear()
        return norm

    def _grad(self, master: Tensor) -> Tensor:
        if master.grad is None:  # a rank, or an update, that did not reach this parameter
            master.grad = torch.zeros_like(master)
        return master.grad

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters."""
        for param, master in zip(self.params, self.masters, strict=True):
            if master is not param:
                param.copy_(master)

    def versions(self) -> list[int]:
        """How often each parameter has been written to."""
        return [param._version for param in self.params]

    @torch.no_grad()
    def take_over(self, before: list[int]) -> None:
        """Masters follow the parameters that something else has changed since `before`, which else would be lost."""
        for param, master, version in zip(self.params, self.masters, before, strict=True):
            if master is not param and param._version != version:
                master.copy_(param)

    def clear(self) -> None:
        """Drop all gradients, of parameters that other groups' losses reached too."""
        for param, master in zip(self.params, self.masters, strict=True):
            param.grad = master.grad = None

    def close(self) -> None:
        """Remove the gradient hooks from the module."""
        for hook in self.hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Masters by name and the optimizer's own state: tensors and plain numbers only."""
        masters = {n: m for n, m, p in zip(self.names, self.masters, self.params, strict=True) if m is not p}
        return {"masters": masters, "torch": self.torch.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, master in zip(self.names, self.masters, strict=True):
            if name in saved["masters"]:
                master.copy_(saved["masters"][name])
        self.torch.load_state_dict(saved["torch"])
        self.publish()


def _gather_into(master: Tensor):
    def gather(param: Tensor) -> None:
        if param.grad is None:
            return
        if master.grad is None:
            master.grad = param.grad.to(torch.float32)
        else:
            master.grad.add_(param.grad)
        param.grad = None

    return gather
