"""`RateLimit` and `RateLimit-Policy` of the IETF: from structured fields to plain values. Pure, never raises.

By draft-ietf-httpapi-ratelimit-headers-11: lists of items, which name a policy and have the parameters r (what is
left) and t (seconds), or q (the quota), w (its window in seconds) and qu (its unit, by default requests), and pk (a
partition). By draft 07: a dictionary limit, remaining, reset, and policies without a name. Up to draft 06
`RateLimit-Limit` may also be a list of quotas, whose first is the one in force. A field that is malformed is ignored as
a whole (RFC 9651, 4.2).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import http_sf

from qctl.quota.policy import NS_PER_S

#: Longer fields are not looked at: they come with every answer.
MAX_FIELD_CHARS = 2_048
#: Of a list, so many items.
MAX_ITEMS = 8
#: Larger numbers are no count of calls.
MAX_UNITS = 10**12
_MAX_WINDOW_S = 366 * 86_400
#: Units of the draft's registry that no quota of ours is counted in.
_NOT_OURS = ("content-bytes", "concurrent-requests")
_REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Line:
    """What such fields say about one limit. delay_s: whole seconds until its window ends, rounded somehow.

    requests False: it is counted in other units than calls.
    """

    remaining_units: int
    limit_units: int | None = None
    period_ns: int | None = None
    delay_s: int | None = None
    requests: bool = True


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str | None
    partition: bytes | None
    quota: int
    window_s: int | None
    unit: str


def lines(ratelimit: str, policy: str) -> tuple[Line, ...]:
    """What the two fields say, "" for one that is absent."""
    policies = _policies(policy)
    if items := _parse(ratelimit, "list"):
        return _named(items, policies)
    told: Any = _parse(ratelimit, "dictionary") or {}
    values = {name: _count(member) for name, member in told.items()}
    if (remaining := values.get("remaining")) is None:
        return ()
    limit = values.get("limit")
    return (Line(remaining, limit, period_of(limit, policies), values.get("reset")),)


def quota_in_force(text: str, policy: str) -> tuple[int | None, int | None]:
    """(units, period in ns) of `RateLimit-Limit` up to draft 06; its policies are in place or in their own field."""
    items = _parse(text, "list") or []
    units = _count(items[0]) if items else None
    stated = [found for item in items[1:] if (found := _policy(item)) is not None]
    return units, period_of(units, stated or _policies(policy))


def period_of(units: int | None, policies: list[_Policy]) -> int | None:
    """The window of the policy that has so many units, or of the only one; None where that is not certain."""
    if len(policies) > 1:
        policies = [one for one in policies if one.quota == units]
    if len(policies) != 1 or policies[0].window_s is None or (units is not None and policies[0].quota != units):
        return None
    return policies[0].window_s * NS_PER_S


def _named(items: list[Any], policies: list[_Policy]) -> tuple[Line, ...]:
    """Each item with the policy that it names; one that is there twice says nothing."""
    found = [(_name(item), _partition(item), item[1]) for item in items if isinstance(item, tuple)]
    times = Counter((name, partition) for name, partition, _ in found)
    said = []
    for name, partition, parameters in found:
        remaining, delay_s = _units(parameters.get("r")), _units(parameters.get("t"))
        if name is None or remaining is None or times[name, partition] > 1:
            continue
        named = [one for one in policies if one.name == name]
        named = [one for one in named if one.partition == partition] or named
        one = named[0] if len(named) == 1 else None
        if one is None:
            said.append(Line(remaining, delay_s=_window(delay_s)))
        elif one.unit not in _NOT_OURS:
            period_ns = None if one.window_s is None else one.window_s * NS_PER_S
            said.append(Line(remaining, one.quota, period_ns, _window(delay_s), requests=one.unit == _REQUESTS))
    return tuple(said)


def _policies(text: str) -> list[_Policy]:
    return [found for item in _parse(text, "list") or [] if (found := _policy(item)) is not None]


def _policy(item: Any) -> _Policy | None:
    if not isinstance(item, tuple):
        return None
    value, parameters = item
    name = _name(item)
    quota = _units(parameters.get("q")) if name is not None else _units(value)
    unit = parameters.get("qu", _REQUESTS)
    if quota is None or not isinstance(unit, str):
        return None
    window_s = _window(_units(parameters.get("w"))) or None
    return _Policy(name, _partition(item), quota, window_s, unit)


def _parse(text: str, kind: Any) -> Any:
    """The list or dictionary that a field is, None for what is none."""
    if not text or len(text) > MAX_FIELD_CHARS:
        return None
    try:
        found: Any = http_sf.parse(text.encode("ascii"), tltype=kind)
    # It raises ValueErrors of its own; whatever else may be in there, somebody else's server must not end a task.
    except Exception:  # noqa: BLE001
        return None
    return found if len(found) <= MAX_ITEMS else None


def _name(item: Any) -> str | None:
    """Draft 11 wants a string, draft 08 wrote a token."""
    value = item[0]
    return str(value) if isinstance(value, str | http_sf.Token) else None


def _partition(item: Any) -> bytes | None:
    value = item[1].get("pk")
    return value if isinstance(value, bytes) else None


def _count(item: Any) -> int | None:
    return _units(item[0]) if isinstance(item, tuple) else None


def _units(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_UNITS else None


def _window(seconds: int | None) -> int | None:
    return seconds if seconds is not None and seconds <= _MAX_WINDOW_S else None
