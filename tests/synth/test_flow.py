"""Plans of steps within steps: which way rows go, how often, and that every one of them can be explained afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from chatserver import ChatServer
from stillhouse.cli.app import app
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Kind
from stillhouse.synth.ancestry import Tables, opened
from stillhouse.synth.flow import Apply, Branch, Gather, Grow, Join, Rounds
from stillhouse.synth.review import Reviewed
from stillhouse.synth.steps import Need, Row
from stillhouse.synth.synthesize import DataPlan, Synthesize, account_of, lost_rows, made_rows

from .lab import Double, Judge, Numbers, Sieve, go, made, said

Start = Callable[..., ChatServer]
OWN = """
def halve(row):
    n = int(row["text"].split()[-1])
    if n == 7:
        raise ValueError("seven")
    if n == 8:
        return None
    if n == 9:
        return "nine is out"
    return [{"text": f"half {n}", "n": n}, {"text": f"other {n}", "n": n}] if n % 2 else {**row, "n": n, "done": n > 3}

def total(rows):
    return {"total": sum(row["n"] for row in rows), "parity": rows[0]["n"] % 2}
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def plan(steps: Mapping[str, Any], count: int = 12, data: Any = None) -> Recipe:
    return Recipe(
        id="plan", student=None, data=data or Numbers(count=count), teachers={}, stages={"make": Synthesize(steps=steps)}
    )


@dataclass(frozen=True, kw_only=True)
class Count(Sieve):
    """Adds one to `n` and says when it has come to `to`."""

    to: int = 3

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for row in rows:
            n = row.get("n", int(row["text"].split()[-1]) % 3) + 1
            yield {**row, "n": n, "done": n >= self.to, "chance": run.work.rng(row["_id"]).random()}


@dataclass(frozen=True, kw_only=True)
class Another:
    """Two new rows for each of the pool, one of them always the same."""

    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for row in rows:
            yield run.work.child(row, text=f"more of {row['text']}")

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        return rows


def test_a_function_changes_loses_and_multiplies_rows(functions: str, tmp_path: Path) -> None:
    run = go(plan({"apply": Apply(function=f"{functions}:halve")}), tmp_path / "run")
    rows = list(made_rows(run, "make"))
    assert sorted(row["n"] for row in rows) == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 10, 11, 11]
    assert {row["text"] for row in rows if row["n"] == 3} == {"half 3", "other 3"}
    why = {row["row"]["text"]: row["_why"] for row in lost_rows(run, "make")}
    assert why["row 7"].endswith("own.py:halve raised ValueError: seven") and why["row 9"] == "nine is out"
    assert why["row 8"].endswith("own.py:halve gave nothing") and len(why) == 3


def test_a_changed_function_is_another_step(functions: str, tmp_path: Path) -> None:
    steps = {"apply": Apply(function=f"{functions}:halve")}
    go(plan(steps), tmp_path / "runs" / "a")
    Path(functions).write_text(OWN.replace('"half', '"part'))
    from stillhouse.data import own

    own._workers.clear()  # as in another process
    rows = made_rows(go(plan(steps), tmp_path / "runs" / "b"), "make")
    assert any(row["text"] == "part 3" for row in rows)


def test_groups_become_rows_whose_parents_they_are(functions: str, tmp_path: Path) -> None:
    steps = {"apply": Apply(function=f"{functions}:halve"), "total": Gather(function=f"{functions}:total", by="n")}
    rows = list(made_rows(go(plan(steps, count=6), tmp_path / "run"), "make"))
    assert {row["total"]: len(row["_from"]) for row in rows} == {0: 1, 2: 2, 6: 2, 4: 1, 10: 2} | {2: 1, 6: 2} or len(
        rows
    ) == 6
    assert sorted(row["total"] for row in rows) == [0, 2, 2, 4, 6, 10]


