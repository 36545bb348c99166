"""Symbolic Knowledge Distillation: from General Language Models to Commonsense Models (West et al. 2022).

    heads h ~ LM(. | ten heads),  tails t ~ LM(. | five triples of relation r, h, r),  G = {(h, r, t) : c(h, r, t) >= tau}
    tau = max{tau : share of good triples with c >= tau is at least the recall},     L = - sum_G log q(t | h, r)

A language model is shown a few events and writes more; to each head it writes tails for every relation. Of the heads the
likeliest 80 % stay. c is a critic, learned from a few triples that somebody judged, which reads each triple with several
people's names in place of PersonX and goes by the mean; recall .8 is the authors' medium filter and .5 their strict one.
q, a small causal model, reads `<head> h </head> <relation> r </relation> [GEN]` and goes on with the tail.

Differs from the authors' code: tau is set on held-out verdicts alone, where theirs is the mean of what the validation and
the test set ask for. The critic is logistic regression on hashed n-grams and on pairs of a head's word with a tail's, where
theirs is a large encoder trained on inference between sentences. Heads are ranked by the mean log-probability of their
tokens, so that length does not count. Prompts are in other words. Penalties on presence and frequency are the server's
business (`extra`). Heads of held-out splits are never made, and two equal tails to a head and relation are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import fsum
from typing import Any, ClassVar

from ...audits.solved import Solved
from ...audits.triples import MadeTriples
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Kind
from ...core.stage import Audit, Train
from ...data.factworld import FactWorld
from ...data.triples import Triples, heads_of, is_good, question_of, statement
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...synth.dedup import Dedup
from ...synth.made import Answered
from ...synth.names import NAMES, Readings, named, unnamed
from ...synth.parse import items_of, plain
from ...synth.prompts import fill
from ...synth.reread import Reread
from ...synth.rules import Rules, having
from ...synth.scripts.believer import Believer, Knows
from ...synth.select import Top
from ...synth.steps import Need, Row
from ...synth.synthesize import Synthesize
from ...synth.verdicts import Verdicts
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost
from ..classics.supervised import Supervised

PAPER = Paper(
    id="symbolic_kd",
    title="Symbolic Knowledge Distillation: from General Language Models to Commonsense Models",
    authors=(
        "Peter West", "Chandra Bhagavatula", "Jack Hessel", "Jena D. Hwang", "Liwei Jiang",
        "Ronan Le Bras", "Ximing Lu", "Sean Welleck", "Yejin Choi",
    ),
    year=2022,
    arxiv="2110.07178",
    venue="NAACL",
    modality=("text",),
    data=("tasks", "documents"),
    claim="A small model that learned those triples of a language model which a critic let pass is right more often than"
    " that language model.",
)  # fmt: skip

HEADS = """Here are situations of everyday life, one a line. Write the next line, unlike those above.

{% for head in heads %}
{{ loop.index }}. {{ head }}
{% endfor %}
{{ heads | length + 1 }}."""
TAILS = """Go on with the last line in a few words, as the other lines do. Answer with these words alone.

{% for each in examples %}
{{ each }}
{% endfor %}
{{ head }}. {{ name }} {{ phrase }}"""
JUDGE = """Is this likely to be so?

{{ statement }}

