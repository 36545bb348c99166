"""Sampling from causal language models in batches, from one model or from a mixture of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.run import seed_of
from ..core.signal import Batch, HeadLogits
from ..data.tokens import Document, Packed, prompts_of
from .hub import CausalLM
from .toys import Transformer

_CACHED = (CausalLM, Transformer)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = 1.0
    max_new: int = 128  # tokens
    batch: int = 64  # prompts at a time


@torch.no_grad()
def generate(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    keys: Sequence[object] | None = None,
    ends: frozenset[int] | None = None,
    mix: tuple[nn.Module, float] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """One answer per prompt, as tokens; the end token is kept, so a cut-off answer can be told from a finished one.

    Prompts of one length or nearly so share a batch. `ends` defaults to the model's own end tokens. With
    `mix = (other, share)` every token is drawn from share * other + (1 - share) * model. `on_batch(prompts done,
    tokens made)` reports progress. What is drawn depends on `seed`, the prompt and its key alone, not on the prompts
    beside it; keys default to how often the same prompt came before.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    ends = ends_of(module) if ends is None else ends
    points = _points(prompts, _repeats(prompts) if keys is None else keys, sampling.max_new, seed)
    parts = [(module, 1.0 - (mix[1] if mix else 0.0))] + ([mix] if mix else [])
    training = [part.training for part, _ in parts]
    for part, _ in parts:
        part.eval()
    try:
        for chosen in _batches(prompts, sampling.batch, padded=all(isinstance(part, _CACHED) for part, _ in parts)):
            made = _answers([prompts[i] for i in chosen], parts, sampling, ends, points[chosen])
            for i, answer in zip(chosen, made, strict=True):
                answers[i] = answer
            if on_batch is not None:
                on_batch(len(chosen), sum(map(len, made)))
    finally:
        for (part, _), was in zip(parts, training, strict=True):
            part.train(was)
    return answers


