"""Retro-Search: Exploring Untaken Paths for Deeper and Efficient Reasoning (Lu et al. 2025).

    V(s_i+1 .. s_N) = gamma^(N - i) R,   R = 1 if the answer at the end is right, else 0
    at every switch i:  s'_i+1 .. s'_N' ~ M'(. | x, s_1 .. s_i),  s'_i+1 opens with no turn
                        s := s_1 .. s_i s'_i+1 .. s'_N'  if V(s') > V(s), else the switch stands
    L = - sum_t log q(s_t | x, s_<t) over the revised traces

A trace that ends right falls into steps s_i, and into thoughts where a step opens with a turn ("Wait", "Alternatively").
At every switch from one thought to the next the reviser M' goes on from what stands before it, kept from turning away in
its first step alone: was the path that was left any good? If it leads to the right answer in fewer steps it takes the
place of all that followed, and the walk goes on inside it. A student q learns the revised traces. M' may be the trace's
author, the student itself, or a model weaker than both.

With an R of 0 or 1 gamma decides nothing as long as it is below 1: the new path must be right and have fewer steps.

Sure, from the paper's summaries: steps at blank lines, thoughts at turns, the turn suppressed in the first step only, the
value's form, replacing and walking on inside. From memory or ours: gamma 0.9, one path for every switch, temperature 0.6
and top p 0.95, most of the list of turns, and that `partial` begins at a switch drawn evenly.

Differs from the paper: where a teacher cannot be kept from words (a server), `held="rejected"` draws until a path does not
open with a turn. Walks have a limit (`most`). Questions go round by round, all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Completion, Kind
from ...data.tasks import Chain
from ...synth.asking import Turns, Unfit, Wording, check_columns, check_new, gone_through, most_of
from ...synth.finals import Final
from ...synth.generate import Generate
from ...synth.rules import Rules
from ...synth.scripts.solver import Solver
from ...synth.segment import Segment, Thoughts
from ...synth.select import Top
from ...synth.steps import Need, Row
from ...synth.verify import Verify
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost, begins_with
from ..traced import CHAINS, END, on_traced_chains, on_traced_questions

PAPER = Paper(
    id="retro_search",
    title="Retro-Search: Exploring Untaken Paths for Deeper and Efficient Reasoning",
    authors=("Ximing Lu", "Seungju Han", "David Acuna", "Hyunwoo Kim", "Jaehun Jung", "Shrimai Prabhumoye",
             "Niklas Muennighoff", "Mostofa Patwary", "Mohammad Shoeybi", "Bryan Catanzaro", "Yejin Choi"),
    year=2025,
    arxiv="2504.04383",
    modality=("text",),
    data=("tasks",),
    claim="Traces in which needless switches of thought were undone make students that think more briefly and better.",
)  # fmt: skip

TWICE = r"([+*-]\d).*\1"  # of two equal operations one cannot tell which a step takes back


def worth_more(new: int, right: bool, old: int, gamma: float) -> bool:
    """Whether gamma^new R > gamma^old, for so many further steps, the old ones being right."""
    return right and (new - old) * math.log(gamma) > 0  # the powers themselves may be too small to be told apart


@dataclass
class Walk:
    """One trace under revision."""

    row: Row
    words: Turns
    steps: list[str]
    at: list[int]  # switches that are left: the numbers of the steps that begin a thought
    tries: int = 0  # paths at this switch that were turned down because they turn
    rollouts: int = 0
    replaced: int = 0
    failed: int = 0  # switches for which no path was found

    @property
    def begun(self) -> str:
        """What stands before the switch."""
        return "".join(self.steps[: self.at[0]])


@dataclass(frozen=True, kw_only=True)
class RetroSearch:
    """Revise a column of traces: undo the switches of thought behind which a right and shorter way was left.

    The row comes out with the revised trace in `column`, the old one in `was`, and COLUMN_steps, COLUMN_steps_was,
    COLUMN_rollouts, COLUMN_replaced and COLUMN_failed: steps after and before, paths asked for, paths taken, and switches
    that stand because no path came (lost, cut off, or turning at once each time). Lost: a row without trace or truth, and
    one whose trace does not end right. Holds `together` rows at a time.
    """

    column: str = "trace"
    prompt: str = "{{ question }}"  # what the trace answers
    system: str = ""
    truth: str = "truth"  # the column with what is right
    was: str = "original"
    thoughts: Thoughts = Thoughts()
    final: Final = Final()
    gamma: float = 0.9  # worth of a path for every step that it has
    partial: bool = False  # True: begin at a switch drawn evenly, and leave those before it as they are: cheaper
    held: Literal["suppressed", "rejected"] = "suppressed"  # how a path is kept from turning in its first step
    tries: int = 4  # paths for a switch, at most, if they are rejected
    most: int = 16  # paths for a trace, at most
    decoding: Decoding = Decoding(temperature=0.6, top_p=0.95, max_new=8192)
    teacher: str = "reviser"
    together: int = 4096  # rows that are walked at the same time

    def __post_init__(self) -> None:
        check_new(self.column, self.was)
        if self.column == self.was:
            raise ValueError("was is the column for the trace as it was, and another than that of the revised one")
        if not 0 < self.gamma < 1:
            raise ValueError("gamma must lie between 0 and 1: at 1 no path would be better for being shorter")
        if min(self.tries, self.most, self.together) < 1:
            raise ValueError("tries, most and together must be 1 or more")
        if self.held == "rejected" and self.tries > 1 and not self.decoding.temperature:
            raise ValueError("rejecting needs a decoding temperature above 0: at 0 every try is the same")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order, revised."""
        table = gone_through(rows)
        check_columns([self.column, self.truth], table, "the revision")
        wording = Wording(self.prompt, self.system)
        wording.check(table)
        waiting = iter(table)
        while some := list(islice(waiting, self.together)):
            walks: list[Walk] = []
            for row in some:
                try:
                    walks.append(self._begin(row, wording, run))
                except Unfit as error:
                    run.work.lose(row, str(error))
            while going := [walk for walk in walks if walk.at and walk.rollouts < self.most]:
                for walk, answer in run.work.ask(self.teacher, ((walk, self._ask(walk, run)) for walk in going)):
                    self._hear(walk, answer)
            yield from map(self._revised, walks)

    @property
    def needs(self) -> frozenset[Kind]:
        """A teacher that goes on from what was begun and, unless paths are rejected, can be kept from words."""
        held: frozenset[Kind] = frozenset({"suppression"}) if self.held == "suppressed" else frozenset()
        return frozenset[Kind]({"text", "continuation"}) | held

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """As many paths for every row as are allowed: how many switches a path brings, nobody knows before."""
        wording = Wording(self.prompt, self.system)

        def size(row: Row) -> int:
            return wording.size(row) + len(str(row.get(self.column, "")).encode()) // 4

        return {self.teacher: most_of(rows, size, self.most, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, as long as they are."""
        return [{**row, self.was: row.get(self.column, "")} for row in rows]

    def _begin(self, row: Row, wording: Wording, run: Run) -> Walk:
        """The walk over a row's trace; Unfit if there is nothing to revise."""
        for name in (self.column, self.truth):
            if row.get(name) in (None, ""):
                raise Unfit(f"no {name}")
        trace = str(row[self.column])
        if not self.final.right(trace, str(row[self.truth])):
            raise Unfit("the trace does not end right")
        steps = self.thoughts.steps(trace)
        at = self.thoughts.switches(steps)
        if self.partial and at:
            at = at[run.work.rng(row["_id"], "first").randrange(len(at)) :]
        return Walk(row, wording.messages(row), steps, at)

    def _ask(self, walk: Walk, run: Run) -> Ask:
        kept = (*self.decoding.not_first, *self.thoughts.turns) if self.held == "suppressed" else self.decoding.not_first
        drawn = self.decoding.temperature > 0
        seed = run.work.seed(walk.row["_id"], walk.begun, walk.tries) if drawn else 0
        return Ask(walk.words, replace(self.decoding, not_first=kept), seed, dict(walk.row), walk.begun)

    def _hear(self, walk: Walk, answer: Completion | Lost) -> None:
        """Take a path, or let the switch stand, and go to the next one; or try again."""
        walk.rollouts += 1
        place = walk.at[0]
        path = self.thoughts.unled("" if isinstance(answer, Lost) else answer.text)
        turning = begins_with(path, self.thoughts.turns)
        if turning and self.held == "rejected" and walk.tries + 1 < self.tries:
            walk.tries += 1
            return
        walk.tries = 0
        if isinstance(answer, Lost) or not answer.finished or turning:
            walk.failed += 1
            walk.at = walk.at[1:]
            return
        new = self.thoughts.steps(path)
        right = self.final.right(walk.begun + path, str(walk.row[self.truth]))
        if worth_more(len(new), right, len(walk.steps) - place, self.gamma):
            walk.steps = [*walk.steps[:place], *new]
            walk.at = [number for number in self.thoughts.switches(walk.steps) if number > place]
            walk.replaced += 1
        else:
            walk.at = walk.at[1:]

    def _revised(self, walk: Walk) -> Row:
        row, name = walk.row, self.column
        text = "".join(walk.steps).rstrip() if walk.replaced else row[name]
        counts = {"rollouts": walk.rollouts, "replaced": walk.replaced, "failed": walk.failed, "steps": len(walk.steps)}
        was = {self.was: row[name], f"{name}_steps_was": len(self.thoughts.steps(str(row[name])))}
        return {**row, name: text, **was, **{f"{name}_{what}": count for what, count in counts.items()}}


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains of three operators, a script that strays and re-checks as author and as reviser (smoke, small); a
    file of questions, with one served model that revises its own traces (paper)."""
    if scale == "paper":
        drawn = Decoding(temperature=0.6, top_p=0.95, max_new=8192)
        server = HttpChat(url="http://localhost:8000/v1", model="teacher", continues=True)
        steps = {
            "solve": Generate(prompt="{{ question }}", into="trace", decoding=drawn, teacher="author"),
            "revise": RetroSearch(held="rejected", final=Final(check="math"), decoding=drawn),
        }
        return on_traced_questions(
            "retro_search", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"author": server, "reviser": server}, steps,
            answer="trace", optim=Optim(lr=1e-5, schedule="cosine", warmup=0.1), length=16_384, updates=500, batch=32,
        )  # fmt: skip
    chains = pick(
        scale,
        smoke=Chain(ops=(2,), base=3, train=80, valid=6, test=24),
        small=Chain(ops=(3,), base=7, train=3000, valid=240, test=600),
        paper=Chain(),
    )
    script = Scripted(script=Solver(data=chains, detour=0.2, again=0.5, wrong=0.02))
    drawn = Decoding(temperature=1.0)
    steps = {
        "plain": Rules(column="question", forbidden=(TWICE,)),
        "solve": Generate(prompt="{{ question }}", into="trace", decoding=drawn, teacher="author"),
        "ended": Rules(column="trace", required=(END,)),
        "right": Verify(checks=("number",), answer="trace"),
        "revise": RetroSearch(thoughts=CHAINS, final=Final(pattern=END), decoding=drawn),
    }
    teachers = {"author": script, "reviser": script}
    return on_traced_chains(
        "retro_search", scale, chains, teachers, steps, answer="trace", temperature=0.6, label="Retro-Search"
    )


def proof() -> Proof:
    """Revised traces against the same as they were, and against the shortest of several right ones at equal rollouts."""
    ours = recipe("small")
    make = ours.stages["make"].steps
    several = {"solve": replace(make["solve"], each=3)}
    short = {"steps": Segment(thoughts=CHAINS), "best": Top(by="steps", k=1, group="question", lowest=True)}
    return Proof(
        claim="A student that learns revised traces solves more unseen chains directly (right, and in no more tokens than"
        " the worked solution) than one that learns the traces as they were, and than one that learns the shortest right of"
        " as many traces as revising takes paths.",
        arms={
            "ours": ours,
            "original": ours.set("train.data.answer", "original"),
            "shortest": ours.set("make.steps", {name: several.get(name, make[name]) for name in list(make)[:-1]} | short),
            "partial": ours.set("make.steps.revise.partial", True),
        },
        metric="solved_directly",
        beats=("original", "shortest"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 2e-2)},
        minutes=12.0,
        note="Chains modulo 7 of three operators, 3,000 questions less those in which an operation occurs twice, in full"
        " rows: 1,500 steps of 6 rows of 192 tokens for every arm. Author and reviser are the same script, which strays at"
        " one step of five, writes half of all steps once more and gets one in fifty wrong. `original` learns the traces of"
        " the same rows before they were revised. `shortest` has three traces of each question, more rollouts and more"
        " tokens than a trace and its revision take. Judged at temperature 0.6; the share solved at any length and the"
        " tokens of an answer are in the arms' audits. `partial`, which begins at a switch drawn evenly, is not in the"
        " claim.",
    )
