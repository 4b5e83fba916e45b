"""What the upstream's own answers change in the ledger, as steps inside a transaction. No step commits."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from qctl.quota import bucket, foreign
from qctl.quota.books import Account, counted, kept_back_ns, limits_changed, settled, states, store_state
from qctl.quota.matching import limit_of
from qctl.quota.policy import Window
from qctl.quota.reset import learned
from qctl.quota.upstream import Span, Told
from qctl.quota.window import LimitReading


@dataclass(frozen=True, slots=True)
class Ours:
    """Units of this host that may be with a call, as of an exchange: leased by other processes, with running tasks of
    this one, and settled by it since its last exchange, by instant."""

    elsewhere_units: int
    running_units: int
    settled: Mapping[int, int]


def hear(connection: sqlite3.Connection, account: Account, told: Iterable[Told], ours: Ours, *, now_ns: int) -> bool:
    """Enter what answers said of a quota's limits: when windows end, and what others have spent.

    After everything that this process has settled was entered. Whether that leaves less than what is out, so that what
    other processes have leased and not called for must not be spent: then all leases are void.
    """
    short = False
    for one in sorted(told, key=lambda it: it.sent_ns):
        limit = limit_of(one, account.limits)
        if limit is None:
            continue
        before = next(part for part in states(connection, [account])[account.quota_id] if part.limit == limit)
        after = before
        if limit.window is Window.FIXED:
            after = replace(before, reset=learned(before.reset, one, limit, chance=random.random()))  # noqa: S311
        if one.remaining_units is not None and _is_of_present_window(one, after, now_ns):
            after = _heard(connection, account, one, after, ours, now_ns)
        store_state(connection, account.quota_id, before, after)
        more = after.kept_off(now_ns, idle=False) > before.kept_off(now_ns, idle=False)
        if ours.elsewhere_units and (more or after.empty_ns > before.empty_ns):
            out_units = ours.elsewhere_units + ours.running_units
            was_units, is_units = (_room(connection, account, part, now_ns) for part in (before, after))
            # Not at each answer of many: while it is short, nothing is leased.
            short = short or was_units >= out_units > is_units
    if short:
        connection.execute("UPDATE quotas SET epoch = epoch + 1 WHERE id = ?", (account.quota_id,))
        limits_changed(connection)
    return short


def _room(connection: sqlite3.Connection, account: Account, part: LimitReading, now_ns: int) -> int:
    """What is left of a limit beside what is leased, at the pessimistic end."""
    counts = settled(connection, {account.quota_id: [part]}, now_ns) if part.limit.window is not Window.PACED else {}
    used_units = counts.get((account.quota_id, part.limit), part.used(now_ns))
    return part.limit.units - used_units - part.kept_off(now_ns, idle=False)


def refused(connection: sqlite3.Connection, account: Account, said_ns: int | None, *, now_ns: int) -> bool:
    """The upstream has refused a call, and serves none before `said_ns` (None: it did not say): grant nothing until
    then, and void the leases. Whether that is longer than it was blocked already.

    Calls that were out together are refused together: that is one refusal.
    """
    again = now_ns >= account.blocked_until_ns
    if not again and (said_ns is None or said_ns <= account.blocked_until_ns):
        return False
    shortest_ns = min(limit.period_ns for limit in account.windows)
    until_ns = foreign.blocked_until(
        now_ns,
        said_ns=said_ns,
        refusals=account.refusals if again else 0,
        period_ns=shortest_ns,
        chance=random.random(),  # noqa: S311 (spreads hosts, hides nothing)
    )
    connection.execute(
        "UPDATE quotas SET blocked_until_ns = ?, refusals = refusals + ?, epoch = epoch + 1 WHERE id = ?",
        (until_ns, int(again or not account.refusals), account.quota_id),
    )
    limits_changed(connection)
    return True


def served(connection: sqlite3.Connection, account: Account, sent_ns: int) -> bool:
    """A call that was sent then was not refused. Whether that shows that the upstream serves again after a refusal."""
    if not account.refusals or sent_ns < account.blocked_until_ns:
        return False
    connection.execute("UPDATE quotas SET refusals = 0 WHERE id = ?", (account.quota_id,))
    limits_changed(connection)
    return True


def _is_of_present_window(told: Told, part: LimitReading, now_ns: int) -> bool:
    """Whether what remains was said of the window that is counted now, as far as one can tell."""
    following = part.reset.believed
    if part.limit.window is not Window.FIXED or following is None:
        return True
    if now_ns >= following.hi_ns:
        return False
    if told.reset is not None and not told.from_clock:
        return told.reset.overlaps(following)
    return not Span(told.sent_ns, told.received_ns).overlaps(following)


def _heard(
    connection: sqlite3.Connection, account: Account, told: Told, part: LimitReading, ours: Ours, now_ns: int
) -> LimitReading:
    """What is known of others' spending after an answer that says what remains.

    What others have in a bucket runs out of it as ours does, so it is put in.
    """
    limit = part.limit
    following = part.reset.believed if limit.window is Window.FIXED else None
    if limit.window is Window.PACED:
        least_units, most_units = _in_bucket(part, told, ours)
    else:
        least_units, most_units = _in_window(
            connection, account, part, sent_ns=told.sent_ns, received_ns=told.received_ns, now_ns=now_ns
        )
    found = foreign.heard(
        part.foreign,
        limit=limit,
        # While nobody knows when its windows end, a fixed limit slides.
        window=Window.SLIDING if limit.window is Window.FIXED and following is None else limit.window,
        remaining_units=told.remaining_units or 0,
        limit_units=told.limit_units,
        # The call itself was counted for its own answer.
        least_units=least_units + 1,
        most_units=most_units + ours.elsewhere_units + ours.running_units,
        sent_ns=told.sent_ns,
        received_ns=told.received_ns,
        now_ns=now_ns,
        reset_ns=following.hi_ns if following and following.hi_ns > told.received_ns else None,
    )
    after = replace(part, foreign=found)
    if limit.window is not Window.PACED or not found.lo_units or found.received_ns != told.received_ns:
        return after
    return replace(after, empty_ns=bucket.added(part.empty_ns, {told.received_ns: found.lo_units}, limit))


def when_idle(connection: sqlite3.Connection, account: Account, part: LimitReading, now_ns: int) -> LimitReading:
    """What the newest answer says when nothing of the quota is leased any more, written down if that is more.

    Whatever it can have counted of ours is settled now, or was never called for. While it was heard, leases that came
    back unspent since had to be taken for calls.
    """
    known = part.foreign
    if known is None or now_ns >= known.until_ns:
        return part
    limit = part.limit
    if limit.window is Window.PACED:
        most_units = bucket.level(part.empty_ns, limit, known.sent_ns)
    else:
        _, most_units = _in_window(
            connection, account, part, sent_ns=known.sent_ns, received_ns=known.received_ns, now_ns=now_ns
        )
    found_units = limit.units - known.remaining_units - most_units
    if limit.window is Window.PACED and found_units > 0:
        empty_ns = bucket.added(part.empty_ns, {known.received_ns: found_units}, limit)
        after = replace(part, empty_ns=empty_ns, foreign=replace(known, last_ns=known.received_ns))
    elif limit.window is not Window.PACED and found_units > known.lo_units:
        after = replace(part, foreign=_at_least(known, found_units))
    else:
        return part
    store_state(connection, account.quota_id, part, after)
    return after


def _in_window(
    connection: sqlite3.Connection,
    account: Account,
    part: LimitReading,
    *,
    sent_ns: int,
    received_ns: int,
    now_ns: int,
) -> tuple[int, int]:
    """Settled units that an answer has counted for certain, and the most that it can have counted.

    For certain what was settled before its call was sent. What the upstream forgets sooner than it is forgotten here is
    left out, lest it be taken for free when it is. Of a window that slides, that is what expires within the time of a
    call, the stretch and the rounding; of a fixed one, what was counted before it began.
    """
    limit, following = part.limit, part.reset.believed
    if limit.window is Window.FIXED and following is not None:
        floor_ns = part.floor_ns(received_ns)
        certain_ns = max(floor_ns, following.lo_ns - limit.period_ns + limit.kept_ns - 1)
    elif now_ns - sent_ns > kept_back_ns(limit):
        # What counted then is not known any more.
        return 0, limit.units
    else:
        floor_ns = sent_ns
        sooner_ns = received_ns - sent_ns + limit.kept_ns - limit.period_ns + 2 * limit.bucket_ns
        certain_ns = received_ns + sooner_ns
    most_units, certain_units = counted(
        connection, account.quota_id, limit, floor_ns=floor_ns, before_ns=sent_ns, after_ns=certain_ns
    )
    return certain_units, most_units


def _in_bucket(part: LimitReading, told: Told, ours: Ours) -> tuple[int, int]:
    """The same of a bucket, as far as one number tells: what was settled later was not in it, or was."""
    most_units = bucket.level(part.empty_ns, part.limit, told.sent_ns)
    later_units = sum(units for instant_ns, units in ours.settled.items() if instant_ns >= told.sent_ns)
    return max(0, most_units - later_units), most_units


def _at_least(known: foreign.Foreign, units: int) -> foreign.Foreign:
    at_ns = known.received_ns
    return replace(known, lo_units=units, hi_units=max(units, known.hi_units), last_ns=at_ns, proven_ns=at_ns)
