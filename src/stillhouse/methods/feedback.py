"""What a judge says about an answer, as the next turn of a conversation, and chains to learn to listen from."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

from ..core.run import Run, RunError, seed_of
from ..data.tasks import Bytes, Chain, Characters, Task, chain_solution, chain_steps, tasks_of
from ..data.tokens import Document, Packed
from ..teachers.text import Ask, Decoding

Asked = Sequence[tuple[int, Sequence[int]]]  # the examples, and an answer to each as tokens


class Judge(Protocol):
    """A frozen dataclass that finds words for wrong answers."""

    def check(self, run: Run) -> None:
        """RunError if it cannot judge the stage's tasks."""
        ...

    def __call__(self, run: Run, split: str, asked: Asked) -> list[str]:
        """What it says of each."""
        ...


@dataclass(frozen=True, kw_only=True)
class Critic:
    """For arithmetic chains: the first step that is wrong or missing, put right, between two `~`. A rule, not a model."""

    def check(self, run: Run) -> None:
        if not isinstance(tasks_of(run), Chain):
            raise RunError(
                "the judge Critic knows chains alone: set train.method.judge to methods.feedback.Asking (a model that "
                "writes) or methods.feedback.Verdict"
            )

    def __call__(self, run: Run, split: str, asked: Asked) -> list[str]:
        tasks = tasks_of(run)
        known = run.sources(tasks)[split].tasks
        return [critique(known[i], tasks.coder(run).text(answer)) for i, answer in asked]


def critique(task: Task, text: str | None) -> str:
    """`~7*2=4~`: the first of a chain's steps whose value an answer has not; `~#4~` if only its end is wrong."""
    wrote = (text or "").partition("#")[0].split(";")
    for step, said in zip_longest(task.entry, wrote[: len(task.entry)], fillvalue=""):
        if said.rpartition("=")[2] != step.rpartition("=")[2]:
            return f"~{step}~"
    return f"~#{task.answer}~"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Says that an answer is wrong, and no more."""

    words: str = "That is wrong. Try again."  # for tasks in words; of chains it says `~~`

    def check(self, run: Run) -> None:
        tasks_of(run)

    def __call__(self, run: Run, split: str, asked: Asked) -> list[str]:
        said = "~~" if isinstance(tasks_of(run), Chain) else self.words
        return [said] * len(asked)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A teacher that writes, for tasks in words: it reads the question, the reference solution and the answer."""

    teacher: str = "judge"  # of the recipe
    decoding: Decoding = Decoding(temperature=0.0, max_new=256)
    words: str = (
        "Question:\n{question}\n\nReference solution, which the student must not see:\n{solution}\n\nThe student's answer, "
        "which is wrong:\n{answer}\n\nSay in a few sentences where the answer goes wrong and how to go on from there. Do "
        "not give away the final answer."
    )

    def check(self, run: Run) -> None:
        tasks = tasks_of(run)
        if isinstance(tasks, Chain):
            raise RunError("chains have no words to judge: set train.method.judge to methods.feedback.Critic")
        if self.teacher not in run.teachers or "text" not in run.teachers[self.teacher].gives:
            raise RunError(
                f"the judge needs a teacher {self.teacher!r} that writes (teachers.chat.HttpChat, "
                f"teachers.writer.LocalChat); the recipe's teachers are {', '.join(run.teachers) or 'none'}"
            )

    def __call__(self, run: Run, split: str, asked: Asked) -> list[str]:
        tasks: Any = tasks_of(run)
        known, coder = run.sources(tasks)[split].tasks, tasks.coder(run)
        asks = [
            Ask(
                (
                    (
                        "user",
                        self.words.format(
                            question=known[i].question,
                            solution=known[i].shown,
                            answer=coder.text(a) or "(it did not end)",
                        ),
                    ),
                ),
                self.decoding,
            )
            for i, a in asked
        ]
        said: Any = run.teachers[self.teacher]({"asks": asks}, frozenset({"text"})).need("text")
        return [found[0].text if found else Verdict().words for found in said]


def next_turn(coder: Any, words: str, *, ended: bool = True) -> list[int]:
    """The tokens between a student's answer and its next one, when somebody says `words`.

    `ended`: whether the answer has its end token; where a chat template needs one, an answer that was cut off gets it here.
    """
    if isinstance(coder, Characters):
        return coder.prompt(words)
    if isinstance(coder, Bytes):
        return list(f"\n{words}\n".encode())
    tokenizer = coder.tokenizer
    if not tokenizer.chat_template:
        return tokenizer(f"\n{words}\n", add_special_tokens=False)["input_ids"]
    mark = "what-the-student-said"
    turns = [("user", "?"), ("assistant", mark), ("user", words)]
    try:
        chat = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, and refuses roles or orders as it likes
        raise RunError(f"the chat template refuses a second turn: {error}") from error
    tokens = tokenizer(text.partition(mark)[2], add_special_tokens=False)["input_ids"]
    return tokens[1:] if ended and tokens and tokens[0] in tokenizer.all_special_ids else tokens


def criticised(coder: Any, question: str, words: str, *, ended: bool = True) -> tuple[list[int], list[int]]:
    """(what follows an answer, what is to be written then) where a model is to judge its own answer in these `words`."""
    asked = [] if isinstance(coder, Characters) else next_turn(coder, "Criticise the answer above.", ended=ended)
    return asked, coder.answer(question, words)


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Chains to learn to listen from: each as it is, and with a wrong answer and what the critic says of it.

    The worked solution counts in both, the wrong answer and the criticism do not. In the wrong answer one step, drawn by
    the chain, has a wrong value, those behind it go on from there, and the end is wrong.
    """

    base: Chain
    length: int = 128  # tokens of a conversation, at most

    @property
    def classes(self) -> int | None:
        """As the chains have."""
        return self.base.classes

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The splits, one document a row, plain and corrected ones alternating."""
        return {name: self._twice(source, run) for name, source in run.sources(self.base).items()}

    def _twice(self, source: Any, run: Run) -> Packed:
        coder = self.base.coder(run)

        def documents() -> Iterator[Document]:
            for (plain,), task in zip(source.rows, source.tasks, strict=True):
                wrong = mistaken(task, self.base)
                read = plain.tokens[: plain.counts.index(True)] + coder.answer(task.question, wrong)
                read += next_turn(coder, critique(task, wrong))
                answer = coder.answer(task.question, task.solution)
                yield plain
                if len(read) + len(answer) <= self.length:
                    yield Document(read + answer, [False] * len(read) + [True] * len(answer), plain.example)

        return Packed(tuple((d,) for d in documents()), self.length, source.classes)


def mistaken(task: Task, chain: Chain) -> str:
    """A wrong answer to a chain, in the style of its solutions; the same one every time."""
    draw = random.Random(seed_of("mistaken", task.question))
    parts = re.findall(r"[+*-]?\d+", task.question)
    for at in draw.sample(range(len(task.entry)), len(task.entry)):
        left, _, right = task.entry[at].rpartition("=")
        value = (int(right) + draw.randrange(1, chain.base)) % chain.base
        rest = "".join(parts[at + 2 :])
        behind = chain_steps(f"{value}{rest}=", chain.base) if rest else []
        steps = [*task.entry[:at], f"{left}={value}", *behind]
        if steps[-1].rpartition("=")[2] != task.answer:  # a product with 0 forgives what came before it
            return chain_solution(steps, chain.style)
    raise AssertionError("a wrong last step gives a wrong answer")
