"""HarmAug: Effective Data Augmentation for Knowledge Distillation of Safety Guard Models (Lee et al. 2024).

    x ~ LM(. | "write one text of the rare class", prefix),   p(x) = softmax over the guard's two verdicts
    L = 1/B sum_i 0.5 CE(1[p_i > 0.5], q(x_i)) + 0.5 KL(p_i || q(x_i))

A guard is a large classifier whose one class is rare. A small one learns to do as it does from the given texts and from
new ones of the rare class, which a language model writes. Such a model refuses often; so its answer is made to begin with
words that agree ("Here is one:"), and it goes on from there. The guard then says of every text, given or made, how likely
it is of the rare class. The label is what it finds likelier, and half of the loss.

Differs from the authors' code: a server tells how likely the words of its answer were, not what else it could have said, so
what the guard's verdict leaves belongs to the other class, where theirs takes the logits of both verdict words. The second
model, which answers the made prompts so that pairs of prompt and answer can be judged, is not here: texts alone are judged.
That copies are dropped and a few given texts are shown as examples, prompts, prefix and quotas are our choice. Here every
class can be the rare one, and everything is tried out on a harmless one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ...audits.accepted import PerCall
from ...audits.classification import Classification
from ...audits.made_labels import MadeLabels
from ...audits.rare import RareClass
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.labelled import Labelled, LibraryTopics, names_of
from ...data.rare import Rare
from ...models.call import dense, logits_of
from ...models.text import HubClassifier, NGrams
from ...objectives.divergences import ForwardKL, cross_entropy
from ...synth.classify import Classify
from ...synth.edits import Edits
from ...synth.parse import plain
from ...synth.prompts import fill
from ...synth.pseudo import Pseudo
from ...synth.scripts.reluctant import Reluctant
from ...synth.scripts.unsure import Unsure
from ...synth.steps import Need, Row, Work
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost, begins_with

PAPER = Paper(
    id="harmaug",
    title="HarmAug: Effective Data Augmentation for Knowledge Distillation of Safety Guard Models",
    authors=("Seanie Lee", "Haebin Seong", "Dong Bok Lee", "Minki Kang", "Xiaoyin Chen", "Dominik Wagner", "Yoshua Bengio",
             "Juho Lee", "Sung Ju Hwang"),
    year=2024,
    arxiv="2410.01524",
    venue="ICLR 2025",
    modality=("text",),
    data=("labels",),
    claim="A small guard learns a rare class as well as a large one from texts that a model was made to begin to write.",
)  # fmt: skip

WRITE = """{% if examples %}
Here are texts of the class "{{ name }}"{% if description %} ({{ description }}){% endif %}:

{% for text in examples %}
- {{ text }}
{% endfor %}

