"""A teacher behind an OpenAI-compatible server: the likeliest tokens after every token of a given text.

Each document is sent alone, as token ids, so that server and student cannot disagree about where a token ends. Asked
in this order, the first that the server knows being kept:

    vLLM     POST URL/completions  prompt [ids], prompt_logprobs k  ->  choices[0].prompt_logprobs
             (vllm/entrypoints/openai/completion; more than --max-logprobs, which is 20 by default, is a 400)
    SGLang   POST /generate  input_ids, return_logprob, top_logprobs_num k  ->  meta_info.input_top_logprobs
             (its /v1/completions names tokens by their text, of which several tokens may have the same)
    OpenAI   POST URL/completions  prompt [ids], echo, logprobs k  ->  choices[0].logprobs.top_logprobs
             (the legacy form; tokens as `token_id:N` where the server takes return_tokens_as_token_ids)

llama.cpp's server (`echo` is refused) and chat endpoints give log-probabilities of what they write only.
"""

from __future__ import annotations

import math
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError
from ..core.signal import Batch, Kind, Signal, TopK
from ..core.teacher import TeacherMismatch
from ..models.hub import load_config, load_tokenizer
from ..signals.tokenizers import classes_of
from ..signals.topk import MOST
from .local import check_tokenizers
from .server import Refused, Server, check_address, short

LEAST = -9999.0  # nats: how servers write the logarithm of zero
SLACK = 1e-3  # by which probabilities may add up to more than one

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class HttpLM:
    """A language model behind an OpenAI-compatible server. It must have the student's tokenizer."""

    url: str  # up to the version: http://host:8000/v1
    model: str  # as the server calls it
    tokenizer: str  # a Hugging Face folder (or hub id) with the tokenizer of the served model
    k: int = 64  # log-probabilities to ask for, per token
    key_env: str | None = None  # the environment variable that holds the API key, if the server wants one
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # seconds without an answer
    retries: int = 5  # of a request that failed in passing

    def __post_init__(self) -> None:
        check_address(self.url, self.key_env)
        if not 1 <= self.k <= MOST:
            raise ValueError(f"k must be between 1 and {MOST:,}, not {self.k}")
        if self.concurrency < 1 or not 0 < self.timeout < math.inf or self.retries < 0:
            raise ValueError("concurrency and timeout must be above 0, and retries at least 0")

    def build(self, run: Run) -> HttpTeacher:
        """The teacher; asks nobody yet. TeacherMismatch if the student has another tokenizer."""
        tokenizer = load_tokenizer(self.tokenizer)
        check_tokenizers(run.recipe.student.tokenizer(run), tokenizer)
        config = load_config(self.tokenizer).get_text_config()
        return HttpTeacher(self, tokenizer, getattr(config, "vocab_size", None) or 0)


