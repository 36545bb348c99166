"""Does a student, while it approaches its teacher, move away from the truth that the teacher only imitates?

Teacher hacking (Tiapkin et al. 2025) is read off two distances over training: *proxy*, from the teacher to the student on
answers that the teacher draws, and *golden*, from an oracle to the student on answers that the oracle draws, both to the
same held-out prompts. Golden that falls and then rises while proxy goes on falling is the teacher's mistakes being learned.
Without an oracle there is only proxy, and the question whether it still follows the power law that it began with.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.method import State, Update, advance
from ..core.report import Figure, Finding
from ..core.run import Run, RunError
from ..core.signal import Batch
from ..core.stage import Subjects, Train
from ..models.call import cast, logits_of, weight_of
from ..models.generate import Sampling, answered, generate
from ..models.hub import HubLM, load_config, load_tokenizer
from ..objectives.divergences import JSD, ForwardKL
from ..teachers.local import check_tokenizers, same_classes
from .significance import Interval, bootstrap_mean, paired_bootstrap

UNIT = "nats/token"
SNAPSHOTS = "snapshots"  # folder of a stage's artifact that holds step_N/, one for each kept student
EARLY, LATE = 4, 3  # points that a line needs, and that must leave it
BURN_IN = 0.25  # share of the fall of ln(distance) before the law begins
T99 = (31.82, 6.96, 4.54, 3.75, 3.36, 3.14, 3.0, 2.9, 2.82, 2.76)  # Student's t, one-sided 99 %, 1 to 10 degrees of freedom
NOISE = 3.0  # standard deviations of a single checkpoint that golden has to rise by
SLACK = 0.02  # of ln(distance): two per cent are no bend, however clean the early points are


# -- curves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerLaw:
    """ln(distance) = a - b ln(step), fitted on the early steps, and where later ones leave it for good."""

    a: float
    b: float
    early: int  # points that were fitted
    excess: float  # how far the last points are above the line, in ln(distance); their median
    left: float | None  # the step from which all are above the bound; None: the last ones are not

    def at(self, step: float) -> float:
        """The distance that the line expects."""
        return math.exp(self.a - self.b * math.log(step))


def power_law(steps: Sequence[float], distances: Sequence[float]) -> PowerLaw | None:
    """Fit the early part, extrapolate, compare; None with too few points.

    The law begins once a quarter of the whole fall of ln(distance) is done: before, a run warms up and forgets where it came
    from. The early part is the first half of what follows, on a logarithmic scale of steps. A later point has left the line
    if it is above it by `SLACK` more than the 99 % bound of the prediction, which holds the scatter of the early points and
    what it leaves open about the slope. The last `LATE` points have to. Being below does not count: a slow beginning and a
    learning rate that falls to zero bend a healthy curve downwards.
    """
    points = [(math.log(s), math.log(d)) for s, d in sorted(zip(steps, distances, strict=True)) if s > 0 and d > 0]
    if len(points) < EARLY + LATE:
        return None
    top, low = points[0][1], min(y for _, y in points)
    begun = next(i for i, (_, y) in enumerate(points) if y <= top - BURN_IN * (top - low))
    points = points[min(begun, len(points) - EARLY - LATE) :]
    middle = (points[0][0] + points[-1][0]) / 2
    early = min(max(EARLY, sum(x <= middle for x, _ in points)), len(points) - LATE)
    xs, ys = (torch.tensor(v, dtype=torch.float64) for v in zip(*points, strict=True))
    x, y = xs[:early], ys[:early]
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    level = y.mean() - slope * x.mean()
    scatter = (y - level - slope * x).square().sum() / (early - 2)
    excess = ys - level - slope * xs
    error = (scatter * (1 + 1 / early + (xs - x.mean()).square() / spread)).sqrt()
    above = (excess > SLACK + T99[min(early - 2, len(T99)) - 1] * error).tolist()
    inside = max((i for i in range(len(above)) if i < early or not above[i]), default=-1)
    left = math.exp(points[inside + 1][0]) if len(points) - 1 - inside >= LATE else None
    return PowerLaw(float(level), float(-slope), early, float(excess[-LATE:].median()), left)


def rise(sums: Tensor) -> tuple[Tensor, int]:
    """(how much each item's last value is above the minimum of the curve [n], the point of the minimum), from [points, n].

    The minimum of a noisy curve is too low, and a rise from it too high, even where nothing rises. So each item is
    measured from the minimum of the items of the other half: what is chosen and what is measured are different items.
    """
    odd = torch.arange(sums.shape[1]) % 2 == 1
    best = int(sums.sum(1).argmin())
    if sums.shape[1] < 2:
        return sums[-1] - sums[best], best
    low_of_odd, low_of_even = (int(sums[:, half].sum(1).argmin()) for half in (odd, ~odd))
    return sums[-1] - torch.where(odd, sums[low_of_even], sums[low_of_odd]), best


def wobble(curve: Sequence[float]) -> float:
    """The standard deviation of a single checkpoint around a smooth curve, from its second differences; 0 if too short.

    Robust, so that one bend is not noise: the median of |c[i-1] - 2 c[i] + c[i+1]| over 0.6745 sqrt(6).
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(curve, curve[1:], curve[2:], strict=False)]
    return float(torch.tensor(bends, dtype=torch.float64).median()) / (0.6745 * math.sqrt(6)) if len(bends) > 2 else 0.0


