"""The wire format of a task: what a message says, and what a republish of it says.

A task is any message; all `qctl-` headers are optional for a producer and are checked here, on the way in.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from qctl.broker import codec
from qctl.broker.codec import UNREADABLE, Headers
from qctl.units import MAX_UNITS

#: Characters of an error text that travel in a header.
MAX_ERROR_CHARS = 500
#: Largest counter accepted in a header; anything above is not a count but an attack or a mistake.
MAX_COUNT = 1_000_000
#: Most quotas one `qctl-cost` header may name.
MAX_COST_ENTRIES = 32

COST = "qctl-cost"
ATTEMPT = "qctl-attempt"
DEFERRALS = "qctl-deferrals"
CRASHES = "qctl-crashes"
FIRST_SEEN = "qctl-first-seen"
ERROR = "qctl-error"
DELAY = "qctl-delay"
REASON = "qctl-reason"
DIED_AT = "qctl-died-at"
DIED_ON = "qctl-died-on"

STATUS = "qctl-status"
DROPPED = "qctl-dropped"

#: Encoded headers that surely fit into a frame of 128 KiB beside the other properties, eight short strings.
MAX_HEADER_BYTES = (128 << 10) - (4 << 10)

TRANSIENT, PERSISTENT = 1, 2
#: The properties of a message; treated as frozen once made.
Properties: TypeAlias = codec.Properties
#: Headers that a republish drops, beside the broker's own `x-` ones.
_NEVER_TWICE = ("CC", "BCC", DELAY)
#: What is counted of a task and said of its death: all that a dead letter leaves behind for another life.
_OF_ONE_LIFE = frozenset((ATTEMPT, DEFERRALS, CRASHES, ERROR, REASON, DIED_AT, DIED_ON))
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
    return _NOTHING


# Lone surrogates too: they have no bytes, and a header that cannot be encoded could never be published.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class DeadReason(StrEnum):
    """Why a task was given up on; the value of the header `qctl-reason` of a dead letter."""

    ATTEMPTS = "attempts"  # failed as often as it may
    REJECTED = "rejected"  # the handler, or the upstream by a 4xx, said never again
    MALFORMED = "malformed"  # cannot be understood
    TOO_LARGE = "too large"  # over max_body
    COST = "cost"  # asks for more than a quota will ever admit, or for a quota that is not there
    DEFERRALS = "deferrals"  # deferred too often
    POISON = "poison"  # kills the process that runs it


class Malformed(Exception):
    """A message that no worker can run; `reason` and the text go to the dead letter."""

    def __init__(self, text: str, reason: DeadReason = DeadReason.MALFORMED) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """A task as it came off the wire. `cost` is None when the producer said nothing."""

    body: bytes
    properties: Properties = field(repr=False)
    headers: Mapping[str, Any] = field(default_factory=_nothing)
    cost: Mapping[str, int] | None = None
    attempt: int = 1
    deferrals: int = 0
    crashes: int = 0

    @property
    def id(self) -> str:
        """`message_id`, or "" where the producer set none."""
        return text(self.properties.message_id)

    @property
    def type(self) -> str:
        """The task's name, or ""."""
        return text(self.properties.type)

    @property
    def content_type(self) -> str:
        """Media type without parameters, lower case, or ""."""
        return text(self.properties.content_type).partition(";")[0].strip().lower()

    @property
    def is_json(self) -> bool:
        """True when the producer says that the body is JSON."""
        kind = self.content_type
        return kind == "application/json" or kind.endswith("+json")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties = field(repr=False)


