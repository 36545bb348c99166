"""PS-KD's targets against the recursion by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.data.toys import Clusters
from stillhouse.methods.logits.ps_kd import PSKD
from stillhouse.models.call import logits_of


def test_targets_are_the_labels_first_and_ones_own_last_answers_then(tmp_path):
    method = PSKD(share=0.8)
    s, run, batch = stood(tmp_path, method)
    run.horizon = 4
    said: dict[int, torch.Tensor] = {}
    for step, items in enumerate(([0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 4, 5], [5, 0])):
        run.step, part = step, run.source.batch(items, 0)
        (update,) = method.step(s, part, run)
        q = logits_of(s.student, part).softmax(-1).detach()
        a, expected = 0.8 * (step + 1) / 4, 0.0
        for row, item in enumerate(items):
            target = torch.zeros(4)
            target[part["labels"][row]] = 1.0
            target = (1 - a) * target + a * said.get(item, target)
            expected -= float((target * q[row].log()).sum())
        assert float(update.loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert float(update.logs["share"]) == pytest.approx(a * len(items)) and float(update.count) == len(items)
        for row, item in enumerate(items):
            said[item] = q[row]
        assert not torch.equal(s.bank.rows[items], q)  # not before the step is over
        method.advance(s, {}, run)
        assert torch.allclose(s.bank.rows[items], q)
        with torch.no_grad():
            s.student.head.weight.mul_(1.3)  # as if it had learned


def test_no_share_is_cross_entropy(tmp_path):
    method = PSKD(share=0.0)
    s, run, batch = stood(tmp_path, method)
    for _ in range(2):
        (update,) = method.step(s, batch, run)
        method.advance(s, {}, run)
    assert torch.allclose(
        update.loss, nn.functional.cross_entropy(logits_of(s.student, batch), batch["labels"], reduction="sum")
    )


def test_the_gradient_of_the_true_class_is_scaled_by_how_hard_it_was(tmp_path):
    """Ratio to the cross-entropy's gradient: 1 - a (1 - P_y) / (1 - q_y)."""
    method = PSKD(share=0.6)
    s, run, batch = stood(tmp_path, method)
    past = torch.tensor([0.5, 0.1, 0.3, 0.1]).expand(6, 4)
    s.bank.note(batch["items"], past)
    s.bank.write()
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    class Said(nn.Module):
        def forward(self, inputs):
            return logits

    s.student = Said()
    (update,) = method.step(s, batch, run)
    (slope,) = torch.autograd.grad(update.loss, logits)
    rows, y = torch.arange(6), batch["labels"]
    q = logits.detach().softmax(-1)[rows, y]
    ratio = slope[rows, y] / (q - 1)
    assert torch.allclose(ratio, 1 - 0.6 * (1 - past[rows, y]) / (1 - q), atol=1e-5)


def test_items_that_do_not_count_are_neither_learned_nor_kept(tmp_path):
    method = PSKD()
    s, run, batch = stood(tmp_path, method)
    labels = batch["labels"].clone()
    labels[0] = -100
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0, 1.0])
    (update,) = method.step(s, {**batch, "labels": labels, "weight": weight}, run)
    method.advance(s, {}, run)
    assert float(update.count) == 5.0 and s.bank.met.tolist() == [False, False, True, True, True, True]
    (none,) = method.step(s, {**batch, "labels": torch.full((6,), -100)}, run)
    assert float(none.count) == 0.0 and float(none.loss) == 0.0


def test_bfloat16_and_large_logits(tmp_path):
    method = PSKD()
    s, run, batch = stood(tmp_path, method)
    with torch.no_grad():
        s.student.head.weight.mul_(1e5)
    s.student.bfloat16()
    for _ in range(2):
        (update,) = method.step(s, batch, run)
        method.advance(s, {}, run)
    update.loss.backward()
    assert update.loss.isfinite() and s.bank.rows.dtype == torch.float32 and s.student.head.weight.grad.isfinite().all()


def test_data_that_do_not_number_their_items_are_refused(tmp_path):
    s, run, _ = stood(tmp_path, PSKD())
    run.source = Clusters().load(run)["train"]
    with pytest.raises(RunError, match="PS-KD keeps something"):
        PSKD().setup(s.student, run)
