"""RefineX: programs out of rewritings, what is filtered and how well, and a user's own corpus from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import write_jsonl
from stillhouse.audits.refined import RefinedTexts, truth_of
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Audit, execute
from stillhouse.data.noisy import NoisyLibrary
from stillhouse.methods.synthesis.refinex import PROMPT, RULES, Programs, recipe
from stillhouse.synth.deletions import execute as followed
from stillhouse.synth.deletions import is_subsequence
from stillhouse.synth.refining import Texts
from stillhouse.synth.scripts.cleaner import Cleaner
from stillhouse.synth.steps import given
from stillhouse.synth.synthesize import Synthesize, lost_rows, made_rows
from stillhouse.synth.table import Table
from synth.onestep import once, through, whys

DIRTY = "Title\nSome words.\nClick here!\nMore words of ### the text.\nMore words"
CLEAN = "Title\nSome words.\nMore words of the text.\nMore words"


def programmed(rewritten: str, folder: Path, text: str = DIRTY, **settings: Any) -> tuple[Any, str]:
    """(the row, "") or (None, why it was lost)."""
    kept, gone = once(Programs(**settings), [given({"text": text, "rewritten": rewritten})], folder)
    return (kept[0], "") if kept else (None, gone[0]["why"])


def test_deletions_become_a_program(tmp_path: Path) -> None:
    row, _ = programmed(CLEAN, tmp_path)
    assert row["program"] == 'remove_lines(3, 3)\nremove_str(4, "### ")' or row["took"] == CLEAN
    assert row["took"] == CLEAN and row["new"] == 0.0 and 0 < row["gone"] < 1
    assert followed(DIRTY, row["program"]).text == CLEAN


def test_what_the_expert_adds_and_rewords_never_gets_in(tmp_path: Path) -> None:
    said = CLEAN.replace("More words of", "More phrases of") + "\nBye."
    row, _ = programmed(said, tmp_path, most_new=0.5)
    assert row["took"] == CLEAN and row["new"] > 0  # "phrases" for "words" and the last line are left out
    row, why = programmed(said, tmp_path, most_new=0.1)
    assert row is None and why == "too much of the rewriting is new"


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_whatever_the_rewriting_says_a_subsequence_is_left(tmp_path: Path, unit: Any) -> None:
    import random

    rng, seen = random.Random(0), 0
    words = DIRTY.split(" ")
    for number in range(60):
        said = " ".join(w for w in [*words, "new", "sight"] if rng.random() < 0.8)
        row, why = programmed(said, tmp_path / str(number), unit=unit, most_new=1.0, most_gone=1.0)
        if row is None:
            assert why.startswith("no program")
        else:
            seen += 1
            assert is_subsequence(row["took"], DIRTY) and followed(DIRTY, row["program"]).text == row["took"]
    assert seen > 20


def test_what_cannot_be_trusted_is_lost(tmp_path: Path) -> None:
    assert programmed("Title", tmp_path / "a", most_gone=0.5)[1] == "too much of the text is gone"
    assert programmed("", tmp_path / "b")[1] == "nothing in column 'rewritten'"
    assert programmed("x", tmp_path / "c", text="")[1] == "nothing in column 'text'"
    joined = programmed("one two", tmp_path / "d", text="one\n two")[1]
    assert joined == "no program says what is gone: lines that stay would be joined"
    assert programmed(DIRTY, tmp_path / "e", untouched=0.0)[1] == "one of many with nothing to delete"
    assert programmed(DIRTY, tmp_path / "f")[0]["program"] == "keep_all()"
    with pytest.raises(RunError, match="a column 'rewritten'.*'rewriten'"):
        once(Programs(), [given({"text": "a", "rewriten": "a"})], tmp_path / "g")
    with pytest.raises(ValueError, match="shares"):
        Programs(most_new=2.0)


def test_no_row_vanishes_and_no_order_matters(tmp_path: Path) -> None:
    rows = [{"text": f"é line {i}\nClick\nend", "rewritten": f"é line {i}\nend" if i % 3 else "x y z w"} for i in range(9)]
    kept, gone = through(Programs(untouched=0.5), rows, tmp_path)
    assert len(kept) == 6 and len(whys(gone, "text")) == 3


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The data half of the smoke recipe with an expert that errs more often."""
    made = recipe("smoke")
    teacher = replace(made.teachers["teacher"], script=Cleaner(adds=0.3, rewords=0.2, fails=0.1))
    run = Run(tmp_path_factory.mktemp("refinex") / "run", device=torch.device("cpu"))
    stages = {"make": made.stages["make"].__class__(steps=made.stages["make"].steps)}
    execute(replace(made, teachers={"teacher": teacher}, stages=stages), run)
    return run


def test_the_filter_finds_what_the_expert_made_up(smoke: Run) -> None:
    """By the script's truth: most rewritings with a sentence of their own are lost, and few that have none."""
    kept = list(made_rows(smoke, "make"))
    lost = [row["row"] for row in lost_rows(smoke, "make") if row["_step"] == "programs"]
    assert len(kept) + len(lost) == 60
    bad = [row for row in (*kept, *lost) if row["_truth"]["added"]]
    assert len(bad) >= 8
    caught = sum(row["_truth"]["added"] for row in lost)
    assert caught / len(bad) > 0.6  # recall
    assert sum(row["_truth"]["added"] or row["_truth"]["reworded"] for row in lost) / len(lost) > 0.7  # precision
    assert all(is_subsequence(row["took"], row["text"]) for row in kept)


