"""1.4 Million Open-Source Distilled Reasoning Dataset to Empower Large Language Model Training (Zhao et al. 2025).

    y(x) = r  if  v(x, r) = 1,   else  y ~ teacher(. | x)  if  v(x, y) = 1,   else nothing,      v = v_route(x)

Several sets of questions x, some with a reference answer or tests, some with a response r that somebody has written,
become one set to learn reasoning from. A model says what kind each question is and how hard; of easy and medium ones a
part is left out. Of questions that mean the same one stays, by a policy: first one with a reference or tests. A response
that there is already is kept if it passes verification, and otherwise a teacher writes a new one, which has to pass too.
How v is done depends on x: an answer is compared with the reference, a program is run against its tests in a sandbox, and
everything else is scored, with a cutoff from the distribution of the scores. Rules ask for the tags <think> and <answer>,
and against repetition. Every row says how long it is, its language, its source and its tests.

Sure from the authors' report: all of these steps and their order, the five scores (correctness, helpfulness, coherence,
complexity, verbosity). Not said there, and ours: the policy's numbers, the shares of easy and medium questions that stay,
the cutoff (the share of scored rows that passes), the limit on repetition, the prompts, how often a teacher is asked.

Differs from the paper: the five scores are a judge's, by a rubric, where theirs are a reward model's heads and a judge's
mark beside them; a response to a question with a reference is not also read by a judge.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...audits.faults import Faults
from ...audits.solved import Solved
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.stage import Audit, Train
from ...data.tasks import Chain, Questions
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...synth.dedup import Dedup, HubEncoder
from ...synth.flow import Branch, Rounds
from ...synth.generate import Generate
from ...synth.judge import Judge
from ...synth.made import Answered
from ...synth.pools import StoryUnion
from ...synth.rules import Rules, having, text_in
from ...synth.scripts.examiner import Examiner, Tagger
from ...synth.scripts.solver import Solver
from ...synth.select import Top
from ...synth.steps import Row, Silent
from ...synth.stories import Compact, Gist
from ...synth.synthesize import Synthesize
from ...synth.tag import Tag
from ...synth.union import Union
from ...synth.verify import Verify
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Decoding
from ..classics.supervised import Supervised

PAPER = Paper(
    id="am_1_4m",
    title="1.4 Million Open-Source Distilled Reasoning Dataset to Empower Large Language Model Training",
    authors=("Han Zhao", "Haotian Wang", "Yiping Peng", "Sitong Zhao", "Xiaoyu Tian", "Shuaiting Chen", "Yunjie Ji",
             "Xiangang Li"),
    year=2025,
    arxiv="2503.19633",
    modality=("text",),
    data=("prompts", "tasks", "documents"),
    claim="Plain supervised learning on a verified and deduplicated union of open sets makes a better reasoner than the"
    " distilled model that it is compared with.",
)  # fmt: skip

LEVELS = {
    "easy": "one step is enough",
    "medium": "two steps or three",
    "hard": "more steps, or a thought that is not obvious",
}
KINDS = {"math": "", "code": "a program is wanted", "science": "", "chat": "anything else that people ask"}
ANSWER = """{{ question }}

Think first, between <think> and </think>, and then give the answer alone between <answer> and </answer>."""
QUALITY = """A question:

{{ question }}

A response to it:

{{ response }}

