"""A Strategic Coordination Framework of Small LLMs Matches Large LLMs in Data Synthesis (Gao et al. 2025), GRA.

    mu(x) = 1/m sum_j s_j(x),   sigma(x)² = 1/m sum_j (s_j(x) - mu(x))²
    accept:      mu >= 8 and sigma <= 2
    adjudicate:  sigma > 2
    give back:   otherwise, with the reviewers' critiques, twice at most

Several small models share the work. For each item chance says which one writes it (the generator: from a given question to
its field and keywords, from there to a new question, then to an answer), which m = 3 others review it, each with a mark
s_j, the mean over several criteria, and which one decides where the reviewers differ (the adjudicator: accept, correct or
reject). Rows that are nearly the same as another are dropped, field, keywords and difficulty stay with each row, and a
student learns from what was accepted. If reviewers err independently, each with probability e, three of them with an
adjudicator pass a wrong answer as often as a majority of three: with probability e³ + 3 e² (1 - e).

Differs from the authors' code, whose synthesis part is not published: the roles are the paper's; the two calls of a
generator, the criteria, the thresholds 8, 5 and 2, the two returns, and what happens to rows on which the reviewers agree
that they are middling (they go back too) are our reading or our choice. A rejected row goes back whoever rejected it.
Difficulty is marked with the rest and counts for nothing. The prompts are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...audits.accepted import Accepted
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
from ...synth.cast import Cast, InRole, Reviews
from ...synth.decontaminate import Decontaminate
from ...synth.dedup import Dedup, Hashed
from ...synth.flow import Rounds
from ...synth.made import Answered
from ...synth.rules import having
from ...synth.scripts.mistaken import Mistaken
from ...synth.steps import Row, Silent
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Decoding
from ..classics.supervised import Supervised

PAPER = Paper(
    id="gra",
    title="A Strategic Coordination Framework of Small LLMs Matches Large LLMs in Data Synthesis",
    authors=("Xin Gao", "Qizhi Pei", "Zinan Tang", "Yu Li", "Honglin Lin", "Jiang Wu", "Lijun Wu", "Conghui He"),
    year=2025,
    arxiv="2504.12322",
    modality=("text",),
    data=("tasks",),
    claim="Small models that write, review and decide in turns make data that teach as well as a large model's.",
)

PROPOSE = """Here is a question:

{{ seed }}

Which field is it from, and what are its keywords? Then write a new question of that field about them, complete and clear,
which is not this one in other words. Reply in three lines that begin with "Domain:", "Keywords:" and "Question:"."""
ANSWER = "{{ question }}"
REVISE = """{{ question }}

This answer was given:
{{ answer }}

Reviewers say:
{{ returned }}

Write the answer anew, and nothing else."""
REVIEW = """Question:
{{ question }}

Answer:
{{ answer }}

You review the question and its answer. Mark each of these from {{ lowest }} to {{ highest }}:
{% for name, words in rubric.items() %}
- {{ name }}: {{ words }}
{% endfor %}
Reply with one line for each, its name, a colon and the number. Then write a line that begins with "Critique:" and says in
one sentence what should be changed, or "none"."""
SETTLE = """Question:
{{ question }}

Answer:
{{ answer }}

Reviewers differ about it: their mean mark is {{ score|round(1) }} of 10. They say:
{{ undecided }}

