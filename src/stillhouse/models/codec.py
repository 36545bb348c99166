"""A codec for signals: two encoders of which one is to keep what is meant, their tokens, and a decoder. And a classifier.

Signals are `[B, 1, T]`. A token stands for as many samples as the product of the strides; a signal that this does not divide
is filled up with zeros, and what is given back is cut to its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .quantised import Quantised, Quantiser
from .toys import Block, Kept, sizes_of


@dataclass(frozen=True, kw_only=True)
class Codec(Kept):
    """Signals to one semantic token and `levels` acoustic ones for every step in time, and back."""

    strides: tuple[int, ...] = (2, 2, 2)  # one token for every 8 samples
    width: int = 32  # channels
    latent: int = 16  # numbers in a vector that is quantised
    semantic: int = 64  # codes of the one semantic codebook
    acoustic: int = 64  # codes of each acoustic one
    levels: int = 2  # acoustic codebooks, each for what those before left over
    attention: int = 0  # transformer blocks over the steps in time, which both encoders share
    heads: int = 2

    def __post_init__(self) -> None:
        if not self.strides or min(*self.strides, self.width, self.latent, self.levels, self.heads) < 1:
            raise ValueError("strides, width, latent, levels and heads are 1 or more")
        if min(self.semantic, self.acoustic) < 2:
            raise ValueError("a codebook has 2 codes or more")
        if self.attention and self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads, not {self.width} for {self.heads} heads")

    def build(self, run: Run) -> SignalCodec:
        """The codec; RunError for data that are no signals."""
        one_channel(run)
        return SignalCodec(self)


@dataclass(frozen=True, slots=True)
class Coded:
    """What a codec made of signals."""

    heard: Tensor  # [B, 1, T], as they come back
    semantic: Quantised  # of vectors [B, steps, latent]
    acoustic: Quantised

    @property
    def tokens(self) -> Tensor:
        """`[B, steps, 1 + levels]`: the semantic token, then the acoustic ones."""
        return torch.cat([self.semantic.codes, self.acoustic.codes], -1)


class SignalCodec(nn.Module):
    """Encoders, codebooks and the decoder of their sum."""

    def __init__(self, spec: Codec):
        super().__init__()
        self.strides, self.latent, self.semantic = spec.strides, spec.latent, spec.semantic
        self.encoders = nn.ModuleList([Encoder(spec.width, spec.strides) for _ in range(2)])
        self.shared = nn.ModuleList([Block(spec.width, spec.heads) for _ in range(spec.attention)])
        self.into = nn.ModuleList([nn.Linear(spec.width, spec.latent) for _ in range(2)])
        self.books = nn.ModuleList(
            [Quantiser(spec.semantic, spec.latent), Quantiser(spec.acoustic, spec.latent, spec.levels)]
        )
        self.decoder = Decoder(spec.latent, spec.width, spec.strides)

    def forward(self, signals: Tensor) -> Coded:
        """Signals `[B, 1, T]`."""
        semantic, acoustic = (book(z) for book, z in zip(self.books, self.vectors(signals), strict=True))
        return Coded(self.decoder(semantic.vectors + acoustic.vectors, signals.shape[-1]), semantic, acoustic)

    def vectors(self, signals: Tensor) -> list[Tensor]:
        """What is quantised, semantic and acoustic, `[B, steps, latent]` each."""
        found: list[Tensor] = []
        for encoder, into in zip(self.encoders, self.into, strict=True):
            x = encoder(signals).transpose(1, 2)
            place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            every = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            for block in self.shared:
                x = block(x, place, every)
            found.append(into(x))
        return found

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | None = None) -> Tensor:
        """Signals `[B, 1, length]` of tokens `[B, steps, 1 + levels]`; without a length, as long as the tokens reach."""
        semantic, acoustic = self.books
        assert isinstance(semantic, Quantiser) and isinstance(acoustic, Quantiser)
        total = semantic.vectors(tokens[..., :1]) + acoustic.vectors(tokens[..., 1:])
        return self.decoder(total, tokens.shape[1] * math.prod(self.strides) if length is None else length)

    @torch.no_grad()
    def refit(self, signals: Tensor, draw: torch.Generator) -> int:
        """Fit all codebooks anew to these signals; how many codes were unused."""
        found = zip(self.books, self.vectors(signals), strict=True)
        return sum(book.refit(z.flatten(0, 1), draw) for book, z in found if isinstance(book, Quantiser))


class Encoder(nn.Module):
    """Convolutions, each stage with `stride` times fewer steps in time; no norm, which would see how loud others are."""

    def __init__(self, width: int, strides: Sequence[int]):
        super().__init__()
        self.hop = math.prod(strides)
        self.enter = nn.Conv1d(1, width, 7, padding=3)
        self.stages = nn.ModuleList([Residue(width) for _ in strides])
        self.down = nn.ModuleList([nn.Conv1d(width, width, 2 * s, stride=s) for s in strides])

    def forward(self, signals: Tensor) -> Tensor:
        """`[B, 1, T]` to `[B, width, steps]`."""
        x = signals.to(self.enter.weight.dtype)
        x = self.enter(F.pad(x, (0, -x.shape[-1] % self.hop)))
        for stage, down in zip(self.stages, self.down, strict=True):
            stride: int = down.stride[0]  # type: ignore[index, assignment]
            x = stage(down(F.pad(F.elu(x), (stride // 2, stride - stride // 2))))
        return x


class Decoder(nn.Module):
    """The way back, from vectors to a signal."""

    def __init__(self, latent: int, width: int, strides: Sequence[int]):
        super().__init__()
        self.enter = nn.Conv1d(latent, width, 7, padding=3)
        self.up = nn.ModuleList([nn.ConvTranspose1d(width, width, 2 * s, s, (s + 1) // 2, s % 2) for s in reversed(strides)])
        self.stages = nn.ModuleList([Residue(width) for _ in strides])
        self.leave = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, vectors: Tensor, length: int) -> Tensor:
        """`[B, steps, latent]` to `[B, 1, length]`."""
        x = self.enter(vectors.transpose(1, 2))
        for up, stage in zip(self.up, self.stages, strict=True):
            x = up(F.elu(stage(x)))
        return self.leave(F.elu(x))[..., :length]


class Residue(nn.Module):
    """Two convolutions that add to what they get."""

    def __init__(self, width: int):
        super().__init__()
        self.wide, self.narrow = nn.Conv1d(width, width, 3, padding=3, dilation=3), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, T]`."""
        return x + self.narrow(F.elu(self.wide(F.elu(x))))


