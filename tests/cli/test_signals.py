"""`label`, `signals`, and learning from stored signals, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, write_jsonl
from stillhouse import estimate

Still = Callable[..., Any]
QUICK = ["--steps", "3", "--batch", "2", "--length", "64", "--yes", "--set", "samples.sampling.max_new=6"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on measuring this machine."""
    torch.set_num_threads(1)
    monkeypatch.setattr(estimate, "matmul_speed", lambda device, dtype: 1e10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "my.jsonl", chats(40))


@pytest.fixture
def label(still: Still, folders: Folders, data: Path) -> Still:
    def call(*options: str | Path, teacher: Path | None = None) -> Any:
        where = ("--teacher", teacher or folders.teacher, "--data", data, "--out", "signals")
        return still("label", *where, "--length", "64", "--yes", *options)

    return call


def test_label_says_what_it_will_take_and_what_came_out(label: Still):
    result = label("--signal", "topk:16")
    assert result.exit_code == 0, result.stderr
    for words in ("time      about", "to keep an answer for", "format     topk, k 16", "every checksum is right"):
        assert words in result.stdout
    assert "measured against the live teacher" in result.stdout and "at T=2" in result.stdout
    planned = float(result.stdout.split(" bytes a token")[0].rsplit(", ", 1)[1])
    assert f"{planned:.1f} a position" in result.stdout  # the estimate was exact


def test_signals_can_be_looked_at_and_measured_again(label: Still, still: Still, folders: Folders):
    assert label().exit_code == 0
    told = json.loads(still("signals", "signals", "--json").stdout)
    assert told["format"] == {"name": "topk", "k": 64} and told["fidelity"]["items"] > 0
    again = still("signals", "signals", "--teacher", folders.teacher)
    assert again.exit_code == 0 and "measured against the live teacher" in again.stdout
    other = still("signals", "signals", "--teacher", folders.plain)
    assert other.exit_code != 0 and "not the model that these signals are from" in other.stderr


def test_the_same_command_again_changes_nothing(label: Still):
    assert label().exit_code == 0
    before = {p.name: p.read_bytes() for p in Path("signals").iterdir() if p.suffix == ".bin"}
    assert label().exit_code == 0
    assert {p.name: p.read_bytes() for p in Path("signals").iterdir() if p.suffix == ".bin"} == before


@pytest.mark.parametrize("signal", ["topk:300", "sampled:20", "hidden:float16"])
def test_distil_from_stored_signals(signal: str, label: Still, still: Still, folders: Folders, data: Path):
    assert label("--signal", signal).exit_code == 0
    asked = ("--teacher", "signals", "--student", folders.student, "--data", data, *QUICK, "--out", "small")
    result = still("distil", *asked)
    assert result.exit_code == 0, result.stderr
    assert "teacher   stored signals" in result.stdout and "reads about 0 tokens" in result.stdout
    assert Path("small/model.safetensors").is_file()
    (run,) = Path("runs").glob("*_distil_*")
    report = (run / "report.html").read_text()
    assert "stored" in report
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert not any("teacher" == e.get("subject") for e in events)


def test_distil_cut_from_the_teacher_that_was_labelled(label: Still, still: Still, data: Path):
    assert label().exit_code == 0
    result = still("distil", "--teacher", "signals", "--student", "shrink:layers=2", "--data", data, *QUICK)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("signal", ["topk:64", "hidden:float32"])
