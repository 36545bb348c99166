"""DDK: the mixture's equations, which rows a step sees, and that both survive a split and a resume."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.audits.domains import DomainGaps, domain_nll
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.domains import DomainRows, Worlds
from stillhouse.data.toys import Sentences
from stillhouse.methods.language.ddk import DDK, lag_of, moved
from stillhouse.models.call import logits_of
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import ForwardKL, ReverseKL
from stillhouse.teachers.module import ModuleTeacher

SPEC, BIG = TinyLM(width=16, depth=1), TinyLM(width=32, depth=1)
DATA = Worlds(domains=("brackets", "sums", "signs"), train=12, valid=3, test=4, length=24)
METHOD = DDK(every=2, rows=3)


def toy(folder: Path, data: Any = DATA, seed: int = 0) -> tuple[Any, Any]:
    run = run_of(folder, SPEC, data=data, teacher=ModuleTeacher(spec=BIG), seed=seed)
    torch.manual_seed(0)
    student = SPEC.build(run)
    with torch.no_grad():
        student.norm.weight.mul_(2.0)
        run.teacher.module.norm.weight.mul_(3.0)
    run.source, run.horizon = run.sources()["train"], 8
    return run, student


def loop_of(folder: Path, method: DDK, seed: int = 0) -> tuple[Any, Loop]:
    run, student = toy(folder, seed=seed)
    return run, Loop(method, method.setup(student, run), run, Optim(name="sgd", lr=0.5, momentum=0.0))


# -- the mixture -------------------------------------------------------------------------------------------------------


def test_the_equations_at_one_point() -> None:
    r, lag, a = [0.5, 0.3, 0.2], [1.2, 2.0, 1.0], 0.5
    psi = [x * math.exp(y) for x, y in zip(r, lag, strict=True)]
    expected = [a * x / sum(psi) + (1 - a) / 3 for x in psi]
    double = {"dtype": torch.float64}
    assert moved(torch.tensor(r, **double), torch.tensor(lag, **double), a).tolist() == pytest.approx(expected)
    assert moved(torch.tensor(r), torch.tensor(lag), 0.0).tolist() == pytest.approx([1 / 3] * 3)
    alike = moved(torch.tensor(r, **double), torch.full((3,), 1.7, **double), 1.0)
    assert alike.tolist() == pytest.approx(r)  # nobody lags more than another


def test_a_student_that_knows_nothing_does_not_break_it() -> None:
    lag = lag_of(torch.tensor([900.0, 3.0, 700.0]), torch.tensor([1.0, 1.0, 1.0]))
    made = moved(torch.tensor([0.0, 0.5, 0.5]), lag, 0.5)
    assert torch.isfinite(lag).all() and torch.isfinite(made).all() and float(made.sum()) == pytest.approx(1.0)
    assert float(made.min()) == pytest.approx(0.5 / 3)  # smoothing keeps every domain


def test_perplexities_are_those_of_the_held_out_rows(tmp_path: Path) -> None:
    run, student = toy(tmp_path)
    s = METHOD.setup(student.train(), run)
    assert student.training
    held, lags = run.sources()["valid"], []
    for domain in range(3):
        nll = []
        for module in (student, run.teacher.module):
            batch = held.batch(held.members(domain), 0)
            logp = logits_of(module, batch).dense().double().log_softmax(-1).gather(-1, batch["labels"][..., None])[..., 0]
            nll.append(float((-(logp * batch["weight"]).sum() / batch["weight"].sum()).detach()))
        assert float(s.teacher_nll[domain]) == pytest.approx(nll[1], rel=1e-5)
        lags.append(math.exp(nll[0]) / math.exp(nll[1]))
    expected = torch.tensor(lags).softmax(-1).tolist()
    assert s.mixture.tolist() == pytest.approx(expected, rel=1e-4)
    one = domain_nll(lambda batch: logits_of(student, batch), held, run.device, rows=1)
    first = held.batch([held.members(0)[0]], 0)
    logp = logits_of(student, first).dense().log_softmax(-1).gather(-1, first["labels"][..., None])[..., 0]
    assert float(one[0]) == pytest.approx(
        float((-(logp * first["weight"]).sum() / first["weight"].sum()).detach()), rel=1e-5
    )


def test_when_the_mixture_moves(tmp_path: Path) -> None:
    run, student = toy(tmp_path)
    s, path = METHOD.setup(student, run), []
    start = s.mixture.clone()
    for run.step in range(8):
        with torch.no_grad():
            METHOD.advance(s, {}, run)
        path.append(s.mixture.clone())
    changed = [not torch.equal(a, b) for a, b in zip([start, *path], path, strict=False)]
    assert changed == [False, True, False, True, False, True, False, False]  # the last update would serve nobody
    with torch.no_grad():
        lag = lag_of(domain_nll(lambda b: logits_of(student, b), run.sources()["valid"], run.device), s.teacher_nll)
    torch.testing.assert_close(path[1], moved(start, lag, 0.5))


# -- the rows ----------------------------------------------------------------------------------------------------------


def counted(run: Any, s: Any, mixture: list[float], steps: int) -> tuple[Counter[int], Counter[int], int]:
    """How often each domain and each row came, and how many rows were not the engine's own."""
    s.mixture.copy_(torch.tensor(mixture, dtype=torch.float64))
    domains, rows, replaced = Counter[int](), Counter[int](), 0
    items = list(range(len(run.source)))
    batch = run.source.batch(items, 0)
    for run.step in range(steps):
        drawn = METHOD.drawn(s, batch, run)
        domains.update(drawn["domain"].tolist())
        rows.update(drawn["item"].tolist())
        replaced += int((drawn["item"] != batch["item"]).sum())
    return domains, rows, replaced


