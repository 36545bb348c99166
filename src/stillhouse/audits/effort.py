"""How much does each student write for what it solves: more for what is hard, and no more than is needed?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.report import Figure, Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..synth.segment import Thoughts
from .solved import Solved

MEANING = {
    "solved_directly": "Share of the tasks that are solved in at most as many tokens as the worked solution has.",
    "tokens_per_step": "By how many tokens an answer is longer for every step more that the worked solution has.",
}


@dataclass(frozen=True, kw_only=True)
class Effort(Solved):
    """What `Solved` finds; `solved_directly`: right, and no longer than the worked solution; and both by difficulty.

    A task is as difficult as its worked solution has steps. `solved_at_D` and `answer_tokens_at_D` are about the tasks of
    difficulty D, `tokens_per_step` is the slope of an answer's tokens against D (least squares; its interval is over
    tasks, given their difficulties). With one difficulty, or more than `most` of them, the latter or the former is left
    out.
    """

    separator: str = r"\n+"  # of the worked solution's steps, a regular expression
    most: int = 12  # difficulties told one by one

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, run: Run, subjects: Subjects
    ) -> Iterable[Finding | Figure]:
        """The findings, then two figures."""
        points: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for finding in super().__call__(run, subjects):
            name, _, level = finding.name.rpartition("_at_")
            if name and finding.versus is None:
                points.setdefault((name, finding.subject), []).append((float(level), finding.value))
            yield finding
        for name, what in (("solved", "tasks solved"), ("answer_tokens", "tokens of an answer")):
            series = {subject: found for (metric, subject), found in points.items() if metric == name}
            if series:
                title = f"{what.capitalize()} by difficulty"
                yield Figure(title=title, x="steps of the worked solution", y=what, series=series)

    def _measure(self, module: Any, tasks: Any, prompts: list[list[int]], run: Run) -> dict[str, Tensor]:
        found = super()._measure(module, tasks, prompts, run)
        known = run.sources(tasks)[self.split].tasks[: len(found["solved"])]
        coder, cut = tasks.coder(run), Thoughts(separator=self.separator)
        if self.samples == 1:  # of one answer it can be told whether it was right and short
            room = torch.tensor([len(coder.answer(task.question, task.solution)) for task in known])
            found["solved_directly"] = found["solved"] * (found["answer_tokens"] <= room)
        return found | by_difficulty(found, [len(cut.steps(task.solution)) for task in known], self.most)

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        tokens = metric.startswith(("answer_tokens", "tokens_per_step"))
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="tasks", split=self.split, better="neither" if tokens else "higher", unit="tokens" if tokens else "",
            note=MEANING.get(metric, ""),
        )  # fmt: skip


def by_difficulty(found: dict[str, Tensor], difficulty: Sequence[int], most: int) -> dict[str, Tensor]:
    """Values over the tasks of each difficulty; and values over all tasks whose mean is the slope of tokens against it."""
    d = torch.tensor(difficulty, dtype=torch.float64)
    levels = sorted(set(difficulty))
    made: dict[str, Tensor] = {}
    if len(levels) < 2:
        return made
    for level in levels if len(levels) <= most else ():
        here = d == level
        made |= {f"{name}_at_{level}": found[name][here] for name in ("solved", "answer_tokens")}
    apart, tokens = d - d.mean(), found["answer_tokens"].double()
    made["tokens_per_step"] = len(d) * apart * (tokens - tokens.mean()) / apart.square().sum()
    return made
