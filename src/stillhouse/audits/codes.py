"""What do a codec's semantic tokens know, and how near is what comes back to what went in?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, seed_of
from ..core.stage import Subjects
from ..models.call import dense, logits_of
from ..models.codec import SignalCodec
from ..models.quantised import counts, perplexity
from .significance import Interval, bootstrap, bootstrap_mean

CELLS = 20_000_000  # signals times codes times classes that a bootstrap is drawn from


@dataclass(frozen=True, slots=True)
class Heard:
    """What a codec made of one split."""

    used: Tensor  # [N, codes] how often each semantic code is in each signal
    error: Tensor  # [N] mean square error
    power: Tensor  # [N] mean square of the signal


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Reconstruction error, how many semantic codes are used and, where classes are known, what the codes tell of them.

    `accuracy` is that of a linear probe: softmax regression on how often each semantic code occurs in a signal, fitted to
    training signals with a fixed penalty. `mutual_information` is between one token and its signal's class, estimated by
    frequencies, which overestimates a little. Of a classifier there is its own accuracy alone. The last codec is compared
    with each of the others.
    """

    split: str = "test"
    batch: int = 256  # signals at a time
    learned: int = 2000  # training signals, drawn, that the probe is fitted to at most
    penalty: float = 1e-3  # of the probe's squared weights
    draws: int = 1000  # of the bootstrap

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        sources = run.sources()
        judged = sources[self.split]
        every, draw = range(len(judged)), torch.Generator().manual_seed(seed_of("probe"))
        train: list[int] = torch.randperm(len(sources["train"]), generator=draw)[: self.learned].tolist()
        labels = {"train": _labels(sources["train"], train), self.split: _labels(judged, every)}
        classes = judged.classes
        classed = classes > 1 and bool((labels["train"] >= 0).any()) and bool((labels[self.split] >= 0).any())
        rights: dict[str, Tensor] = {}
        for name in subjects.names:
            module = subjects.load(name)
            if not isinstance(module, SignalCodec):
                if classed:
                    yield self._classifier(name, module, judged, run)
                continue
            heard = self._heard(module, judged, every, run)
            made = partial(Finding, subject=name, n=len(judged), over="signals", split=self.split)
            found = bootstrap_mean(heard.error, heard.power, draws=self.draws)
            note = "square error of what comes back, as a share of the signals' mean square"
            yield made(name="reconstruction", value=found.value, better="lower", low=found.low, high=found.high, note=note)
            total = heard.used.sum(0)
            note = f"e to the entropy of the {len(total)} semantic codes"
            yield made(name="perplexity", value=perplexity(total), better="neither", note=note)
            if not classed:
                continue
            known = labels[self.split] >= 0
            found = self._told(heard.used[known], labels[self.split][known], classes)
            note = "bits that one semantic token tells of its signal's class"
            yield made(
                name="mutual_information", value=found.value, better="higher", unit="bits/token", low=found.low,
                high=found.high, n=found.n, note=note,
            )  # fmt: skip
            shown = self._heard(module, sources["train"], train, run).used
            there = labels["train"] >= 0
            weights = fitted(_shares(shown[there]), labels["train"][there], classes, self.penalty)
            said = scores(_shares(heard.used[known]), weights).argmax(-1)
            rights[name] = (said == labels[self.split][known]).double()
            found = bootstrap_mean(rights[name], draws=self.draws)
            yield made(
                name="accuracy", value=found.value, better="higher", low=max(found.low, 0.0), high=min(found.high, 1.0),
                n=found.n, note="of a linear probe on how often each semantic code occurs in a signal",
            )  # fmt: skip
        yield from self._differences(rights)

    def _differences(self, rights: dict[str, Tensor]) -> Iterator[Finding]:
        last = next(reversed(rights), "")
        for name in rights:
            if name != last:
                found = bootstrap_mean(rights[last] - rights[name], draws=self.draws)
                yield Finding(
                    name="accuracy", value=found.value, subject=last, versus=name, better="higher", low=found.low,
                    high=found.high, n=found.n, over="signals", split=self.split,
                )  # fmt: skip

    @torch.no_grad()
    def _classifier(self, name: str, module: nn.Module, source: Any, run: Run) -> Finding:
        """How often a module that names classes is right: what a teacher that knows them could tell at best."""
        right: list[Tensor] = []
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            said = dense(logits_of(module, batch)).argmax(-1)
            right.append((said == batch["labels"])[batch["labels"] >= 0].double().cpu())
        found = bootstrap_mean(torch.cat(right), draws=self.draws)
        return Finding(
            name="accuracy", value=found.value, subject=name, better="higher", low=found.low, high=found.high, n=found.n,
            over="signals", split=self.split, note="of what it says itself",
        )  # fmt: skip

    def _told(self, used: Tensor, labels: Tensor, classes: int) -> Interval:
        """Mutual information over signals `[N, codes]` with its interval, which is left out where it would take too long."""
        codes = used.shape[1]
        if used.numel() * classes > CELLS:
            return Interval(float(information(F.one_hot(labels, classes).double().T @ used)), -math.inf, math.inf, len(used))
        joint = (F.one_hot(labels, classes).unsqueeze(-1) * used.unsqueeze(1)).flatten(1)
        found = bootstrap(joint, lambda sums: information(sums.unflatten(1, (classes, codes))), draws=self.draws)
        return Interval(found.value, max(found.low, 0.0), found.high, found.n)

    @torch.no_grad()
    def _heard(self, module: SignalCodec, source: Any, items: Sequence[int], run: Run) -> Heard:
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for begin in range(0, len(items), self.batch):
            x = to_device(source.batch(items[begin : begin + self.batch], 0), run.device)["inputs"]
            coded = module(x)
            used = [counts(codes, module.semantic) for codes in coded.semantic.codes]
            error = (coded.heard.float() - x).square().flatten(1).mean(1)
            rows.append((torch.stack(used), error, x.square().flatten(1).mean(1)))
        return Heard(*(torch.cat(part).cpu().double() for part in zip(*rows, strict=True)))


def _labels(source: Any, items: Sequence[int]) -> Tensor:
    found = source.batch(items, 0).get("labels")
    return torch.full((len(items),), -1) if found is None else found


def _shares(used: Tensor) -> Tensor:
    """How often each code occurs, one on average."""
    return used / used.mean(1, keepdim=True)


def scores(inputs: Tensor, weights: Tensor) -> Tensor:
    """Logits `[N, classes]` of inputs `[N, d]` for weights `[d + 1, classes]`, of which the last row is the bias."""
    return inputs @ weights[:-1] + weights[-1]


def fitted(inputs: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """`[d + 1, classes]`: the weights of softmax regression; the minimum of mean NLL + penalty |W|², which is unique."""
    weights = torch.zeros(inputs.shape[1] + 1, classes, dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scores(inputs, weights), labels) + penalty * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def information(joint: Tensor) -> Tensor:
    """Mutual information in bits of joint counts `[..., A, B]`."""
    p = joint / joint.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)
    parts: Sequence[Tensor] = [
        torch.special.entr(p.sum(-1)).sum(-1), torch.special.entr(p.sum(-2)).sum(-1), -torch.special.entr(p).sum((-2, -1))
    ]  # fmt: skip
    return torch.stack(list(parts)).sum(0) / torch.log(torch.tensor(2.0, dtype=p.dtype))
