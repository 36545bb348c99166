"""Thresholds by class: against the formula written out batch by batch, however a batch is split."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.models.thresholds import ClassThresholds


def by_hand(batches, classes, momentum):
    """The formula with plain numbers: exponential means from 0, their bias taken off at the end."""
    mean = {name: 0.0 for name in [*range(classes), "all"]}
    times = dict.fromkeys(mean, 0)
    for batch in batches:
        for name in mean:
            found = [value for value, y in batch if name in ("all", y)]
            if found:
                mean[name] = momentum * mean[name] + (1 - momentum) * sum(found) / len(found)
                times[name] += 1
    plain = {name: mean[name] / (1 - momentum ** times[name]) for name in mean if times[name]}
    each = [plain.get(y, plain["all"]) for y in range(classes)]
    return [e / max(each) * plain["all"] for e in each]


def drawn(seed: int, count: int = 7) -> list[list[tuple[float, int]]]:
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (count,), generator=rng).tolist()
    return [
        list(zip(torch.rand(n, generator=rng).tolist(), torch.randint(3, (n,), generator=rng).tolist(), strict=True))
        for n in sizes
    ]


def fed(batches, classes=4, momentum=0.9, parts=1):
    found = ClassThresholds(classes, momentum)
    for batch in batches:
        for part in range(parts):
            some = batch[part::parts]
            values, names = torch.tensor([v for v, _ in some]), torch.tensor([y for _, y in some], dtype=torch.long)
            found.note(values, names)
        found.advance()
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_against_the_formula(momentum: float) -> None:
    batches = drawn(3)
    assert fed(batches, 4, momentum).thresholds().tolist() == pytest.approx(by_hand(batches, 4, momentum), rel=1e-6)


def test_after_one_batch_they_are_its_means() -> None:
    found = fed([[(0.2, 0), (0.4, 0), (0.9, 1)]], classes=3, momentum=0.99).thresholds()
    mean = (0.2 + 0.4 + 0.9) / 3  # class 2 counts as the mean of all
    assert found.tolist() == pytest.approx([0.3 / 0.9 * mean, mean, mean / 0.9 * mean])


def test_how_a_batch_is_split_changes_nothing() -> None:
    batches = [[*batch, *batch[:2]] for batch in drawn(5)]
    assert torch.allclose(fed(batches, parts=3).thresholds(), fed(batches).thresholds(), rtol=1e-12)


def test_before_the_first_batch_all_pass_and_noting_changes_nothing() -> None:
    found = ClassThresholds(2, 0.9)
    assert not found.ready and found.passed(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])).all()
    found.note(torch.tensor([0.5]), torch.tensor([0]))
    assert not found.ready and math.isinf(found.thresholds()[0])
    found.advance()
    assert found.ready and found.noted is None
    before = found.means.clone()
    found.advance()  # nothing was noted
    assert torch.equal(before, found.means)


def test_values_of_zero_and_bfloat16_and_no_values() -> None:
    found = fed([[(0.0, 0), (0.0, 1)]], classes=2)
    assert found.thresholds().tolist() == [0.0, 0.0]
    found.note(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    found.advance()
    assert found.thresholds().tolist() == [0.0, 0.0]
    found.note(torch.tensor([0.5, 0.25], dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert found.noted is not None and found.noted.dtype == torch.float64
    with pytest.raises(ValueError, match="momentum"):
        ClassThresholds(2, 1.0)


def test_the_means_survive_and_the_highest_class_has_the_mean_of_all() -> None:
    found = fed(drawn(9))
    other = ClassThresholds(4, 0.9)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.thresholds(), found.thresholds())
    plain = found.means[-1] / (1 - 0.9 ** found.updates[-1])
    assert float(found.thresholds().max()) == pytest.approx(float(plain))
