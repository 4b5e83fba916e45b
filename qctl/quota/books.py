"""The sums of the ledger, as steps inside a transaction that the caller holds. No step commits.

An `Account` is a quota as the file knows it. A `Desk` serves the wants of one exchange.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from qctl.errors import LedgerError
from qctl.quota import schema
from qctl.quota.clock import Clock
from qctl.quota.policy import Limit
from qctl.quota.window import Claim, LimitReading, Reading, Spent, claimed_ahead, expiry
from qctl.quota.words import MAX_QUOTAS

#: Before any boot: the age of what has outlived a restart of the clock.
_ANCIENT_NS = -(2**62)
#: More than any limit, and small enough that no sum overflows: what may have been spent when nothing is known.
_UNKNOWN_UNITS = 10**15
#: Near the end of a window a process is offered a half of its even share: the last units must reach who needs them.
_SHARE_DIVISOR = 2


@dataclass(frozen=True, slots=True)
class Account:
    """A quota and its limits, as the file has them."""

    quota_id: int
    name: str
    epoch: int
    blocked_until_ns: int
    limits: tuple[Limit, ...]


def create(connection: sqlite3.Connection, *, clock: Clock, assume_spent: bool) -> bool:
    """Make the tables if the file is new; whether it was. Raises LedgerError for a file of another version."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        (version,) = connection.execute("SELECT schema_version FROM meta").fetchone()
        if version != schema.SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger has version {version}, this qctl writes version {schema.SCHEMA_VERSION}",
                hint="Use the qctl that wrote it, or one that is newer than both.",
            )
        return False
    for statement in schema.TABLES.split(";"):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO meta VALUES (?, ?, ?, ?, 1, ?)",
        (str(uuid4()), schema.SCHEMA_VERSION, clock.boot_id(), clock.now_ns(), assume_spent),
    )
    return True


def seen(connection: sqlite3.Connection, now_ns: int) -> None:
    """Remember how far the clock has come."""
    connection.execute("UPDATE meta SET seen_ns = ?", (now_ns,))


def follow_clock(connection: sqlite3.Connection, clock: Clock) -> None:
    """After a reboot, or if the boot clock runs back, nobody knows how long ago anything was: all was just now."""
    boot_id, seen_ns = connection.execute("SELECT boot_id, seen_ns FROM meta").fetchone()
    now_ns = clock.now_ns()
    if boot_id == clock.boot_id() and now_ns >= seen_ns:
        return
    for account in accounts(connection).values():
        for limit in account.limits:
            key = (account.quota_id, limit.period_ns)
            (units,) = connection.execute(
                "SELECT coalesce(sum(units), 0) FROM spent WHERE quota = ? AND period_ns = ? AND expires_ns > ?",
                (*key, seen_ns),
            ).fetchone()
            connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", key)
            _add_spent(connection, account.quota_id, limit, now_ns + limit.linger_ns, units)
    connection.execute("UPDATE quotas SET created_ns = ?", (_ANCIENT_NS,))
    connection.execute("UPDATE limits SET since_ns = ?", (now_ns,))
    connection.execute("UPDATE quotas SET blocked_until_ns = max(0, blocked_until_ns - ?) + ?", (seen_ns, now_ns))
    connection.execute("DELETE FROM claims")
    if boot_id != clock.boot_id():
        # Nobody outlives a reboot, lock file or not.
        for (process,) in connection.execute("SELECT id FROM processes").fetchall():
            bury(connection, process, now_ns)
    connection.execute("UPDATE meta SET boot_id = ?, seen_ns = ?", (clock.boot_id(), now_ns))


def accounts(connection: sqlite3.Connection) -> dict[str, Account]:
    """All quotas by name."""
    found: dict[str, Account] = {}
    for quota_id, name, epoch, blocked_until_ns, period_ns, units in connection.execute(
        "SELECT q.id, q.name, q.epoch, q.blocked_until_ns, l.period_ns, l.units"
        " FROM quotas q JOIN limits l ON l.quota = q.id ORDER BY q.id, l.period_ns"
    ):
        before = found[name].limits if name in found else ()
        found[name] = Account(quota_id, name, epoch, blocked_until_ns, (*before, Limit(units, period_ns)))
    return found