def test_programs_take_away_the_noise_and_nothing_else_where_the_expert_did(smoke: Run) -> None:
    rows = [row for row in made_rows(smoke, "make") if not any(row["_truth"].values())]
    assert len(rows) > 15 and all(row["took"] == row["clean"] for row in rows)
    assert any(row["program"] != "keep_all()" for row in rows)


def test_the_prompt_shows_the_text_alone(smoke: Run) -> None:
    import sqlite3

    asked = [
        json.loads(said) for (said,) in sqlite3.connect(smoke.folder / "requests.sqlite").execute("select asked from calls")
    ]
    words = " ".join(json.dumps(each) for each in asked)
    rows = list(made_rows(smoke, "make"))
    assert all(json.dumps(row["text"])[1:-1] in words for row in rows)
    known = [json.dumps(row["clean"])[1:-1] for row in rows if row["clean"] not in row["text"]]
    assert known and not any(clean in words for clean in known)  # what only a script may see is never sent
    assert "{{ text }}" in PROMPT


def test_the_truth_of_noise() -> None:
    kept = truth_of(DIRTY, CLEAN)
    assert "".join(c for c, keep in zip(DIRTY, kept, strict=True) if keep) == CLEAN
    twice = "a line\nanother\na line"
    assert "".join(map(str, map(int, truth_of(twice, "a line\nanother")))) == "1" * 14 + "0" * 7


def test_the_audit_counts_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refiner that takes away the first line: precision and recall by hand."""
    rows = [{"text": "ab cd\nef\ngh", "clean": "ef\ngh"}, {"text": "xyz\nok\nspam", "clean": "xyz\nok"}]

    class Two:
        def rows(self, run: Run) -> Any:
            return {"test": rows}

    monkeypatch.setattr("stillhouse.audits.refined.refine", lambda *args, **kwargs: ["remove_lines(1, 1)"] * 2)
    run = Run(tmp_path / "run")
    run.recipe = Recipe(id="x", data=Two(), stages={})
    subjects: Any = type("S", (), {"names": ("refiner",), "load": lambda self, name: None})()
    found = {f.name: f.value for f in RefinedTexts(draws=50)(run, subjects)}
    assert found["deletion_precision"] == pytest.approx(4 / 7)  # abcd is noise, xyz is not
    assert found["deletion_recall"] == pytest.approx(4 / 8)  # spam stays
    assert found["deletion_f1"] == pytest.approx(2 * 4 / (2 * 4 + 3 + 4))
    assert found["noise_before"] == pytest.approx(8 / 17) and found["noise_after"] == pytest.approx(4 / 10)
    assert (found["new_word_rate"], found["untouched"], found["emptied"]) == (0.0, 0.0, 0.0)
    rows[1] = {"text": "no truth"}
    assert "deletion_recall" not in {f.name for f in RefinedTexts(draws=50)(run, subjects)}


def test_the_rules_leave_out_whole_documents(tmp_path: Path) -> None:
    rows = [row for row in NoisyLibrary(train=150, valid=5, test=5).rows(Run(tmp_path / "r"))["train"]]
    kept, _ = once(RULES, [given(row) for row in rows], tmp_path)
    clean = sum(row["text"] == row["clean"] for row in kept) / len(kept)
    assert clean > 1.5 * sum(row["text"] == row["clean"] for row in rows) / len(rows)
    assert 0.1 < len(kept) / len(rows) < 0.7


def test_own_documents_from_the_command_line(tmp_path: Path, still: Callable[..., Any], folders: Any) -> None:
    """A user's corpus and language model; the expert is a script, as a server would be."""
    rows = NoisyLibrary(train=120, valid=5, test=5).rows(Run(tmp_path / "r"))["train"]
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"], "clean": row["clean"]} for row in rows])
    script = "{use: teachers.scripted.Scripted, script: {use: synth.scripts.cleaner.Cleaner}}"
    result = still(
        "run", "refinex", "--scale", "paper", "--set", f"student.path={folders.student}",
        "--set", "data.path=corpus.jsonl", "--set", "data.length=64", "--set", "data.test=0.1",
        "--set", "stages.make.data={use: synth.source.File, path: corpus.jsonl}", "--set", f"teachers.teacher={script}",
        "--set", "make.steps.some.total=40", "--set", "refiner.steps=20", "--set", "refiner.batch=8",
        "--set", "refiner.student.width=16", "--set", "refiner.data.length=200",
        "--set", "train.steps=4", "--set", "train.batch=4", "--set", "stages.alone=null", "--set",
        "audit.subjects=[start, train]", "--set", "audit.checks=[{use: audits.language.HeldOutText, teacher: null}]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    refined = list(Table(folder / "artifacts" / "refine" / "data" / "rows.parquet"))
    assert len(refined) > 80 and all(is_subsequence(row["text"], row["was"]) for row in refined)
    assert all(followed(row["was"], row["program"]).text == row["text"] for row in refined)
    found = json.loads((folder / "artifacts" / "audit_refiner" / "data" / "value.json").read_text())
    told = {f["name"]: f["value"] for f in found}
    assert told["new_word_rate"] == 0.0 and "deletion_recall" not in told  # nobody knows the truth about a user's test texts
    assert still("run", str(folder)).exit_code == 0


def test_a_refiner_is_named_rightly(tmp_path: Path) -> None:
    made = recipe("smoke")
    stages = {"refine": replace(made.stages["refine"], refiner="refinery")}
    with pytest.raises(RunError, match="no training stage 'refinery'"):
        execute(replace(made, stages=stages), Run(tmp_path / "run"))
    assert isinstance(made.stages["audit"], Audit) and isinstance(made.stages["make"], Synthesize)
    assert made.stages["train"].data == Texts(stage="refine")
