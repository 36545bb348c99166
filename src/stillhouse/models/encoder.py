"""A small text encoder from scratch, and what goes on inside encoders: hidden states and attention scores, by hooks.

`inside` works on any module whose layers are in an `nn.ModuleList` and take the hidden states first: Hugging Face's encoders
and the one here alike; no model is edited. Attention scores before the softmax are computed from what the layers' query and
key projections gave, where a layer has such a pair (BERT, RoBERTa, ELECTRA, XLM-R, DistilBERT, ViT, the one here); models
whose scores are more than their products (rotary or relative positions) have other names, and none are given for them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from ..core.signal import Batch
from .call import logits_of
from .toys import Kept, sizes_of

PADDING, MASK = 0, 1  # tokens of the encoder below
_PAIRS = (("query", "key"), ("q_lin", "k_lin"))


@dataclass(frozen=True, slots=True)
class Inside:
    """What a module said and what it computed on the way."""

    logits: Any
    hidden: list[Tensor]  # [B, T, d] each: what the first layer got, then what every layer gave
    scores: list[Tensor]  # [B, heads, T, T] of every layer, before the softmax and without a mask; empty: not to be had


def inside(module: nn.Module, batch: Batch) -> Inside:
    """Run the module on the batch and look inside."""
    hidden: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {"query": [], "key": []}
    pairs = [_pair(layer) for layer in layers_of_encoder(module)]
    hooks: list[Any] = []

    def begun(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if not hidden:
            hidden.append(args[0] if args else named["hidden_states"])

    def ended(_: nn.Module, args: Any, output: Any) -> None:
        hidden.append(output if isinstance(output, Tensor) else output[0])

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args, output: seen[name].append(output)

    try:
        for layer, pair in zip(layers_of_encoder(module), pairs, strict=True):
            hooks.append(layer.register_forward_pre_hook(begun, with_kwargs=True))
            hooks.append(layer.register_forward_hook(ended))
            if pair is not None:
                hooks += [pair[0].register_forward_hook(keep("query")), pair[1].register_forward_hook(keep("key"))]
        logits = logits_of(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    heads = [pair[2] for pair in pairs if pair is not None]
    known = len(heads) == len(pairs) == len(seen["query"])
    return Inside(logits, hidden, list(map(products, seen["query"], seen["key"], heads)) if known else [])


def products(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """`[B, heads, T, T]`: query times key over the root of a head's width, for projections `[B, T, heads * width]`."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def layers_of_encoder(module: nn.Module) -> list[nn.Module]:
    """The layers that the hidden states go through; RunError if there are none."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len({type(layer) for layer in m}) == 1]
    if not lists:
        raise RunError(f"{type(module).__name__} has no list of layers to look into; give an encoder of layers")
    return list(max(lists, key=lambda found: sum(p.numel() for p in found.parameters())))


def real_tokens(batch: Batch) -> Tensor:
    """Which positions are no padding, `[B, T]` boolean."""
    inputs = batch["inputs"]
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        raise RunError("the batch does not say which tokens are padding: the student's encoder has to give attention_mask")
    return mask.bool()


def _pair(layer: nn.Module) -> tuple[nn.Module, nn.Module, int] | None:
    """The layer's query and key projections and its number of heads."""
    named = {name.rpartition(".")[2]: part for name, part in layer.named_modules()}
    counts = (getattr(m, name, None) for m in layer.modules() for name in ("num_attention_heads", "n_heads", "heads"))
    heads = next((count for count in counts if isinstance(count, int)), None)
    for query, key in _PAIRS:
        if query in named and key in named and heads is not None:
            return named[query], named[key], heads
    return None


@dataclass(frozen=True, kw_only=True)
class TinyEncoder(Kept):
    """A bidirectional transformer over hashed words, and a classifier on the mean of its last hidden states."""

    classes: int | None = None  # None: as the recipe's data have
    width: int = 32
    depth: int = 2  # layers
    heads: int = 2
    vocabulary: int = 4096  # words share a vector where their hashes agree
    length: int = 32  # words of a text, at most

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of the heads, not {self.width} for {self.heads} heads")

    def build(self, run: Run) -> nn.Module:
        """Words `[B, T]` to logits `[B, classes]`."""
        _, classes = sizes_of(run, (), self.classes)
        return WordEncoder(self, classes)

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to padded word numbers and which of them are no padding."""

        def encode(texts: Sequence[str]) -> Mapping[str, Tensor]:
            rows = [re.findall(r"\w+|[^\w\s]", text.casefold())[: self.length] or [""] for text in texts]
            table = torch.full((len(rows), max(map(len, rows), default=1)), PADDING)
            for row, words in zip(table, rows, strict=True):
                row[: len(words)] = torch.tensor([2 + zlib.crc32(w.encode()) % (self.vocabulary - 2) for w in words])
            return {"input_ids": table, "attention_mask": (table != PADDING).long()}

        return encode


class WordEncoder(nn.Module):
    """Word vectors and positions, layers, a mean and a linear layer."""

    def __init__(self, spec: TinyEncoder, classes: int):
        super().__init__()
        self.words, self.positions = nn.Embedding(spec.vocabulary, spec.width), nn.Embedding(spec.length, spec.width)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=spec.width**-0.5)
        self.layer = nn.ModuleList([EncoderLayer(spec.width, spec.heads) for _ in range(spec.depth)])
        self.norm = nn.LayerNorm(spec.width)  # of the embedding
        self.head = nn.Linear(spec.width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B, T]` to `[B, classes]`."""
        x = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for layer in self.layer:
            x = layer(x, attention_mask[:, None, None].bool())
        real = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1).clamp(min=1))

    def guess(self, hidden: Tensor) -> Tensor:
        """Logits over the words for last hidden states `[n, width]`."""
        return hidden @ self.words.weight.T


class EncoderLayer(nn.Module):
    """Attention and an MLP, each added to the stream and normalised, as in BERT."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.after_attention, self.after_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width], mask [B, 1, 1, T]."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)
        x = self.after_attention(x + self.out(attended))
        return self.after_mlp(x + self.mlp(x))
