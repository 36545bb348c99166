"""How far apart two categorical distributions are, one value per item, in nats.

Everywhere: student first, teacher second; `[*N, V]` logits in, `[*N]` out; no reduction and no T² factor. The student
is a tensor or `HeadLogits`, the teacher a tensor, `HeadLogits` or `TopK`; no gradient goes to the teacher. `weight`
[*N] (a mask, a confidence; a constant) multiplies the values, and an item of weight 0 is not even looked at.

With p the teacher's and q the student's distribution, an f-divergence is D = sum_v q f(p/q). Everything here is
written with `term(log_q, log_p) = q f(p/q)`, whose derivative with respect to log_q is q h(p/q) with
h(r) = f(r) - r f'(r), so that dD/dz = q h - q sum(q h) for the student's logits z. A new divergence is a frozen
dataclass with a `term`; it then works on dense logits, on `HeadLogits` and on a top-k teacher.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillhouse.core.signal import HeadLogits, Logits, TopK

from . import fused
from .fused import IMPOSSIBLE, Block


class FDivergence(ABC):
    """A divergence that is a sum over classes; subclasses say what one class contributes."""

    @abstractmethod
    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """What one class contributes, q f(p/q), elementwise and differentiable; finite for log-probabilities of -1e30.

        It must be written so that the contributions of equal distributions add up to 0.
        """

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """d term / d log_q = q h(p/q), elementwise. Worth writing out only for speed."""
        with torch.enable_grad():
            log_q = log_q.detach().requires_grad_()
            return torch.autograd.grad(self.term(log_q, log_p).sum(), log_q)[0]

    def block(self, student: Tensor, teacher: Tensor, grad: bool) -> Tensor:
        """Values [n] of rows of logits [n, V]; if `grad`, `student` becomes their gradient. May overwrite both."""
        log_q, log_p = _log_softmax_(student), _log_softmax_(teacher)
        values = self.term(log_q, log_p).sum(-1)
        if grad:
            slope = self.slope(log_q, log_p)
            log_q.exp_().mul_(-slope.sum(-1, keepdim=True)).add_(slope)
        return values

    def __call__(
        self,
        student: Logits,
        teacher: Logits | TopK,
        *,
        temperature: float | Tensor = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The divergence of each item, [*N]. `temperature` divides both sides' logits: a number, or one per item.

        A temperature that is learned gets its gradient on dense logits only; for `HeadLogits` it is a constant.
        """
        fused.check_classes(student, teacher)
        check_top(self, teacher, temperature)
        if isinstance(student, HeadLogits):
            rule = Match(self, _number(temperature))
            return fused.apply(rule, student, teacher, weight=weight, **_tensor(temperature))[0]

        def values(student: Tensor, teacher: Tensor | TopK, temperature: float | Tensor) -> Tensor:
            return self.term(*log_probabilities(student, teacher, temperature)).sum(-1)

        each = temperature.expand(student.shape[:-1]) if isinstance(temperature, Tensor) else temperature
        return dense(values, student, teacher, each, weight=weight)


@dataclass(frozen=True)
class ForwardKL(FDivergence):
    """KL(p ‖ q) = sum p (log p - log q), mass-covering; f(r) = r log r. The classic distillation loss."""

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_p.exp() * (log_p - log_q)

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return -log_p.exp()

    def block(self, student: Tensor, teacher: Tensor, grad: bool) -> Tensor:
        # In place, and without normalised log-probabilities: KL = sum p (t - s) - log Z_t + log Z_s, gradient q - p.
        s, t = shift_(student), shift_(teacher)
        p = t.exp()
        t.sub_(s)
        q = s.exp_()
        z_p, z_q = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)
        p.div_(z_p)
        values = t.mul_(p).sum(-1) + (z_q.log() - z_p.log()).squeeze(-1)
        if grad:
            q.div_(z_q).sub_(p)
        return values


