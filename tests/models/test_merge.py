"""The stage that merges: stages and folders as sources, training on from it, an audit of it, refusals, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, keep, llama, run_of, tokenizer_of
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError
from stillhouse.core.stage import Audit, Subjects, Train, execute
from stillhouse.data.tasks import Chain
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.earlier import Continued
from stillhouse.models.hub import HubLM, StageLM
from stillhouse.models.merge import Merge, Part
from stillhouse.models.toys import TinyLM

TASKS = Chain(ops=(1,), base=3, style="answer", train=9, valid=2, test=2)


def toy_run(folder: Path, weight: float = 0.25) -> Any:
    one = Train(method=Supervised(), steps=3, batch=9, optim=Optim(lr=1e-2))
    stages = {
        "a": one,
        "b": Train(method=Supervised(), steps=5, batch=9, optim=Optim(lr=3e-2), student=Continued(stage="a")),
        "mix": Merge(parts={"a": Part(model="a", weight=weight), "b": Part(model="b", weight=1 - weight)}),
        "on": Train(method=Supervised(), steps=2, batch=9, student=Continued(stage="mix")),
        "audit": Audit(subjects=(), checks=()),
    }
    run = run_of(folder, TinyLM(width=8, depth=1), data=TASKS, **stages)
    execute(run.recipe, run)
    return run


def test_a_merge_of_stages_is_a_model_that_others_go_on_from(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    subjects = Subjects(run, ())
    a, b, mix = (subjects.load(name).state_dict() for name in ("a", "b", "mix"))
    for name in a:
        torch.testing.assert_close(mix[name], 0.25 * a[name] + 0.75 * b[name])
    assert run.done("mix")["kind"] == "model" and run.done("on")["steps"] == 2
    with pytest.raises(RunError, match="no training stage 'audit' to audit"):
        subjects.load("audit")


def test_all_of_one_model_is_that_model(tmp_path: Path) -> None:
    run = toy_run(tmp_path, weight=1.0)
    assert run.done("mix")["content"] == run.done("a")["content"]


def test_folders_and_the_models_after_them(folders: Folders, tmp_path: Path) -> None:
    other = keep(llama(width=16, layers=2, seed=9), tokenizer_of(), tmp_path / "other")
    merge = Merge(parts={"mine": Part(model=str(folders.student), weight=0.5), "other": Part(model=str(other), weight=0.5)})
    run = run_of(tmp_path / "run", HubLM(path=str(folders.student)), mix=merge)
    execute(run.recipe, run)
    spec = StageLM(stage="mix")
    made, mine, theirs = spec.build(run), HubLM(path=str(folders.student)).build(run), HubLM(path=str(other)).build(run)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, 0.5 * mine.state_dict()[name] + 0.5 * theirs.state_dict()[name])
    assert spec.tokenizer(run).get_vocab() == Continued(stage="mix").tokenizer(run).get_vocab()


def test_what_it_refuses(folders: Folders, tmp_path: Path) -> None:
    for parts in ({"a": Part(model="a", weight=0.4), "b": Part(model="b", weight=0.5)}, {}):
        with pytest.raises(RunError, match=r"'mix' have to add up to 1, not 0"):
            run = run_of(tmp_path / "sum", None, mix=Merge(parts=parts))
            execute(run.recipe, run)

    def merge(one: Any, two: Any) -> Any:
        parts = {"one": Part(model=str(one), weight=0.5), "two": Part(model=str(two), weight=0.5)}
        run = run_of(tmp_path / "run", HubLM(path=str(folders.student)), mix=Merge(parts=parts))
        execute(run.recipe, run)
        return run

    with pytest.raises(RunError, match="one and two are not of one architecture"):
        merge(folders.student, folders.teacher)
    with pytest.raises(RunError, match="no model folder at ./nowhere"):
        merge(folders.student, "./nowhere")
    twin = tmp_path / "twin"
    shutil.copytree(folders.student, twin)
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4, "num_key_value_heads": 4}))
    with pytest.raises(RunError, match="one has num_attention_heads=2 in its configuration and two has 4"):
        merge(folders.student, twin)
    (twin / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    warned = [e["text"] for e in merge(folders.student, twin).read("events.jsonl") if e["event"] == "warning"]
    assert len(warned) == 1 and "rms_norm_eps" in warned[0]


def test_from_the_command_line(folders: Folders, tmp_path: Path, still: Any) -> None:
    from stillhouse.core.recipe import to_plain
    from stillhouse.models.weights import Stored

    other = keep(llama(width=16, layers=2, seed=9), tokenizer_of(), tmp_path / "other")
    merge = Merge(parts={"mine": Part(model=str(folders.student), weight=0.5), "other": Part(model="?", weight=0.5)})
    plain = run_of(tmp_path / "plan", HubLM(path=str(folders.student)), data=TASKS, merge=merge).recipe.plain()
    (tmp_path / "merge.yaml").write_text(json.dumps(to_plain(plain)))
    changes = ("--set", f"merge.parts.other.model={other}", "--set", "merge.parts.mine.weight=0.3")
    done = still("run", "merge.yaml", *changes, "--set", "merge.parts.other.weight=0.7")
    assert done.exit_code == 0, done.stderr
    (made,) = (tmp_path / "runs").glob("*/artifacts/merge/data")
    a, b = Stored(folders.student), Stored(other)
    for name, value in Stored(made).items():
        torch.testing.assert_close(value, 0.3 * a[name] + 0.7 * b[name])
