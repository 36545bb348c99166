"""MOPD: Multi-Teacher On-Policy Distillation for Capability Integration in LLM Post-Training (Ma et al. 2026, 2606.30406).

    L = sum_x D(q || p_d(x)),      d(x) the domain of the row x

Several teachers, each good at one domain, and one student: every row is taught by the teacher of its domain, with the
method `method`. As in the paper that is on-policy distillation, KL(q || p) of every token of the student's own answers;
any method that asks one teacher does. The losses are sums over tokens, so a batch may hold rows of all domains, and its
gradient is that of the rows apart.

Known of the paper, from its abstract and accounts of it: teachers from reinforcement learning on one domain each, routing
by the domain of the prompt, the student's own answers, dense feedback from the teacher's probabilities.

Differs from the paper, as far as we know it: the divergence is over the whole vocabulary (deployments take the drawn token
alone: `GOPD(scale=1)` as `method`), domains have no weights, and all hyper-parameters are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.method import State, Update, advance
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.mixed import Mixed
from ...data.tasks import Chain, Questions
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.divergences import ForwardKL, ReverseKL
from ...teachers.local import LocalLM
from ...teachers.module import ModuleTeacher
from .gkd import GKD
from .grpo import GRPO
from .supervised import Supervised

PAPER = Paper(
    id="mopd",
    title="MOPD: Multi-Teacher On-Policy Distillation for Capability Integration in LLM Post-Training",
    authors=(
        "Wenhan Ma", "Jianyu Wei", "Liang Zhao", "Hailin Zhang", "Bangjun Xiao", "Lei Li", "Qibin Yang", "Bofei Gao",
        "Yudong Wang", "Rang Li", "Jinhao Dong", "Zhifang Sui", "Fuli Luo",
    ),
    year=2026,
    arxiv="2606.30406",
    modality=("text",),
    data=("tasks", "documents", "prompts"),
    claim="A student taught on its own answers by the expert of each domain keeps nearly all that the experts can do.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MOPD:
    """Every row learns from the teacher of its domain. Batches name domains: data.domains.Domains, data.mixed.Mixed."""

    method: Any = GKD(on_policy=1.0, divergence=ReverseKL())  # how a row is taught; it asks one teacher
    teachers: Mapping[str, str] = field(default_factory=dict[str, str])  # domain -> teacher; none: of the same name
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True

    def setup(self, student: nn.Module, run: Run) -> State:
        """As `method` wants it; RunError if a domain has no teacher."""
        names: tuple[str, ...] = getattr(run.source, "names", ())
        if not names:
            raise RunError("the data name no domains: use data.domains.Domains or data.mixed.Mixed")
        routes = {name: self.teachers.get(name, name) for name in names}
        lost = [name for name, teacher in routes.items() if teacher not in run.teachers]
        unknown = set(self.teachers) - set(names)
        if lost or unknown:
            what = f"no teacher for domain {lost[0]!r}" if lost else f"the data have no domain {sorted(unknown)[0]!r}"
            there = f"domains: {', '.join(names)}; teachers: {', '.join(run.teachers) or 'none'}"
            raise RunError(f"{what}; {there} (train.method.teachers)")
        return self.method.setup(student, self._only(run, routes[names[0]]))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """The updates of `method`, each the sum over the domains in the batch."""
        names = run.source.names
        domains = batch["domain"].tolist()
        streams = [
            self.method.step(s, rows_of(batch, batch["domain"] == domain), self._of(names[domain], run))
            for domain in sorted(set(domains))
        ]
        for updates in zip(*streams, strict=True):
            logs: dict[str, Tensor | float] = {}
            for update in updates:
                logs = {**logs, **{name: logs.get(name, 0.0) + value for name, value in update.logs.items()}}
            loss, count = sum(update.loss for update in updates), sum(update.count for update in updates)
            yield Update(torch.as_tensor(loss), count=count, group=updates[0].group, logs=logs)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """As `method` does."""
        advance(self.method, s, logs, run)

    def _of(self, domain: str, run: Run) -> Run:
        return self._only(run, self.teachers.get(domain, domain))

    def _only(self, run: Run, teacher: str) -> Run:
        """The same run, in which there is one teacher."""
        view = copy.copy(run)
        view.teachers = {"teacher": run.teachers[teacher]}
        return view


def rows_of(batch: Batch, chosen: Tensor) -> dict[str, Any]:
    """Some rows [B] of a batch: of all its tensors, those in mappings included."""
    return {
        name: rows_of(value, chosen) if isinstance(value, Mapping) else value[chosen] if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def recipe(scale: Scale = "small") -> Recipe:
    """Two kinds of arithmetic chains, each with an expert trained on it (smoke, small); two files of questions (paper)."""
    if scale == "paper":
        files = {"math": Questions(path="math.jsonl", length=4096), "science": Questions(path="science.jsonl", length=4096)}
        sampling = Sampling(max_new=4096)
        return Recipe(
            id="mopd",
            student=HubLM(path="Qwen/Qwen3-1.7B"),
            data=Mixed(parts=files),
            teachers={name: LocalLM(model=HubLM(path=f"./{name}-expert", dtype="bfloat16")) for name in files},
            stages={
                "train": Train(
                    method=MOPD(method=GKD(on_policy=1.0, divergence=ReverseKL(), sampling=sampling)), steps=200,
                    batch=256, accumulate=64, precision="bfloat16", checkpointing=True, optim=Optim(lr=1e-6),
                ),
                "audit": Audit(subjects=("start", "train"), checks=(Solved(versus=("start",), sampling=sampling),)),
            },
        )  # fmt: skip
    tiny = Chain(ops=(1,), style="answer", train=24, valid=6, test=20)
    tasks = pick(scale, smoke=tiny, small=Chain(ops=(2,), style="values", train=500, valid=60, test=200), paper=tiny)
    kinds = {name: replace(tasks, signs=signs) for name, signs in SIGNS.items()}
    solved = pick(scale, smoke=12, small=60, paper=0)  # worked solutions of each kind that the student sees first
    few = {name: replace(kind, train=solved, skip=kind.train) for name, kind in kinds.items()}
    sampling = Sampling(max_new=pick(scale, smoke=4, small=8, paper=0), batch=512)
    spec = pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=64, heads=4), paper=TinyLM())
    warm = Train(
        method=Supervised(), data=Mixed(parts=few), steps=pick(scale, smoke=30, small=150, paper=0),
        batch=pick(scale, smoke=16, small=64, paper=0), optim=Optim(lr=3e-3), label="Student before MOPD",
    )  # fmt: skip
    experts = {
        name: replace(
            warm, data=kind, steps=pick(scale, smoke=60, small=250, paper=0), student=spec, label=f"Expert for {name}"
        )
        for name, kind in kinds.items()
    }
    train = Train(
        method=MOPD(method=GKD(on_policy=1.0, divergence=ReverseKL(), sampling=sampling)), student=Continued(stage="warm"),
        steps=pick(scale, smoke=10, small=150, paper=0), batch=pick(scale, smoke=8, small=64, paper=0),
        optim=Optim(lr=1e-3), label="MOPD",
    )  # fmt: skip
    judged = Solved(versus=("warm", *experts), sampling=replace(sampling, temperature=0.0))
    return Recipe(
        id="mopd",
        student=spec,
        data=Mixed(parts=kinds),
        teachers={name: ModuleTeacher(spec=spec, stage=name) for name in kinds},
        stages={
            **experts,
            "warm": warm,
            "train": train,
            "audit": Audit(subjects=("start", *experts, "warm", "train"), checks=(judged,)),
        },
    )


SIGNS = {"plus": "+-", "times": "*"}


def proof() -> Proof:
    """Two experts on the student's own answers, against a verifier, the experts on given answers, and one expert for all."""
    ours = recipe("small")
    train = ours.stages["train"]
    method = train.method.method
    rl = GRPO(group=8, kl=0.0, sampling=method.sampling)
    return Proof(
        claim="A student that has seen 120 worked chains of two kinds solves more unseen chains of both kinds after"
        " on-policy distillation from an expert of each kind than after GRPO with a verifier on as many own answers.",
        arms={
            "ours": ours,
            "mixed_rl": ours.set(
                "stages", {**ours.stages, "train": replace(train, method=rl, batch=train.batch // rl.group)}
            ),
            "off_policy": ours.set("train.method", MOPD(method=replace(method, on_policy=0.0, divergence=ForwardKL()))),
            "one_teacher": ours.set("train.method.teachers", dict.fromkeys(SIGNS, "plus")),
        },
        metric="solved",
        beats=("mixed_rl",),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (1e-3, 3e-3)},
        minutes=8.0,
        note="All arms go on from the same student for 150 steps of 64 answers: its own, but for `off_policy`, which hears"
        " what the experts say of the worked solutions and so sees what the others do not. In `one_teacher` the expert for"
        " + and - judges all rows.",
    )
