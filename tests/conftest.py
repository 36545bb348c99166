"""What every test needs: one thread, no hub, and the command line in a folder of its own."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is; two workers share two cores, and sums keep their order

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["language", "servers", "chatserver"]  # tiny language models, and servers


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`still("run", "hinton", "--scale", "smoke")` in an empty folder; the result has exit_code, stdout and stderr."""
    from typer.testing import CliRunner

    from stillhouse.cli.app import app

    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, input: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(a) for a in args], input=input)

    return call
