"""The loop's promises, over ragged token rows: what a gradient is does not depend on how its batch was split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from stillhouse.core.engine import EngineError, Loop, fit, micro_batches, order, to_device
from stillhouse.core.method import State, Update
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import HeadLogits
from stillhouse.core.stage import Train, execute
from stillhouse.data.toys import Clusters, Points, Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP, TinyLM

from . import lab
from .lab import Alternating

ADAM = Optim(lr=1e-2)
SGD = Optim(name="sgd", lr=1e-1)
CRITIC = {"critic": Optim(name="sgd", lr=1e-2, schedule="cosine")}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"), horizon=4)
    made.recipe = lab.RECIPE
    return made


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def test_rows_are_ragged(run: Run):
    source = Sentences().load(run)["train"]
    parts = [source.batch([i], 0)["weight"].sum().item() for i in range(len(source))]
    assert len(set(parts)) > 5


@pytest.mark.parametrize(("dtype", "optim", "tolerance"), [
    (torch.float32, SGD, 5e-7), (torch.float64, SGD, 1e-14), (torch.float64, ADAM, 1e-12),
])  # fmt: skip
@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulation_changes_nothing(tmp_path: Path, dtype: torch.dtype, optim: Optim, tolerance: float, accumulate: int):
    settings: dict[str, Any] = {"method": Alternating(), "dtype": dtype, "optim": optim, "optims": CRITIC}
    whole = lab.trained(tmp_path / "a", 1, **settings)
    split = lab.trained(tmp_path / "b", accumulate, **settings)
    assert whole["t"] > 0
    assert apart(whole, split) < tolerance


def test_accumulation_changes_nothing_for_bfloat16(tmp_path: Path):
    """The sums are float32, so only the forward pass's rounding is left, which does not see the split."""
    settings: dict[str, Any] = {"method": Alternating(), "optim": SGD, "bfloat16": True}
    whole, split = (lab.trained(tmp_path / str(k), k, **settings) for k in (1, 8))
    start = lab.loop(tmp_path / "start", **settings).state.state_dict()
    assert apart(whole, split) < 0.02 * apart(whole, start)


