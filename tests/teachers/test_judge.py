"""The judge as a reward: what it is shown, how its reply is read, and what happens when it gives none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.rewards import Answered
from stillhouse.data.tasks import Task
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.judge import Judged
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Lost

TASK = Task("what is {answer}?", "7", "7", "7")


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Answers as the answer to be judged demands."""

    def build(self, run: Any) -> Any:
        def reply(ask: Ask, rng: Any) -> str | Lost:
            shown = ask.messages[0][1].partition("judge:\n")[2].partition("\n")[0]
            assert "what is {answer}?" in ask.messages[0][1] and "{truth}" not in ask.messages[0][1]
            return Lost("no line") if shown == "silence" else shown

        return reply


def judged(tmp_path: Path, *texts: str | None, **settings: Any) -> list[float]:
    run = run_of(tmp_path, TinyLM(), teacher=Scripted(script=Replies()))
    return Judged(teacher="teacher", **settings)([Answered(TASK, text, 3, 0.0) for text in texts], run)


def test_the_last_number_counts_and_stays_within_its_bounds(tmp_path: Path) -> None:
    assert judged(tmp_path, "8", "first 3, then 7.5", "99", "-4", None) == [0.8, 0.75, 1.0, 0.0, 0.0]
    assert judged(tmp_path, "1", best=1.0) == [1.0]
    assert judged(tmp_path, None) == [0.0]


@pytest.mark.parametrize(("text", "why"), [("no idea", "replied 'no idea', no number"), ("silence", "did not answer")])
def test_a_judge_without_a_verdict(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=why):
        judged(tmp_path, text)
    assert judged(tmp_path, text, "5", failing=0.25) == [0.25, 0.5]
    assert why in (tmp_path / "rejects.jsonl").read_text()


def test_eight_of_ten_is_eight(tmp_path: Path) -> None:
    assert judged(tmp_path, "8/10", "Mark: 8 out of 10") == [0.8, 0.8]


def test_it_wants_a_teacher_and_a_prompt_with_the_answer(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the recipe has none"):
        Judged()([], run_of(tmp_path, TinyLM()))
    with pytest.raises(ValueError, match=r"shows the \{answer\}"):
        Judged(prompt="Good?")
