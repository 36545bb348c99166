"""NKD against its formula in plain loops, and where its gradient vanishes."""

from __future__ import annotations

import math

import pytest
import torch

from logit_toys import CE, LABELS, STUDENT, TEACHER, mean, only, taught
from stillhouse.methods.classics.nkd import NKD


def by_hand(gamma: float, temperature: float) -> float:
    """Class by class, the label's logit taken out of the list before the softmax of the others."""
    whole = 0.0
    for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, t)) for v in t]
        q = [math.exp(v) / sum(map(math.exp, s)) for v in s]
        whole -= p[y] * math.log(q[y])
        rest_s, rest_t = ([math.exp(v / temperature) for i, v in enumerate(z) if i != y] for z in (s, t))
        for a, b in zip(rest_s, rest_t, strict=True):
            whole -= gamma * temperature**2 * b / sum(rest_t) * math.log(a / sum(rest_s))
    return whole / 8


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0)])
def test_it_is_the_papers_formula(tmp_path, gamma, temperature):
    made, _ = only(NKD(labels=0.5, weight=2.0, gamma=gamma, temperature=temperature), taught(tmp_path))
    assert mean(made) == pytest.approx(0.5 * CE + 2.0 * by_hand(gamma, temperature), rel=1e-9)


def test_the_other_classes_pull_towards_the_teachers_ratios_alone(tmp_path):
    """A student with the teacher's ratios among the wrong classes has no gradient there, however sure it is of the label."""
    sure = TEACHER.scatter_add(-1, LABELS.unsqueeze(-1), torch.full((8, 1), 7.0).double())
    only_others, student = only(NKD(labels=0.0), taught(tmp_path), sure)
    only_others.loss.backward()
    p, q = (z.softmax(-1).gather(-1, LABELS.unsqueeze(-1)) for z in (TEACHER, sure))
    right = student.logits.grad.gather(-1, LABELS.unsqueeze(-1))
    assert torch.allclose(right, -p * (1 - q))  # of the label's term; the other term gives the label nothing
    rest = student.logits.grad / sure.softmax(-1)
    assert torch.allclose(rest.scatter(-1, LABELS.unsqueeze(-1), p), p.expand_as(rest))  # p_y q_k for every other class k


def test_the_equation_has_every_factor():
    assert NKD(gamma=3.5, temperature=3.0).equation == "1 CE(y, q) + 1 p_y CE(y, q) + 31.5 CE(p', q') at T=3"
