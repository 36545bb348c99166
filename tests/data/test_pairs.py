"""Pairs of answers: what counts, what is one prompt, why rows are lost, and that splitting a batch changes nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of, write_jsonl
from stillhouse.core.engine import micro_batches
from stillhouse.core.run import RunError
from stillhouse.data.pairs import Chosen, Pairs, PairSource, StagePairs, pair_of, pairs_in
from stillhouse.data.tokens import Document
from stillhouse.data.toys import Sentences
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM

U, A = "user", "assistant"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def texts(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"the cat {i}?", "chosen": f"sees {i}.", "rejected": f"warm bread {i} {i}."} for i in range(n)]


def made(folders: Folders, tmp_path: Path, rows: list[dict[str, Any]], *, model: str = "student", **settings: Any) -> Any:
    """(run, the spec) for rows in a JSONL file."""
    spec = Pairs(**({"path": str(write_jsonl(tmp_path / "p.jsonl", rows)), "valid": 0.0, "test": 0.0} | settings))
    return run_of(tmp_path / "run", HubLM(path=str(getattr(folders, model))), data=spec), spec


def why(run: Any) -> list[str]:
    return [line["why"] for line in run.read("rejects.jsonl")]


# -- what is a pair ------------------------------------------------------------------------------------------------


def test_text_stays_text():
    row = {"prompt": "why?", "chosen": "so", "rejected": "[1, 2]", "id": 3}
    assert pair_of(row) == {"prompt": "why?", "chosen": "so", "rejected": "[1, 2]"}


def test_other_column_names():
    row = {"q": "why?", "win": "so", "lose": "no"}
    assert pair_of(row, "q", "win", "lose") == {"prompt": "why?", "chosen": "so", "rejected": "no"}
    assert pair_of(row, "q", "win", "bad") == "no column 'bad'"


def test_turns_after_a_prompt_of_either_kind():
    answers = {"chosen": [turn(A, "so")], "rejected": [turn(A, "no")]}
    expected = {"prompt": [turn(U, "why?")], **answers}
    assert pair_of({"prompt": "why?", **answers}) == expected
    assert pair_of({"prompt": [turn(U, "why?")], **answers}) == expected
    assert pair_of({"prompt": [turn(U, "why?")], "chosen": "so", "rejected": "no"}) == expected
    as_csv = {name: json.dumps(value) for name, value in expected.items()}
    assert pair_of(as_csv) == expected


def test_whole_conversations_share_their_beginning():
    """The layout of UltraFeedback: a prompt column, and both conversations from the start."""
    begin = [turn("system", "be kind"), turn(U, "hi"), turn(A, "hello"), turn(U, "why?")]
    row = {"prompt": "why?", "chosen": [*begin, turn(A, "so")], "rejected": [*begin, turn(A, "no"), turn(U, "oh")]}
    assert pair_of(row) == {"prompt": begin, "chosen": [turn(A, "so")], "rejected": [turn(A, "no"), turn(U, "oh")]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "why?", "chosen": "so"}, "no column 'rejected'"),
        ({"prompt": "why?", "chosen": "", "rejected": "no"}, "column 'chosen' is empty"),
        ({"prompt": "why?", "chosen": "  ", "rejected": "no"}, "column 'chosen' is empty"),
        ({"chosen": "so", "rejected": "no"}, "no column 'prompt'"),
        ({"prompt": "why?", "chosen": "so", "rejected": "so"}, "the chosen and the rejected answer are equal"),
        (
            {"prompt": "w", "chosen": [turn(A, "so")], "rejected": [turn(A, "so")]},
            "the chosen and the rejected answer are equal",
        ),
        ({"chosen": [turn(A, "so")], "rejected": [turn(A, "no")]}, "no prompt: give a column 'prompt', or conversations"),
        ({"chosen": [turn(U, "a"), turn(A, "b")], "rejected": [turn(U, "c"), turn(A, "d")]}, "no prompt"),
        ({"chosen": [turn(U, "a"), turn(A, "b")], "rejected": [turn(U, "a")]}, "part before the assistant answers"),
        ({"prompt": "w", "chosen": [turn(A, "")], "rejected": [turn(A, "no")]}, "an answer is empty"),
    ],
)
def test_what_is_no_pair_says_why(row: dict[str, Any], reason: str):
    found = pair_of(row)
    assert isinstance(found, str) and reason in found


# -- from a file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["student", "plain"])
def test_only_the_answers_count(folders: Folders, tmp_path: Path, model: str):
    run, spec = made(folders, tmp_path, texts(3), model=model)
    tokenizer = run.recipe.student.tokenizer(run)
    for chosen, rejected in spec.load(run)["train"].pairs:
        assert chosen.example == rejected.example
        number = int(tokenizer.decode(chosen.tokens).split("cat ")[1][0])
        for document, answer in ((chosen, f"sees {number}."), (rejected, f"warm bread {number} {number}.")):
            counted = [t for t, c in zip(document.tokens, document.counts, strict=True) if c]
            assert tokenizer.decode(counted) == f"{answer}<|end|>"
            prompt = [t for t, c in zip(document.tokens, document.counts, strict=True) if not c]
            assert f"the cat {number}?" in tokenizer.decode(prompt) and answer not in tokenizer.decode(prompt)


def test_earlier_answers_in_a_conversation_are_prompt(folders: Folders, tmp_path: Path):
    begin = [turn(U, "the moon?"), turn(A, "two birds"), turn(U, "a boat?")]
    row = {"chosen": [*begin, turn(A, "red"), turn(U, "and?"), turn(A, "warm")], "rejected": [*begin, turn(A, "the river")]}
    run, spec = made(folders, tmp_path, [row])
    tokenizer = run.recipe.student.tokenizer(run)
    ((chosen, rejected),) = spec.load(run)["train"].pairs
    words = [tokenizer.decode([t for t, c in zip(d.tokens, d.counts, strict=True) if c]) for d in (chosen, rejected)]
    assert words == ["red<|end|>warm<|end|>", "the river<|end|>"]


def test_lost_rows_keep_their_reason(folders: Folders, tmp_path: Path):
    rows = texts(4)
    rows += [rows[0] | {"id": 9}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    rows += [{"prompt": "the cat", "chosen": "warm bread " * 40, "rejected": "no"}]
    run, spec = made(folders, tmp_path, rows, length=64)
    assert len(spec.load(run)["train"]) == 4
    assert sorted(w.split(" of ")[0] for w in why(run)) == [
        "a pair", "duplicate", "the chosen and the rejected answer are equal",
    ]  # fmt: skip


def test_splits_are_by_prompt(folders: Folders, tmp_path: Path):
    rows = [{"prompt": f"the cat {i % 12}?", "chosen": f"sees {i}", "rejected": f"likes {i}"} for i in range(48)]
    run, spec = made(folders, tmp_path, rows, valid=0.2, test=0.2)
    pairs = spec.pairs(run)
    prompts = {name: {pair["prompt"] for pair in found} for name, found in pairs.items()}
    assert sum(map(len, pairs.values())) == 48 and sum(map(len, prompts.values())) == 12
    assert {name: len(found) for name, found in prompts.items()} == {"train": 8, "valid": 2, "test": 2}
    assert pairs == Pairs(path=spec.path, valid=0.2, test=0.2).pairs(run)
    assert why(run) == []  # one prompt with several pairs is no duplicate
    packed = Chosen().load(run)
    assert {name: len({d.example for row in p.rows for d in row}) for name, p in packed.items()} == {
        "train": 32, "valid": 8, "test": 8,
    }  # fmt: skip
    asked = spec.prompts(run)["test"]
    assert len(asked) == 8 and "sees" not in run.recipe.student.tokenizer(run).decode(asked[0])


def test_a_csv_is_read_too(folders: Folders, tmp_path: Path):
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(texts(5))
    run, spec = made(folders, tmp_path, texts(1), path=str(tmp_path / "p.csv"))
    assert len(spec.load(run)["train"]) == 5


def test_no_pair_is_one_clear_line(folders: Folders, tmp_path: Path):
    run, spec = made(folders, tmp_path, [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(RunError, match=r"no pair of .* can be learned from: no column 'rejected'"):
        spec.load(run)
    run, spec = made(folders, tmp_path / "", texts(2), length=8)
    with pytest.raises(RunError, match=r"no train pair of .* at most 8 are read"):
        spec.load(run)


# -- as batches ----------------------------------------------------------------------------------------------------


def source() -> PairSource:
    """Five ragged pairs."""
    pairs = []
    for i in range(5):
        prompt = [1] * (1 + i % 3)
        sides = [Document([*prompt, *range(2, 2 + n)], [False] * len(prompt) + [True] * n, i) for n in (2 + i, 7 - i)]
        pairs.append((sides[0], sides[1]))
    return PairSource(tuple(pairs), 16, 12)


def test_a_batch_holds_the_chosen_first():
    batch = source().batch([3, 0], 0)
    assert pairs_in(batch) == 2
    assert batch["example"][:, 0].tolist() == [3, 0, 3, 0]
    assert batch["weight"].sum(-1).tolist() == [5.0, 2.0, 4.0, 7.0]
    inputs = batch["inputs"]
    assert bool(((inputs["document"] == 0) | (inputs["document"] == -1)).all())
    counted = batch["labels"][0][batch["weight"][0] > 0].tolist()
    assert counted == [2, 3, 4, 5, 6]
    assert source().tokens == sum(len(d.tokens) for pair in source().pairs for d in pair)


def test_micro_batches_hold_whole_pairs():
    parts = micro_batches(source(), step=0, size=5, accumulate=5, seed=0)
    assert [pairs_in(part) for part in parts] == [1] * 5
    for part in parts:
        assert len(set(part["example"][:, 0].tolist())) == 1
        assert torch.equal(part["inputs"]["tokens"][0, :1], part["inputs"]["tokens"][1, :1])


def test_plain_text_is_refused():
    with pytest.raises(RunError, match=r"learns from pairs of answers.*data.pairs.Pairs"):
        pairs_in(Sentences().load(None)["train"].batch([0], 0))  # type: ignore[arg-type]


# -- from an earlier stage -----------------------------------------------------------------------------------------


def written(tmp_path: Path, lines: list[dict[str, Any]]) -> Any:
    run = run_of(tmp_path, TinyLM(width=8, depth=1), data=Sentences())
    with run.artifact("made", kind="text") as folder:
        write_jsonl(folder / "train.jsonl", [])
        (folder / "pairs").mkdir()
        write_jsonl(folder / "pairs" / "train.jsonl", lines)
    return run


def test_pairs_of_a_stage(tmp_path: Path):
    line = {"example": 4, "prompt": [1, 2], "chosen": [3, 4, 0], "rejected": [5, 0]}
    run = written(tmp_path, [line, line | {"chosen": [3] * 200}])
    splits = StagePairs(stage="made", base=Sentences()).load(run)
    assert splits["train"].pairs == (
        (
            Document([1, 2, 3, 4, 0], [False, False, True, True, True], 4),
            Document([1, 2, 5, 0], [False, False, True, True], 4),
        ),
    )
    assert why(run) == ["a pair of 202 tokens; at most 96 are read (data.length)"]
    assert splits["test"] == Sentences().load(run)["test"]
    assert splits["train"].classes == Sentences.classes
    chosen = Chosen(pairs=StagePairs(stage="made", base=Sentences())).load(run)
    assert chosen["train"].rows[0][0].tokens == [1, 2, 3, 4, 0]


def test_a_stage_without_pairs_says_so(tmp_path: Path):
    run = written(tmp_path, [])
    with pytest.raises(RunError, match="made no pair: no question has a right and a wrong answer"):
        StagePairs(stage="made", base=Sentences()).load(run)
