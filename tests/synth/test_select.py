"""What is chosen, against sorting, counting and searching by hand; and a whole plan of selection as a stage."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import RunError
from stillhouse.synth.dedup import Dedup
from stillhouse.synth.rules import Rules
from stillhouse.synth.select import Apart, Between, Cluster, Cosines, Edits, PassRate, Top, _evenly, farthest_first
from stillhouse.synth.synthesize import Synthesize, account_of, lost_rows, made_rows
from stillhouse.synth.verify import Verify
from stillhouse.synth.votes import Vote

from .lab import go
from .onestep import named, once, through, whys


def scored(count: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"n": n, "score": draw.randrange(10), "kind": draw.choice("aab")} for n in range(count)]


# -- Top -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("group", [None, "kind"])
@pytest.mark.parametrize("size", [{"k": 4}, {"share": 0.3}, {"share": 0.5, "skip": 0.25}, {"k": 99}])
def test_top_is_what_sorting_gives(size: dict[str, Any], group: str | None, lowest: bool, tmp_path: Path) -> None:
    rows = named(scored())
    kept, gone = through(Top(by="score", group=group, lowest=lowest, **size), rows, tmp_path)
    wanted = set[str]()
    for kind in "ab" if group else [None]:
        mine = [row for row in rows if kind in (None, row["kind"])]
        mine.sort(key=lambda row: ((1 if lowest else -1) * row["score"], row["_id"]))
        begin = int(size.get("skip", 0) * len(mine))
        count = size.get("k") or math.ceil(size["share"] * len(mine))
        wanted |= {row["_id"] for row in mine[begin : begin + count]}
    assert {row["_id"] for row in kept} == wanted
    assert all(each["numbers"]["rank"] >= 1 for each in gone)


def test_rows_without_a_number_are_lost_and_text_may_be_one(tmp_path: Path) -> None:
    values: list[Any] = [1, "3", 2.5, "x", None, float("nan"), True]
    rows = [{"n": n, "score": value} for n, value in enumerate(values)]
    kept, gone = through(Top(by="score", k=2), rows, tmp_path)
    assert [row["n"] for row in kept] == [1, 2]
    found = whys(gone, "n")
    assert (
        all(found[n] == "no number in column 'score'" for n in (3, 4, 5)) and found[0] == found[6] == "not among the first"
    )


def test_chance_takes_others_with_another_seed_and_all_kinds_alike(tmp_path: Path) -> None:
    rows = scored(400)
    kept, _ = through(Top(share=0.5), rows, tmp_path)
    assert len(kept) == 200 and {row["n"] for row in kept} != set(range(200))
    assert 60 < sum(row["n"] < 200 for row in kept) < 140


def test_a_total_is_spread_over_groups(tmp_path: Path) -> None:
    rows = [{"n": n, "kind": kind, "score": n} for n, kind in enumerate("aaaaaaaabbbc")]
    for total, counts in ((6, {"a": 3, "b": 2, "c": 1}), (9, {"a": 5, "b": 3, "c": 1}), (99, {"a": 8, "b": 3, "c": 1})):
        kept, _ = through(Top(by="score", total=total, group="kind"), rows, tmp_path)
        assert Counter(row["kind"] for row in kept) == counts
    one, _ = through(Top(by="score", total=1, group="kind"), rows, tmp_path)
    assert [row["n"] for row in one] == [7]


@given(some.dictionaries(some.text("abcdef", min_size=1, max_size=2), some.integers(0, 9)), some.integers(1, 40))
def test_no_group_gets_more_than_one_above_another_that_has_rows_left(sizes: dict[str, int], total: int) -> None:
    counts = _evenly(sizes, total)
    assert sum(counts.values()) == min(total, sum(sizes.values())) and all(counts[g] <= sizes[g] for g in sizes)
    assert all(counts[a] <= counts[b] + 1 for a in sizes for b in sizes if counts[b] < sizes[b])


@pytest.mark.parametrize(
    "wrong", [{}, {"k": 1, "share": 0.5}, {"k": 0}, {"share": 1.5}, {"share": 0.0}, {"k": 1, "skip": 1.0}]
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of k|k and total"):
        Top(**wrong)


# -- Between, PassRate -----------------------------------------------------------------------------------------------


def test_between_takes_both_ends(tmp_path: Path) -> None:
    rows = [{"p": p} for p in (0.0, 0.2, 0.5, 0.8, 0.81, "0.3", None)]
    kept, gone = through(Between(by="p", least=0.2, most=0.8), rows, tmp_path)
    assert [row["p"] for row in kept] == [0.2, 0.5, 0.8, "0.3"]
    assert whys(gone, "p") == {0.0: "p is below 0.2", 0.81: "p is above 0.8", None: "no number in column 'p'"}
    assert len(through(Between(by="p"), rows, tmp_path)[0]) == 6


def test_the_pass_rate_is_the_mean_of_the_group(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [{"n": n, "question": f"ü{draw.randrange(8)}", "right": draw.choice([0.0, 1.0, 0.5])} for n in range(60)]
    kept, _ = through(PassRate(group="question"), rows, tmp_path)
    for row in kept:
        mine = [other["right"] for other in rows if other["question"] == row["question"]]
        assert row["pass_rate"] == pytest.approx(fmean(mine)) and row["pass_rate_of"] == len(mine)
    part, _ = through(PassRate(group="q", into="p"), [{"q": 1, "right": 1.0}, {"q": 1}], tmp_path)
    assert {row["p"] for row in part} == {0.5}


# -- Apart, Cluster --------------------------------------------------------------------------------------------------

TEXTS = [f"{a} {b} {c}" for a in ("cats", "dogs", "birds") for b in ("sleep", "eat") for c in ("now", "often", "never")]


def radius(distances: Any, chosen: Any) -> float:
    return float(distances[:, list(chosen)].min(axis=1).max())


def test_farthest_first_is_at_most_twice_the_best() -> None:
    draw = numpy.random.default_rng(0)
    for _ in range(5):
        vectors = draw.normal(size=(12, 3))
        vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
        angles = numpy.arccos(numpy.clip(vectors @ vectors.T, -1, 1))  # a metric, which 1 - cosine orders alike
        for k in (1, 2, 4):
            chosen, left = farthest_first(Cosines(vectors.astype(numpy.float32)), k)
            best = min(radius(angles, some) for some in combinations(range(12), k))
            assert len(set(chosen)) == k and radius(angles, chosen) <= 2 * best + 1e-3
            assert numpy.allclose(left, (1 - vectors @ vectors[chosen].T).min(axis=1), atol=1e-5)


def levenshtein(one: str, other: str) -> int:
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


@given(some.lists(some.text("abé漢", max_size=7), min_size=1, max_size=5))
def test_edits_are_levenshteins(texts: list[str]) -> None:
    space = Edits(texts)
    for number, text in enumerate(texts):
        assert space(number).tolist() == [levenshtein(text, other) for other in texts]


@pytest.mark.parametrize("distance", ["cosine", "edits"])
def test_apart_takes_the_farthest_each_time(distance: Any, tmp_path: Path) -> None:
    rows = named({"text": text, "score": len(text)} for text in TEXTS)
    kept, gone = through(Apart(k=5, distance=distance, by="score"), rows, tmp_path)
    assert len(kept) == 5 and all(each["why"] == "near to rows that were chosen" for each in gone)
    order = sorted(rows, key=lambda row: (-row["score"], row["_id"]))
    assert order[0]["_id"] in {row["_id"] for row in kept}
    if distance == "edits":
        chosen = [order[0]]
        while len(chosen) < 5:
            chosen.append(max(order, key=lambda row: min(levenshtein(row["text"], c["text"]) for c in chosen)))
        assert {row["_id"] for row in kept} == {row["_id"] for row in chosen}


def test_twins_are_never_both_chosen(tmp_path: Path) -> None:
    rows = [{"text": "the same", "n": n} for n in range(5)] + [{"text": "another", "n": 9}]
    for distance in ("cosine", "edits"):
        kept, gone = through(Apart(k=4, distance=distance), rows, tmp_path)  # type: ignore[arg-type]
        assert sorted(row["text"] for row in kept) == ["another", "the same"] and len(gone) == 4


def test_clusters_are_found_and_stay(tmp_path: Path) -> None:
    draw = random.Random(0)
    kinds = {"a": "red green blue pink grey", "b": "one two three four five", "c": "dog cat cow pig hen"}
    rows = [
        {"kind": kind, "text": " ".join(draw.choices(words.split(), k=9)), "score": n}
        for n in range(12)
        for kind, words in kinds.items()
    ]
    kept, _ = through(Cluster(count=3), rows, tmp_path)
    pairs = {(row["kind"], row["cluster"]) for row in kept}
    assert len(pairs) == 3 and {cluster for _, cluster in pairs} == {0, 1, 2}
    best, _ = through(
        Top(by="score", k=1, group="cluster"), [{k: v for k, v in row.items() if k[0] != "_"} for row in kept], tmp_path
    )
    assert sorted((row["kind"], row["score"]) for row in best) == [("a", 11), ("b", 11), ("c", 11)]
    few, _ = through(Cluster(count=9), [{"text": "x", "n": 0}, {"text": "x", "n": 1}, {"text": ""}], tmp_path)
    assert [row["cluster"] for row in few][:2] in ([0, 0], [1, 1])


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    rows = named(scored(3))
    for step in (Top(by="scores", k=1), Top(k=1, group="kinds"), Between(by="scores"), PassRate(group="kinds", of="score")):
        with pytest.raises(RunError, match="did you mean '(score|kind)'"):
            once(step, rows, tmp_path)
    for step in (Apart(k=1, column="kinds"), Cluster(count=1, column="kinds")):
        with pytest.raises(RunError, match="did you mean 'kind'"):
            once(step, rows, tmp_path)


def test_sketches_are_as_many_as_will_be_chosen() -> None:
    rows, run = named(scored()), None
    assert len(Top(by="score", k=4).sketch(rows, run)) == 4  # type: ignore[arg-type]
    assert len(Top(by="score", k=4, group="kind").sketch(rows, run)) == 8  # type: ignore[arg-type]
    assert len(Top(by="score", total=7, group="kind").sketch(rows, run)) == 7  # type: ignore[arg-type]
    assert len(Top(by="score", share=0.5).sketch(rows, run)) == 15  # type: ignore[arg-type]
    assert len(Apart(k=4).sketch(rows, run)) == 4  # type: ignore[arg-type]


# -- all together ----------------------------------------------------------------------------------------------------


def test_a_plan_of_all_of_them_is_a_stage(tmp_path: Path) -> None:
    """Sampled answers: judged, rated, voted on, and one of each question chosen; through Parquet, nothing vanishes."""
    from stillhouse.data.labelled import Labelled

    draw = random.Random(0)
    rows = []
    for i in range(60):
        for n in range(4):
            said = i if draw.random() < 0.7 else i + 1
            rows.append({"text": f"sample {n}: Answer: {said}", "label": f"question {i}", "truth": str(i)})

    class Own(Labelled):
        def rows(self, run: Any) -> dict[str, list[dict[str, Any]]]:
            return {"train": self.source}  # type: ignore[attr-defined]

    def plan(order: int) -> Recipe:
        data = Own(path="none")
        object.__setattr__(data, "source", rows[::order])
        steps = {
            "rules": Rules(shortest=5),
            "verify": Verify(answer="text", keep=True),
            "rate": PassRate(group="label"),
            "middle": Between(by="pass_rate", least=0.3, most=0.9),
            "right": Verify(answer="text"),
            "vote": Vote(group="label", value="text", by="number"),
            "best": Top(k=1, group="label"),
            "dedup": Dedup(),
            "spread": Apart(k=10),
        }
        stage = Synthesize(steps=steps)
        return Recipe(id="made", student=None, data=data, teachers={}, stages={"make": stage})

    found = [go(plan(order), tmp_path / str(order)) for order in (1, -1)]
    ids = [{row["_id"] for row in made_rows(run, "make")} for run in found]
    assert ids[0] == ids[1] and len(ids[0]) == 10
    account = account_of(found[0], "make")["steps"]
    assert account[0]["given"] == len({(row["text"], row["label"]) for row in rows})
    assert all(step["given"] == step["made"] + sum(step["lost"].values()) for step in account)
    assert len(list(lost_rows(found[0], "make"))) == 240 - 10
    for row in made_rows(found[0], "make"):
        mine = [float(other["text"].endswith(f" {other['truth']}")) for other in rows if other["label"] == row["label"]]
        assert row["pass_rate"] == fmean(mine) and row["right"] == 1.0 and row["vote_share"] == 1.0
