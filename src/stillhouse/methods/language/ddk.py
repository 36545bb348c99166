"""DDK: Distilling Domain Knowledge for Efficient Large Language Models: more of the domains in which the student lags.

    L = CE(y, q) + gamma KL(p || q)                         over the tokens of rows drawn with domain probabilities r
    r_0 = softmax_i(l_S[i] / l_T[i])
    psi[i] = r[i] exp(l_S[i] / l_T[i]),   r[i] <- a psi[i] / sum_j psi[j] + (1 - a) / N       every K steps

l_S[i] and l_T[i] are the student's and the teacher's perplexity on held-out text of domain i of N, measured anew for the
student, once for the teacher; p and q their next-token distributions, at a temperature; a = `smooth` keeps every domain.

Sure, from the paper's text: the equations, K = 1000, a = 0.5, temperature 1, 500 held-out samples of a domain, and that a
domain that runs out begins again. Recalled or guessed: gamma (1 here). The KL is printed there as KL(student || teacher);
forward KL is the default here, `divergence` takes the other.

How the sampling moves. The engine walks through all rows, whatever their domain, so that with s[i] the share of the rows
that domain i has, a row it draws is of domain i with probability s[i]. Such a row stays with probability min(1, r[i] /
s[i]); else another is drawn in its place, from domain j with probability in proportion to max(0, r[j] - s[j]), any of its
rows alike. Rows are then of domain i with probability r[i] exactly, as few of them as possible are replaced, and if r is
s nothing is: plain distillation, bit by bit. The draw depends on the run's seed, the step and the row alone, hence not on
how a batch is split; r and the teacher's perplexities are buffers of the state, changed in `advance`, and survive a resume.

Differs from the paper: rows are drawn in each step in place of a plan for the next K, and replaced ones with replacement,
where the paper goes through each domain in order. The ratio of perplexities is bounded at e^50.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...audits.domains import DomainGaps, domain_nll
from ...audits.language import HeldOutText
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.domains import DomainRows, Domains, Worlds
from ...models.call import logits_of, weight_of
from ...models.earlier import Continued
from ...models.toys import TinyLM
from ...objectives.divergences import Divergence, ForwardKL, mixed
from ...teachers.local import same_classes
from ...teachers.module import ModuleTeacher
from ..classics.supervised import Supervised
from ..settings import alone, language

PAPER = Paper(
    id="ddk",
    title="DDK: Distilling Domain Knowledge for Efficient Large Language Models",
    authors=(
        "Jiaheng Liu", "Chenchen Zhang", "Jinyang Guo", "Yuanxing Zhang", "Haoran Que", "Ken Deng", "Zhiqi Bai", "Jie Liu",
        "Ge Zhang", "Jiakai Wang", "Yanan Wu", "Congnan Liu", "Wenbo Su", "Jiamang Wang", "Lin Qu", "Bo Zheng",
    ),
    year=2024,
    arxiv="2407.16154",
    venue="NeurIPS",
    modality=("text",),
    data=("documents",),
    claim="Drawing more of the domains in which a student lags behind its teacher beats a fixed mixture.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DDK:
    """Distil on a mixture of domains that follows the student's lag behind its teacher."""

    every: int = 1000  # steps between two updates of the mixture (K); 0: never, the data's own shares (plain distillation)
    smooth: float = 0.5  # a: the part of the mixture that the lag decides; the rest is even
    gamma: float = 1.0  # weight of the divergence beside cross-entropy
    divergence: Divergence = ForwardKL()
    temperature: float = 1.0  # of both sides in the divergence
    rows: int = 500  # held-out rows of a domain that perplexities are measured on, at most
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.smooth <= 1.0 or self.gamma < 0 or self.every < 0:
            raise ValueError("method.smooth is between 0 and 1, method.gamma and method.every are at least 0")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, the mixture [N], and the teacher's losses [N], nats a token."""
        if not isinstance(run.source, DomainRows) or len(run.source.names) < 2:
            raise RunError("the data have no domains: use data.domains.Domains (a column that names them, or a file each)")
        if self.every == 0:
            return State(student=student)
        lag, teacher = self._lag(student, None, run)
        return State(student=student, mixture=lag.softmax(-1), teacher_nll=teacher)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the tokens of the rows that the mixture wants."""
        batch = self.drawn(s, batch, run)
        weight = weight_of(batch)
        z, z_teacher = same_classes(logits_of(s.student, batch), run.teacher(batch, self.needs).need("logits"))
        share = self.gamma / (1 + self.gamma)
        total, matched, nll = mixed(
            self.divergence, z, z_teacher, batch["labels"], share, temperature=self.temperature, weight=weight
        )
        tokens = weight.sum(-1)
        logs: dict[str, Tensor | float] = {"divergence": matched.sum(), "nll": nll.sum()}
        logs |= {f"share_{name}": tokens[batch["domain"] == i].sum() for i, name in enumerate(run.source.names)}
        yield Update((1 + self.gamma) * total.sum(), count=weight.sum(), logs=logs)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """Now and then, measure the student and move the mixture."""
        following = run.step + 1
        if self.every and following % self.every == 0 and following < run.horizon:
            lag, _ = self._lag(s.student, s.teacher_nll.cpu(), run)
            s.mixture.copy_(moved(s.mixture.cpu(), lag, self.smooth))
            named = dict(zip(run.source.names, s.mixture.tolist(), strict=True))
            run.event("mixture", step=following, mixture=named, lag=lag.tolist())

    def drawn(self, s: State, batch: Batch, run: Run) -> Batch:
        """The batch with some of its rows replaced, so that domains come as often as the mixture says."""
        if self.every == 0:
            return batch
        source: DomainRows = run.source
        sizes = torch.tensor(source.sizes, dtype=torch.float64)
        have, want = sizes / sizes.sum(), s.mixture.cpu()
        stay, lack = (want / have).tolist(), (want - have).clamp(min=0.0).tolist()
        items: list[int] = []
        for item in batch["item"].tolist():
            draw = random.Random(seed_of(run.seed, "domain", run.step, item))
            if draw.random() >= stay[source.domain_of(item)] and sum(lack) > 0:
                (domain,) = draw.choices(range(len(lack)), weights=lack)
                item = draw.choice(source.members(domain))
            items.append(item)
        return to_device(source.batch(items, 0), batch["labels"].device)

    def _lag(self, student: nn.Module, teacher: Tensor | None, run: Run) -> tuple[Tensor, Tensor]:
        """l_S / l_T and the teacher's losses, [N] float64 on the CPU; the teacher is asked if they are not given."""
        held = run.sources(getattr(run.recipe.stages.get(run.stage), "data", None)).get("valid")
        if not isinstance(held, DomainRows) or held.names != run.source.names or not all(held.sizes):
            raise RunError("every domain needs held-out rows to measure the student on: raise data.valid")
        if teacher is None:
            teacher = domain_nll(
                lambda batch: run.teacher(batch, self.needs).need("logits"), held, run.device, rows=self.rows
            )
        training = student.training
        student.eval()
        mine = domain_nll(lambda batch: logits_of(student, batch), held, run.device, rows=self.rows)
        student.train(training)
        return lag_of(mine, teacher), teacher


