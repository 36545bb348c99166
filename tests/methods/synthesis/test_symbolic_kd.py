"""Symbolic distillation: heads and tails as they come, what each filter is worth, the refusal, and a user's own triples."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatserver import ChatServer
from language import write_jsonl
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.data.factworld import FactWorld, Words, all_heads, all_tails, holds, true_tails
from stillhouse.data.triples import Triples, heads_of, question_of, statement
from stillhouse.methods.synthesis.symbolic_kd import Heads, Tails, recipe
from stillhouse.synth.scripts.believer import Believer
from stillhouse.synth.synthesize import account_of, lost_rows, made_rows
from stillhouse.synth.table import Table
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Decoding
from synth.talk import Follow

ROWS = [
    {"head": f"PersonX feeds cat {i}", "relation": relation, "tail": tail, "verdict": verdict}
    for i in range(20)
    for relation, tail, verdict in (("xReact", "kind", "yes"), ("xNeed", "some food", 1), ("xReact", "a stone", "no"))
]


def only(make: Any, folder: Path, seed: int = 0) -> Run:
    run = Run(folder / "run", seed=seed)
    execute(make, run)
    return run


def steps(*names: str) -> Any:
    made = recipe("smoke")
    chosen = {name: step for name, step in made.stages["make"].steps.items() if name in names or not names}
    return made.set("stages", {"make": replace(made.stages["make"], steps=chosen)})


def test_the_rules_of_the_world_by_hand() -> None:
    head = "PersonX drops the red piano"
    assert true_tails(head, "xReact") == ("sorry", "clumsy") and true_tails(head, "xNeed") == ("sheet music", "a good ear")
    assert holds(head, "xReact", " clumsy ") and not holds(head, "xReact", "proud") and not holds(head, "xNeed", "clumsy")
    for wrong in ("PersonX the drops red piano", "Somebody drops the red piano", "PersonX drops the red stone", ""):
        assert true_tails(wrong, "xReact") == ()
    heads = all_heads()
    assert len(heads) == len(set(heads)) == 384
    for relation in FactWorld.relations:
        assert {sum(holds(head, relation, tail) for tail in all_tails(relation)) for head in heads} == {2}
    words = Words(("a", "b"))
    assert words.answer("", " a b") == [1, 2, 0] and words.text([1, 2, 0]) == "a b"
    assert words.text([1, 2]) is None and words.text([3, 0]) is None and words.text([]) is None


def test_no_head_is_in_two_splits_and_none_that_is_held_out_is_made(tmp_path: Path) -> None:
    run = only(steps("heads").set("make.steps.heads.each", 200), tmp_path)
    splits = run.recipe.data.rows(run)
    heads = {name: set(heads_of(rows)) for name, rows in splits.items()}
    assert not heads["train"] & heads["test"] and not heads["valid"] & (heads["train"] | heads["test"])
    made, lost = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    assert made and not {row["head"] for row in made} & (heads["valid"] | heads["test"])
    why = [row["_why"] for row in lost]
    assert "a head of a held-out split" in why and "the answer was cut off" in why
    assert len(made) + len(lost) == 200
    odd = [row["likely"] for row in made if not true_tails(row["head"].replace("Somebody", "PersonX"), "xReact")]
    rest = [row["likely"] for row in made if true_tails(row["head"].replace("Somebody", "PersonX"), "xReact")]
    assert odd and rest and max(odd) < min(-1.2, sum(rest) / len(rest))


def test_the_likely_filter_loses_the_worst_fifth_and_mostly_odd_ones(tmp_path: Path) -> None:
    run = only(steps("heads", "plain", "once", "likely").set("make.steps.heads.each", 200), tmp_path)
    kept = list(made_rows(run, "make"))
    lost = [each["row"] for each in lost_rows(run, "make") if each["_step"] == "likely"]
    assert len(lost) == int(0.2 * (len(kept) + len(lost)))
    assert max(row["likely"] for row in lost) <= min(row["likely"] for row in kept)
    odd = [not true_tails(row["head"], "xReact") for row in lost]
    assert sum(odd) > 0.5 * len(odd) > 0.5 * sum(not true_tails(row["head"], "xReact") for row in kept)
    assert all(row["head"].startswith("PersonX ") for row in kept) and len({row["head"] for row in kept}) == len(kept)


def test_mean_log_probability_and_natural_ends_by_hand(tmp_path: Path) -> None:
    said = iter(range(100))

    def answer(ask: Ask, rng: random.Random) -> Completion:
        assert (
            ask.decoding.logprobs
            and ask.decoding.top_p == 0.9
            and len(re.findall(r"^\d+\. PersonX", ask.messages[0][1], re.M)) == 10
        )
        n = next(said)
        return Completion(f"11. PersonX eats {n}.\n12. more", logprobs=[-1.0, -2.0, -0.5 * n], finished=n != 3)

    answer.gives = frozenset({"logprobs"})  # type: ignore[attr-defined]
    from synth.talk import FUNCTIONS

    class Likely(Follow):
        gives = frozenset({"logprobs"})

    FUNCTIONS["likely"] = answer
    made = steps("heads").set("make.steps.heads.each", 5).set("teachers.teacher", Scripted(script=Likely(name="likely")))
    run = only(made, tmp_path)
    rows = {row["head"]: row["likely"] for row in made_rows(run, "make")}
    assert rows == {f"PersonX eats {n}.": pytest.approx((-3.0 - 0.5 * n) / 3) for n in (0, 1, 2, 4)}


def test_tails_bear_names_in_prompts_and_personx_in_rows(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(ask: Ask, rng: random.Random) -> str:
        words = ask.messages[0][1]
        seen.append(words)
        name = words.splitlines()[-1].split(". ")[1].split()[0]
        return rng.choice((f"to thank {name}.\n\nAnd more", "it", f"pride in {name}"))

    from synth.talk import teacher

    made = steps("heads", "tails").set("make.steps.heads.scored", False).set("teachers.teacher", Scripted(script=Believer()))
    made = made.set("stages", {"make": replace(made.stages["make"], steps={"tails": Tails(each=4, shown=3)}, split="valid")})
    run = only(made.set("teachers.teacher", teacher(answer)), tmp_path)
    assert all("PersonX" not in words and len(words.strip().splitlines()) == 6 for words in seen)
    rows = list(made_rows(run, "make"))
    assert {row["tail"] for row in rows} == {"to thank PersonX", "pride in PersonX"}
    keys = [(row["head"], row["relation"], row["tail"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["_why"] for row in lost_rows(run, "make")} == {
        "a tail of two letters or less",
        "the same tail was there before",
    }
    for row in rows:
        assert row["question"] == f"<head> {row['head']} </head> <relation> {row['relation']} </relation> [GEN]"
        assert row["answer"] == f" {row['tail']}" and row["statement"].endswith(row["tail"])


def test_a_teacher_without_log_probabilities_is_refused_before_the_first_call(tmp_path: Path) -> None:
    server = ChatServer()
    from stillhouse.teachers.chat import HttpChat

    made = steps().set("teachers.teacher", HttpChat(url=server.url, model="tiny"))
    with pytest.raises(RunError, match=r"teachers.teacher.logprobs=true .* --set make.steps.heads.scored=false"):
        only(made, tmp_path)
    assert not server.asked


def test_the_critic_makes_the_rest_truer_and_recall_sets_how_many_pass(tmp_path: Path) -> None:
    made, shares = (
        steps().set("make.steps.heads.each", 150).set("make.steps.judged.count", 200),
        dict[float, tuple[float, int]](),
    )
    for recall in (0.5, 0.8):
        run = only(made.set("make.steps.critic.recall", recall), tmp_path / str(recall))
        rows = list(made_rows(run, "make"))
        assert all(bool(row["_truth"]) == holds(row["head"], row["relation"], row["tail"]) for row in rows)
        shares[recall] = sum(row["_truth"] for row in rows) / len(rows), len(rows)
        (before,) = (run.path("make") / "steps").glob("*_readings_*[0-9a-f].parquet")
        table = list(Table(before))
        base = sum(row["_truth"] for row in table) / len(table)
        assert shares[recall][0] > base + 0.08
        assert account_of(run, "make")["teachers"]["person"]["calls"] == 200
    assert shares[0.5][0] > shares[0.8][0] and shares[0.5][1] < shares[0.8][1]


def test_a_stopped_plan_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    straight = only(steps(), tmp_path / "a")

    class Stop:
        def update(self, stage: str, done: int, *more: Any) -> None:
            if "tails" in stage and done >= 100:
                import signal

                signal.raise_signal(signal.SIGINT)

    again = Run(tmp_path / "b" / "run")
    again.progress = Stop()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        execute(steps(), again)
    run = Run(tmp_path / "b" / "run")
    execute(steps(), run)
    assert list(made_rows(run, "make")) == list(made_rows(straight, "make"))


def test_a_users_file_is_split_by_head_and_held_out_triples_are_the_truth(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [*ROWS, {"head": "PersonX", "relation": "xFoo", "tail": "t"}, {"head": "h"}])
    data, run = Triples(path=str(path), valid=0.2, test=0.2), Run(tmp_path / "run")
    splits = data.rows(run)
    assert [len(heads_of(splits[name])) for name in ("train", "valid", "test")] == [12, 4, 4]
    why = {line["why"] for line in run.read("rejects.jsonl")}
    assert why == {"the relation 'xFoo' has no words in data.relations", "nothing in column 'relation'"}
    tasks = data.tasks(run)
    assert len(tasks["test"]) == 8 and len(tasks["train"]) == 24  # what was turned down is not learned
    task = next(task for task in tasks["test"] if "xReact" in task.question)
    assert data.score(task, " Kind. ") == 1.0 and data.score(task, "a stone") == 0.0
    assert (
        task.question == question_of(task.entry[0], "xReact")
        and statement("PersonX x", "then feels", "y", "Bo") == "Bo x. Bo then feels y"
    )


def test_a_users_own_triples_through_the_command_line(tmp_path: Path, still: Callable[..., Any]) -> None:
    write_jsonl(tmp_path / "mine.jsonl", ROWS)

    def answer(words: str, body: Any) -> str:
        if "yes or no" in words:
            return "No" if "stone" in words else "Yes"
        if "next line" in words:
            return f"PersonX feeds dog {body['seed'] % 997}"
        return ("kind", "a stone", "very kind", "stone cold")[body["seed"] % 4]

    server = ChatServer(answer)
    parts = [
        "--set", "data.path=mine.jsonl", "--set", "data.relations={xReact: then feels, xNeed: first needs}",
        "--set", f"teachers.teacher.url={server.url}", "--set", f"teachers.person.url={server.url}",
        "--set", "teachers.teacher.model=tiny", "--set", "teachers.person.model=tiny",
        "--set", "teachers.teacher.logprobs=false", "--set", "make.steps.heads.each=24",
        "--set", "make.steps.tails.each=3", "--set", "make.steps.judged.count=60",
        "--set", "student={use: models.toys.TinyLM, width: 16}", "--set", "train.steps=20", "--set", "train.batch=8",
        "--set", "train.optim.lr=0.01", "--set", "audit.checks.0.count=4", "--runs", "runs",
    ]  # fmt: skip
    refused = still("run", "symbolic_kd", "--scale", "paper", *parts)
    assert refused.exit_code == 1 and "does not say how likely" in refused.stderr and not server.asked
    without = [
        "--set",
        "make.steps.heads.scored=false",
        "--set",
        "make.steps.likely.by=null",
        "--set",
        "make.steps.likely.share=1",
    ]
    done = still("run", "symbolic_kd", "--scale", "paper", *parts, *without)
    assert done.exit_code == 0, done.stderr + done.stdout
    (folder,) = (tmp_path / "runs").glob("*/artifacts/audit/../..")
    rows = list(Table(folder / "artifacts" / "make" / "data" / "rows.parquet"))
    assert rows and not any("stone" in row["tail"] for row in rows if row.get("verdict") is not None)
    assert sum("stone" in row["tail"] for row in rows) < 0.1 * len(rows)  # nor what nobody judged


def test_a_head_is_asked_for_once_for_each_answer() -> None:
    row = {"_id": "x", "head": "PersonX feeds cat 1"}
    need = Heads(each=7).estimate([row], None)["teacher"]  # type: ignore[arg-type]
    assert need.calls == 7 and need.wrote == 7 * Decoding(max_new=12).max_new
