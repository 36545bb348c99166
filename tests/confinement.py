"""Whether this machine can confine a program at all, asked of bubblewrap and not of the code under test."""

from __future__ import annotations

import subprocess

import pytest


def _why_not() -> str:
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here: {error}"
    return "" if done.returncode == 0 else f"bubblewrap cannot confine here: {done.stderr.strip()}"


WHY_NOT = _why_not()
confined = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
