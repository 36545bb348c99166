"""Classifiers of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import LINES, run_of, tokenizer_of
from stillhouse.core.run import RunError
from stillhouse.data.labelled import LibraryTopics
from stillhouse.models.text import HubClassifier, NGrams, hashed, n_grams


def test_n_grams_of_a_sentence() -> None:
    triples = ["<th", "the", "he>", "<ca", "cat", "ats", "ts>"]
    assert n_grams("The cats!") == ["the", "cats", "!", "the cats", "cats !", *triples]
    assert n_grams("") == [] and n_grams("a b") == ["a", "b", "a b"]


def test_batches_are_padded_and_padding_changes_nothing(tmp_path: Path) -> None:
    net = NGrams(classes=3, width=8, buckets=100).build(run_of(tmp_path, None))
    texts = ["a long sentence about nothing in particular", "short", ""]
    table = hashed(texts, 100)
    assert table.shape[0] == 3 and table.max() <= 100 and (table[2] == 0).all()
    together = net(table)
    for i, text in enumerate(texts):
        torch.testing.assert_close(together[i], net(hashed([text], 100))[0])
    torch.testing.assert_close(together[2], net.head.bias)


def test_n_grams_are_kept_and_found_again(tmp_path: Path) -> None:
    spec, run = NGrams(classes=4), run_of(tmp_path / "run", None)
    net = spec.build(run)
    spec.save(net, tmp_path, run)
    again = spec.load(tmp_path, run)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=1
    )
    BertModel(config).save_pretrained(folder)
    tokenizer_of(LINES).save_pretrained(folder)
    return folder


def test_a_classifier_from_hugging_face_learns_and_is_kept(encoder: Path, tmp_path: Path) -> None:
    data = LibraryTopics(each=20)
    spec = HubClassifier(path=str(encoder), length=16)
    run: Any = run_of(tmp_path / "run", spec, data=data)
    net = spec.build(run).eval()
    batch = run.sources()["train"].batch(range(5), 0)
    assert batch["inputs"]["input_ids"].shape[1] <= 16
    logits = net(**batch["inputs"])
    assert logits.shape == (5, 9)
    (tmp_path / "kept").mkdir()
    spec.save(net, tmp_path / "kept", run)
    again = spec.load(tmp_path / "kept", run).eval()
    torch.testing.assert_close(again(**batch["inputs"]), logits)
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    assert theirs.config.id2label[0] == "code" and theirs.config.label2id["windows"] == 8


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no model folder"):
        HubClassifier(path=str(tmp_path / "nowhere"), classes=2).build(run_of(tmp_path / "run", None))
