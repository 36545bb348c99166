"""A language model of yours as a writing teacher: its chat template, its own sampling, real batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.run import Run
from ..core.signal import Completion
from ..core.teacher import freeze
from ..models.call import weights_hash
from ..models.generate import Sampling, ends_of, generate
from ..models.hub import CausalLM, HubLM, StageLM
from .text import Ask, Decoding, Lost, Writes
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
                temperature=decoding.temperature, top_p=decoding.top_p, max_new=decoding.max_new, batch=self.at_once
            )
            for begin in range(0, len(numbers), self.at_once):
                if stop.is_set():
                    return
                some = numbers[begin : begin + self.at_once]
                keys = [asks[n].seed for n in some]
                answers = generate(self.module, [prompts[n] for n in some], how, seed=0, keys=keys, ends=ends)
                for number, answer in zip(some, answers, strict=True):
                    ended = bool(answer) and answer[-1] in ends
                    words = self.tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
                    finished = ended or len(answer) < decoding.max_new
                    yield number, Completion(words, finished=finished, read=len(prompts[number]), wrote=len(answer))

    def _tokens(self, ask: Ask) -> list[int]:
        """The conversation up to where the model begins; joined by empty lines where there is no chat template."""
        if not self.tokenizer.chat_template:
            return self.tokenizer("\n\n".join(words for _, words in ask.messages))["input_ids"]
        turns = [{"role": role, "content": words} for role, words in ask.messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def identity(self) -> Mapping[str, Any]:
        """The weights; how they are batched does not belong to it."""
        if self._identity is None:  # hashing the weights takes a moment
            if isinstance(self.module, VllmEngine):
                self._identity = {"name": self.name, "weights": self.module.weights(), "engine": "vllm"}
            else:
                self._identity = {"name": self.name, "weights": weights_hash(self.module)}
        return self._identity
