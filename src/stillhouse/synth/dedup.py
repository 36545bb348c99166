"""Of rows that say the same, or nearly, one stays: exactly, by the n-grams that they share, or by their vectors.

dedup: {use: synth.dedup.Dedup, column: question, by: minhash, alike: 0.7, priority: score}
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy
import torch
from numpy.typing import NDArray

from ..core.run import Run, RunError
from ..data import own
from ..models.hub import load_tokenizer, loading, resolve, transformers
from ..models.text import n_grams
from .flow import check_function
from .parse import plain
from .rules import folded, having, text_in
from .steps import Silent
from .table import Row, hash_of

SYNTH = "pip install 'stillhouse[synth]'"
Vectors = NDArray[numpy.float32]  # [N, d], each of length 1, or 0 for a text without anything
Twin = tuple[int, int, float]  # a row, the row that stays in its place, and how alike they are


# -- vectors ---------------------------------------------------------------------------------------------------------


class Embedder(Protocol):
    """A frozen dataclass in a recipe; `files` are those that its vectors depend on, if there are any."""

    def __call__(self, texts: Sequence[str], run: Run) -> Any:
        """`[N, d]`, of whatever length."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Counts of a text's words, word pairs and letter triples, each in one of `width` places, added or subtracted."""

    width: int = 1024

    def __call__(self, texts: Sequence[str], run: Run) -> Vectors:
        """Whole numbers, so that dot products are exact."""
        vectors = numpy.zeros((len(texts), self.width), numpy.float32)
        for vector, text in zip(vectors, texts, strict=True):
            codes = numpy.array([zlib.crc32(gram.encode(errors="replace")) for gram in n_grams(text)], numpy.int64)
            numpy.add.at(vector, (codes >> 1) % self.width, 1 - 2 * (codes & 1))
        return vectors


