"""A frozen teacher that writes with vLLM, behind the same `generate` and `draw`. Optional: `pip install vllm`.

Never run against a real vLLM. It is written against the source of vLLM 0.33.0 (`vllm/entrypoints/llm.py`,
`sampling_params.py`, `outputs.py`, `v1/sample/sampler.py`, `v1/core/sched/utils.py`) and tested against a stand-in that
takes the same arguments and answers in the same form.

What is as with our own engine: prompts go in as tokens; the end token is kept; `ends` alone end an answer, whatever the
model's own files say; every answer has a seed of its own from the run's seed, its prompt and its key; several answers to
a prompt are several requests, which share the prompt through vLLM's prefix cache. What is not:

* Sampled answers differ from our engine's: vLLM turns the same seed into other random numbers.
* An answer depends on those beside it as far as vLLM's arithmetic depends on the size of a batch: a rounding can turn a
  token, also a greedy one. vLLM has a setting against that (VLLM_BATCH_INVARIANT=1), at a price.
* Answers end where the model's context ends, ours at `max_new` alone.
* How likely tokens were is vLLM's `processed_logprobs`, which are after top-p and top-k: with those `draw` refuses.
* An answer that a `stop` function ends is written on to `max_new` and cut, since vLLM cannot ask Python in between.
* Temperatures are 0 or between 0.01 and 2.

It takes a teacher's folder of weights. A student's weights change at every step, and vLLM would have to be given them
each time; that is not here, so methods that learn from the student's own answers write with our own engine.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.files import content_hash
from ..core.run import Run, RunError
from ..models.generate import Answer, Engine, Sampling, ends_in_configs
from ..models.hub import HubLM, StageLM, load_config, resolve, transformers
from .local import LocalLM, check_tokenizers

LEAST, MOST = 0.01, 2.0  # vLLM's temperatures: below it draws at 0.01, above it raises


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """Let vLLM write what a stage wants written by the recipe's teacher, a `LocalLM`.

    The weights are read once, at the first answer, and leave the GPU when the stage ends. `docs/generation.md`.
    """

    memory: float = 0.9  # the share of the GPU's memory that vLLM takes, weights and all
    length: int | None = None  # tokens of prompt and answer to make room for; None: the model's context

    def __post_init__(self) -> None:
        if not 0 < self.memory <= 1 or (self.length is not None and self.length < 2):
            raise ValueError("memory is a share of the GPU's, above 0 and up to 1, and length at least 2 tokens")

    @contextmanager
    def opened(self, run: Run) -> Generator[VllmEngine]:
        """The run's only teacher in vLLM. RunError before anything is read if vLLM is not there or cannot take it."""
        teachers = list(run.recipe.teachers.values())
        if len(teachers) != 1 or not isinstance(teachers[0], LocalLM):
            found = ", ".join(type(teacher).__name__ for teacher in teachers) or "none"
            raise RunError(f"vLLM writes for one teacher, a LocalLM (the recipe has {found}): leave `engine` out")
        teacher = teachers[0]
        if teacher.same_tokenizer:
            check_tokenizers(run.recipe.student.tokenizer(run), teacher.model.tokenizer(run))
        engine = self.of(teacher.model, run, teacher.temperature)
        try:
            yield engine
        finally:
            engine.close()

    def of(self, model: HubLM | StageLM, run: Run | None = None, temperature: float = 1.0) -> VllmEngine:
        """The model's folder as an engine, which is not read yet; `temperature` divides its logits for good.

        A `StageLM` needs the run whose stage it is.
        """
        if importlib.util.find_spec("vllm") is None:
            raise RunError("`engine` asks for vLLM, which is not installed: pip install vllm, or leave `engine` out")
        if isinstance(model, HubLM) and model.lora is not None:
            raise RunError("vLLM reads a folder of weights, and fresh adapters are in none: leave `lora` or `engine` out")
        folder = resolve(model.path) if isinstance(model, HubLM) else str(run.path(model.stage))  # type: ignore[union-attr]
        return VllmEngine(self, folder, model.dtype, temperature)


