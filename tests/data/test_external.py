"""Of an answer with thoughts only the part for the reader is judged."""

from __future__ import annotations

import pytest

from stillhouse.data.external import External
from stillhouse.data.tasks import Chain, Questions, Task

TASK = Task("How many?", "", "7", "")


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<think>7?\nno, 8</think> <answer>7</answer>", 1.0),
        ("<think>it is 7</think><answer>8</answer>", 0.0),
        ("<think>Answer: 7</think>", 0.0),
        ("7", 0.0),
        ("<think></think><answer>7</answer>", 0.0),  # no thoughts
        ("<answer>7</answer><think>7</think>", 0.0),
        (" <think>a</think>\n<answer> Answer: 7. </answer>\n", 1.0),
    ],
)
def test_the_part_alone_counts(text: str, worth: float) -> None:
    assert External(base=Questions(path=""), pattern=External(base=None).pattern).score(TASK, text) == worth


def test_it_is_else_as_its_tasks() -> None:
    chain = Chain(train=4, valid=2, test=2)
    tasks = External(base=chain, pattern=r".*;(\d*#\d+)")
    assert (tasks.length, tasks.classes) == (chain.length, chain.classes)
    assert tasks.score(chain.task("3+4="), "3;#7") == 1.0 and chain.score(chain.task("3+4="), "3;#7") == 1.0
    for wrong in ("(", "no group"):
        with pytest.raises(ValueError, match="regular expression|no group"):
            External(base=chain, pattern=wrong)