@dataclass(frozen=True, kw_only=True)
class Listener(Kept):
    """A classifier of signals: convolutions, the mean over time of what they hear, and a linear layer."""

    classes: int | None = None  # None: as the recipe's data have
    width: int = 32
    stride: int = 4  # of the first convolution, whose filters are eight times as long
    depth: int = 2  # further convolutions, over 9 steps

    def __post_init__(self) -> None:
        if min(self.width, self.stride, self.depth) < 1:
            raise ValueError("width, stride and depth are 1 or more")

    def build(self, run: Run) -> nn.Module:
        """Signals `[B, 1, T]` to logits `[B, classes]`."""
        one_channel(run)
        _, classes = sizes_of(run, (), self.classes)
        return Hears(classes, self)


class Hears(nn.Module):
    """`body` gives features in time, `head` the logits of their mean."""

    def __init__(self, classes: int, spec: Listener):
        super().__init__()
        filters, stride = 8 * spec.stride, spec.stride
        layers: list[nn.Module] = [nn.Conv1d(1, spec.width, filters, stride, padding=filters // 2), nn.ReLU()]
        for _ in range(spec.depth):
            layers += [nn.Conv1d(spec.width, spec.width, 9, padding=4), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(spec.width, classes)

    def forward(self, signals: Tensor) -> Tensor:
        """`[B, 1, T]` to `[B, classes]`."""
        return self.head(self.body(signals.to(self.head.weight.dtype)).mean(-1))


def one_channel(run: Run) -> None:
    """RunError if the recipe's data are no signals `[1, T]`."""
    shape = getattr(run.sources()["train"], "shape", ())
    if len(shape) != 2 or shape[0] != 1:
        raise RunError(
            f"a codec reads signals [1, T], and the items of these data are {list(shape)}: give data.waves.Npz or Folder"
        )
