"""Rules that a row's text must keep: length, words, expressions, tags, scripts, repetition; and answers given away.

rules: {use: synth.rules.Rules, column: answer, longest: 2000, tags: [think, answer], repeats: 0.3}
leak:  {use: synth.rules.NoLeak, answer: truth, within: [question, hint]}
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from ..core.recipe import nearest
from ..core.run import Run
from ..data.rewards import Answered, Unrepeated
from ..data.tasks import Task, final_answer
from .asking import check_columns, gone_through
from .parse import plain
from .steps import Silent
from .table import Row

UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})  # no blanks
NO_TASK = Task("", "", "", "")
Broken = tuple[str, Mapping[str, Any]]  # which rule, and the numbers that say so


def having(rows: Iterable[Row], run: Run, *columns: str) -> Sequence[Row]:
    """The rows, to be gone through as often as one likes; RunError if none has one of these columns."""
    table = gone_through(rows)
    check_columns(columns, table, f"the step {run.work.name!r}")
    return table


def text_in(row: Row, column: str) -> str:
    """What a column says, as text; empty if it says nothing."""
    value = row.get(column)
    return "" if value is None else str(value)


def folded(text: str) -> str:
    """Without case, variants of letters, and how many blanks there are."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, kw_only=True)
class Rules(Silent):
    """Rows whose text keeps all rules pass as they are; one that breaks a rule is lost, with the first that it breaks.

    A rule that is not given is not asked. Texts are looked at one by one, so nothing depends on their order.
    """

    column: str = "text"
    unit: Literal["characters", "words"] = "characters"  # of `shortest` and `longest`
    shortest: int = 1
    longest: int | None = None
    blacklist: tuple[str, ...] = ()  # words and phrases that must not be there; case and punctuation do not count
    forbidden: tuple[str, ...] = ()  # regular expressions, none of which may be found
    required: tuple[str, ...] = ()  # regular expressions that must all be found
    tags: tuple[str, ...] = ()  # <tag>...</tag>, each once, with something in it, in this order, none inside another
    scripts: tuple[str, ...] = ()  # what letters may be, as Unicode names them: LATIN, GREEK, CYRILLIC, ARABIC, CJK, ...
    letters: float = 1.0  # the least share of the letters that is
    run_of: int = 4  # words
    repeats: float | None = None  # the largest share of runs of so many words that were there before in the text
    row_by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for text in (*self.forbidden, *self.required):
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"{text!r} is no regular expression: {error}") from error
        empty = [phrase for phrase in self.blacklist if not plain(phrase)]
        if empty:
            raise ValueError(f"{empty[0]!r} in the blacklist holds no letter or digit; forbid it as an expression")
        if self.longest is not None and self.longest < self.shortest:
            raise ValueError("longest must be at least shortest")
        unknown = [script for script in self.scripts if script not in _all_scripts()]
        if unknown:
            raise ValueError(f"no letter's name begins with {unknown[0]!r}{nearest(unknown[0].upper(), _all_scripts())}")
        if self.run_of < 1:
            raise ValueError("run_of must be 1 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that keep all rules."""
        for row in having(rows, run, self.column):
            broken = self._broken(text_in(row, self.column), run)
            if broken is None:
                yield row
            else:
                run.work.lose(row, broken[0], **broken[1])

    def _broken(self, text: str, run: Run) -> Broken | None:
        rules = (self._length, self._blacklist, self._expressions, self._tags, self._scripts)
        first = next(filter(None, (rule(text) for rule in rules)), None)
        return first or self._repeats(text, run)

    def _length(self, text: str) -> Broken | None:
        length = len(text.split()) if self.unit == "words" else len(text)
        if length < self.shortest:
            return f"shorter than {self.shortest} {self.unit}", {"length": length}
        if self.longest is not None and length > self.longest:
            return f"longer than {self.longest} {self.unit}", {"length": length}
        return None

    def _blacklist(self, text: str) -> Broken | None:
        said = plain(text) if self.blacklist else ""
        found = next((phrase for phrase in self.blacklist if says(said, plain(phrase))), None)
        return None if found is None else (f"it says {found!r}", {})

    def _expressions(self, text: str) -> Broken | None:
        for expression in self.forbidden:
            found = re.search(expression, text)
            if found:
                return f"it has {expression!r}, which is forbidden", {"found": found[0][:80]}
        missing = next((each for each in self.required if not re.search(each, text)), None)
        return None if missing is None else (f"it has no {missing!r}, which is required", {})

    def _tags(self, text: str) -> Broken | None:
        end = 0
        for tag in self.tags:
            opened, closed = f"<{tag}>", f"</{tag}>"
            counts = {"opened": text.count(opened), "closed": text.count(closed)}
            if set(counts.values()) != {1}:
                return f"{opened}...{closed} is not there exactly once", counts
            begin, stop = text.index(opened) + len(opened), text.index(closed)
            if begin - len(opened) < end:
                return f"{opened} does not come behind the tags before it", {}
            if not text[begin:stop].strip():
                return f"there is nothing in {opened}...{closed}", {}
            end = stop + len(closed)
        return None

    def _scripts(self, text: str) -> Broken | None:
        found = [_script(letter) for letter in text if letter.isalpha()] if self.scripts else []
        share = sum(script in self.scripts for script in found) / len(found) if found else 1.0
        if share >= self.letters:
            return None
        return f"fewer than {self.letters:.0%} of its letters are {', '.join(self.scripts)}", {"share": share}

    def _repeats(self, text: str, run: Run) -> Broken | None:
        if self.repeats is None:
            return None
        share = -Unrepeated(words=self.run_of)([Answered(NO_TASK, text, 0, 0.0)], run)[0]
        return (f"more than {self.repeats:.0%} of it is repetition", {"share": share}) if share > self.repeats else None


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """`LATIN` for `é`: the first word of the letter's name, without what it is a variant of."""
    names = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "NONE").split()
    return names[0].partition("-")[0]