{% endif %}
Write one new text of the class "{{ name }}"{% if description and not examples %} ({{ description }}){% endif %}, unlike the
others, in one paragraph and without comments."""
BEGIN = 'Here is a new text of the class "{{ name }}":'
REFUSALS = ("sorry", "I am sorry", "I'm sorry", "I cannot", "I can't", "I won't", "I am unable", "I'm unable", "As an AI")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The given rows, and `quotas` new ones of each class, each written by a teacher whose answer begins with `begin`.

    It is asked again until there are enough, `tries` times for each text at most. Lost: a refusal, an answer without words
    or without an end, and a text that was there before. A barrier: it holds the rows.
    """

    quotas: Mapping[str, int] = field(default_factory=dict[str, int])  # class -> new texts
    tries: float = 3.0  # calls for each text that is wanted, at most
    begin: str = BEGIN  # a template over name and description; empty: the teacher begins as it likes
    examples: int = 3  # of the class, in the prompt, at most
    descriptions: Mapping[str, str] = field(default_factory=dict[str, str])  # class -> one line about it
    refusals: tuple[str, ...] = REFUSALS  # what a refusal begins with, in whatever case
    prompt: str = WRITE
    decoding: Decoding = Decoding(temperature=1.0, max_new=128)
    teacher: str = "generator"

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.quotas.values()) or self.tries < 1:
            raise ValueError("no quota may be below 0, and tries must be 1 or more")

    @property
    def needs(self) -> frozenset[Kind]:
        """Text, and that it goes on from words which somebody else has begun it with."""
        return frozenset[Kind]({"text"}) | Ask((), self.decoding, begin=self.begin).wants

    def check(self, run: Run) -> None:
        """RunError for a quota of a class that the data do not have."""
        names = names_of(run.recipe.data, run)
        unknown = sorted((set(self.quotas) | set(self.descriptions)) - set(names))
        if unknown:
            raise RunError(f"a quota or description of the class {unknown[0]!r}, but the classes are {', '.join(names)}")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The given rows, then the new ones with `text`, `label` and `asked`, the class that was asked for."""
        work: Work = run.work
        given = sorted(rows, key=lambda row: str(row["_id"]))
        yield from given
        seen = {plain(str(row["text"])) for row in given}
        for label in sorted(self.quotas):
            shown = [row for row in given if row.get("label") == label]
            quota, most, have, asked = self.quotas[label], self._most(label), 0, 0
            while have < quota and asked < most:
                numbers = range(asked, min(most, asked + quota - have))
                asked = numbers.stop
                for parents, answer in work.ask(self.teacher, (self._ask(label, n, shown, work) for n in numbers)):
                    text = "" if isinstance(answer, Lost) else _paragraph(answer.text)
                    why = answer.why if isinstance(answer, Lost) else self._unusable(answer.text, text, answer.finished)
                    if not why and plain(text) in seen:
                        why = "the same text was there before"
                    if isinstance(answer, Lost) or why:
                        work.lose({"label": label, "text": text}, why)
                        continue
                    seen.add(plain(text))
                    have += 1
                    truth = {} if not answer.truth else {"_truth": answer.truth["label"]}
                    yield work.child(*parents, text=text, label=label, asked=label, **truth)

    def _ask(self, label: str, number: int, shown: Sequence[Row], work: Work) -> tuple[Sequence[Row], Ask]:
        some = work.rng(label, number).sample(shown, min(len(shown), self.examples))
        told = {"name": label, "description": self.descriptions.get(label, "")}
        words = fill(self.prompt, **told, examples=[row["text"] for row in some])
        seed = work.seed(label, number)
        return some, Ask((("user", words),), self.decoding, seed, {"label": label}, fill(self.begin, **told))

    def _unusable(self, answer: str, text: str, finished: bool) -> str:
        """Why an answer cannot be used; empty if it can."""
        if not plain(text):
            return "no words"
        if begins_with(answer, self.refusals):
            return "a refusal"
        return "" if finished or "\n\n" in answer.strip() else "the answer was cut off"

    def _most(self, label: str) -> int:
        return math.ceil(self.tries * self.quotas[label])

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """All tries, with the longest examples."""
        need = Need(0, 0, 0)
        for label in self.quotas:
            texts = sorted((str(row["text"]) for row in rows if row.get("label") == label), key=len)[-self.examples :]
            told = {"name": label, "description": self.descriptions.get(label, "")}
            words = fill(self.prompt, **told, examples=texts if self.examples else [])
            size = Ask((("user", words),), self.decoding, begin=fill(self.begin, **told)).size
            need += Need(self._most(label), self._most(label) * size, self._most(label) * self.decoding.max_new)
        return {self.teacher: need}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """The given rows, and others as long as the longest answer."""
        text = "word" * self.decoding.max_new
        return [*rows, *({"text": text, "label": label} for label, n in self.quotas.items() for _ in range(n))]


def _paragraph(answer: str) -> str:
    """The first paragraph, without quotes around it."""
    text = " ".join(answer.strip().split("\n\n")[0].split())
    return text[1:-1].strip() if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0] else text


@dataclass(frozen=True, kw_only=True)
class HarmAug:
    """Match the guard's verdict and its probability, which the data hold as `labels` and `confidence`."""

    hard: float = 0.5  # weight of the verdict; the rest is that of the probability
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.hard <= 1.0:
            raise ValueError(f"hard must be between 0 and 1, not {self.hard}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if the data do not say how sure the guard was."""
        if run.source is not None and "confidence" not in run.source.batch([0], 0):
            raise RunError(
                f"stage {run.stage!r} learns a guard's probabilities, which its data do not hold: take "
                "data={use: synth.pseudo.Pseudo, stage: make, given: false}"
            )
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all texts."""
        logits, labels = dense(logits_of(s.student, batch)), batch["labels"]
        target = guarded(labels, batch["confidence"], logits.shape[-1]).log()
        kl, nll = ForwardKL()(logits, target).sum(), cross_entropy(logits, labels).sum()
        loss = self.hard * nll + (1 - self.hard) * kl
        yield Update(loss, count=len(labels), logs={"kl": kl.detach(), "cross_entropy": nll.detach()})


def guarded(labels: Tensor, confidence: Tensor, classes: int) -> Tensor:
    """The guard's probabilities [N, V]: `confidence` for the label, what is left for all others alike; none is 0."""
    sure = confidence.float().clamp(1e-6, 1 - 1e-6).unsqueeze(-1)
    rest = ((1 - sure) / (classes - 1)).expand(-1, classes)
    return rest.scatter(1, labels.unsqueeze(-1), sure)


def recipe(scale: Scale = "small") -> Recipe:
    """One topic of docstrings against the others, scripts as generator and guard; a file of yours, served models (paper)."""
    if scale == "paper":
        student, rare = HubClassifier(path="microsoft/deberta-v3-large", length=1024), "rare"
        data: Any = Labelled(path="train.csv")
        server = HttpChat(url="http://localhost:8000/v1", model="generator", continues=True)
        teachers: dict[str, Any] = {"generator": server, "guard": HttpChat(url=server.url, model="guard", logprobs=True)}
        optim, quota = Optim(lr=3e-5, weight_decay=0.1, warmup=0.1), 1000
    else:
        topics, rare = LibraryTopics(each=pick(scale, smoke=40, small=250, paper=0)), "mail"
        student = NGrams(width=pick(scale, smoke=16, small=64, paper=64))
        data = Rare(base=topics, label=rare, keep=pick(scale, smoke=5, small=8, paper=None))
        known = replace(data, keep=None)
        teachers = {"generator": Scripted(script=Reluctant(data=known)), "guard": Scripted(script=Unsure(data=known))}
        optim, quota = Optim(lr=1e-2), pick(scale, smoke=20, small=200, paper=0)
    judge = Classify(
        confidence="tokens", decoding=Decoding(temperature=0.0, max_new=24, logprobs=True), teacher="guard",
    )  # fmt: skip
    train = Train(
        method=HarmAug(), data=Pseudo(stage="make", given=False), optim=optim,
        steps=pick(scale, smoke=60, small=400, paper=1000), batch=pick(scale, smoke=16, small=32, paper=256),
    )  # fmt: skip
    checks = (RareClass(label=rare), Classification(), MadeLabels(), PerCall())
    return Recipe(
        id="harmaug",
        student=student,
        data=data,
        teachers=teachers,
        stages={
            "make": Synthesize(steps={"write": Wanted(quotas={rare: quota}), "judge": judge}),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=checks),
        },
    )


