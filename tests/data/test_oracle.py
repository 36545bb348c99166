"""The oracle: the same language everywhere, sequences as often as it says, and splits that do not move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.oracle import OracleText, RandomLM, written
from stillhouse.models.call import weights_hash

SMALL = OracleText(oracle=RandomLM(symbols=6, width=16, depth=1), train=20, valid=5, test=7, prompt=2, answer=3)


def run_in(folder: Path, seed: int = 0) -> Run:
    return Run(folder / str(seed), seed=seed, device=torch.device("cpu"))


def test_the_truth_is_one_for_all_runs_and_asks_no_randomness(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = RandomLM().build(run_in(tmp_path, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_hash(first) == weights_hash(RandomLM().build(run_in(tmp_path, 1)))
    assert weights_hash(first) != weights_hash(RandomLM(number=1).build(run_in(tmp_path)))
    assert not any(p.requires_grad for p in first.parameters())


def test_sharpness_multiplies_the_logits_with_and_without_a_memory(tmp_path: Path) -> None:
    text = torch.tensor([[3, 1, 4, 1, 5]])
    soft, sharp = (RandomLM(sharpness=s).build(run_in(tmp_path)) for s in (1.0, 5.0))
    assert torch.allclose(5 * soft(text).dense(), sharp(text).dense(), rtol=1e-5)
    mask, position = torch.ones_like(text), torch.arange(5)[None]
    read = sharp.read(text, position, mask, sharp.cache()).dense()  # type: ignore[operator]
    assert torch.allclose(read, sharp(text).dense()[:, -1], atol=1e-5)


def test_sequences_are_as_frequent_as_the_oracle_says(tmp_path: Path) -> None:
    oracle = SMALL.oracle
    texts = torch.tensor(written(oracle, 20_000, 3, seed=4))
    every = torch.cartesian_prod(*[torch.arange(6)] * 3)
    with torch.no_grad():
        log_p = oracle.build(run_in(tmp_path))(every).dense().log_softmax(-1)
    expected = (log_p[:, :-1].gather(-1, every[:, 1:, None]).squeeze(-1).sum(-1)).exp() / 6
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    seen = torch.bincount(texts @ torch.tensor([36, 6, 1]), minlength=216) / len(texts)
    error = (expected * (1 - expected) / len(texts)).sqrt()
    assert bool(((seen - expected).abs() < 5 * error + 1e-6).all())


def test_one_sequence_is_one_row_whose_answer_counts(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    splits = SMALL.load(run)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "valid": 5, "test": 7}
    batch = splits["train"].batch(range(20), 0)
    assert batch["inputs"]["tokens"].shape == (20, SMALL.length) and SMALL.classes == 6
    assert batch["weight"].tolist() == [[0, 1, 1, 1, 0]] * 20
    prompts = SMALL.prompts(run)["train"]
    assert sorted(prompts) == sorted(batch["inputs"]["tokens"][:, :2].tolist())


def test_held_out_sequences_never_move_and_lessons_do(tmp_path: Path) -> None:
    one, two = (SMALL.prompts(run_in(tmp_path, seed)) for seed in (0, 1))
    other = replace(SMALL, name="teacher").prompts(run_in(tmp_path, 0))
    assert one["test"] == two["test"] == other["test"] and one["valid"] == other["valid"]
    assert one["train"] != two["train"] and one["train"] != other["train"]
    assert one == SMALL.prompts(run_in(tmp_path, 0))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a prompt and an answer"):
        replace(SMALL, prompt=0)
    with pytest.raises(RunError, match="1 or more"):
        replace(SMALL, train=0).load(run_in(tmp_path))
    assert written(SMALL.oracle, 0, 5, seed=0) == []
