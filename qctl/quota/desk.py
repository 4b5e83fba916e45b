"""One exchange at the ledger: what a process holds, what it is given, and in which order.

Works inside a transaction that the caller holds, with as few statements as can be: at each of them the interpreter's
lock is given away, and with busy threads beside this one it is long in coming back, while the file is locked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qctl.quota import answers, books
from qctl.quota.books import Account, Head
from qctl.quota.policy import NS_PER_S, Limit
from qctl.quota.window import Claim, claimed_ahead

#: Near the end of a window a process is offered a half of its even share: the last units must reach who needs them.
_SHARE_DIVISOR = 2
#: A claim counts for so long after it was asked for: who is stopped must not keep the others waiting. Its place stays
#: its own.
CLAIM_NS = 10 * NS_PER_S
#: Who still waits when this part of its claim's life is left has it for another life.
CLAIM_RENEWALS = 2


@dataclass(frozen=True, slots=True)
class _Room:
    """What is left of a quota beside what is leased. idle_units: while nothing is: see `foreign`; one_by_one: while the
    upstream serves again after a refusal, one task at a time."""

    units: int
    idle_units: int
    one_by_one: bool


def claim_life_ns(limits: Iterable[Limit]) -> int:
    """How long a claim counts of a quota with these limits, if it is not asked for again."""
    return min(CLAIM_NS, max(limit.claim_ns for limit in limits))


class Desk:
    """Serves one process, in one transaction. First `state`, then `open`, then the wants, at last `store`."""

    def __init__(self, connection: sqlite3.Connection, process: str, now_ns: int, head: Head) -> None:
        self._connection = connection
        self._process = process
        self._now_ns = now_ns
        self._processes = head.processes
        self._claims = {
            quota_id: list(found) for quota_id, found in (books.claims(connection) if head.claims else {}).items()
        }
        self._before: dict[int, int] = {}
        self._out: dict[int, int] = {}
        self._room: dict[int, _Room] = {}
        self._own: dict[int, int] = {}

    def state(self, held: Mapping[int, int]) -> None:
        """From now on the process holds exactly this, by quota id."""
        for quota_id, out, own in self._connection.execute(
            "SELECT quota, sum(units), sum(CASE WHEN process = ? THEN units ELSE 0 END) FROM leases GROUP BY quota",
            (self._process,),
        ):
            self._out[quota_id] = out - own
            if own:
                self._before[quota_id] = own
        self._own = {quota_id: units for quota_id, units in held.items() if units}

    def elsewhere(self, quota_id: int) -> int:
        """Units leased by other processes."""
        return self._out.get(quota_id, 0)

    def open(self, involved: Iterable[Account]) -> None:
        """Count what is free of these quotas. After everything that is settled was entered."""
        involved = tuple(involved)
        if not involved:
            return
        now_ns = self._now_ns
        found = books.states(self._connection, involved)
        settled = books.settled(self._connection, found, now_ns)
        for account in involved:
            quota_id = account.quota_id
            states = found[quota_id]
            if not self._leased(quota_id):
                states = [answers.when_idle(self._connection, account, part, now_ns) for part in states]
            parts = [
                (part, part.limit.units - settled.get((quota_id, part.limit), part.used(now_ns))) for part in states
            ]
            blocked = now_ns < account.blocked_until_ns
            self._room[quota_id] = _Room(
                0 if blocked else min(room - part.kept_off(now_ns, idle=False) for part, room in parts),
                0 if blocked else min(room - part.kept_off(now_ns, idle=True) for part, room in parts),
                one_by_one=now_ns < account.probing_until_ns,
            )

    def grant(self, consumer: str, cost: Sequence[tuple[Account, int]], *, claim: bool) -> bool:
        """All of `cost` or nothing. `claim`: what is short is claimed, and a claim met is struck out."""
        short = [
            (it, units) for it, units in cost if self._free(it.quota_id) - self._ahead(it.quota_id, consumer) < units
        ]
        if short:
            if claim:
                self._claim(consumer, short)
            return False
        for account, units in cost:
            self._lease(account, units)
        if claim and any(self._is_own(it, consumer) for found in self._claims.values() for it in found):
            self.unclaim(consumer)
        return True

    def lease_ahead(self, account: Account, left_units: int) -> int:
        """Units to have in memory beyond `left_units`: up to a lease, less near the limit, nothing that is claimed."""
        if self._room[account.quota_id].one_by_one:
            return 0
        waiting = self._claims.get(account.quota_id, ())
        claimed = sum(claim.units for claim in waiting if claim.expires_ns > self._now_ns)
        room = self._room[account.quota_id].units - self._leased(account.quota_id) - claimed
        share = (room + left_units) // (_SHARE_DIVISOR * max(1, self._processes))
        lease = min(limit.lease_units for limit in account.limits)
        units = max(0, min(lease, share) - left_units)
        self._lease(account, units)
        return units

    def unclaim(self, consumer: str) -> None:
        """The consumer no longer waits."""
        self._connection.execute("DELETE FROM claims WHERE process = ? AND consumer = ?", (self._process, consumer))
        for found in self._claims.values():
            found[:] = [it for it in found if not self._is_own(it, consumer)]

    def store(self) -> None:
        """Write down what the process holds now."""
        changed = [(self._process, q, units) for q, units in self._own.items() if units != self._before.get(q, 0)]
        gone = [(self._process, quota_id) for quota_id in self._before.keys() - self._own.keys()]
        self._connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", changed)
        self._connection.executemany("DELETE FROM leases WHERE process = ? AND quota = ?", gone)

    def _lease(self, account: Account, units: int) -> None:
        if units:
            self._own[account.quota_id] = self._own.get(account.quota_id, 0) + units

    def _leased(self, quota_id: int) -> int:
        return self._out.get(quota_id, 0) + self._own.get(quota_id, 0)

    def _free(self, quota_id: int) -> int:
        """Units that may be leased, claims aside."""
        room, leased = self._room[quota_id], self._leased(quota_id)
        if leased and room.one_by_one:
            return 0
        return room.units - leased if leased else room.idle_units

    def _ahead(self, quota_id: int, consumer: str) -> int:
        return claimed_ahead(self._claims.get(quota_id, ()), self._process, consumer, self._now_ns)

    def _is_own(self, claim: Claim, consumer: str) -> bool:
        return claim.process == self._process and claim.consumer == consumer

    def _claim(self, consumer: str, short: Sequence[tuple[Account, int]]) -> None:
        for account, units in short:
            waiting = self._claims.setdefault(account.quota_id, [])
            life_ns = claim_life_ns(account.limits)
            expires_ns = self._now_ns + life_ns
            own = next((index for index, claim in enumerate(waiting) if self._is_own(claim, consumer)), None)
            # What can never be paid must not keep the others from being paid.
            if units > min(limit.units for limit in account.limits):
                continue
            if own is not None:
                more = units > waiting[own].units  # a costlier task of its is first now, in the same place
                if more or waiting[own].expires_ns - self._now_ns < life_ns // CLAIM_RENEWALS:
                    waiting[own] = replace(waiting[own], units=max(units, waiting[own].units), expires_ns=expires_ns)
                    self._connection.execute(
                        "UPDATE claims SET units = ?, expires_ns = ? WHERE process = ? AND consumer = ? AND quota = ?",
                        (waiting[own].units, expires_ns, self._process, consumer, account.quota_id),
                    )
                continue
            (seq,) = self._connection.execute("SELECT next_seq FROM meta").fetchone()
            self._connection.execute("UPDATE meta SET next_seq = ?", (seq + 1,))
            self._connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (self._process, consumer, account.quota_id, units, seq, expires_ns),
            )
            waiting.append(Claim(seq, self._process, consumer, units, expires_ns))
