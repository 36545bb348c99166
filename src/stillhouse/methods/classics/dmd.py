"""One-step Diffusion with Distribution Matching Distillation (Yin et al. 2023, arXiv 2311.18828): DMD; and the two
time-scale update of "Improved Distribution Matching Distillation for Fast Image Synthesis" (2024, arXiv 2405.14867): DMD2.

    grad_theta = E w_t alpha_t (s_fake(x_t, t) - s_real(x_t, t)) dG/dtheta + lambda grad_theta |G(z_ref) - y_ref|²
    L_fake = E w'_t |mu_fake(x_t, t) - x|²,     x = G(z),  x_t = alpha_t x + sigma_t eps,  t ~ U(0.02, 0.98)

G is the one-step generator, z standard normal; s_real is the frozen teacher's score, s_fake that of a denoiser mu_fake which
is trained on what G makes; (z_ref, y_ref) are pairs drawn from the teacher. G and mu_fake both begin as the teacher (give
the student's spec `stage` or `path`). DMD: `fake_steps=1, regression=0.25` and the data `data.points.Pairs`. DMD2: five
fake steps a generator step and no pairs, the default here. Its GAN loss on real images and its students of several
steps are not in this file.

Sure, from the papers: Algorithms 1 and 2, U(0.02 T, 0.98 T), lambda, both starts, the first fake step on the x that the
generator step has made, w' that of the teacher's training. Sure, from tianweiy/DMD2: the same gradient, w' = snr + 1/0.5²
for EDM, generator before fake, fresh x in the other fake steps. Inferred: nothing in the update itself.

Differs from the paper / the authors' code: Eq. 8 with Eq. 7 leaves a factor alpha_t that the paper's Algorithm 2 ("diverges
slightly") and the code lack; `weight="alpha_error"` has it, `weight="kl"` is the plain KL gradient, and with EDM's alpha = 1
the first two are one. The code sends NaN to 0 where the teacher returns x itself; here that item is left where it is.
The pairs' distance is the squared error, not LPIPS, which needs a network from the web. G keeps its input for the
time, held at 1. The loss is a mean over an item's numbers, so pairs and scores weigh as in the code at any batch size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.generation import Generation
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Expect, Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...core.teacher import TeacherMismatch
from ...data.images import Digits, Npz
from ...data.points import Pairs, Ring
from ...models.diffusion import Denoiser, ImageDenoiser, Karras, PointDenoiser, Times, keys_of, normal, seed_for, uniform
from ...models.samplers import Sampler
from ...models.toys import ConvNet
from ...objectives.scores import Matching, Weighting, denoising, denoising_weight, follow, matching_gradient
from ...teachers.score import DenoiserTeacher, DrawPairs, MixtureTeacher
from .denoise import Denoise
from .supervised import Supervised

PAPER = Paper(
    id="dmd",
    title="One-step Diffusion with Distribution Matching Distillation",
    authors=(
        "Tianwei Yin", "Michaël Gharbi", "Richard Zhang", "Eli Shechtman", "Frédo Durand", "William T. Freeman",
        "Taesung Park",
    ),
    year=2023,
    arxiv="2311.18828",
    venue="CVPR 2024",
    modality=("image", "table"),
    data=("unlabelled", "labels"),
    claim="A one-step generator trained by the difference of two scores draws nearly as well as its many-step teacher.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DMD:
    """Move what one step makes to where the teacher finds it likelier and a model of itself less likely."""

    fake_steps: int = 5  # of the fake score, for each of the generator (DMD2); DMD has 1
    regression: float = 0.0  # lambda, the weight of the teacher's pairs; DMD has 0.25
    weight: Matching = "error"
    fake_weight: Weighting = "edm"  # as the teacher was trained
    sampling: Times = Times(low=0.02, high=0.98)  # where the two scores are compared
    fake_times: Times = Times()  # where the fake score is trained
    needs: ClassVar[frozenset[Kind]] = frozenset({"score"})
    asks_about_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.fake_steps < 1:
            raise ValueError(f"fake_steps must be 1 or more, not {self.fake_steps}")
        if self.regression < 0:
            raise ValueError(f"regression must be 0 or more, not {self.regression}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The generator, and a fake score that begins as its copy."""
        teacher: Any = run.teacher
        if not isinstance(student, Denoiser):
            raise TeacherMismatch(f"DMD needs a denoiser as student, not {type(student).__name__}")
        if student.schedule != teacher.schedule:
            raise TeacherMismatch(
                f"the student's noise is {student.schedule}, the teacher's {teacher.schedule}: make them equal"
            )
        return State(student=student, fake=copy.deepcopy(student))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """The generator's update, then `fake_steps` of the fake score; the first is on the same items."""
        draw = _Draws(batch, run)
        labels = draw.labels if s.student.classes else None
        made = s.student.one_step(draw.normal("z"), labels)
        x_t, t = draw.noised(s.student, made.detach(), "matching", self.sampling)
        with torch.no_grad():
            fake = s.fake(x_t, t, labels)
            asked = {"inputs": x_t, "time": t} | ({} if labels is None else {"labels": labels})
            real = run.teacher(asked, self.needs).need("score")
        alpha, sigma = s.student.schedule.parts(x_t, t)
        gradient = matching_gradient(made, fake, real, alpha=alpha, sigma=sigma, weight=self.weight)
        loss = follow(made, gradient)
        logs = {"gap": (fake - real).square().flatten(1).mean(1).sum()}
        if self.regression:
            if "noise" not in batch:
                raise TeacherMismatch(
                    "regression needs pairs: add a stage DrawPairs, and data.points.Pairs as this stage's data"
                )
            distance = denoising(s.student.one_step(batch["noise"], labels), batch["inputs"])
            loss, logs["pairs"] = loss + self.regression * distance, distance.sum()
        yield Update(loss.sum(), count=len(made), logs=logs)
        for number in range(self.fake_steps):
            if number:
                with torch.no_grad():
                    made = s.student.one_step(draw.normal(f"z{number}"), labels)
            made = made.detach()
            x_t, t = draw.noised(s.student, made, f"fake{number}", self.fake_times)
            alpha, sigma = s.student.schedule.parts(x_t, t)
            weight = denoising_weight(self.fake_weight, alpha, sigma, deviation=s.fake.deviation)
            yield Update(denoising(s.fake(x_t, t, labels), made, weight).sum(), count=len(made), group="fake")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What DMD has to beat: learn the teacher's pairs of noise and item, and nothing else (Luhman and Luhman 2021)."""

    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all pairs."""
        made = s.student.one_step(batch["noise"], batch.get("labels") if s.student.classes else None)
        yield Update(denoising(made, batch["inputs"]).sum(), count=len(made))


class _Draws:
    """Random numbers of one step, item by item."""

    def __init__(self, batch: Batch, run: Run):
        self.run, self.keys, self.inputs = run, keys_of(batch), batch["inputs"]
        self.labels: Tensor | None = batch.get("labels")

    def normal(self, purpose: str) -> Tensor:
        return normal(self.keys, seed_for(self.run, purpose), *self.inputs.shape[1:]).to(self.inputs)

    def noised(self, student: Denoiser, made: Tensor, purpose: str, times: Times) -> tuple[Tensor, Tensor]:
        """(x_t, t) at times of `times`."""
        t = times(uniform(self.keys, seed_for(self.run, f"{purpose} time"))).to(made.dtype)
        return student.schedule.add_noise(made, self.normal(f"{purpose} noise"), t), t


def recipe(scale: Scale = "small") -> Recipe:
    """A ring of Gaussians with their exact score (smoke), scikit-learn's digits with a teacher that the recipe trains
    (small), CIFAR-10 without labels, `cifar10.npz`, as in Appendix B.1 but for the network and LPIPS (paper)."""
    big = pick(scale, smoke=PointDenoiser(width=64), small=PointDenoiser(width=128), paper=PAPER_NET)
    optim = Optim(lr=pick(scale, smoke=2e-3, small=2e-3, paper=2e-4))
    judge = Train(
        method=Supervised(), student=ConvNet(width=16), steps=pick(scale, smoke=1, small=300, paper=20_000), batch=64,
        optim=Optim(lr=3e-3),
    )  # fmt: skip
    paper = scale == "paper"
    check = Generation(
        judge=None if scale == "smoke" else "judge",
        count=pick(scale, smoke=500, small=1000, paper=50_000),
        teacher_steps=pick(scale, smoke=(1, 32), small=(1, 4, 32), paper=(1, 18)),
        teacher_rule="heun" if paper else "ddim",
    )
    data = pick(scale, smoke=Ring(), small=Digits(), paper=Npz(path="cifar10.npz"))
    score: Any = MixtureTeacher(data=data, schedule=big.schedule)
    return Recipe(
        id="dmd",
        student=replace(big, stage="teacher"),
        data=data,
        teachers={"teacher": score if scale == "smoke" else DenoiserTeacher(spec=big, stage="teacher")},
        stages=({} if scale == "smoke" else {"judge": judge})
        | {
            "teacher": Train(
                method=Denoise(), student=big, steps=pick(scale, smoke=200, small=2500, paper=400_000),
                batch=pick(scale, smoke=128, small=128, paper=512), optim=optim,
            )
        }
        | ({"pairs": DrawPairs(count=500_000)} if paper else {})
        | {
            "train": Train(
                method=DMD(fake_steps=1, regression=0.5) if paper else DMD(),
                data=Pairs() if paper else None,
                steps=pick(scale, smoke=200, small=600, paper=300_000),
                batch=pick(scale, smoke=64, small=64, paper=392),
                optim=PUBLISHED if paper else Optim(lr=1e-3),
            ),
            "audit": Audit(subjects=("start", "train"), checks=(check,)),
        },
        expect=EXPECT if paper else (),
    )  # fmt: skip


PAPER_NET = ImageDenoiser(width=128, levels=3, schedule=Karras(), deviation=1.0)
PUBLISHED = Optim(
    lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01, clip=10.0, schedule="constant", warmup=500 / 300_000
)  # fmt: skip
EXPECT = (
    Expect(
        metric="FID", value=3.77, where="Table 6", setting="CIFAR-10 without labels, one step; not what is measured here"
    ),
    Expect(metric="FID", value=1.84, where="Table 6", setting="its teacher, EDM with labels, 35 evaluations"),
)
COST = 8  # a DMD step of 24 forward passes (a backward one counts two) over a regression step of 3


def proof() -> Proof:
    """Against the teacher at one step, and against pairs at equal training compute."""
    ours = recipe("small")
    train = ours.stages["train"]
    pairs = {
        **{name: stage for name, stage in ours.stages.items() if name in ("judge", "teacher")},
        "pairs": DrawPairs(count=2000, sampler=Sampler(steps=32)),
        "train": replace(train, method=Regression(), data=Pairs(), steps=COST * train.steps),
        "audit": ours.stages["audit"],
    }
    return Proof(
        claim="Digits that the one-step student draws are nearer to real digits than those of its teacher at one step, and"
        " than those of the same student trained on the teacher's pairs of noise and digit at equal compute.",
        arms={
            "ours": ours,
            "regression": replace(ours, stages=pairs),
            "teacher_one_step": ours,
            "teacher_32_steps": ours,
        },
        subjects={"teacher_one_step": "teacher_1_step", "teacher_32_steps": "teacher"},
        metric="frechet",
        better="lower",
        beats=("teacher_one_step", "regression"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (1e-3, 3e-3)},
        minutes=12.0,
        note="A DMD step costs 24 forward passes and a regression step 3 (a backward pass counts as two), so regression"
        " takes 8 times as many steps; its 2,000 pairs, drawn by 32 steps of the teacher, come on top and are not charged."
        " The distance is between features of a small classifier of the digits; it is no FID.",
    )
