"""REDI: its loss and gradient against loops, its limits, and what keeps it from collapsing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preferences import gradient, pairs, scores, toy
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.data.pairs import StagePairs
from stillhouse.methods.classics.dpo import DPO
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.reasoning import redi
from stillhouse.methods.reasoning.redi import REDI
from stillhouse.objectives.preference import along_scores
from stillhouse.objectives.preference import redi as mathematics


def update(method: Any, run: Any, student: Any, batch: Any) -> Any:
    (made,) = method.step(method.setup(student, run), batch, run)
    return made


@pytest.mark.parametrize("method", [REDI(), REDI(alpha=0.3), REDI(gamma=0.5), REDI(alpha=1.0, gamma=0.5, detached=True)])
def test_the_loss_is_the_papers(tmp_path: Path, method: REDI):
    run, student, batch = toy(tmp_path)
    made = update(method, run, student, batch)
    w, lo = scores(student, mean=True)
    factor = torch.exp(method.gamma * (lo.detach() if method.detached else lo))
    expected = (-w + method.alpha * factor * lo).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5) and made.count == 4
    torch.testing.assert_close(gradient(made.loss, student), gradient(expected, student), rtol=1e-4, atol=1e-5)
    assert float(made.logs["chosen"]) == pytest.approx(float(w.detach().sum()), rel=1e-5)
    assert float(made.logs["rejected"]) == pytest.approx(float(lo.detach().sum()), rel=1e-5)


def test_without_wrong_traces_every_right_one_counts_the_same(tmp_path: Path):
    """alpha = 0: the mean over pairs of the length-normalised negative log-likelihood, whatever the wrong traces are."""
    run, student, batch = toy(tmp_path)
    made = update(REDI(alpha=0.0), run, student, batch)
    w, _ = scores(student, mean=True)
    torch.testing.assert_close(gradient(made.loss, student), gradient(-w.sum(), student), rtol=1e-4, atol=1e-5)
    assert float(made.logs["rejected"]) < 0  # they are still looked at


def test_dpo_tends_to_the_symmetric_loss_of_sums(tmp_path: Path):
    """At any small beta DPO's gradient is beta / 2 times that of -(s_w - s_l): REDI at alpha = 1, but for the lengths."""
    run, student, batch = toy(tmp_path)
    found = gradient(update(DPO(beta=1e-4), run, student, batch).loss, student) / 0.5e-4
    w, lo = scores(student, mean=False)
    torch.testing.assert_close(found, gradient(-(w - lo).sum(), student), rtol=1e-3, atol=1e-3)


def test_splitting_a_batch_changes_nothing(tmp_path: Path):
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, 4):
        run, student, _ = toy(tmp_path / str(parts))
        run.horizon = 3
        method = REDI(gamma=0.2)
        loop = Loop(method, method.setup(student, run), run, Optim(name="sgd", lr=1e-2))
        fit(loop, pairs(), steps=3, size=4, accumulate=parts)
        ends.append(loop.state.student.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_what_both_traces_have_in_common_is_held_by_one_minus_alpha(alpha: float):
    """Where right and wrong trace agree, alpha = 1 leaves nothing that keeps a token likely: it may drift anywhere."""
    torch.manual_seed(0)
    z = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)  # one model, read by both traces
    labels = torch.randint(9, (2, 6))
    labels[1, :5] = labels[0, :5]
    labels[1, 5] = (labels[0, 5] + 1) % 9
    logits, weight = z.expand(2, 6, 9), torch.ones(2, 6)
    loss, _ = along_scores(lambda s: mathematics(*s.chunk(2), alpha=alpha), logits, labels, weight=weight, mean=True)
    (slope,) = torch.autograd.grad(loss, z)
    q = z.detach().softmax(-1)
    right, wrong = (torch.nn.functional.one_hot(labels[side], 9) for side in (0, 1))
    torch.testing.assert_close(slope[:5], (1 - alpha) / 6 * (q - right)[:5])
    torch.testing.assert_close(slope[5], (q - right)[5] / 6 - alpha * (q - wrong)[5] / 6)


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"gamma": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="cannot be below 0"):
        REDI(**settings)


def test_the_arms_differ_in_the_second_stage_alone():
    proof = redi.proof()
    ours = proof.arms["ours"]
    for made in proof.arms.values():
        assert list(made.stages) == list(ours.stages)
        assert all(made.stages[name] == ours.stages[name] for name in ("teacher", "traces", "sft"))
        assert (made.stages["train"].steps, made.stages["train"].batch) == (300, 16)
        assert made.stages["train"].student == ours.stages["train"].student
    assert isinstance(ours.stages["train"].data, StagePairs)
    assert isinstance(proof.arms["alone"].stages["train"].method, Supervised)
    assert proof.arms["alone"].stages["train"].data == ours.stages["sft"].data
