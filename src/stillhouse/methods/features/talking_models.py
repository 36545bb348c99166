"""Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication (Zhao et al. 2023).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + interaction · L_int + message · L_MC + state · L_SC
    L_int = mean over rounds of |v - D_g(E_h(u~))|²,     u~ = the teacher's way from l to u, beginning with D_h(m)
    m = E_g(v_l) in the first round, then E_g'(D_g(E_h(u~)))
    L_MC = |E_g(v_l) - E_h'(t_l)|² + |E_g'(v) - E_h(t)|²,     L_SC = |D_h(E_h'(t_l)) - t_l|² + |D_g(E_g'(v)) - v|²

v_l and v are what a lower and an upper layer of the student compute, t_l and t what those of the teacher do; |.|² is
the mean square over the numbers of an image. The student encodes its lower state as a message m, the teacher decodes it
as a lower state of its own and computes on from there to its upper layer, u~, and answers with a message, which the
student decodes and is led to. So the student learns what the teacher makes of what the student has seen, and not of the
image alone. In a second round the student answers that. Messages of both about the same image shall be alike (L_MC),
and states shall survive being said and understood (L_SC). E and D are perceptrons of two layers at each position,
thrown away; the teacher is frozen.

Differs from the paper / the authors' code: no code is known to us. The names of the three losses and their roles are
the paper's; the formulas, weights (1, 0.1, 0.1), width of a message and the second round are reconstructed from its
reviews. Ours is that either network has two encoders, E for the layer that it first speaks of (the student's lower, the
teacher's upper one) and E' for its other one, that L_SC does not move the student, and that messages are
maps: tokens are laid out as a square, a class token stays the teacher's own, and maps are brought to the size at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...data.images import Digits, Known, Split
from ...models.adapters import resized
from ...models.relay import like, resumed
from ...models.taps import as_map
from ...objectives.maps import wide
from ..classics.fitnet import FitNet
from ..images import CIFAR, SMALL, against_hinton, arm, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="talking_models",
    title="Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication",
    authors=("Zhe Zhao", "Qingyun Liu", "Huan Gui", "Bang An", "Lichan Hong", "Ed H. Chi"),
    year=2023,
    arxiv="2310.03188",
    modality=("image",),
    data=("labels",),
    claim="A student that asks its teacher what to make of its own states learns better than one that copies the teacher's.",
)


SOFT = Beside(labels=0.1, soft=0.9)  # of the recipe and what it is compared with


class Conversation(nn.Module):
    """Encoders and decoders between the states [C, H, W] of two layers, and messages of `width` channels."""

    def __init__(self, lower: tuple[tuple[int, ...], ...], upper: tuple[tuple[int, ...], ...], width: int):
        super().__init__()
        (own_low, their_low), (own_up, their_up) = lower, upper
        self.student_low, self.student_up = Words(own_low[0], width), Words(own_up[0], width)
        self.teacher_low, self.teacher_up = Words(their_low[0], width), Words(their_up[0], width)
        self.to_teacher, self.to_student = Words(width, their_low[0]), Words(width, own_up[0])
        self.low, self.up = (their_low[1], their_low[2]), (own_up[1], own_up[2])

    def understood(self, message: Tensor) -> Tensor:
        """The teacher's lower state that a message stands for."""
        return self.to_teacher(resized(message, self.low))

    def answered(self, message: Tensor) -> Tensor:
        """The student's upper state that a message stands for."""
        return self.to_student(resized(message, self.up))


class Words(nn.Sequential):
    """A perceptron at each position of a map."""

    def __init__(self, inputs: int, width: int):
        super().__init__(nn.Conv2d(inputs, max(inputs, width), 1), nn.ReLU(), nn.Conv2d(max(inputs, width), width, 1))


