"""From rows to packed tokens: what counts, what is rejected and why, and what a packed batch promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from language import LINES, Folders, chats, run_of, tokenizer_of, write_jsonl
from stillhouse.core.run import RunError
from stillhouse.core.signal import HeadLogits
from stillhouse.data.tokens import Document, Text, encode, encode_prompt, example_of, pack
from stillhouse.models.hub import HubLM
from stillhouse.objectives.divergences import JSD, ForwardKL, ReverseKL, cross_entropy
from stillhouse.teachers.local import same_classes

USER = {"role": "user", "content": "the cat sees?"}
ASSISTANT = {"role": "assistant", "content": "a red boat."}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of()


@pytest.fixture(scope="module")
def bare() -> Any:
    return tokenizer_of(template=None)


def counted(row: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    """The whole text and the part that counts."""
    made = encode(row, tokenizer)
    assert not isinstance(made, str), made
    tokens, counts = made
    return tokenizer.decode(tokens), tokenizer.decode([t for t, c in zip(tokens, counts, strict=True) if c])


# -- what counts -----------------------------------------------------------------------------------------------------


def test_only_the_assistant_counts(tokenizer: Any) -> None:
    text, learned = counted({"messages": [USER, ASSISTANT]}, tokenizer)
    assert text == "<|start|>user\nthe cat sees?<|end|>\n<|start|>assistant\na red boat.<|end|>\n"
    assert learned == "a red boat.<|end|>"


def test_every_turn_of_the_assistant_counts(tokenizer: Any) -> None:
    system = {"role": "system", "content": "a red boat."}  # the same words, in another's mouth
    turns = [system, USER, ASSISTANT, {"role": "user", "content": "a red boat."}, {**ASSISTANT, "content": "the moon."}]
    assert counted({"messages": turns}, tokenizer)[1] == "a red boat.<|end|>the moon.<|end|>"
    assert counted({"messages": [USER, ASSISTANT, USER]}, tokenizer)[1] == "a red boat.<|end|>"


def test_completions_and_text(tokenizer: Any, bare: Any) -> None:
    row = {"prompt": "the cat", "completion": " sees"}
    assert counted(row, tokenizer)[1] == " sees<|end|>"
    assert counted(row, bare) == ("the cat sees<|end|>", " sees<|end|>")
    assert counted({"text": "the cat"}, bare) == ("the cat<|end|>",) * 2
    bare_end, bare.eos_token = bare.eos_token, None
    assert counted(row, bare) == ("the cat sees", " sees")
    bare.eos_token = bare_end


THINKING = (  # drops the reasoning of all turns but the last, as several models' templates do
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_leaves_the_last() -> None:
    tokenizer = tokenizer_of(template=THINKING)
    first, last = ({**ASSISTANT, "content": f"hm</think>{words}"} for words in ("one", "two"))
    assert counted({"messages": [USER, first, USER, last]}, tokenizer)[1] == "hm</think>two<|end|>"
    assert counted({"messages": [USER, ASSISTANT, USER, last]}, tokenizer)[1] == "a red boat.<|end|>hm</think>two<|end|>"


def test_a_template_that_hides_the_assistant() -> None:
    tokenizer = tokenizer_of(template="{{ messages | length }}: {% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert "cannot be found" in encode({"messages": [USER, ASSISTANT]}, tokenizer)


def test_a_template_that_refuses() -> None:
    tokenizer = tokenizer_of(template="{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in encode({"messages": [USER, ASSISTANT]}, tokenizer)
    with pytest.raises(RunError, match="roles must alternate"):
        encode_prompt({"messages": [USER]}, tokenizer)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [USER]}, "without an assistant's answer"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "without an assistant's answer"),
        ({"messages": [ASSISTANT, USER]}, "begins with the assistant"),
        ({"prompt": "why?"}, "let the teacher write"),
    ],
)
def test_what_cannot_be_learned_from(row: dict[str, Any], why: str, tokenizer: Any) -> None:
    assert why in encode(row, tokenizer)


def test_a_conversation_needs_a_template(bare: Any) -> None:
    assert "no chat template" in encode({"messages": [USER, ASSISTANT]}, bare)
    with pytest.raises(RunError, match="no chat template"):
        encode_prompt({"messages": [USER]}, bare)


# -- what a row teaches ------------------------------------------------------------------------------------------------

MESSAGES = [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"text": "a", "id": 3}, None, {"text": "a"}),
        ({"messages": MESSAGES, "text": "a"}, None, {"messages": MESSAGES}),
        ({"messages": '[{"role": "user", "content": "x"}]'}, None, {"messages": [{"role": "user", "content": "x"}]}),
        ({"prompt": "p", "completion": "c"}, None, {"prompt": "p", "completion": "c"}),
        ({"question": "p"}, None, {"prompt": "p"}),
        ({"body": "b", "text": "a"}, "body", {"text": "b"}),
        ({"question": "q", "answer": "a"}, "answer", {"prompt": "q", "completion": "a"}),
        ({"prompt": "q", "text": "a"}, "text", {"text": "a"}),
        ({"chat": MESSAGES}, "chat", {"messages": MESSAGES}),
        ({"text": 7}, None, {"text": "7"}),
        ({"body": "b"}, None, "name one"),
        ({"text": "a"}, "body", "no column 'body'"),
        ({"body": ""}, "body", "'body' is empty"),
        ({"messages": [{"from": "human", "value": "x"}]}, None, "role and content"),
        ({"messages": "hello"}, None, "role and content"),
        ({"messages": ["hello"]}, None, "role and content"),
    ],
)
def test_what_a_row_teaches(row: dict[str, Any], column: str | None, expected: Any) -> None:
    made = example_of(row, column)
    assert expected in made if isinstance(expected, str) else made == expected


def test_prompts(tokenizer: Any, bare: Any) -> None:
    asked = "<|start|>user\nthe cat sees?<|end|>\n<|start|>assistant\n"
    for row in ({"messages": [USER]}, {"messages": [USER, ASSISTANT]}, {"prompt": USER["content"]}):
        assert tokenizer.decode(encode_prompt(row, tokenizer)) == asked
    two = [USER, ASSISTANT, USER, ASSISTANT]
    assert tokenizer.decode(encode_prompt({"messages": two}, tokenizer)).count("the cat") == 2
    assert bare.decode(encode_prompt({"prompt": "the cat"}, bare)) == "the cat"
    assert len(encode_prompt({"text": "x " * 100}, bare, opening=5)) == 5


# -- packing -----------------------------------------------------------------------------------------------------------


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    made: list[Document] = []
    for number, length in enumerate(draw(st.lists(st.integers(2, 25), max_size=20))):
        counts = [i >= draw(st.integers(0, length - 1)) for i in range(length)]
        made.append(Document([number * 100 + i for i in range(length)], counts, number))  # every token is unique
    return made


@given(documents(), st.integers(2, 16))
def test_packing_keeps_every_token_that_can_be_learned_from(documents: list[Document], length: int) -> None:
    packed = pack(documents, length)
    found = [d for row in packed.rows for d in row]
    kept: list[int] = []
    for d in documents:
        for at in range(0, len(d.tokens), length):
            if any(d.counts[at + 1 : at + length]):
                kept += d.tokens[at : at + length]
    assert sorted(t for d in found for t in d.tokens) == sorted(kept)  # each exactly once
    assert all(sum(len(d.tokens) for d in row) <= length for row in packed.rows)
    assert packed.tokens == len(kept) and packed.targets == sum(sum(d.counts[1:]) for d in found)
    assert pack(documents, length).rows == packed.rows


@given(documents(), st.integers(2, 16))
def test_labels_follow_their_tokens(documents: list[Document], length: int) -> None:
    packed = pack(documents, length)
    if not packed.rows:
        return
    batch = packed.batch(range(len(packed)), 0)
    tokens, position, document = (batch["inputs"][k] for k in ("tokens", "position", "document"))
    labels, weight, example = batch["labels"], batch["weight"], batch["example"]
    wanted = {d.tokens[i]: d.counts[i] for d in documents for i in range(len(d.tokens))}
    assert int(weight.sum()) == packed.targets
    for r, t in (weight > 0).nonzero().tolist():
        assert document[r, t] == document[r, t + 1] >= 0 and position[r, t + 1] == position[r, t] + 1
        assert labels[r, t] == tokens[r, t + 1] and wanted[int(labels[r, t])]
    real = document >= 0
    assert (example[real] == tokens[real] // 100).all() and (example[~real] == -1).all()
    starts = (position == 0) & real
    assert int(starts.sum()) == sum(len(row) for row in packed.rows)


def test_rows_are_filled_well() -> None:
    documents = [Document([1] * n, [True] * n, i) for i, n in enumerate([9, 8, 7, 3, 2, 1 + 1])]
    assert len(pack(documents, 10)) <= 4  # 31 tokens


# -- a file as splits ----------------------------------------------------------------------------------------------------


def text_run(folders: Folders, tmp_path: Path, rows: Any, **settings: Any) -> tuple[Text, Any]:
    data = Text(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), **settings)
    return data, run_of(tmp_path / "run", HubLM(path=str(folders.student)), data=data)


def test_a_file_becomes_packed_splits(folders: Folders, tmp_path: Path) -> None:
    data, run = text_run(folders, tmp_path, chats(40), length=64, valid=0.1, test=0.2)
    splits = data.load(run)
    assert {name: len({d.example for row in p.rows for d in row}) for name, p in splits.items()} == {
        "train": 28, "valid": 4, "test": 8,
    }  # fmt: skip
    assert data.load(run) == splits
    prompts = data.prompts(run)
    assert [len(prompts[name]) for name in ("train", "valid", "test")] == [28, 4, 8]
    tokenizer = HubLM(path=str(folders.student)).tokenizer(run)
    assert all(tokenizer.decode(p).endswith("assistant\n") for p in prompts["train"])


def test_prompts_count_and_documents_have_rows_of_their_own_if_asked(folders: Folders, tmp_path: Path) -> None:
    data, run = text_run(folders, tmp_path, chats(30), length=160, valid=0.1, test=0.1)
    plain = data.load(run)["train"]
    every, single = (replace(data, **{k: v}).load(run)["train"] for k, v in (("prompts_count", True), ("packed", False)))
    assert plain.targets < every.targets and every.tokens == plain.tokens
    documents = [d for row in plain.rows for d in row]
    assert every.targets == sum(len(d.tokens) - 1 for d in documents)  # the first token of a text has nothing before it
    assert all(len(row) == 1 for row in single.rows) and len(single.rows) == len(documents) > len(plain.rows)
    assert sorted(d.tokens for row in single.rows for d in row) == sorted(d.tokens for d in documents)


def test_the_same_text_is_in_one_split_only(folders: Folders, tmp_path: Path) -> None:
    rows = [{"text": f"{line} {i % 10}", "id": i} for i in range(60) for line in LINES[:2]]
    data, run = text_run(folders, tmp_path, rows, valid=0.2, test=0.2)
    splits = data.rows(run)
    texts = [{r["text"] for r in part} for part in splits.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 20


def test_lost_rows_have_reasons(folders: Folders, tmp_path: Path) -> None:
    rows = [*chats(12), {"messages": [USER]}, {"body": "x"}, {"prompt": "why?"}]
    data, run = text_run(folders, tmp_path, rows, valid=0.0, test=0.0)
    data.load(run)
    assert len({r["why"] for r in run.read("rejects.jsonl")}) == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"body": f"b{i}"} for i in range(9)], "name one"),
        ([{"prompt": f"b{i}"} for i in range(9)], "let the teacher write"),
        ([{"text": "same"}] * 9, "too few"),
    ],
)
def test_files_without_a_lesson(folders: Folders, tmp_path: Path, rows: Any, says: str) -> None:
    data, run = text_run(folders, tmp_path, rows)
    with pytest.raises(RunError, match=says):
        data.load(run)


def test_a_named_column_that_is_not_there(folders: Folders, tmp_path: Path) -> None:
    data, run = text_run(folders, tmp_path, [{"text": "a b"}, {"text": "b c"}], column="body")
    with pytest.raises(RunError, match="no column 'body'"):
        data.load(run)


def test_prompts_that_leave_no_room(folders: Folders, tmp_path: Path) -> None:
    rows = [{"prompt": "the cat " * 40}, *({"prompt": f"why {i}?"} for i in range(5))]
    data, run = text_run(folders, tmp_path, rows, length=64, valid=0.0, test=0.0)
    assert len(data.prompts(run)["train"]) == 5
    assert "--length" in run.read("rejects.jsonl")[-1]["why"]
    data, run = text_run(folders, tmp_path, rows[:1], length=64, valid=0.0, test=0.0)
    with pytest.raises(RunError, match="no prompt of"):
        data.prompts(run)


def test_long_documents_are_cut_into_pieces(folders: Folders, tmp_path: Path) -> None:
    data, run = text_run(folders, tmp_path, [{"text": " ".join(LINES) * 9}], length=32, valid=0.0, test=0.0)
    packed = data.load(run)["train"]
    assert len(packed) > 5 and {d.example for row in packed.rows for d in row} == {0}
    limited, run = text_run(folders, tmp_path, chats(30), limit=10, valid=0.0, test=0.0)
    assert sum(map(len, limited.rows(run).values())) == 10


# -- vocabularies that are padded ----------------------------------------------------------------------------------------


def test_padding_rows_of_a_vocabulary_play_no_part() -> None:
    """Qwen's case: teacher and student share 300 tokens, and their heads have 320 and 308 rows."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 7, 16, generator=draw), torch.randn(320, 16, generator=draw)
    labels = torch.randint(300, (7,), generator=draw)
    for mine, theirs in ((308, 320), (320, 308), (320, 320)):
        heads = HeadLogits(hidden[0], weight[:mine]), HeadLogits(hidden[1], weight.flip(0)[:theirs])
        student, teacher = same_classes(*heads)
        common = min(mine, theirs)
        trimmed = tuple(HeadLogits(h.hidden, h.weight[:common]) for h in heads)
        assert student.shape == teacher.shape == (7, common)
        for divergence in (ForwardKL(), ReverseKL(), JSD()):
            torch.testing.assert_close(divergence(student, teacher), divergence(*trimmed))
        torch.testing.assert_close(cross_entropy(student, labels), cross_entropy(trimmed[0], labels))
    dense = SimpleNamespace()
    assert same_classes(dense, dense) == (dense, dense)
