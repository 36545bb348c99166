"""What has changed since a proof ran: `stillhouse prove --changed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.code import code_of
from ..core.paper import catalogue, find
from .show import proof_of


def since(proof: Mapping[str, Any], path: Path) -> list[str]:
    """The files that are not as they were when the proof ran; `?` if it does not say."""
    then, now = proof.get("code"), code_of(path)
    if not then:
        return ["?"]
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def stale(names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Method -> what changed since its proof, for those where something did; methods without a proof count as changed."""
    found: dict[str, list[str]] = {}
    for name in names or sorted(catalogue()):
        entry, proof = find(name), proof_of(name)
        files = ["not proven yet"] if proof is None else since(proof, entry.path)
        if files:
            found[name] = ["its proof does not say which code it ran"] if files == ["?"] else files
    return found
