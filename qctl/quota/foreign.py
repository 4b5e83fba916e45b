"""What others spend of a limit, from what the API says remains of it. Pure arithmetic, instants of the boot clock.

An answer that says "m remain" was made at an instant c between the sending of its call and its arrival. With N our
limit's units the API had counted U = N - m units at c, ours and those of others. (N is ours also where the API's own
limit is another: a smaller one looks like spending of others, which is how it binds us; a larger one like none.) Of
ours it had counted

* at least those that were settled before the call was sent: each had been answered, and the call itself;
* at most all that still count for us when the answer came: settled, with running tasks of this process, or leased by
  others of this host, who may have them with running tasks. What lies in this process's memory was not called for.

So others have spent between `lo = U - most` and `hi = U - least`, neither below nothing: the calls in flight make the
difference. Truth can only be worse by what others did since c; if it grew lately, it is taken to have gone on growing.

The limit is kept to if we spend at most N - hi; N - lo is what it may turn out to be. While anything of ours is out,
the pessimistic end binds. When nothing is, the optimistic one does, for one task at a time: its call is sent after
everything else was settled, so that with its answer both ends meet. Thus the last unit is used, and never one too many.

The pessimistic end counts calls in flight twice: as ours, and as possibly of others. That would cost the steady flow
of a sliding window a part of its throughput for nothing, so there the difference is made only where others were seen to
spend lately. In a fixed window it delays the last units, and takes none away: there it is always made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qctl.quota.policy import NS_PER_S, Limit, Window

#: Spending of others is believed to go on for so many windows after it was last seen, as far as caution goes.
_RECENT_WINDOWS = 2
#: Below this part of a limit nobody is told: an API that counts its own health checks is no news.
TRIFLE_DIVISOR = 100
#: Spending of others is lasting when this many exchanges in a row found it, for so long, and this part of the period.
LASTING_ANSWERS = 3
LASTING_NS = 3 * NS_PER_S
LASTING_DIVISOR = 20
#: Over how long it is looked how fast it grows: what comes unit by unit is not seen in two answers.
_GROWTH_NS = 2 * NS_PER_S
#: Units, of which no margin is made.
_NO_GROWTH = 0.05
#: A 429 that does not say for how long: the first pause; it doubles while nothing is served in between.
UNSAID_NS = 5 * NS_PER_S
#: And the longest: an outage of some hours must not cost a day.
UNSAID_MAX_NS = 300 * NS_PER_S
#: Hosts that wait for one instant resume within this after it, and within this part of the period.
SPREAD_NS = NS_PER_S
SPREAD_DIVISOR = 200


@dataclass(frozen=True, slots=True)
class Foreign:
    """Units of a limit that others have spent: `lo_units` at least, `hi_units` at most.

    until_ns: when it is forgotten if no answer comes before: the window's end, or a window after the answer.
    doubt_ns: when, after that, also the caution ends to send one task at a time (for a fixed window it is the same).
    sent_ns, received_ns: of the call whose answer this is from. remaining_units, limit_units: what that answer said.
    our_units: the most of ours that it can have counted. growth_per_s: units a second, lately. since_ns, answers: since
    when, and in how many exchanges in a row, it was more than a trifle. last_ns: when `lo_units` was last above zero.
    proven_ns: when the answer came that shows `lo_units`: the newest, or one that was on its way together with it.
    """

    lo_units: int
    hi_units: int
    until_ns: int
    doubt_ns: int
    sent_ns: int
    received_ns: int
    remaining_units: int
    limit_units: int | None = None
    our_units: int = 0
    growth_per_s: float = 0.0
    since_ns: int | None = None
    answers: int = 0
    last_ns: int | None = None
    proven_ns: int = 0

    def kept_off(self, now_ns: int, *, idle: bool) -> int:
        """Units of the limit that are not ours at `now_ns`. idle: nothing of the quota is leased by anybody.

        After `until_ns` nothing is known: it may be as before, so that the first task goes alone.
        """
        if now_ns < self.until_ns:
            return self.lo_units if idle else self.hi_units
        return 0 if idle or now_ns >= self.doubt_ns else self.hi_units

    def steps(self, now_ns: int, *, idle: bool) -> tuple[tuple[int, int], ...]:
        """(from when, units kept off from then on), the first from `now_ns`; what it will be if no answer comes."""
        instants = (now_ns, *(at_ns for at_ns in (self.until_ns, self.doubt_ns) if at_ns > now_ns))
        return tuple((at_ns, self.kept_off(at_ns, idle=idle)) for at_ns in instants)

    def lasting(self, limit: Limit) -> bool:
        """Whether it goes on for so long that somebody should know."""
        wanted_ns = max(LASTING_NS, limit.period_ns // LASTING_DIVISOR)
        return (
            self.since_ns is not None
            and self.answers >= LASTING_ANSWERS
            and self.received_ns - self.since_ns >= wanted_ns
        )


@dataclass(frozen=True, slots=True)
class ForeignReport:
    """Spending of others of one quota, for people: of the limit that it takes most of.

    remaining_units, limit_units: as the API said last. our_units: what it can have counted of ours. since_ns: None
    while it is a trifle.
    """

    quota: str
    limit: Limit
    lo_units: int
    hi_units: int
    remaining_units: int
    limit_units: int | None
    our_units: int
    since_ns: int | None
    until_ns: int
    lasting: bool


def heard(
    before: Foreign | None,
    *,
    limit: Limit,
    window: Window,
    remaining_units: int,
    limit_units: int | None,
    least_units: int,
    most_units: int,
    sent_ns: int,
    received_ns: int,
    now_ns: int,
    reset_ns: int | None,
) -> Foreign:
    """What an answer says of a limit, after `before` (of the same limit; None: nothing is known).

    least_units, most_units: what the API can have counted of ours in it, see above; units that are certain to be of the
    API's present window, the call itself included, and all that may be. reset_ns: when that window is over for certain;
    None: not known, or it slides.
    """
    fixed = reset_ns is not None
    same = before is not None and received_ns < before.until_ns
    used_units = limit.units - max(0, remaining_units)
    lo_units = max(0, used_units - most_units)
    if before is not None and sent_ns < before.sent_ns:
        # It was overtaken. What it proves to be spent is so still, within a fixed window; its upper end is out of date.
        lo_units = max(before.lo_units, lo_units if fixed and same else 0)
        proven_ns = before.proven_ns if lo_units == before.lo_units else received_ns
        return replace(before, lo_units=lo_units, hi_units=max(lo_units, before.hi_units), proven_ns=proven_ns)
    proven_ns = received_ns
    if before is not None and fixed and same and sent_ns < before.proven_ns and before.lo_units > lo_units:
        # Which of two that were on their way together was counted first nobody knows; a call sent later knows better.
        lo_units, proven_ns = before.lo_units, before.proven_ns
    growth_per_s = _growth(before, lo_units, received_ns, window) if same or window is Window.PACED else 0.0
    last_ns = received_ns if lo_units else (before.last_ns if before else None)
    recent = last_ns is not None and received_ns - last_ns <= max(_RECENT_WINDOWS * limit.kept_ns, _GROWTH_NS)
    hi_units = lo_units
    if window is Window.FIXED or recent:
        # Until the next call is counted, about a round trip from now; never so much that one call a time is all.
        margin_units = _margin(growth_per_s * (now_ns + received_ns - 2 * sent_ns) / NS_PER_S)
        margin_units = min(margin_units, limit.units // 2)
        hi_units = max(lo_units, min(limit.units, used_units - least_units + margin_units))
    until_ns = reset_ns if reset_ns is not None else received_ns + limit.kept_ns
    notable = lo_units * TRIFLE_DIVISOR > limit.units
    goes_on = notable and before is not None and before.since_ns is not None and received_ns < before.doubt_ns
    return Foreign(
        lo_units=lo_units,
        hi_units=hi_units,
        until_ns=until_ns,
        doubt_ns=until_ns if fixed else until_ns + limit.kept_ns,
        sent_ns=sent_ns,
        received_ns=received_ns,
        remaining_units=max(0, remaining_units),
        limit_units=limit_units,
        our_units=most_units,
        growth_per_s=growth_per_s,
        since_ns=None if not notable else before.since_ns if goes_on and before is not None else received_ns,
        answers=(before.answers + 1 if goes_on and before is not None else 1) if notable else 0,
        last_ns=last_ns,
        proven_ns=proven_ns,
    )


def _growth(before: Foreign | None, lo_units: int, received_ns: int, window: Window) -> float:
    """Units a second by which it grows, smoothed; below zero where it falls. What is in a bucket was put into ours, so
    that all that is found there is new."""
    if before is None or received_ns <= before.received_ns:
        return 0.0 if before is None else before.growth_per_s
    if window is not Window.PACED and not before.lo_units:
        return 0.0  # seen for the first time: it may have been there for long
    passed_ns = received_ns - before.received_ns
    grown_units = lo_units - (0 if window is Window.PACED else before.lo_units)
    weight = 1 - math.exp(-passed_ns / _GROWTH_NS)
    return before.growth_per_s + weight * (grown_units * NS_PER_S / passed_ns - before.growth_per_s)


def _margin(expected_units: float) -> int:
    """What comes at random is seldom more than twice the root of its mean above it, and comes in whole units."""
    return 0 if expected_units < _NO_GROWTH else math.ceil(expected_units + 2 * math.sqrt(expected_units))


def report(quota: str, parts: Iterable[tuple[Limit, Foreign | None]], now_ns: int) -> ForeignReport | None:
    """What people are told of a quota with these limits; None while nobody else is known to spend of it."""
    found = [(limit, it) for limit, it in parts if it is not None and it.lo_units and now_ns < it.until_ns]
    if not found:
        return None
    limit, most = max(found, key=lambda pair: (pair[1].lasting(pair[0]), pair[1].lo_units / max(1, pair[0].units)))
    return ForeignReport(
        quota=quota,
        limit=limit,
        lo_units=most.lo_units,
        hi_units=most.hi_units,
        remaining_units=most.remaining_units,
        limit_units=most.limit_units,
        our_units=most.our_units,
        since_ns=most.since_ns,
        until_ns=most.until_ns,
        lasting=most.lasting(limit),
    )


def spread_ns(period_ns: int, chance: float) -> int:
    """How much later than an instant that many hosts wait for this one resumes. chance: from 0 to 1, drawn once."""
    return int(min(SPREAD_NS, period_ns // SPREAD_DIVISOR) * chance)


def blocked_until(now_ns: int, *, said_ns: int | None, refusals: int, period_ns: int, chance: float) -> int:
    """Until when nothing is asked of an API that has refused a call at `now_ns`.

    said_ns: the latest instant that its words allow for; None: it did not say, and the pause is doubled for each of the
    `refusals` before this one since it last served, up to the shortest period and UNSAID_MAX_NS. Who refuses again
    after what was said has said too little: then the pause is as long at least, counted from the second on. A little is
    added for each host to come back at another moment.
    """
    before = refusals if said_ns is None else refusals - 1
    pause_ns = min(max(period_ns, NS_PER_S), UNSAID_MAX_NS, UNSAID_NS << min(before, 20)) if before >= 0 else 0
    return max(now_ns + pause_ns, said_ns or 0) + spread_ns(period_ns, chance)
