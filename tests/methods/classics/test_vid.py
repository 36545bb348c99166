"""Variational information distillation against torch's own Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.methods.classics.vid import VID
from stillhouse.methods.layers import Beside, Pairs
from stillhouse.models.toys import Convolutional


def likelihood(s, seen):
    """-log N without its constant: the mean over numbers, summed over pairs and items."""
    total = 0.0
    for predicted, own, other in zip(s.adapters, seen.mine, seen.theirs, strict=True):
        if own.shape[-1] > other.shape[-1]:
            own = F.adaptive_avg_pool2d(own, other.shape[-2:])
        if own.shape[-1] < other.shape[-1]:
            other = F.adaptive_avg_pool2d(other, own.shape[-2:])
        variance = (predicted.spread.exp() + 1).log() + 1e-5
        found = Normal(predicted.mean(own), variance.sqrt()[:, None, None]).log_prob(other)
        total += float((-found - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1).sum())
    return total


def test_the_objective_is_a_gaussians_likelihood(tmp_path):
    method = VID(weight=2.0, variance=0.7, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run, adapted=False)
    assert len(s.adapters) == len(seen.mine) == 2
    for predicted in s.adapters:
        assert torch.allclose(F.softplus(predicted.spread) + 1e-5, torch.tensor(0.7))
    ce = float(F.cross_entropy(seen.logits, batch["labels"], reduction="sum"))
    assert float(update.loss.detach()) == pytest.approx(0.5 * ce + 2.0 * likelihood(s, seen), rel=1e-4)
    assert method.equation == "0.5 CE(y, q) + 2 sum mean ((t - m(s))² / 2v + log(v) / 2)"


@pytest.mark.parametrize("pair", [("stages.0", "stages.1"), ("stages.1", "stages.0")])
def test_the_larger_map_is_averaged_down(tmp_path, pair):
    method = VID(beside=Beside(labels=0.0), layers=Pairs(student=pair[:1], teacher=pair[1:]))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) == pytest.approx(likelihood(s, s.see(batch, run, adapted=False)), rel=1e-4)


def test_regressors_and_variances_learn_with_the_student_and_are_not_kept(tmp_path):
    method = VID()
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    (group,) = s.groups().values()
    learned = {name: p.grad for name, p in group.named_parameters()}
    assert {f"adapters.{i}.spread" for i in range(2)} <= set(learned)
    assert all(g is not None and bool(g.abs().sum() > 0) for name, g in learned.items() if name.startswith("adapters"))
    assert set(s.get_submodule("student").state_dict()) == set(Convolutional(1, 4, 4, 2).state_dict())


def test_the_best_variance_of_a_channel_is_its_mean_square_error(tmp_path):
    """Where the gradient by the variance is 0; larger where the teacher cannot be predicted."""
    method = VID(beside=Beside(labels=0.0), layers=Pairs(student=("stages.1",), teacher=("stages.1",)))
    s, run, batch = stood(tmp_path, method)
    seen = s.see(batch, run, adapted=False)
    predicted = s.adapters[0]
    error = (predicted.mean(seen.mine[0]) - seen.theirs[0]).square().mean((0, 2, 3)).detach()
    with torch.no_grad():
        predicted.spread.copy_((error - 1e-5).expm1().log())
    (update,) = method.step(s, batch, run)
    (slope,) = torch.autograd.grad(update.loss, predicted.spread)
    assert float(slope.abs().max()) < 1e-4
    with torch.no_grad():
        predicted.spread.add_(1.0)
    (update,) = method.step(s, batch, run)
    assert float(torch.autograd.grad(update.loss, predicted.spread)[0].min()) > 1e-3


def test_a_variance_of_nothing_is_refused():
    with pytest.raises(ValueError, match="variance must be above"):
        VID(variance=0.0)