How good is the response, from {{ lowest }} to {{ highest }}? Judge each of these by itself:
{% for name, words in rubric.items() %}
- {{ name }}: {{ words }}
{% endfor %}
Reply with one line for each, its name, a colon and the number, and nothing else."""
HEADS = {
    "correctness": "is what it says right?",
    "helpfulness": "does it do what was asked for?",
    "coherence": "does each part follow from those before it?",
    "complexity": "does it think as deeply as the question needs?",
    "verbosity": "is it as long as it has to be, and not longer?",
}


@dataclass(frozen=True, kw_only=True)
class Policy(Silent):
    """Every row with `route`, how its responses can be checked, and `priority`, which of equal ones stays.

    `code` for rows with tests, `math` for those with a reference, `scores` for the rest. The priority is `checkable` if
    the row has a reference or tests, plus what its source is worth, plus 0.5 if there is a response.
    """

    quality: Mapping[str, float] = field(default_factory=dict[str, float])  # source -> what it is worth; others 0
    checkable: float = 100.0
    source: str = "source"  # columns
    truth: str = "truth"
    tests: str = "tests"
    response: str = "response"

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        for row in rows:
            tested, known = (bool(row.get(name)) for name in (self.tests, self.truth))
            worth = self.checkable * (tested or known) + self.quality.get(text_in(row, self.source), 0.0)
            worth += 0.5 * bool(row.get(self.response))
            route = "code" if tested else "math" if known else "scores"
            yield {**row, self.response: text_in(row, self.response), "route": route, "priority": worth}


@dataclass(frozen=True, kw_only=True)
class Parts(Silent):
    """Every row with what its response thinks (`think`) and answers (`answer`): both empty unless both have their
    tags."""

    response: str = "response"  # the column

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        for row in having(rows, run, self.response):
            found = [_within(text_in(row, self.response), tag) for tag in ("think", "answer")]
            think, answer = found if all(found) else ("", "")
            yield {**row, "think": think, "answer": answer}


@dataclass(frozen=True, kw_only=True)
class Described(Silent):
    """Every row with `length`, `script`, `tested` and `reused`.

    `length` is that of the response in characters, `script` what most letters of the question are (LATIN, CJK, ...),
    `tested` how many tests there are, and `reused` whether the response is that which came with the question.
    """

    question: str = "question"  # columns
    response: str = "response"
    tests: str = "tests"

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        for row in having(rows, run, self.question, self.response):
            tests = row.get(self.tests)
            facts = {
                "length": len(text_in(row, self.response)), "script": main_script(text_in(row, self.question)),
                "tested": len(tests) if isinstance(tests, list) else int(bool(tests)), "reused": not row.get("_from"),
            }  # fmt: skip
            yield {**row, **facts}


def main_script(text: str) -> str:
    """What most letters are, as Unicode names them; empty if there are none."""
    names = Counter(unicodedata.name(letter, "").partition(" ")[0].partition("-")[0] for letter in text if letter.isalpha())
    return min(names, key=lambda name: (-names[name], name), default="")


def _within(text: str, tag: str) -> str:
    """What stands in a tag; empty if it is not there."""
    begin, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return text[begin + len(tag) + 2 : end].strip() if 0 <= begin < end else ""


def cascade(write: Generate, check: Verify, rounds: int) -> dict[str, Any]:
    """A response that is right stays; of the others the teacher writes new ones, until one is right or that was
    enough."""
    check = replace(check, answer="answer", keep=True)
    again = Rounds(steps={"write": write, "parts": Parts(), "check": check}, until="right", rounds=rounds)
    return {"parts": Parts(), "reuse": check, "again": again}


def united(
    write: Generate, routes: Mapping[str, Verify], dedup: Dedup, form: Rules, quality: Mapping[str, float], *,
    easy: float = 0.5, medium: float = 0.8, passing: float = 0.7, rounds: int = 2,
) -> dict[str, Any]:  # fmt: skip
    """All steps, in the report's order."""
    marks = Judge(prompt=QUALITY, rubric=HEADS, into="score", lowest=1.0, highest=10.0, decoding=Decoding(temperature=0.0))
    first = Rounds(steps={"write": write}, until="response", rounds=1)
    scored = {"first": first, "parts": Parts(), "score": marks, "cutoff": Top(by="score", share=passing)}
    ways = {name: cascade(write, check, rounds) for name, check in routes.items()}
    shares = {"easy": {"some": Top(share=easy)}, "medium": {"some": Top(share=medium)}}
    return {
        "policy": Policy(quality=quality),
        "kind": Tag(names=KINDS, into="kind", otherwise="chat"),
        "level": Tag(names=LEVELS, into="level", otherwise="medium"),
        "fewer": Branch(on="level", ways=shares),
        "dedup": dedup,
        "respond": Branch(on="route", ways={**ways, "scores": scored}),
        "form": form,
        "describe": Described(),
    }


