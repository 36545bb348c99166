"""PaST, from Knowledge is Not Enough: Injecting RL Skills for Continual Adaptation (ACL 2026): a skill as a vector.

    source:    theta_S  = SFT(base, source documents),    skill:  theta_S' = RL(theta_S, source questions)
    target:    theta_T  = SFT(base, new documents)
    transfer:  theta    = theta_T + lambda (theta_S' - theta_S)

base is the student before any of it; RL is GRPO with a verifier. What RL changed in the weights is added, tensor by tensor,
to a model that has read new documents and never saw a question about them. With K rounds the source is cut into K parts:
round k's RL goes on from SFT(base, part k) + v_{k-1}, and v_k is what it leaves minus SFT(base, part k).

Sure, from a detailed summary of the paper, which we could not read: the above, lambda 1 by default, that adding after the
target's SFT is best, K = 2, that the changes of SFT and of RL are nearly orthogonal (`audits.directions`).

Differs from the paper / the authors' code: we know no code. The RL is our GRPO with a verifier in place of a judge. Where
weights are low-rank adapters, stages keep them merged, so v is the difference of merged weights. Sums are taken in float32;
lambda 0 gives theta_T back bit for bit. The toy (`data.lookups`), its sizes and learning rates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...audits.directions import Directions
from ...audits.solved import Solved
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.stage import Audit, Train
from ...data.lookups import Lookups, Told
from ...data.tasks import Questions
from ...data.tokens import Text
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.merge import keep, stored
from ...models.toys import TinyLM
from ...models.weights import Change, Moved, Noise
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="past",
    title="Knowledge is Not Enough: Injecting RL Skills for Continual Adaptation",
    authors=("Pingzhi Tang", "Yiding Wang", "Muhan Zhang"),
    year=2026,
    arxiv="2601.11258",
    venue="ACL 2026",
    modality=("text",),
    data=("tasks", "documents"),
    claim="What reinforcement learning changed in the weights on one domain can be added to a model that has only read the"
    " documents of another, and answers questions about them.",
)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """`to + scale (after - before)`: the artifact is a model, as a training stage leaves one.

    Each of the three is a stage of this run, a Hugging Face folder, or a hub id in the local cache.
    """

    to: str = "target"  # the model that is to have the skill
    after: str = "skill"  # the model that has it
    before: str = "source"  # the same before it had it
    scale: float = 1.0  # lambda
    random: bool = False  # noise with the skill's norm in every tensor in its place: the control
    student: Any = None  # ModelSpec that loads the result; None: the recipe's
    label: str = ""  # what the report calls it; empty: from the stage's name

    def __call__(self, run: Run) -> None:
        """Check, add and write, one tensor at a time."""
        models = stored({name: getattr(self, name) for name in ("to", "after", "before")}, run)
        skill = Change(models["after"], models["before"])
        keep(run, models, Moved(models["to"], Noise(skill, run.seed) if self.random else skill, self.scale))


def recipe(scale: Scale = "small", rounds: int = 1) -> Recipe:
    """A made-up world of friends and letters (smoke, small); your own documents and questions (paper)."""
    if scale == "paper":
        read = Train(method=Supervised(), steps=500, batch=32, accumulate=8, optim=Optim(lr=1e-5), precision="bfloat16")
        sampling = Sampling(temperature=1.0, max_new=512)
        student = HubLM(path="Qwen/Qwen2.5-7B")
        return Recipe(
            id="past",
            student=student,
            data=Questions(path="questions.jsonl", length=1024),
            stages={
                "source": replace(read, data=Text(path="source.jsonl")),
                "skill": Train(
                    method=GRPO(group=16, sampling=sampling), data=Questions(path="source_questions.jsonl", length=1024),
                    student=Continued(stage="source"), steps=200, batch=32, accumulate=32, precision="bfloat16",
                    optim=Optim(lr=1e-6, schedule="constant"),
                ),
                "target": replace(read, data=Text(path="documents.jsonl")),
                "transfer": Transfer(label="PaST"),
                "audit": Audit(subjects=("start", "target", "transfer"), checks=(
                    Solved(ours="transfer", versus=("target",), sampling=replace(sampling, temperature=0.0)),
                    Directions(changes={"knowledge": ("source", student.path), "skill": ("skill", "source")}),
                )),
            },
        )  # fmt: skip
    people = pick(scale, smoke=24, small=240, paper=0) // rounds
    steps = pick(scale, smoke=30, small=60, paper=0) // rounds
    writing = Sampling(max_new=5, batch=512)
    base = Train(
        method=Supervised(), data=Told(of="base", people=40, full=2) if scale == "smoke" else Told(of="base"), label="Base",
        steps=pick(scale, smoke=150, small=400, paper=0), batch=16,
        optim=Optim(lr=5e-3),
    )  # fmt: skip
    read = Train(
        method=Supervised(), student=Continued(stage="base"), steps=pick(scale, smoke=20, small=100, paper=0), batch=20,
        optim=Optim(lr=pick(scale, smoke=3e-3, small=1e-3, paper=0.0)),
    )  # fmt: skip
    stages: dict[str, Any] = {"base": base}
    for k in range(rounds):
        source, skill = ("source", "skill") if k == rounds - 1 else (f"source{k + 1}", f"skill{k + 1}")
        stages[source] = replace(read, data=Told(of="source", skip=k * people, people=people))
        begin = source if k == 0 else f"begin{k + 1}"
        if k:
            stages[begin] = Transfer(to=source, after=f"skill{k}", before=f"source{k}")
        stages[skill] = Train(
            method=GRPO(group=8, sampling=writing), student=Continued(stage=begin), steps=steps,
            data=Lookups(of="source", skip=k * people, train=people, valid=0, test=0),
            batch=pick(scale, smoke=16, small=32, paper=0), optim=Optim(lr=pick(scale, smoke=3e-3, small=1e-3, paper=0.0)),
        )  # fmt: skip
    stages["target"] = replace(read, data=Told(of="target", people=people * rounds), label="Documents only")
    stages["transfer"] = Transfer(label="PaST")
    checks = (
        Solved(ours="transfer", versus=("target",), sampling=replace(writing, temperature=0.0)),
        Directions(changes={"knowledge": ("source", "base"), "other knowledge": ("target", "base"),
                            "skill": ("skill", "source")}),
    )  # fmt: skip
    return Recipe(
        id="past",
        student=TinyLM(width=32, heads=2) if scale == "smoke" else TinyLM(width=64, heads=4),
        data=Lookups(train=6, valid=6, test=12) if scale == "smoke" else Lookups(),
        stages={**stages, "audit": Audit(subjects=("start", "base", "skill", "target", "transfer"), checks=checks)},
    )


def proof() -> Proof:
    """The skill against none and against noise of its length; then two rounds, reading after RL, and RL on the target."""
    ours = recipe("small")
    rl = replace(ours.stages["skill"], data=ours.data, student=Continued(stage="target"))
    return Proof(
        claim="What GRPO changed in a model's weights on questions about some people, added to a model that has only read"
        " statements about others, answers more questions about them than that model does, or that model with noise added.",
        arms={
            "ours": ours,
            "alone": ours,
            "random": ours.set("transfer.random", True),
            "twice": recipe("small", rounds=2),
            "sequential": ours.set("target.student", Continued(stage="skill")),
            "target_rl": ours.set("stages", {**ours.stages, "transfer": rl}),
        },
        metric="solved",
        subject="transfer",
        subjects={"alone": "target", "sequential": "target"},
        beats=("alone", "random"),
        seeds=(0, 1, 2, 3),
        tune={"target.optim.lr": (1e-3, 3e-3)},
        minutes=8.0,
        note="Only the learning rate of reading the target's documents is tuned, for every arm; lambda is the paper's 1. All"
        " arms read them for equally many steps, and the noise has the norm of the skill in every tensor. `twice` has two"
        " rounds of half as many RL steps on half of the people each; `sequential` reads the target's statements after RL"
        " and adds nothing; `target_rl` also sees questions about 80 of the target's people, others than those asked in"
        " the end, and spends on them what ours spends on the source.",
    )
