"""`stillhouse distil` from end to end, on tiny Llamas: every kind of data, and one line for everything that goes wrong."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from language import LINES, Folders, chats, write_jsonl
from stillhouse import estimate
from stillhouse.cli import app as command_line
from stillhouse.cli import door
from stillhouse.core.run import Run

Still = Callable[..., Any]
QUICK = ["--steps", "3", "--batch", "2", "--length", "64", "--yes", "--set", "samples.sampling.max_new=6"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on measuring this machine."""
    torch.set_num_threads(1)
    monkeypatch.setattr(estimate, "matmul_speed", lambda device, dtype: 1e10)


@pytest.fixture
def distil(still: Still, folders: Folders) -> Still:
    """`distil(data, *options)` with the tiny teacher; the student is cut from it unless another is named."""

    def call(data: Path, *options: str | Path, teacher: Path | None = None, student: str | Path = "shrink:layers=2") -> Any:
        models = ("--teacher", teacher or folders.teacher, "--student", student)
        return still("distil", *models, "--data", data, *QUICK, *options)

    return call


def finished() -> Run:
    """The only run below `runs`."""
    (folder,) = Path("runs").iterdir()
    recipe = door.load(folder / "recipe.yaml")
    run = Run(folder, seed=recipe.seed, device=torch.device("cpu"))
    run.recipe = recipe
    return run


def findings(run: Run) -> dict[tuple[str, str], float]:
    return {(f["subject"], f["name"]): f["value"] for f in run.load_json("audit") if "subject" in f and not f["versus"]}


