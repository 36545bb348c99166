"""FedMD: the consensus by brute force, its two losses, its rounds, and that a client moves by its own updates alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.core.engine import Loop, fit
from stillhouse.core.method import State
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train
from stillhouse.data.clients import Federation
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics.fedmd import FedMD, recipe
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.clients import Clients, Several
from stillhouse.models.toys import MLP

SGD = Optim(name="sgd", lr=0.1, momentum=0.0, clip=None, schedule="constant", warmup=0.0)
DATA = Federation(source=Clusters(train=96, valid=8, test=8), clients=3, labelled=True)
UNLIKE = Clients(members=(MLP(width=8), MLP(width=6, depth=1), MLP(width=5, depth=3)))


def begin(tmp_path: Path, method: Any, *, data: Any = DATA, student: Any = UNLIKE, seed: int = 0) -> Run:
    run = Run(tmp_path / "run", seed=seed, device=torch.device("cpu"), stage="train")
    stages = {"train": Train(method=method, steps=8, batch=8, optim=SGD)}
    run.recipe = Recipe(id="fedmd", student=student, data=data, stages=stages)
    return run


def built(run: Run) -> Several:
    torch.manual_seed(run.seed)
    return run.recipe.student.build(run)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def loop_of(run: Run, method: Any) -> tuple[Loop, Any]:
    return Loop(method, method.setup(built(run), run), run, SGD), run.sources()["train"]


def scores_by_hand(state: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        clients = [state.get_submodule(f"client{k}") for k in range(3)]
        return torch.tensor([[sum(float(c(x[None])[0, v]) for c in clients) / 3 for v in range(4)] for x in inputs])


def test_digesting_is_the_mean_absolute_distance_to_the_average(tmp_path: Path):
    method = FedMD(digest=1, revisit=1)
    run = begin(tmp_path, method)
    state, batch = method.setup(built(run), run), run.sources()["train"].batch(range(6), 0)
    inputs = batch["public"]["inputs"]
    consensus = scores_by_hand(state.student, inputs)
    for number, update in enumerate(method.step(state, batch, run)):
        said = state.student.get_submodule(f"client{number}")(inputs)
        by_hand = sum(abs(float(said[i, v].detach() - consensus[i, v])) for i in range(6) for v in range(4)) / 4
        assert (update.group, update.count) == (f"client{number}", 6)
        assert float(update.loss.detach()) == pytest.approx(by_hand, rel=1e-5)


def test_revisiting_is_learning_from_the_own_labels(tmp_path: Path):
    method = FedMD(digest=1, revisit=1)
    run = begin(tmp_path, method)
    run.step = 1
    state, batch = method.setup(built(run), run), run.sources()["train"].batch(range(6), 0)
    for number, update in enumerate(method.step(state, batch, run)):
        client, own = state.student.get_submodule(f"client{number}"), batch["private"][number]
        expected = F.cross_entropy(client(own["inputs"]), own["labels"], reduction="sum")
        assert float(update.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("client", [0, 1, 2])
def test_without_digesting_every_client_is_alone(tmp_path: Path, client: int):
    """To the bit what the client would be, had it trained by itself on its items in the same order."""
    method = FedMD(digest=0, revisit=3)
    run = begin(tmp_path, method)
    loop, source = loop_of(run, method)
    assert not hasattr(loop.state, "sent")
    fit(loop, source, steps=5, size=8)

    class Own:
        def __len__(self) -> int:
            return len(source)

        def batch(self, items: Any, epoch: int) -> Any:
            return source.batch(items, epoch)["private"][client]

    alone = State(student=built(run).get_submodule(f"client{client}"))
    fit(Loop(Supervised(), alone, run, SGD), Own(), steps=5, size=8)
    assert torch.equal(weights(alone.student), weights(loop.state.student.get_submodule(f"client{client}")))


def test_clients_that_are_alike_agree(tmp_path: Path):
    """Their consensus is what each says already: nothing is left to digest, and nothing moves."""
    method = FedMD(digest=1, revisit=0)
    run = begin(tmp_path, method, student=Clients(members=(MLP(width=8),) * 3))
    loop, source = loop_of(run, method)
    first, *others = loop.state.student.children()
    for other in (*others, *loop.state.sent.children()):
        other.load_state_dict(first.state_dict())
    before = weights(first)
    loop.run.step = 0
    logs = loop.step([source.batch(range(8), 0)])
    assert max(logs[f"client{k}/gap"] for k in range(3)) < 1e-6
    before_ours = [float((weights(c) - before).abs().max()) for c in loop.state.student.children()]
    assert before_ours[0] < 0.1 * SGD.lr  # signs of rounding errors at most


def test_a_client_moves_by_its_own_update_alone(tmp_path: Path):
    method = FedMD(digest=1, revisit=1)
    for step in (0, 1):
        run = begin(tmp_path / str(step), method)
        run.step = step
        state, batch = method.setup(built(run), run), run.sources()["train"].batch(range(6), 0)
        for number, update in enumerate(method.step(state, batch, run)):
            state.zero_grad()
            update.loss.backward()
            for k, client in enumerate(state.student.children()):
                touched = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in client.parameters())
                assert touched == (k == number)
            assert all(p.grad is None for p in state.sent.parameters())


def test_the_consensus_is_that_of_the_beginning_of_the_round(tmp_path: Path):
    method = FedMD(digest=2, revisit=1, private=1)
    run = begin(tmp_path, method)
    loop, source = loop_of(run, method)
    kept: list[Tensor] = []
    current: list[Tensor] = []
    for step in range(8):
        current.append(weights(loop.state.student))
        kept.append(weights(loop.state.sent))
        fit(loop, source, steps=step + 1, size=8, start=step)
    for step in range(1, 8):  # rounds begin at 1, 4 and 7
        begun = 1 + 3 * ((step - 1) // 3)
        assert torch.equal(kept[step], current[begun])
        assert (step == begun) == torch.equal(kept[step], current[step])


def test_what_each_step_is_for():
    method = FedMD(digest=2, revisit=3, public=2, private=1)
    assert [method.phase(step)[:2] for step in range(13)] == ["pu"] * 2 + ["pr"] + (["di"] * 2 + ["re"] * 3) * 2
    assert [method.rounds(steps) for steps in (0, 3, 4, 8, 9, 13)] == [0, 0, 1, 1, 2, 2]
    assert replace(method, digest=0).rounds(100) == 0


def test_transfer_learning_begins_with_the_public_labels(tmp_path: Path):
    method = FedMD(public=1)
    run = begin(tmp_path, method)
    state, batch = method.setup(built(run), run), run.sources()["train"].batch(range(6), 0)
    for number, update in enumerate(method.step(state, batch, run)):
        said = state.student.get_submodule(f"client{number}")(batch["public"]["inputs"])
        expected = F.cross_entropy(said, batch["public"]["labels"], reduction="sum")
        assert float(update.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("step", [0, 1])
def test_a_batch_in_parts_gives_the_same_sums(tmp_path: Path, step: int):
    method = FedMD(digest=1, revisit=1)
    run = begin(tmp_path, method, data=replace(DATA, public_each=2))
    run.step = step
    state, source = method.setup(built(run), run), run.sources()["train"]
    whole = list(method.step(state, source.batch(range(8), 0), run))
    parts = [list(method.step(state, source.batch([i], 0), run)) for i in range(8)]
    for number, update in enumerate(whole):
        assert float(update.loss.detach()) == pytest.approx(sum(float(p[number].loss.detach()) for p in parts), rel=1e-5)
        assert float(update.count) == sum(float(p[number].count) for p in parts) == (16 if step == 0 else 8)


def test_the_scores_are_taken_without_dropout(tmp_path: Path):
    method = FedMD(digest=1, revisit=1)
    run = begin(tmp_path, method, student=Clients(members=(MLP(width=8, dropout=0.5),) * 3))
    state = method.setup(built(run).train(), run)
    inputs = run.sources()["train"].batch(range(6), 0)["public"]["inputs"]
    assert torch.equal(state.sent(inputs), state.sent(inputs))
    assert not torch.equal(state.student(inputs), state.student(inputs))


def test_bytes_by_hand(tmp_path: Path):
    """Up and down, 4 bytes a score: 3 clients x 4 classes x the public items that the digest steps of a round meet."""
    student = built(begin(tmp_path, FedMD()))
    assert FedMD(digest=2).traffic(student, classes=4, public=1000, items=16) == 2 * 4 * 3 * 4 * 32
    assert FedMD(digest=2).traffic(student, classes=4, public=20, items=16) == 2 * 4 * 3 * 4 * 20
    assert FedMD(digest=0).traffic(student, classes=4, public=1000, items=16) == 0


@pytest.mark.parametrize(("changed", "method", "message"), [
    ({"public": 0.0}, FedMD(), "needs public items"),
    ({"labelled": False}, FedMD(public=1), "there are none: set data.labelled=true"),
    ({"clients": 2}, FedMD(), "the student has 3 clients, the data 2; set data.clients=3"),
])  # fmt: skip
def test_what_does_not_fit(tmp_path: Path, changed: Any, method: FedMD, message: str):
    run = begin(tmp_path, method, data=replace(DATA, **changed))
    with pytest.raises(RunError, match=message):
        method.setup(built(run), run)


@pytest.mark.parametrize(("settings", "message"), [
    ({"digest": -1}, "none can be below 0"), ({"digest": 0, "revisit": 0}, "a round needs a step"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        FedMD(**settings)


def test_clients_of_one_recipe_have_different_networks():
    for scale in ("smoke", "small", "paper"):
        made: Any = recipe(scale)
        assert len(set(made.student.members)) == len(made.student.members) == made.data.clients


def test_images_of_a_user_from_the_command_line(still: Any, tmp_path: Path):
    draw = numpy.random.default_rng(0)
    said = numpy.arange(120) % 3
    pixels = (draw.random((120, 8, 8)) * 80 + 60 * said[:, None, None]).astype(numpy.uint8)
    numpy.savez(tmp_path / "mine.npz", images=pixels, labels=said)
    done = still(
        "run", "fedmd", "--set", "data.source={use: data.images.Npz, path: mine.npz}", "--set", "train.steps=12",
        "--set", "alone.steps=12", "--set", "train.method.private=2", "--set", "data.alpha=0.5", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "accuracy_client3" in done.stdout and "bytes_per_round" in done.stdout
