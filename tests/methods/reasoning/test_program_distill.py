"""Program distillation: the schedule of tries, what execution lets through, and whose programs are shown to whom."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from confinement import confined
from language import Folders, write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted, Run
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.data.problems import Problems, asked_for, kind_of
from stillhouse.methods.reasoning.program_distill import Annotate, prompted, recipe
from stillhouse.synth.reckon import Reckoned
from stillhouse.synth.sandbox import Sandbox
from stillhouse.synth.scripts.programmer import Programmer
from stillhouse.synth.synthesize import DataPlan, Synthesize, account_of, lost_rows, made_rows
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask

SANDBOX = Sandbox(seconds=2.0, memory=256 << 20)
PROBLEMS = Problems(train=60, valid=5, test=20, style="steps")


def lab(script: Any, annotate: Annotate, problems: Problems = PROBLEMS, **stages: Any) -> Recipe:
    """Annotation, and what comes after it."""
    make = Synthesize(steps={"annotate": replace(annotate, sandbox=SANDBOX)})
    tasks = Reckoned(base=problems, sandbox=SANDBOX)
    return Recipe(id="mine", data=tasks, teachers={"teacher": Scripted(script=script)}, stages={"make": make, **stages})


@dataclass(frozen=True, kw_only=True)
class Late:
    """Right at the n-th try about a question, n from its first number; notes what it was asked."""

    asked: list[tuple[str, float, tuple[str, ...]]] = field(default_factory=list)

    def build(self, run: Run) -> Callable[[Ask, random.Random], str | Completion]:
        def answer(ask: Ask, rng: random.Random) -> str:
            question = ask.about["question"]
            shown = tuple(each["question"] for each in ask.about.get("shown", ()))
            assert all(f"Question: {each}\nreturn" in ask.messages[0][1] for each in shown)
            before = sum(each == question for each, _, _ in self.asked)
            self.asked.append((question, ask.decoding.temperature, shown))
            return f"return {asked_for(question)}" if before + 1 >= wanted(question) else "return -1"

        return answer


def wanted(question: str) -> int:
    """At which try `Late` knows it: 1 to 8."""
    return int(question.split()[0]) % 8 + 1


@confined
def test_the_schedule_of_tries(tmp_path: Path) -> None:
    """Greedy once, four times drawn, once with demonstrations: what is right at the seventh try or later is lost."""
    script, run = Late(), Run(tmp_path / "run")
    made = lab(script, Annotate(shown=3))
    execute(made, run)
    rows, gone = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    questions = {row["question"] for row in made.data.rows(run)["train"]}
    assert {row["question"]: row["tries"] for row in rows} == {q: wanted(q) for q in questions if wanted(q) <= 6}
    assert {row["row"]["question"] for row in gone} == {q for q in questions if wanted(q) > 6}
    assert {row["_why"] for row in gone} == {"no solved after 1 rounds"}
    first: dict[str, int] = Counter()
    done = {q for q in questions if wanted(q) <= 5}
    for question, temperature, shown in script.asked:
        first[question] += 1
        assert temperature == (0.0 if first[question] == 1 else 0.5)
        assert len(shown) == (3 if first[question] == 6 else 0) and set(shown) <= done - {question}
    assert all(first[q] == min(wanted(q), 6) for q in questions)
    assert account_of(run, "make")["teachers"]["teacher"]["calls"] == len(script.asked)
    need = DataPlan.of(replace(made, teachers={"teacher": Scripted(script=Programmer())})).needs["teacher"]
    assert need.calls == 6 * 60


@pytest.mark.parametrize(("tries", "again"), [(1, 0), (2, 0), (1, 2)])
@confined
def test_fewer_tries(tries: int, again: int, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    execute(lab(Late(), Annotate(tries=tries, again=again), replace(PROBLEMS, train=24)), run)
    assert {row["tries"] for row in made_rows(run, "make")} == set(range(1, tries + again + 1))
    with pytest.raises(ValueError, match="tries"):
        Annotate(tries=0)


@confined
def test_what_execution_lets_through(tmp_path: Path) -> None:
    """Coverage is that of independent tries; precision is not 1, since a wrong program may give the right number."""
    run = Run(tmp_path / "run")
    script = Programmer(wrong_greedy=0.3, wrong=0.5)
    execute(lab(script, Annotate(tries=2, again=0), replace(PROBLEMS, train=300)), run)
    rows, gone = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    took = Counter(row["tries"] for row in rows)
    assert took[1] / 300 == pytest.approx(0.7, abs=0.08) and took[2] / 300 == pytest.approx(0.15, abs=0.07)
    assert not any(row["row"]["_truth"]["right"] for row in gone if "_truth" in row["row"])  # recall: no right one is lost
    spurious = [row for row in rows if not row["_truth"]["right"]]
    assert len(spurious) / len(rows) < 0.05
    for row in rows:
        assert eval(row["program"].removeprefix("return").strip()) == int(row["truth"])  # noqa: S307  our own
    assert all(row["program"] != f"return {asked_for(row['question'])}" for row in spurious)


@confined
def test_the_nearest_demonstrations_are_of_the_same_kind(tmp_path: Path) -> None:
    """A reader that solves what it was shown an example of: retrieval against chance and against the least similar."""
    made = lab(Programmer(wrong_greedy=0.0), Annotate(tries=1, again=0), replace(PROBLEMS, test=40))
    stages = {c: prompted(c, 2, "reader", sandbox=SANDBOX) for c in ("nearest", "random", "farthest")}
    reader = Scripted(script=Programmer(shown_alone=True))
    made = replace(made, stages={**made.stages, **stages}, teachers={**made.teachers, "reader": reader})
    run = Run(tmp_path / "run")
    execute(made, run)
    share: dict[str, float] = {}
    for name in stages:
        rows = list(made_rows(run, name))
        assert {row["question"] for row in rows} == {row["question"] for row in made.data.rows(run)["test"]}
        same = [any(kind_of(e["question"]) == kind_of(row["question"]) for e in row["shown"]) for row in rows]
        assert all(row["solved"] >= right for row, right in zip(rows, same, strict=True))
        share[name] = sum(same) / len(rows)
    assert (
        share["nearest"] > 0.9 and 0.15 < share["random"] < 0.6 and share["farthest"] < share["random"]
    )  # 1 - 0.8^2 = 0.36


@confined
def test_a_stop_in_between_changes_nothing(tmp_path: Path) -> None:
    class Stop:
        def update(self, name: str, done: int, *rest: Any) -> None:
            import signal

            if "drawn/1/ask" in name and done == 4:
                signal.raise_signal(signal.SIGINT)

    made = lab(Programmer(), Annotate(tries=3))
    straight, run = Run(tmp_path / "a" / "run"), Run(tmp_path / "b" / "run")
    execute(made, straight)
    run.progress = Stop()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        execute(made, run)
    again = Run(tmp_path / "b" / "run")
    execute(made, again)
    assert list(made_rows(again, "make")) == list(made_rows(straight, "make"))


@confined
def test_a_users_own_questions_from_the_command_line(folders: Folders, still: Any, tmp_path: Path) -> None:
    tasks = replace(PROBLEMS, larger=False, train=40).tasks(Run(tmp_path / "x"))["train"]
    rows = [{"ask": task.question, "gold": f"We reckon. #### {task.answer}"} for task in tasks]
    write_jsonl(tmp_path / "mine.jsonl", [*rows, {"ask": "How many?", "gold": "many"}])
    settings = {
        "teachers.teacher": "{use: teachers.scripted.Scripted, script: {use: synth.scripts.programmer.Programmer}}",
        "data.base.path": "mine.jsonl", "data.base.question": "ask", "data.base.answer": "gold",
        "data.base.instruction": "''", "data.base.length": 200, "student.path": folders.student,
        "train.steps": 2, "train.batch": 2, "train.precision": "float32", "make.steps.annotate.tries": 2,
        "prompted.data.count": 2, "audit.checks.0.sampling.max_new": 8,
    }  # fmt: skip
    done = still(
        "run", "program_distill", "--scale", "paper", *(part for k, v in settings.items() for part in ("--set", f"{k}={v}"))
    )
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").glob("*")
    run = Run(folder)
    made, asked = list(made_rows(run, "make")), list(made_rows(run, "prompted"))
    assert account_of(run, "make")["steps"][0]["made"] == 32 and len(asked) == 4
    known = {row["ask"]: row["gold"] for row in rows}
    assert 20 < len(made) <= 32 and all(known[row["question"]].endswith(f" {row['result']}") for row in made)
    assert all({e["question"] for e in row["shown"]} <= {each["question"] for each in made} for row in asked)
    assert "coverage" in done.stdout and "the check 'number'" in (folder / "rejects.jsonl").read_text()


def test_without_bubblewrap_it_says_so_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.core.run import RunError

    monkeypatch.setenv("PATH", str(tmp_path))
    made = recipe("smoke").set("make.steps.annotate.sandbox", Sandbox(seconds=4.321))
    made = made.set("data", replace(made.data, sandbox=Sandbox(seconds=4.322)))
    with pytest.raises(RunError, match="apt-get install"):
        execute(replace(made, stages={"make": made.stages["make"]}), Run(tmp_path / "run"))
    assert not (tmp_path / "run" / "requests.sqlite").exists()
