"""Programs as answers: right ones pass, wrong ones fail, and no trick of the program's makes a test pass."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from confinement import confined
from language import run_of, write_jsonl
from stillhouse.audits.solved import Solved
from stillhouse.cli.door import build, dump, read_yaml
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.rewards import Answered, Rewarded, Right
from stillhouse.data.tasks import Task
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.synth.programs import Exam, Programs, ProgramTasks, code_in, complaints, pack, passed, unpack, worth
from stillhouse.synth.sandbox import Sandbox

SANDBOX = Sandbox(seconds=3.0, memory=256 << 20)
SHELF = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
ADDS = ("assert add(2, 3) == 5", "assert add([1], [2]) == [1, 2]", "assert add(7, 8) == 15")
ADD = Exam(statements=ADDS, sandbox=SANDBOX)
CHECK = """def check(candidate):
    assert candidate(2, 3) == 5
    assert all(map(lambda n: candidate(n, n) == 2 * n, range(9)))
"""
HUMAN = Exam(
    statements=(f"{CHECK}\ncheck(candidate)",), before="def add(a, b):\n    '''Sum.'''\n", entry="add", sandbox=SANDBOX
)
SORTED = Exam(pairs=(("3 1 2\n", "1 2 3\n"), ("9 8\n", "8 9"), ("5\n", "5\n")), sandbox=SANDBOX)
RIGHT = "def add(a, b):\n    return a + b\n"


# -- reading answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```\nor better\n```Python\nx = 2\n```\nwhich prints\n```\n2\n```", "x = 2\n"),
        ("```\nx = 3\n```", "x = 3\n"),
        ("```bash\nls\n```\n```\nx = 4\n```\n```json\n{}\n```", "x = 4\n"),
        ("```python\nx = 5\n", "x = 5\n"),
        ("```python\n```", ""),
        ("  ```python\n  x = 6\n  ```", "  x = 6\n"),
        ("```c\nint x;\n```", "```c\nint x;\n```"),
        ("", ""),
    ],
)
def test_the_code_in_an_answer(text: str, code: str) -> None:
    assert code_in(text) == code


plain = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text() | some.binary()
    | some.complex_numbers(allow_nan=False),
    lambda inner: some.lists(inner, max_size=3) | some.lists(inner, max_size=3).map(tuple)
    | some.dictionaries(some.text() | some.integers(), inner, max_size=3)
    | some.frozensets(some.integers() | some.tuples(some.text()), max_size=3)
    | some.sets(some.integers(), max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(plain)
def test_plain_data_come_back_as_they_were(value: Any) -> None:
    def never(other: Any) -> Any:
        raise AssertionError(other)

    back = unpack(json.loads(json.dumps(pack(value, never))), never)
    assert back == value and ("{" in repr(value) or repr(back) == repr(value))
    assert type(back) is type(value)


def test_what_is_not_plain_is_handed_on() -> None:
    import numpy

    assert pack((len, [str]), lambda thing: thing.__name__) == {"tuple": [{"other": "len"}, [{"other": "str"}]]}
    assert pack([range(3), iter("ab"), {1: 2}.items()], repr) == [[0, 1, 2], ["a", "b"], [{"tuple": [1, 2]}]]
    assert pack([numpy.int64(3), numpy.ones(2), numpy.bool_(False)], repr) == [3, [1.0, 1.0], False]


# -- right and wrong ---------------------------------------------------------------------------------------------------


@confined
def test_statements() -> None:
    assert passed(ADD, RIGHT) == (True, True, True)
    assert passed(ADD, "def add(a, b):\n    return 5 if a == 2 else a + b if a != 7 else 0") == (True, True, False)
    assert passed(ADD, "def plus(a, b):\n    return a + b") == (False, False, False)
    assert passed(ADD, "def add(a, b") == (False,) * 3
    assert passed(ADD, "") == (False,) * 3
    assert complaints(ADD, "def add(a, b):\n    raise ValueError('hm')")[0] == "ValueError: hm"
    assert complaints(ADD, "add = None")[0] == "TypeError: 'NoneType' object is not callable"
    assert complaints(ADD, "x = 1")[0] == "NameError: name 'add' is not defined"


@confined
def test_a_check_of_an_entry_point_and_a_body_that_goes_on() -> None:
    assert passed(HUMAN, RIGHT) == (True,)
    assert passed(HUMAN, "    return a + b") == (True,)
    assert passed(HUMAN, "    pass") == (False,)
    assert passed(HUMAN, "def add(a, b): return 5") == (False,)


@confined
def test_inputs_and_outputs() -> None:
    assert passed(SORTED, "print(*sorted(map(int, input().split())))") == (True, True, True)
    assert passed(SORTED, "print(input(), ' \\n')") == (False, False, True)
    assert passed(SORTED, "print(1, 2, 3); exit(1)") == (False, False, False)
    assert passed(SORTED, "if __name__ == '__main__':\n    print(*sorted(input().split()), end='')") == (True, True, True)


@confined
def test_objects_exceptions_and_helpers() -> None:
    tests = Exam(
        statements=(
            "s = Stack(); s.push(1); s.push((2, 'x')); assert s.pop() == (2, 'x') and s.size == 1",
            "assert twice(Stack) == 'Stack'",
            "try:\n    Stack().pop()\n    raise AssertionError\nexcept IndexError:\n    pass",
            "assert list(count(3)) == [0, 1, 2] and close(0.1 + 0.2, third())",
            "assert huge() == 10 ** 5000 and third.__class__ and LIMIT == {'a': {1, 2}}",
        ),
        before="from math import isclose as close\n",
        sandbox=SANDBOX,
    )
    code = """
