"""Do the changes that training made to the weights point the same way?

`cosine` of two changes is the mean, over the matrices of the model, of the cosine between what each did to that matrix; 0 is
what unrelated directions have. `relative_norm` is the length of a change over the length of the weights before it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.report import Figure, Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..models.merge import stored
from ..models.weights import Change, cosines, norms


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Every two of the changes against each other; a change is a model after and the model before it.

    Models are stages of this run or folders of one architecture. They are read a tensor at a time.
    """

    changes: Mapping[str, tuple[str, str]]

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding | Figure]:
        """A cosine for every two, a length for each, and the cosines matrix by matrix as a figure.

        A change of nothing has no cosine; a note says so.
        """
        names = list(dict.fromkeys(model for change in self.changes.values() for model in change))
        models = stored({name: name for name in names}, run)
        made = {name: Change(models[after], models[before]) for name, (after, before) in self.changes.items()}
        for name, change in made.items():
            before = models[self.changes[name][1]]
            length = math.hypot(*norms(change).values()) / math.hypot(*(float(before[k].double().norm()) for k in change))
            yield Finding(name="relative_norm", subject=name, value=length)
        series: dict[str, list[tuple[float, float]]] = {}
        for a, b in itertools.combinations(made, 2):
            found = [c for k, c in cosines(made[a], made[b]).items() if _matrix(made[a], k) and not math.isnan(c)]
            if not found:
                run.event("note", text=f"{a!r} or {b!r} has changed no matrix, so there is no angle between them")
                continue
            n, mean = len(found), statistics.fmean(found)
            yield Finding(name="cosine", subject=f"{a} and {b}", value=mean, n=n, over="matrices")
            series[f"{a} and {b}"] = [(float(i), c) for i, c in enumerate(found)]
        yield Figure(title="How alike two changes are", x="matrix of the model", y="cosine", series=series)


def _matrix(change: Change, name: str) -> bool:
    return len(change.shape(name)) > 1