def test_every_update_moves_its_own_group_once(run: Run):
    method = Alternating()
    made = Loop(method, method.setup(TinyLM(width=lab.WIDTH).build(run), run), run, ADAM)
    moved: Counter[str] = Counter()
    for name, group in made.groups.items():
        inner = group.step
        group.step = lambda *a, name=name, inner=inner: (moved.update([name]), inner(*a))[1]  # type: ignore[method-assign]
    logs = made.step(micro_batches(Sentences().load(run)["train"], step=0, size=8, accumulate=4, seed=0))
    assert moved == {"student": 2, "critic": 1}
    assert logs["student/count"] == 2 * logs["critic/count"] > 0
    assert {"student/loss", "student/t", "student/gradient_norm", "critic/loss"} <= set(logs)
    assert all(p.grad is None for p in made.state.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_that_reaches_two_groups_moves_one(run: Run, dtype: torch.dtype):
    @dataclass(frozen=True)
    class Both:
        needs: ClassVar = frozenset()

        def setup(self, student: nn.Module, run: Run) -> State:
            return State(student=student, other=nn.Linear(2, 2))

        def step(self, s: State, batch: Any, run: Run) -> Iterator[Update]:
            yield Update(s.other(s.student(batch["inputs"])).sum(), 1)
            yield Update(s.other(s.student(batch["inputs"])).sum() * 0, 1, "other")

    torch.manual_seed(0)
    state = Both().setup(nn.Linear(2, 2), run)
    state.to(dtype)
    before = {n: p.clone() for n, p in state.named_parameters()}
    Loop(Both(), state, run, SGD).step([{"inputs": torch.ones(1, 2, dtype=dtype)}])
    assert not torch.equal(state.student.weight, before["student.weight"])
    assert torch.equal(state.other.weight, before["other.weight"])  # the first update's gradient must not linger


@dataclass(frozen=True)
class Scripted:
    """Yields what the batch says: a list of (group, factor, count)."""

    needs: ClassVar = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        return State(student=student)

    def step(self, s: State, batch: Any, run: Run) -> Iterator[Update]:
        for group, factor, count in batch["script"]:
            yield Update(s.student(torch.ones(1, 2)).sum() * factor, count, group)


def scripted(run: Run, *scripts: Any) -> tuple[dict[str, float], torch.Tensor, Loop]:
    torch.manual_seed(0)
    student = nn.Linear(2, 1, bias=False)
    before = student.weight.detach().clone()
    plain = Optim(name="sgd", lr=1.0, schedule="constant", warmup=0.0, clip=None)
    made = Loop(Scripted(), State(student=student), run, plain)
    logs = made.step([{"script": script} for script in scripts])
    return logs, student.weight.detach() - before, made


def test_gradients_are_sums_over_counts(run: Run):
    _, moved, _ = scripted(run, [("student", 3.0, 1)], [("student", 5.0, 3)])
    assert torch.allclose(moved, torch.full((1, 2), -2.0))  # (3 + 5) / (1 + 3)


def test_micro_batches_that_disagree(run: Run):
    one = [("student", 1.0, 1)]
    with pytest.raises(EngineError, match="disagree on update 1"):
        scripted(run, one, one + one)
    with pytest.raises(EngineError, match="no trainable group 'critic'; there are .*student"):
        scripted(run, [("critic", 1.0, 1)])


def test_a_micro_batch_without_items_takes_part(run: Run):
    _, moved, _ = scripted(run, [("student", 0.0, 0)], [("student", 4.0, 2)])
    assert torch.allclose(moved, torch.full((1, 2), -2.0))
    logs, moved, _ = scripted(run, [("student", 0.0, 0)])
    assert logs == {} and bool((moved == 0).all())


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_moves_nothing(run: Run, factor: float):
    run.step = 3
    with pytest.raises(EngineError, match="the loss of 'student' is not finite at step 3"):
        scripted(run, [("student", factor, 1)])


def test_a_gradient_that_is_not_finite_moves_nothing(run: Run):
    @dataclass(frozen=True)
    class Root(Scripted):
        def step(self, s: State, batch: Any, run: Run) -> Iterator[Update]:
            yield Update((s.student(torch.ones(1, 2)) * 0).sqrt().sum(), 1)  # 0, with the gradient 0 * inf

    student = nn.Linear(2, 1)
    before = student.weight.detach().clone()
    with pytest.raises(EngineError, match="the gradient of 'student' is not finite"):
        Loop(Root(), State(student=student), run, SGD).step([{}])
    assert torch.equal(student.weight, before)


def test_a_failure_after_the_first_update_is_not_between_steps(run: Run):
    nan = float("nan")
    made = Loop(Scripted(), State(student=nn.Linear(2, 1)), run, SGD)
    with pytest.raises(EngineError):
        made.step([{"script": [("student", nan, 1)]}])
    assert made.between
    with pytest.raises(EngineError):
        made.step([{"script": [("student", 1.0, 1), ("student", nan, 1)]}])
    assert not made.between


def test_settings_for_a_group_that_is_not_there(run: Run):
    with pytest.raises(EngineError, match=r"no group \['studnet'\] to optimize"):
        Loop(Scripted(), State(student=nn.Linear(2, 1)), run, SGD, {"studnet": SGD})


def test_frozen_children_are_kept_and_not_moved(run: Run):
    state = State(student=nn.Linear(2, 1), anchor=nn.Linear(2, 1).requires_grad_(False), t=0.5)
    assert set(state.groups()) == {"student"}
    assert {"anchor.weight", "t"} <= set(state.state_dict())
    assert state.t.dtype == torch.float64


def test_order_is_a_walk_through_shuffled_epochs():
    walk = list(order(5, 7, 0, 20))
    assert [epoch for epoch, _ in walk] == [e for e in range(4) for _ in range(5)]
    for epoch in range(4):
        assert sorted(item for e, item in walk if e == epoch) == list(range(5))
    assert walk[3:14] == list(order(5, 7, 3, 11))  # where one starts does not matter
    assert walk != list(order(5, 8, 0, 20))


@dataclass(frozen=True)
class Echo:
    """A source whose batch is what it was asked for."""

    n: int

    def __len__(self) -> int:
        return self.n

    def batch(self, items: Any, epoch: int) -> Any:
        return [(epoch, item) for item in items]


def test_micro_batches_are_the_batch_cut_up():
    for step in range(6):
        whole = micro_batches(Echo(10), step=step, size=7, accumulate=1, seed=0)
        parts = micro_batches(Echo(10), step=step, size=7, accumulate=3, seed=0)
        assert len(parts) == 3
        assert [item for part in parts for item in part] == whole[0]  # across the epochs' borders as well


def test_a_batch_too_small_to_split():
    with pytest.raises(EngineError, match="a batch of 2 items cannot be split into 4 parts"):
        micro_batches(Echo(10), step=0, size=2, accumulate=4, seed=0)


def test_tensors_move_wherever_they_are():
    moved = to_device({"a": [torch.ones(1)], "b": (torch.ones(1), "x"), "c": 3}, torch.device("meta"))
    assert moved["a"][0].is_meta and moved["b"][0].is_meta and moved["b"][1] == "x" and moved["c"] == 3


def test_what_a_method_draws_depends_on_seed_step_and_part_alone(tmp_path: Path):
    settings: dict[str, Any] = {"method": Alternating(noise=0.3), "optim": SGD}
    first = lab.trained(tmp_path / "a", **settings)
    torch.rand(17)  # whatever else used the global generator
    assert apart(first, lab.trained(tmp_path / "b", **settings)) == 0
    assert apart(first, lab.trained(tmp_path / "c", accumulate=2, **settings)) > 0


def test_gradient_checkpointing_has_the_same_gradients(run: Run):
    batch = Sentences().load(run)["train"].batch([0, 1, 2], 0)

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = TinyLM(width=16, depth=3).build(run)
        if checkpointing:
            model.gradient_checkpointing_enable()
        logits: HeadLogits = model(**batch["inputs"])
        logits.dense().square().sum().backward()
        return [p.grad for p in model.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, again)


def test_compiled_children_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    inner = nn.Module.compile

    def traced(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(module).__name__)
        inner(module, *args, backend="aot_eager", **kwargs)  # all but the minute that a C++ compiler takes

    monkeypatch.setattr(nn.Module, "compile", traced)

    def losses(name: str, compile: bool) -> list[float]:
        stage = Train(method=Supervised(), steps=3, batch=8, compile=compile)
        made = Run(tmp_path / name, device=torch.device("cpu"))
        execute(Recipe(id="c", student=MLP(width=4), data=Clusters(), stages={"train": stage}), made)
        return [line["student/loss"] for line in made.read("metrics.jsonl")]

    assert losses("compiled", True) == pytest.approx(losses("plain", False), rel=1e-5)
    assert compiled == ["Perceptron"]


def test_points_are_what_fit_walks_over(run: Run):
    source = Points(torch.arange(6.0).unsqueeze(1), torch.arange(6), 6)
    assert source.shape == (1,) and source.batch([4, 1], 0)["labels"].tolist() == [4, 1]


def test_fit_reports_each_step_once(run: Run):
    seen: list[int] = []
    method = Alternating()
    made = Loop(method, method.setup(TinyLM(width=lab.WIDTH).build(run), run), run, ADAM)
    fit(made, Sentences().load(run)["train"], steps=4, size=2, start=1, on_step=lambda step, logs: seen.append(step))
    assert seen == [1, 2, 3] and run.step == 3
