"""Sequence-level distillation: the teacher writes every prompt once, whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, run_of, write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted
from stillhouse.core.stage import execute
from stillhouse.data.tokens import Text
from stillhouse.data.toys import Sentences
from stillhouse.data.written import Written
from stillhouse.methods.classics import seqkd
from stillhouse.methods.classics.seqkd import Write
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.module import ModuleTeacher

SAMPLING = Sampling(max_new=6, batch=16)


def recipe(**settings: Any) -> Recipe:
    write = Write(**({"data": Sentences(), "sampling": SAMPLING} | settings))
    return Recipe(
        id="write", student=TinyLM(width=8, depth=1), data=Sentences(), stages={"write": write},
        teachers={"teacher": ModuleTeacher(spec=TinyLM(width=16, depth=1))},
    )  # fmt: skip


def written(run: Any, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path("write") / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = run_of(tmp_path_factory.mktemp("write"), None)
    execute(recipe(), run)
    return run


def test_every_prompt_is_answered_once(finished: Any) -> None:
    source = finished.sources()["train"]
    prompts = source.prompts()
    lines = written(finished)
    assert [line["example"] for line in lines] == list(range(len(prompts)))
    assert [line["prompt"] for line in lines] == prompts
    assert all(len(line["answer"]) == 6 for line in lines)  # this toy teacher has no end token
    assert finished.done("write")["teacher_tokens"] == sum(len(line["prompt"]) + 6 for line in lines)
    assert not (finished.folder / "state" / "write").exists()


class StopAfter:
    """A progress bar that asks to stop, as Ctrl-C would."""

    def __init__(self, done: int):
        self.done = done

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if done == self.done:
            signal.raise_signal(signal.SIGINT)


def test_a_stopped_stage_goes_on_to_the_same_bytes(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, None)
    run.progress = StopAfter(48)
    with pytest.raises(Interrupted, match="48 of"):
        execute(recipe(), run)
    assert run.done("write") is None
    asked: list[int] = []
    generate = seqkd.generate
    monkeypatch.setattr(seqkd, "generate", lambda m, p, *a, **k: asked.append(len(p)) or generate(m, p, *a, **k))
    again = run_of(tmp_path, None)
    execute(recipe(), again)
    assert sum(asked) == len(written(finished)) - 48
    assert again.done("write")["content"] == finished.done("write")["content"]


KILLED = """
import sys, os, signal
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads(1)
from test_seqkd import recipe, run_of, execute, Path
class Kill:
    def update(self, stage, done, total, logs, seconds):
        if done == 80: os.kill(os.getpid(), signal.SIGKILL)
run = run_of(Path(sys.argv[1]), None)
run.progress = Kill()
execute(recipe(), run)
"""


def test_a_killed_stage_goes_on_to_the_same_bytes(finished: Any, tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    code = KILLED.format(paths=[str(here.parent), str(here.parents[2])])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    parts = list((tmp_path / "state" / "write").glob("*.jsonl"))
    assert len(parts) == 5
    run = run_of(tmp_path, None)
    execute(recipe(), run)
    assert run.done("write")["content"] == finished.done("write")["content"]


def test_several_answers_to_a_prompt_differ(tmp_path: Path) -> None:
    run = run_of(tmp_path, None)
    execute(recipe(each=3, limit=10, splits=("train", "valid")), run)
    lines = written(run)
    assert [line["example"] for line in lines] == [i for i in range(10) for _ in range(3)]
    assert len({json.dumps(line["answer"]) for line in lines[:3]}) > 1
    assert len(written(run, "valid")) == 10  # one each: a loss on held-out text needs no more


def test_what_was_written_is_data(finished: Any) -> None:
    packed = Written(stage="write", base=Sentences()).load(finished)
    assert set(packed) == {"train", "valid", "test"}
    assert packed["test"] == Sentences().load(finished)["test"]
    documents = {d.example: d for row in packed["train"].rows for d in row}
    for line in written(finished):
        document = documents[line["example"]]
        assert document.tokens == [*line["prompt"], *line["answer"]]
        assert document.counts == [False] * len(line["prompt"]) + [True] * len(line["answer"])
    whole = Written(stage="write", base=Sentences(), prompts_count=True).load(finished)["train"]
    assert whole.targets > packed["train"].targets


def test_a_language_model_writes_for_prompts_alone(folders: Folders, tmp_path: Path) -> None:
    data = Text(path=str(write_jsonl(tmp_path / "a.jsonl", chats(20, answered=False))), length=64, valid=0.0, test=0.1)
    made = Recipe(
        id="write", student=HubLM(path=str(folders.student)), data=Written(stage="write", base=data),
        teachers={"teacher": LocalLM(model=HubLM(path=str(folders.teacher)))},
        stages={"write": Write(data=data, splits=("train", "valid", "test"), sampling=SAMPLING)},
    )  # fmt: skip
    run = run_of(tmp_path / "run", None)
    torch.manual_seed(0)
    execute(made, run)
    splits = run.sources()
    assert {name: len({d.example for row in p.rows for d in row}) for name, p in splits.items()} == {
        "train": 18, "valid": 0, "test": 2,
    }  # fmt: skip
    ended = [line["answer"] for line in written(run) if len(line["answer"]) < 6]
    assert all(answer[-1] == 0 for answer in ended)  # the end token is learned too
