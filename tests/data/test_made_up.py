"""Data made up on the spot: the same everywhere, and a language batch that keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.run import Run
from stillhouse.data.toys import Clusters, Sentences, decode, encode


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def test_clusters_are_the_same_for_every_seed(run: Run):
    first = Clusters().load(run)
    run.seed = 3
    for name, source in Clusters().load(run).items():
        assert torch.equal(source.inputs, first[name].inputs)
        assert source.labels.bincount().tolist() == [len(source) // 4] * 4
    assert not torch.equal(first["valid"].inputs, first["test"].inputs[: len(first["valid"])])


def test_letters_and_tokens():
    assert decode(encode("the cat sees an apple.\n")) == "the cat sees an apple.\n"


def test_sentences_are_split_by_document(run: Run):
    splits = Sentences().load(run)
    texts = {
        name: {decode(d.tokens) for row in source.rows for d in row} for name, source in splits.items()
    }  # fmt: skip
    assert sum(len(t) for t in texts.values()) == len(set.union(*texts.values())) == 294
    assert len(texts["train"]) == 160 and all(t.endswith(".\n") for t in texts["test"])


def test_the_language_batch(run: Run):
    source = Sentences().load(run)["train"]
    batch = source.batch([0, 5], 0)
    inputs, weight = batch["inputs"], batch["weight"]
    for row in range(2):
        for number in range(int(inputs["document"][row].max()) + 1):
            here = inputs["document"][row] == number
            tokens, labels = inputs["tokens"][row, here], batch["labels"][row, here]
            assert torch.equal(labels[:-1], tokens[1:])
            assert inputs["position"][row, here].tolist() == list(range(len(tokens)))
            counted = weight[row, here]
            assert counted[-1] == 0 and counted[0] == 0  # nothing follows the last; the first is in the prompt
            answer = decode(labels[counted > 0].tolist())
            assert answer.endswith(".\n") and answer.split()[0] in {"sees", "likes", "paints", "has", "looks", "sings"}
    assert bool((weight[inputs["document"] < 0] == 0).all())
