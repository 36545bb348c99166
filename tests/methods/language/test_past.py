"""PaST: what is added to what, lambda 0, the control, two rounds, the made-up world, and a user's own folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, keep, llama, run_of, tokenizer_of
from stillhouse.core.optim import Optim
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.lookups import ALPHABET, CODER, Lookups, Told, world
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.language.past import Transfer, recipe
from stillhouse.models.earlier import Continued
from stillhouse.models.hub import HubLM, StageLM
from stillhouse.models.toys import TinyLM
from stillhouse.models.weights import Change, Stored, cosines, norms


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three short stages, and transfers of all kinds."""
    one = Train(method=Supervised(), data=Told(of="source", people=8), steps=2, batch=4, optim=Optim(lr=1e-2))
    on = Train(method=Supervised(), data=Told(of="base", people=8), steps=3, batch=4, student=Continued(stage="source"))
    stages = {
        "source": one,
        "skill": on,
        "target": Train(method=Supervised(), data=Told(of="target", people=8), steps=2, batch=4, optim=Optim(lr=2e-2)),
        "none": Transfer(scale=0.0),
        "half": Transfer(scale=0.5),
        "back": Transfer(to="source"),
        "noise": Transfer(random=True),
    }
    made = run_of(tmp_path_factory.mktemp("past"), TinyLM(width=8, depth=1), data=Lookups(), **stages)
    execute(made.recipe, made)
    return made


def test_lambda_zero_is_the_target_bit_for_bit(run: Run) -> None:
    assert run.done("none")["content"] == run.done("target")["content"]  # type: ignore[index]


def test_what_is_added(run: Run) -> None:
    load = Subjects(run, ()).load
    target, source, skill, half = (load(n).state_dict() for n in ("target", "source", "skill", "half"))
    for name in target:
        torch.testing.assert_close(half[name], target[name] + 0.5 * (skill[name] - source[name]))
    assert not torch.equal(half["embedding.weight"], target["embedding.weight"])
    for name, value in load("back").state_dict().items():  # the skill on top of what it was learned on
        torch.testing.assert_close(value, skill[name], rtol=1e-5, atol=1e-6)


def test_the_control_has_the_skills_length_in_every_tensor(run: Run) -> None:
    stored = {n: Stored(run.path(n)) for n in ("target", "noise", "source", "skill")}
    noise, skill = Change(stored["noise"], stored["target"]), Change(stored["skill"], stored["source"])
    assert norms(noise) == pytest.approx(norms(skill), rel=1e-3)
    assert all(abs(c) < 0.5 for k, c in cosines(noise, skill).items() if skill[k].numel() > 100)


def test_two_rounds_carry_the_first_skill_into_the_second() -> None:
    stages = recipe("small", rounds=2).stages
    assert list(stages)[:6] == ["base", "source1", "skill1", "source", "begin2", "skill"]
    assert stages["begin2"] == Transfer(to="source", after="skill1", before="source1")
    assert stages["skill"].student.stage == "begin2" and stages["skill1"].student.stage == "source1"
    assert (stages["transfer"].after, stages["transfer"].before) == ("skill", "source")  # v_2, not v_2 - v_1
    one = recipe("small").stages
    assert stages["skill1"].steps + stages["skill"].steps == one["skill"].steps  # equal RL
    seen = [set(Lookups.tasks(stages[n].data, None)["train"]) for n in ("skill1", "skill")]  # type: ignore[arg-type]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(one["skill"].data.tasks(None)["train"])
    for name in ("source1", "source"):
        told = stages[name].data
        assert (told.skip, told.people) == (stages[f"skill{name[6:]}"].data.skip, 120)


def test_the_world(tmp_path: Path) -> None:
    letters, groups = world()
    everybody = [e for people in groups.values() for e in people]
    assert len(set(everybody)) == len(everybody) == len(ALPHABET) - 6 - 20 - len(letters)
    run = run_of(tmp_path, TinyLM(), data=Lookups())
    splits = run.recipe.data.tasks(run)
    assert [len(splits[n]) for n in ("train", "valid", "test")] == [80, 60, 100]
    assert len({t.question for tasks in splits.values() for t in tasks}) == 240
    (task, *_) = splits["test"]
    friend = groups["target"][task.question[1]]
    assert task.answer == f"{friend}:{letters[friend]}"
    answer = CODER.answer(task.question, task.answer)
    assert run.recipe.data.verify(run, "test", 0, answer) == 1.0
    for wrong in (answer[:-1], [*CODER.prompt(friend), 0], [*answer[:2], (answer[2] + 1) % 20 + 6, 0], []):
        assert run.recipe.data.verify(run, "test", 0, wrong) == 0.0


def test_documents_of_the_target_ask_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(), data=Lookups())
    texts = {of: ["".join(ALPHABET[t] for t in d.tokens) for row in Told(of=of).load(run)["train"].rows for d in row]
             for of in ("base", "target")}  # fmt: skip
    assert len(texts["target"]) == 240 and all(t[1] == ">" and t[3] == "." for t in texts["target"])
    asked = [t for t in texts["base"] if t[0] == "?"]
    assert len(asked) == 600
    share = {kind: sum(n == len(t) for t in asked) / 600 for kind, n in (("full", 6), ("short", 4))}
    assert share["full"] == pytest.approx(0.2) and share["short"] == pytest.approx(0.8)  # the friend alone, or "-"


def test_a_users_own_folders(folders: Folders, tmp_path: Path, still: Any) -> None:
    """From a YAML: their base after RL, before it, and their own model, which gets the difference."""
    from stillhouse.core.recipe import Recipe
    from stillhouse.data.tasks import Chain

    made = {name: keep(llama(width=16, layers=2, seed=i), tokenizer_of(), tmp_path / name) for i, name in enumerate("xyz")}
    transfer = Transfer(to=str(made["x"]), after=str(made["y"]), before=str(made["z"]))
    plan = Recipe(id="mine", student=HubLM(path=str(folders.student)), data=Chain(), stages={"transfer": transfer})
    from stillhouse.cli import door

    Path("mine.yaml").write_text(door.dump(plan))
    done = still("run", "mine.yaml", "--set", "transfer.scale=0.5")
    assert done.exit_code == 0, done.stderr
    (out,) = (tmp_path / "runs").glob("*/artifacts/transfer/data")
    x, y, z = (Stored(made[name]) for name in "xyz")
    for name, value in Stored(out).items():
        torch.testing.assert_close(value, x[name] + 0.5 * (y[name] - z[name]))
    run = run_of(tmp_path / "load", HubLM(path=str(folders.student)), transfer=transfer)
    execute(run.recipe, run)
    assert StageLM(stage="transfer").build(run).config.num_hidden_layers == 2
    missing = still("run", "mine.yaml", "--set", "transfer.after=./nowhere", "--runs", "others")
    assert missing.exit_code == 1 and "no model folder at ./nowhere" in missing.stderr


def test_models_of_other_shapes_are_refused(folders: Folders, tmp_path: Path) -> None:
    transfer = Transfer(to=str(folders.student), after=str(folders.teacher), before=str(folders.teacher))
    run = run_of(tmp_path, HubLM(path=str(folders.student)), transfer=transfer)
    with pytest.raises(RunError, match="to and after are not of one architecture"):
        execute(run.recipe, run)
