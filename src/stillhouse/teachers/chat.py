"""A writing teacher behind an OpenAI-compatible server: `POST URL/chat/completions`, many at a time.

It keeps to the limits it is given, waits as long as the server asks, tries again where that helps, and knows what it
has cost. One ask is one request: a server that is asked for several samples at once may answer with fewer.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.run import Run, RunError
from ..core.signal import Completion, Kind
from .server import Garbled, NoAnswer, Refused, Server, check_address, short
from .text import Ask, Lost, Writes

GIVE_UP = 8  # asks that were lost before any was answered: then it is the server or the settings, and not the words


@dataclass(frozen=True, kw_only=True)
class Price:
    """What tokens cost, for a million of them, in any one currency."""

    read: float = 0.0
    wrote: float = 0.0

    def of(self, read: int, wrote: int) -> float:
        """The cost of so many tokens."""
        return (read * self.read + wrote * self.wrote) / 1e6


@dataclass(frozen=True, kw_only=True)
class HttpChat:
    """A chat model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama, and those that want a key)."""

    url: str  # up to the version: http://host:8000/v1
    model: str  # as the server calls it
    key_env: str | Sequence[str] | None = None  # the environment variable that holds the API key; of several they take turns
    price: Price = Price()
    concurrency: int = 16  # requests at a time
    per_minute: float | None = None  # requests that may be begun in a minute
    tokens_per_minute: float | None = None  # read and written, as far as they can be guessed before an answer
    system: str = ""  # words that stand before every conversation
    extra: Mapping[str, Any] | None = None  # fields that this server wants in the request
    continues: bool = False  # it goes on from a begun answer when asked to `continue_final_message` (vLLM, SGLang)
    logprobs: bool = False  # it says how likely its tokens were
    timeout: float = 120.0  # seconds without an answer
    retries: int = 5  # of a request that failed in passing

    def __post_init__(self) -> None:
        check_address(self.url, self.key_env)
        if self.concurrency < 1 or not 0 < self.timeout < math.inf or self.retries < 0:
            raise ValueError("concurrency and timeout must be above 0, and retries at least 0")
        for limit in (self.per_minute, self.tokens_per_minute):
            if limit is not None and not limit > 0:
                raise ValueError("per_minute and tokens_per_minute must be above 0")

    def build(self, run: Run) -> ChatWriter:
        """The teacher; asks nobody yet."""
        return ChatWriter(self)


class Judging(Writes):
    """Tells an ask that was lost, which costs a row, from many that were lost before any was answered: then something is set
    up wrongly, or is away, and the run ends."""

    answered = 0  # asks, over all calls of `write`
    lost = 0

    def judged(self, answer: Any) -> Completion | Lost:
        """What became of an ask; an error if it is of no use to go on, or if it is none that a server makes."""
        if isinstance(answer, Completion):
            self.answered += 1
            return answer
        if isinstance(answer, Refused):
            found = Lost(f"the server refused it: {answer}")
        elif isinstance(answer, Lost):
            found = answer
        elif isinstance(answer, NoAnswer):
            found = Lost(f"no answer: {answer}")
        else:
            raise answer
        self.lost += 1
        if self.hopeless(answer) or (not self.answered and self.lost >= GIVE_UP):
            raise self.told(answer, found)
        return found

    def hopeless(self, answer: Any) -> bool:
        """Whether one such answer is enough to know."""
        return False

    def told(self, answer: Any, found: Lost) -> BaseException:
        """The error that ends the run."""
        raise NotImplementedError


class ChatWriter(Judging):
    """Sends asks to the server from several threads."""

    def __init__(self, spec: HttpChat):
        self.spec, self.at_once = spec, spec.concurrency
        can: Mapping[Kind, bool] = {"text": True, "continuation": spec.continues, "logprobs": spec.logprobs}
        self.gives = frozenset(kind for kind, able in can.items() if able)
        self.pace = Pace(spec.per_minute, spec.tokens_per_minute)
        self.server = Server(spec, self.pace.hold)

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """As they come. Nobody waits for threads that wait for an answer: Ctrl-C and the first error end it at once."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        gone = threading.Event()
        for number in range(len(asks)):
            todo.put(number)

        def work() -> None:
            while not gone.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, self.answer(asks[number], gone)))
                except BaseException as error:  # told to the caller, whatever it is
                    done.put((number, error))

        for _ in range(min(self.at_once, len(asks))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in asks:
                while True:
                    try:
                        number, answer = done.get(timeout=0.2)
                        break
                    except queue.Empty:
                        if stop.is_set():
                            return
                yield number, self.judged(answer)
                if stop.is_set():
                    return
        finally:
            gone.set()

    def hopeless(self, answer: Any) -> bool:
        """No such model, or no such address."""
        return isinstance(answer, Refused) and answer.status == 404

    def told(self, answer: Any, found: Lost) -> BaseException:
        """What the server said, and what can be done."""
        return self.explained(answer) if isinstance(answer, Refused) else answer

    def explained(self, refused: Refused) -> RunError:
        """What the user can do where the server refuses every ask."""
        name = self.server.name
        if refused.status == 404:
            known = self.server.models()
            served = f"it serves {', '.join(known)}" if known else "the url ends in /v1 for most servers"
            return RunError(f"{name} knows no model {self.spec.model!r}, or the url is wrong ({refused}); {served}")
        return RunError(f"{name} refuses every ask: {refused}")

    def answer(self, ask: Ask, stop: threading.Event) -> Completion:
        """The answer to one ask, from any thread; NoAnswer if it failed in passing, Refused if the server has it not."""
        d, spec = ask.decoding, self.spec
        turns = ([("system", spec.system)] if spec.system else []) + list(ask.messages)
        body: dict[str, Any] = {
            "model": spec.model, "messages": [{"role": role, "content": words} for role, words in turns],
            "temperature": d.temperature, "top_p": d.top_p, "max_tokens": d.max_new,
        }  # fmt: skip
        if d.temperature > 0:
            body["seed"] = ask.seed % 2**31
        if ask.begin:
            body["messages"].append({"role": "assistant", "content": ask.begin})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if d.logprobs:
            body["logprobs"] = True
        self.pace.wait(ask.size + d.max_new, stop)
        return self.server.post("chat/completions", body | dict(spec.extra or {}), stop, lambda said: self._read(said, ask))

    def _read(self, said: Any, ask: Ask) -> Completion:
        """The one answer in a response; Garbled if there is none, or none that is text."""
        choices = said.get("choices") if isinstance(said, Mapping) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
            raise Garbled(f"{len(choices) if isinstance(choices, list) else 'no'} choices in place of one: {short(said)}")
        message = choices[0].get("message")
        words = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(words, str):
            raise Garbled(f"no text: {short(said)}")
        words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a letter cannot be kept
        logprobs = _logprobs(choices[0]) if ask.decoding.logprobs else None
        usage = said.get("usage")
        told = usage if isinstance(usage, Mapping) else {}
        return Completion(
            words,
            logprobs=logprobs,
            finished=choices[0].get("finish_reason") != "length",
            read=_count(told.get("prompt_tokens"), ask.size),
            wrote=_count(told.get("completion_tokens"), -(-len(words.encode()) // 4)),
        )

    def price(self, read: int, wrote: int) -> float:
        """By the prices of its spec."""
        return self.spec.price.of(read, wrote)

    def identity(self) -> Mapping[str, Any]:
        """Model and host, as far as a client can know; without the port, at which a server may come back."""
        told: dict[str, Any] = {"name": self.spec.model, "url host": self.server.host, "model": self.spec.model}
        return told | ({"system": self.spec.system} if self.spec.system else {}) | dict(self.spec.extra or {})


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    """How likely every token was; Garbled if the server does not say."""
    told = choice.get("logprobs")
    tokens = told.get("content") if isinstance(told, Mapping) else None
    found = list[float]()
    for token in tokens if isinstance(tokens, list) else [None]:
        value = token.get("logprob") if isinstance(token, Mapping) else None
        if not isinstance(value, int | float) or math.isnan(value):
            raise Garbled(f"no log-probabilities of the answer's tokens: {short(choice)}")
        found.append(float(value))
    return found


def _count(told: Any, guess: int) -> int:
    return told if isinstance(told, int) and told >= 0 else guess


class Pace:
    """Lets requests begin no faster than two limits allow, and none while the server asks to wait."""

    def __init__(self, per_minute: float | None, tokens_per_minute: float | None):
        self.per_minute, self.tokens_per_minute = per_minute, tokens_per_minute
        self.free = 0.0  # when the next request may begin
        self.lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Until this request's turn has come, or `stop`."""
        gap = 60 / self.per_minute if self.per_minute else 0.0
        if self.tokens_per_minute:
            gap = max(gap, 60 * tokens / self.tokens_per_minute)
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.free)
            self.free = turn + gap
        if turn > now:
            stop.wait(turn - now)

    def hold(self, seconds: float) -> None:
        """Nobody begins for so long: the server has said so."""
        with self.lock:
            self.free = max(self.free, time.monotonic() + seconds)
