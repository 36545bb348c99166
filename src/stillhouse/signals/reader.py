"""Stored signals as a teacher: it answers what it was asked at the capture, and refuses everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.signal import Batch, HeadLogits, Kind, Signal
from ..core.teacher import TeacherMismatch
from . import formats
from .items import put
from .keys import Places, places_of
from .store import Store

CHECKED = 64  # rows at a time


class StoredTeacher:
    """Gives what the signals in a store hold, for batches of the very documents or images that were labelled."""

    def __init__(self, store: Store, module: Callable[[], Any] | None = None):
        self.store, self._module = store, module
        self.format: formats.Format = formats.build(store.header["format"])
        self.facts: dict[str, Any] = store.header["facts"]
        self.gives: frozenset[Kind] = self.format.kinds
        self._heads: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The stored signal on the batch's item axes; NaN for items that do not count."""
        places = places_of(batch)
        device = batch["labels"].device
        signal = put(self.items(places), places, device)
        if not isinstance(signal.logits, HeadLogits) or signal.logits.weight.device == device:
            return signal
        if device not in self._heads:  # the head is as large as a small model: it moves once
            bias = signal.logits.bias
            self._heads[device] = (signal.logits.weight.to(device), None if bias is None else bias.to(device))
        weight, bias = self._heads[device]
        return replace(signal, logits=replace(signal.logits, weight=weight, bias=bias))

    @property
    def module(self) -> Any:
        """The model behind the signals, loaded anew and kept by nobody; AttributeError if it is not known."""
        if self._module is None:
            raise AttributeError("stored signals have no module")
        return self._module()

    def items(self, places: Places) -> Signal:
        """The stored signal of some places, with one item axis."""
        found = self.store.find(places.keys)
        if (found < 0).any():
            raise TeacherMismatch(self._missing(int((found < 0).sum()), len(found)))
        pairs = [self.store.record(number) for number in found.tolist()]
        return self.format.decode([data for data, _ in pairs], [items for _, items in pairs], self.facts, self.store.folder)

    def _missing(self, missing: int, asked: int) -> str:
        return (
            f"the signals in {self.store.folder} hold no answer for {missing:,} of {asked:,} documents (or images): they "
            "were made for other data, another --length, tokenizer or augmentation draw, or the method asks about text "
            "that the student writes; label these data, or give the teacher itself"
        )

    def check(self, method: Any, source: Any, epochs: int = 1) -> None:
        """Refuse, before the first step, a method or data that these signals cannot serve; TeacherMismatch says why."""
        if "topk" in self.gives:
            self._check_temperature(getattr(method, "temperature", 1.0))
        check_stored(method, self.gives, tempered=False)
        missing, asked = 0, 0
        first = source.batch(range(min(CHECKED, len(source))), 0)
        if isinstance(first["inputs"], dict) and "document" in first["inputs"]:
            for begin in range(0, len(source), CHECKED):
                batch = source.batch(range(begin, min(begin + CHECKED, len(source))), 0) if begin else first
                found = self.store.find(places_of(batch).keys)
                missing, asked = missing + int((found < 0).sum()), asked + len(found)
        else:
            for epoch in range(epochs):
                batch = source.batch([0], epoch) if epoch else first
                found = self.store.find(places_of(batch).keys)
                missing, asked = missing + int((found < 0).sum()), asked + len(found)
                if missing and epoch:
                    raise TeacherMismatch(
                        f"the signals in {self.store.folder} hold {epoch} augmentation draws of an image and this "
                        f"training asks for {epochs}: label as many (label.draws={epochs}), or "
                        f"let them repeat (data.augment.draws={epoch})"
                    )
        if missing:
            raise TeacherMismatch(self._missing(missing, asked))

    def _check_temperature(self, temperature: float) -> None:
        if temperature == 1.0:
            return
        mass = (self.store.done or {}).get("fidelity", {}).get("mass_at", {})
        known = f"{mass['1']:.0%} of this teacher's mass at temperature 1" if "1" in mass else "most of the mass at 1"
        nearest = min(mass, key=lambda t: abs(float(t) - temperature), default=None)
        there = f" and {mass[nearest]:.0%} at {nearest}" if nearest not in (None, "1") else ""
        raise TeacherMismatch(
            f"these signals keep some classes, which hold {known}{there}, and the method compares at temperature "
            f"{temperature:g}: use temperature 1, or label with --signal hidden:float16"
        )


def check_stored(method: Any, kinds: frozenset[Kind], *, tempered: bool = True) -> None:
    """Refuse a method that stored signals of these kinds cannot serve, whatever they hold; TeacherMismatch says why.

    `tempered`: also refuse a top k at another temperature than 1, without saying how much of the mass it would hold.
    """
    if getattr(method, "asks_about_own", False):
        way = "--set train.method.on_policy=0, or give" if hasattr(method, "on_policy") else "give"
        raise TeacherMismatch(
            "the method asks about what the student makes, and stored signals answer for given data only: "
            f"{way} the teacher itself"
        )
    if "features" in getattr(method, "needs", ()) and "features" not in kinds:
        raise TeacherMismatch("the method looks into its teacher, and signals are what one said: give the teacher itself")
    if "topk" in kinds and "logits" in getattr(method, "needs", ()) and not getattr(method, "takes_topk", False):
        raise TeacherMismatch("the method needs logits, and these signals keep some classes: --signal hidden:float16")
    temperature = getattr(method, "temperature", 1.0)
    if tempered and "topk" in kinds and temperature != 1.0:
        raise TeacherMismatch(
            f"the method compares at temperature {temperature:g}, and what is kept is the likeliest at 1: "
            "--set train.method.temperature=1, or --signal hidden:float16"
        )
