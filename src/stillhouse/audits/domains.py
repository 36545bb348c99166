"""How far behind its teacher is a student in each domain of the data, and where most?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.signal import Kind
from ..core.stage import Subjects
from ..data.domains import DomainRows
from ..models.call import cast, logits_of, weight_of
from ..objectives.divergences import cross_entropy
from .significance import bootstrap


@torch.no_grad()
def surprise(
    say: Callable[[Any], Any], source: DomainRows, device: torch.device, *, rows: int | None = None, batch: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """(cross-entropy, counted tokens) of each row, [rows] float64 on the CPU, and its domain; `say` maps a batch to logits.

    At most the first `rows` rows of each domain are read.
    """
    chosen = [i for d in range(len(source.names)) for i in source.members(d)[:rows]]
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    for begin in range(0, len(chosen), batch):
        some = to_device(source.batch(chosen[begin : begin + batch], 0), device)
        weight = weight_of(some)
        sums.append(cross_entropy(say(some), some["labels"], weight=weight).double().sum(-1).cpu())
        counts.append(weight.double().sum(-1).cpu())
    return torch.cat(sums), torch.cat(counts), torch.tensor([source.domain_of(i) for i in chosen])


def by_domain(values: Tensor, domain: Tensor, domains: int) -> Tensor:
    """The sums of values [n] in each domain, [domains]."""
    return torch.zeros(domains, dtype=values.dtype).index_add_(0, domain, values)


def domain_nll(say: Callable[[Any], Any], source: DomainRows, device: torch.device, *, rows: int | None = None) -> Tensor:
    """Cross-entropy in every domain, nats a token, [domains] float64; arguments as of `surprise`."""
    sums, counts, domain = surprise(say, source, device, rows=rows)
    n = len(source.names)
    return by_domain(sums, domain, n) / by_domain(counts, domain, n).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DomainGaps:
    """`gap_NAME` = student's loss - teacher's in each domain (log of the ratio of perplexities), `gap_worst`, `gap_mean`.

    `gap_mean` counts every domain once. `versus` names subjects that `ours` is compared with, row by row.
    """

    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    batch: int = 16  # rows at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the differences."""
        source = run.sources()[self.split]
        if not isinstance(source, DomainRows) or not all(source.sizes):
            raise RunError(f"the {self.split} split has no domains, or an empty one: use data.domains.Domains")
        want: frozenset[Kind] = frozenset({"logits"})

        def read(say: Callable[[Any], Any]) -> tuple[Tensor, Tensor, Tensor]:
            return surprise(say, source, run.device, batch=self.batch)

        teachers, counts, domain = read(lambda batch: run.teacher(batch, want).need("logits"))
        n = len(source.names)
        kept = torch.nn.functional.one_hot(domain, n).double()
        gaps: dict[str, Tensor] = {}
        for name in subjects.names:
            if name != "teacher":
                module = cast(subjects.load(name), getattr(torch, self.precision))
                theirs, _, _ = read(lambda batch, module=module: logits_of(module, batch))
                gaps[name] = kept * (theirs - teachers)[:, None]
                yield from self._findings(name, None, gaps[name], kept * counts[:, None], source, run)
        for other in self.versus:
            both = torch.cat([gaps[self.ours], gaps[other]], 1)
            yield from self._findings(self.ours, other, both, kept * counts[:, None], source, run)

    def _findings(
        self, subject: str, versus: str | None, gaps: Tensor, counts: Tensor, source: DomainRows, run: Run
    ) -> Iterable[Finding]:
        n = len(source.names)
        columns = torch.cat([gaps, counts], 1)
        reads: dict[str, Callable[[Tensor], Tensor]] = {
            "gap_worst": lambda each: each.amax(-1),
            "gap_mean": lambda each: each.mean(-1),
            **{f"gap_{name}": lambda each, d=d: each[:, d] for d, name in enumerate(source.names)},
        }
        for name, read in reads.items():

            def statistic(sums: Tensor, read: Callable[[Tensor], Tensor] = read) -> Tensor:
                *parts, tokens = sums.split(n, -1)
                values = [read(part / tokens.clamp(min=1)) for part in parts]
                return values[0] if versus is None else values[0] - values[1]

            found = bootstrap(columns, statistic, draws=self.draws, seed=run.seed)
            yield Finding(
                name=name, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
                over="rows", split=self.split, better="lower", unit="nats/token",
            )  # fmt: skip
