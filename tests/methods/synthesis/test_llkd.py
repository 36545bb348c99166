"""LLKD: the loss against its equation, what is chosen, what is counted, and a user's own files from the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from language import write_jsonl
from stillhouse.audits.consumed import Consumed
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects
from stillhouse.methods.synthesis.llkd import LLKD, Choosing, recipe

CLASSES = 3


@dataclass
class Points:
    """Vectors with labels, confidences and the truth."""

    x: torch.Tensor
    labels: torch.Tensor
    confidence: torch.Tensor
    truth: torch.Tensor
    classes: int = CLASSES

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, items: Any, epoch: int) -> dict[str, Any]:
        i = torch.tensor(list(items))
        names = ("labels", "confidence", "truth")
        return {"inputs": self.x[i], "items": i, **{name: getattr(self, name)[i] for name in names}}


def standing(folder: Path, method: LLKD, rows: int = 40, steps: int = 0) -> tuple[Choosing, Run, Points]:
    """A state after so many steps over batches of ten, with a student that stays as it is."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (rows,), generator=rng)
    wrong = torch.rand(rows, generator=rng) < 0.3
    source = Points(
        torch.randn(rows, 4, generator=rng), labels, torch.rand(rows, generator=rng).clamp(0.01),
        torch.where(wrong, (labels + 1) % CLASSES, labels),
    )  # fmt: skip
    run = Run(folder / "run", device=torch.device("cpu"))
    run.source, run.horizon = source, 1000
    torch.manual_seed(0)
    s: Any = method.setup(nn.Linear(4, CLASSES), run)
    for step in range(steps):
        run.step = step
        list(method.step(s, source.batch(range(step * 10 % rows, step * 10 % rows + 10), 0), run))
        method.advance(s, {}, run)
    run.step = steps
    return s, run, source


def test_the_loss_is_the_weighted_mean_over_those_chosen(tmp_path: Path) -> None:
    method = LLKD(momentum=0.5)
    s, run, source = standing(tmp_path, method, steps=3)
    batch = source.batch(range(20), 0)
    q = s.student(batch["inputs"]).softmax(-1).detach().double()
    tau_t, tau_s = s.sure.thresholds().tolist(), s.unsure.thresholds().tolist()
    total = weights = 0.0
    chosen: list[int] = []
    for i in range(20):
        y, c, u = int(batch["labels"][i]), float(batch["confidence"][i]), 1 - float(q[i].max())
        if c >= tau_t[y] and u >= tau_s[y]:
            chosen.append(i)
            weights += c * u
            total -= c * u * math.log(float(q[i, y]))
    assert 0 < len(chosen) < 20
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) == pytest.approx(total, rel=1e-5)
    assert float(update.count) == pytest.approx(weights, rel=1e-5)
    assert s.noted[-1][0].tolist() == chosen


def test_without_choice_and_weights_it_is_supervised_learning(tmp_path: Path) -> None:
    method = LLKD(by_teacher=False, by_student=False)
    s, run, source = standing(tmp_path, method, steps=1)
    batch = source.batch(range(12), 0)
    (update,) = method.step(s, batch, run)
    plain = nn.functional.cross_entropy(s.student(batch["inputs"]), batch["labels"], reduction="sum")
    assert float(update.loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6) and float(update.count) == 12


@pytest.mark.parametrize("by_teacher", [True, False])
def test_each_half_chooses_and_weighs_alone(tmp_path: Path, by_teacher: bool) -> None:
    method = LLKD(by_teacher=by_teacher, by_student=not by_teacher)
    s, run, source = standing(tmp_path, method, steps=2)
    batch = source.batch(range(20), 0)
    value = batch["confidence"] if by_teacher else 1 - s.student(batch["inputs"]).softmax(-1).amax(-1).detach()
    taus = (s.sure if by_teacher else s.unsure).thresholds()[batch["labels"]]
    (update,) = method.step(s, batch, run)
    assert float(update.count) == pytest.approx(float(value[value.double() >= taus].sum()), rel=1e-5)


def test_the_first_batch_is_only_looked_at_and_reading_changes_nothing(tmp_path: Path) -> None:
    method = LLKD()
    s, run, source = standing(tmp_path, method)
    before = {name: value.clone() for name, value in s.state_dict().items()}
    (update,) = method.step(s, source.batch(range(10), 0), run)
    assert update.count == 0 and not update.loss.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in s.state_dict().items())  # `step` reads, `advance` moves
    method.advance(s, {}, run)
    assert s.sure.ready and int(s.used.sum()) == 0
    assert float(s.sure.means[-1] / (1 - 0.95)) == pytest.approx(float(source.confidence[:10].double().mean()))


def test_parts_of_a_batch_choose_what_the_whole_does(tmp_path: Path) -> None:
    method = LLKD(examples=3.0)
    found: list[Any] = []
    for parts in ([range(20)], [range(7), range(7, 8), range(8, 20)]):
        s, run, source = standing(tmp_path / str(len(parts)), method, steps=3)
        updates = [next(iter(method.step(s, source.batch(part, 0), run))) for part in parts]
        method.advance(s, {}, run)
        sums = [sum(float(torch.as_tensor(getattr(u, name)).detach()) for u in updates) for name in ("loss", "count")]
        found.append((sums, s.used.tolist(), s.sure.thresholds().tolist(), s.passing.means.tolist()))
    assert found[0][1] == found[1][1] and found[0][3] == found[1][3]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][2] == pytest.approx(found[1][2], rel=1e-12)


