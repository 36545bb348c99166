"""Objectives on logits that are never written down: one pass over chunks of items gives the value and the gradient.

For a language model the `[tokens, V]` logits cost more memory than the model. Here the items are taken a chunk at a
time: both heads are projected into two reused buffers, a `Rule` turns the student's buffer into the gradient with
respect to its logits, and that is multiplied back at once. So a dense teacher costs four matrix products in all
(student logits, teacher logits, dH, dW), a stored teacher three, a frozen head one fewer; nothing is recomputed, and
memory does not grow with the number of items.

Taking the gradient before anybody has asked for it is exact because an item's weight (its mask, its confidence) is
an input, and engines ask for sums: what arrives in `backward` is one number for all items. If it is not, the head's
gradient is recomputed with what did arrive.

On a CPU the rule works on blocks of a few rows that fit into the cache: its dozen passes over a block then cost a
fraction of one trip to memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.core.signal import HeadLogits, Logits, TopK

MIB = 2**20
CPU_TILES, GPU_TILES = 96 * MIB, 1024 * MIB  # what the buffers may take, both together
CPU_BLOCK = 768 * 1024  # of one buffer: what a rule works on (up to five such) then stays in the cores' own caches
IMPOSSIBLE = -1e30  # stands for a log-probability of -inf, so that 0 * log 0 is 0 and not NaN

Index = Tensor | slice


@dataclass(slots=True)
class Block:
    """Some items as a rule sees them: n rows of logits, in float32 (float64 if the student is)."""

    student: Tensor  # [n, V]; the rule overwrites it with the gradient if `grad`, else with anything
    teacher: Tensor | TopK | None  # [n, V] scratch too
    grad: bool
    items: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # whatever else an item has: labels, ...

    def dense(self) -> Tensor:
        """The teacher's logits, for rules that need all of them."""
        if not isinstance(self.teacher, Tensor):
            raise TypeError("this objective needs the teacher's logits over all classes, not its top k")
        return self.teacher


class Rule(Protocol):
    """The mathematics of one objective, row by row."""

    @property
    def columns(self) -> int:
        """How many values an item has: the objective, and others that are only looked at."""
        ...

    def __call__(self, block: Block) -> Tensor:
        """The values [n, columns], the objective first.

        If `block.grad`, `block.student` must hold d objective / d student logits afterwards.
        """
        ...


