"""DKD against reference values, its identity with Hinton's loss, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from logit_toys import CE, LABELS, STUDENT, TEACHER, mean, only, taught
from stillhouse.methods.classics.dkd import DKD

# Computed by mdistiller's dkd_loss (distillers/DKD.py): alpha 1, beta 8, T 4, and both its parts.
WHOLE, TARGET, OTHERS = 33.516550427352314, 0.03875911338484526, 4.184723914245934


def test_it_is_the_authors_number(tmp_path):
    run = taught(tmp_path)
    made, _ = only(DKD(), run)
    assert mean(made) == pytest.approx(CE + WHOLE, rel=1e-9)
    assert made.logs["dkd"].item() / 8 == pytest.approx(WHOLE, rel=1e-9)
    assert mean(only(DKD(labels=0.0, beta=0.0), run)[0]) == pytest.approx(TARGET, rel=1e-9)
    assert mean(only(DKD(labels=0.0, alpha=0.0, beta=1.0), run)[0]) == pytest.approx(OTHERS, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_the_teachers_doubt_for_beta_it_is_hintons_term(tmp_path, temperature):
    """Item by item: T² KL = T² (TCKD + (1 - p_y) NCKD)."""
    p, log_q = (TEACHER / temperature).softmax(-1), (STUDENT / temperature).log_softmax(-1)
    for i in range(8):
        batch = {"inputs": torch.tensor([i]), "labels": LABELS[i : i + 1]}
        doubt = 1 - float(p[i, LABELS[i]])
        made, _ = only(DKD(labels=0.0, beta=doubt, temperature=temperature), taught(tmp_path), batch=batch)
        kl = temperature**2 * F.kl_div(log_q[i], p[i], reduction="sum")
        assert mean(made) == pytest.approx(float(kl), rel=1e-9)


def test_a_sure_teacher_still_says_how_the_others_compare(tmp_path):
    """What suppresses soft targets: the gradient on the wrong classes does not shrink as the teacher gets surer."""
    found = []
    for sureness in (5.0, 50.0):
        teacher = TEACHER.scatter_add(-1, LABELS.unsqueeze(-1), torch.full((8, 1), sureness).double())
        made, student = only(DKD(labels=0.0, alpha=0.0, temperature=1.0), taught(tmp_path, teacher))
        made.loss.backward()
        found.append(student.logits.grad)
    assert torch.allclose(*found) and found[0].abs().max() > 0.1


def test_nothing_is_left_to_learn_from_a_teacher_that_says_the_same(tmp_path):
    made, student = only(DKD(labels=0.0), taught(tmp_path, STUDENT))
    made.loss.backward()
    assert abs(mean(made)) < 1e-12 and student.logits.grad.abs().max() < 1e-12


def test_the_equation_has_every_factor():
    assert DKD().equation == "1 CE(y, q) + 16 TCKD at T=4 + 128 NCKD at T=4"
    assert DKD(labels=0.0, warmup=0.1).equation.endswith("growing over 10% of the run")