def test_conversations(distil: Still, tmp_path: Path) -> None:
    settings = ("--set", "train.optim.lr=0.001", "--set", "train.method.labels=0")
    result = distil(write_jsonl(tmp_path / "my.jsonl", chats(40)), "--out", "small", *settings)
    assert result.exit_code == 0, result.stderr
    for line in ("teacher ", "student ", "memory ", "disk ", "time ", "report: ", "student: small"):
        assert line in result.stdout
    model = transformers.AutoModelForCausalLM.from_pretrained("small")
    assert model.config.num_hidden_layers == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained("small")
    asked = tokenizer.apply_chat_template(chats(1)[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=3).shape[1] > 3
    card = Path("small/README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card
    run = finished()
    found = findings(run)
    assert {s for s, _ in found} == {"teacher", "start", "train", "alone_tokens", "alone_time"}
    assert found["train", "kl"] < found["start", "kl"]
    assert set(run.load_json("samples")[0]) == {"prompt", "teacher", "start", "train", "alone_tokens", "alone_time"}
    assert run.load_json("cut")["layers"] and "report.html" in result.stdout


def test_prompts_alone_are_answered_by_the_teacher(distil: Still, folders: Folders, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", [{"prompt": f"{LINES[i % 6]} {i}?"} for i in range(30)])
    fewer = ("--set", "write.sampling.max_new=8")
    result = distil(data, "--method", "gkd", "--set", "train.method.sampling.max_new=6", *fewer, student=folders.student)
    assert result.exit_code == 0, result.stderr
    run = finished()
    assert list(run.recipe.stages)[0] == "write" and run.names()[-1] == "write"
    assert len((run.path("write") / "train.jsonl").read_text().splitlines()) == 26
    assert not {"text", "completion"} & set(json.loads(data.read_text().splitlines()[0]))


def test_a_spreadsheet_and_its_columns(distil: Still, folders: Folders, tmp_path: Path) -> None:
    lines = [f'{i},"{LINES[i % 6]}\n{i}","{LINES[(i + 2) % 6]} {i}"' for i in range(30)]
    (tmp_path / "my.csv").write_text("id,question,answer\n" + "\n".join(lines))
    result = distil(tmp_path / "my.csv", "--column", "answer", "--method", "taid", student=folders.student)
    assert result.exit_code == 0, result.stderr
    run = finished()
    assert type(run.recipe.stages["train"].method).__name__ == "TAID"
    prompts = [row["prompt"] for row in run.load_json("samples")]  # the questions as they were asked, without the template
    assert prompts and all(prompt.rpartition("\n")[0] in LINES for prompt in prompts)


def test_plain_text(distil: Still, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("\n\n".join(f"{LINES[i % 6]} {i} {LINES[(i * 5 + 1) % 6]}" for i in range(40)))
    result = distil(tmp_path / "my.txt", "--out", "small", student="shrink:layers=3,width=24,ffn=40")
    assert result.exit_code == 0, result.stderr
    assert transformers.AutoModelForCausalLM.from_pretrained("small").config.hidden_size == 24


def test_the_teacher_is_adapted_first(distil: Still, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(40))
    result = distil(data, "--adapt", "2", "--method", "seqkd", "--set", "write.sampling.max_new=6")
    assert result.exit_code == 0, result.stderr
    assert list(finished().recipe.stages)[:3] == ["adapt", "write", "train"]


SPEAKING = ("--set", "audit.checks.1.count=4", "--set", "audit.checks.1.sampling.max_new=4")


def test_without_the_teacher_means_without_its_text_too(distil: Still, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(40))
    result = distil(data, "--method", "seqkd", "--set", "write.sampling.max_new=6", *SPEAKING)
    assert result.exit_code == 0, result.stderr
    run = finished()
    texts = {name: type(run.recipe.stages[name].data or run.recipe.data).__name__ for name in ("train", "alone_tokens")}
    assert texts == {"train": "Written", "alone_tokens": "Text"}
    found = findings(run)
    assert found["train", "nll"] != found["alone_tokens", "nll"]
    assert ("train", "own_reverse_kl") in found  # judged where such methods gain, too


def test_prompts_alone_leave_nothing_to_read_without_the_teacher(distil: Still, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(40, answered=False))
    result = distil(data, "--method", "seqkd", "--set", "write.sampling.max_new=6", *SPEAKING)
    assert result.exit_code == 0, result.stderr
    assert not {"alone_tokens", "alone_time"} & set(finished().recipe.stages)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "minillm", "--signal", "topk:4"), "asks about what the student makes"),
        (("--method", "gkd", "--signal", "topk:4"), "--set train.method.on_policy=0"),
        (("--method", "taid", "--signal", "topk:4"), "--signal hidden:float16"),
        (("--method", "hinton", "--signal", "topk:4"), "compares at temperature 4"),
        (("--method", "denoise"), "denoise is not for text as it stands"),
        (("--method", "promptmix"), "begins with labels (inputs with their class)"),
        (("--method", "dpo"), "begins with pairs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    options: Any, words: str, distil: Still, tmp_path: Path
) -> None:
    result = distil(write_jsonl(tmp_path / "my.jsonl", chats(40)), *options)
    assert result.exit_code == 1 and words in result.stderr
    assert not Path("runs").exists()


def test_a_plan_trains_nothing(still: Still, folders: Folders, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(40))
    models = ("--teacher", folders.teacher, "--student", "shrink:layers=2", "--data", data)
    result = still("plan", *models, "--length", "64")
    assert result.exit_code == 0, result.stderr
    for line in (r"teacher +0\.1 M parameters", r"memory +about [\d.]+ GiB", r"time +about \d+ min", r"disk +about",
                 r"teacher +reads about [\d,]+ tokens", r"steps +\d+", r"data +[\d,]+ training tokens"):  # fmt: skip
        assert re.search(line, result.stdout), line
    assert not Path("runs").exists() and not Path("student").exists()
    budget = still("plan", *models, "--minutes", "3").stdout
    assert re.search(r"about [234] min", budget)


def test_the_plan_knows_the_models(folders: Folders, tmp_path: Path) -> None:
    import stillhouse

    data = write_jsonl(tmp_path / "my.jsonl", chats(40))
    plan = stillhouse.plan(str(folders.teacher), f"{folders.student}", data, steps=3, length=64)
    for size, folder in ((plan.teacher, folders.teacher), (plan.student, folders.student)):
        assert size == sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert plan.steps == 3 and 0 < plan.targets < plan.tokens


# -- stopping ------------------------------------------------------------------------------------------------------


class StopAt:
    """A progress bar that asks to stop, as Ctrl-C would."""

    def __init__(self, stage: str, step: int):
        self.stage, self.step = stage, step

    def begin(self, *args: object) -> None:
        pass

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if (stage, done) == (self.stage, self.step):
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        pass


def test_stopped_and_resumed_gives_the_same_student(
    distil: Still, still: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(40))
    more = ("--method", "taid", "--set", "alone_time.steps=1")
    assert distil(data, *more, "--runs", "straight").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(command_line, "_progress", lambda unit: StopAt("train", 2))
        stopped = distil(data, *more, "--out", "other")
    assert stopped.exit_code == 130, stopped.stderr
    assert "go on with: stillhouse run" in stopped.stderr
    folder = stopped.stderr.split("stillhouse run ")[1].strip()
    resumed = still("run", folder)
    assert resumed.exit_code == 0, resumed.stderr
    (straight,) = Path("straight").iterdir()
    marks = [json.loads((f / "artifacts/train/done.json").read_text()) for f in (straight, Path(folder))]
    assert marks[0]["content"] == marks[1]["content"]


# -- what goes wrong -----------------------------------------------------------------------------------------------


def refused(result: Any, *says: str) -> None:
    assert result.exit_code == 1, result.stdout + result.stderr
    *before, last = result.stderr.strip().splitlines()
    assert last.startswith("stillhouse: ") and "unexpected" not in last, result.stderr
    assert not before or before[0].startswith("distil, seed 0")  # where the run is, if it had begun
    for text in says:
        assert text in last


def test_data_that_cannot_be_used(distil: Still, folders: Folders, tmp_path: Path) -> None:
    refused(distil(tmp_path / "nothing.jsonl"), "no data file")
    (tmp_path / "empty.jsonl").write_text("")
    refused(distil(tmp_path / "empty.jsonl"), "holds no rows")
    refused(distil(write_jsonl(tmp_path / "a.jsonl", [{"body": f"b{i}"} for i in range(9)])), "name one")
    refused(distil(write_jsonl(tmp_path / "b.jsonl", chats(9)), "--column", "body"), "no column 'body'")
    refused(distil(write_jsonl(tmp_path / "c.jsonl", chats(2))), "too few")
    bare = {"teacher": folders.plain, "student": "shrink:layers=2"}
    refused(distil(write_jsonl(tmp_path / "d.jsonl", chats(20)), **bare), "no chat template")
    refused(distil(write_jsonl(tmp_path / "e.jsonl", chats(20, answered=False)), **bare), "no chat template")
    assert not Path("runs").exists() and not Path("student").exists()


def test_models_that_cannot_be_used(distil: Still, folders: Folders, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(30))
    refused(distil(data, teacher=tmp_path / "nothing"), "no model folder")
    refused(distil(data, teacher=tmp_path), "config.json")
    refused(distil(data, student=tmp_path / "nothing"), "no model folder")
    refused(distil(data, student="shrink:layers=many"), "shrink:layers=10")
    refused(distil(data, student="shrink:layers=9"), "9 of 4 layers")
    refused(distil(data, student=folders.foreign), "different tokenizers", "--student shrink:layers=N")
    refused(distil(data, "--method", "minilm"), "did you mean 'minillm'")
    refused(distil(data, "--set", "train.method.betta=1"), "betta")


def test_places_that_cannot_be_written_to(distil: Still, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", chats(30))
    (tmp_path / "file").write_text("")
    refused(distil(data, "--out", "file/student"), "--out")
    refused(distil(data, "--out", "file"), "--out")
    refused(distil(data, "--runs", "file"), "--runs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.bin").write_text("mine")
    refused(distil(data, "--out", "full"), "not empty")
    assert (tmp_path / "full" / "model.bin").read_text() == "mine"


def test_too_little_memory(distil: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_free_memory", lambda device: 2.0**28)
    refused(distil(write_jsonl(tmp_path / "my.jsonl", chats(30))), "GiB of memory", "take a smaller student")
    assert not Path("runs").exists()


def test_too_little_time(still: Still, folders: Folders, tmp_path: Path) -> None:
    models = ("--teacher", folders.teacher, "--student", folders.student)
    data = write_jsonl(tmp_path / "my.jsonl", chats(30))
    refused(still("distil", *models, "--data", data, "--minutes", "0.5", "--yes"), "too few here: give at least")