def test_distil_that_asks_the_teacher_once(signal: str, still: Still, folders: Folders, data: Path):
    asked = ("--teacher", folders.teacher, "--student", "shrink:layers=2", "--data", data, "--signal", signal)
    result = still("distil", *asked, *QUICK)
    assert result.exit_code == 0, result.stderr
    (run,) = Path("runs").glob("*_distil_*")
    findings = json.loads((run / "artifacts" / "audit" / "data" / "value.json").read_text())
    assert {f["subject"] for f in findings} == {"teacher", "start", "train", "alone_tokens", "alone_time"}
    assert (run / "artifacts" / "label" / "data" / "done.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--adapt", "3"], "--adapt needs the teacher itself"),
        (["--method", "seqkd"], "--method seqkd needs the teacher itself"),
        (["--signal", "topk:8"], "--signal needs the teacher itself"),
        (["--method", "taid"], "needs logits"),
        (["--method", "minillm"], "needs logits"),
        (["--set", "train.method.temperature=2"], "temperature 2"),
        (["--set", "train.method.on_policy=0.5"], "student makes"),
    ],
)
def test_what_only_a_live_teacher_can_do_is_refused(
    options: list[str], words: str, label: Still, still: Still, folders: Folders, data: Path
):
    assert label().exit_code == 0
    result = still("distil", "--teacher", "signals", "--student", folders.student, "--data", data, *QUICK, *options)
    assert result.exit_code == 1 and words in result.stderr and result.stderr.count("\n") <= 12
    assert "Traceback" not in result.stderr


def test_prompts_without_answers_need_the_teacher(label: Still, still: Still, folders: Folders, tmp_path: Path):
    assert label().exit_code == 0
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"what is {i}?"} for i in range(30)])
    result = still("distil", "--teacher", "signals", "--student", folders.student, "--data", prompts, *QUICK)
    assert result.exit_code == 1 and "stored signals cannot write answers" in result.stderr


def test_a_recipe_takes_signals_in_place_of_its_teacher(label: Still, still: Still, folders: Folders, data: Path):
    assert label("--signal", "hidden:float32").exit_code == 0
    paths = ("--set", f"student.path={folders.student}", "--set", f"data.path={data}", "--set", "data.length=64")
    small = ("--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.accumulate=2")
    result = still("run", "taid", "--scale", "paper", *paths, *small, "--teacher", "signals")
    assert result.exit_code == 0, result.stderr


def test_a_folder_without_signals_is_one_line(still: Still, tmp_path: Path):
    (tmp_path / "nothing").mkdir()
    for command in (("signals", "nothing"), ("run", "taid", "--teacher", "nothing")):
        result = still(*command)
        assert result.exit_code == 1 and "holds no signals" in result.stderr


@pytest.mark.parametrize("signal", ["topk:0", "topq", "hidden:float8"])
def test_a_format_that_does_not_exist_is_refused_before_anything_is_loaded(signal: str, label: Still):
    result = label("--signal", signal)
    assert result.exit_code == 1 and not Path("signals").exists() and not Path("runs").exists()


def test_an_unfinished_capture_is_named(label: Still, still: Still):
    assert label().exit_code == 0
    Path("signals/done.json").unlink()
    result = still("signals", "signals")
    assert result.exit_code == 1 and "not finished" in result.stderr


def test_a_damaged_shard_is_named(label: Still, still: Still, folders: Folders, data: Path):
    assert label().exit_code == 0
    shard = Path("signals/shard-00000.bin")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    for command in (
        ("signals", "signals"),
        ("distil", "--teacher", "signals", "--student", folders.student, "--data", data, *QUICK),
    ):
        result = still(*command)
        assert result.exit_code == 1 and "altered" in result.stderr