def test_rows_go_the_way_that_a_column_says(tmp_path: Path) -> None:
    ways = {"1": {"count": Count(to=9)}, "2": {"more": Another(), "again": Another()}}
    steps = {"count": Count(to=2), "branch": Branch(on="n", ways=ways)}
    rows = list(made_rows(go(plan(steps), tmp_path / "run"), "make"))
    assert sorted(row.get("n", 0) for row in rows) == [0] * 4 + [2] * 4 + [3] * 4
    assert sum(row["text"].startswith("more of more of row") for row in rows) == 4
    other = {**steps, "branch": replace(steps["branch"], others=False)}
    run = go(plan(other), tmp_path / "other")
    assert {row["_why"] for row in lost_rows(run, "make")} == {"no way for this n"}
    assert len(made_rows(run, "make")) == 8


def test_a_step_that_is_null_is_left_out(tmp_path: Path) -> None:
    recipe = plan({"count": Count(to=2), "more": Another()}).set("make.steps.more", None)
    run = go(recipe, tmp_path / "run")
    assert [step["step"] for step in account_of(run, "make")["steps"]] == ["given", "count"]


def test_rounds_end_for_a_row_when_it_is_done(tmp_path: Path) -> None:
    rounds = Rounds(steps={"count": Count(to=4)}, until="done", rounds=3)
    run = go(plan({"rounds": rounds}), tmp_path / "run")
    assert [row["n"] for row in made_rows(run, "make")] == [4] * 8
    assert [(s["step"], s["given"]) for s in account_of(run, "make")["steps"]] == [
        ("given", 12), ("rounds/1/count", 12), ("rounds/2/count", 12), ("rounds/3/count", 8), ("rounds", 12),
    ]  # fmt: skip
    assert {row["_why"] for row in lost_rows(run, "make")} == {"no done after 3 rounds"}
    kept = go(plan({"rounds": replace(rounds, keep=True)}), tmp_path / "kept")
    assert len(made_rows(kept, "make")) == 12
    twice = {"first": Count(to=2), "rounds": Rounds(steps={"count": Count(to=9)}, until="done", rounds=1)}
    done_before = go(plan(twice), tmp_path / "c")
    assert sorted(row["n"] for row in made_rows(done_before, "make")) == [2] * 4 + [3] * 4
    assert [row["row"]["n"] for row in lost_rows(done_before, "make")] == [2] * 4


def tables(run: Run) -> dict[str, bytes]:
    folder = run.folder / "artifacts" / "make" / "data"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_steps_within_a_step_that_was_done_before_a_stop_are_kept(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("def late(row):\n    return row\n")
    inner = Branch(on="n", ways={"2": {"deeper": Branch(on="done", ways={"True": {"count": Count(to=9)}})}})
    steps = {"count": Count(to=2), "branch": inner, "late": Apply(function=f"{tmp_path / 'late.py'}:late")}
    whole = go(plan(steps), tmp_path / "whole" / "run")
    (tmp_path / "late.py").write_text("def late(row):\n    return 3\n")
    with pytest.raises(RunError, match="must give a row"):
        go(plan(steps), tmp_path / "other" / "run")
    (tmp_path / "late.py").write_text("def late(row):\n    return row\n")
    resumed = go(plan(steps), tmp_path / "other" / "run")
    assert tables(resumed) == tables(whole)
    names = [step["step"] for step in account_of(resumed, "make")["steps"]]
    assert names == ["given", "count", "branch/2/deeper/True/count", "branch/2/deeper", "branch", "late"]
    beside = go(plan(steps), tmp_path / "other" / "beside")  # takes over what the run beside it has done
    assert tables(beside) == tables(whole)


def test_chance_differs_between_rounds(tmp_path: Path) -> None:
    run = go(plan({"rounds": Rounds(steps={"count": Count(to=9)}, until="done", rounds=2, keep=True)}), tmp_path / "run")
    tables = opened(run.folder, None)
    first, second = (list(tables.made[tables.steps.index(f"rounds/{n}/count")]) for n in (1, 2))
    assert {row["chance"] for row in first}.isdisjoint(row["chance"] for row in second)


def test_a_pool_grows_to_its_size_and_no_further(tmp_path: Path) -> None:
    rows = list(made_rows(go(plan({"grow": Grow(steps={"more": Another()}, to=30)}, count=4), tmp_path / "run"), "make"))
    assert len(rows) == 30 == len({row["_id"] for row in rows})
    assert [row["text"] for row in rows[:5]] == ["row 0", "row 1", "row 2", "row 3", "more of row 0"]
    short = made_rows(go(plan({"grow": Grow(steps={"more": Another()}, to=30, rounds=2)}, count=4), tmp_path / "b"), "make")
    assert len(short) == 4 + 4 + 8
    none = made_rows(go(plan({"grow": Grow(steps={"count": Count()}, to=30)}, count=4), tmp_path / "c"), "make")
    assert len(none) == 4


def test_columns_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "topics.csv").write_text("text,topic\nrow 1,one\nrow 2,two\n")
    run = go(plan({"join": Join(path=str(tmp_path / "topics.csv"), on="text")}, count=4), tmp_path / "run")
    assert {row["text"]: row["topic"] for row in made_rows(run, "make")} == {"row 1": "one", "row 2": "two"}
    assert {row["_why"] for row in lost_rows(run, "make")} == {"topics.csv says nothing of this text"}
    kept = go(plan({"join": Join(path=str(tmp_path / "topics.csv"), on="text", missing=True)}, count=4), tmp_path / "b")
    assert len(made_rows(kept, "make")) == 4
    (tmp_path / "topics.csv").write_text("text,topic\nrow 1,one\nrow 1,two\n")
    with pytest.raises(RunError, match="says 'row 1' twice in column 'text'"):
        go(plan({"join": Join(path=str(tmp_path / "topics.csv"), on="text")}, count=4), tmp_path / "c")


