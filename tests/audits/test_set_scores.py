"""How a model orders scored answers: by hand, against loops, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from language import run_of
from preferences import STUDENT, pairs
from stillhouse.audits.candidates import SetScores
from stillhouse.core.run import RunError
from stillhouse.data.candidates import CandidateSource
from stillhouse.data.toys import Sentences


class Given:
    """Sets as data, the same in every split."""

    def __init__(self, sets: Any):
        self.sets = sets

    def load(self, run: Any) -> Any:
        return {"test": CandidateSource(self.sets, 64, pairs().classes)}


def judged(folder: Path, sets: Any, **settings: Any) -> tuple[dict[str, float], Any]:
    run = run_of(folder, STUDENT, data=Sentences())
    torch.manual_seed(2)
    student = STUDENT.build(run).eval()
    subjects: Any = SimpleNamespace(names=("train", "start"), load=lambda name: student)
    found = list(SetScores(data=Given(sets), versus=("start",), **settings)(run, subjects))
    assert {f.value for f in found if f.versus == "start"} == {0.0}  # the same model
    return {f.name: f.value for f in found if f.versus is None and f.subject == "train"}, student


@pytest.mark.parametrize("batch", [1, 4])
def test_orders_are_those_of_loops(tmp_path: Path, batch: int):
    (a, b), (c, d), (e, f), (g, h) = pairs().pairs
    sets = (((a, b, c, d), (1.0, 0.0, 0.0, 0.5)), ((e, f, g), (0.2, 0.9, -1.0)), ((h, a), (0.0, 1.0)))
    found, student = judged(tmp_path, sets, batch=batch)
    ranked, first = [], []
    for documents, truth in sets:
        s = []
        for document in documents:
            z = student(torch.tensor([document.tokens])).dense()[0].detach().log_softmax(-1)
            counted = [float(z[t - 1, document.tokens[t]]) for t in range(1, len(document.tokens)) if document.counts[t]]
            s.append(sum(counted) / len(counted))
        above = [(i, j) for i in range(len(s)) for j in range(len(s)) if truth[i] > truth[j]]
        ranked.append(sum(s[i] > s[j] for i, j in above) / len(above))
        first.append(truth[s.index(max(s))] == max(truth))
    assert found["ranked"] == pytest.approx(sum(ranked) / 3) and found["best_first"] == pytest.approx(sum(first) / 3)
    turned = tuple((documents, tuple(-x for x in truth)) for documents, truth in sets)
    assert judged(tmp_path / "turned", turned)[0]["ranked"] == pytest.approx(1 - found["ranked"])


def test_a_split_without_sets_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="no sets of scored answers"):
        judged(tmp_path, ())
