"""Shares of solved tasks against answers counted by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.audits import solved
from stillhouse.audits.solved import Solved, pass_at
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects, Train
from stillhouse.data.tasks import Chain
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM

torch.set_num_threads(1)
TASKS = Chain(ops=(1,), train=5, valid=3, test=8)


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at(k, n, c) == pytest.approx(sum(any(d) for d in draws) / len(draws))


class Scripted:
    """Stands in for `generate`: for each subject, which of a task's answers are right, and how long they are."""

    def __init__(self, right: dict[str, list[list[bool]]], hinted: list[bool] | None = None):
        self.right, self.hinted, self.asked = right, hinted, []

    def __call__(self, module: Any, prompts: Any, sampling: Any, *, seed: int, keys: Any, ends: Any, on_batch: Any) -> Any:
        self.asked.append((prompts, keys, ends))
        made = []
        for prompt, (i, n) in zip(prompts, keys, strict=True):
            shown = Chain.alphabet[prompt[-1]] == "~"
            good = self.hinted[i] if shown and self.hinted else self.right[module.name][i][n]
            task = TASKS.task("".join(Chain.alphabet[t] for t in prompt).split("=")[0] + "=")
            answer = task.answer if good else str((int(task.answer) + 1) % 10)
            made.append(TASKS.coder(None).answer("", f"{'7;' * n}#{answer}"))  # type: ignore[arg-type]
        on_batch(len(prompts), sum(map(len, made)))
        return made


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, script: Scripted, check: Solved, data: Any = TASKS) -> Any:
    stage = Train(method=Supervised(), steps=1, batch=1)
    run = run_of(folder, TinyLM(), data=data, train=stage)
    monkeypatch.setattr(solved, "generate", script)

    def load(self: Any, name: str) -> Any:
        module = TinyLM().build(run)
        module.name = name  # type: ignore[assignment]
        return module

    monkeypatch.setattr(Subjects, "load", load)
    return run, list(check(run, Subjects(run, ("start", "train"))))


def test_one_answer_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, train = [True] + [False] * 7, [True] * 6 + [False] * 2
    script = Scripted({"start": [[x] for x in start], "train": [[x] for x in train]}, hinted=[True] * 7 + [False])
    run, findings = found(tmp_path, monkeypatch, script, Solved(versus=("start",), hinted=("train",)))
    values = {(f.name, f.subject, f.versus): f for f in findings}
    assert values["solved", "start", None].value == 1 / 8 and values["solved", "train", None].value == 6 / 8
    assert values["solved_hinted", "train", None].value == 7 / 8 and ("solved_hinted", "start", None) not in values
    assert values["answer_tokens", "train", None].value == 3.0 and values["answer_tokens", "train", None].better == "neither"
    gain = values["solved", "train", "start"]
    assert gain.value == pytest.approx(5 / 8) and gain.low is not None and 0 < gain.low < 5 / 8 and gain.n == 8
    assert {f.split for f in findings} == {"test"} and {f.over for f in findings} == {"tasks"}
    prompts, keys, ends = script.asked[0]
    assert prompts == TASKS.prompts(run)["test"] and keys == [(i, 0) for i in range(8)] and ends == frozenset({0})
    assert script.asked[2][0] == TASKS.hinted(run, "test")


def test_several_answers_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = [[True, False, False], [False] * 3, [True] * 3, [False, True, True], *[[False] * 3] * 4]
    check = Solved(samples=3, k=(1, 2, 3), sampling=Sampling(temperature=1.0), count=4, split="valid")
    _, findings = found(tmp_path, monkeypatch, Scripted({"start": right, "train": right}), check)
    values = {f.name: f for f in findings if f.subject == "train"}
    assert values["solved"].n == 3  # the split has no more
    assert values["solved"].value == pytest.approx((1 / 3 + 0 + 1) / 3) == pytest.approx(values["pass@1"].value)
    assert values["pass@2"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert values["pass@3"].value == pytest.approx(2 / 3)
    assert values["answer_tokens"].value == pytest.approx((3 + 5 + 7) / 3)
    assert values["solved"].split == "valid" and math.isinf(values["solved"].low or 0.0)  # too few tasks to tell


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted({})
    for check, why in (
        (Solved(samples=4), "4 answers at temperature 0 are one answer"),
        (Solved(k=(2,)), "at least k answers"),
        (Solved(k=(0,)), "at least k answers"),
    ):
        with pytest.raises(RunError, match=why):
            found(tmp_path, monkeypatch, script, check)
    with pytest.raises(RunError, match="Sentences has no verifier"):
        found(tmp_path, monkeypatch, script, Solved(), Sentences())
    with pytest.raises(RunError, match=r"the test split holds no task.*data\.test"):
        found(tmp_path, monkeypatch, script, Solved(), Chain(train=2, valid=1, test=0))


def test_real_answers(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(), data=TASKS)
    check = Solved(ours="start", sampling=Sampling(temperature=0.0, max_new=6))
    values = {f.name: f.value for f in check(run, Subjects(run, ("start",)))}
    assert 0.0 <= values["solved"] <= 1.0 and 1.0 <= values["answer_tokens"] <= 6.0
