"""Small models from scratch, whose initial weights depend on the run's seed alone: for toys, tests and small tasks.

Each spec builds one module and keeps it as safetensors. Sizes that are left out come from the recipe's data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core.run import Run, RunError
from ..core.signal import HeadLogits
from .hub import document_mask
from .memory import KeyValues, Past

WEIGHTS = "model.safetensors"


class Kept:
    """How every toy is saved and loaded."""

    def build(self, run: Run) -> nn.Module:
        raise NotImplementedError

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Write the weights; tied tensors are stored once."""
        save_model(module, str(folder / WEIGHTS))

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A module with the weights that `save` wrote; RunError if they do not fit this spec."""
        module = self.build(run)
        try:
            load_model(module, folder / WEIGHTS)
        except (RuntimeError, OSError) as error:
            raise RunError(f"the weights in {folder} do not fit {self}: {str(error).splitlines()[0]}") from error
        return module


@dataclass(frozen=True, kw_only=True)
class MLP(Kept):
    """A multilayer perceptron over flattened inputs."""

    inputs: int | None = None  # numbers in one item; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have
    width: int = 32
    depth: int = 2  # hidden layers
    dropout: float = 0.0

    def build(self, run: Run) -> nn.Module:
        """Inputs `[B, ...]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.inputs is None else (self.inputs,), self.classes)
        return Perceptron(math.prod(shape), classes, self.width, self.depth, self.dropout)


@dataclass(frozen=True, kw_only=True)
class ConvNet(Kept):
    """A small convolutional network for images."""

    channels: int | None = None  # of the image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have
    width: int = 32  # channels of the first stage; each stage halves the image and doubles them
    depth: int = 2  # stages
    dropout: float = 0.0  # before the head

    def build(self, run: Run) -> nn.Module:
        """Images `[B, channels, H, W]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.channels is None else (self.channels,), self.classes)
        return Convolutional(shape[0], classes, self.width, self.depth, self.dropout)


@dataclass(frozen=True, kw_only=True)
class TinyLM(Kept):
    """A decoder-only transformer: rotary positions, RMSNorm, gated MLP."""

    vocabulary: int | None = None  # None: as the recipe's data have
    width: int = 32
    depth: int = 2  # blocks
    heads: int = 2
    tied: bool = True  # one matrix for the embedding and the head

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads, not {self.width} for {self.heads} heads")

    def build(self, run: Run) -> nn.Module:
        """Packed tokens `[B, T]` to `HeadLogits` `[B, T, vocabulary]`."""
        _, classes = sizes_of(run, (), self.vocabulary)
        return Transformer(classes, self.width, self.depth, self.heads, self.tied)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, classes: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(width if i else inputs, width) for i in range(depth)])
        self.head = nn.Linear(width if depth else inputs, classes)
        self.dropout = dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, ...]` to `[B, classes]`."""
        x = inputs.flatten(1).to(self.head.weight.dtype)
        for layer in self.hidden:
            x = F.dropout(layer(x).relu(), self.dropout, self.training)
        return self.head(x)


class Convolutional(nn.Module):
    """Stages of two 3x3 convolutions and a halving; group norm, because batch norm would see how a batch is split."""

    def __init__(self, channels: int, classes: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__()
        widths = [width * 2**i for i in range(depth)]
        self.stages = nn.ModuleList([_stage(a, b) for a, b in zip([channels, *widths], widths, strict=False)])
        self.head = nn.Linear(widths[-1], classes)
        self.dropout = dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = inputs.to(self.head.weight.dtype)
        for stage in self.stages:
            x = stage(x)
            if min(x.shape[-2:]) > 1:
                x = F.max_pool2d(x, 2)
        return self.head(F.dropout(x.mean((-2, -1)), self.dropout, self.training))


class Transformer(nn.Module):
    """A language model that leaves its logits unprojected."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, tied: bool):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.checkpointing = False

    def forward(self, tokens: Tensor, position: Tensor | None = None, document: Tensor | None = None) -> HeadLogits:
        """Logits of the next token, `[B, T, V]`.

        tokens [B, T]; position [B, T] restarts in every packed document; document [B, T] numbers them, -1 is padding.
        Without `document` a row is one document.
        """
        if position is None:
            position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        mask = None if document is None else document_mask(document)
        x = self.embedding(tokens)
        for block in self.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, position, mask, use_reentrant=False) if again else block(x, position, mask)
        return HeadLogits(self.norm(x), self.head.weight)

    def cache(self) -> KeyValues:
        """An empty memory for `read`."""
        return KeyValues(len(self.blocks))

    def read(self, tokens: Tensor, position: Tensor, mask: Tensor, cache: KeyValues) -> HeadLogits:
        """Logits `[B, V]` after the last of the new tokens `[B, n]`, whose keys and values join the cache.

        mask [B, T] is 1 where there is a token, over all tokens so far; position [B, n] is of the new ones.
        """
        new, all = tokens.shape[1], mask.shape[1]
        seen = torch.ones(new, all, dtype=torch.bool, device=mask.device).tril(all - new)
        itself = torch.eye(new, all, dtype=torch.bool, device=mask.device).roll(all - new, 1)
        seen = (seen & mask[:, None].bool() | itself)[:, None]  # padding sees itself: no softmax of nothing
        x = self.embedding(tokens)
        for block, past in zip(self.blocks, cache.blocks, strict=True):
            x = block(x, position, seen, past)
        return HeadLogits(self.norm(x[:, -1]), self.head.weight)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only the blocks' inputs and compute the rest again on the way back."""
        self.checkpointing = True


class Block(nn.Module):
    """Attention and a gated MLP, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None, past: Past | None = None) -> Tensor:
        """x [B, T, width], position [B, T], mask [B, 1, T, T] or None for plain causal attention.

        `past` holds the keys and values of the tokens before x and takes up those of x.
        """
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        q, k = rotate(q, position), rotate(k, position)
        if past is not None:
            k, v = past.extend(k, v)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        gate, value = self.up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): x [B, heads, T, d], position [B, T]; angles in float32."""
    half = x.shape[-1] // 2
    speed = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, None, :, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _stage(inputs: int, width: int) -> nn.Module:
    layers: Iterator[nn.Module] = (
        layer
        for channels in (inputs, width)
        for layer in (
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(math.gcd(8, width), width), nn.ReLU()
        )
    )  # fmt: skip
    return nn.Sequential(*layers)


def sizes_of(run: Run, shape: tuple[int, ...] | None, classes: int | None) -> tuple[tuple[int, ...], int]:
    """Shape of one item and number of classes: those given, else those of the recipe's training split."""
    if shape is not None and classes is not None:
        return shape, classes
    source: Any = run.sources()["train"]
    return shape if shape is not None else source.shape, classes if classes is not None else source.classes
