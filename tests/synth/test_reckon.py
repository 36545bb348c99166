"""Programs that reckon numbers: every way to end, the gap to the truth, and that none can speak for another."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from confinement import confined
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.data.problems import Problems
from stillhouse.data.tasks import Characters, Questions, Task
from stillhouse.models.toys import TinyLM
from stillhouse.synth.reckon import Reckon, Reckoned, Told, as_program, near, reckoned
from stillhouse.synth.sandbox import Sandbox

from .onestep import through, whys

SANDBOX = Sandbox(seconds=1.0, memory=256 << 20)
ENDS = {
    "return 3 * 4": "12",
    "return 1 / 8": "0.125",
    "return '1,200 euros'": "1,200 euros",
    "from fractions import Fraction\nreturn Fraction(1, 3) + 1": "4/3",
    "print('7')\nreturn -7": "-7",
    "return True": "it returns no number",
    "return [3]": "it returns no number",
    "return 3j": "it returns no number",
    "x = 3\nif False:\n    return x": "it returns no number",
    "return 1 / 0": "it fails: ZeroDivisionError: division by zero",
    "return 10 ** 5000": "it fails: ValueError",
    "import sys\nsys.exit(0)\nreturn 1": "it fails: SystemExit: 0",
    "import os\nos._exit(0)\nreturn 1": "it ended without a result",
    "while True: pass\nreturn 1": "it takes too long",
    "return [0] * 10 ** 10": "it fails: MemoryError",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nreturn 5": "it ended its sandbox",
    "import os\nreturn str(os.listdir(f'/proc/{os.getppid()}/fd'))": "it fails: PermissionError",
    'import os\nos.write(1, b\'["99", ""]\\n\' * 20)\nreturn 2': "2",
}


@confined
def test_every_way_to_end_in_one_batch() -> None:
    programs = [as_program(each) for each in ENDS]
    assert None not in programs
    for (body, wanted), told in zip(ENDS.items(), reckoned([p for p in programs if p], SANDBOX), strict=True):
        assert (told.value or told.why).startswith(wanted), (body, told)
        assert bool(told.value) != bool(told.why)


@confined
def test_what_it_says_is_what_python_says() -> None:
    expressions = [f"{a}*{b}-{a + b}" for a in range(-4, 5) for b in range(9)]  # more than a batch
    told = reckoned([f"def solution():\n    return {each}" for each in expressions] * 2, SANDBOX)
    assert told == [Told(str(eval(each))) for each in expressions] * 2  # noqa: S307  our own


def test_what_is_a_program() -> None:
    assert as_program("return 3*4") == "def solution():\n    return 3*4"
    assert as_program("```python\ndef solution():\n    return 1\n```\nso it is 1") == "def solution():\n    return 1"
    assert as_program("    a = 3\n    return a") == "def solution():\n    a = 3\n    return a"
    assert as_program("the answer is 3, in return for 4") is None and as_program("") is None
    for text in ("return (3", "if x:\nreturn 4"):  # no Python, but meant to be
        with pytest.raises(SyntaxError):
            ast.parse(str(as_program(text)))


@pytest.mark.parametrize(
    ("said", "truth", "good"),
    [
        ("3.009", "3", True), ("3.01", "3", False), ("-3", "3", False), ("1e3", "1,000", True), ("4/3", "1.3333", True),
        ("", "3", False), ("inf", "3", False), ("3", "#### 3", True),
    ],
)  # fmt: skip
def test_the_gap(said: str, truth: str, good: bool) -> None:
    assert near(said, truth, 0.01) == good


ROWS = [
    {"program": "return 6*7", "truth": "42"},
    {"program": "return 6*8", "truth": "42"},
    {"program": "42", "truth": "42"},
    {"program": "return 6/", "truth": "42"},
    {"program": "return 42.0099", "truth": "42 €"},
    {"program": "return 1", "truth": "one"},
    {"program": None, "truth": "42"},
]


@confined
def test_rows_are_judged_and_lost_with_the_reason(tmp_path: Path) -> None:
    kept, gone = through(Reckon(sandbox=SANDBOX), ROWS, tmp_path)
    assert [(row["program"], row["solved"], row["result"]) for row in kept] == [
        ("return 6*7", 1, "42"), ("return 42.0099", 1, "42.0099"),
    ]  # fmt: skip
    assert whys(gone, "program") == {
        "return 6*8": "it returns another number", "42": "it holds no program", "return 6/": "it fails",
        "return 1": "its truth is no number", None: "it holds no program",
    }  # fmt: skip
    assert next(each for each in gone if each["row"]["program"] == "return 6*8")["numbers"]["value"] == "48"


@confined
def test_kept_rows_say_so_and_tries_are_counted(tmp_path: Path) -> None:
    rows: Any = [{**row, "n": 2} for row in ROWS[:3]]
    step = Reckon(sandbox=SANDBOX, keep=True, tries="tries")
    kept, gone = through(step, rows, tmp_path)
    assert not gone and [(r["solved"], r["result"], r["tries"]) for r in kept] == [(1, "42", 1), (0, "", 1), (0, "", 1)]
    kept, _ = through(Reckon(sandbox=SANDBOX, truth=None, into="good"), rows, tmp_path)
    assert [r["result"] for r in kept] == ["42", "48"]
    with pytest.raises(ValueError, match="within"):
        Reckon(within=0.0)


@confined
def test_tasks_are_judged_by_what_programs_return(tmp_path: Path) -> None:
    problems = Problems(train=5, valid=2, test=5, style="steps")
    tasks, run = Reckoned(base=problems, sandbox=SANDBOX), Run(tmp_path / "run")
    run.recipe = Recipe(id="mine", student=TinyLM(), data=tasks, stages={})
    found = run.sources()["test"].tasks
    coder: Characters = tasks.coder(run)
    said = [f"return {found[0].entry}", "return 1", found[2].solution, f"#{found[3].answer}", "#x"]
    tokens = [coder.answer("", text) for text in said]
    assert tasks.right(run, "test", range(5), tokens) == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert tasks.verify(run, "test", 0, tokens[0]) == 1.0
    assert tasks.verify(run, "test", 0, tokens[0][:-1]) == 0.0  # it did not end
    assert (tasks.length, tasks.classes) == (problems.length, problems.classes)
    words = Reckoned(base=Questions(path=""), sandbox=SANDBOX)
    task = Task("How many?", "", "0.333", "")
    assert words.scores([task] * 4, ["def solution():\n  return 1/3", "Answer: 1/3", "Answer: 0.333", None]) == [1, 0, 1, 0]


def test_without_bubblewrap_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    from stillhouse.core.run import RunError

    with pytest.raises(RunError, match="apt-get install"):
        Reckon(sandbox=Sandbox(seconds=3.21)).check(Run(tmp_path / "run"))
