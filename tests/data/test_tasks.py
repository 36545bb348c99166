"""Tasks: what is asked, what counts as right, and that no answer, however odd, gets through or breaks anything."""

from __future__ import annotations

import builtins
import csv
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from language import Folders, folders, run_of, write_jsonl  # noqa: F401 - a fixture
from stillhouse.core.run import RunError
from stillhouse.data import tasks as module
from stillhouse.data.tasks import (
    Bytes,
    Chain,
    Characters,
    Gym,
    Hinted,
    Questions,
    choice,
    final_answer,
    last_number,
    tasks_of,
)
from stillhouse.data.tokens import prompts_of
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM

GARBAGE: list[list[int]] = [[], [0], [-1], [10**12], [3, -7, 0], [256], [1, 2], [0] * 50, [17, 17, 0], [255, 254, 256]]


def at(folder: Path, tasks: Any, student: Any = None) -> Any:
    return run_of(folder, student or TinyLM(), data=tasks)


def coded(tasks: Any, run: Any, text: str) -> list[int]:
    return tasks.coder(run).answer("", text)


# -- chains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "signs"), [(10, "+-*"), (7, "+-"), (100, "*")])
def test_a_chain_is_worked_from_left_to_right(tmp_path: Path, base: int, signs: str) -> None:
    tasks = Chain(ops=(1, 2, 4), base=base, signs=signs, train=40, valid=5, test=5)
    for task in tasks.tasks(at(tmp_path, tasks))["train"]:
        value: Any = None
        numbers = [int(n) for n in task.question[:-1].replace("+", " ").replace("-", " ").replace("*", " ").split()]
        operators = [c for c in task.question if c in "+-*"]
        assert set(operators) <= set(signs) and task.question[-1] == "="
        steps = []
        for sign, number in zip(["", *operators], numbers, strict=True):
            assert 0 <= number < base
            after = number if not sign else eval(f"{value}{sign}{number}") % base
            if sign:
                steps.append(f"{value}{sign}{number}={after}")
            value = after
        assert task.answer == str(value) and task.entry == steps
        assert task.solution == f"{';'.join(steps)}#{value}"
        if signs != "*" and len(operators) == 1:  # the same as a whole where the order cannot matter
            assert eval(task.question[:-1]) % base == value


def test_the_styles_of_a_solution() -> None:
    task = Chain().task("3+4*2-5=")
    assert task.solution == "3+4=7;7*2=4;4-5=9#9"
    assert Chain(style="values").task("3+4*2-5=").solution == "7;4;9#9"
    assert Chain(style="answer").task("3+4*2-5=").solution == "#9"
    mixed = Chain(style="steps", shown="values").task("3+4*2-5=")
    assert mixed.solution == task.solution and Chain().hint(mixed) == "3+4*2-5=7;4;9#9~"


def test_splits_are_disjoint_and_grow_in_place(tmp_path: Path) -> None:
    small, large = Chain(train=50), Chain(train=90)
    run = at(tmp_path, small)
    a, b = small.tasks(run), large.tasks(run)
    assert {k: len(v) for k, v in a.items()} == {"train": 50, "valid": 100, "test": 200}
    assert a["test"] == b["test"] and a["valid"] == b["valid"] and a["train"] == b["train"][:50]
    questions = [t.question for split in b.values() for t in split]
    assert len(set(questions)) == len(questions)
    later = Chain(train=40, skip=50).tasks(run)
    assert later["train"] == b["train"][50:] and later["test"] == a["test"]
    run.seed = 5
    assert small.tasks(run) == a


