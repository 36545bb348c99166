"""vLLM as a writer, against a stand-in: the real one needs a GPU and has never run here.

The stand-in has the argument names, defaults and refusals of vLLM 0.33.0 (read in its wheel: `LLM.__init__` and
`LLM.generate` of vllm/entrypoints/llm.py, the fields and `_verify_args` of vllm/sampling_params.py, `CompletionOutput` and
`RequestOutput` of vllm/outputs.py), ends answers in the order of `check_stop` (vllm/v1/core/sched/utils.py), and gives
log-probabilities as `processed_logprobs` of vllm/v1/sample/sampler.py. It reads the whole text again for every token.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from language import Folders, chats, llama, run_of, write_jsonl
from stillhouse.cli.door import build
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.tokens import Text
from stillhouse.data.traces import Traces
from stillhouse.methods.classics.seqkd import Write
from stillhouse.models.generate import Sampling, draw, generate
from stillhouse.models.hub import CausalLM, HubLM, Lora, StageLM, load_model
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.module import ModuleTeacher
from stillhouse.teachers.text import Ask, Decoding, fingerprint
from stillhouse.teachers.vllm import Vllm, VllmEngine
from stillhouse.teachers.writer import LocalChat

GREEDY = Sampling(temperature=0.0, max_new=12)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [8, 200], [250, 3, 77, 41], [60] * 9, [33, 34]]

# -- the stand-in ------------------------------------------------------------------------------------------------------


class SamplingParams:
    """vllm.SamplingParams 0.33.0: the fields that a caller may set."""

    FIELDS: Mapping[str, Any] = {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
        "watermarking": None, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": None, "stop_token_ids": None,
        "ignore_eos": False, "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None,
        "prompt_logprob_token_ids": None, "prompt_logprob_start": None, "logprob_token_ids": None, "flat_logprobs": False,
        "detokenize": True, "skip_special_tokens": True, "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False, "output_kind": 0, "stream_interval": None, "skip_clone": False,
        "structured_outputs": None, "logit_bias": None, "allowed_token_ids": None, "extra_args": None, "bad_words": None,
    }  # fmt: skip

    def __init__(self, **given: Any):
        unknown = given.keys() - self.FIELDS.keys()
        if unknown:
            raise TypeError(f"Unexpected keyword argument {sorted(unknown)[0]!r}")
        vars(self).update(self.FIELDS, **given)
        own = SimpleNamespace(**vars(self))
        if not math.isfinite(own.temperature) or not 0 <= own.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {own.temperature}.")
        if not 0 < own.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {own.top_p}.")
        if type(own.top_k) is not int or own.top_k < -1:
            raise ValueError(f"top_k must be 0 (disable), or at least 1, got {own.top_k}.")
        if own.max_tokens is not None and own.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {own.max_tokens}.")
        if own.seed is not None and not -(2**63) <= own.seed < 2**63:  # an int64 in the worker
            raise ValueError("seed")
        if not all(type(token) is int for token in own.stop_token_ids or []):
            raise ValueError("stop_token_ids must contain only integers")
        if own.temperature < 1e-5:
            if own.n > 1:
                raise ValueError(f"n must be 1 when using greedy sampling, got {own.n}.")
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
        elif own.temperature < 0.01:
            self.temperature = 0.01


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class LLM:
    """vllm.LLM 0.33.0. The arguments behind `model` are by name; further ones go to EngineArgs."""

    NAMES = {
        "runner", "convert", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code",
        "allowed_local_media_path", "allowed_media_domains", "tensor_parallel_size", "dtype", "quantization", "revision",
        "tokenizer_revision", "chat_template", "seed", "gpu_memory_utilization", "cpu_offload_gb", "enforce_eager",
        "disable_custom_all_reduce", "hf_token", "hf_overrides", "kv_cache_memory_bytes", "compilation_config",
        "max_model_len", "enable_prefix_caching", "generation_config", "logprobs_mode", "max_num_seqs",  # of EngineArgs
    }  # fmt: skip
    eos = 0  # the tokenizer's, which vLLM adds to what ends an answer unless it is told not to
    made: list[weakref.ref[LLM]] = []
    asked: list[tuple[list[int], Any]] = []

    def __init__(self, model: str, **given: Any):
        if given.keys() - self.NAMES:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {given.keys() - self.NAMES}")
        assert given.get("dtype", "auto") in ("auto", "half", "float16", "bfloat16", "float", "float32")
        assert 0 < given["gpu_memory_utilization"] <= 1
        self.model: Any = load_model(model).double()
        self.ends = {self.eos} if given.get("generation_config", "auto") == "auto" else set[int]()
        self.mode = given.get("logprobs_mode", "raw_logprobs")
        derived = self.model.config.max_position_embeddings
        self.context = given.get("max_model_len") or derived
        if self.context > derived:
            raise ValueError(f"User-specified max_model_len ({self.context}) is greater than the derived max_model_len")
        LLM.made.append(weakref.ref(self))

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: Any = True, lora_request: Any = None) -> Any:
        if isinstance(sampling_params, Sequence) and len(sampling_params) != len(prompts):
            raise ValueError(
                f"The lengths of prompts ({len(prompts)}) and params ({len(sampling_params)}) must be the same."
            )
        found: list[Any] = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            tokens = prompt["prompt_token_ids"]
            assert type(tokens) is list and all(type(token) is int for token in tokens) and tokens
            if len(tokens) > self.context:
                raise ValueError(f"The decoder prompt (length {len(tokens)}) is longer than the maximum model length")
            LLM.asked.append((tokens, params))
            outputs = [self._answer(tokens, params, index) for index in range(params.n)]
            found.append(SimpleNamespace(prompt=None, prompt_token_ids=tokens, outputs=outputs, finished=True))
        return found

    @torch.no_grad()
    def _answer(self, prompt: list[int], params: Any, index: int) -> CompletionOutput:
        rng = torch.Generator()
        rng.manual_seed(params.seed + index) if params.seed is not None else rng.seed()
        tokens: list[int] = []
        told: list[dict[int, Any]] = []
        stops = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else self.ends)}
        while True:
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, -1]
            raw = logits.log_softmax(-1)
            if params.temperature < 1e-5:
                processed, token = raw, int(logits.argmax())
            else:
                logits = cut(logits / params.temperature, params.top_k, params.top_p)
                processed = logits.log_softmax(-1)
                noise = torch.empty_like(logits).exponential_(generator=rng)
                token = int((processed.exp() / noise).argmax())
            likely = {"raw_logprobs": raw, "processed_logprobs": processed}[self.mode]
            tokens.append(token)
            if params.logprobs is not None:
                near = [token, *likely.topk(params.logprobs).indices.tolist()]
                told.append({t: SimpleNamespace(logprob=float(likely[t]), rank=1, decoded_token=None) for t in near})
            total = None if params.logprobs is None else 0.0
            kept = CompletionOutput(index, "", tokens, total, told if params.logprobs is not None else None)
            if not params.ignore_eos and token == self.eos:
                return replace(kept, finish_reason="stop")
            if token in stops:
                return replace(kept, finish_reason="stop", stop_reason=token)
            if len(prompt) + len(tokens) >= self.context or len(tokens) >= params.max_tokens:
                return replace(kept, finish_reason="length")


def cut(logits: torch.Tensor, k: int, p: float) -> torch.Tensor:
    """vLLM's order: the k largest, then of these the fewest that make up p."""
    order = logits.argsort(descending=True)
    order = order[:k] if k > 0 else order
    probs = logits[order].softmax(-1)
    kept = order[(probs.cumsum(-1) - probs) < p]
    out = torch.full_like(logits, -torch.inf)
    out[kept] = logits[kept]
    return out


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in as the module `vllm`."""
    module: Any = ModuleType("vllm")
    module.__spec__ = importlib.util.spec_from_loader("vllm", None)
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.33.0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made.clear()
    LLM.asked.clear()
    return module


@pytest.fixture(scope="module")
def model(folders: Folders) -> CausalLM:
    return CausalLM(load_model(str(folders.teacher)))


def engine(folders: Folders, temperature: float = 1.0, **settings: Any) -> VllmEngine:
    return Vllm(**settings).of(HubLM(path=str(folders.teacher)), temperature=temperature)


# -- the contract of `draw` ------------------------------------------------------------------------------------------------


def test_greedy_answers_are_our_own(vllm: Any, folders: Folders, model: CausalLM) -> None:
    ours, theirs = draw(model, PROMPTS, GREEDY, seed=0), draw(engine(folders), PROMPTS, GREEDY, seed=3)
    assert [a.tokens for a in theirs] == [a.tokens for a in ours]
    for mine, other in zip(ours, theirs, strict=True):
        assert other.logp == pytest.approx(mine.logp, abs=1e-4)
    assert [prompt for prompt, _ in LLM.asked] == PROMPTS and len(LLM.made) == 1


def test_what_ends_an_answer_is_what_is_asked_for(
    vllm: Any, folders: Folders, model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, frequent tokens, the model's own: the end stays, and what vLLM takes for an end of its own is none."""
    writes = engine(folders)
    free = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset())
    assert writes.ends == {0} and all(len(answer) == 12 for answer in free)
    frequent = frozenset({free[0][2], free[3][1]})
    monkeypatch.setattr(LLM, "eos", free[1][3])
    for ends in (frozenset[int](), frequent, frozenset({0})):
        assert generate(writes, PROMPTS, GREEDY, seed=0, ends=ends) == generate(model, PROMPTS, GREEDY, seed=0, ends=ends)
    cut_off = generate(writes, PROMPTS, GREEDY, seed=0, ends=frequent)
    assert any(len(a) < 12 for a in cut_off) and all(len(a) == 12 or a[-1] in frequent for a in cut_off)


