"""Collapse and dip on curves made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from language import run_of
from stillhouse.audits.collapse import Collapse, dipped, shortened, smooth
from stillhouse.core.report import Figure
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects


def test_the_parts() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5] and smooth([1, 2], 5) == [1.5] and smooth([1, 2], 1) == [1, 2]
    assert shortened([10, 9, 4, 20] + [1] * 36, 0.1) == pytest.approx(0.6)  # what comes after the early steps is not early
    assert shortened([10, 11, 12], 0.1) == 0 and shortened([10, 12], 1.0) == 0
    assert dipped([0.5, 0.2, 0.3, 0.5, 0.9], 0.8) == (pytest.approx(0.3), 3)
    assert dipped([0.5, 0.2, 0.3, 0.4, 0.4], 0.8) == (pytest.approx(0.3), 5)  # it never came back
    assert dipped([0.1, 0.2, 0.3], 1.0) == (0.0, 0)


def test_it_reads_what_the_stage_logged(tmp_path: Path) -> None:
    run = run_of(tmp_path, None)
    run.stage = "train"
    for step in range(20):
        run.log(step, {"student/answer_tokens": 5.0 if step == 1 else 20.0, "student/reward": -1.0 if step == 3 else 0.5})
    run.stage = "other"
    run.log(0, {"student/answer_tokens": 1.0})
    found = list(Collapse(window=1)(run, Subjects(run, ())))
    values = {f.name: (f.value, f.subject) for f in found if not isinstance(f, Figure)}
    assert values == {
        "length_drop": (0.75, "train"), "collapsed": (1.0, "train"), "reward_dip": (1.5, "train"),
        "recovery_steps": (4.0, "train"),
    }  # fmt: skip
    figures = [f for f in found if isinstance(f, Figure)]
    assert len(figures) == 2 and figures[0].series["train"][1] == (1.0, 5.0)
    with pytest.raises(RunError, match="logged no 'student/reward'"):
        list(Collapse(stage="other")(run, Subjects(run, ())))
