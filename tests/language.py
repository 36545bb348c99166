"""Tiny real language models for the tests: Llama folders and byte-pair tokenizers, made once a session, offline.

`folders` holds `teacher`, `student` (the same tokenizer, smaller), `padded` (the teacher with more rows in its head
than its tokenizer has tokens, as Qwen has), `foreign` (another tokenizer) and `plain` (no chat template).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LINES = (
    "the cat sees the moon.", "a small dog likes warm bread.", "my old uncle paints a red boat.",
    "nobody has lost the river.", "her sister sings about two birds.", "what does the baker look for?",
)  # fmt: skip
TOKENS = 300


def tokenizer_of(lines: Sequence[str] = LINES, *, size: int = TOKENS, template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer with exactly `size` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(lines, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    made.chat_template = template
    assert len(made) == size
    return made


def llama(*, rows: int = TOKENS, width: int = 32, layers: int = 3, seed: int = 0, **settings: Any) -> Any:
    """A tiny Llama with random weights, large enough that its distributions are far from flat."""
    from transformers import LlamaConfig

    return model_of(LlamaConfig, rows=rows, width=width, layers=layers, seed=seed, **settings)


def model_of(config: Any, *, rows: int = TOKENS, width: int = 32, layers: int = 3, seed: int = 0, **settings: Any) -> Any:
    """A tiny causal language model of any architecture whose configuration class takes the usual names."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    settings = {
        "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": 0,
        "pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 256, "tie_word_embeddings": True, **settings,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(
            config(vocab_size=rows, hidden_size=width, num_hidden_layers=layers, initializer_range=0.2, **settings)
        )
    return made.eval()


@dataclass(frozen=True)
class Folders:
    """Where the session's models are."""

    teacher: Path
    student: Path
    padded: Path
    foreign: Path
    plain: Path


def keep(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Save a model with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The session's model folders; tests only read them."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of()
    teacher = llama(layers=4, seed=1)
    padded = llama(layers=4, seed=1, rows=TOKENS + 20)
    weights = teacher.state_dict()
    with torch.no_grad():  # the same model but for the rows that no token uses
        for name, value in padded.state_dict().items():
            value[: len(weights[name])].copy_(weights[name]) if value.ndim == 2 else value.copy_(weights[name])
    return Folders(
        teacher=keep(teacher, tokenizer, root / "teacher"),
        student=keep(llama(width=16, layers=2, seed=2), tokenizer, root / "student"),
        padded=keep(padded, tokenizer, root / "padded"),
        foreign=keep(llama(rows=270, seed=3), tokenizer_of(["zebra quartz jukebox vex"], size=270), root / "foreign"),
        plain=keep(llama(seed=4), tokenizer_of(template=None), root / "plain"),
    )


def run_of(folder: Path, student: Any, *, data: Any = None, teacher: Any = None, seed: int = 0, **stages: Any) -> Any:
    """A run on the CPU that knows its recipe and its teachers, though nothing of it has been executed."""
    import torch

    from stillhouse.core.recipe import Recipe
    from stillhouse.core.run import Run
    from stillhouse.core.stage import LazyTeachers

    torch.set_num_threads(1)
    run = Run(folder, seed=seed, device=torch.device("cpu"))
    teachers = {} if teacher is None else {"teacher": teacher}
    run.recipe = Recipe(id="tiny", student=student, data=data, teachers=teachers, stages=stages, seed=seed)
    run.teachers = LazyTeachers(teachers, run)
    return run


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(n: int, *, answered: bool = True) -> list[dict[str, Any]]:
    """Short conversations, all different."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        turns = [{"role": "user", "content": f"{LINES[i % len(LINES)]} {i}?"}]
        if answered:
            turns.append({"role": "assistant", "content": f"{LINES[(i + 1) % len(LINES)]} {i * 7}"})
        rows.append({"messages": turns})
    return rows
