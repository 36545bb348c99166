"""The same question about the same models, on other data: smaller numbers, shorter chains, another domain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..core.report import Figure, Finding
from ..core.run import Run
from ..core.stage import Subjects


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Asks `check` as if `data` were the recipe's data. Its findings are called `NAME_...`; figures stay as they are."""

    check: Any  # a Check
    data: Any  # DataSpec
    name: str
    split: str = "test"  # that the check looks at

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """What the check finds there."""
        recipe = run.recipe
        check = replace(self.check, split=self.split) if hasattr(self.check, "split") else self.check
        run.recipe = replace(recipe, data=self.data)
        try:
            found = list(check(run, subjects))
        finally:
            run.recipe = recipe
        for each in found:
            yield replace(each, name=f"{self.name}_{each.name}") if isinstance(each, Finding) else each
