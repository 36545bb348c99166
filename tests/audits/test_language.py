"""The audit's numbers against a computation by hand on dense logits, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, run_of, write_jsonl
from stillhouse.audits.language import HeldOutText, Samples
from stillhouse.core.report import Finding
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.tokens import Text
from stillhouse.models.call import cast
from stillhouse.models.hub import HubLM, load_model
from stillhouse.teachers.local import LocalLM


def audit_run(folders: Folders, folder: Path, *, teacher: Path | None = None, **split: float) -> Any:
    data = Text(path=str(write_jsonl(folder / "a.jsonl", chats(30))), length=48, **({"test": 0.4, "valid": 0.0} | split))
    student = HubLM(path=str(folders.student))
    return run_of(folder / "run", student, data=data, teacher=LocalLM(model=HubLM(path=str(teacher or folders.teacher))))


def numbers(run: Any, subjects: tuple[str, ...], **settings: Any) -> dict[tuple[str, str], Finding]:
    check = HeldOutText(**({"precision": "float32", "draws": 500, "ours": "start"} | settings))
    found = [f for f in check(run, Subjects(run, subjects)) if isinstance(f, Finding)]
    return {(f.subject, f.name if f.versus is None else f"{f.name} versus {f.versus}"): f for f in found}


@torch.no_grad()
def by_hand(run: Any, folder: Path, teacher: Path) -> dict[str, list[tuple[float, int]]]:
    """(sum over the counted tokens, how many) of every quantity and held-out document; long ones come in pieces."""
    mine, theirs = load_model(str(folder)), load_model(str(teacher))
    found: dict[str, dict[int, tuple[float, int]]] = {}
    for row in run.sources()["test"].rows:
        for d in row:
            tokens = torch.tensor([d.tokens])
            here = torch.tensor(d.counts[1:])
            q = mine(tokens).logits[0, :-1, :300].log_softmax(-1)[here].double()
            p = theirs(tokens).logits[0, :-1, :300].log_softmax(-1)[here].double()
            labels = tokens[0, 1:][here]
            values = {
                "nll": -q[torch.arange(len(labels)), labels], "kl": (p.exp() * (p - q)).sum(-1),
                "reverse_kl": (q.exp() * (q - p)).sum(-1), "agreement": (q.argmax(-1) == p.argmax(-1)).double(),
                "accuracy": (q.argmax(-1) == labels).double(),
            }  # fmt: skip
            for name, value in values.items():
                total, count = found.setdefault(name, {}).get(d.example, (0.0, 0))
                found[name][d.example] = total + float(value.sum()), count + len(labels)
    return {name: list(parts.values()) for name, parts in found.items()}


@pytest.mark.parametrize("name", ["teacher", "padded"])
def test_numbers_are_those_of_a_computation_by_hand(folders: Folders, tmp_path: Path, name: str) -> None:
    teacher = getattr(folders, name)
    run = audit_run(folders, tmp_path, teacher=teacher)
    found = numbers(run, ("start", "teacher"), batch=3)
    expected = by_hand(run, folders.student, teacher)
    for key, parts in expected.items():
        value = sum(s for s, _ in parts) / sum(n for _, n in parts)
        finding = found["start", key]
        assert finding.value == pytest.approx(value, rel=1e-4), key
        assert finding.n == len(parts) == 12 and finding.over == "documents"
        assert finding.low <= finding.value <= finding.high  # type: ignore[operator]
    perplexity = found["start", "perplexity"]
    assert perplexity.value == pytest.approx(float(torch.tensor(found["start", "nll"].value).exp()))
    if name == "teacher":  # beside itself a padded teacher keeps its padding
        of_teacher = by_hand(run, teacher, teacher)["nll"]
        value = sum(s for s, _ in of_teacher) / sum(n for _, n in of_teacher)
        assert found["teacher", "nll"].value == pytest.approx(value, rel=1e-5)
    assert ("teacher", "kl") not in found
    sizes = sum(p.numel() for p in load_model(str(folders.student)).parameters())
    assert found["start", "parameters"].value == sizes


def test_how_many_rows_are_read_at_a_time_changes_nothing(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path)
    one, many = (numbers(run, ("start",), batch=size) for size in (1, 8))
    for key in one:
        if key[1] != "tokens_per_second":
            assert one[key].value == pytest.approx(many[key].value, rel=1e-5)


def test_documents_are_drawn_and_not_tokens(folders: Folders, tmp_path: Path) -> None:
    """The interval is that of drawing whole documents: about 1.96 standard errors of the ratio of sums."""
    run = audit_run(folders, tmp_path)
    parts = torch.tensor(by_hand(run, folders.student, folders.teacher)["nll"], dtype=torch.float64)
    mean = parts[:, 0].sum() / parts[:, 1].sum()
    error = (parts[:, 0] - mean * parts[:, 1]).square().sum().sqrt() / parts[:, 1].sum()
    finding = numbers(run, ("start",), draws=4000)["start", "nll"]
    assert finding.high - finding.low == pytest.approx(2 * 1.96 * float(error), rel=0.2)  # type: ignore[operator]


def test_differences_are_paired(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path)
    found = numbers(run, ("start", "teacher"), versus=("start", "teacher"))
    nothing, much = found["start", "nll versus start"], found["start", "nll versus teacher"]
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    assert much.value == pytest.approx(found["start", "nll"].value - found["teacher", "nll"].value)
    assert much.better == "lower" and much.decided in ("better", "worse", "undecided")


def test_in_bfloat16_the_rotary_frequencies_stay(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path)
    exact, rough = (numbers(run, ("start",), precision=p)["start", "nll"].value for p in ("float32", "bfloat16"))
    assert exact != rough and exact == pytest.approx(rough, rel=0.02)
    module = cast(Subjects(run, ("start",)).load("start"), torch.bfloat16)
    assert {b.dtype for n, b in module.named_buffers() if "inv_freq" in n} == {torch.float32}


def test_without_a_teacher(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path)
    found = numbers(run, ("start",), teacher=None)
    assert ("start", "nll") in found and ("start", "kl") not in found


def test_nothing_was_held_out(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path, test=0.0)
    with pytest.raises(RunError, match="test split is empty"):
        numbers(run, ("start",))


def test_samples_stand_side_by_side(folders: Folders, tmp_path: Path) -> None:
    run = audit_run(folders, tmp_path)
    run.stage = "samples"
    Samples(subjects=("teacher", "start"), count=3)(run)
    shown = run.load_json("samples")
    assert len(shown) == 3
    for row in shown:
        assert set(row) == {"prompt", "teacher", "start"} and "user" in row["prompt"]
        assert row["teacher"] != row["start"]
