"""Some classes of each item: against dense logits, for heads with bias, scale, cap and padding."""

from __future__ import annotations

import pytest
import torch

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives.divergences import entropy
from stillhouse.objectives.ranking import likeliest, logits_at
from stillhouse.objectives.temperatures import for_entropy, logp_at, top_logits


def head(dtype: torch.dtype = torch.float64, **settings: object) -> HeadLogits:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 5, 4), (30, 4)))
    bias = torch.randn(30, generator=draw, dtype=torch.float64)
    return HeadLogits(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), bias.to(dtype), **settings)  # type: ignore[arg-type]


HEADS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"classes": 20}]


@pytest.mark.parametrize("settings", HEADS)
def test_the_likeliest_classes_and_their_logits(settings: dict[str, object]) -> None:
    z = head(**settings)
    top = z.dense().topk(6, -1)
    ids = likeliest(z, 6)
    assert torch.equal(ids, top.indices) and torch.equal(ids, likeliest(z.dense(), 6))
    torch.testing.assert_close(logits_at(z, ids), top.values)
    torch.testing.assert_close(logits_at(z.dense(), ids), top.values)
    torch.testing.assert_close(top_logits(z, 6), top.values)
    assert likeliest(z, 1000).shape == z.shape


@pytest.mark.parametrize("settings", HEADS)
def test_gradients_reach_hidden_states_and_the_rows_of_the_head(settings: dict[str, object]) -> None:
    z = head(**settings)
    ids = likeliest(z, 3)
    weights = torch.arange(30.0, dtype=torch.float64).view(2, 5, 3)
    mine = torch.autograd.grad((logits_at(z, ids) * weights).sum(), [z.hidden, z.weight])
    other = torch.autograd.grad((z.dense().gather(-1, ids) * weights).sum(), [z.hidden, z.weight])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_items_without_weight_are_left_out() -> None:
    z, weight = head(), torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 1]])
    assert torch.equal(likeliest(z, 4, weight=weight), likeliest(z, 4) * weight[..., None])
    assert likeliest(z[:0], 4).shape == (0, 5, 4) and logits_at(z[:0], likeliest(z[:0], 4)).shape == (0, 5, 4)


def test_bfloat16_is_multiplied_in_float32() -> None:
    z = head(torch.bfloat16)
    expected = z.hidden.float() @ z.weight.float().T + z.bias.float()  # type: ignore[union-attr]
    ids = likeliest(z, 5)
    torch.testing.assert_close(logits_at(z, ids), expected.gather(-1, ids))


def test_a_temperature_for_every_entropy() -> None:
    logits = 3 * torch.randn(200, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = entropy(logits)
    tau = for_entropy(logits, before + 0.3, 0.5, 5.0, rounds=40)
    torch.testing.assert_close(entropy(logits / tau[:, None]), before + 0.3)
    assert torch.equal(
        for_entropy(logits, torch.zeros(200, dtype=torch.float64), 1.1, 1.5), torch.full((200,), 1.1, dtype=torch.float64)
    )
    assert torch.equal(
        for_entropy(logits, torch.full((200,), 9.0).double(), 1.1, 1.5), torch.full((200,), 1.5, dtype=torch.float64)
    )


@pytest.mark.parametrize("settings", HEADS)
def test_log_probabilities_at_their_own_temperatures(settings: dict[str, object]) -> None:
    z = head(**settings)
    labels, tau = torch.arange(10).view(2, 5), torch.linspace(0.5, 3, 10).double().view(2, 5)
    labels[1, 2] = -1
    expected = (z.dense() / tau[..., None]).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    torch.testing.assert_close(logp_at(z, labels, tau), expected.detach().masked_fill(labels < 0, 0.0))
    large = torch.tensor([[1e4, -1e4, 0.0]])
    assert logp_at(large, torch.tensor([1]), torch.tensor([1.5])).isfinite().all()