def recipe(scale: Scale = "small") -> Recipe:
    """Four sources of stories about arithmetic, spoiled on purpose, and scripts as teacher and judge (smoke, small);
    files of yours, served models and the sandbox for programs (paper). The small student reads the same questions as
    chains."""
    form = Rules(column="response", tags=("think", "answer"), run_of=20, repeats=0.2)
    if scale == "paper":
        drawn = Decoding(temperature=0.6, top_p=0.95, max_new=16384)
        write = Generate(prompt=ANSWER, into="response", decoding=drawn, teacher="writer")
        embed = HubEncoder(path="sentence-transformers/all-MiniLM-L6-v2")
        dedup = Dedup(column="question", by="embedding", alike=0.9, embed=embed, priority="priority")
        routes = {"math": Verify(checks=("math", "number")), "code": Verify(checks=("program",))}
        served = HttpChat(url="http://localhost:8000/v1", model="teacher")
        train = Train(
            method=Supervised(), data=Answered(stage="make", answer="response", length=32768), steps=20_000, batch=64,
            accumulate=64, precision="bfloat16", checkpointing=True, optim=Optim(lr=1e-5, warmup=0.05),
        )  # fmt: skip
        bench = Questions(path="benchmark.jsonl", test=0.9, valid=0.05)
        solved = Solved(sampling=Sampling(temperature=0.6, top_p=0.95, max_new=32768), samples=4, precision="bfloat16")
        return Recipe(
            id="am_1_4m", student=HubLM(path="Qwen/Qwen2.5-32B"), data=bench,
            teachers={"writer": served, "judge": served},
            stages={
                "make": Synthesize(steps=united(write, routes, dedup, form, {}), data=Union(sources={})),
                "train": train,
                "audit": Audit(subjects=("start", "train"), checks=(solved,)),
            },
        )  # fmt: skip
    easy = Chain(ops=(1, 2), base=6, train=160, valid=16, test=24)
    hard = Chain(ops=(1, 2, 3), train=520, valid=100, test=200)
    task = pick(scale, smoke=easy, small=hard, paper=hard)
    write = Generate(prompt=ANSWER, into="response", decoding=Decoding(temperature=1.0, max_new=128), teacher="writer")
    steps = united(
        write, {"math": Verify(checks=("number",))},
        Dedup(column="question", by="embedding", alike=0.8, embed=Gist(), priority="priority"),
        replace(form, run_of=1, repeats=0.5), {"textbook": 3.0, "quiz": 2.0, "web": 1.0},
    )  # fmt: skip
    writing = Sampling(temperature=0.0, max_new=pick(scale, smoke=16, small=40, paper=40), batch=500)
    good = Faults(key="short", fault=None, answer="response", right="fact")
    solver = Tagger(solver=Solver(data=task, wrong=0.05, question="short"), broken=0.02, looping=0.02)
    return Recipe(
        id="am_1_4m",
        student=TinyLM(width=pick(scale, smoke=24, small=32, paper=32)),
        data=task,
        teachers={"writer": Scripted(script=solver), "judge": Scripted(script=Examiner(base=task.base))},
        stages={
            "make": Synthesize(steps={**steps, "compact": Compact()}, data=StoryUnion(chain=task)),
            "train": Train(
                method=Supervised(), data=Answered(stage="make", question="short", answer="solution"),
                steps=pick(scale, smoke=100, small=600, paper=600), batch=8, optim=Optim(lr=1e-2, warmup=0.1),
            ),
            "audit": Audit(subjects=("start", "train"), checks=(Solved(sampling=writing), good)),
        },
    )  # fmt: skip


def proof() -> Proof:
    """The whole plan against the union as it was found, and against each of its halves, at equal training tokens."""
    ours = recipe("small")
    steps = ours.stages["make"].steps
    labels = {name: steps[name] for name in ("policy", "kind", "level", "fewer", "dedup")}
    asked = {"write": steps["respond"].ways["scores"]["first"].steps["write"]}

    def arm(some: Mapping[str, Any]) -> Recipe:
        return ours.set("make.steps", {**some, "compact": steps["compact"]})

    return Proof(
        claim="At equal training tokens a student solves more unseen questions if it learns from the curated union than from"
        " the responses as they were found, and than from the same without verification and rules.",
        arms={
            "ours": ours,
            "raw": arm({}),
            "selected": arm(labels),
            "formed": arm({**labels, "form": steps["form"]}),
            "rewritten": arm(asked),
        },
        metric="solved",
        beats=("raw", "selected"),
        tune={"train.optim.lr": (3e-3, 1e-2)},
        minutes=8.0,
        note="600 steps of 8 packed rows for all. `raw` and `selected` ask the teacher nothing; `rewritten`, a new response"
        " to every question without a check, asks it more than the whole plan and is shown for scale, as is `formed`, which"
        " keeps what is well formed, right or not.",
    )
