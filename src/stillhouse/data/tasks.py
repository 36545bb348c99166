"""Questions with a verifier: what a student is trained on, asked, hinted at and judged by.

A task has a question, a worked solution, and a check that reads an answer. Every spec gives

    load(run)      splits of rows, one task a row: the prompt does not count, the solution and its end do
    prompts(run)   the same prompts alone, in the same order
    hinted(run, split)   the prompts with the solution and a transition shown, for a teacher that may know it
    verify(run, split, example, answer)   1 right, 0 wrong (or between), for the tokens of an answer
    verify_all(run, split, examples, answers)   what many answers are worth, see `rewards`
    ends(run)      the tokens that end an answer; None: those of the model

An answer that does not end is wrong, whatever it says: it might have gone on. No answer makes `verify` raise.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

from ..core.run import Run, RunError, seed_of
from .tables import Row, read_rows, split_rows
from .tokens import Document, Packed, encode, encode_prompt

SPLITS = ("train", "valid", "test")
EVAL = "pip install 'stillhouse[eval]'"


@dataclass(frozen=True, slots=True)
class Task:
    """One question."""

    question: str
    solution: str  # worked, with the final answer; what supervised training learns
    answer: str
    shown: str  # what a hint shows
    entry: Any = None  # whatever else its check needs


@dataclass(frozen=True)
class TaskRows(Packed):
    """Rows of one task each; row i is task i."""

    tasks: tuple[Task, ...] = ()
    hinted: list[list[int]] = field(default_factory=list[list[int]], repr=False, compare=False)  # made when asked for


class Coder(Protocol):
    """Between text and tokens."""

    @property
    def classes(self) -> int | None:
        """How many tokens there are; None: the model knows."""
        ...

    def prompt(self, question: str) -> list[int]:
        """A question up to where its answer begins."""
        ...

    def answer(self, question: str, text: str) -> list[int]:
        """An answer to it, with the token that ends it."""
        ...

    def text(self, tokens: Sequence[int]) -> str | None:
        """A finished answer as text; None if it did not end, or is no text."""
        ...

    def ends(self) -> frozenset[int] | None:
        """The tokens that end an answer; None: the model knows."""
        ...


class Tasks:
    """What the specs have in common: they say what their tasks are, what a hint looks like, and what is right."""

    length: int
    classes: ClassVar[int | None] = None

    def coder(self, run: Run) -> Coder:
        """The student's tokenizer, or bytes if it has none."""
        tokenizer = getattr(run.recipe.student, "tokenizer", None)
        return Bytes() if tokenizer is None else Tokenized(tokenizer(run))

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The tasks of every split; none is in two."""
        raise NotImplementedError

    def hint(self, task: Task) -> str:
        """A question with its solution and a transition."""
        raise NotImplementedError

    def score(self, task: Task, text: str) -> float:
        """How right a finished answer is."""
        raise NotImplementedError

    def load(self, run: Run) -> Mapping[str, TaskRows]:
        """The splits. A task whose prompt and solution take more than `length` tokens is rejected."""
        coder = self.coder(run)
        return {name: self._rows(found, coder, run) for name, found in self.tasks(run).items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows to make data from: `question`, `truth` (the answer alone) and the worked `solution`."""
        splits = self.tasks(run)
        told = {name: [(t.question, t.answer, t.solution) for t in found] for name, found in splits.items()}
        return {
            name: [dict(zip(("question", "truth", "solution"), t, strict=True)) for t in found]
            for name, found in told.items()
        }

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The prompts of every split; prompt i is of example i."""
        return {name: [_prompt(row[0]) for row in source.rows] for name, source in run.sources(self).items()}

    def hinted(self, run: Run, split: str) -> list[list[int]]:
        """The prompts of a split with their solutions shown, in the order of `prompts`."""
        source = run.sources(self)[split]
        if not source.hinted:
            coder = self.coder(run)
            source.hinted.extend(coder.prompt(self.hint(task)) for task in source.tasks)
        return source.hinted

    def verify(self, run: Run, split: str, example: int, answer: Sequence[int]) -> float:
        """Between 0 (wrong) and 1 (right)."""
        text = self.coder(run).text(answer)
        return 0.0 if text is None else self.score(run.sources(self)[split].tasks[example], text)

    def verify_all(self, run: Run, split: str, examples: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """What many answers are worth, asked together: what `verify` says, or what `rewards` do."""
        return self.right(run, split, examples, answers)

    def right(self, run: Run, split: str, examples: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """What `verify` says of every answer, asked together."""
        return [self.verify(run, split, i, answer) for i, answer in zip(examples, answers, strict=True)]

    def scores(self, tasks: Sequence[Task], texts: Sequence[str | None]) -> list[float]:
        """How right finished answers are; one that did not end is wrong."""
        return [0.0 if text is None else self.score(task, text) for task, text in zip(tasks, texts, strict=True)]

    def ends(self, run: Run) -> frozenset[int] | None:
        """The tokens that end an answer; None: the model knows."""
        return self.coder(run).ends()

    def _rows(self, tasks: Iterable[Task], coder: Coder, run: Run) -> TaskRows:
        rows: list[tuple[Document]] = []
        kept: list[Task] = []
        for task in tasks:
            prompt, answer = coder.prompt(task.question), coder.answer(task.question, task.solution)
            if len(prompt) + len(answer) > self.length:
                why = f"{len(prompt) + len(answer)} tokens, but data.length is {self.length}"
                run.reject({"question": task.question}, why)
                continue
            counts = [False] * len(prompt) + [True] * len(answer)
            rows.append((Document(prompt + answer, counts, len(rows)),))
            kept.append(task)
        if tasks and not rows:
            raise RunError(f"no task fits into {self.length} tokens; raise data.length")
        return TaskRows(tuple(rows), self.length, coder.classes, tuple(kept))


@dataclass(frozen=True, kw_only=True)
class OnTop(Tasks):
    """The tasks of `base`, whose answers are judged in another way: what such specs have in common."""

    base: Any  # tasks

    @property
    def length(self) -> int:  # type: ignore[override]
        """As the tasks have."""
        return self.base.length

    @property
    def classes(self) -> int | None:  # type: ignore[override]
        """As the tasks have."""
        return self.base.classes

    def coder(self, run: Run) -> Any:
        """The tasks' own."""
        return self.base.coder(run)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The tasks' own."""
        return self.base.tasks(run)

    def hint(self, task: Task) -> str:
        """The tasks' own."""
        return self.base.hint(task)

    def right(self, run: Run, split: str, examples: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """What `verify` says of every answer, judged together."""
        coder, tasks = self.coder(run), run.sources(self)[split].tasks
        return self.scores([tasks[i] for i in examples], [coder.text(answer) for answer in answers])


def tasks_of(run: Run) -> Any:
    """The data of the current stage, which must be tasks; RunError if nothing in it can be verified."""
    spec = getattr(run.recipe.stages.get(run.stage), "data", None) or run.recipe.data
    if not hasattr(spec, "verify"):
        raise RunError(
            f"{type(spec).__name__} has no verifier: use data.tasks.Questions (your own file), data.tasks.Gym or "
            "data.tasks.Chain"
        )
    return spec


def ends_in(run: Run) -> frozenset[int] | None:
    """The tokens that end an answer to the current stage's data, if these say so; None: the model knows."""
    spec = getattr(run.recipe.stages.get(run.stage), "data", None) or run.recipe.data
    return spec.ends(run) if hasattr(spec, "ends") else None


def _prompt(document: Document) -> list[int]:
    return document.tokens[: document.counts.index(True)]


# -- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Characters:
    """Every character of an alphabet is a token; the first one ends an answer."""

    alphabet: str

    @property
    def classes(self) -> int:
        """How many tokens there are."""
        return len(self.alphabet)

    def prompt(self, question: str) -> list[int]:
        return [self.alphabet.index(c) for c in question]

    def answer(self, question: str, text: str) -> list[int]:
        return [*self.prompt(text), 0]

    def text(self, tokens: Sequence[int]) -> str | None:
        *body, last = tokens or [-1]
        if last != 0 or not all(0 < t < len(self.alphabet) for t in body):
            return None
        return "".join(self.alphabet[t] for t in body)

    def ends(self) -> frozenset[int]:
        return frozenset({0})


class Bytes:
    """UTF-8 for models without a tokenizer; 256 ends an answer."""

    @property
    def classes(self) -> int:
        """The bytes and the end."""
        return 257

    def prompt(self, question: str) -> list[int]:
        return list(f"{question}\n".encode())

    def answer(self, question: str, text: str) -> list[int]:
        return [*text.encode(), 256]

    def text(self, tokens: Sequence[int]) -> str | None:
        *body, last = tokens or [-1]
        if last != 256 or not all(0 <= t < 256 for t in body):
            return None
        return bytes(body).decode(errors="replace")

    def ends(self) -> frozenset[int]:
        return frozenset({256})


@dataclass(frozen=True)
class Tokenized:
    """A language model's tokenizer; a question is a user's turn if it has a chat template."""

    tokenizer: Any

    @property
    def classes(self) -> None:
        """The model knows: its head may have more rows than there are tokens."""
        return

    def prompt(self, question: str) -> list[int]:
        return encode_prompt({"prompt": question}, self.tokenizer)

    def answer(self, question: str, text: str) -> list[int]:
        made = encode({"prompt": question, "completion": text}, self.tokenizer)
        if isinstance(made, str):
            raise RunError(f"the tokenizer cannot take question and answer: {made}")
        return [token for token, counts in zip(*made, strict=True) if counts]

    def text(self, tokens: Sequence[int]) -> str | None:
        if not tokens or tokens[-1] not in self.tokenizer.all_special_ids:
            return None
        try:
            return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        except (OverflowError, TypeError, ValueError, IndexError, KeyError):
            return None  # numbers that are no tokens

    def ends(self) -> None:
        return None


# -- arithmetic chains -------------------------------------------------------------------------------------------------

Style = Literal["steps", "values", "answer"]


@dataclass(frozen=True, kw_only=True)
class Chain(Tasks):
    """`3+4*2-1=` from left to right modulo `base`: the steps `3+4=7;7*2=4;4-1=3`, then `#3`. One token a character.

    The same splits for every seed of the run; a larger `train` keeps the other two and adds to it. A hint shows the
    solution in the style `shown` and then `~`.
    """

    ops: tuple[int, ...] = (3,)  # operators in a chain; several: each as often
    base: int = 10
    signs: str = "+-*"  # the operators; without `*` all answers are equally likely
    style: Style = "steps"  # of the worked solution: "3+4=7;7*2=4#4", its "values" 7;4#4, or the "answer" #4
    shown: Style | None = None  # of what a hint shows; None: as `style`
    train: int = 1000  # chains
    valid: int = 100
    test: int = 200
    skip: int = 0  # training chains passed over first, so that two stages can learn from different ones
    length: int = 96  # tokens of a prompt with its solution, at most
    alphabet: ClassVar[str] = "\n0123456789+-*=;#~"  # the first one ends an answer
    classes: ClassVar[int | None] = len(alphabet)

    def __post_init__(self) -> None:
        if not self.ops or min(self.ops) < 1 or self.base < 2:
            raise ValueError(f"a chain needs at least one operator and a base of at least 2, not {self.ops}, {self.base}")
        if not self.signs or set(self.signs) - set("+-*"):
            raise ValueError(f"the operators of a chain are some of + - *, not {self.signs!r}")

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return Characters(self.alphabet)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """Chains drawn from a generator of their own, none twice."""
        sizes = {"test": self.test, "valid": self.valid, "train": self.skip + self.train}
        draw = random.Random(seed_of("chain", self.ops, self.base, self.signs))
        seen: dict[str, None] = {}
        tries = 0
        while len(seen) < sum(sizes.values()):
            operators = self.ops[len(seen) % len(self.ops)]
            numbers = [str(draw.randrange(self.base)) for _ in range(operators + 1)]
            signs = [draw.choice(self.signs) for _ in range(operators)]
            question = "".join(a + b for a, b in zip(numbers, [*signs, "="], strict=True))
            tries = 0 if question not in seen else tries + 1
            if tries > 1000:
                raise RunError(f"there are hardly more than {len(seen)} such chains; ask for fewer, or for longer ones")
            seen[question] = None
        made = iter(seen)
        splits = {name: [self.task(next(made)) for _ in range(size)] for name, size in sizes.items()}
        return {"train": splits["train"][self.skip :], "valid": splits["valid"], "test": splits["test"]}

    def task(self, question: str) -> Task:
        """The task of a chain."""
        steps = chain_steps(question, self.base)
        answer = steps[-1].rpartition("=")[2]
        solution = chain_solution(steps, self.style)
        return Task(question, solution, answer, chain_solution(steps, self.shown or self.style), steps)

    def hint(self, task: Task) -> str:
        """`3+4*2-1=`, the solution, `~`."""
        return f"{task.question}{task.shown}~"

    def score(self, task: Task, text: str) -> float:
        """1 if exactly the answer stands behind one `#`."""
        return float(text.count("#") == 1 and text.endswith(f"#{task.answer}"))

    def steps_right(self, run: Run, split: str, example: int, answer: Sequence[int]) -> float:
        """The share of the chain's steps that an answer in full steps writes down, each in its place."""
        task = run.sources(self)[split].tasks[example]
        text = self.coder(run).text(answer)
        written = [] if text is None else text.partition("#")[0].split(";")
        return sum(a == b for a, b in zip(written, task.entry, strict=False)) / len(task.entry)


def chain_steps(question: str, base: int) -> list[str]:
    """`3+4*2=` to `["3+4=7", "7*2=4"]` modulo 10."""
    first, *rest = re.findall(r"[+*-]?\d+", question)
    value, steps = int(first), []
    for part in rest:
        sign, number = part[0], int(part[1:])
        result = {"+": value + number, "-": value - number, "*": value * number}[sign] % base
        steps.append(f"{value}{part}={result}")
        value = result
    return steps


def chain_solution(steps: Sequence[str], style: Style) -> str:
    """The steps as a solution in this style."""
    values = [step.rpartition("=")[2] for step in steps]
    shown = {"steps": steps, "values": values, "answer": []}[style]
    return f"{';'.join(shown)}#{values[-1]}"


@dataclass(frozen=True, kw_only=True)
class Hinted:
    """Tasks to learn to use a hint from: every task twice, as it is and with its solution shown.

    The worked solution counts in both. A model that learned from it does better with a hint than without.
    """

    base: Any  # tasks
    length: int = 192  # tokens of a hinted prompt with its solution, at most
    plain: bool = True  # False: with the solution shown alone

    @property
    def classes(self) -> int | None:
        """As the tasks have."""
        return self.base.classes

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The splits, one document a row, plain and hinted ones alternating."""
        return {name: self._twice(name, source, run) for name, source in run.sources(self.base).items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The prompts, plain and hinted ones alternating."""
        return {name: [_prompt(row[0]) for row in source.rows] for name, source in run.sources(self).items()}

    def _twice(self, split: str, source: Packed, run: Run) -> Packed:
        def documents() -> Iterator[Document]:
            for (plain,), hinted in zip(source.rows, self.base.hinted(run, split), strict=True):
                answer = plain.tokens[plain.counts.index(True) :]
                if self.plain:
                    yield plain
                if len(hinted) + len(answer) <= self.length:
                    counts = [False] * len(hinted) + [True] * len(answer)
                    yield Document([*hinted, *answer], counts, plain.example)

        rows = tuple((document,) for document in documents())
        if len(rows) == len(source) * self.plain and len(source):
            raise RunError(f"no hinted prompt with its solution fits into {self.length} tokens; raise length")
        return Packed(rows, self.length, source.classes)


# -- text ------------------------------------------------------------------------------------------------------------

INSTRUCTION = 'End with a line that says "Answer:" and then the answer alone.'
TRANSITION = (
    "Above is the problem with a solution that is known to be right. Now think it through yourself, step by step in"
    " your own words, and answer the problem as if you had not seen the solution."
)


_MARK = re.compile(r"\banswer\b(?:\s*:|[^\n.:]{0,80}?\bis\b:?)|####", re.IGNORECASE)


def final_answer(text: str) -> str:
    """What an answer says in the end: behind its last `Answer:`, `the answer (to ...) is` or `####`, in the last
    `\\boxed{}` behind that, or all of it."""
    marks = [m.end() for m in _MARK.finditer(text)]
    begin = marks[-1] if marks else 0
    box = text.rfind("\\boxed{")
    if box >= begin:
        depth, start = 1, box + len("\\boxed{")
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
    return text[begin:].strip().strip("*").strip()


class Worded(Tasks):
    """Tasks in words."""

    instruction: str
    transition: str

    def hint(self, task: Task) -> str:
        """The question, its solution and the transition."""
        return f"{task.question}\n\nSolution:\n{task.shown}\n\n{self.transition}"

    def ask(self, question: str) -> str:
        """A question with the instruction how to end."""
        return f"{question}\n{self.instruction}" if self.instruction else question


@dataclass(frozen=True, kw_only=True)
class Gym(Worded):
    """Tasks of a reasoning-gym generator, judged by its own scorer.

    The same splits for every seed of the run; a larger `train` keeps the other two and adds to it. Scorers may give
    a little for the right form. A few (countdown, puzzle24, ...) evaluate the answer as an expression.
    """

    task: str = "chain_sum"
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])  # passed to the generator
    train: int = 1000  # tasks
    valid: int = 100
    test: int = 200
    seed: int = 0  # of the generator
    instruction: str = INSTRUCTION
    transition: str = TRANSITION
    worked: str = "answer_cot"  # where the generator's metadata hold a worked solution, if they do
    length: int = 512  # tokens of a prompt with its solution, at most

    def generator(self, size: int) -> Any:
        """The reasoning-gym data set; RunError if there is none."""
        try:
            gym = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise RunError(f"these tasks need reasoning-gym: {EVAL}") from error
        try:
            return gym.create_dataset(self.task, seed=self.seed, size=size, **self.config)
        except (ValueError, TypeError, AssertionError) as error:
            raise RunError(f"reasoning-gym cannot make {self.task!r} with {dict(self.config)}: {error}") from error

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The first different questions of the generator."""
        sizes = {"test": self.test, "valid": self.valid, "train": self.train}
        total = sum(sizes.values())
        source = self.generator(20 * total)
        found: dict[str, Task] = {}
        for index in range(20 * total):
            entry = source[index]
            question, answer = self.ask(str(entry["question"])), str(entry["answer"])
            worked = str(entry["metadata"].get(self.worked) or "")
            if question not in found:
                solution = f"{worked}\nAnswer: {answer}".strip()
                found[question] = Task(question, solution, answer, solution, (source, entry))
            if len(found) == total:
                break
        else:
            raise RunError(f"{self.task!r} has hardly more than {len(found)} different questions; ask for fewer tasks")
        made = iter(found.values())
        splits = {name: [next(made) for _ in range(size)] for name, size in sizes.items()}
        return {name: splits[name] for name in SPLITS}

    def score(self, task: Task, text: str) -> float:
        """The generator's score of the final answer, of it without its full stop, or of what its last `=` gives."""
        source, entry = task.entry
        final, best = final_answer(text), 0.0
        for said in {final, final.removesuffix("."), final.rpartition("=")[2].strip().removesuffix(".")}:
            try:
                best = max(best, min(1.0, float(source.score_answer(said, entry))))
            except Exception:  # a scorer meets whatever a model writes, and was not made to
                continue
        return best


