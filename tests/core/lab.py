"""What the engine's tests train: a tiny language model on ragged rows, by a method that uses all the engine promises.

Run as a script it is the process that gets killed: `python lab.py FOLDER NAME`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from stillhouse.core.engine import Loop, fit
from stillhouse.core.method import State, Update
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted, Run
from stillhouse.core.signal import Batch, Kind
from stillhouse.core.stage import Train, execute
from stillhouse.data.toys import Sentences
from stillhouse.models.call import logits_of, weight_of
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import cross_entropy

torch.set_num_threads(1)
WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """Two gradient steps of the student, then one of a critic that guesses its losses; `t` follows the loss."""

    noise: float = 0.0  # on the loss, from the global generator and from the run's
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        return State(student=student, critic=nn.Linear(WIDTH, 1), t=0.0)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        weight = weight_of(batch)
        for _ in range(2):
            logits: Any = logits_of(s.student, batch)
            nll = cross_entropy(logits, batch["labels"], weight=weight)
            jitter = torch.randn_like(nll) + torch.rand(nll.shape, generator=run.rng("jitter"))
            scale = (1 + 0.1 * s.t + self.noise * jitter).to(nll.dtype)
            yield Update((nll * scale).sum(), weight.sum(), logs={"t": s.t * weight.sum()})
        guess = s.critic(logits.hidden.detach().to(s.critic.weight.dtype)).squeeze(-1)
        yield Update(((guess - nll.detach()).square() * weight).sum(), weight.sum(), "critic")

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        s.t.copy_(0.9 * s.t + 0.1 * logs["student/loss"])


@dataclass(frozen=True)
class Slow:
    """A source that takes its time, so that there is time to be killed."""

    source: Any
    seconds: float

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> int:
        return self.source.classes

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        time.sleep(self.seconds)
        return self.source.batch(items, epoch)


@dataclass(frozen=True, kw_only=True)
class SlowSentences:
    seconds: float = 0.0

    def load(self, run: Run) -> Mapping[str, Slow]:
        return {name: Slow(source, self.seconds) for name, source in Sentences().load(run).items()}


STEPS = 16
STAGE = Train(
    method=Alternating(noise=0.3), steps=STEPS, batch=8, accumulate=2,
    optim=Optim(lr=3e-3), optims={"critic": Optim(name="sgd", lr=1e-2, schedule="cosine")},
    checkpoint_minutes=0.05 / 60,
)  # fmt: skip
RECIPE = Recipe(
    id="lab", student=TinyLM(width=WIDTH), data=SlowSentences(),
    stages={"first": replace(STAGE, steps=4), "train": STAGE},
)  # fmt: skip
RECIPES = {
    "float32": RECIPE,
    "bfloat16": RECIPE.set("train.precision", "bfloat16"),
    "broken": RECIPE.set("train.optim.lr", 1e30).set("train.optim.schedule", "constant").set("train.optim.clip", None),
}


def start(folder: Path, recipe: Recipe) -> Run:
    """Run the recipe, or what is left of it."""
    run = Run(folder, seed=recipe.seed, device=torch.device("cpu"))
    execute(recipe, run)
    return run


def outcome(run: Run) -> tuple[bytes, str]:
    """Everything that must be the same whenever a run is repeated: its metrics and its weights."""
    mark = run.done("train")
    assert mark is not None
    return (run.folder / "metrics.jsonl").read_bytes(), mark["content"]


def loop(folder: Path, *, method: Any, dtype: torch.dtype = torch.float32, optim: Optim, **settings: Any) -> Loop:
    """A loop around a fresh tiny model, outside any stage."""
    run = Run(folder, device=torch.device("cpu"), horizon=settings.pop("horizon", 5))
    run.recipe = RECIPE
    torch.manual_seed(0)
    state = method.setup(TinyLM(width=WIDTH).build(run).to(dtype), run)
    if dtype == torch.float64:
        state.double()
    return Loop(method, state, run, optim, **settings)


def trained(folder: Path, accumulate: int = 1, size: int = 8, **settings: Any) -> dict[str, torch.Tensor]:
    """The weights after five steps of `size` rows."""
    made = loop(folder, **settings)
    fit(made, Sentences().load(made.run)["train"], steps=5, size=size, accumulate=accumulate)
    return {name: value.clone() for name, value in made.state.state_dict().items()}


if __name__ == "__main__":
    given = RECIPES[sys.argv[2]].set("data.seconds", 0.04)
    print("ready", flush=True)
    try:
        start(Path(sys.argv[1]), given)
    except Interrupted as stopped:
        print(stopped)
        sys.exit(130)