Answer yes or no."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """New heads, one an answer, from prompts that show `shown` of the given rows' heads; those rows do not come out.

    Lost: an answer that did not come, did not end by itself (it is cut off at `max_new` tokens) or is empty, and a head of a
    held-out split. `likely`: the mean log-probability of the answer's tokens, 0 if not `scored`. A barrier over the rows.
    """

    each: int = 1000  # answers that are asked for
    shown: int = 10
    scored: bool = True  # False: without log-probabilities; then nothing can be filtered by them
    prompt: str = HEADS
    decoding: Decoding = Decoding(temperature=1.0, top_p=0.9, max_new=12)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def check(self, run: Run) -> None:
        """RunError if the teacher is to say how likely its words are, and cannot."""
        if self.scored and self.teacher in run.teachers and "logprobs" not in run.teachers[self.teacher].gives:
            raise RunError(
                f"the teacher {self.teacher!r} does not say how likely its words are, which heads are filtered by: set "
                f"teachers.{self.teacher}.logprobs=true if the server can tell, or do without the filter: "
                "--set make.steps.heads.scored=false --set make.steps.likely.by=null --set make.steps.likely.share=1"
            )

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Rows of `head` and `likely`."""
        work, parents = run.work, {str(row["head"]): row for row in having(rows, run, "head")}
        others = [rows for name, rows in run.recipe.data.rows(run).items() if name != "train"]
        held = {plain(head) for rows in others for head in heads_of(rows)}
        decoding = replace(self.decoding, logprobs=self.scored)

        def asks() -> Iterator[tuple[list[str], Ask]]:
            for number in range(self.each):
                shown = work.rng("shown", number).sample(sorted(parents), min(self.shown, len(parents)))
                words = (("user", fill(self.prompt, heads=shown)),)
                yield shown, Ask(words, decoding, work.seed(number), {"shown": shown})

        for shown, answer in work.ask(self.teacher, asks()):
            told: Row = {"_from": sorted(str(parents[head]["_id"]) for head in shown)}
            if isinstance(answer, Lost):
                work.lose(told, answer.why)
                continue
            head, logprobs = next(iter(items_of(answer.text)), ""), answer.logprobs or ([] if self.scored else [0.0])
            if not (answer.finished and head and logprobs):
                why = "no log-probabilities" if head else "no head in the answer"
                work.lose({**told, "head": head}, why if answer.finished else "the answer was cut off")
            elif plain(head) in held:
                work.lose({**told, "head": head}, "a head of a held-out split")
            else:
                yield work.child(*(parents[each] for each in shown), head=head, likely=fsum(logprobs) / len(logprobs))

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for each head."""
        sizes = sorted((len(str(row["head"]).encode()) // 4 + 5 for row in rows), reverse=True)[: self.shown]
        return {self.teacher: Need(self.each, self.each * (sum(sizes) + 60), self.each * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many as are asked for."""
        return [
            {"_id": str(n), "head": f"PersonX {n} {'word ' * self.decoding.max_new}", "likely": 0.0}
            for n in range(self.each)
        ]


@dataclass(frozen=True, kw_only=True)
class Tails:
    """Triples: to every row's head `each` tails for every relation of the data, each after `shown` triples of that relation.

    PersonX bears first names in the prompt, another in every line, and is PersonX again in what comes out. Only the first
    line of an answer counts. Lost: an answer that did not come or did not end by itself, one of two letters or less, and a
    tail that was there before for the same head and relation. Streams, but for heads and what was said of them.
    """

    each: int = 10
    shown: int = 5
    data: Any = None  # where the triples to show come from; None: the recipe's
    prompt: str = TAILS
    decoding: Decoding = Decoding(temperature=1.0, top_p=0.5, max_new=12)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Rows of `head`, `relation`, `tail`; `statement` says it; `question` and `answer` are what a student reads."""
        work, seen = run.work, set[tuple[str, str, str]]()
        for (row, relation, name), answer in work.ask(self.teacher, self._asks(rows, run)):
            told = {**row, "relation": relation}
            if isinstance(answer, Lost):
                work.lose(told, answer.why)
                continue
            said = next(iter(items_of(answer.text.strip().split("\n")[0])), "")
            tail = unnamed(said, name).strip().rstrip(".")
            key = (plain(str(row["head"])), relation, plain(tail))
            truth = {} if answer.truth is None else {"_truth": answer.truth["holds"]}
            why = "" if answer.finished else "the answer was cut off"
            again = "the same tail was there before" if key in seen else ""
            why = why or ("a tail of two letters or less" if len(tail) <= 2 else again)
            if why:
                work.lose({**told, "tail": tail, **truth}, why)
                continue
            seen.add(key)
            head, phrase = str(row["head"]), (self.data or run.recipe.data).relations[relation]
            reads = {"statement": statement(head, phrase, tail, "PersonX"), "question": question_of(head, relation)}
            yield work.child(row, head=head, relation=relation, tail=tail, **reads, answer=f" {tail}", **truth)

    def _asks(self, rows: Iterable[Row], run: Run) -> Iterator[tuple[Any, Ask]]:
        work, data = run.work, self.data or run.recipe.data
        known: dict[str, list[Row]] = {relation: [] for relation in data.relations}
        for row in data.rows(run)["train"]:
            if is_good(row):
                known[row["relation"]].append(row)
        for row in {str(row["head"]): row for row in having(rows, run, "head")}.values():
            for relation, number in product(data.relations, range(self.each)):
                phrase, rng = data.relations[relation], work.rng(row["head"], relation, number)
                shown = rng.sample(known[relation], min(self.shown, len(known[relation])))
                name, *others = rng.sample(NAMES, len(NAMES))
                told = zip(shown, others, strict=False)
                examples = [statement(each["head"], phrase, each["tail"], who) for each, who in told]
                head = named(str(row["head"]), name)
                words = fill(self.prompt, examples=examples, head=head, name=name, phrase=phrase)
                about = {"head": row["head"], "relation": relation, "name": name}
                seed = work.seed(row["head"], relation, number) if self.decoding.temperature else 0
                yield (row, relation, name), Ask((("user", words),), self.decoding, seed, about)

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """`each` calls for every head and relation."""
        data = self.data or run.recipe.data
        calls = self.each * len(data.relations) * len(heads_of(rows))
        shown = [len(f"{r['head']} {r.get('tail', '')}".encode()) // 4 + 12 for r in data.rows(run)["train"]]
        read = sum(sorted(shown, reverse=True)[: self.shown]) + len(self.prompt) // 4 + 4 * self.decoding.max_new
        return {self.teacher: Need(calls, calls * read, calls * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All tails."""
        relations, tail = (self.data or run.recipe.data).relations, "word " * self.decoding.max_new
        made = product(heads_of(rows), relations, range(self.each))
        return [
            {"_id": f"{h}{r}{n}", "head": h, "relation": r, "tail": tail, "statement": f"{h} {tail}"} for h, r, n in made
        ]