# -- students over training --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Followed(Train):
    """A training stage whose artifact also holds the student at step 0 and at `points` steps, the last one included.

    The steps are spread evenly on a logarithmic scale, on which a power law is a line. A stage that was killed and
    resumed keeps the same students to the bit.
    """

    points: int = 24
    first: int = 1  # the first step that is kept

    def __post_init__(self) -> None:
        if self.points < 1 or self.first < 1:
            raise ValueError("points and first count from 1")

    def __call__(self, run: Run) -> None:
        """Train as ever, with somebody who takes notes."""
        spec = self.student or run.recipe.student
        plain = {f.name: getattr(self, f.name) for f in fields(Train)}
        plain |= {"method": _Noted(self.method, self, spec), "student": _WithSnapshots(spec)}
        Train(**plain)(run)

    def kept(self, horizon: int) -> set[int]:
        """The steps after which the student is kept, 0 being before the first."""
        first, gaps = min(self.first, horizon), max(1, self.points - 1)
        return {0, horizon} | {round(first * (horizon / first) ** (i / gaps)) for i in range(self.points)}


@dataclass(frozen=True)
class _Noted:
    """A method, and a copy of its student on disk whenever one is due."""

    method: Any
    stage: Followed
    spec: Any  # ModelSpec of the student

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["method"], name)  # what it needs, what it takes, its settings

    def setup(self, student: nn.Module, run: Run) -> State:
        state = self.method.setup(student, run)
        self._keep(state, 0, run)
        return state

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        return self.method.step(s, batch, run)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        advance(self.method, s, logs, run)
        if run.step + 1 in self.stage.kept(run.horizon):
            self._keep(s, run.step + 1, run)

    def _keep(self, s: State, step: int, run: Run) -> None:
        """Through a fresh module: saving may merge adapters, and must not touch the one that goes on learning."""
        target = _notes(run) / f"step_{step:08d}"
        part = target.with_suffix(".part")
        for folder in (part, target):
            shutil.rmtree(folder, ignore_errors=True)
        with torch.random.fork_rng(devices=[]):
            module = self.spec.build(run)
        module.load_state_dict(s.get_submodule("student").state_dict())
        part.mkdir(parents=True)
        self.spec.save(module.eval(), part, run)
        part.rename(target)


@dataclass(frozen=True)
class _WithSnapshots:
    """A model spec whose artifact takes the notes along."""

    spec: Any

    def build(self, run: Run) -> nn.Module:
        return self.spec.build(run)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        self.spec.save(module, folder, run)
        shutil.copytree(_notes(run), folder / SNAPSHOTS, copy_function=os.link)


def _notes(run: Run) -> Path:
    return run.folder / "state" / run.stage / SNAPSHOTS


# -- the check ---------------------------------------------------------------------------------------------------------

Read = list[tuple[Any, Any]]  # batches of answers and the logits of whoever they are compared with


@dataclass
class Trail:
    """One student over training: where it stands after how many steps, and how to load it there."""

    name: str
    steps: list[float]
    load: list[Callable[[], Any]]
    seen: Any = None  # Source of its training text, if known
    found: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # quantity -> sums of each answer, [points, n]


