"""MOPD: every row is taught by the teacher of its domain and by no other; its gradient is that of the rows apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.mixed import Mixed
from stillhouse.data.tasks import Chain
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.mopd import MOPD, rows_of
from stillhouse.methods.language.gopd import GOPD
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import ReverseKL
from stillhouse.teachers.module import Frozen

SPEC = TinyLM(width=16, depth=1)
PLUS = Chain(ops=(1,), signs="+-", style="answer", train=6, valid=2, test=3)
KINDS = Mixed(parts={"plus": PLUS, "times": Chain(ops=(1,), signs="*", train=6, valid=2, test=3, length=60)})


def setting(tmp_path: Path, data: Any = KINDS, names: tuple[str, ...] = ("plus", "times")) -> Any:
    """A run with a teacher of each name, all different, and its training split."""
    run = run_of(tmp_path, SPEC, data=data)
    teachers = {}
    for number, name in enumerate(names):
        torch.manual_seed(100 + number)
        teachers[name] = Frozen(SPEC.build(run))
    run.teachers, run.source = teachers, run.sources()["train"]
    torch.manual_seed(0)
    return run, SPEC.build(run)


def gradient(method: Any, student: Any, batch: Any, run: Any) -> tuple[float, float, list[torch.Tensor]]:
    (update,) = list(method.step(method.setup(student, run), batch, run))
    return update.loss.item(), float(update.count), list(torch.autograd.grad(update.loss, list(student.parameters())))


@pytest.mark.parametrize(
    "inner",
    [
        GKD(on_policy=0.0, divergence=ReverseKL()),
        GKD(on_policy=1.0, divergence=ReverseKL(), sampling=Sampling(max_new=5)),
        GOPD(scale=1.0, sampling=Sampling(max_new=5)),
    ],
)
def test_the_loss_is_the_sum_of_what_each_teacher_asks_of_its_rows(tmp_path: Path, inner: Any) -> None:
    run, student = setting(tmp_path)
    batch = run.source.batch([0, 7, 3, 9, 11], 0)
    assert batch["domain"].tolist() == [0, 1, 0, 1, 1]
    loss, count, grads = gradient(MOPD(method=inner), student, batch, run)
    expected = [0.0, 0.0, [torch.zeros_like(p) for p in student.parameters()]]
    teachers = dict(run.teachers)
    for domain, name in enumerate(teachers):
        run.teachers = {"teacher": teachers[name]}
        part = gradient(inner, student, run.source.batch([[0, 3], [7, 9, 11]][domain], 0), run)
        expected = [expected[0] + part[0], expected[1] + part[1], [a + b for a, b in zip(expected[2], part[2], strict=True)]]
    assert loss == pytest.approx(expected[0], rel=1e-4) and count == expected[1]
    for mine, other in zip(grads, expected[2], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_batch_of_one_domain_asks_one_teacher(tmp_path: Path) -> None:
    run, student = setting(tmp_path)
    asked: list[str] = []

    class Spy(Frozen):
        def __init__(self, name: str, module: Any):
            super().__init__(module)
            self.name = name

        def __call__(self, batch: Any, want: Any) -> Any:
            asked.append(self.name)
            return super().__call__(batch, want)

    run.teachers = {name: Spy(name, teacher.module) for name, teacher in run.teachers.items()}
    method = MOPD(method=GKD(on_policy=0.0), teachers={"plus": "times", "times": "plus"})
    list(method.step(method.setup(student, run), run.source.batch([6, 7], 0), run))
    assert asked == ["plus"]


def test_routes_that_lead_nowhere(tmp_path: Path) -> None:
    run, student = setting(tmp_path)
    with pytest.raises(RunError, match="no teacher for domain 'times'; domains: plus, times; teachers: plus, times"):
        MOPD(teachers={"times": "nobody"}).setup(student, run)
    with pytest.raises(RunError, match="the data have no domain 'minus'"):
        MOPD(teachers={"minus": "plus"}).setup(student, run)
    run, student = setting(tmp_path / "b", data=Sentences())
    with pytest.raises(RunError, match="name no domains"):
        MOPD().setup(student, run)


def test_rows_of_a_batch() -> None:
    batch = {"labels": torch.arange(6).view(3, 2), "inputs": {"tokens": torch.arange(3)}, "pairs": 3}
    some = rows_of(batch, torch.tensor([True, False, True]))
    assert some["labels"].tolist() == [[0, 1], [4, 5]] and some["inputs"]["tokens"].tolist() == [0, 2] and some["pairs"] == 3


def test_mixed_tasks_are_judged_by_their_own_kind(tmp_path: Path) -> None:
    run = run_of(tmp_path, SPEC, data=KINDS)
    train = run.sources()["train"]
    assert len(train) == 12 and train.names == ("plus", "times") and train.domains == (0,) * 6 + (1,) * 6
    prompts, coder = KINDS.prompts(run)["train"], KINDS.coder(run)
    for i, task in enumerate(train.tasks):
        assert prompts[i] == coder.prompt(task.question) and ("*" in task.question) == (i >= 6)
        right = coder.answer(task.question, task.solution)
        assert KINDS.verify(run, "train", i, right) == 1.0 and KINDS.verify(run, "train", i, right[:-1]) == 0.0
    assert KINDS.hinted(run, "train")[0] == coder.prompt(PLUS.hint(PLUS.task(train.tasks[0].question)))
    with pytest.raises(ValueError, match="at least one kind"):
        Mixed(parts={})
