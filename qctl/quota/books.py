"""The sums of the ledger, as steps inside a transaction that the caller holds. No step commits.

An `Account` is a quota as the file knows it, a `Head` what is true of the whole file.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qctl.errors import LedgerError
from qctl.quota import schema
from qctl.quota.clock import Clock
from qctl.quota.policy import NS_PER_S, Limit
from qctl.quota.window import Claim, LimitReading, Reading, Spent, expiry
from qctl.quota.words import MAX_QUOTAS

#: Before any boot: the age of what has outlived a restart of the clock.
_ANCIENT_NS = -(2**62)
#: More than any limit, and small enough that no sum overflows: what may have been spent when nothing is known.
_UNKNOWN_UNITS = 10**15
#: Rows that have expired are dropped this often, and so many times in the shortest window.
SWEEP_NS = NS_PER_S
_SWEEPS_A_WINDOW = 32
#: Of a first epoch; room is left to count from there.
_EPOCH_BITS = 62
#: Occasions that are remembered, on which the window was counted as spent: more than a machine has former names.
_EVIDENCE_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class Head:
    """What is true of the whole file: how far which clock had come, when old rows were dropped, a number that changes
    with every limit and block, how many processes and claims there are.

    stated: whether the asking process has said what it holds; 0: known from an older ledger, None: not at all.
    """

    boot_id: str
    seen_ns: int
    swept_ns: int
    limits_version: int
    processes: int
    claims: int
    stated: int | None

    def holds(self, clock: Clock) -> bool:
        """Whether the instants of the file are of this clock."""
        return self.boot_id == clock.boot_id() and clock.now_ns() >= self.seen_ns


@dataclass(frozen=True, slots=True)
class Account:
    """A quota and its limits, as the file has them."""

    quota_id: int
    name: str
    epoch: int
    blocked_until_ns: int
    limits: tuple[Limit, ...]


def create(
    connection: sqlite3.Connection, ledger_id: str, *, clock: Clock, unknown: bool, living: Iterable[str]
) -> None:
    """Make the tables of a new ledger. unknown: what was spent until now is not known.

    living: processes that may hold units of the ledger before. Until they say how many, they have all there is.
    """
    now_ns = clock.now_ns()
    for statement in schema.STATEMENTS:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO meta VALUES (?, ?, ?, ?, 0, 1, 1, ?)",
        (ledger_id, schema.SCHEMA_VERSION, clock.boot_id(), now_ns, now_ns if unknown else None),
    )
    connection.executemany("INSERT INTO processes VALUES (?, 0)", [(process,) for process in living])


def verify(connection: sqlite3.Connection) -> None:
    """Raise ValueError if the contents are not what a ledger writes, as far as they show it."""
    ((heads,),) = connection.execute("SELECT count(*) FROM meta").fetchall()
    if heads != 1:
        raise ValueError(f"{heads} heads")
    null = ", 'null'"
    for statement in schema.STATEMENTS:
        table = statement.removeprefix("CREATE TABLE ").partition("(")[0]
        kinds = " OR ".join(
            f"typeof({name}) NOT IN ('{kind.lower()}'{'' if needed or key else null})"
            for _, name, kind, needed, _, key in connection.execute(f"PRAGMA table_info({table})").fetchall()
        )
        if connection.execute(f"SELECT 1 FROM {table} WHERE {kinds} LIMIT 1").fetchall():  # noqa: S608 (our own names)
            raise ValueError(f"a value of another kind in {table}")
    if connection.execute("PRAGMA foreign_key_check").fetchall():
        raise ValueError("a row of nobody's")
    accounts(connection)


def head(connection: sqlite3.Connection, process: str) -> Head:
    """What every transaction begins with, in one statement."""
    return Head(
        *connection.execute(
            "SELECT boot_id, seen_ns, swept_ns, limits_version, (SELECT count(*) FROM processes),"
            " (SELECT count(*) FROM claims), (SELECT stated FROM processes WHERE id = ?) FROM meta",
            (process,),
        ).fetchone()
    )


def seen(connection: sqlite3.Connection, now_ns: int) -> None:
    """Remember how far the clock has come."""
    connection.execute("UPDATE meta SET seen_ns = ?", (now_ns,))


def begin_anew(connection: sqlite3.Connection, before: Head, clock: Clock, *, lives: Callable[[str], bool]) -> None:
    """After a reboot, or if the boot clock runs back, nobody knows how long ago anything was: all was just now.

    lives: whether a process is known to be alive; after a reboot the others are dead, lock file or not.
    """
    now_ns = clock.now_ns()
    for account in accounts(connection).values():
        for limit in account.limits:
            key = (account.quota_id, limit.period_ns)
            (units,) = connection.execute(
                "SELECT coalesce(sum(units), 0) FROM spent WHERE quota = ? AND period_ns = ? AND expires_ns > ?",
                (*key, before.seen_ns),
            ).fetchone()
            connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", key)
            add_spent(connection, account.quota_id, limit, {now_ns + limit.linger_ns: units})
    connection.execute("UPDATE quotas SET created_ns = ?", (_ANCIENT_NS,))
    connection.execute("UPDATE limits SET since_ns = ?", (now_ns,))
    # What was left of a block when the clock was last seen is the most that can be left of it.
    connection.execute(
        "UPDATE quotas SET blocked_until_ns = max(0, blocked_until_ns - ?) + ?", (before.seen_ns, now_ns)
    )
    connection.execute("DELETE FROM claims")
    if before.boot_id != clock.boot_id():
        for (process,) in connection.execute("SELECT id FROM processes").fetchall():
            if not lives(process):
                bury(connection, process, now_ns)
    connection.execute(
        "UPDATE meta SET boot_id = ?1, seen_ns = ?2, swept_ns = ?2, unknown_ns = unknown_ns + ?2 - ?3",
        (clock.boot_id(), now_ns, before.seen_ns),
    )
    _limits_changed(connection)


def accounts(connection: sqlite3.Connection) -> dict[str, Account]:
    """All quotas by name."""
    found: dict[str, Account] = {}
    for quota_id, name, epoch, blocked_until_ns, period_ns, units in connection.execute(
        "SELECT q.id, q.name, q.epoch, q.blocked_until_ns, l.period_ns, l.units"
        " FROM quotas q JOIN limits l ON l.quota = q.id ORDER BY q.id, l.period_ns"
    ).fetchall():
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
            if limit.units > old[period_ns][1]:
                # More than was assumed may have been spent before anything was known.
                _assume(connection, quota_id, limit, limit.units - old[period_ns][1], now_ns)
            connection.execute(
                "UPDATE limits SET units = ?1, peak_units = max(peak_units, ?1) WHERE quota = ?2 AND period_ns = ?3",
                (limit.units, quota_id, period_ns),
            )
        else:
            connection.execute(
                "INSERT INTO limits VALUES (?, ?, ?, ?, ?)", (quota_id, period_ns, limit.units, limit.units, now_ns)
            )
            _carry(connection, quota_id, list(old.values()), limit, created_ns=created_ns, now_ns=now_ns)
            _assume(connection, quota_id, limit, limit.units, now_ns)
    for period_ns in old.keys() - new.keys():
        connection.execute("DELETE FROM limits WHERE quota = ? AND period_ns = ?", (quota_id, period_ns))
        connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", (quota_id, period_ns))
    least_units = min(limit.units for limit in limits)
    connection.execute(
        "UPDATE leases SET units = max(units, ?) WHERE quota = ?"
        " AND process IN (SELECT id FROM processes WHERE NOT stated)",
        (least_units, quota_id),
    )
    # Could never be met, and would keep everybody else from being paid.
    connection.execute("DELETE FROM claims WHERE quota = ? AND units > ?", (quota_id, least_units))
    connection.execute("UPDATE quotas SET epoch = ? WHERE id = ?", (epoch + 1, quota_id))
    _limits_changed(connection)
    return quota_id, epoch + 1


def block(connection: sqlite3.Connection, account: Account, until_ns: int) -> None:
    """Grant nothing before `until_ns`, and void the leases."""
    connection.execute(
        "UPDATE quotas SET blocked_until_ns = ?, epoch = epoch + 1 WHERE id = ?", (until_ns, account.quota_id)
    )
    _limits_changed(connection)


def spend(
    connection: sqlite3.Connection, account: Account, units_at: Mapping[int, int], *, now_ns: int, lingers: bool
) -> None:
    """Enter settled units, by instant, under each limit.

    An instant ahead of the clock is of a clock that has restarted since: it becomes now.
    """
    for limit in account.limits:
        counted: dict[int, int] = {}
        for instant_ns, units in units_at.items():
            counted_ns = min(instant_ns, now_ns) + (limit.linger_ns if lingers else 0)
            if expiry(counted_ns, limit) > now_ns:
                counted[counted_ns] = counted.get(counted_ns, 0) + units
        add_spent(connection, account.quota_id, limit, counted)


def sweep(connection: sqlite3.Connection, before: Head, known: Iterable[Account], now_ns: int) -> None:
    """Drop what has expired, a few times a window: more often would cost every exchange a statement."""
    shortest_ns = min((limit.period_ns for account in known for limit in account.limits), default=SWEEP_NS)
    if now_ns - before.swept_ns >= min(SWEEP_NS, shortest_ns // _SWEEPS_A_WINDOW):
        connection.execute("DELETE FROM spent WHERE expires_ns <= ?", (now_ns,))
        connection.execute("UPDATE meta SET swept_ns = ?", (now_ns,))


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


def readings(connection: sqlite3.Connection, known: Mapping[str, Account], now_ns: int) -> dict[str, Reading]:
    """Everything about each quota, by name.

    The history comes as one row a limit: for each row the interpreter's lock is given away, and with busy threads
    beside this one a thousand rows take seconds, while the file is locked.
    """
    leased: dict[int, dict[str, int]] = {}
    for process, quota_id, units in connection.execute("SELECT process, quota, units FROM leases"):
        leased.setdefault(quota_id, {})[process] = units
    spent = {
        (quota_id, period_ns): Spent.of(sorted(zip(map(int, expiries.split()), map(int, units.split()), strict=True)))
        for quota_id, period_ns, expiries, units in connection.execute(
            "SELECT quota, period_ns, group_concat(expires_ns, ' '), group_concat(units, ' ') FROM spent"
            " WHERE expires_ns > ? GROUP BY quota, period_ns",
            (now_ns,),
        )
    }
    waiting = claims(connection, now_ns)
    return {
        name: Reading(
            quota=name,
            limits=tuple(
                LimitReading(limit, spent.get((it.quota_id, limit.period_ns), Spent())) for limit in it.limits
            ),
            leased=leased.get(it.quota_id, {}),
            claims=waiting.get(it.quota_id, ()),
            epoch=it.epoch,
            blocked_until_ns=it.blocked_until_ns,
        )
        for name, it in known.items()
    }


def claims(connection: sqlite3.Connection, now_ns: int) -> dict[int, tuple[Claim, ...]]:
    """Who stands in line, by quota id, first come first."""
    found: dict[int, tuple[Claim, ...]] = {}
    for quota_id, *claim in connection.execute(
        "SELECT quota, seq, process, consumer, units, expires_ns FROM claims WHERE expires_ns > ? ORDER BY seq",
        (now_ns,),
    ):
        found[quota_id] = (*found.get(quota_id, ()), Claim(*claim))
    return found


def add_spent(connection: sqlite3.Connection, quota_id: int, limit: Limit, units_at: Mapping[int, int]) -> None:
    """Enter units under one limit, by the last instant at which they can have been counted."""
    connection.executemany(
        "INSERT INTO spent VALUES (?, ?, ?, ?)"
        " ON CONFLICT(quota, period_ns, expires_ns) DO UPDATE SET units = units + excluded.units",
        [(quota_id, limit.period_ns, expiry(at_ns, limit), units) for at_ns, units in units_at.items() if units],
    )


def count_as_spent(connection: sqlite3.Connection, known: Iterable[Account], evidence: str, now_ns: int) -> bool:
    """Others may have spent all there was, until now: count it, void all leases. False: done before on `evidence`."""
    if connection.execute("SELECT 1 FROM counted WHERE evidence = ?", (evidence,)).fetchone():
        return False
    connection.execute("INSERT INTO counted SELECT ?, coalesce(max(seq), 0) + 1 FROM counted", (evidence,))
    connection.execute("DELETE FROM counted WHERE seq <= (SELECT max(seq) FROM counted) - ?", (_EVIDENCE_KEPT,))
    connection.execute("UPDATE meta SET unknown_ns = ?", (now_ns,))
    # What a limit was before says nothing of what others spent.
    connection.execute("UPDATE limits SET peak_units = units, since_ns = ?", (now_ns,))
    for account in known:
        for limit in account.limits:
            _assume(connection, account.quota_id, limit, limit.units, now_ns)
    connection.execute("UPDATE quotas SET created_ns = ?, epoch = epoch + 1", (_ANCIENT_NS,))
    _limits_changed(connection)
    return True


def _assume(connection: sqlite3.Connection, quota_id: int, limit: Limit, units: int, now_ns: int) -> None:
    """Count `units` as spent at the last instant of which nothing is known, if there is one and it matters yet."""
    (unknown_ns,) = connection.execute("SELECT unknown_ns FROM meta").fetchone()
    if unknown_ns is not None and expiry(unknown_ns + limit.linger_ns, limit) > now_ns:
        add_spent(connection, quota_id, limit, {unknown_ns + limit.linger_ns: units})


def _limits_changed(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE meta SET limits_version = limits_version + 1")


def _configure_new(connection: sqlite3.Connection, name: str, limits: Sequence[Limit], now_ns: int) -> tuple[int, int]:
    (unknown_ns,) = connection.execute("SELECT unknown_ns FROM meta").fetchone()
    (quota_id,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM quotas").fetchone()
    if quota_id > MAX_QUOTAS:
        raise LedgerError(f"the ledger holds {MAX_QUOTAS} quotas and cannot take {name}", hint="Use fewer quotas.")
    # Of no other ledger: what was leased from one that was replaced must not pass for a lease of this one.
    epoch = secrets.randbits(_EPOCH_BITS) + 1
    connection.execute(
        "INSERT INTO quotas VALUES (?, ?, ?, ?, 0)",
        (quota_id, name, epoch, now_ns if unknown_ns is None else _ANCIENT_NS),
    )
    for limit in limits:
        connection.execute(
            "INSERT INTO limits VALUES (?, ?, ?, ?, ?)", (quota_id, limit.period_ns, limit.units, limit.units, now_ns)
        )
        _assume(connection, quota_id, limit, limit.units, now_ns)
    connection.execute(
        "INSERT INTO leases SELECT id, ?, ? FROM processes WHERE NOT stated",
        (quota_id, min(limit.units for limit in limits)),
    )
    _limits_changed(connection)
    return quota_id, epoch


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
            add_spent(connection, quota_id, new, {counted_ns: units})
    begin_ns = max(created_ns, now_ns - new.kept_ns - new.bucket_ns - linger_ns)
    # Both ends belong to it: what was counted when the quota began may be forgotten just now.
    unknown_ns = now_ns - base.kept_ns - begin_ns + 1
    if unknown_ns > 0:
        bounds = [peak * -(-unknown_ns // it.period_ns) for it, peak, since_ns in old if since_ns <= begin_ns]
        counted_ns = now_ns - base.kept_ns + linger_ns
        add_spent(connection, quota_id, new, {counted_ns: min([_UNKNOWN_UNITS, *bounds])})
