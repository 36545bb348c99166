"""Signals kept as states or as they are: to the bit in their own precision, within what is promised otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.run import RunError
from stillhouse.core.signal import Completion, HeadLogits, Signal
from stillhouse.signals.formats import build, parse, plain
from stillhouse.signals.hidden import Hidden
from stillhouse.signals.raw import Raw


def back(form: Any, items: Signal, counts: list[int], folder: Path) -> Signal:
    facts = form.facts(items, None)
    form.prepare(items, folder)
    records = form.encode(items, counts, [bytes([i]) for i in range(len(counts))], facts)
    return form.decode([memoryview(r) for r in records], counts, facts, folder)


def head(n: int = 40, *, dtype: torch.dtype = torch.float32, bias: bool = True) -> HeadLogits:
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(90, 70, generator=dice)
    hidden = torch.randn(n, 70, generator=dice)
    return HeadLogits(hidden.to(dtype), weight.to(dtype), torch.randn(90, generator=dice) if bias else None, 0.5, 30.0, 80)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_teachers_own_precision_it_is_exact(dtype: Any, tmp_path: Path):
    made = head(dtype=getattr(torch, dtype), bias=dtype == "float32")
    kept = back(Hidden(dtype=dtype), Signal(logits=made), [10, 30], tmp_path).need("logits")
    assert torch.equal(kept.hidden, made.hidden)
    assert torch.equal(kept.dense(), made.dense())


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-6), ("bfloat16", 1e-3), ("int8", 1e-2)])
def test_rounding_costs_what_is_promised(dtype: Any, most: float, tmp_path: Path):
    made = head()
    kept = back(Hidden(dtype=dtype), Signal(logits=made), [40], tmp_path).need("logits")
    log_p, log_q = (x.dense().double().log_softmax(-1) for x in (made, kept))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert 0 <= float(kl) < most


def test_states_too_large_for_float16_are_refused(tmp_path: Path):
    made = HeadLogits(torch.full((2, 4), 1e6), torch.randn(5, 4))
    with pytest.raises(RunError, match="hidden:bfloat16"):
        back(Hidden(), Signal(logits=made), [2], tmp_path)
    with pytest.raises(RunError, match="not finite"):
        back(
            Hidden(dtype="float32"),
            Signal(logits=HeadLogits(torch.full((2, 4), torch.nan), torch.randn(5, 4))),
            [2],
            tmp_path,
        )


def test_zeros_survive_int8(tmp_path: Path):
    made = HeadLogits(torch.zeros(3, 10), torch.randn(5, 10))
    assert torch.equal(back(Hidden(dtype="int8"), Signal(logits=made), [3], tmp_path).need("logits").hidden, made.hidden)


def test_dense_logits_have_no_state(tmp_path: Path):
    with pytest.raises(RunError, match="without the state"):
        back(Hidden(), Signal(logits=torch.randn(2, 3)), [2], tmp_path)


def test_a_lost_head_is_one_line(tmp_path: Path):
    form, items = Hidden(), Signal(logits=head())
    with pytest.raises(RunError, match="head"):
        form.decode([memoryview(bytes(140))], [1], form.facts(items, None), tmp_path / "elsewhere")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["logits", "score", "reward"])
def test_tensors_come_back_to_the_bit(kind: Any, dtype: torch.dtype, tmp_path: Path):
    shape = {"logits": (5, 7), "score": (5, 3, 4, 4), "reward": (5,)}[kind]
    value = torch.randn(shape).to(dtype)
    kept = back(Raw(kind=kind), Signal(**{kind: value}), [1, 3, 1], tmp_path).need(kind)
    assert kept.dtype == dtype and torch.equal(kept, value)


def test_features_keep_their_names(tmp_path: Path):
    value = {"layer2.conv": torch.randn(4, 3, 2, 2), "pool": torch.randn(4, 6).half()}
    kept = back(Raw(kind="features"), Signal(features=value), [1] * 4, tmp_path).need("features")
    assert all(torch.equal(kept[name], value[name]) for name in value) and list(kept) == list(value)


def test_text_comes_back(tmp_path: Path):
    answers = [[Completion("Grüß\u2028Gott", [1, 2], [-0.5, -0.25]), Completion("")], [Completion("x")]]
    assert back(Raw(kind="text"), Signal(text=answers), [1, 1], tmp_path).need("text") == answers


def test_a_feature_that_changes_its_shape_is_refused(tmp_path: Path):
    form = Raw(kind="features")
    facts = form.facts(Signal(features={"a": torch.zeros(1, 3)}), None)
    with pytest.raises(RunError, match="changed its shape"):
        form.encode(Signal(features={"a": torch.zeros(1, 4)}), [1], [b"k"], facts)


@pytest.mark.parametrize(
    "text", ["topk:64", "topk", "sampled:12", "hidden:int8", "hidden", "logits", "features", "text", "score", "reward"]
)
def test_formats_are_named_and_survive_the_header(text: str):
    form = parse(text)
    assert build(plain(form)) == form


@pytest.mark.parametrize("text", ["topk:0", "topk:x", "hidden:float8", "sampled:1000", "topq:64", "logits:3", ""])
def test_a_format_that_does_not_exist_is_refused(text: str):
    with pytest.raises(RunError, match="--signal|no signal format"):
        parse(text)
