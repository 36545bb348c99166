"""Keys name what the teacher was shown, however it was packed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.core.signal import HeadLogits, Signal, TopK
from stillhouse.data.tokens import Document, pack
from stillhouse.signals.items import put, take
from stillhouse.signals.keys import document_key, places_of


def documents(n: int, seed: int = 0) -> list[Document]:
    dice = torch.Generator().manual_seed(seed)
    made: list[Document] = []
    for i in range(n):
        size = int(torch.randint(2, 12, (), generator=dice))
        tokens = torch.randint(0, 50, (size,), generator=dice).tolist()
        counts = (torch.rand(size, generator=dice) < 0.7).tolist()
        made.append(Document(tokens, [*counts[:-1], True], i))
    return made


def test_a_document_has_one_key_however_it_is_packed():
    every = documents(40)
    names: list[dict[bytes, int]] = []
    for length, size in ((16, 3), (40, 1), (64, 40)):
        packed = pack(every, length)
        found: dict[bytes, int] = {}
        for begin in range(0, len(packed), size):
            places = places_of(packed.batch(range(begin, min(begin + size, len(packed))), 0))
            found |= dict(zip(places.keys, places.counts, strict=True))
        names.append(found)
    assert names[0] == names[1] == names[2]
    assert set(names[0]) == {document_key(d.tokens, d.counts) for d in every}


def test_places_are_the_counted_items_of_their_document():
    batch = pack(documents(20), 30).batch(range(4), 0)
    places = places_of(batch)
    assert torch.equal(places.rows.sort().values, batch["weight"].flatten().nonzero().flatten())
    numbers = batch["inputs"]["document"].flatten()[places.rows]
    row = places.rows // batch["weight"].shape[1]
    for part in zip(numbers.split(places.counts), row.split(places.counts), strict=True):
        assert all(len(set(x.tolist())) == 1 for x in part)


@pytest.mark.parametrize("change", ["token", "counts", "length"])
def test_other_content_has_another_key(change: str):
    tokens, counts = [5, 6, 7, 8], [False, False, True, True]
    other = {
        "token": ([5, 6, 9, 8], counts), "counts": (tokens, [False, True, True, True]), "length": (tokens[:3], counts[:3]),
    }[change]  # fmt: skip
    assert document_key(tokens, counts) != document_key(*other)


def test_images_are_known_by_their_pixels():
    images = torch.randn(5, 3, 4, 4)
    keys = places_of({"inputs": images, "labels": torch.zeros(5)}).keys
    assert len(set(keys)) == 5
    assert places_of({"inputs": images.flip(0), "labels": torch.zeros(5)}).keys == keys[::-1]
    shifted = images.clone()
    shifted[2, 0, 0, 0] += 1e-6
    assert [a == b for a, b in zip(keys, places_of({"inputs": shifted, "labels": torch.zeros(5)}).keys, strict=True)] == [
        True, True, False, True, True,
    ]  # fmt: skip


def test_a_batch_of_many_tensors_and_of_other_types_has_keys():
    inputs = {"x": torch.randn(3, 2).bfloat16(), "mask": torch.ones(3, 2, dtype=torch.bool)}
    assert len(set(places_of({"inputs": inputs, "labels": torch.zeros(3)}).keys)) == 3
    with pytest.raises(TypeError, match="no tensors"):
        places_of({"inputs": {}, "labels": torch.zeros(3)})


@pytest.mark.parametrize("kind", ["head", "dense", "topk", "features"])
def test_items_go_back_to_where_they_came_from(kind: str):
    batch = pack(documents(12), 30).batch(range(3), 0)
    places, shape = places_of(batch), batch["weight"].shape
    made: dict[str, Any] = {
        "head": lambda: Signal(logits=HeadLogits(torch.randn(*shape, 4), torch.randn(9, 4))),
        "dense": lambda: Signal(logits=torch.randn(*shape, 9)),
        "topk": lambda: Signal(
            topk=TopK(torch.randn(*shape, 3), torch.ones(*shape, 3, dtype=torch.long), torch.randn(shape))
        ),
        "features": lambda: Signal(features={"a": torch.randn(*shape, 2, 2)}),
    }
    signal = made[kind]()
    again = put(take(signal, places), places, torch.device("cpu"))
    counted = batch["weight"] > 0

    def tensor(s: Signal) -> torch.Tensor:
        return {
            "head": lambda: s.logits.hidden, "dense": lambda: s.logits, "topk": lambda: s.topk.values,  # type: ignore[union-attr]
            "features": lambda: s.features["a"],  # type: ignore[index]
        }[kind]()  # fmt: skip

    assert torch.equal(tensor(again)[counted], tensor(signal)[counted])
    assert bool(tensor(again)[~counted].isnan().all())


def test_an_empty_batch_has_no_places():
    batch = {"inputs": {"tokens": torch.zeros(0, 0), "document": torch.zeros(0, 0)}, "weight": torch.zeros(0, 0)}
    assert places_of(batch).keys == []