def test_what_steps_within_steps_ask_is_known_before(chat_server: Start) -> None:
    server = chat_server(said)
    recipe = made(server.url)
    steps = {
        "branch": Branch(on="text", ways={"row 1": {"double": Double()}, "row 2": {"judge": Judge()}}),
        "rounds": Rounds(steps={"judge": Judge()}, until="judged", rounds=3),
    }
    plan = DataPlan.of(recipe.set("stages", {"make": replace(recipe.stages["make"], steps=steps)}))
    assert plan.needs["teacher"].calls == 2 + 1 + 3 * (12 - 2 + 2 + 1) and not server.asked


def test_a_teacher_within_steps_is_checked_before(chat_server: Start, tmp_path: Path) -> None:
    recipe = made(chat_server(said).url)
    steps = {"rounds": Rounds(steps={"judge": Judge(teacher="nobody")}, until="judged")}
    with pytest.raises(RunError, match="step 'rounds/each round/judge' asks the teacher 'nobody'"):
        go(recipe.set("stages", {"make": replace(recipe.stages["make"], steps=steps)}), tmp_path / "run")


@pytest.mark.parametrize(
    "late",
    [
        Join(path="none.csv", on="text"),
        Reviewed(path="none.csv"),
        Apply(function="none.csv:f"),
        Gather(function="none.csv:f", by="n"),
    ],
)
def test_a_file_that_is_not_there_is_told_before_anything_is_asked(chat_server: Start, tmp_path: Path, late: Any) -> None:
    server = chat_server(said)
    recipe = made(server.url)
    with pytest.raises(RunError, match="no file none.csv; mend the path"):
        go(
            recipe.set("stages", {"make": replace(recipe.stages["make"], steps={"judge": Judge(), "late": late})}),
            tmp_path / "run",
        )
    assert not server.asked


