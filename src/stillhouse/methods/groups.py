"""What methods that learn from the student's own answers share: several answers to each question, and steps on them.

Then the experiment with a teacher that two of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..audits.solved import Solved
from ..core.engine import to_device
from ..core.method import Method
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.run import Run, seed_of
from ..core.signal import Batch, Logits
from ..core.stage import Audit, Train
from ..data.tasks import Chain, ends_in, tasks_of
from ..data.tokens import prompts_of
from ..models.call import logits_of, weight_of
from ..models.earlier import Continued
from ..models.generate import Sampling, answered, generate
from ..models.toys import TinyLM
from ..objectives.divergences import token_logp
from ..objectives.policy import of_tokens, tempered
from ..teachers.local import same_classes
from ..teachers.module import ModuleTeacher
from .classics.supervised import Supervised

Average = Literal["answer", "token"]


def drawn(student: nn.Module, batch: Batch, run: Run, sampling: Sampling, group: int) -> tuple[Batch, Tensor]:
    """`group` answers to every question of the batch, and their rewards `[questions, group]`, in the same order.

    The answers come as a language batch, one a row, in which only they count, on the batch's device. What is drawn
    depends on the run's seed and step, the question and the answer's number in its group alone.
    """
    tasks = tasks_of(run)
    prompts, keys, answers = written(student, batch, run, sampling, group)
    judged = tasks.verify_all(run, "train", [example for example, _ in keys], answers)
    return to_device(answered(prompts, answers), batch["labels"].device), torch.tensor(judged).float().view(-1, group)


def written(
    student: nn.Module, batch: Batch, run: Run, sampling: Sampling, group: int = 1
) -> tuple[list[list[int]], list[tuple[int, int]], list[list[int]]]:
    """(prompts, keys, answers) of `group` answers to every prompt of a packed batch; a key is (example, number).

    The data may be tasks or any text. Tasks say which tokens end an answer; else the model does.
    """
    here = (batch["inputs"]["position"] == 0) & (batch["inputs"]["document"] >= 0)
    keys = [(example, number) for example in batch["example"][here].tolist() for number in range(group)]
    prompts = [prompt for prompt in prompts_of(batch) for _ in range(group)]
    seed = seed_of(run.seed, "rollout", run.step)
    return prompts, keys, generate(student, prompts, sampling, seed=seed, keys=keys, ends=ends_in(run))


class Answers:
    """Answers of the student as a language batch, and how likely it found them when it was first asked.

    All log-probabilities are those of the distribution at the sampling's temperature; `top_p` is ignored in them.
    """

    def __init__(self, batch: Batch, temperature: float = 1.0):
        self.batch, self.temperature = batch, temperature
        self.labels, self.weight = batch["labels"], weight_of(batch)
        self.old: Tensor | None = None

    def logits(self, module: nn.Module) -> Logits:
        """What the module says of them, over the temperature."""
        return tempered(logits_of(module, self.batch), self.temperature)

    @torch.no_grad()
    def logp(self, logits: Logits) -> Tensor:
        """log-probabilities of their tokens `[B, T]`, without gradient."""
        return token_logp(logits.detach(), self.labels, weight=self.weight)

    def taught(self, student: Logits, teacher: Logits) -> Tensor:
        """The teacher's log-probabilities of their tokens, from its raw logits, over the student's classes."""
        return self.logp(same_classes(student, tempered(teacher, self.temperature))[1])

    def values(self, student: Logits, loss: Callable[[Tensor, Tensor], Tensor], *, weight: Tensor) -> Tensor:
        """`loss(logp, old)` per token `[B, T]` times `weight`, of the student's `logits`.

        The first logits that this is called with also say what `old` is: no pass of its own is needed for it.
        """

        def held(logp: Tensor) -> Tensor:
            self.old = logp.detach() if self.old is None else self.old
            return loss(logp, self.old)

        return of_tokens(student, self.labels, held, weight=weight)

    def shares(self, average: Average) -> tuple[Tensor, Tensor]:
        """(weight of every token, how much they come to in all): each answer counts the same, or each token."""
        if average == "token":
            return self.weight, self.weight.sum()
        return self.weight / self.weight.sum(-1, keepdim=True).clamp(min=1), torch.tensor(len(self.weight))

    def each(self, values: Tensor) -> Tensor:
        """A value of every answer, whatever its shape, at every token of it, `[B, T]`."""
        return values.to(self.weight).reshape(-1, 1).expand_as(self.weight)


def told(rewards: Tensor, answers: Answers, count: Tensor) -> dict[str, Any]:
    """What a log says about groups: sums over `count` of the mean reward, the share that is right, and so on."""
    mixed = rewards.amax(-1) > rewards.amin(-1)
    tokens = answers.weight.sum() / max(len(answers.weight), 1)
    means = {"reward": rewards, "solved": (rewards >= 1).float(), "mixed_groups": mixed.float(), "answer_tokens": tokens}
    return {name: float(values.mean()) * count for name, values in means.items()}


def on_chains(
    id: str, scale: Scale, method: Method, teacher: Callable[[Train], Train], *, batch: int, steps: int, label: str
) -> Recipe:
    """The experiment with a teacher that `rlad` and `gopd` share, at smoke and small: arithmetic chains.

    Stage `warm` teaches the student a few worked chains, stage `teacher` is what `teacher` makes of that stage, and from
    `warm` the student goes on with `method` for `steps` steps of `batch` questions (at small).
    """
    easy = Chain(ops=(1,), base=5, style="answer", train=36, valid=6, test=30)
    hard = Chain(ops=(2,), signs="+-", style="values", train=1500, valid=300, test=800)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    few = replace(tasks, train=pick(scale, smoke=36, small=400, paper=0), skip=tasks.train if scale == "small" else 0)
    optim = Optim(lr=3e-3)
    warm = Train(
        method=Supervised(), data=few, steps=pick(scale, smoke=60, small=300, paper=0), optim=optim,
        batch=pick(scale, smoke=16, small=64, paper=0), label="Student before",
    )  # fmt: skip
    train = Train(
        method=method, student=Continued(stage="warm"), batch=pick(scale, smoke=8, small=batch, paper=0),
        steps=pick(scale, smoke=10, small=steps, paper=0), optim=replace(optim, lr=3e-4), label=label,
    )  # fmt: skip
    made = replace(teacher(warm), label="Teacher")
    spec = TinyLM(width=24) if scale == "smoke" else TinyLM(width=64, heads=4)
    writing = Sampling(temperature=0.0, max_new=pick(scale, smoke=4, small=8, paper=0), batch=512)
    checks = (Solved(versus=("warm", "teacher"), sampling=writing),)
    return Recipe(
        id=id,
        student=spec,
        data=tasks,
        teachers={"teacher": ModuleTeacher(spec=made.student or spec, stage="teacher")},
        stages={
            "warm": warm, "teacher": made, "train": train,
            "audit": Audit(subjects=("start", "warm", "teacher", "train"), checks=checks),
        },
    )  # fmt: skip
