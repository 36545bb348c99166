"""A language model of yours as a writing teacher: its chat template, its own sampling, real batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.run import Run
from ..core.signal import Completion, Kind
from ..core.teacher import freeze
from ..models.call import weights_hash
from ..models.generate import Sampling, draw, ends_of
from ..models.hub import CausalLM, HubLM, StageLM
from .text import Ask, Decoding, Lost, Writes, begins_with
from .vllm import Vllm, VllmEngine


@dataclass(frozen=True, kw_only=True)
class LocalChat:
    """A causal language model that answers conversations."""

    model: HubLM | StageLM
    batch: int = 32  # asks at a time
    engine: Vllm | None = None  # let vLLM write: it keeps its memory until the process ends; None: our own

    def build(self, run: Run) -> LocalWriter:
        """The frozen model on the run's device."""
        if self.engine is None:
            module: Any = freeze(self.model.build(run)).to(run.device)
        else:
            module = self.engine.of(self.model, run)
        return LocalWriter(module, self.model.tokenizer(run), self.batch, getattr(self.model, "path", ""))


class LocalWriter(Writes):
    """Answers with a model in this process."""

    def __init__(self, module: Any, tokenizer: Any, batch: int, name: str):
        self.module: CausalLM | VllmEngine = module
        self.tokenizer, self.at_once, self.name = tokenizer, batch, name
        held: frozenset[Kind] = frozenset() if isinstance(module, VllmEngine) else frozenset({"suppression"})
        self.gives = frozenset[Kind]({"text", "continuation", "logprobs"}) | held
        self._identity: Mapping[str, Any] | None = None

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """A batch at a time, asks of one decoding and of like length together."""
        prompts = {number: self._tokens(ask) for number, ask in enumerate(asks)}
        ready: dict[Decoding, list[int]] = {}
        for number in sorted(prompts, key=lambda n: (len(prompts[n]), n)):
            ask, tokens = asks[number], prompts[number]
            if len(tokens) + ask.decoding.max_new > self.module.context:
                yield (
                    number,
                    Lost(
                        f"{len(tokens):,} tokens to read and {ask.decoding.max_new:,} to write are more than the model's "
                        f"{self.module.context:,}"
                    ),
                )
            else:
                ready.setdefault(ask.decoding, []).append(number)
        ends = ends_of(self.module)
        for decoding, numbers in ready.items():
            how = Sampling(
                temperature=decoding.temperature, top_p=decoding.top_p, max_new=decoding.max_new, batch=self.at_once,
                not_first=self._first_tokens(decoding.not_first),
            )  # fmt: skip
            for begin in range(0, len(numbers), self.at_once):
                if stop.is_set():
                    return
                some = numbers[begin : begin + self.at_once]
                keys = [asks[n].seed for n in some]
                asked = [prompts[n] for n in some]
                likely = decoding.logprobs
                answers = draw(self.module, asked, how, seed=0, keys=keys, ends=ends, likely=likely)
                for number, answer in zip(some, answers, strict=True):
                    found = self._said(answer.tokens, decoding, ends)
                    told = {"read": len(prompts[number]), "logprobs": answer.logp if likely else None}
                    yield number, found if isinstance(found, Lost) else replace(found, **told)

    def _said(self, tokens: Sequence[int], decoding: Decoding, ends: frozenset[int]) -> Completion | Lost:
        """An answer as words; the token that ends it counts among those that were written."""
        ended = bool(tokens) and tokens[-1] in ends
        words = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        if begins_with(words, decoding.not_first):  # in other pieces than the tokens that were ruled out
            return Lost("it begins with a word that it may not begin with")
        return Completion(words, finished=ended or len(tokens) < decoding.max_new, wrote=len(tokens))

    def _first_tokens(self, words: Sequence[str]) -> tuple[int, ...]:
        """The tokens that these words begin with: capitalised or not, with and without space in front."""
        found: set[int] = set()
        for word in (word.strip() for word in words):
            for cased in {word, word.lower(), word.capitalize(), word.upper()}:
                for lead in ("", " ", "\n"):
                    tokens = self.tokenizer(lead + cased, add_special_tokens=False)["input_ids"]
                    texts = [self.tokenizer.decode(tokens[:n]) for n in range(1, len(tokens) + 1)]
                    first = next((n for n, text in enumerate(texts) if text.strip()), None)
                    if first == 0:  # a lead that is a token of its own may stay: what follows it is looked at afterwards
                        found.add(tokens[0])
        return tuple(sorted(found))

    def _tokens(self, ask: Ask) -> list[int]:
        """The conversation up to where the model goes on; joined by empty lines where there is no chat template."""
        if not self.tokenizer.chat_template:
            begun = ("\n\n" + ask.begin) if ask.begin else ""
            return self.tokenizer("\n\n".join(words for _, words in ask.messages) + begun)["input_ids"]
        turns = [{"role": role, "content": words} for role, words in ask.messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text + ask.begin, add_special_tokens=False)["input_ids"]

    def identity(self) -> Mapping[str, Any]:
        """The weights; how they are batched does not belong to it."""
        if self._identity is None:  # hashing the weights takes a moment
            if isinstance(self.module, VllmEngine):
                self._identity = {"name": self.name, "weights": self.module.weights(), "engine": "vllm"}
            else:
                self._identity = {"name": self.name, "weights": weights_hash(self.module)}
        return self._identity