def test_the_end_tokens_of_the_folder_are_found(vllm: Any, tmp_path: Path) -> None:
    """Those of generation_config.json and of config.json, and a model of which only the latter is there."""
    several = llama(eos_token_id=[0, 7])
    several.save_pretrained(tmp_path / "m")
    assert VllmEngine(Vllm(), str(tmp_path / "m"), "float32").ends == {0, 7}
    (tmp_path / "m" / "generation_config.json").unlink()
    assert VllmEngine(Vllm(), str(tmp_path / "m"), "float32").ends == {0, 7}


@pytest.mark.parametrize("own", [1.0, 0.5])
def test_likelihoods_are_those_at_the_temperature(vllm: Any, folders: Folders, model: CausalLM, own: float) -> None:
    """Against log-softmax(logits / temperature) of a whole pass; the teacher's own temperature multiplies it."""
    made = draw(engine(folders, own), PROMPTS, Sampling(temperature=0.8, max_new=5), seed=1, ends=frozenset())
    for prompt, answer in zip(PROMPTS, made, strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([prompt + answer.tokens])).logits[0].double()  # type: ignore[operator]
        every = (logits / (0.8 * own)).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = every.gather(-1, torch.tensor(answer.tokens)[:, None]).squeeze(-1)
        assert answer.logp == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_answer_depends_on_seed_prompt_and_key_alone(vllm: Any, folders: Folders) -> None:
    writes, how = engine(folders), Sampling(max_new=8)
    prompts = [[5, 6]] * 4 + [[9]] * 2
    made = generate(writes, prompts, how, seed=1)
    assert len({tuple(a) for a in made[:4]}) == 4  # several answers to a prompt differ
    assert generate(writes, [[5, 6], [1, 2], [5, 6]], how, seed=1)[::2] == made[:2]  # and not by their neighbours
    assert generate(writes, prompts, how, seed=2)[0] != made[0]
    keyed = generate(writes, [[5, 6], [9]], how, seed=1, keys=[3, 1])
    assert keyed == [made[3], made[5]]
    assert {params.n for _, params in LLM.asked} == {1} and len({p.seed for _, p in LLM.asked[:6]}) == 6


