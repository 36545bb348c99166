"""Hinton's loss, against reference values, its own limits and the paper's reason for the factor T²."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.core.run import Run
from stillhouse.core.signal import HeadLogits, Signal
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import Frozen

# Computed by RepDistiller's DistillKL (distiller_zoo/KD.py, b84f547), which mdistiller, mmrazor and timm agree with to
# 12 digits: mean over items of T² KL on inp((8, 100), .7310, 3) and inp((8, 100), 1.2345, 3); ce is torch's.
GOLDEN = {4.0: 4.2016458210702865, 1.0: 2.4221741883835124}
GOLDEN_CE = 6.270976396173148


def inp(shape: tuple[int, ...], k: float, scale: float = 1.0) -> Tensor:
    """scale sin(k (i + 1)), the inputs of the reference values."""
    n = torch.Size(shape).numel()
    return scale * torch.sin(k * (torch.arange(n, dtype=torch.float64) + 1)).reshape(shape)


class Said(nn.Module):
    """Logits as parameters."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits[inputs]


STUDENT, TEACHER = inp((8, 100), 0.7310, 3), inp((8, 100), 1.2345, 3)
LABELS = (7 * torch.arange(8) + 3) % 100
BATCH: dict[str, Any] = {"inputs": torch.arange(8), "labels": LABELS}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.teachers = {"teacher": Frozen(Said(TEACHER))}
    return made


def update(method: Any, student: nn.Module, batch: Any, run: Run) -> Any:
    (made,) = method.step(method.setup(student, run), batch, run)
    return made


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.0])
def test_reference_values(run: Run, temperature: float, alpha: float):
    made = update(Hinton(temperature=temperature, alpha=alpha), Said(STUDENT), BATCH, run)
    expected = alpha * GOLDEN[temperature] + (1 - alpha) * GOLDEN_CE
    assert float(made.loss.detach() / made.count) == pytest.approx(expected, rel=1e-12)
    assert float(made.logs["kl"] / made.count) * temperature**2 == pytest.approx(GOLDEN[temperature], rel=1e-12)
    assert float(made.logs["cross_entropy"] / made.count) == pytest.approx(GOLDEN_CE, rel=1e-12)


def test_the_gradient_is_that_of_the_formula(run: Run):
    student, temperature, alpha = Said(STUDENT), 4.0, 0.7
    update(Hinton(temperature=temperature, alpha=alpha), student, BATCH, run).loss.backward()
    z = STUDENT.clone().requires_grad_()
    soft = F.kl_div((z / temperature).log_softmax(-1), (TEACHER / temperature).softmax(-1), reduction="sum")
    (alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(z, LABELS, reduction="sum")).backward()
    assert torch.allclose(student.logits.grad, z.grad, rtol=1e-12, atol=1e-14)  # type: ignore[arg-type]


def test_without_the_soft_term_it_is_supervised(run: Run):
    hinton, supervised = Said(STUDENT), Said(STUDENT)
    update(Hinton(alpha=0.0), hinton, BATCH, run).loss.backward()
    update(Supervised(), supervised, BATCH, run).loss.backward()
    assert torch.allclose(hinton.logits.grad, supervised.logits.grad, rtol=1e-13)  # type: ignore[arg-type]


def test_a_student_like_its_teacher_has_nothing_to_learn(run: Run):
    student = Said(TEACHER)
    made = update(Hinton(alpha=1.0), student, BATCH, run)
    made.loss.backward()
    assert float(made.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.logits.grad.abs().max()) < 1e-14  # type: ignore[union-attr]


def test_at_high_temperature_it_matches_centred_logits(run: Run):
    """Section 2.1: the gradient tends to (z_i - v_i) / N for logits of zero mean; T² cancels the two factors 1/T."""
    student = Said(STUDENT)
    update(Hinton(temperature=1e4, alpha=1.0), student, BATCH, run).loss.backward()
    centred = [z - z.mean(-1, keepdim=True) for z in (STUDENT, TEACHER)]
    assert torch.allclose(student.logits.grad, (centred[0] - centred[1]) / 100, atol=1e-4)  # type: ignore[arg-type]


def test_items_without_a_label_keep_their_soft_term(run: Run):
    labels = torch.where(torch.arange(8) % 2 == 0, LABELS, -100)
    made = update(Hinton(alpha=0.5, temperature=1.0), Said(STUDENT), {**BATCH, "labels": labels}, run)
    hard = F.cross_entropy(STUDENT, labels, reduction="sum")
    assert int(made.count) == 8
    assert float(made.loss.detach()) == pytest.approx(float(0.5 * 8 * GOLDEN[1.0] + 0.5 * hard), rel=1e-12)


def test_language_models_are_matched_on_the_answers_without_dense_logits(run: Run):
    torch.manual_seed(0)
    student, teacher = TinyLM(vocabulary=29).build(run), TinyLM(vocabulary=29, width=48).build(run)
    run.teachers = {"teacher": Frozen(teacher)}
    batch = Sentences().load(run)["train"].batch([0, 1], 0)
    assert isinstance(student(**batch["inputs"]), HeadLogits)
    made = update(Hinton(temperature=2.0, alpha=0.9), student, batch, run)
    made.loss.backward()
    fused = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    counted = batch["weight"] > 0
    z, t = student(**batch["inputs"]).dense()[counted], teacher(**batch["inputs"]).dense()[counted].detach()
    soft = F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="sum")
    dense = 0.9 * 4 * soft + 0.1 * F.cross_entropy(z, batch["labels"][counted], reduction="sum")
    dense.backward()
    assert torch.allclose(made.loss, dense, rtol=1e-5)
    for a, p in zip(fused, student.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]


def test_a_teacher_without_logits(run: Run):
    class Mute:
        gives = frozenset({"text"})

        def __call__(self, batch: Any, want: Any) -> Signal:
            return Signal(text=[])

    run.teachers = {"mute": Mute()}
    with pytest.raises(LookupError, match="the method needs 'logits', but the teacher gave text"):
        update(Hinton(), Said(STUDENT), BATCH, run)


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": 0.0}, "temperature must be above 0, not 0.0"), ({"alpha": 1.5}, "alpha must be between 0 and 1"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Hinton(**settings)


def test_a_mixed_image_has_both_labels_and_one_teacher(run: Run):
    mix, second = torch.linspace(0, 1, 8), LABELS.flip(0)
    method, student = Hinton(temperature=4.0, alpha=0.6), Said(STUDENT)
    plain = update(method, student, BATCH, run)
    made = update(method, student, {**BATCH, "labels_b": second, "mix": mix}, run)
    each = [F.cross_entropy(STUDENT, labels, reduction="none") for labels in (LABELS, second)]
    expected = 0.6 * 8 * GOLDEN[4.0] + 0.4 * (mix * each[0] + (1 - mix) * each[1]).sum()
    assert float(made.loss) == pytest.approx(float(expected), rel=1e-6) and float(made.count) == 8
    same = update(method, student, {**BATCH, "labels_b": LABELS, "mix": mix}, run)
    assert float(same.loss) == pytest.approx(float(plain.loss), rel=1e-6)
    assert made.logs.keys() == plain.logs.keys()


def test_a_teacher_of_other_classes_is_refused(run: Run):
    run.teachers = {"teacher": Frozen(Said(TEACHER[:, :90]))}
    with pytest.raises(ValueError, match="student has 100 classes, teacher 90"):
        update(Hinton(), Said(STUDENT), BATCH, run)
