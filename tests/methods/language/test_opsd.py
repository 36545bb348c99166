"""OPSD: two contexts, one answer, whose weights, and the divergences that come with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, folders, run_of, write_jsonl  # noqa: F401 - a fixture
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError, seed_of
from stillhouse.core.signal import HeadLogits
from stillhouse.data.tasks import Chain, Questions, Task
from stillhouse.data.toys import Sentences
from stillhouse.methods.language.opsd import OPSD, Clipped, Kept
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.hub import HubLM, Lora
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import JSD, ForwardKL, ReverseKL
from toylanguage import gradient, update

torch.set_num_threads(1)
TASKS = Chain(ops=(1, 2), style="values", shown="steps", train=12, valid=2, test=2)
SAMPLING = Sampling(temperature=1.3, max_new=9)
SPEC = TinyLM(width=16, depth=1)


@dataclass(frozen=True, kw_only=True)
class Mute(Chain):
    """Hints that say nothing."""

    def hint(self, task: Task) -> str:
        return task.question


def toy(folder: Path, tasks: Any = TASKS, rows: int = 5) -> tuple[Any, Any, Any]:
    run = run_of(folder, SPEC, data=tasks)
    torch.manual_seed(0)
    student = SPEC.build(run)
    with torch.no_grad():
        student.norm.weight.mul_(3.0)
    return run, student, run.sources()["train"].batch(range(rows), 0)


def contexts(run: Any, student: Any, teacher: Any, rows: int, temperature: float) -> list[tuple[Any, Any, int]]:
    """(log q, log p, token) at every token of the student's answers, one document at a time."""
    prompts = TASKS.prompts(run)["train"][:rows]
    sampling, seed = SAMPLING, seed_of(run.seed, "rollout", run.step)
    found = []
    for i, prompt in enumerate(prompts):
        (answer,) = generate(student, [prompt], sampling, seed=seed, keys=[i], ends=frozenset({0}))
        for at, token in enumerate(answer):
            both = []
            for module, context in ((student, prompt), (teacher, TASKS.hinted(run, "train")[i])):
                z = module(torch.tensor([[*context, *answer[:at]]])).dense()[0, -1].double() / temperature
                both.append(z.log_softmax(-1))
            found.append((both[0], both[1].detach(), token))
    return found


