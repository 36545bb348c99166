"""Checks on other data than the recipe's, the share of rows that came out, and the form of answers, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.audits.coverage import Coverage
from stillhouse.audits.elsewhere import Elsewhere
from stillhouse.audits.form import Form
from stillhouse.core.recipe import Recipe
from stillhouse.core.report import Figure, Finding
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.tasks import Chain
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.toys import TinyLM
from stillhouse.synth.synthesize import ACCOUNT, ROWS
from stillhouse.synth.table import write

CHAIN = Chain(ops=(1,), base=5, train=8, valid=6, test=12)


@dataclass(frozen=True, kw_only=True)
class Told:
    """Says which data it sees; fails on request."""

    split: str = "test"
    fails: bool = False

    def __call__(self, run: Run, subjects: Any) -> Iterator[Finding | Figure]:
        if self.fails:
            raise RunError("no")
        yield Finding(name="tasks", value=len(run.recipe.data.tasks(run)[self.split]), subject="start", split=self.split)
        yield Figure(title="t", x="x", y="y", series={})


def run_of(tmp_path: Path, data: Any = CHAIN) -> Run:
    run = Run(tmp_path / "run")
    run.recipe = Recipe(id="mine", student=TinyLM(), data=data, stages={})
    return run


def test_elsewhere_lends_other_data_and_gives_them_back(tmp_path: Path) -> None:
    run, other = run_of(tmp_path), replace(CHAIN, test=7, valid=3)
    for split, count in (("test", 7), ("valid", 3)):
        number, figure = Elsewhere(check=Told(), data=other, name="near", split=split)(run, None)  # type: ignore[arg-type]
        assert isinstance(number, Finding) and isinstance(figure, Figure)
        assert (number.name, number.value, number.split) == ("near_tasks", count, split)
        assert run.recipe.data is CHAIN
    with pytest.raises(RunError):
        list(Elsewhere(check=Told(fails=True), data=other, name="near")(run, None))  # type: ignore[arg-type]
    assert run.recipe.data is CHAIN


def test_coverage_counts_lost_rows_too(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    rows = [
        {"_id": str(i), "solved": int(i < 6), "tries": 1 + i // 3} for i in range(8)
    ]  # of 20; 3 at once, 3 at the second
    for stage, found in (("make", rows), ("none", rows[6:])):
        with run.artifact(stage) as folder:
            write(folder / ROWS, found)
            (folder / ACCOUNT).write_text(json.dumps({"steps": [{"step": "given", "made": 20}]}))
    made, none, figure = Coverage(stages=("make", "none"), tries="tries")(run, None)  # type: ignore[arg-type]
    assert isinstance(made, Finding) and isinstance(none, Finding) and isinstance(figure, Figure)
    assert (made.value, made.n, made.subject, none.value) == (pytest.approx(0.3), 20, "make", 0.0)
    assert made.low is not None and made.high is not None and 0.05 < made.low < 0.3 < made.high < 0.6
    assert figure.series == {"make": [(1, pytest.approx(0.15)), (2, pytest.approx(0.3))]}


def test_the_form_by_hand(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    subjects, coder = Subjects(run, ("start",)), CHAIN.coder(run)
    sampling = Sampling(max_new=6)
    torch.manual_seed(0)
    prompts = CHAIN.prompts(run)["test"]
    said = generate(subjects.load("start"), prompts, sampling, seed=run.seed, ends=CHAIN.ends(run))
    texts = [coder.text(answer) for answer in said]
    assert None in texts and any(text is not None for text in texts)
    (any_,) = Form(pattern=".*", sampling=sampling)(run, subjects)
    (some,) = Form(pattern=r"[^\d]*", sampling=sampling, count=5)(run, subjects)
    assert any_.value == sum(text is not None for text in texts) / 12 and any_.n == 12
    assert some.value == sum(text is not None and not any(map(str.isdigit, text)) for text in texts[:5]) / 5
    with pytest.raises(ValueError, match="regular expression"):
        Form(pattern="(")
