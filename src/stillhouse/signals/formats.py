"""The ways to keep a signal. A format is a frozen dataclass that turns items into bytes and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..core.recipe import nearest
from ..core.run import RunError
from ..core.signal import Kind, Signal

Facts = Mapping[str, Any]


class Format(Protocol):
    """How one kind of signal is kept: bytes of each item, key after key."""

    name: ClassVar[str]

    @property
    def kinds(self) -> frozenset[Kind]:
        """What a reader of these signals can be asked for."""
        ...

    def ask(self) -> frozenset[Kind]:
        """What the teacher is asked for, in the order of preference that `encode` has."""
        ...

    def size(self, classes: int, width: int) -> float:
        """Bytes of one item, about, for a head of so many classes over states of that width."""
        ...

    def facts(self, items: Signal, classes: int | None) -> dict[str, Any]:
        """What a reader has to know, found from the first items: plain values for the header."""
        ...

    def prepare(self, items: Signal, folder: Path) -> None:
        """Write what is kept once beside the records (a head), if anything."""
        ...

    def encode(self, items: Signal, counts: Sequence[int], keys: Sequence[bytes], facts: Facts) -> list[bytes]:
        """The record of each key from its items."""
        ...

    def decode(self, records: Sequence[memoryview], counts: Sequence[int], facts: Facts, folder: Path) -> Signal:
        """The items of some records."""
        ...


def plain(form: Any) -> dict[str, Any]:
    """The format as the header holds it; the inverse of `build`."""
    return {"name": form.name, **asdict(form)}


def build(told: Mapping[str, Any]) -> Any:
    """The format that a header tells of."""
    from .hidden import Hidden
    from .raw import Raw
    from .sampled import Sampled
    from .topk import KeptTopK

    known = {form.name: form for form in (KeptTopK, Sampled, Hidden, Raw)}
    fields = {key: value for key, value in told.items() if key != "name"}
    if told.get("name") not in known:
        raise RunError(f"signals in the format {told.get('name')!r}, which this version does not know: update stillhouse")
    return known[told["name"]](**fields)


def parse(text: str) -> Any:
    """A format from `topk:64`, `sampled:50`, `hidden:float16`, `logits`, `features`, `text`, `score`, `reward`."""
    from .hidden import Hidden
    from .raw import RAW, Raw
    from .sampled import Sampled
    from .topk import KeptTopK

    name, _, value = text.partition(":")
    try:
        if name == "topk":
            return KeptTopK(k=int(value or 64))
        if name == "sampled":
            return Sampled(draws=int(value or 50))
        if name == "hidden":
            return Hidden(dtype=value or "float16")  # type: ignore[arg-type]
        if name in RAW and not value:
            return Raw(kind=name)  # type: ignore[arg-type]
    except ValueError as error:
        raise RunError(f"--signal {text}: {error}") from error
    known = ["topk:64", "sampled:50", "hidden:float16", *RAW]
    raise RunError(f"no signal format {text!r}{nearest(text, known)} (all: {', '.join(known)})")