def test_the_tail_is_cut(vllm: Any, folders: Folders, model: CausalLM) -> None:
    """top_k and top_p arrive: all first tokens are among those that our own engine would draw, and are not one alone."""
    logits = model.model(torch.tensor([[8, 200]])).logits[0, -1].detach()  # type: ignore[operator]
    for how in (Sampling(top_k=3, max_new=1), Sampling(top_p=0.4, max_new=1), Sampling(top_k=5, top_p=0.5, max_new=1)):
        made = {a[0] for a in generate(engine(folders), [[8, 200]] * 60, how, seed=0)}
        ours = {a[0] for a in generate(model, [[8, 200]] * 300, how, seed=0)}
        assert 1 < len(made) and made <= ours <= set(logits.topk(150).indices.tolist())
        assert all(not params.logprobs and (params.top_k, params.top_p) == (how.top_k, how.top_p) for _, params in LLM.asked)
        LLM.asked.clear()


def test_a_function_that_stops_cuts_where_it_would_have(vllm: Any, folders: Folders, model: CausalLM) -> None:
    seen: list[tuple[int, int]] = []

    def stop(tokens: Sequence[int]) -> bool:
        return len(tokens) > 2 and tokens[-1] % 2 == 0

    ours = draw(model, PROMPTS, GREEDY, seed=0, stop=stop)
    theirs = draw(engine(folders), PROMPTS, GREEDY, seed=0, stop=stop, on_batch=lambda *told: seen.append(told))
    assert [a.tokens for a in theirs] == [a.tokens for a in ours] and any(len(a.tokens) < 12 for a in ours)
    assert all(len(a.tokens) == len(a.logp) for a in theirs)
    assert seen == [(len(PROMPTS), sum(len(a.tokens) for a in ours))]


