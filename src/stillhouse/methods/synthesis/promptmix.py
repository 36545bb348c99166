"""PromptMix: A Class Boundary Augmentation Method for Large Language Model Distillation (Sahu et al. 2023).

    x ~ LM(. | alpha A + (1 - alpha) B),   alpha = 0.5 + 0.5 z rounded to 0.05,   z ~ Beta(5, 2)
    y = LM(x) at temperature 0, whatever A was
    L = - sum_i log q(y_i | x_i) over the few given rows and the made ones

A is a class, B another one drawn at random, x a text that the teacher is asked to write so that it belongs to A to the
share alpha and to B for the rest. Such texts lie near the border of the classes, where a classifier q has most to learn,
but the teacher often misses the share: the same teacher, told the same about the classes, says which class each text
belongs to, and that label replaces A. Of three texts that an answer lists one is kept. The default numbers are those of
the authors' code.

Differs from the authors' code: an answer that is no class's name is mapped to the class whose letters are most alike,
where theirs takes the nearest sentence embedding; the prompts are in other words. Nothing is dropped but empty texts,
copies of the examples and texts that were there before, which are among the run's rejects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ...audits.classification import Classification
from ...audits.made_labels import MadeLabels
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Kind
from ...core.stage import Audit, Train
from ...data.labelled import Labelled, LibraryTopics
from ...models.text import HubClassifier, NGrams
from ...synth.made import Made
from ...synth.parse import items_of, nearest_label, plain
from ...synth.prompts import fill
from ...synth.scripts.imitator import Imitator
from ...synth.steps import Need, Row
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost
from ..classics.supervised import Supervised

PAPER = Paper(
    id="promptmix",
    title="PromptMix: A Class Boundary Augmentation Method for Large Language Model Distillation",
    authors=("Gaurav Sahu", "Olga Vechtomova", "Dzmitry Bahdanau", "Issam H. Laradji"),
    year=2023,
    arxiv="2310.14192",
    venue="EMNLP",
    modality=("text",),
    data=("labels",),
    claim="A small classifier learns more from texts that a language model wrote between two classes and labelled itself.",
)

CLASSES = """{% for each in classes %}
Class: {{ each.name }}{% if each.description %} - {{ each.description }}{% endif %}

{% for text in each.examples %}
- {{ text }}
{% endfor %}

{% endfor %}"""
MIX = """Here are classes of short texts, with examples of each.

{{ classes }}

Write {{ wanted }} new texts, as unlike the examples and each other as you can, in a numbered list without comments.
{% if other %}
Each must belong {{ share }}% to the class "{{ name }}" and {{ 100 - share }}% to the class "{{ other }}".
{% else %}
Each must belong to the class "{{ name }}".
{% endif %}"""
RELABEL = """Here are classes of short texts, with examples of each.

{{ classes }}

Which of these classes does the following text belong to? Answer with the name of one class alone.

