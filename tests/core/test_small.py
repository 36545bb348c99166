"""The small contracts: signals, teachers, findings, papers, proofs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stillhouse.core.paper import Paper, UnknownMethod, catalogue, find
from stillhouse.core.proof import Effect, interval, verdict
from stillhouse.core.report import Finding
from stillhouse.core.signal import HeadLogits, Signal, TopK
from stillhouse.core.teacher import TeacherMismatch, check_gives, freeze


def test_a_signal_names_what_it_has():
    signal = Signal(reward=torch.ones(2))
    assert torch.equal(signal.need("reward"), torch.ones(2))
    with pytest.raises(LookupError, match="needs 'logits', but the teacher gave reward"):
        signal.need("logits")
    with pytest.raises(LookupError, match="gave nothing"):
        Signal().need("text")


def test_head_logits_are_what_they_say():
    hidden, weight, bias = torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7)
    head = HeadLogits(hidden, weight, bias, scale=0.5, softcap=2.0, classes=6)
    expected = 2.0 * torch.tanh(0.5 * (hidden @ weight.T + bias)[..., :6] / 2.0)
    assert torch.allclose(head.dense(), expected, atol=1e-6)
    assert head.shape == (2, 3, 6) and head.trim(5).vocabulary == 5
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.allclose(head[mask].dense(), expected[mask], atol=1e-6)
    grown = HeadLogits(hidden.requires_grad_(), weight)
    assert grown.dense().requires_grad and not grown.detach().dense().requires_grad


def test_top_k_is_indexed_by_item():
    kept = TopK(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long), torch.arange(3.0))
    assert kept[1:].rest.tolist() == [1.0, 2.0] and kept[1:].values.shape == (2, 2)


def test_freezing():
    module = freeze(nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_a_teacher_is_asked_for_what_it_gives():
    class Writer:
        gives = frozenset({"text"})

    check_gives("writer", Writer(), frozenset({"text"}))  # type: ignore[arg-type]
    with pytest.raises(TeacherMismatch, match="logits, score from teacher 'writer', which gives text"):
        check_gives("writer", Writer(), frozenset({"score", "logits"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high", "better", "decided"), [
    (0.1, 0.2, "higher", "better"), (0.1, 0.2, "lower", "worse"), (-0.2, -0.1, "lower", "better"),
    (-0.1, 0.1, "higher", "undecided"), (None, None, "higher", "undecided"), (0.1, 0.2, "neither", "undecided"),
])  # fmt: skip
def test_findings_are_decided_when_zero_is_out(low: float, high: float, better: str, decided: str):
    assert Finding(name="x", value=0.0, subject="s", low=low, high=high, better=better).decided == decided  # type: ignore[arg-type]


def test_intervals_are_students():
    effect = interval([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert (effect.mean, effect.low, effect.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert interval([1.0]).low == -math.inf


def test_intervals_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 5, 31, 32):
        values = [math.sin(i) for i in range(n)]
        low, high = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
        effect = interval(values)
        assert (effect.low, effect.high) == pytest.approx((low, high), rel=5e-2 if n > 31 else 1e-3)


def effect(low: float, high: float) -> Effect:
    return Effect(mean=(low + high) / 2, low=low, high=high, n=3)


def test_verdicts():
    assert verdict([effect(0.1, 0.2), effect(0.3, 0.4)], "higher") == "holds"
    assert verdict([effect(0.1, 0.2), effect(-0.3, 0.4)], "higher") == "undecided"
    assert verdict([effect(0.1, 0.2), effect(-0.3, -0.1)], "higher") == "does not hold"
    assert verdict([effect(-0.3, -0.1)], "lower") == "holds"


def test_the_catalogue_is_read_without_importing():
    entry = find("hinton")
    assert (entry.family, entry.needs, entry.methods) == ("classics", ("logits",), ("Hinton",))
    assert entry.fields == {"temperature": "float = 4.0", "alpha": "float = 0.9"}
    assert entry.paper.link == "https://arxiv.org/abs/1503.02531"
    assert {"hinton", "supervised"} <= set(catalogue())
    with pytest.raises(UnknownMethod, match="no method 'hintn'; did you mean 'hinton'"):
        find("hintn")


def test_bibtex():
    text = Paper(id="x", title="T", authors=("A B", "C D"), year=2020, venue="V", arxiv="1").bibtex()
    assert text.startswith("@inproceedings{x,\n") and "author = {A B and C D}" in text and text.endswith("}")
