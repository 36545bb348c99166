"""Concise Reasoning, Big Gains: Pruning Long Reasoning Trace with Difficulty-Aware Prompting (Wu et al. 2025).

    (d, r') = T(x, r),   r' in the template of level d
    kept:  the answer of r' = y,   |r'| < |r|,   every section of level d is in r'
    L = - sum_t log q(r'_t | x, r'_<t)

A teacher's long trace r about a question x with the answer y is given back to the teacher with one prompt: say how
difficult the problem is, then write the trace anew in the template of that level. Easy problems get a few key steps, hard
ones an analysis, a derivation and a brief check, so that a student q that learns from r' thinks for as long as a problem
deserves, and the same training tokens hold more problems.

Sure, from the authors' repository: judging and rewriting in one prompt, lengths by level, and how the students are trained
(two epochs, learning rate 5e-5, cosine to a tenth, packed to 8,192 tokens). Their prompt is not in the repository: the
three levels, their templates and the three checks are ours.

Differs from the authors' work: our words in the prompt; traces that are wrong are left out before the rewriting. At `small`
both teachers are scripts over arithmetic chains, and the levels are the chains' lengths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Kind
from ...data.tasks import Chain
from ...synth.asking import (
    GUESS,
    Unfit,
    Wording,
    answered,
    check_columns,
    check_new,
    gone_through,
    longest,
    most_of,
    seeds_of,
)  # fmt: skip
from ...synth.finals import Final
from ...synth.flow import bare
from ...synth.generate import Generate
from ...synth.rules import Rules
from ...synth.scripts.pruner import Form, Pruner
from ...synth.scripts.solver import Solver
from ...synth.steps import Need, Row
from ...synth.verify import Verify
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost
from ..traced import END, on_traced_chains, on_traced_questions

PAPER = Paper(
    id="litecot",
    title="Concise Reasoning, Big Gains: Pruning Long Reasoning Trace with Difficulty-Aware Prompting",
    authors=("Yifan Wu", "Jingze Shi", "Bingheng Wu", "Jiayi Zhang", "Xiaotian Lin", "Nan Tang", "Yuyu Luo"),
    year=2025,
    arxiv="2505.19716",
    modality=("text",),
    data=("tasks",),
    claim="Traces that a teacher rewrote as briefly as each problem's difficulty allows teach more than long ones.",
)

PROMPT = """Below is a problem with a long line of thought that solves it.

First judge how difficult the problem is. Then write the solution anew, in the form that belongs to that difficulty:
{% for level in levels %}

{{ level.name }}: {{ level.template }}
{% if level.sections %}
Use these headings: {{ level.sections | join(", ") }}
{% endif %}
{% endfor %}

Keep what the solution needs and its final answer, and leave out detours, repetition and doubts. Begin with one line
"Difficulty: " and the level, and then write the solution alone.

Problem: {{ question }}

