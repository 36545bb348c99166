"""A student that goes on from an earlier stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from language import Folders, run_of
from stillhouse.core.run import RunError
from stillhouse.data.toys import Sentences
from stillhouse.models.call import weights_hash
from stillhouse.models.earlier import Continued
from stillhouse.models.hub import HubLM, Lora
from stillhouse.models.toys import TinyLM


def test_a_toy_goes_on_with_its_weights(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(width=8, depth=1), data=Sentences())
    with pytest.raises(RunError, match="no finished artifact 'first'"):
        Continued(stage="first").build(run)
    torch.manual_seed(3)
    trained = run.recipe.student.build(run)
    with run.artifact("first") as folder:
        run.recipe.student.save(trained, folder, run)
    spec = Continued(stage="first")
    again = spec.build(run)
    assert weights_hash(again) == weights_hash(trained)
    assert all(p.requires_grad for p in again.parameters())
    with run.artifact("second") as folder:
        spec.save(again, folder, run)
    assert weights_hash(spec.load(run.path("second"), run)) == weights_hash(trained)


def test_a_stage_with_a_student_of_its_own(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(width=8, depth=1), data=Sentences())
    own = TinyLM(width=16, depth=1)
    trained = own.build(run)
    with run.artifact("first") as folder:
        own.save(trained, folder, run)
    assert weights_hash(Continued(stage="first", spec=own).build(run)) == weights_hash(trained)
    with pytest.raises(RunError, match="do not fit"):
        Continued(stage="first").build(run)


def test_a_language_model_gets_fresh_adapters(folders: Folders, tmp_path: Path) -> None:
    student = HubLM(path=str(folders.student), lora=Lora(rank=2))
    run = run_of(tmp_path, student)
    with run.artifact("first") as folder:
        first = student.build(run)
        with torch.no_grad():
            for name, parameter in first.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        tokens = torch.arange(1, 9)[None]
        expected = first(tokens).dense()
        student.save(first, folder, run)
    spec = Continued(stage="first")
    again = spec.build(run)
    trainable = [name for name, p in again.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in name for name in trainable)
    torch.testing.assert_close(again(tokens).dense(), expected)
    assert spec.tokenizer(run).get_vocab() == student.tokenizer(run).get_vocab()
