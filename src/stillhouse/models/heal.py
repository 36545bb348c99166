"""Close the gaps that dropped layers leave, before any training.

The layer in front of a gap learns to write what the dropped layers would have written: its down-projection D becomes
D + E, where E solves the ridge regression

    min_E  sum_t w_t^2 |h_t - x_t - E u_t|^2 + ridge |E|^2,   w_t = 1 / |h_t|

with h the whole model's hidden state behind the gap, x the cut model's in front of it and u what enters D. Gaps are
closed from the front, so that a later one sees what the earlier ones left. The weights w_t keep the few tokens with
huge states from ruling the fit; but they must be in it: the first token of a text, on which attention rests, has one.

After ReplaceMe (Shopkhoev et al. 2025, arXiv 2505.02819), which fits one linear map behind the MLP for a block of
consecutive layers; here gaps lie anywhere and the whole down-projection is fitted. The ridge is ours: chosen for each
gap and channel on rows that were not fitted; a channel that no ridge helps stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .hub import CausalLM, layers_of

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # times the mean of the regressors' squares


@torch.no_grad()
def healed(module: CausalLM, kept: Sequence[int], inputs: Sequence[dict[str, Tensor]]) -> dict[int, Tensor]:
    """New `mlp.down_proj` weights for the kept layers in front of a gap, by their number in the whole model.

    module: the whole model, Llama-like and in evaluation mode; it is left as it is
    inputs: packed rows as the model takes them, at least 4; every fourth one chooses the ridge
    """
    layers: Any = layers_of(module)
    ends = {k: until - 1 for k, until in zip(kept, [*kept[1:], len(layers)], strict=True) if until > k + 1}
    if not ends or len(inputs) < 4:
        return {}
    with _watched(layers, set(ends.values())) as (stream, asked, states):
        for each in inputs:
            module(**each)
    counts = [(each["document"] >= 0).flatten() for each in inputs]
    chooses = torch.cat([c & (row % 4 == 3) for row, c in enumerate(counts)]).cpu()
    fits = torch.cat(counts).cpu() & ~chooses
    found: dict[int, Tensor] = {}
    for k in kept:
        inner: list[Tensor] = []
        handle = layers[k].mlp.down_proj.register_forward_pre_hook(lambda _, args, into=inner: into.append(args[0]))
        stream = [_state(layers[k](x, **how)) for x, how in zip(stream, asked[k], strict=True)]
        handle.remove()
        if k in ends:
            u, wanted, x = (torch.cat([part.flatten(0, -2) for part in parts]) for parts in (inner, states[ends[k]], stream))
            weight = layers[k].mlp.down_proj.weight
            change = _ridge_regression(u.cpu(), (wanted - x).cpu(), wanted.cpu(), fits, chooses).to(weight)
            found[k] = weight + change
            stream = [x + F.linear(u, change) for x, u in zip(stream, inner, strict=True)]
    return found


def _ridge_regression(u: Tensor, missing: Tensor, wanted: Tensor, fits: Tensor, chooses: Tensor) -> Tensor:
    """E [d, n] such that u E' [T, d] is near to what is missing, relative to the size of `wanted`.

    Tokens that `fits` marks are fitted; those that `chooses` marks choose each row's ridge, or none and zeros.
    """
    size = wanted.double().norm(dim=-1, keepdim=True)
    weight = 1 / size.clamp(min=1e-3 * float(size.mean()))  # a token whose embedding is zero has no size
    u, missing = u.double() * weight, missing.double() * weight
    gram, product = u[fits].T @ u[fits], u[fits].T @ missing[fits]
    best, least = torch.zeros_like(product), missing[chooses].square().sum(0)
    for ridge in RIDGES:
        solved = torch.linalg.solve(gram + torch.eye(len(gram), dtype=gram.dtype) * ridge * gram.diagonal().mean(), product)
        left = (missing[chooses] - u[chooses] @ solved).square().sum(0)
        best, least = torch.where(left < least, solved, best), torch.minimum(left, least)
    return best.T


@contextmanager
def _watched(
    layers: nn.ModuleList, ends: set[int]
) -> Iterator[tuple[list[Tensor], list[list[dict[str, Any]]], dict[int, list[Tensor]]]]:
    """What goes through the layers, row by row: states into the first, other arguments of each, states out of `ends`."""
    stream: list[Tensor] = []
    asked: list[list[dict[str, Any]]] = [[] for _ in layers]
    states: dict[int, list[Tensor]] = {end: [] for end in ends}

    def see_arguments(number: int):
        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            asked[number].append({name: value for name, value in kwargs.items() if name != "hidden_states"})
            if number == 0:
                stream.append(args[0] if args else kwargs["hidden_states"])

        return see

    def see_state(number: int):
        return lambda layer, args, output: states[number].append(_state(output))

    handles = [x.register_forward_pre_hook(see_arguments(i), with_kwargs=True) for i, x in enumerate(layers)]
    handles += [layers[end].register_forward_hook(see_state(end)) for end in ends]
    try:
        yield stream, asked, states
    finally:
        for handle in handles:
            handle.remove()


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
