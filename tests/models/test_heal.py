"""Closing the gaps of dropped layers: the regression against an independent one, and what it does to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from language import Folders, llama, model_of, run_of
from stillhouse.data.toys import Sentences
from stillhouse.models import heal
from stillhouse.models.hub import CausalLM, HubLM, layers_of
from stillhouse.models.shrink import HEALED, Shrink, is_llama, keep_layers


@pytest.fixture
def rows() -> list[dict[str, torch.Tensor]]:
    source = Sentences(length=64).load(None)["train"]  # type: ignore[arg-type]
    return [source.batch([i], 0)["inputs"] for i in range(24)]


def test_the_regression_is_the_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against least squares on the rows that the penalty stands for, with every token weighted by 1 / |wanted|."""
    monkeypatch.setattr(heal, "RIDGES", (0.3,))
    draw = torch.Generator().manual_seed(0)
    u, missing = torch.randn(60, 5, generator=draw), torch.randn(60, 3, generator=draw)
    missing += u @ torch.randn(5, 3, generator=draw) * 3  # so that it helps on the held-out tokens
    wanted = torch.randn(60, 3, generator=draw) * torch.linspace(0.1, 50, 60)[:, None]
    fits = torch.arange(60) % 4 != 3
    found = heal._ridge_regression(u, missing, wanted, fits, ~fits)
    weight = 1 / wanted.double().norm(dim=-1, keepdim=True)
    a, b = (u * weight)[fits].numpy(), (missing * weight)[fits].numpy()
    penalty = np.sqrt(0.3 * np.mean(np.sum(a**2, 0))) * np.eye(5)
    expected = np.linalg.lstsq(np.vstack([a, penalty]), np.vstack([b, np.zeros((5, 3))]), rcond=None)[0]
    np.testing.assert_allclose(found.T.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_what_does_not_generalise_is_left_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    u, noise = torch.randn(40, 30, generator=draw), torch.randn(40, 2, generator=draw)
    learnable = torch.stack([noise[:, 0], u[:, 4]], -1)
    fits = torch.arange(40) % 4 != 3
    fits &= torch.arange(40) < 24  # fewer tokens than regressors: noise is fitted perfectly, and predicts nothing
    learnable[~fits, 0] = -(u @ torch.linalg.lstsq(u[fits], noise[fits])[0])[~fits, 0]
    found = heal._ridge_regression(u, learnable, torch.ones(40, 2), fits, ~fits)
    assert not found[0].any() and found[1].any()


def without_attention() -> CausalLM:
    """Every state depends on its token alone, so that the wide layer in front of a gap can tell all of them apart."""
    module = CausalLM(llama(seed=3, layers=6, intermediate_size=256)).eval()
    for layer in layers_of(module):
        layer.self_attn.o_proj.weight.data.zero_()  # type: ignore[union-attr]
    return module


@torch.no_grad()
def test_a_gap_that_can_be_closed_is_closed(rows: list[dict[str, Any]]) -> None:
    whole, kept = without_attention(), [0, 1, 4, 5]
    before = {name: w.clone() for name, w in whole.state_dict().items()}
    weights = heal.healed(whole, kept, rows[:16])
    assert all(torch.equal(w, before[name]) for name, w in whole.state_dict().items())
    assert list(weights) == [1]  # the layer in front of the gap, and no other

    def distance(closed: bool) -> float:
        cut = without_attention()
        for number, weight in weights.items() if closed else ():
            layers_of(cut)[number].mlp.down_proj.weight.copy_(weight)  # type: ignore[union-attr]
        keep_layers(cut, kept)
        return sum(float((cut(**x).hidden - whole(**x).hidden).square().sum()) for x in rows[16:])

    assert distance(closed=True) < 1e-2 * distance(closed=False)


@torch.no_grad()
def test_layers_that_do_nothing_leave_no_gap(rows: list[dict[str, Any]]) -> None:
    whole = CausalLM(llama(seed=3, layers=4)).eval()
    idle: Any = layers_of(whole)[2]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    (weight,) = heal.healed(whole, [0, 1, 3], rows[:8]).values()
    torch.testing.assert_close(weight, layers_of(whole)[1].mlp.down_proj.weight, rtol=0, atol=1e-6)  # type: ignore[union-attr]


def test_too_few_rows_or_no_gap_change_nothing(rows: list[dict[str, Any]]) -> None:
    whole = CausalLM(llama(seed=3, layers=4)).eval()
    assert heal.healed(whole, [0, 1, 3], rows[:3]) == {}
    assert heal.healed(whole, [0, 1, 2, 3], rows) == {}


def test_every_arm_gets_the_same_fit(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Shrink(of=HubLM(path=str(folders.teacher)), keep=(0, 3), heal=8)
    run = run_of(tmp_path, spec, data=Sentences())
    first = spec.build(run)
    assert (run.path("cut") / HEALED).is_file()
    monkeypatch.setattr("stillhouse.models.shrink.healed", None)  # not called again
    again = spec.build(run)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    plain = Shrink(of=spec.of, keep=(0, 3), heal=0)
    bare = plain.build(run_of(tmp_path / "bare", plain, data=Sentences()))
    changed = [n for (n, a), b in zip(first.named_parameters(), bare.parameters(), strict=True) if not torch.equal(a, b)]
    assert changed == ["model.model.layers.0.mlp.down_proj.weight"]


def test_other_architectures_are_known_as_such() -> None:
    assert is_llama(CausalLM(llama()))
    assert not is_llama(CausalLM(model_of(transformers.Gemma2Config, head_dim=16)))  # a norm behind the MLP
    assert not is_llama(CausalLM(model_of(transformers.GraniteConfig, residual_multiplier=0.2)))
