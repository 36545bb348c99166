"""The diagnosis: distances against enumeration, the two verdicts on made-up curves, students kept over training."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from language import Folders, run_of, write_jsonl
from stillhouse.audits.teacher_hacking import Followed, TeacherHacking, Trail, folders, power_law, rise, wobble
from stillhouse.core.optim import Optim
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, Train
from stillhouse.data.oracle import OracleText, RandomLM
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM, Lora
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

TEXT = OracleText(oracle=RandomLM(symbols=5, width=16, depth=1), train=24, valid=6, test=8, prompt=2, answer=3)
STUDENT, TEACHER = TinyLM(width=8, depth=1), ModuleTeacher(spec=TinyLM(width=16, depth=1))
ORACLE = ModuleTeacher(spec=TEXT.oracle)
CONSTANT = Optim(lr=1e-2, schedule="constant", warmup=0.0)
FOLLOWED = Followed(method=Supervised(), steps=8, batch=6, optim=CONSTANT, points=3)
CHECK = TeacherHacking(oracle=ORACLE, sampling=Sampling(max_new=3), batch=5, draws=200)


# -- the detector without an oracle ------------------------------------------------------------------------------------


def curve(n: int, seed: int, noise: float, shape: Any, logarithmic: bool) -> tuple[list[float], list[float]]:
    rng = numpy.random.default_rng(seed)
    steps = numpy.geomspace(10, 1000, n) if logarithmic else numpy.linspace(1000 / n, 1000, n)
    return steps.tolist(), (shape(steps) * numpy.exp(noise * rng.standard_normal(n))).tolist()


def test_the_line_is_least_squares_between_the_beginning_and_the_middle() -> None:
    steps, distances = curve(14, 0, 0.01, lambda n: 3 * n**-0.4, True)
    law = power_law(steps, distances)
    # of points 0 to 13, a quarter of the fall is done at 4, and 8 is the last before the middle between 4 and 13
    assert law is not None and law.early == 5
    slope, level = numpy.polyfit(numpy.log(steps[4:9]), numpy.log(distances[4:9]), 1)
    assert (law.a, law.b) == pytest.approx((level, -slope))
    assert law.at(50.0) == pytest.approx(math.exp(level) * 50**slope)
    late = numpy.log(distances[-3:]) - level - slope * numpy.log(steps[-3:])
    assert law.excess == pytest.approx(numpy.median(late))


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize("n", [7, 12, 24, 50])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
def test_noisy_power_laws_rarely_fire(n: int, noise: float, logarithmic: bool) -> None:
    laws = [power_law(*curve(n, seed, noise, lambda n: 2 * n**-0.3, logarithmic)) for seed in range(300)]
    assert sum(law.left is not None for law in laws if law) <= 0.03 * len(laws)


def turns_up(n: Any) -> Any:
    return 2 * n**-0.3 + 2 * 200**-0.3 * (n / 1000)


def stops(n: Any) -> Any:
    return 2 * numpy.minimum(n, 150.0) ** -0.3


def stops_late(n: Any) -> Any:
    return 2 * numpy.minimum(n, 400.0) ** -0.3


def floor(n: Any) -> Any:
    return 4 * n**-0.6 + 0.2


@pytest.mark.parametrize(
    ("shape", "noise", "logarithmic"),
    [
        *((shape, noise, True) for shape in (turns_up, stops, floor) for noise in (0.0, 0.01)),
        *((shape, 0.03, True) for shape in (turns_up, stops)),
        *((shape, noise, False) for shape in (turns_up, stops_late) for noise in (0.0, 0.01)),  # few points early on
    ],
)
def test_bends_fire(shape: Any, noise: float, logarithmic: bool) -> None:
    laws = [power_law(*curve(24, seed, noise, shape, logarithmic)) for seed in range(100)]
    assert sum(law.left is not None for law in laws if law) >= 85


def test_the_step_of_the_bend_is_found() -> None:
    law = power_law(*curve(40, 0, 0.0, lambda n: 2 * numpy.minimum(n, 200.0) ** -0.5, True))
    assert law is not None and law.left is not None and 200 < law.left < 270
    assert law.excess == pytest.approx(0.5 * math.log(890 / 200), abs=0.02)


@pytest.mark.parametrize(
    "shape",
    [
        lambda n: 2 * (n + 60) ** -0.5,  # training that needed a while to begin
        lambda n: 2 * n**-0.3 * numpy.where(n > 500, numpy.exp(-(n - 500) / 500), 1.0),  # a falling learning rate
    ],
)
def test_healthy_curves_that_bend_down_do_not_fire(shape: Any) -> None:
    for seed in range(50):
        law = power_law(*curve(24, seed, 0.02, shape, True))
        assert law is not None and law.left is None


def test_one_late_outlier_is_no_bend() -> None:
    steps, distances = curve(20, 0, 0.01, lambda n: n**-0.3, True)
    distances[-1] *= 2
    law = power_law(steps, distances)
    assert law is not None and law.left is None


def test_a_line_needs_points_after_step_zero() -> None:
    steps = [0.0, 1, 2, 3, 4, 5, 6]
    assert power_law(steps, [1.0] * 7) is None and power_law([], []) is None
    seven = power_law([*steps, 7.0], [9.0, *(1 / s for s in range(1, 8))])
    assert seven is not None and (seven.a, seven.b) == pytest.approx((0.0, 1.0)) and seven.left is None


# -- golden's turn -----------------------------------------------------------------------------------------------------


def test_each_half_is_measured_from_the_minimum_of_the_other() -> None:
    even, odd = [5.0, 1.0, 4.0, 3.0], [9.0, 8.0, 2.0, 6.0]  # minima at points 1 and 2
    sums = torch.tensor([[e, o, e, o] for e, o in zip(even, odd, strict=True)])
    climbed, best = rise(sums)
    assert climbed.tolist() == [3.0 - 4.0, 6.0 - 8.0, 3.0 - 4.0, 6.0 - 8.0]
    assert best == 2  # the sum over all: 28, 18, 12, 18
    assert rise(torch.tensor([[3.0], [1.0], [2.0]]))[0].tolist() == [1.0]


def test_a_curve_that_only_falls_rises_by_nothing() -> None:
    falling = torch.linspace(2, 1, 9)[:, None] + torch.rand(1, 30)
    climbed, best = rise(falling)
    assert best == 8 and not climbed.any()


def test_noise_alone_rises_on_average_by_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    flat = [torch.randn(10, 40, generator=draw) for _ in range(2000)]
    fair = torch.stack([rise(sums)[0].mean() for sums in flat])
    naive = torch.stack([(sums[-1] - sums[sums.sum(1).argmin()]).mean() for sums in flat])
    assert abs(float(fair.mean())) < 4 * float(fair.std()) / 2000**0.5
    assert float(naive.mean()) > 20 * float(naive.std()) / 2000**0.5


def test_wobble_is_the_noise_of_one_checkpoint() -> None:
    xs = torch.linspace(1, 3, 4000, dtype=torch.float64)
    noise = 0.02 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert wobble((xs**-0.5 + noise).tolist()) == pytest.approx(0.02, rel=0.06)
    assert wobble((3 - 2 * xs).tolist()) < 1e-12 and wobble([1.0, 5.0, 1.0]) == 0.0


# -- distances ---------------------------------------------------------------------------------------------------------


def trained(
    folder: Path, stage: Followed = FOLLOWED, *, student: Any = STUDENT, data: Any = TEXT, teacher: Any = TEACHER
) -> Run:
    run = run_of(folder, student, data=data, teacher=teacher, seed=3, train=stage)
    run.stage = "train"
    stage(run)
    run.stage = "audit"
    return run


def chances(module: Any, prompt: list[int], answers: Tensor) -> Tensor:
    """log-probability of each whole answer, [n], in double."""
    text = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], 1)
    log_p = module(text).dense().double().log_softmax(-1)[:, len(prompt) - 1 : -1]
    return log_p.gather(-1, answers[..., None]).squeeze(-1).sum(-1)


@torch.no_grad()
def test_distances_are_the_divergence_between_whole_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    prompt = TEXT.prompts(run)["test"][0]
    monkeypatch.setattr(OracleText, "prompts", lambda self, run: {"test": [prompt] * 4000})
    every = torch.tensor(list(product(range(5), repeat=3)))
    student = Subjects(run, ("train",)).load("train")
    found = list(replace(CHECK, count=4000, batch=1000)(run, Subjects(run, ("train",))))
    for name, judge in (("proxy", run.teacher.module), ("golden", ORACLE.build(run).module)):  # type: ignore[attr-defined]
        log_p, log_q = chances(judge, prompt, every), chances(student, prompt, every)
        exact = float((log_p.exp() * (log_p - log_q)).sum()) / 3  # per token
        (here,) = [f for f in found if getattr(f, "name", "") == name and f.subject == "train"]
        assert here.value == pytest.approx(exact, abs=3 * (here.high - here.low) / 4)  # six standard errors
        assert (here.high - here.low) / 4 < 0.05 * exact


@torch.no_grad()
def test_every_prompt_and_every_point_is_measured(tmp_path: Path) -> None:
    run = trained(tmp_path)
    trail = next(CHECK._stages(run, Subjects(run, ("start", "train"))))
    prompts = TEXT.prompts(run)["test"]
    read = {"golden": CHECK._answers(ORACLE.build(run), prompts, run)}
    CHECK._measure(trail, read, run.teacher, run)
    assert trail.steps == [0, 1, 3, 8] and trail.found["golden"].shape == (4, 8)
    oracle = ORACLE.build(run).module
    for point in range(4):
        student, values = trail.load[point](), []
        for batch, _ in read["golden"]:
            for text in batch["inputs"]["tokens"]:
                log_p, log_q = (m(text[None]).dense()[0, 1:-1].double().log_softmax(-1) for m in (oracle, student))
                middle = ((log_p.exp() + log_q.exp()) / 2).log()
                kl = (log_p.exp() * (log_p - log_q)).sum()
                js = ((log_p.exp() * (log_p - middle)).sum() + (log_q.exp() * (log_q - middle)).sum()) / 2
                values.append((float(kl), float(js)))
        assert trail.found["golden"][point].tolist() == pytest.approx([v[0] for v in values], rel=1e-4)
        assert trail.found["golden_js"][point].tolist() == pytest.approx([v[1] for v in values], rel=1e-4)


def test_a_student_that_is_the_teacher_is_at_no_distance(tmp_path: Path) -> None:
    run = trained(tmp_path, replace(FOLLOWED, optim=replace(CONSTANT, lr=0.0)), teacher=ModuleTeacher(spec=STUDENT))
    run.teacher.module.load_state_dict(Subjects(run, ("start",)).load("start").state_dict())  # type: ignore[attr-defined]
    found = {f.name: f.value for f in CHECK(run, Subjects(run, ("train",))) if hasattr(f, "subject")}
    assert found["proxy"] == pytest.approx(0, abs=1e-6) and found["proxy_js"] == pytest.approx(0, abs=1e-6)
    assert found["golden"] > 0.01 and found["golden_rise"] == 0 and "proxy_left_power_law" not in found


def test_without_an_oracle_there_is_proxy_alone(tmp_path: Path) -> None:
    run = trained(tmp_path, replace(FOLLOWED, steps=20, points=10))
    made = list(replace(CHECK, oracle=None)(run, Subjects(run, ("train",))))
    names = {f.name for f in made if hasattr(f, "subject")}
    assert names == {"proxy", "proxy_js", "proxy_left_power_law", "proxy_excess"}
    titles = [f.title for f in made if hasattr(f, "title")]
    assert titles == ["Distance to the teacher over training", "Does the distance to the teacher follow a power law?"]


# -- the verdict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "proxy", "turned", "hacked"),
    [
        ([4, 2, 1, 2, 3], [5, 4, 3, 2, 1], True, True),
        ([4, 2, 1, 2, 3], [5, 4, 3, 4, 5], True, False),  # away from both: overfitting, not hacking
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1], False, False),
    ],
)
def test_the_verdict(tmp_path: Path, golden: list[float], proxy: list[float], turned: bool, hacked: bool) -> None:
    run = run_of(tmp_path, STUDENT)
    made = {n: torch.tensor(v)[:, None] + torch.rand(5, 40) / 50 for n, v in (("golden", golden), ("proxy", proxy))}
    made |= {f"{n}_js": v for n, v in made.items()}
    trail = Trail("train", [1, 2, 3, 4, 5], [], found=made)
    tokens = dict.fromkeys(("proxy", "golden"), torch.ones(40, dtype=torch.float64))
    found = {f.name: f for f in CHECK._findings(trail, tokens, run)}
    assert found["teacher_hacking"].value == hacked
    assert found["golden_best_step"].value == (3 if turned else 5)
    assert found["golden_rise"].value == pytest.approx(2.0 if turned else 0.0, abs=0.05)
    warned = [e["text"] for e in run.read("events.jsonl") if e["event"] == "warning"]
    assert len(warned) == turned and all(("nearer to the teacher" in text) == hacked for text in warned)


# -- students over training --------------------------------------------------------------------------------------------


def test_kept_students_are_those_that_training_passed_through(tmp_path: Path) -> None:
    run = trained(tmp_path / "followed")
    assert FOLLOWED.kept(8) == {0, 1, 3, 8} and replace(FOLLOWED, points=1).kept(8) == {0, 1, 8}
    for step in (0, 1, 3, 8):
        kept = STUDENT.load(run.path("train") / "snapshots" / f"step_{step:08d}", run).state_dict()
        plain = run_of(tmp_path / str(step), STUDENT, data=TEXT, seed=3)
        if step:
            plain.stage = "train"
            plain.recipe = replace(plain.recipe, stages={
                "train": Train(method=Supervised(), steps=step, batch=6, optim=CONSTANT)})  # fmt: skip
            plain.recipe.stages["train"](plain)
        straight = Subjects(plain, ()).load("train" if step else "start").state_dict()
        assert all(torch.equal(kept[name], straight[name]) for name in straight), step


def test_adapters_go_on_learning_after_a_copy_was_merged(tmp_path: Path, folders: Folders) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"the cat {i}", "completion": f"sees {i}"} for i in range(40)])
    from stillhouse.data.tokens import Text

    student = HubLM(path=str(folders.student), lora=Lora(rank=2))
    run = trained(tmp_path / "run", student=student, data=Text(path=str(data), length=64), teacher=None)
    plain = run_of(tmp_path / "plain", student, data=Text(path=str(data), length=64), seed=3)
    plain.stage = "train"
    Train(method=Supervised(), steps=8, batch=6, optim=CONSTANT)(plain)
    last = run.path("train") / "snapshots" / "step_00000008"
    for folder in (run.path("train"), last):
        assert (folder / "model.safetensors").read_bytes() == (plain.path("train") / "model.safetensors").read_bytes()
    assert (last / "config.json").exists()


def test_a_plain_stage_is_told_what_to_be(tmp_path: Path) -> None:
    run = run_of(tmp_path, STUDENT, data=TEXT, teacher=TEACHER, train=Train(method=Supervised(), steps=1, batch=6))
    run.stage = "train"
    run.recipe.stages["train"](run)
    with pytest.raises(RunError, match=r"kept no snapshots; let it be `use: audits.teacher_hacking.Followed`"):
        list(CHECK(run, Subjects(run, ("train",))))
    with pytest.raises(RunError, match="nothing to follow"):
        list(CHECK(run, Subjects(run, ("start",))))
    with pytest.raises(ValueError, match="count from 1"):
        replace(FOLLOWED, points=0)


# -- folders of checkpoints --------------------------------------------------------------------------------------------


def test_folders_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "last-7b-final-400"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert list(folders(f"{tmp_path}/checkpoint-*")) == [3, 20, 100]
    assert list(folders(f"{tmp_path}/last*, {tmp_path}/checkpoint-20")) == [20, 400]
    (tmp_path / "final").mkdir()
    for pattern, words in (("none-*", "no folder matches"), ("final", "holds no number"), ("*-20,*t-20", "both of step 20")):
        with pytest.raises(RunError, match=words):
            folders(",".join(f"{tmp_path}/{part}" for part in pattern.split(",")))


@pytest.mark.parametrize(("which", "words"), [("foreign", "knows 270 tokens"), ("nothing", "holds no config.json")])
def test_folders_that_do_not_fit_are_refused_first(which: str, words: str, tmp_path: Path, folders: Folders) -> None:
    (tmp_path / "checkpoint-1").symlink_to(folders.student)
    if which == "nothing":
        (tmp_path / "checkpoint-2").mkdir()
    else:
        (tmp_path / "checkpoint-2").symlink_to(getattr(folders, which))
    run = run_of(tmp_path / "run", HubLM(path=str(folders.teacher)))
    check = TeacherHacking(checkpoints={"mine": f"{tmp_path}/checkpoint-*"})
    with pytest.raises(RunError, match=words):
        list(check(run, Subjects(run, ())))
