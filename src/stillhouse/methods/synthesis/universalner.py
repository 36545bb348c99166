"""UniversalNER: Targeted Distillation from Large Language Models for Open Named Entity Recognition (Zhou et al. 2023).

    E(x) = {(name, type)} = LM(x) at temperature 0,      N(x) ~ p(t) ∝ freq(t)^power over the types t that x lacks
    L = - sum_x sum_{t in types(E(x)) + N(x)} log q(names of type t in x, [] if there are none | x, t)

x is a passage of any text, E(x) what a language model names in it, with types in its own words. A passage becomes a chat:
the text, a word that it was read, and for every type t a question with a JSON list as its answer; only answers count. N(x)
are types that the passage does not have, drawn as often as passages have them, whose answer is the empty list: without them
a student learns that whatever it is asked about is there.

Differs from the authors' code: prompts and turns are in other words. Names that do not stand in the passage are left out.
How many absent types a passage gets, the order of its questions, and that types count once a passage are ours. A student may
be a tagger that is told the type in words, in place of a language model; then a tag of a word takes the place of a token.
That negatives are drawn by frequency to the power 1, and passages of 256 tokens, we have from memory of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...audits.entities import NamedEntities
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Kind
from ...core.stage import Audit, Train
from ...data.passages import HELD, NamedWorld, Passages, entities_in
from ...models.hub import HubLM
from ...models.typed import TypedTagger, words_of
from ...synth.absent import Absent, listed
from ...synth.asked import ASKED, GIVEN, READ, Asked, conversation
from ...synth.asking import Wording, answered, most_of
from ...synth.jsons import json_in
from ...synth.rules import having
from ...synth.scripts.gazetteer import Gazetteer
from ...synth.steps import Need, Row, Silent
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost
from ..classics.supervised import Supervised

PAPER = Paper(
    id="universalner",
    title="UniversalNER: Targeted Distillation from Large Language Models for Open Named Entity Recognition",
    authors=("Wenxuan Zhou", "Sheng Zhang", "Yu Gu", "Muhao Chen", "Hoifung Poon"),
    year=2023,
    arxiv="2308.03279",
    venue="ICLR",
    modality=("text",),
    data=("unlabelled", "documents"),
    claim="A small model that learned from what a language model names in any passages finds names of any type, better than"
    " that language model.",
)

EXTRACT = """Which things are named in this passage, and of what type is each?

Passage: {{ text }}

