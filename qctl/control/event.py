"""What travels over the control log: records as the broker keeps them, and the events that they mean."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from qctl.broker import topology
from qctl.broker.message import decode_json, short, utc
from qctl.control.target import Scope, Target, pattern
from qctl.units import Rate, parse_rate

VERSION = 1
#: An event is a few hundred bytes; what is larger is none.
MAX_EVENT_BYTES = 64 << 10
#: Characters of an id or a name in an event.
MAX_NAME_CHARS = 255
#: Largest number that is taken for one: JSON's are good up to 2^53.
MAX_NUMBER = 1 << 53
#: As many rates as a quota of the inventory may have.
MAX_RATES = 8

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)

#: What is nearer to an end of the calendar cannot be written again, rounded or in another zone.
_FIRST_S, _END_S = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2, 9999))


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the log.

    user: who published it, verified by the broker; "" when nobody said. body: cut off behind MAX_EVENT_BYTES, when it
    came from the log. reply_to: where an answer is wanted, "" for nowhere.
    """

    offset: int
    exchange: str
    id: str
    user: str
    body: bytes
    reply_to: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker process is about to consume.

    nonce: made for this hello; ledger: the id of the ledger it spends from; at: its wall clock, as it was written;
    user: who said it, verified by the broker.
    """

    nonce: str
    host: str
    index: int
    ledger: str
    machine: str
    pid: int
    at: str | None = None
    user: str = ""

    def body(self) -> bytes:
        """As it travels; who says it, says the broker."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "user"}
        return json.dumps({"v": VERSION, **fields}).encode()


@dataclass(frozen=True, slots=True)
class Notice:
    """What a host found out and nobody has to obey: somebody else spends a quota of it too, or does not any more.

    units, most: spent by somebody else, at least and at most; ours: by this host; remaining, limit: as the API says;
    limit_units: as this host does. since, until: wall clock of the host, as it was written, when it was seen first and
    last; of one that is over, the numbers are the largest that were seen. user: who says it, verified.
    """

    id: str
    at: str
    host: str
    quota: str
    begins: bool
    units: int
    most: int
    ours: int
    limit_units: int
    limit: int | None = None
    remaining: int | None = None
    since: str | None = None
    user: str = ""
    until: str | None = None

    def body(self) -> bytes:
        """As it travels; who says it, says the broker."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("user", "begins")}
        return json.dumps({"v": VERSION, "notice": NOTICES[self.begins], **fields}).encode()


#: What a notice says, by whether it begins.
NOTICES = {True: "foreign spending begins", False: "foreign spending ends"}


class Verb(StrEnum):
    """What an operator commands."""

    PAUSE = "pause"
    RESUME = "resume"
    QUOTA_SET = "quota.set"
    QUOTA_CLEAR = "quota.clear"


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody wants to be.

    at: the wall clock of who asked, shown and never judged. until_s: wall-clock seconds at which it ends by itself.
    claimed_by: `user@machine`, as claimed; user: who published it, verified by the broker ("" before). quota: a
    pattern; rates: as they were written. local: given on the host itself, while the broker took no events.
    """

    id: str
    at: str
    verb: Verb
    target: Target
    reason: str | None = None
    until_s: float | None = None
    claimed_by: str | None = None
    quota: str | None = None
    rates: tuple[str, ...] = ()
    local: bool = False
    user: str = ""

    @property
    def limits(self) -> tuple[tuple[int, int], ...]:
        """(units, period_ns) of each rate."""
        return limits_of(self.rates)

    @property
    def scope(self) -> Scope:
        """Which quotas a quota command is about."""
        assert self.quota is not None
        assert self.target.host is not None
        return Scope(self.target.host, self.quota)

    def body(self) -> bytes:
        """As it travels; who says it, says the broker."""
        args: dict[str, Any] = {}
        if self.quota is not None:
            args["quota"] = self.quota
        if self.rates:
            args["limit"] = list(self.rates)
        if self.local:
            args["local"] = True
        fields = {
            "v": VERSION,
            "id": self.id,
            "at": self.at,
            "verb": self.verb,
            "target": self.target.to_json(),
            "reason": self.reason,
            "until": None if self.until_s is None else utc(self.until_s),
            "as": self.claimed_by,
            "args": args,
        }
        return json.dumps(fields, separators=(",", ":")).encode()


Event: TypeAlias = Hello | Notice | Command


class NotUnderstood(Exception):
    """A record that is no event: it is ignored, and reported with this reason. kind: the same for all of its sort."""

    def __init__(self, reason: str, kind: str = "malformed") -> None:
        super().__init__(reason)
        self.kind = kind


def read(record: Record) -> Event:
    """The event of a record. Raises NotUnderstood with the reason."""
    if not record.user:
        raise NotUnderstood("nobody's: it has no user_id", "unsigned")
    if record.exchange == topology.HELLO:
        fields = _fields(record.body)
        return _notice(fields, record) if "notice" in fields else _hello(fields, record)
    if record.exchange == topology.CONTROL:
        return _command(_fields(record.body), record)
    raise NotUnderstood(
        f"came through exchange {short(record.exchange)!r}, which this version does not know", "exchange"
    )


def instant(text: object, name: str) -> float:
    """Wall-clock seconds of `2026-11-22T14:00:07.120Z`. Raises NotUnderstood, calling it `name`."""
    if isinstance(text, str) and _INSTANT.fullmatch(text):
        try:
            at_s = datetime.fromisoformat(text).timestamp()
            if _FIRST_S <= at_s < _END_S:
                return at_s
        except ValueError:
            pass
    raise NotUnderstood(f"{name} must be a time in UTC such as 2026-11-22T14:00:07.120Z")


