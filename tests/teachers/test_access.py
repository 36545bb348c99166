"""What a teacher can be held to beside writing: going on from a beginning, not beginning with a word, saying how likely."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatserver import ChatServer
from language import Folders, folders, run_of  # noqa: F401 - a fixture
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.models.hub import HubLM, load_model
from stillhouse.synth.calls import Calls
from stillhouse.teachers.chat import HttpChat
from stillhouse.teachers.pool import Pool
from stillhouse.teachers.text import Ask, Decoding, Lost, begins_with
from stillhouse.teachers.writer import LocalChat

Start = Callable[..., ChatServer]
TALK = (("user", "the cat sat"),)


@pytest.fixture
def local(folders: Folders, tmp_path: Path) -> Any:  # noqa: F811
    model = HubLM(path=str(folders.teacher))
    return LocalChat(model=model).build(run_of(tmp_path / "run", model))


def one(teacher: Any, ask: Ask) -> Completion:
    ((_, answer),) = teacher.write([ask], threading.Event())
    assert isinstance(answer, Completion), answer
    return answer


def greedy(**how: Any) -> Decoding:
    return Decoding(temperature=0.0, max_new=8, **how)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, no", True), ("  wait", True), ("WAIT.", True), ("Waiting", False), ("But", True), ("", False),
        ("\n~3", True), ("So wait", False), ("butter", False),
    ],
)  # fmt: skip
def test_what_begins_with_a_word(text: str, expected: bool) -> None:
    assert begins_with(text, ("Wait", " but", "~")) is expected


def test_an_ask_says_what_it_wants_and_has_a_name_of_its_own() -> None:
    asks = [
        Ask(TALK, Decoding()), Ask(TALK, Decoding(), begin="So"), Ask(TALK, Decoding(), begin="No"),
        Ask(TALK, Decoding(not_first=("Wait",))), Ask(TALK, Decoding(logprobs=True)),
    ]  # fmt: skip
    assert [set(a.wants) for a in asks] == [set(), {"continuation"}, {"continuation"}, {"suppression"}, {"logprobs"}]
    assert len({a.key("t") for a in asks}) == 5
    assert asks[1].size > asks[0].size


def test_a_local_model_goes_on_from_a_beginning(local: Any) -> None:
    """The words behind the beginning are those that the model writes there by itself."""
    tokens = local._tokens(Ask(TALK, greedy()))
    begun = local._tokens(Ask(TALK, greedy(), begin="the dog"))
    assert begun[: len(tokens)] == tokens and local.tokenizer.decode(begun[len(tokens) :]).strip() == "the dog"
    said = one(local, Ask(TALK, greedy(), begin="the dog"))
    made = local.module.model.generate(torch.tensor([begun]), max_new_tokens=8, do_sample=False)[0, len(begun) :].tolist()
    ends = {local.tokenizer.eos_token_id}
    assert said.text == local.tokenizer.decode([t for t in made if t not in ends], skip_special_tokens=True)
    assert said.read == len(begun)


def test_a_local_model_does_not_begin_with_what_is_ruled_out(local: Any) -> None:
    free = one(local, Ask(TALK, greedy())).text
    word = free.split()[0]
    held = one(local, Ask(TALK, greedy(not_first=(word,))))
    assert not begins_with(held.text, (word,)) and held.text != free
    assert one(local, Ask(TALK, greedy(not_first=("zebra",)))).text == free
    drawn = Decoding(temperature=1.0, max_new=3, not_first=(word,))
    asks = [Ask(TALK, drawn, seed=seed) for seed in range(60)]
    for _, answer in local.write(asks, threading.Event()):
        assert isinstance(answer, Lost) or not begins_with(answer.text, (word,))


def test_log_probabilities_are_those_of_the_model(local: Any, folders: Folders) -> None:  # noqa: F811
    ask = Ask(TALK, greedy(logprobs=True))
    said = one(local, ask)
    assert said.logprobs is not None and len(said.logprobs) == said.wrote
    prompt = local._tokens(ask)
    made = local.module.model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0]
    logits = load_model(str(folders.teacher)).requires_grad_(False)(made[None]).logits[0].float().log_softmax(-1)
    wanted = [float(logits[i, made[i + 1]]) for i in range(len(prompt) - 1, len(made) - 1)]
    assert said.logprobs == pytest.approx(wanted[: said.wrote], abs=1e-4)
    assert one(local, Ask(TALK, greedy())).logprobs is None


def test_a_server_is_asked_for_what_it_can(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    tokens = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1}]
    server.change = lambda said: {**said, "choices": [{**said["choices"][0], "logprobs": {"content": tokens}}]}
    teacher = HttpChat(url=server.url, model="tiny", continues=True, logprobs=True).build(Run(tmp_path / "run"))
    assert teacher.gives == {"text", "continuation", "logprobs"}
    said = one(teacher, Ask(TALK, Decoding(logprobs=True), begin="So"))
    assert said.logprobs == [-0.5, -1.0]
    body = server.asked[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "So"} and body["logprobs"] is True
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    one(teacher, Ask(TALK, Decoding()))
    assert not {"logprobs", "continue_final_message"} & server.asked[-1].keys()


@pytest.mark.parametrize(
    "told", [None, {"content": None}, {"content": [{"token": "a"}]}, {"content": [{"logprob": math.nan}]}]
)
def test_a_server_that_does_not_say_how_likely(chat_server: Start, tmp_path: Path, told: Any) -> None:
    server = chat_server()
    server.change = lambda said: {**said, "choices": [{**said["choices"][0], "logprobs": told}]}
    teacher = HttpChat(url=server.url, model="tiny", logprobs=True, retries=0).build(Run(tmp_path / "run"))
    ((_, answer),) = teacher.write([Ask(TALK, Decoding(logprobs=True))], threading.Event())
    assert isinstance(answer, Lost) and "no log-probabilities" in answer.why


def test_a_pool_can_what_all_of_it_can(chat_server: Start, tmp_path: Path) -> None:
    url = chat_server().url
    one_, other = (
        HttpChat(url=url, model="tiny", logprobs=True, continues=True),
        HttpChat(url=url, model="tiny", logprobs=True),
    )
    assert Pool(members={"a": one_, "b": other}).build(Run(tmp_path / "run")).gives == {"text", "logprobs"}


def test_nothing_is_asked_of_a_teacher_that_cannot(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    run = Run(tmp_path / "run")
    run.teachers = {"teacher": HttpChat(url=server.url, model="tiny").build(run)}
    calls = Calls(run, {}, threading.Event())
    for ask in (Ask(TALK, Decoding(), begin="So"), Ask(TALK, Decoding(not_first=("a",)))):
        with pytest.raises(
            RunError, match=r"(continuation|suppression) is asked of the teacher 'teacher', which gives text"
        ):
            list(calls.ask("teacher", [(0, ask)]))
    calls.close()
    assert server.asked == []
