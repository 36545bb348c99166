"""A script for `teachers.scripted.Scripted` that cleans texts as a language model does: well, but not to the letter."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...teachers.scripted import Answers
from ...teachers.text import Ask

ADDED = (
    "In summary, this is a versatile tool that every developer should know.",
    "Note: behaviour may vary between platforms and versions, so always consult the latest manual before use.",
    "For example, one might combine it with other features to obtain even better results in practice.",
    "This has been part of the language since its very first public release.",
)


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """Answers with what the row that it is asked about says under `clean`. By chance it adds a sentence of its own,
    puts other words in place of some, or leaves the noise where it is; its truth says which."""

    adds: float = 0.1  # share of its answers with one to three sentences that nobody wrote
    rewords: float = 0.1  # share in which every twelfth word or so is another
    fails: float = 0.03  # share in which it gives the text back as it was

    def build(self, run: Run) -> Answers:
        """What answers."""
        return self._answer

    def _answer(self, ask: Ask, rng: random.Random) -> Completion:
        if "clean" not in ask.about:
            raise RunError("this script cleans rows that say under `clean` what is left: take data.noisy.NoisyLibrary")
        text, truth = str(ask.about["clean"]), {"added": False, "reworded": False, "failed": False}
        draws = [rng.random() for _ in range(3)]
        if draws[0] < self.fails:
            truth["failed"], text = True, str(ask.about["text"])
        if draws[1] < self.rewords:
            words = [w if rng.random() > 1 / 12 or not w.isalpha() else w[::-1] + "ly" for w in text.split(" ")]
            truth["reworded"], text = " ".join(words) != text, " ".join(words)
        if draws[2] < self.adds:
            lines = text.split("\n")
            for sentence in rng.sample(ADDED, rng.randint(1, 3)):
                lines.insert(rng.randint(0, len(lines)), sentence)
            truth["added"], text = True, "\n".join(lines)
        return Completion(text, read=ask.size, wrote=-(-len(text.encode()) // 4), truth=truth)
