"""Did reinforcement learning break down on its way: did the answers grow short, did the reward fall before it rose?

Read from what stage `stage` logged at every step, smoothed over `window` steps.

    length_drop     1 - min length over the first `early` steps / length at the start; below 0: no drop at any time
    reward_dip      reward at the start - min reward over the first `rewarded` steps
    recovery_steps  steps until the reward is back where it was at the start; the stage's length if it never is
    collapsed       1 if the length dropped by more than `drop`

The start is the mean of the first `window` steps. The shares of 10 % and 20 % and the drop of 40 % are ours: the paper that
names these breakdowns (`bai`) could not be read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.report import Figure, Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """The four numbers about one training stage, and its two curves."""

    stage: str = "train"
    length: str = "student/answer_tokens"  # what it logged
    reward: str = "student/reward"
    early: float = 0.1  # share of the steps in which a collapse of the length counts
    rewarded: float = 0.2  # share of the steps in which a fall of the reward counts
    drop: float = 0.4
    window: int = 3  # steps

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding | Figure]:
        """The findings about the stage."""
        lines = [line for line in run.read("metrics.jsonl") if line["stage"] == self.stage]
        for name in (self.length, self.reward):
            if not lines or name not in lines[0]:
                raise RunError(f"stage {self.stage!r} logged no {name!r}: this audit is for methods that draw answers")
        length, reward = ([line[name] for line in lines] for name in (self.length, self.reward))
        fall = shortened(smooth(length, self.window), self.early)
        dip, steps = dipped(smooth(reward, self.window), self.rewarded)
        for name, value, unit in (
            ("length_drop", fall, ""), ("collapsed", float(fall > self.drop), ""),
            ("reward_dip", dip, ""), ("recovery_steps", float(steps), "steps"),
        ):  # fmt: skip
            yield Finding(name=name, subject=self.stage, value=value, unit=unit, better="lower", n=len(lines), over="steps")
        for title, values in (("Length of the answers", length), ("Reward", reward)):
            points = [(float(line["step"]), value) for line, value in zip(lines, values, strict=True)]
            yield Figure(title=f"{title} during training", x="step", y=title.lower(), series={self.stage: points})


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Means over `window` neighbours, whole windows only; all of them if there are fewer."""
    size = min(max(window, 1), len(values))
    return [statistics.fmean(values[i : i + size]) for i in range(len(values) - size + 1)]


def shortened(length: Sequence[float], early: float) -> float:
    """The share by which the shortest of the early lengths is below the first."""
    return 1 - min(length[: max(2, round(early * len(length)))]) / length[0]


def dipped(reward: Sequence[float], rewarded: float) -> tuple[float, int]:
    """(how far the reward falls below the first early on, steps from the start until it is back there)."""
    seen = reward[: max(2, round(rewarded * len(reward)))]
    bottom = min(range(len(seen)), key=seen.__getitem__)
    back = next((i for i in range(bottom, len(reward)) if reward[i] >= reward[0]), len(reward))
    return reward[0] - seen[bottom], back