def test_as_many_examples_as_are_wanted_on_average(tmp_path: Path) -> None:
    method = LLKD(by_teacher=False, by_student=False, examples=2.0)
    s, _, _ = standing(tmp_path, method, steps=401)
    assert float(s.examples) / 400 == pytest.approx(2.0, abs=0.25)  # 10 pass, each is taken with a chance of a fifth
    assert int((s.used > 0).sum()) == 40


def test_what_is_counted_at_the_end(tmp_path: Path) -> None:
    method = LLKD(by_student=False)
    s, run, source = standing(tmp_path, method)
    run.stage, run.horizon = "train", 8
    learned: list[int] = []
    for step in range(8):
        run.step = step
        list(method.step(s, source.batch(range(step % 4 * 10, step % 4 * 10 + 10), 0), run))
        learned += [i for items, _ in s.noted for i in items.tolist()]
        method.advance(s, {}, run)
    (event,) = [e for e in run.read("events.jsonl") if e["event"] == "consumed"]
    wrong = (source.labels != source.truth).tolist()
    assert (event["examples"], event["rows"], event["of"]) == (len(learned), len(set(learned)), 40)
    assert event["wrong_labels_learned"] == pytest.approx(sum(wrong[i] for i in learned) / len(learned))
    assert event["wrong_labels_of_all"] == pytest.approx(sum(wrong) / 40)
    told = {f.name: f.value for f in Consumed(stages=("train", "other"))(run, Subjects(run, ()))}
    assert told["rows_used_share"] == len(set(learned)) / 40 and told["gradient_examples"] == len(learned)
    source.truth[:] = -1  # nobody knows it: then nothing is said about it
    run.step = 7
    list(method.step(s, source.batch(range(10), 0), run))
    method.advance(s, {}, run)
    assert "wrong_labels_learned" not in run.read("events.jsonl")[-1] and run.read("events.jsonl")[-1]["rows"] > 0


def test_settings_and_data_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="momentum"):
        LLKD(momentum=1.0)
    with pytest.raises(ValueError, match="examples"):
        LLKD(examples=0.0)
    s, run, source = standing(tmp_path, LLKD())
    run.source = type("Plain", (), {"batch": lambda self, items, epoch: {"labels": torch.zeros(1)}})()
    with pytest.raises(RunError, match="synth.classify.Classify"):
        LLKD().setup(nn.Linear(4, 3), run)


def test_the_choice_finds_the_labels_that_are_right(tmp_path: Path) -> None:
    """With confidences that mean something: what the teacher's half chooses is right more often than the rest."""
    from stillhouse.core.stage import execute
    from stillhouse.synth.synthesize import made_rows

    made = recipe("smoke")
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(type(made)(**{**made.__dict__, "stages": {"label": made.stages["label"]}}), run)
    rows = sorted(made_rows(run, "label"), key=lambda row: -row["confidence"])
    right = [row["label"] == row["_truth"] for row in rows]
    half = len(rows) // 2
    assert sum(right[:half]) / half > sum(right) / len(right) > sum(right[half:]) / (len(rows) - half)


def test_own_files_from_the_command_line(tmp_path: Path, still: Callable[..., Any]) -> None:
    topics = {"birds": "sparrow owl falcon", "tools": "hammer saw chisel", "meals": "soup bread stew"}
    rows = [
        {"said": f"the {word} {i} is {name[:2]}{i % 3} thing", "kind": name}
        for name, words in topics.items() for word in words.split() for i in range(14)
    ]  # fmt: skip
    write_jsonl(tmp_path / "few.jsonl", rows[::3])
    write_jsonl(tmp_path / "all.jsonl", rows)
    (tmp_path / "new.txt").write_text("\n\n".join(row["said"] for row in rows), encoding="utf-8")
    own = "{use: data.labelled.Labelled, path: all.jsonl, text: said, label: kind, valid: 0.0, test: 0.0}"
    script = f"{{use: teachers.scripted.Scripted, script: {{use: synth.scripts.unsure.Unsure, data: {own}}}}}"
    result = still(
        "run", "llkd", "--scale", "paper", "--set", "student={use: models.text.NGrams, width: 8}",
        "--set", "data.path=few.jsonl", "--set", "data.text=said", "--set", "data.label=kind", "--set", "data.shots=3",
        "--set", f"teachers.teacher={script}", "--set", "stages.label.data.path=new.txt",
        "--set", "train.steps=60", "--set", "alone.steps=5", "--set", "train.batch=16", "--set", "train.optim.lr=0.03",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "artifacts" / "audit" / "data" / "value.json").read_text())
    told = {(f["name"], f["subject"]): f["value"] for f in found if "subject" in f and f.get("versus") is None}
    assert told["accuracy", "train"] > 0.8
    assert 0 < told["rows_used", "train"] < told["rows_made", "label"]
    assert told["wrong_labels_learned", "train"] <= 0.5
    again = still("run", str(folder))
    assert again.exit_code == 0, again.output