def recipe(scale: Scale = "small") -> Recipe:
    """A made world of which a script writes triples, 35 % of them wrong, and a tiny decoder (smoke, small); triples of
    yours, a served model, another that judges, and GPT-2 (paper)."""
    if scale == "paper":
        student, data = HubLM(path="gpt2-xl"), Triples(path="triples.jsonl")
        server = HttpChat(url="http://localhost:8000/v1", model="judge")
        more: Any = {"logprobs": True, "extra": {"presence_penalty": 0.5, "frequency_penalty": 0.5}}
        teachers: dict[str, Any] = {"teacher": replace(server, model="teacher", **more), "person": server}
    else:
        student = TinyLM(width=pick(scale, smoke=16, small=48, paper=48))
        data = FactWorld(test=pick(scale, smoke=20, small=80, paper=80), valid=pick(scale, smoke=10, small=40, paper=40))
        teachers = {"teacher": Scripted(script=Believer()), "person": Scripted(script=Knows())}
    make = {
        "heads": Heads(each=pick(scale, smoke=60, small=600, paper=25_000)),
        "plain": Rules(column="head", required=(r"^PersonX\b",), forbidden=(r"[^\w\s',.-]",), shortest=10),
        "once": Dedup(column="head", priority="likely"),
        "likely": Top(by="likely", share=0.8),
        "tails": Tails(each=10 if scale == "paper" else 3),
        "judged": Verdicts(prompt=JUDGE, count=pick(scale, smoke=120, small=300, paper=10_000)),
        "readings": Readings(pairs=("head", "tail")),
        "critic": Reread(recall=0.5, strength=100.0),
    }
    train = Train(
        method=Supervised(), data=Answered(stage="make", packed=False),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=5e-3, paper=1e-5)),
        steps=pick(scale, smoke=120, small=600, paper=20_000), batch=pick(scale, smoke=16, small=64, paper=64),
    )  # fmt: skip
    drawn = Solved(sampling=Sampling(temperature=1.0, max_new=pick(scale, smoke=8, small=8, paper=24)))
    return Recipe(
        id="symbolic_kd", student=student, data=data, teachers=teachers,
        stages={
            "make": Synthesize(steps=make),
            "heard": Synthesize(steps={"tails": Tails(each=1)}, split="test"),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=(drawn, MadeTriples(heard="heard"))),
        },
    )  # fmt: skip


def proof() -> Proof:
    """The strict filter against none and against the teacher, at equal steps; the medium one beside them."""
    base = recipe("small")
    tried = Solved(samples=4, sampling=Sampling(temperature=1.0, max_new=8, batch=512))
    audit = Audit(subjects=("train",), checks=(tried, MadeTriples()))
    ours = replace(base, stages={"make": base.stages["make"], "train": base.stages["train"], "audit": audit})
    raw = {name: base.stages["make"].steps[name] for name in ("heads", "plain", "once", "likely", "tails")}
    said = Audit(subjects=(), checks=(tried, MadeTriples(heard="heard")))
    teacher = {"make": replace(base.stages["make"], steps=raw), "heard": base.stages["heard"], "audit": said}
    return Proof(
        claim="A small decoder that learns the triples which a critic let pass at recall .5 draws true tails for new heads"
        " more often than one that learns all triples, and than the teacher itself, at equal steps, triples a step, and"
        " teacher calls; the critic's 300 verdicts come on top.",
        arms={
            "ours": ours,
            "medium": ours.set("make.steps.critic.recall", 0.8),
            "unfiltered": ours.set("make.steps", raw),
            "teacher": replace(base, stages=teacher),
        },
        metric="solved",
        beats=("unfiltered", "teacher"),
        subjects={"teacher": "teacher"},
        untuned=("teacher",),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (2e-3, 5e-3, 1e-2)},
        minutes=6.0,
        note="The teacher is a script: 35 % of its tails are wrong. Tails are drawn at temperature 1, four to a question"
        " from a student and one from the teacher; what is true say the hidden rules of a made world.",
    )
