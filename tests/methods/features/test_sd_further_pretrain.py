"""Self-distilled further pre-training against its equation, and where its student begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masked_toys import BIG, SMALL, stood, total
from stillhouse.cli import launch
from stillhouse.core.run import RunError
from stillhouse.methods.features import sd_further_pretrain
from stillhouse.methods.features.sd_further_pretrain import SelfDistil
from stillhouse.methods.masked import MAE
from stillhouse.models.masked import visible

TALLER = SMALL.__class__(encoder=SMALL.encoder, width=8, depth=2, heads=2)  # the decoder is its own


def test_the_objective_is_the_papers(tmp_path):
    method = SelfDistil(weight=2.0)
    s, run, batch = stood(tmp_path, method, teacher=TALLER)
    (update,) = method.step(s, batch, run)
    (alone,) = MAE().step(s, batch, run)  # the same patches are hidden
    gap = 0.0
    for image in batch["inputs"]:
        tokens = [m.encoder.norm(m.encode(image[None])[-1])[0, 0] for m in (s.student, run.teachers["teacher"].module)]
        gap += float((tokens[0] - tokens[1]).square().sum().detach())
    assert gap > 0.1
    assert float(update.loss.detach()) == pytest.approx(float(alone.loss.detach()) + 2.0 * gap, rel=1e-5)
    assert float(update.logs["summary"]) == pytest.approx(gap, rel=1e-5)
    assert method.equation == "mean (x - x̂)² + 2 ‖c_S - c_T‖²"


def test_one_that_is_its_teacher_only_tells_pixels(tmp_path):
    method = SelfDistil()
    s, run, _ = stood(tmp_path, method, same=True)
    _, _, grads = total(method, s, run, 1)
    _, _, plain = total(MAE(), s, run, 1)
    assert len(grads) == len(plain) > 20
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, plain, strict=True))


def test_the_whole_image_is_compared(tmp_path):
    """Its gradient reaches the position of every patch, also of those that are hidden."""
    method = SelfDistil(weight=1e6)
    s, run, batch = stood(tmp_path, method, teacher=TALLER)
    total(method, s, run, 1)
    assert (s.student.encoder.position.grad.abs().sum(-1) > 1.0).all()
    assert visible(torch.rand(1, 16), method.ratio).shape == (1, 4)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())


def test_a_batch_in_parts_has_the_same_gradient(tmp_path):
    method = SelfDistil()
    s, run, _ = stood(tmp_path, method, teacher=TALLER)
    (loss, count, grads), (again, also, others) = (total(method, s, run, parts) for parts in (1, 6))
    assert (again, also) == (pytest.approx(loss, rel=1e-5), count)
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(grads, others, strict=True))


def test_it_teaches_one_of_its_own_width(tmp_path):
    with pytest.raises(RunError, match="8 and 16 wide"):
        stood(tmp_path, SelfDistil(), teacher=BIG)


def test_the_student_begins_where_generic_pretraining_ended_and_a_round_more_has_another_teacher(tmp_path: Path):
    """Not where its teacher did: at learning rate 0 it stays the generic one."""
    made = sd_further_pretrain.recipe("smoke")
    stages = {name: made.stages[name] for name in ("generic", "further", "train")}
    made = made.set("teachers.teacher.stages", ("further", "train"))
    made = made.__class__(**{**vars(made), "stages": {**stages, "again": stages["train"]}})
    made = made.set("generic.steps", 3).set("further.steps", 3).set("train.steps", 2).set("again.steps", 2)
    made = made.set("train.optim.lr", 0.0)
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    generic, further, train = (made.student.load(run.path(n), run).state_dict() for n in ("generic", "further", "train"))
    assert all(torch.equal(value, generic[name]) for name, value in train.items())
    assert any(not torch.equal(value, generic[name]) for name, value in further.items())
    gaps = {line["stage"]: line["student/summary"] for line in run.read("metrics.jsonl") if "student/summary" in line}
    assert gaps["train"] > 0 and set(gaps) == {"train", "again"}
    first = next(line for line in run.read("metrics.jsonl") if line["stage"] == "again")
    assert first["student/summary"] < 1e-6  # its teacher is `train`, which is where it begins
