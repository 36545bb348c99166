"""The two heads, and the alignment of their gradients, against flat vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.logits.dhkd import DHKD
from stillhouse.models.call import logits_of
from stillhouse.models.taps import tapped
from stillhouse.objectives.alignment import opposed


def parts(s, run, batch, temperature):
    """The two terms, spelt out."""
    logits, seen = tapped(s.student, batch, ["head:in"])
    z2 = s.adapters[0](seen["head:in"])
    t = logits_of(run.teacher.module, batch)
    u = torch.sigmoid((z2 - t) / temperature).double()
    gap = (0.5 * (0.5 / u).log() + 0.5 * (0.5 / (1 - u)).log()).sum()
    return F.cross_entropy(logits, batch["labels"], reduction="sum"), temperature**2 * gap


def flat(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(module.parameters(), found, strict=True)
        ]
    )


def test_the_objective_is_the_codes(tmp_path):
    method = DHKD(labels=0.5, weight=2.0, temperature=3.0, aligned=False)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    ce, gap = parts(s, run, batch, 3.0)
    assert torch.allclose(update.loss.double(), 0.5 * ce + 2.0 * gap, rtol=1e-5)
    assert set(s.groups()) == {"student"} and float(update.count) == 6
    assert method.equation == "0.5 CE(y, q) + 18 KL(1/2 ‖ sigmoid((z2 - t)/3))" and not method.compares_items


def test_each_head_hears_of_its_own_term_alone(tmp_path):
    for method, first, second in (
        (DHKD(labels=0.0, aligned=False), False, True),
        (DHKD(weight=0.0, aligned=False), True, False),
    ):
        s, run, batch = stood(tmp_path, method)
        (update,) = method.step(s, batch, run)
        update.loss.backward()
        moved = [
            bool(head.weight.grad is not None and head.weight.grad.abs().sum() > 0)
            for head in (s.student.head, s.adapters[0])
        ]
        assert moved == [first, second]


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_the_gradient_is_the_projected_one(tmp_path, weight):
    method = DHKD(weight=weight, temperature=2.0)
    s, run, batch = stood(tmp_path, method)
    with torch.no_grad():  # features that the two terms want to move opposite ways
        s.adapters[0].weight.copy_(-s.student.head.weight)
    ce, gap = parts(s, run, batch, 2.0)
    both = s.groups()["student"]
    g, h = flat(ce, both), flat(weight * gap, both)
    dot = g @ h
    expected = g + (h - dot / (g @ g) * g if dot < 0 else h)
    (update,) = method.step(s, batch, run)
    assert torch.allclose(flat(update.loss, both), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    cosine = float(update.logs["cosine"] / update.count)
    assert cosine == pytest.approx(float(dot / (g.norm() * h.norm())), abs=1e-4)


def test_what_opposes_is_taken_out_and_nothing_else():
    p = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))
    g, h = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([-3.0, 1.0, 0.0])
    c, cosine = opposed((g * p).sum(), (h * p).sum(), [p])
    assert float(c) == -1.5 and float(cosine) == pytest.approx(-3 / 10**0.5)
    assert torch.equal((1 - c) * g + h, g + torch.tensor([0.0, 1.0, 0.0]))
    c, cosine = opposed((g * p).sum(), (-h * p).sum(), [p])
    assert float(c) == 0.0 and float(cosine) > 0
    unused = nn.Parameter(torch.ones(2))
    assert opposed(torch.zeros(()), (h * p).sum(), [p, unused]) == (0.0, 0.0)


def test_a_second_head_that_says_the_teachers_logits_asks_for_nothing(tmp_path):
    method = DHKD(labels=0.0, aligned=False)
    s, run, batch = stood(tmp_path, method, same=True)
    s.adapters[0].load_state_dict(s.student.head.state_dict())
    (update,) = method.step(s, batch, run)
    assert abs(float(update.loss)) < 1e-4


def test_one_head_unknown_labels_and_a_hidden_layer(tmp_path):
    s, run, batch = stood(tmp_path, one := DHKD(shared=True))
    assert not len(s.adapters) and next(one.step(s, batch, run)).loss.isfinite()
    s, run, batch = stood(tmp_path, hidden := DHKD(hidden=200))
    assert [type(part).__name__ for part in s.adapters[0]] == ["Linear", "Dropout", "BatchNorm1d", "ReLU", "Linear"]
    assert next(hidden.step(s, batch, run)).loss.isfinite()
    nobody = {**batch, "labels": torch.full((6,), -100)}
    update = next(DHKD().step(stood(tmp_path, DHKD())[0], nobody, run))
    assert float(update.logs["cross_entropy"]) == 0.0 and float(update.logs["cosine"]) == 0.0 and float(update.loss) > 0


def test_a_network_without_a_linear_head_is_told_so(tmp_path):
    run = stood(tmp_path, DHKD())[1]
    run.source = replace(run.source, names=("a", "b", "c"))
    with pytest.raises(RunError, match="no linear layer gives the 3 logits"):
        DHKD().setup(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), run)
