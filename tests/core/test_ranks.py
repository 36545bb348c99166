"""Two processes with half of a batch each are one process with the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import lab, ranks
from .test_engine import CRITIC, SGD, apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    both = [subprocess.Popen([sys.executable, ranks.__file__, str(rank), str(made)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    return made


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
def test_two_processes_are_one(folder: Path, tmp_path: Path, accumulate: int, dtype: torch.dtype, tolerance: float):
    alone = lab.trained(tmp_path, method=lab.Alternating(), dtype=dtype, optim=SGD, optims=CRITIC)
    pair = [torch.load(folder / f"{accumulate}_{dtype}_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert apart(pair[0], pair[1]) == 0
    assert apart(alone, pair[0]) < tolerance


def test_processes_that_go_different_ways_do_not_wait_for_ever(folder: Path):
    for rank in (0, 1):
        assert "disagree on update 1" in (folder / f"error{rank}").read_text()
