"""UniversalNER: what becomes of every answer, the chat, absent types, how names are compared, and a user's own passages."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatserver import ChatServer
from language import Folders, write_jsonl
from stillhouse.audits.entities import NamedEntities, counts, names_in, normalise, normalised, sets_of
from stillhouse.cli import door, launch
from stillhouse.cli.results import findings
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.passages import HELD, NamedWorld, Passages, entities_in, pieces_of
from stillhouse.data.tables import read_rows
from stillhouse.data.tokens import encode, example_of
from stillhouse.methods.synthesis.universalner import Absent, Conversations, Extract, recipe, stands
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM
from stillhouse.models.typed import TypedTagger, spans_in, tags_of, words_of
from stillhouse.synth.asked import conversation
from stillhouse.synth.scripts.gazetteer import RARE, Gazetteer
from stillhouse.synth.synthesize import account_of, made_rows
from stillhouse.teachers.text import Ask, Decoding
from synth.talk import outcome, plan
from synth.talk import stands as holds

TEXTS = [
    {"text": "Anna Berg left Oslo for the river Glomma."},
    {"text": "Nobody came."},
    {"text": "In Oslo {it} rained; Bergen's Café Ü was shut."},
]
SAID = {
    "Anna": '```json\n[["Anna Berg", "Person"], ["Oslo", "city"], ["Glomma", "river"], ["Paris", "city"],]\n```',
    "Nobody": "[]",
    "rained": "{'city': ['Oslo', 'Bergen'], 'shop': 'Café Ü'}",
}


def gazetteer(ask: Ask, rng: random.Random) -> str:
    words = ask.messages[-1][1]
    assert ask.decoding.temperature == 0 and not ask.seed
    return next((said for key, said in SAID.items() if key in words), "I would rather not.")


def test_answers_are_read_repaired_and_kept_to_the_passage(tmp_path: Path) -> None:
    found = holds(Extract(), [*TEXTS, {"text": "Unheard of."}], tmp_path, teacher=gazetteer)
    by = {row["text"]: row for row in found.rows}
    first, none, third = (by[each["text"]] for each in TEXTS)
    pairs = [("Anna Berg", "person"), ("Oslo", "city"), ("Glomma", "river")]
    assert [(e["name"], e["type"]) for e in first["entities"]] == pairs and first["made_up"] == 1
    assert none["entities"] == [] and list(third["types"]) == ["city", "shop"]
    assert found.why() == ["no JSON list of names in the answer"]
    without = outcome(plan(Extract(without=("river",)), TEXTS[:1], teacher=gazetteer), tmp_path / "w" / "run")
    assert list(without.rows[0]["types"]) == ["person", "city"]


def test_the_chat_is_the_text_then_a_question_for_every_type(tmp_path: Path) -> None:
    steps = {"extract": Extract(), "absent": Absent(count=1), "conversations": Conversations()}
    found = outcome(plan(steps, TEXTS, teacher=gazetteer), tmp_path / "run")
    assert len(found.rows) == 3
    for row in found.rows:
        given, read, *rest = row["messages"]
        assert row["text"] in given["content"] and (given["role"], read["role"]) == ("user", "assistant")
        assert [turn["role"] for turn in rest] == ["user", "assistant"] * len(row["queries"])
        asked = {q["type"]: json.loads(rest[2 * i + 1]["content"]) for i, q in enumerate(row["queries"])}
        told: dict[str, list[str]] = {kind: [] for kind in row["absent"]}
        for each in row["entities"]:
            told.setdefault(each["type"], []).append(each["name"])
        assert asked == told and not set(row["absent"]) & set(row["types"])
        assert all(q["type"] in rest[2 * i]["content"] for i, q in enumerate(row["queries"]))
    none = outcome(plan({**steps, "absent": Absent(by="none")}, TEXTS, teacher=gazetteer), tmp_path / "none" / "run")
    assert len(none.rows) == 2 and none.why() == ["nothing is named in it, and there is no absent type to ask about"]


def test_the_comparison_of_names_by_hand() -> None:
    assert (
        normalise("The U.S.  of an  America!") == "us of america"
        and normalise("a") == ""
        and normalise("Thesis") == "thesis"
    )
    assert normalised(["The Oslo", "oslo.", "..."]) == {"oslo"}
    gold = sets_of(
        {"x": [{"name": "Oslo", "type": "city"}, {"name": "Anna", "type": "person"}]},
        [("x", t) for t in "city person river".split()],
    )
    said = {("x", "city"): normalised(["the oslo", "Bergen"]), ("x", "river"): normalised(["Glomma"])}
    assert counts("x", ["city", "person", "river"], said, gold) == [
        1,
        3,
        2,
        1,
        1,
    ]  # right, said, there, false alarms, absent
    assert names_in('Sure: ["a", 3, "b"]') == ["a", "b"] and names_in("none") == [] and names_in('{"a": 1}') == []


def test_tags_and_spans_are_inverse() -> None:
    text = "New York, New York's river York (Ü 3.5)!"
    tags = tags_of(text, ["York", "New York", "Ü 3.5", "absent", ""])
    assert spans_in(text, tags) == ["New York", "New York", "York", "Ü 3.5"]
    assert len(tags) == len(words_of(text)) and spans_in("", []) == [] and spans_in("a b", [2, 2]) == ["a b"]
    assert spans_in("a b c", [1, 1, 2]) == ["a", "b c"]
    assert stands("New York", text) and not stands("Yor", text) and not stands("", text)


def test_what_a_tagger_says_of_a_text_does_not_depend_on_the_texts_beside_it() -> None:
    torch.manual_seed(0)
    spec = TypedTagger(width=8)
    module = spec.build(None)  # type: ignore[arg-type]
    texts = ["Oslo lies far.", "A much longer text about Bergen and the sea, with 17 words.", ""]
    alone = [module(**spec.read([text], ["city"]))[0] for text in texts[:2]]
    both = module(**spec.read(texts, ["city", "city", "a long type's name"]))
    for one, other in zip(alone, both, strict=False):
        torch.testing.assert_close(one, other[: len(one)])


def test_cells_with_entities_in_every_form() -> None:
    want = [{"name": "Oslo", "type": "big city"}]
    for value in (
        [["Oslo", "Big_City"]],
        '[["Oslo", "big city"]]',
        {"big city": ["Oslo"]},
        [{"entity": "Oslo", "label": "BIG  city"}],
    ):
        assert entities_in(value) == want
    assert entities_in({"entities": [["Oslo", "big city"]]}) == want
    assert entities_in(None) == [] == entities_in([]) and entities_in("no") is None is entities_in([1, 2]) is entities_in(3)
    assert pieces_of("One two. Three four five! Six", 3) == ["One two.", "Three four five!", "Six"]
    assert pieces_of("a b c d e", 2) == ["a b", "c d", "e"] and pieces_of(" ", 3) == []


def test_the_world_shows_held_out_types_by_their_word_and_the_script_errs_as_it_says(tmp_path: Path) -> None:
    data = NamedWorld(train=400, valid=10, test=10)
    rows = data.rows(Run(tmp_path / "run"))
    assert rows == data.rows(Run(tmp_path / "other", seed=5))
    everything = [each for row in rows["train"] for each in row["entities"]]
    assert all(each["type"].capitalize() in each["name"].split() for each in everything if each["type"] in HELD)
    assert all(each["name"] in row["text"] for row in rows["train"] for each in row["entities"])
    script = Gazetteer(data=data, prose=0.0, slips=0.5)
    answer = script.build(Run(tmp_path / "run"))
    rng, right, there, banks, false, said = random.Random(0), 0, 0, 0, 0, 0
    for row in rows["train"]:
        done: Any = answer(Ask((("user", "?"),), Decoding(), about={"text": row["text"]}), rng)
        from stillhouse.synth.jsons import json_in

        told = {(e["name"], e["type"]) for e in entities_in(json_in(done.text)) or []}
        gold = {(e["name"], e["type"]) for e in row["entities"]}
        assert done.truth == {"entities": row["entities"]}
        banks += sum(kind == "bank" for _, kind in told)
        right, there, said = right + len(told & gold), there + len(gold), said + len(told)
        false += sum(kind in RARE for _, kind in told)
    share = sum(each["type"] == "bank" for each in everything) / len(everything)
    assert right / there == pytest.approx((1 - share) * 0.85 * 0.95, abs=0.03)
    assert 0 < banks < 0.05 * said and false > 20  # a bank only where another type was confused with it
    with pytest.raises(RunError, match="its own world alone"):
        answer(Ask((("user", "?"),), Decoding(), about={"text": "Oslo"}), rng)


def test_the_smoke_plan_resumes_to_the_same_rows(tmp_path: Path) -> None:
    made = recipe("smoke")
    made = made.set("stages", {"make": made.stages["make"]})
    straight = Run(tmp_path / "a" / "run")
    execute(made, straight)

    class Stop:
        def update(self, stage: str, done: int, *more: Any) -> None:
            if done == 30:
                import signal

                signal.raise_signal(signal.SIGINT)

    again = Run(tmp_path / "b" / "run")
    again.progress = Stop()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        execute(made, again)
    run = Run(tmp_path / "b" / "run")
    execute(made, run)
    assert list(made_rows(run, "make")) == list(made_rows(straight, "make"))
    held = {query["type"] for row in made_rows(run, "make") for query in row["queries"]} & set(HELD)
    assert not held  # neither found nor absent: the student never hears of them
    assert account_of(run, "make")["teachers"]["teacher"]["calls"] == 60


def test_a_users_passages_a_server_and_a_tagger_and_then_a_language_model(
    tmp_path: Path, still: Callable[..., Any], folders: Folders
) -> None:
    names = ["Oslo", "Bergen", "Turku", "Tartu", "Riga", "Gdansk"]
    rows = [
        {"text": f"{name} is where {who} lives, {i}.", "id": i}
        for i, (name, who) in enumerate((name, who) for name in names for who in ("Anna", "Ole", "Kai", "Liv", "Mia"))
    ]
    write_jsonl(tmp_path / "mine.jsonl", [*rows, {"text": ""}, {"other": 1}])

    def answer(words: str, body: Any) -> str:
        said = words.split("Passage: ")[1].splitlines()[0].split()
        return json.dumps([[said[0], "city"], [said[3], "person"]])

    server = ChatServer(answer)
    parts = [
        "--set", "data.path=mine.jsonl", "--set", "data.valid=0.1", "--set", "data.test=0.2",
        "--set", f"teachers.teacher.url={server.url}", "--set", "teachers.teacher.model=tiny",
        "--set", "train.batch=8", "--set", "train.accumulate=1", "--set", "train.precision=float32", "--runs", "runs",
    ]  # fmt: skip
    tagger = [
        "--set",
        "student={use: models.typed.TypedTagger, width: 12}",
        "--set",
        "train.steps=120",
        "--set",
        "train.optim.lr=0.02",
    ]
    done = still("run", "universalner", "--scale", "paper", *parts, *tagger)
    assert done.exit_code == 0, done.stderr + done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    found = {(f.name, f.subject): f.value for f in findings(folder) if f.versus is None}
    assert found["entity_f1", "train"] > 0.6 > found["entity_f1", "start"]  # agreement with the teacher on held-out texts
    assert ("entity_f1", "teacher") not in found  # whose words are the truth here
    table = folder / "artifacts" / "make" / "data" / "rows.parquet"
    for row in read_rows(table):  # what the documentation says trains a language model
        example = example_of(row)
        assert isinstance(example, dict) and example["messages"][1]["role"] == "assistant"
    model = ["--set", f"student={{use: models.hub.HubLM, path: {folders.student}}}", "--set", "train.steps=2"]
    text = ["--set", f"data={{use: data.tokens.Text, path: {table}, length: 200, valid: 0.1, test: 0.1}}"]
    more = ["--set", "train.batch=4", "--set", "stages.audit=null", "--runs", "language"]
    done = still("run", "supervised", *model, *text, *more)
    assert done.exit_code == 0, done.stderr + done.stdout
    assert list((tmp_path / "language").glob("*/artifacts/train/data/model.safetensors"))
    asked = len(server.asked)
    made = door.build(door.read_yaml((folder / "recipe.yaml").read_text()))
    for path, value in {"student": HubLM(path=str(folders.student)), "train.steps": 2, "train.data.length": 200}.items():
        made = made.set(path, value)
    made = made.set("audit.checks", (NamedEntities(heard="heard", most=2, sampling=Sampling(temperature=0.0, max_new=4)),))
    run = launch.launch(made, folder=folder.parent / "again", device="cpu")
    assert {f.name for f in findings(run.folder)} >= {"entity_f1", "false_alarms"}
    assert len(server.asked) == asked  # nothing is asked twice


def test_only_the_answers_count_for_a_language_model(folders: Folders) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders.student)
    turns = conversation("the cat {sees} the moon.", [{"type": "animal", "names": ["cat"]}, {"type": "boat", "names": []}])
    tokens, counted = encode({"messages": turns}, tokenizer)  # type: ignore[misc]
    said = tokenizer.decode([t for t, c in zip(tokens, counted, strict=True) if c])
    assert said == 'I have read it.<|end|>["cat"]<|end|>[]<|end|>' and "{sees}" in turns[0]["content"]


def test_without_names_and_without_a_teacher_nothing_can_be_judged(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"text": f"text {i}"} for i in range(20)])
    data = Passages(path=str(tmp_path / "mine.jsonl"))
    assert data.types(Run(tmp_path / "run")) == ()
    made = door.build(door.read_yaml(door.dump(recipe("smoke").set("data", data))))
    run = Run(tmp_path / "run")
    run.recipe = made
    with pytest.raises(RunError, match="no test passage says which names it holds"):
        list(NamedEntities()(run, None))  # type: ignore[arg-type]
