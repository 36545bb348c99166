"""AutoDistil: the loss by loops, the sum over the members, the sandwich, and a user's own encoder and texts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import LINES, run_of, tokenizer_of, write_jsonl
from stillhouse.audits.members import RankCheck
from stillhouse.cli import door
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.marked import Marked
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.features.autodistil import SPACES, AutoDistil, recipe
from stillhouse.models.elastic_text import ElasticEncoder, opened
from stillhouse.models.encoder import TinyEncoder
from stillhouse.models.toys import MLP
from stillhouse.teachers.attention import AttentionTeacher

DATA = Marked(words=20, classes=4, each=5, train=40, valid=10, test=10)
SPEC = ElasticEncoder(depths=(1, 2, 3), heads=(2, 3), widths=(8, 12), ratios=(2.0,), head_width=5, vocabulary=64, length=8)
BIG = TinyEncoder(width=16, depth=3, heads=2, vocabulary=64, length=8)


def begun(folder: Path, method: Any, big: Any = BIG, small: Any = SPEC) -> tuple[Any, Any, Any]:
    run = run_of(folder, small, data=DATA)
    run.teachers = {"teacher": AttentionTeacher(model=big).build(run)}
    run.source = run.sources()["train"]
    torch.manual_seed(1)
    batch = run.source.batch(range(6), 0)
    ids, mask = (v.clone() for v in batch["inputs"].values())
    mask[1, 4:] = 0  # a shorter text
    ids[1, 4:] = 0
    return run, method.setup(small.build(run), run), {**batch, "inputs": {"input_ids": ids, "attention_mask": mask}}


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_the_loss_by_loops(tmp_path: Path, metric: Any) -> None:
    """Queries, keys and values read off a teacher and off members taken out, then number by number."""
    run, s, batch = begun(tmp_path, method := AutoDistil(relations=4, metric=metric, drawn=1))
    (made,) = method.step(s, batch, run)
    chosen = method.members(len(SPEC.members), run)
    assert len(chosen) == 3
    teacher: Any = run.teacher.module
    x = teacher.norm(teacher.words(batch["inputs"]["input_ids"]) + teacher.positions.weight[:6])
    for layer in teacher.layer[:2]:
        x = layer(x, batch["inputs"]["attention_mask"][:, None, None].bool())
    theirs = [part(x) for part in (teacher.layer[2].query, teacher.layer[2].key, teacher.layer[2].value)]
    total = 0.0
    for member in chosen:
        mine = s.student.taken(member).attention(**batch["inputs"])
        for own, other in zip(mine, theirs, strict=True):
            for b, mask in enumerate(batch["inputs"]["attention_mask"]):
                n = int(mask.sum())
                for head in range(4):
                    rows: list[torch.Tensor] = []
                    for value in (own[b, :n], other[b, :n]):
                        size = value.shape[1] // 4
                        part = value[:, head * size : (head + 1) * size].double()
                        rows.append(
                            torch.stack([torch.stack([(m * k).sum() / math.sqrt(size) for k in part]) for m in part])
                        )
                    r_s, r_t = rows
                    if metric == "mse":
                        total += float((r_s - r_t).square().mean()) / 4
                    else:
                        p, q = r_t.softmax(-1), r_s.softmax(-1)
                        total += float((p * (p / q).log()).sum(-1).mean()) / 4
    assert float(made.loss) == pytest.approx(total, rel=1e-4) and float(made.count) == 6


def test_the_gradient_is_the_sum_over_the_members(tmp_path: Path) -> None:
    run, s, batch = begun(tmp_path, method := AutoDistil(relations=5, metric="kl"))
    (made,) = method.step(s, batch, run)
    made.loss.backward()
    whole = {name: p.grad.clone() for name, p in s.student.named_parameters() if p.grad is not None}
    s.student.zero_grad()
    told, total = method.told(batch, run), {name: torch.zeros_like(value) for name, value in whole.items()}
    chosen = method.members(len(SPEC.members), run)
    for member in chosen:
        alone = s.student.taken(member)  # a network by itself, whose gradient goes back to where it was cut from
        method.gap(alone, 0, batch, told).sum().backward()
        for name, value in alone.named_parameters():
            if value.grad is not None:
                total[name][tuple(slice(size) for size in value.shape)] += value.grad
    assert len(chosen) == 4
    for name, value in whole.items():
        torch.testing.assert_close(value, total[name], rtol=1e-4, atol=1e-6)


def test_the_largest_the_smallest_and_some_others(tmp_path: Path) -> None:
    run = Run(tmp_path)
    method = AutoDistil(drawn=2)
    drawn = []
    for run.step in range(60):
        drawn.append(method.members(12, run))
    assert all(len(d) == 4 and d[0] == 0 and d[-1] == 11 and len(set(d)) == 4 for d in drawn)
    assert {member for d in drawn for member in d} == set(range(12))
    assert drawn[7] == [method.members(12, run) for run.step in (7,)][0]
    assert method.members(1, run) == [0] and method.members(3, run) == [0, 1, 2]
    assert AutoDistil(drawn=0).members(12, run) == [0, 11]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    spec = ElasticEncoder(depths=(2,), heads=(2,), widths=(16,), ratios=(2.0,), head_width=8, vocabulary=64, length=8)
    run, s, batch = begun(tmp_path, method := AutoDistil(relations=3), big=spec, small=spec)
    (made,) = method.step(s, batch, run)
    assert float(made.loss) > 0.01
    s.student.load_state_dict(run.teacher.module.state_dict())
    (made,) = method.step(s, batch, run)
    assert float(made.loss) == pytest.approx(0.0, abs=1e-6)


def test_splitting_a_batch_changes_nothing_and_labels_are_not_looked_at(tmp_path: Path) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, 4):
        run, s, batch = begun(tmp_path / str(parts), method := AutoDistil(relations=5))
        blind = {**batch, "labels": torch.full_like(batch["labels"], -1)}
        (a,), (b,) = method.step(s, batch, run), method.step(s, blind, run)
        assert torch.equal(a.loss, b.loss) and float(b.count) == 6
        run.horizon = 3
        fit(Loop(method, s, run, Optim(name="sgd", lr=0.05, momentum=0.0)), run.source, steps=3, size=8, accumulate=parts)
        ends.append(s.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_what_it_refuses(tmp_path: Path) -> None:
    run, *_ = begun(tmp_path, AutoDistil(relations=5))
    with pytest.raises(RunError, match="heads have 10 channels in all, which cannot be cut into 12"):
        AutoDistil().setup(SPEC.build(run), run)
    with pytest.raises(RunError, match="the student has no members"):
        AutoDistil().setup(MLP(inputs=2, classes=2).build(run), run)
    with pytest.raises(TeacherMismatch, match="different tokens"):
        AttentionTeacher(model=TinyEncoder(vocabulary=99)).build(run)
    with pytest.raises(ValueError, match="relations is 1 or more"):
        AutoDistil(relations=0)


def test_the_papers_spaces_have_256_members_each() -> None:
    assert {name: len(ElasticEncoder(**space).members) for name, space in SPACES.items()} == dict.fromkeys(SPACES, 256)
    made = recipe("paper")
    assert made.student.members[0].depth == 12 and "teach" not in made.stages


def test_a_users_encoder_and_texts(tmp_path: Path, still: Any) -> None:
    """From the command line: their BERT, their texts, a budget, and what the ranking is worth."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=300, pad_token_id=1, **sizes)).save_pretrained(tmp_path / "mine")
    tokenizer_of(LINES).save_pretrained(tmp_path / "mine")
    write_jsonl(tmp_path / "mine.jsonl", [{"text": f"{LINES[i % 6]} {i}", "label": "ab"[i % 2]} for i in range(60)])
    (tmp_path / "general.txt").write_text("\n".join(f"{line} again {i}" for i in range(5) for line in LINES))
    small = "depths: [1, 2], heads: [2], widths: [16, 24], ratios: [2.0], head_width: 6, length: 16"
    student = f"{{use: models.elastic_text.ElasticEncoder, {small}, tokenizer: mine}}"
    made = recipe("paper")
    ranks = RankCheck(train=Train(method=Supervised(), steps=2, batch=4), members=3)
    Path("mine.yaml").write_text(door.dump(replace(made, stages={**made.stages, "ranks": ranks})))
    settings = {
        "teachers.teacher.model.path": "mine", "student": student, "data.path": "mine.jsonl",
        "train.data.path": "general.txt", "search.parameters": "12000",
        **{f"{n}.{k}": v for n in ("train", "tune", "alone") for k, v in (("steps", "2"), ("batch", "4"))},
    }  # fmt: skip
    parts = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    done = still("run", "mine.yaml", *parts)
    assert done.exit_code == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    found, tuned = (opened(folder / "artifacts" / name / "data") for name in ("search", "tune"))
    assert found.members == tuned.members and sum(p.numel() for p in found.parameters()) <= 12000
    assert (
        tuned.plan.tokenizer is not None and "rank_correlation" in (folder / "artifacts/ranks/data/value.json").read_text()
    )
    short = still("run", "mine.yaml", *parts, "--set", "search.parameters=10", "--runs", "other")
    assert short.exit_code != 0 and "no member is within the budget" in short.stderr