Is it to be kept? Reply with a line "Ruling: accept", "Ruling: reject" and a line that begins with "Critique:", or
"Ruling: correct" and the right answer behind "Answer:"."""
RUBRIC = {
    "reasonable": "the question makes sense",
    "complete": "nothing that is needed is missing",
    "clear": "question and answer can be understood in one way only",
    "correct": "everything in the answer is true",
    "useful": "there is something to learn from it",
    "safe": "nobody is harmed by it",
}
BESIDES = {"difficulty": "how hard the question is"}
SAID = ("returned", "undecided", "ruling", "correction", "reason")  # about an answer, in this round or the one before
RULING = r"(?i)ruling\W*?:\W*(accept|reject|correct)"
DEDUP = Dedup(column="question", by="embedding", alike=0.9)


EACH = {"ours": 5, "single": 39, "itself": 15, "one_reviewer": 12}  # items for each seed that take about as many tokens


@dataclass(frozen=True, kw_only=True)
class Weigh(Silent):
    """What the reviews mean: `accepted`, or what is wrong under `returned`, or what is said under `undecided`."""

    accept: float = 8.0  # a mean of at least this
    reject: float = 5.0  # a mean of at most this says "rejected"; between the two: "middling"
    differ: float = 2.0  # standard deviation; above it the row's adjudicator decides, if it has one

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows, with how often they were `reviewed`."""
        for row in having(rows, run, "score", "score_std"):
            rest = {**_without(row), "reviewed": row.get("reviewed", 0) + 1}
            said = row.get("critiques") or "- no reviewer says why"
            if row["score_std"] > self.differ and row.get("adjudicator"):
                yield {**rest, "undecided": said}
            elif row["score"] >= self.accept and row["score_std"] <= self.differ:
                yield {**rest, "accepted": "by its reviewers"}
            else:
                verdict = "rejected" if row["score"] <= self.reject else "middling"
                yield {**rest, "returned": f"{said}\n- {verdict}: {row['score']:.1f} of 10"}


@dataclass(frozen=True, kw_only=True)
class Settle(Silent):
    """What an adjudicator's ruling means for the rows that have one: `accepted`, with its correction, or `returned`."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows; a ruling that is none of the three, or a correction without an answer, gives the row back."""
        for row in rows:
            if not row.get("undecided"):
                yield row
                continue
            rest = _without(row)
            ruling = str(row.get("ruling", "")).casefold()
            if ruling == "accept":
                yield {**rest, "accepted": "by its adjudicator"}
            elif ruling == "correct" and row.get("correction"):
                yield {**rest, "answer": row["correction"], "accepted": "as its adjudicator corrected it"}
            else:
                yield {**rest, "returned": f"- {row.get('reason') or 'rejected by an adjudicator'}"}


def writing(cast: Cast, greedy: Decoding = Decoding(temperature=0.0, max_new=64)) -> dict[str, Any]:
    """Questions and answers by each row's generator."""
    lines = {"domain": _line("domain"), "keywords": _line("keywords"), "question": _line("question", "(.*)")}
    return {
        "cast": cast,
        "propose": InRole(by="generator", prompt=PROPOSE, reads=lines, decoding=replace(greedy, temperature=1.0)),
        "answer": InRole(by="generator", prompt=ANSWER, reads={"answer": "(.+)"}, decoding=greedy),
    }


def reviewing(weigh: Weigh = Weigh(), returns: int = 2, max_new: int = 64) -> Rounds:
    """Reviews, rulings and returns, until a row is accepted; what is not after `returns` returns is lost."""
    drawn = Decoding(temperature=1.0, max_new=max_new)
    rulings = {"ruling": RULING, "correction": _line("answer", "(.*)"), "reason": _line("critique")}
    return Rounds(
        steps={
            "revise": InRole(by="generator", prompt=REVISE, reads={"answer": "(.+)"}, when="returned", decoding=drawn),
            "review": Reviews(rubric=RUBRIC, besides=BESIDES, prompt=REVIEW),
            "weigh": weigh,
            "rule": InRole(
                by="adjudicator", prompt=SETTLE, reads=rulings, optional=("ruling", "correction", "reason"),
                when="undecided", decoding=replace(drawn, temperature=0.0),
            ),
            "settle": Settle(),
        },
        until="accepted",
        rounds=1 + returns,
    )  # fmt: skip


def _without(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SAID}


def _line(name: str, rest: str = r"([^\n]*)") -> str:
    """What stands behind `name:` at the beginning of a line, bold or not; all that follows, or the line."""
    return rf"(?i)(?:^|\n)\W*{name}\W*?:\**{rest}"