def apply(
    rule: Rule,
    student: HeadLogits,
    teacher: Logits | TopK | None = None,
    *,
    weight: Tensor | None = None,
    **items: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run `rule` over the items: the objective times `weight` [*N], and all its columns [*N, c] without gradient.

    Items of weight 0 are not projected, and their value is 0. `items` are further tensors [*N] that the rule reads.
    """
    work = _prepare(rule, student, teacher, weight, items)
    hidden = student.hidden.reshape(-1, student.hidden.shape[-1])
    run = cast(Any, _Fused.apply)  # pyright: ignore[reportUnknownMemberType]
    values, columns = run(hidden, student.weight, student.bias, work, torch.is_grad_enabled())
    return values.reshape(student.shape[:-1]), columns.reshape(*student.shape[:-1], rule.columns)


@torch.no_grad()
def survey(
    rule: Rule,
    student: Logits,
    teacher: Logits | TopK | None = None,
    *,
    weight: Tensor | None = None,
    **items: Tensor,
) -> Tensor:
    """All columns of `rule` [*N, c], without gradients, for dense logits as for `HeadLogits`; 0 where weight is 0."""
    work = _prepare(rule, student, teacher, weight, items)
    return _sweep(work, (False, False, False)).columns.reshape(*student.shape[:-1], rule.columns)


def check_classes(student: Logits, teacher: Logits | TopK | None) -> None:
    """Refuse logits that do not speak of the same items or classes."""
    if teacher is None:
        return
    items = teacher.rest.shape if isinstance(teacher, TopK) else teacher.shape[:-1]
    if items != student.shape[:-1]:
        raise ValueError(f"student has items {[*student.shape[:-1]]}, teacher {[*items]}: align them first")
    theirs = teacher.classes if isinstance(teacher, TopK) else teacher.shape[-1]
    if theirs is not None and (ours := student.shape[-1]) != theirs:
        raise ValueError(
            f"student has {ours:,} classes, teacher {theirs:,}: if only padding differs, trim both to the real number "
            "with HeadLogits.trim(n) or logits[..., :n]; if the tokenizers differ, align them first"
        )


def live(weight: Tensor | None, shape: torch.Size) -> tuple[Tensor | None, Tensor | None]:
    """The weights, flat, and the indices of the items that have one (None if all do)."""
    if weight is None:
        return None, None
    flat_weight = weight.detach().expand(shape).reshape(-1)
    rows = flat_weight.nonzero().squeeze(-1)
    return flat_weight, None if len(rows) == len(flat_weight) else rows


@dataclass(frozen=True, slots=True)
class _Work:
    """One pass to make: the rule and its inputs, with one item axis and without gradient."""

    rule: Rule
    student: Logits
    teacher: Logits | TopK | None
    weight: Tensor | None  # [N]
    rows: Tensor | None  # indices of the items that count; None: all
    items: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        return self.student.shape[0] if self.rows is None else len(self.rows)

    @property
    def statistics(self) -> torch.dtype:
        """The precision of everything but the products: a bfloat16 softmax has two digits."""
        data = self.student if isinstance(self.student, Tensor) else self.student.hidden
        return torch.float64 if data.dtype == torch.float64 else torch.float32


def _prepare(
    rule: Rule,
    student: Logits,
    teacher: Logits | TopK | None,
    weight: Tensor | None,
    items: Mapping[str, Tensor],
) -> _Work:
    check_classes(student, teacher)
    shape = student.shape[:-1]
    flat = {name: x.detach().expand(shape).reshape(-1) for name, x in items.items()}
    return _Work(rule, _flat(student), _flat(teacher), *live(weight, shape), flat)


def _flat(logits: Any) -> Any:
    """The same logits with one item axis, without gradient."""
    if isinstance(logits, HeadLogits):
        return replace(logits, hidden=logits.hidden.reshape(-1, logits.hidden.shape[-1])).detach()
    if isinstance(logits, TopK):
        k = logits.values.shape[-1]
        values = logits.values.detach().reshape(-1, k)
        return replace(logits, values=values, index=logits.index.reshape(-1, k), rest=logits.rest.detach().reshape(-1))
    return None if logits is None else logits.detach().reshape(-1, logits.shape[-1])


@dataclass(slots=True)
class _Swept:
    columns: Tensor  # [N, c]
    hidden: Tensor | None = None  # gradients of the weighted sum over items; the head's in full precision
    weight: Tensor | None = None
    bias: Tensor | None = None


class _Fused(torch.autograd.Function):
    """Value and gradient in the forward pass; see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work, grad: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        needs = ctx.needs_input_grad
        swept = _sweep(work, (grad and needs[0], grad and needs[1], grad and needs[2]))
        ctx.work, ctx.swept = work, swept
        ctx.save_for_backward(hidden, weight, bias)
        values = swept.columns[:, 0].clone()
        if work.weight is not None:
            values.mul_(work.weight)
        ctx.mark_non_differentiable(swept.columns)
        return values, swept.columns

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Any
    ) -> tuple[Tensor | None, ...]:
        arrived: Tensor | None = upstream[0]
        if arrived is None:
            return None, None, None, None, None
        work: _Work = ctx.work
        swept: _Swept | None = ctx.swept
        ctx.swept = None  # the buffers are given away; a second backward takes the slow way
        factor = None if swept is None else _common_factor(arrived, work.rows)
        if swept is None or factor is None:
            hidden, weight, bias = ctx.saved_tensors  # also checks that nobody has changed them since
            student = replace(cast(HeadLogits, work.student), hidden=hidden, weight=weight, bias=bias).detach()
            scaled = arrived if work.weight is None else arrived * work.weight
            swept = _sweep(replace(work, student=student, weight=scaled), ctx.needs_input_grad[:3])
        else:
            for gradient in (swept.hidden, swept.weight, swept.bias):
                if gradient is not None and (gradient.is_cuda or factor != 1):  # asking a GPU costs more than scaling
                    gradient.mul_(factor)
        return swept.hidden, swept.weight, swept.bias, None, None


