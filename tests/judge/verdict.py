"""The verdict: what the API's log says about whoever called. Pure; the log is all that it looks at.

Over is judged without the API's own refusals, which would acquit everyone: all calls of the judged, refused ones too,
go through a fresh counter that counts nobody else, and each that it would refuse is one over.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.judge.rule import Kind, Rule, number_of

NS_PER_S = 1_000_000_000
#: An answer needs this long to be read and acted on: whoever calls later was told.
HEARD_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One call. at_ns: counted; epoch_ns: the same on the API's clock; answered_ns: None while it is not."""

    own: bool
    path: str
    arrived_ns: int
    at_ns: int
    epoch_ns: int
    status: int
    remaining: int
    answered_ns: int | None = None

    @property
    def granted(self) -> bool:
        """Whether it was counted."""
        return self.status == 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """One caller over a span of time.

    used, foreign: calls counted, the caller's own and somebody else's. whole: calls that the limit admits in that span,
    whoever makes them. sure: those of them that a client can be sure of, see `sure_rate`. over: see above. refused:
    answers that refused, by window, those before and after the span included. told: those of them whose client knew
    better, see `told`. pace: how soon a sliding limit was used again, 1.0 being as soon as can be; None where that
    cannot be said.
    """

    seconds: float
    latency_s: float
    used: int
    foreign: int
    whole: float
    sure: float
    over: int
    refused: tuple[int, ...]
    told: int
    pace: float | None

    @property
    def used_of_sure(self) -> float:
        """Share of what a client can be sure of, of what somebody else has left."""
        return self.used * self.whole / max(1.0, self.sure * (self.whole - self.foreign))

    @property
    def used_of_whole(self) -> float:
        """Share of the limit that was used, by whomever."""
        return (self.used + self.foreign) / self.whole


def read(lines: Iterable[str]) -> tuple[Call, ...]:
    """The calls of a log in the order of counting, without a last line that is still being written."""
    calls: dict[int, dict[str, object]] = {}
    for line in lines:
        if line.endswith("\n"):
            raw = json.loads(line)
            calls.setdefault(raw.pop("n"), {}).update(raw)
    return tuple(Call(**fields) for fields in calls.values())  # type: ignore[arg-type]


def over(calls: Iterable[Call], rule: Rule) -> int:
    """How many of the judged caller's calls the rule would not admit, were there nobody else."""
    counter = rule.counter()
    return sum(not counter.count(call.epoch_ns) for call in calls if call.own)


def judge(calls: Sequence[Call], rule: Rule, *, windows: int, warm_up_s: float = 0.0, silent: bool = False) -> Verdict:
    """Judge `windows` windows: fixed ones from the first that begins after the first call; others from that call on.

    A sliding one is as long as the period and the mean latency: who spends it all at once can do so again no sooner.
    warm_up_s: the judged span begins so much later. silent: granted answers do not say what remains. Raises ValueError
    without calls.
    """
    own = [call for call in calls if call.own]
    if not own:
        raise ValueError("nobody called")
    latency_ns = _latency_ns(own)
    since_ns = own[0].epoch_ns + round(warm_up_s * NS_PER_S)
    step_ns = rule.period_ns
    if rule.kind is Kind.FIXED:
        since_ns = (number_of(since_ns, rule) + 1) * rule.period_ns + rule.phase_ns
    elif rule.kind is Kind.SLIDING:
        step_ns += round(latency_ns)
    span_ns = windows * step_ns
    inside = [call for call in calls if call.granted and since_ns <= call.epoch_ns < since_ns + span_ns]
    used = sum(call.own for call in inside)
    foreign = len(inside) - used
    if rule.kind is Kind.SLIDING:
        foreign = _taken(calls, rule.period_ns, since_ns, since_ns + span_ns)
    return Verdict(
        seconds=span_ns / NS_PER_S,
        latency_s=latency_ns / NS_PER_S,
        used=used,
        foreign=foreign,
        whole=rule.units * span_ns / rule.period_ns,
        sure=span_ns * sure_rate(rule, latency_ns),
        over=over(calls, rule),
        refused=_refused(own, since_ns, step_ns, windows),
        told=told(calls, rule, silent=silent),
        pace=_pace(calls, rule.units, windows, span_ns) if rule.kind is Kind.SLIDING else None,
    )


