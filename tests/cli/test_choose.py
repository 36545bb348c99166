"""`stillhouse choose`: what fits is found from what is there, with a command that can be typed."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Still = Callable[..., Any]


def chosen(still: Still, *options: str | Path) -> dict[str, Any]:
    result = still("choose", *options, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def ids(found: dict[str, Any]) -> list[str]:
    return [m["id"] for m in found["methods"]]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "my.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


def test_a_model_and_text(still: Still, texts: Path):
    found = chosen(still, "--teacher", "big", "--student", "small", "--data", texts)
    assert {"gkd", "taid", "seqkd", "minillm", "hinton"} <= set(ids(found))
    gkd = next(m for m in found["methods"] if m["id"] == "gkd")
    assert gkd["command"] == f"stillhouse distil --teacher big --student small --data {texts} --method gkd --out student/"
    assert "needs logits" in gkd["why"] and found["known"][0] == f"{texts} holds text"


def test_what_held_comes_first(still: Still, texts: Path):
    verdicts = [m["verdict"] for m in chosen(still, "--teacher", "big", "--data", texts)["methods"]]
    assert verdicts == sorted(verdicts, key=["holds", "undecided", None, "does not hold"].index)


def test_a_server_serves_methods_that_a_top_k_will_do_for(still: Still, texts: Path):
    found = set(ids(chosen(still, "--teacher", "http://host:8000/v1", "--data", texts)))
    assert {"gkd", "hinton", "seqkd"} <= found and not {"taid", "minillm"} & found


def test_stored_signals_are_looked_into(still: Still, texts: Path, tmp_path: Path):
    for name, fits in (("topk", False), ("hidden", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "signals.json").write_text(json.dumps({"format": {"name": name}}))
        found = chosen(still, "--teacher", folder, "--data", texts)
        assert ("taid" in ids(found)) == fits
        assert "minillm" not in ids(found)  # it asks about what the student will write
        commands = {m["id"]: m["command"] for m in found["methods"]}
        assert "on_policy=0" in commands["gkd"] and ("train.method.temperature=1" in commands["hinton"]) != fits


def test_drawn_classes_serve_forward_kl_alone(still: Still, texts: Path, tmp_path: Path):
    folder = tmp_path / "signals"
    folder.mkdir()
    (folder / "signals.json").write_text(json.dumps({"format": {"name": "sampled"}}))
    commands = {m["id"]: m["command"] for m in chosen(still, "--teacher", folder, "--data", texts)["methods"]}
    assert "--set 'train.method.divergence={use: objectives.divergences.ForwardKL}'" in commands["gkd"]


def test_a_folder_of_images(still: Still, tmp_path: Path):
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "a.png").write_bytes(b"")
    found = chosen(still, "--teacher", "net", "--data", tmp_path / "pictures")
    assert "hinton" in ids(found) and "gkd" not in ids(found)
    command = next(m["command"] for m in found["methods"] if m["id"] == "hinton")
    assert shlex.split(command)[:3] == ["stillhouse", "run", "hinton"] and "data.images.Folder" in command


@pytest.mark.parametrize(
    ("row", "words", "fit", "unfit"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs", "gkd", "promptmix"),
        ({"text": "a", "label": "b"}, "labels", "promptmix", "dmd"),
        ({"text": "a"}, "documents", "taid", "promptmix"),
        ({"prompt": "a", "completion": "b"}, "documents", "taid", "promptmix"),
        ({"question": "a", "answer": "b"}, "tasks", "gkd", "taid"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "documents",
            "taid",
            "promptmix",
        ),
    ],
)
def test_columns_say_what_rows_can_be_used_as(row: Any, words: str, fit: str, unfit: str, still: Still, tmp_path: Path):
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    found = chosen(still, "--teacher", "big", "--data", tmp_path / "r.jsonl")
    assert any(words in fact for fact in found["known"]) and fit in ids(found) and unfit not in ids(found)


def test_labelled_texts_come_with_commands_for_them(still: Still, tmp_path: Path):
    (tmp_path / "l.csv").write_text("text,label\nhello,x\n")
    commands = {m["id"]: m["command"] for m in chosen(still, "--teacher", "big", "--data", tmp_path / "l.csv")["methods"]}
    assert commands["promptmix"] == f"stillhouse run promptmix --scale paper --set data.path={tmp_path / 'l.csv'}"
    assert "data.labelled.Labelled" in commands["supervised"] and "models.text.NGrams" in commands["supervised"]


@pytest.mark.parametrize("name", ["r.json", "r.csv", "r.parquet", "r.csv.gz"])
def test_files_of_every_kind_are_looked_into(name: str, still: Still, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, path = {"prompt": "a", "chosen": "b", "rejected": "c"}, tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"prompt,chosen,rejected\na,b,c\n"))
    else:
        path.write_text(json.dumps([row]) if name == "r.json" else "prompt,chosen,rejected\na,b,c\n")
    assert any("pairs" in fact for fact in chosen(still, "--teacher", "big", "--data", path)["known"])


@pytest.mark.parametrize("row", [{"prompt": "why?"}, {"messages": [{"role": "user", "content": "why?"}]}])
def test_prompts_alone_are_noticed(row: Any, still: Still, tmp_path: Path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert any(
        "prompts that a teacher has to answer" in fact for fact in chosen(still, "--teacher", "big", "--data", path)["known"]
    )


def test_nothing_given_takes_the_usual_answers(still: Still):
    assert "gkd" in ids(chosen(still))


def test_no_teacher_leaves_the_baseline(still: Still, texts: Path):
    found = ids(chosen(still, "--gives", "text", "--data", texts))
    assert "supervised" in found and "gkd" not in found


def test_a_file_that_is_not_there(still: Still):
    result = still("choose", "--data", "nowhere.jsonl")
    assert result.exit_code == 1 and "no file or folder nowhere.jsonl" in result.stderr


def test_it_needs_no_torch(texts: Path):
    code = "import sys; from stillhouse.cli import choose as c; c.fitting(c.situation('big', sys.argv[1], None, None, None))"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(texts)], check=True)
