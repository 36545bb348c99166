"""A teacher writes about every row: what it is asked, what becomes of its answers, and which examples it is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from chatserver import PASSING, ChatServer
from stillhouse.cli.door import dump, spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.signal import Completion
from stillhouse.models.text import n_grams
from stillhouse.synth import asking
from stillhouse.synth.alike import Alike, alike
from stillhouse.synth.asking import Unfit, Wording, answered, taken
from stillhouse.synth.demos import Demos
from stillhouse.synth.generate import Generate
from stillhouse.synth.synthesize import DataPlan
from stillhouse.teachers import server as transport
from stillhouse.teachers.chat import HttpChat
from stillhouse.teachers.text import Ask, Decoding, Lost

from .talk import Seen, outcome, plan, stands

Start = Callable[..., ChatServer]
ROWS = [{"text": f"Frage {i}: wie weit ist’s nach Köln? 🚲", "n": i} for i in range(9)]
PROMPT = "Answer: {{ text }}"


def echo(ask: Ask, rng: random.Random) -> str:
    return f"{ask.messages[-1][1][-20:]} {rng.randrange(10**6)}"


def moody(ask: Ask, rng: random.Random) -> Any:
    """By the row's number: no answer, an empty one, one that was cut off, one with a truth, plain ones."""
    n = ask.about["n"]
    if n == 0:
        return Lost("away")
    if n == 1:
        return " \n"
    if n == 2:
        return Completion("and so on and", finished=False, read=3, wrote=3)
    if n == 3:
        return Completion("Answer: forty", read=3, wrote=3, truth={"right": True})
    return f"Hm. Answer: {n}"


def test_every_row_has_its_samples_as_children(tmp_path: Path) -> None:
    found = stands(Generate(prompt=PROMPT, each=3), ROWS, tmp_path, teacher=echo)
    assert len(found.rows) == 27 and len({row["_id"] for row in found.rows}) == 27
    assert len({row["answer"] for row in found.rows}) == 27 and found.paid["teacher"]["calls"] == 27
    for row in found.rows:
        assert len(row["_from"]) == 1 and row["answer"].startswith("weit ist’s nach Köln? 🚲"[-20:])
        assert {name for name in row if not name.startswith("_")} == {"text", "n", "answer"}
    single = stands(Generate(prompt=PROMPT), ROWS[:1], tmp_path / "one", teacher=echo)
    assert len(single.rows) == 1


def test_what_cannot_be_used_is_lost_with_the_reason(tmp_path: Path) -> None:
    found = stands(Generate(prompt=PROMPT), ROWS, tmp_path, teacher=moody)
    why = {row["row"]["n"]: (row["_why"], row["row"].get("answer")) for row in found.lost}
    assert why == {0: ("away", None), 1: ("an empty answer", " \n"), 2: ("the answer was cut off", "and so on and")}
    assert {row["n"]: row.get("_truth") for row in found.rows}[3] == {"right": True}
    assert len(found.rows) == 6


def test_answers_that_did_not_end_are_kept_apart_if_they_are_kept(tmp_path: Path) -> None:
    found = stands(Generate(prompt=PROMPT, cut=True), ROWS, tmp_path, teacher=moody)
    assert {row["n"]: row["finished"] for row in found.rows} == {2: False, **dict.fromkeys(range(3, 9), True)}


def test_the_part_of_an_answer_that_was_asked_for(tmp_path: Path) -> None:
    found = stands(Generate(prompt=PROMPT, take=r"Answer: (\w+)"), ROWS[3:], tmp_path, teacher=moody)
    assert sorted(found.column("answer")) == ["4", "5", "6", "7", "8", "forty"]
    none = plan(Generate(prompt=PROMPT, take=r"Result: (\w+)"), ROWS[4:6], teacher=moody)
    with pytest.raises(RunError, match="the answer is not in the form that was asked for"):
        outcome(none, tmp_path / "none" / "run")


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        (" a ", None, "a"), ("<x>1</x> <x>2\n3</x>", "<x>(.*?)</x>", "2\n3"), ("abc", r"\d", None), ("a1b2", r"\d", "2"),
        ("none", "(x)?none", ""), ("", None, ""),
    ],
)  # fmt: skip
def test_what_is_taken_out_of_an_answer(text: str, pattern: str | None, expected: str | None) -> None:
    assert taken(text, pattern) == expected


