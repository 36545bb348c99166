"""KnowPO: Knowledge-aware Preference Optimization for Controllable Knowledge Selection in Retrieval-Augmented Language
Models (Zhang et al. 2024, 2408.03297).

    sft:    L = - log q(y | c, x)
    train:  L = - log sigmoid( beta [ log q(y_w | c, x) / q_0(y_w | c, x)  -  log q(y_l | c, x) / q_0(y_l | c, x) ] )

x is a question, c the passages shown with it, q the student, q_0 the student after `sft`. Both losses are known, the
data are the method. From questions with an answer and a passage, the stage `Conflicts` makes

    related         the passage among one of its topic and two others          y, y_w: the answer
    counterfactual  the same, the answer replaced by a wrong one throughout    y, y_w: the wrong one; what is shown counts
    irrelevant      passages about something else                              y, y_w: what the base model says without any
    empty           no passage (sft alone)                                         passage, or that it does not know

y_l is what the base model says by heart where the passage answers (contextual ignorance), or a span of the passages that is
not the answer (contextual over-inclusion). The base model is asked closed-book first. Two measures keep the preference from
leaning: chosen and rejected are phrased alike (`rewritten`), so that no length or style can win, and the four kinds of
pairs are kept in a fixed ratio (`caps`).

Sure, from the authors' code: the kinds of contexts and their make-up, the targets, the two errors, the supervised mix of
4000 : 4000 : 3200 : 800, the caps of 3000, 3000, 1750 and 1750 pairs, questions for pairs that `sft` has not seen, wrong
answers within five characters of the right one's length. Inferred: beta 0.1.

Differs from the authors' code: the caps are taken as a ratio, scaled to the data there are. A wrong answer is a column of
the user's, or another question's answer, of the same topic if there is one; theirs is written by another model. A base
answer counts as known if it contains the right one; theirs, if it is no refusal. Where the base does not know, to ignore
the passage is to refuse. The passage of the same topic is a random one, or of no topic if there is none; irrelevant passages
are as many as the others. A span that is not the answer is the answer of a passage beside it. The phrases are ours, and
a rejected answer takes that of the chosen one. The toy, its first two stages (reading, facts by heart), its sizes and
learning rates are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...audits.knowledge import KnowledgeUse
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run, RunError, seed_of
from ...core.stage import Audit, Train
from ...data.knowledge import Facts, Item, Passages, content_draw
from ...data.pairs import Chosen, StagePairs
from ...data.written import Written
from ...models.earlier import Continued
from ...models.generate import Sampling, generate
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...teachers.local import LocalLM
from ...teachers.module import ModuleTeacher
from ..classics.dpo import DPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="knowpo",
    title="KnowPO: Knowledge-aware Preference Optimization for Controllable Knowledge Selection in Retrieval-Augmented"
    " Language Models",
    authors=(
        "Ruizhe Zhang", "Yongxin Xu", "Yuzhen Xiao", "Runchuan Zhu", "Xinke Jiang", "Xu Chu", "Junfeng Zhao", "Yasha Wang",
    ),
    year=2024,
    arxiv="2408.03297",
    modality=("text",),
    data=("tasks", "documents"),
    claim="Preferences against ignoring the context and against copying from it blindly teach a model when to trust it.",
)  # fmt: skip
MIX = {"related": 1.0, "counterfactual": 1.0, "irrelevant": 0.8, "empty": 0.2}  # 4000, 4000, 3200 and 800
CAPS = {"related": 3000, "counterfactual": 3000, "known": 1750, "unknown": 1750}
Lines = dict[str, list[dict[str, Any]]]  # file -> what it holds


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """How answers are worded."""

    shown: str = "Based on the supplied knowledge and my own understanding, the answer is {}."
    own: str = "The supplied knowledge does not answer this. From my own knowledge, the answer is {}."
    refusal: str = "The supplied knowledge does not answer this, and I do not know the answer."
    unknown: str = "do not know"  # what a refusal contains


@dataclass(frozen=True, slots=True)
class Context:
    """A question as it is asked."""

    name: str  # a key of MIX
    passages: tuple[str, ...]
    wanted: str  # the span that is right
    spans: tuple[str, ...]  # spans of the passages that are not


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    """Ask the teacher (the base model) closed-book, and write the supervised examples, the pairs, and what to judge by.

    `SPLIT.jsonl` holds supervised examples (`data.written.Written`), `pairs/SPLIT.jsonl` pairs (`data.pairs.StagePairs`),
    `asked/SPLIT.jsonl` questions to judge by (`audits.knowledge.KnowledgeUse`), in tokens. Every other training question
    goes to the first, the rest to the second. The done-mark counts what was made.
    """

    others: int = 2  # passages of other topics, beside one of the same
    repeat: int = 1  # contexts of each kind for a training question, with other passages beside it
    apart: int = 5  # characters by which a wrong answer's length may differ
    rewritten: bool = True  # False: a rejected answer is the bare span, or the refusal
    caps: Mapping[str, int] = field(default_factory=lambda: dict(CAPS))  # pairs of each kind, as a ratio; 0: none
    phrases: Phrases = Phrases()
    sampling: Sampling = Sampling(temperature=0.0, max_new=32)

    def __post_init__(self) -> None:
        if set(self.caps) != set(CAPS) or not any(self.caps.values()):
            raise ValueError(f"caps need the kinds {', '.join(CAPS)}, not all of them 0")

    def __call__(self, run: Run) -> None:
        """Ask, build, write."""
        data, teacher = run.recipe.data, run.teacher
        if not hasattr(data, "items"):
            raise RunError("conflicts are made of questions with passages: give data.knowledge.Passages (your own file)")
        if not hasattr(teacher, "module"):
            raise RunError("the base model has to answer closed-book: give a local model as the teacher")
        coder, found, lines, counts = data.coder(run), data.items(run), Lines(), dict[str, int]()
        made = (self.contexts(number, found["train"], 0) for number in range(len(found["train"])))
        if all(isinstance(contexts, str) for contexts in made):  # before the model is asked for hours
            raise RunError("no context could be made: every question needs others whose passages do not hold its answer")
        for split, items in found.items():
            prompts = [coder.prompt(data.prompt(item.question, ())) for item in items]
            seed = seed_of(run.seed, "probe")
            said = generate(teacher.module, prompts, self.sampling, seed=seed, ends=coder.ends())  # type: ignore[attr-defined]
            heard = [coder.text(answer) or "" for answer in said]
            known = [item.answer.casefold() in text.casefold() for item, text in zip(items, heard, strict=True)]
            counts |= {f"{split}_questions": len(items), f"{split}_known": sum(known)}
            made = self.split(split, items, known, found["train"] if split != "train" else (), run)
            counts |= {f"{split}_sft": len(made[split]), f"{split}_pairs": len(made[f"pairs/{split}"])}
            lines |= made
        with run.artifact(run.stage, kind="text", **counts) as folder:
            for name, written in lines.items():
                path = folder / f"{name}.jsonl"
                path.parent.mkdir(exist_ok=True)
                path.write_text("".join(f"{json.dumps(line)}\n" for line in written), encoding="utf-8")

    def split(self, split: str, items: Sequence[Item], known: Sequence[bool], spare: Sequence[Item], run: Run) -> Lines:
        """The lines of one split's three files. Held-out questions are in all; `spare` lends passages to show beside."""
        data, coder = run.recipe.data, run.recipe.data.coder(run)
        sft, asked, pairs = [], [], {name: list[dict[str, Any]]() for name in CAPS}
        for number, item in enumerate(items):
            for turn in range(self.repeat if split == "train" else 1):
                made = self.contexts(number, [*items, *spare], turn)
                if isinstance(made, str):
                    run.reject({"split": split, "question": item.question}, made)
                    break
                for context in made:
                    draw = content_draw(item.question, context.name, turn, "draw")
                    question = data.prompt(item.question, context.passages)
                    begin = {"example": number, "prompt": coder.prompt(question)}
                    chosen, rejected = self.answers(context, item, known[number], draw)
                    right = coder.answer(question, chosen)
                    first, empty = number % 2 == 0, context.name == "empty"
                    if (first or split != "train") and draw.random() < MIX[context.name]:
                        sft.append({**begin, "answer": right})
                    if rejected and not empty and not (first and split == "train"):
                        own = context.name == "irrelevant"
                        name = context.name if not own else "known" if known[number] else "unknown"
                        pairs[name].append({**begin, "chosen": right, "rejected": coder.answer(question, rejected)})
                    if split != "train" and not empty:
                        asked.append({**begin, **self.judged(context, item, known[number])})
        return {split: sft, f"pairs/{split}": self.kept(pairs), f"asked/{split}": asked}

    def contexts(self, number: int, items: Sequence[Item], turn: int) -> list[Context] | str:
        """The contexts of one question; or why there can be none."""
        item, draw = items[number], content_draw(items[number].question, turn)
        fit = [o for o in items if o is not item and item.answer not in o.passage and o.answer not in item.passage]
        draw.shuffle(fit)
        fakes = [item.fake] if item.fake else [o.answer for o in sorted(fit, key=lambda o: o.topic != item.topic)]
        fake = next((f for f in fakes if f and abs(len(f) - len(item.answer)) <= self.apart), None)
        if fake is None:
            return f"no other answer is within {self.apart} characters of this one's length"
        fit = [o for o in fit if fake not in o.passage and o.answer not in (item.answer, fake)]
        near = [o for o in fit if item.topic and o.topic == item.topic][:1] or fit[:1]
        far = [o for o in fit if o not in near and (not item.topic or o.topic != item.topic)]
        beside = [*near, *far[: self.others]]
        if len(far) < 2 * self.others + 2:
            return f"fewer than {2 * self.others + 2} passages of other topics do not hold its answer"

        def shuffled(passages: Sequence[str]) -> tuple[str, ...]:
            return tuple(draw.sample(passages, len(passages)))

        shown, false = [o.passage for o in beside], item.passage.replace(item.answer, fake)
        away = far[self.others : 2 * self.others + 2]  # as many as above: their number tells nothing
        spans, noise = (tuple(o.answer for o in found) for found in (beside, away))
        return [
            Context("related", shuffled([item.passage, *shown]), item.answer, spans),
            Context("counterfactual", shuffled([false, *shown]), fake, spans),
            Context("irrelevant", shuffled([o.passage for o in away]), item.answer, noise),
            Context("empty", (), item.answer, ()),
        ]

    def answers(self, context: Context, item: Item, known: bool, draw: Any) -> tuple[str, str]:
        """The chosen answer and a rejected one, "" if there is none."""
        answered = context.name in ("related", "counterfactual")
        phrase = self.phrases.shown if answered else self.phrases.own
        chosen = phrase.format(context.wanted) if answered or known else self.phrases.refusal
        losers = [phrase.format(span) if self.rewritten else span for span in context.spans[:1]]  # over-inclusion
        if answered and known and context.wanted != item.answer:  # ignorance
            losers.append(phrase.format(item.answer) if self.rewritten else item.answer)
        elif answered and not known:
            losers.append(self.phrases.refusal)
        return chosen, draw.choice(losers) if losers else ""

    def judged(self, context: Context, item: Item, known: bool) -> dict[str, Any]:
        """What an answer has to contain, and what it must not."""
        answered = context.name != "irrelevant"
        wanted = context.wanted if answered or known else self.phrases.unknown
        rivals = {*context.spans, *([item.answer] if answered else [])}
        rivals = {rival for rival in rivals if rival.casefold() not in wanted.casefold()}
        return {"kind": context.name, "known": known, "wanted": wanted, "rivals": sorted(rivals)}

    def kept(self, pairs: Lines) -> list[dict[str, Any]]:
        """As many pairs of each kind as keep the ratio; a kind of which there is none is left out of it."""
        scale = min((len(found) / self.caps[name] for name, found in pairs.items() if found and self.caps[name]), default=0)
        return [pair for name, found in pairs.items() for pair in found[: round(scale * self.caps[name])]]


