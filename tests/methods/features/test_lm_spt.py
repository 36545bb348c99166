"""Distillation through the signal: the equation by hand, where gradients go, and which teachers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from language import run_of
from stillhouse.cli import launch
from stillhouse.cli.results import findings
from stillhouse.core.run import RunError
from stillhouse.data.waves import Chords
from stillhouse.methods.features.lm_spt import LMSPT, recipe
from stillhouse.models.codec import Codec, Hears, Listener, SignalCodec
from stillhouse.models.own import OwnModule
from stillhouse.objectives.spectra import spectral_gap
from stillhouse.teachers.module import Frozen, ModuleTeacher

SPEC = Codec(strides=(4, 2), width=6, latent=5, semantic=7, acoustic=4)
METHOD = LMSPT(
    distil=2.0,
    pooled=3.0,
    waveform=4.0,
    spectrum=5.0,
    commitment=6.0,
    codebook=7.0,
    windows=(8, 16),
    auxiliary=4,
    refit_on=8,
)
ALONE = replace(METHOD, distil=0.0, pooled=0.0)


def stood(folder: Path, method: LMSPT = METHOD, teacher: nn.Module | None = None) -> tuple[Any, Any, Any]:
    run = run_of(folder, SPEC, data=Chords(classes=4, length=50, train=24, valid=8, test=8))
    run.source = run.sources()["train"]
    torch.manual_seed(1)
    run.teachers = {"teacher": Frozen(teacher or Hears(4, Listener(width=6, stride=2)))}
    torch.manual_seed(2)
    s = method.setup(SignalCodec(SPEC), run)
    s.student.refit(run.source.batch(range(24), 0)["inputs"], run.rng("test"))
    return s, run, run.source.batch(range(6), 0)


def test_the_objective_by_hand(tmp_path: Path):
    s, run, batch = stood(tmp_path)
    (update,) = METHOD.step(s, batch, run)
    x, body, (auxiliary, project) = batch["inputs"], run.teacher.module.body, s.adapters
    coded = s.student(x)
    total = 0.0
    for item in range(6):
        one = x[item : item + 1]
        made = s.student(one)
        heard, again = body(one), body(auxiliary(made.semantic.vectors, 50))
        steps = project(made.semantic.vectors)[0]
        pooled = [heard[0, :, start:stop].mean(-1) for start, stop in bins(heard.shape[-1], len(steps))]
        parts = {
            "distil": 2 * (heard - again).square().mean(),
            "pooled": 3 * (steps - torch.stack(pooled)).square().mean(),
            "waveform": 4 * (made.heard - one).square().mean(),
            "spectrum": 5 * spectral_gap(made.heard[0], one[0], (8, 16)).mean(),
            "commitment": 6 * (made.semantic.commitment.mean() + made.acoustic.commitment.mean()),
            "codebook": 7 * (made.semantic.codebook.mean() + made.acoustic.codebook.mean()),
        }
        total += float(sum(parts.values()))  # pyright: ignore[reportArgumentType]
    assert float(update.loss.detach()) == pytest.approx(total, rel=1e-4) and float(update.count) == 6
    assert set(update.logs) == set(parts) and coded.heard.shape == x.shape
    assert METHOD.equation.startswith("2 mean (E(x) - E(G_aux(z_sem)))² + 3 mean (P z_sem - pool(E(x)))² + 4 mean")
    assert "E(" not in ALONE.equation


def bins(found: int, wanted: int) -> list[tuple[int, int]]:
    """Which of `found` steps each of `wanted` averages."""
    return [(i * found // wanted, -(-(i + 1) * found // wanted)) for i in range(wanted)]


def test_the_gradient_goes_through_the_teacher_into_the_semantic_side_alone(tmp_path: Path):
    only = LMSPT(distil=1.0, waveform=0.0, spectrum=0.0, commitment=0.0, codebook=0.0, auxiliary=4)
    s, run, batch = stood(tmp_path, only)
    (update,) = only.step(s, batch, run)
    update.loss.backward()

    def moved(module: nn.Module) -> bool:
        return any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in module.parameters())

    codec = s.student
    assert moved(codec.encoders[0]) and moved(codec.into[0]) and moved(s.adapters[0])
    assert not moved(codec.encoders[1]) and not moved(codec.decoder) and not moved(codec.books)
    assert all(p.grad is None for p in run.teacher.module.parameters()) and not run.teacher.module.training
    assert set(s.groups()) == {"student"}


def test_the_gradient_by_differences(tmp_path: Path):
    """Of the auxiliary decoder, through the teacher: no quantiser in between."""
    only = LMSPT(distil=1.0, waveform=0.0, spectrum=0.0, commitment=0.0, codebook=0.0, auxiliary=4)
    s, run, batch = stood(tmp_path, only)
    s.double(), run.teacher.module.double()
    batch = {**batch, "inputs": batch["inputs"].double()}
    weight = s.adapters[0].enter.weight
    (update,) = only.step(s, batch, run)
    update.loss.backward()
    values = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            weight[0, 0, 3] += step
            values.append(float(next(only.step(s, batch, run)).loss))
            weight[0, 0, 3] -= step
    assert float(weight.grad[0, 0, 3]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2)


def test_a_teacher_that_hears_no_difference_asks_for_none(tmp_path: Path):
    only = LMSPT(distil=1.0, waveform=0.0, spectrum=0.0, commitment=0.0, codebook=0.0)
    s, run, batch = stood(tmp_path, only)
    s.adapters[0].forward = lambda vectors, length: batch["inputs"].clone()
    assert float(next(only.step(s, batch, run)).loss) == 0.0


def test_without_a_teacher_it_is_a_codec(tmp_path: Path):
    s, run, batch = stood(tmp_path, ALONE)
    run.teachers = {}
    assert len(ALONE.setup(SignalCodec(SPEC), run).adapters) == 0
    (update,) = ALONE.step(s, batch, run)
    assert set(update.logs) == {"waveform", "spectrum", "commitment", "codebook"}


def test_weights_of_items_and_low_precision(tmp_path: Path):
    s, run, batch = stood(tmp_path)
    weighted = {**batch, "weight": torch.tensor([0.0, 1, 1, 0, 1, 1])}
    kept = {k: v[[1, 2, 4, 5]] for k, v in batch.items()}
    (ours,), (wanted,) = (METHOD.step(s, b, run) for b in (weighted, kept))
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-4) and float(ours.count) == 4
    s.to(torch.bfloat16)
    (one,) = METHOD.step(s, {"inputs": batch["inputs"][:1]}, run)
    one.loss.backward()
    assert bool(one.loss.isfinite()) and one.loss.dtype == torch.float32


def test_codebooks_are_fitted_when_it_is_time(tmp_path: Path):
    s, run, _ = stood(tmp_path, replace(METHOD, refit_every=5))
    before = {n: p.detach().clone() for n, p in s.named_parameters()}
    for step, changes in ((3, False), (5, True)):
        run.step = step
        with torch.no_grad():
            replace(METHOD, refit_every=5).advance(s, {}, run)
        changed = {n for n, p in s.named_parameters() if not torch.equal(p, before[n])}
        assert bool(changed) == changes and all("books" in n for n in changed)
    after = {n: p.detach().clone() for n, p in s.named_parameters()}
    with torch.no_grad():
        replace(METHOD, refit_every=0).advance(s, {}, run)
    assert all(torch.equal(p, after[n]) for n, p in s.named_parameters())


class Deaf(nn.Module):
    """Features in time through which no gradient comes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 3), nn.Conv1d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).detach()).mean(-1)