def test_rows_prompts_and_hints_speak_of_the_same_task(tmp_path: Path) -> None:
    tasks = Chain(ops=(1, 3), train=20, valid=4, test=6)
    run = at(tmp_path, tasks)
    for split, source in run.sources().items():
        prompts, hinted = tasks.prompts(run)[split], tasks.hinted(run, split)
        assert len(source) == len(prompts) == len(hinted)
        for i, ((document,), task) in enumerate(zip(source.rows, source.tasks, strict=True)):
            text = "".join(Chain.alphabet[t] for t in document.tokens)
            assert text == f"{task.question}{task.solution}\n"
            assert document.example == i and prompts[i] == tasks.coder(run).prompt(task.question)
            answer = document.tokens[len(prompts[i]) :]
            assert [t for t, c in zip(document.tokens, document.counts, strict=True) if c] == answer
            assert tasks.verify(run, split, i, answer) == 1.0 and tasks.steps_right(run, split, i, answer) == 1.0
            assert "".join(Chain.alphabet[t] for t in hinted[i]) == f"{task.question}{task.solution}~"
        batch = source.batch(range(len(source)), 0)
        assert prompts_of(batch) == prompts and batch["example"][:, 0].tolist() == list(range(len(source)))
        assert source.classes == len(Chain.alphabet) == Chain.classes


def test_only_one_finished_answer_is_right(tmp_path: Path) -> None:
    tasks = Chain(train=3, valid=1, test=1)
    run = at(tmp_path, tasks)
    task = run.sources()["train"].tasks[0]
    right = task.answer
    wrong = str((int(right) + 1) % 10)

    def judged(text: str, end: bool = True) -> float:
        return tasks.verify(run, "train", 0, coded(tasks, run, text)[: None if end else -1])

    assert judged(f"#{right}") == judged(f"{wrong};{wrong}#{right}") == 1.0
    assert judged(f"#{right}", end=False) == 0.0  # it might have gone on
    for text in (f"#{wrong}", right, "", "#", f"#{right}#", f"#0{right}", f"#{right}{right}", f"{right}#", f"#{right};",
                 f"#{wrong}#{right}", "".join(f"#{i}" for i in range(10)), f"#-{right}", f"#{right}~"):  # fmt: skip
        assert judged(text) == 0.0, text
    assert all(tasks.verify(run, "train", 0, garbage) == 0.0 for garbage in GARBAGE)
    ended = coded(tasks, run, f"#{right}")
    assert tasks.verify(run, "train", 0, [*ended, 0]) == 0.0  # nothing comes after the end
    draw = random.Random(0)
    for _ in range(300):
        assert tasks.verify(run, "train", 0, [draw.randrange(-3, 25) for _ in range(draw.randrange(9))]) in (0.0, 1.0)


def test_the_share_of_right_steps(tmp_path: Path) -> None:
    tasks = Chain(train=1, valid=1, test=1)
    run = at(tmp_path, tasks)
    a, b, c = run.sources()["train"].tasks[0].entry
    for text, share in ((f"{a};{b};{c}#0", 1.0), (f"{a};{b}#0", 2 / 3), (f"{b};{a};{c}#0", 1 / 3), ("#0", 0.0), ("", 0.0)):
        assert tasks.steps_right(run, "train", 0, coded(tasks, run, text)) == pytest.approx(share)
    assert tasks.steps_right(run, "train", 0, [1, 2]) == 0.0


def test_what_chains_refuse(tmp_path: Path) -> None:
    for wrong in ({"ops": ()}, {"ops": (0,)}, {"base": 1}, {"signs": "/"}, {"signs": ""}):
        with pytest.raises(ValueError, match="chain"):
            Chain(**wrong)  # type: ignore[arg-type]
    run = at(tmp_path, Chain())
    with pytest.raises(RunError, match="hardly more than"):
        Chain(ops=(1,), base=3).tasks(run)
    with pytest.raises(RunError, match=r"no task fits into 5 tokens; raise data\.length"):
        run.sources(Chain(length=5))
    assert "tokens, but data.length is 5" in run.read("rejects.jsonl")[0]["why"]


def test_every_task_twice_with_a_hint_and_without(tmp_path: Path) -> None:
    base = Chain(style="steps", shown="values", train=6, valid=2, test=2)
    both = Hinted(base=base)
    run = at(tmp_path, base)
    source = run.sources(both)["train"]
    assert len(source) == 12 and both.classes == base.classes == source.classes
    for i, ((plain,), (hinted,)) in enumerate(zip(source.rows[::2], source.rows[1::2], strict=True)):
        assert plain == run.sources(base)["train"].rows[i][0]
        seen = base.hinted(run, "train")[i]
        assert hinted.tokens[: len(seen)] == seen and hinted.example == i
        assert hinted.tokens[len(seen) :] == plain.tokens[plain.counts.index(True) :]
        assert hinted.counts == [False] * len(seen) + [True] * (len(hinted.tokens) - len(seen))
    assert both.prompts(run)["train"][1::2] == base.hinted(run, "train")
    with pytest.raises(RunError, match="no hinted prompt"):
        run.sources(Hinted(base=base, length=20))


