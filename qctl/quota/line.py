"""Who of a process's line asks the ledger. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from qctl.quota.pool import Waiter

#: Wants in one exchange, so that a transaction stays short for the others.
WANTS = 64


def askers(waiters: Iterable[Waiter]) -> list[Waiter]:
    """All in this line but those who cost less than one of the same consumer that was refused before: they would be
    paid again and again, and the claim of the one that they overtake would pass for met."""
    found: list[Waiter] = []
    refused: dict[tuple[str, str], int] = {}
    for waiter in waiters:
        lines = {(waiter.priced.consumer, quota): units for quota, units in waiter.priced.cost.items()}
        if waiter.grant is None and any(units < refused.get(line, 0) for line, units in lines.items()):
            continue
        found.append(waiter)
        if waiter.grant is None and waiter.refused_ns is not None:
            refused |= {line: max(units, refused.get(line, 0)) for line, units in lines.items()}
    return found


def in_turn(waiters: Iterable[Waiter], now_ns: int) -> list[Waiter]:
    """Who asks now: whose time it is."""
    return [waiter for waiter in askers(waiters) if waiter.try_ns <= now_ns][:WANTS]