def limits_of(rates: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """(units, period_ns) of each rate. Raises ValueError."""
    return tuple((rate.units, rate.period_ns) for rate in map(parse_rate, rates))


def _hello(fields: Mapping[str, Any], record: Record) -> Hello:
    at = fields.get("at")
    hello = Hello(
        nonce=_name(fields, "nonce"),
        host=_name(fields, "host"),
        index=_number(fields, "index"),
        ledger=_name(fields, "ledger"),
        machine=_name(fields, "machine"),
        pid=_number(fields, "pid"),
        # Only shown: a hello without it says as much.
        at=at if isinstance(at, str) and _INSTANT.fullmatch(at) else None,
        user=record.user,
    )
    if hello.nonce != record.id:
        raise NotUnderstood("its nonce is not its message_id")
    return hello


def _notice(fields: Mapping[str, Any], record: Record) -> Notice:
    begins = next((begins for begins, said in NOTICES.items() if said == fields["notice"]), None)
    if begins is None:
        raise NotUnderstood(f"notice {_shown(fields['notice'])} is not known", "notice")
    since, until, at = fields.get("since"), fields.get("until"), fields.get("at")
    instant(at, "at")
    for name, value in (("since", since), ("until", until)):
        if value is not None:
            instant(value, name)
    notice = Notice(
        id=_id(fields.get("id")),
        at=str(at),
        host=_name(fields, "host"),
        quota=_name(fields, "quota"),
        begins=begins,
        units=_number(fields, "units"),
        most=_number(fields, "most"),
        ours=_number(fields, "ours"),
        limit_units=_number(fields, "limit_units"),
        limit=None if fields.get("limit") is None else _number(fields, "limit"),
        remaining=None if fields.get("remaining") is None else _number(fields, "remaining"),
        since=since,
        until=until,
        user=record.user,
    )
    if notice.id != record.id:
        raise NotUnderstood("its id is not its message_id")
    return notice


def _command(fields: Mapping[str, Any], record: Record) -> Command:
    verb = _verb(fields.get("verb"))
    args = fields.get("args")
    if args is None:
        args = {}
    if not isinstance(args, Mapping):
        raise NotUnderstood("args must be an object")
    local = args.get("local")
    if local is not None and not isinstance(local, bool):
        raise NotUnderstood("args.local must be true or false")
    until, at = fields.get("until"), fields.get("at")
    instant(at, "at")
    is_quota = verb in (Verb.QUOTA_SET, Verb.QUOTA_CLEAR)
    try:
        target = Target.from_json(fields.get("target"))
        quota = pattern(args.get("quota"), "args.quota") if is_quota else None
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    command = Command(
        id=_id(fields.get("id")),
        at=str(at),
        verb=verb,
        target=target,
        reason=_words(fields, "reason"),
        until_s=None if until is None else instant(until, "until"),
        claimed_by=_words(fields, "as"),
        quota=quota,
        rates=_rates(args.get("limit")) if verb is Verb.QUOTA_SET else (),
        local=bool(local),
        user=record.user,
    )
    if command.id != record.id:
        raise NotUnderstood("its id is not its message_id")
    _check(command)
    return command


def _check(command: Command) -> None:
    """What the parts do not say: whether they make sense together."""
    target = command.target
    if target.names_nothing:
        raise NotUnderstood("its target names nothing")
    if command.quota is not None and (target.host is None or target != Target(host=target.host)):
        raise NotUnderstood(f"the target of {command.verb} is a host and nothing else")
    if command.until_s is not None and command.verb in (Verb.RESUME, Verb.QUOTA_CLEAR):
        raise NotUnderstood(f"{command.verb} has no end, so `until` makes no sense")


def _fields(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_EVENT_BYTES:
        raise NotUnderstood(f"too large: over {MAX_EVENT_BYTES} bytes", "size")
    try:
        fields = decode_json(body)
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    if not isinstance(fields, dict):
        raise NotUnderstood("not a JSON object")
    version = fields.get("v")
    if version != VERSION or isinstance(version, bool):
        raise NotUnderstood(f"version {_shown(version)} is not known", "version")
    return fields


def _verb(value: object) -> Verb:
    try:
        return Verb(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise NotUnderstood(f"verb {_shown(value)} is not known", "verb") from None


def _id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise NotUnderstood("id must be 32 hexadecimal digits")
    return value


def _name(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise NotUnderstood(f"{key} must be a text of 1 to {MAX_NAME_CHARS} characters")
    if not value.isprintable():
        raise NotUnderstood(f"{key} has characters that cannot be printed")
    return value


def _number(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise NotUnderstood(f"{key} must be a whole number")
    return value


def _words(fields: Mapping[str, Any], key: str) -> str | None:
    """A text for people: in one line without control characters, and cut off where it is too long."""
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise NotUnderstood(f"{key} must be a text")
    return short(value) or None if value else None


def _rates(value: object) -> tuple[str, ...]:
    rates = [value] if isinstance(value, str) else value
    if not isinstance(rates, list) or not 0 < len(rates) <= MAX_RATES or not all(isinstance(it, str) for it in rates):
        raise NotUnderstood(f"args.limit must be 1 to {MAX_RATES} rates such as 20000/h")
    try:
        return tuple(str(Rate(*limit)) for limit in limits_of(tuple(rates)))
    except ValueError as error:
        raise NotUnderstood(f"args.limit: {short(str(error))}") from None


def _shown(value: object) -> str:
    # A value of the wire may be nested thousands deep.
    return short(reprlib.repr(value))
