"""Dead letters as values: what each says of its death, and which ones are meant. Pure."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from qctl.broker import message
from qctl.broker.message import Properties, short, text
from qctl.ops.when import instant

#: Bytes of a body, and headers, that are kept to be shown.
SHOWN_BODY_BYTES = 4 << 10
SHOWN_HEADERS = 64
#: What stands before a key where an id is asked for.
KEY_MARK = "~"
#: What stands before the broker's own reason, where no worker gave one.
BY_BROKER = "broker: "


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. None and "" are unknown.

    queue: where it lies, `NAME.dead`. key: made of all that it says, so the same at each look, and another letter's
    only where the two are alike. reason: `qctl-reason`, or the broker's with `broker: ` before it. body: its first
    SHOWN_BODY_BYTES.
    """

    queue: str
    key: str
    id: str
    type: str
    reason: str
    error: str
    attempt: int | None
    deferrals: int | None
    crashes: int | None
    first_seen_s: float | None
    died_at_s: float | None
    died_on: str
    size_bytes: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    redelivered: bool = False

    @property
    def address(self) -> str:
        """What it is called by: its id, else `~` and its key; also where the id cannot be typed as it is shown."""
        return self.id if self.id and self.id.isprintable() else f"{KEY_MARK}{self.key}"

    @property
    def names(self) -> tuple[str, ...]:
        """All that it may be called by."""
        return (self.address, f"{KEY_MARK}{self.key}", *([self.id] if self.id else ()))

    def age_s(self, now_s: float) -> float | None:
        """Seconds since its death."""
        return None if self.died_at_s is None else max(0.0, now_s - self.died_at_s)


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters: those that fit each of what is given, and of several values one. Nothing given: all."""

    ids: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    older_than_s: float | None = None
    newer_than_s: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether every letter fits."""
        return self == Which()

    def matches(self, letter: DeadLetter, now_s: float) -> bool:
        """Whether a letter fits. One whose death has no known time is neither older nor newer than anything."""
        age_s = letter.age_s(now_s)
        return (
            (not self.ids or any(name in self.ids for name in letter.names))
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.types or letter.type in self.types)
            and (self.older_than_s is None or (age_s is not None and age_s > self.older_than_s))
            and (self.newer_than_s is None or (age_s is not None and age_s < self.newer_than_s))
        )


def key_of(properties: Properties, body: bytes) -> str:
    """A digest of all that a message says but of what the broker adds to it at each delivery."""
    headers: Mapping[Any, Any] = properties.headers or {}
    own = sorted((text(name), repr(value)) for name, value in headers.items() if not text(name).startswith("x-"))
    said = (
        properties.message_id,
        properties.type,
        properties.timestamp,
        properties.correlation_id,
        properties.reply_to,
        properties.content_type,
        properties.content_encoding,
        properties.app_id,
        own,
    )
    return hashlib.blake2b(repr(said).encode("utf-8", "backslashreplace") + b"\0" + body, digest_size=8).hexdigest()


def letter_of(queue: str, properties: Properties, body: bytes, *, redelivered: bool) -> DeadLetter:
    """What a message says of itself; whatever it is, it is a dead letter."""
    headers: Mapping[Any, Any] = properties.headers or {}
    broker_says = _last_death(headers)
    reason = short(text(headers.get(message.REASON)))
    if not reason and broker_says:
        reason = f"{BY_BROKER}{short(text(broker_says.get('reason')))}"
    died_at_s = instant(text(headers.get(message.DIED_AT)))
    at = broker_says.get("time")
    if died_at_s is None and isinstance(at, datetime):
        died_at_s = at.timestamp()
    return DeadLetter(
        queue=queue,
        key=key_of(properties, body),
        id=text(properties.message_id),
        type=text(properties.type),
        reason=reason,
        error=short(text(headers.get(message.ERROR))),
        attempt=_count(headers, message.ATTEMPT),
        deferrals=_count(headers, message.DEFERRALS),
        crashes=_count(headers, message.CRASHES),
        first_seen_s=instant(text(headers.get(message.FIRST_SEEN))),
        died_at_s=died_at_s,
        died_on=short(text(headers.get(message.DIED_ON))),
        size_bytes=len(body),
        body=body[:SHOWN_BODY_BYTES],
        headers=shown_headers(properties),
        redelivered=redelivered,
    )


def shown_headers(properties: Properties) -> dict[str, str]:
    """The first SHOWN_HEADERS headers, each value as a line of text."""
    headers: Mapping[Any, Any] = properties.headers or {}
    return {short(text(name)): short(_seen(value)) for name, value in islice(headers.items(), SHOWN_HEADERS)}


def _seen(value: object) -> str:
    # A value of the wire may be nested deep, and long.
    return text(value) if isinstance(value, (str, bytes)) else reprlib.repr(value)


def _count(headers: Mapping[Any, Any], name: str) -> int | None:
    value = headers.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _last_death(headers: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The newest entry of the broker's own history, which has it first."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    return first if isinstance(first, Mapping) else {}
