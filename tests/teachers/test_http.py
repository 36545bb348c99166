"""A teacher behind a server: it says what the model itself says, and one clear line where it cannot.

The server here answers as vLLM, SGLang and the legacy OpenAI endpoint do, from a real tiny Llama; `faults` go first.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, run_of, write_jsonl
from servers import Fake
from stillhouse.cli import door
from stillhouse.core.files import content_hash
from stillhouse.core.method import Method
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe, RecipeError
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import TopK
from stillhouse.core.stage import Train, execute
from stillhouse.core.teacher import Teacher, TeacherMismatch
from stillhouse.data.tokens import Document, Text, pack
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.minillm import MiniLLM
from stillhouse.models.hub import HubLM, load_tokenizer
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.signals.label import Label
from stillhouse.signals.store import Store
from stillhouse.signals.topk import KeptTopK, top_k
from stillhouse.teachers import http, server
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.http import HttpLM, HttpTeacher
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.server import retry_after

KEY = "sk-very-secret-4711"
WANT = frozenset({"topk"})
K = 16


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def spec_of(fake: Fake, folders: Folders, **settings: Any) -> HttpLM:
    common = {"url": fake.url, "model": "tiny", "tokenizer": str(folders.teacher), "k": K, "key_env": "OPENAI_API_KEY"}
    return HttpLM(**common | settings)  # type: ignore[arg-type]


@pytest.fixture
def teach(folders: Folders, tmp_path: Path) -> Callable[..., HttpTeacher]:
    run = run_of(tmp_path / "teach", HubLM(path=str(folders.student)))
    return lambda fake, **settings: spec_of(fake, folders, **settings).build(run)


def ragged(tokenizer: Any = None) -> Any:
    """A packed batch of documents of many lengths, some tokens of which do not count."""
    dice = torch.Generator().manual_seed(0)
    documents = [
        Document(torch.randint(3, 300, (n,), generator=dice).tolist(), [i % 3 != 1 or i == n - 1 for i in range(n)], n)
        for n in (2, 3, 5, 7, 11, 13, 4, 4, 17, 20, 9)
    ]
    packed = pack(documents, 24)
    return packed.batch(range(len(packed)), 0)


def live_top(folder: Path, batch: Any, run: Any, k: int = K, classes: int | None = None) -> TopK:
    logits = LocalLM(model=HubLM(path=str(folder))).build(run)(batch, frozenset({"logits"})).logits
    assert logits is not None
    flat = top_k(logits[torch.ones(logits.shape[:-1], dtype=torch.bool)], k, classes)
    return TopK(*(x.reshape(*logits.shape[:-1], *x.shape[1:]) for x in (flat.values, flat.index, flat.rest)))


def known_of(batch: Any) -> torch.Tensor:
    """Positions with a next token in their document."""
    document = batch["inputs"]["document"]
    known = torch.zeros_like(document, dtype=torch.bool)
    known[:, :-1] = (document[:, :-1] >= 0) & (document[:, :-1] == document[:, 1:])
    return known


def same(said: TopK, live: TopK, known: torch.Tensor) -> None:
    def sorted_(top: TopK) -> tuple[torch.Tensor, torch.Tensor]:
        values, index = top.values[known], top.index[known]
        order = index.argsort(-1)
        return index.gather(-1, order), values.gather(-1, order)

    index, values = sorted_(said)
    live_index, live_values = sorted_(live)
    assert torch.equal(index, live_index)
    torch.testing.assert_close(values, live_values, rtol=0, atol=1e-5)
    torch.testing.assert_close(said.rest[known].exp(), live.rest[known].exp(), rtol=0, atol=1e-6)
    plain = live.rest[known] > math.log(1e-2)
    torch.testing.assert_close(said.rest[known][plain], live.rest[known][plain], rtol=0, atol=1e-4)


def fails(teacher: HttpTeacher, batch: Any = None) -> str:
    """The one line that it fails with."""
    with pytest.raises((RunError, TeacherMismatch)) as caught:
        teacher(batch or ragged(), WANT)
    text = str(caught.value)
    assert "\n" not in text and KEY not in text
    return text


# -- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["vllm", "vllm-rust", "vllm-echo", "sglang", "token_id"])
def test_it_says_what_the_model_says(speaks: str, serve: Any, teach: Any, folders: Folders, tmp_path: Path):
    fake, batch = serve(speaks), ragged()
    teacher = teach(fake)
    assert isinstance(teacher, Teacher) and teacher.gives == {"topk"}
    said, known = teacher(batch, WANT).need("topk"), known_of(batch)
    same(said, live_top(folders.teacher, batch, run_of(tmp_path, HubLM(path=str(folders.student)))), known)
    assert bool(known[batch["weight"] > 0].all()) and said.classes == 300
    assert bool(said.values[~known].isnan().all() & said.rest[~known].isnan().all()) and not said.index[~known].any()
    assert said.values.shape == (*batch["labels"].shape, K) and said.index.dtype == torch.int64


def test_a_form_is_found_once(serve: Any, teach: Any):
    fake = serve("token_id")
    teacher = teach(fake)
    teacher(ragged(), WANT)
    first = len(fake.asked)
    assert [path for path, _ in fake.asked[:3]] == ["/v1/completions", "/generate", "/v1/completions"] and first == 11 + 2
    teacher(ragged(), WANT)
    assert len(fake.asked) == first + 11 and all(body.get("echo") for _, body in fake.asked[first:])


def test_documents_are_sent_apart_and_once(serve: Any, teach: Any):
    fake, batch = serve(), ragged()
    twice = {
        "inputs": {name: torch.cat([value, value]) for name, value in batch["inputs"].items()},
        "weight": torch.cat([batch["weight"]] * 2), "labels": torch.cat([batch["labels"]] * 2),
    }  # fmt: skip
    said = teach(fake)(twice, WANT).need("topk")
    sent = sorted(tuple(body["prompt"]) for _, body in fake.asked)
    assert sorted(map(len, sent)) == [2, 3, 4, 4, 5, 7, 9, 11, 13, 17, 20] and len(set(sent)) == len(sent)
    half = len(batch["labels"])
    assert torch.equal(said.values[:half].nan_to_num(), said.values[half:].nan_to_num())


def test_a_row_without_document_numbers_is_one_document(serve: Any, teach: Any):
    fake = serve()
    said = teach(fake)({"inputs": {"tokens": torch.arange(3, 15).view(2, 6)}}, WANT).need("topk")
    assert [body["prompt"] for _, body in fake.asked] == [list(range(3, 9)), list(range(9, 15))]
    assert bool(said.values[:, -1].isnan().all()) and not said.values[:, :-1].isnan().any()


def test_the_token_itself_is_kept_only_among_the_likeliest(serve: Any, teach: Any):
    """With k = 1 the server says two tokens at nearly every position."""
    fake, batch = serve(), ragged()
    said = teach(fake, k=1)(batch, WANT).need("topk")
    ids = batch["inputs"]["tokens"][0][batch["inputs"]["document"][0] == 0].tolist()
    best = fake.logprobs(ids)[:-1].max(-1)
    here = said.values[0, : len(ids) - 1, 0]
    torch.testing.assert_close(here, best.values, rtol=0, atol=1e-5)
    assert torch.equal(said.index[0, : len(ids) - 1, 0], best.indices)


def test_every_class_leaves_no_rest(serve: Any, teach: Any):
    said = teach(serve(most=400), k=1000)(ragged(), WANT).need("topk")
    known = known_of(ragged())
    assert said.values.shape[-1] == 300 and bool((said.rest[known] == -math.inf).all())
    assert bool((said.index[known].sort(-1).values == torch.arange(300)).all())


@pytest.mark.parametrize("k", [4, 16, 310, 320])
def test_rows_that_pad_the_head_have_no_probability(k: int, serve: Any, teach: Any, folders: Folders, tmp_path: Path):
    """The server gives padding its share; the student has no such tokens, and a local teacher's are cut off."""
    fake = serve(folder=folders.padded, most=400)
    batch, run = ragged(), run_of(tmp_path, HubLM(path=str(folders.student)))
    said = teach(fake, tokenizer=str(folders.padded), k=k)(batch, WANT).need("topk")
    known = known_of(batch)
    assert int(said.index.max()) < 300
    live = live_top(folders.padded, batch, run, 300, 300)
    p = torch.zeros(*live.values.shape[:-1], 300).scatter(-1, live.index, live.values.exp())
    mine = said.values.exp()
    if k >= 300:  # nearly all that there is to know, and all
        assert said.values.shape[-1] == 300 and bool((said.rest[known] == -math.inf).all())
        torch.testing.assert_close(mine[known], p.gather(-1, said.index)[known], rtol=0, atol=1e-3 if k < 320 else 1e-5)
    total = mine.sum(-1) + said.rest.exp()
    torch.testing.assert_close(total[known], torch.ones(int(known.sum())), rtol=0, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in said.index[known].tolist())