@dataclass(frozen=True, kw_only=True)
class HubEncoder:
    """The mean of an encoder's last hidden states over a text's tokens."""

    path: str  # a folder, or a hub id in the local cache
    length: int = 256  # tokens of a text, at most
    batch: int = 32

    @property
    def files(self) -> list[Path]:
        """Those of the folder."""
        folder = Path(self.path).expanduser()
        return sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], run: Run) -> Vectors:
        """The vectors."""
        tokenizer, model = _encoder(self.path, str(run.device))
        found: list[Any] = []
        for begin in range(0, len(texts), self.batch):
            some = list(texts[begin : begin + self.batch])
            read = tokenizer(some, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
            read = {name: value.to(run.device) for name, value in read.items()}
            mask = read["attention_mask"][..., None].float()
            hidden = model(**read).last_hidden_state.float() * mask
            found.append((hidden.sum(1) / mask.sum(1).clamp(min=1)).cpu())
        return torch.cat(found).numpy()


@lru_cache(maxsize=2)
def _encoder(path: str, device: str) -> tuple[Any, Any]:
    with loading(path):
        return load_tokenizer(path), transformers().AutoModel.from_pretrained(resolve(path)).eval().to(device)


@dataclass(frozen=True, kw_only=True)
class OwnEmbedder:
    """A function of yours: a list of texts to a list of vectors. It runs in a process of its own."""

    function: str  # FILE.py:NAME
    batch: int = 256
    seconds: float = 600.0  # for one batch

    def __post_init__(self) -> None:
        check_function(self.function)

    @property
    def files(self) -> list[Path]:
        """What the vectors depend on beside the settings."""
        return [Path(self.function.rpartition(":")[0])]

    def __call__(self, texts: Sequence[str], run: Run) -> Any:
        """What the function gives."""
        found: list[Any] = []
        for begin in range(0, len(texts), self.batch):
            try:
                found += own.asked(self.function, [list(texts[begin : begin + self.batch])], self.seconds)
            except (own.Failed, TypeError) as error:
                raise RunError(f"the vectors of {self.function}: {error}") from error
        return found


def vectors_of(texts: Sequence[str], embed: Embedder, run: Run) -> Vectors:
    """Vectors of length 1 (0 where a text has none); RunError if what `embed` gives is no matrix of finite numbers."""
    if not texts:
        return numpy.zeros((0, 1), numpy.float32)
    try:
        found = numpy.asarray(embed(texts, run), dtype=numpy.float32)
    except (ValueError, TypeError) as error:
        raise RunError(f"the vectors of {type(embed).__name__} are no numbers, or not all as long: {error}") from error
    if found.ndim != 2 or len(found) != len(texts) or not numpy.isfinite(found).all():
        wanted = f"one vector of finite numbers for each of {len(texts)} texts"
        raise RunError(f"{type(embed).__name__} must give {wanted}, not an array of {found.shape}")
    lengths = numpy.linalg.norm(found, axis=1, keepdims=True)
    return (found / numpy.where(lengths > 0, lengths, 1)).astype(numpy.float32, copy=False)


# -- the step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dedup(Silent):
    """Rows pass of which no row that goes before them says the same; the others are lost, with whom they are like.

    Before goes who has more in the column `priority`, then whose `_id` comes first, whatever the order of the rows. So
    every row that is lost is like one that stays, and no two that stay are alike. `exact` means equal but for case and
    blanks; `plain` but for all that is no letter or digit (`3+4` is `3*4` then); `minhash` that the share of the n-grams
    which both have, of those which one of them has, is at least `alike` (Jaccard), among pairs that their MinHashes point
    to, which is nearly all of them (Broder 1997; needs datasketch); `embedding` that the cosine of their vectors is.

    Rows without text pass. A barrier: it remembers a hash of every text, four bytes for each different n-gram, or the text
    with its vector, not the rows. Pairs of vectors are compared one and all: from some 100,000 rows on take minhash.
    """

    column: str = "text"
    by: Literal["exact", "plain", "minhash", "embedding"] = "plain"
    alike: float = 0.8  # from here on two texts say the same; for minhash and embedding
    gram: int = 3  # parts of an n-gram, for minhash
    of: Literal["words", "letters"] = "words"  # what an n-gram has; letters for texts without blanks between words
    permutations: int = 128  # of a MinHash
    embed: Embedder = Hashed()  # or synth.dedup.HubEncoder, OwnEmbedder
    priority: str | None = None  # the column with a number; who has more stays, and one who has none goes last

    def __post_init__(self) -> None:
        if not 0 < self.alike <= 1 or self.gram < 1 or self.permutations < 16:
            raise ValueError("alike must be above 0 and at most 1, gram 1 or more, permutations 16 or more")

    @property
    def files(self) -> Sequence[Path]:
        """What its rows depend on beside its settings."""
        return getattr(self.embed, "files", [])

    def check(self, run: Run) -> None:
        """RunError if datasketch is missing."""
        if self.by == "minhash":
            _datasketch()

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that stay, in the order in which they came."""
        self.check(run)
        table = having(rows, run, self.column, *([self.priority] if self.priority else []))
        keys = [(-number_in(row, self.priority), str(row["_id"])) for row in table]
        features = self._features(table)
        order = sorted(features, key=keys.__getitem__)
        twins = {order[row]: (order[other], alike) for row, other, alike in self._twins([features[n] for n in order], run)}
        for number, row in enumerate(table):
            if number in twins:
                other, alike = twins[number]
                run.work.lose(row, "another row says the same", like=keys[other][1], alike=round(alike, 4))
            else:
                yield row

    def _features(self, table: Sequence[Row]) -> dict[int, Any]:
        """What rows are compared by, by their numbers; not of those without text."""
        texts = ((number, text_in(row, self.column)) for number, row in enumerate(table))
        read = {"exact": lambda text: hash_of(folded(text)), "plain": lambda text: hash_of(plain_or_all(text))}
        read |= {"minhash": lambda text: codes_of(text, self.gram, self.of), "embedding": str}
        return {number: read[self.by](text) for number, text in texts if text.strip()}

    def _twins(self, features: Sequence[Any], run: Run) -> Iterator[Twin]:
        if self.by == "embedding":
            return near_vectors(vectors_of(features, self.embed, run), self.alike)
        return near_sets(features, self.alike, self.permutations) if self.by == "minhash" else _equal(features)


def number_in(row: Row, column: str | None, otherwise: float = float("-inf")) -> float:
    """What a column says, if it is a number, or text that is one (as in a CSV file), and no NaN; 0 without a column."""
    try:
        number = float(row.get(column)) if column else 0.0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return otherwise
    return number if number == number else otherwise


def plain_or_all(text: str) -> str:
    """`plain`, or all of a text without letters and digits: two emoji are not the same text."""
    return plain(text) or folded(text)


def grams_of(text: str, n: int, of: str) -> list[str]:
    """The n-grams of the words or letters of a text; one of all of it if it has fewer."""
    parts = plain_or_all(text).split()
    parts, between = (parts, " ") if of == "words" else (list(" ".join(parts)), "")
    return [between.join(parts[i : i + n]) for i in range(max(1, len(parts) - n + 1))] if parts else []


def codes_of(text: str, n: int, of: str) -> NDArray[numpy.uint32]:
    """The different n-grams of a text as sorted numbers."""
    codes = [zlib.crc32(gram.encode(errors="replace")) for gram in grams_of(text, n, of)]
    return numpy.unique(numpy.array(codes, numpy.uint32))


def jaccard(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The share of what both sets have; that of two empty ones is 1."""
    both = len(numpy.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def near_sets(sets: Sequence[NDArray[numpy.uint32]], alike: float, permutations: int = 128) -> Iterator[Twin]:
    """Sets that are like an earlier one that stays; pairs to which the MinHashes point are compared as they are."""
    lib = _datasketch()
    index = lib.MinHashLSH(threshold=alike, num_perm=permutations, weights=(0.1, 0.9))  # to miss none is what matters
    none = lib.MinHash(num_perm=permutations, hashfunc=int)
    for number, codes in enumerate(sets):
        sketch = none.copy()
        sketch.update_batch(codes.tolist())
        pairs = [(jaccard(codes, sets[other]), -other) for other in index.query(sketch)]
        best, other = max(pairs, default=(-1.0, 0))
        if best >= alike:
            yield number, -other, best
        else:
            index.insert(number, sketch)


def near_vectors(vectors: Vectors, alike: float, block: int = 256) -> Iterator[Twin]:
    """Vectors of length 1 whose cosine with an earlier one that stays is at least `alike`."""
    stay = numpy.ones(len(vectors), bool)
    for begin in range(0, len(vectors), block):
        rows = vectors[begin : begin + block]
        before = numpy.flatnonzero(stay[:begin])
        others = numpy.concatenate([before, numpy.arange(begin, begin + len(rows))])
        for number, cosines in enumerate(rows @ vectors[others].T, begin):
            cosines[(others >= number) | ~stay[others]] = -2.0
            best = int(cosines.argmax())
            if cosines[best] >= alike - 1e-6:  # equal texts are alike whatever is lost in rounding
                stay[number] = False
                yield number, int(others[best]), float(cosines[best])


def _equal(names: Sequence[str]) -> Iterator[Twin]:
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if seen.setdefault(name, number) != number:
            yield number, seen[name], 1.0


def _datasketch() -> Any:
    try:
        return import_module("datasketch")
    except ImportError as error:
        raise RunError(f"MinHash needs datasketch: {SYNTH}") from error
