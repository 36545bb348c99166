"""How exact are stored signals? Measured against the live teacher, item by item, in nats.

What is measured depends on what is kept. `codec_kl` is the error of the bytes alone: KL from what the teacher said,
cut to what the format keeps, to what is read back. `tv` is the total variation between the teacher's whole
distribution and the one that a student learns from: it holds what was cut off too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.signal import Batch, HeadLogits, Logits, Signal, TopK
from ..models.call import dense
from .items import take
from .keys import places_of
from .reader import StoredTeacher
from .topk import CHUNK, trimmed

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
MOST = 512  # items of a batch: a few thousand in all say enough, and each costs a dozen passes over the vocabulary


@torch.no_grad()
def measure(stored: StoredTeacher, live: Any, batches: Iterable[Batch], device: torch.device) -> dict[str, Any]:
    """Means over items of `batches` (at most 512 of each); an empty dict for signals that are no distributions."""
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        batch = to_device(batch, device)
        places = places_of(batch)
        said = take(live(batch, stored.format.ask()), places)
        kept = stored.items(places)
        if said.logits is None or (kept.logits is None and kept.topk is None):
            if said.topk is None or kept.topk is None:
                return {}
        for name, values in _compare(said, kept).items():
            columns.setdefault(name, []).append(values.cpu())
    if not columns:
        return {}
    every = {name: torch.cat(values) for name, values in columns.items()}
    found: dict[str, Any] = {"items": len(next(iter(every.values())))}
    mass = {f"{t:g}": float(every.pop(f"mass@{t:g}").mean()) for t in TEMPERATURES if f"mass@{t:g}" in every}
    for name, values in every.items():
        found[name] = float(values.mean())
    if "codec_kl" in every:
        found["codec_kl_p99"] = float(every["codec_kl"].quantile(0.99))
        found["codec_kl_max"] = float(every["codec_kl"].max())
    return found | ({"mass_at": mass} if mass else {})


def _compare(said: Signal, kept: Signal) -> dict[str, Tensor]:
    total = min(MOST, len(kept.logits.hidden if isinstance(kept.logits, HeadLogits) else _any(kept)))
    parts: list[dict[str, Tensor]] = []
    for begin in range(0, total, CHUNK):
        some = slice(begin, min(begin + CHUNK, total))
        if said.logits is None:
            assert said.topk is not None and kept.topk is not None
            parts.append(_tops(said.topk[some], kept.topk[some]))
            continue
        classes = kept.topk.classes if kept.topk is not None else None
        z = _dense(trimmed(said.logits, classes)[some])
        parts.append(against_top(z, kept.topk[some]) if kept.topk is not None else _logits(z, _dense(kept.logits[some])))  # type: ignore[index]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _any(kept: Signal) -> Any:
    return kept.topk.rest if kept.topk is not None else kept.logits


def _dense(logits: Logits) -> Tensor:
    return dense(logits).double()


def _logits(live: Tensor, kept: Tensor) -> dict[str, Tensor]:
    log_p, log_q = live.log_softmax(-1), kept.to(live.device).log_softmax(-1)
    return {"codec_kl": _kl(log_p, log_q), "tv": 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)}


def against_top(live: Tensor, kept: TopK) -> dict[str, Tensor]:
    """A kept top k (or sample) against live logits [n, V]."""
    log_p = live.log_softmax(-1)
    index, values, rest = (x.to(live.device) for x in (kept.index, kept.values.double(), kept.rest.double()))
    p = log_p.exp()
    seen = values.exp()
    if kept.sampled:
        drawn = torch.zeros_like(p).scatter_add_(-1, index, seen)
        return {"tv": 0.5 * (p - drawn).abs().sum(-1), "classes_kept": (seen > 0).double().sum(-1)}
    of_kept = log_p.gather(-1, index)
    others = log_p.scatter(-1, index, -torch.inf).logsumexp(-1)
    spread = (rest.exp() / max(1, p.shape[-1] - index.shape[-1])).unsqueeze(-1).expand_as(p).scatter(-1, index, seen)
    found = {
        "codec_kl": _kl(torch.cat([of_kept, others[:, None]], -1), torch.cat([values, rest[:, None]], -1)),
        "mass": of_kept.exp().sum(-1),
        "tv": 0.5 * (p - spread).abs().sum(-1),  # with the rest spread evenly over the other classes
        "tv_renormalised": others.exp(),  # what it would be without the rest: all mass that was cut off is misplaced
    }
    for t in TEMPERATURES:
        found[f"mass@{t:g}"] = (live / t).softmax(-1).gather(-1, index).sum(-1)
    return found


def _tops(said: TopK, kept: TopK) -> dict[str, Tensor]:
    """A kept top k against one that a server gave."""
    index, values = kept.index.to(said.index.device), kept.values.double()
    same = said.index.unsqueeze(-2) == index.unsqueeze(-1)  # [n, kept, said]
    of_kept = torch.where(same, said.values.double().unsqueeze(-2), -torch.inf).amax(-1)
    others = torch.log1p(-of_kept.exp().sum(-1).clamp(max=1.0))
    log_p = torch.cat([of_kept, others[:, None]], -1)
    return {"codec_kl": _kl(log_p, torch.cat([values, kept.rest.double()[:, None]], -1)), "mass": of_kept.exp().sum(-1)}


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis; classes without mass under p add nothing."""
    return torch.where(log_p > -60.0, log_p.exp() * (log_p - log_q), 0.0).sum(-1).clamp(min=0.0)
