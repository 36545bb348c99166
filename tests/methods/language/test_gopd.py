"""G-OPD: the reward of every token, independence of the reference at scale 1, where references come from, other data."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chains import SAMPLING, SPEC, answers_of, logps, slopes_agree, splits_alike, warm
from stillhouse.core.run import RunError
from stillhouse.methods.language.gopd import GOPD
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import Frozen, ModuleTeacher
from toylanguage import toy, update

torch.set_num_threads(1)
OTHER = ModuleTeacher(spec=TinyLM(width=16, depth=2))


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25, 2.0])
def test_the_loss_token_by_token(tmp_path: Path, scale: float) -> None:
    """Further steps on the same answers too, with the clip at work."""
    run, student, batch = warm(tmp_path)
    teacher, before = run.teacher.module, copy.deepcopy(student)
    method = GOPD(scale=scale, inner=3, low=0.1, high=0.3, sampling=SAMPLING)
    state = method.setup(student, run)
    assert ("reference" in dict(state.named_children())) == (scale != 1.0) and set(state.groups()) == {"student"}
    groups = answers_of(run, student, 4, 1)
    clips = 0
    for made in method.step(state, batch, run):
        total, tokens, apart = torch.zeros((), dtype=torch.float64), 0, 0.0
        for ((prompt, answer, _),) in groups:
            now, old = logps(student, prompt, answer), logps(before, prompt, answer).detach()
            p = logps(teacher, prompt, answer).detach()
            a = scale * (p - old) - (old - old)  # the reference is the student before training, who wrote the answers
            r = (now - old).exp()
            total = total - torch.minimum(r * a, r.clamp(0.9, 1.3) * a).sum()
            tokens, apart = tokens + len(answer), apart + float((old - p).sum())
            clips += int(((r < 0.9) & (a < 0) | (r > 1.3) & (a > 0)).sum())
        assert float(made.count) == tokens and made.loss.item() == pytest.approx(total.item(), rel=1e-4, abs=1e-4)
        assert float(made.logs["reverse_kl"]) == pytest.approx(apart, rel=1e-4)
        slopes = slopes_agree(made.loss, total, student)
        with torch.no_grad():
            for weight, slope in zip(student.parameters(), slopes, strict=True):
                weight.sub_(0.02 * slope)
    assert clips > 0


def with_reference(folder: Path, module: Any) -> tuple[Any, Any, Any]:
    run, student, batch = warm(folder)
    run.teachers = {"base": Frozen(module), "teacher": run.teacher}
    return run, student, batch


def test_at_scale_one_the_reference_does_not_matter(tmp_path: Path) -> None:
    gradients: dict[tuple[float, int], torch.Tensor] = {}
    for scale in (1.0, 1.25):
        for seed in (1, 2):
            torch.manual_seed(seed)
            reference = TinyLM(width=16, depth=2, vocabulary=SPEC.vocabulary or 19).build(None)  # type: ignore[arg-type]
            run, student, batch = with_reference(tmp_path / f"{scale}{seed}", reference)
            made = update(GOPD(scale=scale, reference="base", sampling=SAMPLING), student, batch, run)
            grads = torch.autograd.grad(made.loss, list(student.parameters()))
            gradients[scale, seed] = torch.cat([g.flatten() for g in grads])
    assert torch.equal(gradients[1.0, 1], gradients[1.0, 2]) and gradients[1.0, 1].abs().max() > 0
    assert not torch.allclose(gradients[1.25, 1], gradients[1.25, 2])
    run, student, batch = warm(tmp_path / "own")
    made = update(GOPD(scale=1.0, sampling=SAMPLING), student, batch, run)
    grads = torch.autograd.grad(made.loss, list(student.parameters()))
    assert torch.equal(torch.cat([g.flatten() for g in grads]), gradients[1.0, 1])


def test_a_named_reference_is_read(tmp_path: Path) -> None:
    """The student itself under another name gives what the student before training gives."""
    run, student, batch = warm(tmp_path / "a")
    own = update(GOPD(scale=1.5, sampling=SAMPLING), student, batch, run)
    run, student, batch = with_reference(tmp_path / "b", copy.deepcopy(student))
    named = update(GOPD(scale=1.5, reference="base", sampling=SAMPLING), student, batch, run)
    assert named.loss.item() == pytest.approx(own.loss.item(), rel=1e-6)


def test_a_student_who_is_its_teacher_has_nothing_to_learn_and_any_text_will_do(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    method = GOPD(scale=1.25, sampling=Sampling(temperature=1.0, max_new=6))
    assert update(method, student, batch, run).loss.item() != pytest.approx(0.0, abs=1e-3)
    run.teachers = {"teacher": Frozen(copy.deepcopy(student))}
    made = update(method, student, batch, run)
    slopes = torch.autograd.grad(made.loss, list(student.parameters()))
    assert made.loss.item() == pytest.approx(0.0, abs=1e-4) and max(float(g.abs().max()) for g in slopes) < 1e-4


def test_splitting_a_batch_changes_nothing(tmp_path: Path) -> None:
    splits_alike(tmp_path, GOPD(inner=2, sampling=SAMPLING))


def test_what_it_refuses(tmp_path: Path) -> None:
    for wrong in ({"scale": 0.0}, {"inner": 0}):
        with pytest.raises(ValueError, match="above 0"):
            GOPD(**wrong)
    with pytest.raises(ValueError, match="no sample"):
        GOPD(sampling=replace(SAMPLING, temperature=0.0))
    run, student, _ = warm(tmp_path)
    with pytest.raises(RunError, match=r"has teacher and train.method.reference is 'base'"):
        GOPD(reference="base").setup(student, run)
    run.teachers = {"a": run.teacher, "b": run.teacher}
    with pytest.raises(RunError, match="one teacher beside the reference"):
        GOPD().setup(student, run)
