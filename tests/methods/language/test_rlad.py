"""RLAD: GRPO at alpha 1, the anchored ratio written out, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chains import SAMPLING, SPEC, answers_of, logps, slopes_agree, splits_alike, warm
from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.methods.language.rlad import RLAD
from stillhouse.models.generate import Sampling
from toylanguage import update

torch.set_num_threads(1)


@pytest.mark.parametrize("average", ["answer", "token"])
def test_alpha_one_is_grpo_to_the_bit(tmp_path: Path, average: Any) -> None:
    """Whole steps, several on the same answers: the losses, the gradients, the counts."""
    shared: dict[str, Any] = {"group": 6, "inner": 3, "kl": 0.1, "average": average, "sampling": SAMPLING}
    found: list[Any] = []
    for method in (RLAD(alpha=1.0, **shared), GRPO(**shared)):
        run, student, batch = warm(tmp_path / type(method).__name__)
        for made in method.step(method.setup(student, run), batch, run):
            slopes = torch.autograd.grad(made.loss, list(student.parameters()))
            found.append((type(method), made.loss.detach(), made.count, slopes))
            with torch.no_grad():
                for p, slope in zip(student.parameters(), slopes, strict=True):
                    p.sub_(0.5 * slope / made.count)
    mine, theirs = ([x for x in found if x[0] is kind] for kind in (RLAD, GRPO))
    assert len(mine) == len(theirs) == 3
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        assert all(torch.equal(x, y) for x, y in zip(a[3], b[3], strict=True)) and a[3][0].abs().max() > 0


@pytest.mark.parametrize(("alpha", "teacher_kl"), [(0.5, 0.0), (0.0, 0.0), (0.8, 0.3), (1.0, 0.5)])
def test_the_loss_token_by_token(tmp_path: Path, alpha: float, teacher_kl: float) -> None:
    run, student, batch = warm(tmp_path)
    teacher = run.teacher.module
    with torch.no_grad():
        teacher.norm.weight.mul_(1.5)  # certain of what it says
    method = RLAD(alpha=alpha, teacher_kl=teacher_kl, group=6, low=0.03, high=0.05, sampling=SAMPLING)
    made = update(method, student, batch, run)
    total, held, spared = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for group in answers_of(run, student, 4, 6):
        rewards = torch.tensor([reward for *_, reward in group], dtype=torch.float64)
        for prompt, answer, reward in group:
            a = float((reward - rewards.mean()) / (rewards.std() + 1e-4))
            now, theirs = logps(student, prompt, answer), logps(teacher, prompt, answer).detach()
            for q, p in zip(now, theirs, strict=True):
                r = (q - q.detach()).exp() ** alpha * (q - p).exp() ** (1 - alpha)
                value = -torch.minimum(r * a, r.clamp(0.97, 1.05) * a)
                value = value + teacher_kl * ((p - q).exp() - (p - q) - 1)
                total = total + value / len(answer)
                held += float(a > 0 and r > 1.05) / len(answer)
                spared += float(a < 0 and r < 0.97) / len(answer)
    assert float(made.count) == 24 and made.loss.item() == pytest.approx(total.item(), rel=1e-4, abs=1e-4)
    slopes_agree(made.loss, total, student)
    assert float(made.logs["held_back"]) == pytest.approx(held, abs=1e-3)
    assert float(made.logs["spared"]) == pytest.approx(spared, abs=1e-3)
    assert alpha == 1.0 or held + spared > 0


def test_splitting_a_batch_changes_nothing(tmp_path: Path) -> None:
    splits_alike(tmp_path, RLAD(group=4, teacher_kl=0.1, kl=0.1, inner=2, sampling=SAMPLING))


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 0 to 1, not 1.5"):
        RLAD(alpha=1.5)
    for wrong in ({"group": 1}, {"inner": 0}, {"sampling": Sampling(temperature=0.0)}):
        with pytest.raises(ValueError, match="two different answers"):
            RLAD(**wrong)
    run = run_of(tmp_path, SPEC, data=Sentences())
    with pytest.raises(RunError, match="Sentences has no verifier"):
        RLAD().setup(SPEC.build(run), run)
