"""A text encoder that contains others: each member is the network that it would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from language import LINES, run_of, tokenizer_of, write_jsonl
from stillhouse.core.run import RunError
from stillhouse.data.labelled import Labelled, LibraryTopics
from stillhouse.models.elastic_text import ElasticEncoder, OneMember, TextFamily, TextMember, attention_taps, opened
from stillhouse.models.encoder import TinyEncoder
from stillhouse.models.taps import tapped
from stillhouse.models.toys import MLP

SPEC = ElasticEncoder(
    depths=(1, 3), heads=(1, 2), widths=(8, 12), ratios=(1.5, 2.0), head_width=6, vocabulary=64, length=6, classes=3
)
DATA = LibraryTopics(each=12)
TEXTS = ["one two three four", "five", "a b c d e f g h", ""]


def built(folder: Path, spec: Any = SPEC) -> tuple[Any, TextFamily, Any]:
    run = run_of(folder, spec, data=DATA)
    torch.manual_seed(0)
    made = spec.build(run).eval()
    for name, value in made.named_parameters():  # norms and biases that are not all the same
        if value.ndim == 1:
            torch.nn.init.normal_(value, mean=float("norm" in name or "after" in name), std=0.5)
    return run, made, spec.encoder(run)(TEXTS)


def test_members_from_the_largest_to_the_smallest() -> None:
    assert len(SPEC.members) == 16
    assert SPEC.members[0] == TextMember(3, 2, 12, 2.0) and SPEC.members[-1] == TextMember(1, 1, 8, 1.5)
    assert (SPEC.members[0].inner, SPEC.members[-1].inner) == (24, 12)
    assert SPEC.members[0].name == "depth 3, heads 2, width 12, ratio 2"


def test_a_member_taken_out_says_what_it_said_inside(tmp_path: Path) -> None:
    _, whole, batch = built(tmp_path)
    said = [whole(**batch, member=i) for i in range(len(whole.members))]
    for i, logits in enumerate(said):
        alone = whole.taken(i)
        assert alone.members == (whole.members[i],)
        torch.testing.assert_close(alone(**batch), logits, rtol=1e-6, atol=1e-6)
        for own, inside in zip(alone.attention(**batch), whole.attention(**batch, member=i), strict=True):
            assert own.shape == (4, 6, 6 * whole.members[i].heads)
            torch.testing.assert_close(own, inside, rtol=1e-6, atol=1e-6)
    assert len({tuple(logits.flatten().tolist()) for logits in said}) == 16
    assert torch.equal(whole(**batch), said[0])
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), whole.taken(0).state_dict().values(), strict=True)
    )


def test_what_is_taken_out_is_a_copy(tmp_path: Path) -> None:
    _, whole, batch = built(tmp_path)
    before, alone = whole(**batch), whole.taken(0)
    torch.nn.init.zeros_(alone.head.weight)
    assert torch.equal(whole(**batch), before)


def test_by_hand(tmp_path: Path) -> None:
    """One member of one layer, in plain matrix products with the first rows and columns."""
    _, whole, batch = built(tmp_path)
    number = whole.members.index(TextMember(1, 1, 8, 1.5))
    layer: Any = whole.layer[0]

    def norm(part: Any, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * part.weight[:8] + part.bias[:8]

    def linear(part: Any, x: torch.Tensor, n: int) -> torch.Tensor:
        return x @ part.weight[:n, : x.shape[-1]].T + part.bias[:n]

    for row, mask, said in zip(batch["input_ids"], batch["attention_mask"], whole(**batch, member=number), strict=True):
        ids = row[mask.bool()]
        x = norm(whole.norm, (whole.words.weight[ids] + whole.positions.weight[: len(ids)])[:, :8])
        q, k, v = (linear(part, x, 6) for part in (layer.query, layer.key, layer.value))
        mixed = (q @ k.T / 6**0.5).softmax(-1) @ v
        x = norm(layer.after_attention, x + linear(layer.out, mixed, 8))
        x = norm(layer.after_mlp, x + linear(layer.down, torch.nn.functional.gelu(linear(layer.up, x, 12)), 8))
        torch.testing.assert_close(said, linear(whole.head, x.mean(0), 3), rtol=1e-5, atol=1e-5)


def test_a_member_teaches_its_own_part_alone(tmp_path: Path) -> None:
    _, whole, batch = built(tmp_path)
    whole(**batch, member=15).square().sum().backward()
    alone = whole.taken(15)
    alone(**batch).square().sum().backward()
    inside = dict(alone.named_parameters())
    for name, value in whole.named_parameters():
        if name not in inside:
            assert value.grad is None, name  # a layer that it does not have
            continue
        part = tuple(slice(size) for size in inside[name].shape)
        torch.testing.assert_close(value.grad[part], inside[name].grad)  # type: ignore[index]
        rest = value.grad.clone()  # type: ignore[union-attr]
        rest[part] = 0
        assert not rest.any(), name


def test_sizes_and_costs_are_those_of_the_network(tmp_path: Path) -> None:
    run, whole, batch = built(tmp_path)
    plan = SPEC.plan(run)
    ids, mask = batch["input_ids"][2:3], batch["attention_mask"][2:3]  # a text of full length
    for i in (0, 5, 15):
        alone = whole.taken(i)
        assert plan.parameters(whole.members[i]) == sum(p.numel() for p in alone.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                alone(ids, mask)
        assert plan.flops(whole.members[i]) == counter.get_total_flops()


def test_padding_changes_nothing(tmp_path: Path) -> None:
    run, whole, batch = built(tmp_path)
    torch.testing.assert_close(whole(**batch, member=3)[1:2], whole(**SPEC.encoder(run)(["five"]), member=3))
    assert whole(**batch).isfinite().all()


def test_kept_and_found_again(tmp_path: Path) -> None:
    run, whole, batch = built(tmp_path / "run")
    SPEC.save(whole, tmp_path, run)
    for found in (SPEC.load(tmp_path, run), opened(tmp_path)):
        assert torch.equal(found(**batch, member=7), whole(**batch, member=7))
    with pytest.raises(RunError, match="other members"):
        ElasticEncoder(classes=3).load(tmp_path, run)
    with pytest.raises(RunError, match="holds no network"):
        opened(tmp_path / "nowhere")
    (tmp_path / "network.json").write_text("{}")
    with pytest.raises(RunError, match="holds no network"):
        opened(tmp_path)


def test_one_member_from_a_folder(tmp_path: Path) -> None:
    run, whole, batch = built(tmp_path / "run")
    SPEC.save(whole, tmp_path, run)
    spec = OneMember(source=str(tmp_path), member=9)
    made: Any = spec.build(run)
    assert made.plan.classes == 9 and made(**batch).shape == (4, 9)  # the topics', with a new head
    torch.testing.assert_close(made.attention(**batch), whole.attention(**batch, member=9))
    fresh: Any = OneMember(source=str(tmp_path), member=9, fresh=True).build(run)
    assert fresh.members == made.members and not torch.equal(fresh.words.weight, made.words.weight)
    assert torch.equal(spec.encoder(run)(TEXTS)["input_ids"], batch["input_ids"])
    (tmp_path / "one").mkdir()
    spec.save(made, tmp_path / "one", run)
    assert torch.equal(spec.load(tmp_path / "one", run)(**batch), made(**batch))
    with pytest.raises(RunError, match="members 0 to 15, and no member 16"):
        OneMember(source=str(tmp_path), member=16).build(run)


def test_it_reads_as_a_tokenizer_does_and_takes_it_along(tmp_path: Path) -> None:
    tokenizer_of(LINES).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "bert"}')
    write_jsonl(tmp_path / "mine.jsonl", [{"text": f"{LINES[i % 6]} {i}", "label": "ab"[i % 2]} for i in range(40)])
    spec = ElasticEncoder(tokenizer=str(tmp_path / "teacher"), length=9)
    run = run_of(tmp_path / "run", spec, data=Labelled(path=str(tmp_path / "mine.jsonl")))
    made: Any = spec.build(run).eval()
    batch = run.sources()["train"].batch(range(3), 0)
    assert made.plan.vocabulary == 300 and batch["inputs"]["input_ids"].shape[1] == 9
    (tmp_path / "kept").mkdir()
    spec.save(made, tmp_path / "kept", run)
    again = opened(tmp_path / "kept")
    assert torch.equal(again(**batch["inputs"]), made(**batch["inputs"]))
    read = OneMember(source=str(tmp_path / "kept")).encoder(run)(run.sources()["train"].texts[:3])
    assert torch.equal(read["input_ids"], batch["inputs"]["input_ids"])


def test_the_last_projections_of_other_encoders(tmp_path: Path) -> None:
    run, whole, batch = built(tmp_path)
    tiny = TinyEncoder(classes=3, vocabulary=64, length=6).build(run)
    assert attention_taps(tiny) == ("layer.1.query", "layer.1.key", "layer.1.value")
    alone = whole.taken(3)  # what was taken out can be looked into like any other
    _, found = tapped(alone, {"inputs": batch}, attention_taps(alone))
    torch.testing.assert_close(tuple(found.values()), alone.attention(**batch))
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    )
    assert attention_taps(bert)[2] == "encoder.layer.1.attention.self.value"
    distil = DistilBertModel(DistilBertConfig(dim=8, n_layers=3, n_heads=2, hidden_dim=8, vocab_size=9))
    assert attention_taps(distil)[0] == "transformer.layer.2.attention.q_lin"
    with pytest.raises(RunError, match="no query, key and value projections"):
        attention_taps(MLP(inputs=2, classes=2).build(run))


def test_settings_that_make_no_network() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ElasticEncoder(depths=())
    with pytest.raises(ValueError, match="above 0"):
        ElasticEncoder(ratios=(0.0,))
