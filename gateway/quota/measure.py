"""One limit of a quota: how much of it is used, and whether some more fits. Pure; alone or as one of several workers.

Amounts of a minute are kept by the second and return sixty seconds after they were spent, so that no minute, wherever it begins, sees
more than its limit. What runs at the same time is a count. With other workers there is a wallet: what this worker may spend until the
next look at the others (state/quota_shares), so that together they stay within the limit as one would.
"""

from __future__ import annotations

from math import inf
from typing import Final

MINUTE_S: Final = 60
# Amounts are kept by the whole second they were spent in: they return when all of it is a minute old.
RETURNS_S: Final = MINUTE_S + 1
# How fast the demand of a worker fades, by which wallets are divided: half of it after so many looks.
FADING: Final = 0.8


class Window:
    """What was spent in the last minute."""

    __slots__ = ("_amounts", "total")

    def __init__(self) -> None:
        self._amounts: dict[int, int] = {}  # by second, in the order of time
        self.total = 0

    def add(self, amount: int, now_s: float) -> None:
        """`amount` (0 and up) is spent."""
        second = int(now_s)
        self._amounts[second] = self._amounts.get(second, 0) + amount
        self.total += amount

    def correct(self, amount: int, spent_at_s: float, now_s: float) -> None:
        """It was more (or less, below 0) than what was added at `spent_at_s`. What has returned since cannot return twice."""
        second = int(spent_at_s)
        if second in self._amounts:
            amount = max(amount, -self._amounts[second])
            self._amounts[second] += amount
            self.total += amount
        elif amount > 0:
            self.add(amount, now_s)

    def expire(self, now_s: float) -> None:
        """Forget what is a minute old."""
        until = int(now_s) - RETURNS_S
        while self._amounts:
            second = next(iter(self._amounts))
            if second > until:
                return
            self.total -= self._amounts.pop(second)

    def returns_in_s(self, amount: int, now_s: float) -> float:
        """How long until `amount` of it has returned; infinite when there is less."""
        for second, spent in self._amounts.items():
            amount -= spent
            if amount <= 0:
                return max(second + RETURNS_S - now_s, 0.0)
        return inf

    def empty_in_s(self, now_s: float) -> float:
        """How long until all of it has."""
        last = next(reversed(self._amounts), None)
        return max(last + RETURNS_S - now_s, 0.0) if last is not None else 0.0


class Measure:
    """A limit a minute, or (`window` None) at the same time."""

    __slots__ = ("demand", "demanded", "limit", "others_used", "running", "share", "wallet", "window")

    def __init__(self, limit: int, window: Window | None) -> None:
        self.limit = limit
        self.window = window
        self.running = 0
        self.share = 1.0  # of the limit, when nobody can be asked
        self.wallet: int | None = None  # what may be spent until the next look at the others; None = `share` of the limit counts
        self.others_used = 0
        self.demanded = 0  # asked for since the last look, whether it fitted or not
        self.demand = 0.0  # the same, fading

    def used(self, now_s: float) -> int:
        """By this worker."""
        window = self.window
        if window is None:
            return self.running
        window.expire(now_s)
        return window.total

    def fits(self, amount: int, now_s: float) -> bool:
        """May `amount` be spent now?"""
        self.demanded += amount
        if self.wallet is not None:
            return amount <= self.wallet
        return self.used(now_s) + amount <= max(int(self.limit * self.share), 1)

    def spend(self, amount: int, now_s: float) -> None:
        """It is spent."""
        if self.window is not None:
            self.window.add(amount, now_s)
        else:
            self.running += amount
        if self.wallet is not None:
            self.wallet -= amount

    def settle(self, reserved: int, actual: int, reserved_at_s: float, now_s: float) -> None:
        """It is known what it came to: for a count `actual` is 0 when it is over."""
        if self.window is not None:
            self.window.correct(actual - reserved, reserved_at_s, now_s)
        else:
            self.running += actual - reserved
        if self.wallet is not None:
            self.wallet -= actual - reserved

    def remaining(self, now_s: float) -> int:
        """Of the limit, as far as is known of everybody."""
        return max(self.limit - self.used(now_s) - self.others_used, 0)

    def wait_s(self, amount: int, now_s: float, look_s: float) -> float:
        """How long until `amount` may fit; infinite when it never will. `look_s`: until the next look at the others."""
        if amount > self.limit:
            return inf
        if self.window is None or self.remaining(now_s) >= amount:
            return look_s
        wait_s = self.window.returns_in_s(amount - self.remaining(now_s), now_s)
        return wait_s if wait_s < inf else float(MINUTE_S)  # it is others who have spent it

    def reset_s(self, now_s: float) -> float:
        """How long until nothing of it is used."""
        if self.window is None:
            return 0.0
        self.window.expire(now_s)
        return max(self.window.empty_in_s(now_s), float(RETURNS_S) if self.others_used else 0.0)

    def looked(self) -> float:
        """The demand by which wallets are divided."""
        self.demand = self.demand * FADING + self.demanded
        self.demanded = 0
        return self.demand