def sure_rate(rule: Rule, latency_ns: float) -> float:
    """Calls a nanosecond of which a client can be sure that none is refused.

    It does not know when within the latency a call is counted, so a unit is its own from the start of the call until
    one period after the answer. In a bucket each of `burst` units is taken for the latency and the interval in which
    it leaks.
    """
    rate = rule.units / (rule.period_ns + latency_ns)
    if rule.kind is Kind.PACED:
        rate = min(rate, rule.burst / (rule.period_ns / rule.units + latency_ns))
    return rate


def told(calls: Sequence[Call], rule: Rule, *, silent: bool = False) -> int:
    """Refused calls of a client that knew better: by the newest answer that it had heard nothing was left for them.

    That is what it said remains, less all own calls that it cannot have counted, plus all that came back by the passing
    of time alone. Others are nobody's fault: somebody else spent the rest while nobody could tell.
    """
    own = [call for call in calls if call.own]
    by_arrival = sorted(call.arrived_ns for call in own)
    found = 0
    for call in own:
        if call.granted:
            continue
        heard = [
            one
            for one in own
            if one.answered_ns is not None
            and one.answered_ns + HEARD_NS < call.arrived_ns
            and not (silent and one.granted)
        ]
        if not heard:
            continue
        newest = max(heard, key=lambda one: one.at_ns)
        counted = sum(one.at_ns <= newest.at_ns for one in own)
        out = bisect_left(by_arrival, call.arrived_ns) - counted
        came_back = _came_back(calls, rule, newest, call)
        found += came_back is not None and newest.remaining + came_back <= out
    return found


def _came_back(calls: Iterable[Call], rule: Rule, since: Call, until: Call) -> int | None:
    """Units that were used at `since` and were not when `until` arrived, by the passing of time; None: all of them."""
    until_ns = until.epoch_ns - (until.at_ns - until.arrived_ns)
    passed_ns = max(0, until_ns - since.epoch_ns)
    match rule.kind:
        case Kind.SLIDING if passed_ns < rule.period_ns:
            first_ns, last_ns = since.epoch_ns - rule.period_ns, until_ns - rule.period_ns
            return sum(call.own and call.granted and first_ns < call.epoch_ns <= last_ns for call in calls)
        case Kind.FIXED if number_of(until_ns, rule) == number_of(since.epoch_ns, rule):
            return 0
        case Kind.PACED if passed_ns * rule.units < rule.burst * rule.period_ns:
            return passed_ns * rule.units // rule.period_ns
    return None


def _taken(calls: Iterable[Call], period_ns: int, since_ns: int, until_ns: int) -> int:
    """What somebody else took of a sliding limit in a span: each of his calls, as far as it counted in there."""
    spans = ((call.epoch_ns, call.epoch_ns + period_ns) for call in calls if call.granted and not call.own)
    return round(sum(max(0, min(end, until_ns) - max(begin, since_ns)) for begin, end in spans) / period_ns)


def _pace(calls: Sequence[Call], units: int, windows: int, span_ns: int) -> float | None:
    """How long it took from each call of the first window to the one so many windows' units later, against `span_ns`.

    Counting in the span would overlook how late each spell of calls begins: most of a window is spent waiting. None
    with anybody else's calls, or too few.
    """
    counted = [call for call in calls if call.granted]
    at_ns = [call.epoch_ns for call in counted]
    later = at_ns[units * windows :][:units]
    if not later or not all(call.own for call in counted):
        return None
    return span_ns * len(later) / (sum(later) - sum(at_ns[: len(later)]))


def _refused(own: Iterable[Call], since_ns: int, step_ns: int, windows: int) -> tuple[int, ...]:
    found = Counter((call.epoch_ns - since_ns) // step_ns for call in own if not call.granted)
    return tuple(found[number] for number in range(min([0, *found]), max([windows - 1, *found]) + 1))


def _latency_ns(own: Iterable[Call]) -> float:
    answered = [call.answered_ns - call.arrived_ns for call in own if call.answered_ns is not None]
    return sum(answered) / len(answered) if answered else 0.0