def test_the_context_ends_an_answer(vllm: Any, folders: Folders, model: CausalLM) -> None:
    writes = engine(folders, length=10)
    made = generate(writes, [[5] * 9, [5] * 4], GREEDY, seed=0, ends=frozenset())
    ours = generate(model, [[5] * 9, [5] * 4], GREEDY, seed=0, ends=frozenset())
    assert [len(a) for a in made] == [1, 6] and all(o[: len(a)] == a for a, o in zip(made, ours, strict=True))
    with pytest.raises(RunError, match="10 tokens leaves no room in the model's 10: lower data.length"):
        generate(writes, [[5] * 10], GREEDY, seed=0)
    with pytest.raises(ValueError, match="at least one token"):
        generate(writes, [[]], GREEDY, seed=0)
    assert generate(writes, [], GREEDY, seed=0) == []


def test_what_it_cannot_do_is_refused(vllm: Any, folders: Folders, model: CausalLM) -> None:
    writes = engine(folders)
    for how in (Sampling(top_p=0.9), Sampling(top_k=4)):
        with pytest.raises(RunError, match="after the cut alone"):
            draw(writes, PROMPTS, how, seed=0)
    with pytest.raises(RunError, match="0 or 0.01 to 2.0, not 3"):
        generate(writes, PROMPTS, Sampling(temperature=3.0), seed=0)
    with pytest.raises(RunError, match="not 0.001"):
        generate(writes, PROMPTS, Sampling(temperature=0.001), seed=0)
    with pytest.raises(RunError, match="leave the teacher's at 1"):
        draw(engine(folders, 0.5), PROMPTS, GREEDY, seed=0)
    with pytest.raises(RunError, match="mixes two"):
        draw(writes, PROMPTS, GREEDY, seed=0, mix=(model, 0.5))
    with pytest.raises(RunError, match="fresh adapters"):
        Vllm().of(HubLM(path=str(folders.teacher), lora=Lora()))
    assert not LLM.made  # all of it before the weights are read
    with pytest.raises(ValueError, match="share of the GPU's"):
        Vllm(memory=90)