def configure(
    connection: sqlite3.Connection, name: str, limits: Sequence[Limit], now_ns: int
) -> tuple[int, int] | None:
    """Set the limits of one quota. Returns its id and new epoch if that changed anything."""
    row = connection.execute("SELECT id, epoch, created_ns FROM quotas WHERE name = ?", (name,)).fetchone()
    if row is None:
        return _configure_new(connection, name, limits, now_ns)
    quota_id, epoch, created_ns = row
    old = {
        period_ns: (Limit(units, period_ns), peak_units, since_ns)
        for period_ns, units, peak_units, since_ns in connection.execute(
            "SELECT period_ns, units, peak_units, since_ns FROM limits WHERE quota = ?", (quota_id,)
        )
    }
    new = {limit.period_ns: limit for limit in limits}
    if new == {period_ns: limit for period_ns, (limit, _, _) in old.items()}:
        return None
    for period_ns, limit in new.items():
        if period_ns in old:
            connection.execute(
                "UPDATE limits SET units = ?1, peak_units = max(peak_units, ?1) WHERE quota = ?2 AND period_ns = ?3",
                (limit.units, quota_id, period_ns),
            )
        else:
            connection.execute(
                "INSERT INTO limits VALUES (?, ?, ?, ?, ?)", (quota_id, period_ns, limit.units, limit.units, now_ns)
            )
            _carry(connection, quota_id, list(old.values()), limit, created_ns=created_ns, now_ns=now_ns)
    for period_ns in old.keys() - new.keys():
        connection.execute("DELETE FROM limits WHERE quota = ? AND period_ns = ?", (quota_id, period_ns))
        connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", (quota_id, period_ns))
    connection.execute("UPDATE quotas SET epoch = ? WHERE id = ?", (epoch + 1, quota_id))
    return quota_id, epoch + 1


def block(connection: sqlite3.Connection, account: Account, until_ns: int) -> None:
    """Grant nothing before `until_ns`, and void the leases."""
    connection.execute(
        "UPDATE quotas SET blocked_until_ns = ?, epoch = epoch + 1 WHERE id = ?", (until_ns, account.quota_id)
    )


def spend(
    connection: sqlite3.Connection, account: Account, units_at: Mapping[int, int], *, now_ns: int, lingers: bool
) -> None:
    """Enter settled units, by instant, under each limit, and drop what has expired.

    An instant ahead of the clock is of a clock that has restarted since: it becomes now.
    """
    for limit in account.limits:
        connection.execute(
            "DELETE FROM spent WHERE quota = ? AND period_ns = ? AND expires_ns <= ?",
            (account.quota_id, limit.period_ns, now_ns),
        )
        for instant_ns, units in units_at.items():
            counted_ns = min(instant_ns, now_ns) + (limit.linger_ns if lingers else 0)
            if expiry(counted_ns, limit) > now_ns:
                _add_spent(connection, account.quota_id, limit, counted_ns, units)


def state_held(connection: sqlite3.Connection, process: str, held: Mapping[int, int]) -> None:
    """Make the process's leases exactly `held`, by quota id."""
    before = dict(connection.execute("SELECT quota, units FROM leases WHERE process = ?", (process,)).fetchall())
    for quota_id in before.keys() | held.keys():
        units = held.get(quota_id, 0)
        if units and units != before.get(quota_id, 0):
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (process, quota_id, units))
        elif not units and quota_id in before:
            connection.execute("DELETE FROM leases WHERE process = ? AND quota = ?", (process, quota_id))


def bury(connection: sqlite3.Connection, process: str, now_ns: int) -> None:
    """The process is no more: what it had in its hands may have been spent up to now, and be counted a linger later."""
    by_id = {account.quota_id: account for account in accounts(connection).values()}
    for quota_id, units in connection.execute(
        "SELECT quota, units FROM leases WHERE process = ?", (process,)
    ).fetchall():
        spend(connection, by_id[quota_id], {now_ns: units}, now_ns=now_ns, lingers=True)
    connection.execute("DELETE FROM leases WHERE process = ?", (process,))
    connection.execute("DELETE FROM claims WHERE process = ?", (process,))
    connection.execute("DELETE FROM processes WHERE id = ?", (process,))


def unclaim(connection: sqlite3.Connection, process: str, consumer: str) -> None:
    """The consumer no longer waits."""
    connection.execute("DELETE FROM claims WHERE process = ? AND consumer = ?", (process, consumer))


