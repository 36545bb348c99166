"""How good are the rows that a stage let pass, how many good ones did it lose, and what did each of them cost?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..synth.synthesize import account_of, lost_rows, made_rows
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Findings about the stage itself; precision and recall where a script knows which are right (`_truth.right`)."""

    stage: str = "make"
    aside: tuple[str, ...] = ("clean", "dedup")  # steps whose losses say nothing about a row's answer
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """Rows, tokens and tokens a row; the share of right rows, and the share of right answers that passed."""
        rows, account = made_rows(run, self.stage), account_of(run, self.stage)
        tokens = sum(paid["tokens"] for paid in account["teachers"].values())
        yield Finding(name="rows_made", value=len(rows), subject=self.stage, n=len(rows))
        yield Finding(name="teacher_tokens", value=tokens, subject=self.stage, better="lower", unit="tokens")
        yield Finding(name="tokens_per_row", value=tokens / len(rows), subject=self.stage, better="lower", unit="tokens")
        passed = [_right(row) for row in rows]
        lost = [_right(each["row"]) for each in lost_rows(run, self.stage) if each["_step"] not in self.aside]
        known = [right for right in passed if right is not None]
        if not known:
            return
        yield self._share("row_precision", known)
        of_right = [True] * sum(known) + [False] * sum(right is True for right in lost)
        if of_right:
            yield self._share("row_recall", of_right)

    def _share(self, name: str, truths: Sequence[bool]) -> Finding:
        found = bootstrap_mean(torch.tensor(truths, dtype=torch.float64), draws=self.draws, seed=0)
        return Finding(
            name=name, value=found.value, low=found.low, high=found.high, n=found.n, over="rows", subject=self.stage,
            better="higher",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PerCall:
    """`rows_per_call`: how many new rows a step has made of each call to its teacher."""

    stage: str = "make"
    step: str = "write"
    teacher: str = "generator"

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """One finding about the stage; none if it has no such step."""
        account = account_of(run, self.stage)
        told = next((each for each in account["steps"] if each["step"] == self.step), None)
        paid = account["teachers"].get(self.teacher)
        calls = 0 if paid is None else paid["calls"] + paid["borrowed"]
        if told is not None and calls:
            value = (told["made"] - told["given"]) / calls
            yield Finding(name="rows_per_call", value=value, subject=self.stage, better="higher", n=int(calls), over="calls")


def _right(row: object) -> bool | None:
    """Whether a row's answer is right; None if nobody knows."""
    truth = row.get("_truth") if isinstance(row, dict) else None
    return bool(truth["right"]) if isinstance(truth, dict) and "right" in truth else None
