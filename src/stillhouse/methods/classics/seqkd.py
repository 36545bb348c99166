"""Sequence-Level Knowledge Distillation (Kim & Rush 2016): the teacher writes the training text, the student reads it.

    L = - sum_t log q(y_t | x, y_<t),   y = the teacher's answer to x

x is a prompt of the data (the uncounted beginning of a document), q the student. The stage `Write` keeps the teacher's
answers as the very tokens that it drew; the student then learns from them with cross-entropy.

Differs from the paper: the answer is sampled (temperature 1 by default; 0 takes the most likely token each time) where
the paper takes the best of a beam: a sample keeps the teacher's diversity, and the beams of open-ended language models
degenerate. The data's own answer is replaced, as in the paper's Seq-KD; its Seq-Inter is not here. An answer that did
not end within `max_new` tokens is kept as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...core.files import read_lines, write_atomically
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Interrupted, Run, seed_of
from ...core.signal import Kind
from ...core.stage import stop_requests
from ...data.written import Written
from ...models.generate import Sampling, generate, writer
from ..settings import language
from .supervised import Supervised

PAPER = Paper(
    id="seqkd",
    title="Sequence-Level Knowledge Distillation",
    authors=("Yoon Kim", "Alexander M. Rush"),
    year=2016,
    arxiv="1606.07947",
    venue="EMNLP",
    modality=("text",),
    data=("documents", "prompts"),
    claim="A student that learns from the teacher's own answers does better than one that learns from the data's.",
)


@dataclass(frozen=True, kw_only=True)
class Write:
    """Let the teacher answer the prompts of the data; a killed stage goes on behind the last finished batch."""

    data: Any  # DataSpec whose prompts are answered
    splits: tuple[str, ...] = ("train",)
    sampling: Sampling = Sampling()
    each: int = 1  # answers to every training prompt
    limit: int | None = None  # prompts of a split, at most
    engine: Any = None  # teachers.vllm.Vllm lets vLLM write; None: our own
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, run: Run) -> None:
        """The artifact holds one file per split: `{"example", "prompt", "answer"}` a line, in tokens."""
        with writer(run, self.engine) as module:
            self._write(module, run)

    def _write(self, module: Any, run: Run) -> None:
        prompts = self.data.prompts(run)
        jobs = {
            split: [(i, p) for i, p in enumerate(prompts[split][: self.limit]) for _ in range(self._each(split))]
            for split in self.splits
        }
        total, done, began = sum(map(len, jobs.values())), 0, time.monotonic()
        parts = run.folder / "state" / run.stage
        parts.mkdir(parents=True, exist_ok=True)
        made: dict[str, list[dict[str, Any]]] = {split: [] for split in jobs}
        with stop_requests() as stop:
            for split, asked in jobs.items():
                asked.sort(key=lambda job: (len(job[1]), job[0]))  # answers of like length leave a batch together
                for begin in range(0, len(asked), self.sampling.batch):
                    chosen = asked[begin : begin + self.sampling.batch]
                    path = parts / f"{split}_{begin:08d}.jsonl"
                    if not path.exists():
                        self._answer(chosen, module, run, path, (split, begin))
                    made[split] += read_lines(path)
                    done += len(chosen)
                    if run.progress is not None:
                        run.progress.update(run.stage, done, total, {}, time.monotonic() - began)
                    if stop.is_set() and done < total:
                        raise Interrupted(
                            f"stopped after {done} of {total} answers; go on with: stillhouse run {run.folder}"
                        )
        tokens = sum(len(line["prompt"]) + len(line["answer"]) for each in made.values() for line in each)
        with run.artifact(run.stage, kind="text", teacher_tokens=tokens) as folder:
            for split, each in made.items():
                text = "".join(json.dumps(line) + "\n" for line in sorted(each, key=lambda line: line["example"]))
                (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        run.drop_checkpoints()

    def _answer(
        self, jobs: Sequence[tuple[int, list[int]]], module: Any, run: Run, path: Path, place: tuple[str, int]
    ) -> None:
        prompts = [prompt for _, prompt in jobs]
        answers = generate(module, prompts, self.sampling, seed=seed_of(run.seed, "write", *place))
        lines = [
            json.dumps({"example": i, "prompt": prompt, "answer": answer})
            for (i, prompt), answer in zip(jobs, answers, strict=True)
        ]
        write_atomically(path, "\n".join(lines) + "\n")

    def _each(self, split: str) -> int:
        return self.each if split == "train" else 1


def recipe(scale: Scale = "small") -> Recipe:
    """The shared language experiment, with the training answers replaced by the teacher's."""
    base = language("seqkd", scale, Supervised())
    sampling = Sampling(
        max_new=pick(scale, smoke=24, small=120, paper=512), batch=pick(scale, smoke=64, small=256, paper=64)
    )
    stages = dict(base.stages)
    train, audit = stages.pop("train"), stages.pop("audit")
    stages |= {"write": Write(data=base.data, sampling=sampling), "train": train, "audit": audit}
    written = Written(stage="write", base=base.data)
    return Recipe(id=base.id, student=base.student, data=base.data, teachers=base.teachers, stages=stages).set(
        "stages.train.data", written
    )


def proof() -> Proof:
    """Learning from the teacher's words against learning from the data's, at equal steps."""
    ours = recipe("small")
    base = language("seqkd", "small", Supervised())
    return Proof(
        claim="A student that reads the teacher's own text writes text that is nearer to the teacher than the same"
        " student that reads the data, at equal steps.",
        arms={"ours": ours, "alone": base},
        metric="own_reverse_kl",
        better="lower",
        beats=("alone",),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=60.0,
        note="Judged on 96 bytes that each student writes behind the first 8 of held-out docstrings, as the paper judges"
        " what students write. On given docstrings the student of the data is nearer: that is what it was trained on.",
    )