def lag_of(student: Tensor, teacher: Tensor) -> Tensor:
    """l_S / l_T of losses in nats a token, the ratio of perplexities."""
    return (student - teacher).clamp(max=50.0).exp()


def moved(mixture: Tensor, lag: Tensor, smooth: float) -> Tensor:
    """The next mixture; in logarithms, since exp(lag) overflows for a student that has learned nothing."""
    return smooth * (mixture.log() + lag).softmax(-1) + (1 - smooth) / len(mixture)


def recipe(scale: Scale = "small") -> Recipe:
    """Made-up domains and docstrings, of all of which the student knows a little (smoke, small); your files (paper)."""
    if scale == "paper":
        files = {"code": "code.jsonl", "math": "math.jsonl", "web": "web.jsonl"}
        made = language("ddk", scale, DDK(), lr=3e-5, steps={"paper": 30_000})
        audit = made.stages["audit"]
        checks = (*audit.checks, DomainGaps(versus=("start",)))
        return made.set("data", Domains(files=files, length=1024)).set("audit", replace(audit, checks=checks))
    smoke = Worlds(domains=("brackets", "sums", "signs"), train=30, valid=6, test=8, length=32)
    data = pick(scale, smoke=smoke, small=Worlds(length=48, train=300, valid=15, test=50), paper=smoke)
    big = pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64), paper=TinyLM())
    taught = Train(
        method=Supervised(), student=big, steps=pick(scale, smoke=40, small=250, paper=0),
        batch=pick(scale, smoke=8, small=16, paper=0), optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=0.0)),
    )  # fmt: skip
    warm = replace(taught, student=None, steps=pick(scale, smoke=10, small=60, paper=0), label="Student before DDK")
    method = DDK(every=pick(scale, smoke=6, small=15, paper=0), rows=15)
    train = replace(
        warm, method=method, student=Continued(stage="warm"), steps=pick(scale, smoke=24, small=150, paper=0),
        label="DDK",
    )  # fmt: skip
    versus, draws = ("warm",), pick(scale, smoke=200, small=500, paper=0)
    checks = (HeldOutText(versus=versus, batch=16, draws=draws), DomainGaps(versus=versus, draws=draws))
    return Recipe(
        id="ddk",
        student=pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=32), paper=TinyLM()),
        data=data,
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": taught,
            "warm": warm,
            "train": train,
            "audit": Audit(subjects=("start", "teacher", "warm", "train"), checks=checks),
        },
    )


def proof() -> Proof:
    """A mixture that follows the lag against an even one, against the text alone, and two ways of following it less well."""
    ours = recipe("small")
    method = ours.stages["train"].method
    return Proof(
        claim="Of five domains, the one in which the student is furthest behind its teacher is less far behind after DDK"
        " than after distillation with an even mixture, and than after the text alone, at equal steps.",
        arms={
            "ours": ours,
            "even": ours.set("train.method", replace(method, every=0)),
            "alone": alone(ours),
            "fixed": ours.set("train.method", replace(method, every=1_000_000)),
            "unsmoothed": ours.set("train.method", replace(method, smooth=1.0)),
        },
        metric="gap_worst",
        better="lower",
        beats=("even", "alone"),
        tune={"train.optim.lr": (3e-3, 1e-2)},
        minutes=8.0,
        note="Five domains of 300 rows of 48 bytes: nested brackets, arithmetic, 294 sentences, docstrings, a random walk."
        " The student has learned an even mixture for 60 steps; every arm goes on for 150 steps of 16 rows, and the mixture"
        " moves every 15. Not in the claim: `fixed` keeps the first mixture, `unsmoothed` has a = 1.",
    )
