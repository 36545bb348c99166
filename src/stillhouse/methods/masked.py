"""What papers on masked autoencoders share: plain pre-training, the teacher, and the experiment, so that numbers compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ..audits.classification import Classification
from ..core.method import Method, State, Update
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.run import Run, RunError
from ..core.signal import Batch, Kind
from ..core.stage import Audit, Train
from ..data.images import Augment, Digits, Folder, Known, Split
from ..models.call import weight_of
from ..models.masked import Masked, MaskedAutoencoder, Pretrained, noise, visible
from ..models.vision import ViT
from ..objectives.reduce import weighted_sum
from ..teachers.lineage import Elder, Lineage
from .classics.supervised import Supervised
from .images import SMALL

FEW = Split(labels=5)
WHOLE = Folder(path="imagenet", size=224, split=Split(valid=0.01, test=0.04), augment=Augment(crop=0.2, flip=True))
RATES = (1e-3, 3e-3)
NOTE = (
    "MNIST at 14 x 14 pixels: 2,000 images to pre-train on, of which 5 of each digit have a label, 1,000 to choose by,"
    " 10,000 to judge. The teacher is a vision transformer of 204,000 parameters, pre-trained as a masked autoencoder for"
    " 600 steps of 64 images; the student has 53,000 and is pre-trained for 400 steps. Both are fine-tuned for 150 steps"
    " of 32 images. Weights, order and which labels are known depend on the seed, the images do not."
)


@dataclass(frozen=True, kw_only=True)
class MAE:
    """Tell the pixels of hidden patches (He et al. 2021, arXiv 2111.06377); no teacher.

    L = mean over hidden patches and their pixels of (x - x̂)², x at mean 0 and variance 1 in every patch if `normalised`.
    """

    ratio: float = 0.75  # of the patches that are hidden
    normalised: bool = True
    needs: ClassVar[frozenset[Kind]] = frozenset()
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share(self.ratio)

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=autoencoder(student, run, "the student"))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        kept = seen(s.student, batch, run, self.ratio)
        encoded = s.student.encode(batch["inputs"], kept)[-1]
        decoded = s.student.decode(encoded, kept)[-1]
        gap = s.student.pixel_gap(batch["inputs"], decoded, kept, normalised=self.normalised)
        yield summed(batch, pixels=(1.0, gap))


class Sight(Elder):
    """A masked autoencoder as teacher: it computes features, and has no answers."""

    gives: frozenset[Kind] = frozenset({"features"})


@dataclass(frozen=True, kw_only=True)
class MaskedTeacher(Lineage):
    """As a lineage of pre-training stages: each is taught by the one before, every other stage by the last that is done."""

    def build(self, run: Run) -> Sight:
        """The teacher; RunError for a stage that the recipe does not have."""
        found = super().build(run)
        return Sight(found.stages, run)


def share(ratio: float) -> None:
    """ValueError unless some patches are seen and some are not."""
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"ratio, the share of hidden patches, must be between 0 and 1, not {ratio}")


def autoencoder(module: nn.Module, run: Run, owner: str) -> MaskedAutoencoder:
    """The module; RunError if it is no masked autoencoder, or for other images than those of this stage."""
    if not isinstance(module, MaskedAutoencoder):
        raise RunError(f"{owner} must be a masked autoencoder (models.masked.Masked), not {type(module).__name__}")
    shape = getattr(run.source, "shape", module.shape)
    if tuple(shape) != tuple(module.shape):
        raise RunError(
            f"{owner} reads images of {list(module.shape)}, and those of stage {run.stage!r} are {list(shape)}: give that "
            f"stage images of the same shape, with --set {run.stage}.data=..."
        )
    return module


def both(student: nn.Module, run: Run) -> tuple[MaskedAutoencoder, MaskedAutoencoder]:
    """Student and teacher, which see the same patches; RunError if they cannot."""
    own = autoencoder(student, run, "the student")
    theirs = autoencoder(getattr(run.teacher, "module", nn.Module()), run, "the teacher")
    if (own.grid, own.tokens) != (theirs.grid, theirs.tokens):
        raise RunError(
            f"student and teacher must divide an image alike: {own.grid} patches and {own.tokens} tokens before them, and "
            f"{theirs.grid} and {theirs.tokens}; set `patch` and `class_token` of both encoders to the same"
        )
    return own, theirs


def seen(module: MaskedAutoencoder, batch: Batch, run: Run, ratio: float) -> Tensor:
    """The numbers `[B, K]` of the patches that all who look at this batch see."""
    return visible(noise(batch, module.patches, run), ratio)


def summed(batch: Batch, **terms: tuple[float, Tensor]) -> Update:
    """One update: weight times value [B] of each term, summed over the items."""
    weight = weight_of(batch)
    logs = {name: weighted_sum(values, weight) for name, (_, values) in terms.items()}
    loss = sum(factor * logs[name] for name, (factor, _) in terms.items())
    assert isinstance(loss, Tensor)
    return Update(loss, count=weight.sum(), logs={name: value.detach() for name, value in logs.items()})


# -- the experiment --------------------------------------------------------------------------------------------------


def student(scale: Scale) -> Masked:
    """14 x 14 pixels in 49 patches at small; ViT-B at paper, its decoder 512 wide and 8 deep."""
    return pick(
        scale,
        smoke=Masked(encoder=ViT(patch=2, width=16, depth=2), width=16, depth=1),
        small=Masked(encoder=ViT(patch=2, width=32, depth=4), depth=1),
        paper=Masked(encoder=ViT(patch=16, width=768, depth=12, heads=12), width=512, depth=8, heads=16),
    )


def teacher(scale: Scale) -> Masked:
    """Twice as wide; ViT-L at paper."""
    return pick(
        scale,
        smoke=Masked(encoder=ViT(patch=2, width=24, depth=3), width=16),
        small=Masked(encoder=ViT(patch=2, width=64, depth=4)),
        paper=Masked(encoder=ViT(patch=16, width=1024, depth=24, heads=16), width=512, depth=8, heads=16),
    )


def data(scale: Scale, train: int = 2000) -> Any:
    """Digits (smoke), `train` images of MNIST if it is found (small), both with few labels; a folder `imagenet` (paper)."""
    return pick(scale, smoke=Digits(split=replace(FEW, test=0.3)), small=replace(SMALL, train=train, split=FEW), paper=WHOLE)


def pretraining(scale: Scale, method: Method, **more: Any) -> Train:
    """A stage on all images, with or without labels; 100 epochs of ImageNet at paper."""
    steps = pick(scale, smoke=30, small=400, paper=31_250)
    optim = Optim(lr=pick(scale, smoke=5e-3, small=3e-3, paper=2.4e-3), weight_decay=0.05, schedule="cosine")
    return Train(
        method=method, **{"steps": steps, "batch": pick(scale, smoke=32, small=64, paper=4096), "optim": optim, **more}
    )


def taught(scale: Scale, model: Masked | None = None) -> Train:
    """The teacher's pre-training."""
    made = pretraining(scale, MAE(), student=model or teacher(scale))
    return replace(made, steps=pick(scale, smoke=made.steps, small=600, paper=16 * made.steps))  # 1,600 epochs at paper


def tuning(scale: Scale, model: Any, method: Method | None = None) -> Train:
    """A stage on the labelled images; mixup and CutMix at paper."""
    mixed = replace(WHOLE, augment=Augment(crop=0.08, flip=True, mixup=0.8, cutmix=1.0))
    few = Known(every=False)
    return Train(
        method=Supervised() if method is None else method, student=model,
        steps=pick(scale, smoke=60, small=150, paper=125_000), batch=pick(scale, smoke=32, small=32, paper=1024),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=1e-3, paper=2e-3), weight_decay=0.05, schedule="cosine"),
        data=pick(scale, smoke=few, small=few, paper=mixed),
    )  # fmt: skip


def judged(*subjects: str) -> Audit:
    """How well they classify; the last is compared with each."""
    return Audit(subjects=subjects, checks=(Classification(),))


def tuned(id: str, scale: Scale, stage: Train | None, own: Masked) -> Recipe:
    """An arm that needs no teacher: pre-trained by `stage` or not at all, then fine-tuned."""
    before = {} if stage is None else {"train": stage}
    last = tuning(scale, Pretrained(stage=None if stage is None else "train"))
    return Recipe(id=id, student=own, data=data(scale), stages={**before, "tuned": last, "audit": judged("start", "tuned")})