def test_the_tasks_of_a_stage(tmp_path: Path) -> None:
    from stillhouse.core.stage import Train
    from stillhouse.data.toys import Sentences
    from stillhouse.methods.classics.supervised import Supervised

    one, other = Chain(), Chain(ops=(1,))
    run = run_of(tmp_path, TinyLM(), data=one, here=Train(method=Supervised(), steps=1, batch=1, data=other))
    assert tasks_of(run) is one
    run.stage = "here"
    assert tasks_of(run) is other
    with pytest.raises(RunError, match=r"Sentences has no verifier.*Questions"):
        tasks_of(at(tmp_path, Sentences()))


# -- reading answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("42", "42"), (" 42. ", "42."), ("so 6*7.\nAnswer: 42", "42"), ("ANSWER : 1\nanswer:2", "2"),
        ("first 1\n#### 2", "2"), (r"it is \boxed{\frac{1}{2}} then", r"\frac{1}{2}"), (r"\boxed{1} Answer: 2", "2"),
        (r"Answer: $\boxed{3}$", "3"), (r"\boxed{1", r"\boxed{1"), ("**Answer:** 7", "7"), ("Answer:", ""), ("", ""),
        ("Answer:\nline 1\nline 2", "line 1\nline 2"), ("The answer to the problem is 191.", "191."),
        ("The final answer is: 7", "7"), ("the answer is not 3\nso it is 4", "not 3\nso it is 4"),
        ("answers vary. 5 is", "answers vary. 5 is"),
    ],
)  # fmt: skip
def test_what_an_answer_says_in_the_end(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", Fraction(7)), ("it is 1,234.50 $", Fraction(2469, 2)), ("-3", Fraction(-3)), ("\N{MINUS SIGN}3", Fraction(-3)),
        ("3/4", Fraction(3, 4)), ("-3 / 4", Fraction(-3, 4)), ("2e-3", Fraction(1, 500)), (".5", Fraction(1, 2)),
        ("1 then 2 then 3.", Fraction(3)), ("5-3", Fraction(3)), ("$1,000,000", Fraction(10**6)), ("0.10", Fraction(1, 10)),
        ("72%", Fraction(72)), ("x=4", Fraction(4)), ("3/0", None), ("", None), ("none", None),
        ("9" * 5000, None), ("1,2", Fraction(2)), ("2e+999", 2 * Fraction(10) ** 999),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, number: Fraction | None) -> None:
    assert last_number(text) == last_number(f"so {text}") == number
    last_number("1e999999999")  # whatever that is, it is found out at once


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("b", "B"), ("(c)", "C"), ("D.", "D"), ("**A**", "A"), ("B) because A", "B"), ("[E]", "E"), ("", None),
     ("A cat", None), ("AB", None), ("because", None), ("4", None), ("A B C D", None)],
)  # fmt: skip
def test_the_letter_that_is_chosen(text: str, letter: str | None) -> None:
    assert choice(text) == letter


# -- text --------------------------------------------------------------------------------------------------------------


def test_bytes_and_characters_come_back() -> None:
    for coder, text in (
        (Bytes(), "So 3 \N{MULTIPLICATION SIGN} 4 = 12.\nAnswer: 12"),
        (Characters(Chain.alphabet), "3+4=7#7"),
    ):
        tokens = coder.answer("?", text)
        assert coder.text(tokens) == text and coder.text(tokens[:-1]) is None and tokens[-1] in (coder.ends() or ())
        assert max(tokens) < coder.classes
        for garbage in GARBAGE:
            coder.text(garbage)


