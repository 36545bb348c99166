"""Rows that say the same: which go, which stays, against comparing every pair by hand."""

from __future__ import annotations

import random
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.synth.dedup import Dedup, Hashed, OwnEmbedder, grams_of, near_vectors, number_in, vectors_of
from stillhouse.synth.steps import Row

from .onestep import content, named, once, through

sketched = pytest.mark.skipif(find_spec("datasketch") is None, reason="datasketch is not installed: the extra `synth`")
WORDS = "river stone cloud garden window letter music silver winter mountain bread candle forest harbour lantern".split()


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of which many are another one with a few words changed."""
    draw, found = random.Random(seed), list[str]()
    for _ in range(count):
        words = [draw.choice(WORDS) + str(draw.randrange(30)) for _ in range(draw.randrange(15, 40))]
        if found and draw.random() < 0.6:
            words = draw.choice(found).split()
            for _ in range(draw.randrange(4)):
                words[draw.randrange(len(words))] = draw.choice(WORDS)
        found.append(" ".join(words))
    return [{"text": text, "n": n, "score": draw.randrange(3)} for n, text in enumerate(found)]


def greedy(rows: Sequence[Row], alike: Callable[[str, str], float], least: float) -> list[Row]:
    """The rows that stay, by looking at all pairs."""
    stay: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.get("score", 0), row["_id"])):
        if all(alike(row["text"], other["text"]) < least for other in stay):
            stay.append(row)
    return stay


def jaccard_of(one: str, other: str) -> float:
    a, b = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one.split(), other.split()))
    return len(a & b) / len(a | b)


def cosine_of(one: str, other: str) -> float:
    run: Any = None
    a, b = Hashed()([one, other], run).astype(float)
    return float(a @ b / numpy.sqrt((a @ a) * (b @ b)))


def test_exact_and_plain(tmp_path: Path) -> None:
    said = ["What is 3+4?", "what  is 3+4?", "What is 3*4?", "ＷＨＡＴ is 3+4?", "😀", "😁", "naïve", "nai\u0308ve", "", " "]
    rows = [{"text": text, "n": n} for n, text in enumerate(said)]
    kept, gone = through(Dedup(by="exact"), rows, tmp_path)
    ways = {unicodedata.normalize("NFKC", " ".join(row["text"].split()).lower()) for row in rows[:8]}
    assert len(kept) == len(ways) + 2 and len(gone) == 3  # rows without text pass
    kept, gone = through(Dedup(), rows, tmp_path)
    assert len(kept) == 4 + 2 and {row["text"] for row in kept} >= {"😀", "😁", "", " "}
    assert all(each["why"] == "another row says the same" and each["numbers"]["alike"] == 1.0 for each in gone)
    names = {row["_id"] for row in kept}
    assert all(each["numbers"]["like"] in names for each in gone)


@pytest.mark.parametrize("by", ["exact", "plain", "embedding", pytest.param("minhash", marks=sketched)])
def test_the_row_with_priority_stays(by: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "one two three four five", "n": n, "score": score} for n, score in enumerate([1, 3, 2, 3])
    ]
    rows += [{"text": "one two three four five", "n": 9}, {"text": "one two three four five", "n": 8, "score": "2.5"}]
    kept, gone = through(Dedup(by=by, priority="score"), rows, tmp_path)
    best = min(row["_id"] for row in named(rows) if row.get("score") == 3)
    assert [row["_id"] for row in kept] == [best] and {each["numbers"]["like"] for each in gone} == {best}


@sketched
@pytest.mark.parametrize("least", [0.4, 0.7, 0.9])
def test_minhash_finds_what_comparing_all_pairs_finds(least: float, tmp_path: Path) -> None:
    rows = named(texts(150))
    kept, gone = through(Dedup(by="minhash", alike=least, priority="score"), rows, tmp_path)
    wanted = greedy(rows, jaccard_of, least)
    missed = {row["n"] for row in kept} ^ {row["n"] for row in wanted}
    assert 20 < len(wanted) < 140 and len(missed) <= 2  # a MinHash may miss a pair, and says none alike that is not
    by_name = {row["_id"]: row for row in rows}
    for each in gone:
        other = by_name[each["numbers"]["like"]]
        assert jaccard_of(each["row"]["text"], other["text"]) == pytest.approx(each["numbers"]["alike"], abs=1e-4)
        assert each["numbers"]["alike"] >= least - 1e-4


@pytest.mark.parametrize("least", [0.5, 0.8])
def test_vectors_find_what_comparing_all_pairs_finds(least: float, tmp_path: Path) -> None:
    rows = named(texts(120, seed=1))
    kept, gone = through(Dedup(by="embedding", alike=least, priority="score"), rows, tmp_path)
    assert content(kept) == content(greedy(rows, cosine_of, least)) and gone


def test_blocks_change_nothing() -> None:
    draw = numpy.random.default_rng(0)
    vectors = draw.normal(size=(60, 3)).astype(numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    whole = list(near_vectors(vectors, 0.9))
    assert [(a, b) for a, b, _ in near_vectors(vectors, 0.9, block=7)] == [(a, b) for a, b, _ in whole]
    stay = [n for n in range(60) if n not in {a for a, _, _ in whole}]
    assert all(vectors[a] @ vectors[b] < 0.9 for a in stay for b in stay if a < b) and len(stay) < 60
    assert all(b in stay and vectors[a] @ vectors[b] >= 0.9 - 1e-5 and b < a for a, b, _ in whole)


def test_letters_for_texts_without_blanks() -> None:
    assert grams_of("今日は雨", 2, "letters") == ["今日", "日は", "は雨"]
    assert grams_of("A b, c!", 2, "words") == ["a b", "b c"] and grams_of("A", 2, "words") == ["a"]
    assert grams_of("", 2, "words") == [] and grams_of("!!", 2, "words") == ["!!"]


@sketched
def test_letters_find_near_twins_without_blanks(tmp_path: Path) -> None:
    rows = [
        {"text": "東京は日本の首都であり、世界最大の都市の一つである"},
        {"text": "東京は日本の首都であり世界最大の都市の一つです"},
        {"text": "京都は古い"},
    ]
    assert len(through(Dedup(by="minhash", of="letters", gram=2, alike=0.6), rows, tmp_path)[0]) == 2
    assert len(through(Dedup(by="minhash", alike=0.6), rows, tmp_path)[0]) == 3


def test_hashed_vectors_are_counts_of_n_grams() -> None:
    run: Any = None
    one = Hashed(width=4096)(["ab cd ab"], run)[0]
    assert numpy.abs(one).sum() == 5 and numpy.abs(one).max() == 2  # ab twice, cd, "ab cd", "cd ab"; a collision apart
    assert (Hashed()(["", "é", "\ud800"], run)[0] == 0).all()


OWN = """
def embed(texts):
    return [[float(len(t)), float(t.count("a"))] for t in texts]