@lru_cache(maxsize=1)
def _all_scripts() -> frozenset[str]:
    return frozenset(_script(chr(code)) for code in range(0x10000) if chr(code).isalpha())


def says(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text as words of its own; letters of scripts without blanks may touch it.

    A number does not stand in a longer one: `3` is neither in `3.5` nor in `-3`, `1/3` or `13`.
    """
    if not phrase:
        return False
    first, last = phrase[0], phrase[-1]
    before = "" if _script(first) in UNSPACED else r"(?<![\w.,/-])" if first.isdigit() else r"(?<!\w)"
    after = "" if _script(last) in UNSPACED else r"(?!\w|[.,/]\d)" if last.isdigit() else r"(?!\w)"
    return re.search(before + r"\s+".join(map(re.escape, phrase.split())) + after, text) is not None


@dataclass(frozen=True, kw_only=True)
class NoLeak(Silent):
    """Rows whose answer stands, as whole words, in what is shown before it are lost; the others pass.

    The answer is what its column says in the end, whatever marks it (`Answer:`, `\\boxed{}`). A short one may stand in a
    question by chance (`5`): `least` is how many letters and digits it must have to count as given away.
    """

    answer: str = "answer"  # the column
    within: tuple[str, ...] = ("question",)  # the columns that must not say it
    least: int = 1
    row_by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.within or self.answer in self.within:
            raise ValueError("within names the columns that must not say the answer, and not the answer's own")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that do not give their answer away."""
        for row in having(rows, run, self.answer, *self.within):
            answer = final_answer(text_in(row, self.answer))
            found = [column for column in self.within if self._leaks(answer, text_in(row, column))]
            if found:
                run.work.lose(row, f"the {found[0]} gives the {self.answer} away", answer=answer[:200])
            else:
                yield row

    def _leaks(self, answer: str, shown: str) -> bool:
        if sum(letter.isalnum() for letter in answer) < max(1, self.least):
            return False
        # Not `plain`, in which signs do not count: -3 is not given away by 3.
        return says(folded(shown), folded(answer))
