"""What other limits, a reboot and a loss make of the history, as steps inside a transaction. No step commits.

Whatever is not known any more is taken for spent: a change never frees a unit that was not free before it.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from qctl.errors import LedgerError
from qctl.quota import bucket
from qctl.quota.books import Account, Head, accounts, bury, enter, limits_changed, states, store_state
from qctl.quota.clock import Clock
from qctl.quota.foreign import Foreign
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import NEVER_NS, Reset
from qctl.quota.window import LimitReading, expiry
from qctl.quota.words import MAX_QUOTAS

#: More than any limit, and small enough that no sum overflows: what may have been spent when nothing is known.
_UNKNOWN_UNITS = 10**15
#: Of a first epoch; room is left to count from there.
_EPOCH_BITS = 62
#: Occasions that are remembered, on which the window was counted as spent: more than a machine has former names.
_EVIDENCE_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class _Past:
    """A limit that was enforced, the most units it ever had, and since when it is enforced."""

    limit: Limit
    peak_units: int
    since_ns: int


def configure(
    connection: sqlite3.Connection, name: str, limits: Sequence[Limit], now_ns: int
) -> tuple[int, int] | None:
    """Set the limits of one quota. Returns its id and new epoch if that changed anything.

    A change ends a block, since nobody else can: one task at a time shows whether the upstream serves again.
    """
    row = connection.execute("SELECT id, epoch, created_ns FROM quotas WHERE name = ?", (name,)).fetchone()
    if row is None:
        return _configure_new(connection, name, limits, now_ns)
    quota_id, epoch, created_ns = row
    old = [
        _Past(Limit(units, period_ns, Window(window)), peak_units, since_ns)
        for units, period_ns, window, peak_units, since_ns in connection.execute(
            "SELECT units, period_ns, window, peak_units, since_ns FROM limits WHERE quota = ?", (quota_id,)
        )
    ]
    if set(limits) == {past.limit for past in old}:
        return None
    _set_bucket(connection, quota_id, old, limits, now_ns)
    _set_windows(connection, quota_id, old, limits, created_ns=created_ns, now_ns=now_ns)
    least_units = min(limit.units for limit in limits)
    connection.execute(
        "UPDATE leases SET units = max(units, ?) WHERE quota = ?"
        " AND process IN (SELECT id FROM processes WHERE NOT stated)",
        (least_units, quota_id),
    )
    # Could never be met, and would keep everybody else from being paid.
    connection.execute("DELETE FROM claims WHERE quota = ? AND units > ?", (quota_id, least_units))
    connection.execute(
        "UPDATE quotas SET epoch = ?, blocked_until_ns = min(blocked_until_ns, ?) WHERE id = ?",
        (epoch + 1, now_ns, quota_id),
    )
    limits_changed(connection)
    return quota_id, epoch + 1


def begin_anew(connection: sqlite3.Connection, before: Head, clock: Clock, *, lives: Callable[[str], bool]) -> None:
    """After a reboot, or if the boot clock runs back, nobody knows how long ago anything was: all was just now.

    lives: whether a process is known to be alive; after a reboot the others are dead, lock file or not.
    """
    now_ns = clock.now_ns()
    known = accounts(connection)
    found = states(connection, known.values())
    for account in known.values():
        for part in found[account.quota_id]:
            _begin_anew(connection, account.quota_id, part, seen_ns=before.seen_ns, now_ns=now_ns)
    connection.execute("UPDATE quotas SET created_ns = ?", (NEVER_NS,))
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
    limits_changed(connection)


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
    connection.execute("UPDATE quotas SET created_ns = ?, epoch = epoch + 1", (NEVER_NS,))
    limits_changed(connection)
    return True


def _configure_new(connection: sqlite3.Connection, name: str, limits: Sequence[Limit], now_ns: int) -> tuple[int, int]:
    (unknown_ns,) = connection.execute("SELECT unknown_ns FROM meta").fetchone()
    (quota_id,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM quotas").fetchone()
    if quota_id > MAX_QUOTAS:
        raise LedgerError(f"the ledger holds {MAX_QUOTAS} quotas and cannot take {name}", hint="Use fewer quotas.")
    # Of no other ledger: what was leased from one that was replaced must not pass for a lease of this one.
    epoch = secrets.randbits(_EPOCH_BITS) + 1
    connection.execute(
        "INSERT INTO quotas(id, name, epoch, created_ns) VALUES (?, ?, ?, ?)",
        (quota_id, name, epoch, now_ns if unknown_ns is None else NEVER_NS),
    )
    for limit in limits:
        _insert(connection, quota_id, limit, now_ns)
        _assume(connection, quota_id, limit, limit.units, now_ns)
    connection.execute(
        "INSERT INTO leases SELECT id, ?, ? FROM processes WHERE NOT stated",
        (quota_id, min(limit.units for limit in limits)),
    )
    limits_changed(connection)
    return quota_id, epoch


def _set_windows(
    connection: sqlite3.Connection,
    quota_id: int,
    old: Iterable[_Past],
    limits: Iterable[Limit],
    *,
    created_ns: int,
    now_ns: int,
) -> None:
    """Have these limits of those that keep rows, one for each period, whichever kind it was and is."""
    before = {past.limit.period_ns: past for past in old if past.limit.window is not Window.PACED}
    after = {limit.period_ns: limit for limit in limits if limit.window is not Window.PACED}
    for period_ns, limit in after.items():
        if period_ns in before:
            _change(connection, quota_id, before[period_ns], limit, now_ns)
        else:
            _insert(connection, quota_id, limit, now_ns)
            _carry(connection, quota_id, tuple(before.values()), limit, created_ns=created_ns, now_ns=now_ns)
            _assume(connection, quota_id, limit, limit.units, now_ns)
    for period_ns in before.keys() - after.keys():
        _drop(connection, quota_id, before[period_ns].limit)
        connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", (quota_id, period_ns))


def _change(connection: sqlite3.Connection, quota_id: int, past: _Past, limit: Limit, now_ns: int) -> None:
    """Other units, or another way to count them, for a period that is kept already."""
    if limit.units > past.peak_units:
        # More than was assumed may have been spent before anything was known.
        _assume(connection, quota_id, limit, limit.units - past.peak_units, now_ns)
    key = (quota_id, limit.period_ns, past.limit.window)
    connection.execute(
        "UPDATE limits SET units = ?1, peak_units = max(peak_units, ?1), window = ?2"
        " WHERE quota = ?3 AND period_ns = ?4 AND window = ?5",
        (limit.units, limit.window, *key),
    )
    connection.execute(
        "UPDATE others SET window = ? WHERE quota = ? AND period_ns = ? AND window = ?", (limit.window, *key)
    )
    if limit.window is not past.limit.window:
        connection.execute(
            # How much a window of another kind may have admitted is not known from its units alone.
            "UPDATE limits SET since_ns = ?, reset_since_ns = NULL, reset_lo_ns = NULL, reset_hi_ns = NULL,"
            " reset_doubt_ns = NULL WHERE quota = ? AND period_ns = ? AND window = ?",
            (now_ns, quota_id, limit.period_ns, limit.window),
        )
    if limit.units != past.limit.units:
        # Whether the upstream keeps to this one or to the old the next call shows, which goes alone: until then no more
        # is out at once than was left of the old. An answer to a call of before is taken for one that was overtaken.
        connection.execute(
            "UPDATE others SET lo_units = 0, hi_units = max(0, hi_units + ?1), until_ns = 0,"
            " sent_ns = ?2, received_ns = ?2, proven_ns = ?2, growth_per_s = 0, since_ns = NULL, answers = 0"
            " WHERE quota = ?3 AND period_ns = ?4 AND window = ?5",
            (limit.units - past.limit.units, now_ns, quota_id, limit.period_ns, limit.window),
        )


def _set_bucket(
    connection: sqlite3.Connection, quota_id: int, old: Iterable[_Past], limits: Iterable[Limit], now_ns: int
) -> None:
    """Have this bucket, if there is to be one, with as many units in it as there were; full, if there was none.

    What lingers may come on top, and is taken to come last. While the history of before is there.
    """
    before = next((past.limit for past in old if past.limit.window is Window.PACED), None)
    after = next((limit for limit in limits if limit.window is Window.PACED), None)
    if before == after:
        return
    units = after.units if after else 0
    if before:
        key = (quota_id, before.period_ns, before.window)
        (empty_ns,) = connection.execute(
            "SELECT empty_ns FROM limits WHERE quota = ? AND period_ns = ? AND window = ?", key
        ).fetchone()
        units = bucket.level(empty_ns, before, now_ns)
        _drop(connection, quota_id, before)
    if after:
        _insert(connection, quota_id, after, now_ns)
        at_ns, late_units = _lingering(connection, quota_id, old, after, now_ns)
        units = min(after.units, units + late_units)
        enter(connection, quota_id, after, {at_ns: units} if units else {})
        _assume(connection, quota_id, after, after.units, now_ns)


def _lingering(
    connection: sqlite3.Connection, quota_id: int, old: Iterable[_Past], new: Limit, now_ns: int
) -> tuple[int, int]:
    """Until when units may yet be counted that were settled without an answer, and how many those are."""
    base = max((past.limit for past in old if past.limit.window is not Window.PACED), key=lambda it: it.period_ns)
    later_ns = new.linger_ns - base.linger_ns - base.kept_ns
    last_ns, units = connection.execute(
        "SELECT max(expires_ns), sum(units) FROM spent"
        " WHERE quota = ?1 AND period_ns = ?2 AND expires_ns > ?3 AND expires_ns + ?4 > ?5",
        (quota_id, base.period_ns, expiry(now_ns, base), later_ns, now_ns),
    ).fetchone()
    return (now_ns, 0) if last_ns is None else (last_ns + later_ns, units)


def _drop(connection: sqlite3.Connection, quota_id: int, limit: Limit) -> None:
    """Have this limit no more, its history apart; a bucket may have the period of another limit."""
    key = (quota_id, limit.period_ns, limit.window)
    for table in ("limits", "others"):
        connection.execute(f"DELETE FROM {table} WHERE quota = ? AND period_ns = ? AND window = ?", key)  # noqa: S608 (our own names)


def _insert(connection: sqlite3.Connection, quota_id: int, limit: Limit, now_ns: int) -> None:
    connection.execute(
        "INSERT INTO limits(quota, period_ns, window, units, peak_units, since_ns) VALUES (?, ?, ?, ?, ?, ?)",
        (quota_id, limit.period_ns, limit.window, limit.units, limit.units, now_ns),
    )


def _assume(connection: sqlite3.Connection, quota_id: int, limit: Limit, units: int, now_ns: int) -> None:
    """Count `units` as spent at the last instant of which nothing is known, if there is one and it matters yet."""
    (unknown_ns,) = connection.execute("SELECT unknown_ns FROM meta").fetchone()
    if unknown_ns is None:
        return
    counted_ns = unknown_ns + limit.linger_ns
    if limit.window is Window.PACED:
        # Fuller than full a bucket never is where it counts.
        connection.execute(
            "UPDATE limits SET empty_ns = max(empty_ns, ?) WHERE quota = ? AND period_ns = ? AND window = ?",
            (counted_ns + units * limit.interval_ns, quota_id, limit.period_ns, limit.window),
        )
    elif expiry(counted_ns, limit) > now_ns:
        enter(connection, quota_id, limit, {counted_ns: units})


def _begin_anew(
    connection: sqlite3.Connection, quota_id: int, part: LimitReading, *, seen_ns: int, now_ns: int
) -> None:
    """All that counted when the clock was last seen was settled just now; when the window ends nobody knows."""
    limit = part.limit
    counted_ns = now_ns + limit.linger_ns
    empty_ns = counted_ns + part.empty_ns - seen_ns if part.empty_ns > seen_ns else 0
    foreign = _moved(part.foreign, now_ns - seen_ns) if part.foreign and part.foreign.doubt_ns > seen_ns else None
    store_state(connection, quota_id, part, replace(part, reset=Reset(), empty_ns=empty_ns, foreign=foreign))
    if limit.window is not Window.PACED:
        key = (quota_id, limit.period_ns)
        (units,) = connection.execute(
            "SELECT coalesce(sum(units), 0) FROM spent WHERE quota = ? AND period_ns = ? AND expires_ns > ?",
            (*key, part.floor_ns(seen_ns)),
        ).fetchone()
        connection.execute("DELETE FROM spent WHERE quota = ? AND period_ns = ?", key)
        enter(connection, quota_id, limit, {counted_ns: units})


def _moved(foreign: Foreign, by_ns: int) -> Foreign:
    """The same on a clock that has started anew: what was left of it then is the most that can be left now."""
    return replace(
        foreign,
        until_ns=foreign.until_ns + by_ns,
        doubt_ns=foreign.doubt_ns + by_ns,
        sent_ns=foreign.sent_ns + by_ns,
        received_ns=foreign.received_ns + by_ns,
        proven_ns=foreign.proven_ns + by_ns,
        since_ns=None if foreign.since_ns is None else foreign.since_ns + by_ns,
        last_ns=None if foreign.last_ns is None else foreign.last_ns + by_ns,
    )


def _carry(
    connection: sqlite3.Connection,
    quota_id: int,
    old: Sequence[_Past],
    new: Limit,
    *,
    created_ns: int,
    now_ns: int,
) -> None:
    """Fill the history of a period that was not kept before, from one that was; never with too little.

    A longer history than the new period has it all. From a shorter one, what is older is bounded by what that limit can
    have admitted, a fixed one a window more; if it is too young to say, by nothing.
    """
    longer = [past.limit for past in old if past.limit.period_ns >= new.period_ns]
    base = (
        min(longer, key=lambda limit: limit.period_ns)
        if longer
        else max((past.limit for past in old), key=lambda limit: limit.period_ns)
    )
    # A doubtful unit lingers at most a window, so under a longer one it may be counted later; which are, nobody knows.
    linger_ns = max(0, new.linger_ns - base.linger_ns)
    for expires_ns, units in connection.execute(
        "SELECT expires_ns, units FROM spent WHERE quota = ? AND period_ns = ?", (quota_id, base.period_ns)
    ).fetchall():
        counted_ns = expires_ns - base.kept_ns + linger_ns
        if expiry(counted_ns, new) > now_ns:
            enter(connection, quota_id, new, {counted_ns: units})
    begin_ns = max(created_ns, now_ns - new.kept_ns - new.bucket_ns - linger_ns)
    # Both ends belong to it: what was counted when the quota began may be forgotten just now.
    unknown_ns = now_ns - base.kept_ns - begin_ns + 1
    if unknown_ns > 0:
        bounds = [
            past.peak_units * (-(-unknown_ns // past.limit.period_ns) + (past.limit.window is Window.FIXED))
            for past in old
            if past.since_ns <= begin_ns
        ]
        enter(connection, quota_id, new, {now_ns - base.kept_ns + linger_ns: min([_UNKNOWN_UNITS, *bounds])})
