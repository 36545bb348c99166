"""Distribution Shift Matters for Knowledge Distillation with Webly Collected Images
(Tang et al. 2023, arXiv 2307.11469): KD3.

    L = sigma(‖z_s - z_t‖) mean (g(F_s) - F_t)² + contrast (NTX(a_s, a_s') + NTX(a_t, a_t'))

F_s and F_t are the last maps of student and teacher, g a block of convolutions, z_t the teacher's logits, z_s = W_t mean
g(F_s) the student's: it classifies with the teacher's own last layer W_t, which stays as it is
(`models.borrowed.Borrowing`). x' is the image x in the style of another one: mean and deviation of every channel are mixed
with a share drawn from Beta(style, style). a are the vectors in front of W_t, brought to 128 numbers and length 1 by a
linear map for each network; NTX is SimCLR's loss between x and x'. The teacher is frozen: of its part only the linear map
learns.

No label is read. The images come from elsewhere than the teacher's, so they are selected anew in every round: with
z = c z_t + (1 - c) z_s and its softmax, an image stays whose largest probability is above

    least b_k / (2 - b_k),   b_k = n_k / max n,   c = 1 - exp(-5 (1.5 t - 1)²) up to t = 1/2, then 0

k is its class and n_k how many images of the pool have it, t the share of the run that is done: the teacher decides early,
the student late. (The code's 160 and 120 of 240 epochs are 1 / 1.5 and 1/2 of the run.)

Sure, from tangjialiang97/KD3: all of the above. `contrast` is 0.001, the temperature of NTX 0.3, `least` 0.95.

Differs from the paper / the authors' code: rounds are shares of the run and not passes over the data, which may be many in a
small pool; 240 of them in `paper`. Images that are not selected are left out of their batch, which is then smaller, where
the code fills its batches. Both views go through the student in one pass. A teacher whose head does not read the mean of a
map (a transformer) is compared at the vector that it reads. Which vectors the code embeds, we do not know: here it is what
W_t reads. The rates of `small` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.method import Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit
from ...data.images import Digits, Split, Standard
from ...data.mixstyle import restyled
from ...data.pools import Mine, Mined, Pictures, Pool, Shifted, Strays, batches, plain
from ...models.adapters import Adapted
from ...models.borrowed import Borrower, Borrowing, Target, plain_logits, target, teacher_module
from ...models.taps import as_map, tapped
from ...models.vision import ResNet
from ...objectives.contrastive import nt_xent
from ...objectives.maps import feature_gap, same_size, unit
from ..classics.hinton import Hinton
from ..images import BEST, CIFAR, WIDER, images

PAPER = Paper(
    id="kd3",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    authors=("Jialiang Tang", "Shuo Chen", "Gang Niu", "Masashi Sugiyama", "Chen Gong"),
    year=2023,
    arxiv="2307.11469",
    venue="ICCV 2023",
    modality=("image",),
    data=("unlabelled",),
    claim="Without the teacher's data, images of the web teach as well if they are selected and the shift is trained away.",
)


class Met(Adapted):
    """The student with both linear maps, and where it meets its teacher: at its map `tap`, and at what its head reads."""

    def __init__(self, student: nn.Module, embeddings: list[nn.Linear], found: Target, **parts: Tensor):
        super().__init__(student, embeddings, **parts)
        self.tap, self.read = found.tap, f"{found.head}:in"


@dataclass(frozen=True, kw_only=True)
class KD3:
    """Learn from the images that both find clear, in front of the teacher's own head, whatever style they have."""

    contrast: float = 0.001  # weight of the contrastive terms
    temperature: float = 0.3  # of these
    embedding: int = 128  # numbers that these compare
    style: float = 0.1  # of the Beta distribution that styles are mixed with
    least: float = 0.95  # probability of an image of the most frequent class; 0: every image is selected
    rounds: int = 240  # how often the images are selected
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    compares_items: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.style <= 0 or not 0 <= self.least <= 1:
            raise ValueError("rounds must be 1 or more, style above 0, and least between 0 and 1")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"sigma(‖z_s - z_t‖) mean (g(F_s) - F_t)² + {self.contrast:g} (NTX(s, s') + NTX(t, t'))"

    def setup(self, student: nn.Module, run: Run) -> Met:
        """The student, both linear maps, what the teacher says of the pool [N, V], and which images are selected [N]."""
        if not isinstance(student, Borrower):
            raise RunError(
                "the student classifies with its teacher's head: set student to {use: models.borrowed.Borrowing, own: ...}"
            )
        if "items" not in run.source.batch([0], 0):
            raise RunError("images are selected by their number: give data of images, such as data.pools.Pictures")
        first = next(batches(plain(run.source), 2, run))
        found = target(teacher_module(run, "teacher"), first, run.source.classes)
        run.teacher.tap([found.tap, f"{found.head}:in"])  # type: ignore[attr-defined]
        width = student.head.in_features
        embeddings = [nn.Linear(width, self.embedding) for _ in range(2)]
        pool = list(batches(plain(run.source), 256, run))
        said = torch.cat([run.teacher(batch, frozenset({"logits"})).need("logits").float() for batch in pool])
        state = Met(student, embeddings, found, said=said, kept=torch.ones(len(said), device=said.device))
        self._select(state, 0, run)
        return state

    def step(self, s: Met, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the images that are selected; of fewer than two nothing is learned."""
        here = s.kept[batch["items"]] > 0
        x = batch["inputs"][here]
        if len(x) < 2:
            yield Update(torch.zeros((), device=x.device), count=0, logs={"feature": 0.0, "contrast": 0.0})
            return
        partner, share = torch.randperm(len(x)), torch.distributions.Beta(self.style, self.style).sample((len(x),))
        both = torch.cat([x, restyled(x, partner.to(x.device), share.to(x))])
        seen: Batch = {"inputs": both, "labels": batch["labels"][here].repeat(2)}
        logits, mine = tapped(s.student, seen, ["transfer", "head:in"])
        signal = run.teacher(seen, self.needs)
        theirs = signal.need("features")
        n = len(x)
        apart = torch.as_tensor(logits)[:n].float() - signal.need("logits")[:n].float()
        sure = apart.detach().norm(dim=-1).sigmoid()
        gap = sure * feature_gap(*same_size(mine["transfer"][:n], as_map(theirs[s.tap])[:n]))
        pairs = ((s.adapters[0], mine["head:in"]), (s.adapters[1], theirs[s.read]))
        views = [unit(embed(vectors)) for embed, vectors in pairs]
        told = sum(nt_xent(view[:n], view[n:], temperature=self.temperature).sum() for view in views)
        loss = gap.sum() + self.contrast * told
        yield Update(loss, count=n, logs={"feature": gap.sum().detach(), "contrast": torch.as_tensor(told).detach()})

    def advance(self, s: Met, logs: Mapping[str, float], run: Run) -> None:
        """Select anew where a round begins."""
        done, next_ = (step * self.rounds // run.horizon for step in (run.step, run.step + 1))
        if done != next_ and run.step + 1 < run.horizon:
            self._select(s, next_, run)

    def _select(self, s: Met, number: int, run: Run) -> None:
        c = trust((number + 1) / self.rounds)
        pool = batches(plain(run.source), 256, run)
        own = torch.cat([plain_logits(s.student, batch).float() for batch in pool])
        kept = clear(c * s.said + (1 - c) * own, self.least)
        s.kept.copy_(kept)
        run.event("selected", round=number, images=int(kept.sum()), of=len(kept))


def trust(done: float) -> float:
    """c, how much the teacher has to say in the selection, when this share of the run is done."""
    return 1 - math.exp(-5 * (1.5 * done - 1) ** 2) if done <= 0.5 else 0.0


def clear(logits: Tensor, least: float) -> Tensor:
    """[N] true where the largest probability is above the threshold of its class; logits [N, V]."""
    top = logits.softmax(-1).max(-1)
    count = top.indices.bincount(minlength=logits.shape[-1])
    share = count / count.max()
    return top.values > (least * share / (2 - share))[top.indices]


def recipe(scale: Scale = "small") -> Recipe:
    """A teacher of private images, and a pool that looks different and has strays in it.

    Digits (smoke) and MNIST (small) of which the teacher has seen a part; the pool is the other part, a tenth
    of it negative, all noisy and turned, and pieces of photographs. CIFAR-100 and the pictures in the folder `pool`
    (paper). The stage `plain` is a student with a head of its own that learns the teacher's outputs on the whole pool.
    """
    few = Split(valid=0.2, test=0.3, labels=pick(scale, smoke=40, small=100, paper=None), unlabelled=False)
    small = Standard(
        name="mnist", train=3000, valid=1000, halved=1, split=few, otherwise=Digits(split=replace(few, labels=40))
    )
    own = pick(scale, smoke=Digits(split=few), small=small, paper=CIFAR)
    shifted = Shifted(negative=pick(scale, smoke=0.0, small=0.1, paper=0.0), noise=0.05, degrees=15.0)
    web: Any = Pool(parts={"shifted": shifted, "strays": Strays(count=pick(scale, smoke=60, small=800, paper=0))})
    if scale == "paper":
        web = Pictures(path="pool")
    teacher = pick(
        scale, smoke=ResNet(depth=6, stem=4, widths=(8, 16)), small=ResNet(depth=8, stem=8, widths=(16, 32, 64)), paper=None
    )
    thin = pick(
        scale, smoke=ResNet(depth=6, stem=4, widths=(4, 8)), small=ResNet(depth=8, stem=8, widths=(8, 16, 32)), paper=None
    )
    plain = images("kd3", scale, Hinton(alpha=1.0), data=own, teacher=teacher, student=thin)
    first, usual = plain.stages["teacher"], plain.stages["train"]
    method = KD3(rounds=pick(scale, smoke=4, small=20, paper=240))
    train = replace(usual, method=method, student=Borrowing(own=plain.student), data=web)
    if scale == "smoke":
        train = replace(train, steps=120, optim=Optim(lr=3e-2))
    if scale == "paper":
        sgd = Optim(name="sgd", lr=0.05, weight_decay=5e-4, schedule="cosine", warmup=0.0, clip=None)
        train = replace(train, batch=1024, optim=sgd)
    audit = Audit(subjects=("start", "teacher", "plain", "train"), checks=plain.stages["audit"].checks)
    stages = {"teacher": first, "train": train, "plain": replace(usual, data=web), "audit": audit}
    return replace(plain, stages=stages)


def _arm(made: Recipe, stages: Mapping[str, Any], **changes: Any) -> Recipe:
    """The recipe with these stages between the teacher's and the student's, and the student's changed."""
    audit = replace(made.stages["audit"], subjects=("start", "train"))
    train = replace(made.stages["train"], **changes)
    return replace(made, stages={"teacher": made.stages["teacher"], **stages, "train": train, "audit": audit})


def proof() -> Proof:
    """Against plain distillation of the same student, on the whole pool and on what the teacher is sure of; without one part
    or the other."""
    ours = recipe("small")
    method: KD3 = ours.stages["train"].method
    pool = ours.stages["train"].data
    mine = {"mine": Mine(pool=pool, count=10**6, least=0.95, twin=1.0)}
    return Proof(
        claim="With 2,000 images that look different from the teacher's and 800 strays, a student that selects them in turns"
        " and learns in front of its teacher's own head classifies better than the same network, with that head,"
        " that learns the teacher's outputs on all of them, or on those that the teacher is sure of.",
        arms={
            "ours": _arm(ours, {}),
            "raw": _arm(ours, {}, method=Hinton(alpha=1.0)),
            "filtered": _arm(ours, mine, method=Hinton(alpha=1.0), data=Mined(own=False)),
            "unselected": _arm(ours, {}, method=replace(method, least=0.0)),
            "uncontrasted": _arm(ours, {}, method=replace(method, contrast=0.0)),
        },
        metric="accuracy",
        judge=BEST,
        beats=("raw", "filtered"),
        seeds=(0, 1, 2, 3, 4),
        minutes=8.0,
        tune=WIDER,
        note="MNIST at 14 x 14 pixels: 1,000 labelled images for the teacher, 10,000 to judge. Of the pool's 2,000"
        " digits a tenth are negative, all are noisy and turned by up to 15 degrees. Every arm takes 400 steps of up to"
        " 64 images and has the same student, a ResNet with a block of convolutions and its teacher's head behind it."
        " `ours` sees each image in two styles, so its steps take twice the passes, and leaves out of its batches what"
        " it does not select. The teacher takes 600 steps on its own images. How many are negative, the noise and the"
        " student's width were chosen on the validation split of seed 100. `unselected` and `uncontrasted` are ours"
        " without the one and the other, and not in the claim.",
    )