@dataclass(frozen=True)
class ReverseKL(FDivergence):
    """KL(q ‖ p) = sum q (log q - log p), mode-seeking; f(r) = -log r (MiniLLM, Gu et al. 2023)."""

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_q.exp() * (log_q - log_p)

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_q.exp() * (1.0 + log_q - log_p)

    def block(self, student: Tensor, teacher: Tensor, grad: bool) -> Tensor:
        s, t = shift_(student), shift_(teacher)
        log_z_p = t.exp().sum(-1, keepdim=True).log_()
        torch.sub(s, t, out=t)
        q = s.exp_()
        z_q = q.sum(-1, keepdim=True)
        q.div_(z_q)
        t.add_(log_z_p - z_q.log())  # log q - log p
        values = (q * t).sum(-1)
        if grad:
            q.mul_(t.sub_(values.unsqueeze(-1)))
        return values


@dataclass(frozen=True)
class JSD(FDivergence):
    """beta KL(p ‖ m) + (1 - beta) KL(q ‖ m) with m = beta p + (1 - beta) q (GKD, Agarwal et al. 2023, Eq. 1).

    As in that paper's code, beta = 0 is KL(p ‖ q) and beta = 1 is KL(q ‖ p): the limits of the sum divided by
    beta (1 - beta), whose own limits would be 0. At most log 2, reached at beta = 0.5.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta must be between 0 and 1, not {self.beta}")

    def _limit(self) -> FDivergence | None:
        return ForwardKL() if self.beta == 0.0 else ReverseKL() if self.beta == 1.0 else None

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        if limit := self._limit():
            return limit.term(log_q, log_p)
        log_m = _log_mix(self.beta, log_p, log_q)
        return self.beta * log_p.exp() * (log_p - log_m) + (1 - self.beta) * log_q.exp() * (log_q - log_m)

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        if limit := self._limit():
            return limit.slope(log_q, log_p)
        return (1 - self.beta) * log_q.exp() * (log_q - _log_mix(self.beta, log_p, log_q))

    def block(self, student: Tensor, teacher: Tensor, grad: bool) -> Tensor:
        if limit := self._limit():
            return limit.block(student, teacher, grad)
        s, t = shift_(student), shift_(teacher)
        q, p = s.exp(), t.exp()
        z_q, z_p = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
        p.mul_(z_q / z_p)  # now p and q are both z_q times too large, and so is their mixture
        # Where both underflow the clamp makes log m wrong, and p = q = 0 makes that harmless.
        log_m = torch.lerp(q, p, self.beta).clamp_(min=torch.finfo(q.dtype).tiny).log_()
        of_p = p.mul_(t.sub_(log_m)).sum(-1, keepdim=True) / z_q + (z_q / z_p).log()
        terms = torch.mul(q, s.sub_(log_m), out=log_m)
        of_q = terms.sum(-1, keepdim=True) / z_q
        if grad:
            rate = (1 - self.beta) / z_q
            torch.addcmul(q.mul_(-of_q * rate), terms, rate, out=student)
        return (self.beta * of_p + (1 - self.beta) * of_q).squeeze(-1)


@dataclass(frozen=True)
class SkewKL(FDivergence):
    """KL(p ‖ alpha p + (1 - alpha) q): forward KL that stays bounded (DistiLLM, Ko et al. 2024, Eq. 4)."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_p.exp() * (log_p - _log_mix(self.alpha, log_p, log_q))

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        share = math.log1p(-self.alpha) + log_q - _log_mix(self.alpha, log_p, log_q)  # log of q's share in the mixture
        return -(log_p + share).exp_()