def test_every_row_can_be_explained(chat_server: Start, tmp_path: Path) -> None:
    run = go(made(chat_server(said).url), tmp_path / "run")
    tables = opened(run.folder, None)
    row = made_rows(run, "make")[0]
    found = tables.explain(row["_id"][:10])
    assert found.id == row["_id"] and [passed.step for passed in found.steps] == ["double", "sieve", "judge"]
    assert found.steps[1].columns == {"digit": row["digit"]} and found.steps[2].columns == {"judged": row["judged"]}
    (parent,) = found.parents
    assert [passed.step for passed in parent.steps] == ["given"] and parent.steps[0].columns["text"] in row["text"]
    gone = next(lost_rows(run, "make"))
    last = tables.explain(gone["_id"]).steps[-1]
    assert (last.step, last.lost, last.numbers) == ("sieve", "too small", {"digit": gone["numbers"]["digit"]})
    with pytest.raises(RunError, match="no row has an _id that begins with 'zzzz'"):
        tables.explain("zzzz")
    with pytest.raises(RunError, match="give at least 4 letters"):
        tables.explain("a")
    with pytest.raises(RunError, match="is not a run folder; give one that `stillhouse run` made"):
        opened(tmp_path, None)
    with pytest.raises(RunError, match="no finished stage of .* made data"):
        opened(Run(tmp_path / "new").folder, None)
    told = CliRunner().invoke(app, ["explain", str(run.folder), gone["_id"]])
    assert (
        told.exit_code == 0
        and "lost in sieve: too small (digit=" in told.output
        and "row 0" in told.output
        or "given" in told.output
    )
    told = CliRunner().invoke(app, ["waterfall", str(run.folder)])
    assert told.exit_code == 0 and "too small" in told.output and "24" in told.output
    assert Tables(run.path("make")).steps == ["given", "double", "sieve", "judge"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_what_a_person_changed_comes_back(tmp_path: Path, ending: str) -> None:
    steps = {"count": Count(to=2)}
    run = go(plan(steps), tmp_path / "run")
    file = tmp_path / f"review.{ending}"
    told = CliRunner().invoke(app, ["review", str(run.folder), "--out", str(file), "--sample", "5"])
    assert told.exit_code == 0 and "5 rows in" in told.output, told.output
    lines = file.read_text().splitlines()
    assert len(lines) == 5 + (ending == "csv")
    unchanged = go(plan({**steps, "reviewed": Reviewed(path=str(file))}), tmp_path / "same")
    assert list(made_rows(unchanged, "make")) == list(made_rows(run, "make"))
    at = 1 if ending == "csv" else 0
    words = lines[at].split(",")[2] if ending == "csv" else json.loads(lines[at])["text"]
    lines[at] = lines[at].replace(words, "mended")
    lines[at + 1] = lines[at + 1].replace(",yes,", ",No,").replace('"keep": "yes"', '"keep": "no"')
    file.write_text("\n".join(lines) + "\n")
    other = go(plan({**steps, "reviewed": Reviewed(path=str(file))}), tmp_path / "other")
    rows = list(made_rows(other, "make"))
    assert len(rows) == 11 and sum(row["text"] == "mended" for row in rows) == 1
    assert [row["_why"] for row in lost_rows(other, "make")] == ["taken out in review"]
    assert {type(row["n"]) for row in rows} == {int}
    again = CliRunner().invoke(app, ["review", str(run.folder), "--out", str(file)])
    assert again.exit_code == 1 and "is there already" in again.output
    with pytest.raises(RunError, match="it is another table's"):
        go(plan({"more": Another(), "reviewed": Reviewed(path=str(file))}), tmp_path / "wrong")


def test_a_plan_of_ones_own_runs_from_a_file(functions: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(4)))
    (tmp_path / "plan.yaml").write_text(
        "id: mine\n"
        f"data: {{use: synth.source.File, path: {tmp_path / 'rows.jsonl'}}}\n"
        "stages:\n  make:\n    use: synth.synthesize.Synthesize\n    steps:\n"
        f"      halve: {{use: synth.flow.Apply, function: '{functions}:halve'}}\n"
        f"      total: {{use: synth.flow.Gather, function: '{functions}:total', by: n}}\n"
    )
    told = CliRunner().invoke(app, ["run", str(tmp_path / "plan.yaml"), "--runs", str(tmp_path / "runs")])
    assert told.exit_code == 0, told.output
    (run,) = (tmp_path / "runs").iterdir()
    assert sorted(row["total"] for row in made_rows(Run(run), "make")) == [0, 2, 2, 6]
    assert "stillhouse" in (run / "report.html").read_text()
    (tmp_path / "plan.yaml").write_text(
        (tmp_path / "plan.yaml").read_text() + "  train: {use: core.stage.Train, steps: 1}\n"
    )
    told = CliRunner().invoke(app, ["run", str(tmp_path / "plan.yaml"), "--runs", str(tmp_path / "runs")])
    assert told.exit_code != 0 and "Traceback" not in told.output