Answer with a JSON list of pairs and nothing else, in which each name is written as in the passage:
[["name", "type"], ...]"""


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Every passage with what the teacher names in it: `entities`, each with name and type, and `types`, each once.

    Lost: a passage without text or an answer, and one whose answer holds no JSON list of names that can be repaired. Names
    that do not stand in the passage as words are left out of `entities` and counted in `made_up`. Streams.
    """

    without: tuple[str, ...] = ()  # types that are left out: to see whether a student knows what it was not asked about
    prompt: str = EXTRACT
    decoding: Decoding = Decoding(temperature=0.0, max_new=512)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The passages; what a script knows of them as `_truth`."""
        work, wording = run.work, Wording(self.prompt)
        rows = having(rows, run, "text")

        def asks(row: Row) -> list[Ask]:
            about = {"text": row["text"]}
            return [
                Ask(wording.messages(row), self.decoding, work.seed(row["_id"]) if self.decoding.temperature else 0, about)
            ]

        for row, (answer,) in answered(work, self.teacher, rows, asks):
            told = None if isinstance(answer, Lost) else entities_in(json_in(answer.text))
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
            elif told is None or json_in(answer.text) is None:
                work.lose({**row, "answer": answer.text}, "no JSON list of names in the answer", finished=answer.finished)
            else:
                here = [each for each in told if stands(each["name"], row["text"])]
                kept = [each for each in here if each["type"] not in self.without]
                types = list(dict.fromkeys(each["type"] for each in kept))
                truth = {} if answer.truth is None else {"_truth": answer.truth["entities"]}
                yield {**row, "entities": kept, "types": types, "made_up": len(told) - len(here), **truth}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for each passage."""
        return {self.teacher: most_of(rows, Wording(self.prompt).size, 1, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return [{**row, "entities": [], "types": [], "made_up": 0} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Conversations(Silent):
    """Every passage with its questions: `queries`, each with a type and the names of it, and the same as chat `messages`.

    It is asked about the types that it has, and about those in `absent`, in an order drawn for it. Lost: a passage about
    which there is nothing to ask. Streams. `messages` is what `data.tokens.Text` reads to train a language model.
    """

    given: str = GIVEN  # what the user says first; {text}
    read: str = READ  # what the assistant says to that
    asked: str = ASKED  # what the user asks; {type}
    keep: bool = True  # False: without a column of messages, for a student that needs none

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The passages."""
        for row in having(rows, run, "text", "entities"):
            names: dict[str, list[str]] = {}
            for each in row["entities"] or ():
                names.setdefault(each["type"], []).append(each["name"])
            queries = [{"type": kind, "names": found} for kind, found in names.items()]
            queries += [{"type": kind, "names": []} for kind in listed(row.get("absent")) if kind not in names]
            if not queries:
                run.work.lose(row, "nothing is named in it, and there is no absent type to ask about")
                continue
            queries.sort(key=lambda each: run.work.rng(row["_id"], each["type"]).random())
            turns = {"messages": conversation(row["text"], queries, given=self.given, read=self.read, asked=self.asked)}
            yield {**row, "queries": queries, **(turns if self.keep else {})}


def stands(name: str, text: str) -> bool:
    """Whether a name stands in a text, word for word."""
    words, parts = ([word for word, _, _ in words_of(each)] for each in (text, name))
    return bool(parts) and any(words[at : at + len(parts)] == parts for at in range(len(words) - len(parts) + 1))


def recipe(scale: Scale = "small") -> Recipe:
    """A made world of passages with a script as teacher and a tagger (smoke, small); passages of yours, a served model and a
    language model as the student (paper). In the made world four of the twelve types are never asked about in training."""
    if scale == "paper":
        student, data = HubLM(path="meta-llama/Llama-2-7b-chat-hf"), Passages(path="passages.jsonl", words=190)
        teacher = HttpChat(url="http://localhost:8000/v1", model="teacher")
        extract, optim = Extract(), Optim(lr=2e-5, warmup=0.04, schedule="cosine")
    else:
        student = TypedTagger(width=pick(scale, smoke=16, small=48, paper=48))
        sizes = pick(scale, smoke=(60, 20, 20), small=(2000, 150, 300), paper=(0, 0, 0))
        data = NamedWorld(train=sizes[0], valid=sizes[1], test=sizes[2])
        teacher, extract = Scripted(script=Gazetteer(data=data)), Extract(without=HELD)
        optim = Optim(lr=pick(scale, smoke=2e-2, small=5e-3, paper=2e-5))
    train = Train(
        method=Supervised(), data=Asked(stage="make"), optim=optim,
        steps=pick(scale, smoke=200, small=600, paper=540), batch=pick(scale, smoke=16, small=64, paper=256),
        accumulate=32 if scale == "paper" else 1, precision="bfloat16" if scale == "paper" else "float32",
    )  # fmt: skip
    make = {"extract": extract, "absent": Absent(), "conversations": Conversations()}
    return Recipe(
        id="universalner",
        student=student,
        data=data,
        teachers={"teacher": teacher},
        stages={
            "make": Synthesize(steps=make),
            "heard": Synthesize(steps={"extract": replace(extract, without=())}, split="test"),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=(NamedEntities(heard="heard"),)),
        },
    )


def proof() -> Proof:
    """Absent types drawn by frequency, against drawn evenly and against none, and against the teacher."""
    ours = recipe("small")
    trained = {name: ours.stages[name] for name in ("make", "train")}
    audit = Audit(subjects=("train",), checks=(NamedEntities(),))
    whole = replace(ours, stages={**trained, "audit": audit})
    heard = Audit(subjects=(), checks=(NamedEntities(heard="heard"),))
    teacher = replace(ours, stages={"make": ours.stages["make"], "heard": ours.stages["heard"], "audit": heard})
    return Proof(
        claim="A tagger that learns from what a faulty teacher names finds names better, over seen and new types together,"
        " with absent types asked about as often as passages have them than with absent types drawn evenly or with none,"
        " and better than the teacher, at equal steps, questions a step, and teacher calls.",
        arms={
            "ours": whole,
            "uniform": whole.set("make.steps.absent.by", "uniform"),
            "none": whole.set("make.steps.absent.by", "none"),
            "teacher": teacher,
        },
        metric="entity_f1",
        beats=("none", "uniform", "teacher"),
        subjects={"teacher": "teacher"},
        untuned=("teacher",),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (2e-3, 5e-3, 1e-2)},
        minutes=8.0,
        note="The teacher is a script that knows the passages' world: it overlooks 15 % of the names, confuses 5 %, takes"
        " 15 % of other nouns for names of rare types, and calls every bank a company. It is asked about all types, the"
        " student learns eight of the twelve; F1 of both kinds and false alarms are in the runs' findings.",
    )
