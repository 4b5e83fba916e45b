"""What the API says of its limit in the headers of an answer, in every style that is met. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from enum import StrEnum

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


class Style(StrEnum):
    """Whose headers; the value is the name on the command line."""

    EPOCH = "epoch"  # x-rate-limit-*, reset in seconds of the API's clock
    EPOCH_MS = "epoch-ms"  # X-RateLimit-*, the same in milliseconds
    DELTA = "delta"  # X-RateLimit-*, reset in seconds from now
    DURATION = "duration"  # X-RateLimit-*, reset as 6m0s
    DATE = "date"  # X-RateLimit-*, reset as an HTTP date
    IETF = "ietf"  # RateLimit and RateLimit-Policy
    GITHUB = "github"  # x-ratelimit-*, epoch, refused with 403
    COUNT = "count"  # limit and remaining, without a reset
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Now:
    """A limit at the instant of an answer. epoch_ns: the API's own clock; more_ns: from now until there is more."""

    limit_units: int
    remaining_units: int
    period_ns: int
    epoch_ns: int
    more_ns: int


def headers(style: Style, now: Now, *, floor: bool = False) -> dict[str, str]:
    """The headers of an answer. floor: whole seconds are rounded down, as careless APIs do, and not up."""
    limit, remaining = str(now.limit_units), str(now.remaining_units)
    delta_s = whole_seconds(now.more_ns, floor=floor)
    epoch_s = whole_seconds(now.epoch_ns + now.more_ns, floor=floor)
    resets = {
        Style.EPOCH: epoch_s,
        Style.EPOCH_MS: -(-(now.epoch_ns + now.more_ns) // _NS_PER_MS),
        Style.DELTA: delta_s,
        Style.DURATION: _duration(delta_s),
        Style.DATE: formatdate(epoch_s, usegmt=True),
        Style.GITHUB: epoch_s,
    }
    match style:
        case Style.NONE:
            return {}
        case Style.IETF:
            period_s = whole_seconds(now.period_ns, floor=False)
            return {
                "RateLimit-Policy": f'"default";q={limit};w={period_s}',
                "RateLimit": f'"default";r={remaining};t={delta_s}',
            }
        case Style.COUNT:
            return {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining}
        case Style.EPOCH:
            prefix = "x-rate-limit-"
        case Style.GITHUB:
            prefix = "x-ratelimit-"
        case _:
            prefix = "X-RateLimit-"
    names = ("limit", "remaining", "reset") if prefix.islower() else ("Limit", "Remaining", "Reset")
    return {prefix + name: value for name, value in zip(names, (limit, remaining, str(resets[style])), strict=True)}


def whole_seconds(time_ns: int, *, floor: bool) -> int:
    """Seconds, rounded."""
    return time_ns // _NS_PER_S if floor else -(-time_ns // _NS_PER_S)


def _duration(seconds: int) -> str:
    """6m0s, as Go prints it."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