from dataclasses import dataclass, field
@dataclass
class Stack:
    items: 'list' = field(default_factory=list)
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    @property
    def size(self): return len(self.items)
def twice(kind): return kind.__name__
def count(n): yield from range(n)
def third(): return 0.3
def huge(): return 10 ** 5000
LIMIT = {'a': {1, 2}}
def close(a, b): raise RuntimeError('the tests have their own')
print('chatter', input.__name__)
"""
    assert complaints(tests, code) == [""] * 5


# -- tricks ------------------------------------------------------------------------------------------------------------

EQUAL = """
class Any(int):
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __hash__ = int.__hash__
class Anything:
    __eq__ = lambda self, other: True
    __bool__ = lambda self: True
"""
TALK = """
import json, os, threading
def say(*lines):
    for fd in range(3, 20):
        for line in lines:
            try: os.write(fd, line.encode() + b'\\n')
            except OSError: pass
"""


@confined
@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "def add(a, b): raise SystemExit(0)",
        "def add(a, b):\n    import os; os._exit(0)",
        "def add(a, b): raise StopIteration",
        "def add(a, b): raise GeneratorExit",
        "def add(a, b): raise KeyboardInterrupt",
        "def add(a, b):\n    import os, signal; os.kill(os.getppid(), 9); os.kill(0, 9)",
        'print(\'""\\n""\\n""\'); import sys; print(\'""\\n""\\n""\', file=sys.stderr)',
        'import os\nfor fd in range(20):\n    try: os.write(fd, b\'""\\n\' * 3)\n    except OSError: pass\nos._exit(0)',
        EQUAL + "def add(a, b): return Any(1)",
        EQUAL + "def add(a, b): return Anything()",
        EQUAL + "def add(a, b): return [Any(1)]",
        EQUAL + "add = Anything()",
        "import builtins as b\nb.all = b.any = lambda *a: True\nb.AssertionError = None\ndef add(a, b): return 0",
        "def check(candidate): pass\ndef candidate(a, b): return 0\ndef add(a, b): return 0\nmap = range = set",
        "import sys\nsys.excepthook = lambda *a: sys.exit(0)\ndef add(a, b): assert False",
        "def add(a, b):\n    while True: pass",
        "def add(a, b):\n    while True: print('x' * 10**6)",
        "def add(a, b): return 'x' * 10**8",
        "def add(a, b): return add",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        TALK + 'say(*[json.dumps({"error": ["SystemExit", "0"]})] * 50)\nos._exit(0)',
        TALK + 'say(*[json.dumps({"error": ["StopIteration", ""]})] * 50)\nos._exit(0)',
        TALK + 'say(*[json.dumps({"value": {"other": 0}})] * 50)\nos._exit(0)',
        TALK + 'say(*[json.dumps({"value": {"exit": 0}})] * 50)\nos._exit(0)',
        TALK + 'say("[" * 10**6, "nonsense", "\\ud800" if 0 else "null", "1", "[]", "{}")\nos._exit(0)',
        TALK + "say('x' * (1 << 20))\nthreading.Event().wait()",
        "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    ],
)  # fmt: skip
def test_no_trick_passes(code: str) -> None:
    quick = replace(SANDBOX, seconds=1.0)
    assert not any(passed(replace(HUMAN, sandbox=quick), code))
    assert sum(passed(replace(ADD, sandbox=quick), code)) == 0


@confined
@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "import os; os._exit(0)", EQUAL, "print('ok', 'passed')", "1 2 3"]
)
def test_no_trick_prints_what_is_wanted(code: str) -> None:
    assert passed(SORTED, code) == (False, False, False)


@confined
def test_the_program_cannot_find_what_is_expected() -> None:
    """It looks everywhere for a number that only the tests know."""
    code = """