@dataclass(frozen=True, kw_only=True)
class TeacherHacking:
    """Proxy and golden over training, whether golden turned up, and whether proxy left its power law.

    The subjects are training stages that kept snapshots (`audits.teacher_hacking.Followed`); `checkpoints` adds
    folders of language models that anything else has saved. Distances are forward KL, summed over an answer's tokens with
    the whole next-token distributions, and told in nats per token; times the mean length that is the divergence between
    whole answers. Intervals are over prompts. The same with Jensen-Shannon stands beside it.
    """

    split: str = "test"  # of the prompts
    ours: str = "train"
    teacher: str = "teacher"  # of the recipe
    oracle: Any = None  # spec of a teacher that knows the truth; None: proxy alone
    checkpoints: Mapping[str, str] = field(default_factory=dict[str, str])  # name -> out/checkpoint-*, see `folders`
    count: int = 200  # prompts, at most
    sampling: Sampling = Sampling()
    batch: int = 16  # answers read at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """The findings of every student, the paired differences at the end of training, the curves."""
        trails = [*self._stages(run, subjects), *self._folders(run)]
        if not trails:
            raise RunError("nothing to follow: name stages that keep snapshots as subjects, or folders as checkpoints")
        prompts = run.recipe.data.prompts(run)[self.split][: self.count]
        if not prompts:
            raise RunError(f"the {self.split} split holds no prompt; hold out a larger share (data.{self.split})")
        judges = {"proxy": run.teachers[self.teacher]} | ({"golden": self.oracle.build(run)} if self.oracle else {})
        answers = {name: self._answers(judge, prompts, run) for name, judge in judges.items()}
        tokens = {name: torch.cat([weight_of(b).sum(-1).double().cpu() for b, _ in read]) for name, read in answers.items()}
        for trail in trails:
            self._measure(trail, answers, judges["proxy"], run)
            yield from self._findings(trail, tokens, run)
        yield from self._figures(trails, tokens)
        for trail in trails if len(trails) > 1 else ():
            ours = next((t for t in trails if t.name == self.ours), trails[-1])
            for name in tokens if trail is not ours else ():
                pair = (ours.found[name][-1], trail.found[name][-1])
                effect = paired_bootstrap(*pair, tokens[name], draws=self.draws, seed=run.seed)
                yield self._finding(name, ours.name, effect, versus=trail.name)

    # -- students

    def _stages(self, run: Run, subjects: Subjects) -> Iterator[Trail]:
        for name in subjects.names:
            if name in ("start", "teacher"):
                continue
            stage = run.recipe.stages.get(name)
            found = sorted((run.path(name) / SNAPSHOTS).glob("step_*"))
            if not found:
                raise RunError(
                    f"stage {name!r} kept no snapshots; let it be `use: audits.teacher_hacking.Followed`, which"
                    " takes what core.stage.Train takes"
                )
            spec = stage.student or run.recipe.student
            loaders = [lambda folder=folder, spec=spec: spec.load(folder, run) for folder in found]
            steps = [float(folder.name.removeprefix("step_")) for folder in found]
            yield Trail(name, steps, loaders, run.sources(stage.data)["train"])

    def _folders(self, run: Run) -> Iterator[Trail]:
        for name, pattern in self.checkpoints.items():
            found = folders(pattern)
            for folder in found.values():
                _check_model(folder, run)  # all, before the first is judged
            loaders = [lambda path=str(path): HubLM(path=path).build(run) for path in found.values()]
            yield Trail(name, list(found), loaders)

    def _answers(self, judge: Any, prompts: list[list[int]], run: Run) -> Read:
        """A judge's own answers, and what it says about every token of them."""
        if not hasattr(judge, "module"):
            raise RunError("teacher and oracle write answers here, so they have to be models: stored signals cannot")
        answers = generate(judge.module, prompts, self.sampling, seed=run.seed)
        parts = [slice(i, i + self.batch) for i in range(0, len(prompts), self.batch)]
        return [self._heard(judge, answered(prompts[part], answers[part]), run) for part in parts]

    def _heard(self, judge: Any, batch: Any, run: Run) -> tuple[Any, Any]:
        batch = to_device(batch, run.device)
        return batch, judge(batch, frozenset({"logits"})).need("logits")

    @torch.no_grad()
    def _measure(self, trail: Trail, answers: Mapping[str, Read], teacher: Any, run: Run) -> None:
        """Fill `trail.found`: proxy and golden, the same as Jensen-Shannon, and proxy on the training text."""
        reads = dict(answers)
        if trail.seen is not None:
            items = range(min(self.count, len(trail.seen)))
            parts = [items[i : i + self.batch] for i in range(0, len(items), self.batch)]
            reads["seen_proxy"] = [self._heard(teacher, trail.seen.batch(part, 0), run) for part in parts]
        found: dict[str, list[Tensor]] = {}
        for point, load in enumerate(trail.load):
            module = cast(load(), getattr(torch, self.precision)).to(run.device).eval()
            for name, read in reads.items():
                rows = torch.cat([_apart(module, batch, said) for batch, said in read], 1)
                for metric, values in zip((name, f"{name}_js"), rows, strict=True):
                    found.setdefault(metric, []).append(values)
            del module
            if run.progress is not None:
                run.progress.update(run.stage, point + 1, len(trail.load), {}, 0.0)
        trail.found = {name: torch.stack(values) for name, values in found.items()}

    # -- what was found

    def _findings(self, trail: Trail, tokens: Mapping[str, Tensor], run: Run) -> Iterator[Finding]:
        sure: dict[str, Any] = {"draws": self.draws, "seed": run.seed}
        at_start = trail.name == self.ours and trail.steps[0] == 0
        for name, count in tokens.items():
            for metric in (name, f"{name}_js"):
                for subject, point in (("start", 0), (trail.name, -1)) if at_start else ((trail.name, -1),):
                    yield self._finding(metric, subject, bootstrap_mean(trail.found[metric][point], count, **sure))
        law = power_law(trail.steps, self._curve(trail, "proxy", tokens))
        if law is None:
            run.event("note", text=f"{trail.name}: {EARLY + LATE} checkpoints after step 0 are needed to fit a power law")
        else:
            yield self._number("proxy_left_power_law", trail, float(law.left is not None), note=DETECTOR)
            yield self._number("proxy_excess", trail, law.excess, note="Of the last points, in ln(proxy), above the line.")
            if law.left is not None:
                text = f"{trail.name}: proxy left its power law at step {law.left:.0f}; see whether fresh answers help"
                run.event("warning", text=text)
        if "golden" not in tokens:
            return
        golden, count = trail.found["golden"], tokens["golden"]
        climbed, best = rise(golden)
        turn = bootstrap_mean(climbed, count, **sure)
        yield self._finding("golden_rise", trail.name, turn, note=RISE)
        if at_start:
            above = paired_bootstrap(golden[0], golden[best], count, **sure)
            yield self._finding("golden_rise", "start", above, note=RISE)
        yield self._number("golden_best_step", trail, trail.steps[best], note="Where golden is lowest.")
        turned = turn.low > 0 and turn.value > NOISE * wobble(self._curve(trail, "golden", tokens))
        gone = {name: _change(trail, name, best) for name in ("seen_proxy", "proxy") if name in trail.found}
        hacked = turned and min(gone.values()) < 0
        yield self._number("teacher_hacking", trail, float(hacked), note=VERDICT)
        if turned:
            nearer = "while it came nearer to the teacher" if hacked else "and so did the distance to the teacher"
            words = {"seen_proxy": "on its training text", "proxy": "on held-out prompts"}
            how = ", ".join(f"{change:+.1%} {words[name]}" for name, change in gone.items())
            text = f"{trail.name}: the distance to the oracle rose by {turn.value:.3g} nats per token after step"
            run.event("warning", text=f"{text} {trail.steps[best]:.0f}, {nearer} ({how})")

    def _figures(self, trails: Sequence[Trail], tokens: Mapping[str, Tensor]) -> Iterator[Figure]:
        unit, curves = "nats per token", {n: {t.name: self._curve(t, n, tokens) for t in trails} for n in tokens}
        names = {"proxy": "Distance to the teacher", "golden": "Distance to the oracle"}
        if "golden" in tokens:
            path = {t.name: list(zip(curves["proxy"][t.name], curves["golden"][t.name], strict=True)) for t in trails}
            title = "Proxy against golden, from the right to the left"
            yield Figure(title=title, x="distance to the teacher", y="distance to the oracle", series=path)
        for name in tokens:
            series = {t.name: list(zip(t.steps, curves[name][t.name], strict=True)) for t in trails}
            yield Figure(title=f"{names[name]} over training", x="step", y=unit, series=series)
        logs: dict[str, list[tuple[float, float]]] = {}
        for trail in trails:
            points = zip(trail.steps, curves["proxy"][trail.name], strict=True)
            logs[trail.name] = [(math.log(s), math.log(d)) for s, d in points if s > 0 and d > 0]
            law = power_law(trail.steps, curves["proxy"][trail.name])
            if law is not None:
                ends = (logs[trail.name][0][0], logs[trail.name][-1][0])
                logs[f"early line of {trail.name}"] = [(x, law.a - law.b * x) for x in ends]
        title = "Does the distance to the teacher follow a power law?"
        yield Figure(title=title, x="ln(step)", y="ln(distance to the teacher)", series=logs)

    def _curve(self, trail: Trail, name: str, tokens: Mapping[str, Tensor]) -> list[float]:
        """Nats per token at every point."""
        return (trail.found[name].sum(1) / tokens[name].sum()).tolist()

    def _number(self, name: str, trail: Trail, value: float, note: str) -> Finding:
        return Finding(name=name, subject=trail.name, value=value, split=self.split, note=note)

    def _finding(self, name: str, subject: str, found: Interval, versus: str | None = None, note: str = "") -> Finding:
        return Finding(
            name=name, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="prompts", split=self.split, better="lower", unit=UNIT, note=note or NOTES.get(name, ""),
        )  # fmt: skip