def test_a_row_without_a_column_is_lost_in_its_turn_and_a_column_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", **({"hint": f"h{i}"} if i % 3 else {})} for i in range(9)]
    found = stands(Generate(prompt="{{ text }} {{ hint }}"), rows, tmp_path, teacher=echo)
    assert len(found.rows) == 6 and found.why() == ["no hint"] * 3 and found.paid["teacher"]["calls"] == 6
    soft = stands(
        Generate(prompt="{{ text }}{% if hint is defined %} {{ hint }}{% endif %}"), rows, tmp_path / "s", teacher=echo
    )
    assert len(soft.rows) == 9
    seen = Seen(echo)
    for number, step in enumerate((Generate(prompt="{{ txet }}"), Generate(prompt="{{ text }}", system="{{ txet }}"))):
        with pytest.raises(RunError, match="reads a column 'txet', which no row has; did you mean 'text'"):
            outcome(plan(step, rows, teacher=seen), tmp_path / f"wrong{number}" / "run")
    with pytest.raises(RunError, match="the prompt's line 1"):
        outcome(plan(Generate(prompt="{{ text"), rows, teacher=seen), tmp_path / "syntax" / "run")
    assert not seen.asked


def test_a_row_that_the_prompt_chokes_on_is_lost_alone(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 0}]
    found = stands(Generate(prompt="{{ text }} {{ 6 // n }}"), rows, tmp_path, teacher=echo)
    assert len(found.rows) == 1 and len(found.lost) == 1


def test_the_truth_is_not_told(tmp_path: Path) -> None:
    seen = Seen(moody)
    steps = {
        "first": Generate(prompt=PROMPT),
        "second": Generate(prompt="{{ answer }}{{ _truth | default('?') }}", into="b"),
    }
    outcome(plan(steps, ROWS[3:4], teacher=seen), tmp_path / "run")
    assert seen.asked[-1].messages == (("user", "Answer: forty?"),) and seen.asked[-1].about["_truth"] == {"right": True}


