"""Checking what arrives as telemetry. Anybody who may publish can have written it: it is checked as far as it is used,
and bounded; what is not known is passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from qctl.broker.message import decode_json, short
from qctl.control.event import MAX_NAME_CHARS, MAX_NUMBER, VERSION, NotUnderstood, instant
from qctl.control.quota_reading import (
    SLIDING,
    CostReading,
    ForeignReading,
    LimitReading,
    OverrideReading,
    QuotaReading,
)
from qctl.control.reading import (
    MAX_READING_BYTES,
    ConsumerReading,
    Counts,
    Goodbye,
    Hold,
    HostReading,
    Mark,
    Reading,
    Tag,
)

#: A host's entry in the log: the readings of all its processes.
MAX_ENTRY_BYTES = 4 << 20
#: Most items of any list in a reading; what a host has of processes, consumers and quotas stays far below.
MAX_ITEMS = 1_000
#: Parts in which the return of what is spent of a limit is told.
MAX_RETURNS = 64
#: Texts whose form was checked are remembered: the same tags and queues come each second.
MAX_LINES = 16_384

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)

T = TypeVar("T")
Fields: TypeAlias = Mapping[str, Any]


def parse(body: bytes) -> Reading | Goodbye:
    """What came over the exchange. Raises NotUnderstood with the reason."""
    fields = _fields(body, MAX_READING_BYTES)
    return _goodbye(fields) if fields.get("goodbye") is True else from_json(fields)


def parse_entry(body: bytes) -> HostReading | Goodbye | Mark:
    """What lies in the telemetry log. Raises NotUnderstood with the reason."""
    fields = _fields(body, MAX_ENTRY_BYTES)
    if "mark" in fields:
        return Mark(_text(fields, "mark", least=1))
    if fields.get("goodbye") is True:
        return _goodbye(fields)
    return HostReading(
        at_s=_instant(fields, "at"),
        host=_name(fields, "host"),
        machine=_text(fields, "machine"),
        pid=_whole(fields, "pid"),
        processes=_each(fields, "processes", from_json),
    )


def from_json(fields: Fields) -> Reading:
    """A reading as fields of JSON, as `Reading.to_json` makes them. Raises NotUnderstood with the reason."""
    _check_version(fields)
    ledger = fields.get("ledger")
    if not isinstance(ledger, dict):
        raise NotUnderstood("ledger must be an object")
    return Reading(
        at_s=_instant(fields, "at"),
        host=_name(fields, "host"),
        index=_whole(fields, "index"),
        pid=_whole(fields, "pid"),
        machine=_text(fields, "machine"),
        started_at_s=_instant(fields, "started_at"),
        heartbeat_s=_number(fields, "heartbeat_s"),
        consumers=_each(fields, "consumers", _consumer),
        quotas=_each(fields, "quotas", _quota),
        costs=_each(fields, "costs", _cost),
        ledger_id=_text(ledger, "id"),
        ledger_fault=_text_or_none(ledger, "fault"),
        omitted=_whole(fields, "omitted", 0),
    )


def _goodbye(fields: Fields) -> Goodbye:
    index = None if fields.get("index") is None else _whole(fields, "index")
    return Goodbye(_instant(fields, "at"), _name(fields, "host"), index)


def _consumer(fields: Fields) -> ConsumerReading:
    counts = fields.get("counts", {})
    if not isinstance(counts, dict):
        raise NotUnderstood("counts must be an object")
    return ConsumerReading(
        name=_name(fields, "name"),
        queue=_text(fields, "queue", least=1),
        state=_text(fields, "state", least=1),
        why=_text_or_none(fields, "why") or "",
        since_s=_instant_or_none(fields, "since"),
        by=_text_or_none(fields, "by"),
        claimed_by=_text_or_none(fields, "as"),
        reason=_text_or_none(fields, "reason"),
        until_s=_instant_or_none(fields, "until"),
        holds=_each(fields, "holds", _hold),
        tags=_each(fields, "tags", _tag),
        running=_whole(fields, "running"),
        waiting=_whole(fields, "waiting"),
        concurrency=_whole(fields, "concurrency"),
        prefetch=_whole(fields, "prefetch"),
        counts=Counts(*[_whole(counts, name, 0) for name in Counts.__slots__]),
        rate_per_s=_number(fields, "rate_per_s"),
        put_off_per_s=_number(fields, "put_off_per_s") if "put_off_per_s" in fields else 0.0,
        run_s=None if fields.get("run_s") is None else _number(fields, "run_s"),
    )


def _hold(fields: Fields) -> Hold:
    return Hold(
        _text(fields, "cause", least=1), _text_or_none(fields, "words") or "", _instant_or_none(fields, "until")
    )


def _tag(fields: Fields) -> Tag:
    return Tag(_text(fields, "tag", least=1), _text(fields, "queue", least=1), _text(fields, "state", least=1))


def _quota(fields: Fields) -> QuotaReading:
    override, foreign = _object_or_none(fields, "override"), _object_or_none(fields, "foreign")
    return QuotaReading(
        name=_name(fields, "name"),
        used=_whole(fields, "used"),
        limit=_whole(fields, "limit"),
        period_s=_number(fields, "period_s"),
        over=_whole(fields, "over", 0),
        leased=_whole(fields, "leased", 0),
        returns_at_s=_instant_or_none(fields, "returns_at"),
        blocked_until_s=_instant_or_none(fields, "blocked_until"),
        limits=_each(fields, "limits", _limit),
        override=_override(override) if override is not None else None,
        window=_text(fields, "window", least=1) if "window" in fields else SLIDING,
        burst=_whole(fields, "burst", 1),
        foreign=_foreign(foreign) if foreign is not None else None,
        spend_per_s=None if fields.get("spend_per_s") is None else _number(fields, "spend_per_s"),
    )


def _limit(fields: Fields) -> LimitReading:
    return LimitReading(
        _whole(fields, "units"),
        _number(fields, "period_s"),
        _whole(fields, "used"),
        _instant_or_none(fields, "resets_at"),
        _returns(fields),
    )


def _returns(fields: Fields) -> tuple[tuple[float, int], ...]:
    pairs = fields.get("returns", [])
    if not isinstance(pairs, list) or len(pairs) > MAX_RETURNS or not all(map(_is_return, pairs)):
        raise NotUnderstood(f"returns must be a list of at most {MAX_RETURNS} pairs of seconds and units")
    return tuple([(float(in_s), units) for in_s, units in pairs])


def _is_return(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    in_s, units = pair
    is_number = isinstance(in_s, int | float) and not isinstance(in_s, bool)
    return is_number and 0 <= in_s <= MAX_NUMBER and type(units) is int and 0 <= units <= MAX_NUMBER


def _foreign(fields: Fields) -> ForeignReading:
    units = _whole(fields, "units")
    most = _whole(fields, "most", units)
    if most < units:
        raise NotUnderstood("of what others have spent, the most must not be less than the least")
    return ForeignReading(
        units=units,
        most=most,
        ours=_whole(fields, "ours"),
        period_s=_number(fields, "period_s"),
        limit=_whole_or_none(fields, "limit"),
        remaining=_whole_or_none(fields, "remaining"),
        since_s=_instant_or_none(fields, "since"),
        until_s=_instant_or_none(fields, "until"),
        lasting=fields.get("lasting") is True,
    )


def _cost(fields: Fields) -> CostReading:
    return CostReading(
        consumer=_name(fields, "consumer"),
        type=_text(fields, "type"),
        quota=_name(fields, "quota"),
        declared=_whole(fields, "declared"),
        tasks=_whole(fields, "tasks"),
        p50=_whole(fields, "p50"),
        p95=_whole(fields, "p95"),
        mean=None if fields.get("mean") is None else _number(fields, "mean"),
        gave_up=_whole(fields, "gave_up", 0),
    )


def _override(fields: Fields) -> OverrideReading:
    rates = fields.get("rates")
    if not isinstance(rates, list) or len(rates) > MAX_ITEMS or not all(isinstance(rate, str) for rate in rates):
        raise NotUnderstood("rates must be a list of texts")
    return OverrideReading(
        rates=tuple(short(rate) for rate in rates),
        by=_text_or_none(fields, "by"),
        reason=_text_or_none(fields, "reason"),
        until_s=_instant_or_none(fields, "until"),
        at_s=_instant_or_none(fields, "at"),
    )


def _fields(body: bytes, most_bytes: int) -> dict[str, Any]:
    if len(body) > most_bytes:
        raise NotUnderstood(f"too large: {len(body)} bytes")
    try:
        fields = decode_json(body)
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    if not isinstance(fields, dict):
        raise NotUnderstood("not a JSON object")
    _check_version(fields)
    return fields


def _check_version(fields: Fields) -> None:
    version = fields.get("v")
    if version != VERSION or isinstance(version, bool):
        raise NotUnderstood("its version is not known")


def _each(fields: Fields, key: str, make: Callable[[Fields], T]) -> tuple[T, ...]:
    items = fields.get(key, [])
    if not isinstance(items, list) or len(items) > MAX_ITEMS or not all(isinstance(item, dict) for item in items):
        raise NotUnderstood(f"{key} must be a list of at most {MAX_ITEMS} objects")
    return tuple([make(item) for item in items])


def _object_or_none(fields: Fields, key: str) -> dict[str, Any] | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, dict):
        raise NotUnderstood(f"{key} must be an object")
    return value


def _name(fields: Fields, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise NotUnderstood(f"{key} must be a name")
    return value


def _text(fields: Fields, key: str, *, least: int = 0) -> str:
    """A text that stands for a thing: a tag, a queue, a word of a list. It is not cut, since it would be another."""
    value = fields.get(key)
    if not isinstance(value, str) or not least <= len(value) <= MAX_NAME_CHARS or not _is_a_line(value):
        raise NotUnderstood(f"{key} must be a text of {least} to {MAX_NAME_CHARS} characters on one line")
    return value


@lru_cache(maxsize=MAX_LINES)
def _is_a_line(value: str) -> bool:
    return value == short(value)


def _text_or_none(fields: Fields, key: str) -> str | None:
    """Words for people: one line, cut short."""
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise NotUnderstood(f"{key} must be a text")
    return short(value) if value else ""


def _whole(fields: Fields, key: str, missing: int | None = None) -> int:
    value = fields.get(key, missing)
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise NotUnderstood(f"{key} must be a whole number")
    return value


def _whole_or_none(fields: Fields, key: str) -> int | None:
    return None if fields.get(key) is None else _whole(fields, key)


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise NotUnderstood(f"{key} must be a number")
    return float(value)


def _instant(fields: Fields, key: str) -> float:
    return instant(fields.get(key), key)


def _instant_or_none(fields: Fields, key: str) -> float | None:
    value = fields.get(key)
    return None if value is None else instant(value, key)
