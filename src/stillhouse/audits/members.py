"""Which members of a family fit a budget, which of them is nearest to the teacher, and is the nearest the best afterwards?

`MemberSearch` is a stage: it ranks members by their method's distance to the teacher on held-out texts, without training
any of them, and takes the first out. `MemberRanking` tells the report. `RankCheck` is a stage, too: it trains some of the
members by themselves and says how well the ranking foretold how good they become.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Figure, Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects, Train
from ..models.call import weight_of
from ..models.elastic_text import ElasticEncoder, OneMember, Plan, TextFamily, opened, write
from .validation import Validation

RANKING = "ranking.json"
Row = dict[str, Any]  # one member: "stage", "member" (its number), "name", "sizes", "parameters", "flops", "loss"


@dataclass(frozen=True, kw_only=True)
class MemberSearch:
    """Rank the members of one or several families within a budget by their distance to the teacher, and take out the first.

    Each family's stage has a method with `told(batch, run)` and `gap(network, member, batch, told)`. The texts that rank
    are none that a family learned from. Of equal ones the smaller wins. The artifact is the member as a network by itself,
    and `ranking.json`.
    """

    of: tuple[str, ...] = ("train",)  # training stages of families
    parameters: int | None = None  # at most so many; None: any number
    flops: int | None = None  # at most so many for a text of full length; None: any number
    data: Any = None  # DataSpec of the texts that rank; None: the recipe's
    split: str = "valid"
    items: int = 512  # texts, at most
    batch: int = 64  # texts at a time
    student: Any = OneMember()  # how the result is kept
    label: str = ""  # what the report calls it; empty: from the stage's name

    def __post_init__(self) -> None:
        if not self.of or min(self.items, self.batch) < 1:
            raise ValueError("`of` names at least one stage, and items and batch are 1 or more")

    def __call__(self, run: Run) -> None:
        """Rank, write the ranking down, take the first out."""
        fitting, batches = self.fitting(run), self._batches(run)
        ranking: list[Row] = []
        for name in self.of:
            rows = [row for row in fitting if row["stage"] == name]
            method, network = run.recipe.stages[name].method, opened(run.path(name)).to(run.device)
            losses = _losses(method, network, [row["member"] for row in rows], batches, run)
            ranking += [{**row, "loss": loss} for row, loss in zip(rows, losses, strict=True)]
        ranking.sort(key=lambda row: (row["loss"], row["parameters"]))
        best = ranking[0]
        with run.artifact(run.stage, kind="model", chosen=best) as folder:
            write(opened(run.path(best["stage"])).taken(best["member"]), folder)
            (folder / RANKING).write_text(json.dumps(ranking, indent=1), encoding="utf-8")

    def fitting(self, run: Run) -> list[Row]:
        """The members within the budget, not ranked yet; RunError if there are none. Trains and loads nothing."""
        every: list[Row] = []
        for name in self.of:
            stage = run.recipe.stages.get(name)
            spec = getattr(stage, "student", None) or run.recipe.student
            if not isinstance(stage, Train) or not isinstance(spec, ElasticEncoder):
                raise RunError(f"{name!r} trains no family to search in: name stages whose student is an ElasticEncoder")
            plan = spec.plan(run)
            every += [_row(name, number, plan) for number in range(len(plan.members))]
        budget = {"parameters": self.parameters, "flops": self.flops}
        budget = {key: most for key, most in budget.items() if most is not None}
        kept = [row for row in every if all(row[key] <= most for key, most in budget.items())]
        if not kept:
            least = " and ".join(f"{min(row[key] for row in every):,} {key}" for key in budget)
            raise RunError(f"no member is within the budget of the search, the smallest has {least}: raise it")
        return kept

    def _batches(self, run: Run) -> list[Mapping[str, Any]]:
        """The held-out texts."""
        source = run.sources(self.data)[self.split]
        learned = {t for name in self.of for t in run.sources(run.recipe.stages[name].data)["train"].texts}
        kept = [i for i, text in enumerate(source.texts) if text not in learned][: self.items]
        if not kept:
            raise RunError(f"every text to rank by was learned from: give others with {run.stage}.data")
        return [source.batch(kept[i : i + self.batch], 0) for i in range(0, len(kept), self.batch)]


def _row(stage: str, number: int, plan: Plan) -> Row:
    member = plan.members[number]
    numbers = {"parameters": plan.parameters(member), "flops": plan.flops(member)}
    return {"stage": stage, "member": number, "name": member.name, "sizes": asdict(member), **numbers}


@torch.no_grad()
def _losses(
    method: Any, network: TextFamily, members: Sequence[int], batches: Sequence[Mapping[str, Any]], run: Run
) -> list[float]:
    """The mean distance to the teacher of each member."""
    sums, count = torch.zeros(len(members), dtype=torch.float64), 0.0
    for batch in batches:
        here = to_device(batch, run.device)
        weight, told = weight_of(here), method.told(here, run)
        for at, member in enumerate(members):
            sums[at] += float((weight * method.gap(network, member, here, told)).sum())
        count += float(weight.sum())
    return (sums / count).tolist()


def ranking_of(run: Run, search: str) -> list[Row]:
    """What a search found, the nearest first."""
    return json.loads((run.path(search) / RANKING).read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class MemberRanking:
    """What a search found: the distance and size of the member that it took out, and all distances as a figure."""

    search: str = "search"

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """The findings about the search."""
        rows = ranking_of(run, self.search)
        best = rows[0]
        note = f"{best['name']}: the nearest of {len(rows)} members within the budget, on held-out texts"
        for name, value in (("distance_to_teacher", best["loss"]), ("flops", best["flops"])):
            yield Finding(name=name, value=value, subject=self.search, better="lower", note=note)
        points = sorted((float(row["parameters"]), row["loss"]) for row in rows)
        yield Figure(
            title="Members within the budget", x="parameters", y="distance to the teacher", series={self.search: points}
        )


@dataclass(frozen=True, kw_only=True)
class RankCheck:
    """Train some of the ranked members by themselves, each as stage `train` says, and compare their order with the ranking.

    The members are spread evenly over the ranking. The artifact is findings: Spearman's correlation of closeness to the
    teacher (and, to compare with, of the number of parameters) with accuracy afterwards.
    """

    train: Train
    search: str = "search"
    members: int = 10
    split: str = "valid"
    fresh: bool = False  # train them from new weights, not from those that they have in the family
    kind: ClassVar[str] = "findings"

    def __call__(self, run: Run) -> None:
        """Train, judge, correlate."""
        rows, name = ranking_of(run, self.search), run.stage
        count = min(self.members, len(rows))
        if count < 3:
            raise RunError(f"an order needs 3 members, and of {len(rows)} ranked ones {self.members} are wanted")
        spread = [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]
        right: list[float] = []
        judge = Validation(quantity="accuracy", split=self.split)
        for row in spread:
            run.stage = f"{name}_{row['stage']}_{row['member']}"
            if not run.done(run.stage):
                spec = OneMember(source=row["stage"], member=row["member"], fresh=self.fresh)
                replace(self.train, student=spec)(run)
            right.append(judge(opened(run.path(run.stage)).to(run.device), run))
        run.stage = name
        told = {
            "rank_correlation": ("closeness to the teacher, before it is trained,", [-row["loss"] for row in spread]),
            "rank_correlation_of_size": ("the number of parameters", [float(row["parameters"]) for row in spread]),
        }
        findings = [
            Finding(
                name=key, value=spearman(values, right), subject=self.search, better="higher", n=count, over="members",
                split=self.split, note=f"Spearman's, of {what} with a member's accuracy when it was trained by itself",
            )
            for key, (what, values) in told.items()
        ]  # fmt: skip
        points = sorted((row["loss"], value) for row, value in zip(spread, right, strict=True))
        figure = Figure(
            title="What the ranking foretells", x="distance to the teacher", y="accuracy", series={self.search: points}
        )
        run.save_json(name, [part.plain() for part in (*findings, figure)], kind=self.kind)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The rank correlation; equal values share their mean rank, and where all are equal it is 0."""
    x, y = (_ranks(torch.tensor(v, dtype=torch.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    less, same = (values < values[:, None]).sum(1), (values == values[:, None]).sum(1)
    return less + (same + 1) / 2.0