def test_domains_come_as_often_as_the_mixture_says(tmp_path: Path) -> None:
    run, student = toy(tmp_path)
    s = METHOD.setup(student, run)
    mixture, steps = [0.6, 0.1, 0.3], 250
    domains, rows, replaced = counted(run, s, mixture, steps)
    total = steps * 36
    for domain, share in enumerate(mixture):
        assert domains[domain] / total == pytest.approx(share, abs=0.015)  # 3 standard deviations
        each = [rows[i] / domains[domain] for i in run.source.members(domain)]
        assert min(each) > 0.6 / 12 and max(each) < 1.5 / 12  # all rows of a domain alike
    assert replaced / total == pytest.approx(0.6 - 1 / 3, abs=0.02)  # as few as can be


def test_domains_of_unequal_size(tmp_path: Path) -> None:
    run, student = toy(tmp_path)
    whole = run.source
    run.source = DomainRows(whole.rows[:16], whole.length, whole.classes, whole.names, (12, 3, 1))
    s = METHOD.setup(student, run)
    domains, _, _ = counted(run, s, [0.25, 0.25, 0.5], 500)
    for domain, share in enumerate((0.25, 0.25, 0.5)):
        assert domains[domain] / 8000 == pytest.approx(share, abs=0.02)
    domains, _, _ = counted(run, s, [0.0, 1.0, 0.0], 5)
    assert set(domains) == {1}


def test_the_datas_own_shares_are_plain_distillation(tmp_path: Path) -> None:
    run, student = toy(tmp_path)
    s = METHOD.setup(student, run)
    s.mixture.fill_(1 / 3)
    batch = run.source.batch([3, 14, 30, 7], 0)
    plain = replace(METHOD, every=0)
    assert set(plain.setup(student, run).state_dict()) == {f"student.{name}" for name in student.state_dict()}
    (mine,), (theirs,) = METHOD.step(s, batch, run), plain.step(plain.setup(student, run), batch, run)
    assert torch.equal(mine.loss, theirs.loss)


def ended(folder: Path, method: DDK, accumulate: int) -> dict[str, torch.Tensor]:
    run, loop = loop_of(folder, method)
    fit(loop, run.source, steps=8, size=6, accumulate=accumulate)
    return loop.state.state_dict()