NOTES = {
    "proxy": "KL from the teacher to the student, on answers of the teacher.",
    "golden": "KL from the oracle to the student, on answers of the oracle.",
    "proxy_js": "Jensen-Shannon divergence between teacher and student, on answers of the teacher.",
    "golden_js": "Jensen-Shannon divergence between oracle and student, on answers of the oracle.",
}
RISE = "Golden above its lowest point of the training, which is chosen on the other half of the prompts."
DETECTOR = "1 if the last three points are above the power law that the early half of the steps follows, else 0."
VERDICT = "1 if golden turned up while the student came nearer to the teacher, else 0."


def folders(pattern: str) -> dict[float, Path]:
    """Step -> folder, in order, for a pattern such as `out/checkpoint-*` or several divided by commas.

    The step is the last number in a folder's name. RunError if nothing is found or a folder has no number of its own.
    """
    found: dict[float, Path] = {}
    for part in pattern.split(","):
        path = Path(part.strip()).expanduser()
        root = Path(path.anchor)
        here = sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_dir())
        if not here:
            raise RunError(f"no folder matches {part.strip()}; write for example out/checkpoint-*")
        for folder in here:
            numbers = re.findall(r"\d+", folder.name)
            if not numbers:
                raise RunError(f"the name of {folder} holds no number of steps; call it checkpoint-100")
            if float(numbers[-1]) in found:
                raise RunError(f"{folder} and {found[float(numbers[-1])]} are both of step {numbers[-1]}; give one of them")
            found[float(numbers[-1])] = folder
    return dict(sorted(found.items()))


def _check_model(folder: Path, run: Run) -> None:
    """Refuse a folder that is no model, or one of another vocabulary."""
    size, common = getattr(load_config(str(folder)), "vocab_size", None), run.recipe.student.tokenizer(run)
    if size is not None and size < len(common):
        raise RunError(f"the model in {folder} knows {size:,} tokens, the teacher's tokenizer has {len(common):,}")
    if (folder / "tokenizer.json").exists():  # many trainers save none beside a checkpoint
        check_tokenizers(load_tokenizer(str(folder)), common)


def _apart(module: Any, batch: Any, said: Any) -> Tensor:
    """Forward KL and Jensen-Shannon from `said` to the module, [2, n], summed over the counted tokens of each row."""
    student, other = same_classes(logits_of(module, batch), said)
    weight = weight_of(batch)
    return torch.stack([d(student, other, weight=weight).double().sum(-1).cpu() for d in (ForwardKL(), JSD())])


def _change(trail: Trail, name: str, since: int) -> float:
    """The last value over that of point `since`, minus 1."""
    sums = trail.found[name].sum(1)
    return float(sums[-1] / sums[since]) - 1