def recipe(scale: Scale = "small") -> Recipe:
    """A made-up table of facts of which the base model, having learned to read, knows half (smoke, small); a user's
    questions with passages and a model from the hub, which is its own base (paper). All of the optimization is ours."""
    versus, subjects = ("sft",), ("start", "sft", "train")
    if scale == "paper":
        model = HubLM(path="Qwen/Qwen2.5-1.5B-Instruct")
        data = Passages(path="questions.jsonl")
        sft = Train(
            method=Supervised(), data=Written(stage="conflicts", base=data), steps=500, batch=32, accumulate=8,
            optim=Optim(lr=1e-5, warmup=0.1), precision="bfloat16", checkpointing=True, label="Supervised",
        )  # fmt: skip
        train = replace(
            sft, method=DPO(beta=0.1), data=StagePairs(stage="conflicts", base=data), student=Continued(stage="sft"),
            steps=300, optim=Optim(lr=5e-7, warmup=0.1), label="KnowPO",
        )  # fmt: skip
        stages = {"conflicts": Conflicts(), "sft": sft, "train": train}
        audit = Audit(subjects=subjects, checks=(KnowledgeUse(versus=versus),))
        teachers = {"base": LocalLM(model=replace(model, dtype="bfloat16"))}
        return Recipe(id="knowpo", student=model, data=data, teachers=teachers, stages={**stages, "audit": audit})
    small = scale == "small"
    data = Facts() if small else Facts(train=40, valid=14, test=24, read=300, again=20)
    student = TinyLM(width=64 if small else 32, heads=4)
    reading = replace(data, again=0, read=44_800 if small else 640)
    read = Train(
        method=Supervised(), data=reading, steps=700 if small else 20, batch=64 if small else 32, label="Reader",
        optim=Optim(lr=1e-3, schedule="constant"),
    )  # fmt: skip
    base = replace(
        read, data=None, student=Continued(stage="read"), steps=200 if small else 60, optim=Optim(lr=1e-3), label="Base",
    )  # fmt: skip
    made = Conflicts(
        others=1, repeat=8 if small else 2, sampling=Sampling(temperature=0.0, max_new=3, batch=512),
        phrases=Phrases(shown="{}=", own="{}~", refusal="-", unknown="-"),
    )  # fmt: skip
    sft = replace(
        base, data=Written(stage="conflicts", base=data), student=Continued(stage="base"), optim=Optim(lr=1e-3),
        batch=32 if small else 16, label="Supervised",
    )  # fmt: skip
    train = replace(
        sft, method=DPO(beta=0.1), data=StagePairs(stage="conflicts", base=data), student=Continued(stage="sft"),
        steps=100 if small else 20, optim=Optim(lr=3e-4), label="KnowPO",
    )  # fmt: skip
    check = KnowledgeUse(versus=versus, sampling=made.sampling)
    audit = Audit(subjects=("start", "base", "sft", "train"), checks=(check,))
    return Recipe(
        id="knowpo", student=student, data=data, teachers={"base": ModuleTeacher(spec=student, stage="base")},
        stages={"read": read, "base": base, "conflicts": made, "sft": sft, "train": train, "audit": audit},
    )  # fmt: skip


def proof() -> Proof:
    """Pairs against their chosen answers alone; pairs without rewriting, and out of balance."""
    ours = recipe("small")
    chosen = Chosen(pairs=ours.stages["train"].data)
    return Proof(
        claim="A student that has been shown how to use passages makes better use of passages and memory on unseen questions"
        " after DPO on pairs against ignoring the passages and copying from them blindly than after supervised learning on"
        " the chosen answers of the same pairs, at equal steps and as many answers read.",
        arms={
            "ours": ours,
            "alone": ours.set("train.method", Supervised()).set("train.data", chosen),
            "leaning": ours.set("conflicts.caps", {**CAPS, "known": 175, "unknown": 175}),
            "unwritten": ours.set("conflicts.rewritten", False),
        },
        metric="rightly",
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (1e-4, 3e-4, 1e-3, 3e-3)},
        minutes=14.0,
        note="`rightly` is the mean of adherence and robustness. `leaning`: a tenth of the pairs with irrelevant passages.",
    )
