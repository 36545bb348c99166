"""Sampling from causal language models in batches, from one model or from a mixture of two.

What makes it fast: a prompt is read once for all answers to it, prompts of one length or nearly so share a batch, rows that
have ended leave it, and a token is drawn without sorting or summing the whole vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch, HeadLogits
from ..data.tokens import Document, Packed, prompts_of
from .hub import CausalLM
from .toys import Transformer

Stop = Callable[[Sequence[int]], bool]  # reads the tokens of an answer so far

_CACHED = (CausalLM, Transformer)
BLOCK = 256  # classes that are summed before one of them is drawn
HEAD = 1024  # classes among which the share of `top_p` is looked for first
LEAVE = 0.85  # rows that have ended leave the batch when they are more than the rest of this share


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = 1.0  # draw from the fewest tokens that make up this share; the one that crosses it belongs to them
    top_k: int = 0  # draw from the likeliest k tokens; 0: from all
    max_new: int = 128  # tokens
    batch: int = 64  # answers at a time
    not_first: tuple[int, ...] = ()  # tokens that no answer begins with

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError("sampling wants a temperature and top_k of 0 or more, and top_p above 0 and up to 1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was drawn, and how likely each of its tokens was before `top_p` and `top_k` cut the tail, in nats."""

    tokens: list[int]
    logp: list[float]  # at the sampling's temperature (at temperature 0, at 1) and among the tokens that were not ruled out


class Engine(ABC):
    """A language model that another library runs. `generate` and `draw` take it in a module's place."""

    context: int  # tokens of prompt and answer that it has room for
    ends: frozenset[int]  # the model's own end tokens

    @abstractmethod
    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        ends: frozenset[int],
        likely: bool,
    ) -> list[Answer]:
        """One answer per prompt, drawn by its own seed, with the end token; without `likely`, `logp` is empty."""


@contextmanager
def writer(run: Run, engine: Any = None) -> Generator[Any]:
    """What answers in a stage: the module of the run's only teacher, or that teacher in `engine` while the block lasts.

    `engine` has `opened(run)`, as `teachers.vllm.Vllm` has.
    """
    if engine is None:
        yield run.teacher.module  # type: ignore[attr-defined]
    else:
        with engine.opened(run) as opened:
            yield opened


