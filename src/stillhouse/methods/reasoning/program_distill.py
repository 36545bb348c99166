"""Leveraging Training Data in Few-Shot Prompting for Numerical Reasoning (Jie and Lu 2023): dynamic program prompting
and program distillation.

    P(q) = the first p ~ LM(. | fixed demonstrations, q) with |run(p) - a| < 0.01      temperature 0, then 0.5
    prompting:     p ~ LM(. | (q_1, P(q_1)), ..., (q_k, P(q_k)), q),   q_i the training questions most like q, nearest first
    distillation:  L = - log s(P(q) | q);   at test time the answer is run(greedy program of s)

q is a question with a number a as its answer, p a program whose `solution()` returns one, s a small student. A program is
kept if it was run and gave the right number, so training data become demonstrations and targets without anybody writing
one; questions without a program are tried again, then once more with the programs of their neighbours shown. What a
student that writes programs has to learn is what to reckon, not how: it should stay right where numbers are larger than
in training.

Sure, from the authors' code: greedy first and temperature 0.5 then, five tries, a program is accepted within 0.01, ten
seconds each, eight demonstrations, the nearest first, least similar and random ones as the alternatives, questions without a
program tried again with more prompts; the student's 40 epochs at 2e-5 in batches of 30.

Differs from the authors' code: questions are alike by their hashed n-grams, theirs by the cosine of sentence embeddings.
One of their scripts accepts within 0.001. Their pass over what is left has prompts of its own; here it is shown the
nearest programs. Programs are run in a sandbox. The prompts are ours. The problems of `smoke` and `small`, the script that
plays the teacher and the sizes are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...audits.coverage import Coverage
from ...audits.elsewhere import Elsewhere
from ...audits.solved import Solved
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Kind
from ...core.stage import Audit, Train
from ...data.problems import Problems
from ...data.tasks import Questions
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...synth.flow import Rounds, estimated
from ...synth.generate import Generate
from ...synth.made import Answered
from ...synth.reckon import Reckon, Reckoned
from ...synth.sandbox import Sandbox
from ...synth.scripts.programmer import Programmer
from ...synth.shown import Beside, Choice, Shown
from ...synth.steps import Need, Row
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Decoding
from ..classics.supervised import Supervised

PAPER = Paper(
    id="program_distill",
    title="Leveraging Training Data in Few-Shot Prompting for Numerical Reasoning",
    authors=("Zhanming Jie", "Wei Lu"),
    year=2023,
    arxiv="2305.18170",
    venue="ACL Findings",
    modality=("text",),
    data=("tasks",),
    claim="Programs that were run and gave the right number are better demonstrations, and better targets for a student,"
    " than answers or worked steps.",
)
TASK = """Write Python that answers the question: a function solution() that takes nothing and returns the number. Write the
code alone, with a name for every quantity that the question tells.

Question: A farm has 4 rows of 6 trees and plants 5 more. How many trees are there?
def solution():
    rows = 4
    trees_in_a_row = 6
    planted = 5
    return rows * trees_in_a_row + planted

Question: Ann had $50 and spent a fifth of it on a book. How much is left?
def solution():
    money = 50
    share_spent = 1 / 5
    return money - money * share_spent

{% for each in shown | default([]) %}
Question: {{ each.question }}
{{ each.program }}

{% endfor %}
Question: {{ question }}
"""
COLUMNS = ("question", "program")


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """Every row with a `program` for its `question` that was run and gave its `truth`; rows without one are lost.

    The teacher is asked once at temperature 0, then up to `tries - 1` times at `temperature`, and of what is left up to
    `again` times more with the `shown` most similar questions that have a program, and these. A row says how many `tries`
    it took. One whose answer does not come, or is empty, is lost at once. The last part is a barrier.
    """

    tries: int = 5
    again: int = 1  # tries with demonstrations; 0: none
    shown: int = 8  # demonstrations
    temperature: float = 0.5
    max_new: int = 512  # tokens of a program
    within: float = 0.01  # by which a result may differ from the truth
    prompt: str = TASK  # over the row's columns and `shown`, demonstrations with `question` and `program`
    sandbox: Sandbox = Sandbox()  # ten seconds each
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        if self.tries < 1 or self.again < 0:
            raise ValueError("tries must be 1 or more, and again 0 or more")

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """The steps within."""
        run = Reckon(keep=True, tries="tries", within=self.within, sandbox=self.sandbox)
        cold = Decoding(temperature=0.0, max_new=self.max_new)
        ask = Generate(prompt=self.prompt, into="program", cut=True, decoding=cold, teacher=self.teacher)
        drawn = {"ask": replace(ask, decoding=replace(cold, temperature=self.temperature)), "run": run}
        steps: dict[str, Any] = {"ask": ask, "run": replace(run, keep=self.tries > 1 or self.again > 0)}
        if self.tries > 1:
            steps["drawn"] = Rounds(steps=drawn, until="solved", rounds=self.tries - 1, keep=self.again > 0)
        if self.again:
            steps["show"] = Shown(done="solved", choose="nearest", near="question", columns=COLUMNS, count=self.shown)
            steps["left"] = Rounds(steps=drawn, until="solved", rounds=self.again)
        return {"tries": steps}

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that have a program: `program`, its `result`, `solved` (1) and `tries`."""
        yield from run.work.inside("tries", self.parts["tries"], rows)

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """Every try for every row: the most that it can be."""
        return estimated(self.parts["tries"], rows, run)[0]

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return estimated(self.parts["tries"], rows, run)[1]


