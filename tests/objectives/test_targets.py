"""TAID's interpolated target."""

import pytest
import torch

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives import targets
from stillhouse.objectives.divergences import ForwardKL, cross_entropy, entropy


def heads():
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 9))
    other, head = (torch.randn(n, 5, dtype=torch.float64) for n in (6, 9))
    return HeadLogits(hidden, weight), HeadLogits(other, head)


def grads(values, head):
    return torch.autograd.grad(values.sum(), (head.hidden, head.weight))


@pytest.mark.parametrize("t", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64), 1.0], ids=["0", "0.3", "tensor", "1"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_is_cross_entropy_with_a_detached_softmax_of_mixed_logits(t, temperature, fused):
    student, teacher = heads()
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    z = student.dense()
    target = (((1 - t) * z.detach() + t * teacher.dense()) / temperature).softmax(-1)
    expected = weight * torch.nn.functional.cross_entropy(z / temperature, target, reduction="none")
    logits = student if fused else student.dense()
    found = targets.interpolated(logits, teacher, t, temperature=temperature, weight=weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grads(found, student), grads(expected, student))


@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_ends_are_the_student_itself_and_the_teacher(fused):
    student, teacher = heads()
    start, end = (targets.interpolated(student if fused else student.dense(), teacher, t) for t in (0.0, 1.0))
    torch.testing.assert_close(start, entropy(student))
    assert all(g.abs().max() < 1e-14 for g in grads(start, student))
    torch.testing.assert_close(end, ForwardKL()(student, teacher) + entropy(teacher))
    torch.testing.assert_close(grads(end, student), grads(ForwardKL()(student, teacher), student))


def test_a_certain_teacher_is_a_label():
    student, _ = heads()
    labels = torch.arange(6)
    certain = torch.nn.functional.one_hot(labels, 9).double() * 1e4
    torch.testing.assert_close(targets.interpolated(student, certain, 1.0), cross_entropy(student, labels))