def believer(data: Chain, name: str, errs: float = 0.3, family: str = "") -> Scripted:
    """A script that answers this share of the chains wrongly, and judges as many the wrong way round."""
    wrong = 1 - (1 - errs) ** (1 / max(data.ops))
    return Scripted(script=Mistaken(data=data, name=name, family=family, wrong=wrong))


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains and five scripts that each know some steps wrongly; your questions and served models (paper)."""
    paper = scale == "paper"
    if paper:
        data, student = Questions(path="questions.jsonl", instruction=""), HubLM(path="Qwen/Qwen2.5-7B")
        teachers = {name: HttpChat(url="http://localhost:8000/v1", model=f"model-{name}") for name in "abcde"}
        optim = Optim(lr=1e-5, warmup=0.03, schedule="cosine")
        writes = writing(Cast(each=10), Decoding(temperature=0.0, max_new=1024))
        clean = Decontaminate(columns=("question",))
    else:
        tiny = Chain(ops=(2,), base=3, signs="+-", train=16, valid=10, test=30)
        data = pick(scale, smoke=tiny, small=Chain(base=6, train=80, valid=150, test=400), paper=tiny)
        student = pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=48, heads=4), paper=TinyLM())
        teachers = {name: believer(data, name) for name in "abcde"}
        optim = Optim(lr=1e-2, warmup=0.1)
        writes = writing(Cast(each=pick(scale, smoke=4, small=EACH["ours"], paper=10)))
        clean = Decontaminate(columns=("question",), splits=("valid", "test"), least=10_000, alike=1.0, embed=Hashed())
    train = Train(
        method=Supervised(), data=Answered(stage="make"), optim=optim,
        steps=pick(scale, smoke=100, small=500, paper=1000), batch=pick(scale, smoke=8, small=16, paper=64),
    )  # fmt: skip
    new = pick(scale, smoke=24, small=32, paper=1024)
    judged = Solved(sampling=Sampling(temperature=0.0, max_new=new, batch=pick(scale, smoke=512, small=512, paper=32)))
    return Recipe(
        id="gra",
        student=student,
        data=data,
        teachers=teachers,
        stages={
            "make": Synthesize(
                steps={**writes, "rounds": reviewing(max_new=1024 if paper else 64), "clean": clean, "dedup": DEDUP}
            ),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=(judged, Accepted())),
        },
    )


def proof() -> Proof:
    """All roles against fewer of them, and against a larger model, at equal teacher tokens."""
    ours = recipe("small")
    data, make = ours.data, ours.stages["make"]
    pool = dict(ours.teachers)

    def arm(cast: Cast, teachers: Mapping[str, Any], reviewed: bool = True) -> Recipe:
        steps = {**make.steps, "cast": cast}
        if not reviewed:
            del steps["rounds"]
        return replace(ours, teachers=teachers, stages={**ours.stages, "make": replace(make, steps=steps)})

    nobody = Cast(reviewers=0, adjudicator=False)
    alike = {name: believer(data, name, family="one" if name in "abc" else "") for name in pool}
    each = EACH
    return Proof(
        claim="At equal teacher tokens a student learns more from what five small models wrote, reviewed and settled in"
        " turns than from one of them alone, one that reviews itself, one that another reviews, and a large model with a"
        " third of their errors.",
        arms={
            "ours": ours.set("make.steps.cast.each", each["ours"]),
            "single": arm(replace(nobody, each=each["single"]), {"a": pool["a"]}, reviewed=False),
            "itself": arm(Cast(each=each["itself"], reviewers=1, adjudicator=False, itself=True), {"a": pool["a"]}),
            "one_reviewer": arm(
                Cast(each=each["one_reviewer"], reviewers=1, adjudicator=False, generators=("a",)),
                {name: pool[name] for name in "ab"},
            ),
            "large": arm(replace(nobody, each=each["single"]), {"large": believer(data, "large", 0.1)}, reviewed=False),
            "unreviewed": arm(replace(nobody, each=each["single"]), pool, reviewed=False),
            "correlated": arm(replace(make.steps["cast"], each=each["ours"]), alike),
        },
        metric="solved",
        beats=("single", "itself", "one_reviewer", "large"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=25.0,
        note="Scripts in place of models: each answers 30 % of the chains wrongly (the large one 10 %), always in the same"
        " way, and judges as many the wrong way round; what the five do not know is independent. The numbers of items make"
        " the teacher tokens of the claim's arms equal within 5 %; students take equal steps over equally many tokens. Not"
        " in the claim: `unreviewed`, the five without reviews, and `correlated`, where three of them have the same errors.",
    )