def test_a_certain_teacher_leaves_no_more_than_its_least_likely_token_allows(serve: Any, teach: Any):
    fake = serve()

    def certain(answer: Any) -> Any:
        for row in answer["choices"][0]["prompt_logprobs"][1:]:
            for place, each in enumerate(row.values()):
                each["logprob"] = 0.0 if place == 0 else -40.0
        return answer

    fake.change = certain
    said = teach(fake)(ragged(), WANT).need("topk")
    rest = said.rest[known_of(ragged())]
    assert bool(rest.isfinite().all()) and float(rest.max()) <= math.log(300 - K) - 40 + 1e-4


def test_texts_name_tokens_where_they_are_unambiguous(serve: Any, teach: Any, folders: Folders, tmp_path: Path):
    """At k = 1 over tokens of one letter each, every name is a token; half a character is not."""
    fake, tokenizer = serve("strings"), load_tokenizer(str(folders.teacher))
    single = [i for i in range(3, 300) if "\ufffd" not in tokenizer.decode([i])]
    blocked = torch.full((300,), -1e9)
    blocked[single] = 0.0
    fake.logprobs = lambda ids: (fake.model(torch.tensor([ids])).logits[0].float() + blocked).detach().log_softmax(-1)
    ids = torch.tensor(single[:6])
    said = teach(fake, k=3)({"inputs": {"tokens": ids[None]}}, WANT).need("topk")
    values, index = fake.logprobs(ids.tolist())[:-1].topk(3)
    assert torch.equal(said.index[0, :-1], index)
    torch.testing.assert_close(said.values[0, :-1], values, rtol=0, atol=1e-5)


