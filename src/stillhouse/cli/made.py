"""`stillhouse explain`, `waterfall`, `review`: what a stage that made data has to tell."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..synth import ancestry, review
from ..synth.synthesize import ROWS
from ..synth.table import Table as Rows

WIDTH = 24  # letters of the longest bar


def explain(run: Path, row: str, stage: str | None) -> str:
    """The text of a row's ancestry."""
    return "\n".join(ancestry.lines(ancestry.opened(run, stage).explain(row)))


def waterfall(run: Path, stage: str | None) -> Table:
    """A line for every step, with a bar for the rows that came out of it, and one for every reason that rows were lost."""
    steps = ancestry.waterfall(ancestry.opened(run, stage).data)
    most = max((step["made"] for step in steps), default=0) or 1
    table = Table("step", "in", "out", "", "lost", "why", title=f"{run.name}")
    for name in ("in", "out", "lost"):
        table.columns[[column.header for column in table.columns].index(name)].justify = "right"
    for step in steps:
        bar = "█" * round(WIDTH * step["made"] / most) or ("▏" if step["made"] else "")
        lost = sorted(step["lost"].items(), key=lambda pair: -pair[1]) or [("", None)]
        for number, (why, count) in enumerate(lost):
            first = [step["step"], f"{step['given']:,}", f"{step['made']:,}", bar] if not number else [""] * 4
            table.add_row(*first, "" if count is None else f"{count:,}", why)
    return table


def export(run: Path, stage: str | None, out: Path, columns: list[str], sample: int | None) -> str:
    """Write rows to review, and say how they come back."""
    data = ancestry.opened(run, stage).data
    count = review.export(Rows(data / ROWS), out, columns=columns, sample=sample)
    return (
        f"{count:,} rows in {out}: change what is wrong, say no in the column {review.KEEP!r} to take a row out, then put\n"
        f"    reviewed: {{use: synth.review.Reviewed, path: {out}}}\n"
        f"behind the other steps in a copy of {run / 'recipe.yaml'} and run that"
    )
