"""BOLT: what bootstrapping keeps, what the outcome reward cannot see, and the pairs of the online stage."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, write_jsonl
from stillhouse.cli import launch
from stillhouse.core.method import Update
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.rewards import Format, Rewarded, Right
from stillhouse.data.tasks import Chain
from stillhouse.methods.reasoning.bolt import TAGGED, WORKED, OnlineDPO, long_examples, recipe
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.synth.scripts.solver import Solver
from stillhouse.synth.select import Top
from stillhouse.synth.synthesize import account_of, lost_rows, made_rows
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask

CHAIN = Chain(ops=(2, 3), base=6, signs="+-", train=120, valid=5, test=10)


def reached(operators: int, wrong: float = 0.35, base: int = 6) -> float:
    """The chance that a chain of `+` and `-` ends right: a wrong step leads astray, and one of 5 wrong ones back."""
    right = 1.0
    for _ in range(operators):
        right = right * (1 - wrong) + (1 - right) * wrong / (base - 1)
    return right


def bootstrapped(tmp_path: Path, script: Solver, **steps: Any) -> Run:
    """The stage `make` of the recipe at small, on few chains."""
    made = recipe("small")
    stage = replace(made.stages["make"], steps={**made.stages["make"].steps, **steps})
    run = Run(tmp_path / "run")
    execute(replace(made, data=CHAIN, stages={"make": stage}, teachers={"teacher": Scripted(script=script)}), run)
    return run


def test_what_is_kept_and_what_the_outcome_cannot_see(tmp_path: Path) -> None:
    """Against the script's truth: form and reward lose no right answer; some wrong steps reach a right result."""
    run = bootstrapped(tmp_path, Solver(data=CHAIN, wrong=0.35, again=0.5, garbled=0.15), best=Top(k=8, group="question"))
    kept, gone = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    assert len(kept) + len(gone) == 8 * 120
    truths = {key: [row["row"]["_truth"] for row in gone if row["_step"] == key] for key in ("form", "enough")}
    assert truths["form"] and all(truth["garbled"] or not truth["again"] for truth in truths["form"])
    assert truths["enough"] and not any(truth["right"] or truth["garbled"] for truth in truths["enough"])
    assert all(row["_truth"]["right"] and row["external"] == row["truth"] for row in kept)
    lucky = sum(row["_truth"]["wrong"] > 0 for row in kept) / len(kept)
    share = {n: 0.85 * (1 - 0.5**n) for n in (2, 3)}  # of the right form: a result, and a step once more
    mean, clean = (sum(share[n] * chance for n, chance in each.items()) / 2 for each in (
        {n: reached(n) for n in (2, 3)}, {n: 0.65**n for n in (2, 3)}
    ))  # fmt: skip
    assert len(kept) / (8 * 120) == pytest.approx(mean, abs=0.05)
    assert lucky == pytest.approx(1 - clean / mean, abs=0.05) and lucky > 0.04


def test_the_best_of_eight_above_the_threshold(tmp_path: Path) -> None:
    run = bootstrapped(tmp_path, Solver(data=CHAIN, wrong=0.35, again=0.5, garbled=0.15))
    kept = list(made_rows(run, "make"))
    questions = Counter(row["question"] for row in kept)
    assert max(questions.values()) == 1 and len(kept) / 120 == pytest.approx(
        sum(1 - (1 - 0.85 * (1 - 0.5**n) * reached(n)) ** 8 for n in (2, 3)) / 2, abs=0.05
    )
    assert account_of(run, "make")["teachers"]["teacher"]["calls"] == 8 * 120
    assert all(re.fullmatch(WORKED, row["answer"]) and "~" in row["answer"] for row in kept)


def test_examples_rotate_and_are_long(tmp_path: Path) -> None:
    run = bootstrapped(tmp_path, Solver(data=CHAIN, again=1.0))
    shown = Counter(each["question"] for row in made_rows(run, "make") for each in row["shown"])
    examples = {each["question"]: each["answer"] for each in long_examples(6)}
    assert set(shown) == set(examples) and len(examples) == 10 and sum(shown.values()) == 3 * 120
    assert len({tuple(e["question"] for e in row["shown"]) for row in made_rows(run, "make")}) > 80
    for question, answer in examples.items():
        assert re.fullmatch(WORKED, answer) and CHAIN.score(CHAIN.task(question), answer) == 1.0 and "~" in answer


