"""Vector quantisation against loops, its gradients by hand, and codes that begin anew."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.models.quantised import Codebook, Quantiser, perplexity


def made(codes: int = 7, width: int = 3, levels: int = 1) -> tuple[Quantiser, torch.Tensor]:
    torch.manual_seed(0)
    return Quantiser(codes, width, levels).double(), torch.randn(2, 5, width, dtype=torch.float64)


def test_the_nearest_by_brute_force():
    book, z = made()
    found = book(z)
    vectors = book.books[0].vectors
    for place in range(5):
        apart = [float((z[1, place] - e).square().sum().detach()) for e in vectors]
        code = apart.index(min(apart))
        assert int(found.codes[1, place, 0]) == code
        assert torch.allclose(found.vectors[1, place], vectors[code])
        assert float(found.commitment[1, place].detach()) == pytest.approx(min(apart) / 3)


def test_what_is_left_over_is_quantised_again():
    book, z = made(levels=3)
    found = book(z)
    left, commitment = z, 0.0
    for level, part in enumerate(book.books):
        codes = torch.cdist(left, part.vectors.expand(2, -1, -1)).argmin(-1)
        assert torch.equal(codes, found.codes[..., level])
        commitment = commitment + (left - part.vectors[codes]).square().mean(-1)
        left = left - part.vectors[codes]
    assert torch.allclose(found.vectors, z - left) and torch.allclose(found.commitment, commitment)
    assert torch.allclose(book.vectors(found.codes), found.vectors)


def test_where_gradients_go():
    book, z = made(levels=2)
    z.requires_grad_()
    pull = torch.randn(2, 5, 3, dtype=torch.float64)
    (book(z).vectors * pull).sum().backward()  # straight through, and not to the codebooks
    assert torch.allclose(z.grad, pull) and all(p.grad is None for p in book.parameters())
    z.grad = None
    found = book(z)
    found.codebook.sum().backward()  # the codebooks alone
    assert z.grad is None and float(book.books[1].vectors.grad.abs().sum()) > 0
    first = book.books[0].vectors
    hit = found.codes[..., 0] == found.codes[0, 0, 0]
    code = int(found.codes[0, 0, 0])
    assert torch.allclose(first.grad[code], (2 / 3 * (first[code] - z)[hit]).sum(0))
    book.zero_grad()
    book(z).commitment.sum().backward()  # the vectors alone: two levels, and z - e is what both pull by
    left = z - first[found.codes[..., 0]]
    wanted = 2 / 3 * (left + left - book.books[1].vectors[found.codes[..., 1]])
    assert torch.allclose(z.grad, wanted) and all(p.grad is None for p in book.parameters())


def test_a_fit_is_one_step_of_k_means():
    book, _ = made(codes=4)
    part = book.books[0]
    draw = torch.Generator().manual_seed(5)
    seen = torch.randn(200, 3, dtype=torch.float64, generator=draw)
    chosen = part.nearest(seen)
    wanted = torch.stack([seen[chosen == code].mean(0) for code in range(4)])
    before = float((seen - part.vectors[chosen]).square().mean().detach())
    assert part.refit(seen, draw) == 0 and torch.allclose(part.vectors, wanted)
    for _ in range(20):
        part.refit(seen, draw)
    after = float((seen - part.vectors[part.nearest(seen)]).square().mean().detach())
    assert after < before and torch.allclose(seen[part.nearest(seen) == 0].mean(0), part.vectors[0], atol=0.1)


def test_unused_codes_begin_anew():
    book, _ = made()
    part = book.books[0]
    with torch.no_grad():
        part.vectors[:] = 100.0 + torch.arange(7)[:, None]
        part.vectors[2] = 0.0
    seen = 0.1 * torch.randn(40, 3, dtype=torch.float64)
    assert part.refit(seen, torch.Generator().manual_seed(0)) == 6
    assert torch.allclose(part.vectors[2], seen.mean(0))
    rows = {tuple(row) for row in seen.tolist()}
    assert all(tuple(part.vectors[code].tolist()) in rows for code in (0, 1, 3, 4, 5, 6))
    assert len({tuple(row) for row in part.vectors.tolist()}) == 7  # no vector twice
    with torch.no_grad():
        part.vectors += 50.0 + torch.arange(7)[:, None]
    assert part.refit(seen[:2], torch.Generator().manual_seed(0)) == 6
    assert int((part.vectors.abs().amax(1) < 1).sum()) == 3  # no more begin anew than there are vectors


def test_every_level_is_fitted_to_what_is_left_over():
    book, _ = made(levels=2)
    with torch.no_grad():
        book.books[1].vectors += 100.0
    z = torch.randn(50, 3, dtype=torch.float64)
    assert book.refit(z, torch.Generator().manual_seed(1)) >= 6
    left = z - book.books[0].vectors[book.books[0].nearest(z)]
    found = [float((left - row).square().sum(-1).min()) < 1e-12 for row in book.books[1].vectors.detach()]
    assert sum(found) >= 6  # the seventh was the nearest to all, and is their mean
    assert float((z - book(z).vectors).square().mean().detach()) < float(left.square().mean().detach())


def test_edges():
    book, z = made()
    assert book(z[:0]).vectors.shape == (0, 5, 3)
    book.to(torch.bfloat16)
    found = book((1e4 * z).to(torch.bfloat16))
    assert found.vectors.dtype == torch.bfloat16 and bool(found.commitment.isfinite().all())
    assert perplexity(torch.tensor([5, 5, 0, 0])) == pytest.approx(2.0)
    assert perplexity(torch.tensor([1, 2, 1])) == pytest.approx(math.exp(1.5 * math.log(2)))
    assert perplexity(torch.zeros(4)) == 1.0
    with pytest.raises(ValueError, match="2 codes or more"):
        Codebook(1, 4)
