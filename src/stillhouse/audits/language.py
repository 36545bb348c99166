"""How well does each language model predict held-out text, and how like the teacher is it?

One pass over the held-out documents per model gives every number; intervals are bootstrapped over documents, because
the tokens of one document are not independent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.signal import HeadLogits, Signal, TopK
from ..core.stage import Subjects
from ..data.tokens import encode_prompt
from ..models.call import cast, logits_of, weight_of
from ..models.generate import Sampling, generate
from ..objectives.fused import compare
from ..teachers.local import same_classes
from .significance import FEWEST, bootstrap, bootstrap_mean, paired_bootstrap

BINS = 15
PARTIAL = "over the classes that the teacher's signals keep, and any other"


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Loss, agreement with the teacher, calibration, size and speed on one split.

    `versus` names subjects that `ours` is compared with, document by document.
    """

    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    teacher: str | None = "teacher"  # of the recipe; None: without one
    batch: int = 4  # rows at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the models while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the paired differences."""
        source = run.sources()[self.split]
        if len(source) == 0:
            raise RunError(f"the {self.split} split is empty; hold out a larger share (data.{self.split})")
        teacher = None if self.teacher is None else run.teachers[self.teacher]
        measured: dict[str, dict[str, Tensor]] = {}
        for name in subjects.names:
            if name == "teacher" and not hasattr(teacher, "module"):
                run.event("note", text="the teacher is not shown beside the students: only what it said was stored")
                continue
            module = teacher.module if name == "teacher" else subjects.load(name)  # type: ignore[union-attr]
            if name != "teacher":
                cast(module, getattr(torch, self.precision))
            per_document, facts, calibration = self._measure(module, teacher, source, run)
            measured[name] = per_document
            yield from self._findings(name, per_document, facts, calibration, run)
            del module
        few = min((len(sums["tokens"]) for sums in measured.values()), default=FEWEST)
        if few < FEWEST:
            text = f"only {few} held-out documents in the {self.split} split: no interval can be told; hold out more"
            run.event("warning", text=text)
        for other in self.versus:
            for metric in ("nll", "kl", "agreement"):
                mine, theirs = measured[self.ours], measured[other]
                if metric in mine and metric in theirs:
                    effect = paired_bootstrap(mine[metric], theirs[metric], mine["tokens"], draws=self.draws, seed=run.seed)
                    better = "higher" if metric == "agreement" else "lower"
                    yield Finding(
                        name=metric, subject=self.ours, versus=other, value=effect.value, low=effect.low,
                        high=effect.high, n=len(mine["tokens"]), over="documents", split=self.split, better=better,
                        unit=_UNITS.get(metric, ""),
                    )  # fmt: skip

    @torch.no_grad()
    def _measure(
        self, module: Any, teacher: Any, source: Any, run: Run
    ) -> tuple[dict[str, Tensor], dict[str, float], list[tuple[float, float, float]]]:
        """Sums per document (`tokens` counts them), facts about the model, reliability bins."""
        examples: list[Tensor] = []
        columns: dict[str, list[Tensor]] = {}
        seconds, speed, partial = 0.0, 0.0, False
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            clock = time.perf_counter()
            student: Any = logits_of(module, batch)
            spent = time.perf_counter() - clock
            seconds += spent
            # of the fastest batch: others on the machine slow some batches down, and nothing speeds one up
            speed = max(speed, int((batch["inputs"]["document"] >= 0).sum()) / max(spent, 1e-9))
            answer = None if teacher is None else _answer(student, teacher(batch, frozenset({"logits"})))
            if answer is not None:
                student, answer = same_classes(student, answer)
            partial |= isinstance(answer, TopK)
            weight = weight_of(batch)
            found = compare(student, answer, batch["labels"], weight=weight)
            kept = weight > 0
            examples.append(batch["example"][kept].cpu())
            for key, values in found.items():
                columns.setdefault(key, []).append(values[kept].float().cpu())
            if run.progress is not None:
                run.progress.update(run.stage, min(begin + self.batch, len(source)), len(source), {}, seconds)
        every = {k: torch.cat(v) for k, v in columns.items()}
        _, document = torch.cat(examples).unique(return_inverse=True)
        count = torch.bincount(document).double()
        rename = {
            "nll": "nll",
            "forward_kl": "kl",
            "reverse_kl": "reverse_kl",
            "agree": "agreement",
            "correct": "accuracy",
        }
        sums = {new: torch.bincount(document, every[old].double()) for old, new in rename.items() if old in every}
        sums["tokens"] = count
        index = document * BINS + _bins(every["confidence"])
        gap = torch.bincount(index, (every["confidence"] - every["correct"]).double(), minlength=len(count) * BINS)
        sums["gap"] = gap.view(-1, BINS)
        bins = _reliability(every["confidence"], every["correct"])
        facts = {
            "parameters": float(sum({id(p): p.numel() for p in module.parameters()}.values())),
            "tokens_per_second": speed,
            "partial": float(partial),
        }
        return sums, facts, bins

    def _findings(
        self, name: str, sums: dict[str, Tensor], facts: dict[str, float], bins: Any, run: Run
    ) -> Iterable[Finding]:
        n = len(sums["tokens"])
        common: dict[str, Any] = {"subject": name, "split": self.split}
        for metric in ("nll", "kl", "reverse_kl", "agreement", "accuracy"):
            if metric not in sums or (name == "teacher" and metric in ("kl", "reverse_kl", "agreement")):
                continue
            value = bootstrap_mean(sums[metric], sums["tokens"], draws=self.draws, seed=run.seed)
            finding = Finding(
                name=metric, value=value.value, low=value.low, high=value.high, n=n, over="documents",
                better="higher" if metric in ("agreement", "accuracy") else "lower", unit=_UNITS.get(metric, ""),
                note=PARTIAL if facts["partial"] and metric in ("kl", "reverse_kl") else "", **common,
            )  # fmt: skip
            yield finding
            if metric == "nll":
                bounds = [float(torch.tensor(v).exp()) for v in (value.value, value.low, value.high)]
                yield replace(finding, name="perplexity", value=bounds[0], low=bounds[1], high=bounds[2], unit="")
        columns = torch.cat([sums["gap"], sums["tokens"][:, None]], 1)
        ece = bootstrap(columns, _calibration_error, draws=self.draws, seed=run.seed)
        yield Finding(
            name="ece", value=ece.value, low=ece.low, high=ece.high, n=n, over="documents", better="lower", **common
        )
        yield Finding(name="parameters", value=facts["parameters"], better="neither", **common)
        note = "forward pass without the head's product, the fastest of the audit's batches"
        speed = facts["tokens_per_second"]
        yield Finding(name="tokens_per_second", value=speed, better="higher", unit="tokens/s", note=note, **common)
        run.event("reliability", subject=name, bins=bins)