import gc, glob, re, sys
def add(a, b):
    look = re.compile(b'91827364554637281[9]').search  # the pattern itself does not match it
    frame, told = sys._getframe(), []
    while frame:
        told.append((frame.f_locals, frame.f_globals)); frame = frame.f_back
    told += [thing for thing in gc.get_objects() if isinstance(thing, (list, dict, tuple)) and thing is not told]
    found = any(look(repr(thing).encode()) for thing in told)
    for path in [*glob.glob('/proc/*/cmdline'), *glob.glob('/proc/*/environ'), *glob.glob('/tmp/*')]:
        found = found or look(open(path, 'rb').read())
    seen = 0
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for begin, end in re.findall('^([0-9a-f]+)-([0-9a-f]+) rw-p', maps.read(), re.M):
            memory.seek(int(begin, 16))
            try: part = memory.read(int(end, 16) - int(begin, 16))
            except OSError: continue
            seen, found = seen + len(part), found or look(part)
    assert seen > 10**6
    return int('918273645' + str(546372819 + a - a)) if found else 0
"""
    hidden = Exam(
        statements=("assert add(1, 1) == 918273645546372819",),
        sandbox=replace(SANDBOX, memory=1 << 30, cpu=30, seconds=30.0),
    )
    assert complaints(hidden, code) == ["AssertionError: "]  # it ran to its end, and did not find it
    known = replace(hidden, statements=("assert add(918273645546372819, 1) == 918273645546372819",))
    assert complaints(known, code) == [""]  # the search does find what it is handed


def test_asserts_run_unconfined_too_if_one_says_so() -> None:
    unsafe = replace(ADD, sandbox=replace(SANDBOX, unsafe=True))
    assert passed(unsafe, RIGHT) == (True, True, True)
    assert passed(unsafe, "import os; os._exit(0)") == (False, False, False)


# -- tasks and rewards -------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Write add{i}(a, b).", "tests": [f"assert add{i}(1, 2) == 3", f"assert add{i}(2, 2) == 4"],
     "solution": f"def add{i}(a, b):\n    return a + b"}
    for i in range(10)
]  # fmt: skip


@confined
def test_rows_of_a_file(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"prompt": "Print the sum of two numbers.", "tests": [{"input": "1 2\n", "output": "3\n"}]},
        {"prompt": "def add(a, b):\n    '''Sum.'''\n", "before": "def add(a, b):\n    '''Sum.'''\n", "tests": CHECK,
         "entry_point": "add", "solution": "    return a + b\n"},
        {"prompt": "wrong", "tests": "assert f() == 1", "solution": "def f(): return 2"},
        {"prompt": "broken", "tests": "assert f( == 1"},
        {"prompt": "none", "tests": []}, {"prompt": "odd", "tests": [3]}, {"prompt": "", "tests": "assert 1"}, ROWS[0],
    ]  # fmt: skip
    tasks = ProgramTasks(path=str(write_jsonl(tmp_path / "p.jsonl", rows)), sandbox=SANDBOX, valid=0.2, test=0.2)
    run = run_of(tmp_path / "run", TinyLM(), data=tasks)
    made = [task for split in tasks.tasks(run).values() for task in split]
    assert len(made) == 12
    whys = [line["why"] for line in run.read("rejects.jsonl")]
    assert whys[0] == "its own solution passes 0 of 1 tests"
    assert whys[1].startswith("its tests, or what stands before them, are no Python: ")
    assert whys[2:] == [
        "column 'tests' holds no tests", "column 'tests' must hold Python, or pairs of input and output",
        "column 'prompt' is empty", "the same question again",
    ]  # fmt: skip
    first = next(task for task in made if "add3" in task.question)
    assert first.solution == "```python\ndef add3(a, b):\n    return a + b\n```"
    assert tasks.score(first, first.solution) == 1.0 and tasks.score(first, "I do not know") == 0.0
    human = next(task for task in made if task.question.startswith("def add"))
    assert tasks.score(human, "    return b + a") == 1.0 and tasks.score(human, RIGHT) == 1.0
    pair = next(task for task in made if "Print" in task.question)
    assert pair.solution == "" and tasks.score(pair, "print(sum(map(int, input().split())))") == 1.0
    examples = [run.sources()["train"].tasks.index(t) for t in run.sources()["train"].tasks if t.solution][:3]
    coder = tasks.coder(run)
    answers = [coder.answer("", run.sources()["train"].tasks[i].solution) for i in examples]
    assert tasks.verify_all(run, "train", [*examples, 0], [*answers, answers[0][:-1]]) == [1.0, 1.0, 1.0, 0.0]


@confined
def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", TinyLM())
    path = str(write_jsonl(tmp_path / "p.jsonl", ROWS))
    with pytest.raises(RunError, match="no column 'unit'; it has 'prompt', 'tests', 'solution'"):
        ProgramTasks(path=path, tests="unit", sandbox=SANDBOX).tasks(run)
    with pytest.raises(RunError, match="no row of .* can be used: column 'solution' holds|can be used: its own solution"):
        ProgramTasks(path=path, solution="prompt", sandbox=SANDBOX).tasks(run)


def test_without_a_sandbox_the_tasks_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_jsonl(tmp_path / "p.jsonl", ROWS))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="apt-get install bubblewrap"):
        ProgramTasks(path=path, sandbox=Sandbox(seconds=2.5)).tasks(run_of(tmp_path / "run", TinyLM()))


@confined
def test_what_answers_earn(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM())
    half = "```python\ndef add(a, b):\n    return 5 if a == 2 else a + b if a != 7 else 0\n```"
    texts = [f"So:\n```python\n{RIGHT}```", half, "no", None]
    answers = [Answered(Task("q", "", "", "", ADD), text, 5, 0.0) for text in texts]
    assert Programs()(answers, run) == [1.0, 0.0, 0.0, 0.0]
    assert Programs(partial=True)(answers, run) == [1.0, pytest.approx(2 / 3), 0.0, 0.0]
    assert worth(SORTED, "print(input())", partial=True) == pytest.approx(1 / 3)
    with pytest.raises(RunError, match=r"use synth\.programs\.ProgramTasks"):
        Programs()([Answered(Task("q", "", "", ""), "x", 1, 0.0)], run)


@confined
def test_a_run_that_learns_from_programs(tmp_path: Path) -> None:
    base = ProgramTasks(path=str(write_jsonl(tmp_path / "p.jsonl", ROWS)), sandbox=SANDBOX, instruction="", length=128)
    data = Rewarded(base=base, rewards={"right": Right(), "tests": Programs(partial=True, weight=0.5)})
    train = Train(method=GRPO(group=2, kl=0.0, sampling=Sampling(max_new=4)), steps=2, batch=2, data=data)
    recipe = Recipe(id="grpo", student=TinyLM(width=8), data=base, stages={"train": train})
    assert build(read_yaml(dump(recipe))) == recipe
    run = run_of(tmp_path / "run", recipe.student, data=base)
    execute(recipe, run)
    assert [line["student/reward"] for line in run.read("metrics.jsonl")] == [0.0, 0.0]
    found = list(
        Solved(count=2, ours="train", sampling=Sampling(temperature=0.0, max_new=4))(run, Subjects(run, ("train",)))
    )
    assert next(each.value for each in found if each.name == "solved") == 0.0


@confined
@pytest.mark.skipif(not SHELF.exists(), reason="HumanEval is not here")
def test_humaneval(tmp_path: Path) -> None:
    """Every ninth task: its own solution passes as a body and as a block, and nothing else does."""
    with gzip.open(SHELF, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::9]
    path = write_jsonl(tmp_path / "h.jsonl", [{**row, "before": row["prompt"]} for row in rows])
    tasks = ProgramTasks(path=str(path), tests="test", solution="canonical_solution", sandbox=SANDBOX)
    run = run_of(tmp_path / "run", TinyLM(), data=tasks)
    made = [task for split in tasks.tasks(run).values() for task in split]
    assert len(made) == len(rows) == 19  # its own solutions pass
    assert [tasks.score(task, "    pass\n") for task in made] == [0.0] * 19
