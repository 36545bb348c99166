"""Which of two answers is likelier: against loops, paired with another subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of, write_jsonl
from stillhouse.audits.pairs import PairScores
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects, Train
from stillhouse.data.pairs import StagePairs
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import TinyLM

PAIRS = StagePairs(stage="made", base=Sentences())


def judged(tmp_path: Path, **settings: Any) -> tuple[Any, Any]:
    student = TinyLM(width=8, depth=1)
    run = run_of(tmp_path, student, data=Sentences(), train=Train(method=Supervised(), steps=1, batch=1))
    torch.manual_seed(0)
    lines = [
        {"example": i, "prompt": [3, 4], "chosen": [5 + i % 3] * (1 + i % 4), "rejected": [9 + i, 0]} for i in range(11)
    ]
    with run.artifact("made") as folder:
        (folder / "pairs").mkdir()
        for split in ("train", "test"):
            write_jsonl(folder / "pairs" / f"{split}.jsonl", lines)
    module = student.build(run)
    with torch.no_grad():
        module.norm.weight.mul_(3.0)
    with run.artifact("train") as folder:
        student.save(module, folder, run)
    check = PairScores(**({"data": PAIRS, "versus": ("start",), "batch": 4, "draws": 200} | settings))
    return run, check


@torch.no_grad()
def loops(run: Any, name: str) -> dict[str, float]:
    """Means over pairs."""
    module, sums = Subjects(run, ()).load(name), {"preferred": 0.0, "chosen_logp": 0.0, "rejected_logp": 0.0}
    pairs = run.sources(PAIRS)["test"].pairs
    for sides in pairs:
        found = []
        for document in sides:
            logp = module(torch.tensor([document.tokens])).dense()[0].double().log_softmax(-1)
            picked = [logp[t - 1, document.tokens[t]] for t in range(len(document.tokens)) if document.counts[t]]
            found.append(float(torch.stack(picked).mean()))
        sums["preferred"] += found[0] > found[1]
        sums["chosen_logp"] += found[0]
        sums["rejected_logp"] += found[1]
    return {name: value / len(pairs) for name, value in sums.items()}


def test_the_numbers_are_right(tmp_path: Path):
    run, check = judged(tmp_path)
    findings = list(check(run, Subjects(run, ("start", "train"))))
    expected = {name: loops(run, name) for name in ("start", "train")}
    for finding in findings:
        value = expected[finding.subject][finding.name]
        if finding.versus:
            value -= expected[finding.versus][finding.name]
        assert finding.value == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert finding.n == 11 and finding.over == "pairs" and finding.split == "test"
    assert len(findings) == 9
    assert {f.name: f.better for f in findings} == {
        "preferred": "higher", "chosen_logp": "higher", "rejected_logp": "neither",
    }  # fmt: skip


def test_text_is_refused(tmp_path: Path):
    run, check = judged(tmp_path, data=None)
    with pytest.raises(RunError, match="the test split holds no pairs"):
        list(check(run, Subjects(run, ("start",))))