def term(name: str, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    q, p = log_q.exp(), log_p.exp()
    if name == "jsd":
        m = ((p + q) / 2).log()
        return 0.5 * p * (log_p - m) + 0.5 * q * (log_q - m)
    return p * (log_p - log_q) if name == "fkl" else q * (log_q - log_p)


DIVERGENCES: dict[str, Any] = {"jsd": JSD(), "fkl": JSD(beta=0.0), "rkl": JSD(beta=1.0)}


@pytest.mark.parametrize("name", ["jsd", "fkl", "rkl"])
def test_the_loss_is_the_divergence_between_two_contexts(tmp_path: Path, name: str) -> None:
    run, student, batch = toy(tmp_path)
    made = update(OPSD(sampling=SAMPLING, divergence=DIVERGENCES[name]), student, batch, run)
    found = contexts(run, student, copy.deepcopy(student), 5, 1.3)
    expected = sum(term(name, log_q, log_p).sum() for log_q, log_p, _ in found)
    assert made.count == len(found) and made.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(expected, list(student.parameters()))
    for mine, theirs in zip(torch.autograd.grad(made.loss, list(student.parameters())), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_drawn_token_alone(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    made = update(OPSD(sampling=SAMPLING, sampled=True), student, batch, run)
    found = contexts(run, student, copy.deepcopy(student), 5, 1.3)
    expected = sum(-(p[y] - q[y]).detach() * q[y] for q, p, y in found)
    assert made.count == len(found) and made.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(expected, list(student.parameters()))
    for mine, theirs in zip(torch.autograd.grad(made.loss, list(student.parameters())), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


METHODS = [
    OPSD(sampling=SAMPLING), OPSD(sampling=SAMPLING, divergence=JSD(beta=0.0)), OPSD(sampling=SAMPLING, sampled=True),
    OPSD(sampling=SAMPLING, divergence=Clipped(of=ForwardKL())), OPSD(sampling=SAMPLING, divergence=Kept(of=JSD(), top=5)),
    OPSD(sampling=SAMPLING, teacher="ema"), OPSD(sampling=SAMPLING, teacher="current"),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_without_privileged_information_there_is_nothing_to_learn(tmp_path: Path, method: OPSD) -> None:
    for number, (tasks, changed) in enumerate(
        ((TASKS, replace(method, hinted=False)), (Mute(ops=(1, 2), train=12), method))
    ):
        run, student, batch = toy(tmp_path / str(number), tasks)
        assert float(update(changed, student, batch, run).loss.detach()) == pytest.approx(0.0, abs=1e-4)
        assert float(gradient(changed, student, batch, run).abs().max()) < 1e-4
    run, student, batch = toy(tmp_path / "told")  # and with it there is
    assert float(gradient(method, student, batch, run).abs().max()) > 1e-2


def trained(folder: Path, method: OPSD, steps: int = 3, accumulate: int = 1) -> Any:
    run, student, _ = toy(folder)
    run.horizon = steps
    loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2, schedule="constant", warmup=0.0))
    fit(loop, run.sources()["train"], steps=steps, size=6, accumulate=accumulate)
    return loop


def test_whose_weights_read_the_solution(tmp_path: Path) -> None:
    _, before, _ = toy(tmp_path)
    fixed = trained(tmp_path / "fixed", OPSD(sampling=SAMPLING)).state
    for mine, theirs in zip(fixed.teacher.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad
    assert not fixed.teacher.training and set(fixed.groups()) == {"student"}
    assert any(not torch.equal(a, b) for a, b in zip(fixed.student.parameters(), before.parameters(), strict=True))
    assert set(trained(tmp_path / "current", OPSD(sampling=SAMPLING, teacher="current")).state.state_dict()) == {
        f"student.{name}" for name in before.state_dict()
    }


def test_the_averaged_teacher_is_the_average(tmp_path: Path) -> None:
    method = OPSD(sampling=SAMPLING, teacher="ema", decay=0.7)
    run, student, _ = toy(tmp_path)
    run.horizon = 4
    loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2))
    average = [p.detach().clone() for p in student.parameters()]
    for step in range(4):
        fit(loop, run.sources()["train"], steps=step + 1, size=4, start=step)
        average = [0.7 * a + 0.3 * p.detach() for a, p in zip(average, student.parameters(), strict=True)]
        for mine, theirs in zip(loop.state.teacher.parameters(), average, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("teacher", ["fixed", "ema"])
def test_the_teacher_survives_a_resume(tmp_path: Path, teacher: Any) -> None:
    method = OPSD(sampling=SAMPLING, teacher=teacher, decay=0.7)
    straight = trained(tmp_path / "a", method, steps=4)
    run, student, _ = toy(tmp_path / "b")
    run.horizon = 4
    optim = Optim(lr=1e-2, schedule="constant", warmup=0.0)
    first = Loop(method, method.setup(student, run), run, optim)
    fit(first, run.sources()["train"], steps=2, size=6)
    saved = copy.deepcopy(first.state_dict())
    run, student, _ = toy(tmp_path / "c")
    run.horizon = 4
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.5)  # whatever the new process builds, the checkpoint decides
    second = Loop(method, method.setup(student, run), run, optim)
    second.load_state_dict(saved)
    fit(second, run.sources()["train"], steps=4, size=6, start=2)
    for name, value in straight.state.state_dict().items():
        assert torch.equal(value, second.state.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_splitting_a_batch_changes_nothing(tmp_path: Path, method: OPSD) -> None:
    ends = [trained(tmp_path / str(parts), method, accumulate=parts).state.state_dict() for parts in (1, 6)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_adapters_off_are_the_fixed_teacher(tmp_path: Path, folders: Folders) -> None:  # noqa: F811
    rows = [{"question": f"what is {a} and {b}?", "answer": f"it is {a + b}"} for a in range(4) for b in range(4)]
    tasks = Questions(path=str(write_jsonl(tmp_path / "q.jsonl", rows)), length=400)
    spec = HubLM(path=str(folders.student), lora=Lora(rank=2))
    run = run_of(tmp_path, spec, data=tasks)
    torch.manual_seed(0)
    student, batch = spec.build(run), run.sources()["train"].batch(range(3), 0)
    method = OPSD(sampling=Sampling(max_new=6))
    lean, full = method.setup(student, run), method.setup(spec.build(run).model.get_base_model(), run)
    assert not list(lean.teacher.parameters()) and set(dict(full.named_children())) == {"student", "teacher"}
    (made,) = method.step(lean, batch, run)
    same = made.loss.item()
    with torch.no_grad():
        for name, p in student.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    student.train()
    (made,) = method.step(lean, batch, run)
    assert student.training
    frozen = spec.build(run)  # fresh adapters: the model as it was
    full = type(lean)(student=student, teacher=frozen.requires_grad_(False).eval())
    (expected,) = method.step(full, batch, run)
    assert made.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6) and made.loss.item() != pytest.approx(same)
    moved = torch.autograd.grad(made.loss, [p for p in student.parameters() if p.requires_grad])
    assert any(g.abs().max() > 0 for g in moved)


def test_it_wants_tasks(tmp_path: Path) -> None:
    run = run_of(tmp_path, SPEC, data=Sentences())
    with pytest.raises(RunError, match="Sentences has no verifier"):
        OPSD().setup(SPEC.build(run), run)


# -- the divergences ---------------------------------------------------------------------------------------------------


def pair(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(6, 11, generator=draw, dtype=torch.float64) * 2 * scale for _ in range(2)]
    return made[0].to(dtype).requires_grad_(), made[1].to(dtype)


def head(z: torch.Tensor) -> HeadLogits:
    """The same logits through an identity head."""
    return HeadLogits(z, torch.eye(z.shape[-1], dtype=z.dtype))


BOTH = [Clipped(of=ForwardKL(), most=0.05), Clipped(of=JSD(), most=0.02), Clipped(of=ReverseKL(), most=0.1),
        Kept(of=ForwardKL(), top=4), Kept(of=JSD(), top=4), Kept(of=ReverseKL(), top=1)]  # fmt: skip


def brute(divergence: Any, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    name = {ForwardKL: "fkl", ReverseKL: "rkl", JSD: "jsd"}[type(divergence.of)]
    values = []
    for z_s, z_t in zip(s, t, strict=True):
        if isinstance(divergence, Kept):
            top = sorted(range(len(z_t)), key=lambda v: -float(z_t[v]))[: divergence.top]
            values.append(term(name, z_s[top].log_softmax(-1), z_t[top].log_softmax(-1)).sum())
        else:
            each = term(name, z_s.log_softmax(-1), z_t.log_softmax(-1))
            values.append(sum(x if float(x.detach()) < divergence.most else torch.tensor(divergence.most) for x in each))
    return torch.stack(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("divergence", BOTH)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_clipped_and_kept_written_out(divergence: Any, temperature: float) -> None:
    s, t = pair()
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0], dtype=torch.float64)
    expected = brute(divergence, s / temperature, t / temperature) * weight
    (slope,) = torch.autograd.grad(expected.sum(), s)
    for student, teacher in ((s, t), (head(s), t), (head(s), head(t)), (s, head(t))):
        values = divergence(student, teacher, temperature=temperature, weight=weight)
        torch.testing.assert_close(values, expected, check_dtype=False)
        torch.testing.assert_close(torch.autograd.grad(values.sum(), s)[0], slope)


@pytest.mark.parametrize("divergence", BOTH)
def test_clipped_and_kept_as_every_divergence(divergence: Any) -> None:
    s, t = pair()
    same = divergence(s, s.detach())
    assert float(same.abs().max()) < 1e-12 and float(torch.autograd.grad(same.sum(), s)[0].abs().max()) < 1e-12
    assert torch.autograd.gradcheck(lambda z: divergence(z, t), (s,))
    assert divergence(s[:0], t[:0]).shape == (0,) == divergence(head(s[:0]), head(t[:0])).shape
    for dtype, scale in ((torch.bfloat16, 1.0), (torch.float32, 1e3)):
        a, b = pair(scale, dtype)
        for student, teacher in ((a, b), (head(a), head(b))):
            values = divergence(student, teacher)
            assert torch.isfinite(values).all() and torch.isfinite(torch.autograd.grad(values.sum(), a)[0]).all()


def test_their_limits() -> None:
    s, t = pair()
    for of in (ForwardKL(), JSD(), ReverseKL()):
        torch.testing.assert_close(Clipped(of=of, most=1e9)(s, t), of(s, t))
        for top in (11, 50):
            torch.testing.assert_close(Kept(of=of, top=top)(s, t), of(s, t))
            torch.testing.assert_close(Kept(of=of, top=top)(head(s), head(t)), of(s, t))
        assert float(Kept(of=of, top=1)(s, t).abs().max()) < 1e-12
