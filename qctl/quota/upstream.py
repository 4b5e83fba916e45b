"""What an API's own answers say about its limits. Pure: the clocks come with the answer.

Every instant is one of the boot clock, in nanoseconds, and is a `Span`: latency, rounding and a clock that nobody has
set make it an interval, which surely contains the truth. What is malformed, negative, absurd or there twice says
nothing; of an answer out of a cache only `Retry-After` counts.

| read | as of |
|---|---|
| `Retry-After` | RFC 9110, 10.2.3: seconds or a date of the API's own clock; `retry-after-ms` of OpenAI and Azure |
| `RateLimit`, `RateLimit-Policy` | draft-ietf-httpapi-ratelimit-headers-11, and 07 |
| `RateLimit-Limit`, `-Remaining`, `-Reset` | its drafts up to 06; GitLab, which puts an epoch in the last |
| `X-RateLimit-*`, `X-Rate-Limit-*` | no specification: Twitter, GitHub, Reddit, Discord (`-Reset-After`) |
| the same for each of several | OpenAI (`-Remaining-Requests`), Kong (`-Remaining-Hour`), Anthropic, RapidAPI |
| 403 and 429, primary and secondary | GitHub's documentation of the rate limits of its REST API |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from qctl.quota import written
from qctl.quota.policy import NS_PER_MS, NS_PER_S, STRETCH_PPM
from qctl.quota.written import Written

#: Longest wait that is believed: what cannot be right must not end a host's work.
MAX_WAIT_NS = 86_400 * NS_PER_S
#: Of one answer, so many limits.
MAX_TOLD = 8
#: How far this machine's wall clock and the API's are believed to be apart before an answer shows its `Date`.
WALL_SKEW_NS = 2 * NS_PER_S
#: Many servers renew the date that they write once a second at any moment of it, and their timers are late.
DATE_LATE_NS = 1_100 * NS_PER_MS
#: Dates that contradict each other by less are those of several servers; by more, a clock was set.
APART_MAX_NS = 6 * NS_PER_S
#: So long after it was seen, that they do is taken into account.
APART_KEPT_NS = 3_600 * NS_PER_S
#: A number without a unit is no delay in seconds if it is so many times as long as the longest period.
TOO_LONG = 2
#: GitHub: a secondary limit that does not say how long means a minute at least, and longer each time.
SECONDARY_FIRST_NS = 60 * NS_PER_S
#: A whole second is exact where it is a multiple of a period this long; shorter ones are met by chance.
ALIGNED_MIN_NS = 60 * NS_PER_S

_UNITS = re.compile(r"([0-9]{1,13})(?:\.[0-9]{1,9})?")
_MOST_UNITS = 10**12
_ABOUT = re.compile(
    r"(?P<maker>x-rate-?limit|rate-?limit|[a-z]{2,20}-rate-?limit)-"
    r"(?:(?P<before>[a-z0-9_-]{1,40})-)?(?P<what>limit|remaining|reset)(?:-(?P<behind>[a-z0-9_-]{1,40}))?"
)
#: What a limit of several is called when it is one of calls, and its period where the name says that.
_PERIODS_NS = {
    "second": NS_PER_S,
    "minute": 60 * NS_PER_S,
    "hour": 3_600 * NS_PER_S,
    "day": 86_400 * NS_PER_S,
}
_CALLS = frozenset({"", "requests", "core", *_PERIODS_NS})
_SECONDARY = (b"secondary rate limit", b"secondary-rate-limit", b"abuse detection", b"abuse-rate-limit")


class Style(StrEnum):
    """How an API reports what is left; the values are those of the inventory's `headers`."""

    AUTO = "auto"
    X_RATE_LIMIT = "x-rate-limit"
    RATELIMIT = "ratelimit"
    GITHUB = "github"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Span:
    """An instant that lies somewhere from `lo_ns` to `hi_ns`, both included."""

    lo_ns: int
    hi_ns: int

    def overlaps(self, other: Span) -> bool:
        """Whether both can be the same instant."""
        return self.lo_ns <= other.hi_ns and other.lo_ns <= self.hi_ns

    def meets(self, other: Span) -> Span | None:
        """Where both are; None where they contradict each other."""
        return Span(max(self.lo_ns, other.lo_ns), min(self.hi_ns, other.hi_ns)) if self.overlaps(other) else None

    def moved(self, by_ns: int) -> Span:
        """The same, later by so much."""
        return Span(self.lo_ns + by_ns, self.hi_ns + by_ns)

    def widened(self, by_ns: int) -> Span:
        """Wider by so much at both ends."""
        return Span(self.lo_ns - by_ns, self.hi_ns + by_ns)


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of one answer. headers: names in lower case, values of repeated ones joined by a comma.

    sent_ns, received_ns: of the call, by the boot clock. wall_ns: this machine's wall clock at `received_ns`, since the
    epoch; believed to 2 s where the API sends no `Date`. body: its beginning, of a 403 alone.
    """

    status: int
    headers: Mapping[str, str]
    sent_ns: int
    received_ns: int
    wall_ns: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Told:
    """What one answer says about one limit: so much remains until the reset. None: not said.

    exact: it may be about something else (tokens, one endpoint), so it is only of a limit with this number of units.
    from_clock: the reset is not the API's word, but the end of the present period by its clock.
    """

    remaining_units: int | None
    limit_units: int | None
    period_ns: int | None
    reset: Span | None
    sent_ns: int
    received_ns: int
    from_clock: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Offset:
    """The API's clock (since 1970) minus the boot clock, `span` at the instant `at_ns`.

    apart_ns: until `apart_until_ns`, the clocks of its several servers are believed to differ by so much.
    """

    span: Span
    at_ns: int
    apart_ns: int = 0
    apart_until_ns: int = 0

    def at(self, now_ns: int) -> Span:
        """The same at another instant: the further, the wider, since clocks drift."""
        return self.span.widened(drift(now_ns - self.at_ns))


@dataclass(frozen=True, slots=True)
class Heard:
    """What one answer says.

    refused: it was not served, for a limit's sake. wait: then the instant from which it is served again; at `hi_ns`
    that is certain, roundings are in it; None: not said. secondary: the limit that refused is none of those that are
    counted (GitHub's secondary ones). offset: the API's clock, as known now.
    """

    told: tuple[Told, ...] = ()
    refused: bool = False
    wait: Span | None = None
    secondary: bool = False
    offset: Offset | None = None

    @property
    def silent(self) -> bool:
        """True when there is nothing in it to tell anybody."""
        return not self.told and not self.refused


def read(answer: Answer, *, style: Style, offset: Offset | None = None, periods_ns: Iterable[int] = ()) -> Heard:
    """What an answer says. Never raises.

    offset: the API's clock as of earlier answers. periods_ns: of the quota's limits: a reset that is written as a
    multiple of one is exact, however coarsely it is written, since a window that ends there was made to.
    """
    stored = bool(_units(answer.headers.get("age", "")))  # an answer of another time
    offset = offset if stored else _heard_date(answer, offset)
    about = offset if offset is not None else _by_wall(answer)
    told = () if stored else tuple(_told(answer, style, about, tuple(periods_ns)))[:MAX_TOLD]
    said = _retry_after(answer, about)
    secondary = _is_secondary(answer, style, told, said=said is not None)
    gone = [one for one in told if one.remaining_units == 0]
    refused = answer.status == 429 or (answer.status == 403 and (said is not None or secondary or bool(gone)))
    if not refused:
        return Heard(told, offset=offset)
    wait = _ahead(said, answer)
    if wait is None and secondary:
        wait = Span(answer.sent_ns, answer.received_ns).moved(SECONDARY_FIRST_NS)
    elif wait is None:
        over = gone or [one for one in told if one.remaining_units is None]
        resets = [reset for one in over if (reset := _ahead(one.reset, answer)) is not None]
        wait = Span(max(s.lo_ns for s in resets), max(s.hi_ns for s in resets)) if resets else None
    if wait is not None:
        latest_ns = answer.received_ns + MAX_WAIT_NS
        wait = Span(min(wait.lo_ns, latest_ns), min(wait.hi_ns, latest_ns))
    return Heard(told, refused=True, wait=wait, secondary=secondary, offset=offset)


def wants_body(status: int, headers: Mapping[str, str], style: Style) -> bool:
    """Whether only the body tells what a refusal is: of GitHub, which says nothing else of some secondary limits."""
    github = style is Style.GITHUB or (style is Style.AUTO and "x-github-request-id" in headers)
    return status == 403 and github and "retry-after" not in headers


def clock_reset(offset: Offset, period_ns: int, now_ns: int) -> Span | None:
    """The end of the API's present multiple of a period, by its clock; None where it is not certain which that is."""
    apart = offset.at(now_ns)
    window = (now_ns + apart.lo_ns) // period_ns
    if window != (now_ns + apart.hi_ns) // period_ns:
        return None
    end_ns = (window + 1) * period_ns
    return Span(end_ns - apart.hi_ns, end_ns - apart.lo_ns).widened(drift(period_ns))


def drift(distance_ns: int) -> int:
    """How far two clocks can be apart after so long, if they were together before."""
    return abs(distance_ns) * STRETCH_PPM // 1_000_000 + 1


def _heard_date(answer: Answer, offset: Offset | None) -> Offset | None:
    """The API's clock, narrowed by this answer's `Date` (RFC 9110, 6.6.1: whole seconds, as of when it was made).

    What contradicts it is another server's, and from then on it may be either; or its clock was set, which replaces it.
    """
    date_s = written.seconds(answer.headers.get("date", ""))
    if date_s is None:
        return offset
    date_ns = date_s * NS_PER_S
    now_ns = answer.received_ns
    alone = Span(date_ns - now_ns, date_ns + NS_PER_S + DATE_LATE_NS - answer.sent_ns)
    if offset is None:
        return Offset(alone, now_ns)
    apart_ns = offset.apart_ns if now_ns < offset.apart_until_ns else 0
    before, now = offset.at(now_ns), alone.widened(apart_ns)
    if (both := before.meets(now)) is not None:
        return Offset(both, now_ns, apart_ns, offset.apart_until_ns)
    either = Span(min(before.lo_ns, now.lo_ns), max(before.hi_ns, now.hi_ns))
    if (apart_ns := either.hi_ns - either.lo_ns) > APART_MAX_NS:
        return Offset(alone, now_ns)
    return Offset(either, now_ns, apart_ns, now_ns + APART_KEPT_NS)


def _by_wall(answer: Answer) -> Offset:
    """The API's clock by this machine's, before it has shown its own."""
    apart_ns = answer.wall_ns - answer.received_ns
    return Offset(Span(apart_ns, apart_ns).widened(WALL_SKEW_NS), answer.received_ns)


def _api_now(answer: Answer, offset: Offset) -> int:
    span = offset.at(answer.received_ns)
    return answer.received_ns + (span.lo_ns + span.hi_ns) // 2


def _instant(said: Written, answer: Answer, offset: Offset, periods_ns: Iterable[int] = ()) -> Span:
    """When that is. A delay counts from when the answer was made, between sending and receiving."""
    if not said.epoch:
        made = Span(answer.sent_ns, answer.received_ns)
        return made.moved(said.ns).widened(said.grain_ns + drift(said.ns))
    apart = offset.at(answer.received_ns)
    aligned = any(period_ns >= ALIGNED_MIN_NS and said.ns % period_ns == 0 for period_ns in periods_ns)
    grain_ns = 0 if aligned else said.grain_ns
    span = Span(said.ns - apart.hi_ns, said.ns - apart.lo_ns).widened(grain_ns)
    return span.widened(drift(span.hi_ns - answer.received_ns))


def _ahead(instant: Span | None, answer: Answer) -> Span | None:
    """The same, None where it was over already as the answer came: whoever waits for that does not wait."""
    return instant if instant is not None and instant.hi_ns > answer.received_ns else None


def _reset(text: str, answer: Answer, offset: Offset, periods_ns: tuple[int, ...], *, named: bool) -> Span | None:
    """The end of the present window. It cannot be before the call was sent: the API counted it in that window.

    named: its period was said, and may be none of the quota's; else a number that is far too long is of another unit.
    """
    said = written.when(text, _api_now(answer, offset))
    if said is None:
        return None
    if said.bare and not named and periods_ns and said.ns > TOO_LONG * max(periods_ns):
        return None
    span = _instant(said, answer, offset, periods_ns)
    return Span(max(span.lo_ns, answer.sent_ns), span.hi_ns) if span.hi_ns >= answer.sent_ns else None


def _retry_after(answer: Answer, offset: Offset) -> Span | None:
    """From when on it is served again, by `Retry-After`; a number is a delay unless only an instant makes sense.

    In milliseconds as well, it is known better; where the two contradict each other it is the later.
    """
    found = []
    if (said := written.when(answer.headers.get("retry-after", ""), _api_now(answer, offset))) is not None:
        found.append(_instant(said, answer, offset))
    delay_ms = _units(answer.headers.get("retry-after-ms", ""))
    if delay_ms is not None and delay_ms * NS_PER_MS <= written.MAX_AHEAD_NS:
        found.append(_instant(Written(delay_ms * NS_PER_MS, NS_PER_MS, epoch=False), answer, offset))
    if not found:
        return None
    span = found[0].meets(found[-1]) or max(found, key=lambda one: one.hi_ns)
    return Span(max(span.lo_ns, answer.sent_ns), max(span.hi_ns, answer.sent_ns))


def _told(answer: Answer, style: Style, offset: Offset, periods_ns: tuple[int, ...]) -> Iterator[Told]:
    """What the headers say about limits, by the first way of reporting that says anything."""
    if style in (Style.AUTO, Style.RATELIMIT):
        found = [*_fields_told(answer)] or [*_named_told(answer, offset, periods_ns, drafted=True)]
        if found or style is Style.RATELIMIT:
            yield from found
            return
    if style is not Style.NONE:
        yield from _named_told(answer, offset, periods_ns, drafted=False)


def _fields_told(answer: Answer) -> Iterator[Told]:
    """By the `RateLimit` field; whole seconds, rounded somehow, from when the answer was made."""
    ratelimit, policy = answer.headers.get("ratelimit", ""), answer.headers.get("ratelimit-policy", "")
    if not ratelimit:
        return
    from qctl.quota import fields  # only who calls such an API needs the parser

    made = Span(answer.sent_ns, answer.received_ns)
    for line in fields.lines(ratelimit, policy):
        reset = None
        if line.delay_s is not None:
            delay_ns = line.delay_s * NS_PER_S
            span = made.moved(delay_ns).widened(NS_PER_S + drift(delay_ns))
            reset = Span(max(span.lo_ns, answer.sent_ns), span.hi_ns)
        yield Told(
            line.remaining_units,
            line.limit_units,
            line.period_ns,
            reset,
            answer.sent_ns,
            answer.received_ns,
            exact=not line.requests,
        )


def _named_told(answer: Answer, offset: Offset, periods_ns: tuple[int, ...], *, drafted: bool) -> Iterator[Told]:
    """By headers with a name for each number. drafted: `RateLimit-Remaining` and such, else those of no draft."""
    values: dict[tuple[str, str], dict[str, str]] = {}
    for name, value in answer.headers.items():
        # Most headers are none of these, and every answer is looked at.
        if "rate" not in name or (match := _ABOUT.fullmatch(name)) is None:
            continue
        if drafted != match["maker"].startswith("rate"):
            continue
        what, behind = match["what"], match["behind"] or ""
        if what == "reset" and behind == "after":  # Discord: the delay, beside the instant
            what, behind = "reset-after", ""
        of_which = "-".join(filter(None, (match["before"], behind)))
        values.setdefault((match["maker"], of_which), {})[what] = value
    resource = answer.headers.get("x-ratelimit-resource", "").lower()
    policy = answer.headers.get("ratelimit-policy", "") if drafted else ""
    for (_, of_which), said in list(values.items())[:MAX_TOLD]:
        limit = said.get("limit", "")
        limit_units, period_ns = _units(limit), _PERIODS_NS.get(of_which)
        if drafted and (policy or (limit and limit_units is None)):
            from qctl.quota import fields

            limit_units, period_ns = fields.quota_in_force(limit, policy)
        remaining_units = _units(said.get("remaining", ""))
        text = said.get("reset-after") or said.get("reset", "")
        reset = _reset(text, answer, offset, periods_ns, named=period_ns is not None)
        if remaining_units is not None or reset is not None:
            exact = of_which not in _CALLS or resource not in _CALLS
            yield Told(remaining_units, limit_units, period_ns, reset, answer.sent_ns, answer.received_ns, exact=exact)


def _is_secondary(answer: Answer, style: Style, told: tuple[Told, ...], *, said: bool) -> bool:
    """Whether GitHub refused for another reason than the limit that its headers report.

    Its documentation: 403 or 429 with an error that says so. With `Retry-After` or nothing left that rules; else wait a
    minute at least, and longer each time.
    """
    if answer.status not in (403, 429) or style not in (Style.AUTO, Style.GITHUB):
        return False
    if style is Style.AUTO and "x-github-request-id" not in answer.headers:
        return False
    if any(one.remaining_units == 0 for one in told):
        return False
    return answer.status == 429 or said or any(words in answer.body.lower() for words in _SECONDARY)


def _units(text: str) -> int | None:
    """A whole number of units, also where it is written with a fraction (Reddit: `599.0`)."""
    match = _UNITS.fullmatch(text.strip())
    return None if match is None or int(match[1]) > _MOST_UNITS else int(match[1])
