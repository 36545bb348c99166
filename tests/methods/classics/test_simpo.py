"""SimPO: its loss and gradient against loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preferences import gradient, scores, toy
from stillhouse.methods.classics.simpo import SimPO


def test_the_loss_is_the_papers(tmp_path: Path):
    run, student, batch = toy(tmp_path)
    method = SimPO(beta=2.5, gamma=0.7)
    (made,) = method.step(method.setup(student, run), batch, run)
    w, lo = scores(student, mean=True)
    expected = -torch.log(1 / (1 + torch.exp(-(2.5 * w - 2.5 * lo - 0.7)))).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5) and made.count == 4
    torch.testing.assert_close(gradient(made.loss, student), gradient(expected, student), rtol=1e-4, atol=1e-5)
    assert float(made.logs["chosen"]) == pytest.approx(float(w.detach().sum()), rel=1e-5)
    assert float(made.logs["preferred"]) == int((w > lo).sum())


def test_the_margin_moves_where_a_pair_is_settled(tmp_path: Path):
    """A pair pulls by beta sigmoid(gamma - beta (s_w - s_l)): by half of beta where it is won by exactly the margin."""
    run, student, batch = toy(tmp_path)
    w, lo = (side.detach() for side in scores(student, mean=True))
    one = {**batch, "weight": batch["weight"] * torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])[:, None]}
    gap = float(w[0] - lo[0])
    for beta in (1.0, 4.0):
        method = SimPO(beta=beta, gamma=beta * gap)
        (made,) = method.step(method.setup(student, run), one, run)
        w_now, l_now = scores(student, mean=True)
        expected = gradient(-0.5 * beta * (w_now[0] - l_now[0]), student)
        torch.testing.assert_close(gradient(made.loss, student), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="beta must be above 0"):
        SimPO(beta=-1.0)
