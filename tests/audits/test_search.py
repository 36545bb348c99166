"""The search: what is looked at against autograd, the evolution's rule, caps, ranking, and what is told."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.audits import proxies
from stillhouse.audits.proxies import (
    Activity,
    Chance,
    GradientNorm,
    Parameters,
    Trained,
    Untrained,
    labelled,
)
from stillhouse.audits.search import Evolution, Search, evolved
from stillhouse.audits.validation import Validation
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.images import Digits, Split
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.own import Given
from stillhouse.models.space import Compact, Picked, Space
from stillhouse.models.toys import MLP, ConvNet
from stillhouse.models.vision import ViT
from stillhouse.teachers.module import ModuleTeacher

SPACE = Space(of=Compact(), values={"width": (2, 4, 8), "depth": (1, 2), "skip": (False, True)})
BIG = Space(of=MLP(depth=1), values={"width": tuple(range(1, 21)), "dropout": tuple(i / 10 for i in range(9))})


class Progress:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, stage: str, done: int, total: int, logs: Any, seconds: float) -> None:
        self.done.append((done, total))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"), stage="search", progress=Progress())
    teacher = ModuleTeacher(spec=ConvNet(width=4), stage="teacher")  # which nobody has trained
    made.recipe = Recipe(id="search", student=Picked(), data=Digits(), teachers={"teacher": teacher}, stages={})
    made.source = made.sources()["train"]
    return made


def searched(run: Run, **fields: Any) -> dict[str, Any]:
    made = Search(**{"space": SPACE, "score": Parameters(), "batch": 8, **fields})
    made(run)
    return run.load_json("search")


# -- one look ----------------------------------------------------------------------------------------------------------


def test_a_look_against_autograd(run: Run):
    spec, items = MLP(width=6, depth=2), list(range(9))
    made = Untrained(spec, items, run)
    net: Any = made.module
    batch = run.source.batch(items, 0)
    x, labels = batch["inputs"].flatten(1), batch["labels"]
    hidden = [net.hidden[0](x).relu()]
    hidden.append(net.hidden[1](hidden[0]).relu())
    logits = net.head(hidden[1])
    assert torch.allclose(made.look.features, hidden[1])  # an MLP has no map: what its last layer reads
    wrong = (logits.softmax(-1) - F.one_hot(labels, 10)) / 9
    assert torch.allclose(made.look.head, wrong.T @ hidden[1], atol=1e-6)
    slopes = torch.autograd.grad(F.cross_entropy(logits, labels), list(net.parameters()))
    assert made.look.gradient == pytest.approx(float(torch.cat([s.flatten() for s in slopes]).norm()), rel=1e-5)
    on = torch.cat(hidden, 1) > 0
    assert torch.equal(made.look.agreement, (on[:, None] == on).sum(-1).double())


@pytest.mark.parametrize(
    ("spec", "tap"),
    [(Compact(width=4, depth=2), "stages.1"), (Compact(width=4, features=6), "end"), (ConvNet(width=4), "stages.1"),
     (ViT(patch=4, width=8, depth=2, heads=2), "norm")],
)  # fmt: skip
def test_the_last_map_before_it_is_pooled(spec: Any, tap: str, run: Run):
    made = Untrained(spec, [0, 1, 2], run)
    seen: list[Any] = []
    made.module.get_submodule(tap).register_forward_hook(lambda part, args, output: seen.append(output))
    assert torch.equal(made.look.features, seen[-1]) and seen[-1].ndim > 2


def test_a_look_is_the_same_twice_and_draws_differ(run: Run):
    first, again, other = (Untrained(Compact(), [0, 1, 2], run, draw).look for draw in (0, 0, 1))
    assert torch.equal(first.head, again.head) and not torch.equal(first.head, other.head)
    state = torch.random.get_rng_state()
    assert Untrained(Compact(), [0, 1, 2], run).look.gradient > 0
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_teacher_forgets_what_it_has_learned(run: Run):
    first = nn.Linear(64, 8)
    net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(8, 10))
    made = Untrained(Given(net), [0, 1], run, teacher=True).module
    assert not torch.equal(made.get_parameter("1.weight"), first.weight)
    assert torch.equal(Untrained(Given(net), [0, 1], run).module.get_parameter("1.weight"), first.weight)
    own, teacher = Untrained(Compact(), [0, 1], run, teacher=True), Compact().build(run)
    assert own.parameters == sum(p.numel() for p in teacher.parameters())


def test_only_labelled_items_are_looked_at(run: Run):
    run.recipe = replace(run.recipe, data=Digits(split=Split(labels=2)))
    source = run.sources()["train"]
    items = labelled(source, 15, torch.Generator().manual_seed(0))
    assert len(set(items)) == 15 and bool((source.batch(items, 0)["labels"] >= 0).all())
    assert len(labelled(source, 500, torch.Generator().manual_seed(0))) == 20

    class Nothing:
        def __len__(self) -> int:
            return 4

        def batch(self, items: Any, epoch: int) -> Any:
            return {"labels": torch.full((len(items),), -100)}

    with pytest.raises(RunError, match="no label of the training split is known"):
        labelled(Nothing(), 2, torch.Generator())


# -- evolution ---------------------------------------------------------------------------------------------------------


def test_parents_are_of_the_best_of_the_tournament():
    """The authors' code sorts the other way, so that parents are of the worst."""
    draw, numbers = torch.Generator().manual_seed(0), iter(range(10**6))
    history: list[tuple[int, ...]] = []
    parents: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []

    def new() -> tuple[int, ...]:
        history.append((next(numbers), int(torch.randint(1000, (), generator=draw))))
        return history[-1]

    def child(parent: tuple[int, ...]) -> tuple[int, ...]:
        parents.append((parent, sorted(history[-12:], key=lambda c: c[1], reverse=True)))  # those that are alive
        return new()

    settings = Evolution(population=12, tournament=12, best=5)
    seen = evolved(new, child, lambda c: c[1], evolution=settings, budget=200, draw=draw)
    assert seen == history and len(seen) == 200 and len(parents) == 188
    ranks = [alive.index(parent) for parent, alive in parents]
    assert set(ranks) == {0, 1, 2, 3, 4}  # every one of the best five, and nobody else


