"""The sums of the ledger, as steps inside a transaction that the caller holds. No step commits.

An `Account` is a quota as the file knows it, a `Head` what is true of the whole file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields, replace

from qctl.quota import bucket, schema
from qctl.quota.clock import Clock
from qctl.quota.foreign import Foreign
from qctl.quota.policy import NS_PER_S, Limit, Window
from qctl.quota.reset import NEVER_NS, Reset
from qctl.quota.upstream import Span
from qctl.quota.window import Claim, LimitReading, Reading, Spent, expiry

#: Rows that have expired are kept for so long, and this part of their window: an answer is about what counted when its
#: call was sent.
_KEPT_BACK_NS = 2 * NS_PER_S
_KEPT_BACK_DIVISOR = 32
#: Those are dropped this often, and so many times in the shortest window.
SWEEP_NS = NS_PER_S
_SWEEPS_A_WINDOW = 32
_OTHERS = ", ".join(field.name for field in fields(Foreign))


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
    """A quota and its limits, as the file has them. refusals: of the upstream, since it served a call."""

    quota_id: int
    name: str
    epoch: int
    blocked_until_ns: int
    refusals: int
    limits: tuple[Limit, ...]

    @property
    def probing_until_ns(self) -> int:
        """Until when one task goes at a time after a refusal. Not for ever: who has the one may be stopped."""
        return self.blocked_until_ns + min(it.linger_ns for it in self.windows) if self.refusals else 0

    @property
    def windows(self) -> tuple[Limit, ...]:
        """The limits that have a history of rows: all but a bucket."""
        return tuple(limit for limit in self.limits if limit.window is not Window.PACED)


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
    states(connection, accounts(connection).values())


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


def accounts(connection: sqlite3.Connection) -> dict[str, Account]:
    """All quotas by name."""
    found: dict[str, Account] = {}
    for quota_id, name, epoch, blocked_until_ns, refusals, units, period_ns, window in connection.execute(
        "SELECT q.id, q.name, q.epoch, q.blocked_until_ns, q.refusals, l.units, l.period_ns, l.window"
        " FROM quotas q JOIN limits l ON l.quota = q.id ORDER BY q.id, l.period_ns, l.window"
    ).fetchall():
        limits = (*(found[name].limits if name in found else ()), Limit(units, period_ns, Window(window)))
        found[name] = Account(quota_id, name, epoch, blocked_until_ns, refusals, limits)
    return found


def states(connection: sqlite3.Connection, known: Iterable[Account]) -> dict[int, list[LimitReading]]:
    """What is known of the limits of these quotas, by quota id, without their history of rows."""
    by_id = {account.quota_id: account for account in known}
    marks = ", ".join("?" * len(by_id))
    others = {
        (quota_id, period_ns, window): Foreign(*values)
        for quota_id, period_ns, window, *values in connection.execute(
            f"SELECT quota, period_ns, window, {_OTHERS} FROM others WHERE quota IN ({marks})",  # noqa: S608 (only marks)
            tuple(by_id),
        )
    }
    found: dict[int, list[LimitReading]] = {quota_id: [] for quota_id in by_id}
    for quota_id, units, period_ns, window, empty_ns, *reset in connection.execute(
        "SELECT quota, units, period_ns, window, empty_ns, reset_since_ns, reset_lo_ns, reset_hi_ns, reset_reported,"  # noqa: S608 (only marks)
        f" reset_spread_ns, reset_doubt_ns FROM limits WHERE quota IN ({marks}) ORDER BY quota, period_ns, window",
        tuple(by_id),
    ):
        found[quota_id].append(
            LimitReading(
                Limit(units, period_ns, Window(window)),
                reset=_reset(*reset),
                empty_ns=empty_ns,
                foreign=others.get((quota_id, period_ns, window)),
            )
        )
    return found


def _reset(
    since_ns: int | None,
    lo_ns: int | None,
    hi_ns: int | None,
    reported: int | None,
    spread_ns: int | None,
    doubt_ns: int | None,
) -> Reset:
    return Reset(
        since_ns=NEVER_NS if since_ns is None else since_ns,
        next=None if lo_ns is None or hi_ns is None else Span(lo_ns, hi_ns),
        reported=bool(reported),
        spread_ns=spread_ns or 0,
        doubt_ns=NEVER_NS if doubt_ns is None else doubt_ns,
    )


def store_state(connection: sqlite3.Connection, quota_id: int, before: LimitReading, after: LimitReading) -> None:
    """Write down what is known of a limit, its history of rows apart, where that has changed."""
    key = (quota_id, after.limit.period_ns, after.limit.window)
    if (before.reset, before.empty_ns) != (after.reset, after.empty_ns):
        reset = after.reset
        ends = (None, None) if reset.next is None else (reset.next.lo_ns, reset.next.hi_ns)
        connection.execute(
            "UPDATE limits SET empty_ns = ?, reset_since_ns = ?, reset_lo_ns = ?, reset_hi_ns = ?, reset_reported = ?,"
            " reset_spread_ns = ?, reset_doubt_ns = ? WHERE quota = ? AND period_ns = ? AND window = ?",
            (after.empty_ns, reset.since_ns, *ends, int(reset.reported), reset.spread_ns, reset.doubt_ns, *key),
        )
    if after.foreign is None and before.foreign is not None:
        connection.execute("DELETE FROM others WHERE quota = ? AND period_ns = ? AND window = ?", key)
    elif after.foreign is not None and after.foreign != before.foreign:
        values = astuple(after.foreign)
        marks = ", ".join("?" * (len(key) + len(values)))
        connection.execute(f"INSERT OR REPLACE INTO others VALUES ({marks})", (*key, *values))  # noqa: S608 (only marks)


def spend(
    connection: sqlite3.Connection, account: Account, units_at: Mapping[int, int], *, now_ns: int, lingers: bool
) -> None:
    """Enter settled units, by instant, under each limit.

    An instant ahead of the clock is of a clock that has restarted since: it becomes now.
    """
    for limit in account.limits:
        at: dict[int, int] = {}
        for instant_ns, units in units_at.items():
            counted_ns = min(instant_ns, now_ns) + (limit.linger_ns if lingers else 0)
            if limit.window is Window.PACED or expiry(counted_ns, limit) > now_ns - kept_back_ns(limit):
                at[counted_ns] = at.get(counted_ns, 0) + units
        enter(connection, account.quota_id, limit, at)


def sweep(connection: sqlite3.Connection, before: Head, known: Iterable[Account], now_ns: int) -> None:
    """Drop what has expired, a few times a window: more often would cost every exchange a statement."""
    shortest_ns = min((limit.period_ns for account in known for limit in account.windows), default=SWEEP_NS)
    if now_ns - before.swept_ns >= min(SWEEP_NS, shortest_ns // _SWEEPS_A_WINDOW):
        connection.execute(
            "DELETE FROM spent WHERE expires_ns + period_ns / ? <= ?", (_KEPT_BACK_DIVISOR, now_ns - _KEPT_BACK_NS)
        )
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
    waiting = claims(connection)
    (processes,) = connection.execute("SELECT count(*) FROM processes").fetchone()
    found = states(connection, known.values())
    return {
        name: Reading(
            quota=name,
            limits=tuple(
                part
                if part.limit.window is Window.PACED
                else replace(part, spent=spent.get((it.quota_id, part.limit.period_ns), Spent()))
                for part in found[it.quota_id]
            ),
            leased=leased.get(it.quota_id, {}),
            claims=waiting.get(it.quota_id, ()),
            epoch=it.epoch,
            blocked_until_ns=it.blocked_until_ns,
            probing_until_ns=it.probing_until_ns,
            processes=max(1, processes),
        )
        for name, it in known.items()
    }


def claims(connection: sqlite3.Connection) -> dict[int, tuple[Claim, ...]]:
    """Who stands in line, by quota id, first come first. Who has not asked for long is there, and holds nobody up: its
    place is its own when it asks again."""
    found: dict[int, tuple[Claim, ...]] = {}
    for quota_id, *claim in connection.execute(
        "SELECT quota, seq, process, consumer, units, expires_ns FROM claims ORDER BY seq"
    ):
        found[quota_id] = (*found.get(quota_id, ()), Claim(*claim))
    return found


def enter(connection: sqlite3.Connection, quota_id: int, limit: Limit, units_at: Mapping[int, int]) -> None:
    """Enter units under one limit, by the last instant at which they can have been counted."""
    if limit.window is not Window.PACED:
        connection.executemany(
            "INSERT INTO spent VALUES (?, ?, ?, ?)"
            " ON CONFLICT(quota, period_ns, expires_ns) DO UPDATE SET units = units + excluded.units",
            [(quota_id, limit.period_ns, expiry(at_ns, limit), units) for at_ns, units in units_at.items() if units],
        )
    elif units_at:
        # Whatever is in it: as full as it would be of these units alone, or that much fuller than it is.
        alone_ns, more_ns = bucket.added(NEVER_NS, units_at, limit), sum(units_at.values()) * limit.interval_ns
        connection.execute(
            "UPDATE limits SET empty_ns = max(empty_ns + ?, ?) WHERE quota = ? AND period_ns = ? AND window = ?",
            (more_ns, alone_ns, quota_id, limit.period_ns, limit.window),
        )


def settled(
    connection: sqlite3.Connection, found: Mapping[int, Iterable[LimitReading]], now_ns: int
) -> dict[tuple[int, Limit], int]:
    """Settled units that count at `now_ns`, by quota id and limit; of those limits that have rows, and have some."""
    floors = {
        (quota_id, part.limit.period_ns): (part.limit, part.floor_ns(now_ns))
        for quota_id, parts in found.items()
        for part in parts
        if part.limit.window is not Window.PACED
    }
    values = ", ".join(["(?, ?, ?)"] * len(floors))
    rows = connection.execute(
        f"WITH counting(quota, period_ns, floor_ns) AS (VALUES {values})"  # noqa: S608 (only marks)
        " SELECT s.quota, s.period_ns, sum(s.units) FROM counting c JOIN spent s"
        " ON s.quota = c.quota AND s.period_ns = c.period_ns AND s.expires_ns > c.floor_ns GROUP BY 1, 2",
        [value for (quota_id, period_ns), (_, floor_ns) in floors.items() for value in (quota_id, period_ns, floor_ns)],
    )
    units = {(quota_id, period_ns): total for quota_id, period_ns, total in rows}
    return {(key[0], limit): units.get(key, 0) for key, (limit, _) in floors.items()}


def counted(
    connection: sqlite3.Connection, quota_id: int, limit: Limit, *, floor_ns: int, before_ns: int, after_ns: int
) -> tuple[int, int]:
    """Units of a limit that has rows: all that expire after `floor_ns`; and those settled before `before_ns` that
    expire after `after_ns`."""
    all_units, certain_units = connection.execute(
        "SELECT coalesce(sum(units), 0), coalesce(sum(CASE WHEN expires_ns < ? AND expires_ns > ? THEN units END), 0)"
        " FROM spent WHERE quota = ? AND period_ns = ? AND expires_ns > ?",
        (before_ns + limit.kept_ns, after_ns, quota_id, limit.period_ns, floor_ns),
    ).fetchone()
    return all_units, certain_units


def kept_back_ns(limit: Limit) -> int:
    """How long the rows of a limit are kept after they have expired."""
    return _KEPT_BACK_NS + limit.period_ns // _KEPT_BACK_DIVISOR


def limits_changed(connection: sqlite3.Connection) -> None:
    """Have everybody read the quotas and their limits again."""
    connection.execute("UPDATE meta SET limits_version = limits_version + 1")
