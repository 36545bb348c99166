"""GRA: what the reviews decide, how often wrong rows pass, and that the roles are worth their tokens."""

from __future__ import annotations

import math
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.audits.accepted import Accepted
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, execute
from stillhouse.data.tasks import Chain
from stillhouse.methods.synthesis.gra import RUBRIC, Settle, Weigh, believer, proof, recipe, reviewing, writing
from stillhouse.synth.cast import Cast
from stillhouse.synth.flow import Rounds
from stillhouse.synth.synthesize import account_of, lost_rows, made_rows
from stillhouse.teachers.text import Ask
from synth.talk import Rows, known, outcome, plan, stands

MARKED = [{"score": mean / 2, "score_std": std / 2, "critiques": f"- {mean}", "n": 100 * mean + std} for mean in range(21)
          for std in range(8)]  # fmt: skip


def makes(made: Recipe, folder: Path, **changes: Any) -> Run:
    run = Run(folder)
    execute(replace(made, stages={"make": replace(made.stages["make"], **changes)}), run)
    return run


# -- the rules -----------------------------------------------------------------------------------------------------------


def test_the_rules(tmp_path: Path) -> None:
    rows = [{**row, "adjudicator": "e"} if i % 2 else row for i, row in enumerate(MARKED)]
    for row in stands(Weigh(), rows, tmp_path).rows:
        mean, std, asked = row["score"], row["score_std"], "adjudicator" in row
        want = "undecided" if std > 2 and asked else "accepted" if mean >= 8 and std <= 2 else "returned"
        assert [name for name in ("accepted", "undecided", "returned") if row.get(name)] == [want]
        assert row["reviewed"] == 1
        if want == "returned":
            assert ("rejected" if mean <= 5 else "middling") in row["returned"] and row["critiques"] in row["returned"]


def test_what_was_said_before_is_forgotten(tmp_path: Path) -> None:
    old = {"returned": "x", "undecided": "x", "ruling": "accept", "correction": "y", "reason": "z", "reviewed": 1}
    (row,) = stands(Weigh(), [{"score": 9.0, "score_std": 0.0, **old}], tmp_path).rows
    assert {"score": 9.0, "score_std": 0.0, "accepted": "by its reviewers", "reviewed": 2}.items() <= row.items()
    assert not set(row) & {"returned", "undecided", "ruling", "correction", "reason"}
    with pytest.raises(RunError, match="reads a column 'score_std'"):
        outcome(plan(Weigh(), [{"score": 1.0}]), tmp_path / "none")


def test_rulings(tmp_path: Path) -> None:
    base = {"answer": "old", "undecided": "- differ"}
    rows = [
        {**base, "ruling": "Accept", "n": 0}, {**base, "ruling": "correct", "correction": "new", "n": 1}, {**base, "n": 2},
        {**base, "ruling": "correct", "n": 3}, {**base, "ruling": "reject", "reason": "why", "n": 4},
        {"answer": "old", "n": 5},
    ]  # fmt: skip
    found = {row["n"]: row for row in stands(Settle(), rows, tmp_path).rows}
    assert [found[n].get("accepted") for n in range(6)] == [
        "by its adjudicator", "as its adjudicator corrected it", None, None, None, None,
    ]  # fmt: skip
    assert [found[n]["answer"] for n in range(6)] == ["old", "new", "old", "old", "old", "old"]
    assert [found[n].get("returned") for n in range(2, 6)] == ["- rejected by an adjudicator"] * 2 + ["- why", None]


# -- theory: the binomial tail -------------------------------------------------------------------------------------------

ERR = 0.3


def erring(name: str, err: float = ERR) -> Callable[[Ask, random.Random], str]:
    """A reviewer and adjudicator that is wrong about an item by chance, independently of every other."""

    def answer(ask: Ask, rng: random.Random) -> str:
        n, good = ask.about["n"], ask.about["good"]
        judged = good != (random.Random(f"{name} {n}").random() < err)
        if "marks" in ask.about:
            return "\n".join(f"{mark}: {9 if judged else 2}" for mark in ask.about["marks"])
        return "Ruling: accept" if judged else "Ruling: reject"

    answer.__qualname__ = f"erring_{name}"
    return answer


