"""BOLT: Bootstrap Long Chain-of-Thought in Language Models without Distillation (Pang et al. 2025).

    D = { (x, z, y) :  (z, y) = argmax over m samples of r(x, y),  r >= threshold,  the form is right }      bootstrapping
    sft:     L = - log q(z, y | x) on D, from a student that answers with short reasoning
    train:   L = - log sigmoid( beta [ log q(w | x) / q_0(w | x)  -  log q(l | x) / q_0(l | x) ] )            online DPO

x is a question, z long thoughts, y the answer behind them. A model that was only tuned to follow instructions writes them
once it is shown a few of ten examples written by hand, others for every question; r, an outcome reward, reads y alone, so
that no thoughts are judged. In the last stage q answers each question eight times at temperature 1: w is the answer with
the most reward, that of y and that of the form together, l the one with the least, and q_0 the student as the stage began.

Sure, from the paper: three stages, ten examples, the format filter, an outcome reward on the external answer and the best
of the samples kept, DPO online. INFERRED: three of the ten in a prompt, eight samples, the threshold, eight answers and
beta 0.1 in the last stage, the weight of the form; questions chosen by difficulty and evenly by topic, which clusters of
n-grams stand for here.

Differs from the paper: where a question has an answer that can be checked, that check is the outcome reward (a model's
judgement at `paper` in bootstrapping, by a prompt of ours). If all answers to a question earn the same, the first is its
own opponent and teaches nothing. The ten examples at `paper` are yours. The chains of `smoke` and `small` and the script
that writes long traces, right about three times in ten, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...audits.elsewhere import Elsewhere
from ...audits.form import Form
from ...audits.solved import Solved
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.external import TAGGED, External
from ...data.joined import Joined
from ...data.rewards import Format, Rewarded, Right
from ...data.tasks import Chain, Questions, chain_steps, tasks_of
from ...models.earlier import Continued
from ...models.generate import Sampling, answered
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...synth.generate import Generate
from ...synth.judge import Judge
from ...synth.made import Answered
from ...synth.part import Part
from ...synth.rules import Rules
from ...synth.scripts.solver import Solver
from ...synth.select import Between, Cluster, Top
from ...synth.shown import Shown
from ...synth.synthesize import Synthesize
from ...synth.verify import Verify
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Decoding
from ..classics.dpo import DPO
from ..classics.supervised import Supervised
from ..groups import written

PAPER = Paper(
    id="bolt",
    title="BOLT: Bootstrap Long Chain-of-Thought in Language Models without Distillation",
    authors=("Bo Pang", "Hanze Dong", "Jiacheng Xu", "Silvio Savarese", "Yingbo Zhou", "Caiming Xiong"),
    year=2025,
    arxiv="2502.03860",
    modality=("text",),
    data=("tasks", "prompts"),
    claim="A model learns long reasoning from an ordinary model's own tries, ten examples and a reward on outcomes alone.",
)
LONG = """Questions are answered in two parts. <think>...</think> holds long thoughts: what is asked, a plan, other ways,
what each step gives, whether it can be right, and a way back where it cannot. <answer>...</answer> holds the answer for
the reader.

{% for each in shown %}
Question: {{ each.question }}
{{ each.answer }}

{% endfor %}
Question: {{ question }}
"""
HARD = """How hard is this question for somebody who has to work it out? 1 is trivial, 10 takes an expert's hour. Answer
with the number alone.

{{ question }}"""
RATE = """How good is this answer to the question, right and complete, whatever led to it? 1 is useless, 10 cannot be better.
Answer with the number alone.

Question: {{ question }}