Text: {{ text }}
Class:"""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Let the teacher write texts between two classes; the given rows are its examples and do not come out again."""

    each: int = 100  # texts of every class that are asked for (10 in each of 10 cycles)
    wanted: int = 3  # texts in an answer, one of which is kept
    shown: int = 4  # classes in a prompt
    examples: int = 10  # of a class in a prompt, at most
    beta: tuple[float, float] = (5.0, 2.0)  # of the share of the first class
    mixing: bool = True  # False: the first class alone
    descriptions: Mapping[str, str] = field(default_factory=dict[str, str])  # class -> one line about it
    prompt: str = MIX
    decoding: Decoding = Decoding(temperature=1.0, max_new=256)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Rows of `text`, `label` (the first class), `other`, `share`; `_truth` where a script knows it."""
        work, classes = run.work, by_class(rows)
        if len(classes) < 2:
            raise RunError("texts between classes need two classes or more in the rows to learn from")
        seen = {plain(row["text"]) for found in classes.values() for row in found}
        for (a, b, share, parents), answer in work.ask(self.teacher, self._asks(classes, work)):
            told = {"label": a, "other": b, "share": share}
            if isinstance(answer, Lost):
                work.lose(told, answer.why)
                continue
            items = items_of(answer.text)[: self.wanted]
            if not items:
                work.lose({**told, "answer": answer.text}, "no text in the answer")
                continue
            text = work.rng("kept", a, b, answer.text).choice(items)
            if plain(text) in seen or not plain(text):
                work.lose({**told, "text": text}, "the same text was there before" if plain(text) else "no words")
                continue
            seen.add(plain(text))
            truth = {} if answer.truth is None else {"_truth": answer.truth["labels"][items.index(text)]}
            yield work.child(*parents, text=text, **told, **truth)

    def _asks(self, classes: Mapping[str, Sequence[Row]], work: Any) -> Iterator[tuple[Any, Ask]]:
        for a in classes:
            for number in range(self.each):
                rng = work.rng(a, number)
                b = rng.choice([name for name in classes if name != a])
                share = round((50 + 50 * rng.betavariate(*self.beta)) / 5) * 5 if self.mixing else 100
                rest = [name for name in classes if name not in (a, b)]
                some = rng.sample([a, b, *rng.sample(rest, min(len(rest), self.shown - 2))], min(len(classes), self.shown))
                chosen = {name: rng.sample(classes[name], min(len(classes[name]), self.examples)) for name in some}
                words = fill(
                    self.prompt, classes=told(chosen, self.descriptions), wanted=self.wanted, name=a,
                    other=b if share < 100 else "", share=share,
                )  # fmt: skip
                about = {"wanted": self.wanted, "label": a, "other": b, "share": share}
                seed = work.seed(a, number) if self.decoding.temperature else 0
                yield (a, b, share, [*chosen[a], *chosen[b]]), Ask((("user", words),), self.decoding, seed, about)

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for each text."""
        classes = by_class(rows)
        calls, shown = self.each * len(classes), min(self.shown, len(classes))
        read = calls * (70 + shown * _size(classes, self.examples))
        return {self.teacher: Need(calls, read, calls * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many texts as are asked for, as long as the examples."""
        return [found[i % len(found)] for found in by_class(rows).values() for i in range(self.each)]


@dataclass(frozen=True, kw_only=True)
class Relabel:
    """Ask the teacher which class each text belongs to; nothing is dropped that it answers about."""

    data: Any = None  # where the examples come from; None: the recipe's data
    examples: int = 10  # of a class in a prompt, at most
    descriptions: Mapping[str, str] = field(default_factory=dict[str, str])  # class -> one line about it
    prompt: str = RELABEL
    decoding: Decoding = Decoding(temperature=0.0, max_new=24)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows with the teacher's label; the old one stays as `asked`."""
        work = run.work
        classes = by_class((self.data or run.recipe.data).rows(run)["train"])
        names = list(classes)
        shown = told({name: found[: self.examples] for name, found in classes.items()}, self.descriptions)

        def asks() -> Iterator[tuple[Row, Ask]]:
            for row in rows:
                words = fill(self.prompt, classes=shown, text=row["text"])
                yield row, Ask((("user", words),), self.decoding, about={"text": row["text"], "names": names})

        for row, answer in work.ask(self.teacher, asks()):
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
            elif not plain(answer.text):
                work.lose({**row, "answer": answer.text}, "an answer without words in place of a class")
            else:
                label, alike = nearest_label(answer.text, names)
                yield {**row, "label": label, "asked": row["label"], "alike": alike}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for each row."""
        classes = by_class((self.data or run.recipe.data).rows(run)["train"])
        read = len(rows) * (90 + len(classes) * _size(classes, self.examples))
        return {self.teacher: Need(len(rows), read, len(rows) * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return rows


def by_class(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by label, the classes in alphabetical order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return {name: found[name] for name in sorted(found)}


def told(classes: Mapping[str, Sequence[Row]], descriptions: Mapping[str, str]) -> str:
    """What a prompt says about classes."""
    facts = [
        {"name": name, "description": descriptions.get(name, ""), "examples": [row["text"] for row in rows]}
        for name, rows in classes.items()
    ]
    return fill(CLASSES, classes=facts)


def _size(classes: Mapping[str, Sequence[Row]], most: int) -> int:
    """About how many tokens one class takes in a prompt: four bytes each."""
    shown = [row["text"] for rows in classes.values() for row in rows[:most]]
    return 8 + sum(len(text.encode()) // 4 + 2 for text in shown) // max(1, len(classes))


def recipe(scale: Scale = "small") -> Recipe:
    """Topics of docstrings with a script as teacher (smoke, small); a file of yours, a served model, DistilBERT (paper).

    The script knows how the classes' words follow each other and which class a text is nearer to; it is no language
    model, but it lets everything else be checked, and knows the truth about each label.
    """
    if scale == "paper":
        student = HubClassifier(path="distilbert-base-uncased")
        teacher = HttpChat(url="http://localhost:8000/v1", model="teacher")
        data, optim = Labelled(path="train.csv", shots=2), Optim(lr=4e-5, warmup=0.1)
    else:
        student = NGrams(width=pick(scale, smoke=16, small=64, paper=64))
        data = LibraryTopics(each=pick(scale, smoke=60, small=250, paper=250), shots=2)
        teacher, optim = Scripted(script=Imitator(data=replace(data, shots=None))), Optim(lr=1e-2)
    mix = Mix(each=pick(scale, smoke=6, small=100, paper=100))
    train = Train(
        method=Supervised(), data=Made(stage="make"), optim=optim,
        steps=pick(scale, smoke=40, small=600, paper=2500), batch=pick(scale, smoke=8, small=32, paper=8),
    )  # fmt: skip
    return Recipe(
        id="promptmix",
        student=student,
        data=data,
        teachers={"teacher": teacher},
        stages={
            "make": Synthesize(steps={"mix": mix, "relabel": Relabel()}),
            "train": train,
            "alone": replace(train, data=None),
            "audit": Audit(subjects=("start", "alone", "train"), checks=(Classification(), MadeLabels(stage="make"))),
        },
    )


def proof() -> Proof:
    """Mixed and labelled again, against the examples alone and against each half left out, at equal steps."""
    whole = recipe("small")
    audit = replace(whole.stages["audit"], subjects=("start", "train"))
    ours = replace(whole, stages={"make": whole.stages["make"], "train": whole.stages["train"], "audit": audit})
    unlabelled = {"mix": ours.stages["make"].steps["mix"]}
    return Proof(
        claim="A classifier with two examples of each class learns more from texts that the teacher wrote between two"
        " classes and labelled again than from the examples alone, from texts of one class, or from mixed texts with the"
        " label that was asked for, at equal steps.",
        arms={
            "ours": ours,
            "alone": ours.set("train.data", None),
            "one_class": ours.set("make.steps.mix.mixing", False),
            "not_relabelled": ours.set("make.steps", unlabelled),
        },
        metric="accuracy",
        beats=("alone", "one_class", "not_relabelled"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=15.0,
        note="The teacher is a script that mixes the word sequences of two classes; the real language model that was tried"
        " is on the method's page.",
    )
