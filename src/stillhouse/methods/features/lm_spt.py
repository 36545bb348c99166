"""LM-SPT: LM-Aligned Semantic Distillation for Speech Tokenization (2025, arXiv 2506.16738): a codec's semantic tokens learn
from a teacher by way of the signal that they alone can restore.

    L = λ_d mean (E(x) - E(G_aux(z_sem)))² + λ_w mean (x - x̂)² + λ_s spectral(x, x̂) + λ_c commitment + λ_b codebook

x is a signal, x̂ = G(z_sem + z_ac) what comes back, z_sem the vectors of the semantic codebook, z_ac those of the residual
quantisation beside it, E the frozen teacher up to one layer, G_aux a small decoder of its own that sees nothing but z_sem
and is thrown away. The gradient goes through E and G_aux, and straight through the quantiser, into the semantic encoder.
Both inputs of E are signals, so tokens need no rate in common with the teacher, and no features are aligned.

`pooled` adds what the paper compares with: mean (P z_sem - pool(E(x)))², the teacher's features averaged to the tokens'
rate, P linear. With 0 for `distil` and `pooled` it is a codec without a teacher.

Differs from the paper / the authors' code: adversarial and feature-matching losses are left out, which need discriminators;
they make speech sound better and say nothing of its meaning. From memory or ours are: the square error of the samples, the
spectral loss (magnitudes, no mel bands), all weights but the 100 of λ_d, codebooks that learn by gradient and are fitted
anew now and then (models/quantised.py), convolutions where the paper's decoder is a Vocos, and P. The paper's teacher is the
encoder of Whisper-small; any module whose gradient reaches its input will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...audits.codes import Codes
from ...audits.validation import Validation
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.waves import Chords, Folder, Held
from ...models.adapters import Adapted
from ...models.codec import Codec, Decoder, Listener, SignalCodec
from ...models.own import OwnModule
from ...models.taps import layers, tapped
from ...objectives.reduce import weighted_sum
from ...objectives.spectra import spectral_gap
from ...teachers.module import ModuleTeacher
from ..classics.supervised import Supervised

PAPER = Paper(
    id="lm_spt",
    title="LM-SPT: LM-Aligned Semantic Distillation for Speech Tokenization",
    authors=("Daejin Jo", "Jeeyoung Yun", "Byungseok Roh", "Sungwoong Kim"),
    year=2025,
    arxiv="2506.16738",
    modality=("signal",),
    data=("labels", "unlabelled"),
    claim="Tokens that learn from a speech recogniser through the speech they restore keep more of what is said than tokens"
    " aligned with its features.",
)


@dataclass(frozen=True, kw_only=True)
class LMSPT:
    """Restore signals, and from the semantic tokens alone one that the teacher hears as the same."""

    distil: float = 100.0
    pooled: float = 0.0
    waveform: float = 1.0
    spectrum: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    windows: tuple[int, ...] = (32, 64, 128)  # samples, of the spectral loss
    auxiliary: int = 16  # channels of the auxiliary decoder
    layer: str | None = None  # of the teacher; None: the last one that has features in time
    refit_every: int = 10  # steps between fits of the codebooks; 0: they learn by gradient alone
    refit_on: int = 64  # training signals
    needs: ClassVar[frozenset[Kind]] = frozenset({"features"})
    asks_about_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.distil, self.pooled, self.waveform, self.spectrum, self.commitment, self.codebook) < 0:
            raise ValueError("weights are 0 or more")
        if min(self.auxiliary, self.refit_on) < 1 or self.refit_every < 0:
            raise ValueError("auxiliary and refit_on are 1 or more, refit_every 0 or more")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        terms = {
            "mean (E(x) - E(G_aux(z_sem)))²": self.distil, "mean (P z_sem - pool(E(x)))²": self.pooled,
            "mean (x - x̂)²": self.waveform, "spectral": self.spectrum, "commitment": self.commitment,
            "codebook": self.codebook,
        }  # fmt: skip
        return " + ".join(f"{weight:g} {name}" for name, weight in terms.items() if weight)

    def setup(self, student: nn.Module, run: Run) -> State:
        """The codec with an auxiliary decoder and P, as far as they are used; RunError for models that do not fit."""
        if not isinstance(student, SignalCodec):
            raise RunError(f"lm_spt trains a codec (models.codec.Codec), not {type(student).__name__}")
        signals = run.source.batch([0], 0)["inputs"]
        if self.spectrum and max(self.windows, default=0) > signals.shape[-1]:
            raise RunError(f"the signals have {signals.shape[-1]} samples: give shorter ones to train.method.windows")
        state: Any = Adapted(student)
        if self.distil or self.pooled:
            state.tap, features = self._tap(signals, run)
        if self.distil:
            state.adapters.append(Decoder(student.latent, self.auxiliary, student.strides))
        if self.pooled:
            state.adapters.append(nn.Linear(student.latent, features.shape[1]))  # pyright: ignore[reportPossiblyUnbound]
        return state

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all signals."""
        x = batch["inputs"]
        made = s.student(x)
        terms = {
            "commitment": (self.commitment, (made.semantic.commitment + made.acoustic.commitment).mean(1)),
            "codebook": (self.codebook, (made.semantic.codebook + made.acoustic.codebook).mean(1)),
        }
        if self.waveform:
            terms["waveform"] = (self.waveform, _apart(made.heard, x))
        if self.spectrum:
            terms["spectrum"] = (self.spectrum, spectral_gap(made.heard.squeeze(1), x.squeeze(1), self.windows))
        if self.distil or self.pooled:
            with torch.no_grad():
                wanted = _heard(run, x, s.tap)
        if self.distil:
            again = s.adapters[0](made.semantic.vectors, x.shape[-1])
            terms["distil"] = (self.distil, _apart(_heard(run, again, s.tap), wanted))  # pyright: ignore[reportPossiblyUnbound]
        if self.pooled:
            mine = s.adapters[-1](made.semantic.vectors).transpose(1, 2)
            pooled = F.adaptive_avg_pool1d(wanted, mine.shape[-1])  # pyright: ignore[reportPossiblyUnbound]
            terms["pooled"] = (self.pooled, _apart(mine, pooled))
        weight = batch.get("weight")
        weight = torch.ones(len(x), device=x.device) if weight is None else weight.float()
        logs = {name: weighted_sum(values, weight) for name, (_, values) in terms.items()}
        loss = torch.stack([factor * logs[name] for name, (factor, _) in terms.items()]).sum()
        yield Update(loss, count=weight.sum(), logs={name: value.detach() for name, value in logs.items()})

    def advance(self, s: State, logs: dict[str, float], run: Run) -> None:
        """Now and then, the codebooks are fitted to some of the training signals, and unused codes begin anew."""
        if self.refit_every and run.step % self.refit_every == 0:
            items = torch.randperm(len(run.source), generator=run.rng("refit on"))[: self.refit_on]
            signals = to_device(run.source.batch(items.tolist(), 0), run.device)["inputs"]
            s.student.refit(signals, run.rng("refit"))

    def _tap(self, signals: Tensor, run: Run) -> tuple[str, Tensor]:
        """(the layer, what it computes of these signals); RunError if there is none, or no gradient comes through it."""
        module = getattr(run.teacher, "module", None)
        if not isinstance(module, nn.Module):
            raise RunError(
                "the gradient goes through the teacher: it has to be a module here, not a server or stored signals"
            )
        x = signals.to(run.device).requires_grad_()
        name = self.layer
        if name is None:
            found = layers(module, {"inputs": x, "labels": torch.zeros(len(x))})
            timed = [layer.name for layer in found if len(layer.shape) == 2 and layer.shape[-1] > 1]
            if not timed:
                raise RunError("no layer of the teacher has features in time: name one with train.method.layer")
            name = timed[-1]
        with torch.enable_grad():
            features = _heard(run, x, name)
            reached = features.requires_grad and torch.autograd.grad(features.sum(), x, allow_unused=True)[0] is not None
        if self.distil and not reached:
            raise RunError(
                f"no gradient comes from layer {name!r} of the teacher back to the signals: it computes without one"
                " (no_grad, detach, numpy) on the way; change that, or name an earlier layer with train.method.layer"
            )
        if self.pooled and features.ndim != 3:
            raise RunError(
                f"pooled compares features in time [channels, steps]; layer {name!r} gives {list(features.shape[1:])}"
            )
        return name, features


