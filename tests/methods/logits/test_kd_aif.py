"""KD-AIF's loss and weights against its equations, on small networks."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood as stand
from stillhouse.core.method import advance
from stillhouse.core.run import Run, RunError
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.logits.kd_aif import KDAIF

METHOD = KDAIF(temperature=2.0, alpha=0.6, warmup=1, trusted=4, damping=0.05)


def stood(folder: Path, method: KDAIF = METHOD) -> tuple[Any, Run, Any]:
    """(state, run, batch) of six images of four classes, which are the trusted ones too."""

    class Sourced(KDAIF):
        def _trusted(self, made: Run) -> list[int]:
            made.sources = lambda spec=None: {"valid": made.source}  # type: ignore[method-assign]
            return super()._trusted(made)

    s, run, batch = stand(folder, Sourced(**{f.name: getattr(method, f.name) for f in fields(method)}))
    return s, run, batch


def losses(s: Any, run: Run, batch: Any) -> torch.Tensor:
    """l_i by torch."""
    z, t = s.student(batch["inputs"]), run.teacher.module(batch["inputs"])
    soft = F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="none").sum(-1)
    return 0.4 * F.cross_entropy(z, batch["labels"], reduction="none") + 0.6 * 4 * soft


def test_before_the_first_solution_it_is_hintons_loss(tmp_path: Path):
    s, run, batch = stood(tmp_path)
    (update,) = METHOD.step(s, batch, run)
    (hinton,) = Hinton(temperature=2.0, alpha=0.6).step(s, batch, run)
    assert torch.allclose(update.loss, hinton.loss, rtol=1e-5) and int(update.count) == 6


@pytest.mark.parametrize("curvature", [True, False])
def test_the_weights_are_those_of_the_equations(tmp_path: Path, curvature: bool):
    """By autograd through the last layer: its gradients, its Hessian, a dense solve."""
    method = replace(METHOD, curvature=curvature, scale=1.5)
    s, run, batch = stood(tmp_path, method)
    advance(method, s, {}, run)
    s.student.eval().double()
    features = {}
    hook = s.student.head.register_forward_pre_hook(lambda _, args: features.update(h=args[0]))
    s.student(batch["inputs"].double())
    hook.remove()
    h, t = features["h"].detach(), run.teacher.module.double()(batch["inputs"].double())
    head = torch.cat([s.student.head.weight, s.student.head.bias[:, None]], 1).detach()
    h1 = torch.cat([h, torch.ones(6, 1)], 1).double()

    def trusted(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(h1[s.trusted] @ w.view_as(head).T, batch["labels"][s.trusted])

    def whole(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(h1 @ w.view_as(head).T, batch["labels"])

    def item(w: torch.Tensor, i: int) -> torch.Tensor:
        z = h1[i] @ w.view_as(head).T
        soft = F.kl_div((z / 2).log_softmax(-1), (t[i] / 2).softmax(-1), reduction="sum")
        return 0.4 * F.cross_entropy(z, batch["labels"][i]) + 0.6 * 4 * soft

    flat = head.flatten()
    gradient = torch.autograd.functional.jacobian(trusted, flat)
    hessian = torch.autograd.functional.hessian(whole, flat) + 0.05 * torch.eye(len(flat), dtype=flat.dtype)
    solution = torch.linalg.solve(hessian, gradient) if curvature else gradient
    phi = torch.stack([-solution @ torch.autograd.functional.jacobian(lambda w, i=i: item(w, i), flat) for i in range(6)])
    weights = 2 * torch.sigmoid(-1.5 * phi / phi.std(correction=0))
    s.student.float()
    run.teacher.module.float()
    (update,) = method.step(s, batch, run)
    expected = (weights * losses(s, run, batch)).sum() / weights.sum()
    assert float(update.loss.detach() / update.count) == pytest.approx(float(expected.detach()), rel=1e-3)
    assert float(weights.max() - weights.min()) > 0.3


def test_no_scale_weighs_all_alike(tmp_path: Path):
    method = replace(METHOD, scale=0.0)
    s, run, batch = stood(tmp_path, method)
    advance(method, s, {}, run)
    (update,) = method.step(s, batch, run)
    assert torch.allclose(update.loss, losses(s, run, batch).sum(), rtol=1e-5)


def test_when_it_solves(tmp_path: Path):
    for every, due in ((0, [3]), (2, [3, 5, 7])):
        method = replace(METHOD, warmup=4, every=every)
        s, run, _ = stood(tmp_path / str(every), method)
        solved = []
        for step in range(8):
            before, run.step = s.solution.clone(), step
            with torch.no_grad():
                s.student.head.weight += 0.01 * step
            advance(method, s, {}, run)
            if not torch.equal(before, s.solution):
                solved.append(step)
        assert solved == due and s.student.training


def test_an_item_without_a_label_takes_the_teachers(tmp_path: Path):
    s, run, batch = stood(tmp_path)
    said = run.teacher.module(batch["inputs"]).argmax(-1)
    (unknown,) = METHOD.step(s, {**batch, "labels": torch.full_like(said, -100)}, run)
    (told,) = METHOD.step(s, {**batch, "labels": said}, run)
    assert torch.equal(unknown.loss, told.loss) and int(unknown.count) == 6


def test_the_trusted_are_of_every_class_as_many(tmp_path: Path):
    s, run, _ = stood(tmp_path, replace(METHOD, trusted=4))
    assert sorted(run.source.labels[s.trusted].tolist()) == [0, 1, 2, 3]
    run.sources = lambda spec=None: {"valid": []}  # type: ignore[method-assign]
    with pytest.raises(RunError, match="no items to trust"):
        METHOD.setup(s.student, run)


@pytest.mark.parametrize(
    "settings", [{"alpha": 2.0}, {"damping": 0.0}, {"trusted": 0}, {"every": -1}, {"warmup": 0}, {"temperature": 0.0}]
)
def test_settings_that_mean_nothing(settings: Any):
    with pytest.raises(ValueError):
        KDAIF(**settings)