def readings(connection: sqlite3.Connection, known: Mapping[str, Account], now_ns: int) -> dict[str, Reading]:
    """Everything about each quota, by name."""
    leased: dict[int, dict[str, int]] = {}
    for process, quota_id, units in connection.execute("SELECT process, quota, units FROM leases"):
        leased.setdefault(quota_id, {})[process] = units
    spent: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for quota_id, period_ns, expires_ns, units in connection.execute(
        "SELECT quota, period_ns, expires_ns, units FROM spent WHERE expires_ns > ?"
        " ORDER BY quota, period_ns, expires_ns",
        (now_ns,),
    ):
        spent.setdefault((quota_id, period_ns), []).append((expires_ns, units))
    claims = _claims(connection, now_ns)
    return {
        name: Reading(
            quota=name,
            limits=tuple(
                LimitReading(limit, Spent.of(spent.get((it.quota_id, limit.period_ns), ()))) for limit in it.limits
            ),
            leased=leased.get(it.quota_id, {}),
            claims=claims.get(it.quota_id, ()),
            epoch=it.epoch,
            blocked_until_ns=it.blocked_until_ns,
        )
        for name, it in known.items()
    }


class Desk:
    """Serves the wants of one process, in one transaction, out of what `involved` quotas have free."""

    def __init__(self, connection: sqlite3.Connection, process: str, now_ns: int, involved: Iterable[Account]) -> None:
        self._connection = connection
        self._process = process
        self._now_ns = now_ns
        self._free: dict[int, int] = {}
        self._processes: int
        self._added: dict[int, int] = {}
        self._claims = {quota_id: list(found) for quota_id, found in _claims(connection, now_ns).items()}
        (self._processes,) = connection.execute("SELECT count(*) FROM processes").fetchone()
        out = dict(connection.execute("SELECT quota, sum(units) FROM leases GROUP BY quota").fetchall())
        for account in involved:
            spent = dict(
                connection.execute(
                    "SELECT period_ns, sum(units) FROM spent WHERE quota = ? AND expires_ns > ? GROUP BY period_ns",
                    (account.quota_id, now_ns),
                ).fetchall()
            )
            free = min(limit.units - spent.get(limit.period_ns, 0) for limit in account.limits)
            blocked = now_ns < account.blocked_until_ns
            self._free[account.quota_id] = 0 if blocked else free - out.get(account.quota_id, 0)

    def grant(self, consumer: str, cost: Sequence[tuple[Account, int]], *, claim: bool) -> bool:
        """All of `cost` or nothing. `claim`: what is short is claimed, and a claim met is struck out."""
        short = [
            (it, units) for it, units in cost if self._free[it.quota_id] - self._ahead(it.quota_id, consumer) < units
        ]
        if short:
            if claim:
                self._claim(consumer, short)
            return False
        for account, units in cost:
            self._free[account.quota_id] -= units
            self._added[account.quota_id] = self._added.get(account.quota_id, 0) + units
        if claim and any(self._is_own(it, consumer) for found in self._claims.values() for it in found):
            unclaim(self._connection, self._process, consumer)
            for found in self._claims.values():
                found[:] = [it for it in found if not self._is_own(it, consumer)]
        return True

    def lease_ahead(self, account: Account, left_units: int) -> int:
        """Units to have in memory beyond `left_units`: up to a lease, less near the limit, nothing that is claimed."""
        claimed = sum(claim.units for claim in self._claims.get(account.quota_id, ()))
        room = self._free[account.quota_id] - claimed
        share = (room + left_units) // (_SHARE_DIVISOR * max(1, self._processes))
        lease = min(limit.lease_units for limit in account.limits)
        units = max(0, min(lease, share) - left_units)
        self._free[account.quota_id] -= units
        self._added[account.quota_id] = self._added.get(account.quota_id, 0) + units
        return units

    def store(self) -> None:
        """Write down what was leased."""
        self._connection.executemany(
            "INSERT INTO leases VALUES (?, ?, ?)"
            " ON CONFLICT(process, quota) DO UPDATE SET units = units + excluded.units",
            [(self._process, quota_id, units) for quota_id, units in self._added.items()],
        )

    def _ahead(self, quota_id: int, consumer: str) -> int:
        return claimed_ahead(self._claims.get(quota_id, ()), self._process, consumer, self._now_ns)

    def _is_own(self, claim: Claim, consumer: str) -> bool:
        return claim.process == self._process and claim.consumer == consumer

    def _claim(self, consumer: str, short: Sequence[tuple[Account, int]]) -> None:
        for account, units in short:
            waiting = self._claims.setdefault(account.quota_id, [])
            if any(self._is_own(claim, consumer) for claim in waiting):
                continue
            # What can never be paid must not keep the others from being paid.
            if units > min(limit.units for limit in account.limits):
                continue
            (seq,) = self._connection.execute("SELECT next_seq FROM meta").fetchone()
            expires_ns = self._now_ns + max(limit.claim_ns for limit in account.limits)
            self._connection.execute("UPDATE meta SET next_seq = ?", (seq + 1,))
            self._connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (self._process, consumer, account.quota_id, units, seq, expires_ns),
            )
            waiting.append(Claim(seq, self._process, consumer, units, expires_ns))