def test_a_gym_is_judged_by_its_own_scorer(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = Gym(task="chain_sum", config={"max_terms": 3}, train=12, valid=4, test=4)
    run = at(tmp_path, tasks)
    splits = run.sources()
    assert {k: len(v) for k, v in splits.items()} == {"train": 12, "valid": 4, "test": 4}
    questions = [t.question for s in splits.values() for t in s.tasks]
    assert len(set(questions)) == 20
    for i, task in enumerate(splits["train"].tasks):
        expression = task.question.split(":", 1)[1].split("=")[0]
        assert str(eval(expression)) == task.answer
        assert tasks.verify(run, "train", i, coded(tasks, run, f"Let me see.\nAnswer: {task.answer}")) == 1.0
        for said in (task.answer, f"The answer to the problem is {task.answer}.", f"{expression}= {task.answer}"):
            assert tasks.verify(run, "train", i, coded(tasks, run, said)) == 1.0
        assert tasks.verify(run, "train", i, coded(tasks, run, f"Answer: {task.answer}")[:-1]) == 0.0
        assert tasks.verify(run, "train", i, coded(tasks, run, f"Answer: {int(task.answer) + 1}")) < 1.0
        assert tasks.verify(run, "train", i, splits["train"].rows[i][0].tokens[len(tasks.prompts(run)["train"][i]) :]) == 1.0
    assert all(tasks.verify(run, "train", 0, garbage) < 1.0 for garbage in GARBAGE)
    larger = Gym(task="chain_sum", config={"max_terms": 3}, train=20, valid=4, test=4).tasks(run)
    assert [t.question for t in larger["test"]] == [t.question for t in splits["test"].tasks]
    assert [t.question for t in larger["train"][:12]] == [t.question for t in splits["train"].tasks]
    hint = tasks.hint(splits["train"].tasks[0])
    assert splits["train"].tasks[0].answer in hint and hint.endswith(tasks.transition)


def test_gym_shows_a_worked_solution_where_there_is_one(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = Gym(task="gsm_symbolic", train=3, valid=1, test=1, length=4000)
    run = at(tmp_path, tasks)
    task = run.sources()["train"].tasks[0]
    assert task.solution.endswith(f"Answer: {task.answer}") and len(task.solution) > 60
    assert tasks.verify(run, "train", 0, coded(tasks, run, task.solution)) == 1.0


def test_a_scorer_that_breaks_down_says_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = Gym(train=1, valid=1, test=1)
    run = at(tmp_path, tasks)
    source, _ = run.sources()["train"].tasks[0].entry
    monkeypatch.setattr(type(source), "score_answer", lambda *a: 1 / 0)
    assert tasks.verify(run, "train", 0, coded(tasks, run, "1")) == 0.0


def test_what_a_gym_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    run = at(tmp_path, Gym())
    for wrong, why in (
        (Gym(task="chainsum"), "chainsum"),
        (Gym(config={"nonsense": 1}), "nonsense"),
        (Gym(config={"min_terms": 9, "max_terms": 2}), "cannot make"),
        (Gym(task="coin_flip", config={"max_trials": 3}, train=5000), "hardly more than"),
    ):
        with pytest.raises(RunError, match=why):
            wrong.tasks(run)
    real = builtins.__import__
    monkeypatch.setattr(
        module.importlib, "import_module", lambda n: (_ for _ in ()).throw(ImportError(n)) if "gym" in n else real(n)
    )
    with pytest.raises(RunError, match=r"pip install 'stillhouse\[eval\]'"):
        Gym().tasks(run)


def test_questions_through_a_tokenizer(tmp_path: Path, folders: Folders) -> None:  # noqa: F811
    rows = [
        {"question": f"what is {a} and {b}?", "answer": f"it is {a}+{b}\n#### {a + b}"} for a in range(6) for b in range(5)
    ]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    for name in ("student", "plain"):  # with a chat template and without
        student = HubLM(path=str(getattr(folders, name)))
        tasks = Questions(path=str(path), length=400)
        run = at(tmp_path / name, tasks, student)
        tokenizer, splits = student.tokenizer(run), run.sources()
        assert {k: len(v) for k, v in splits.items()} == {"train": 24, "valid": 3, "test": 3}
        assert len({t.question for s in splits.values() for t in s.tasks}) == 30
        assert tasks.ends(run) is None
        for i, ((document,), task) in enumerate(zip(splits["train"].rows, splits["train"].tasks, strict=True)):
            prompt = tasks.prompts(run)["train"][i]
            answer = document.tokens[len(prompt) :]
            assert document.tokens[: len(prompt)] == prompt and answer[-1] == tokenizer.eos_token_id
            assert task.question.split("\n")[0] in tokenizer.decode(prompt) and task.solution in tokenizer.decode(answer)
            assert tasks.verify(run, "train", i, answer) == 1.0
            assert tasks.verify(run, "train", i, answer[:-1]) == 0.0
            assert task.solution in tokenizer.decode(tasks.hinted(run, "train")[i])
        assert all(tasks.verify(run, "train", 0, garbage) == 0.0 for garbage in GARBAGE if garbage != [0])


@pytest.mark.parametrize(
    ("check", "gold", "right", "wrong"),
    [
        ("exact", "Paris", ["Paris", " paris. ", "Let me think.\nAnswer: PARIS"], ["London", "Paris or London", ""]),
        ("number", "1,000", ["1000.0", "Answer: $1,000", "2000/2", "first 3, then 1000"], ["100", "1000 or 7", "none"]),
        ("choice", "B", ["B", "(b)", "Answer: B) the cat", "**B**"], ["A", "A B C D", "b c", "the cat"]),
        ("math", "1/2", ["1/2", "0.5", r"\boxed{\frac{1}{2}}", r"Answer: \frac{2}{4}"], ["2", "x", "", "1/3"]),
    ],
)  # fmt: skip
def test_the_checks(tmp_path: Path, check: Any, gold: str, right: list[str], wrong: list[str]) -> None:
    if check == "math":
        pytest.importorskip("math_verify")
    path = tmp_path / "q.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ask", "gold"])
        writer.writerows([[f"question {i}", gold] for i in range(5)])
    tasks = Questions(path=str(path), question="ask", answer="gold", check=check, valid=0.2, test=0.2)
    run = at(tmp_path, tasks)
    for text, score in [*((t, 1.0) for t in right), *((t, 0.0) for t in wrong)]:
        assert tasks.verify(run, "train", 0, coded(tasks, run, text)) == score, text
        assert tasks.verify(run, "train", 0, coded(tasks, run, text)[:-1]) == 0.0