Line of thought:
{{ trace }}"""
SAID = re.compile(r"\A\W*difficulty\W*:\W*([\w-]+)[^\n]*\n(.*)\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Level:
    """How a problem of one difficulty is to be worked out."""

    template: str  # the form, in words
    sections: tuple[str, ...] = ()  # what must be there, in this order, whatever its case


LEVELS: Mapping[str, Level] = {
    "easy": Level(template="The few key steps, one a line, without explanation, and the final answer."),
    "medium": Level(
        template="A few named sub-steps, each with a short reason, and the final answer.", sections=("Step 1", "Answer")
    ),
    "hard": Level(
        template="What is asked and what matters, how to go about it, the derivation, one brief check, and the answer.",
        sections=("Analysis", "Plan", "Derivation", "Check", "Answer"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Let a teacher judge each question's difficulty and rewrite its trace in the template of that level.

    The new row has `into`, the rewritten trace, and `level`. Lost, with what the teacher wrote: an answer that did not come,
    was cut off, or names none of the levels; and a trace whose final answer is not the truth, that is not shorter, or that
    lacks a section of its level. Streams.
    """

    levels: Mapping[str, Level] = field(default_factory=lambda: dict(LEVELS))
    trace: str = "trace"  # columns
    truth: str = "truth"
    into: str = "answer"
    final: Final = Final()
    shorter: float = 1.0  # the rewritten trace has fewer characters than this share of the trace
    prompt: str = PROMPT  # may read `trace` and `levels` (name, template, sections) beside the row's columns
    decoding: Decoding = Decoding(temperature=0.0, max_new=4096)
    teacher: str = "rewriter"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.into)
        if not self.levels or not self.shorter > 0:
            raise ValueError("give at least one level, and shorter above 0")
        if len({name.casefold() for name in self.levels}) < len(self.levels):
            raise ValueError("two levels have the same name")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The new rows, each with the row whose trace was rewritten as its parent."""
        work, rows = run.work, gone_through(rows)
        check_columns([self.trace, self.truth], rows, "the rewriting")
        wording, told = self._wording(), self._told()
        wording.check(rows)

        def asks_of(row: Row) -> list[Ask]:
            for name in (self.trace, self.truth):
                if name not in row:
                    raise Unfit(f"no {name}")
            words = wording.messages(row, levels=told, trace=row[self.trace])
            return [Ask(words, self.decoding, seed, dict(row)) for seed in seeds_of(work, row, 1, self.decoding)]

        for row, (answer,) in answered(work, self.teacher, rows, asks_of):
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
                continue
            truth = {} if answer.truth is None else {"_truth": answer.truth}
            level, text = self.read(answer.text)
            why = self.wrong(row, level, text) if answer.finished else "the answer was cut off"
            if why:
                kept = {"rewritten": answer.text, **({"rewritten_truth": answer.truth} if answer.truth else {})}
                work.lose({**row, **kept}, why, was=len(str(row[self.trace])), now=len(text))
            else:
                yield work.child(row, **{**bare(row), self.into: text, "level": level, **truth})

    def read(self, text: str) -> tuple[str, str]:
        """(the level that an answer names, in our letters, the rest of it); ("", all of it) if it names none."""
        found = SAID.match(text)
        names = {name.casefold(): name for name in self.levels}
        level = names.get(found[1].casefold(), "") if found else ""
        return (level, found[2].strip()) if found and level else ("", text)

    def wrong(self, row: Row, level: str, text: str) -> str:
        """What is wrong with a rewritten trace; empty if nothing is."""
        if not level:
            return "it names none of the levels"
        if not self.final.right(text, str(row[self.truth])):
            return "its final answer is not the truth"
        if len(text) >= self.shorter * len(str(row[self.trace])):
            return "it is not shorter than the trace was"
        at, said = 0, text.casefold()
        for section in self.levels[level].sections:
            at = said.find(section.casefold(), at)
            if at < 0:
                return f"the section {section!r} of the level {level!r} is not there, or not in its place"
            at += len(section)
        return ""

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for every row."""
        wording, told = self._wording(), self._told()

        def size(row: Row) -> int:
            return wording.size(row, levels=told, trace=row.get(self.trace, "word" * GUESS))

        return {self.teacher: most_of(rows, size, 1, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the longest answer."""
        return [{**row, self.into: longest(self.decoding), "level": next(iter(self.levels))} for row in rows]

    def _wording(self) -> Wording:
        return Wording(self.prompt, given=("levels", "trace"))

    def _told(self) -> list[dict[str, object]]:
        return [{"name": name, "template": of.template, "sections": list(of.sections)} for name, of in self.levels.items()]


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains of two, three and four operators, both teachers scripts: one re-checks nearly every step, the other
    rewrites (smoke, small); a file of questions and a served model (paper).
    """
    if scale == "paper":
        drawn = Decoding(temperature=0.6, top_p=0.95, max_new=16_384)
        steps = {
            "solve": Generate(prompt="{{ question }}", into="trace", decoding=drawn, teacher="author"),
            "right": Verify(checks=("math",), answer="trace"),
            "prune": Prune(final=Final(check="math")),
        }
        server = HttpChat(url="http://localhost:8000/v1", model="teacher")
        optim = Optim(lr=5e-5, schedule="cosine", final=0.1, warmup=0.05, weight_decay=0.01)
        return on_traced_questions(
            "litecot", "Qwen/Qwen2.5-Math-7B", {"author": server, "rewriter": server}, steps, answer="answer", optim=optim,
            length=8192, updates=650, batch=32,
        )  # fmt: skip
    chains = pick(
        scale,
        smoke=Chain(ops=(1, 2), base=5, train=60, valid=6, test=24),
        small=Chain(ops=(2, 3, 4), base=7, train=3000, valid=240, test=600),
        paper=Chain(),
    )
    levels = pick(scale, smoke={"easy": 1, "hard": 2}, small={"easy": 2, "medium": 3, "hard": 4}, paper={})
    forms: Mapping[str, Form] = {"easy": "steps", "medium": "steps", "hard": "steps" if scale == "smoke" else "checked"}
    script = Solver(data=chains, again=0.8, wrong=0.02, garbled=0.02)
    rewriter = Pruner(
        data=chains, levels=levels, forms={name: forms[name] for name in levels}, misjudged=0.02, wrong=0.02, long=0.02
    )
    drawn = Decoding(temperature=1.0)
    steps = {
        "solve": Generate(prompt="{{ question }}", into="trace", decoding=drawn, teacher="author"),
        "ended": Rules(column="trace", required=(END,)),
        "right": Verify(checks=("number",), answer="trace"),
        "prune": Prune(
            levels={name: Level(template=LEVELS[name].template) for name in levels}, final=Final(pattern=END),
            decoding=replace(drawn, temperature=0.0),
        ),
    }  # fmt: skip
    teachers = {"author": Scripted(script=script), "rewriter": Scripted(script=rewriter)}
    return on_traced_chains("litecot", scale, chains, teachers, steps, answer="answer", label="LiteCoT")


def proof() -> Proof:
    """As brief as each chain allows, against the long traces, against all of them cut short, and in steps for all."""
    ours = recipe("small")
    long = ours.set("train.data.answer", "trace")

    def alike(form: Form) -> Recipe:
        """Every trace in the same form."""
        script = replace(ours.teachers["rewriter"].script, levels={"any": 4}, forms={"any": form})
        made = ours.set("teachers.rewriter.script", script)
        return made.set("make.steps.prune.levels", {"any": Level(template=f"The {form}, and the final answer.")})

    return Proof(
        claim="At equal training tokens a student that learns traces rewritten by difficulty (the necessary"
        " steps, and one check for four operators) solves more unseen chains than one that learns the long traces, and than"
        " one that learns the last step and the answer of them all.",
        arms={"ours": ours, "long": long, "short": alike("last"), "steps": alike("steps")},
        metric="solved",
        beats=("long", "short"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 2e-2)},
        minutes=12.0,
        note="Chains modulo 7 of two, three and four operators, 3,000 questions for every arm. The author's"
        " script writes four of five steps once more and gets one step in fifty wrong; the rewriter's misjudges, corrupts"
        " or does not shorten one trace in fifty each, and the checks see to the last two. Every arm takes 1,500 steps of 6"
        " rows of 192 tokens that are full of traces. `long` learns the long traces of the very rows that passed, so its"
        " teachers were paid the same. `steps`, the necessary steps alone for every chain, is not in the claim. Tokens by"
        " difficulty and their slope are in the arms' audits.",
    )
