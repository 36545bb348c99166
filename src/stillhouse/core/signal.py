"""What a teacher said about a batch, raw: no temperature, no softmax, no reduction.

Shapes: `*N` any item axes (images, or batch x tokens), `V` classes or vocabulary, `d` hidden width, `k` kept entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Batch = Mapping[str, Any]
Kind = Literal[
    "logits", "topk", "features", "text", "score", "reward",
    "continuation",  # text that goes on from words which the asker has begun it with
    "suppression",  # text that does not begin with words which the asker rules out
    "logprobs",  # text with how likely each of its tokens was
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeadLogits:
    """Logits that are never written down: the last hidden state and the head that would project it.

    The logits are `cap(scale * (hidden @ weight.T + bias))[..., :classes]` with `cap(z) = softcap * tanh(z / softcap)`.
    `classes` trims rows that pad the vocabulary (Qwen stores 152,064 rows for 151,936 tokens): they are neither
    projected nor given probability.
    """

    hidden: Tensor  # [*N, d]
    weight: Tensor  # [V, d]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    classes: int | None = None

    @property
    def vocabulary(self) -> int:
        """How many classes the logits have, padding rows trimmed."""
        return self.classes or self.weight.shape[0]

    @property
    def shape(self) -> torch.Size:
        """The shape that the dense logits would have."""
        return torch.Size((*self.hidden.shape[:-1], self.vocabulary))

    def trim(self, classes: int) -> HeadLogits:
        """The same logits over the first `classes` classes."""
        return replace(self, classes=classes)

    def detach(self) -> HeadLogits:
        """The same logits, cut from the graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def __getitem__(self, items: Any) -> HeadLogits:
        """The logits of some items: any index of the item axes (a mask, a slice, positions)."""
        return replace(self, hidden=self.hidden[items])

    def dense(self) -> Tensor:
        """The logits themselves, `[*N, V]` in the dtype of `hidden`. Small inputs and tests only."""
        weight, bias = self.weight[: self.vocabulary], self.bias
        logits = torch.nn.functional.linear(self.hidden, weight.to(self.hidden.dtype))
        if bias is not None:
            logits = logits + bias[: self.vocabulary].to(logits.dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True, slots=True)
class TopK:
    """The part of a distribution that a server or a store keeps, honest about what it cut off."""

    values: Tensor  # [*N, k] log-probabilities at temperature 1
    index: Tensor  # [*N, k] class ids
    rest: Tensor  # [*N] log of the mass outside the k classes; -inf if there is none
    sampled: bool = False  # the values are relative counts of drawn classes: right on average, not one by one
    classes: int | None = None  # how many classes there are in all, if that is known

    def __getitem__(self, items: Any) -> TopK:
        """The kept entries of some items: any index of the item axes."""
        return replace(self, values=self.values[items], index=self.index[items], rest=self.rest[items])


Logits = Tensor | HeadLogits


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to one prompt."""

    text: str
    tokens: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None  # of the tokens, under the model that wrote them
    finished: bool = True  # False: it was cut off at the longest length asked for
    read: int = 0  # tokens of the prompt, as far as its writer counts them
    wrote: int = 0  # tokens of the answer
    truth: Mapping[str, Any] | None = None  # what a scripted teacher knows about its own answer


@dataclass(frozen=True, slots=True)
class Signal:
    """Everything one teacher said about one batch; fields it did not give are None."""

    logits: Logits | None = None  # [*N, V]
    topk: TopK | None = None
    features: Mapping[str, Tensor] | None = None  # layer name -> tensor
    text: Sequence[Sequence[Completion]] | None = None  # per prompt, per sample
    score: Tensor | None = None  # like the sample: x0, noise or velocity
    reward: Tensor | None = None  # [N]

    def distribution(self) -> Logits | TopK:
        """What is known of the distribution over classes: the logits, or a top k if there are none."""
        return self.topk if self.logits is None and self.topk is not None else self.need("logits")

    def need(self, kind: Kind) -> Any:
        """The field `kind`; LookupError that names what was given if the teacher did not give it."""
        value = getattr(self, kind)
        if value is None:
            given = [k for k in self.__slots__ if getattr(self, k) is not None]
            raise LookupError(f"the method needs {kind!r}, but the teacher gave {', '.join(given) or 'nothing'}")
        return value