def test_its_errors_are_one_line(vllm: Any, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = engine(folders)
    generate(writes, PROMPTS[:1], GREEDY, seed=0)

    def dead(*_: Any, **__: Any) -> Any:
        raise RuntimeError("EngineCore encountered an issue.\nSee stack trace")

    def given_up(self: Any, prompts: Any, params: Any, **__: Any) -> Any:
        return [SimpleNamespace(outputs=[CompletionOutput(0, "", [4], None, None, "abort")]) for _ in prompts]

    monkeypatch.setattr(LLM, "generate", given_up)
    with pytest.raises(RunError, match="gave up an answer after 1 tokens: abort"):
        generate(writes, PROMPTS, GREEDY, seed=0)
    monkeypatch.setattr(LLM, "generate", dead)
    with pytest.raises(RunError, match="^vLLM failed while it wrote: EngineCore encountered an issue$"):
        generate(writes, PROMPTS, GREEDY, seed=0)
    monkeypatch.setattr(LLM, "__init__", dead)
    with pytest.raises(RunError, match="vLLM cannot load .*teacher: EngineCore"):
        generate(engine(folders), PROMPTS, GREEDY, seed=0)


# -- the stages ------------------------------------------------------------------------------------------------------------


def recipe(folders: Folders, tmp_path: Path, **settings: Any) -> Recipe:
    data = Text(path=str(write_jsonl(tmp_path / "a.jsonl", chats(20, answered=False))), length=64, valid=0.0, test=0.1)
    how = Sampling(temperature=0.0, max_new=6, batch=8)
    return Recipe(
        id="write", student=HubLM(path=str(folders.student)), data=data,
        teachers={"teacher": LocalLM(model=HubLM(path=str(folders.teacher)))},
        stages={"write": Write(**({"data": data, "sampling": how} | settings))},
    )  # fmt: skip


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path("write") / "train.jsonl").read_text().splitlines()]


