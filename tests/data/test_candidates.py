"""Sets of scored answers: what a user's file becomes and why rows are lost; what a model of the run writes; taste."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of, write_jsonl
from stillhouse.core.run import RunError
from stillhouse.core.stage import execute
from stillhouse.data.candidates import Best, Candidates, CandidateSource, Drafts, StageCandidates
from stillhouse.data.pairs import StagePairs
from stillhouse.data.tastes import Tastes, likes
from stillhouse.data.tokens import Document
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher


def document(tokens: list[int], prompt: int, example: int) -> Document:
    return Document(tokens, [False] * prompt + [True] * (len(tokens) - prompt), example)


def test_a_batch_holds_sets_of_unequal_size_one_behind_the_other():
    sets = (
        ((document([1, 2, 3], 1, 0), document([1, 4], 1, 0)), (0.5, 2.0)),
        ((document([5, 6], 1, 1), document([5, 7, 8, 9], 1, 1), document([5, 8], 1, 1)), (1.0, 0.0, 0.0)),
    )
    source = CandidateSource(sets, 8, 10)
    batch = source.batch([1, 0], 0)
    assert batch["sizes"] == [3, 2] and batch["scores"].tolist() == [1.0, 0.0, 0.0, 0.5, 2.0]
    assert batch["inputs"]["tokens"][:, 0].tolist() == [5, 5, 5, 1, 1]
    assert batch["weight"].sum(-1).tolist() == [1.0, 3.0, 1.0, 2.0, 1.0]
    assert source.tokens == 3 + 2 + 2 + 4 + 2 and len(source) == 2
    assert sorted(d.tokens for row in source.best().rows for d in row) == [[1, 4], [5, 6]]


GOOD = [{"prompt": f"what is {i}?", "answers": [f"it is {i}", "no", "maybe"], "scores": [1, 0, 0.5]} for i in range(30)]


def test_a_users_file_is_read_and_every_lost_row_has_its_reason(tmp_path: Path, folders: Folders):
    bad = [
        {"prompt": "a", "answers": ["x", "y"], "scores": [1]},
        {"prompt": "b", "answers": ["x", "y"], "scores": [1, 1]},
        {"prompt": "c", "answers": ["x", ""], "scores": [1, 0]},
        {"prompt": "d", "answers": ["x", "y"], "scores": [1, "?"]},
        {"prompt": "e", "answers": "x", "scores": [1, 0]},
        {"prompt": "", "answers": ["x", "y"], "scores": [1, 0]},
        {"answers": ["x", "y"], "scores": [1, 0]},
        {"prompt": "f", "scores": [1, 0]},
        {"prompt": "what is 3?", "answers": ["x", "y"], "scores": [1, 0]},
        {"prompt": "long", "answers": ["x", "y " * 80], "scores": [1, 0]},
    ]
    path = write_jsonl(tmp_path / "sets.jsonl", [*GOOD, *bad])
    run = run_of(tmp_path / "run", HubLM(path=str(folders.student)))
    sources = Candidates(path=str(path), length=64, valid=0.1, test=0.1).load(run)
    assert [len(sources[name]) for name in ("train", "valid", "test")] in ([24, 3, 3], [23, 4, 3], [23, 3, 4])
    reasons = [line["why"] for line in run.read("rejects.jsonl")]
    expected = ("2 answers and 1 scores", "same score", "is empty or no text", "finite", "is no list", "'prompt' is empty",
                "no column 'prompt'", "no column 'answers'", "same prompt again", "at most 64")  # fmt: skip
    assert len(reasons) == len(bad) and all(any(part in why for why in reasons) for part in expected), reasons
    tokenizer = run.recipe.student.tokenizer(run)
    batch = sources["train"].batch([0], 0)
    counted = [t for t, w in zip(batch["labels"][0].tolist(), batch["weight"][0].tolist(), strict=True) if w]
    assert tokenizer.decode(counted).startswith("it is ") and counted[-1] == tokenizer.eos_token_id


def test_of_a_conversation_only_the_last_answer_counts(tmp_path: Path, folders: Folders):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "?"}]
    rows = [{"prompt": [*turns[:-1], {"role": "user", "content": str(i)}], "answers": ["a", "bb"], "scores": [0, 1]}
            for i in range(5)]  # fmt: skip
    run = run_of(tmp_path / "run", HubLM(path=str(folders.student)))
    found = Candidates(path=str(write_jsonl(tmp_path / "x.jsonl", rows)), valid=0.2, test=0.2).load(run)["train"]
    tokenizer = run.recipe.student.tokenizer(run)
    for documents, _ in found.sets:
        for d, text in zip(documents, ("a", "bb"), strict=True):
            assert tokenizer.decode([t for t, c in zip(d.tokens, d.counts, strict=True) if c]) == f"{text}<|end|>"


def test_a_file_without_a_set_is_refused(tmp_path: Path, folders: Folders):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "answers": ["x", "y"], "scores": [1, 1]}])
    with pytest.raises(RunError, match="all 2 answers have the same score"):
        Candidates(path=str(path)).load(run_of(tmp_path / "run", HubLM(path=str(folders.student))))


def written(folder: Path, **settings: Any) -> Any:
    """A run whose untrained student has written the sets."""
    tasks = Tastes(size=1, train=3, valid=1, test=1)
    stage = Drafts(data=tasks, each=60, sampling=Sampling(max_new=3), **settings)
    run = run_of(folder, TinyLM(width=16), data=tasks, teacher=ModuleTeacher(spec=TinyLM(width=16)), drafts=stage)
    execute(run.recipe, run)
    return run, StageCandidates(stage="drafts", base=tasks)


def test_drafts_hold_sets_and_every_pair_of_them(tmp_path: Path):
    run, spec = written(tmp_path)
    source = run.sources(spec)["train"]
    pairs = StagePairs(stage="drafts", base=spec.base).load(run)["train"]
    tasks = spec.base
    expected = 0
    for documents, scores in source.sets:
        answers = [d.tokens[1:] for d in documents]
        assert list(scores) == [tasks.verify(run, "train", documents[0].example, a) for a in answers]
        expected += sum(
            a > b and x != y for x, a in zip(answers, scores, strict=True) for y, b in zip(answers, scores, strict=True)
        )
    assert len(pairs) == expected > 0 and run.done("drafts")["pairs"] == expected
    text = run.sources(Best(sets=spec))["train"]
    for row in text.rows:
        for d in row:
            assert tasks.verify(run, "train", d.example, d.tokens[1:]) == 1.0


def test_a_share_of_the_verdicts_is_turned_round_the_same_for_everybody(tmp_path: Path):
    (clean, spec), (noisy, _), (again, _) = (written(tmp_path / str(i), mistaken=m) for i, m in enumerate((0.0, 0.4, 0.4)))

    def lines(run: Any) -> dict[int, Any]:
        found = (run.path("drafts") / "train.jsonl").read_text().splitlines()
        return {line["example"]: line for line in map(json.loads, found)}

    assert lines(noisy) == lines(again)
    turned = total = 0
    for example, line in lines(noisy).items():
        right = [spec.base.verify(clean, "train", example, a) for a in line["answers"]]
        turned += sum(a != b for a, b in zip(right, line["scores"], strict=True))
        total += len(right)
    assert total >= 120 and 0.25 < turned / total < 0.55 and noisy.done("drafts")["turned"] == turned


def test_the_teachers_own_log_probabilities_can_be_the_scores(tmp_path: Path):
    run, spec = written(tmp_path, scored="teacher")
    source = run.sources(spec)["train"]
    teacher: Any = run.teacher
    for documents, scores in source.sets:
        for d, score in list(zip(documents, scores, strict=True))[:5]:
            logp = teacher.module(torch.tensor([d.tokens])).dense()[0].double().log_softmax(-1)
            assert sum(float(logp[t - 1, d.tokens[t]]) for t in range(1, len(d.tokens))) == pytest.approx(score, abs=1e-4)


def test_drafts_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="two answers"):
        Drafts(data=Tastes(), each=1)


def test_taste_is_a_fixed_table_and_blind_letters_are_right_by_chance(tmp_path: Path):
    run = run_of(tmp_path, TinyLM(width=16))
    tasks = Tastes(train=2000)
    found = tasks.tasks(run)
    questions = [t.question for split in found.values() for t in split]
    assert len(questions) == len(set(questions)) == 3300
    assert [t.question for t in Tastes(train=100).tasks(run)["test"]] == [t.question for t in found["test"]]
    assert all(len(set(likes(d))) == 4 for d in "0123456789")
    right = sum(tasks.score(t, t.solution) for t in found["train"]) / 2000
    assert abs(right - 0.5) < 0.02
    task = found["train"][0]
    liked = "".join(random.Random(1).choice(likes(d)) for d in task.question)
    assert tasks.score(task, liked) == 1.0 and tasks.score(task, liked[:3]) == 0.0
    missed = next(a for a in "abcdefgh" if a not in likes(task.question[0]))
    assert tasks.score(task, missed + liked[1:]) == 0.75 and tasks.score(task, "abcz") == 0.0
    with pytest.raises(RunError, match="ask for half"):
        Tastes(size=2).tasks(run)
