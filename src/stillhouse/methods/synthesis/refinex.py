"""RefineX: Learning to Refine Pre-training Data at Scale from Expert-Guided Programs (Bi et al. 2025, arXiv 2507.03253).

    e = argmin |edits|, edits from d to LM(d) out of keep, delete, insert, replace
    P(d) = the calls remove_lines and remove_str that do the deletions of e alone
    L = - sum_d log q(P(d) | d),     refined d = run(q(d), d), always a subsequence of d

A large model is asked to take the noise out of some documents d and writes each anew; it also adds and rewords a little,
which it was not asked to. A shortest list of edits says what it took away, and that alone is kept, as a program of calls
that delete. A small refiner q learns those programs and goes over the whole corpus; what it leaves holds no new word.

Differs from the paper / the authors' code (the code that we have seen are tables of their rebuttal): the names of the calls
follow ProX, and the limits of what counts as an unreliable rewriting are ours. The refiner here tags characters, and its
program is made of what it tags, where theirs is a language model of 0.6 B that writes the program; pairs of text and program
for such a model are in the rows. Documents are drawn at random, theirs evenly by quality. Edits are counted in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...audits.language import HeldOutText
from ...audits.refined import RefinedTexts
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.stage import Audit, Train
from ...data.noisy import NoisyLibrary
from ...data.tokens import Text
from ...models.hub import HubLM
from ...models.tagger import Tagger
from ...models.toys import TinyLM
from ...synth.deletions import execute, program_of
from ...synth.generate import Generate
from ...synth.refining import Deletions, Refine, Texts
from ...synth.rules import Rules, having, text_in
from ...synth.scripts.cleaner import Cleaner
from ...synth.select import Top
from ...synth.shortest import Unit, aligned, parts_of
from ...synth.steps import Row, Silent
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Decoding
from ..classics.supervised import Supervised

PAPER = Paper(
    id="refinex",
    title="RefineX: Learning to Refine Pre-training Data at Scale from Expert-Guided Programs",
    authors=("Baolong Bi", "Shenghua Liu", "Xingzhang Ren", "Dayiheng Liu", "Junyang Lin", "Yiwei Wang", "Lingrui Mei",
             "Junfeng Fang", "Jiafeng Guo", "Xueqi Cheng"),
    year=2025,
    arxiv="2507.03253",
    modality=("text",),
    data=("documents",),
    claim="A language model learns more from text out of which a small refiner has deleted what a large model would delete.",
)  # fmt: skip

PROMPT = """Clean the document below for the training of a language model. Take out what does not belong to its text:
navigation, advertisements, notices, buttons, lines that are said twice, and strings of garbage. Leave every other word,
sign and line as it is; add nothing, correct nothing, and change no words. Answer with the cleaned document alone.

{{ text }}"""


@dataclass(frozen=True, kw_only=True)
class Programs(Silent):
    """The rows, each with the `program` that takes from its text what the rewriting took away, and nothing else.

    Lost: a row in which too much of the rewriting is new (insertions and replacements), or too much of the text is gone, so
    that the rewriting cannot be trusted; one whose deletions no program says, as they would join lines that stay; and by
    chance some of those in which nothing is to be deleted. Also kept are `new` and `gone`, the two shares, and `took`, the
    text that the program leaves.
    """

    text: str = "text"  # columns
    rewritten: str = "rewritten"
    unit: Unit = "words"
    most_new: float = 0.15  # of the parts of the rewriting
    most_gone: float = 0.9  # of the parts of the text
    untouched: float = 1.0  # share of the rows without anything to delete that pass

    def __post_init__(self) -> None:
        if not (0 <= self.most_new <= 1 and 0 <= self.most_gone <= 1 and 0 <= self.untouched <= 1):
            raise ValueError("most_new, most_gone and untouched are shares between 0 and 1")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows with their programs, one after the other."""
        for row in having(rows, run, self.text, self.rewritten):
            text, work = text_in(row, self.text), run.work
            parts, said = parts_of(text, self.unit), parts_of(text_in(row, self.rewritten), self.unit)
            if not parts or not said:
                work.lose(row, f"nothing in column {self.rewritten if parts else self.text!r}")
                continue
            found = aligned(parts, said)
            new, gone = (found.inserted + found.replaced) / len(said), sum(found.deleted) / len(parts)
            kept = [not deleted for part, deleted in zip(parts, found.deleted, strict=True) for _ in part]
            program = program_of(text, kept)
            if new > self.most_new:
                work.lose(row, "too much of the rewriting is new", new=new)
            elif gone > self.most_gone:
                work.lose(row, "too much of the text is gone", gone=gone)
            elif program is None:
                work.lose(row, "no program says what is gone: lines that stay would be joined")
            elif all(kept) and work.rng("untouched", row["_id"]).random() >= self.untouched:
                work.lose(row, "one of many with nothing to delete")
            else:
                done = execute(text, program)
                assert not done.invalid and done.text == "".join(c for c, keep in zip(text, kept, strict=True) if keep)
                yield {**row, "program": program, "took": done.text, "new": new, "gone": gone}