def test_a_stage_writes_what_our_own_engine_writes(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    """Once read, gone at the end, and the teacher is not read a second time for it."""
    found: list[Any] = []
    for name, how in (("own", None), ("vllm", Vllm(memory=0.5))):
        run = run_of(tmp_path / name, None)
        execute(recipe(folders, tmp_path, engine=how), run)
        found.append(lines(run))
        assert bool(run.teachers.built) == (how is None)  # type: ignore[attr-defined]
    assert found[0] == found[1] and len(found[0]) == 18
    assert len(LLM.asked) == 18 and [made() for made in LLM.made] == [None]
    run.recipe = recipe(folders, tmp_path)
    with Vllm().opened(run) as writes:  # gone although somebody still holds the engine
        generate(writes, PROMPTS[:1], GREEDY, seed=0)
        assert LLM.made[1]() is not None
    assert LLM.made[1]() is None


def test_a_finished_part_is_not_written_again(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", None)
    made = recipe(folders, tmp_path, engine=Vllm())
    execute(made, run)
    first, state = lines(run), run.folder / "state" / "write"
    assert not state.exists() and len(LLM.asked) == 18
    run = run_of(tmp_path / "again", None)
    (run.folder / "state" / "write").mkdir(parents=True)
    order = sorted(first, key=lambda line: (len(line["prompt"]), line["example"]))
    text = "".join(json.dumps(line) + "\n" for line in order[:8])
    (run.folder / "state" / "write" / "train_00000000.jsonl").write_text(text)
    execute(made, run)
    assert lines(run) == first and len(LLM.asked) == 18 + 10


class Even:
    """Questions of which one is right if its last token is even."""

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        return {"train": PROMPTS}

    def ends(self, run: Run) -> frozenset[int]:
        return frozenset({0})

    def verify(self, run: Run, split: str, example: int, answer: Sequence[int]) -> float:
        return float(answer[-1] % 2 == 0)


def test_traces_too(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    made = recipe(folders, tmp_path)
    stage = Traces(data=Even(), each=4, sampling=Sampling(max_new=3, batch=8), engine=Vllm())
    run = run_of(tmp_path / "run", None)
    execute(replace(made, stages={"traces": stage}), run)
    mark = run.done("traces")
    assert mark["asked"] == 28 and 0 < mark["right"] < 28 and len(LLM.asked) == 28 and len(LLM.made) == 1


def test_the_model_of_an_earlier_stage_writes(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    run = SimpleNamespace(path=lambda stage: folders.student if stage == "adapt" else None)
    writes = Vllm().of(StageLM(stage="adapt"), run)  # type: ignore[arg-type]
    own = CausalLM(load_model(str(folders.student)))
    assert generate(writes, PROMPTS, GREEDY, seed=0) == generate(own, PROMPTS, GREEDY, seed=0)


class Untouched:
    """Data that nobody may read: what is wrong is said before."""

    def prompts(self, run: Run) -> Any:
        raise AssertionError("read before the check")

    verify = prompts


@pytest.mark.parametrize("stage", [Write, Traces])
def test_without_vllm_the_stage_says_so_at_once(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else real(name, *rest))
    made = replace(recipe(folders, tmp_path), stages={"write": stage(data=Untouched(), engine=Vllm())})
    run = run_of(tmp_path / "run", None)
    with pytest.raises(RunError, match="not installed: pip install vllm, or leave `engine` out") as caught:
        execute(made, run)
    assert "\n" not in str(caught.value) and not run.teachers.built  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="pip install vllm"):
        LocalChat(model=HubLM(path=str(folders.teacher)), engine=Vllm()).build(run)


def test_teachers_that_it_cannot_take_are_refused_at_once(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    made = replace(recipe(folders, tmp_path), stages={"write": Write(data=Untouched(), engine=Vllm())})
    toy = ModuleTeacher(spec=TinyLM(width=8, depth=1))
    for teachers, why in (({"teacher": toy}, "ModuleTeacher"), ({}, "none"), ({"a": toy, "b": toy}, "ModuleTeacher, Mod")):
        with pytest.raises(RunError, match=f"a LocalLM .the recipe has {why}"):
            execute(replace(made, teachers=teachers), run_of(tmp_path / f"run{why[:4]}{len(teachers)}", None))
    foreign = {"teacher": LocalLM(model=HubLM(path=str(folders.foreign)))}
    with pytest.raises(TeacherMismatch, match="different tokenizers"):
        execute(replace(made, teachers=foreign), run_of(tmp_path / "foreign", None))


def test_a_snapshot_holds_the_engine(folders: Folders, tmp_path: Path) -> None:
    made = recipe(folders, tmp_path).set("write.engine", Vllm(memory=0.5, length=512))
    assert made.plain()["stages"]["write"]["engine"] == {"use": "teachers.vllm.Vllm", "memory": 0.5, "length": 512}
    assert build(made.plain()).stages["write"] == made.stages["write"]


def test_a_conversation(vllm: Any, folders: Folders, tmp_path: Path) -> None:
    model, run = HubLM(path=str(folders.teacher)), run_of(tmp_path / "run", HubLM(path=str(folders.teacher)))
    own, other, again = (LocalChat(model=model, engine=e).build(run) for e in (None, Vllm(), Vllm(memory=0.3)))
    decoding = Decoding(temperature=0.0, max_new=12)
    asks = [Ask(messages=(("user", f"the cat sees {word}"),), decoding=decoding) for word in ("the moon", "a dog", "two")]
    said = [teacher({"asks": asks}, frozenset({"text"})).need("text") for teacher in (own, other)]
    assert said[0] == said[1] and all(isinstance(each[0], Completion) for each in said[0])
    assert fingerprint(other) == fingerprint(again) != fingerprint(own)  # a cache keeps them apart
    long = replace(asks[0], messages=(("user", "moon " * 400),))  # more than the model's context
    assert other({"asks": [long]}, frozenset({"text"})).need("text") == [()]
