"""TRADES, and the audit of attacked images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from feature_toys import stood
from stillhouse.audits.robustness import Robustness
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Images
from stillhouse.methods import robust
from stillhouse.methods.robust import Trades, two_sided_kl
from stillhouse.models.attacks import Attack
from stillhouse.models.toys import Convolutional


def test_trades_by_hand_and_both_sides_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method = Trades(beta=3.0, attack=Attack(radius=0.1, stride=0.05, steps=2))
    s, run, batch = stood(tmp_path, method)
    seen = {}
    fooled = robust.fooled
    monkeypatch.setattr(robust, "fooled", lambda *args: seen.setdefault("x'", fooled(*args)))
    (update,) = method.step(s, batch, run)
    p, q = (s.student(x).log_softmax(-1) for x in (batch["inputs"], seen["x'"]))
    loss = 0.0
    for i in range(6):
        loss += -p[i, batch["labels"][i]] + 3.0 * sum(p[i, k].exp() * (p[i, k] - q[i, k]) for k in range(4))
    loss = torch.as_tensor(loss)
    assert torch.allclose(update.loss, loss, rtol=1e-5)
    slopes, wanted = (torch.autograd.grad(value, [*s.student.parameters()]) for value in (update.loss, loss))
    torch.testing.assert_close(slopes, wanted, rtol=1e-4, atol=1e-5)  # through p(x) and through p(x')
    moved = seen["x'"] - batch["inputs"]
    assert float(moved.abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert 0 <= float(seen["x'"].min()) and float(seen["x'"].max()) <= 1
    signs = torch.randn(20, *moved.shape, generator=torch.Generator().manual_seed(0)).sign()
    by_chance = [(batch["inputs"] + 0.1 * each).clamp(0, 1) for each in signs]  # as far, in any direction
    most = max(float(two_sided_kl(p, s.student(x)).sum().detach()) for x in by_chance)
    assert float(two_sided_kl(p, q).sum().detach()) > 1.5 * most


def test_the_gradient_goes_through_both_sides():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(two_sided_kl, (a, b))
    assert bool(two_sided_kl(torch.tensor([[1e4, -1e4]]).bfloat16(), torch.tensor([[-1e4, 1e4]])).isfinite().all())
    assert float(two_sided_kl(a, a).detach().abs().max()) < 1e-12


class Sum(nn.Module):
    """Class 1 if the pixels add up to more than 0, by a known distance."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.sum((1, 2, 3))
        return torch.stack([-score, score], 1)


def audited(tmp_path: Path, radius: float) -> dict[str, float]:
    """Four images of four pixels with the values below, in a light of 0 to 100, standardised to have 50 at 0."""
    values = torch.tensor([70.0, 56.0, 44.0, 20.0])
    one = torch.full((1, 1, 1), 50.0)
    source = Images(values[:, None, None, None].expand(4, 1, 2, 2), torch.tensor([1, 1, 0, 1]), ("a", "b"), one, one,
                    light=(0.0, 100.0))  # fmt: skip
    run = Run(tmp_path / str(radius), device=torch.device("cpu"))
    run.sources = lambda spec=None: {"train": source, "test": source}  # type: ignore[method-assign]

    class Subjects:
        names = ("train",)

        def load(self, name: str) -> nn.Module:
            return Sum()

    check = Robustness(attack=Attack(radius=radius, stride=radius / 4, steps=20, start=0.0))
    return {found.name: found.value for found in check(run, Subjects())}  # type: ignore[arg-type]


def test_what_can_be_fooled_is_known(tmp_path: Path):
    """Three are right: 70, 56 and 44 stand 20, 6 and 6 of 100 from where the answer changes."""
    assert audited(tmp_path, 0.05) == {"accuracy": 0.75, "robust_accuracy": 0.75}
    assert audited(tmp_path, 0.08) == {"accuracy": 0.75, "robust_accuracy": 0.25}
    assert audited(tmp_path, 0.3) == {"accuracy": 0.75, "robust_accuracy": 0.0}


def test_what_is_no_image_is_refused(tmp_path: Path):
    run = Run(tmp_path)
    run.source = [1, 2]
    with pytest.raises(RunError, match="pixels"):
        Trades().setup(Convolutional(1, 4, 4, 2), run)
