"""The finished student in a folder of the user's choice."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from ..core.run import Run, RunError
from ..reports import card


@dataclass(frozen=True, kw_only=True)
class Export:
    """A stage that copies what a training stage left behind to `to`, with a model card made from the run.

    Put it last: the card tells what the stages before it have found. Files of the same names in `to` are replaced.
    """

    to: str
    subject: str = "train"  # the training stage

    def __call__(self, run: Run) -> None:
        """The artifact says where the student went."""
        try:
            shutil.copytree(run.path(self.subject), self.to, dirs_exist_ok=True)
            card.write(run.folder, self.to)
        except OSError as error:
            where = run.path(self.subject)
            raise RunError(f"cannot write the student to {self.to}: {error.strerror}; it is in {where}") from error
        run.save_json(run.stage, {"to": self.to}, kind="export")


def check_empty(out: Path) -> None:
    """RunError if a student could not be put there: better now than after the training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    if any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose another --out, or move it away")