@dataclass(frozen=True)
class SkewReverseKL(FDivergence):
    """KL(q ‖ (1 - alpha) p + alpha q): reverse KL that stays bounded (DistiLLM, Ko et al. 2024, Eq. 5)."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_q.exp() * (log_q - _log_mix(self.alpha, log_q, log_p))


@dataclass(frozen=True)
class TotalVariation(FDivergence):
    """Half the L1 distance, at most 1; f(r) = |r - 1| / 2. A sub-gradient where p = q."""

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs()

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return 0.5 * (log_q - log_p).sign_() * log_q.exp()


@dataclass(frozen=True)
class Hellinger(FDivergence):
    """The squared Hellinger distance, sum (sqrt p - sqrt q)² / 2, at most 1; f(r) = (1 - sqrt r)² / 2."""

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return 0.5 * ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square()


@dataclass(frozen=True)
class Alpha(FDivergence):
    """Amari's family, (1 - sum p^alpha q^(1 - alpha)) / (alpha (1 - alpha)): ReverseKL at 0, ForwardKL at 1.

    Outside [0, 1] a class that the student has all but forgotten makes value and gradient overflow, so it is refused.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1 (it overflows outside), not {self.alpha}")

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        a = self.alpha
        if a in (0.0, 1.0):
            return (ForwardKL() if a else ReverseKL()).term(log_q, log_p)
        return (a * log_p.exp() + (1 - a) * log_q.exp() - (a * log_p + (1 - a) * log_q).exp()) / (a * (1 - a))


Divergence = ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation | Hellinger | Alpha


def cross_entropy(student: Logits, labels: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """-log q[label] of each item, [*N]. An item whose label is negative (-100) has the value 0."""
    counted = labels >= 0
    weight = counted if weight is None else weight * counted
    if isinstance(student, HeadLogits):
        return fused.apply(LabelNLL(), student, weight=weight, labels=labels)[0]

    def values(student: Tensor, labels: Tensor) -> Tensor:
        return -log_softmax(student).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)

    return dense(values, student, labels, weight=weight)