def test_too_little_disk_is_said_before_the_start(label: Still, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    result = label()
    assert result.exit_code == 1 and "are free at" in result.stderr and not Path("signals").exists()


def test_any_recipe_can_ask_its_teacher_once(still: Still):
    quick = ("--set", "train.steps=5", "--set", "teacher.steps=5", "--set", "alone.steps=5")
    result = still("run", "hinton", "--scale", "smoke", "--signal", "logits", *quick)
    assert result.exit_code == 0, result.stderr
    (run,) = Path("runs").iterdir()
    told = json.loads((run / "artifacts" / "label" / "data" / "signals.json").read_text())
    assert told["format"] == {"name": "raw", "kind": "logits"}
    again = still("run", run, "--signal", "logits")
    assert again.exit_code == 1 and "its recipe is fixed" in again.stderr


def test_a_recipe_without_a_teacher_has_nothing_to_keep(still: Still):
    result = still("run", "supervised", "--scale", "smoke", "--signal", "logits")
    assert result.exit_code == 1 and "0 teachers" in result.stderr


def served(fake: Any, folders: Folders, *options: str | Path) -> tuple[Any, ...]:
    return ("--teacher", fake.url, "--model", "tiny", "--tokenizer", folders.teacher, "--signal", "topk:16", *options)


def test_a_teacher_behind_a_server_is_labelled_and_learned_from(
    serve: Any, still: Still, folders: Folders, data: Path, tmp_path: Path
):
    common = ("--data", data, "--length", "64", "--yes")
    result = still("label", *served(serve(), folders), *common, "--out", "signals")
    assert result.exit_code == 0, result.stderr
    assert "teacher   at http://127.0.0.1" in result.stdout and "measured against the live teacher" in result.stdout
    local = ("--teacher", folders.teacher, "--signal", "topk:16")
    assert still("label", *local, *common, "--out", "local").exit_code == 0
    mine, theirs = (json.loads(Path(name, "done.json").read_text()) for name in ("signals", "local"))
    assert (mine["records"], mine["items"], mine["bytes"]) == (theirs["records"], theirs["items"], theirs["bytes"])
    result = still("distil", "--teacher", "signals", "--student", folders.student, "--data", data, *QUICK)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--teacher", "http://me:secret@127.0.0.1:1/v1"), "without a user, a password or a query"),
        (("--signal", "hidden:float16"), "topk:K"),
        (("--temperature", "0.7"), "topk:K"),
        (("--tokenizer", ""), "needs --model"),
        (("--signal", "topk:100"), "--signal topk:64"),
    ],
)
def test_what_a_server_cannot_do_is_one_line(
    change: tuple[str, str], words: str, serve: Any, still: Still, folders: Folders, data: Path
):
    result = still("label", *served(serve(), folders), *change, "--data", data, "--out", "signals", "--yes")
    assert result.exit_code == 1 and words in result.stderr and "secret" not in result.stderr + result.stdout
    assert not any(b"secret" in path.read_bytes() for path in Path().rglob("*") if path.is_file())


def test_distil_asks_no_server_by_itself(serve: Any, still: Still, folders: Folders, data: Path):
    result = still("distil", "--teacher", serve().url, "--student", folders.student, "--data", data, *QUICK)
    assert result.exit_code == 1 and "stillhouse label --teacher URL" in result.stderr


def test_another_tools_set_is_imported_and_learned_from(still: Still, folders: Folders, data: Path, tmp_path: Path):
    """A vLLM dump of the tiny teacher, made here."""
    from stillhouse.models.hub import load_model, load_tokenizer

    model, tokenizer = load_model(str(folders.teacher)), load_tokenizer(str(folders.teacher))
    rows: list[dict[str, Any]] = []
    for chat in chats(40):
        ids = tokenizer.apply_chat_template(chat["messages"], tokenize=True, return_dict=False)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list[Any] = [None]
        for t in range(len(ids) - 1):
            values, index = logs[t].topk(16)
            pairs = dict(zip(index.tolist(), values.tolist(), strict=True)) | {ids[t + 1]: float(logs[t, ids[t + 1]])}
            told.append({str(i): {"logprob": v, "rank": 1, "decoded_token": ""} for i, v in pairs.items()})
        rows.append({"prompt_token_ids": ids, "prompt_logprobs": told})
    dump = write_jsonl(tmp_path / "dump.jsonl", rows)
    result = still("import", dump, "--out", "signals", "--tokenizer", folders.teacher)
    assert result.exit_code == 0, result.stderr
    assert "measured against the set itself" in result.stdout
    result = still("import", dump, "--out", "again", "--tokenizer", folders.teacher, "--teacher", folders.teacher)
    assert result.exit_code == 0 and "measured against the live teacher" in result.stdout
    assert "cannot be measured again" in still("signals", "signals", "--teacher", folders.teacher).stderr
    quick = ("--steps", "3", "--batch", "2", "--yes")
    asked = ("distil", "--teacher", "signals", "--student", folders.student, *quick)
    result = still(*asked, "--data", dump)
    assert result.exit_code == 0, result.stderr
    result = still(*asked, "--data", dump, "--length", "10")
    assert result.exit_code == 1 and "give --length" in result.stderr
    assert still("import", data, "--out", "other", "--tokenizer", folders.teacher).exit_code == 1
