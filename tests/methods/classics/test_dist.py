"""DIST against a reference value, numpy's correlations, and what correlation forgets."""

from __future__ import annotations

import numpy
import pytest
import torch

from logit_toys import CE, STUDENT, TEACHER, mean, only, taught
from stillhouse.methods.classics.dist import Dist

REFERENCE = 1.9957437955621509  # by mmrazor's DISTLoss, which is the authors': beta = gamma = T = 1


def test_it_is_the_reference_value(tmp_path):
    made, _ = only(Dist(beta=1.0, gamma=1.0), taught(tmp_path))
    assert mean(made) == pytest.approx(CE + REFERENCE, rel=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_part_is_one_minus_the_mean_correlation(tmp_path, temperature):
    q, p = ((z / temperature).softmax(-1).numpy() for z in (STUDENT, TEACHER))
    rows = 1 - numpy.mean([numpy.corrcoef(q[i], p[i])[0, 1] for i in range(8)])
    columns = 1 - numpy.mean([numpy.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(100)])
    run, square = taught(tmp_path), temperature**2
    made, _ = only(Dist(labels=0.0, beta=3.0, gamma=0.0, temperature=temperature), run)
    assert mean(made) == pytest.approx(3 * square * rows, rel=1e-5)
    made, _ = only(Dist(labels=0.0, beta=0.0, gamma=2.0, temperature=temperature), run)
    assert mean(made) == pytest.approx(2 * square * columns, rel=1e-3)  # 1e-8 beside small columns


def test_a_less_sure_student_that_prefers_alike_has_nothing_to_learn(tmp_path):
    """q = (p + uniform) / 2 correlates wholly with p, in rows and in columns; KL does not vanish there."""
    p = TEACHER.softmax(-1)
    made, _ = only(Dist(labels=0.0), taught(tmp_path), (0.5 * p + 0.005).log())
    assert abs(mean(made)) < 1e-4


def test_one_item_alone_has_no_column_to_compare(tmp_path):
    batch = {"inputs": torch.tensor([0]), "labels": torch.tensor([0])}
    made, student = only(Dist(labels=0.0, beta=0.0), taught(tmp_path), batch=batch)
    made.loss.backward()
    assert mean(made) == pytest.approx(2.0) and not student.logits.grad.any()


def test_the_equation_has_every_factor():
    assert Dist(temperature=4.0).equation == "1 CE(y, q) + 32 (1 - r of classes at T=4) + 32 (1 - r of items at T=4)"
