"""What a student was: a copy that stays, or the student itself with its adapters off."""

from __future__ import annotations

from pathlib import Path

import torch

from language import Folders, llama, run_of
from stillhouse.models.before import AdaptersOff, before
from stillhouse.models.hub import CausalLM, HubLM, Lora

TOKENS = torch.tensor([[5, 6, 7, 8]])


def test_a_copy_stays_what_the_student_was(tmp_path: Path) -> None:
    student = CausalLM(llama()).train()
    was = before(student, run_of(tmp_path, HubLM(path=".")))
    expected = student(TOKENS).dense().detach()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)
    assert torch.equal(was(TOKENS).dense(), expected) and not torch.equal(student(TOKENS).dense(), expected)
    assert student.training and not was.training
    assert not any(p.requires_grad for p in was.parameters())


@torch.no_grad()
def test_adapters_are_switched_off_and_nothing_is_copied(folders: Folders, tmp_path: Path) -> None:
    spec = HubLM(path=str(folders.student), lora=Lora(rank=2, dropout=0.5))
    run = run_of(tmp_path, spec)
    student = spec.build(run).train()
    expected = student.eval()(TOKENS).dense()  # fresh adapters change nothing
    student.train()
    for name, p in student.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.3)
    was = before(student, run)
    assert isinstance(was, AdaptersOff) and not list(was.parameters()) and not was.state_dict()
    torch.testing.assert_close(was(TOKENS).dense(), expected)
    assert student.training and (student.eval()(TOKENS).dense() - expected).abs().max() > 0.1


def test_nothing_flows_into_the_weights_through_what_was(folders: Folders, tmp_path: Path) -> None:
    spec = HubLM(path=str(folders.student), lora=Lora(rank=2))
    run = run_of(tmp_path, spec)
    was = before(spec.build(run), run)
    assert not was(TOKENS).hidden.requires_grad
