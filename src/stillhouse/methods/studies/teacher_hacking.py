"""On Teacher Hacking in Language Model Distillation (Tiapkin et al. 2025, arXiv 2502.02671).

    proxy = E_x E_{y ~ p(.|x)} KL(p || q),   golden = E_x E_{y ~ mu(.|x)} KL(mu || q)
    teacher hacking: proxy falls while golden rises

mu is the oracle (the truth), p the teacher, which was trained on a sample of mu, q the student, x a prompt; KL is between
whole answers y, summed from the next-token distributions. The student begins with a little text of the oracle, and then
learns the teacher's next-token distributions (forward KL by default) on answers y that come from

    a fixed set, one or n answers to each prompt, read again and again    (offline; `seqkd.Write` makes it)
    the teacher, drawn anew for every batch                               (online; `FreshTeacher`)
    the student itself                                                    (on-policy; `gkd.GKD`)
    a mixture: a share `fresh` of the steps online, the others offline

The claim is that golden turns up offline alone, and that a proxy which no longer falls as a power law of the steps,
ln proxy = a - b ln(step), tells so without an oracle. `audits.teacher_hacking.TeacherHacking` asks both of any student
whose checkpoints were kept, trained here (`Followed`) or elsewhere (`diagnosis`).

Differs from the paper / the authors' code: no code was at hand, and the paper was not read again. The setting (oracle,
teacher, student, regimes, proxy, golden) is the paper's; that its oracle is Flan-T5-XL and that it trains for about 50
epochs is from memory. Ours are: every number and the causal models at `paper`; that the mixture is drawn per step and not
per answer; when a departure from the power law counts, and that a quarter of the fall precedes it; that golden's minimum
is chosen on other prompts than its rise is measured on; that proxy on the text learned from stands beside proxy on
held-out prompts; and the demonstration, in which a random transformer over 32 symbols is the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ...audits.teacher_hacking import Followed, TeacherHacking
from ...core.method import Method, State, Update, advance
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.oracle import OracleText
from ...data.tokens import Text
from ...data.written import Written
from ...models.earlier import Continued
from ...models.generate import Sampling, rollout
from ...models.hub import HubLM, StageLM
from ...models.toys import TinyLM
from ...objectives.divergences import ForwardKL
from ...teachers.local import LocalLM
from ...teachers.module import ModuleTeacher
from ..classics.gkd import GKD
from ..classics.seqkd import Write
from ..classics.supervised import Supervised

PAPER = Paper(
    id="teacher_hacking",
    title="On Teacher Hacking in Language Model Distillation",
    authors=(
        "Daniil Tiapkin", "Daniele Calandriello", "Johan Ferret", "Sarah Perrin", "Nino Vieillard", "Alexandre Ramé",
        "Mathieu Blondel",
    ),
    year=2025,
    arxiv="2502.02671",
    modality=("text",),
    data=("prompts",),
    claim="A student that reads a fixed set of a teacher's answers again and again ends up learning the teacher's mistakes;"
    " one that reads fresh answers does not.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FreshTeacher:
    """The teacher answers the batch's prompts anew; another method says how the student learns from the answers."""

    fresh: float = 1.0  # share of the steps; the others read the data's answers
    method: Method = GKD(on_policy=0.0, divergence=ForwardKL())
    sampling: Sampling = Sampling()
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.fresh <= 1.0:
            raise ValueError(f"fresh is a share of the steps, between 0 and 1, not {self.fresh}")

    @property
    def asks_about_own(self) -> bool:
        """Whether no answer of the teacher can be stored beforehand."""
        return self.fresh > 0 or getattr(self.method, "asks_about_own", False)

    def setup(self, student: nn.Module, run: Run) -> State:
        """The state of the method."""
        if self.fresh and not hasattr(run.teacher, "module"):
            raise RunError("a teacher that answers anew has to be a model: stored signals cannot write; or set fresh to 0")
        return self.method.setup(student, run)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """The updates of the method, on answers that no earlier step has seen."""
        if torch.rand((), generator=run.rng("fresh")).item() < self.fresh:
            writer: Any = run.teacher
            batch = rollout(writer.module, batch, self.sampling, seed=seed_of(run.seed, "fresh", run.step))
        yield from self.method.step(s, batch, run)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """That of the method."""
        advance(self.method, s, logs, run)


def recipe(scale: Scale = "small") -> Recipe:
    """Four regimes side by side, `train` being the online teacher. The oracle is a random language model (smoke, small),
    or a large model of the hub with prompts in `prompts.jsonl` (paper)."""
    hub = scale == "paper"
    spec, data, optim, audit = _hub() if hub else _toy(scale)
    check: Any = audit.checks[0]
    sampling = check.sampling
    fixed = GKD(on_policy=0.0, divergence=ForwardKL())
    train = Followed(
        method=FreshTeacher(sampling=sampling, method=fixed), data=Written(stage="write", base=data["prompts"]),
        steps=pick(scale, smoke=20, small=420, paper=50_000), batch=pick(scale, smoke=8, small=32, paper=64),
        accumulate=pick(scale, smoke=1, small=1, paper=8), optim=optim, points=pick(scale, smoke=8, small=24, paper=10),
        first=pick(scale, smoke=1, small=5, paper=500), label="Fresh answers of the teacher",
    )  # fmt: skip
    four = Written(stage="write_more", base=data["prompts"])
    # prompts alone have no answers in any split, until somebody writes them
    write = Write(data=data["prompts"], sampling=sampling, splits=("train", "valid", "test") if hub else ("train",))
    return Recipe(
        id="teacher_hacking",
        student=StageLM(stage="begin") if hub else Continued(spec=spec["student"], stage="begin"),
        data=data["prompts"],
        teachers={"teacher": spec["as_teacher"]},
        stages={
            "teacher": _taught(spec["teacher"], data["teacher"], scale, smoke=40, small=600, paper=5000),
            "begin": _taught(spec["student"], data["begin"], scale, smoke=3, small=60, paper=500),
            "write": write,
            "write_more": replace(write, each=4),
            "offline": replace(train, method=fixed, label="Fixed answers"),
            "offline_more": replace(train, method=fixed, data=four, label="Four fixed answers each"),
            "own": replace(
                train, method=GKD(on_policy=1.0, divergence=ForwardKL(), sampling=sampling), label="Its own answers"
            ),
            "train": train,
            "audit": audit,
        },
    )


