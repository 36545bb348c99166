"""Expanding the Capabilities of Reinforcement Learning via Text Feedback (Song et al. 2026, arXiv 2602.02482): RLTF.

    x -> y_1, reward r_1; if it is wrong, a judge says c, and (x, y_1, c) -> y_2, reward r_2
    R_1 = r_1 + discount r_2, R_2 = r_2, A_k = R_k less the mean of R_k in the group     (turns that happened)
    L = - sum over both answers of  q / q_old  A_k
        - distil (r_2 - mean r_1) sum_t  q(y_2t | x) / q_old(y_2t | x)     RLTF-SD: the second answer WITHOUT the feedback
        - foresee sum_t log q(c_t | x, y_1)                                RLTF-FM: the feedback itself
        - imitate sum_t log q(y_2t | x)  where y_2 is right                supervised learning on second answers

Feedback is there in training alone; the model has to make it its own. SD re-scores the second answer as if it had been given
at once, and its baseline is the FIRST turn's mean: it is learned where it beats what the model can do in one turn. Tokens
that the model finds all but impossible without the feedback, log q_old(y_2t | x) < floor, are left out. q_old is taken in
the single-turn context, so that this ratio begins at 1. What the judge says is read and,
but for FM, never learned.

Sure, from the authors' code: the returns and discount 0.1, advantages without division by the deviation, plain importance
sampling (at the weights that drew the answers REINFORCE) with clipping to 0.2 as an option (`bound`), 0.1 for `distil` and
`foresee`, the floor of -5, the early end, groups of 8.

Differs from the authors' code: sums over tokens are divided by the number of episodes, which theirs may not do. Without a
model to judge, chains have a rule that names the first wrong step (`methods.feedback.Critic`); for tasks in words a teacher
that writes is asked, in words of ours (`Asking`). INFERRED of the supervised term: that it reads the question alone, and
stands beside reinforcement with a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.tasks import Chain, Gym, tasks_of
from ...data.tokens import prompts_of
from ...models.call import logits_of
from ...models.earlier import Continued
from ...models.episodes import Episode, as_batch, by_turn, play
from ...models.generate import Sampling
from ...models.hub import HubLM, Lora
from ...models.toys import TinyLM
from ...objectives.divergences import cross_entropy
from ...objectives.policy import clipped, cross_turn_advantage, importance, turn_advantage, turn_returns
from ...teachers.chat import HttpChat
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised
from ..feedback import Asking, Corrected, Critic, Verdict, criticised, next_turn
from ..groups import Answers

PAPER = Paper(
    id="rltf",
    title="Expanding the Capabilities of Reinforcement Learning via Text Feedback",
    authors=(
        "Yuda Song", "Lili Chen", "Fahim Tajwar", "Remi Munos", "Deepak Pathak", "J. Andrew Bagnell", "Aarti Singh",
        "Andrea Zanette",
    ),
    year=2026,
    arxiv="2602.02482",
    modality=("text",),
    data=("tasks",),
    claim="What a judge says about wrong answers in training makes a model better at answering without a judge.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RLTF:
    """Answer, hear what was wrong, answer again; learn from both, and from the second as if given at once."""

    distil: float = 0.1  # weight of the last answer without the feedback (RLTF-SD); 0: reinforcement over turns alone
    foresee: float = 0.0  # weight of the feedback's own tokens (RLTF-FM: 0.1)
    imitate: float = 0.0  # weight of right last answers, learned as if written without the feedback; then distil=0
    discount: float = 0.1  # of the next turn's return
    floor: float = -5.0  # log q below which a token of the last answer is not learned without the feedback
    bound: float | None = None  # clip the ratios to 1 - bound .. 1 + bound (the authors' option: 0.2); None: never
    judge: Critic | Verdict | Asking = Critic()
    turns: int = 2  # answers in an episode, at most; 1: no feedback
    group: int = 8  # episodes to a question
    inner: int = 1  # gradient steps a batch of episodes
    sampling: Sampling = Sampling(temperature=1.0, max_new=512)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.group < 2 or self.inner < 1 or self.turns < 1 or self.sampling.temperature == 0:
            raise ValueError("RLTF needs groups of two different episodes or more, hence a temperature; a turn and a step")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        tasks_of(run)
        if self.turns > 1:
            self.judge.check(run)
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over `group` episodes to each of the batch's questions."""
        episodes, rewards, critiques = self.play(s.student, batch, run)
        temperature, count = self.sampling.temperature, torch.tensor(len(episodes))
        both = self._answers(episodes, batch, temperature)
        gained = turn_advantage(turn_returns(rewards, self.discount)).flatten(0, 1).tolist()
        advantage = torch.zeros(both.weight.shape)
        for row, (spans, values) in enumerate(zip(by_turn(episodes), gained, strict=True)):
            for (begin, end), value in zip(spans, values, strict=False):
                advantage[row, begin:end] = value
        advantage = advantage.to(both.weight)
        again = [(i, e) for i, e in enumerate(episodes) if len(e.own) > 1]
        own = self._answers([Episode(e.turns[:1]).then(e.own[-1], own=True) for _, e in again], batch, temperature)
        worth = own.each(cross_turn_advantage(rewards).flatten()[[i for i, _ in again]])
        right = own.each(self._right(again, batch, run))
        said = self._answers(critiques, batch, 1.0)

        def without(logp: Tensor, old: Tensor) -> Tensor:
            moved = torch.where(old < self.floor, 0.0, self._moved(logp, old, worth))
            return self.distil * moved - self.imitate * right * logp

        for _ in range(self.inner):
            z = both.logits(s.student)
            total = both.values(z, lambda logp, old: self._moved(logp, old, advantage), weight=both.weight).sum()
            if again and (self.distil or self.imitate):
                total = total + own.values(own.logits(s.student), without, weight=own.weight).sum()
            if critiques and self.foresee:
                nll = cross_entropy(logits_of(s.student, said.batch), said.labels, weight=said.weight)
                total = total + self.foresee * nll.sum()
            yield Update(total, count=count, logs=_told(rewards))

    def _moved(self, logp: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
        if self.bound is None:
            return importance(logp, old, advantage)
        return clipped(logp, old, advantage, self.bound, self.bound)

    def _right(self, again: Sequence[tuple[int, Episode]], batch: Batch, run: Run) -> Tensor:
        """1 for each last answer that the verifier accepts, whatever it is worth; all 0 if nobody asks."""
        if not self.imitate:
            return torch.zeros(len(again))
        examples = batch["example"][:, 0].tolist()
        verdicts = [tasks_of(run).verify(run, "train", examples[i // self.group], e.own[-1]) for i, e in again]
        return (torch.tensor(verdicts) >= 1.0).float()

    @staticmethod
    def _answers(episodes: Sequence[Episode], batch: Batch, temperature: float) -> Answers:
        return Answers(to_device(as_batch(episodes), batch["labels"].device), temperature)

    def play(self, student: nn.Module, batch: Batch, run: Run) -> tuple[list[Episode], Tensor, list[Episode]]:
        """(episodes, their rewards `[questions, group, turns]` with nan where there was no turn, the first criticisms)."""
        tasks, examples = tasks_of(run), batch["example"][:, 0].tolist()
        keys = [(example, number) for example in examples for number in range(self.group)]
        prompts = [prompt for prompt in prompts_of(batch) for _ in range(self.group)]
        rewards = torch.full((len(keys), self.turns), torch.nan)
        coder = tasks.coder(run)
        critiques: list[Episode] = []

        def judged(number: int, episode: Episode) -> float:
            example, answer = keys[number][0], episode.own[-1]
            (rewards[number, len(episode.own) - 1],) = tasks.verify_all(run, "train", [example], [answer])
            return tasks.verify(run, "train", example, answer)  # whether it is right, whatever it is worth

        def reply(going: Sequence[tuple[int, Episode]]) -> list[list[int] | None]:
            wrong = [(i, e) for i, e in going if judged(i, e) < 1.0]
            words = self.judge(run, "train", [(keys[i][0], e.own[-1]) for i, e in wrong])
            found: dict[int, list[int]] = {}
            for (i, episode), said in zip(wrong, words, strict=True):
                ended = coder.text(episode.own[-1]) is not None
                found[i] = next_turn(coder, said, ended=ended)
                if len(episode.own) == 1:
                    task = run.sources(tasks)["train"].tasks[keys[i][0]]
                    asked, target = criticised(coder, task.question, said, ended=ended)
                    unlearned = Episode(()).then([*episode.tokens, *asked], own=False)
                    critiques.append(unlearned.then(target, own=True))
            return [found.get(i) for i, _ in going]

        seed = seed_of(run.seed, "rollout", run.step)
        episodes = play(
            student, prompts, reply, self.sampling, turns=self.turns, seed=seed, keys=keys, ends=tasks.ends(run)
        )  # fmt: skip
        for number, episode in enumerate(episodes):
            if len(episode.own) == self.turns:  # nobody was asked to reply to the last answer
                judged(number, episode)
        return episodes, rewards.view(len(examples), self.group, self.turns), critiques


def _told(rewards: Tensor) -> dict[str, Any]:
    """Sums over episodes: first answers, how many went on, and what the last answer was worth."""
    last = rewards.gather(-1, (~rewards.isnan()).sum(-1, keepdim=True) - 1)
    mixed = (rewards[..., 0].amax(1) > rewards[..., 0].amin(1)).sum() * rewards.shape[1]
    heard = (~rewards[..., 1:2].isnan()).sum()
    return {"reward": rewards[..., 0].sum(), "last_reward": last.sum(), "heard": heard, "mixed_groups": mixed}


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains and a rule as judge, after the student has learned on other chains to answer and to listen (smoke,
    small); knights and knaves, made by reasoning-gym, and a judge behind a server (paper)."""
    if scale == "paper":
        sampling = Sampling(temperature=1.0, max_new=2048)
        train = Train(
            method=RLTF(sampling=sampling, judge=Asking()), steps=200, batch=32, accumulate=32, precision="bfloat16",
            checkpointing=True, optim=Optim(lr=2e-5, schedule="constant"), label="RLTF",
        )  # fmt: skip
        judged = Solved(versus=("start",), sampling=replace(sampling, temperature=0.0))
        return Recipe(
            id="rltf",
            student=HubLM(path="Qwen/Qwen3-1.7B", lora=Lora(rank=32)),
            data=Gym(task="knights_knaves", train=4000, length=2048),
            teachers={"judge": HttpChat(url="http://localhost:8000/v1", model="Qwen/Qwen3-235B-A22B")},
            stages={"train": train, "audit": Audit(subjects=("start", "train"), checks=(judged,))},
        )
    easy = Chain(ops=(1,), base=5, style="answer", train=36, valid=6, test=30)
    hard = Chain(ops=(2,), signs="+-", style="values", train=1500, valid=300, test=800)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    few = replace(tasks, train=pick(scale, smoke=36, small=500, paper=0), skip=tasks.train if scale == "small" else 0)
    writing = Sampling(max_new=pick(scale, smoke=4, small=8, paper=0), batch=512)
    warm = Train(
        method=Supervised(), data=Corrected(base=few), steps=pick(scale, smoke=60, small=400, paper=0),
        batch=pick(scale, smoke=16, small=64, paper=0), optim=Optim(lr=3e-3), label="Student before RLTF",
    )  # fmt: skip
    group, distil = pick(scale, smoke=4, small=8, paper=0), pick(scale, smoke=0.1, small=1.0, paper=0.1)
    train = Train(
        method=RLTF(sampling=writing, group=group, distil=distil), student=Continued(stage="warm"), label="RLTF",
        steps=pick(scale, smoke=10, small=50, paper=0), batch=pick(scale, smoke=8, small=16, paper=0),
        optim=Optim(lr=3e-4),
    )  # fmt: skip
    checks = (Solved(versus=("warm",), sampling=replace(writing, temperature=0.0)),)
    return Recipe(
        id="rltf",
        student=pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        stages={"warm": warm, "train": train, "audit": Audit(subjects=("start", "warm", "train"), checks=checks)},
    )


def proof() -> Proof:
    """RLTF-SD against GRPO at as many answers, against two turns without it, and against the worked chains again."""
    ours = recipe("small")
    train = ours.stages["train"]
    method, two = train.method, replace(train.method, distil=0.0)
    single = GRPO(group=method.turns * method.group, sampling=method.sampling, kl=0.0)
    few = replace(train, method=Supervised(), data=ours.stages["warm"].data, batch=2 * train.batch * method.group)
    return Proof(
        claim="A student that hears which step was wrong, and learns its second answers as if it had given them at once,"
        " solves more unseen chains in one turn than after GRPO on as many answers, than after reinforcement over the"
        " two turns alone, and than on the worked chains again.",
        arms={
            "ours": ours,
            "grpo": ours.set("train.method", single),
            "two_turns": ours.set("train.method", two),
            "alone": ours.set("stages", {**ours.stages, "train": few}),
        },
        metric="solved",
        beats=("grpo", "two_turns", "alone"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (3e-4, 1e-3)},
        minutes=8.0,
        note="Chains modulo 10 of two operators, `+` and `-`. For each seed a student learns 500 worked chains, and from a"
        " wrong answer to each and what the critic says of it the right one (stage `warm`); every arm goes on from"
        " there for 50 steps of 16 questions. RLTF and `two_turns` play 8 episodes a question, in which a wrong answer"
        " is followed by feedback and a second one; GRPO draws 16 answers, which are at least as many. `alone` learns"
        " from 256 rows of the stage `warm`. distil is 1, ten times the paper's, chosen beforehand on another seed;"
        " the other arms know no distil.",
    )
