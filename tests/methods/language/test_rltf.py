"""RLTF: two turns, what is learned from each, the second answer without the feedback, the feedback itself; judges."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chains import SPEC, logps, slopes_agree, splits_alike, warm
from language import Folders, folders, run_of, tokenizer_of, write_jsonl  # noqa: F401 - a fixture
from stillhouse.core.run import Run, RunError
from stillhouse.data.rewards import Format, Rewarded
from stillhouse.data.tasks import Bytes, Chain, Questions, Task, Tokenized, chain_steps
from stillhouse.data.toys import Sentences
from stillhouse.methods.feedback import Asking, Corrected, Critic, Verdict, criticised, critique, mistaken, next_turn
from stillhouse.methods.language.rltf import RLTF
from stillhouse.models.episodes import Episode
from stillhouse.models.generate import Sampling
from stillhouse.teachers.scripted import Scripted
from toylanguage import update

torch.set_num_threads(1)
TASKS = Chain(ops=(1,), base=2, style="answer", train=6, valid=1, test=1)
SAMPLING = Sampling(temperature=1.2, max_new=5)


def toy(folder: Path) -> tuple[Any, Any, Any]:
    """A student that is right now and then, in both turns."""
    return warm(folder, data=replace(TASKS))


def expected(method: RLTF, run: Any, student: Any, batch: Any, before: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum of the loss, a token at a time, and what was met on the way."""
    episodes, rewards, _ = method.play(before, batch, run)
    coder = TASKS.coder(run)
    total = torch.zeros((), dtype=torch.float64)
    met = {"second": 0.0, "floored": 0.0, "kept": 0.0, "right": 0.0}
    for q in range(len(rewards)):
        group = episodes[q * method.group : (q + 1) * method.group]
        first = [TASKS.verify(run, "train", q, e.own[0]) for e in group]
        second = [TASKS.verify(run, "train", q, e.own[1]) if len(e.own) > 1 else None for e in group]
        assert all((r < 1) == (s is not None) for r, s in zip(first, second, strict=True))
        returns = [r + method.discount * (s or 0.0) for r, s in zip(first, second, strict=True)]
        heard = [s for s in second if s is not None]
        for e, r2, mine in zip(group, second, returns, strict=True):
            (prompt, y1), t = (list(e.turns[0].tokens), list(e.own[0])), SAMPLING.temperature
            a1 = mine - sum(returns) / len(returns)
            ratio = (logps(student, prompt, y1, t) - logps(before, prompt, y1, t).detach()).exp()
            total = total - (ratio * a1).sum()
            if r2 is None:
                continue
            met["second"] += 1
            said = coder.prompt(critique(run.sources(TASKS_OF[id(run)])["train"].tasks[q], coder.text(y1)))
            assert list(e.turns[2].tokens) == said
            context, y2 = prompt + y1 + said, list(e.own[1])
            a2 = r2 - sum(heard) / len(heard)
            ratio = (logps(student, context, y2, t) - logps(before, context, y2, t).detach()).exp()
            total = total - (ratio * a2).sum()
            old = logps(before, prompt, y2, t).detach()
            ratio = (logps(student, prompt, y2, t) - old).exp()
            if before is student:
                torch.testing.assert_close(ratio.detach(), torch.ones_like(ratio).detach())
            if r2 == 1:
                met["right"] += 1
                total = total - method.imitate * logps(student, prompt, y2, t).sum()
            worth = r2 - sum(first) / len(first)
            for r, o in zip(ratio, old, strict=True):
                met["floored" if o < method.floor else "kept"] += 1
                total = total - method.distil * worth * (r if o >= method.floor else 0.0 * r)
            target = coder.answer("", critique(run.sources(TASKS_OF[id(run)])["train"].tasks[q], coder.text(y1)))
            total = total - method.foresee * logps(student, prompt + y1, target, 1.0).sum()
    return total, met


TASKS_OF: dict[int, Any] = {}


def helped(play: Any) -> Any:
    """`play`, but every other second answer is right: this student's never are."""

    def better(method: RLTF, student: Any, batch: Any, run: Any) -> Any:
        episodes, rewards, critiques = play(method, student, batch, run)
        tasks, coder = run.sources()["train"].tasks, TASKS.coder(run)
        for i, e in enumerate(episodes):
            q, g = divmod(i, method.group)
            if len(e.own) > 1 and i % 2:
                episodes[i] = Episode(e.turns[:-1]).then(coder.answer("", tasks[q].solution), own=True)
                rewards[q, g, 1] = 1.0
        return episodes, rewards, critiques

    return better