def test_texts_of_several_tokens_are_refused(serve: Any, teach: Any):
    text = fails(teach(serve("strings")))
    assert "return_tokens_as_token_ids" in text and "vLLM" in text


# -- what servers cannot do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["vllm", "vllm-echo"])
def test_too_many_logprobs(speaks: str, serve: Any, teach: Any):
    fake = serve(speaks, most=20)
    text = fails(teach(fake, k=64))
    assert "start vllm with --max-logprobs 64, or --signal topk:20" in text
    teach(fake, k=20)(ragged(), WANT)


def test_hosted_and_llama_cpp_servers(serve: Any, teach: Any):
    assert "--signal topk:5" in fails(teach(serve("openai")))
    fake = serve("llama.cpp")
    text = fails(teach(fake))
    assert "Only no echo is supported" in text and "vLLM" in text and "--max-logprobs 16" in text
    assert len(fake.asked) == 3  # not asked again and again


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("Requested prompt logprobs of 64, which is greater than max allowed: 20 (parameter=prompt_logprobs, value=64)", 20),
        ("requested prompt_logprobs of 64, which is greater than max allowed: 20", 20),
        ("Cannot request more than 5 logprobs.", 5),
        ("Invalid value for 'logprobs': must be less than or equal to 5.", 5),
        ("logprobs must be between 0 and 20", 20),
        ("The maximum value for logprobs is 5", 5),
        ("Unrecognized request argument supplied: prompt_logprobs", None),
        ("This model's maximum context length is 32 tokens", None),
    ],
)
def test_limits_are_read_from_what_servers_say(words: str, limit: int | None):
    assert http._limit(words, 64) == limit


