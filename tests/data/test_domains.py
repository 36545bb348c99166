"""Text of several domains: rows that know theirs, splits that hold them all, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, folders, run_of, write_jsonl  # noqa: F401 - a fixture
from stillhouse.core.run import RunError
from stillhouse.data.domains import DomainRows, Domains, Worlds, join
from stillhouse.data.tokens import Document, Packed
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM


def packed(*texts: list[int], length: int = 4) -> Packed:
    return Packed(tuple((Document(t, [True] * len(t), i),) for i, t in enumerate(texts)), length, 9)


def test_rows_know_their_domain() -> None:
    made = join({"a": packed([1, 2], [3, 4, 5]), "b": packed([6, 7]), "c": packed([1, 1], [2, 2])})
    assert made.names == ("a", "b", "c") and made.sizes == (2, 1, 2) and len(made) == 5
    assert [made.domain_of(i) for i in range(5)] == [0, 0, 1, 2, 2]
    assert [list(made.members(d)) for d in range(3)] == [[0, 1], [2], [3, 4]]
    batch = made.batch([4, 2], 0)
    assert batch["item"].tolist() == [4, 2] and batch["domain"].tolist() == [2, 1]
    assert batch["inputs"]["tokens"][:, 0].tolist() == [2, 6] and batch["example"][:, 0].tolist() == [4, 2]
    assert made.batch([], 0)["item"].shape == (0,)


def files(folder: Path, n: int = 30) -> dict[str, list[dict[str, Any]]]:
    return {
        "ships": [{"text": f"the ship number {i} sails at noon", "id": i} for i in range(n)],
        "cakes": [{"prompt": f"how long does cake {i} bake?", "completion": f"for {i} minutes"} for i in range(n)],
    }


@pytest.mark.parametrize("one_file", [True, False])
def test_a_users_files(tmp_path: Path, folders: Folders, one_file: bool) -> None:  # noqa: F811
    rows = files(tmp_path)
    if one_file:
        mixed = [
            {**row, "domain": name}
            for pair in zip(*rows.values(), strict=True)
            for name, row in zip(rows, pair, strict=True)
        ]
        spec = Domains(path=str(write_jsonl(tmp_path / "all.jsonl", mixed)), length=64, valid=0.1, test=0.2)
    else:
        paths = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", some)) for name, some in rows.items()}
        spec = Domains(files=paths, length=64, valid=0.1, test=0.2)
    run = run_of(tmp_path / "run", HubLM(path=str(folders.plain)), data=spec)
    splits = run.sources()
    coder = run.recipe.student.tokenizer(run)
    for split, expected in (("train", 21), ("valid", 3), ("test", 6)):
        source = splits[split]
        assert source.names == ("cakes", "ships") and all(source.sizes)
        for domain, word in enumerate(("bake", "sails")):
            texts = [coder.decode(d.tokens) for i in source.members(domain) for d in source.rows[i]]
            assert len(texts) == expected and all(word in text for text in texts)
        examples = [d.example for row in source.rows for d in row]
        assert len(set(examples)) == len(examples)
    assert len(spec.rows(run)["test"]) == len(spec.prompts(run)["test"]) == 12
    few = Domains(path=spec.path, files=spec.files, length=64, valid=0.1, test=0.2, limit=10)
    assert {split: len(rows) for split, rows in few.rows(run).items()} == {"train": 14, "valid": 2, "test": 4}


def test_what_is_refused(tmp_path: Path, folders: Folders) -> None:  # noqa: F811
    run = run_of(tmp_path / "run", HubLM(path=str(folders.plain)))
    rows = [{"text": f"line {i}", "domain": "a"} for i in range(9)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    cases = [
        (Domains(path=path, by="topic"), r"no column 'topic' of domains; it has 'text', 'domain' \(set data.by\)"),
        (Domains(path=path), r"only one domain to learn from \(a\)"),
        (Domains(), "data.path.*or from data.files"),
        (Domains(path=path, files={"b": path}), "data.path.*or from data.files"),
    ]
    for spec, message in cases:
        with pytest.raises(RunError, match=message):
            spec.load(run)
    some = [*rows, {"text": "no domain"}, {"text": "one", "domain": "b"}]
    with pytest.raises(RunError):  # one row cannot be held out and learned from
        Domains(path=str(write_jsonl(tmp_path / "b.jsonl", some))).load(run)
    assert "column 'domain' is empty" in {reject["why"] for reject in run.read("rejects.jsonl")}


def test_made_up_domains(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM())
    spec = Worlds(train=20, valid=3, test=5, length=32)
    splits = spec.load(run)
    assert splits["train"].sizes == (20,) * 5 and splits["test"].sizes == (5,) * 5
    seen: set[tuple[int, ...]] = set()
    for split in splits.values():
        for (document,) in split.rows:
            assert (
                len(document.tokens) == 32
                and all(document.counts)
                and 0 <= min(document.tokens) <= max(document.tokens) < 128
            )
            seen.add(tuple(document.tokens))
    assert len(seen) == 5 * 28
    again = spec.load(run)["train"]
    assert isinstance(again, DomainRows) and again.rows == splits["train"].rows
    for bracket in ("()", "[]", "{}"):
        text = bytes(t for i in splits["train"].members(0) for t in splits["train"].rows[i][0].tokens).decode()
        assert abs(text.count(bracket[0]) - text.count(bracket[1])) < 10
    with pytest.raises(RunError, match="no domain 'poems'"):
        Worlds(domains=("poems",)).load(run)
    with pytest.raises(RunError, match="ask for fewer"):
        Worlds(train=100_000).load(run)
    assert torch.equal(splits["test"].batch([0], 0)["domain"], torch.tensor([0]))
