"""Where data are looked for that come by a name and not by a path."""

from __future__ import annotations

import os
from pathlib import Path


def shelves() -> list[Path]:
    """`$STILLHOUSE_DATA` if it is set, and the folder `data` of the working directory."""
    named = os.environ.get("STILLHOUSE_DATA")
    return [*([Path(named)] if named else []), Path("data")]


def looked_in() -> str:
    """The shelves, for a message."""
    return ", ".join(map(str, shelves()))