def proof() -> Proof:
    """Made texts against none, against edited ones, and against what as many calls give without the prefix."""
    ours = recipe("small")
    make = ours.stages["make"]
    write, judge = make.steps["write"], make.steps["judge"]
    guard = {"guard": ours.teachers["guard"]}

    def arm(steps: Mapping[str, Any]) -> Recipe:
        return replace(ours, teachers=guard, stages={**ours.stages, "make": replace(make, steps=steps)})

    return Proof(
        claim="A small classifier with eight texts of a rare class finds more of it after learning a guard's verdicts and"
        " probabilities on texts that a model was made to begin to write than on the given texts alone, on as many edited"
        " ones, and on what as many calls give of a model that may refuse, at equal steps.",
        arms={
            "ours": ours,
            "alone": arm({"judge": judge}),
            "edited": arm({"edit": Edits(quotas=write.quotas), "judge": judge}),
            "no_prefix": ours.set("make.steps.write.begin", "").set("make.steps.write.tries", 1.0),
            "labels_only": ours.set("train.method.hard", 1.0),
        },
        metric="auprc",
        beats=("alone", "edited", "no_prefix"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=12.0,
        note="The rare class is a harmless one: docstrings about mail among those of eight other topics. The generator is a"
        " script that writes as the class's docstrings do and refuses 60 % of what it is asked without the prefix; the guard"
        " is naive Bayes over all training texts, each judged by the half that it is not in. 400 steps for all; `ours` and"
        " `edited` add 200 texts, `no_prefix` what 200 calls give. Not in the claim: `labels_only`, the verdicts without"
        " the probabilities.",
    )