def token_logp(student: Logits, ids: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """log q[id] of each item, [*N]: what policy gradients and preference losses need. 0 where the id is negative."""
    return -cross_entropy(student, ids, weight=weight)


def entropy(student: Logits, *, weight: Tensor | None = None) -> Tensor:
    """-sum q log q of each item, [*N], in nats."""
    if isinstance(student, HeadLogits):
        return fused.apply(Entropy(), student, weight=weight)[0]

    def values(student: Tensor) -> Tensor:
        log_q = log_softmax(student)
        return -(log_q.exp() * log_q).sum(-1)

    return dense(values, student, weight=weight)


class Mixed(NamedTuple):
    """A weighted sum of two terms, and the terms for the log (already weighted by item, without gradient); all [*N]."""

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor


def mixed(
    divergence: FDivergence,
    student: Logits,
    teacher: Logits | TopK,
    labels: Tensor,
    alpha: float,
    *,
    temperature: float | Tensor = 1.0,
    weight: Tensor | None = None,
) -> Mixed:
    """alpha * divergence + (1 - alpha) * cross-entropy of each item, in one pass over `HeadLogits`.

    The temperature is the divergence's only. Hinton's factor T² is not included: fold it into `alpha` if you want it.
    An item whose label is negative has no cross-entropy but keeps its divergence.
    """
    if not isinstance(student, HeadLogits):
        matched = divergence(student, teacher, temperature=temperature, weight=weight)
        nll = cross_entropy(student, labels, weight=weight)
        return Mixed(alpha * matched + (1 - alpha) * nll, matched.detach(), nll.detach())
    check_top(divergence, teacher, temperature)
    rule = MatchAndLabel(Match(divergence, _number(temperature)), alpha)
    total, columns = fused.apply(rule, student, teacher, weight=weight, labels=labels, **_tensor(temperature))
    if weight is not None:
        columns = columns * weight.detach().unsqueeze(-1)
    return Mixed(total, columns[..., 1], columns[..., 2])


# Rules for the fused pass


@dataclass(frozen=True)
class Match:
    """A divergence from the teacher's logits or from its top k, at a temperature (or `items["temperature"]`)."""

    divergence: FDivergence
    temperature: float = 1.0
    columns: int = 1

    def __call__(self, block: Block) -> Tensor:
        if isinstance(block.teacher, TopK):
            return _top_k(self.divergence, block.student, block.teacher, block.grad).unsqueeze(-1)
        student, teacher = block.student, block.dense()
        each = block.items.get("temperature")
        temperature = self.temperature if each is None else each.to(student.dtype).unsqueeze(-1)
        tempered = each is not None or self.temperature != 1.0
        if tempered:
            student.div_(temperature)
            teacher.div_(temperature)
        values = self.divergence.block(student, teacher, block.grad)
        if tempered and block.grad:
            student.div_(temperature)
        return values.unsqueeze(-1)


@dataclass(frozen=True)
class MatchAndLabel:
    """alpha * match + (1 - alpha) * cross-entropy; also both terms."""

    match: Match
    alpha: float
    columns: int = 3

    def __call__(self, block: Block) -> Tensor:
        labelled = Block(block.student.clone(), None, block.grad, block.items)
        matched = self.match(block)
        nll = LabelNLL()(labelled)
        if block.grad:
            block.student.mul_(self.alpha).add_(labelled.student, alpha=1 - self.alpha)
        return torch.cat([self.alpha * matched + (1 - self.alpha) * nll, matched, nll], -1)


@dataclass(frozen=True)
class LabelNLL:
    """Cross-entropy with `items["labels"]`; 0 where the label is negative."""

    columns: int = 1

    def __call__(self, block: Block) -> Tensor:
        labels = block.items["labels"].unsqueeze(-1)
        here, counted = labels.clamp(min=0), labels >= 0
        z = shift_(block.student)
        chosen = z.gather(-1, here)
        mass = z.exp_().sum(-1, keepdim=True)
        if block.grad:
            z.mul_(counted / mass)
            z.scatter_add_(-1, here, -counted.to(z.dtype))
        return (mass.log() - chosen).masked_fill(~counted, 0.0)


@dataclass(frozen=True)
class Entropy:
    """The student's entropy."""

    columns: int = 1

    def __call__(self, block: Block) -> Tensor:
        log_q = _log_softmax_(block.student)
        q = log_q.exp()
        values = -(q * log_q).sum(-1, keepdim=True)
        if block.grad:
            log_q.add_(values).mul_(q).neg_()
        return values


def _top_k(divergence: FDivergence, z: Tensor, teacher: TopK, grad: bool) -> Tensor:
    """Values over k + 1 outcomes, the k classes and "any other"; if `grad`, `z` becomes the gradient.

    The rest is normalised by itself, so that its gradient is right even when its mass underflows.
    """
    kept = z.gather(-1, teacher.index)
    z.scatter_(-1, teacher.index, -torch.inf)
    peak = z.amax(-1, keepdim=True).clamp_(min=IMPOSSIBLE)  # -inf if k = V
    within = z.sub_(peak).exp_()  # becomes P(class | rest)
    mass = within.sum(-1, keepdim=True)
    log_q = torch.cat([kept, mass.log() + peak], -1).log_softmax(-1).clamp_(min=IMPOSSIBLE)
    log_p = _outcomes(teacher, z.dtype)
    values = divergence.term(log_q, log_p).sum(-1)
    if grad:
        slope = divergence.slope(log_q, log_p)
        pull = slope - log_q.exp() * slope.sum(-1, keepdim=True)
        within.mul_(pull[:, -1:] / mass.clamp(min=torch.finfo(z.dtype).tiny))
        within.scatter_(-1, teacher.index, pull[:, :-1])
    return values


# Dense logits: ordinary autograd, so that second derivatives work too


def dense(values: Callable[..., Tensor], student: Tensor, *items: Any, weight: Tensor | None) -> Tensor:
    """`values(student, *items)` [*N] times `weight`; items of weight 0 are left out of the computation."""
    if weight is None:
        return values(student, *items)
    shape = student.shape[:-1]
    weights, rows = fused.live(weight, shape)
    assert weights is not None
    if rows is None:
        found = values(student, *items)
        return found * weights.reshape(shape).to(found.dtype)
    found = values(*(_pick(x, shape, rows) for x in (student, *items)))
    found = found * weights[rows].to(found.dtype)
    return found.new_zeros(len(weights)).index_copy(0, rows, found).reshape(shape)


def _pick(x: Any, shape: torch.Size, rows: Tensor) -> Any:
    """The items `rows` of anything that has item axes."""
    if isinstance(x, TopK):
        values, index, rest = (_pick(part, shape, rows) for part in (x.values, x.index, x.rest))
        return replace(x, values=values, index=index, rest=rest)
    if isinstance(x, HeadLogits):
        return replace(x, hidden=_pick(x.hidden, shape, rows))
    return x.reshape(-1, *x.shape[len(shape) :])[rows] if isinstance(x, Tensor) else x


def log_probabilities(student: Tensor, teacher: Logits | TopK, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """log q and log p over the classes, or over the k + 1 outcomes of a top-k teacher; at least float32."""
    if isinstance(teacher, TopK):
        log_q = log_softmax(student)
        kept = log_q.gather(-1, teacher.index)
        if teacher.index.shape[-1] == student.shape[-1]:  # nothing is left, and the rest's gradient would be NaN
            return kept, teacher.values.detach().to(log_q.dtype).clamp(min=IMPOSSIBLE)
        rest = log_q.scatter(-1, teacher.index, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([kept, rest], -1), _outcomes(teacher, log_q.dtype)
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        teacher = teacher.dense() if isinstance(teacher, HeadLogits) else teacher.detach()
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype).unsqueeze(-1)
    return log_softmax(student, temperature), log_softmax(teacher.to(dtype), temperature)


def check_top(divergence: FDivergence, teacher: Logits | TopK, temperature: float | Tensor) -> None:
    """A top k at one temperature says nothing about another: the classes it left out would no longer be few.

    And drawn classes are right on average in what is linear in the teacher's probabilities, which only forward KL is.
    """
    if not isinstance(teacher, TopK):
        return
    if teacher.sampled and divergence not in (ForwardKL(), JSD(beta=0.0)):
        raise ValueError(
            f"classes drawn from the teacher are unbiased for forward KL alone, not for {type(divergence).__name__}: use "
            "ForwardKL, or keep the teacher's top k or hidden states instead"
        )
    if isinstance(temperature, Tensor) or temperature != 1.0:
        raise ValueError(
            "a top-k teacher is only known at temperature 1 (64 classes that hold 88% of the mass there held 26% at "
            "temperature 2): use temperature=1, or keep the teacher's hidden states (HeadLogits) instead"
        )


def _outcomes(teacher: TopK, dtype: torch.dtype) -> Tensor:
    """The teacher's log-probabilities of the k classes and of the rest, [*N, k + 1]."""
    return torch.cat([teacher.values, teacher.rest.unsqueeze(-1)], -1).detach().to(dtype).clamp(min=IMPOSSIBLE)


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-probabilities in at least float32; classes ruled out with -inf stay harmless."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    z = z.clamp(min=IMPOSSIBLE)
    z = z if isinstance(temperature, float | int) and temperature == 1 else z / temperature
    z = z - z.detach().amax(-1, keepdim=True)
    # torch's own log_softmax does not sum pairwise: at 49,152 classes its gradients are ten times further off.
    return z - z.exp().sum(-1, keepdim=True).log()


def _log_softmax_(z: Tensor) -> Tensor:
    """log-softmax in place."""
    shift_(z)
    return z.sub_(z.exp().sum(-1, keepdim=True).log_())  # a third of the time of `logsumexp` on a CPU


def shift_(z: Tensor) -> Tensor:
    """Subtract each row's maximum in place."""
    return z.sub_(z.amax(-1, keepdim=True))


def _log_mix(share: float, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(share * a + (1 - share) * b), without leaving the logarithm."""
    if share in (0.0, 1.0):
        return log_a if share else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must be at least 0 and below 1 (at 1 the divergence is 0), not {alpha}")


def _number(temperature: float | Tensor) -> float:
    return 1.0 if isinstance(temperature, Tensor) else temperature


def _tensor(temperature: float | Tensor) -> dict[str, Tensor]:
    return {"temperature": temperature} if isinstance(temperature, Tensor) else {}
