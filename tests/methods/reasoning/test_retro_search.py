"""Retro-Search: the value rule against brute force, the walk against a plain one, and what a teacher must be able to do."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import pytest

from language import write_jsonl
from stillhouse.cli.door import read_yaml, spec, write_yaml
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion, Kind
from stillhouse.core.stage import execute
from stillhouse.data.tasks import Chain, chain_steps
from stillhouse.methods.reasoning.retro_search import RetroSearch, proof, recipe, worth_more
from stillhouse.methods.traced import CHAINS, END
from stillhouse.synth.finals import Final
from stillhouse.synth.scripts.solver import Solver
from stillhouse.synth.synthesize import account_of, made_rows
from stillhouse.synth.table import Table
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Decoding, Lost
from synth.talk import outcome, plan, stands

FINAL = Final(pattern=END)
STEP = RetroSearch(thoughts=CHAINS, final=FINAL, decoding=Decoding(temperature=1.0, max_new=128))
QUESTIONS = [t.question for t in Chain(ops=(4,), signs="+-", train=60, valid=1, test=1).tasks(None)["train"]]  # type: ignore[arg-type]
QUESTIONS = [q for q in QUESTIONS if len({q[i : i + 2] for i in range(1, 9, 2)}) == 4]


def chains(solver: Solver, count: int = 40) -> list[dict[str, str]]:
    """Right traces of a script."""
    rows: list[dict[str, str]] = []
    for seed, question in enumerate(QUESTIONS):
        said = solver.answer(Ask((), Decoding(), seed, {"question": question}), random.Random(seed))
        if said.truth and said.truth["right"]:
            rows.append({"question": question, "trace": said.text, "truth": said.text.rpartition("#")[2]})
    return rows[:count]


ROWS = chains(Solver(detour=0.2, again=0.5))


@dataclass(frozen=True, kw_only=True)
class Says:
    """Answers what stands behind the prefix in a table; `heeds` is what it gives beside text."""

    paths: Mapping[str, str | list[str]] = field(default_factory=dict[str, Any])
    heeds: tuple[Kind, ...] = ("continuation", "suppression")
    asked: ClassVar[list[Ask]] = []

    @property
    def gives(self) -> frozenset[Kind]:
        return frozenset(self.heeds)

    def build(self, run: Run) -> Callable[[Ask, random.Random], str | Completion | Lost]:
        Says.asked.clear()
        tries: dict[str, int] = {}

        def answer(ask: Ask, rng: random.Random) -> str | Completion | Lost:
            Says.asked.append(ask)
            found = self.paths[ask.begin]
            if isinstance(found, list):
                tries[ask.begin] = tries.get(ask.begin, -1) + 1
                found = found[tries[ask.begin]]
            if found == "lost":
                return Lost("away")
            return Completion(found.removesuffix("..."), finished=not found.endswith("..."), wrote=len(found))

        return answer


def walked(
    folder: Path, trace: str, paths: Mapping[str, Any], step: RetroSearch = STEP, truth: str = "4", **how: Any
) -> Any:
    row = {"question": "3+4*2=", "trace": trace, "truth": truth}
    return outcome(plan(step, [row], reviser=Scripted(script=Says(paths=paths, **how))), folder / "run")


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_value_rule_is_that_of_the_powers() -> None:
    for gamma in (Fraction(1, 10), Fraction(9, 10), Fraction(99, 100)):
        for new in range(12):
            for old in range(12):
                for right in (True, False):
                    assert worth_more(new, right, old, float(gamma)) == (gamma**new * right > gamma**old)
    assert worth_more(9_999, True, 10_000, 0.9) and not worth_more(10_001, True, 10_000, 0.9)  # powers of 0 beyond floats


def test_without_switches_it_is_the_identity(tmp_path: Path) -> None:
    rows = chains(Solver(detour=0.0, again=0.0))
    found = outcome(plan(STEP, rows, reviser=Scripted(script=Solver(again=1.0))), tmp_path / "run")
    assert len(found.rows) == len(rows) and found.paid["reviser"]["calls"] == 0
    assert all(row["trace"] == row["original"] and row["trace_rollouts"] == 0 for row in found.rows)


def test_a_shorter_right_path_takes_the_place_of_the_rest_and_is_walked_on(tmp_path: Path) -> None:
    old = "3+4=7;~3+4=7;7*2=5;~7*2=4;~7*2=4#4"
    paths = {"3+4=7;": "7*2=4;~7*2=4;~7*2=4#4", "3+4=7;7*2=4;": "7*2=4#4...", "3+4=7;7*2=4;~7*2=4;": "lost"}
    found = walked(tmp_path / "a", old, paths).rows[0]
    assert found["trace"] == "3+4=7;7*2=4;~7*2=4;~7*2=4#4" and found["original"] == old
    counts = [found[f"trace_{name}"] for name in ("rollouts", "replaced", "failed", "steps", "steps_was")]
    assert counts == [3, 1, 2, 4, 5]
    assert [ask.begin for ask in Says.asked] == list(paths)
    assert all(ask.decoding.not_first == ("~",) and ask.messages == (("user", "3+4*2="),) for ask in Says.asked)
    equal = walked(tmp_path / "b", "3+4=7;~3+4=7;7*2=4#4", {"3+4=7;": "3+4=7;7*2=4#4"}).rows[0]
    assert equal["trace_replaced"] == 0 and equal["trace"] == equal["original"]  # as long: the switch stands
    wrong = walked(tmp_path / "c", "3+4=7;~3+4=7;7*2=4#4", {"3+4=7;": "7*2=5#5"}).rows[0]
    assert wrong["trace_replaced"] == 0 and wrong["trace_failed"] == 0


def test_a_path_may_begin_with_the_separator_and_may_be_nothing(tmp_path: Path) -> None:
    old = "3+4=7;~3+4=7;7*2=4#4"
    assert walked(tmp_path / "a", old, {"3+4=7;": "; 7*2=4#4"}).rows[0]["trace"] == "3+4=7;7*2=4#4"
    words = replace(STEP, thoughts=RetroSearch().thoughts, final=Final())
    enough = "So 7 times 2.\n\nAnswer: 4\n\nWait, once more.\n\nAnswer: 4"
    found = walked(tmp_path / "b", enough, {"So 7 times 2.\n\nAnswer: 4\n\n": ""}, words).rows[0]
    assert found["trace"] == "So 7 times 2.\n\nAnswer: 4" and found["trace_replaced"] == 1


def test_a_path_that_turns_at_once_is_none(tmp_path: Path) -> None:
    found = walked(tmp_path, "3+4=7;~3+4=7;~3+4=7;7*2=4#4", {"3+4=7;": "~7*2=4#4", "3+4=7;~3+4=7;": "7*2=4#4"}).rows[0]
    assert found["trace"] == "3+4=7;~3+4=7;7*2=4#4" and found["trace_failed"] == 1


# -- the walk ----------------------------------------------------------------------------------------------------------


def plainly(row: Mapping[str, str], solver: Solver, seed_of: Callable[[str], int], first: int = 0) -> tuple[str, int]:
    """One row after the other, with lists of steps, and values as fractions."""
    steps = [s for s in row["trace"].split(";")]
    place, paths, seen = 0, 0, 0
    while True:
        place = next((i for i in range(place + 1, len(steps)) if steps[i].startswith("~")), 0)
        if not place:
            return ";".join(steps), paths
        seen += 1
        if seen <= first:
            continue
        begin = ";".join(steps[:place]) + ";"
        ask = Ask((("user", row["question"]),), replace(STEP.decoding, not_first=("~",)), seed_of(begin), row, begin)
        ((_, said),) = Scripted(script=solver).build(None).write([ask], _never())  # type: ignore[arg-type]
        assert isinstance(said, Completion)
        paths += 1
        new = said.text.split(";")
        right = said.text.endswith(f"#{row['truth']}")
        if Fraction(9, 10) ** len(new) * right > Fraction(9, 10) ** (len(steps) - place):
            steps = [*steps[:place], *new]


def _never() -> Any:
    import threading

    return threading.Event()


@pytest.mark.parametrize("together", [7, 4096])
def test_rounds_over_all_rows_are_walks_one_after_the_other(tmp_path: Path, together: int) -> None:
    solver = Solver(detour=0.2, again=0.5, wrong=0.05)
    found = outcome(plan(replace(STEP, together=together), ROWS, reviser=Scripted(script=solver)), tmp_path / "run")
    work = _work(found.run)
    assert len(found.rows) == len(ROWS) and not found.lost
    changed = 0
    for row in found.rows:
        before = {k: row[k] for k in ("question", "truth")} | {"trace": row["original"]}
        text, paths = plainly(before, solver, lambda begin, row=row: work.seed(row["_id"], begin, 0))
        assert (row["trace"], row["trace_rollouts"]) == (text, paths)
        assert row["trace"].endswith(f"#{row['truth']}") and row["trace_steps"] <= row["trace_steps_was"]
        assert (row["trace_steps"] < row["trace_steps_was"]) == (row["trace_replaced"] > 0)
        changed += row["trace_replaced"] > 0
    assert 5 < changed


def _work(run: Run) -> Any:
    from stillhouse.synth.steps import Work

    run.stage = "make"
    return Work(run, "step", "", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [STEP, replace(STEP, partial=True), replace(STEP, held="rejected", most=40)])
def test_no_order_matters_and_no_more_is_asked_than_planned(tmp_path: Path, step: RetroSearch) -> None:
    stands(
        spec(read_yaml(write_yaml(to_plain(step)))), ROWS, tmp_path, reviser=Scripted(script=Solver(again=0.5, detour=0.1))
    )


def test_a_partial_revision_begins_at_any_switch_alike_and_leaves_what_is_before_it(tmp_path: Path) -> None:
    trace = "3+4=7;~3+4=7;~3+4=7;~3+4=7;7*2=4#4"
    rows = [{"question": "3+4*2=", "trace": trace, "truth": "4", "n": n} for n in range(300)]
    found = outcome(plan(replace(STEP, partial=True), rows, reviser=Scripted(script=Solver())), tmp_path / "run")
    left = [row["trace"].count("~") for row in found.rows]
    assert set(left) == {0, 1, 2} and all(80 <= left.count(k) <= 120 for k in (0, 1, 2))  # 100 +- 2.4 deviations
    assert all(row["trace_rollouts"] == 1 for row in found.rows)  # one path, and behind it is no switch


def test_a_trace_has_no_more_paths_than_are_allowed(tmp_path: Path) -> None:
    found = outcome(plan(replace(STEP, most=1), ROWS, reviser=Scripted(script=Solver(again=0.5))), tmp_path / "run")
    assert {row["trace_rollouts"] for row in found.rows if "~" in row["original"]} == {1}


def test_rounds_keep_a_teacher_busy(tmp_path: Path) -> None:
    """All rows are asked about at once, the first switches first."""
    rows = [{"question": "3+4*2=", "trace": "3+4=7;~3+4=7;7*2=4;~7*2=4#4", "truth": "4", "n": n} for n in range(5)]
    paths = {"3+4=7;": "lost", "3+4=7;~3+4=7;7*2=4;": "lost"}
    outcome(plan(STEP, rows, reviser=Scripted(script=Says(paths=paths))), tmp_path / "run")
    assert [ask.begin for ask in Says.asked] == ["3+4=7;"] * 5 + ["3+4=7;~3+4=7;7*2=4;"] * 5


# -- what cannot be revised, and who cannot revise ---------------------------------------------------------------------


def test_what_is_lost_and_why(tmp_path: Path) -> None:
    rows = [
        {"question": "3+4=", "trace": "3+4=8#8", "truth": "7"}, {"question": "3+4=", "trace": "", "truth": "7"},
        {"question": "3+4=", "trace": "3+4=7#7", "truth": ""}, {"question": "3+4=", "trace": "3+4=7", "truth": "7"},
        {"question": "3+4=", "trace": "3+4=7#7", "truth": "7", "note": "ñ"}, {"trace": "3+4=7#7", "truth": "7"},
    ]  # fmt: skip
    found = outcome(plan(STEP, rows, reviser=Scripted(script=Solver())), tmp_path / "run")
    assert found.why() == ["no question", "no trace", "no truth", *["the trace does not end right"] * 2]
    assert [row["note"] for row in found.rows] == ["ñ"]
    with pytest.raises(RunError, match="a column 'trace', which no row has.*'traces'"):
        outcome(plan(STEP, [{"traces": "a", "truth": "b"}], reviser=Scripted(script=Solver())), tmp_path / "other")


def test_a_teacher_that_cannot_be_kept_from_words_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs suppression of the teacher 'reviser'"):
        walked(tmp_path / "a", "3+4=7;7*2=4#4", {}, heeds=("continuation",))
    with pytest.raises(RunError, match="needs continuation"):
        walked(tmp_path / "b", "3+4=7;7*2=4#4", {}, replace(STEP, held="rejected"), heeds=())
    assert STEP.needs == {"text", "continuation", "suppression"}
    assert replace(STEP, held="rejected").needs == {"text", "continuation"}


def test_paths_that_turn_are_rejected_so_often_at_most(tmp_path: Path) -> None:
    step = replace(STEP, held="rejected", tries=3)
    paths = {"3+4=7;": ["~3+4=7;7*2=4#4", "~7*2=4#4", "7*2=4;~7*2=4#4"], "3+4=7;7*2=4;": ["~7*2=4#4"] * 3}
    found = walked(tmp_path / "a", "3+4=7;~3+4=7;~7*2=5;~7*2=4#4", paths, step, heeds=("continuation",)).rows[0]
    assert found["trace"] == "3+4=7;7*2=4;~7*2=4#4"
    assert [found[f"trace_{name}"] for name in ("rollouts", "replaced", "failed")] == [6, 1, 1]
    assert len({ask.seed for ask in Says.asked}) == 6 and all(not ask.decoding.not_first for ask in Says.asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.0}, {"gamma": 0.0}, {"tries": 0}, {"most": 0}, {"was": "trace"}, {"was": "_x"},
        {"held": "rejected", "decoding": Decoding(temperature=0.0)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RetroSearch(**wrong)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_arms_of_the_proof_cost_and_hold_what_they_say(tmp_path: Path) -> None:
    """Shortest-of-n has at least as many rollouts and tokens; every arm's traces are right."""
    arms, told = proof().arms, {}
    for name in ("ours", "shortest"):
        few = replace(arms[name], data=replace(arms[name].data, train=120))
        run = Run(tmp_path / name / "run", seed=100)
        execute(replace(few, stages={"make": few.stages["make"]}), run)
        rows = list(made_rows(run, "make"))
        told[name] = rows, account_of(run, "make")["teachers"]["author"]
        for row in rows:
            assert row["trace"].endswith(f"#{row['truth']}") and chain_steps(row["question"], 7)[-1].endswith(row["truth"])
    (ours, cost), (short, budget) = told["ours"], told["shortest"]
    assert cost["calls"] <= budget["calls"] and cost["tokens"] <= budget["tokens"]
    assert len({row["question"] for row in short}) == len(short)
    assert sum(row["trace_steps"] for row in ours) < 0.9 * sum(row["trace_steps_was"] for row in ours)
    assert arms["original"].stages["make"] == arms["ours"].stages["make"]