def test_splitting_a_batch_changes_nothing(tmp_path: Path) -> None:
    whole = ended(tmp_path / "1", METHOD, 1)
    for parts in (2, 6):
        for name, value in ended(tmp_path / str(parts), METHOD, parts).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)
    other = ended(tmp_path / "even", replace(METHOD, every=0), 1)
    assert any(not torch.allclose(value, whole[name], atol=1e-3) for name, value in other.items())


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_the_mixture_survives_a_resume(tmp_path: Path, stop: int) -> None:
    run, straight = loop_of(tmp_path / "a", METHOD)
    fit(straight, run.source, steps=8, size=6)
    run, first = loop_of(tmp_path / "b", METHOD)
    fit(first, run.source, steps=stop, size=6)
    saved = copy.deepcopy(first.state_dict())
    run, student = toy(tmp_path / "c")
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.5)  # whatever the new process builds, the checkpoint decides
    second = Loop(METHOD, METHOD.setup(student, run), run, first.optim)
    second.load_state_dict(saved)
    fit(second, run.source, steps=8, size=6, start=stop)
    for name, value in straight.state.state_dict().items():
        assert torch.equal(value, second.state.state_dict()[name]), name


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("of", ["forward", "reverse"])
def test_the_loss_written_out(tmp_path: Path, gamma: float, of: str) -> None:
    run, student = toy(tmp_path)
    method = DDK(every=0, gamma=gamma, temperature=1.5, divergence=ForwardKL() if of == "forward" else ReverseKL())
    batch = run.source.batch([0, 13, 25], 0)
    (made,) = method.step(method.setup(student, run), batch, run)
    with torch.no_grad():
        z, zt = (logits_of(m, batch).dense().double() for m in (student, run.teacher.module))
        nll = -z.log_softmax(-1).gather(-1, batch["labels"][..., None])[..., 0]
        q, p = ((x / 1.5).log_softmax(-1) for x in (z, zt))
        kl = (p.exp() * (p - q)).sum(-1) if of == "forward" else (q.exp() * (q - p)).sum(-1)
        expected = ((nll + gamma * kl) * batch["weight"]).sum()
    assert float(made.loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(made.count) == float(batch["weight"].sum()) == sum(float(made.logs[f"share_{n}"]) for n in DATA.domains)


def test_what_it_refuses(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", SPEC, data=Sentences())
    run.source = run.sources()["train"]
    with pytest.raises(RunError, match=r"no domains: use data.domains.Domains"):
        METHOD.setup(SPEC.build(run), run)
    run, student = toy(tmp_path / "b", data=replace(DATA, valid=0))
    with pytest.raises(RunError, match=r"raise data.valid"):
        METHOD.setup(student, run)
    for wrong in ({"smooth": 1.5}, {"gamma": -1.0}, {"every": -1}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            DDK(**wrong)


# -- the audit ---------------------------------------------------------------------------------------------------------


def test_the_gaps_of_every_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, student = toy(tmp_path)
    other = copy.deepcopy(run.teacher.module)
    monkeypatch.setattr(Subjects, "load", lambda self, name: student if name == "train" else other)
    check = DomainGaps(versus=("start",), draws=50)
    found = {(f.name, f.subject, f.versus): f.value for f in check(run, Subjects(run, ("train", "start")))}
    held, gaps = run.sources()["test"], []
    mine, theirs = (domain_nll(lambda b, m=m: logits_of(m, b), held, run.device) for m in (student, run.teacher.module))
    gaps = (mine - theirs).tolist()
    for name, gap in zip(DATA.domains, gaps, strict=True):
        assert found[f"gap_{name}", "train", None] == pytest.approx(gap, rel=1e-5)
        assert found[f"gap_{name}", "start", None] == pytest.approx(0.0, abs=1e-9)  # the teacher itself
    assert found["gap_worst", "train", None] == pytest.approx(max(gaps), rel=1e-5)
    assert found["gap_mean", "train", "start"] == pytest.approx(sum(gaps) / 3, rel=1e-5)
    run, student = toy(tmp_path / "plain", data=Sentences())
    with pytest.raises(RunError, match="has no domains"):
        list(check(run, Subjects(run, ("train",))))