def prompted(choose: Choice = "nearest", count: int = 8, teacher: str = "teacher", **rest: Any) -> Synthesize:
    """Dynamic program prompting: the held-out questions, each behind the annotated training questions most like it."""
    near = "" if choose == "random" else "question"
    cold = Decoding(temperature=0.0, max_new=512)
    ask = Generate(prompt=TASK, into="program", cut=True, decoding=cold, teacher=teacher)
    return Synthesize(
        data=Beside(stage="make", choose=choose, near=near, columns=COLUMNS, count=count), split="test",
        steps={"ask": ask, "run": Reckon(keep=True, **rest)},
    )  # fmt: skip


def recipe(scale: Scale = "small") -> Recipe:
    """Problems in words with larger numbers in the test split, and a script that writes programs, often wrong ones (smoke,
    small); a user's questions, a served model and a code model (paper).

    At smoke and small the stages `prompted` and `drawn` ask a reader who only solves what it was shown an example of, with
    the nearest two training questions before each test question and with two random ones.
    """
    if scale == "paper":
        wording = "Write a Python function solution() that returns the answer. Write the code alone."
        tasks: Any = Reckoned(base=Questions(path="gsm8k.jsonl", length=768, instruction=wording))
        student: Any = HubLM(path="Salesforce/codegen-350M-mono")
        teachers: Any = {"teacher": HttpChat(url="http://localhost:8000/v1", model="teacher")}
        make, writing = Synthesize(steps={"annotate": Annotate()}), Sampling(temperature=0.0, max_new=256)
        train = Train(
            method=Supervised(), data=Answered(stage="make", answer="program", packed=False), steps=10000, batch=30,
            optim=Optim(lr=2e-5), precision="bfloat16",
        )  # fmt: skip
        audit = Audit(
            subjects=("start", "train"),
            checks=(Solved(sampling=writing), Coverage(stages=("make", "prompted"), tries="tries")),
        )
        stages = {"make": make, "prompted": prompted(), "train": train, "audit": audit}
        return Recipe(id="program_distill", student=student, data=tasks, teachers=teachers, stages=stages)
    sandbox = Sandbox(seconds=2.0, memory=256 << 20)
    easy, hard = Problems(kinds=("more",), larger=False, train=40, test=20), Problems(train=600, valid=200, test=300)
    problems = replace(pick(scale, smoke=easy, small=hard, paper=hard), style="steps")
    tasks = Reckoned(base=problems, sandbox=sandbox)
    near = Reckoned(base=replace(problems, larger=False), sandbox=sandbox)
    train = Train(
        method=Supervised(), data=Answered(stage="make", answer="program", packed=False),
        steps=pick(scale, smoke=100, small=500, paper=0), batch=pick(scale, smoke=16, small=24, paper=0),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=0.0), warmup=0.1),
    )  # fmt: skip
    judged = Solved(sampling=Sampling(temperature=0.0, max_new=48, batch=300))
    checks = (
        judged,
        Elsewhere(check=judged, data=near, name="small_numbers"),
        Coverage(stages=("make", "prompted", "drawn"), tries="tries"),
    )
    return Recipe(
        id="program_distill",
        student=pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        teachers={
            "teacher": Scripted(script=Programmer()),
            "reader": Scripted(script=Programmer(shown_alone=True)),
        },
        stages={
            "make": Synthesize(steps={"annotate": Annotate(sandbox=sandbox)}),
            "prompted": prompted(count=2, teacher="reader", sandbox=sandbox),
            "drawn": prompted("random", 2, "reader", sandbox=sandbox),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=checks),
        },
    )


def proof() -> Proof:
    """Programs against answers alone and worked steps to the same questions, on larger numbers than in training."""
    whole = recipe("small")
    *judged, coverage = whole.stages["audit"].checks
    audit = replace(whole.stages["audit"], subjects=("train",), checks=(*judged, replace(coverage, stages=("make",))))
    stages = {"make": whole.stages["make"], "train": whole.stages["train"], "audit": audit}
    ours = replace(whole, stages=stages, teachers={"teacher": whole.teachers["teacher"]})
    return Proof(
        claim="A student that learns programs, found by a teacher and accepted when they gave the right number, solves more"
        " questions about larger numbers than in training than one that learns the answers, or worked steps, to the same"
        " questions, at as many rows and steps.",
        arms={
            "ours": ours,
            "answer": ours.set("train.data.answer", "truth"),
            "steps": ours.set("train.data.answer", "solution"),
        },
        metric="solved",
        beats=("answer", "steps"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (1e-3, 3e-3, 1e-2)},
        minutes=10.0,
        note="Problems of five kinds in words, at most one number of a training question above 9 and every number of a test"
        " question; characters as tokens. The teacher is a script: 30 of 100 programs are wrong at temperature 0, 50 of"
        " 100 drawn ones. All arms learn from the same questions, those that it found a program for, in as many steps of as"
        " many rows; an answer has fewer tokens than a program, worked steps more, and steps and answers are never wrong.",
    )
