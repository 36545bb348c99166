"""Spectra against a discrete Fourier transform written out."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from stillhouse.objectives.spectra import magnitudes, spectral_gap


def by_hand(signal: numpy.ndarray, window: int) -> numpy.ndarray:
    """[window // 2 + 1, times]: every window of the mirrored signal, every frequency, as a sum."""
    half, hop = window // 2, window // 4
    x = numpy.pad(signal, half, mode="reflect")
    hann = 0.5 - 0.5 * numpy.cos(2 * math.pi * numpy.arange(window) / window)
    starts = range(0, len(x) - window + 1, hop)
    turns = numpy.exp(-2j * math.pi * numpy.outer(numpy.arange(window // 2 + 1), numpy.arange(window)) / window)
    return numpy.stack([abs(turns @ (hann * x[s : s + window])) for s in starts], -1) / math.sqrt((hann**2).sum())


def test_magnitudes_are_those_of_the_transform():
    x = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for window in (8, 16, 32):
        found = magnitudes(x, window)
        assert numpy.allclose(found[1].numpy(), by_hand(x[1].numpy(), window), atol=1e-10)


def test_the_gap_is_the_equation():
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 48, dtype=torch.float64, generator=draw) for _ in range(2))
    wanted = []
    for window in (8, 24):
        a, b = by_hand(x[1].numpy(), window), by_hand(y[1].numpy(), window)
        wanted.append((abs(a - b) + abs(numpy.log(a + 0.05) - numpy.log(b + 0.05))).mean())
    assert float(spectral_gap(x, y, (8, 24), floor=0.05)[1]) == pytest.approx(numpy.mean(wanted))


def test_noise_of_variance_one_has_power_one():
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(2))
    assert float(magnitudes(x, 32).square()[:, 1:-1].mean()) == pytest.approx(1.0, rel=0.02)


def test_a_shift_in_time_is_heard_less_than_another_pitch():
    time = torch.arange(256, dtype=torch.float64)
    tone, later, higher = (torch.sin(0.3 * time), torch.sin(0.3 * time + 1.5), torch.sin(0.5 * time))
    near, far = spectral_gap(torch.stack([later, higher]), torch.stack([tone, tone]), (64,))
    assert float(near) < 0.5 * float(far)


def test_gradients_and_edges():
    draw = torch.Generator().manual_seed(3)
    x, y = (torch.randn(2, 24, dtype=torch.float64, generator=draw) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: spectral_gap(s, y, (8, 16)), x.requires_grad_())
    assert float(spectral_gap(y, y, (8,)).abs().sum()) == 0.0
    silence = torch.zeros(1, 24, requires_grad=True)  # the magnitude of nothing has no direction
    spectral_gap(silence, y[:1].float(), (8,)).sum().backward()
    assert bool(silence.grad.isfinite().all())
    loud = spectral_gap(1e4 * y.detach().to(torch.bfloat16), y.to(torch.bfloat16), (8,))
    assert loud.dtype == torch.float32 and bool(loud.isfinite().all())
    assert spectral_gap(torch.zeros(0, 24), torch.zeros(0, 24), (8,)).shape == (0,)
    with pytest.raises(ValueError, match="from 2 to 24 samples"):
        spectral_gap(y, y, (32,))