def _heard(run: Run, signals: Tensor, tap: str) -> Tensor:
    """What the teacher computes of signals at one layer, with a gradient to them."""
    teacher: Any = run.teacher
    return tapped(teacher.module, {"inputs": signals}, (tap,))[1][tap]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The mean square difference of each item, [B]."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) - b.to(wide)).square().flatten(1).mean(1)


def recipe(scale: Scale = "small") -> Recipe:
    """Chords, 32 samples to a token, and a teacher that learned to name them (smoke, small); speech as `speech/*.wav` of
    16,000 samples a second, 640 to a token, and a Whisper encoder from `whisper.py`, as on the method's page (paper)."""
    paper = scale == "paper"
    big = pick(scale, smoke=Listener(width=16, stride=8, depth=1), small=Listener(width=48, stride=8), paper=Listener())
    codec = pick(
        scale,
        smoke=Codec(strides=(8, 4), width=8, latent=8, semantic=32, acoustic=32),
        small=Codec(strides=(8, 4), width=24, attention=1),
        paper=Codec(
            strides=(8, 5, 4, 4), width=512, latent=512, semantic=1024, acoustic=1024, levels=7, attention=8, heads=8
        ),
    )
    large = LMSPT(windows=(256, 512, 1024, 2048), auxiliary=256)
    method = pick(scale, smoke=LMSPT(distil=3.0, windows=(32, 64)), small=LMSPT(distil=3.0), paper=large)
    speech = Folder(path="speech", held=Held(standardised=False))
    train = Train(
        method=method, steps=pick(scale, smoke=60, small=300, paper=400_000),
        batch=pick(scale, smoke=32, small=32, paper=128),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=1e-4), schedule="cosine"),
    )  # fmt: skip
    learned = Train(
        method=Supervised(), student=big, steps=pick(scale, smoke=80, small=600, paper=0), batch=64, optim=Optim(lr=5e-3)
    )
    alone = replace(train, method=replace(method, distil=0.0))
    ours = ModuleTeacher(spec=big, stage="teacher")
    chords = Chords(classes=2, length=128, train=400, valid=100, test=200, tone=0.5, noise=0.1)
    return Recipe(
        id="lm_spt",
        student=codec,
        data=pick(scale, smoke=chords, small=Chords(), paper=speech),
        teachers={"teacher": ModuleTeacher(spec=OwnModule(function="whisper.py:small")) if paper else ours},
        stages={
            **({} if paper else {"teacher": learned}),
            "train": train,
            "alone": alone,
            "audit": Audit(subjects=("start", *(() if paper else ("teacher",)), "alone", "train"), checks=(Codes(),)),
        },
    )


