"""Which names of each type does a student find in held-out passages, and does it know a type that nobody asked it about?

Every passage is asked about every type. Two names are the same if they are so in lower case without punctuation, articles
and surplus blanks (the normalisation that UniversalNER's evaluation uses); of each passage and type the sets are compared,
and precision, recall and F1 are of all of them together. An answer of a language model that is no JSON list says nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..data.tokens import encode_prompt
from ..models.generate import Sampling, generate
from ..synth.asked import conversation
from ..synth.jsons import json_in
from ..synth.synthesize import made_rows
from .significance import bootstrap

Said = dict[tuple[str, str], frozenset[str]]  # (text, type) -> names, normalised
NONE = frozenset[str]()


@dataclass(frozen=True, kw_only=True)
class NamedEntities:
    """`entity_f1`, precision and recall of all types, F1 of those that the training rows ask about (`entity_f1_asked`) and
    of the others (`entity_f1_new`), and how often something is found of a type that is absent (`false_alarms`).

    `heard` is a stage that let the teacher name what is in the same split: it is judged too, as `teacher`. Where passages do
    not say what they hold, its words are taken for the truth: F1 is then agreement with the teacher, and the teacher's is
    not told.
    """

    stage: str = "make"  # whose rows say which types were asked about
    heard: str | None = None
    split: str = "test"
    types: tuple[str, ...] = ()  # to ask about; none: those that the data say
    most: int = 20  # types, the most frequent ones, where nobody says which
    sampling: Sampling = Sampling(temperature=0.0)  # of language models
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """Findings per subject."""
        rows = list(run.recipe.data.rows(run)[self.split])
        told = self._heard(run, {row["text"] for row in rows})
        known = [row for row in rows if "entities" in row]
        if not known and not told:
            raise RunError(
                f"no {self.split} passage says which names it holds, and no stage let the teacher say so: give the data a "
                "column `entities`, or the audit `heard`, a Synthesize stage over this split"
            )
        truth = {row["text"]: row["entities"] for row in known} or told
        texts = [row["text"] for row in rows if row["text"] in truth]
        types = self.types or tuple(run.recipe.data.types(run)) or self._frequent(truth)
        asked = {query["type"] for row in made_rows(run, self.stage) for query in row["queries"]}
        pairs = [(text, kind) for text in texts for kind in types]
        gold = sets_of(truth, pairs)
        if known and told:
            yield from self._findings("teacher", sets_of(told, pairs), gold, texts, types, asked)
        for name in subjects.names:
            yield from self._findings(name, self._answers(subjects.load(name), name, pairs, run), gold, texts, types, asked)

    def _heard(self, run: Run, texts: set[str]) -> dict[str, Any]:
        if self.heard is None:
            return {}
        return {row["text"]: row["entities"] for row in made_rows(run, self.heard) if row["text"] in texts}

    def _frequent(self, truth: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
        count: dict[str, int] = {}
        for entities in truth.values():
            for each in entities:
                count[each["type"]] = count.get(each["type"], 0) + 1
        return tuple(sorted(count, key=lambda name: (-count[name], name))[: self.most])

    def _answers(self, module: Any, name: str, pairs: Sequence[tuple[str, str]], run: Run) -> Said:
        spec = getattr(run.recipe.stages.get(name), "student", None) or run.recipe.student
        if hasattr(spec, "found"):
            answers = spec.found(module, [text for text, _ in pairs], [kind for _, kind in pairs])
        else:
            tokenizer = spec.tokenizer(run)
            turns = [conversation(text, [{"type": kind}]) for text, kind in pairs]
            prompts = [
                encode_prompt({"messages": [*each, {"role": "assistant", "content": ""}]}, tokenizer) for each in turns
            ]
            tokens = generate(module, prompts, self.sampling, seed=run.seed)
            answers = [names_in(tokenizer.decode(each, skip_special_tokens=True)) for each in tokens]
        return {pair: normalised(names) for pair, names in zip(pairs, answers, strict=True)}

    def _findings(
        self, subject: str, said: Said, gold: Said, texts: Sequence[str], types: Sequence[str], asked: set[str]
    ) -> Iterator[Finding]:
        groups = {"": list(types), "_asked": [t for t in types if t in asked], "_new": [t for t in types if t not in asked]}
        for group, kinds in groups.items():
            if not kinds or (group and len(kinds) == len(types)):
                continue
            columns = torch.tensor([counts(text, kinds, said, gold) for text in texts], dtype=torch.float64)
            quantities: dict[str, Callable[[Tensor], Tensor]] = {"entity_f1": _f1}
            if not group:
                quantities |= {"entity_precision": _precision, "entity_recall": _recall, "false_alarms": _alarms}
            for name, statistic in quantities.items():
                found = bootstrap(columns, statistic, draws=self.draws)
                yield Finding(
                    name=name + group, value=found.value, low=max(0.0, found.low), high=min(1.0, found.high), n=found.n,
                    over="passages", subject=subject, split=self.split,
                    better="lower" if name == "false_alarms" else "higher",
                )  # fmt: skip


def normalise(name: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks."""
    bare = "".join(letter for letter in name.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def normalised(names: Sequence[str]) -> frozenset[str]:
    """Names as a set."""
    return frozenset(normalise(name) for name in names) - {""}


def names_in(answer: str) -> list[str]:
    """The names that an answer lists; none if it is no JSON list."""
    value = json_in(answer)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def sets_of(truth: Mapping[str, Sequence[Any]], pairs: Sequence[tuple[str, str]]) -> Said:
    """The names of each pair."""
    return {
        (text, kind): normalised([each["name"] for each in truth.get(text, ()) if each["type"] == kind])
        for text, kind in pairs
    }


def counts(text: str, types: Sequence[str], said: Said, gold: Said) -> list[int]:
    """(right, said, there, types that are absent of which something is found, absent types) of one passage."""
    found = [(said.get((text, kind), NONE), gold[text, kind]) for kind in types]
    absent = [one for one, other in found if not other]
    return [
        sum(len(one & other) for one, other in found), sum(len(one) for one, _ in found),
        sum(len(other) for _, other in found), sum(1 for one in absent if one), len(absent),
    ]  # fmt: skip


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1e-9), torch.zeros_like(part))


def _f1(sums: Tensor) -> Tensor:
    return _share(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


def _precision(sums: Tensor) -> Tensor:
    return _share(sums[:, 0], sums[:, 1])


def _recall(sums: Tensor) -> Tensor:
    return _share(sums[:, 0], sums[:, 2])


def _alarms(sums: Tensor) -> Tensor:
    return _share(sums[:, 3], sums[:, 4])
