"""What a teacher writes about questions with a verifier: its right answers to learn from, right and wrong ones as pairs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..core.files import read_lines, write_atomically
from ..core.run import Interrupted, Run, RunError, seed_of
from ..core.signal import Kind
from ..core.stage import stop_requests
from ..models.generate import Sampling, generate, writer

Trace = Mapping[str, Any]  # {"example", "prompt", "answers": token ids of each, "scores": one each}


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Let the teacher answer every prompt of a task several times and check each answer.

    The artifact holds, in tokens, `SPLIT.jsonl` with every different right answer (what `data.written.Written` reads)
    and `pairs/SPLIT.jsonl` with one right and one wrong answer to each question that has both, the first drawn of each
    (what `data.pairs.StagePairs` reads). Questions without a right answer are rejected with the reason. Its done-mark
    counts what was asked and found. A killed stage goes on behind the last finished batch.
    """

    data: Any  # a task: a spec with `prompts`, `ends` and `verify`
    splits: tuple[str, ...] = ("train",)
    each: int = 8  # answers to a prompt
    threshold: float = 1.0  # from this score on an answer is right
    limit: int | None = None  # prompts of a split, at most
    sampling: Sampling = Sampling()
    engine: Any = None  # teachers.vllm.Vllm lets vLLM write; None: our own
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, run: Run) -> None:
        """Ask, verify, sort."""
        if not hasattr(self.data, "verify"):
            raise RunError(f"{type(self.data).__name__} has no verifier: give a task, as in data.tasks.Questions")
        if self.engine is None and not hasattr(run.teacher, "module"):
            raise RunError("this teacher's answers are stored; traces need one that can write: a local model")
        with writer(run, self.engine) as module:
            self._write(module, run)

    def _write(self, module: Any, run: Run) -> None:
        prompts = self.data.prompts(run)
        jobs = {split: list(enumerate(prompts[split][: self.limit])) for split in self.splits}
        total, done, began = sum(map(len, jobs.values())), 0, time.monotonic()
        parts = run.folder / "state" / run.stage
        parts.mkdir(parents=True, exist_ok=True)
        traces: dict[str, list[Trace]] = {split: [] for split in jobs}
        size = max(1, self.sampling.batch // self.each)
        with stop_requests() as stop:
            for split, asked in jobs.items():
                asked.sort(key=lambda job: (len(job[1]), job[0]))  # answers of like length leave a batch together
                for begin in range(0, len(asked), size):
                    some = asked[begin : begin + size]
                    path = parts / f"{split}_{begin:08d}.jsonl"
                    if not path.exists():
                        self._ask(some, split, module, run, path)
                    traces[split] += read_lines(path)
                    done += len(some)
                    if run.progress is not None:
                        run.progress.update(run.stage, done, total, {}, time.monotonic() - began)
                    if stop.is_set() and done < total:
                        raise Interrupted(
                            f"stopped after {done} of {total} questions; go on with: stillhouse run {run.folder}"
                        )
        self._keep(traces, run)
        run.drop_checkpoints()

    def _ask(self, jobs: Sequence[tuple[int, list[int]]], split: str, module: Any, run: Run, path: Path) -> None:
        """Several answers to each prompt, with their scores; what is drawn depends on the example alone."""
        prompts = [prompt for _, prompt in jobs for _ in range(self.each)]
        keys = [(split, i, number) for i, _ in jobs for number in range(self.each)]
        seed, ends = seed_of(run.seed, "traces"), self.data.ends(run)
        made = generate(module, prompts, self.sampling, seed=seed, keys=keys, ends=ends)
        lines: list[str] = []
        for at, (i, prompt) in enumerate(jobs):
            answers = made[at * self.each : (at + 1) * self.each]
            scores = [self.data.verify(run, split, i, answer) for answer in answers]
            lines.append(json.dumps({"example": i, "prompt": prompt, "answers": answers, "scores": scores}))
        write_atomically(path, "\n".join(lines) + "\n")

    def _keep(self, traces: Mapping[str, list[Trace]], run: Run) -> None:
        """Write the two kinds of files and the counts."""
        counts = dict.fromkeys(("questions", "asked", "right", "wrong", "unsolved", "kept", "pairs", "teacher_tokens"), 0)
        texts: dict[str, list[str]] = {}
        for split, found in traces.items():
            right_lines, pair_lines = texts.setdefault(split, []), texts.setdefault(f"pairs/{split}", [])
            for trace in sorted(found, key=lambda trace: trace["example"]):
                begin = {"example": trace["example"], "prompt": trace["prompt"]}
                right, wrong = self._sorted(trace)
                different = list({tuple(answer): answer for answer in right}.values())
                right_lines += [json.dumps({**begin, "answer": answer}) for answer in different]
                if right and wrong:
                    pair_lines.append(json.dumps({**begin, "chosen": right[0], "rejected": wrong[0]}))
                if not right:
                    run.reject({"split": split, **begin}, f"none of {self.each} answers to this question is right")
                tokens = sum(len(answer) + len(trace["prompt"]) for answer in trace["answers"])
                here = {
                    "questions": 1, "asked": self.each, "right": len(right), "wrong": len(wrong),
                    "unsolved": int(not right), "kept": len(different), "pairs": int(bool(right and wrong)),
                    "teacher_tokens": tokens,
                }  # fmt: skip
                counts = {name: count + here[name] for name, count in counts.items()}
        if not counts["right"]:
            raise RunError(
                f"none of the teacher's {counts['asked']} answers is right; give a better teacher or easier tasks"
            )
        with run.artifact(run.stage, kind="text", **counts) as folder:
            (folder / "pairs").mkdir()
            for name, lines in texts.items():
                (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _sorted(self, trace: Trace) -> tuple[list[list[int]], list[list[int]]]:
        """The right answers and the wrong ones, in the order in which they were drawn."""
        judged = list(zip(trace["answers"], trace["scores"], strict=True))
        right = [answer for answer, score in judged if score >= self.threshold]
        return right, [answer for answer, score in judged if score < self.threshold]
