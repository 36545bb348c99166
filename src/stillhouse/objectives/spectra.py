"""How far apart two signals sound: their spectra through windows of several lengths, one value per signal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def magnitudes(signal: Tensor, window: int) -> Tensor:
    """How strong each frequency is at each time, `[*N, window // 2 + 1, times]`, of signals `[*N, T]`; at least float32.

    Hann windows that overlap by three quarters, mirrored at both ends. White noise of variance 1 has a mean square of 1.
    """
    if not 2 <= window <= signal.shape[-1]:
        raise ValueError(f"a window has from 2 to {signal.shape[-1]} samples, as the signals have, not {window}")
    x = signal.to(torch.promote_types(signal.dtype, torch.float32))
    hann = torch.hann_window(window, dtype=x.dtype, device=x.device)
    flat, hop = x.reshape(-1, x.shape[-1]), max(1, window // 4)
    if not len(flat):  # which torch refuses
        return x.new_zeros(*signal.shape[:-1], window // 2 + 1, x.shape[-1] // hop + 1)
    found = torch.stft(flat, window, hop_length=hop, window=hann, return_complex=True).abs()
    return (found / hann.square().sum().sqrt()).reshape(*signal.shape[:-1], *found.shape[1:])


def spectral_gap(signal: Tensor, target: Tensor, windows: Sequence[int], *, floor: float = 1e-2) -> Tensor:
    """`[*N]`: the mean over windows, frequencies and times of |S - S'| + |ln(S + floor) - ln(S' + floor)|.

    S are the magnitudes of signals `[*N, T]`, S' of what they should be. The logarithm hears what is soft, down to `floor`.
    """
    gaps: list[Tensor] = []
    for window in windows:
        mine, theirs = magnitudes(signal, window), magnitudes(target, window)
        gap = (mine - theirs).abs() + ((mine + floor).log() - (theirs + floor).log()).abs()
        gaps.append(gap.mean((-2, -1)))
    return torch.stack(gaps).mean(0)
