"""Logit standardisation against a reference value, and what it forgets: the range of the logits."""

from __future__ import annotations

import pytest
import torch

from logit_toys import CE, LABELS, STUDENT, TEACHER, mean, only, taught
from stillhouse.methods.classics.dkd import DKD
from stillhouse.methods.classics.logit_std import LogitStd

REFERENCE = 0.9316672319908306  # by logit-standardization-KD's kd_loss at T = 2, T² included, its weight of 9 not


def test_it_is_the_authors_number(tmp_path):
    made, _ = only(LogitStd(), taught(tmp_path))
    assert mean(made) == pytest.approx(0.1 * CE + 9 * REFERENCE, rel=1e-9)


def test_the_range_of_the_logits_does_not_matter(tmp_path):
    """A student with the teacher's relations at a third of its range has nothing left to learn."""
    made, student = only(LogitStd(labels=0.0), taught(tmp_path), TEACHER / 3 + 1)
    made.loss.backward()
    assert abs(mean(made)) < 1e-10 and student.logits.grad.abs().max() < 1e-6
    plain, _ = only(LogitStd(labels=0.0), taught(tmp_path))
    scaled, _ = only(LogitStd(labels=0.0), taught(tmp_path, 50 * TEACHER), 0.1 * STUDENT)
    assert mean(scaled) == pytest.approx(mean(plain), rel=1e-5)


def test_on_top_of_dkd_it_is_dkd_of_the_standardised(tmp_path):
    def standard(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)

    made, _ = only(LogitStd(labels=0.0, weight=9.0, beta=8.0), taught(tmp_path))
    dkd, _ = only(
        DKD(labels=0.0, alpha=9.0, beta=72.0, temperature=2.0), taught(tmp_path, standard(TEACHER)), standard(STUDENT)
    )
    assert mean(made) == pytest.approx(mean(dkd), rel=1e-9)


def test_a_head_of_zeros_can_begin(tmp_path):
    made, student = only(LogitStd(labels=0.0, beta=8.0), taught(tmp_path), torch.zeros(8, 100))
    made.loss.backward()
    assert student.logits.grad.isfinite().all() and 0 < student.logits.grad.abs().max() < 100


def test_the_labels_see_the_logits_as_they_are(tmp_path):
    made, _ = only(LogitStd(labels=1.0, weight=0.0), taught(tmp_path), 2 * STUDENT)
    assert mean(made) == pytest.approx(float(torch.nn.functional.cross_entropy(2 * STUDENT, LABELS)), rel=1e-9)


def test_the_equation_has_every_factor():
    assert LogitStd().equation == "0.1 CE(y, q) + 36 KL(p ‖ q) of standardised logits at T=2"
    assert "288 NCKD" in LogitStd(beta=8.0).equation