def test_solutions_and_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"q{i}", "answer": i, "solution": f"think {i + 1}"} for i in range(8)]
    rows += [{"question": "q0", "answer": 5}, {"question": "", "answer": 1}, {"question": "q", "answer": None},
             {"question": "no number", "answer": "many"}]  # fmt: skip
    tasks = Questions(path=str(write_jsonl(tmp_path / "q.jsonl", rows)), instruction="")
    run = at(tmp_path, tasks)
    every = [t for s in run.sources().values() for t in s.tasks]
    assert sorted(t.question for t in every) == [f"q{i}" for i in range(8)]
    for task in every:  # the solution ends with the right answer, whatever number it speaks of last
        assert task.solution == f"think {int(task.answer) + 1}\nAnswer: {task.answer}"
    why = [r["why"] for r in run.read("rejects.jsonl")]
    assert "the same question again" in why and "column 'question' is empty" in why and "column 'answer' is empty" in why
    assert "its own answer 'many' does not pass the check 'number'" in why


def test_what_questions_refuse(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"problem": "1+1", "answer": "2"}])
    run = at(tmp_path, Chain())
    with pytest.raises(RunError, match=r"no column 'question'; it has 'problem', 'answer' \(set data.question"):
        Questions(path=str(path)).tasks(run)
    with pytest.raises(RunError, match="no column 'cot'"):
        Questions(path=str(path), question="problem", solution="cot").tasks(run)
    with pytest.raises(RunError, match="too few to hold out"):
        Questions(path=str(path), question="problem").tasks(run)
    with pytest.raises(RunError, match="no data file"):
        Questions(path=str(tmp_path / "none.jsonl")).tasks(run)
    bad = write_jsonl(tmp_path / "b.jsonl", [{"question": "1+1", "answer": "two"}])
    with pytest.raises(RunError, match="can be used: its own answer 'two' does not pass"):
        Questions(path=str(bad)).tasks(run)