Answer: {{ external }}"""
STEP = r"~?\d+[+*-]\d+=\d+"
WORKED = rf"(?=.*~)({STEP};)*{STEP}#\d+"  # a chain in full steps, at least one of them once more


@dataclass(frozen=True, kw_only=True)
class OnlineDPO:
    """DPO on the best and the worst of `group` answers that the student has just written. A batch counts questions."""

    group: int = 8  # answers to a question
    beta: float = 0.1  # strength of the pull towards where the stage began
    sampling: Sampling = Sampling(temperature=1.0, max_new=2048)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.group < 2 or self.beta <= 0 or self.sampling.temperature <= 0:
            raise ValueError("a group needs two answers, drawn at a temperature above 0, and beta is above 0")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and what it was."""
        tasks_of(run)
        return DPO(beta=self.beta).setup(student, run)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over a pair of answers to every question."""
        prompts, keys, answers = written(s.student, batch, run, self.sampling, self.group)
        rewards = tasks_of(run).verify_all(run, "train", [example for example, _ in keys], answers)
        groups = [range(i, i + self.group) for i in range(0, len(keys), self.group)]
        best = [max(group, key=rewards.__getitem__) for group in groups]  # the first of equals
        worst = [min(group, key=rewards.__getitem__) for group in groups]
        chosen = [*best, *worst]
        made = answered([prompts[i] for i in chosen], [answers[i] for i in chosen])
        pairs: Batch = {**to_device(made, batch["labels"].device), "pairs": len(groups)}
        logs = {
            "reward": sum(rewards) / self.group,
            "best_reward": sum(rewards[i] for i in best),
            "mixed_groups": float(sum(a != b for a, b in zip(best, worst, strict=True))),
            "answer_tokens": sum(map(len, answers)) / self.group,
        }
        for update in DPO(beta=self.beta).step(s, pairs, run):
            yield replace(update, logs={**update.logs, **logs})


def long_examples(base: int, count: int = 10) -> tuple[dict[str, str], ...]:
    """Chains with each step looked at twice: what the script's prompts show."""
    told: list[dict[str, str]] = []
    for i in range(count):
        question = f"{i % base}+{(i + i // base + 1) % base}-{(2 * i + 1) % base}="
        steps = chain_steps(question, base)
        answer = ";".join(f"{step};~{step}" for step in steps) + f"#{steps[-1].rpartition('=')[2]}"
        told.append({"question": question, "answer": answer})
    return tuple(told)


def bootstrap(
    form: Rules, part: str, reward: Any, show: Shown, *, most: int, least: float, samples: int = 8
) -> dict[str, Any]:
    """The steps from questions to the best long answer to each: `least` is the threshold of the reward."""
    return {
        "show": show,
        "write": Generate(prompt=LONG, each=8, decoding=Decoding(temperature=1.0, max_new=most)),
        "form": form,
        "part": Part(pattern=part, into="external"),
        "reward": reward,
        "enough": Between(by="reward", least=least),
        "best": Top(by="reward", k=1, group="question"),
    }


