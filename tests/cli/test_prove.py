"""`stillhouse prove`: the same tuning for every arm, pairs over seeds, and a file that says all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audits.validation import Validation
from stillhouse.cli import door, prove
from stillhouse.core.files import read_lines
from stillhouse.core.proof import Proof
from stillhouse.core.recipe import Recipe
from stillhouse.core.stage import Audit, Train
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics import supervised
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP

Still = Callable[..., Any]


def arm(lr: float, steps: int = 12) -> Recipe:
    """Supervised training on clusters, a few steps."""
    recipe = supervised.recipe("smoke").set("train.optim.lr", lr).set("train.steps", steps)
    return recipe.set("audit.checks.0.draws", 20)


def proof(**changes: Any) -> Proof:
    """Training against hardly training, which is decided in seconds."""
    made = Proof(
        claim="Training helps.", arms={"ours": arm(1e-2, 60), "alone": arm(1e-6, 4)}, metric="nll", better="lower",
        seeds=(0, 1, 2), note="A test.",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Callable[[Proof], None]:
    """Put a proof into the file of `supervised`."""
    return lambda made: monkeypatch.setattr(supervised, "proof", lambda: made)


def proven(still: Still, folder: Path) -> dict[str, Any]:
    result = still("prove", "supervised")
    assert result.exit_code == 0, result.stdout + result.stderr
    return json.loads((folder / "proofs" / "supervised.json").read_text())


def test_a_claim_that_holds(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof())
    written = proven(still, tmp_path)
    assert written["verdict"] == "holds"
    effect = written["effects"]["alone"]
    differences = [written["arms"]["ours"]["values"][s] - written["arms"]["alone"]["values"][s] for s in "012"]
    assert effect["n"] == 3 and math.isclose(effect["mean"], sum(differences) / 3)
    assert effect["low"] < effect["mean"] < effect["high"] < 0
    assert written["tuning"] is None
    assert {"claim", "metric", "date", "command", "seconds", "environment", "note", "seeds"} <= set(written)
    assert written["environment"]["versions"]["torch"]
    shown = still("show", "supervised").stdout
    assert "holds; nll against alone" in shown
    listed = json.loads(still("list", "--json", "--proven").stdout)
    assert "supervised" in [m["id"] for m in listed]


def test_a_claim_that_does_not_hold_is_written_down_as_that(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(better="higher"))
    assert proven(still, tmp_path)["verdict"] == "does not hold"


def test_arms_that_are_the_same_are_undecided(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(arms={"ours": arm(1e-2), "alone": arm(1e-2)}))
    written = proven(still, tmp_path)
    assert written["verdict"] == "undecided" and written["effects"]["alone"]["mean"] == 0


def test_the_last_step_and_the_one_that_validation_likes_best_are_told_apart(
    still: Still, tmp_path: Path, claim: Any
) -> None:
    arms = {"ours": arm(1e-2, 60), "alone": arm(0.3, 20).set("train.optim.schedule", "constant")}
    made = proof(arms=arms, tune={"train.steps": (60, 20)}, untuned=("alone",))
    claim(made)
    last = proven(still, tmp_path)
    claim(replace(made, judge=Validation()))
    both = proven(still, tmp_path)
    for name in arms:
        assert both["arms"][name]["values"] == last["arms"][name]["values"] and last["arms"][name]["best_step"] == {}
    assert (both["effects"], both["tuning"], both["verdict"]) == (last["effects"], last["tuning"], last["verdict"])
    values, best = both["arms"]["alone"]["values"], both["arms"]["alone"]["best_step"]
    assert sum(best.values()) < sum(values.values()) - 0.1
    mean = sum(both["arms"]["ours"]["best_step"][seed] - best[seed] for seed in "012") / 3
    assert both["best_step_effects"]["alone"]["mean"] == pytest.approx(mean) and last["best_step_effects"] == {}
    marks = [
        json.loads(path.read_text()) for path in tmp_path.glob("runs/proofs/supervised/alone_s?_*/artifacts/train/done.json")
    ]
    assert sorted("best_step" in mark for mark in marks) == [False] * 3 + [True] * 3


def test_one_seed_bounds_nothing_and_the_file_is_still_json(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(seeds=(0,)))
    written = proven(still, tmp_path)
    assert written["verdict"] == "undecided"
    assert written["effects"]["alone"]["low"] is None and written["effects"]["alone"]["high"] is None


def test_every_arm_is_tuned_alike_and_never_on_the_test_split(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(tune={"train.optim.lr": (1e-6, 1e-2)}, arms={"ours": arm(1e-3, 30), "alone": arm(1e-3, 31)}))
    written = proven(still, tmp_path)
    trials = written["tuning"]["trials"]
    assert written["tuning"]["seed"] not in written["seeds"] and written["tuning"]["split"] == "valid"
    assert set(trials) == {"ours", "alone"}
    for name, tried in trials.items():
        assert [t["settings"] for t in tried] == [{"train.optim.lr": 1e-6}, {"train.optim.lr": 1e-2}]
        best = min(tried, key=lambda t: t["value"])
        assert written["arms"][name]["settings"] == best["settings"] == {"train.optim.lr": 1e-2}
    folders = sorted((tmp_path / "runs" / "proofs" / "supervised").iterdir())
    assert len(folders) == 2 * 2 + 2 * 3
    for folder in folders:
        found = json.loads((folder / "artifacts" / "audit" / "data" / "value.json").read_text())
        splits = {f["split"] for f in found if f.get("split")}
        assert splits == ({"valid"} if f"_s{written['tuning']['seed']}_" in folder.name else {"test"})


def test_a_setting_can_be_chosen_over_several_seeds(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(tune={"train.optim.lr": (1e-3, 1e-2)}, tuning_seeds=2, seeds=(0,)))
    written = proven(still, tmp_path)
    assert written["tuning"]["seeds"] == 2
    for name, tried in written["tuning"]["trials"].items():
        for trial in tried:
            found = []
            for folder in (tmp_path / "runs" / "proofs" / "supervised").glob(f"{name}_s1000*"):
                recipe = door.load(folder / "recipe.yaml")
                if recipe.stages["train"].optim.lr == trial["settings"]["train.optim.lr"]:
                    rows = json.loads((folder / "artifacts" / "audit" / "data" / "value.json").read_text())
                    found += [r["value"] for r in rows if (r["name"], r["subject"], r["versus"]) == ("nll", "train", None)]
            assert len(found) == 2 and trial["value"] == pytest.approx(sum(found) / 2)
    claim(proof(tuning_seeds=2, seeds=(prove.TUNING_SEED + 1,)))
    assert "needs different seeds" in still("prove", "supervised").stderr


def test_an_arm_without_settings_is_left_as_it_is(still: Still, tmp_path: Path, claim: Any) -> None:
    rule = arm(1e-3, 5)
    claim(proof(tune={"train.optim.lr": (1e-6, 1e-2)}, arms={"ours": arm(1e-3, 30), "alone": rule}, untuned=("alone",)))
    written = proven(still, tmp_path)
    assert set(written["tuning"]["trials"]) == {"ours"} and written["arms"]["alone"]["settings"] == {}
    claim(proof(untuned=("nobody",)))
    assert "the proof has no arm 'nobody'" in still("prove", "supervised").stderr


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Clusters):
    """Data that say where they come from."""

    def load(self, run: Any) -> Any:
        run.event("note", text="the data are made up")
        return super().load(run)


def test_what_the_runs_said_about_their_data_is_kept(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(arms={"ours": arm(1e-2).set("data", Elsewhere()), "alone": arm(1e-6)}))
    written = proven(still, tmp_path)
    assert written["arms"]["ours"]["told"] == ["the data are made up"] and written["arms"]["alone"]["told"] == []


def test_arms_can_be_students_of_one_run(still: Still, tmp_path: Path, claim: Any) -> None:
    one = arm(1e-2, 60)
    brief = replace(one.stages["train"], steps=1)
    audit = replace(one.stages["audit"], subjects=("brief", "train"))
    shared = one.set("stages", {"train": one.stages["train"], "brief": brief, "audit": audit})
    claim(proof(arms={"ours": shared, "alone": shared}, subjects={"alone": "brief"}, seeds=(0, 1)))
    written = proven(still, tmp_path)
    folders = list((tmp_path / "runs" / "proofs" / "supervised").iterdir())
    assert len(folders) == 2  # one run a seed
    for folder in folders:
        seed = folder.name.split("_s")[1].split("_")[0]
        found = json.loads((folder / "artifacts" / "audit" / "data" / "value.json").read_text())
        values = {f["subject"]: f["value"] for f in found if f.get("name") == "nll" and not f["versus"]}
        assert values["train"] == written["arms"]["ours"]["values"][seed] < values["brief"]
        assert values["brief"] == written["arms"]["alone"]["values"][seed]
    once = sum(e["seconds"] for f in folders for e in read_lines(f / "events.jsonl") if e.get("state") == "done")
    assert math.isclose(written["seconds"], once)  # not once for each arm


def test_a_setting_that_diverges_loses(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(tune={"train.optim.lr": (1e38, 1e-2)}, seeds=(0, 1)))
    written = proven(still, tmp_path)
    assert written["arms"]["ours"]["settings"] == {"train.optim.lr": 1e-2}


def test_a_stopped_proof_goes_on(still: Still, tmp_path: Path, claim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(proof())
    real, calls = Audit.__call__, []

    def third_time(self: Audit, run: Any) -> None:
        calls.append(run.folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, run)

    monkeypatch.setattr(Audit, "__call__", third_time)
    result = still("prove", "supervised")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("go on with: stillhouse prove supervised")
    assert not (tmp_path / "proofs").exists()
    proven(still, tmp_path)
    assert len(calls) == 7 and len(set(calls)) == 6  # the one that was stopped is the only one asked twice
    proven(still, tmp_path)
    assert len(calls) == 7


def test_a_changed_recipe_is_run_anew(still: Still, tmp_path: Path, claim: Any) -> None:
    claim(proof(seeds=(0, 1)))
    proven(still, tmp_path)
    claim(proof(seeds=(0, 1), arms={"ours": arm(1e-2, 50), "alone": arm(1e-6, 4)}))
    proven(still, tmp_path)
    assert len(list((tmp_path / "runs" / "proofs" / "supervised").iterdir())) == 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beats": ("alnoe",)}, "the proof has no arm 'alnoe'; did you mean 'alone'?"),
        ({"ours": "theirs"}, "the proof has no arm 'theirs'"),
        ({"beats": ()}, "`beats` must name at least one arm"),
        ({"seeds": (1, 1)}, "needs different seeds"),
        ({"seeds": (prove.TUNING_SEED,)}, "needs different seeds"),
        (
            {"tune": {"train.method.temperature": (1, 2)}},
            "every arm is tuned alike, but arm 'ours' has no 'temperature'",
        ),
        ({"metric": "fid"}, "found no fid of train on the test split; it found"),
        (
            {"arms": {"ours": arm(1), "alone": replace(arm(1), stages={"train": arm(1).stages["train"]})}},
            "arm 'alone' has no audit",
        ),
    ],
)
def test_a_proof_that_makes_no_sense_is_refused(still: Still, tmp_path: Path, claim: Any, changes: Any, says: str) -> None:
    claim(proof(**changes))
    result = still("prove", "supervised")
    assert result.exit_code == 1 and says in result.stderr
    assert not (tmp_path / "proofs").exists()


def test_the_numbers_of_the_test_split_are_of_the_test_split() -> None:
    valid = prove.judged_on(arm(1e-2), "valid")
    assert {c.split for c in valid.stages["audit"].checks} == {"valid"}
    assert {c.split for c in prove.judged_on(valid, "test").stages["audit"].checks} == {"test"}
    blind = replace(arm(1e-2), stages={"audit": Audit(subjects=("start",), checks=())})
    with pytest.raises(prove.ProofError, match="no check of arm 'ours' has a field `split`"):
        prove.judged_on(blind, "valid")


def test_arms_share_what_they_have_in_common(still: Still, tmp_path: Path, claim: Any) -> None:
    """A leading stage that is the same in two arms is trained once a seed; the arms are trained each."""
    first = {"big": Train(method=Supervised(), student=MLP(width=24), steps=3, batch=8)}

    def longer(recipe: Recipe) -> Recipe:
        return recipe.set("stages", {**first, **recipe.stages})

    claim(proof(seeds=(0, 1), arms={"ours": longer(arm(1e-2, 5)), "alone": longer(arm(1e-6, 5))}))
    proven(still, tmp_path)
    weights = sorted((tmp_path / "runs" / "proofs" / "supervised").glob("*/artifacts/big/data/*"))
    assert len(weights) == 4 and len({w.stat().st_ino for w in weights}) == 2
    trained = sorted((tmp_path / "runs" / "proofs" / "supervised").glob("*/artifacts/train/data/*"))
    assert len({w.stat().st_ino for w in trained}) == len(trained) == 4