class HttpTeacher:
    """Gives a top k of every position that has a next token in its document.

    `rows`: of the served model's head; ids from the tokenizer's last one up to there pad the vocabulary.
    """

    gives: frozenset[Kind] = frozenset({"topk"})

    def __init__(self, spec: HttpLM, tokenizer: Any, rows: int = 0):
        self.spec = spec
        self.classes = classes_of(tokenizer)
        self.rows = max(rows, self.classes)
        self.k, self.asked = min(spec.k, self.classes), min(spec.k, self.rows)
        self._names = _Names(tokenizer)
        self._server = Server(spec)
        self._form: _Form | None = None

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """`TopK` `[B, T, k]`; position t of a document knows of token t + 1, its last one nothing: NaN, ids 0."""
        inputs = batch["inputs"]
        if not isinstance(inputs, Mapping) or "tokens" not in inputs:
            raise TeacherMismatch("a language model behind a server answers batches of tokens only")
        tokens: Tensor = inputs["tokens"]
        table = tokens.detach().cpu().numpy()
        places = [(r, a, b, tuple(table[r, a:b].tolist())) for r, a, b in _documents(tokens, inputs.get("document"))]
        answers = self._ask([ids for *_, ids in places])
        values = numpy.full((*table.shape, self.k), numpy.nan, dtype=numpy.float32)
        index = numpy.zeros((*table.shape, self.k), dtype=numpy.int64)
        rest = numpy.full(table.shape, numpy.nan, dtype=numpy.float32)
        for row, begin, end, ids in places:
            at = (row, slice(begin, end - 1))
            values[at], index[at], rest[at] = answers[ids]
        kept = [torch.from_numpy(x).to(tokens.device) for x in (values, index, rest)]
        return Signal(topk=TopK(kept[0], kept[1], kept[2], classes=self.classes))

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are, as far as a client can know: kept with stored signals.

        Without the port, so that a capture can go on when the server came back at another one.
        """
        return {"name": self.spec.model, "url host": self._server.host, "model": self.spec.model}

    @property
    def module(self) -> Any:
        """AttributeError: the weights are elsewhere."""
        raise AttributeError("the teacher is behind a server, and this needs its weights: give their path as the teacher")

    def check(self, method: Any, source: Any, epochs: int = 1) -> None:
        """Refuse, before the first step, a method that needs more than a top k at temperature 1."""
        if getattr(method, "mix", 0.0):
            raise TeacherMismatch(
                "the method lets teacher and student write together, which needs the teacher's weights: "
                "--set train.method.mix=0, or give their path as the teacher"
            )
        if getattr(method, "temperature", 1.0) != 1.0:
            raise TeacherMismatch(
                "a server gives the likeliest tokens at temperature 1, and the method compares at temperature "
                f"{method.temperature:g}: --set train.method.temperature=1, or give the path of its weights as the teacher"
            )

    def _ask(self, texts: Sequence[Ids]) -> dict[Ids, _Answer]:
        """The answers to different texts, several requests at a time."""
        new = list(dict.fromkeys(texts))
        found: dict[Ids, _Answer] = {}
        stop = threading.Event()
        try:
            if new and self._form is None:
                found[new[0]] = self._introduce(new[0], stop)
                del new[0]
            found.update(_parallel(lambda ids: self._one(ids, stop), new, self.spec.concurrency, stop))
        except RunError as error:
            raise RunError(self._server.without_key(str(error))) from None
        finally:
            stop.set()
        return found

    def _one(self, ids: Ids, stop: threading.Event) -> _Answer:
        """The answer to one text in the form that the server knows."""
        form = self._form
        assert form is not None
        try:
            said = self._server.post(form.path, form.body(self.spec.model, ids, self.asked), stop)
        except Refused as refused:
            raise self._explained(refused, ids) from None
        told = form.read(said, ids, self._names)
        if told is None:
            raise RunError(f"{self._server.name} left out the log-probabilities that it gave before: {short(said)}")
        return self._kept(told)

    def _introduce(self, ids: Ids, stop: threading.Event) -> _Answer:
        """The answer to the first text, in the first form that the server knows; remembers it."""
        reasons: list[str] = []
        for form in FORMS:
            try:
                said = self._server.post(form.path, form.body(self.spec.model, ids, self.asked), stop)
            except Refused as refused:
                if _limit(refused.words, self.asked) or _too_long(refused.words) or (refused.status == 404 and not reasons):
                    raise self._explained(refused, ids) from None
                reasons.append(f"{form.name}: {refused.status} {refused.words}")
                continue
            told = form.read(said, ids, self._names)
            if told is not None:
                self._form = form
                return self._kept(told)
            reasons.append(f"{form.name}: no log-probabilities of the prompt")
        raise RunError(
            f"{self._server.name} gives no log-probabilities of a given text ({'; '.join(reasons)}): serve the model with "
            f"vLLM (vllm serve MODEL --max-logprobs {self.asked}) or SGLang; llama.cpp's server and most hosted ones cannot"
        )

    def _explained(self, refused: Refused, ids: Ids) -> RunError:
        """What to do about a request that the server understood and refused."""
        name, words = self._server.name, refused.words
        limit = _limit(words, self.asked)
        if limit:
            return RunError(
                f"{name} gives {limit} log-probabilities a token at most, and {self.asked} were asked for: start vllm with "
                f"--max-logprobs {self.asked}, or --signal topk:{limit}"
            )
        if _too_long(words):
            return RunError(
                f"{name} cannot read a text of {len(ids):,} tokens and write one more ({words}): start it with a larger "
                "context (vllm: --max-model-len), or give a smaller --length"
            )
        if refused.status == 404:
            known = self._server.models()
            served = f"it serves {', '.join(known)}" if known else "the url ends in /v1 for most servers"
            return RunError(f"{name} knows no model {self.spec.model!r}, or the url is wrong ({words}); {served}")
        return RunError(f"{name} refused a text of {len(ids):,} tokens: {refused.status} {words}")

    def _kept(self, told: Sequence[Mapping[int, float]]) -> _Answer:
        """What the server said of each position, cut to the k likeliest tokens and checked."""
        n, k, name = len(told), self.asked, self._server.name
        width, least = max(map(len, told)), min(map(len, told))
        if least < k:
            raise RunError(
                f"{name} gave {least} log-probabilities of a token, and {k} were asked for: --signal topk:{least}"
            )
        index = numpy.zeros((n, width), dtype=numpy.int64)
        values = numpy.full((n, width), -numpy.inf)
        for row, entries in enumerate(told):
            index[row, : len(entries)] = list(entries)
            values[row, : len(entries)] = list(entries.values())
        real = values > -numpy.inf
        if index.max() >= self.rows:
            raise RunError(
                f"{name} named token {int(index.max()):,}, and the tokenizer in {self.spec.tokenizer} has {self.classes:,}: "
                "give the tokenizer of the served model"
            )
        if numpy.isnan(values).any() or (values > SLACK).any():
            wrong = float(values[numpy.isnan(values) | (values > SLACK)][0])
            raise RunError(f"{name} gave {wrong:g} as a log-probability: {LOGPROBS}")
        values = numpy.where(real, values.clip(LEAST, 0.0), -numpy.inf)
        total = numpy.exp(values).sum(-1)
        if (total > 1 + SLACK).any():
            raise RunError(f"{name} gave probabilities that add up to {float(total.max()):.4f}: {LOGPROBS}")
        order = numpy.argsort(-values, axis=-1, kind="stable")[:, :k]
        index, values = numpy.take_along_axis(index, order, -1), numpy.take_along_axis(values, order, -1)
        return self._without_padding(index, values)

    def _without_padding(self, index: Any, values: Any) -> _Answer:
        """The top k over the tokenizer's classes alone: as with a local teacher, rows that pad the head get nothing.

        Where padding stood among the k, some other token stands in, as likely as those that were not named are on average.
        """
        padding = index >= self.classes
        outside = numpy.where(padding, numpy.exp(values), 0.0).sum(-1, keepdims=True)
        values = numpy.where(padding, -numpy.inf, values - numpy.log1p(-outside.clip(max=1 - 1e-9)))
        order = numpy.argsort(-values, axis=-1, kind="stable")[:, : self.k]
        index, values, padding = (numpy.take_along_axis(x, order, -1) for x in (index, values, padding))
        others = self.classes - (~padding).sum(-1)
        rest = numpy.full(len(values), -numpy.inf)
        some = others > 0  # log(1 - sum p), within what rounding leaves of it and what the least likely one allows
        left = numpy.log((1.0 - numpy.exp(values[some]).sum(-1)).clip(2.0**-24, 1.0))
        lowest = numpy.where(padding, 0.0, values).min(-1)[some]
        rest[some] = numpy.minimum(left, numpy.log(others[some]) + lowest)
        for row in numpy.flatnonzero(padding.any(-1)):
            taken, gaps = set(index[row][~padding[row]].tolist()), numpy.flatnonzero(padding[row])
            free = (i for i in range(self.classes) if i not in taken)
            index[row, gaps] = [next(free) for _ in gaps]
            values[row, gaps] = max(LEAST, rest[row] - math.log(others[row]))
            rest[row] = rest[row] + math.log1p(-len(gaps) / others[row]) if others[row] > len(gaps) else -numpy.inf
        return values.astype(numpy.float32), index, rest.astype(numpy.float32)


LOGPROBS = "these are no log-probabilities (start vllm with --logprobs-mode raw_logprobs, its default)"
_Answer = tuple[Any, Any, Any]  # values [n, k], index [n, k], rest [n]


def _documents(tokens: Tensor, document: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """(row, begin, end) of every document of two tokens or more; without `document` a row is one."""
    numbers = (torch.zeros_like(tokens) if document is None else document).detach().cpu().numpy()
    for row in range(len(numbers)):
        for begin, end in pairwise([0, *(numpy.flatnonzero(numpy.diff(numbers[row])) + 1).tolist(), numbers.shape[1]]):
            if end - begin > 1 and numbers[row, begin] >= 0:
                yield row, begin, end


def _parallel(
    work: Callable[[Ids], _Answer], jobs: Sequence[Ids], workers: int, stop: threading.Event
) -> dict[Ids, _Answer]:
    """`work` on every job. The first error, or Ctrl-C, ends it at once: nobody waits for threads that wait for an answer."""
    todo: queue.SimpleQueue[Ids] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Ids, Any]] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)

    def loop() -> None:
        while not stop.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((job, work(job)))
            except BaseException as error:  # told to the caller, whatever it is
                done.put((job, error))
                return

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=loop, daemon=True).start()
    found: dict[Ids, _Answer] = {}
    for _ in jobs:
        job, answer = done.get()
        if isinstance(answer, BaseException):
            raise answer
        found[job] = answer
    return found


# -- what servers understand ---------------------------------------------------------------------------------------


class _Names:
    """Tokens by what a server calls them: `token_id:N`, or their text if no other token reads the same."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def id(self, name: str) -> int:
        """The token's id; RunError if its text is not enough to know it."""
        if name.startswith("token_id:") and name[9:].isdigit():
            return int(name[9:])
        found = self._texts.get(name, [])
        if len(found) != 1:
            raise RunError(
                f"the server names tokens by their text, and {name!r} is the text of {len(found) or 'no'} tokens: it must "
                "know the option return_tokens_as_token_ids or prompt_logprobs; serve the model with vLLM or SGLang"
            )
        return found[0]

    @cached_property
    def _texts(self) -> dict[str, list[int]]:
        texts: dict[str, list[int]] = {}
        for index in sorted(self.tokenizer.get_vocab().values()):
            text = self.tokenizer.decode([index], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            texts.setdefault(text, []).append(index)
        return texts


_Told = list[dict[int, float]]  # of every token but the first: ids and log-probabilities of what may stand in its place


@dataclass(frozen=True)
class _Form:
    """One way to ask. `read` returns None for an answer without log-probabilities of the prompt."""

    name: str
    path: str  # after the url; with a leading slash: after the host
    body: Callable[[str, Ids, int], dict[str, Any]]
    read: Callable[[Any, Ids, _Names], _Told | None]


def _ask_vllm(model: str, ids: Ids, k: int) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": k,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def _read_vllm(said: Any, ids: Ids, names: _Names) -> _Told | None:
    listed = _choice(said).get("prompt_logprobs")
    if listed is None:
        return None
    told: _Told = []
    for t, entry in _positions(listed, ids, (len(ids),)):
        if not isinstance(entry, Mapping):
            raise _garbled(f"{short(entry)} at token {t:,}", "prefix caching may be why: --no-enable-prefix-caching")
        if {*map(type, entry.values())} == {float}:  # its server in Rust leaves rank and text out
            told.append(_entries([names.id(name) for name in entry], list(entry.values())))
        else:
            told.append(_entries(entry, [_field(each, "logprob") for each in entry.values()]))
        if ids[t] not in told[-1]:
            raise _other_text(t, ids[t], list(told[-1])[:3])
    return told


def _ask_sglang(model: str, ids: Ids, k: int) -> dict[str, Any]:
    return {
        "input_ids": list(ids), "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": k,
    }  # fmt: skip


def _read_sglang(said: Any, ids: Ids, names: _Names) -> _Told | None:
    meta = said.get("meta_info") if isinstance(said, Mapping) else None
    if not isinstance(meta, Mapping) or not meta.get("input_top_logprobs"):
        return None
    listed, own = meta["input_top_logprobs"], meta.get("input_token_logprobs")
    told: _Told = []
    for t, entry in _positions(listed, ids, (len(ids),)):
        if not isinstance(entry, list) or not all(isinstance(each, list) and len(each) > 1 for each in entry):
            raise _garbled(f"{short(entry)} at token {t:,}")
        told.append(_entries([each[1] for each in entry], [each[0] for each in entry]))
        mine = own[t] if isinstance(own, list) and len(own) == len(ids) else None
        if isinstance(mine, list) and mine[1:2] != [ids[t]]:
            raise _other_text(t, ids[t], mine)
    return told


def _ask_openai(model: str, ids: Ids, k: int) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": k,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def _read_openai(said: Any, ids: Ids, names: _Names) -> _Told | None:
    logprobs: Any = _choice(said).get("logprobs")
    listed = logprobs.get("top_logprobs") if isinstance(logprobs, Mapping) else None
    if not isinstance(listed, list) or len(listed) < min(2, len(ids)):  # nothing, or of the token that was written
        return None
    own = logprobs.get("tokens")
    told: _Told = []
    for t, entry in _positions(listed, ids, (len(ids), len(ids) + 1)):
        if not isinstance(entry, Mapping):
            raise _garbled(f"{short(entry)} at token {t:,}")
        told.append(_entries([names.id(str(name)) for name in entry], list(entry.values())))
        if isinstance(own, list) and t < len(own) and str(own[t]).startswith("token_id:") and names.id(own[t]) != ids[t]:
            raise _other_text(t, ids[t], own[t])
    return told


FORMS = (
    _Form("vLLM", "completions", _ask_vllm, _read_vllm),
    _Form("SGLang", "/generate", _ask_sglang, _read_sglang),
    _Form("OpenAI", "completions", _ask_openai, _read_openai),
)


def _positions(listed: Any, ids: Ids, lengths: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """What is said of every token but the first; an answer of the wrong length is refused."""
    if not isinstance(listed, list) or len(listed) not in lengths:
        got = f"{len(listed):,} positions" if isinstance(listed, list) else short(listed)
        raise _garbled(
            f"{got} for a text of {len(ids):,} tokens", "prefix caching may be why: --no-enable-prefix-caching (vllm)"
        )
    return ((t, listed[t]) for t in range(1, len(ids)))


def _choice(said: Any) -> Mapping[str, Any]:
    choices = _field(said, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise _garbled(f"no choice in {short(said)}")
    return choices[0]


def _field(said: Any, name: str) -> Any:
    try:
        return said[name]
    except (TypeError, LookupError):
        raise _garbled(f"no {name!r} in {short(said)}") from None


def _entries(names: Collection[Any], values: Sequence[Any]) -> dict[int, float]:
    """Ids and log-probabilities of one position; there are many positions, so that each entry is looked at in C."""
    try:
        ids = [*map(int, names)]
    except (TypeError, ValueError):
        ids = []
    if len(ids) != len(names) or (ids and not (0 <= min(ids) and max(ids) < 2**31)):
        wrong = next((name for name in names if not str(name).isdecimal()), names)
        raise _garbled(f"{short(wrong if isinstance(wrong, str) else str(wrong))} where a token id belongs")
    if not {*map(type, values)} <= {float, int}:
        wrong = next(value for value in values if type(value) not in (float, int))
        raise _garbled(f"{short(wrong)} where a log-probability belongs")
    if -math.inf in values:
        values = [max(LEAST, value) for value in values]
    return dict(zip(ids, values, strict=True))


def _garbled(what: str, hint: str = "") -> RunError:
    return RunError(f"the server's answer cannot be used: {what}{'; ' + hint if hint else ''}")


def _other_text(t: int, sent: int, got: Any) -> RunError:
    return _garbled(
        f"token {t:,} of the text is {sent}, and it speaks of {got}: it adds or drops tokens, or has another tokenizer"
    )


def _limit(words: str, asked: int) -> int | None:
    """How many log-probabilities a server gives at most, if its words are about that."""
    if not re.search(r"log_?prob", words, re.IGNORECASE):
        return None
    numbers = re.findall(r"(?:max|most|more than|less than|up to|between)[^0-9.;]*(?:\d+ and )?(\d+)", words, re.IGNORECASE)
    return next((int(n) for n in reversed(numbers) if 0 < int(n) < asked), None)


def _too_long(words: str) -> bool:
    return bool(re.search(r"context length|maximum model length|max_model_len|longer than the model", words, re.IGNORECASE))
