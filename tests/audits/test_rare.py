"""Average precision and F1 are scikit-learn's, also where texts are drawn again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.audits.rare import RareClass, average_precision, f1
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, execute
from stillhouse.methods.synthesis.harmaug import recipe

metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_scikit_learn(seed: int, ties: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(60, generator=draw, dtype=torch.float64)
    scores = (scores * 8).round() / 8 if ties else scores
    rare = torch.rand(60, generator=draw) < 0.2
    counts = torch.randint(0, 4, (7, 60), generator=draw).double()
    counts[0] = 1.0
    found, fs = average_precision(scores, rare, counts), f1(scores, rare, counts)
    for row, (ap, f) in zip(counts, zip(found, fs, strict=True), strict=True):
        drawn = row.long().numpy()
        y, s = rare.numpy().repeat(drawn), scores.numpy().repeat(drawn)
        assert float(ap) == pytest.approx(metrics.average_precision_score(y, s), abs=1e-12)
        assert float(f) == pytest.approx(metrics.f1_score(y, s > 0.5, zero_division=0.0), abs=1e-12)


def test_limits() -> None:
    scores, rare, one = torch.tensor([0.9, 0.8, 0.1]).double(), torch.tensor([True, True, False]), torch.ones(1, 3).double()
    assert float(average_precision(scores, rare, one)) == 1.0 and float(f1(scores, rare, one)) == 1.0
    assert float(average_precision(torch.zeros(3).double(), rare, one)) == pytest.approx(2 / 3)  # chance: the class's share
    assert float(f1(torch.zeros(3).double(), rare, one)) == 0.0
    assert average_precision(scores, ~rare, torch.tensor([[1.0, 1.0, 0.0]]).double()).isnan().all()


def test_the_findings(tmp_path: Path) -> None:
    made = recipe("smoke")
    run = Run(tmp_path / "run")
    execute(replace(made, stages={name: made.stages[name] for name in ("make", "train")}), run)
    subjects = Subjects(run, ("start", "train"))
    found = list(RareClass(label="mail", draws=200)(run, subjects))
    assert [(f.name, f.subject, f.versus) for f in found] == [
        (name, *who) for name in ("auprc", "f1") for who in (("start", None), ("train", None), ("train", "start"))
    ]
    source: Any = run.sources()["test"]
    with torch.no_grad():
        scores = subjects.load("train")(**source.batch(range(len(source)), 0)["inputs"]).double().softmax(-1)
    number = source.names.index("mail")
    truth = metrics.average_precision_score((source.labels == number).numpy(), scores[:, number].numpy())
    own: Any = found[1]
    assert own.value == pytest.approx(truth) and own.low < own.value < own.high
    assert found[2].value == pytest.approx(found[1].value - found[0].value)
    with pytest.raises(RunError, match="the class 'spam', and the data's classes are mail, other"):
        list(RareClass(label="spam")(run, subjects))
