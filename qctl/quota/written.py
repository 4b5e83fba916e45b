"""The forms in which APIs write when: a delay, or an instant of their own clock, each as coarse as written. Pure.

No specification names them all. Found in use: whole seconds to wait (`Retry-After` of RFC 9110; the IETF's drafts;
Reddit), also with a fraction (Discord); epoch seconds (GitHub, Twitter, GitLab), also with a fraction, in milliseconds
and finer; durations as Go prints them (`6m0s`, `12ms`: OpenAI, Groq); dates of HTTP (RFC 9110, 5.6.7) and of JavaScript
(lemlist); ISO 8601 with a zone (Anthropic). One without a zone may be anybody's time and says nothing, and neither does
one that more follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from qctl.quota.policy import NS_PER_S

#: What is further from the API's own clock, or longer, is no reset of any limit.
MAX_AHEAD_NS = 366 * 86_400 * NS_PER_S
#: A number below this is no instant, not even of a clock that begins at 1970 whenever it is switched on.
EPOCH_MIN_NS = 10**9 * NS_PER_S
#: Longer texts are not looked at.
MAX_CHARS = 80

_NUMBER = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?")
_UNITS_NS = {
    "d": 86_400 * NS_PER_S,
    "h": 3_600 * NS_PER_S,
    "m": 60 * NS_PER_S,
    "s": NS_PER_S,
    "ms": 1_000_000,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ns": 1,
}
_PART = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?(d|h|ms|us|µs|μs|ns|m|s)")
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.([0-9]{1,9}))?(?:Z|z|[+-][0-9]{2}:?[0-9]{2})"
)
_DAY, _MONTH, _TIME = "[A-Z][a-z]{2,8}", "[A-Z][a-z]{2}", "[0-9]{2}:[0-9]{2}:[0-9]{2}"
#: The three forms of HTTP, those with a zone also with another than GMT; and that of JavaScript.
_DATE = re.compile(
    rf"{_DAY}, [0-9]{{1,2}}([ -]){_MONTH}\1(?:[0-9]{{2}}|[0-9]{{4}}) {_TIME} (?:GMT|UTC|[+-][0-9]{{4}})"
    rf"|{_DAY} {_MONTH} [ 0-9]?[0-9] {_TIME} [0-9]{{4}}"
    rf"|{_DAY} {_MONTH} [0-9]{{2}} [0-9]{{4}} {_TIME} (?:GMT|UTC)[+-][0-9]{{4}}(?: \([^()]*\))?"
)
#: What JavaScript puts behind a date.
_SCRIPT_ZONE = re.compile(r"(?:GMT|UTC)([+-][0-9]{4})(?: \(.*\))?$")


@dataclass(frozen=True, slots=True)
class Written:
    """What a text says: a delay, or (epoch) an instant of the API's clock since 1970.

    grain_ns: the truth is at most this much earlier or later, since somebody may have rounded it either way. bare: a
    delay that names no unit, and is taken for seconds.
    """

    ns: int
    grain_ns: int
    epoch: bool
    bare: bool = False


def when(text: str, now_ns: int) -> Written | None:
    """What `text` says, None where that is nothing. now_ns: about the API's time since 1970, which tells an epoch (of
    seconds, milliseconds, ...) from a delay."""
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        return None
    found = _number(text, now_ns) if _NUMBER.fullmatch(text) else _duration(text) or _date(text)
    if found is None:
        return None
    ahead_ns = found.ns - now_ns if found.epoch else found.ns
    return found if abs(ahead_ns) <= MAX_AHEAD_NS else None


def seconds(text: str) -> int | None:
    """The instant of an HTTP date, in whole seconds since 1970; None for anything else."""
    found = _date(text.strip()) if len(text) <= MAX_CHARS else None
    return None if found is None else found.ns // NS_PER_S


def _number(text: str, now_ns: int) -> Written | None:
    match = _NUMBER.fullmatch(text)
    assert match is not None
    whole, fraction = match[1], match[2] or ""
    digits, places = int(whole + fraction), 10 ** len(fraction)
    for scale_ns in (NS_PER_S, 1_000_000, 1_000, 1):
        ns = digits * scale_ns // places
        if ns >= EPOCH_MIN_NS and abs(ns - now_ns) <= MAX_AHEAD_NS:
            return Written(ns, _grain(ns, scale_ns // places), epoch=True)
    ns = digits * NS_PER_S // places
    return Written(ns, _grain(ns, NS_PER_S // places), epoch=False, bare=True)


def _grain(ns: int, grain_ns: int) -> int:
    """How coarse a value is, given the worth of its last digit: whole seconds were rounded before they were written."""
    return NS_PER_S if ns % NS_PER_S == 0 else max(1, grain_ns)


def _duration(text: str) -> Written | None:
    """As Go prints durations."""
    ns, grain_ns, at = 0, 1, 0
    while (match := _PART.match(text, at)) is not None:
        unit_ns, fraction = _UNITS_NS[match[3]], match[2] or ""
        ns += int(match[1] + fraction) * unit_ns // 10 ** len(fraction)
        grain_ns, at = max(1, unit_ns // 10 ** len(fraction)), match.end()
    if at != len(text):
        return None
    return Written(ns, max(grain_ns, _grain(ns, grain_ns)), epoch=False)


def _date(text: str) -> Written | None:
    """A date of ISO 8601 with a zone, else in one of the forms of HTTP; the one without a zone means UTC."""
    try:
        if (match := _ISO.fullmatch(text)) is not None:
            parsed, fraction = datetime.fromisoformat(text.upper()), match[1] or ""
        elif _DATE.fullmatch(text) is not None:
            parsed, fraction = parsedate_to_datetime(_SCRIPT_ZONE.sub(r"\1", text)), ""
            parsed = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
        else:
            return None
        since = parsed - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    ns = (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1_000
    return Written(ns, _grain(ns, NS_PER_S // 10 ** min(len(fraction), 6)), epoch=True)
