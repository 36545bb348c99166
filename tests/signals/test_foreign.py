"""Sets that other tools wrote: decoded as they decode them, at the right token, with the mass that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from language import run_of, tokenizer_of, write_jsonl
from stillhouse.core.files import content_hash
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.signal import Signal
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.foreign import ForeignRows
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.signals import foreign
from stillhouse.signals.distillkit import FLOATS, LEGACY, NEW, Quantized, floats, packing_of, unpack
from stillhouse.signals.foreign import Foreign, convert, top_of
from stillhouse.signals.reader import StoredTeacher
from stillhouse.signals.store import SignalError, Store

FIXTURES = Path(__file__).parent / "fixtures"
CLASSES, K = 300, 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as far as ids go: 0 ends a text, 1 pads it."""

    classes: int = CLASSES
    pad_token_id: int = 1
    eos_token_id: int = 0

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(self.classes)}


@dataclass(frozen=True)
class Student:
    """A student's spec that has this tokenizer."""

    def tokenizer(self, run: Any) -> Vocabulary:
        return VOCABULARY


VOCABULARY = Vocabulary()
TABLE = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(3)).double() * 2.5


def texts(n: int = 8, length: int = 12, seed: int = 0) -> list[list[int]]:
    """Documents that the teacher `TABLE` (logits after each token) wrote."""
    dice = torch.Generator().manual_seed(seed)
    found = []
    for number in range(n):
        ids = [2 + number]
        while len(ids) < length - number % 3:
            ids.append(int(torch.multinomial(TABLE[ids[-1]].softmax(-1), 1, generator=dice)))
        found.append(ids)
    return found


def logs_after(token: int) -> torch.Tensor:
    return TABLE[token].log_softmax(-1)


def vllm_row(ids: list[int], k: int = K) -> dict[str, Any]:
    """What vLLM says of a prompt: the token that stands there first, then the k likeliest; a mapping holds each once."""
    entries: list[Any] = [None]
    for before, token in zip(ids, ids[1:], strict=False):
        logs = logs_after(before)
        entry = {str(token): {"logprob": float(logs[token]), "rank": int((logs >= logs[token]).sum()), "decoded_token": "x"}}
        for rank, i in enumerate(logs.topk(k).indices.tolist(), 1):
            entry[str(i)] = {"logprob": float(logs[i]), "rank": rank, "decoded_token": "x"}
        entries.append(entry)
    return {"prompt_token_ids": ids, "prompt_logprobs": entries}


def axolotl_row(ids: list[int], answer: int, *, k: int = K, temperature: float = 1.0) -> dict[str, Any]:
    """What axolotl reads: entries for the last `answer` tokens, ids as strings."""
    tops = [(TABLE[before] / temperature).log_softmax(-1).topk(k) for before in ids[-answer - 1 : -1]]
    said = [
        [{"token": f"token_id:{i}", "logprob": v} for v, i in zip(t.values.tolist(), t.indices.tolist(), strict=True)]
        for t in tops
    ]
    return {"input_ids": ids, "logprobs": said}


def plain_row(ids: list[int], k: int = K) -> dict[str, Any]:
    """DistillKit's uncompressed top k after every token but the last."""
    tops = [logs_after(token).topk(k) for token in ids[:-1]]
    return {
        "input_ids": ids,
        "top_values": [t.values.tolist() for t in tops],
        "token_ids": [t.indices.tolist() for t in tops],
    }


MAKERS: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "vllm": vllm_row,
    "axolotl": lambda ids: axolotl_row(ids, len(ids) - 1),
    "distillkit": plain_row,
}


def opened(path: Path, **settings: Any) -> Foreign:
    return Foreign(path, tokenizer=VOCABULARY, **settings)


def sets(path: Path, rows: Iterable[Mapping[str, Any]], **settings: Any) -> list[Any]:
    return list(opened(write_jsonl(path, list(rows)), **settings))


# -- DistillKit's bytes ----------------------------------------------------------------------------------------------


def their_decoding() -> dict[str, numpy.ndarray]:
    from safetensors.numpy import load_file

    return load_file(FIXTURES / "decoded_by_distillkit.safetensors")