def tail(m: int, e: float) -> float:
    """The chance that more than half of m are wrong, summed by hand."""
    return sum(math.comb(m, k) * e**k * (1 - e) ** (m - k) for k in range(m // 2 + 1, m + 1))


def passing(folder: Path, m: int, weigh: Weigh, adjudicated: bool) -> tuple[float, float]:
    """(share of wrong items that pass, share of good ones that do not) after one round."""
    names = [chr(ord("a") + i) for i in range(m + 1)]
    items = [
        {"n": n, "good": n % 2 == 0, "question": f"q{n}", "answer": "x", "generator": "a", "reviewers": names[:m]}
        | ({"adjudicator": names[m]} if adjudicated else {})
        for n in range(1600)
    ]
    rounds = reviewing(weigh, returns=0)
    kept = outcome(plan(rounds, items, **{name: erring(name) for name in names}), folder / "run").rows
    goods = [row["good"] for row in kept]
    return (len(goods) - sum(goods)) / 800, 1 - sum(goods) / 800


@pytest.mark.parametrize("m", [1, 3, 5])
def test_independent_reviewers_err_as_a_binomial_tail(tmp_path: Path, m: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert tail(m, ERR) == pytest.approx(float(stats.binom.sf(m // 2, m, ERR)))
    majority = Weigh(accept=5.5, reject=5.5, differ=10.0)  # a mean of 2 and 9 is above 5.5 if most say 9
    wrong, missed = passing(tmp_path, m, majority, adjudicated=False)
    spread = 4 * math.sqrt(tail(m, ERR) * (1 - tail(m, ERR)) / 800)
    assert wrong == pytest.approx(tail(m, ERR), abs=spread) and missed == pytest.approx(tail(m, ERR), abs=spread)


def test_three_with_an_adjudicator_err_as_a_majority_of_three(tmp_path: Path) -> None:
    e = ERR
    assert e**3 + 3 * e**2 * (1 - e) * e + 3 * e * (1 - e) ** 2 * e == pytest.approx(
        tail(3, e)
    )  # mixed reviews, then one more
    wrong, missed = passing(tmp_path, 3, Weigh(), adjudicated=True)
    spread = 4 * math.sqrt(tail(3, e) * (1 - tail(3, e)) / 800)
    assert wrong == pytest.approx(tail(3, e), abs=spread) and missed == pytest.approx(tail(3, e), abs=spread)


# -- the whole plan ------------------------------------------------------------------------------------------------------

SMALL = Chain(base=6, train=12, valid=4, test=8)


def small(names: Sequence[str] = "abcde", errs: float = 0.3, family: str = "", **cast: Any) -> Recipe:
    made = recipe("small")
    steps = {**made.stages["make"].steps, "cast": Cast(**{"each": 6, **cast})}
    stage = replace(made.stages["make"], steps=steps)
    return replace(made, data=SMALL, stages={"make": stage}, teachers={n: believer(SMALL, n, errs, family) for n in names})


def shares(run: Run) -> dict[str, float]:
    return {f.name: f.value for f in Accepted(draws=50)(run, Subjects(run, ()))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return makes(small(), tmp_path_factory.mktemp("whole") / "run")


def test_precision_and_recall_are_what_the_script_says(whole: Run) -> None:
    rows = list(made_rows(whole, "make"))
    right = [row["answer"] == SMALL.task(row["question"]).solution for row in rows]
    found = shares(whole)
    assert right == [row["_truth"]["right"] for row in rows] and found["row_precision"] == statistics.fmean(right)
    lost = [row for row in lost_rows(whole, "make") if row["_step"] not in ("clean", "dedup")]
    missed = sum(row["row"]["answer"] == SMALL.task(row["row"]["question"]).solution for row in lost)
    assert found["row_recall"] == pytest.approx(sum(right) / (sum(right) + missed))
    assert found["row_precision"] > 0.8  # 0.7 without reviews
    paid = account_of(whole, "make")["teachers"]
    assert found["tokens_per_row"] * len(rows) == pytest.approx(sum(each["tokens"] for each in paid.values()))


def test_rows_say_where_they_come_from(whole: Run) -> None:
    for row in made_rows(whole, "make"):
        assert sorted([row["generator"], *row["reviewers"], row["adjudicator"]]) == list("abcde")
        assert row["domain"] == "arithmetic modulo 6" and row["keywords"] and row["difficulty"] == 8.0
        assert row["accepted"].split()[-1] in ("reviewers", "adjudicator", "it") and 1 <= row["reviewed"] <= 3
        assert row["score"] >= 8 or row["accepted"] != "by its reviewers"
        assert "truth" not in row and "solution" not in row
    again = [row for row in made_rows(whole, "make") if row["reviewed"] > 1]
    assert again  # some came back
    tested = {task.question for split in ("valid", "test") for task in SMALL.tasks(whole)[split]}
    assert not tested & {row["question"] for row in made_rows(whole, "make")}


def test_what_is_never_accepted_is_lost_after_three_rounds(whole: Run) -> None:
    why = [row for row in lost_rows(whole, "make") if row["_step"] == "rounds"]
    assert why and {row["_why"] for row in why} == {"no accepted after 3 rounds"}
    assert all(row["row"]["reviewed"] == 3 and row["row"]["returned"] for row in why)


def test_the_order_of_the_seeds_is_nothing(tmp_path: Path, whole: Run) -> None:
    made, rows = small(), SMALL.rows(whole)["train"]
    found = [
        list(made_rows(makes(made, tmp_path / str(i) / "run", data=Rows(given=tuple(given))), "make"))
        for i, given in enumerate((rows, rows[::-1]))
    ]
    assert known(found[0]) == known(found[1]) == known(list(made_rows(whole, "make")))


def test_self_review_finds_nothing_and_one_family_little(tmp_path: Path, whole: Run) -> None:
    itself = makes(small("a", reviewers=1, adjudicator=False, itself=True), tmp_path / "itself" / "run")
    assert not [row for row in lost_rows(itself, "make") if row["_step"].startswith("rounds")]
    assert shares(itself)["row_recall"] == 1.0
    family = shares(makes(small(family="f"), tmp_path / "family" / "run"))
    assert family["row_precision"] < shares(whole)["row_precision"]
    assert family["row_recall"] == 1.0  # five with the same errors: nobody objects


def test_the_arms_of_the_proof_cost_about_as_many_tokens(tmp_path: Path) -> None:
    tokens: dict[str, float] = {}
    for name, made in proof().arms.items():
        if name not in ("large", "unreviewed"):  # as `single`
            run = makes(replace(made, data=replace(made.data, train=8)), tmp_path / name / "run")
            tokens[name] = sum(each["tokens"] for each in account_of(run, "make")["teachers"].values())
    middle = statistics.median(tokens.values())
    assert all(abs(each / middle - 1) < 0.2 for each in tokens.values()), tokens  # eight seeds of eighty


def test_too_few_teachers(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="take 5 teachers, and there are 3"):
        makes(small("abc"), tmp_path / "run")


def test_the_prompts_say_all_that_is_asked() -> None:
    rounds = reviewing()
    assert isinstance(rounds, Rounds) and rounds.rounds == 3
    assert set(rounds.steps["review"].rubric) == set(RUBRIC) and "difficulty" not in RUBRIC
    assert set(writing(Cast())) == {"cast", "propose", "answer"}


# -- a user's own questions ----------------------------------------------------------------------------------------------


def test_own_questions_from_the_command_line(tmp_path: Path, still: Any) -> None:
    train = SMALL.rows(Run(tmp_path / "x"))["train"]
    write_jsonl(tmp_path / "mine.jsonl", [{"q": row["question"], "a": row["solution"]} for row in train])
    made = still("show", "gra", "--scale", "smoke", "--yaml").stdout
    (tmp_path / "mine.yaml").write_text(made)
    sets = [
        "data={use: data.tasks.Questions, path: mine.jsonl, question: q, answer: a, check: exact, instruction: ''}",
        "student={use: models.toys.TinyLM, vocabulary: 257}", "make.steps.cast.each=2", "train.steps=3", "train.batch=2",
        *(f"teachers.{n}={{use: teachers.scripted.Scripted, script: {{use: synth.scripts.mistaken.Mistaken, name: {n}, "
          "data: {use: data.tasks.Chain, base: 6}}}" for n in "abcde"),
    ]  # fmt: skip
    arguments = ["run", "mine.yaml", "--runs", "runs", *(part for each in sets for part in ("--set", each))]
    done = still(*arguments)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    rows, paid = list(made_rows(run, "make")), account_of(run, "make")
    assert rows and {row["seed"] for row in rows} <= {row["question"] for row in train}
    shutil.rmtree(folder / "artifacts" / "make")
    again = still("run", folder)  # all that was asked is in the run's own file
    assert again.exit_code == 0 and list(made_rows(run, "make")) == rows
    assert account_of(run, "make")["teachers"] == paid["teachers"]


def worded(words: str, body: Any) -> str:
    """A model behind a server, in every role."""
    if "You review" in words:
        good = "Answer: 7" in words
        marks = [f"- **{name}**: {9 if good else 1}/10" for name in [*RUBRIC, "difficulty"]]
        return "\n".join([*marks, f"Critique: {'none' if good else 'it lacks its end'}"])
    if "Here is a question" in words:
        asked = f"And after {len(words)} comes\nwhat, {body['seed'] % 997}?"
        return f"**Domain:** counting\n**Keywords:** one, two\n**Question:** {asked}"
    return "It is 7.\nAnswer: 7" if "Reviewers say" in words or words[-2] in "02468" else "It is 7."


def test_own_questions_with_a_server(tmp_path: Path, still: Any, chat_server: Any, folders: Any) -> None:
    server = chat_server(worded)
    questions = [{"question": f"What comes after {'one ' * n}?", "answer": "7"} for n in range(1, 13)]
    changes = {
        "data.path": write_jsonl(tmp_path / "questions.jsonl", questions), "data.check": "number", "data.length": 200,
        "student.path": folders.student, "student.dtype": "float32", "make.steps.cast.each": 2,
        "make.steps.clean.alike": "null", "make.steps.dedup.by": "exact", "train.steps": 2, "train.batch": 2,
        "audit.checks.0.sampling.max_new": 4,
        **{f"teachers.{name}.url": server.url for name in "abcde"}, **{f"teachers.{name}.model": "tiny" for name in "abcde"},
    }  # fmt: skip
    settings = [part for k, v in changes.items() for part in ("--set", f"{k}={v}")]
    done = still("--debug", "run", "gra", "--scale", "paper", *settings, "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.exit_code == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(made_rows(Run(folder), "make"))
    assert rows and all(row["question"].startswith("And after") and "\nwhat, " in row["question"] for row in rows)
    assert {row["answer"] for row in rows} == {"It is 7.\nAnswer: 7"} and {row["domain"] for row in rows} == {"counting"}
    assert {row["reviewed"] for row in rows} == {1, 2}  # what lacked its end came back once