class Flat(nn.Module):
    """No features in time."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(50, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.flatten(1))


def test_which_teachers_will_do(tmp_path: Path):
    with pytest.raises(RunError, match="no gradient comes from layer 'second' of the teacher"):
        stood(tmp_path / "a", teacher=Deaf())
    s, _, _ = stood(tmp_path / "b", replace(METHOD, layer="first"), Deaf())
    assert s.tap == "first"
    assert stood(tmp_path / "c", replace(METHOD, distil=0.0), Deaf())[0].tap == "second"
    with pytest.raises(RunError, match="no layer of the teacher has features in time"):
        stood(tmp_path / "d", teacher=Flat())
    flat = replace(METHOD, layer="body")
    with pytest.raises(RunError, match=r"layer 'body' gives \[4\]"):
        stood(tmp_path / "e", flat, Flat())
    stood(tmp_path / "f", replace(flat, pooled=0.0), Flat())  # features without time can be told from signals, too
    s, run, _ = stood(tmp_path / "g")
    assert s.tap == "body.4" or s.tap == "body.5" or s.tap == "body"
    with pytest.raises(RunError, match="no layer 'bodi'; did you mean 'body'"):
        replace(METHOD, layer="bodi").setup(SignalCodec(SPEC), run)
    run.teachers = {"teacher": object()}
    with pytest.raises(RunError, match="it has to be a module here"):
        METHOD.setup(SignalCodec(SPEC), run)


def test_refusals(tmp_path: Path):
    _, run, _ = stood(tmp_path)
    with pytest.raises(RunError, match=r"trains a codec \(models.codec.Codec\), not Flat"):
        METHOD.setup(Flat(), run)
    with pytest.raises(RunError, match="the signals have 50 samples: give shorter ones"):
        replace(METHOD, windows=(64,)).setup(SignalCodec(SPEC), run)
    faults: tuple[dict[str, Any], ...] = ({"distil": -1.0}, {"auxiliary": 0}, {"refit_every": -1})
    for wrong in faults:
        with pytest.raises(ValueError, match="or more"):
            LMSPT(**wrong)


def test_a_teacher_from_a_users_file(tmp_path: Path):
    """Alone on unlabelled signals: no stage of ours trains it."""
    import numpy

    numpy.savez(tmp_path / "mine.npz", signals=numpy.random.default_rng(0).normal(size=(40, 64)))
    (tmp_path / "ear.py").write_text(
        "from torch import nn\ndef ear(width):\n    return nn.Sequential(nn.Conv1d(1, width, 16, 4), nn.ReLU())\n"
    )
    made = recipe("smoke").set("data", replace_data(tmp_path))
    spec = OwnModule(function=str(tmp_path / "ear.py") + ":ear", kwargs={"width": 5})
    made = made.set("teachers.teacher", ModuleTeacher(spec=spec))
    made = made.set("train.method.windows", (16,)).set("alone.method.windows", (16,))
    made = made.set("train.steps", 2).set("alone.steps", 2)
    stages = {n: stage for n, stage in made.stages.items() if n != "teacher"}
    made = replace(made, stages=stages).set("audit.subjects", ("start", "alone", "train"))
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    found = {(f.name, f.subject) for f in findings(run.folder)}
    assert ("reconstruction", "train") in found and not any(name == "accuracy" for name, _ in found)


def replace_data(folder: Path) -> Any:
    from stillhouse.data.waves import Npz

    return Npz(path=str(folder / "mine.npz"))


def test_pooling_is_torchs(tmp_path: Path):
    """`bins` above is how adaptive pooling divides, also where tokens are more than features."""
    x = torch.randn(1, 2, 7)
    for wanted in (3, 7, 11):
        ours = torch.stack([x[..., a:b].mean(-1) for a, b in bins(7, wanted)], -1)
        assert torch.allclose(ours, F.adaptive_avg_pool1d(x, wanted), atol=1e-6)
