"""ProARD: its loss for known images, and which members learn when."""

from __future__ import annotations

import pytest
import torch

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.logits import proard
from stillhouse.methods.logits.proard import ProARD
from stillhouse.models.attacks import Attack, light_of
from stillhouse.models.elastic import Elastic, Supernet

SPEC = Elastic(
    channels=(8, 16), blocks=3, widths=(0.5, 0.75, 1.0), skips=(0, 1, 2), ratios=(0.5, 1.0), divisor=4, norm="group"
)
ATTACK = Attack(radius=0.1, stride=0.05, steps=3)


class Plain(ProARD):
    """The same for a student that is no family."""

    def setup(self, student, run):
        torch.manual_seed(3)
        return super().setup(Supernet(SPEC, 1, 4), run)


def test_the_loss_by_hand(tmp_path, monkeypatch):
    method = Plain(attacked=0.7, attack=ATTACK, draws=0, sandwich=True, narrow=0.0)
    s, run, batch = stood(tmp_path, method)
    attacked = {}
    fooled = proard.fooled

    def kept(module, member, *args):
        attacked[member] = fooled(module, member, *args)
        return attacked[member]

    monkeypatch.setattr(proard, "fooled", kept)
    (update,) = method.step(s, batch, run)
    assert len(attacked) == 2 and 0 in attacked
    p = run.teacher.module(batch["inputs"]).softmax(-1)
    loss = 0.0
    for member, x in attacked.items():
        for share, inputs in ((0.7, x), (0.3, batch["inputs"])):
            q = s.student(inputs, member=member).softmax(-1)
            loss = loss + share * (p * (p / q).log()).sum() / 2
    assert torch.allclose(update.loss, loss, rtol=1e-4) and float(update.count) == 6


def test_the_attack_raises_what_it_is_to_raise(tmp_path):
    method = Plain(attack=ATTACK)
    s, run, batch = stood(tmp_path, method)
    told = run.teacher.module(batch["inputs"]).detach()
    x = proard.fooled(s.student, 0, batch, told, ATTACK, light_of(run.source), run)

    def apart(images):
        p = told.softmax(-1)
        return (p * (p.log() - s.student(images).log_softmax(-1))).sum(-1)

    assert bool((apart(x) > apart(batch["inputs"])).all())
    gap = (x - batch["inputs"]).abs() * run.source.deviation
    assert float(gap.max()) <= 0.1 * 255 + 1e-3
    again = proard.fooled(s.student, 0, batch, told, ATTACK, light_of(run.source), run)
    assert torch.equal(x, again)


def test_members_join_one_kind_after_the_other():
    method, members = ProARD(narrow=0.2, shallow=0.4, shallower=0.6, thin=0.8), SPEC.members

    def kinds(done):
        found = [members[i] for i in method.allowed(members, done)]
        return {m.width for m in found}, {m.skipped for m in found}, {m.ratio for m in found}

    assert kinds(0.1) == ({1.0}, {0}, {1.0})
    assert kinds(0.2) == ({0.5, 0.75, 1.0}, {0}, {1.0})
    assert kinds(0.4) == ({0.5, 0.75, 1.0}, {0, 1}, {1.0})
    assert kinds(0.6) == ({0.5, 0.75, 1.0}, {0, 1, 2}, {1.0})
    assert kinds(0.8) == ({0.5, 0.75, 1.0}, {0, 1, 2}, {0.5, 1.0})
    assert [len(method.allowed(members, done)) for done in (0.1, 0.2, 0.4, 0.6, 0.8)] == [1, 3, 6, 9, 18]


def test_a_draw_is_kept_and_the_sandwich_has_both_ends(tmp_path):
    s, run, _ = stood(tmp_path, Plain())
    run.horizon = 100
    method = ProARD(narrow=0.0, shallow=0.0, shallower=0.0, thin=0.0, hold=5, draws=1)
    drawn = []
    for run.step in range(100):
        drawn.append(method.drawn(SPEC.members, run))
    assert all(drawn[i] == drawn[i - i % 5] for i in range(100)) and len({tuple(d) for d in drawn}) > 5
    both = ProARD(narrow=0.0, shallow=0.0, shallower=0.0, thin=0.0, draws=2, sandwich=True).drawn(SPEC.members, run)
    assert {0, 17} <= set(both) and len(both) <= 4
    assert ProARD(draws=3).drawn(SPEC.members, type(run)(tmp_path / "b")) == [0]


def test_a_student_that_is_no_family_is_refused(tmp_path):
    with pytest.raises(RunError, match="no members"):
        stood(tmp_path, ProARD())
