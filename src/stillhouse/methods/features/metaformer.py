"""MetaFormer Baselines for Vision (Yu et al. 2022, arXiv 2210.13452): does it matter what mixes the positions?

    x <- r1 x + mixer(norm(x)),     x <- r2 x + W2 StarReLU(W1 norm(x)),     StarReLU(a) = s relu(a)² + b

x [B, C, H, W] is what a block of a network reads and writes. `mixer` is what lets one position know of another: nothing,
a random matrix that is never learned, a mean of neighbours, convolutions, or attention (`models.metaformer`). W1 and W2
are the same for all positions. r1 and r2 (one for each channel, in the last two stages), s and b (one for each
activation) are learned. The paper's finding is that the structure does most of the work: with no mixer at all a network
still classifies ImageNet well.

It is a benchmark of networks and no way to distil. Here it asks which of them to take for a student: five mixers at equal
numbers of parameters learn from one teacher (`classics/hinton`), and `Operations` says what an image costs each.

Differs from the paper / the authors' code: the networks are theirs at the sizes of the paper, without LayerScale (off
there by default) and the dropouts but for `drop_path`. Ours is the experiment: the paper trains without a teacher, at
each network's own size and norm. At `small` all have the norm over channels, so that nothing but the mixer (and the
strided convolutions and the mean at the end, which all have) carries anything from one position to another, and the
perceptrons' widths make up for the mixers' parameters. The counts of operations of an activation (GELU 14, StarReLU 4,
hence 71 % fewer) are the paper's, from memory; ImageNet, its optimizer and its augmentation are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...audits.classification import Classification
from ...core.engine import to_device
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.report import Finding
from ...core.run import Run
from ...core.stage import Subjects
from ...models.call import logits_of
from ...models.metaformer import MetaFormer, Mix
from ...models.taps import layers
from ...models.toys import MLP
from ..classics.hinton import Hinton
from ..images import BEST, RATES, alone, arm, images

PAPER = Paper(
    id="metaformer",
    title="MetaFormer Baselines for Vision",
    authors=(
        "Weihao Yu", "Chenyang Si", "Pan Zhou", "Mi Luo", "Yichen Zhou", "Jiashi Feng", "Shuicheng Yan", "Xinchao Wang",
    ),
    year=2022,
    arxiv="2210.13452",
    modality=("image",),
    data=("labels",),
    claim="A network of MetaFormer's structure learns well whatever mixes its positions, even if nothing does.",
)  # fmt: skip
ACTIVATIONS = {"ReLU": 1, "SquaredReLU": 2, "StarReLU": 4, "GELU": 14}  # operations for one number
RATIOS: Mapping[Mix, float] = {"identity": 6.0, "random": 6.0, "pool": 6.0, "conv": 2.16, "attention": 3.6}
PUBLISHED: Mapping[Mix, tuple[Mix, ...]] = {
    "identity": ("identity", "identity", "identity", "identity"),
    "random": ("identity", "identity", "random", "random"),
    "pool": ("pool", "pool", "pool", "pool"),
    "conv": ("conv", "conv", "conv", "conv"),
    "attention": ("conv", "conv", "attention", "attention"),
}


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What one item costs each model: multiplications in matrix products and convolutions, and operations in activations.

    Not counted: norms, means, additions, and activations that are functions and no modules, or none of `ACTIVATIONS`.
    Attention is counted as its two matrix products; how it is really computed (fused) is left out.
    """

    split: str = "test"  # whose first item is answered

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """Two findings about every subject."""
        batch = to_device(run.sources()[self.split].batch([0], 0), run.device)
        for name in subjects.names:
            module = subjects.load(name)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                logits_of(module, batch)
            spent: Counter[str] = Counter()
            for layer in layers(module, batch):
                spent[layer.kind] += torch.Size(layer.shape).numel()
            active = sum(each * spent[kind] for kind, each in ACTIVATIONS.items())
            yield Finding(name="multiplications", value=counter.get_total_flops() / 2, subject=name, better="lower")
            yield Finding(name="activation_operations", value=active, subject=name, better="lower")


def student(scale: Scale, mixer: Mix, **settings: Any) -> MetaFormer:
    """Two stages with this mixer, as many parameters whichever it is (smoke: not so); paper: the published S12, for images
    of 32 pixels."""
    if scale == "paper":
        norm = "channels" if mixer in ("conv", "attention") else "image"
        return MetaFormer(
            mixers=PUBLISHED[mixer], widths=(64, 128, 320, 512), depths=(2, 2, 6, 2), norm=norm, drop_path=0.1, **settings
        )
    widths, depths = ((16, 32), (2, 2)) if scale == "small" else ((8, 16), (1, 1))
    return MetaFormer(mixers=(mixer, mixer), widths=widths, depths=depths, ratio=RATIOS[mixer], **settings)


def taught(scale: Scale, learner: Any) -> Recipe:
    """The shared experiment with this student, which learns the teacher's outputs."""
    made = images("metaformer", scale, Hinton(), student=learner)
    adamw = Optim(lr=1e-3, weight_decay=0.05, schedule="cosine")
    return made.set("train.optim", adamw).set("alone.optim", adamw) if scale == "paper" else made


def recipe(scale: Scale = "small") -> Recipe:
    """Five students of one teacher, `train` being the one without a mixer, and that one with GELU and without a teacher:
    digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper)."""
    made = taught(scale, student(scale, "identity"))
    rivals = {mixer: student(scale, mixer) for mixer in RATIOS if mixer != "identity"}
    rivals |= {"gelu": student(scale, "identity", activation="gelu")}
    stages = dict(made.stages)
    audit = stages.pop("audit")
    stages |= {name: replace(stages["train"], student=spec) for name, spec in rivals.items()}
    subjects = ("start", "teacher", *rivals, "alone", "train")
    checks = (Classification(), Operations())
    return replace(made, stages={**stages, "audit": replace(audit, subjects=subjects, checks=checks)})


def proof() -> Proof:
    """No mixer, against the labels alone and a perceptron of as many parameters; the four mixers and GELU beside them."""
    ours = taught("small", student("small", "identity"))
    others = {mixer: student("small", mixer) for mixer in RATIOS if mixer != "identity"}
    specs = {**others, "gelu": student("small", "identity", activation="gelu"), "perceptron": MLP(width=113, depth=2)}
    return Proof(
        claim="A MetaFormer without a mixer learns well from a teacher: it classifies better than a perceptron of as many"
        " parameters that learns from the same teacher, and than itself without a teacher.",
        arms={"ours": arm(ours), **{name: arm(taught("small", spec)) for name, spec in specs.items()}, "alone": alone(ours)},
        metric="accuracy",
        judge=BEST,
        beats=("perceptron", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=12.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; a ConvNet of 73,000"
        " parameters teaches students of 36,300 to 36,400: a MetaFormer of two stages with no mixer (`ours`), the same with"
        " random matrices, pooling, convolutions or attention (`random`, `pool`, `conv`, `attention`; their perceptrons are"
        " narrower by what the mixer takes), with GELU (`gelu`), and a perceptron. Those five are shown beside, not to be"
        " beaten: the paper claims that no mixer does well, not that it does best. Every arm takes 400 steps of 64 images;"
        " the teacher's training and forward passes come on top where there is one. Hinton's temperature (4) and share"
        " (0.9) were not searched.",
    )
