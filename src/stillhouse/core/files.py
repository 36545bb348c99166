"""Files that a kill leaves whole, and what is in them. Without torch, so that pages can be made without it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never half of one."""
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, none if there is no file; a last line that a kill cut short is left out."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").split("\n"):  # splitlines() would cut at U+2028 inside a string
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def file_hash(path: Path) -> str:
    """The SHA-256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + file_hash(path).encode())
    return total.hexdigest()
