"""A student that gets some easy chains right, its teacher, and its answers drawn one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from language import run_of
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import seed_of
from stillhouse.data.tasks import Chain
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

TASKS = Chain(ops=(1,), base=2, style="answer", train=6, valid=1, test=1)
SAMPLING = Sampling(temperature=1.4, max_new=5)
SPEC = TinyLM(width=16, depth=1)


def warm(folder: Path, rows: int = 4, data: Any = TASKS, steps: int = 25) -> tuple[Any, Any, Any]:
    """(run, student, batch of `rows` questions); the student has seen a few answers, the teacher more."""
    run = run_of(folder, SPEC, data=data, teacher=ModuleTeacher(spec=TinyLM(width=24, depth=1)))
    torch.manual_seed(0)
    student, teacher = SPEC.build(run), run.teacher.module.train().requires_grad_(True)
    run.horizon, source = steps, run.sources()["train"]
    for module in (student, teacher):
        loop = Loop(Supervised(), Supervised().setup(module, run), run, Optim(lr=1e-2))
        fit(loop, source, steps=steps, size=6)
    teacher.eval().requires_grad_(False)
    run.step = 0
    return run, student, source.batch(range(rows), 0)


def answers_of(run: Any, student: Any, rows: int, group: int) -> list[list[tuple[Any, Any, float]]]:
    """(prompt, answer, reward) of every answer, one group after the other."""
    seed = seed_of(run.seed, "rollout", run.step)
    found = []
    for i, prompt in enumerate(TASKS.prompts(run)["train"][:rows]):
        each = []
        for g in range(group):
            (answer,) = generate(student, [prompt], SAMPLING, seed=seed, keys=[(i, g)], ends=frozenset({0}))
            each.append((prompt, answer, TASKS.verify(run, "train", i, answer)))
        found.append(each)
    return found


def logps(module: Any, prompt: Any, answer: Any, temperature: float = SAMPLING.temperature) -> torch.Tensor:
    """log-probability of every token of an answer, in double."""
    z = module(torch.tensor([[*prompt, *answer]])).dense()[0, len(prompt) - 1 : -1].double() / temperature
    return z.log_softmax(-1).gather(-1, torch.tensor(list(answer))[:, None])[:, 0]


def slopes_agree(mine: torch.Tensor, theirs: torch.Tensor, student: Any) -> list[torch.Tensor]:
    """The gradient of both losses, which is the same and not zero."""
    weights = list(student.parameters())
    found = list(torch.autograd.grad(mine, weights))
    for a, b in zip(found, torch.autograd.grad(theirs, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert b.abs().max() > 0
    return found


def splits_alike(folder: Path, method: Any, start: Any = warm) -> None:
    """Two steps of six questions leave the same weights, taken whole or in six parts."""
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, 6):
        run, student, _ = start(folder / str(parts))
        run.horizon = 2
        loop = Loop(method, method.setup(student, run), run, Optim(name="sgd", lr=0.1, momentum=0.0))
        fit(loop, run.sources()["train"], steps=2, size=6, accumulate=parts)
        ends.append(loop.state.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)
