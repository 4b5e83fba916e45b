"""What a worker process answers to a control event: the state of each of its subscriptions that the event names.

What arrives may have been written by anybody who may publish: it is checked as far as it is used, and bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qctl.broker.message import decode_json, short

VERSION = 1
#: A process with a thousand consumers, each paused a few times.
MAX_ANSWER_BYTES = 1 << 20
#: Subscriptions, and pauses that remain of each, and quotas that one answer may name.
MAX_ROWS = 2_000
MAX_REMAINS = 100
#: Characters of a name, a tag or a queue.
MAX_NAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Remains:
    """A pause that still holds for a subscription. target: as people write it; until: as it came, None for no end."""

    id: str
    target: str
    by: str
    reason: str | None
    until: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One subscription of the process, as it is after the event.

    cancelled_at_s: wall clock of the host when the broker confirmed the cancel, None if it was not subscribed.
    running: tasks that were started before and are not over; given_back: tasks that were delivered and not started.
    """

    consumer: str
    queue: str
    tag: str
    state: str
    why: str
    cancelled_at_s: float | None
    running: int | None
    given_back: int | None
    remains: tuple[Remains, ...] = ()


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """A quota of the process's host as it is after the event. limits: rates; override: as it came, None for none."""

    quota: str
    limits: tuple[str, ...]
    override: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One process's answer to the event `id`. refused: why it does not obey, "" when it does.

    user: who sent it, verified by the broker; "" where it came another way.
    """

    id: str
    host: str
    index: int
    pid: int
    rows: tuple[Row, ...] = ()
    quotas: tuple[QuotaRow, ...] = ()
    refused: str = ""
    user: str = ""


def parse_answer(body: bytes) -> Answer:
    """The answer in a message's body. Raises ValueError saying what is wrong with it."""
    if len(body) > MAX_ANSWER_BYTES:
        raise ValueError(f"too large: {len(body)} bytes")
    fields = decode_json(body)
    if not isinstance(fields, dict) or fields.get("v") != VERSION or isinstance(fields["v"], bool):
        raise ValueError("not an answer of a known version")
    refused = fields.get("refused")
    return Answer(
        id=_name(fields, "id"),
        host=_name(fields, "host"),
        index=_count(fields.get("index")),
        pid=_count(fields.get("pid")),
        rows=tuple(_row(one) for one in _objects(fields.get("rows", []), MAX_ROWS)),
        quotas=tuple(_quota(one) for one in _objects(fields.get("quotas") or [], MAX_ROWS)),
        refused=_words(refused) if refused is not None else "",
    )


def sift(
    given: Mapping[tuple[int, int], tuple[Answer, ...]], user_of: Callable[[tuple[int, int]], str]
) -> tuple[dict[tuple[int, int], tuple[Answer, ...]], dict[tuple[int, int], str]]:
    """Of the answers, by index and pid: those of the broker user that the process has, and who else has answered.

    Whoever reads the control log may write an answer too.
    """
    believed: dict[tuple[int, int], tuple[Answer, ...]] = {}
    strangers: dict[tuple[int, int], str] = {}
    for process, answers in given.items():
        user = user_of(process)
        if its := tuple(one for one in answers if one.user == user):
            believed[process] = its
        if other := next((one.user for one in answers if one.user != user), ""):
            strangers[process] = short(other)
    return believed, strangers


def _row(fields: Mapping[str, Any]) -> Row:
    return Row(
        consumer=_name(fields, "consumer"),
        queue=_name(fields, "queue"),
        tag=_name(fields, "tag"),
        state=_name(fields, "state"),
        why=_words(fields.get("why") or ""),
        cancelled_at_s=_instant(fields.get("cancelled_at")),
        running=_count_or_none(fields.get("running")),
        given_back=_count_or_none(fields.get("given_back")),
        remains=tuple(_remains(one) for one in _objects(fields.get("remains") or [], MAX_REMAINS)),
    )


def _remains(fields: Mapping[str, Any]) -> Remains:
    reason, until = fields.get("reason"), fields.get("until")
    return Remains(
        id=_name(fields, "id"),
        target=_words(fields.get("target")),
        by=_words(fields.get("by")),
        reason=None if reason is None else _words(reason),
        until=None if until is None else _words(until),
    )


def _quota(fields: Mapping[str, Any]) -> QuotaRow:
    limits, override = fields.get("limits"), fields.get("override")
    if not isinstance(limits, list) or len(limits) > MAX_REMAINS:
        raise ValueError("limits must be a list")
    if override is not None and not isinstance(override, dict):
        raise ValueError("override must be an object")
    return QuotaRow(_name(fields, "quota"), tuple(_words(one) for one in limits), override)


def _objects(value: object, most: int) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or len(value) > most or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"expected a list of at most {most} objects")
    return value


def _name(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise ValueError(f"{key} must be a text of 1 to {MAX_NAME_CHARS} characters")
    return value


def _words(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return short(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("expected a count")
    return value


def _count_or_none(value: object) -> int | None:
    return None if value is None else _count(value)


def _instant(value: object) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        instant_s = moment.timestamp() if moment is not None and moment.tzinfo is not None else math.nan
    except (ValueError, OverflowError):
        instant_s = math.nan
    if not math.isfinite(instant_s):
        raise ValueError("expected an instant such as 2026-11-22T14:00:07.120Z")
    return instant_s