@dataclass(frozen=True, kw_only=True)
class TalkingModels:
    """Ask the teacher what it makes of the student's state, and learn the answer."""

    interaction: float = 1.0
    message: float = 0.1
    state: float = 0.1
    rounds: int = 1
    width: int = 128  # of a message
    layers: Pairs = Pairs()  # a lower and an upper one; none named: the ends of the first and of the last stage
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.rounds, self.width) < 1:
            raise ValueError("rounds and width are 1 or more")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"L_int": self.interaction, "L_MC": self.message, "L_SC": self.state})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and what the two need to talk."""
        s: Any = compared(student, run, self.layers, "map")
        if len(s.taps) < 2:
            raise RunError(
                f"a lower and an upper layer of each are needed, and {s.taps[0][0]!r} and {s.taps[0][1]!r} are the only ones"
                " found: name two of each (method.layers.student and .teacher)"
            )
        s.taps, s.shapes = (s.taps[0], s.taps[-1]), (s.shapes[0], s.shapes[-1])
        s.adapters.append(Conversation(*s.shapes, self.width))
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run, adapted=False)
        (talk,) = s.adapters
        (low, up), (their_low, their_up) = seen.mine, (t.to(seen.mine[0].dtype) for t in seen.theirs)
        said = talk.student_low(low)
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.interaction:
            gaps = [_apart(up, answer) for answer in self._answers(s, said, batch, run)]
            terms["interaction"] = (self.interaction, torch.stack(gaps).mean(0))
        if self.message or self.state:
            heard, heard_up = talk.teacher_low(their_low), talk.teacher_up(their_up)
            both = _apart(resized(said, talk.low), heard) + _apart(
                resized(talk.student_up(up), heard_up.shape[-2:]), heard_up
            )
            kept = _apart(talk.answered(talk.student_up(up.detach())), up.detach()) + _apart(
                talk.understood(heard), their_low
            )
            terms |= {"message": (self.message, both), "state": (self.state, kept)}
        yield total(seen, self.beside, terms)

    def _answers(self, s: State, said: Tensor, batch: Batch, run: Run) -> Iterator[Tensor]:
        """What the teacher's answers stand for, a state [B, c, h, w] of the student's upper layer for each round."""
        teacher: Any = run.teacher
        (talk,), (_, low), (_, up) = s.adapters, *s.taps
        for _ in range(self.rounds):
            understood = talk.understood(said)

            def instead(own: Tensor, state: Tensor = understood) -> Tensor:
                return like(state.to(own.dtype), own)

            reached = as_map(resumed(teacher.module, batch, low, instead, up))
            answer = talk.answered(talk.teacher_up(reached.to(said.dtype)))
            yield answer
            said = talk.student_up(answer)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The mean square difference of each item, [B]; both sides learn."""
    return (wide(a) - wide(b)).square().flatten(1).mean(1)


def recipe(scale: Scale = "small") -> Recipe:
    """A teacher with all labels, a student with 10 a class (paper: 50): digits, MNIST, CIFAR-100 as `cifar100.npz`."""
    known = 10 if scale != "paper" else 50
    split = Split(valid=0.2, test=0.3, labels=known, unlabelled=False)
    data = pick(scale, smoke=Digits(split=split), small=replace(SMALL, split=split), paper=replace(CIFAR, split=split))
    method = TalkingModels(width=pick(scale, smoke=16, small=16, paper=128), beside=SOFT)
    return images("talking_models", scale, method, data=data).set("teacher.data", Known())


def proof() -> Proof:
    """With few labels, against the labels alone, soft targets, a hint, and the same modules without asking the teacher."""
    ours = recipe("small")
    hint = arm(ours, FitNet(beside=SOFT), name="hint")
    silent = arm(ours.set("train.method.interaction", 0.0).set("train.method.message", 1.0))
    claim = "With 10 labelled images of each class, a student that asks its teacher what to make of its states, and learns"
    claim += " its outputs, classifies better than with the outputs alone, with a hint beside them, with the same modules"
    claim += " and no questions (`silent`), and without a teacher."
    note = (
        "MNIST at 14 x 14 pixels: the teacher (73,000 parameters) learned from 1,000 images, the student (10,500) has"
        " 100 of them, which depend on the seed; 1,000 to choose by, 10,000 to judge. Every arm takes 400 steps of 64"
        " images; the teacher's 600 and its passes come on top, of which `ours` has two a step. `ours`,"
        " `hint` and `silent` have the soft targets of `hinton` beside them. All learn from digits: the paper's change"
        " of domain is not in it."
    )
    return against_hinton(ours, claim, arms={"hint": hint, "silent": silent}, note=note)