@pytest.mark.parametrize(
    ("distil", "foresee", "imitate"),
    [(0.1, 0.0, 0.0), (0.0, 0.1, 0.0), (0.7, 0.3, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.5), (0.7, 0.3, 0.5)],
)
def test_the_loss_token_by_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distil: float, foresee: float, imitate: float
) -> None:
    """The first step, where all ratios are 1, and two more on the same episodes."""
    run, student, batch = toy(tmp_path)
    TASKS_OF[id(run)] = run.recipe.data
    method = RLTF(distil=distil, foresee=foresee, imitate=imitate, floor=-2.0, group=6, inner=3, sampling=SAMPLING)
    before = copy.deepcopy(student)
    if imitate:
        monkeypatch.setattr(RLTF, "play", helped(RLTF.play))
    steps = 0
    for made in method.step(method.setup(student, run), batch, run):
        total, met = expected(method, run, student, batch, before)
        assert met["second"] > max(3, met["right"]) and met["floored"] > 0 and met["kept"] > 0
        assert bool(met["right"]) == bool(imitate)
        assert float(made.count) == 24 and made.loss.item() == pytest.approx(total.item(), rel=1e-3, abs=1e-3)
        slopes = slopes_agree(made.loss, total, student)
        assert float(made.logs["heard"]) == met["second"]
        with torch.no_grad():
            for weight, slope in zip(student.parameters(), slopes, strict=True):
                weight.sub_(0.2 * slope / 24)
        steps += 1
    assert steps == 3


def test_the_second_answers_ratio_without_feedback_begins_at_one(tmp_path: Path) -> None:
    """The item (x -> y_2) alone: its value at the first step is minus the sum of what its tokens are worth."""
    run, student, batch = toy(tmp_path)
    method = RLTF(distil=1.0, floor=-math.inf, group=6, sampling=SAMPLING)
    episodes, rewards, _ = method.play(student, batch, run)
    alone = (
        update(method, student, batch, run).loss.item()
        - update(replace(method, distil=0.0), student, batch, run).loss.item()
    )
    worth = rewards[..., 1].nan_to_num(0.0) - rewards[..., 0].mean(1, keepdim=True)
    tokens = torch.tensor([len(e.own[1]) if len(e.own) > 1 else 0 for e in episodes]).view_as(worth)
    assert alone == pytest.approx(float(-(worth * tokens).sum()), abs=1e-3) and abs(alone) > 0.1


