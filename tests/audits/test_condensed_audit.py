"""The evaluator of condensed sets: the same for every set, at the last step, on real images that it did not learn from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.audits.condensed import FreshNetworks, Kept, Some
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.augment import Siamese
from stillhouse.data.images import Digits, Split
from stillhouse.models.condensed import Condensed
from stillhouse.models.convnet import ConvNetD
from stillhouse.models.toys import MLP

CHECK = FreshNetworks(network=ConvNetD(width=4, depth=2), networks=2, steps=6, batch=16, augment=Siamese())


@dataclass
class Given:
    modules: dict[str, nn.Module]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def load(self, name: str) -> nn.Module:
        return self.modules[name]


@dataclass(frozen=True)
class Spy(FreshNetworks):
    seen: list[Any] = field(default_factory=list)

    def accuracy(self, source: Any, run: Run, number: int) -> float:
        self.seen.append((source, number))
        return super().accuracy(source, run, number)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.recipe = Recipe(id="r", student=Condensed(per_class=1), data=Digits(), stages={})
    return made


def found(check: FreshNetworks, run: Run, **modules: nn.Module) -> dict[tuple[str, str, str | None], Any]:
    return {(f.name, f.subject, f.versus): f for f in check(run, Given(modules))}  # type: ignore[arg-type]


def test_every_set_meets_the_same_networks(run: Run):
    """Equal images under another name score the same; the first weights, the order and the changes are the same."""
    student = run.recipe.student.build(run)
    twin = run.recipe.student.build(run)
    twin.images.data += 0  # another tensor
    sets = [Kept(m.images.detach(), m.labels) for m in (student, twin)]
    for number in range(2):
        a, b = (CHECK.trained(s, run, number) for s in sets)
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    other = CHECK.trained(sets[0], run, 1).state_dict()
    assert not torch.equal(CHECK.trained(sets[0], run, 0).state_dict()["head.weight"], other["head.weight"])
    untrained = replace(CHECK, steps=0)
    whole: Any = run.sources()["train"]
    a, b = (untrained.trained(s, run, 0).state_dict() for s in (sets[0], whole))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_as_many_images_a_step_in_as_many_steps(run: Run):
    drawn: list[int] = []

    class Counting(Kept):
        def batch(self, items: Any, epoch: int) -> Any:
            drawn.append(len(items))
            return super().batch(items, epoch)

    student = run.recipe.student.build(run)
    CHECK.trained(Counting(student.images.detach(), student.labels), run, 0)
    assert drawn == [10] * 6  # all there are, fewer than a batch
    drawn.clear()
    many = replace(run.recipe.student, per_class=3).build(run)
    CHECK.trained(Counting(many.images.detach(), many.labels), run, 0)
    assert drawn == [16] * 6


def test_findings_of_every_set(run: Run):
    spec = run.recipe.student
    start = spec.build(run)
    train = replace(spec, start="noise").build(run)
    check = Spy(**{f: getattr(CHECK, f) for f in CHECK.__dataclass_fields__})
    facts = found(check, run, start=start, train=train)
    sets = ("random_images", "kmeans_images", "all_images", "start", "train")
    assert {s for n, s, v in facts if n == "accuracy" and v is None} == set(sets)
    assert [facts["images", s, None].value for s in sets] == [10, 10, 899, 10, 10]
    for name in sets:
        f = facts["accuracy", name, None]
        assert 0 <= f.low <= f.value <= f.high <= 1 and (f.n, f.split, f.better) == (2, "test", "higher")
    assert facts["accuracy", "start", None].value == facts["accuracy", "random_images", None].value
    assert len(check.seen) == 4 * 2  # the start is the random images and is not trained on twice
    versus = {v for n, s, v in facts if v is not None}
    assert versus == {"random_images", "kmeans_images", "start"}  # all images are a reference, not a rival
    gap = facts["accuracy", "train", "kmeans_images"]
    mine, theirs = facts["accuracy", "train", None], facts["accuracy", "kmeans_images", None]
    assert gap.value == pytest.approx(mine.value - theirs.value)


def test_it_judges_the_split_it_is_asked_for(run: Run):
    module = run.recipe.student.build(run)
    source = Kept(module.images.detach(), module.labels)
    rates = [replace(CHECK, split=split, steps=30, lr=0.05).accuracy(source, run, 0) for split in ("valid", "test")]
    assert rates[0] != rates[1]
    assert [round(r * len(run.sources()[s]), 6) % 1 for r, s in zip(rates, ("valid", "test"), strict=True)] == [0, 0]


def test_more_images_teach_more(run: Run):
    check = replace(CHECK, references=("random_images", "all_images"), steps=150, lr=0.05, networks=2)
    facts = found(check, run, start=run.recipe.student.build(run))
    assert facts["accuracy", "all_images", None].value > facts["accuracy", "random_images", None].value + 0.1


def test_one_network_has_no_interval(run: Run):
    check = replace(CHECK, networks=1, references=())
    f = found(check, run, start=run.recipe.student.build(run))["accuracy", "start", None]
    assert (f.low, f.high) == (0.0, 1.0)


def test_any_network_will_do(run: Run):
    check = replace(CHECK, network=MLP(width=8), references=())
    assert found(check, run, start=run.recipe.student.build(run))


def test_images_without_a_known_label_are_left_out(run: Run):
    run.recipe = replace(run.recipe, data=Digits(split=Split(labels=3)))
    source: Any = CHECK._reference("all_images", run)
    assert isinstance(source, Some) and len(source) == 30
    assert bool((source.batch(range(30), 0)["labels"] >= 0).all())


def test_what_cannot_be_judged(run: Run):
    with pytest.raises(ValueError, match="networks must be 1 or more, not 0"):
        replace(CHECK, networks=0)
    with pytest.raises(RunError, match="'train' is a Perceptron, not a condensed data set"):
        found(CHECK, run, train=MLP(inputs=64, classes=10).build(run))
    run.recipe = replace(run.recipe, data=Digits(split=Split(test=0.0)))
    with pytest.raises(RunError, match="the test split is empty"):
        found(CHECK, run, start=run.recipe.student.build(run))