RULES = Rules(  # of documents, as web corpora are filtered: one that breaks a rule is left out whole
    blacklist=("click here", "cookies", "all rights reserved", "javascript", "subscribe", "sign in", "log in", "logged in"),
    forbidden=(r"(?m)^(.{20,})$(?s:.*)^\1$", r"[#$%&@!^*~]\w*[#$%&@!^*~]"),
)


def recipe(scale: Scale = "small") -> Recipe:
    """Docstrings with noise put into them and a script as expert (smoke, small); a corpus of yours, a served model (paper).

    Stages: the expert rewrites some documents (`make`), the refiner learns from them (`refiner`) and goes over all
    (`refine`), a language model learns from what it leaves (`train`) and another one from the text as it was (`alone`).
    """
    count = pick(scale, smoke=60, small=300, paper=20_000)  # documents that the expert rewrites
    few = Generate(prompt=PROMPT, into="rewritten", decoding=Decoding(temperature=0.0, max_new=2048))
    if scale == "paper":
        data, student = Text(path="corpus.jsonl", length=1024), HubLM(path="HuggingFaceTB/SmolLM2-135M")
        teacher, optim = HttpChat(url="http://localhost:8000/v1", model="expert"), Optim(lr=1e-4)
    else:
        data = pick(
            scale,
            smoke=NoisyLibrary(length=64, train=150, valid=20, test=40),
            small=NoisyLibrary(train=2000, test=200),
            paper=NoisyLibrary(),
        )
        student = pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=48), paper=TinyLM())
        teacher, optim = Scripted(script=Cleaner()), Optim(lr=pick(scale, smoke=1e-2, small=5e-3, paper=1e-4))
    train = Train(
        method=Supervised(), data=Texts(stage="refine"), optim=optim,
        steps=pick(scale, smoke=40, small=300, paper=10_000), batch=pick(scale, smoke=8, small=16, paper=32),
    )  # fmt: skip
    return Recipe(
        id="refinex",
        student=student,
        data=data,
        teachers={"teacher": teacher},
        stages={
            "make": Synthesize(steps={"some": Top(total=count), "rewrite": few, "programs": Programs()}),
            "refiner": Train(
                method=Supervised(), student=Tagger(width=pick(scale, smoke=16, small=32, paper=96)),
                data=Deletions(stage="make", length=pick(scale, smoke=256, small=256, paper=1024)),
                steps=pick(scale, smoke=40, small=150, paper=4000), batch=pick(scale, smoke=8, small=16, paper=64),
                optim=Optim(lr=1e-2 if scale == "smoke" else 4e-3), label="Refiner",
            ),
            "refine": Refine(),
            "train": train,
            "alone": replace(train, data=None),
            "audit_refiner": Audit(subjects=("refiner",), checks=(RefinedTexts(),)),
            "audit": Audit(subjects=("start", "alone", "train"), checks=(HeldOutText(versus=("alone",), teacher=None),)),
        },
    )  # fmt: skip


def proof() -> Proof:
    """Refined text against text as it was, filtered by rules, and the expert's rewritings alone, at equal steps."""
    whole = recipe("small")
    stages = whole.stages
    audit = replace(stages["audit"], subjects=("start", "train"), checks=(HeldOutText(teacher=None),))
    bought = {name: stages[name] for name in ("make", "refiner", "refine")}
    tail = {"train": stages["train"], "audit_refiner": stages["audit_refiner"], "audit": audit}
    ours = replace(whole, stages=bought | tail)
    plain = replace(whole, teachers={}, stages={"train": stages["alone"], "audit": audit})
    filtered = {"rules": Synthesize(steps={"rules": RULES}), "train": replace(stages["train"], data=Texts(stage="rules"))}
    rewritten = {"make": stages["make"], "train": replace(stages["train"], data=Texts(stage="make", column="rewritten"))}
    return Proof(
        claim="At equal training tokens a language model predicts clean text better when a small refiner has taken the noise"
        " out of its corpus than when it learns from the corpus as it is, from the documents that pass rules, or, at the"
        " same cost of the expert, from the documents alone that the expert has rewritten.",
        arms={
            "ours": ours,
            "alone": plain,
            "rules": replace(plain, stages=filtered | {"audit": audit}),
            "rewritten": replace(whole, stages=rewritten | {"audit": audit}),
            "clean": plain.set("data.clean", True),
        },
        metric="nll",
        better="lower",
        beats=("alone", "rules", "rewritten"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (2e-3, 5e-3, 1e-2)},
        minutes=12.0,
        note="300 steps of 16 rows of 128 bytes for all; `clean` learns from the corpus before the noise was put in. The"
        " expert is a script that errs; it rewrites 300 of 2,000 documents.",
    )
