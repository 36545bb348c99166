"""Knowledge review against its equations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.core.run import Run
from stillhouse.methods.classics.reviewkd import ReviewKD, context_gap
from stillhouse.methods.layers import Beside, Pairs
from stillhouse.models.toys import Perceptron
from stillhouse.teachers.module import Frozen


def test_the_context_loss_by_hand():
    draw = torch.Generator().manual_seed(0)
    x, u = (torch.randn(3, 2, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    for item, found in enumerate(context_gap(x, u)):
        gap, whole = 0.0, 0.0
        for weight, side in ((1.0, 8), (0.5, 4), (0.25, 2), (0.125, 1)):
            cell = 8 // side
            means = [
                [float((m[item, c, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]).mean()) for m in (x, u)]
                for c in range(2) for i in range(side) for j in range(side)
            ]  # fmt: skip
            gap += weight * sum((a - b) ** 2 for a, b in means) / len(means)
            whole += weight
        assert float(found) == pytest.approx(gap / whole)


def test_small_maps_are_not_pooled_to_their_own_size():
    x, u = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    assert torch.allclose(context_gap(x, u), (x - u).square().flatten(1).mean(1))
    x, u = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    coarse = (x - u).mean((2, 3)).square().mean(1)
    assert torch.allclose(context_gap(x, u), ((x - u).square().flatten(1).mean(1) + 0.5 * coarse) / 1.5)


def test_the_gradient_of_the_context_loss():
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: context_gap(x, torch.ones(2, 2, 5, 5, dtype=torch.float64)), x)


def test_the_objective_is_the_papers(tmp_path):
    """The fusion written out again, from the deepest layer back."""
    method = ReviewKD(weight=3.0, warmup=0.0, width=6, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    assert s.taps == (("stages.0", "stages.0"), ("stages.1", "stages.1"), ("head:in", "head:in"))
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run, adapted=False)
    review, deeper = 0.0, None
    for i in (2, 1, 0):
        fusion, own, other = s.adapters[i], seen.mine[i], seen.theirs[i]
        mixture = fusion.project(own)
        if deeper is not None:
            up = deeper.repeat_interleave(own.shape[2] // deeper.shape[2], 2)
            up = up.repeat_interleave(own.shape[3] // deeper.shape[3], 3)
            share = torch.sigmoid(fusion.attention(torch.cat([mixture, up], 1)))
            mixture = share[:, 0:1] * mixture + share[:, 1:2] * up
        deeper = mixture
        review += float(context_gap(fusion.out(mixture), other).sum().detach())
    ce = float(F.cross_entropy(seen.logits, batch["labels"], reduction="sum").detach())
    assert float(update.loss.detach()) == pytest.approx(0.5 * ce + 3.0 * review, rel=1e-5)
    assert method.equation == "0.5 CE(y, q) + 3 sum HCL(o(r), u)"


def learned(s):
    """Whether any gradient reached each of the student's stages."""
    return [any(p.grad is not None and bool(p.grad.any()) for p in stage.parameters()) for stage in s.student.stages]


def test_every_stage_and_the_fusion_learn_and_the_teacher_does_not(tmp_path):
    method = ReviewKD(warmup=0.0, beside=Beside(labels=0.0))  # what is left comes from the review alone
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    assert learned(s) == [True, True]
    assert all(bool(p.grad.any()) for p in s.adapters.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())


@pytest.mark.parametrize("silent", [0, 1])
def test_an_early_layer_of_the_teacher_teaches_the_deepest_of_the_student(tmp_path, silent):
    """With what one layer says cut off, the other's lesson is left: the early one's reaches both stages."""
    method = ReviewKD(warmup=0.0, beside=Beside(labels=0.0), layers=Pairs(student=("stages.*",), teacher=("stages.*",)))
    s, run, batch = stood(tmp_path, method)
    torch.nn.init.zeros_(s.adapters[silent].out[0].weight)
    s.student.stages[1].register_forward_pre_hook(lambda _, args: (args[0].detach(),))
    (update,) = method.step(s, batch, run)  # no gradient passes from the second stage to the first
    update.loss.backward()
    assert learned(s) == [silent == 1, True]


def test_the_weight_grows_over_the_first_part_of_the_run(tmp_path):
    method = ReviewKD(weight=2.0, warmup=0.5, beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method)
    run.horizon, losses = 8, []
    for run.step in range(8):
        (update,) = method.step(s, batch, run)
        losses.append(float(update.loss.detach()) / float(update.logs["review"]))
    assert losses == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0])


def test_a_perceptron_has_one_layer_to_review(tmp_path):
    method = ReviewKD(warmup=0.0)
    _, run, batch = stood(tmp_path, method)
    run = Run(tmp_path / "b", device=torch.device("cpu"), source=run.source)
    run.teachers = {"teacher": Frozen(Perceptron(64, 4, 16, 2))}
    s = method.setup(Perceptron(64, 4, 8, 2), run)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    assert bool(update.loss.isfinite()) and s.taps == (("head:in", "head:in"),)


def test_edges(tmp_path):
    """Weight 0, no label, one blank image, large logits in bfloat16."""
    method = ReviewKD(warmup=0.0)
    s, run, batch = stood(tmp_path, method)
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    poisoned["inputs"][0] = float("nan")
    (ours,), (wanted,) = (method.step(s, b, run) for b in (poisoned, {k: v[1:] for k, v in batch.items()}))
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-5)
    s.to(torch.bfloat16)
    with torch.no_grad():
        s.student.head.weight.mul_(1e4)
    (one,) = method.step(s, {"inputs": torch.zeros(1, 1, 8, 8), "labels": torch.tensor([-100])}, run)
    one.loss.backward()
    assert bool(one.loss.isfinite()) and float(one.logs["cross_entropy"]) == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in s.parameters() if p.grad is not None)
