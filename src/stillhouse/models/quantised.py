"""Vectors replaced by the nearest of a few: vector quantisation, also of what an earlier one left over.

The gradient passes straight through (van den Oord et al. 2017, arXiv 1711.00937), and codebooks learn by gradient, as there.
Residual quantisation is that of Zeghidour et al. 2021 (arXiv 2107.03312). That a code which nothing is nearest to begins
anew at a vector of the data is from Dhariwal et al. 2020 (arXiv 2005.00341), and that codes are moved to the means of what
is nearest to them now and then, because gradients follow an encoder too slowly, from Łańcucki et al. 2020 (arXiv
2005.08520). Here both are done at once and between steps, over some of the data, so that it does not matter how a batch is
split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Quantised:
    """What became of vectors z `[*N, d]`."""

    vectors: Tensor  # [*N, d] e, with the gradient of e going to z
    codes: Tensor  # [*N, levels] which vector of each codebook
    commitment: Tensor  # [*N] mean square of z - sg(e), summed over levels, at least float32: moves z
    codebook: Tensor  # [*N] mean square of sg(z) - e, summed over levels: moves e


class Codebook(nn.Module):
    """`codes` vectors."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        if codes < 2:
            raise ValueError(f"a codebook has 2 codes or more, not {codes}")
        self.vectors = nn.Parameter(torch.randn(codes, width) * width**-0.5)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """`[*N]`: the code of the vector nearest to each of z `[*N, d]`; of equally near ones any."""
        wide = torch.promote_types(z.dtype, torch.float32)
        z, e = z.to(wide), self.vectors.to(wide)
        return (e.square().sum(-1) - 2 * z @ e.T).argmin(-1)  # |z|² is the same for every code

    @torch.no_grad()
    def refit(self, seen: Tensor, draw: torch.Generator) -> int:
        """One step of k-means on vectors `[n, d]`: each code moves to the mean of those it is nearest to, and a code that is
        nearest to none to one of them, drawn. How many were unused."""
        chosen, wide = self.nearest(seen), torch.promote_types(seen.dtype, torch.float32)
        used = counts(chosen, len(self.vectors))
        sums = seen.new_zeros(self.vectors.shape, dtype=wide).index_add_(0, chosen, seen.to(wide))
        means = sums / used.clamp(min=1).unsqueeze(-1)
        self.vectors.copy_(means.where((used > 0).unsqueeze(-1), self.vectors))
        dead = (used == 0).nonzero().flatten()
        picked = torch.randperm(len(seen), generator=draw)[: len(dead)].to(seen.device)
        self.vectors[dead[: len(picked)]] = seen[picked].to(self.vectors.dtype)
        return len(dead)


class Quantiser(nn.Module):
    """One codebook, or several: each of the others quantises what those before it left over."""

    def __init__(self, codes: int, width: int, levels: int = 1):
        super().__init__()
        self.books = nn.ModuleList([Codebook(codes, width) for _ in range(levels)])

    def forward(self, z: Tensor) -> Quantised:
        """z `[*N, d]`."""
        left, total = z, torch.zeros_like(z)
        codes: list[Tensor] = []
        wide = torch.promote_types(z.dtype, torch.float32)
        commitment = codebook = z.new_zeros(z.shape[:-1], dtype=wide)
        for book in self.books:
            assert isinstance(book, Codebook)
            chosen = book.nearest(left)
            found = book.vectors[chosen]
            commitment = commitment + (left - found.detach()).to(wide).square().mean(-1)
            codebook = codebook + (left.detach() - found).to(wide).square().mean(-1)
            codes.append(chosen)
            left, total = left - found.detach(), total + found.detach()
        return Quantised(z + (total - z).detach(), torch.stack(codes, -1), commitment, codebook)

    def vectors(self, codes: Tensor) -> Tensor:
        """`[*N, d]`: what codes `[*N, levels]` stand for."""
        tables: list[Tensor] = [book.vectors for book in self.books]  # pyright: ignore[reportAssignmentType]
        return torch.stack([table[codes[..., level]] for level, table in enumerate(tables)]).sum(0)

    @torch.no_grad()
    def refit(self, z: Tensor, draw: torch.Generator) -> int:
        """Fit every level to what those before leave over of vectors `[n, d]`; how many codes were unused."""
        unused = 0
        for book in self.books:
            assert isinstance(book, Codebook)
            unused += book.refit(z, draw)
            z = z - book.vectors[book.nearest(z)]
        return unused


def counts(codes: Tensor, size: int) -> Tensor:
    """`[size]` int64: how often each code is there."""
    return torch.bincount(codes.flatten(), minlength=size)


def perplexity(used: Tensor) -> float:
    """As how many equally frequent codes these counts are: e to their entropy."""
    share = used.double() / used.sum().clamp(min=1)
    return float(torch.special.entr(share).sum().exp())