def _taught(student: Any, data: Any, scale: Scale, **steps: int) -> Train:
    """Supervised learning of the oracle's sequences."""
    batch = pick(scale, smoke=16, small=32, paper=32)
    optim = Optim(lr=pick(scale, smoke=1e-2, small=2e-3, paper=1e-5))
    return Train(method=Supervised(), student=student, data=data, steps=steps[scale], batch=batch, optim=optim)


def _toy(scale: Scale) -> tuple[dict[str, Any], dict[str, OracleText], Optim, Audit]:
    teacher = pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=128, heads=4, tied=False), paper=TinyLM())
    student = pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=48, heads=4, tied=False), paper=TinyLM())
    prompts = pick(
        scale, smoke=OracleText(train=24, valid=12, test=12, answer=12), small=OracleText(train=150), paper=OracleText()
    )
    data = {
        "prompts": prompts,
        "teacher": replace(prompts, name="teacher", train=pick(scale, smoke=200, small=2000, paper=0)),
        "begin": replace(prompts, name="begin", train=pick(scale, smoke=16, small=100, paper=0)),
    }
    specs = {"teacher": teacher, "student": student, "as_teacher": ModuleTeacher(spec=teacher, stage="teacher")}
    check = TeacherHacking(
        oracle=ModuleTeacher(spec=prompts.oracle), sampling=Sampling(max_new=prompts.answer, batch=400), count=400,
        batch=pick(scale, smoke=12, small=100, paper=0), draws=pick(scale, smoke=200, small=2000, paper=0),
    )  # fmt: skip
    optim = Optim(lr=pick(scale, smoke=1e-2, small=1e-3, paper=0.0), schedule="constant")
    return specs, data, optim, _audit(check)


def _hub() -> tuple[dict[str, Any], dict[str, Text], Optim, Audit]:
    oracle, teacher, student = (HubLM(path=f"Qwen/Qwen2.5-{size}-Instruct") for size in ("7B", "1.5B", "0.5B"))
    text = Text(path="oracle.jsonl", length=1024)  # what the oracle has written
    specs = {"teacher": teacher, "student": student, "as_teacher": LocalLM(model=StageLM(stage="teacher"))}
    data = {"prompts": Text(path="prompts.jsonl", length=1024), "teacher": text, "begin": replace(text, limit=2000)}
    check = TeacherHacking(oracle=LocalLM(model=replace(oracle, dtype="bfloat16")), sampling=Sampling(max_new=256))
    return specs, data, Optim(lr=1e-5, schedule="constant"), _audit(check)


def _audit(check: TeacherHacking) -> Audit:
    return Audit(subjects=("start", "offline", "offline_more", "own", "train"), checks=(check,))


def diagnosis(
    *, teacher: str, checkpoints: Mapping[str, str], prompts: str, oracle: str | None = None, count: int = 200,
    max_new: int = 128,
) -> Recipe:  # fmt: skip
    """A recipe that trains nothing: the curves and the verdict for students that were trained elsewhere.

    `teacher` and `oracle` are models by path, `checkpoints` maps a name to a pattern of folders such as
    `out/checkpoint-*`, `prompts` is a file of prompts, none of which the students should have learned from.
    """
    judge = HubLM(path=teacher)
    check = TeacherHacking(
        split="train", checkpoints=checkpoints, ours=next(iter(checkpoints), ""), count=count,
        oracle=None if oracle is None else LocalLM(model=HubLM(path=oracle)), sampling=Sampling(max_new=max_new),
    )  # fmt: skip
    return Recipe(
        id="diagnosis",
        student=judge,  # whose tokenizer all share
        data=Text(path=prompts, valid=0.0, test=0.0),
        teachers={"teacher": LocalLM(model=judge)},
        stages={"audit": Audit(subjects=(), checks=(check,))},
    )


def proof() -> Proof:
    """The same student, prompts and steps; only where the answers come from differs. Students' own answers are left out."""
    whole = recipe("small")

    def arm(stage: str, *before: str) -> Recipe:
        stages = {name: whole.stages[name] for name in ("teacher", "begin", *before)}
        audit = replace(whole.stages["audit"], subjects=("start", "train"))
        return replace(whole, stages={**stages, "train": whole.stages[stage], "audit": audit})

    return Proof(
        claim="Trained for ninety epochs on fixed answers of its teacher to 150 prompts, a student ends further from the"
        " oracle than it had been before; trained as long on answers that the teacher draws anew, it does not, or less.",
        arms={
            "ours": arm("train", "write"),
            "offline": arm("offline", "write"),
            "offline_more": arm("offline_more", "write_more"),
        },
        metric="golden_rise",
        better="lower",
        beats=("offline",),
        seeds=(1, 2, 3),
        minutes=15.0,
        tune={"train.optim.lr": (1e-3, 2e-3)},
        note="Golden at the end of training above its lowest point. Every arm, that which is to be beaten too, runs at the"
        " learning rate at which this is least on the validation prompts. `offline_more` (four fixed answers to each prompt)"
        " is shown beside them. Seed 0 is what the detector's rule was looked at on.",
    )
