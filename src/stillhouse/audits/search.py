"""Which student of a space to train? The stage `Search` scores students without training them, and ranks them."""

from __future__ import annotations

import csv
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch

from ..core.run import Run, RunError
from ..models.space import Choice, Space
from ..objectives.proxies import kendall
from .proxies import Proxy, Untrained, labelled

TRIES = 1000  # draws in a row that may be outside the caps
TOLD = 5  # of the best


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Regularised evolution (Real et al. 2018, arXiv 1802.01548): a child of a good parent comes, the oldest goes."""

    population: int = 20
    tournament: int = 10  # drawn from the population to find a parent
    best: int = 5  # of the tournament, of which one is the parent

    def __post_init__(self) -> None:
        if not 1 <= self.best <= self.tournament <= self.population:
            raise ValueError("best is at most tournament, tournament at most population, and all are 1 or more")


def evolved(
    first: Callable[[], Choice],
    child: Callable[[Choice], Choice],
    fitness: Callable[[Choice], float],
    *,
    evolution: Evolution | None,
    budget: int,
    draw: torch.Generator,
) -> list[Choice]:
    """The `budget` architectures that were drawn, in order: by evolution, or all by `first` if there is none."""
    alive: deque[Choice] = deque()
    seen: list[Choice] = []
    while len(seen) < budget:
        if evolution is None or len(alive) < evolution.population:
            new = first()
        else:
            drawn: list[int] = torch.randperm(len(alive), generator=draw)[: evolution.tournament].tolist()
            ranked = sorted((alive[i] for i in drawn), key=fitness, reverse=True)  # the best first
            new = child(ranked[int(torch.randint(evolution.best, (), generator=draw))])
            alive.popleft()
        fitness(new)
        alive.append(new)
        seen.append(new)
    return seen


@dataclass(slots=True)
class Student:
    """One student of the space."""

    choice: Choice
    settings: Mapping[str, Any]
    parameters: int
    flops: int
    score: float = math.nan
    beside: dict[str, float] = field(default_factory=dict[str, float])

    def key(self) -> tuple[float, int]:
        """To sort by: the best score first, of equal ones the smaller student."""
        return (-self.score if math.isfinite(self.score) else math.inf, self.parameters)

    def plain(self) -> dict[str, Any]:
        """As JSON, which knows no infinity."""
        scores = {name: value if math.isfinite(value) else None for name, value in self.beside.items()}
        own = self.score if math.isfinite(self.score) else None
        return {
            "choice": self.choice, "settings": dict(self.settings), "parameters": self.parameters, "flops": self.flops,
            "score": own, "beside": scores,
        }  # fmt: skip

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{told} ({self.parameters:,} parameters, {self.flops / 1e6:.3g} MFLOPs)"


@dataclass(frozen=True, kw_only=True)
class Search:
    """Rank the students of a space that are within the caps; `models.space.Picked` is the first.

    A space of at most `budget` students is gone through; in a larger one so many are drawn, by evolution or at random. The
    artifact holds `value.json` and `ranked.csv`. A run that is stopped here begins the stage anew.
    """

    space: Space
    score: Proxy
    beside: tuple[Proxy, ...] = ()  # other scores of the same students, told with their rank correlation
    teacher: Any = None  # ModelSpec; None: that of the recipe's only teacher
    parameters: int | None = None  # at most so many
    flops: int | None = None  # at most so many for one item
    budget: int = 100  # students drawn
    evolution: Evolution | None = Evolution()  # None: at random
    batch: int = 64  # labelled items that they are looked at with
    draws: int = 1  # of random weights, over which a score is averaged
    kind: ClassVar[str] = "search"

    def __post_init__(self) -> None:
        if min(self.budget, self.batch, self.draws) < 1:
            raise ValueError("budget, batch and draws are 1 or more")
        names = [_name(proxy) for proxy in (self.score, *self.beside)]
        if len(set(names)) < len(names):
            raise ValueError(f"two scores have one name: {', '.join(names)}")

    def __call__(self, run: Run) -> None:
        """Look, rank, write, tell."""
        began = time.monotonic()
        run.source, run.step = run.sources()["train"], 0
        bench = Bench(self, run)
        draw = run.rng("search")
        if len(self.space) <= self.budget:
            within = [choice for choice in self.space if bench.counted(choice)]
            bench.planned = len(within)
            for place in torch.randperm(len(within), generator=draw).tolist():  # so that the first few are like the rest
                bench.fitness(within[place])
        else:
            evolved(
                lambda: bench.some(lambda: self.space.random(draw)),
                lambda parent: bench.some(lambda: self.space.mutated(parent, draw)),
                bench.fitness, evolution=self.evolution, budget=self.budget, draw=draw,
            )  # fmt: skip
        ranked = sorted((s for s in bench.students.values() if s.choice in bench.scores), key=Student.key)
        if not ranked:
            raise RunError(bench.why_none())
        seconds = time.monotonic() - began
        agreement = {
            name: kendall(*(torch.tensor(v, dtype=torch.float64) for v in zip(*pairs, strict=True)))
            for name in (_name(proxy) for proxy in self.beside)
            if (pairs := [(s.score, s.beside[name]) for s in ranked])
        }
        with run.artifact(run.stage, kind=self.kind, seconds=seconds) as folder:
            self._write(ranked, agreement, folder)
        self._tell(run, ranked, agreement, bench, seconds)

    def _write(self, ranked: list[Student], agreement: Mapping[str, float], folder: Path) -> None:
        tau = {name: value if math.isfinite(value) else None for name, value in agreement.items()}
        value = {"score": _name(self.score), "ranked": [s.plain() for s in ranked], "kendall": tau}
        (folder / "value.json").write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
        with (folder / "ranked.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["place", *self.space.values, "parameters", "flops", _name(self.score), *agreement])
            for place, s in enumerate(ranked, 1):
                others = (s.beside[name] for name in agreement)
                table.writerow([place, *s.settings.values(), s.parameters, s.flops, s.score, *others])

    def _tell(self, run: Run, ranked: list[Student], agreement: Mapping[str, float], bench: Bench, seconds: float) -> None:
        best, score = ranked[0], _name(self.score)
        run.event("note", text=f"{score} chose {best} of {len(ranked)} students in {seconds:.1f} s")
        if agreement:
            told = ", ".join(f"{name} {value:+.2f}" for name, value in agreement.items())
            run.event("note", text=f"Kendall's tau with {score} over {len(ranked)} students, seed {run.seed}: {told}")
        left = len(bench.students) - len(ranked)
        bench.say(f"{len(ranked)} students ranked by {score} in {seconds:.1f} s; {left} outside the caps or not looked at")
        for place, student in enumerate(ranked[:TOLD], 1):
            bench.say(f"  {place}. {student}: {student.score:.4g}")


class Bench:
    """The students that were counted and scored so far."""

    def __init__(self, search: Search, run: Run):
        self.search, self.run, self.planned = search, run, search.budget
        self.items = labelled(run.source, search.batch, run.rng("items"))
        spec = search.teacher or _spec_of_teacher(run)
        self.teachers = [Untrained(spec, self.items, run, draw, teacher=True) for draw in range(search.draws)]
        self.students: dict[Choice, Student] = {}
        self.refused: dict[Choice, str] = {}  # why one cannot be built
        self.scores: dict[Choice, float] = {}
        self.taken: list[float] = []  # seconds that each took

    def say(self, text: str) -> None:
        """A line for who watches."""
        if self.run.progress is not None and hasattr(self.run.progress, "say"):
            self.run.progress.say(text)

    def counted(self, choice: Choice) -> bool:
        """Whether the student can be built and is within the caps."""
        if choice not in self.students and choice not in self.refused:
            settings = self.search.space.settings(choice)
            try:
                made = Untrained(self.search.space.spec(settings), self.items, self.run)
                self.students[choice] = Student(choice, settings, made.parameters, made.flops)
            except (ValueError, RunError) as error:
                self.refused[choice] = str(error)
        student = self.students.get(choice)
        return student is not None and self._within(student)

    def _within(self, student: Student) -> bool:
        caps = ((student.parameters, self.search.parameters), (student.flops, self.search.flops))
        return all(most is None or count <= most for count, most in caps)

    def some(self, make: Callable[[], Choice]) -> Choice:
        """A student within the caps; RunError if many draws in a row give none."""
        for _ in range(TRIES):
            choice = make()
            if self.counted(choice):
                return choice
        raise RunError(self.why_none())

    def why_none(self) -> str:
        """What to tell where no student is left."""
        if not self.students:
            return f"no student of the space can be built: {next(iter(self.refused.values()))}"
        least = min(self.students.values(), key=lambda s: s.parameters)
        return f"no student is within the caps; the smallest that was seen has {least}: raise `parameters` or `flops`"

    def fitness(self, choice: Choice) -> float:
        """The student's score, computed once."""
        if choice not in self.scores:
            began = time.monotonic()
            student, spec = self.students[choice], self.search.space.spec(self.students[choice].settings)
            found: dict[str, list[float]] = {}
            for draw, teacher in enumerate(self.teachers):
                made = Untrained(spec, self.items, self.run, draw)
                for proxy in (self.search.score, *self.search.beside):
                    if draw and getattr(proxy, "once", False):
                        continue
                    found.setdefault(_name(proxy), []).append(float(proxy(made, teacher, self.run)))
            means = {name: fmean(values) for name, values in found.items()}
            if math.isnan(student.score):
                student.score = means.pop(_name(self.search.score))
            student.beside = means
            self.scores[choice] = student.score if math.isfinite(student.score) else -math.inf
            self._announce(time.monotonic() - began)
        return self.scores[choice]

    def _announce(self, seconds: float) -> None:
        self.taken.append(seconds)
        done, total = len(self.scores), self.planned
        if done == min(3, total):
            each = fmean(self.taken[1:] or self.taken)  # the first also warms up and looks at the teacher
            text = f"{total} students to score, about {each:.2g} s each: {total * each:.0f} s"
            self.run.event("plan", text=text)
            self.say(f"{self.run.stage}: {text}")
        if self.run.progress is not None:
            self.run.progress.update(self.run.stage, done, total, {}, sum(self.taken))


def _spec_of_teacher(run: Run) -> Any:
    specs = [getattr(spec, "spec", None) for spec in run.recipe.teachers.values()]
    if len(specs) != 1 or specs[0] is None:
        raise RunError("the search needs the teacher's architecture: one teachers.module.ModuleTeacher, or search.teacher")
    return specs[0]


def _name(proxy: Any) -> str:
    return type(proxy).__name__
