"""Sampling: the same as transformers' own where it is greedy, the right distribution where it is not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from torch import nn

from language import Folders, llama
from stillhouse.core.run import RunError
from stillhouse.data.tokens import prompts_of
from stillhouse.data.toys import Sentences
from stillhouse.data.toys import encode as encode_characters
from stillhouse.models.generate import BLOCK, HEAD, Sampling, _cut, _sample, answered, draw, ends_of, generate, rollout
from stillhouse.models.hub import CausalLM, load_model
from stillhouse.models.toys import Transformer

GREEDY = Sampling(temperature=0.0, max_new=12)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [8, 200], [250, 3, 77, 41], [60] * 9, [33, 34]]


@pytest.fixture(scope="module")
def model(folders: Folders) -> CausalLM:
    return CausalLM(load_model(str(folders.teacher)))


@pytest.fixture(scope="module")
def other() -> CausalLM:
    return CausalLM(llama(seed=7))


def greedy(model: CausalLM, prompt: list[int], new: int = 12) -> list[int]:
    """What transformers writes by itself, one prompt at a time."""
    made = model.model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)  # type: ignore[operator]
    return made[0, len(prompt) :].tolist()


def test_greedy_answers_are_transformers_own(model: CausalLM) -> None:
    expected = [greedy(model, p) for p in PROMPTS]
    assert generate(model, PROMPTS, GREEDY, seed=0) == expected
    for size in (1, 3):  # whatever is in a batch beside it
        assert generate(model, PROMPTS, Sampling(temperature=0.0, max_new=12, batch=size), seed=5) == expected


def test_finished_rows_leave_without_a_trace(model: CausalLM) -> None:
    """With a frequent token as the end, rows stop at different times; each answer is cut at its first end, which stays."""
    free = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset())
    for end in {answer[k] for answer in free for k in (0, 2, 5)}:
        cut = [a[: a.index(end) + 1] if end in a else a for a in free]
        assert generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset({end})) == cut


def test_writing_stops_when_all_rows_have_ended(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    project = model.project
    monkeypatch.setattr(model, "project", lambda hidden: reads.append(1) or project(hidden))
    free = generate(model, PROMPTS[:5], GREEDY, seed=0, ends=frozenset())
    end = free[0][1]
    longest = max(len(a) for a in generate(model, PROMPTS[:5], GREEDY, seed=0, ends=frozenset({end})))
    reads.clear()
    generate(model, PROMPTS[:5], GREEDY, seed=0, ends=frozenset({end}))
    assert len(reads) == longest


def test_the_models_own_end_tokens_are_found(model: CausalLM) -> None:
    assert ends_of(model) == {0}
    assert ends_of(nn.Linear(1, 1)) == set()
    several = CausalLM(llama(eos_token_id=[0, 7]))  # of the text and of a turn, as in Llama 3
    assert ends_of(several) == {0, 7}


def chi_square(drawn: list[int], probs: torch.Tensor) -> float:
    """The p-value of the draws under `probs`; rare classes are counted together."""
    counts = torch.zeros(len(probs), dtype=torch.float64)
    for token, count in Counter(drawn).items():
        counts[token] = count
    expected = probs.double() / probs.double().sum() * len(drawn)
    common = expected >= 5
    assert counts[probs == 0].sum() == 0
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 0
    return float(stats.chisquare(seen[keep], wanted[keep]).pvalue)


def one_step(model: CausalLM, sampling: Sampling, **settings: object) -> list[int]:
    prompts = [[5, 6, 7]] * 2000
    return [a[0] for a in generate(model, prompts, sampling, seed=1, **settings)]  # type: ignore[arg-type]


@torch.no_grad()
def test_draws_follow_the_distribution(model: CausalLM) -> None:
    logits = model.model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    for temperature in (1.0, 0.5):
        drawn = one_step(model, Sampling(temperature=temperature, max_new=1, batch=2000))
        assert chi_square(drawn, (logits / temperature).softmax(-1)) > 1e-3


@torch.no_grad()
def test_top_p_cuts_the_tail(model: CausalLM) -> None:
    probs = model.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    nucleus, mass = set[int](), 0.0
    for token in probs.argsort(descending=True).tolist():  # the smallest set that holds 70 %
        if mass >= 0.7:
            break
        nucleus.add(token)
        mass += float(probs[token])
    inside = torch.tensor([float(p) if i in nucleus else 0.0 for i, p in enumerate(probs)])
    drawn = one_step(model, Sampling(top_p=0.7, max_new=1, batch=2000))
    assert set(drawn) <= nucleus and chi_square(drawn, inside) > 1e-3


@torch.no_grad()
def test_top_k_cuts_the_tail(model: CausalLM) -> None:
    probs = model.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    likeliest = set(probs.topk(5).indices.tolist())
    inside = torch.tensor([float(p) if i in likeliest else 0.0 for i, p in enumerate(probs)])
    drawn = one_step(model, Sampling(top_k=5, max_new=1, batch=2000))
    assert set(drawn) == likeliest and chi_square(drawn, inside) > 1e-3


@pytest.mark.parametrize("sharpness", [0.01, 3.0])  # nearly uniform: the share lies beyond the head; and within it
@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.5, 40), (0.3, 2 * HEAD), (1.0, 7)])
def test_the_tail_of_a_large_vocabulary_is_that_of_a_full_sort(sharpness: float, top_p: float, top_k: int) -> None:
    logits = sharpness * torch.randn(6, 5 * HEAD + 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = logits.softmax(-1)
    expected = torch.zeros_like(probs)
    for row, out in zip(probs, expected, strict=True):
        order = row.argsort(descending=True)[: top_k or None].tolist()
        whole, mass = float(row[order].sum()) if top_k else 1.0, 0.0
        for token in order:
            if mass >= top_p * whole:
                break
            out[token] = row[token]
            mass += float(row[token])
    assert torch.equal(_cut(probs, Sampling(top_p=top_p, top_k=top_k)), expected)


def test_a_point_finds_its_class_as_in_a_running_sum() -> None:
    weights = torch.rand(200, 3 * BLOCK + 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    weights[:, 100:700] = 0.0
    points = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[0], points[1] = 0.0, 1.0 - 2**-53  # the ends
    running = weights.cumsum(-1)
    expected = torch.searchsorted(running, points[:, None] * running[:, -1:], right=True).squeeze(-1)
    assert torch.equal(_sample(weights, points), expected)
    alone = torch.zeros(2, 3 * BLOCK).index_fill_(1, torch.tensor([2 * BLOCK - 1]), 1e-30)
    assert _sample(alone, torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)).tolist() == [2 * BLOCK - 1] * 2


@torch.no_grad()
def test_log_probabilities_are_those_of_the_model_reading_its_answer(model: CausalLM) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new=9, batch=4)
    for prompt, answer in zip(PROMPTS, draw(model, PROMPTS, sampling, seed=2), strict=True):
        logits = model.model(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None]).squeeze(-1)
        assert len(answer.logp) == len(answer.tokens)
        assert torch.allclose(torch.tensor(answer.logp), expected, atol=1e-4)


def test_a_prompt_is_read_once_for_all_of_its_answers(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = model.read
    monkeypatch.setattr(model, "read", lambda tokens, *rest: rows.append(len(tokens)) or read(tokens, *rest))
    prompts = [p for p in PROMPTS for _ in range(3)]
    together = generate(model, prompts, Sampling(max_new=2), seed=3, ends=frozenset())
    assert rows == [len(PROMPTS), len(prompts)]
    alone = [
        generate(model, [p], Sampling(max_new=2), seed=3, ends=frozenset(), keys=[n])[0] for p in PROMPTS for n in range(3)
    ]
    assert together == alone


def test_an_answer_ends_where_it_is_told_to_stop(model: CausalLM) -> None:
    free = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset())
    short = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset(), stop=lambda answer: sum(answer) > 400)
    cut = [next((a[: n + 1] for n in range(len(a)) if sum(a[: n + 1]) > 400), a) for a in free]
    assert short == cut and short != free


def test_first_tokens_can_be_ruled_out_and_later_ones_are_free(model: CausalLM) -> None:
    free = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset())
    out = tuple(sorted({answer[0] for answer in free}))
    held = draw(model, PROMPTS, Sampling(temperature=0.0, max_new=12, not_first=out), seed=0, ends=frozenset())
    for prompt, answer in zip(PROMPTS, held, strict=True):
        logits = model.model(torch.tensor([prompt])).logits[0, -1].float()
        logits[list(out)] = -torch.inf
        assert answer.tokens[0] == int(logits.argmax())
        assert answer.logp[0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)
        rest = generate(model, [[*prompt, answer.tokens[0]]], GREEDY, seed=0, ends=frozenset())[0]
        assert answer.tokens[1:] == rest[:11]
    drawn = generate(model, [[5, 6]] * 300, Sampling(max_new=1, not_first=tuple(range(100))), seed=1)
    assert min(answer[0] for answer in drawn) >= 100


def test_an_answer_goes_on_from_its_beginning(model: CausalLM) -> None:
    whole = generate(model, PROMPTS, GREEDY, seed=0, ends=frozenset())
    rest = generate(model, [[*p, *a[:5]] for p, a in zip(PROMPTS, whole, strict=True)], GREEDY, seed=0, ends=frozenset())
    assert [a[5:] for a in whole] == [a[:7] for a in rest]


def test_what_cannot_be_drawn_is_refused(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [[5], []], GREEDY, seed=0)
    short = CausalLM(llama(max_position_embeddings=8))
    with pytest.raises(RunError, match="a prompt of 9 tokens leaves no room in the model's 8"):
        generate(short, PROMPTS, GREEDY, seed=0)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}):
        with pytest.raises(ValueError, match="sampling wants"):
            Sampling(**wrong)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_mixture_draws_from_both(model: CausalLM, other: CausalLM) -> None:
    mine, theirs = (m.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1) for m in (model, other))
    drawn = one_step(model, Sampling(max_new=1, batch=2000), mix=(other, 0.3))
    assert chi_square(drawn, 0.7 * mine + 0.3 * theirs) > 1e-3
    assert chi_square(drawn, mine) < 1e-3
    assert generate(model, PROMPTS, GREEDY, seed=0, mix=(other, 0.0)) == generate(model, PROMPTS, GREEDY, seed=0)


def test_a_mixture_with_a_padded_vocabulary(folders: Folders, model: CausalLM) -> None:
    padded = CausalLM(load_model(str(folders.padded)))
    drawn = generate(model, PROMPTS, Sampling(max_new=20), seed=0, mix=(padded, 0.5))
    assert max(max(a) for a in drawn) < 300


def test_seeds(model: CausalLM) -> None:
    sampling = Sampling(max_new=8)
    first, same, another = (generate(model, PROMPTS, sampling, seed=s) for s in (3, 3, 4))
    assert first == same != another
    doubled = generate(model, [PROMPTS[0]] * 4, sampling, seed=3)
    assert len({tuple(a) for a in doubled}) > 1  # equal prompts get different answers


def test_draws_do_not_depend_on_the_prompts_beside(model: CausalLM) -> None:
    together = generate(model, PROMPTS, Sampling(max_new=8), seed=3)
    assert generate(model, PROMPTS, Sampling(max_new=8, batch=2), seed=3) == together
    assert [generate(model, [p], Sampling(max_new=8), seed=3)[0] for p in PROMPTS] == together
    keyed = generate(model, [PROMPTS[0]] * 3, Sampling(max_new=8), seed=3, keys=["a", "b", "a"])
    assert keyed[0] == keyed[2] != keyed[1]


def test_a_rollout_does_not_depend_on_how_a_batch_is_split() -> None:
    torch.manual_seed(0)
    toy, source = Transformer(28, 16, 1, 2, True).eval(), Sentences().load(None)["train"]  # type: ignore[arg-type]
    whole = rollout(toy, source.batch(range(8), 0), Sampling(max_new=9), seed=1)
    parts = [rollout(toy, source.batch([i], 0), Sampling(max_new=9), seed=1) for i in range(8)]
    counted = [p["labels"][r][p["weight"][r] > 0].tolist() for p in parts for r in range(len(p["labels"]))]
    assert counted == [whole["labels"][r][whole["weight"][r] > 0].tolist() for r in range(len(whole["labels"]))]


def test_training_mode_and_progress(model: CausalLM) -> None:
    seen: list[tuple[int, int]] = []
    model.train()
    made = generate(
        model, PROMPTS, Sampling(temperature=0.0, max_new=3, batch=4), seed=0, on_batch=lambda *a: seen.append(a)
    )
    assert model.training
    model.eval()
    assert [done for done, _ in seen] == [4, 3] and sum(tokens for _, tokens in seen) == sum(map(len, made))
    assert generate(model, [], GREEDY, seed=0) == []


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True], ids=["with a cache", "read again for each token"])
def test_toys_and_plain_modules_write_their_most_likely_tokens(wrapped: bool) -> None:
    torch.manual_seed(0)
    toy = Transformer(28, 16, 2, 2, True).eval()
    prompts = [encode_characters(t) for t in ("the cat", "nobody", "the sea", "a", "the black dog runs")]
    answers = generate(nn.Sequential(toy) if wrapped else toy, prompts, GREEDY, seed=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        text = list(prompt)
        for token in answer:
            assert token == int(toy(torch.tensor([text])).dense()[0, -1].argmax())
            text.append(token)


# -- prompts out of batches, and batches out of answers --------------------------------------------------------------


def test_prompts_end_where_the_counted_tokens_begin(folders: Folders, tmp_path) -> None:
    source = Sentences().load(None)["train"]  # type: ignore[arg-type]
    batch = source.batch(range(6), 0)
    expected = [d.tokens[: d.counts.index(True)] for row in source.rows[:6] for d in row]
    assert prompts_of(batch) == expected


def test_a_document_without_a_prompt_opens_with_its_first_tokens() -> None:
    from stillhouse.data.tokens import Document, Packed

    batch = Packed(((Document(list(range(20)), [True] * 20, 0), Document([1, 2], [True] * 2, 1)),), 22).batch([0], 0)
    assert prompts_of(batch, opening=5) == [[0, 1, 2, 3, 4], [1, 2]]


def test_only_answers_count_in_what_was_answered() -> None:
    prompts, answers = [[5, 6, 7], [8, 9]], [[9, 0], [10, 11]]
    batch = answered(prompts, answers)
    counted = [batch["labels"][r][batch["weight"][r] > 0].tolist() for r in range(2)]
    assert counted == answers and prompts_of(batch) == prompts
    assert batch["inputs"]["document"].tolist() == [[0] * 5, [0] * 4 + [-1]]