def recipe(scale: Scale = "small") -> Recipe:
    """Chains of two and three operators, also judged on four, and a script that works them out at length, often wrongly, for
    a student that knows short traces (smoke, small); a user's questions, a served model and judge (paper)."""
    show = Shown(columns=("question", "answer"), path="examples.jsonl")
    if scale == "paper":
        reward = Judge(prompt=RATE, into="reward", decoding=Decoding(temperature=0.0, max_new=16))
        mined = {
            "hardness": replace(reward, prompt=HARD, into="hardness"),
            "hard": Between(by="hardness", least=4.0),
            "topics": Cluster(count=20, column="question"),
            "even": Top(by="hardness", total=10000, group="cluster"),
        }
        steps = bootstrap(Rules(column="answer", tags=("think", "answer")), TAGGED, reward, show, most=4096, least=7.0)
        tasks: Any = External(base=Questions(path="questions.jsonl", instruction="", length=8192))
        optim = Optim(lr=1e-5, warmup=0.1)
        sft = Train(
            method=Supervised(), data=Answered(stage="make"), steps=1000, batch=32, optim=optim, accumulate=32,
            precision="bfloat16", checkpointing=True, label="Long answers",
        )  # fmt: skip
        judged: tuple[Any, ...] = (Solved(versus=("sft",), sampling=Sampling(temperature=0.0, max_new=4096)),)
        rewarded = Rewarded(base=tasks, rewards={"right": Right(), "form": Format(pattern=TAGGED, weight=0.2)})
        train = replace(
            sft, method=OnlineDPO(), data=rewarded, student=Continued(stage="sft"), optim=replace(optim, lr=5e-7), steps=300,
            label="BOLT",
        )  # fmt: skip
        return Recipe(
            id="bolt",
            student=HubLM(path="Qwen/Qwen2.5-1.5B-Instruct"),
            data=tasks,
            teachers={
                "teacher": HttpChat(url="http://localhost:8000/v1", model="teacher"),
                "judge": HttpChat(url="http://localhost:8001/v1", model="judge"),
            },
            stages={
                "make": Synthesize(steps={**mined, **steps}), "sft": sft, "train": train,
                "audit": Audit(subjects=("start", "sft", "train"), checks=judged),
            },
        )  # fmt: skip
    easy = Chain(ops=(1,), base=5, signs="+-", train=18, valid=4, test=10)
    hard = Chain(ops=(2, 3), base=6, signs="+-", train=600, valid=100, test=200)
    asked = pick(scale, smoke=easy, small=hard, paper=hard)
    longer = replace(asked, ops=pick(scale, smoke=(2,), small=(4,), paper=(4,)))
    other = replace(asked, skip=asked.train)
    writing = Sampling(max_new=pick(scale, smoke=24, small=64, paper=0), batch=512)
    short = Train(
        method=Supervised(), data=Joined(parts={"asked": other, "longer": longer}), optim=Optim(lr=5e-3, warmup=0.1),
        steps=pick(scale, smoke=80, small=700, paper=0), batch=pick(scale, smoke=16, small=24, paper=0),
        label="Short answers",
    )  # fmt: skip
    sft = replace(
        short, data=Answered(stage="make"), student=Continued(stage="short"), label="Long answers",
        steps=pick(scale, smoke=60, small=150, paper=0), batch=8,
    )  # fmt: skip
    rewards = {"right": Right(), "form": Format(pattern=WORKED, weight=0.2)}
    train = replace(
        sft, method=OnlineDPO(sampling=writing), data=Rewarded(base=asked, rewards=rewards), label="BOLT",
        student=Continued(stage="sft"), steps=pick(scale, smoke=8, small=40, paper=0), batch=8, optim=Optim(lr=1e-3),
    )  # fmt: skip
    steps = bootstrap(
        Rules(column="answer", required=(f"^{WORKED}$",)), r"^.*#(\d+)$",
        Verify(checks=("exact",), answer="external", into="reward", keep=True),
        Shown(columns=("question", "answer"), rows=long_examples(asked.base)), most=256, least=1.0,
    )  # fmt: skip
    judge, cold = Solved(versus=("sft",), sampling=writing), replace(writing, temperature=0.0)
    checks = (
        judge,
        Form(pattern=WORKED, sampling=writing),
        Elsewhere(check=Solved(sampling=cold), data=asked, name="greedy"),
        Elsewhere(check=Solved(sampling=writing), data=longer, name="longer"),
    )
    return Recipe(
        id="bolt",
        student=pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=asked,
        teachers={"teacher": Scripted(script=Solver(data=asked, wrong=0.35, again=0.5, garbled=0.15))},
        stages={
            "short": short, "make": Synthesize(steps=steps), "sft": sft, "train": train,
            "audit": Audit(subjects=("start", "short", "sft", "train"), checks=checks),
        },
    )  # fmt: skip


def proof() -> Proof:
    """The whole of it, against more supervised learning on the kept answers and on all that were written."""
    whole = recipe("small").set("audit.subjects", ("sft", "train"))
    kept = whole.set("train.method", Supervised()).set("train.data", whole.stages["sft"].data).set("train.batch", 8)
    steps = whole.stages["make"].steps
    unread = {name: steps[name] for name in ("show", "write")} | {"one": Top(k=1, group="question")}
    return Proof(
        claim="A student that knows short answers solves more unseen problems, by long answers drawn at temperature 1, after"
        " learning one long answer to each question, the best by a reward on outcomes, and then from its own best and worst"
        " answers, than after as many steps of supervised learning on those answers, or on any answer to each.",
        arms={"ours": whole, "kept": kept, "any": kept.set("make.steps", unread)},
        metric="solved",
        beats=("kept", "any"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-4, 1e-3, 3e-3)},
        minutes=12.0,
        note="Chains modulo 6 of `+` and `-`. The student knows short answers, each step once, to other chains of two to"
        " four operators; a script writes long ones, in which some steps come once more, to 600 chains of two and three,"
        " eight tries each, of which about a quarter have the right form and result; `any` keeps one of the eight by chance."
        " Judged on unseen chains of two and three operators. Greedy answers, their form, and chains of four operators, to"
        " which no long answer was shown, are measured beside; on the validation split of one seed chains of four were near"
        " chance, so the claim leaves them out. The arms differ in which answers are kept, learned in 150 steps of 8 packed"
        " rows, and in the last stage of 40 steps: the others learn from 8 packed rows a step, BOLT from pairs out of eight"
        " answers of its own to each of 8 questions. Equal steps, equal calls to the teacher; BOLT's own answers cost time.",
    )
