"""Scripts for `teachers.scripted.Scripted`: what stands in for a language model where everything else is to be checked."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...models.text import n_grams
from ...teachers.scripted import Answers
from ...teachers.text import Ask


@dataclass(frozen=True, kw_only=True)
class Imitator:
    """Writes as the classes of a data set do, word after word, and tells classes apart as well as their words allow.

    Asked for a text of class A with a share of B it draws each word behind the one before from how A or B goes on. The
    share that it reaches strays from what was asked for, as a language model's does; it remembers which class it took
    more words from, and that is the truth about the text.
    """

    data: Any  # a DataSpec of labelled texts, all of whose training rows it knows
    drift: float = 0.25  # standard deviation of the share that a text reaches
    wrong: float = 0.05  # share of its answers about a text's class that are another class, drawn at random
    longest: int = 30  # words

    def build(self, run: Run) -> Answers:
        """Read the data and count."""
        texts: dict[str, list[list[str]]] = defaultdict(list)
        for row in self.data.rows(run)["train"]:
            texts[row["label"]].append(row["text"].split())
        return _Knowledge(self, texts)


class _Knowledge:
    """What the script has counted."""

    def __init__(self, script: Imitator, texts: Mapping[str, Sequence[Sequence[str]]]):
        self.script = script
        self.lengths = {name: [min(len(t), script.longest) for t in found] for name, found in texts.items()}
        self.next: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in texts}
        self.words: dict[str, list[str]] = {name: [w for t in found for w in t] for name, found in texts.items()}
        for name, found in texts.items():
            for words in found:
                for a, b in zip(["", *words], words, strict=False):
                    self.next[name][a].append(b)
        self.judge = NaiveBayes({name: [" ".join(t) for t in found] for name, found in texts.items()})

    def __call__(self, ask: Ask, rng: random.Random) -> Completion:
        about = ask.about
        if "names" in about:
            said = self.judge(about["text"], about["names"])
            if rng.random() < self.script.wrong:
                said = rng.choice([name for name in about["names"] if name != said])
            return Completion(said, read=ask.size, wrote=4)
        if "wanted" not in about:
            raise RunError("this script writes texts of a class and names the class of a text, and was asked something else")
        made = [self._text(about["label"], about["other"], about["share"] / 100, rng) for _ in range(about["wanted"])]
        answer = "\n".join(f"{i}. {text}" for i, (text, _) in enumerate(made, 1))
        labels = [label for _, label in made]
        return Completion(answer, read=ask.size, wrote=-(-len(answer) // 4), truth={"labels": labels})

    def _text(self, a: str, b: str, share: float, rng: random.Random) -> tuple[str, str]:
        """A text and the class that most of its words were drawn from."""
        reached = share if share == 1.0 else min(1.0, max(0.0, rng.gauss(share, self.script.drift)))
        words, sources, last = list[str](), Counter[str](), ""
        for _ in range(rng.choice(self.lengths[a])):
            name = a if rng.random() < reached else b
            last = rng.choice(self.next[name].get(last) or self.words[name])
            words.append(last)
            sources[name] += 1
        return " ".join(words), a if sources[a] >= sources[b] else b


class NaiveBayes:
    """The likeliest class by the n-grams of a text (multinomial, smoothed by `smoothing` of a count)."""

    def __init__(self, texts: Mapping[str, Sequence[str]], smoothing: float = 0.1):
        counts = {name: Counter(gram for text in found for gram in n_grams(text)) for name, found in texts.items()}
        known = set().union(*counts.values())
        total = sum(map(len, texts.values()))
        self.logs: dict[str, tuple[float, dict[str, float], float]] = {}
        for name, found in counts.items():
            size = sum(found.values()) + smoothing * (len(known) + 1)
            logs = {gram: math.log((count + smoothing) / size) for gram, count in found.items()}
            self.logs[name] = math.log(len(texts[name]) / total), logs, math.log(smoothing / size)

    def __call__(self, text: str, names: Sequence[str]) -> str:
        """The class of the text among `names`."""
        grams = n_grams(text)

        def score(name: str) -> float:
            prior, logs, unseen = self.logs[name]
            return prior + sum(logs.get(gram, unseen) for gram in grams)

        return max(names, key=score)