@pytest.mark.parametrize("name", ["terms", "delta", "legacy_logprobs", "legacy_logits"])
def test_distillkits_bytes_say_what_its_own_decoder_says(name: str):
    import pyarrow.parquet as pq

    decoded = their_decoding()
    if name.startswith("legacy"):
        packing = packing_of(FIXTURES / "legacy.json", FIXTURES)
        rows = pq.read_table(FIXTURES / f"{name}.parquet").to_pylist()
    else:
        packing = packing_of(None, FIXTURES / name)
        files = sorted((FIXTURES / name).glob("*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        if isinstance(packing, Quantized):
            logs, ids = (numpy.array(row[column], dtype=numpy.uint8) for column in NEW)
            assert (logs.shape[1], ids.shape[1]) == packing.widths
            ids, logs = packing.ids(ids), packing.logs(logs)
        else:
            words, exact, coefficients = (numpy.array(row[column]) for column in LEGACY)
            assert (words.shape[1], exact.shape[1], coefficients.shape[1]) == packing.widths
            ids, logs = packing.ids(words), packing.logs(exact, coefficients)
        assert (ids == decoded[f"{name}.{number}.ids"]).all()
        assert numpy.abs(logs - decoded[f"{name}.{number}.values"]).max() < 2e-5


def test_bits_are_read_from_the_highest():
    data = numpy.array([[0b10110000, 0b01111000]], dtype=numpy.uint8)
    assert unpack(data, 3, 4).tolist() == [[0b101, 0b100, 0b000, 0b111]]
    assert unpack(data, 8, 2).tolist() == [[0b10110000, 0b01111000]]
    assert unpack(data, 13, 1).tolist() == [[0b1011000001111]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_little_endian(dtype: str):
    values = torch.tensor([[1.5, -3.0, 0.0]], dtype=getattr(torch, dtype))
    assert floats(values.view(torch.uint8).numpy(), dtype).tolist() == values.double().tolist()


def one_byte(value: int) -> numpy.ndarray:
    return numpy.array([value], dtype=numpy.uint8)


def test_one_bit_means_plus_or_minus_and_more_are_centred():
    config = {"d": 4, "k": 3, "exact_k": 0, "delta_encoding": False}
    one = [{"scale_dtype": "float32", "element_bits": 1, "num_elements": 3}]
    two = [{"scale_dtype": "float32", "element_bits": 2, "num_elements": 2}]
    scale = numpy.array([0.5], "<f4").view(numpy.uint8)
    read = packing_of({**config, "residual_bins": one}, FIXTURES).logs(numpy.append(scale, one_byte(0b10100000))[None])
    assert read.tolist() == [[0.5, -0.5, 0.5]]
    read = packing_of({**config, "residual_bins": two}, FIXTURES).logs(numpy.append(scale, one_byte(0b00110000))[None])
    assert read.tolist() == [[-1.0, 0.5, 0.0]]  # the last rank has no bin


def test_residuals_stand_on_terms_as_the_encoder_rounded_them():
    """In bfloat16 the sum of terms is off by up to half a step; the residuals were taken from that sum."""
    config = {"d": 4, "k": 3, "exact_k": 0, "polynomial_terms": [0, 1], "term_dtype": "bfloat16", "delta_encoding": False}
    bins = [{"scale_dtype": "float32", "element_bits": 8, "num_elements": 3}]
    terms = torch.tensor([[-100.0, 0.3]], dtype=torch.bfloat16)
    rounded = [float((terms[0, 0] + terms[0, 1] * t).to(torch.bfloat16)) for t in range(3)]
    data = numpy.concatenate([terms.view(torch.uint8).numpy()[0], numpy.array([1.0], "<f4").view(numpy.uint8), [128] * 3])
    assert packing_of({**config, "residual_bins": bins}, FIXTURES).logs(data.astype(numpy.uint8)[None]).tolist() == [rounded]
    exact = packing_of({**config, "residual_bins": []}, FIXTURES).logs(data[:4].astype(numpy.uint8)[None])
    assert exact[0].tolist() == pytest.approx([-100.0 + t * float(terms[0, 1]) for t in range(3)], abs=1e-5)
    assert exact.tolist() != [rounded]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exact": 3}, "no 'exact' in DistillKit's compression; did you mean 'exact_k'"),
        ({"exact_dtype": "float8"}, "no float 'float8'"),
        ({"polynomial_terms": ["log"]}, "powers, 'sqrt' or 'exp', not 'log'"),
        ({"exact_k": 99}, "exact_k \\+ all num_elements <= k"),
        ({}, "exact_k < k needs polynomial_terms or residual_bins"),
        ({"residual_bins": [{"scale_dtype": "float32", "element_bits": 64, "num_elements": 1}]}, "between 1 and 62"),
        ({"residual_bins": [{"scale_dtype": "float32", "element_bits": 4}]}, "num_elements"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(RunError, match=message):
        packing_of({"d": 10, "k": 5, "exact_k": 2, **change}, FIXTURES)


def test_a_config_that_is_not_there_or_of_another_set_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="has no compression_config.yaml: name the config"):
        list(opened(FIXTURES / "legacy_logits.parquet"))
    with pytest.raises(RunError, match="row 1 of data_0.parquet: 29 numbers a token in compressed_logprobs; by its .*, 128"):
        list(opened(FIXTURES / "delta", config={"d": 300, "k": 16, "exact_k": 16, "exact_dtype": "float64"}))
    with pytest.raises(RunError, match="the compression config is for others"):
        list(opened(FIXTURES / "delta", config=FIXTURES / "legacy.json"))
    (tmp_path / "config.yaml").write_text("[")
    with pytest.raises(RunError, match="cannot read .*config.yaml"):
        list(opened(FIXTURES / "delta", config=tmp_path / "config.yaml"))


# -- which token an entry is about -----------------------------------------------------------------------------------


def test_distillkits_distribution_after_a_token_is_about_the_next_and_its_pad_does_not_count():
    decoded = their_decoding()
    for number, (tokens, counts, top) in enumerate(opened(FIXTURES / "terms")):
        assert tokens[-1] == VOCABULARY.pad_token_id
        assert counts == [False] + [True] * (len(tokens) - 2) + [False]
        ids, values = decoded[f"terms.{number}.ids"][:-1], decoded[f"terms.{number}.values"][:-1]
        values = numpy.minimum.accumulate(values, -1)
        assert torch.equal(top.values, top.values.sort(-1, descending=True).values)
        mine = [dict(zip(i, v, strict=True)) for i, v in zip(top.index.tolist(), top.values.tolist(), strict=True)]
        theirs = [dict(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        assert [set(m) for m in mine] == [set(t) for t in theirs]
        assert all(m[i] == pytest.approx(t[i], abs=2e-6) for m, t in zip(mine, theirs, strict=True) for i in t)
        assert torch.allclose(top.rest.exp(), 1 - torch.from_numpy(values).double().exp().sum(-1).float(), atol=1e-5)
        assert len(top.rest) == len(tokens) - 2


def test_a_pad_that_ends_texts_too_counts():
    class Ends(Vocabulary):
        eos_token_id = 1

    tokens, counts, _ = next(iter(Foreign(FIXTURES / "terms", tokenizer=Ends(eos_token_id=1))))
    assert counts == [False] + [True] * (len(tokens) - 1)


def test_a_packed_row_comes_apart_into_its_documents():
    """DistillKit glues documents together; each was asked about alone, and the last token of each has no next one."""
    whole = {tuple(tokens[:-1]): top for tokens, _, top in opened(FIXTURES / "terms")}
    parts = list(opened(FIXTURES / "packed", config=FIXTURES / "terms" / "compression_config.yaml"))
    assert [len(tokens) for tokens, _, _ in parts] == [12, 4, 9]
    for tokens, counts, top in parts:
        (found,) = [t for ids, t in whole.items() if list(ids[: len(tokens)]) == tokens]
        n = len(tokens) - 1
        assert counts == [False] + [True] * n
        assert torch.equal(top.index, found.index[:n]) and torch.equal(top.values, found.values[:n])


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_puts_the_distribution_before_its_token(kind: str, tmp_path: Path):
    """The distribution that stands for token t must be the teacher's after token t - 1."""
    documents = texts()
    source = opened(write_jsonl(tmp_path / "set.jsonl", [MAKERS[kind](ids) for ids in documents]))
    assert source.kind == kind
    found = list(source)
    assert [tokens for tokens, _, _ in found] == documents
    for tokens, counts, top in found:
        assert counts == [False] + [True] * (len(tokens) - 1)
        for row, before in enumerate(tokens[:-1]):
            logs = logs_after(before)
            want = logs.topk(K)
            assert top.index[row].tolist() == want.indices.tolist()
            assert torch.allclose(top.values[row].double(), want.values, atol=1e-6)
            assert float(top.rest[row]) == pytest.approx(math.log1p(-float(want.values.exp().sum())), abs=1e-5)


@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_set_that_is_shifted_by_one_is_refused(kind: str, step: int, tmp_path: Path):
    rows = [MAKERS[kind](ids) for ids in texts(20)]
    for row in rows:
        for name in ("prompt_logprobs", "logprobs", "top_values", "token_ids"):
            if name in row:
                first = [None] if name == "prompt_logprobs" else []
                moved = row[name][len(first) :]
                row[name] = first + (moved[1:] + moved[-1:] if step > 0 else moved[:1] + moved[:-1])
    with pytest.raises(RunError, match="shifted"):
        sets(tmp_path / "set.jsonl", rows)


def test_a_set_that_fits_no_token_is_not_called_shifted(tmp_path: Path):
    rows = [{**plain_row(ids), "input_ids": texts(1, len(ids), seed=i + 50)[0]} for i, ids in enumerate(texts(20, 12))]
    rows = [row for row in rows if len(row["input_ids"]) == len(row["top_values"]) + 1]
    assert len(sets(tmp_path / "set.jsonl", rows)) == len(rows) > 5


def test_labels_and_masks_say_which_tokens_count(tmp_path: Path):
    ids = texts(1)[0]
    n = len(ids)
    labels = [-100] * 5 + ids[5:]
    rows = [{**plain_row(ids), "labels": labels}, {**axolotl_row(ids, 9), "labels": labels}]
    rows[1]["target_mask"] = [[0] * K] * 8 + [[1] * K]
    assert [counts for _, counts, _ in sets(tmp_path / "a.jsonl", rows[:1])] == [[False] * 5 + [True] * (n - 5)]
    assert [counts for _, counts, _ in sets(tmp_path / "b.jsonl", rows[1:])] == [[False] * (n - 1) + [True]]


# -- axolotl ---------------------------------------------------------------------------------------------------------


def test_axolotls_own_rows_and_their_temperature():
    """At kd_temperature 2 it keeps p^(1/2), renormalised; told so, the same relative probabilities come out as at 1."""
    plain, warm = opened(FIXTURES / "axolotl_plain.jsonl"), opened(FIXTURES / "axolotl_warm.jsonl", temperature=2.0)
    assert plain.facts == {"k": 6, "classes": 300, "renormalised": True}
    assert warm.facts == {"k": 6, "classes": 300, "renormalised": True, "taken_at_temperature": 2.0}
    for (tokens, counts, a), (same, also, b) in zip(plain, warm, strict=True):
        assert tokens == same and counts == also == [False] * (len(tokens) - 5) + [True] * 5
        assert torch.equal(a.index, b.index)
        assert torch.allclose(a.values, b.values, atol=1e-5)
        assert torch.isneginf(a.rest).all() and torch.isneginf(b.rest).all()
        assert torch.allclose(a.values.exp().sum(-1), torch.ones(5))


def test_a_top_k_at_another_temperature_is_known_up_to_its_mass(tmp_path: Path):
    rows = [axolotl_row(ids, 5, temperature=0.7) for ids in texts()]
    for tokens, _, top in sets(tmp_path / "set.jsonl", rows, temperature=0.7):
        logs = torch.stack([logs_after(t) for t in tokens[-6:-1]]).gather(-1, top.index)
        assert torch.allclose(top.values.double(), logs.log_softmax(-1), atol=1e-5)
        assert torch.isneginf(top.rest).all()


def test_every_way_that_an_entry_is_written_reads_the_same(tmp_path: Path):
    documents = texts()
    rows = [axolotl_row(ids, 6) for ids in documents]
    want = sets(tmp_path / "a.jsonl", rows)

    def each(change: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
        return [{**row, "logprobs": [change(entry) for entry in row["logprobs"]]} for row in rows]

    ids = [[[int(e["token"][9:]) for e in entry] for entry in row["logprobs"]] for row in rows]
    others = {
        "integers": each(lambda entry: [{"token_id": int(e["token"][9:]), "logprob": e["logprob"]} for e in entry]),
        "a mapping": each(lambda entry: {e["token"][9:]: e["logprob"] for e in entry}),
        "a chat answer": [
            {**row, "logprobs": {"content": [{"token": "x", "top_logprobs": entry} for entry in row["logprobs"]]}}
            for row in rows
        ],
        "two columns": [
            {**row, "target_token_ids": i, "logprobs": [[e["logprob"] for e in entry] for entry in row["logprobs"]]}
            for row, i in zip(rows, ids, strict=True)
        ],
        "text": [{**row, "logprobs": json.dumps(row["logprobs"])} for row in rows],
        "another name": [
            {"input_ids": row["input_ids"], "llm_text_generation_vllm_logprobs": row["logprobs"]} for row in rows
        ],
    }
    for name, written in others.items():
        for (tokens, counts, a), (same, also, b) in zip(want, sets(tmp_path / "b.jsonl", written), strict=True):
            assert tokens == same and counts == also, name
            assert torch.equal(a.index, b.index) and torch.equal(a.values, b.values) and torch.equal(a.rest, b.rest), name


def test_axolotls_conversations_are_aligned_with_the_answer_not_with_the_end_of_the_template(tmp_path: Path):
    """The template writes a newline after the answer's end mark, which no teacher was asked about."""
    tokenizer = tokenizer_of()
    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "the small dog."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    answer = tokenizer("the small dog.<|end|>", add_special_tokens=False)["input_ids"]
    said = [[{"token": f"token_id:{i}", "logprob": -0.1}, {"token": "token_id:7", "logprob": -3.0}] for i in answer]
    rows = [{"messages_combined": turns, "logprobs": said}]
    ((tokens, counts, top),) = Foreign(write_jsonl(tmp_path / "set.jsonl", rows), tokenizer=tokenizer)
    assert tokenizer.decode(tokens) == text and text.endswith("<|end|>\n")
    assert [t for t, counted in zip(tokens, counts, strict=True) if counted] == answer == top.index[:, 0].tolist()
    rows[0]["logprobs"] = said[:-1]
    with pytest.raises(RunError, match=f"row 1 of set.jsonl: {len(said) - 1} entries .* answer of {len(said)} tokens"):
        list(Foreign(write_jsonl(tmp_path / "set.jsonl", rows), tokenizer=tokenizer))


# -- vLLM ------------------------------------------------------------------------------------------------------------


def test_the_token_that_vllm_adds_is_left_to_the_rest_with_its_mass(tmp_path: Path):
    """Where the token is not among the k likeliest an entry holds k + 1: k are kept, and the mass is as before."""
    rows = [vllm_row(ids) for ids in texts(20)]
    sizes = {len(e) for row in rows for e in row["prompt_logprobs"] if e}
    assert sizes == {K, K + 1}
    source = opened(write_jsonl(tmp_path / "set.jsonl", rows))
    assert source.facts["k"] == K
    for tokens, _, top in source:
        logs = torch.stack([logs_after(t) for t in tokens[:-1]])
        assert torch.equal(top.index, logs.topk(K).indices)
        assert torch.allclose(top.rest.double().exp(), 1 - logs.topk(K).values.exp().sum(-1), atol=1e-6)


def test_k_is_what_was_asked_for_even_if_most_tokens_are_unlikely(tmp_path: Path):
    dice = numpy.random.default_rng(0)
    rows = [vllm_row([int(i) for i in dice.integers(2, CLASSES, 10)]) for _ in range(30)]
    sizes = [len(e) for row in rows for e in row["prompt_logprobs"] if e]
    assert sizes.count(K + 1) > sizes.count(K) > 0
    assert opened(write_jsonl(tmp_path / "set.jsonl", rows)).facts["k"] == K


def test_vllms_answers_and_flat_lists_read_the_same(tmp_path: Path):
    documents = texts(4)
    rows = [vllm_row(ids) for ids in documents]
    want = sets(tmp_path / "a.jsonl", rows)
    flat = []
    for row in rows:
        entries = [list((e or {}).items()) for e in row["prompt_logprobs"]]
        ends = numpy.cumsum([len(e) for e in entries]).tolist()
        every = [pair for entry in entries for pair in entry]
        flat.append(
            {
                "prompt_token_ids": row["prompt_token_ids"],
                "prompt_logprobs": {
                    "start_indices": [0, *ends[:-1]], "end_indices": ends, "token_ids": [int(i) for i, _ in every],
                    "logprobs": [v["logprob"] for _, v in every], "ranks": [v["rank"] for _, v in every],
                },
            }
        )  # fmt: skip
    others = {
        "an answer": [{"object": "text_completion", "choices": rows[:3]}, {"choices": rows[3:]}],
        "a prompt of ids": [{"prompt": r["prompt_token_ids"], "prompt_logprobs": r["prompt_logprobs"]} for r in rows],
        "flat": flat,
    }
    for name, written in others.items():
        for (tokens, _, a), (same, _, b) in zip(want, sets(tmp_path / "b.jsonl", written), strict=True):
            assert tokens == same and torch.equal(a.index, b.index) and torch.equal(a.rest, b.rest), name


def test_a_class_that_vllm_gave_no_probability_is_not_there(tmp_path: Path):
    row = vllm_row([5, 6, 7])
    entry = row["prompt_logprobs"][1]
    last = next(i for i in reversed(entry) if i != "6")
    entry[last]["logprob"] = -9999.0
    ((_, _, top),) = sets(tmp_path / "set.jsonl", [row])
    free = top.index[0] == int(last)
    assert not free.any() or float(top.values[0][free].exp().sum()) < 0.01


# -- mass ------------------------------------------------------------------------------------------------------------


def test_a_set_that_adds_up_to_one_says_that_its_rest_is_unknown(tmp_path: Path):
    rows = [plain_row(ids) for ids in texts()]
    for row in rows:
        row["top_values"] = torch.tensor(row["top_values"]).float().log_softmax(-1).tolist()
    source = opened(write_jsonl(tmp_path / "set.jsonl", rows))
    assert source.facts["renormalised"]
    assert all(torch.isneginf(top.rest).all() for _, _, top in source)
    assert not opened(write_jsonl(tmp_path / "other.jsonl", [plain_row(ids) for ids in texts()])).facts["renormalised"]
    whole = [plain_row(ids, CLASSES) for ids in texts()]
    assert not opened(write_jsonl(tmp_path / "whole.jsonl", whole)).facts["renormalised"]  # nothing was cut off


def test_logits_of_a_legacy_set_are_renormalised_and_its_log_probabilities_are_not():
    logits = opened(FIXTURES / "legacy_logits.parquet", config=FIXTURES / "legacy.json")
    logs = opened(FIXTURES / "legacy_logprobs.parquet", config=FIXTURES / "legacy.json")
    assert logits.facts["renormalised"] and logits.facts["from_logits"]
    assert not logs.facts["renormalised"]
    for (tokens, _, a), (same, _, b) in zip(logits, logs, strict=True):
        assert tokens == same
        assert torch.isneginf(a.rest).all() and torch.isfinite(b.rest).all()
        kept = dict(zip(b.index[0].tolist(), b.values[0].log_softmax(-1).tolist(), strict=True))
        assert all(
            kept[i] == pytest.approx(v, abs=0.02) for i, v in zip(a.index[0].tolist(), a.values[0].tolist(), strict=True)
        )


@pytest.mark.parametrize("seed", range(30))
def test_a_top_k_keeps_every_mass(seed: int):
    """Against a dictionary: entries beyond k join the rest, missing ones take an even share of it, doubles count once."""
    dice = numpy.random.default_rng(seed)
    classes = int(dice.integers(3, 12))
    k, width = int(dice.integers(1, classes + 1)), int(dice.integers(1, 14))
    p = dice.dirichlet(numpy.ones(classes), size=5)
    ids = dice.integers(0, classes, size=(5, width))
    ids[dice.random(ids.shape) < 0.2] = -1
    ids[:, 0] = dice.integers(0, classes, size=5)
    logs = numpy.where(ids < 0, -1e9, numpy.log(numpy.take_along_axis(p, ids.clip(0), -1)))
    top = top_of(*foreign._once(ids, logs), k, classes)
    for row in range(5):
        told = {int(i): float(p[row, i]) for i in ids[row] if i >= 0}
        kept = dict(sorted(told.items(), key=lambda pair: -pair[1])[:k])
        rest = 1 - sum(kept.values())
        share = (1 - sum(told.values())) / max(1, classes - len(told))
        want = [kept.get(int(i), share) for i in top.index[row]]
        assert len(set(top.index[row].tolist())) == k and set(kept) <= set(top.index[row].tolist())
        assert top.values[row].exp().tolist() == pytest.approx(want, abs=1e-5)
        assert float(top.rest[row].exp()) == pytest.approx(rest - share * (k - len(kept)), abs=1e-5)


def test_an_encoding_whose_errors_exceed_all_mass_is_scaled_down(tmp_path: Path):
    row = plain_row(texts(1)[0])
    row["top_values"] = (torch.tensor(row["top_values"]).softmax(-1) * 1.2).log().tolist()
    ((_, _, top),) = sets(tmp_path / "set.jsonl", [row])
    assert torch.allclose(top.values.exp().sum(-1), torch.ones(len(top.rest))) and torch.isneginf(top.rest).all()


def test_a_curve_that_rises_is_held_down_and_leaves_a_rest(tmp_path: Path):
    """The polynomial of a real set can put rank 17 above rank 16, and the mass at ten; ranks were sorted before."""
    ids = numpy.array([[3, 4, 5], [6, 7, 8]])
    config = {"d": CLASSES, "k": 3, "exact_k": 1, "polynomial_terms": [0, 1], "delta_encoding": False}
    packing = packing_of(config, FIXTURES)
    data = numpy.array([[-0.5, 0.3, -2.0], [-1.0, -2.0, 0.5]], "<f4").view(numpy.uint8)
    assert packing.logs(data).tolist()[0] == pytest.approx([-0.5, 0.3, -1.7])
    bits = numpy.unpackbits(ids.astype(">u2").view(numpy.uint8).reshape(2, 3, 2), axis=-1)[..., -9:].reshape(2, -1)
    row = {"input_ids": [2, 3, 6], "compressed_logprobs": data.tolist()}
    row["bytepacked_indices"] = numpy.packbits(bits, axis=-1).tolist()
    ((_, _, top),) = sets(tmp_path / "set.jsonl", [row], config=config)
    assert top.index.tolist() == ids.tolist()
    p = numpy.exp([-0.5, -0.5, -1.7])
    assert top.values[0].exp().tolist() == pytest.approx(list(p / p.sum() * (1 - p[2])), rel=1e-4)
    assert float(top.rest[0].exp()) == pytest.approx(p[2], rel=1e-4)
    assert top.values[1].tolist() == pytest.approx([-1.0, -2.0, -2.0], abs=1e-6)
    assert float(top.rest[1].exp()) == pytest.approx(1 - math.exp(-1) - 2 * math.exp(-2), abs=1e-5)


# -- rows that are broken --------------------------------------------------------------------------------------------


def change(row: dict[str, Any], name: str, how: Callable[[Any], Any]) -> dict[str, Any]:
    return {**row, name: how(row[name])}


def edited(entry: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [{**entry[0], **fields}, *entry[1:]]


BROKEN: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("distillkit", lambda r: change(r, "input_ids", lambda x: x[:-3]), "tokens, .* there must be one a token"),
    ("distillkit", lambda r: change(r, "token_ids", lambda x: x[:-1]), "tokens, .* there must be one a token"),
    ("distillkit", lambda r: change(r, "token_ids", lambda x: [x[0][:-1], *x[1:]]), "not as many numbers for every token"),
    ("distillkit", lambda r: change(r, "top_values", lambda x: [[math.nan] * K, *x[1:]]), "is not a number"),
    ("distillkit", lambda r: change(r, "top_values", lambda x: [[-math.inf] * K, *x[1:]]), "has no log-probability at all"),
    (
        "distillkit",
        lambda r: change(r, "top_values", lambda x: [[5.0] * K, *x[1:]]),
        "of 5 is above 0; is this its",
    ),
    ("distillkit", lambda r: change(r, "token_ids", lambda x: [[CLASSES, *x[0][1:]], *x[1:]]), "id 300 is outside the tok"),
    ("distillkit", lambda r: change(r, "token_ids", lambda x: [[-4, *x[0][1:]], *x[1:]]), "id -4 is outside"),
    ("distillkit", lambda r: change(r, "input_ids", lambda x: [CLASSES, *x[1:]]), "token id 300 is outside"),
    ("distillkit", lambda r: change(r, "input_ids", lambda x: "ids"), "input_ids is no list of token ids"),
    ("distillkit", lambda r: {**r, "labels": [1]}, "1 labels"),
    ("axolotl", lambda r: change(r, "input_ids", lambda x: x[:3]), "3 tokens, 3 labels, .* entries in logprobs"),
    ("distillkit", lambda r: change(r, "top_values", lambda x: [[-0.1] * K] * len(x)), "add up to 5.43 on average; is this"),
    ("axolotl", lambda r: {**r, "target_token_ids": [[1]]}, "target_token_ids and target_mask must have"),
    ("axolotl", lambda r: {k: v for k, v in r.items() if k != "input_ids"}, "neither input_ids nor messages"),
    ("axolotl", lambda r: change(r, "logprobs", lambda x: [edited(x[0], token="the"), *x[1:]]), "no list of token ids with"),
    ("axolotl", lambda r: change(r, "logprobs", lambda x: [edited(x[0], logprob=math.nan), *x[1:]]), "is not a number"),
    ("axolotl", lambda r: change(r, "logprobs", lambda x: [edited(x[0], logprob=2.0), *x[1:]]), "of 2 is above 0"),
    ("vllm", lambda r: change(r, "prompt_token_ids", lambda x: x[:-1]), "token ids and .* entries in prompt_logprobs"),
    ("vllm", lambda r: change(r, "prompt_logprobs", lambda x: None), "is null; ask vLLM with prompt_logprobs=64"),
    ("vllm", lambda r: change(r, "prompt_logprobs", lambda x: [x[1], *x[1:]]), "the first entry .* is not null"),
    ("vllm", lambda r: change(r, "prompt_logprobs", lambda x: [None, {"290": -1.0}, *x[2:]]), "does not hold token 1 "),
    ("vllm", lambda r: change(r, "prompt_logprobs", lambda x: [None, ["?"], *x[2:]]), "token 1: .* no list of token ids"),
    ("vllm", lambda r: {"prompt": "text", "prompt_logprobs": r["prompt_logprobs"]}, "return_token_ids=true"),
]


@pytest.mark.parametrize(("kind", "breaks", "message"), BROKEN, ids=[f"{kind}{i}" for i, (kind, *_) in enumerate(BROKEN)])
def test_a_broken_row_is_refused_by_its_number(kind: str, breaks: Any, message: str, tmp_path: Path):
    rows = [MAKERS[kind](ids) for ids in texts(4)]
    rows[2] = breaks(rows[2])
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    with pytest.raises(RunError, match=f"^row 3 of set.jsonl.*{message}") as caught:
        convert(path, kind, tmp_path / "out", tokenizer=VOCABULARY)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "done.json").exists()


def test_files_that_hold_no_set_are_refused(tmp_path: Path):
    for name, text, message in (
        ("a.csv", "x", "cannot read a.csv: give .parquet"),
        ("b.jsonl", '{"text": "x"}\n', "has the columns text: no set of DistillKit"),
        ("c.jsonl", '{"a": \n', "cannot read .*c.jsonl after row 0"),
        ("d.jsonl", "\n", "holds no rows"),
        ("e.jsonl", "[1]\n", "not an object"),
        ("f.jsonl", '{"input_ids": [5], "logprobs": [null]}\n', "holds no log-probabilities for any of its tokens"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(RunError, match=message):
            convert(tmp_path / name, "auto", tmp_path / "out", tokenizer=VOCABULARY)
    with pytest.raises(RunError, match="no file or folder"):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no set"):
        opened(tmp_path / "empty")
    with pytest.raises(RunError, match="no kind 'vlm'.*did you mean 'vllm'"):
        opened(tmp_path / "b.jsonl", kind="vlm")
    with pytest.raises(RunError, match="above 0"):
        opened(tmp_path / "b.jsonl", temperature=0.0)


# -- into a store, and out of it -------------------------------------------------------------------------------------


def trained_on(path: Path, folder: Path, **settings: Any) -> Any:
    spec = ForeignRows(path=str(path), **settings)
    return spec.load(run_of(folder, Student(), data=spec))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_student_that_learns_from_the_set_gets_the_loss_of_a_plain_loop(kind: str, tmp_path: Path):
    documents = texts(20)
    path = write_jsonl(tmp_path / "set.jsonl", [MAKERS[kind](ids) for ids in documents])
    store = convert(path, "auto", tmp_path / "out", tokenizer=VOCABULARY)
    teacher = StoredTeacher(store)
    student = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(9)).double()
    splits = trained_on(path, tmp_path / "run", length=40)
    assert {name: len(split) > 0 for name, split in splits.items()} == dict.fromkeys(("train", "valid", "test"), True)
    seen, total = [], 0.0
    for split in splits.values():
        batch = split.batch(range(len(split)), 0)
        top = teacher(batch, frozenset({"topk"})).need("topk")
        losses = ForwardKL()(student[batch["inputs"]["tokens"]], top, weight=batch["weight"])
        total += float(losses.sum())
        seen += [d.tokens for row in split.rows for d in row]
    assert sorted(seen) == sorted(documents)
    want = 0.0
    for ids in documents:
        for before in ids[:-1]:
            p, q = logs_after(before).softmax(-1).tolist(), student[before].softmax(-1).tolist()
            kept = sorted(range(CLASSES), key=lambda i: -p[i])[:K]
            p_rest, q_rest = 1 - sum(p[i] for i in kept), 1 - sum(q[i] for i in kept)
            want += sum(p[i] * math.log(p[i] / q[i]) for i in kept) + p_rest * math.log(p_rest / q_rest)
    assert total == pytest.approx(want, rel=1e-4)


class Live:
    """The teacher itself."""

    gives = frozenset({"logits"})

    def __call__(self, batch: Any, want: Any) -> Signal:
        return Signal(logits=TABLE[batch["inputs"]["tokens"]])


def test_the_header_says_what_is_known_and_the_exactness_is_measured(tmp_path: Path):
    path = write_jsonl(tmp_path / "set.jsonl", [vllm_row(ids) for ids in texts(40)])
    store = convert(path, "vllm", tmp_path / "out", tokenizer=VOCABULARY, teacher_name="big")
    assert store.header["name"] == "big" and store.header["teacher"] == {"weights": None, "from": "vllm"}
    assert store.header["format"] == {"name": "topk", "k": K}
    assert store.header["facts"] == {"k": K, "classes": CLASSES, "renormalised": False}
    assert store.header["data"]["spec"] == to_plain(ForeignRows(path=str(path), kind="vllm", valid=0.0, test=0.0))
    assert len(store.header["data"]["sha256"]) == len(store.header["tokenizer"]) == 64
    assert store.done is not None and store.done["documents"] == len(store) == 40
    found = store.done["fidelity"]
    assert found["against"] == "the set itself" and found["items"] > 200
    assert 0 <= found["codec_kl"] < 1e-5 and found["mass_at"] == {"1": found["mass"]}
    live = convert(path, "vllm", tmp_path / "live", tokenizer=VOCABULARY, live=Live()).done["fidelity"]  # type: ignore[index]
    assert "against" not in live and set(live["mass_at"]) == {"0.5", "1", "2", "4"}
    assert live["mass"] == pytest.approx(found["mass"], abs=1e-5) and live["codec_kl"] < 1e-5
    assert 0 < live["tv"] < live["tv_renormalised"]
    with pytest.raises(TeacherMismatch, match=r"use temperature 1"):
        StoredTeacher(store).check(type("Method", (), {"temperature": 2.0})(), None)


def test_a_wrong_set_is_seen_against_the_live_teacher(tmp_path: Path):
    rows = [vllm_row(ids) for ids in texts(10)]
    for row in rows:
        for entry in filter(None, row["prompt_logprobs"]):
            for said in entry.values():
                said["logprob"] -= 0.5
    found = convert(
        write_jsonl(tmp_path / "set.jsonl", rows), "vllm", tmp_path / "out", tokenizer=VOCABULARY, live=Live()
    ).done["fidelity"]  # type: ignore[index]
    assert found["codec_kl"] > 0.05


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(foreign, "BLOCK", 3)
    path = write_jsonl(tmp_path / "set.jsonl", [vllm_row(ids) for ids in texts(10)])
    convert(path, "vllm", tmp_path / "whole", tokenizer=VOCABULARY)
    made, calls = foreign.top_of, []

    def killed(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return made(*given, **named)

    monkeypatch.setattr(foreign, "top_of", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(path, "vllm", tmp_path / "cut", tokenizer=VOCABULARY)
    monkeypatch.setattr(foreign, "top_of", made)
    with pytest.raises(SignalError, match="not finished"):
        Store(tmp_path / "cut")
    convert(path, "vllm", tmp_path / "cut", tokenizer=VOCABULARY)
    assert content_hash(tmp_path / "cut") == content_hash(tmp_path / "whole")
    other = write_jsonl(tmp_path / "other.jsonl", [vllm_row(ids) for ids in texts(3, seed=9)])
    with pytest.raises(SignalError, match="another data"):
        convert(other, "vllm", tmp_path / "cut", tokenizer=VOCABULARY)


def test_no_row_is_lost_without_a_number(tmp_path: Path):
    rows = [vllm_row(ids) for ids in texts(4)]
    rows += [rows[1], {"prompt_token_ids": [5], "prompt_logprobs": [None]}]
    store = convert(write_jsonl(tmp_path / "set.jsonl", rows), "vllm", tmp_path / "out", tokenizer=VOCABULARY)
    assert store.done is not None
    assert {name: store.done[name] for name in ("documents", "empty", "repeated", "no_rest", "records")} == {
        "documents": 6, "empty": 1, "repeated": 1, "no_rest": 0, "records": 4,
    }  # fmt: skip


def test_parquet_and_arrow_hold_the_same_as_jsonl(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for kind in ("distillkit", "axolotl"):
        rows = [MAKERS[kind](ids) for ids in texts(5)]
        want = sets(tmp_path / f"{kind}.jsonl", rows)
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / f"{kind}.parquet")
        with (
            pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream,
            pa.ipc.new_file(tmp_path / "f.arrow", table.schema) as file,
        ):
            stream.write_table(table)
            file.write_table(table)
        for name in (f"{kind}.parquet", "s.arrow", "f.arrow"):
            for (tokens, counts, a), (same, also, b) in zip(want, opened(tmp_path / name), strict=True):
                assert (
                    tokens == same and counts == also and torch.equal(a.index, b.index) and torch.equal(a.values, b.values)
                )


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path):
    documents = texts(12)
    for number, ids in enumerate(documents):
        write_jsonl(tmp_path / f"data_{number}.jsonl", [vllm_row(ids)])
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [tokens for tokens, _, _ in opened(tmp_path)] == documents


def test_a_document_that_does_not_fit_is_refused_with_the_length_that_it_needs(tmp_path: Path):
    path = write_jsonl(tmp_path / "set.jsonl", [vllm_row(ids) for ids in texts(20, 30)])
    with pytest.raises(RunError, match="has 30 tokens and rows have 16: give --length 30") as caught:
        trained_on(path, tmp_path / "run", length=16)
    assert "\n" not in str(caught.value)
    assert trained_on(path, tmp_path / "run")["train"].length == 30


def test_the_rows_need_a_tokenizer_and_their_own_signals(tmp_path: Path):
    path = write_jsonl(tmp_path / "set.jsonl", [vllm_row(ids) for ids in texts(20)])
    spec = ForeignRows(path=str(path))
    with pytest.raises(RunError, match="need a student with a tokenizer"):
        spec.load(run_of(tmp_path / "run", object(), data=spec))
    other = write_jsonl(tmp_path / "other.jsonl", [vllm_row(ids) for ids in texts(4, seed=8)])
    teacher = StoredTeacher(convert(other, "vllm", tmp_path / "out", tokenizer=VOCABULARY))
    with pytest.raises(TeacherMismatch, match="hold no answer"):
        teacher.check(object(), trained_on(path, tmp_path / "run")["train"])
