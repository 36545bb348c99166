"""Students judged on their own answers, against a brute-force reading of the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.audits.own_answers import OwnAnswers
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.toys import Sentences
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

DRAWN = Sampling(max_new=7, batch=4)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    student, teacher = TinyLM(width=16, depth=1), ModuleTeacher(spec=TinyLM(width=32))
    made = run_of(tmp_path, student, data=Sentences(), teacher=teacher, seed=5)
    made.stage = "audit"
    return made


@torch.no_grad()
def test_every_token_of_its_own_answers_is_compared(run: Any) -> None:
    found = list(OwnAnswers(sampling=DRAWN, count=9, batch=4)(run, Subjects(run, ("teacher", "start"))))
    assert [(f.name, f.subject, f.n) for f in found] == [("own_reverse_kl", "start", 9), ("own_teacher_nll", "start", 9)]
    student, teacher = Subjects(run, ("start",)).load("start"), run.teacher.module
    prompts = run.recipe.data.prompts(run)["test"][:9]
    kl, nll = [], []
    for prompt, answer in zip(prompts, generate(student, prompts, DRAWN, seed=run.seed), strict=True):
        text = torch.tensor([[*prompt, *answer]])
        log_q, log_p = (m(text).dense()[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (student, teacher))
        kl.append(float((log_q.exp() * (log_q - log_p)).sum(-1).mean()))
        nll.append(float(-log_p.gather(-1, torch.tensor(answer)[:, None]).mean()))
    assert found[0].value == pytest.approx(sum(kl) / 9, rel=1e-5)
    assert found[1].value == pytest.approx(sum(nll) / 9, rel=1e-5)
    assert all(f.low < f.value < f.high for f in found)  # type: ignore[operator]


def test_a_student_that_is_the_teacher_is_at_no_distance(tmp_path: Path) -> None:
    same = TinyLM(width=16, depth=1)
    run = run_of(tmp_path, same, data=Sentences(), teacher=ModuleTeacher(spec=same), seed=5)
    run.stage = "audit"
    run.teacher.module.load_state_dict(Subjects(run, ("start",)).load("start").state_dict())  # type: ignore[attr-defined]
    (kl, _) = OwnAnswers(sampling=DRAWN, count=5)(run, Subjects(run, ("start",)))
    assert kl.value == pytest.approx(0, abs=1e-6)


def test_without_prompts_there_is_nothing_to_judge(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sentences, "prompts", lambda self, run: {"test": []})
    with pytest.raises(RunError, match="holds no prompt"):
        list(OwnAnswers()(run, Subjects(run, ("start",))))