def test_own_rows_from_the_command_line(still: Callable[..., Any], tmp_path: Path) -> None:
    """Traces that were recorded elsewhere are revised; a second run asks nothing again."""
    traces = [{"question": r["question"], "answer": r["truth"], "solution": r["trace"]} for r in ROWS]
    write_jsonl(tmp_path / "mine.jsonl", traces)
    changes = {
        "data": "{use: data.tasks.Questions, path: mine.jsonl, instruction: '', solution: solution, length: 96}",
        "make.steps": "{revise: {use: methods.reasoning.retro_search.RetroSearch, column: solution,"
        " thoughts: {use: synth.segment.Thoughts, separator: ';', turns: ['~']},"
        " final: {use: synth.finals.Final, pattern: '#(\\d+)$'}}}",
        "train.data.answer": "solution", "train.data.length": 96, "train.steps": 3,
        "teachers": "{reviser: {use: teachers.scripted.Scripted, script: {use: synth.scripts.solver.Solver}}}",
        "student.vocabulary": 257,
    }  # fmt: skip
    settings = [part for k, v in changes.items() for part in ("--set", f"{k}={v}")]
    for runs in ("first", "second"):
        done = still("run", "retro_search", "--scale", "smoke", *settings, "--runs", tmp_path / "runs", "--device", "cpu")
        assert done.exit_code == 0, (runs, done.stdout + done.stderr)
    folders = sorted((tmp_path / "runs").iterdir())
    one, two = (json.loads((f / "artifacts" / "make" / "data" / "account.json").read_text()) for f in folders)
    assert one["steps"] == two["steps"] and [told["step"] for told in one["steps"]] == ["given", "revise"]
    assert one["teachers"]["reviser"]["calls"] > 0 and two["teachers"]["reviser"]["calls"] == 0
    rows = list(Table(folders[0] / "artifacts" / "make" / "data" / "rows.parquet"))
    assert len(rows) > 20 and any(row["solution"] != row["original"] for row in rows)


def test_a_stopped_revision_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    """What was answered before the stop is not asked again."""
    script = Scripted(script=Solver(again=0.5, detour=0.1))
    whole = outcome(plan(STEP, ROWS, reviser=script), tmp_path / "a" / "run")
    part = plan(replace(STEP, most=1), ROWS, reviser=script)  # the first round alone
    outcome(part, tmp_path / "b" / "first")
    again = outcome(plan(STEP, ROWS, reviser=script), tmp_path / "b" / "run")
    assert again.rows == whole.rows
    assert again.paid["reviser"]["borrowed"] == sum("~" in row["trace"] for row in ROWS)
    shutil.rmtree(tmp_path / "b")


def test_the_papers_scale_asks_of_a_server_what_it_can() -> None:
    paper = recipe("paper")
    step, teacher = paper.stages["make"].steps["revise"], paper.teachers["reviser"]
    assert step.needs <= teacher.build(None).gives