def uneven(texts):
    return [[1.0] * (1 + i) for i in range(len(texts))]
def few(texts):
    return [[1.0]]
def nan(texts):
    return [[float("nan")] for t in texts]
"""


def test_vectors_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    step = Dedup(by="embedding", alike=0.99, embed=OwnEmbedder(function=f"{tmp_path}/own.py:embed", batch=2))
    rows = [{"text": text} for text in ("aaa", "aa", "bbbb", "b", "ab")]
    kept, _ = through(step, rows, tmp_path)
    assert sorted(re.sub(r"(.)\1*", r"\1", row["text"]) for row in kept) == ["a", "ab", "b"]
    assert [path.name for path in step.files] == ["own.py"]
    for name, said in (("uneven", "not all as long"), ("few", "one vector"), ("nan", "finite"), ("none", "has no function")):
        bad = Dedup(by="embedding", embed=OwnEmbedder(function=f"{tmp_path}/own.py:{name}"))
        with pytest.raises(RunError, match=said):
            once(bad, named(rows), tmp_path)


def test_an_encoder_from_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from stillhouse.synth.dedup import HubEncoder

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = str(tmp_path / "model")
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    step = Dedup(by="embedding", embed=HubEncoder(path=folder))
    assert {"config.json", "model.safetensors"} <= {path.name for path in step.files}
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    asked = ["river stone", "cloud", "river river river window", ""]
    found = vectors_of(asked, HubEncoder(path=folder, batch=3), run)
    for text, vector in zip(asked, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert numpy.allclose(vector, (alone / alone.norm()).numpy(), atol=1e-5)


def test_what_minhash_needs_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(RunError, match=r"pip install 'stillhouse\[synth\]'"):
        once(Dedup(by="minhash"), [], tmp_path)


def test_wrong_columns_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="did you mean 'score'"):
        once(Dedup(priority="scores"), named(texts(2)), tmp_path)
    with pytest.raises(ValueError, match="alike"):
        Dedup(alike=0.0)


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3.0), ("2.5", 2.5), (True, 1.0), ("x", -1.0), (None, -1.0), (float("nan"), -1.0)]
)
def test_numbers_in_columns(value: Any, number: float) -> None:
    assert number_in({"a": value}, "a", -1.0) == number
