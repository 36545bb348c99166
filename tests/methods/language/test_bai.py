"""BAI: the two merges, their weights, where RL begins and what its KL is measured to, and a user's own folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, keep, llama, run_of, tokenizer_of, write_jsonl
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.joined import Joined
from stillhouse.data.tasks import Chain
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.language.bai import Balance, recipe
from stillhouse.models.call import weights_hash
from stillhouse.models.earlier import Continued
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM
from stillhouse.models.weights import Stored, merged

TASKS = Chain(ops=(1,), base=3, style="answer", train=9, valid=2, test=2)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("b", [0.0, 0.7, 0.9, 1.0])
def test_the_weights_are_those_of_two_merges_and_add_up_to_one(a: float, b: float) -> None:
    weights = Balance(a=a, b=b).weights()
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    states = {name: {"w": torch.randn(5, dtype=torch.float64)} for name in weights}
    first = merged({n: states[n] for n in ("instructed", "distilled")}, {"instructed": a, "distilled": 1 - a})
    second = merged({"first": first, "pretrained": states["pretrained"]}, {"first": b, "pretrained": 1 - b})
    torch.testing.assert_close(merged(states, weights)["w"], second["w"])


def balanced(folder: Path, **settings: Any) -> Any:
    one = Train(method=Supervised(), steps=2, batch=9, optim=Optim(lr=1e-2))
    on = {name: Train(method=Supervised(), steps=n, batch=9, student=Continued(stage="pretrained"))
          for name, n in (("instructed", 2), ("distilled", 4))}  # fmt: skip
    run = run_of(folder, TinyLM(width=8, depth=1), data=TASKS, pretrained=one, **on, balance=Balance(**settings))
    execute(run.recipe, run)
    return run


def test_the_stage_is_the_sum(tmp_path: Path) -> None:
    run = balanced(tmp_path, a=0.3, b=0.9)
    load = Subjects(run, ()).load
    pre, ins, dis, mix = (load(n).state_dict() for n in ("pretrained", "instructed", "distilled", "balance"))
    for name in mix:
        torch.testing.assert_close(mix[name], 0.9 * (0.3 * ins[name] + 0.7 * dis[name]) + 0.1 * pre[name])


@pytest.mark.parametrize(("a", "b", "same"), [(1, 1, "instructed"), (0, 1, "distilled"), (0.5, 0, "pretrained")])
def test_the_corners_are_the_models_themselves(tmp_path: Path, a: float, b: float, same: str) -> None:
    run = balanced(tmp_path, a=a, b=b)
    assert run.done("balance")["content"] == run.done(same)["content"]


def test_rl_begins_at_the_merge_which_is_its_reference_too(tmp_path: Path) -> None:
    run = balanced(tmp_path)
    student = Continued(stage="balance").build(run)
    state = GRPO(kl=0.1).setup(student, run)
    assert weights_hash(state.reference) == weights_hash(Subjects(run, ()).load("balance"))
    stages = recipe("small").stages
    assert stages["train"].student == Continued(stage="balance") and isinstance(stages["train"].method, GRPO)
    assert stages["train"].method.kl > 0


def test_a_users_own_folders(folders: Folders, tmp_path: Path, still: Any) -> None:
    """The paper's recipe as YAML, with their three models and their questions."""
    made = {n: keep(llama(width=16, layers=2, seed=i), tokenizer_of(), tmp_path / n) for i, n in enumerate(("i", "d", "p"))}
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"what is {i} and {i}?", "answer": str(2 * i)} for i in range(40)])
    shown = still("show", "bai", "--scale", "paper", "--yaml")
    Path("mine.yaml").write_text(shown.stdout)
    settings = {
        "balance.instructed": made["i"], "balance.distilled": made["d"], "balance.pretrained": made["p"], "balance.a": 0.4,
        "student.path": made["d"], "data.path": tmp_path / "q.jsonl", "data.length": 200, "train.steps": 2, "train.batch": 2,
        "train.accumulate": 1, "train.method.group": 2, "train.method.sampling.max_new": 4, "train.precision": "float32",
        "audit.checks.0.sampling.max_new": 4,
    }  # fmt: skip
    done = still("run", "mine.yaml", *(part for k, v in settings.items() for part in ("--set", f"{k}={v}")))
    assert done.exit_code == 0, done.stderr
    (out,) = (tmp_path / "runs").glob("*/artifacts/balance/data")
    parts = {name: Stored(path) for name, path in made.items()}
    for name, value in Stored(out).items():
        expected = 0.7 * (0.4 * parts["i"][name] + 0.6 * parts["d"][name]) + 0.3 * parts["p"][name]
        torch.testing.assert_close(value, expected)
    assert list((tmp_path / "runs").glob("*/artifacts/train/data/tokenizer.json"))


def test_what_it_refuses(folders: Folders, tmp_path: Path) -> None:
    for wrong in ({"a": 1.2}, {"b": -0.1}):
        with pytest.raises(ValueError, match="shares from 0 to 1"):
            Balance(**wrong)
    stage = Balance(instructed=str(folders.student), distilled=str(folders.teacher), pretrained=str(folders.student))
    run = run_of(tmp_path, HubLM(path=str(folders.student)), balance=stage)
    with pytest.raises(RunError, match="distilled and instructed are not of one architecture"):
        execute(run.recipe, run)


def test_joined_data_are_all_rows_of_each(tmp_path: Path) -> None:
    other = Chain(ops=(2,), base=3, train=5, valid=1, test=1)
    run = run_of(tmp_path, TinyLM(), data=TASKS)
    found = Joined(parts={"one": TASKS, "two": other}).load(run)
    assert len(found["train"]) == 14 and found["train"].classes == TASKS.classes and found["train"].length == 96
    assert {r[0].tokens[0] for r in found["train"].rows} and found["train"].rows[9] == other.load(run)["train"].rows[0]
    with pytest.raises(RunError, match="nothing to join"):
        Joined(parts={}).load(run)
