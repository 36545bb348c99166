"""Token relations: what is drawn, what it is divided by, and what it stands beside."""

from __future__ import annotations

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.features.trg import TRG
from stillhouse.methods.layers import Beside
from stillhouse.models.vision import VisionTransformer, ViT
from stillhouse.objectives.tokens import counterpart_gap, graph_gap, inner_gap
from stillhouse.teachers.module import Frozen

PLAIN = Beside(labels=0.0)


def test_the_objective_is_the_papers(tmp_path):
    """With every token drawn the order does not matter: all tokens of the batch, cell by cell."""
    method = TRG(inner=2.0, local=3.0, contrast=4.0, tokens=10_000, neighbours=5, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run, adapted=False)

    def cells(m):
        return torch.stack([m[i, :, y, x] for i in range(6) for y in range(m.shape[2]) for x in range(m.shape[3])])

    own, other = cells(seen.mine[0]), cells(seen.theirs[0])
    n = len(own) // 6
    wanted = 2.0 * inner_gap(own.unflatten(0, (6, n)), other.unflatten(0, (6, n))).mean()
    wanted += 3.0 * graph_gap(own, other, neighbours=5).mean()
    wanted += 4.0 * counterpart_gap(s.adapters[0](own), other, temperature=0.5).mean()
    wanted += 0.5 * torch.nn.functional.cross_entropy(seen.logits, batch["labels"])
    assert float(update.loss.detach()) / 6 == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert method.equation == "0.5 CE(y, q) + 2 mean (CSs - CSt)² + 3 KL(A_t ‖ A_s) + 4 NCE(W s, t)"


def test_tokens_are_drawn_evenly_and_the_same_twice(tmp_path):
    method = TRG(tokens=5)
    _, run, _ = stood(tmp_path, method)
    there, seen = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(12)
    for run.step in range(3000):
        drawn = method._drawn(there, 4, run)
        assert len(set(drawn.tolist())) == 5 and torch.equal(drawn, method._drawn(there, 4, run))
        seen[drawn] += 1
    assert seen[4:8].sum() == 0
    assert torch.allclose(seen[[0, 1, 2, 3, 8, 9, 10, 11]] / 3000, torch.full((8,), 5 / 8), atol=0.04)


def test_an_absent_item_is_not_compared_with(tmp_path):
    method = TRG(tokens=10_000)
    s, run, batch = stood(tmp_path, method)
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([1.0, 0, 1, 1, 0, 1]))
    poisoned["inputs"][1] = float("nan")
    (ours,), (wanted,) = (
        method.step(s, b, run) for b in (poisoned, {k: v[torch.tensor([0, 2, 3, 5])] for k, v in batch.items()})
    )
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-4) and float(ours.count) == 4.0


def test_an_item_that_counts_half_has_half_of_its_tokens_terms(tmp_path):
    method = TRG(tokens=10_000, beside=PLAIN)
    s, run, batch = stood(tmp_path, method)
    (whole,) = method.step(s, batch, run)
    (half,) = method.step(s, dict(batch, weight=torch.full((6,), 0.5)), run)
    assert torch.allclose(half.loss, whole.loss / 2, rtol=1e-5)


def test_the_temperature_falls_as_half_a_cosine(tmp_path):
    method = TRG()
    _, run, _ = stood(tmp_path, method)
    run.horizon, found = 5, []
    for run.step in range(5):
        found.append(method.temperature(run))
    assert found[0] == 0.5 and found[4] == pytest.approx(0.07) and found[2] == pytest.approx((0.5 + 0.07) / 2)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("alone", ["inner", "local", "contrast"])
def test_a_transformer_can_teach_a_convolutional_network(tmp_path, alone):
    """Its class token is left out, and the larger of the two grids is averaged down. Each term teaches by itself."""
    method = TRG(**{"inner": 0.0, "local": 0.0, "contrast": 0.0, alone: 1.0}, beside=PLAIN)
    s, run, batch = stood(tmp_path, method)
    run.teachers = {"teacher": Frozen(VisionTransformer(ViT(patch=4, width=8, depth=2, heads=2), (1, 8, 8), 4))}
    s = method.setup(s.student, run)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    assert s.shapes == (((8, 4, 4), (8, 2, 2)),)
    assert (s.adapters[0].weight.grad is not None) is (alone == "contrast")
    assert all(bool(p.grad.any()) for p in s.student.stages.parameters() if p.ndim > 1)


def test_one_item_without_a_label(tmp_path):
    method = TRG(tokens=3)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, {"inputs": batch["inputs"][:1], "labels": torch.tensor([-100])}, run)
    update.loss.backward()
    assert bool(update.loss.isfinite()) and float(update.logs["cross_entropy"]) == 0.0