def generate(
    module: nn.Module | Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    keys: Sequence[object] | None = None,
    ends: frozenset[int] | None = None,
    stop: Stop | None = None,
    mix: tuple[nn.Module, float] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The tokens of `draw`, which see."""
    answers = draw(
        module, prompts, sampling, seed=seed, keys=keys, ends=ends, stop=stop, mix=mix, on_batch=on_batch, likely=False
    )
    return [answer.tokens for answer in answers]


@torch.no_grad()
def draw(
    module: nn.Module | Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    keys: Sequence[object] | None = None,
    ends: frozenset[int] | None = None,
    stop: Stop | None = None,
    mix: tuple[nn.Module, float] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    likely: bool = True,
) -> list[Answer]:
    """One answer per prompt; the end token is kept, so a cut-off answer can be told from a finished one.

    To have several answers to a prompt, give it several times. To continue an answer, give it as part of the prompt.
    `ends` defaults to the model's own end tokens; an answer for whose tokens so far `stop` is true ends there too. With
    `mix = (other, share)` every token is drawn from share * other + (1 - share) * model. `on_batch(answers done,
    tokens made)` reports progress. What is drawn depends on `seed`, the prompt and its key alone, not on the prompts
    beside it; keys default to how often the same prompt came before. An `Engine` need not say how likely the tokens were
    without `likely`. ValueError for a prompt without a token, RunError for one that leaves no room in the model's context.
    """
    if not all(map(len, prompts)):
        raise ValueError("a prompt needs at least one token to begin from")
    longest, room = max(map(len, prompts), default=0), _context(module, *([mix[0]] if mix else []))
    if longest >= room:
        raise RunError(f"a prompt of {longest:,} tokens leaves no room in the model's {room:,}: lower data.length")
    answers = [Answer([], []) for _ in prompts]
    ends = ends_of(module) if ends is None else ends
    seeds = _seeds(prompts, _repeats(prompts) if keys is None else keys, seed)
    if isinstance(module, Engine):
        if mix is not None:
            raise RunError("another engine draws from one model, and this mixes two: leave `engine` out")
        if sampling.not_first:
            raise RunError("another engine begins as it likes: leave `engine` out to rule out first tokens")
        answers = module.answers(prompts, sampling, seeds=seeds, ends=ends, likely=likely) if prompts else []
        answers = answers if stop is None else [_stopped(answer, stop) for answer in answers]
        if on_batch is not None:
            on_batch(len(answers), sum(len(answer.tokens) for answer in answers))
        return answers
    points = _points(seeds, sampling.max_new)
    parts = [(module, 1.0 - (mix[1] if mix else 0.0))] + ([mix] if mix else [])
    training = [part.training for part, _ in parts]
    for part, _ in parts:
        part.eval()
    try:
        for chosen in _batches(prompts, sampling.batch, padded=all(isinstance(part, _CACHED) for part, _ in parts)):
            made = _answers([prompts[i] for i in chosen], parts, sampling, ends, stop, points[chosen])
            for i, answer in zip(chosen, made, strict=True):
                answers[i] = answer
            if on_batch is not None:
                on_batch(len(chosen), sum(len(answer.tokens) for answer in made))
    finally:
        for (part, _), was in zip(parts, training, strict=True):
            part.train(was)
    return answers


def _stopped(answer: Answer, stop: Stop) -> Answer:
    """The answer up to where `stop` would have ended it: what comes behind has had no influence on it."""
    ends = (n for n in range(1, len(answer.tokens)) if stop(answer.tokens[:n]))
    length = next(ends, len(answer.tokens))
    return Answer(answer.tokens[:length], answer.logp[:length])


def _context(*modules: nn.Module | Engine) -> float:
    """The longest text that all of them were made for."""
    return min((module.context for module in modules if isinstance(module, CausalLM | Engine)), default=math.inf)


def ends_of(module: nn.Module | Engine) -> frozenset[int]:
    """The tokens that end an answer: of the text, of a turn of a conversation."""
    if isinstance(module, Engine):
        return module.ends
    return ends_in_configs(module.model.generation_config, module.config) if isinstance(module, CausalLM) else frozenset()


def ends_in_configs(*configs: Any) -> frozenset[int]:
    """The end tokens that any of a language model's configurations name."""
    found: set[int] = set()
    for config in configs:
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


def _seeds(prompts: Sequence[Sequence[int]], keys: Sequence[object], seed: int) -> list[int]:
    """The seed of every answer."""
    return [seed_of(seed, "generate", list(prompt), key) for prompt, key in zip(prompts, keys, strict=True)]


def _points(seeds: Sequence[int], count: int) -> Tensor:
    """Where in [0, 1) the tokens of every answer are drawn, `[prompts, count]` float64."""
    points = torch.empty(len(seeds), count, dtype=torch.float64)
    for row, seed in zip(points, seeds, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(seed))
    return points


def _batches(prompts: Sequence[Sequence[int]], size: int, *, padded: bool) -> list[list[int]]:
    """Indices of the prompts of each batch: sorted by length, and all of one length where padding is not understood.

    Equal prompts are neighbours, so that they are read together.
    """
    batches: list[list[int]] = []
    first: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), i)
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), first[tuple(prompts[i])], i)):
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
    stop: Stop | None,
    points: Tensor,
) -> list[Answer]:
    different = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    readers = [(_reader(module, list(different)), share) for module, share in parts]
    answers = [Answer([], []) for _ in prompts]
    alive = list(range(len(prompts)))
    ended: set[int] = set()
    tokens: Tensor | None = None
    for step in range(sampling.max_new):
        logits = [reader.read(tokens) for reader, _ in readers]
        if step == 0 and len(different) < len(prompts):  # from here on every answer goes its own way
            index = torch.tensor([different[tuple(prompt)] for prompt in prompts])
            logits = [z[index.to(z.device)] for z in logits]
            for reader, _ in readers:
                reader.keep(index)
        if step == 0 and sampling.not_first:
            ruled_out = torch.tensor(sampling.not_first)
            logits = [z.index_fill(-1, ruled_out.to(z.device), -math.inf) for z in logits]
        probs = _mixture(logits, [share for _, share in readers], sampling.temperature or 1.0)
        tokens = probs.argmax(-1) if sampling.temperature == 0 else _sample(_cut(probs, sampling), points[alive, step])
        logp = probs.gather(-1, tokens[:, None]).log().squeeze(-1)
        for row, token, likely in zip(alive, tokens.tolist(), logp.tolist(), strict=True):
            if row not in ended:
                answers[row].tokens.append(token)
                answers[row].logp.append(likely)
                if token in ends or (stop is not None and stop(answers[row].tokens)):
                    ended.add(row)
        going = [k for k, row in enumerate(alive) if row not in ended]
        if not going:
            break
        if len(going) < LEAVE * len(alive):
            index = torch.tensor(going)
            for reader, _ in readers:
                reader.keep(index)
            alive, tokens = [alive[k] for k in going], tokens[index.to(tokens.device)]
    return answers


