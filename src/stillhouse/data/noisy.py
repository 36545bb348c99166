"""Real text with noise put into it, of which the truth is known: Python's docstrings as the web would have them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.run import Run, seed_of
from .stdlib import END, StandardLibrary
from .tables import Row
from .tokens import Document, Packed, pack

BOILERPLATE = (
    "Click here to subscribe to our newsletter!", "Home | About | Contact | Sitemap", "Share this: Facebook Twitter Email",
    "Copyright {n} Example Media. All rights reserved.", "You must be logged in to post a comment.",
    "This site uses cookies. Accept all cookies?", "Advertisement {n}", "Posted by admin on {n}/{m} in Uncategorized",
    "Previous post - Next post", "{n} people found this page useful. Did you?", "Loading... please enable JavaScript.",
    "Read more: {m} tips that will surprise you", "Back to top", "Page {m} of {n}", "Sign in | Register | Help ({m})",
)  # fmt: skip
INLINE = ("[edit]", "[citation needed]", "(click to enlarge)", "&nbsp;&nbsp;", "<br/>", "[ad {m}]", "{{widget-{n}}}")
GARBAGE = "abcdefghijkmnpqrstuvwxyz0123456789#$%&@!^*~"


@dataclass(frozen=True, kw_only=True)
class NoisyLibrary:
    """Docstrings of Python's standard library; into each, by chance of its content, lines of boilerplate, lines said twice,
    and strings of garbage inside lines.

    As bytes, `train` has the noise and `valid` and `test` are clean: what a language model that learns from such text is to
    predict. As rows every split has both, as `text` and `clean`.
    """

    length: int = 128  # tokens in a packed row
    train: int = 3000  # docstrings
    valid: int = 150
    test: int = 300
    boilerplate: float = 0.6  # share of the texts that get one to four such lines
    twice: float = 0.25  # share that says one or two of its lines twice
    garbage: float = 0.5  # share that gets one to four such strings
    clean: bool = False  # True: train without the noise, for comparison
    classes: ClassVar[int | None] = 128

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        noisy = {"train": "clean" if self.clean else "text"}
        splits = self.rows(run).items()
        return {name: bytes_packed([row[noisy.get(name, "clean")] for row in rows], self.length) for name, rows in splits}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows of `text` and `clean`, the latter a subsequence of the former."""
        plain = StandardLibrary(train=self.train, valid=self.valid, test=self.test).rows(run)
        return {name: [self._row(row["text"].strip()) for row in rows] for name, rows in plain.items()}

    def _row(self, clean: str) -> Row:
        rng = random.Random(seed_of("noise", clean))
        lines = clean.split("\n")
        if rng.random() < self.garbage:
            for _ in range(rng.randint(1, 4)):
                _spoil(lines, rng)
        if rng.random() < self.twice:
            for _ in range(rng.randint(1, 2)):
                _repeat(lines, rng)
        if rng.random() < self.boilerplate:
            for _ in range(rng.randint(1, 4)):
                lines.insert(rng.randint(0, len(lines)), _filled(rng.choice(BOILERPLATE), rng))
        return {"text": "\n".join(lines), "clean": clean}


def bytes_packed(texts: Sequence[str], length: int) -> Packed:
    """ASCII texts, a token a byte, each ended by a zero byte."""
    tokens = [[*text.encode(), END] for text in texts]
    documents = [Document(each, [True] * len(each), number) for number, each in enumerate(tokens)]
    return pack(documents, length, NoisyLibrary.classes)


def _spoil(lines: list[str], rng: random.Random) -> None:
    """A string of garbage between two words of a line, or at its end."""
    number = rng.randrange(len(lines))
    blanks = [i for i in range(1, len(lines[number])) if lines[number][i] == " " and lines[number][i - 1] != " "]
    if not lines[number].strip():
        return
    at = rng.choice([*blanks, len(lines[number])])
    junk = "".join(rng.choice(GARBAGE) for _ in range(rng.randint(6, 16)))
    part = _filled(rng.choice(INLINE), rng) if rng.random() < 0.5 else junk
    lines[number] = f"{lines[number][:at]} {part}{lines[number][at:]}"


def _repeat(lines: list[str], rng: random.Random) -> None:
    """A line of some length once more, somewhere below itself."""
    long = [i for i, line in enumerate(lines) if len(line.strip()) >= 20]
    if long:
        number = rng.choice(long)
        lines.insert(rng.randint(number + 1, min(len(lines), number + 4)), lines[number])


def _filled(words: str, rng: random.Random) -> str:
    return words.replace("{n}", str(rng.randint(13, 2999))).replace("{m}", str(rng.randint(2, 12)))
