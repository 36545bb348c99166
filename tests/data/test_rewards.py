"""What answers earn: each reward alone, their sum, and a user's function that raises, hangs, prints or gives nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from language import run_of
from stillhouse.cli.door import build, dump, read_yaml
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.own import Failed, asked
from stillhouse.data.rewards import Answered, Format, Overlong, Own, Rewarded, Right, Unrepeated
from stillhouse.data.tasks import Chain, Task
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM

TASK = Task("3+4=", "3+4=7#7", "7", "3+4=7#7")
FUNCTIONS = """
import os, sys, time
calls = 0
def score(question, answer, truth):
    print("a reward that talks", question)
    return 0.0 if answer is None else (2.0 if answer.endswith(truth) else -1)
def counted(question, answer, truth):
    global calls
    calls += 1
    return calls
def raises(question, answer, truth):
    raise KeyError("no such thing")
def nan(question, answer, truth):
    return float("nan")
def words(question, answer, truth):
    return "good"
def hangs(question, answer, truth):
    time.sleep(60)
def leaves(question, answer, truth):
    os._exit(3)
class Zero:
    def item(self):
        return 0.5
def scalar(question, answer, truth):
    return Zero()
"""


def told(*texts: str | None, tokens: int = 5, right: float = 0.0) -> list[Answered]:
    return [Answered(TASK, text, tokens, right) for text in texts]


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return str(tmp_path / "rewards.py")


def test_each_reward_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM())
    assert Right()(told("a", None, right=0.5), run) == [0.5, 0.5]
    assert Format(pattern=r".*#\d+")(told("3+4\n=7#7", "#", "#7.", None), run) == [1.0, 0.0, 0.0, 0.0]
    lengths = [Answered(TASK, None, n, 0.0) for n in (1, 6, 8, 10, 11)]
    assert Overlong(limit=10, buffer=4)(lengths, run) == [0.0, 0.0, -0.5, -1.0, -1.0]
    repeated = Unrepeated(words=2)(told("a b a b a", "a b c", "a", None), run)  # ab ba ab ba
    assert repeated == [-0.5, 0.0, 0.0, 0.0]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        Format(pattern="(")
    with pytest.raises(ValueError, match="at most limit"):
        Overlong(limit=3, buffer=4)
    with pytest.raises(ValueError, match=r"FILE\.py:NAME"):
        Own(function="rewards.score")
    with pytest.raises(ValueError, match="at least one"):
        Rewarded(base=Chain(), rewards={})


def test_a_function_of_ones_own(functions: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, TinyLM())
    assert Own(function=f"{functions}:score")(told("#7", "#8", None), run) == [2.0, -1.0, 0.0]
    assert "a reward that talks" in capfd.readouterr().err
    assert Own(function=f"{functions}:counted")(told("a", "b"), run) == [1.0, 2.0]  # one process for all
    assert Own(function=f"{functions}:scalar")(told("a"), run) == [0.5]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "raised KeyError: 'no such thing'"),
        ("nan", "gave nan, which is no finite number"),
        ("words", "gave .*good.*, which is no finite number"),
        ("hangs", "took more than 0.5 seconds"),
        ("leaves", "ended its process"),
        ("missing", "is not there: .* has no function 'missing'"),
    ],
)
def test_a_function_that_fails_stops_the_run_or_earns_what_is_set(name: str, why: str, functions: str, tmp_path: Path):
    run = run_of(tmp_path, TinyLM())
    own = f"{functions}:{name}"
    with pytest.raises(RunError, match=f"the reward .*rewards.py:{name} {why}") as error:
        Own(function=own, seconds=0.5)(told("#7"), run)
    assert "\n" not in str(error.value)
    assert Own(function=own, seconds=0.5, failing=-1.0)(told("#7", "#8"), run) == [-1.0, -1.0]
    assert [line["row"]["answer"] for line in run.read("rejects.jsonl")] == ["#7", "#8"]


def test_a_file_that_is_not_there_or_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is in no file"):
        asked(f"{tmp_path}/none.py:score", (), 1.0)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(Failed, match="cannot be loaded: ModuleNotFoundError"):
        asked(f"{tmp_path}/broken.py:score", (), 1.0)


def test_the_worth_of_an_answer_is_the_weighted_sum(tmp_path: Path) -> None:
    base = Chain(ops=(1,), base=5, train=10, valid=2, test=4)
    data = Rewarded(base=base, rewards={"right": Right(), "form": Format(pattern=r"#\d", weight=0.25)})
    run = run_of(tmp_path, TinyLM(), data=data)
    coder, task = base.coder(run), run.sources()["train"].tasks[3]
    wrong = str((int(task.answer) + 1) % 5)
    answers = [coder.answer("", text) for text in (f"#{task.answer}", f"#{wrong}", f"1;#{task.answer}", wrong)]
    assert data.verify_all(run, "train", [3] * 4, answers) == [1.25, 0.25, 1.0, 0.0]
    assert data.verify(run, "train", 3, answers[1]) == 0.0  # what audits ask: right or wrong
    assert data.verify_all(run, "train", [3], [answers[0][:-1]]) == [0.0]  # it did not end


def test_a_run_with_rewards_as_yaml(functions: str, tmp_path: Path) -> None:
    data = Rewarded(
        base=Chain(ops=(1,), base=5, train=12, valid=2, test=4),
        rewards={"right": Right(), "own": Own(function=f"{functions}:score")},
    )
    train = Train(method=GRPO(group=2, kl=0.0, sampling=Sampling(max_new=3)), steps=2, batch=3, data=data)
    recipe = Recipe(id="grpo", student=TinyLM(width=8), data=data.base, stages={"train": train})
    assert build(read_yaml(dump(recipe))) == recipe
    run = run_of(tmp_path / "run", recipe.student)
    execute(recipe, run)
    lines = run.read("metrics.jsonl")
    assert len(lines) == 2 and all(-2.0 <= line["student/reward"] <= 3.0 for line in lines)