def _common_factor(upstream: Tensor, rows: Tensor | None) -> Tensor | None:
    """The one number that arrived for every item that counts, or None if there are several."""
    if upstream.numel() == 0:
        return upstream.new_ones(())
    if upstream.numel() == 1 or all(step == 0 for step in upstream.stride()):  # what `.sum()` and `.mean()` send
        return upstream.flatten()[0]
    counted = upstream if rows is None else upstream[rows]
    if counted.numel() == 0:
        return upstream.new_ones(())
    return counted[0] if bool((counted == counted[0]).all()) else None


def _sweep(work: _Work, needs: tuple[bool, bool, bool]) -> _Swept:
    """Values for all items, and the gradients that are needed, in one pass over chunks of items."""
    student, dtype = work.student, work.statistics
    items, classes = student.shape
    chunk, rows_per_block = _sizes(work)
    tile = _buffer(student, chunk, classes, dtype)
    teacher_tile = None if work.teacher is None or isinstance(work.teacher, TopK) else tile.new_empty(chunk, classes)
    swept = _Swept(tile.new_zeros(items, work.rule.columns))
    head = student if isinstance(student, HeadLogits) else None
    if head is not None:
        swept.hidden = torch.zeros_like(head.hidden) if needs[0] else None
        swept.weight = torch.zeros_like(head.weight, dtype=dtype) if needs[1] else None
        swept.bias = torch.zeros_like(head.bias, dtype=dtype) if needs[2] and head.bias is not None else None

    for pick in _chunks(work, chunk):
        s = _fill(student, pick, tile)
        t = _pick(work.teacher, pick) if teacher_tile is None else _fill(work.teacher, pick, teacher_tile)
        extra = {name: value[pick] for name, value in work.items.items()}
        values = s.new_empty(len(s), work.rule.columns)
        for start in range(0, len(s), rows_per_block):
            part = slice(start, start + rows_per_block)
            cap_slope = _finish(student, s[part])
            if teacher_tile is not None:
                assert isinstance(t, Tensor)
                _finish(work.teacher, t[part])
            block = Block(s[part], _pick(t, part), any(needs), {name: value[part] for name, value in extra.items()})
            values[part] = work.rule(block)
            if cap_slope is not None and any(needs):
                s[part].mul_(cap_slope)
        swept.columns[pick] = values
        if head is not None and any(needs):
            _pull_back(head, s, pick, work.weight, swept)
    return swept


