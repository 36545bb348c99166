"""Stories say what their chain says, in every style, and pools hold the faults that they are said to."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.data.tasks import Chain
from stillhouse.synth.dedup import vectors_of
from stillhouse.synth.pools import ORIGINS, Origin, StoryPool, StoryUnion, nudged, spoiled
from stillhouse.synth.stories import STYLES, Compact, Gist, Story, about_in, chain_in, same_story, stories, tagged

from .onestep import through

POOL = StoryPool(chain=Chain(ops=(2, 3), train=600, valid=20, test=60), copies=10, again=20, near=20, easy=30)
UNION = StoryUnion(chain=Chain(ops=(1, 2), train=400, valid=10, test=20))


def worked(chain: str, base: int) -> int:
    """From left to right, by hand."""
    first, *rest = re.findall(r"[+*-]?\d+", chain)
    value = int(first)
    for part in rest:
        value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[part[0]](value, int(part[1:])) % base
    return value


def test_every_style_tells_the_chain_and_is_read_back() -> None:
    draw = random.Random(0)
    chains = ["".join([str(draw.randrange(30)), *(f"{draw.choice('+-*')}{draw.randrange(30)}" for _ in range(n)), "="])
              for n in (1, 2, 3, 5) for _ in range(20)]  # fmt: skip
    for story in stories(chains, draw):
        told = [story.told(style, 10) for style in range(len(STYLES))]
        assert len(set(told)) == len(STYLES)
        for text in told:
            assert chain_in(text) == story.chain and about_in(text) == {story.name, story.thing, story.place}
            assert all(same_story(text, other) for other in told)
            assert chain_in(f"Prove that this has one answer. {text} (Somebody found 7 {story.thing}.)") == story.chain


def test_another_number_or_name_is_another_story() -> None:
    one = Story("3+4*2=", "Ada", "kites", "Riga")
    for other in (Story("3+4*3=", "Ada", "kites", "Riga"), Story("3-4*2=", "Ada", "kites", "Riga"),
                  Story("3+4*2=", "Olga", "kites", "Riga")):  # fmt: skip
        assert not same_story(one.told(0, 10), other.told(0, 10))
    assert chain_in("no story at all") is None and chain_in("a 7 alone") is None and chain_in("") is None


def test_no_two_stories_are_about_the_same() -> None:
    made = list(stories(["1+1="] * 2000, random.Random(1)))
    assert len({(s.name, s.thing, s.place) for s in made}) == 2000


def test_the_pool_holds_the_faults_that_it_says(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", seed=5)
    splits = POOL.rows(run)
    pool, tests = splits["train"], {row["short"]: row["question"] for row in splits["test"]}
    count = Counter(row["fault"] for row in pool)
    assert count["copy"] == 10 and count["again"] == 20 and count["near"] == 20 and 0 < count["easy"] <= 30
    assert count[""] + count["wrong"] + count["leak"] + count["unasked"] == 600
    assert 60 < count["wrong"] < 120 and 15 < count["leak"] < 50 and 15 < count["unasked"] < 50
    assert len({row["number"] for row in pool}) == len(pool)
    for row in pool:
        fault, right = row["fault"], worked(row["short"], 10)
        assert row["truth"].startswith(f"{right} ") == (fault not in ("wrong", "unasked"))
        assert chain_in(row["question"]) == row["short"]
        assert (row["short"] in tests) == (fault in ("copy", "again"))
        assert ("Prove" in row["question"]) == (fault == "unasked")
        if fault == "leak":
            assert row["truth"] in row["question"]
        if fault in ("copy", "again"):
            assert (row["question"] == tests[row["short"]]) == (fault == "copy")
            assert same_story(row["question"], tests[row["short"]])
    for row in (row for row in pool if row["fault"] == "near"):
        twins = [test for test in tests.values() if about_in(test) == about_in(row["question"])]
        assert len(twins) == 1 and re.sub(r"\d+", "", twins[0]) == re.sub(r"\d+", "", row["question"])
        pairs = zip(re.findall(r"\d+", twins[0]), re.findall(r"\d+", row["question"]), strict=True)
        assert sum(a != b for a, b in pairs) == 1
    assert POOL.rows(run) == splits and POOL.rows(Run(tmp_path / "other", seed=6)) != splits


def test_the_union_has_the_sources_that_it_says(tmp_path: Path) -> None:
    rows = UNION.rows(Run(tmp_path / "run", seed=1))["train"]
    shorts = Counter(row["short"] for row in rows)
    assert set(shorts.values()) == {1, 2} and 60 < sum(n == 2 for n in shorts.values()) < 140
    assert {row["source"] for row in rows} == set(ORIGINS)
    by: dict[str, list[Any]] = {name: [row for row in rows if row["source"] == name] for name in ORIGINS}
    assert not any("truth" in row for row in by["forum"]) and not any("response" in row for row in by["quiz"])
    wrong = [not row["truth"].startswith(f"{row['fact']} ") for row in by["web"]]
    assert 0.1 < sum(wrong) / len(wrong) < 0.3
    assert all(row["truth"].startswith(f"{row['fact']} ") for row in by["textbook"])
    assert all(int(row["fact"]) == worked(row["short"], 10) and chain_in(row["question"]) == row["short"] for row in rows)
    clean = [row for row in by["textbook"] if row["response"].endswith("</answer>") and "<answer>" in row["response"]]
    assert clean and 0.7 < sum(row["response"].endswith(f"<answer>{row['fact']}</answer>") for row in clean) / len(clean)


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="counts between 0"):
        StoryPool(chain=Chain(test=5), copies=6)
    with pytest.raises(ValueError, match="together no more than 1"):
        StoryPool(wrong=0.6, leaks=0.6)
    with pytest.raises(ValueError, match="two sources"):
        StoryUnion(origins={"one": Origin(style=0, share=1.0)})
    with pytest.raises(RunError, match="ask for fewer near ones"):
        nudged("1+1=", 3, {"1+0=", "1+2="}, random.Random(0))
    taken = {"1+0="}
    assert nudged("1+1=", 3, taken, random.Random(0)) == "1+2=" and taken == {"1+0=", "1+2="}


def test_tags_and_back(tmp_path: Path) -> None:
    solution = "3+4=7;7*2=4#4"
    assert tagged(solution) == "<think>3+4=7; 7*2=4</think> <answer>4</answer>"
    draw = random.Random(0)
    assert spoiled(solution, 0.0, 0.0, draw) == tagged(solution)
    assert spoiled(solution, 0.0, 1.0, draw).count("3+4=7") == 5
    broken = {spoiled(solution, 1.0, 0.0, draw) for _ in range(40)}
    assert len(broken) == 3 and all(tagged(solution) != text for text in broken)
    rows = [{"response": tagged(solution)}, {"response": ""}, {"response": "<think>3+4=7</think> 7"}, {"response": "é🚲"}]
    kept, gone = through(Compact(), rows, tmp_path)
    assert [row["solution"] for row in kept] == [solution, "3+4=77", "é🚲"]
    assert [each["why"] for each in gone] == ["no response"]


def test_the_gist_brings_tellings_of_a_story_together(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    found = list(stories([f"{i % 10}+{i // 10}*3=" for i in range(80)], random.Random(3)))
    texts = [story.told(style, 10) for story in found for style in (0, 3)]
    cosines = vectors_of(texts, Gist(), run) @ vectors_of(texts, Gist(), run).T
    for i in range(len(texts)):
        twin = cosines[i, i ^ 1]
        others = [cosines[i, j] for j in range(len(texts)) if j // 2 != i // 2]
        assert twin > 0.8 and max(others) < twin
    assert vectors_of(["", "no story", "é"], Gist(), run).shape == vectors_of([texts[0]], Gist(), run).shape[:0] + (3, 2048)