class VllmEngine(Engine):
    """A model folder that vLLM reads at the first answer."""

    def __init__(self, spec: Vllm, folder: str, dtype: str, temperature: float = 1.0):
        self.spec, self.folder, self.dtype, self.temperature = spec, folder, dtype, temperature
        config = load_config(folder)
        most = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
        self.context = min(most, spec.length or most)
        self.ends = ends_in_configs(_generation_config(folder), config)
        self._llm: Any = None

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        ends: frozenset[int],
        likely: bool,
    ) -> list[Answer]:
        """As `Engine.answers`; RunError for a sampling that vLLM cannot do."""
        temperature = self._temperature(sampling, likely)
        library = importlib.import_module("vllm")
        how = [
            library.SamplingParams(
                temperature=temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=min(sampling.max_new, self.context - len(prompt)),
                seed=seed if temperature else None,
                stop_token_ids=sorted(ends),
                ignore_eos=True,  # vLLM's own end token: `ends` says which there are
                logprobs=0 if likely else None,  # of the drawn token alone
                detokenize=False,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        llm = self._loaded(library)
        try:
            made = llm.generate(asked, how, use_tqdm=False)
        except Exception as error:  # of its own process too, which Ctrl-C ends
            raise RunError(f"vLLM failed while it wrote: {_first_line(error)}") from error
        return [self._answer(request.outputs[0], likely) for request in made]  # in the order of the prompts

    def _answer(self, output: Any, likely: bool) -> Answer:
        tokens = list(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            raise RunError(f"vLLM gave up an answer after {len(tokens)} tokens: {output.finish_reason}")
        if not likely:
            return Answer(tokens, [])
        return Answer(tokens, [each[token].logprob for token, each in zip(tokens, output.logprobs, strict=True)])

    def _temperature(self, sampling: Sampling, likely: bool) -> float:
        """What vLLM is to divide the logits by, the teacher's own temperature included."""
        temperature = sampling.temperature * self.temperature
        if temperature and not LEAST <= temperature <= MOST:
            raise RunError(f"vLLM draws at temperatures of 0 or {LEAST} to {MOST}, not {temperature:g}")
        if likely and (sampling.top_p < 1 or sampling.top_k) and temperature:
            raise RunError("vLLM says how likely tokens are after the cut alone: top_p=1 and top_k=0, or our own engine")
        if likely and not temperature and self.temperature != 1:
            raise RunError("vLLM says how likely greedy tokens are at temperature 1 alone: leave the teacher's at 1")
        return temperature

    def _loaded(self, library: Any) -> Any:
        if self._llm is None:
            gc.collect()
            torch.cuda.empty_cache()  # what earlier stages have left; nothing where there is no GPU
            try:
                self._llm = library.LLM(
                    model=self.folder,
                    dtype=self.dtype,
                    max_model_len=self.context,
                    gpu_memory_utilization=self.spec.memory,
                    enable_prefix_caching=True,
                    generation_config="vllm",  # nothing of the model's own sampling settings
                    logprobs_mode="processed_logprobs",  # at the sampling's temperature
                )
            except Exception as error:
                raise RunError(f"vLLM cannot load {self.folder}: {_first_line(error)}") from error
        return self._llm

    def weights(self) -> str:
        """What stands for the weights without reading them as a model: a hash of the folder's files, or the hub's name."""
        folder = Path(self.folder)
        return content_hash(folder) if folder.is_dir() else self.folder

    def close(self) -> None:
        """Let go of the model: vLLM ends its process, and the GPU's memory is free, when nobody holds it any more."""
        self._llm = None
        gc.collect()


def _generation_config(folder: str) -> Any:
    """The folder's own generation settings; None if it has none."""
    try:
        return transformers().GenerationConfig.from_pretrained(folder)
    except OSError:
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