def test_no_chain_that_is_judged_is_in_a_training_stage(tmp_path: Path) -> None:
    made, run = recipe("small"), Run(tmp_path / "run")
    judged = [made.data, *(c.data for c in made.stages["audit"].checks if hasattr(c, "data"))]
    assert {each.ops for each in judged} == {(2, 3), (4,)}
    held = {task.question for spec in judged for split in ("valid", "test") for task in spec.tasks(run)[split]}
    short, asked = made.stages["short"].data.parts.values(), made.stages["train"].data
    learned = [{task.question for task in spec.tasks(run)["train"]} for spec in (*short, asked)]
    assert not any(held & each for each in learned)
    assert not learned[0] & learned[2]  # short answers are to other questions than long ones


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What answers are worth, as the test says: by their order."""

    values: tuple[float, ...]
    weight: float = 1.0

    def __call__(self, answers: Any, run: Run) -> list[float]:
        return [self.values[i % len(self.values)] for i in range(len(answers))]


def online(tmp_path: Path, values: tuple[float, ...], **how: Any) -> tuple[Any, Any, Any, Update]:
    """One step of online DPO on two questions whose answers are worth `values`."""
    chain = Chain(ops=(1,), base=5, train=6, valid=2, test=4)
    method = OnlineDPO(group=len(values), sampling=Sampling(max_new=6), **how)
    run = Run(tmp_path / "run")
    data = Rewarded(base=chain, rewards={"worth": Worth(values=values)})
    run.recipe = Recipe(id="mine", student=TinyLM(), data=data, stages={})
    torch.manual_seed(0)
    state = method.setup(run.recipe.student.build(run), run)
    batch = run.sources()["train"].batch([0, 1], 0)
    (update,) = method.step(state, batch, run)
    return run, state, batch, update


def test_the_loss_begins_at_log_2_and_counts_questions(tmp_path: Path) -> None:
    _, _, _, update = online(tmp_path, (0.0, 0.2, 1.2, 0.0))
    assert update.count == 2 and update.loss.item() == pytest.approx(2 * math.log(2))
    logs = {name: float(value) for name, value in update.logs.items()}
    assert logs["reward"] == pytest.approx(2 * 1.4 / 4) and logs["best_reward"] == 2.4 and logs["mixed_groups"] == 2.0


def test_the_gradient_is_that_of_the_best_against_the_worst(tmp_path: Path) -> None:
    """beta / 2 (grad log q(worst) - grad log q(best)), by hand, at the beginning."""
    from stillhouse.methods.groups import written
    from stillhouse.models.generate import answered
    from stillhouse.objectives.preference import sequence_logp

    run, state, batch, update = online(tmp_path, (0.2, 0.0, 1.2, 1.2), beta=0.3)
    weights = list(state.student.parameters())
    got = torch.autograd.grad(update.loss, weights)
    prompts, keys, answers = written(state.student, batch, run, Sampling(max_new=6), 4)
    assert [number for _, number in keys] == [0, 1, 2, 3] * 2
    made = answered(prompts, answers)
    scores = sequence_logp(logits_of(state.student, made), made["labels"], weight=made["weight"])
    wanted = torch.autograd.grad(0.3 * 0.5 * (scores[1] - scores[2] + scores[5] - scores[6]), weights)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_where_all_earn_the_same_nothing_is_learned(tmp_path: Path) -> None:
    _, state, _, update = online(tmp_path, (1.0, 1.0, 1.0))
    assert float(update.logs["mixed_groups"]) == 0.0
    for grad in torch.autograd.grad(update.loss, list(state.student.parameters())):
        assert grad.abs().max() < 1e-7


def test_it_learns_what_is_rewarded(tmp_path: Path) -> None:
    """With a reward on answers without a second look alone: the mean reward of its own answers rises."""
    made = recipe("smoke").set("train.steps", 30).set("train.optim.lr", 1e-3)
    plain = {"plain": Format(pattern="[^~]*")}
    made = made.set("train.data", replace(made.stages["train"].data, rewards=plain))
    made = replace(made, stages={name: stage for name, stage in made.stages.items() if name != "audit"})
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    rewards = [line["student/reward"] for line in run.read("metrics.jsonl") if line["stage"] == "train"]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.1


@pytest.mark.parametrize("wrong", [{"group": 1}, {"beta": 0.0}, {"sampling": Sampling(temperature=0.0)}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="group needs two"):
        OnlineDPO(**wrong)


def test_it_wants_tasks(tmp_path: Path) -> None:
    made = recipe("smoke")
    run = Run(tmp_path / "run")
    run.recipe = replace(made, data=object())
    with pytest.raises(RunError, match="no verifier"):
        OnlineDPO().setup(torch.nn.Linear(1, 1), run)


@dataclass(frozen=True, kw_only=True)
class Thinker:
    """Writes in two tagged parts, and judges answers by what stands in them."""

    def build(self, run: Run) -> Callable[[Ask, random.Random], str]:
        def answer(ask: Ask, rng: random.Random) -> str:
            words = ask.messages[-1][1]
            if "How hard" in words:
                return "2" if "what is 3 " in words else "6"
            right = 2 * int(re.findall(r"what is (\d+)", words)[-1])
            if "How good" in words:
                assert "<think>" not in words  # the judge reads the external answer alone
                return "9" if words.endswith(f"Answer: {right}") else "3"
            said = right if rng.random() < 0.5 else right + 1
            thoughts = f"<think>perhaps {said}</think>"
            return f"{thoughts}<answer>{said}</answer>" if rng.random() < 0.7 else f"{thoughts} {said}"

        return answer


def test_a_users_own_questions_from_the_command_line(folders: Folders, still: Any, tmp_path: Path) -> None:
    """The paper's recipe as YAML: mining, bootstrapping, and both trainings of a small real model."""
    rows = [{"question": f"what is {i} and {i}?", "answer": str(2 * i)} for i in range(40)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    examples = [{"question": f"{i}?", "answer": f"<think>look: {i}</think><answer>{i}</answer>"} for i in range(10)]
    write_jsonl(tmp_path / "mine.jsonl", examples)
    teacher = "{use: teachers.scripted.Scripted, script: {use: NAME.Thinker}}".replace("NAME", __name__)
    Path("mine.yaml").write_text(still("show", "bolt", "--scale", "paper", "--yaml").stdout)
    settings = {
        "teachers.teacher": teacher, "teachers.judge": teacher, "data.base.path": "q.jsonl", "data.base.length": 240,
        "train.data.base.base.path": "q.jsonl", "train.data.base.base.length": 240, "make.steps.show.path": "mine.jsonl",
        "make.steps.topics.count": 2, "student.path": folders.student, "sft.steps": 2, "sft.batch": 2, "sft.accumulate": 1,
        "train.steps": 2, "train.batch": 2, "train.accumulate": 1, "train.method.group": 2, "sft.precision": "float32",
        "train.precision": "float32", "train.method.sampling.max_new": 6, "audit.checks.0.sampling.max_new": 6,
    }  # fmt: skip
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    done = still("run", "mine.yaml", "--allow", __name__.split(".")[0], *sets)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").glob("*")
    run = Run(folder)
    made, gone = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    assert 20 < len(made) == len({row["question"] for row in made})
    assert all(row["external"] == row["truth"] and re.fullmatch(TAGGED, row["answer"]) for row in made)
    assert {row["row"]["question"] for row in gone if row["_step"] == "hard"} <= {"what is 3 and 3?"}
    assert {"form", "enough", "best"} <= {row["_step"] for row in gone}
    for stage in ("sft", "train"):
        assert (run.path(stage) / "tokenizer.json").exists()
    assert json.loads((folder / "artifacts" / "audit" / "done.json").read_text())["name"] == "audit"


def test_the_form_has_its_own_reward(tmp_path: Path) -> None:
    chain = Chain(ops=(2,), base=6, signs="+-", train=4, valid=2, test=2)
    tasks = Rewarded(base=chain, rewards={"right": Right(), "form": Format(pattern=WORKED, weight=0.2)})
    run = Run(tmp_path / "run")
    run.recipe = Recipe(id="mine", student=TinyLM(), data=tasks, stages={})
    task, coder = run.sources()["train"].tasks[0], chain.coder(run)
    wrong = task.solution[:-1] + str((int(task.answer) + 1) % 6)
    long = "~" + task.solution
    said = [long, task.solution, "~" + wrong, wrong, f"#{task.answer}"]
    worth = tasks.verify_all(run, "train", [0] * 5, [coder.answer("", text) for text in said])
    assert worth == pytest.approx([1.2, 1.0, 0.2, 0.0, 1.0])
