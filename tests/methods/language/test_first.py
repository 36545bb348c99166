"""FIRST: what is taught after recalibration, its limits, and how c is chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.audits.trust import calibration_error
from stillhouse.core.run import RunError
from stillhouse.core.signal import HeadLogits, Signal, TopK
from stillhouse.core.stage import LazyTeachers
from stillhouse.data.choices import Choices
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.language.first import FIRST, Power, Shifted, Softened, Within
from stillhouse.models.call import logits_of
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.signals.topk import top_k
from toylanguage import STUDENT, gradient, toy, update

ALL = FIRST(top=10_000, recalibrate=None)


def pair(n: int = 6, classes: int = 9, scale: float = 2.0, dtype: Any = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    s, t = (scale * torch.randn(n, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    return s.to(dtype).requires_grad_(), t.to(dtype)


def head(z: torch.Tensor) -> HeadLogits:
    return HeadLogits(z, torch.eye(z.shape[-1], dtype=z.dtype))


# -- recalibration ----------------------------------------------------------------------------------------------------


def test_the_three_recalibrations_at_one_point() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    weights = [math.exp(x / 0.3) for x in (0.7, 0.2, 0.1)]
    assert Softened()(p.log(), 0.3).exp().tolist() == pytest.approx([w / sum(weights) for w in weights])
    roots = [math.sqrt(x) for x in (0.7, 0.2, 0.1)]
    assert Power()(p.log(), 2.0).exp().tolist() == pytest.approx([r / sum(roots) for r in roots])
    assert Shifted()(p.log(), 0.1).exp().tolist() == pytest.approx([0.6, 0.25, 0.15])
    even = torch.full((4,), 0.25, dtype=torch.float64)
    assert Shifted()(even.log(), 0.1).exp().tolist() == pytest.approx([0.25] * 4)  # never beyond equal shares
    near = torch.tensor([0.36, 0.34, 0.3], dtype=torch.float64)
    assert Shifted()(near.log(), 0.1).exp().tolist() == pytest.approx(
        [1 / 3, 0.34 + 0.04 / 3 - 0.04 / 6, 0.3 + 0.04 / 6], abs=7e-3
    )


@pytest.mark.parametrize("how", [Softened(), Power(), Shifted()])
def test_recalibrated_probabilities_are_probabilities(how: Any) -> None:
    log_p = pair()[1].log_softmax(-1)
    for c in (0.05, 0.1, 1.0, 3.0):
        made = how(log_p, c)
        assert torch.allclose(made.exp().sum(-1), torch.ones(6, dtype=torch.float64)) and torch.isfinite(made).all()
        if not isinstance(how, Shifted):  # the order stays, so accuracy does
            assert torch.equal(made.argsort(-1), log_p.argsort(-1))
    sure = torch.tensor([[0.0, -200.0, -300.0]])
    assert torch.isfinite(how(sure, 0.1)).all()
    assert how(log_p[:0], 0.3).shape == (0, 9)


def test_power_one_and_shift_zero_change_nothing() -> None:
    log_p = pair()[1].log_softmax(-1)
    torch.testing.assert_close(Power()(log_p, 1.0), log_p)
    torch.testing.assert_close(Shifted()(log_p, 0.0), log_p)
    flat = Softened()(log_p, 1.0).exp()  # the warning of the docstring: at c = 1 nobody is ever sure
    assert float(flat.max()) < math.e / (math.e + 8) + 1e-9


# -- what is taught ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [True, False])
def test_all_classes_as_they_are_is_forward_kl(tmp_path: Path, other: bool) -> None:
    run, student, batch = toy(tmp_path)
    method = replace(ALL, other=other)
    plain = GKD(on_policy=0.0, divergence=ForwardKL())
    mine, theirs = update(method, student, batch, run), update(plain, student, batch, run)
    assert float(mine.loss.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-5)
    assert float(mine.count) == float(theirs.count)
    torch.testing.assert_close(
        gradient(method, student, batch, run), gradient(plain, student, batch, run), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("how", [None, Softened(), Power(), Shifted()])
def test_the_loss_written_out(tmp_path: Path, how: Any, other: bool) -> None:
    run, student, batch = toy(tmp_path)
    method = FIRST(top=4, recalibrate=how, grid=(), other=other)
    made = update(method, student, batch, run)
    total, live = 0.0, batch["weight"] > 0
    with torch.no_grad():
        zs = logits_of(student, batch).dense()[live].double()
        zt = logits_of(run.teacher.module, batch).dense()[live].double()
    for q, p in zip(zs.softmax(-1), zt.softmax(-1), strict=True):
        index = sorted(range(len(p)), key=lambda v: -float(p[v]))[:4]
        mass = sum(float(p[v]) for v in index)
        within = torch.tensor([float(p[v]) / mass for v in index], dtype=torch.float64)
        if how is not None:
            within = how(within.log(), how.c).exp()
        held = sum(float(q[v]) for v in index)
        for v, x in zip(index, within.tolist(), strict=True):
            total += x * mass * math.log(x * mass / float(q[v])) if other else x * math.log(x * held / float(q[v]))
        total += (1 - mass) * math.log((1 - mass) / (1 - held)) if other else 0.0
    assert float(made.loss.detach()) == pytest.approx(total, rel=1e-4) and float(made.count) == int(live.sum())


def test_without_any_other_the_student_may_keep_its_mass_elsewhere() -> None:
    """Only the relative probabilities of the classes count, and no gradient goes to the others; with it, it does."""
    s, t = pair()
    inside, whole = replace(ALL, top=3, other=False), replace(ALL, top=3)
    within = Within(k=3)
    target = inside.target(t, None)
    values = within(s, target)
    (slope,) = torch.autograd.grad(values.sum(), s)
    outside = torch.ones_like(s, dtype=torch.bool).scatter(-1, target.index, False)
    assert float(slope[outside].abs().max()) < 1e-12 < float(slope[~outside].abs().max())
    lifted = s.detach() + 3.0 * outside
    torch.testing.assert_close(within(lifted, target), values.detach())
    target = whole.target(t, None)
    assert float((ForwardKL()(lifted, target) - ForwardKL()(s.detach(), target)).abs().min()) > 1e-3
    torch.testing.assert_close(target.values.exp().sum(-1) + target.rest.exp(), torch.ones(6))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_within_is_a_divergence(k: int) -> None:
    s, t = pair()
    target = FIRST(top=k, recalibrate=None, other=False).target(t, None)
    target = replace(target, values=target.values.double(), rest=target.rest.double())
    of = Within(k=k)
    assert torch.autograd.gradcheck(lambda z: of(z, target), (s,))
    dense, fused = of(s, target), of(head(s), target)
    torch.testing.assert_close(dense, fused)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), s)[0] for x in (dense, fused)), atol=1e-9, rtol=1e-7)
    same = FIRST(top=k, recalibrate=None, other=False).target(s.detach(), None)
    assert float(of(s, same).detach().abs().max()) < 1e-6
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(of(s, target, weight=weight), of(s, target) * weight)
    for dtype, scale in ((torch.bfloat16, 1.0), (torch.float32, 1e3)):
        a, b = pair(scale=scale, dtype=dtype)
        found = of(a, FIRST(top=k, recalibrate=None, other=False).target(b, None))
        assert torch.isfinite(found).all() and torch.isfinite(torch.autograd.grad(found.sum(), a)[0]).all()


@pytest.mark.parametrize("other", [True, False])
def test_the_students_optimum_is_the_recalibrated_teacher(other: bool) -> None:
    """Recalibrating both sides by one rule, as the released code does, would put it back at the teacher itself."""
    _, t = pair(n=3)
    target = FIRST(top=4, other=other).target(t, 0.3)
    z = torch.zeros_like(t).requires_grad_()
    descent = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = (ForwardKL() if other else Within(k=4))(z, target).sum()
        value.backward()
        return value

    descent.step(loss)  # type: ignore[arg-type]
    kept = z.detach().log_softmax(-1).gather(-1, target.index)
    wanted = Softened()(t.log_softmax(-1).gather(-1, target.index).log_softmax(-1), 0.3)
    torch.testing.assert_close(kept.log_softmax(-1).exp(), wanted.exp(), atol=1e-3, rtol=0)
    if other:
        mass = t.softmax(-1).gather(-1, target.index).sum(-1)
        torch.testing.assert_close(kept.exp().sum(-1), mass, atol=1e-3, rtol=0)


def test_a_stored_top_k_teaches_the_same(tmp_path: Path) -> None:
    _, t = pair()
    method = FIRST(top=4, grid=())
    live, kept = method.target(t, 0.3), method.target(top_k(t, 6), 0.3)
    s = pair()[0]
    torch.testing.assert_close(ForwardKL()(s, live), ForwardKL()(s, kept), rtol=1e-5, atol=1e-6)
    with pytest.raises(RunError, match="gave 3 classes.*lower method.top"):
        method.target(top_k(t, 3), 0.3)
    with pytest.raises(RunError, match="drawn classes"):
        method.target(replace(top_k(t, 6), sampled=True), 0.3)
    few = pair(classes=3)[1]
    assert method.target(top_k(few, 3), 0.3).index.shape == (6, 3) == method.target(few, 0.3).index.shape


# -- how c is chosen ---------------------------------------------------------------------------------------------------


class Oversure:
    """The true odds of the questions with their logarithms multiplied: as accurate as can be, and far too sure."""

    gives = frozenset({"logits"})

    def __init__(self, data: Choices, times: float):
        self.data, self.times = data, times

    def build(self, run: Any) -> Oversure:
        return self

    def __call__(self, batch: Any, want: Any) -> Signal:
        tokens = batch["inputs"]["tokens"]
        z = torch.full((*tokens.shape, self.data.classes), -20.0)
        z[:, self.data.words - 1, self.data.symbols :] = self.times * self.data.odds(tokens[:, : self.data.words]).log()
        return Signal(logits=z)


def test_c_undoes_overconfidence(tmp_path: Path) -> None:
    data = Choices(valid=3000)
    run = run_of(tmp_path, STUDENT, data=data)
    run.teachers = LazyTeachers({"teacher": Oversure(data, 4.0)}, run)
    student = STUDENT.build(run)
    exact = FIRST(top=4, recalibrate=Power(), grid=(0.5, 1.0, 2.0, 4.0, 8.0), rows=3000)
    assert float(exact.setup(student, run).c) == 4.0
    run.teachers = LazyTeachers({"teacher": Oversure(data, 1.0)}, run)
    assert float(exact.setup(student, run).c) == 1.0  # nothing to undo
    (told,) = [e for e in run.read("events.jsonl") if e["event"] == "calibration"][:1]
    assert told["c"] == 4.0 and told["errors"]["4.0"] < 0.03 < 0.1 < told["errors"]["1.0"]
    assert float(replace(exact, grid=()).setup(student, run).c) == 2.0
    assert "c" not in replace(exact, recalibrate=None).setup(student, run).state_dict()


def test_without_held_out_rows_c_must_be_given(tmp_path: Path) -> None:
    run = run_of(tmp_path, STUDENT, data=Choices(valid=0))
    with pytest.raises(RunError, match=r"validation split, which is empty.*method.grid=\[\]"):
        FIRST().setup(STUDENT.build(run), run)


def test_the_calibration_error_by_hand() -> None:
    sure = torch.tensor([0.95, 0.91, 0.55, 1.0, 0.05])
    right = torch.tensor([1, 0, 1, 1, 0])
    #  bin 9: 0.95, 0.91, 1.0 with two right; bin 5: 0.55 with one; bin 0: 0.05 with none
    expected = (abs(2.86 - 2) + abs(0.55 - 1) + 0.05) / 5
    assert calibration_error(sure, right) == pytest.approx(expected)
    assert calibration_error(sure[:0], right[:0]) == 0.0


def test_uncounted_positions_may_hold_anything(tmp_path: Path) -> None:
    """Stored signals are NaN where nothing counts."""
    run, student, batch = toy(tmp_path)
    method = FIRST(grid=())
    expected = float(update(method, student, batch, run).loss.detach())
    with torch.no_grad():
        z = logits_of(run.teacher.module, batch).dense().clone()
    top = top_k(z.flatten(0, 1), 8)
    shape = z.shape[:2]
    kept = TopK(top.values.view(*shape, 8), top.index.view(*shape, 8), top.rest.view(shape), classes=z.shape[-1])
    kept.values[batch["weight"] == 0] = float("nan")

    class Said(Oversure):
        def __call__(self, batch: Any, want: Any) -> Signal:
            return Signal(topk=kept)

    run.teachers = LazyTeachers({"teacher": Said(Choices(), 1.0)}, run)
    assert float(update(method, student, batch, run).loss.detach()) == pytest.approx(expected, rel=1e-5)