def test_an_unknown_model_and_a_wrong_url(serve: Any, teach: Any):
    text = fails(teach(serve(), model="huge"))
    assert "huge" in text and "it serves tiny, other" in text
    fake = serve()
    text = fails(teach(fake, url=fake.url.removesuffix("/v1")))
    assert "url" in text and "Not Found" in text


def test_a_text_that_is_too_long(serve: Any, teach: Any):
    fake = serve()
    words = "This model's maximum context length is 4 tokens. However, you requested 5 tokens."
    fake.faults = [(400, json.dumps({"message": words, "object": "error"}).encode(), {})]
    text = fails(teach(fake))
    assert "--length" in text and "context length is 4" in text


def test_a_foreign_tokenizer_is_refused(serve: Any, teach: Any, folders: Folders):
    with pytest.raises(TeacherMismatch, match="different tokenizers"):
        teach(serve(), tokenizer=str(folders.foreign))


def test_methods_that_need_more_are_refused_before_the_first_step(serve: Any, teach: Any):
    teacher = teach(serve())
    teacher.check(GKD(on_policy=0.0, divergence=ForwardKL()), None)
    with pytest.raises(TeacherMismatch, match="temperature=1"):
        teacher.check(Hinton(temperature=4.0), None)
    with pytest.raises(TeacherMismatch, match="mix=0"):
        teacher.check(MiniLLM(mix=0.2), None)
    assert not hasattr(teacher, "module")
    with pytest.raises(TeacherMismatch, match="tokens"):
        teacher({"inputs": torch.zeros(2, 3)}, WANT)


# -- what goes wrong on the way --------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_when_it_says(serve: Any, teach: Any):
    fake = serve()
    fake.faults = [(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "1"})]
    began = time.monotonic()
    teach(fake)(ragged(), WANT)
    assert 1.0 <= time.monotonic() - began < 5 and len(fake.asked) == 12


def test_a_date_to_come_back_at():
    now = 1_700_000_000.0
    assert retry_after(formatdate(now + 90, usegmt=True), now) == pytest.approx(90)
    assert retry_after("7.5", now) == 7.5
    for nothing in (None, "", "soon", "-3", "nan", formatdate(now - 5, usegmt=True)):
        assert retry_after(nothing, now) == 0.0


def test_a_server_that_asks_to_wait_for_an_hour(serve: Any, teach: Any):
    fake = serve()
    fake.faults = [(503, b"", {"Retry-After": "3600"})]
    assert "3,600 s" in fails(teach(fake))


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


@pytest.mark.parametrize(
    "fault",
    [(500, b"oops", {}), (502, b"<html>bad gateway</html>", {}), (408, b"", {}), reset, cut_short],
    ids=["500", "502", "408", "reset", "cut"],
)
def test_what_passes_is_asked_again(fault: Any, serve: Any, teach: Any):
    fake = serve()
    fake.faults = [fault, fault]
    said = teach(fake)(ragged(), WANT).need("topk")
    assert not said.values[known_of(ragged())].isnan().any() and len(fake.asked) == 13


def test_a_timeout_is_asked_again_and_then_told(serve: Any, teach: Any):
    fake = serve()
    fake.faults = [lambda handler: time.sleep(1.0)]
    teach(fake, timeout=0.3)(ragged(), WANT)
    fake.slow = 1.0
    text = fails(teach(fake, timeout=0.2, retries=1))
    assert "2 attempts" in text and "no answer within 0.2 s" in text