_UNITS = {"nll": "nats/token", "kl": "nats/token", "reverse_kl": "nats/token"}


def _answer(student: Any, signal: Signal) -> Any:
    """A dense teacher for a dense student, as two `HeadLogits` are compared in one dtype; None for drawn classes."""
    teacher = signal.distribution()
    if isinstance(teacher, TopK):
        return None if teacher.sampled else teacher  # a few drawn classes are no distribution to compare with
    return teacher if isinstance(student, HeadLogits) or not isinstance(teacher, HeadLogits) else teacher.dense()


def _bins(confidence: Tensor) -> Tensor:
    return (confidence * BINS).long().clamp(max=BINS - 1)


def _calibration_error(sums: Tensor) -> Tensor:
    """Guo et al. 2017, Eq. 3, from sums [draws, bins + 1]: confidence minus success in each bin, then all tokens."""
    return sums[:, :-1].abs().sum(-1) / sums[:, -1]


def _reliability(confidence: Tensor, correct: Tensor) -> list[tuple[float, float, float]]:
    """(share of the tokens, mean confidence, share right) of each of 15 equal-width bins that is not empty."""
    index = _bins(confidence)
    count = torch.bincount(index, minlength=BINS).double()
    sums = [torch.bincount(index, x.double(), minlength=BINS) for x in (confidence, correct)]
    return [
        (float(count[i] / len(index)), float(sums[0][i] / count[i]), float(sums[1][i] / count[i]))
        for i in range(BINS)
        if count[i] > 0
    ]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Answers to the same prompts by every subject, side by side, for people to read (a stage, not a check)."""

    subjects: tuple[str, ...]
    split: str = "test"
    count: int = 4
    sampling: Sampling = Sampling(temperature=0.0, max_new=80)
    precision: Literal["float32", "bfloat16"] = "float32"
    kind: ClassVar[str] = "samples"

    def __call__(self, run: Run) -> None:
        """Write the artifact: a list of {"prompt": text, SUBJECT: text}."""
        tokenizer = run.recipe.student.tokenizer(run)
        rows = run.recipe.data.rows(run)[self.split][: self.count]
        prompts = [encode_prompt(row, tokenizer) for row in rows]
        asked = [row.get("prompt") for row in rows]  # without what the chat template puts round it
        shown: list[dict[str, str]] = [
            {"prompt": str(words or tokenizer.decode(prompt, skip_special_tokens=True))}
            for words, prompt in zip(asked, prompts, strict=True)
        ]
        for name in self.subjects:
            if name == "teacher" and not hasattr(run.teacher, "module"):
                continue  # only what it said was stored
            if name == "teacher":
                module: Any = run.teacher.module  # type: ignore[attr-defined]
            else:
                module = cast(Subjects(run, self.subjects).load(name), getattr(torch, self.precision))
            answers = generate(module, prompts, self.sampling, seed=run.seed)
            for row, answer in zip(shown, answers, strict=True):
                row[name] = tokenizer.decode(answer, skip_special_tokens=True)
        run.save_json(run.stage, shown, kind=self.kind)