def ends_of(module: nn.Module) -> frozenset[int]:
    """The tokens that end an answer: of the text, of a turn of a conversation."""
    if not isinstance(module, CausalLM):
        return frozenset()
    found: set[int] = set()
    for config in (module.model.generation_config, module.config):
        ends = getattr(config, "eos_token_id", None)
        found.update(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
    return frozenset(found)


def _repeats(prompts: Sequence[Sequence[int]]) -> list[int]:
    seen = Counter[tuple[int, ...]]()
    numbers: list[int] = []
    for prompt in map(tuple, prompts):
        numbers.append(seen[prompt])
        seen[prompt] += 1
    return numbers


def _points(prompts: Sequence[Sequence[int]], keys: Sequence[object], count: int, seed: int) -> Tensor:
    """Where in [0, 1) the tokens of every answer are drawn, `[prompts, count]` float64."""
    points = torch.empty(len(prompts), count, dtype=torch.float64)
    for row, prompt, key in zip(points, prompts, keys, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(seed_of(seed, "generate", list(prompt), key)))
    return points


def _batches(prompts: Sequence[Sequence[int]], size: int, *, padded: bool) -> list[list[int]]:
    """Indices of the prompts of each batch: sorted by length, and all of one length where padding is not understood."""
    batches: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        last = batches[-1] if batches else []
        if last and len(last) < size and (padded or len(prompts[last[0]]) == len(prompts[i])):
            last.append(i)
        else:
            batches.append([i])
    return batches


def _answers(
    prompts: Sequence[Sequence[int]],
    parts: Sequence[tuple[nn.Module, float]],
    sampling: Sampling,
    ends: frozenset[int],
    points: Tensor,
) -> list[list[int]]:
    readers = [(_reader(module, prompts), share) for module, share in parts]
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    ended: set[int] = set()
    tokens: Tensor | None = None
    for step in range(sampling.max_new):
        logits = [reader.read(tokens) for reader, _ in readers]
        classes = min(z.shape[-1] for z in logits)  # rows beyond the common ones pad a vocabulary
        shares = [share for _, share in readers]
        each = [_distribution(z[:, :classes], sampling) * share for z, share in zip(logits, shares, strict=True)]
        probs = torch.stack(each).sum(0)
        chosen = probs.argmax(-1) if sampling.temperature == 0 else _sample(probs, points[alive, step])
        tokens = chosen.to(probs.device)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row not in ended:
                answers[row].append(token)
                if token in ends:
                    ended.add(row)
        going = [k for k, row in enumerate(alive) if row not in ended]
        if not going:
            break
        if len(going) < 0.75 * len(alive):  # finished rows leave the batch, a few at a time
            index = torch.tensor(going)
            for reader, _ in readers:
                reader.keep(index)
            alive, tokens = [alive[k] for k in going], tokens[index.to(tokens.device)]
    return answers


def _distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities `[B, V]` in float32 at the sampling's temperature, the tail beyond `top_p` cut off."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.softmax(-1)
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1.0:
        ordered, index = probs.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        probs = probs.scatter(-1, index, ordered.masked_fill(beyond, 0.0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def _sample(probs: Tensor, points: Tensor) -> Tensor:
    """One class per row by the inverse of the cumulative sum, at its point in [0, 1)."""
    total = probs.double().cumsum(-1)
    found = torch.searchsorted(total, points[:, None].to(probs.device) * total[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=probs.shape[-1] - 1)


class _Reader(Protocol):
    """Reads a batch of texts token by token."""

    def read(self, tokens: Tensor | None) -> Tensor:
        """Next-token logits `[B, V]` after the prompts (None) or after one more token each, `[B]`."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        ...


def _reader(module: nn.Module, prompts: Sequence[Sequence[int]]) -> _Reader:
    return _Cached(module, prompts) if isinstance(module, _CACHED) else _Plain(module, prompts)


class _Plain:
    """Any module that maps tokens to logits: reads the whole text again for each token. Prompts are of one length."""

    def __init__(self, module: nn.Module, prompts: Sequence[Sequence[int]]):
        self.module = module
        self.text = torch.tensor([list(p) for p in prompts], device=next(module.parameters()).device)

    def read(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self.text = torch.cat([self.text, tokens[:, None]], 1)
        logits: Any = self.module(self.text)
        return logits[:, -1].dense() if isinstance(logits, HeadLogits) else logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.text = self.text[rows.to(self.text.device)]


class _Cached:
    """A model that remembers keys and values; prompts are padded on the left."""

    def __init__(self, module: CausalLM | Transformer, prompts: Sequence[Sequence[int]]):
        self.module = module
        device = next(module.parameters()).device
        width = max(len(p) for p in prompts)
        self.tokens = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
        self.mask = torch.zeros_like(self.tokens)
        for row, prompt in enumerate(prompts):
            self.tokens[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
            self.mask[row, width - len(prompt) :] = 1
        self.cache: Any = module.cache()

    def read(self, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            new, position = self.tokens, (self.mask.cumsum(-1) - 1).clamp(min=0)
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
            new, position = tokens[:, None], self.mask.sum(-1, keepdim=True) - 1
        return self.module.read(new, position, self.mask, self.cache).dense()

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.mask.device)
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)


def rollout(
    module: nn.Module, batch: Batch, sampling: Sampling, *, seed: int, mix: tuple[nn.Module, float] | None = None
) -> Batch:
    """The module's own answers to the prompts of a packed batch, in which only they count, on the batch's device.

    A document's answer does not depend on the documents beside it, hence not on how a batch is split.
    """
    prompts, examples = prompts_of(batch), _first_of_documents(batch["example"], batch)
    answers = generate(module, prompts, sampling, seed=seed, keys=examples, mix=mix)
    return to_device(answered(prompts, answers), batch["labels"].device)


def _first_of_documents(values: Tensor, batch: Batch) -> list[int]:
    """The value `[B, T]` at the first token of every document, in the order of `prompts_of`."""
    inputs = batch["inputs"]
    return values[(inputs["position"] == 0) & (inputs["document"] >= 0)].tolist()


def answered(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Batch:
    """Prompts with their answers as a language batch, one document a row, in which only the answers count."""
    rows = tuple(
        (Document([*p, *a], [False] * len(p) + [True] * len(a), i),)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    )
    return Packed(rows, max((len(r[0].tokens) for r in rows), default=0)).batch(range(len(rows)), 0)