def test_one_turn_hears_nothing_and_bounds_are_those_of_ppo(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    episodes, rewards, said = RLTF(turns=1, group=4, sampling=SAMPLING).play(student, batch, run)
    assert rewards.shape == (4, 4, 1) and not rewards.isnan().any() and not said
    assert all(len(e.turns) == 2 for e in episodes)
    values = [update(RLTF(bound=b, group=4, sampling=SAMPLING), student, batch, run).loss.item() for b in (None, 0.2)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)  # at the weights that drew the answers


@pytest.mark.parametrize(
    "method", [RLTF(group=4, inner=2, foresee=0.1, sampling=SAMPLING), RLTF(group=4, turns=3, sampling=SAMPLING)]
)
def test_splitting_a_batch_changes_nothing(tmp_path: Path, method: RLTF) -> None:
    splits_alike(tmp_path, method, toy)


def test_what_it_refuses(tmp_path: Path) -> None:
    for wrong in ({"group": 1}, {"turns": 0}, {"inner": 0}, {"sampling": Sampling(temperature=0.0)}):
        with pytest.raises(ValueError, match="two different episodes"):
            RLTF(**wrong)
    run = run_of(tmp_path, SPEC, data=Sentences())
    with pytest.raises(RunError, match="Sentences has no verifier"):
        RLTF().setup(SPEC.build(run), run)
    run, student, _ = toy(tmp_path / "chains")
    with pytest.raises(RunError, match="chains have no words"):
        RLTF(judge=Asking()).setup(student, run)


# -- judges ------------------------------------------------------------------------------------------------------------


def task(style: Any) -> Task:
    return Chain(style=style).task("3+4*2-5=")


@pytest.mark.parametrize(
    ("style", "text", "said"),
    [
        ("values", "7;5;0#0", "~7*2=4~"), ("values", "6;4;9#9", "~3+4=7~"), ("values", "7;4;9#8", "~#9~"),
        ("values", "7;4", "~4-5=9~"), ("values", None, "~3+4=7~"), ("values", "", "~3+4=7~"),
        ("values", "7;4;9;1#9", "~#9~"),
        ("steps", "3+4=7;7*2=5;5-5=0#0", "~7*2=4~"), ("steps", "3+4=7;7*2=4;4-5=9#1", "~#9~"), ("answer", "#3", "~3+4=7~"),
    ],
)  # fmt: skip
def test_the_critic_names_the_first_wrong_step(style: Any, text: str | None, said: str) -> None:
    assert chain_steps("3+4*2-5=", 10) == ["3+4=7", "7*2=4", "4-5=9"]
    assert critique(task(style), text) == said


@pytest.mark.parametrize("style", ["steps", "values", "answer"])
def test_chains_to_listen_from(tmp_path: Path, style: Any) -> None:
    base = Chain(style=style, train=30, valid=3, test=3)
    spec = Corrected(base=base)
    run = run_of(tmp_path, SPEC, data=spec)
    source, rows = run.sources(base)["train"], spec.load(run)["train"].rows
    assert len(rows) == 60 and spec.classes == base.classes
    for i, found in enumerate(source.tasks):
        wrong = mistaken(found, base)
        assert base.score(found, wrong) == 0.0 and wrong == mistaken(found, base)
        plain, (told,) = rows[2 * i], rows[2 * i + 1]
        assert plain == source.rows[i]
        text = "".join(base.alphabet[t] for t in told.tokens)
        assert text == f"{found.question}{wrong}\n{critique(found, wrong)}{found.solution}\n"
        learned = "".join(base.alphabet[t] for t, counts in zip(told.tokens, told.counts, strict=True) if counts)
        assert learned == f"{found.solution}\n"


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Says which words it has read."""

    def build(self, run: Run) -> Any:
        return lambda ask, rng: f"heard {len(ask.messages)}: {ask.messages[0][1]}"


def test_a_teacher_is_asked_about_tasks_in_words(tmp_path: Path, folders: Folders) -> None:  # noqa: F811
    from stillhouse.models.hub import HubLM

    path = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(30)])
    spec = HubLM(path=str(folders.student))
    run = run_of(tmp_path / "run", spec, data=Questions(path=str(path), length=400), teacher=Scripted(script=Echo()))
    with pytest.raises(RunError, match="needs a teacher 'judge' that writes"):
        Asking().check(run)
    with pytest.raises(RunError, match="Critic knows chains alone"):
        Critic().check(run)
    judge = Asking(teacher="teacher")
    judge.check(run)
    asked = run.sources()["train"].tasks[0].question
    (said,) = judge(run, "train", [(0, [5, 6])])
    assert said.startswith("heard 1") and asked in said and "(it did not end)" in said
    student = spec.build(run)
    student.config.max_position_embeddings = 1024  # two answers and a critique are longer than the 256 it was made for
    batch = run.sources()["train"].batch([0, 1], 0)
    method = RLTF(judge=judge, group=2, foresee=0.1, sampling=Sampling(max_new=6))
    run.step = 0
    episodes, rewards, critiques = method.play(student, batch, run)
    assert len(critiques) == int((rewards[..., 0] < 1).sum()) == 4 and all(len(e.own) == 2 for e in episodes)
    tokenizer = spec.tokenizer(run)
    for episode, one in zip(episodes, critiques, strict=True):
        read = tokenizer.decode(episode.tokens)
        assert "heard 1" in read and read.count("<|start|>assistant") == 2 and read.count("<|start|>user") == 2
        assert tokenizer.decode(list(one.own[0])).startswith("heard 1") and "Criticise" in tokenizer.decode(one.tokens)
    made = update(method, student, batch, run)
    slopes = torch.autograd.grad(made.loss, [p for p in student.parameters() if p.requires_grad])
    assert torch.isfinite(made.loss) and max(float(s.abs().max()) for s in slopes) > 0


def test_the_next_turn_in_every_coding() -> None:
    chat, plain = (Tokenized(tokenizer_of(template=t)) for t in (tokenizer_of().chat_template, None))
    text = chat.tokenizer.decode
    assert text(next_turn(chat, "no")) == "\n<|start|>user\nno<|end|>\n<|start|>assistant\n"
    assert text(next_turn(chat, "no", ended=False)) == "<|end|>\n<|start|>user\nno<|end|>\n<|start|>assistant\n"
    assert text(next_turn(plain, "no")) == "\nno\n"
    assert bytes(next_turn(Bytes(), "no")) == b"\nno\n"
    assert criticised(Chain().coder(None), "", "~1+1=2~") == ([], Chain().coder(None).answer("", "~1+1=2~"))  # type: ignore[arg-type]
    asked, target = criticised(chat, "Why?", "no")
    assert "Criticise" in text(asked) and text(target) == "no<|end|>"


def test_a_verdict_says_nothing_of_use(tmp_path: Path) -> None:
    run, _, _ = toy(tmp_path)
    Verdict().check(run)
    assert Verdict()(run, "train", [(0, [1]), (1, [2])]) == ["~~", "~~"]


def test_rewards_of_ones_own_are_what_is_learned_and_the_verifier_says_who_hears(tmp_path: Path) -> None:
    data = Rewarded(base=TASKS, rewards={"form": Format(pattern=".*", weight=3.0)})
    run = run_of(tmp_path, SPEC, data=data)
    torch.manual_seed(0)

    class Sign:
        """Says no more than the chains' alphabet can."""

        def __call__(self, run: Any, split: str, asked: Any) -> list[str]:
            return ["~~" for _ in asked]

    method = RLTF(judge=Sign(), group=4, sampling=SAMPLING)  # type: ignore[arg-type]
    episodes, rewards, _ = method.play(SPEC.build(run), run.sources()["train"].batch(range(3), 0), run)
    for episode, worth in zip(episodes, rewards.flatten(0, 1).tolist(), strict=True):
        for answer, value in zip(episode.own, worth, strict=False):
            assert value == 3.0 * (answer[-1] == 0)  # it ended; right or wrong
    assert any(len(episode.own) == 2 for episode in episodes)  # a wrong answer heard so, though it earned 3