def _sizes(work: _Work) -> tuple[int, int]:
    """Items per chunk, and rows per block of a chunk.

    A chunk re-reads both heads and the head's gradient once, so it should not be small beside them; 96 MiB of tiles
    (256 items at 49,152 classes) is within a few percent of the speed of much larger ones on two cores. Products over
    a multiple of 16 rows are 3 to 8% faster.
    """
    student, classes = work.student, work.student.shape[-1]
    tiles = 1 if work.teacher is None or isinstance(work.teacher, TopK) else 2
    gpu = student.is_cuda if isinstance(student, Tensor) else student.hidden.is_cuda
    head = 4 * classes * student.hidden.shape[-1] if isinstance(student, HeadLogits) else 0
    budget = max(GPU_TILES, head) if gpu else max(CPU_TILES, head // 2)
    row = max(1, classes) * work.statistics.itemsize
    most = max(1, budget // (row * tiles))
    most = most // 16 * 16 or most
    chunk = min(work.count, most)
    return chunk, max(1, chunk) if gpu else max(1, CPU_BLOCK // row)


def _chunks(work: _Work, chunk: int) -> Iterator[Index]:
    for start in range(0, work.count, max(1, chunk)):
        stop = min(start + chunk, work.count)
        yield slice(start, stop) if work.rows is None else work.rows[start:stop]


def _buffer(logits: Logits, rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    like = logits if isinstance(logits, Tensor) else logits.hidden
    return torch.empty(rows, classes, dtype=dtype, device=like.device)


def _pick(logits: Any, pick: Index) -> Any:
    return None if logits is None else logits[pick]


def _fill(logits: Any, pick: Index, tile: Tensor) -> Tensor:
    """Write the raw projections of some items (or copies of their dense logits) into `tile`; its used part."""
    if isinstance(logits, Tensor):
        rows = logits[pick]
        tile = tile[: len(rows)]
        return tile.copy_(rows)
    hidden, weight = logits.hidden[pick], logits.weight[: logits.vocabulary]
    return _project(hidden, weight, tile[: len(hidden)])


def _finish(logits: Any, z: Tensor) -> Tensor | None:
    """Turn raw projections into logits in place: bias, scale, softcap. The softcap's slope, if there is one."""
    if isinstance(logits, Tensor):
        z.clamp_(min=IMPOSSIBLE)
        return None
    if logits.bias is not None:
        z.add_(logits.bias[: logits.vocabulary].to(z.dtype).clamp(min=IMPOSSIBLE))
    if logits.scale != 1.0:
        z.mul_(logits.scale)
    if logits.softcap is None:
        return None
    z.div_(logits.softcap).tanh_()
    slope = (z * z).neg_().add_(1.0)
    z.mul_(logits.softcap)
    return slope


def _pull_back(head: HeadLogits, dz: Tensor, pick: Index, weight: Tensor | None, swept: _Swept) -> None:
    """Add one chunk's gradients: `dz` [n, V] is d objective / d (scale * (hidden @ weight.T + bias))."""
    factor = torch.full((len(dz), 1), head.scale, dtype=dz.dtype, device=dz.device)
    if weight is not None:
        factor.mul_(weight[pick].unsqueeze(-1))
    if swept.hidden is not None:
        swept.hidden[pick] = (_multiply_back(dz, head.weight[: head.vocabulary], head.hidden.dtype) * factor).to(
            swept.hidden.dtype
        )
    if swept.weight is not None:
        _accumulate(swept.weight[: head.vocabulary], dz, head.hidden[pick] * factor, head.hidden.dtype)
    if swept.bias is not None:
        swept.bias[: head.vocabulary].addmv_(dz.T, factor.squeeze(-1))


# The three products. On a GPU half-precision inputs are multiplied as they are, with a float32 result. A CPU's
# half-precision products are slower than its float32 ones (0.6x here) and round the logits to two digits, so there
# the weights are widened, a slice of the vocabulary at a time.


def _native(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def _slices(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The head in `dtype`, at most 16 MiB at a time; whole if it already is."""
    if weight.dtype == dtype:
        yield slice(None), weight
        return
    step = max(1, 16 * MIB // (weight.shape[-1] * dtype.itemsize))
    for start in range(0, len(weight), step):
        yield slice(start, start + step), weight[start : start + step].to(dtype)


def _project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """hidden @ weight.T"""
    if _native(hidden):
        return out.copy_(torch.mm(hidden, weight.T.to(hidden.dtype), out_dtype=out.dtype))
    for part, rows in _slices(weight, out.dtype):
        torch.mm(hidden.to(out.dtype), rows.T, out=out[:, part])
    return out


def _multiply_back(dz: Tensor, weight: Tensor, product: torch.dtype) -> Tensor:
    """dz @ weight"""
    if dz.is_cuda and product in (torch.bfloat16, torch.float16):
        return torch.mm(dz.to(product), weight.to(product), out_dtype=dz.dtype)
    out = dz.new_zeros(len(dz), weight.shape[-1])
    for part, rows in _slices(weight, dz.dtype):
        out.addmm_(dz[:, part], rows)
    return out


def _accumulate(total: Tensor, dz: Tensor, hidden: Tensor, product: torch.dtype) -> None:
    """total += dz.T @ hidden, always kept in full precision: a thousand bfloat16 additions lose the gradient."""
    if dz.is_cuda and product in (torch.bfloat16, torch.float16):
        total.copy_(torch.addmm(total, dz.T.to(product), hidden.to(product), out_dtype=total.dtype))
    else:
        total.addmm_(dz.T, hidden.to(dz.dtype))


def compare(
    student: Logits, teacher: Logits | TopK | None, labels: Tensor, *, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Everything an evaluation asks of the logits, in one pass without gradients; each value is [*N].

    `nll`, `confidence` (the student's highest probability) and `correct` (1 if its most likely class is the label)
    need no teacher. `teacher_nll`, `teacher_correct`, `forward_kl` = KL(p ‖ q), `reverse_kl` = KL(q ‖ p) and `agree`
    (1 if both find the same class most likely) do. Of a top-k teacher only the last three are known, the divergences
    over the k classes and "any other", which makes them a little smaller. Items of weight 0 or with a negative label
    are 0 throughout; other weights are not multiplied in.
    """
    counted = labels >= 0
    counted = counted if weight is None else counted & (weight != 0)
    rule = Comparison("none" if teacher is None else "top" if isinstance(teacher, TopK) else "all")
    columns = survey(rule, student, teacher, weight=counted, labels=labels)
    return dict(zip(rule.names, columns.unbind(-1), strict=True))


@dataclass(frozen=True)
class Comparison:
    """The rule of `compare`."""

    teacher: Literal["none", "top", "all"] = "all"  # how much of its distribution is known

    @property
    def names(self) -> tuple[str, ...]:
        alone = ("nll", "confidence", "correct")
        beside = ("forward_kl", "reverse_kl", "agree")
        teachers = ("teacher_nll", "teacher_correct")
        return {"none": alone, "top": alone + beside, "all": alone + beside + teachers}[self.teacher]

    @property
    def columns(self) -> int:
        return len(self.names)

    def __call__(self, block: Block) -> Tensor:
        labels = block.items["labels"].unsqueeze(-1)
        log_q = block.student.log_softmax(-1)
        top, choice = log_q.max(-1, keepdim=True)
        found = [-log_q.gather(-1, labels), top.exp(), choice == labels]
        if isinstance(block.teacher, TopK):
            top = block.teacher
            rest = log_q.scatter(-1, top.index, -torch.inf).logsumexp(-1, keepdim=True)
            log_q = torch.cat([log_q.gather(-1, top.index), rest], -1).clamp_(min=IMPOSSIBLE)
            log_p = torch.cat([top.values, top.rest.unsqueeze(-1)], -1).to(log_q.dtype).clamp_(min=IMPOSSIBLE)
            found += [*_apart(log_q, log_p), top.index.gather(-1, top.values.argmax(-1, keepdim=True)) == choice]
        elif block.teacher is not None:
            log_p = block.teacher.log_softmax(-1)
            other = log_p.argmax(-1, keepdim=True)
            found += [*_apart(log_q, log_p), other == choice, -log_p.gather(-1, labels), other == labels]
        return torch.cat([column.to(log_q.dtype) for column in found], -1)


def _apart(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) and KL(q ‖ p), [n, 1] each."""
    ratio = log_p - log_q
    return (log_p.exp() * ratio).sum(-1, keepdim=True), -log_q.exp().mul_(ratio).sum(-1, keepdim=True)