def test_evolution_finds_what_chance_does_not():
    def best(evolution: Evolution | None, seed: int) -> int:
        draw = torch.Generator().manual_seed(seed)
        space = Space(of=MLP(), values={name: tuple(range(10)) for name in "abcdef"})
        return max(map(sum, evolved(
            lambda: space.random(draw), lambda parent: space.mutated(parent, draw), sum,
            evolution=evolution, budget=300, draw=draw,
        )))  # fmt: skip

    assert all(best(Evolution(), seed) > best(None, seed) for seed in range(5))


@pytest.mark.parametrize("wrong", [{"best": 11}, {"tournament": 21}, {"best": 0}])
def test_a_tournament_fits_its_population(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="at most"):
        Evolution(**wrong)


# -- the stage ---------------------------------------------------------------------------------------------------------


def test_students_within_the_caps_are_ranked(run: Run):
    found = searched(run, parameters=1000)
    every = {str(s): Untrained(SPACE.spec(s), [0], run) for s in map(SPACE.settings, SPACE)}
    expected = {name: made.parameters for name, made in every.items() if made.parameters <= 1000}
    assert {str(s["settings"]): s["parameters"] for s in found["ranked"]} == expected and 3 < len(expected) < 12
    counts = [s["parameters"] for s in found["ranked"]]
    assert counts == sorted(counts, reverse=True) == [s["score"] for s in found["ranked"]]
    most = sorted(made.flops for made in every.values())[5]
    assert max(s["flops"] for s in searched(run, flops=most)["ranked"]) <= most
    assert len(run.load_json("search")["ranked"]) == 6


def test_what_is_written_and_told(run: Run):
    found = searched(run, score=GradientNorm(), beside=(Parameters(), Activity()), draws=2)
    rows = list(csv.DictReader((run.path("search") / "ranked.csv").open()))
    assert [row["place"] for row in rows] == [str(i + 1) for i in range(12)]
    assert rows[0]["width"] == str(found["ranked"][0]["settings"]["width"])
    assert float(rows[3]["GradientNorm"]) == pytest.approx(found["ranked"][3]["score"])
    scores = [[s["score"] for s in found["ranked"]], [s["beside"]["Parameters"] for s in found["ranked"]]]
    expected: Any = scipy.stats.kendalltau(*scores)
    assert found["kendall"]["Parameters"] == pytest.approx(expected.statistic)
    plan = next(e["text"] for e in run.read("events.jsonl") if e["event"] == "plan")
    assert plan.startswith("12 students to score, about ") and plan.endswith(" s")
    notes = [e["text"] for e in run.read("events.jsonl") if e["event"] == "note"]
    assert notes[0].startswith("GradientNorm chose width=") and notes[1].startswith(
        "Kendall's tau with GradientNorm over 12"
    )
    assert f"search: {plan}" in run.progress.said and run.progress.done[-1] == (12, 12)
    items = labelled(run.source, 8, run.rng("items"))
    spec = SPACE.spec(found["ranked"][0]["settings"])
    each = [Untrained(spec, items, run, draw).look.gradient for draw in (0, 1)]
    assert found["ranked"][0]["score"] == pytest.approx(sum(each) / 2)