@pytest.mark.parametrize(
    "settings",
    [{"each": 0}, {"into": "_id"}, {"into": ""}, {"each": 2, "decoding": Decoding(temperature=0)}, {"take": "("}],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Generate(prompt=PROMPT, **settings)


def test_a_plan_of_several_steps_is_never_dearer_than_it_says(tmp_path: Path) -> None:
    """Each later prompt holds the answers of the earlier ones, which are as long as they can be."""
    full = lambda ask, rng: "x" * (4 * ask.decoding.max_new)  # noqa: E731
    steps = {
        "a": Generate(prompt=PROMPT, each=2, into="a", decoding=Decoding(max_new=64)),
        "b": Generate(prompt="{{ a }} {{ a }}", system="Short.", each=2, into="b", decoding=Decoding(max_new=32)),
        "c": Generate(prompt="{% for w in a.split() %}{{ w }}{% endfor %} {{ b }}", into="c", decoding=Decoding(max_new=8)),
    }
    recipe = plan(steps, ROWS, teacher=full)
    found, need = outcome(recipe, tmp_path / "run"), DataPlan.of(recipe).needs["teacher"]
    assert found.paid["teacher"]["calls"] == need.calls == 9 * (2 + 4 + 4)
    assert found.paid["teacher"]["tokens"] <= need.read + need.wrote <= 1.1 * found.paid["teacher"]["tokens"]


def test_faults_and_a_second_run_change_nothing(chat_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)
    server, chance = chat_server(lambda words, body: f"{words[::-1]} {body['seed']}"), random.Random(3)
    spec_ = HttpChat(url=server.url, model="tiny", retries=12)
    recipe = plan(Generate(prompt=PROMPT, each=2), ROWS, teacher=spec_)
    calm = outcome(recipe, tmp_path / "calm" / "run")
    server.fault_of = lambda number: chance.choice(PASSING) if chance.random() < 0.33 else None
    rough = outcome(recipe, tmp_path / "rough" / "run")
    assert rough.rows == calm.rows and len(calm.rows) == 18
    before = len(server.asked)
    again = outcome(recipe, tmp_path / "rough" / "again")
    assert again.rows == calm.rows and len(server.asked) == before


def test_half_a_letter_in_an_answer_ends_nothing(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(lambda words, body: "half \ud83d, whole \U0001f6b2")
    found = outcome(
        plan(Generate(prompt=PROMPT), ROWS[:2], teacher=HttpChat(url=server.url, model="tiny")), tmp_path / "run"
    )
    assert found.column("answer") == ["half \ufffd, whole \U0001f6b2"] * 2


def test_rows_are_not_gathered_before_they_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: as few are held as are asked about together, and those that need no answer pass at once."""
    monkeypatch.setattr(asking, "CHUNK", 100)
    held, most, given = 0, 0, 0

    class Work:
        lost: list[Any] = []

        def ask(self, role: str, pairs: Any) -> Any:
            while window := list(islice(pairs, 16)):
                for tag, _ in window:
                    yield tag, Completion("ok")

        def lose(self, row: Any, why: str) -> None:
            nonlocal held
            held -= 1

    def rows() -> Any:
        nonlocal held, most, given
        for number in range(3000):
            held, given = held + 1, given + 1
            most = max(most, held)
            yield {"n": number}

    def asks_of(row: Any) -> list[Ask]:
        if row["n"] % 5 == 1 or row["n"] > 2000:
            raise Unfit("odd")
        return [Ask((), Decoding())] * (2 if row["n"] % 5 else 0)

    order = []
    for row, group in answered(Work(), "teacher", rows(), asks_of):  # type: ignore[arg-type]
        held -= 1
        order.append(row["n"])
        assert len(group) == (2 if row["n"] % 5 else 0)
    assert order == [n for n in range(2001) if n % 5 != 1] and given == 3000 and held == 0 and most < 140


# -- demonstrations --------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> str:
    path = tmp_path / "pool.jsonl"
    rows = [
        {"text": f"{word} number {i}", "answer": f"{word}!"} for i, word in enumerate("apple pear plum grape fig".split())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shown(step: Generate, rows: list[dict[str, Any]], folder: Path) -> dict[str, list[tuple[str, str]]]:
    seen = Seen(lambda ask, rng: "ok")
    outcome(plan(step, rows, teacher=seen), folder)
    return {ask.messages[-1][1]: list(ask.messages[:-1]) for ask in seen.asked}


def test_demonstrations_are_turns_and_never_the_row_itself(pool: str, tmp_path: Path) -> None:
    step = Generate(prompt="Q: {{ text }}", system="Brief.", demos=Demos(path=pool, count=2))
    found = shown(step, [{"text": "apple number 0"}, {"text": "kiwi"}], tmp_path / "run")
    assert found["Q: kiwi"] == [
        ("system", "Brief."), ("user", "Q: apple number 0"), ("assistant", "apple!"), ("user", "Q: pear number 1"),
        ("assistant", "pear!"),
    ]  # fmt: skip
    assert [words for _, words in found["Q: apple number 0"][1::2]] == ["Q: pear number 1", "Q: plum number 2"]


def test_demonstrations_drawn_for_a_row_depend_on_the_row_alone(pool: str, tmp_path: Path) -> None:
    step = Generate(prompt="{{ text }}", demos=Demos(path=pool, count=3, choose="random"))
    rows = [{"text": f"{name} number {i}"} for i, name in enumerate(["apple", "pear", "kiwi", "melon", "lime", "date"])]
    one, other = shown(step, rows, tmp_path / "a" / "run"), shown(step, rows[:2:-1], tmp_path / "b" / "run")
    assert all(one[words] == other[words] for words in other) and len(other) == 3
    assert all(len(turns) == 6 and ("user", words) not in turns for words, turns in one.items())
    assert len({str(turns) for turns in one.values()}) > 3
    stands(step, rows, tmp_path / "stands", teacher=echo)


def test_the_nearest_demonstrations_come_last(pool: str, tmp_path: Path) -> None:
    step = Generate(prompt="{{ text }}", demos=Demos(path=pool, count=2, choose="nearest", near="text"))
    found = shown(step, [{"text": "ripe plum number 2"}, {"text": "fig number 4"}], tmp_path / "run")
    assert found["ripe plum number 2"][-2:] == [("user", "plum number 2"), ("assistant", "plum!")]
    assert ("user", "fig number 4") not in found["fig number 4"]
    stands(step, ROWS, tmp_path / "stands", teacher=echo)


def test_a_prompt_may_show_demonstrations_itself(pool: str, tmp_path: Path) -> None:
    prompt = "{% for demo in demos %}{{ demo.text }} -> {{ demo.answer }}\n{% endfor %}{{ text }} ->"
    step = Generate(prompt=prompt, demos=Demos(path=pool, count=2))
    found = shown(step, [{"text": "kiwi"}], tmp_path / "run")
    assert found == {"apple number 0 -> apple!\npear number 1 -> pear!\nkiwi ->": []}
    stands(step, ROWS, tmp_path / "stands", teacher=echo)


def test_a_changed_pool_is_another_step(pool: str, tmp_path: Path) -> None:
    step = Generate(prompt="{{ text }}", demos=Demos(path=pool, count=1))
    first = shown(step, ROWS[:1], tmp_path / "a")
    Path(pool).write_text('{"text": "new", "answer": "x"}\n')
    assert shown(step, ROWS[:1], tmp_path / "b") != first


def test_a_pool_that_lacks_something_is_one_line(pool: str, tmp_path: Path) -> None:
    step = Generate(prompt="{{ text }}", into="anwser", demos=Demos(path=pool))
    with pytest.raises(RunError, match="reads a column 'anwser', which no row has; did you mean 'answer'"):
        outcome(plan(step, ROWS, teacher=echo), tmp_path / "run")
    Path(pool).write_text('{"text": "new", "answer": "x"}\n{"text": "old"}\n')
    with pytest.raises(RunError, match="row 2 of .*pool.jsonl cannot be a demonstration: no answer"):
        outcome(plan(Generate(prompt="{{ text }}", demos=Demos(path=pool)), ROWS, teacher=echo), tmp_path / "run")
    with pytest.raises(ValueError):
        Demos(path=pool, choose="nearest")
    with pytest.raises(ValueError):
        Demos(path=pool, count=0)


def test_a_step_goes_through_yaml(pool: str) -> None:
    step = Generate(prompt="{{ text }}", each=2, demos=Demos(path=pool, choose="nearest", near="text"))
    assert spec(to_plain(step)) == step
    assert "synth.generate.Generate" in dump(plan(step, ROWS))


def test_how_alike_texts_are() -> None:
    texts = ["a plum is ripe", "the plum", "nothing else", "", "Ärger mit Öl", "the plum"]
    found = Alike(texts)
    for text in [*texts, "plum", "Öl"]:
        grams = [set(n_grams(each)) for each in texts]
        mine = set(n_grams(text))
        exact = [len(mine & g) / (max(1, len(mine)) * max(1, len(g))) ** 0.5 for g in grams]
        assert found.to(text).tolist() == pytest.approx(exact)
        best = max(range(len(texts)), key=lambda i: (exact[i], -i))
        assert found.nearest(text) == (best, pytest.approx(exact[best]))
        assert [alike(text, each) for each in texts] == pytest.approx(exact)
    assert Alike().nearest("x") == (-1, 0.0)


def test_what_a_wording_reads() -> None:
    wording = Wording("{{ a }} {% if b is defined %}{{ b }}{% endif %} {{ c | default('') }} {{ d }}", given=("d",))
    assert wording.needed == ["a"] and wording.names == {"a", "b", "c"}
    with pytest.raises(Unfit, match="no a"):
        wording.messages({"b": 1}, d=2)
    assert wording.messages({"a": "x", "_truth": 3}, d=2) == (("user", "x   2"),)
    assert Wording("{% for i in range(n) %}{{ loop.index }}{{ text[i] }}{% endfor %}").needed == ["n", "text"]