def _claims(connection: sqlite3.Connection, now_ns: int) -> dict[int, tuple[Claim, ...]]:
    found: dict[int, tuple[Claim, ...]] = {}
    for quota_id, *claim in connection.execute(
        "SELECT quota, seq, process, consumer, units, expires_ns FROM claims WHERE expires_ns > ? ORDER BY seq",
        (now_ns,),
    ):
        found[quota_id] = (*found.get(quota_id, ()), Claim(*claim))
    return found


def _add_spent(connection: sqlite3.Connection, quota_id: int, limit: Limit, counted_ns: int, units: int) -> None:
    if units:
        connection.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?)"
            " ON CONFLICT(quota, period_ns, expires_ns) DO UPDATE SET units = units + excluded.units",
            (quota_id, limit.period_ns, expiry(counted_ns, limit), units),
        )


def _configure_new(connection: sqlite3.Connection, name: str, limits: Iterable[Limit], now_ns: int) -> tuple[int, int]:
    (assume_spent,) = connection.execute("SELECT assume_spent FROM meta").fetchone()
    (quota_id,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM quotas").fetchone()
    if quota_id > MAX_QUOTAS:
        raise LedgerError(f"the ledger holds {MAX_QUOTAS} quotas and cannot take {name}", hint="Use fewer quotas.")
    connection.execute(
        "INSERT INTO quotas VALUES (?, ?, 1, ?, 0)", (quota_id, name, _ANCIENT_NS if assume_spent else now_ns)
    )
    for limit in limits:
        connection.execute(
            "INSERT INTO limits VALUES (?, ?, ?, ?, ?)", (quota_id, limit.period_ns, limit.units, limit.units, now_ns)
        )
        if assume_spent:
            _add_spent(connection, quota_id, limit, now_ns + limit.linger_ns, limit.units)
    return quota_id, 1


def _carry(
    connection: sqlite3.Connection,
    quota_id: int,
    old: Sequence[tuple[Limit, int, int]],
    new: Limit,
    *,
    created_ns: int,
    now_ns: int,
) -> None:
    """Fill the history of a period that was not kept before, from one that was; never with too little.

    old: (limit, the most it ever was, since when it is enforced). A longer history than the new period has it all. From
    a shorter one, what is older is bounded by what that limit can have admitted; if it is too young to say, by nothing.
    """
    longer = [it for it, _, _ in old if it.period_ns >= new.period_ns]
    base = (
        min(longer, key=lambda it: it.period_ns)
        if longer
        else max((it for it, _, _ in old), key=lambda it: it.period_ns)
    )
    # A doubtful unit lingers at most a window, so under a longer one it may be counted later; which are, nobody knows.
    linger_ns = max(0, new.linger_ns - base.linger_ns)
    for expires_ns, units in connection.execute(
        "SELECT expires_ns, units FROM spent WHERE quota = ? AND period_ns = ?", (quota_id, base.period_ns)
    ).fetchall():
        counted_ns = expires_ns - base.kept_ns + linger_ns
        if expiry(counted_ns, new) > now_ns:
            _add_spent(connection, quota_id, new, counted_ns, units)
    begin_ns = max(created_ns, now_ns - new.kept_ns - new.bucket_ns - linger_ns)
    unknown_ns = now_ns - base.kept_ns - begin_ns
    if unknown_ns > 0:
        bounds = [peak * -(-unknown_ns // it.period_ns) for it, peak, since_ns in old if since_ns <= begin_ns]
        _add_spent(connection, quota_id, new, now_ns - base.kept_ns + linger_ns, min([_UNKNOWN_UNITS, *bounds]))