def proof() -> Proof:
    """Against the same codec without a teacher, and with the teacher's features averaged to the tokens' rate."""
    ours = recipe("small")
    stages = {name: stage for name, stage in ours.stages.items() if name != "alone"}
    ours = replace(ours, stages={**stages, "audit": replace(stages["audit"], subjects=("start", "teacher", "train"))})
    plain = ours.set("train.method.distil", 0.0)
    return Proof(
        claim="A linear probe on a codec's semantic tokens tells chords apart better when the tokens learned from a"
        " classifier through the signals they restore than without a teacher, and than when they learned its averaged"
        " features, at equal steps.",
        arms={
            "ours": ours,
            "alone": plain,
            "pooled": plain.set("train.method.pooled", 3.0),
            "pooled_less": plain.set("train.method.pooled", 0.3),
        },
        metric="accuracy",
        judge=Validation(quantity="accuracy"),
        beats=("alone", "pooled", "pooled_less"),
        seeds=(0, 1, 2, 3, 4),
        minutes=8.0,
        tune={"train.optim.lr": (3e-3, 1e-2)},
        note="8 chords of 256 samples made up on the spot, a tone and noise in the way: 6,000 to learn from, 1,000 to choose"
        " by, 2,000 to judge; weights and order depend on the seed, the signals do not. The codec has 64 semantic codes;"
        " every arm takes 300 steps of 32 signals, and those with a teacher its passes on top. The weight 3 of `ours`, the"
        " tone, the noise and the codec's strides (one token for 32 samples) were chosen by few runs of seed 100 on the"
        " validation split, by the accuracy of `ours`; with one token for 8 samples it gained nothing. `pooled` has the"
        " weight 3 as well, `pooled_less` 0.3. The reports give reconstruction error and mutual information beside.",
    )
