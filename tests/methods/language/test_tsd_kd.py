"""TSD-KD: which tokens are chosen, each term against loops over dense logits, and the ranking the right way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.engine import to_device
from stillhouse.data.tasks import Chain
from stillhouse.methods.groups import written
from stillhouse.methods.language.tsd_kd import TSDKD, least_sure, openers, shares_of
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling, answered
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import Frozen

SPEC = TinyLM(width=16, depth=1)
SAMPLING = Sampling(max_new=6)


def setting(tmp_path: Path) -> Any:
    run = run_of(tmp_path, SPEC, data=Chain(ops=(2,), train=12, valid=2, test=2))
    torch.manual_seed(1)
    run.teachers = {"teacher": Frozen(SPEC.build(run))}
    torch.manual_seed(0)
    return run, SPEC.build(run), run.sources()["train"].batch(range(5), 0)


def update(method: TSDKD, run: Any, student: Any, batch: Any) -> Any:
    (made,) = method.step(method.setup(student, run), batch, run)
    return made


def test_the_whole_loss_against_loops(tmp_path: Path) -> None:
    run, student, batch = setting(tmp_path)
    method = TSDKD(sampling=SAMPLING, least_sure=0.4, opener=0.5, candidates=4)
    made = update(method, run, student, batch)
    prompts, _, wrote = written(student, batch, run, SAMPLING)
    text = to_device(answered(prompts, wrote), torch.device("cpu"))
    with torch.no_grad():
        q = logits_of(student, text).dense().double().log_softmax(-1)  # type: ignore[union-attr]
        z = logits_of(student, text).dense().double()  # type: ignore[union-attr]
        p = logits_of(run.teacher.module, text).dense().double().log_softmax(-1)
        total = 0.0
        for row in range(5):
            places = text["weight"][row].nonzero().flatten().tolist()
            hq = {t: float(-(q[row, t].exp() * q[row, t]).sum()) for t in places}
            hp = {t: float(-(p[row, t].exp() * p[row, t]).sum()) for t in places}
            for t in places:
                mid = 0.9 * p[row, t].exp() + 0.1 * q[row, t].exp()
                jsd = 0.9 * (p[row, t].exp() * (p[row, t] - mid.log())).sum()
                jsd += 0.1 * (q[row, t].exp() * (q[row, t] - mid.log())).sum()
                total += float(jsd) / (1 + 2.718281828459045 ** (hp[t] - hq[t])) / len(places)
            chosen = sorted(places, key=lambda t: -hq[t])[: -(-4 * len(places) // 10)]
            total += sum(hq[t] for t in chosen) / len(chosen)
            opener, running = [], 0.0
            for t in places:
                running += hq[t]
                if opener and running >= 0.5 * sum(hq.values()):
                    break
                opener.append(t)
            ranked = 0.0
            for t in opener:
                mine = z[row, t].topk(4).indices.tolist()
                u = [float(z[row, t, v]) for v in sorted(mine, key=lambda v: -float(p[row, t, v]))]
                for i in range(4):
                    ranked += float(torch.tensor(u[i:], dtype=torch.float64).logsumexp(0)) - u[i]
            total += 0.1 * ranked / len(opener)
    assert float(made.count) == 5
    assert made.loss.item() == pytest.approx(total, rel=1e-4)


def test_the_ranking_pulls_towards_the_teachers_order(tmp_path: Path) -> None:
    run, student, batch = setting(tmp_path)
    only = {"sampling": SAMPLING, "direct": 0.0, "sharpen": 0.0, "indirect": 1.0, "opener": 1.0, "candidates": 3}
    right, released = TSDKD(**only), TSDKD(**only, reversed_ranking=True)

    def agreement() -> float:
        """How often the student prefers, of its three likeliest tokens, the one that the teacher does."""
        text = answered(*written(student, batch, run, SAMPLING)[::2])
        with torch.no_grad():
            z, p = (logits_of(m, text).dense() for m in (student, run.teacher.module))  # type: ignore[union-attr]
        top = z.topk(3, -1)
        best = p.gather(-1, top.indices).argmax(-1)
        return float((best == 0)[text["weight"] > 0].float().mean())

    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = {}
    for name, method in (("right", right), ("released", released)):
        student.load_state_dict(before)
        optim = torch.optim.Adam(student.parameters(), lr=3e-3)
        for run.step in range(25):
            made = update(method, run, student, batch)
            optim.zero_grad()
            (made.loss / made.count).backward()
            optim.step()
        found[name] = agreement()
    assert found["right"] > 0.75 and found["right"] > found["released"] + 0.2


def test_the_least_sure_tokens_and_the_opener_of_each_row() -> None:
    unsure = torch.tensor([[0.1, 0.9, 0.5, 0.3, 9.0], [9.0, 1.0, 1.0, 1.0, 1.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    counted = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert least_sure(unsure, counted, 0.5).tolist() == [
        [False, True, True, False, False], [False, True, True, True, True], [False] * 5,
    ]  # fmt: skip
    assert least_sure(unsure, counted, 0.01)[0].tolist() == [False, True, False, False, False]
    assert openers(unsure, counted, 0.6).tolist() == [
        [True, True, False, False, False], [False, True, True, False, False], [False] * 5,
    ]  # fmt: skip
    assert openers(unsure, counted, 0.01)[0].tolist() == [True, False, False, False, False]
    assert shares_of(counted[:2] > 0).sum(-1).tolist() == [1.0, 1.0] and shares_of(counted > 0)[2].sum() == 0


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"least_sure": 0.0}, {"opener": 1.5}, {"candidates": 1}):
        with pytest.raises(ValueError, match="least_sure and opener are shares"):
            TSDKD(**wrong)