def test_a_server_that_is_not_there(serve: Any, teach: Any):
    fake = serve()
    fake.shutdown()
    fake.server_close()
    text = fails(teach(fake, retries=2))
    assert "3 attempts" in text and "refused" in text.lower() and fake.url in text


def test_a_server_that_keeps_failing(serve: Any, teach: Any):
    fake = serve()
    fake.faults = [(500, b'{"error": {"message": "CUDA error"}}', {})] * 3
    text = fails(teach(fake, retries=2))
    assert "500 CUDA error" in text and "3 attempts" in text


def test_ctrl_c_does_not_wait_for_the_server(serve: Any, teach: Any):
    fake = serve()
    teacher = teach(fake, timeout=60)
    teacher(ragged(), WANT)
    fake.slow = 30.0
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            teacher(ragged(), WANT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 25  # and not the 30 s that the server would take


# -- answers that cannot be used -------------------------------------------------------------------------------------


def first(answer: Any) -> Any:
    return answer["choices"][0]["prompt_logprobs"]


def set_value(value: Any) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        next(iter(first(answer)[1].values()))["logprob"] = value
        return answer

    return change


def rename(name: str) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        row = first(answer)[1]
        row[name] = row.pop(list(row)[-1])
        return answer

    return change


def edited(edit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        edit(answer)
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"object": "error", "message": "nothing"}, "no 'choices'"),
        (lambda a: [], "no 'choices'"),
        (lambda a: {"choices": []}, "no choice"),
        (edited(lambda a: first(a).pop()), "positions for a text"),
        (edited(lambda a: first(a).append({})), "positions for a text"),
        (edited(lambda a: first(a).__setitem__(1, None)), "null at token 1"),
        (edited(lambda a: a["choices"][0].update(prompt_logprobs="x")), "x for a text"),
        (edited(lambda a: first(a).insert(1, first(a).pop())), "adds or drops tokens"),
        (edited(lambda a: first(a)[1].popitem() and first(a)[1].popitem()), "--signal topk:"),
        (set_value(float("nan")), "gave nan"),
        (set_value(None), "null where"),
        (set_value("-1.5"), "-1.5 where"),
        (set_value(True), "true where"),
        (set_value(0.5), "0.5 as a log-probability"),
        (set_value(0.0), "add up to"),
        (rename("400"), "token 400"),
        (rename("-1"), "-1 where a token id"),
        (rename("9" * 30), "where a token id"),
        (rename("the"), "the where a token id"),
        (edited(lambda a: first(a)[1].update({"5": -1.0})), "no 'logprob'"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_named(change: Any, words: str, serve: Any, teach: Any):
    fake = serve()
    fake.change = change
    assert words in fails(teach(fake, retries=0))


def test_a_token_of_no_probability(serve: Any, teach: Any):
    fake = serve(most=300)
    fake.change = edited(lambda a: [row.update({"7": {"logprob": -math.inf}}) for row in first(a)[1:]])
    said = teach(fake, k=300)(ragged(), WANT).need("topk")
    impossible = (said.index == 7) & known_of(ragged())[..., None]
    assert bool((said.values[impossible] == http.LEAST).all()) and int(impossible.sum()) == int(known_of(ragged()).sum())


@pytest.mark.parametrize("raw", [b"", b"<html>hello</html>", b'{"choices": [', b"\xff\xfe"])
def test_garbage_is_named(raw: bytes, serve: Any, teach: Any):
    fake = serve()
    fake.faults = [(200, raw, {})]
    assert "else than JSON" in fails(teach(fake))


def test_a_wrong_text_is_seen_in_the_other_forms(serve: Any, teach: Any):
    fake = serve("token_id")
    fake.change = edited(
        lambda a: (a["choices"][0]["logprobs"] or {"tokens": [0, 0]})["tokens"].__setitem__(1, "token_id:1")
    )
    assert "adds or drops tokens" in fails(teach(fake))
    fake = serve("sglang")
    fake.change = edited(
        lambda a: a.get("meta_info", {}).get("input_token_logprobs", [0, 0]).__setitem__(1, [-1.0, 1, None])
    )
    assert "adds or drops tokens" in fails(teach(fake))


# -- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_opens_the_server_and_is_told_to_nobody(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    fake = serve()
    fake.key = KEY
    assert "give it in the environment variable MY_KEY" in fails(teach(fake, key_env="MY_KEY"))
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    teacher = teach(fake, key_env="MY_KEY")
    teacher(ragged(), WANT)
    assert KEY not in repr(teacher) + repr(teacher.spec) + json.dumps(teacher.identity())
    fake.key = "another"
    assert "refuses the API key in the environment variable MY_KEY (401)" in fails(teacher)


def test_a_key_that_nobody_named_is_not_sent(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    """Whoever types the address of some server must not hand their OpenAI key to it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake = serve()
    fake.key = KEY
    assert "give it in --key-env VARIABLE (401)" in fails(teach(fake, key_env=None))


def test_a_server_that_repeats_the_key(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake = serve()
    for fault in (
        (400, f"bad request by {KEY}".encode(), {}),
        (500, f"crash for {KEY}".encode(), {}),
        (200, f"hello {KEY}".encode(), {}),
        (200, json.dumps({"you": KEY, "more": "x" * 95 + KEY}).encode(), {}),
        (200, json.dumps({"choices": [{"prompt_logprobs": "x" * 110 + KEY}]}).encode(), {}),
        (302, b"", {"Location": f"http://127.0.0.1:1/{KEY}"}),
    ):
        fake.faults = [fault] * 3
        text = fails(teach(fake, retries=0))
        assert KEY[:8] not in text, text


def test_a_key_that_no_header_can_hold(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\nX-Other: 1")
    with pytest.raises(RunError, match="set it again") as caught:
        teach(serve())
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"url": f"http://me:{KEY}@host/v1"}, {"url": f"http://host/v1?key={KEY}"}, {"url": f"http://me:a/{KEY}@host"},
        {"url": f"http://host:{KEY}/v1"}, {"url": f"http://host/{KEY}\n"},
        {"url": "http://host:0/v1"}, {"url": f"host:8000/{KEY}"}, {"key_env": KEY}, {"key_env": "hf_" + KEY},
        {"k": 0}, {"k": 5000}, {"concurrency": 0}, {"timeout": 0.0}, {"retries": -1},
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused_without_repeating_it(settings: Any):
    plain = {"use": "teachers.http.HttpLM", "url": "http://h:1/v1", "model": "m", "tokenizer": "t"} | settings
    with pytest.raises(RecipeError) as caught:
        door.spec(plain)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


def test_redirects_do_not_carry_the_key_away(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake, thief = serve(), serve()
    for status in (301, 302, 303, 307, 308):
        fake.faults = [(status, b"", {"Location": thief.url + "/completions"})]
        assert "elsewhere" in fails(teach(fake))
    assert not thief.asked


def test_proxies_are_not_asked_about_this_machine(serve: Any, teach: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    teach(serve(), retries=0)(ragged(), WANT)


# -- a whole capture -------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Text:
    return Text(path=str(write_jsonl(tmp_path / "my.jsonl", chats(24))), length=100)


def labelled(folders: Folders, text: Text, teacher: Any, to: Path, k: int = K) -> Recipe:
    stages = {"label": Label(format=KeptTopK(k=k), batch=2, to=str(to))}
    return Recipe(id="x", student=HubLM(path=str(folders.student)), data=text, teachers={"teacher": teacher}, stages=stages)


def capture(recipe: Recipe, folder: Path) -> Run:
    run = Run(folder, device=torch.device("cpu"))
    (folder / "recipe.yaml").write_text(door.dump(recipe), encoding="utf-8")
    execute(recipe, run)
    return run


def test_a_capture_is_the_local_teachers(serve: Any, folders: Folders, text: Text, tmp_path: Path):
    fake = serve()
    capture(labelled(folders, text, spec_of(fake, folders), tmp_path / "far"), tmp_path / "a")
    capture(labelled(folders, text, LocalLM(model=HubLM(path=str(folders.teacher))), tmp_path / "near"), tmp_path / "b")
    far, near = Store(tmp_path / "far"), Store(tmp_path / "near")
    assert far.items == near.items > 100 and far.header["facts"] == near.header["facts"]
    assert far.header["name"] == "tiny" and far.header["teacher"] == {"url host": "127.0.0.1", "model": "tiny"}
    assert far.done is not None and far.done["fidelity"]["codec_kl"] < 1e-3
    batch = text.load(run_of(tmp_path / "c", HubLM(path=str(folders.student))))["train"].batch([0, 1], 0)
    tops: list[TopK] = []
    for name in ("far", "near"):
        run = run_of(tmp_path / "c", HubLM(path=str(folders.student)))
        tops.append(Cached(path=str(tmp_path / name)).build(run)(batch, WANT).need("topk"))
    here = batch["weight"] > 0
    assert torch.equal(tops[0].index[here], tops[1].index[here])
    assert float((tops[0].values[here].exp() - tops[1].values[here].exp()).abs().max()) < 1e-3


@pytest.mark.parametrize("speaks", ["vllm", "sglang"])
def test_a_server_that_died_leaves_a_capture_that_goes_on(
    speaks: str, serve: Any, folders: Folders, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    whole = serve(speaks)
    capture(labelled(folders, text, spec_of(whole, folders), tmp_path / "straight"), tmp_path / "a")
    dying = serve(speaks)
    dying.key, dying.dies_after = KEY, 11
    with pytest.raises(RunError, match="did not answer after 2 attempts") as caught:
        capture(labelled(folders, text, spec_of(dying, folders, retries=1), tmp_path / "broken"), tmp_path / "b")
    assert KEY not in str(caught.value)
    assert not (tmp_path / "broken" / "done.json").exists() and (tmp_path / "broken" / "index.bin").stat().st_size
    again = serve(speaks)
    capture(labelled(folders, text, spec_of(again, folders), tmp_path / "broken"), tmp_path / "b")
    assert content_hash(tmp_path / "broken") == content_hash(tmp_path / "straight")
    first_time = {tuple(b.get("prompt") or b["input_ids"]) for _, b in whole.asked}
    assert len({tuple(b.get("prompt") or b["input_ids"]) for _, b in again.asked}) <= len(first_time)
    for folder in ("a", "b", "broken", "straight"):
        for path in (tmp_path / folder).rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_too_few_log_probabilities_for_the_format(serve: Any, folders: Folders, text: Text, tmp_path: Path):
    with pytest.raises(RunError, match="at most: --signal topk:N"):
        capture(labelled(folders, text, spec_of(serve(), folders, k=8), tmp_path / "out"), tmp_path / "run")


def test_a_student_learns_from_a_server(serve: Any, folders: Folders, text: Text, tmp_path: Path):
    method: Method = GKD(on_policy=0.0, divergence=ForwardKL())
    recipe = Recipe(
        id="x", student=HubLM(path=str(folders.student)), data=text, teachers={"teacher": spec_of(serve(), folders)},
        stages={"train": Train(method=method, steps=3, batch=2, optim=Optim(lr=1e-3))},
    )  # fmt: skip
    run = capture(recipe, tmp_path / "run")
    assert run.done("train") and all(math.isfinite(m["loss"]) for m in run.read("metrics.jsonl") if "loss" in m)
    assert door.build(door.read_yaml((run.folder / "recipe.yaml").read_text())) == recipe
