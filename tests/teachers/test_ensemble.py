"""Several teachers' mean probability."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from logit_toys import Said, inp
from stillhouse.core.run import Run, RunError
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.teachers.ensemble import Averaged, Ensemble
from stillhouse.teachers.module import Frozen

A, B = inp((4, 6), 0.731, 3.0), inp((4, 6), 1.234, 3.0)
BATCH = {"inputs": torch.arange(4), "labels": torch.zeros(4, dtype=torch.long)}
WANT = frozenset({"logits"})


def test_it_says_the_mean_probability():
    both = Averaged({"a": Frozen(Said(A)), "b": Frozen(Said(B))})
    said = both(BATCH, WANT).need("logits")
    assert torch.allclose(said.exp(), (A.softmax(-1) + B.softmax(-1)) / 2, rtol=1e-12)
    assert torch.allclose(said.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    assert not said.requires_grad and set(both.identity()["members"]) == {"a", "b"}


def test_large_logits_and_bfloat16_stay_finite():
    both = Averaged({"a": Frozen(Said((A * 1e4).bfloat16())), "b": Frozen(Said((B * 1e4).bfloat16()))})
    said = both(BATCH, WANT).need("logits")
    assert said.dtype == torch.float32 and said.isfinite().all()


@dataclass(frozen=True)
class Silent:
    gives: frozenset[str] = frozenset({"text"})

    def build(self, run: Run) -> Silent:
        return self


def test_members_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(RunError, match="a 6, b 5"):
        Averaged({"a": Frozen(Said(A)), "b": Frozen(Said(B[:, :5]))})(BATCH, WANT)
    with pytest.raises(TeacherMismatch, match="'quiet'"):
        Ensemble(members={"quiet": Silent()}).build(Run(tmp_path, device=torch.device("cpu")))
    with pytest.raises(ValueError, match="at least one"):
        Ensemble(members={})