def text(value: object) -> str:
    """A short string of the wire as text; bytes that are not UTF-8 are shown escaped."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)


def short(words: str) -> str:
    """One line of at most MAX_ERROR_CHARS characters without control characters, for a header or a log."""
    line = _CONTROL.sub(" ", words).strip()
    return line if len(line) <= MAX_ERROR_CHARS else line[: MAX_ERROR_CHARS - 1] + "…"


def _seen(value: object) -> str:
    # A value of the wire may be nested thousands deep.
    return short(reprlib.repr(value))


def _count(headers: Mapping[str, Any], name: str, least: int) -> int:
    value = headers.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_COUNT:
        raise Malformed(f"header {name} must be a whole number from {least} to {MAX_COUNT}, found {_seen(value)}")
    return value


def check_cost(value: object) -> dict[str, int]:
    """The units per quota of a `qctl-cost` header. Raises Malformed saying what was found."""
    if not isinstance(value, Mapping) or len(value) > MAX_COST_ENTRIES:
        raise Malformed(f"header {COST} must map quotas to units, found {_seen(value)}", DeadReason.COST)
    for quota, units in value.items():
        if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= MAX_UNITS:
            raise Malformed(
                f"header {COST}: units of {short(text(quota))} must be a whole number from 0 to 10^12, "
                f"found {_seen(units)}",
                DeadReason.COST,
            )
    return {text(quota): units for quota, units in value.items()}


def parse(properties: Properties, body: bytes) -> Message:
    """Check what arrived. Raises Malformed for headers that cannot be what they claim."""
    headers = properties.headers
    if not headers:
        return Message(body, properties)
    if UNREADABLE in headers:
        raise Malformed(f"the headers cannot be read: {short(text(headers[UNREADABLE]))}")
    return Message(
        body,
        properties,
        headers,
        check_cost(headers[COST]) if COST in headers else None,
        _count(headers, ATTEMPT, 1),
        _count(headers, DEFERRALS, 0),
        _count(headers, CRASHES, 0),
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{short(digits[:20])} is too large a number")
    return value


_decode = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant).decode


def decode_json(body: bytes) -> Any:
    """The value of a JSON body in UTF-8. Raises ValueError saying why.

    NaN and infinities are not JSON (RFC 8259, section 6); 1e999, which would become one, is refused with them.
    """
    try:
        return _decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {short(str(error))}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def utc(now_s: float) -> str:
    """Wall-clock seconds as `2026-11-22T14:00:07.120Z`, the form of every time in headers and logs."""
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fits(headers: Headers) -> bool:
    """Whether a republish can carry these: all of them go out in one frame."""
    try:
        return len(codec.encode_headers(headers)) <= MAX_HEADER_BYTES
    # An encoder fed with foreign values fails in every way there is.
    except Exception:  # noqa: BLE001
        return False


def republish(
    properties: Properties,
    *,
    changes: Mapping[str, Any],
    message_id: str,
    first_seen: str,
    persistent: bool,
    without: Collection[str] = (),
) -> Properties:
    """Properties for publishing a task once more.

    Keeps what the producer set, unknown `qctl-` headers too, each of the type it came with. Drops what would do harm a
    second time: `user_id` (another connection may not claim it), `expiration` (would cut the delay short), `CC` and
    `BCC` (would duplicate), every `x-` header (the broker's own history, which would end a cycle) and the previous
    `qctl-delay`; all of the producer's headers when they would not fit, since that would cost the connection at every
    try. without: further headers that are left behind.
    """
    came: Mapping[Any, Any] = properties.headers or {}
    # A name that is not UTF-8 arrives as bytes.
    left = {*_NEVER_TWICE, *without}
    kept = Headers({n: v for n, v in came.items() if not (n in left or text(n).startswith("x-"))})
    if isinstance(came, Headers):
        kept.wire = {name: came.wire[name] for name in kept.keys() & came.wire.keys() - changes.keys()}
    kept.setdefault(FIRST_SEEN, first_seen)
    kept.update(changes)
    if not _fits(kept):
        dropped = "the producer's headers were too large to publish again"
        kept = Headers({FIRST_SEEN: first_seen, **changes, DROPPED: dropped})
    return Properties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=kept,
        delivery_mode=PERSISTENT if persistent else TRANSIENT,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id or message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
    )


def revive(properties: Properties, *, message_id: str, first_seen: str, persistent: bool) -> Properties:
    """Properties for giving a dead letter another life: as `republish`, and nothing is counted against it any more."""
    return republish(
        properties,
        changes={},
        message_id=message_id,
        first_seen=first_seen,
        persistent=persistent,
        without=_OF_ONE_LIFE,
    )


def answer_to(asked: Properties, *, message_id: str, content_type: str, status: int) -> Properties:
    """Properties of an answer to a task's `reply_to`; the upstream's status goes into `qctl-status`."""
    return Properties(
        content_type=content_type,
        correlation_id=asked.correlation_id or asked.message_id,
        message_id=message_id,
        headers={STATUS: status},
    )
