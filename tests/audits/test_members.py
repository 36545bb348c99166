"""The search among members: their distances by hand, budgets, texts that do not count, and what a ranking is worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from stillhouse.audits.members import MemberRanking, MemberSearch, RankCheck, ranking_of, spearman
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.report import Figure, Finding
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.marked import Marked
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.features.autodistil import AutoDistil
from stillhouse.models.elastic_text import ElasticEncoder, OneMember, opened
from stillhouse.models.encoder import TinyEncoder
from stillhouse.objectives.attention import relation_gap
from stillhouse.teachers.attention import AttentionTeacher

SIZES: dict[str, int] = {"vocabulary": 64, "length": 8}
SPEC = ElasticEncoder(depths=(1, 2), heads=(1, 2), widths=(8,), ratios=(1.0, 2.0), head_width=4, **SIZES)  # type: ignore[arg-type]
OTHER = ElasticEncoder(depths=(1,), heads=(3,), widths=(12,), ratios=(1.0,), head_width=4, **SIZES)  # type: ignore[arg-type]
DATA = Marked(words=20, classes=4, each=5, train=40, valid=10, test=10)
FAMILY = Train(method=AutoDistil(relations=2), steps=2, batch=8, optim=Optim(lr=1e-2))


def ran(folder: Path, **stages: Any) -> Run:
    teacher = AttentionTeacher(model=TinyEncoder(width=8, depth=2, **SIZES))
    made = Recipe(
        id="autodistil", student=SPEC, data=DATA, stages={"train": FAMILY, **stages}, teachers={"teacher": teacher}
    )
    run = Run(folder, seed=3, device=torch.device("cpu"))
    execute(made, run)
    return run


def test_the_nearest_member_within_the_budget_is_taken_out(tmp_path: Path) -> None:
    run = ran(tmp_path, search=MemberSearch(batch=3), cheap=MemberSearch(flops=9000, parameters=1200))
    rows = ranking_of(run, "search")
    assert len(rows) == 8 and [row["loss"] for row in rows] == sorted(row["loss"] for row in rows)
    network, batch = opened(run.path("train")).requires_grad_(False), run.sources()["valid"].batch(range(10), 0)
    features = run.teacher(batch, frozenset({"features"})).need("features")
    real = batch["inputs"]["attention_mask"].bool()
    for row in rows:
        own = network.taken(row["member"])
        told = zip(own.attention(**batch["inputs"]), features.values(), strict=True)
        loss = sum(float(relation_gap(x, y, real, heads=2).mean()) for x, y in told)
        assert row["loss"] == pytest.approx(loss, rel=1e-4)
        assert row["parameters"] == sum(p.numel() for p in own.parameters())
        assert row["sizes"]["depth"] == own.members[0].depth
    found, best = opened(run.path("search")), network.taken(rows[0]["member"])
    assert torch.equal(found(**batch["inputs"]), best(**batch["inputs"]))
    mark = run.done("search")
    assert mark is not None and mark["kind"] == "model" and mark["chosen"]["name"] == rows[0]["name"]
    few = ranking_of(run, "cheap")
    fit = [row["member"] for row in rows if row["flops"] <= 9000 and row["parameters"] <= 1200]
    assert [row["member"] for row in few] == fit and 0 < len(fit) < 8


def test_several_families_are_searched_together(tmp_path: Path) -> None:
    both = MemberSearch(of=("train", "wide"))
    run = ran(tmp_path, wide=replace(FAMILY, student=OTHER), search=both)
    rows = ranking_of(run, "search")
    assert {(row["stage"], row["member"]) for row in rows} == {("train", i) for i in range(8)} | {("wide", 0)}
    assert opened(run.path("search")).members[0].name == rows[0]["name"]
    only = MemberSearch(of=("wide",))
    run = ran(tmp_path / "b", wide=replace(FAMILY, student=OTHER), search=only)
    assert opened(run.path("search")).members == OTHER.members


def test_what_cannot_be_searched_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the smallest has 952 parameters: raise it"):
        ran(tmp_path, search=MemberSearch(parameters=10))
    with pytest.raises(RunError, match="flops"):
        ran(tmp_path / "b", search=MemberSearch(flops=10))
    with pytest.raises(RunError, match="'teach' trains no family"):
        ran(tmp_path / "c", search=MemberSearch(of=("teach",)))
    assert not any((tmp_path / part / "artifacts" / "train").exists() for part in ("", "b", "c"))
    with pytest.raises(RunError, match="every text to rank by was learned from"):
        ran(tmp_path / "d", search=MemberSearch(split="train"))
    with pytest.raises(ValueError, match="at least one stage"):
        MemberSearch(of=())


def test_what_the_report_is_told(tmp_path: Path) -> None:
    run = ran(tmp_path, search=MemberSearch())
    *findings, figure = MemberRanking()(run, Subjects(run, ()))
    rows = ranking_of(run, "search")
    assert all(isinstance(f, Finding) for f in findings) and isinstance(figure, Figure)
    assert {f.name: f.value for f in findings} == {"distance_to_teacher": rows[0]["loss"], "flops": rows[0]["flops"]}  # type: ignore[union-attr]
    assert sorted(y for _, y in figure.series["search"]) == [row["loss"] for row in rows]


def test_what_a_ranking_is_worth(tmp_path: Path) -> None:
    train = Train(method=Supervised(), steps=2, batch=8, optim=Optim(lr=1e-2))
    run = ran(tmp_path, search=MemberSearch(), ranks=RankCheck(train=train, members=4))
    rows = [ranking_of(run, "search")[i] for i in (0, 2, 5, 7)]
    names = [f"ranks_train_{row['member']}" for row in rows]
    assert sorted(n for n in run.names() if n.startswith("ranks_")) == sorted(names)
    batch, right = run.sources()["valid"].batch(range(10), 0), []
    for name, row in zip(names, rows, strict=True):
        network = opened(run.path(name))
        assert network.members[0].name == row["name"]
        right.append(float((network(**batch["inputs"]).argmax(-1) == batch["labels"]).double().mean()))
    told = run.load_json("ranks")
    assert told[0]["name"] == "rank_correlation" and told[0]["n"] == 4
    assert told[0]["value"] == pytest.approx(spearman([-row["loss"] for row in rows], right))
    assert told[1]["value"] == pytest.approx(spearman([row["parameters"] for row in rows], right))
    with pytest.raises(RunError, match="an order needs 3 members"):
        ran(tmp_path / "b", search=MemberSearch(), ranks=RankCheck(train=train, members=2))


def test_rank_correlation_is_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(0, 4, (2, 12), generator=draw).double().tolist()  # many ties
        assert spearman(a, b) == pytest.approx(float(tuple(spearmanr(a, b))[0]))
    assert spearman([1, 2, 3], [4, 9, 11]) == pytest.approx(1.0) and spearman([1, 2, 3], [2, 2, 2]) == 0.0


def test_a_found_network_is_trained_on(tmp_path: Path) -> None:
    tune = Train(method=Supervised(), student=OneMember(), steps=3, batch=8, optim=Optim(lr=1e-2))
    run = ran(tmp_path, search=MemberSearch(), tune=tune)
    before, after = opened(run.path("search")), opened(run.path("tune"))
    assert before.members == after.members and not torch.equal(before.head.weight, after.head.weight)
    assert json.loads((run.path("tune") / "network.json").read_text())["classes"] == 4
