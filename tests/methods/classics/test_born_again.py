"""What each target keeps of the teacher, and that generations begin anew."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from logit_toys import BATCH, CE, LABELS, STUDENT, TEACHER, Headed, mean, only, taught
from stillhouse.cli.results import findings
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train, execute
from stillhouse.methods.classics.born_again import BornAgain, permuted, proof, recipe

KL = 2.4221741883835124  # by RepDistiller's DistillKL at T = 1


def test_the_teacher_is_learned_without_a_temperature(tmp_path):
    run = taught(tmp_path)
    assert mean(only(BornAgain(), run)[0]) == pytest.approx(KL, rel=1e-9)
    assert mean(only(BornAgain(labels=0.5), run)[0]) == pytest.approx(0.5 * CE + KL, rel=1e-9)


def test_confidence_weighs_the_labels_alone(tmp_path):
    made, student = only(BornAgain(target="confidence"), taught(tmp_path))
    sure = TEACHER.softmax(-1).amax(-1)
    weights = sure / sure.sum()
    paper = float((weights * F.cross_entropy(STUDENT, LABELS, reduction="none")).sum())
    assert mean(made) == pytest.approx(paper, rel=1e-6)
    made.loss.backward()
    one_hot = F.one_hot(LABELS, 100)
    assert torch.allclose(
        student.logits.grad / float(made.count), weights.unsqueeze(-1) * (STUDENT.softmax(-1) - one_hot), atol=1e-7
    )


def test_confidence_leaves_out_what_has_no_label(tmp_path):
    labels = LABELS.clone()
    labels[3] = -100
    made, student = only(BornAgain(target="confidence"), taught(tmp_path), batch={**BATCH, "labels": labels})
    made.loss.backward()
    assert not student.logits.grad[3].any()
    assert float(made.count) == pytest.approx(float(TEACHER.softmax(-1).amax(-1).sum() - TEACHER[3].softmax(-1).max()))


def test_a_shuffle_keeps_the_largest_and_the_others_as_a_set(tmp_path):
    run, batch = taught(tmp_path), {"inputs": torch.arange(8.0)}
    shuffled = permuted(TEACHER, batch, run)
    assert torch.equal(shuffled.argmax(-1), TEACHER.argmax(-1))
    assert torch.equal(shuffled.sort(-1).values, TEACHER.sort(-1).values)
    assert (shuffled != TEACHER).float().mean() > 0.9
    assert torch.equal(
        shuffled[2:5], permuted(TEACHER[2:5], {"inputs": torch.arange(8.0)[2:5]}, run)
    )  # however a batch is split
    run.step = 1
    assert not torch.equal(permuted(TEACHER, batch, run), shuffled)


def test_shuffled_outputs_are_what_the_student_learns(tmp_path):
    run = taught(tmp_path)
    teacher = permuted(TEACHER, BATCH, run)
    made, _ = only(BornAgain(target="permuted"), run)
    kl = F.kl_div(STUDENT.log_softmax(-1), teacher.softmax(-1), reduction="sum") / 8
    assert mean(made) == pytest.approx(float(kl), rel=1e-9)


def test_shuffled_tokens_are_refused(tmp_path):
    run = taught(tmp_path, Headed(TEACHER))
    batch = {"inputs": torch.arange(8).view(2, 4), "labels": LABELS.view(2, 4)}
    with pytest.raises(RunError, match="one tensor each"):
        only(BornAgain(target="permuted"), run, Headed(STUDENT), batch)
    assert mean(only(BornAgain(), run, Headed(STUDENT), batch)[0]) == pytest.approx(KL, rel=1e-9)


def test_labels_beside_the_confidence_are_refused():
    with pytest.raises(ValueError, match="leave labels at 0"):
        BornAgain(labels=1.0, target="confidence")


def test_generations_are_alike_and_taught_in_order(tmp_path):
    made = recipe("smoke")
    for name in ("alone", "first", "train"):
        made = made.set(f"{name}.steps", 5)
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(made, run)
    assert [event["by"] for event in run.read("events.jsonl") if "by" in event] == ["alone", "first"]
    shapes = [
        {k: v.shape for k, v in made.student.load(run.path(n), run).state_dict().items()}
        for n in ("alone", "first", "train")
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {"alone", "first", "together", "train"} <= {finding.subject for finding in findings(run.folder)}


def test_the_equation_names_the_target():
    assert BornAgain(labels=1.0).equation == "1 CE(y, q) + 1 KL(p ‖ q)"
    assert BornAgain(target="permuted").equation == "1 KL(permuted p ‖ q)"
    assert BornAgain(target="confidence").equation == "mean of CE(y, q), weighted by max p"


def test_the_long_arm_takes_the_steps_of_all_generations():
    arms = proof().arms
    steps = {name: sum(s.steps for s in arms[name].stages.values() if isinstance(s, Train)) for name in arms}
    assert steps["long"] == steps["ours"] == steps["cwtm"] == steps["dkpp"] == 3 * steps["alone"]