def _mixture(logits: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
    """Probabilities `[B, V]` in float32: of one model, or of several, over the classes that all of them have."""
    classes = min(z.shape[-1] for z in logits)  # rows beyond the common ones pad a vocabulary
    each = [(z[:, :classes].float() / temperature).softmax(-1) for z in logits]
    return each[0] if len(each) == 1 else sum(p * share for p, share in zip(each, shares, strict=True))  # type: ignore[return-value]


def _cut(probs: Tensor, sampling: Sampling) -> Tensor:
    """`probs` without the tail beyond `top_p` and `top_k`, not normalised."""
    if sampling.top_p == 1.0 and not 0 < sampling.top_k < probs.shape[-1]:
        return probs
    head = probs.topk(min(sampling.top_k or HEAD, probs.shape[-1]), -1)
    if not sampling.top_k and bool((head.values.sum(-1) < sampling.top_p).any()):
        head = probs.topk(probs.shape[-1], -1)  # rarely: nearly always the head holds the share
    kept = head.values
    if sampling.top_p < 1.0:
        share = sampling.top_p * (kept.sum(-1, keepdim=True) if sampling.top_k else 1.0)
        kept = kept.masked_fill(kept.cumsum(-1) - kept >= share, 0.0)
    return torch.zeros_like(probs).scatter_(-1, head.indices, kept)


def _sample(weights: Tensor, points: Tensor) -> Tensor:
    """One class per row by the inverse of the cumulative sum of `weights` `[B, V]`, at its point in [0, 1).

    First the block of classes, then the class: one sum over the vocabulary, in place of a running one.
    """
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = padded.sum(-1).double().cumsum(-1)
    block, rest = _invert(sums, points.to(weights.device) * sums[:, -1])
    inside = padded[torch.arange(len(padded), device=padded.device), block].double().cumsum(-1)
    return block * BLOCK + _invert(inside, rest)[0]


def _invert(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each row `[B, n]` that `target` `[B]` falls into, and how far; never one that weighs nothing."""
    below = torch.nextafter(cumulative[:, -1], torch.zeros_like(target))
    target = torch.minimum(target, below)
    found = torch.searchsorted(cumulative, target[:, None], right=True)
    before = torch.where(found > 0, cumulative.gather(-1, (found - 1).clamp(min=0)), 0.0)
    return found.squeeze(-1), target - before.squeeze(-1)


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
    module: nn.Module,
    batch: Batch,
    sampling: Sampling,
    *,
    seed: int,
    ends: frozenset[int] | None = None,
    mix: tuple[nn.Module, float] | None = None,
) -> Batch:
    """The module's own answers to the prompts of a packed batch, in which only they count, on the batch's device.

    A document's answer does not depend on the documents beside it, hence not on how a batch is split. The rest is as in
    `draw`.
    """
    prompts, examples = prompts_of(batch), _first_of_documents(batch["example"], batch)
    answers = generate(module, prompts, sampling, seed=seed, keys=examples, ends=ends, mix=mix)
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
