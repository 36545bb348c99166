"""Teacher hacking: whose answers are learned from, the demonstration's wiring, and models that others have trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, keep, llama, run_of, tokenizer_of, write_jsonl
from stillhouse.audits.teacher_hacking import Followed
from stillhouse.cli import door, launch
from stillhouse.cli.results import findings
from stillhouse.core.run import Run, RunError, seed_of
from stillhouse.data.oracle import OracleText, RandomLM
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.seqkd import Write
from stillhouse.methods.studies.teacher_hacking import FreshTeacher, diagnosis, proof, recipe
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.teachers.module import ModuleTeacher

TEXT = OracleText(oracle=RandomLM(symbols=6, width=16, depth=1), train=12, valid=4, test=4, prompt=2, answer=4)
FIXED = GKD(on_policy=0.0, divergence=ForwardKL())
FRESH = FreshTeacher(sampling=Sampling(max_new=4), method=FIXED)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return run_of(tmp_path, TinyLM(width=8, depth=1), data=TEXT, teacher=ModuleTeacher(spec=TinyLM(width=16, depth=1)))


def built(run: Run) -> Any:
    torch.manual_seed(0)
    return run.recipe.student.build(run)


def losses(method: Any, run: Run, batch: Any) -> tuple[float, float]:
    (update,) = method.step(method.setup(built(run), run), batch, run)
    return float(update.loss.detach()), float(update.count)


# -- whose answers -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_forward_kl_on_what_the_teacher_has_just_written(run: Any) -> None:
    batch, student, teacher = run.sources()["train"].batch(range(5), 0), built(run), run.teacher.module
    seen: list[list[int]] = []
    for step in (0, 1):
        run.step = step
        prompts = [row[:2] for row in batch["inputs"]["tokens"].tolist()]
        seed, keys = seed_of(run.seed, "fresh", step), batch["example"][:, 0].tolist()
        answers = generate(teacher, prompts, Sampling(max_new=4), seed=seed, keys=keys)
        total = 0.0
        for prompt, answer in zip(prompts, answers, strict=True):
            text = torch.tensor([[*prompt, *answer]])
            log_p, log_q = (m(text).dense()[0, 1:-1].double().log_softmax(-1) for m in (teacher, student))
            total += float((log_p.exp() * (log_p - log_q)).sum())
        assert losses(FRESH, run, batch) == (pytest.approx(total, rel=1e-5), 5 * 4)
        seen += answers
    assert seen[:5] != seen[5:], "every step has answers of its own"


def test_nothing_fresh_is_the_method_on_the_data(run: Any) -> None:
    batch = run.sources()["train"].batch(range(5), 0)
    assert losses(replace(FRESH, fresh=0.0), run, batch) == losses(FIXED, run, batch)
    assert losses(FRESH, run, batch)[0] != losses(FIXED, run, batch)[0]


def test_a_mixture_is_fresh_in_its_share_of_the_steps(run: Any) -> None:
    batch = run.sources()["train"].batch(range(2), 0)
    plain, mixed, fresh = losses(FIXED, run, batch)[0], replace(FRESH, fresh=0.3), 0
    for run.step in range(200):
        fresh += losses(mixed, run, batch)[0] != plain
    assert abs(fresh / 200 - 0.3) < 0.12


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(ValueError, match="share of the steps"):
        FreshTeacher(fresh=share)


def test_stored_signals_cannot_answer_anew(run: Any) -> None:
    run.teachers = {"teacher": object()}
    with pytest.raises(RunError, match="has to be a model"):
        FRESH.setup(built(run), run)
    assert FRESH.asks_about_own and not replace(FRESH, fresh=0.0).asks_about_own
    replace(FRESH, fresh=0.0).setup(built(run), run)


def test_the_inner_method_keeps_what_it_moves(run: Any) -> None:
    from stillhouse.methods.language.taid import TAID

    method = replace(FRESH, method=TAID())
    state = method.setup(built(run), run)
    run.horizon = 10
    method.advance(state, {"student/interpolated": 1.0}, run)
    method.advance(state, {"student/interpolated": 0.5}, run)
    assert float(state.t) > 0.4


# -- the demonstration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_the_regimes_differ_in_their_answers_alone(scale: Any) -> None:
    stages: Any = recipe(scale).stages
    offline, more, own, online = (stages[name] for name in ("offline", "offline_more", "own", "train"))
    assert all(isinstance(stage, Followed) for stage in (offline, more, own, online))
    same = replace(offline, label="", data=None, method=None)
    assert all(replace(s, label="", data=None, method=None) == same for s in (more, own, online))
    assert offline.method == more.method == online.method.method == replace(own.method, on_policy=0.0, sampling=Sampling())
    assert own.method.on_policy == 1.0 and online.method.fresh == 1.0 and offline.method.divergence == ForwardKL()
    assert offline.data == own.data == online.data
    writers = {name: stage.each for name, stage in stages.items() if isinstance(stage, Write)}
    assert writers == {offline.data.stage: 1, more.data.stage: 4}


def test_the_arms_differ_in_their_answers_alone() -> None:
    made = proof()
    assert made.better == "lower" and made.beats == ("offline",)
    for arm in made.arms.values():
        plain = replace(arm, stages={})
        assert plain == replace(made.arms["ours"], stages={})
        assert arm.stages["teacher"] == made.arms["ours"].stages["teacher"]
        assert arm.stages["train"].steps == made.arms["ours"].stages["train"].steps


# -- models that others have trained -----------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path, folders: Folders) -> str:
    """Students on their way to the teacher: mixtures of it with other weights, better and better."""
    teacher, far = llama(layers=4, seed=1).state_dict(), llama(layers=4, seed=9).state_dict()
    for step in (1, 2, 4, 8, 16, 32, 64, 128):
        model = llama(layers=4, seed=9)
        model.load_state_dict({n: torch.lerp(teacher[n], far[n], 0.5 * step**-0.2) for n in teacher})
        keep(model, tokenizer_of(), tmp_path / "out" / f"checkpoint-{step}")
    return f"{tmp_path}/out/checkpoint-*"


def test_a_users_checkpoints_teacher_oracle_and_prompts(
    tmp_path: Path, folders: Folders, checkpoints: str, still: Any
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"what does the cat see {i}?"} for i in range(7)])
    made = diagnosis(
        teacher=str(folders.teacher), oracle=str(folders.teacher), checkpoints={"mine": checkpoints}, prompts=str(prompts),
        max_new=6,
    )  # fmt: skip
    (tmp_path / "mine.yaml").write_text(door.dump(made))
    done = still("run", "mine.yaml", "--runs", "runs", "--set", "audit.checks.0.count=6")
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    found = {f.name: f for f in findings(folder) if f.subject == "mine"}
    assert found["golden"].value == pytest.approx(found["proxy"].value, rel=1e-3)  # this oracle is the teacher
    assert found["golden_best_step"].value == 128 and found["teacher_hacking"].value == 0 and found["proxy"].n == 6
    page = (folder / "report.html").read_text()
    for words in ("Proxy against golden", "Distance to the oracle over training", "follow a power law"):
        assert words in page


def test_without_an_oracle_the_page_has_proxy(tmp_path: Path, folders: Folders, checkpoints: str) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"who likes bread {i}?"} for i in range(6)])
    made = diagnosis(teacher=str(folders.teacher), checkpoints={"mine": checkpoints}, prompts=str(prompts), max_new=4)
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    names = {f.name for f in findings(run.folder)}
    assert "proxy_left_power_law" in names and not any("golden" in name for name in names)


def test_the_papers_setting_runs_on_a_users_models_and_files(tmp_path: Path, folders: Folders, still: Any) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"what does the cat see {i}?"} for i in range(40)])
    write_jsonl(tmp_path / "oracle.jsonl", [{"prompt": f"who {i}?", "completion": f"the baker {i}."} for i in range(40)])
    wanted = {
        "teacher.student.path": folders.student, "begin.student.path": folders.student, "teacher.steps": 2,
        "begin.steps": 1, "audit.checks.0.sampling.max_new": 4, "audit.checks.0.oracle.model.path": folders.teacher,
    }  # fmt: skip
    for stage in ("write", "write_more", "own", "train"):
        wanted[f"{stage}.{'' if 'write' in stage else 'method.'}sampling.max_new"] = 4
    for stage in ("offline", "offline_more", "own", "train"):
        wanted |= {f"{stage}.{k}": v for k, v in {"steps": 1, "batch": 2, "accumulate": 1, "points": 1, "first": 1}.items()}
    settings = [part for key, value in wanted.items() for part in ("--set", f"{key}={value}")]
    done = still("run", "teacher_hacking", "--scale", "paper", "--runs", "runs", *settings)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    found = {(f.name, f.subject) for f in findings(folder)}
    assert {("golden_rise", name) for name in ("start", "offline", "offline_more", "own", "train")} <= found