Check = Literal["exact", "number", "math", "choice"]


@dataclass(frozen=True, kw_only=True)
class Questions(Worded):
    """A user's own questions and answers: JSONL, JSON, CSV or Parquet.

    `exact` compares texts (case, blanks and a final stop do not matter), `number` the last number of each, `choice` a
    letter, `math` expressions (LaTeX too). If there is no column of worked solutions, the answer is all that a hint
    shows. An answer column that holds a whole solution (GSM8K's) is fine: what it says in the end is the answer.
    """

    path: str
    question: str = "question"  # column
    answer: str = "answer"  # column
    solution: str | None = None  # column of worked solutions; None: `solution` if there is one
    check: Check = "number"
    valid: float = 0.1  # share of the questions held out to choose
    test: float = 0.1  # share of the questions held out to judge
    limit: int | None = None  # use at most so many rows
    instruction: str = INSTRUCTION
    transition: str = TRANSITION
    length: int = 512  # tokens of a prompt with its solution, at most

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The rows whose own solution passes the check, split by their questions."""
        if self.check == "math":
            _math()
        rows = read_rows(self.path, run)[: self.limit]
        for column in (self.question, self.answer, *([self.solution] if self.solution else [])):
            if not any(column in row for row in rows):
                known = ", ".join(map(repr, rows[0]))
                raise RunError(f"{self.path} has no column {column!r}; it has {known} (set data.question, data.answer)")
        tasks: dict[str, Task] = {}
        for row in rows:
            made = self._task(row)
            why = "the same question again" if isinstance(made, Task) and made.question in tasks else made
            if isinstance(made, Task) and made.question not in tasks:
                tasks[made.question] = made
            else:
                run.reject(row, str(why))
        if not tasks:
            reasons = dict.fromkeys(line["why"] for line in run.read("rejects.jsonl"))
            raise RunError(f"no row of {self.path} can be used: {'; '.join(list(reasons)[:3])}")
        split = split_rows([{"question": q} for q in tasks], valid=self.valid, test=self.test, run=run)
        return {name: [tasks[row["question"]] for row in split[name]] for name in SPLITS}

    def _task(self, row: Row) -> Task | str:
        question, answer = row.get(self.question), row.get(self.answer)
        if question in (None, "") or answer in (None, ""):
            return f"column {self.answer if question else self.question!r} is empty"
        text = str(row.get(self.solution or "solution") or answer)
        gold = final_answer(str(answer))
        task = Task(self.ask(str(question)), text, gold, text)
        if self.score(task, text) < 1.0 or text == gold:
            text = f"{text}\nAnswer: {gold}" if text != gold else f"Answer: {gold}"
        if self.score(task, text) < 1.0:
            return f"its own answer {gold[:40]!r} does not pass the check {self.check!r}"
        return Task(task.question, text, gold, text)

    def score(self, task: Task, text: str) -> float:
        """1 if what the answer says in the end is right."""
        said = final_answer(text)
        if self.check == "exact":
            return float(_plain(said) == _plain(task.answer))
        if self.check == "math":
            return _same_math(said, task.answer)
        read = last_number if self.check == "number" else choice
        found = read(said)
        return float(found is not None and found == read(task.answer))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").strip()


_NUMBER = re.compile(
    r"(?<![\w.)])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[+-]?\d{1,3}(?!\d)|\s?/\s?\d+(?:\.\d+)?)?|"
    r"(?<![\w.)])-?\.\d+",
    re.IGNORECASE,
)


def last_number(text: str) -> Fraction | None:
    """The last number of a text: `1,234.50`, `-3/4`, `2e-3`; None if it has none."""
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}]", "-", re.sub(r"(?<=\d)-(?=\d)", " ", text.replace("$", "")))
    found = _NUMBER.findall(text)
    if not found or len(found[-1]) > 100:
        return None
    over, _, under = re.sub(r"[,\s]", "", found[-1]).partition("/")
    divisor = Fraction(under or 1)
    return Fraction(over) / divisor if divisor else None


def choice(text: str) -> str | None:
    """The letter that a text chooses: `B`, `(b)`, `B.`, `**B**`, `B) because ...`; None if it chooses none."""
    found = re.match(r"\s*[(\[*]*([A-Za-z])(?:[)\].:*]+(?:\s|$)|\s*$)", text)
    return found[1].upper() if found else None


def _math() -> Any:
    try:
        return importlib.import_module("math_verify")
    except ImportError as error:
        raise RunError(f"the check 'math' needs math-verify: {EVAL}") from error


def _same_math(said: str, gold: str) -> float:
    lib = _math()
    if len(said) > 1000:
        return 0.0
    try:
        return float(lib.verify(lib.parse(f"${gold}$"), lib.parse(f"${said}$")))
    except Exception:  # a parser meets whatever a model writes
        return 0.0