def test_equal_scores_prefer_the_smaller_and_those_that_are_not_finite_come_last(run: Run):
    @dataclass(frozen=True)
    class Odd:
        def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
            return float("inf") if student.spec.width == 2 else float("nan") if student.spec.width == 4 else 1.0

    found = searched(run, score=Odd(), beside=())["ranked"]
    assert [s["settings"]["width"] for s in found[:4]] == [8, 8, 8, 8]
    assert found[0]["parameters"] == min(s["parameters"] for s in found if s["score"] == 1.0)
    assert all(s["score"] is None for s in found[4:])


def test_a_large_space_is_drawn_from(run: Run):
    found = searched(run, space=BIG, budget=60, parameters=1000)
    assert 20 <= len(found["ranked"]) <= 60 and len(BIG) == 180
    assert found["ranked"][0]["settings"]["width"] == 13  # the most that 64 · w + w + 10 · w + 10 <= 1000 allows
    assert searched(run, space=BIG, budget=60, parameters=1000) == found
    chance = searched(run, space=BIG, budget=60, parameters=1000, evolution=None)
    assert chance["ranked"] != found["ranked"]


def test_chance_depends_on_the_seed_alone(run: Run):
    def order() -> list[Any]:
        return [s["choice"] for s in searched(run, score=Chance())["ranked"]]

    first = order()
    assert order() == first
    run.seed = 1
    assert order() != first


def test_scores_take_no_training_and_ask_no_teacher(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(proxies, "fit")
    monkeypatch.setattr(Run, "teacher", property(lambda self: pytest.fail("the teacher was asked")))
    for score in (Parameters(), GradientNorm(), Activity(), Chance()):
        assert len(searched(run, score=score)["ranked"]) == 12


def test_trained_is_what_training_would_have_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[int] = []
    fit = proxies.fit
    monkeypatch.setattr(proxies, "fit", lambda *args, **named: trained.append(1) or fit(*args, **named))
    optim = Optim(lr=1e-2)
    space = Space(of=MLP(), values={"width": (4, 16)})
    truth = Trained(method=Supervised(), steps=30, batch=16, optim=optim)
    search = Search(space=space, score=truth, batch=8, draws=3)
    train = Train(method=Supervised(), steps=30, batch=16, optim=optim)
    recipe = replace(run.recipe, stages={"search": search, "train": train}, seed=3)
    whole = Run(tmp_path / "whole", seed=3, device=torch.device("cpu"))
    execute(recipe, whole)
    assert len(trained) == len(space)  # once each, however many weights are drawn
    best = whole.load_json("search")["ranked"][0]
    said = Validation(quantity="accuracy")(Picked().load(whole.path("train"), whole).eval(), whole)
    assert said == pytest.approx(best["score"]) and best["score"] > 0.3 and best["settings"] == {"width": 16}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": 10}, "no student is within the caps; the smallest that was seen has width=2, depth=1"),
        ({"space": BIG, "parameters": 10}, "no student is within the caps"),
        ({"space": Space(of=ViT(heads=4), values={"width": (6, 10)})}, "can be built: width must be a multiple of"),
        ({"space": Space(of=Compact(), values={"widht": (4,)})}, "no 'widht' to vary; did you mean 'width'"),
    ],
)
def test_faults_are_told_in_one_line(fields: dict[str, Any], message: str, run: Run):
    with pytest.raises(RunError, match=message):
        searched(run, **fields)


def test_a_teacher_without_an_architecture_is_refused(run: Run):
    run.recipe = replace(run.recipe, teachers={})
    with pytest.raises(RunError, match="needs the teacher's architecture"):
        searched(run)
    assert len(searched(run, teacher=ConvNet(width=2))["ranked"]) == 12


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"draws": 0}, {"beside": (Parameters(),)}])
def test_settings_that_mean_nothing(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="1 or more|one name"):
        Search(**{"space": SPACE, "score": Parameters(), **wrong})
