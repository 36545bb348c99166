"""What may be spent on a teacher, and what was: reserved before a call, committed or refunded after it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a run may spend on one teacher; None: no limit. Answers that are kept already cost nothing."""

    calls: int | None = None
    tokens: int | None = None  # read and written
    money: float | None = None  # in the currency of the teacher's prices

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value >= 0:
                raise ValueError(f"a budget of {each.name} must be 0 or more, not {value}")


@dataclass(frozen=True, slots=True)
class Spent:
    """An amount of everything that a budget limits."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.calls + other.calls, self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.calls - other.calls, self.tokens - other.tokens, self.money - other.money)


class Ledger:
    """The account of one teacher.

    What a call may cost at most is reserved before it is made, so that calls in flight together cannot overdraw.
    """

    def __init__(self, role: str, budget: Budget):
        self.role, self.budget = role, budget
        self.spent, self.reserved = Spent(), Spent()

    def start(self, spent: Spent) -> None:
        """Begin where an earlier part of the run stopped."""
        self.spent = spent

    def reserve(self, most: Spent) -> str | None:
        """Set an amount aside; or why there is not that much left."""
        after = self.spent + self.reserved + most
        for name in ("calls", "tokens", "money"):
            limit = getattr(self.budget, name)
            if limit is not None and getattr(after, name) > limit:
                what = f"{limit:,g} in money" if name == "money" else f"{limit:,} {name}"
                return f"the budget of {what} for the teacher {self.role!r} is spent"
        self.reserved += most
        return None

    def commit(self, most: Spent, paid: Spent) -> None:
        """A call was made: what it took in place of what was set aside."""
        self.reserved -= most
        self.spent += paid

    def refund(self, most: Spent) -> None:
        """A call was not made after all."""
        self.reserved -= most
