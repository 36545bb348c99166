"""KnowPO: what the four contexts hold, what is chosen and rejected, the ratio of the pairs, and a user's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of, write_jsonl
from stillhouse.audits.knowledge import KnowledgeUse, of_items, says
from stillhouse.cli import launch
from stillhouse.cli.results import findings
from stillhouse.core.files import read_lines
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.knowledge import Facts, Item, Passages
from stillhouse.methods.language.knowpo import CAPS, Conflicts, Phrases, recipe
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM
from stillhouse.teachers.local import LocalLM

torch.set_num_threads(1)
TOWNS = [Item(f"capital of land {i}?", f"Town{i:02d}", f"Land {i}: Town{i:02d} is its capital, Town{i:02d}.", f"t{i % 3}")
         for i in range(24)]  # fmt: skip
ASKED = Conflicts(phrases=Phrases(shown="It is {}.", own="I think {}.", refusal="I do not know.", unknown="do not know"))


def rows(n: int = 40) -> list[dict[str, Any]]:
    return [
        {"question": f"capital of land {i}?", "answer": f"Town{i:02d}", "context": f"Land {i} has Town{i:02d}.",
         "title": f"t{i % 3}"}
        for i in range(n)
    ]  # fmt: skip


def test_the_contexts_hold_what_they_should() -> None:
    for number, item in enumerate(TOWNS):
        made = ASKED.contexts(number, TOWNS, 0)
        assert not isinstance(made, str)
        related, false, away, empty = made
        assert [c.name for c in made] == ["related", "counterfactual", "irrelevant", "empty"]
        assert len(related.passages) == len(false.passages) == len(away.passages) == 4 and empty.passages == ()
        assert item.passage in related.passages and related.wanted == item.answer
        text = " ".join(false.passages)
        assert item.answer not in text and text.count(false.wanted) == 2  # every occurrence is replaced
        assert set(related.passages) - {item.passage} == set(false.passages) - {
            item.passage.replace(item.answer, false.wanted)
        }
        assert item.answer not in " ".join(away.passages) and not set(away.passages) & set(related.passages)
        of = {o.passage: o for o in TOWNS}
        topics = [of[p].topic for p in related.passages if p != item.passage]
        assert topics.count(item.topic) == 1 and all(of[p].topic != item.topic for p in away.passages)
        for context in made[:3]:
            assert context.wanted not in context.spans
            assert context.spans == () or all(any(span in p for p in context.passages) for span in context.spans)


def test_a_users_wrong_answer_is_taken_unless_its_length_tells() -> None:
    for fake, want in (("Nowhere", "Nowhere"), ("A town of a very long name", None)):
        items = [replace(TOWNS[0], fake=fake), *TOWNS[1:]]
        made = ASKED.contexts(0, items, 0)
        assert (made[1].wanted if not isinstance(made, str) else None) == want
    assert isinstance(ASKED.contexts(0, TOWNS[:6], 0), str)


class Always:
    """A draw that takes option `which`."""

    def __init__(self, which: int):
        self.which = which

    def choice(self, options: Any) -> Any:
        return options[self.which]


@pytest.mark.parametrize(
    ("kind", "known", "which", "chosen", "rejected"),
    [
        ("related", True, 0, "It is {y}.", "It is {span}."),  # over-inclusion: known and right, nothing to ignore
        ("related", True, -1, "It is {y}.", "It is {span}."),
        ("related", False, -1, "It is {y}.", "I do not know."),
        ("counterfactual", True, -1, "It is {fake}.", "It is {y}."),  # ignorance: what it knows by heart
        ("counterfactual", False, -1, "It is {fake}.", "I do not know."),
        ("irrelevant", True, -1, "I think {y}.", "I think {span}."),
        ("irrelevant", False, -1, "I do not know.", "I think {span}."),
        ("empty", True, -1, "I think {y}.", ""),
    ],
)
def test_what_is_chosen_and_rejected(kind: str, known: bool, which: int, chosen: str, rejected: str) -> None:
    item = TOWNS[5]
    if kind == "empty":
        which = 0
    made = ASKED.contexts(5, TOWNS, 0)
    assert not isinstance(made, str)
    context = next(c for c in made if c.name == kind)
    words = {"y": item.answer, "fake": made[1].wanted, "span": (context.spans or ("",))[0]}
    found = ASKED.answers(context, item, known, Always(which))
    assert found == (chosen.format(**words), rejected.format(**words))


def test_without_rewriting_the_rejected_answer_is_bare() -> None:
    made = ASKED.contexts(5, TOWNS, 0)
    assert not isinstance(made, str)
    assert replace(ASKED, rewritten=False).answers(made[2], TOWNS[5], True, Always(0))[1] == made[2].spans[0]


def test_rewritten_pairs_are_of_nearly_one_length() -> None:
    """The point of the rewriting: right and wrong differ by the span alone."""
    made = ASKED.contexts(5, TOWNS, 0)
    assert not isinstance(made, str)
    for context in made[:2]:
        chosen, rejected = ASKED.answers(context, TOWNS[5], True, Always(-1))
        assert len(chosen) == len(rejected) and chosen != rejected


def test_the_ratio_is_kept() -> None:
    pairs: Any = {
        "related": list(range(100)),
        "counterfactual": list(range(60)),
        "known": list(range(30)),
        "unknown": list(range(70)),
    }
    # 30 known are 30 / 1750 of the cap: the scarcest kind, hence 51.4, 51.4, 30, 30
    assert [len(Conflicts().kept({name: pairs[name] if name == only else [] for name in pairs})) for only in pairs] == [
        100,
        60,
        30,
        70,
    ]
    assert len(Conflicts().kept(pairs)) == 51 + 51 + 30 + 30
    none = Conflicts(caps={**CAPS, "known": 0, "unknown": 0})
    assert len(none.kept(pairs)) == 60 + 60
    assert Conflicts().kept({name: [] for name in CAPS}) == []
    with pytest.raises(ValueError, match="caps need"):
        Conflicts(caps={"related": 1})
    with pytest.raises(ValueError, match="caps need"):
        Conflicts(caps=dict.fromkeys(CAPS, 0))


def test_an_answer_is_judged_by_what_it_says() -> None:
    line = {"wanted": "New York", "rivals": ["Boston"]}
    assert says(line, "It is new york.") and not says(line, "Boston, not New York") and not says(line, None)
    context = next(c for c in ASKED.contexts(5, TOWNS, 0) if not isinstance(c, str) and c.name == "counterfactual")
    judged = ASKED.judged(replace(context, wanted="New York City", spans=("york", "Boston")), TOWNS[5], True)
    assert judged["rivals"] == ["Boston", TOWNS[5].answer]  # a rival within what is wanted would make it unsayable
    away = ASKED.judged(replace(context, name="irrelevant"), TOWNS[5], False)
    assert away["wanted"] == "do not know"


def test_the_numbers_are_means_over_questions() -> None:
    kinds = ("related", "counterfactual", "irrelevant")
    lines = [{"example": e, "kind": k, "known": e == 0} for e in (0, 1) for k in kinds] + [
        {"example": 2, "kind": "related", "known": True}
    ]
    found = of_items(lines, [True, False, True, True, True, False, True])
    assert found["adherence"].tolist() == [0.5, 1.0] and found["robustness"].tolist() == [1.0, 0.0]
    assert found["rightly"].tolist() == [0.75, 0.5] and found["refused"].tolist() == [0.0]
    assert of_items([], []) == {}


def test_the_facts_can_be_read_but_not_remembered(tmp_path: Path) -> None:
    data = Facts(train=40, valid=14, test=24, read=50, again=2)
    run = run_of(tmp_path, None, data=data)
    items = data.items(run)
    names = [item.question for part in items.values() for item in part]
    assert len(set(names)) == len(names) == 78
    assert {sum(item.known for item in part) for part in items.values()} == {20, 7, 12}
    parity = {item.known for item in items["train"][::2]}
    assert parity == {True, False}  # supervised learning takes every other question: it must see both
    told: dict[str, set[str]] = {}
    reading = facts = 0
    for row in data.load(run)["train"].rows:
        for d in row:
            text = "".join(data.alphabet[t] for t in d.tokens)
            if d.example >= 0:
                facts += 1
                assert text[0] == "?" and text[-1] == "\n" and sum(d.counts) == 2
                continue
            reading += 1
            passages, *asked = text.split("?")
            shown = {passages[i : i + 2]: passages[i + 2] for i in range(0, len(passages), 3)}
            assert len(asked) == 4 and all(shown[q[:2]] == q[2] for q in asked)
            for name, capital in shown.items():
                told.setdefault(name, set()).add(capital)
    assert (reading, facts) == (50, 156) and any(len(said) > 1 for said in told.values())
    with pytest.raises(ValueError, match="169 entities"):
        Facts(train=200)


def test_a_users_rows_need_the_answer_in_the_passage(tmp_path: Path) -> None:
    bad = [
        {"question": "x?", "answer": "never", "context": "nothing here"},
        {"question": "y?", "answer": "", "context": "nothing"},
        rows()[0],
        {**rows(50)[49], "counterfactual": "Land"},
    ]
    path = write_jsonl(tmp_path / "mine.jsonl", [*rows(), *bad])
    run = Run(tmp_path / "run")
    splits = Passages(path=str(path)).items(run)
    assert {name: len(part) for name, part in splits.items()} == {"train": 33, "valid": 4, "test": 4}
    whys = " ".join(line["why"] for line in run.read("rejects.jsonl"))
    for why in ("does not occur in the passage", "no 'answer'", "the same question again", "another is taken"):
        assert why in whys
    with pytest.raises(RunError, match=r"12 are needed: no 'ask'"):
        Passages(path=str(path), question="ask").items(Run(tmp_path / "other"))


def test_the_smoke_run_writes_what_the_stages_read(tmp_path: Path) -> None:
    made = recipe("smoke")
    stages = {name: made.stages[name] for name in ("read", "base", "conflicts")}
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(replace(made, stages=stages), run)
    folder, coder = run.path("conflicts"), made.data.coder(run)
    taught = {line["example"] for line in read_lines(folder / "train.jsonl")}
    paired = {line["example"] for line in read_lines(folder / "pairs" / "train.jsonl")}
    assert taught and paired and not taught & paired  # disjoint questions
    for line in read_lines(folder / "pairs" / "train.jsonl"):
        chosen, rejected = (coder.text(line[side]) for side in ("chosen", "rejected"))
        assert chosen != rejected and chosen and rejected
    asked = read_lines(folder / "asked" / "test.jsonl")
    assert {line["kind"] for line in asked} == {"related", "counterfactual", "irrelevant"}
    assert not (folder / "asked" / "train.jsonl").read_text()
    lengths = {kind: {len(line["prompt"]) for line in asked if line["kind"] == kind} for kind in ("related", "irrelevant")}
    assert lengths["related"] == lengths["irrelevant"] == {12}  # their number tells nothing


def test_a_users_own_file_and_model_go_through(tmp_path: Path, folders: Folders) -> None:
    model = HubLM(path=str(folders.student))
    short = Sampling(temperature=0.0, max_new=8)
    made = recipe("paper").set("student", model).set("teachers.base", LocalLM(model=model))
    made = made.set("data", Passages(path=str(write_jsonl(tmp_path / "mine.jsonl", rows())), length=1024))
    made = made.set("conflicts.sampling", short).set("audit.checks", (KnowledgeUse(sampling=short, versus=("sft",)),))
    for stage in ("sft", "train"):
        made = made.set(f"{stage}.steps", 2).set(f"{stage}.batch", 2).set(f"{stage}.accumulate", 1)
        made = made.set(f"{stage}.data.base", made.data).set(f"{stage}.precision", "float32")
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    mark = run.done("conflicts")
    assert mark and mark["train_questions"] == 32 and mark["train_sft"] > 20 and mark["train_pairs"] > 10
    assert {f.name for f in findings(run.folder) if f.subject == "train"} >= {"adherence", "robustness", "rightly"}


def test_what_cannot_be_made_is_said_before_anything_is_asked(tmp_path: Path, folders: Folders) -> None:
    from stillhouse.data.toys import Sentences

    spec = LocalLM(model=HubLM(path=str(folders.student)))
    run = run_of(tmp_path / "a", HubLM(path=str(folders.student)), data=Sentences(), teacher=spec)
    with pytest.raises(RunError, match="give data.knowledge.Passages"):
        Conflicts()(run)
    path = write_jsonl(tmp_path / "few.jsonl", [{**row, "title": ""} for row in rows(12)])
    run = run_of(tmp_path / "b", HubLM(path=str(folders.student)), data=Passages(path=str(path)), teacher=spec)
    run.stage = "conflicts"
    Conflicts(others=1, sampling=Sampling(temperature=0.0, max_new=2))(run)  # twelve rows are enough for a few passages
    run.stage = "again"
    with pytest.raises(RunError, match="no context could be made"):
        Conflicts(others=9, sampling=Sampling(temperature=0.0, max_new=2))(run)
