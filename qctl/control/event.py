"""What travels over the control log: records as the broker keeps them, and the events that they mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qctl.broker import topology
from qctl.broker.message import decode_json, short

VERSION = 1
#: An event is a few hundred bytes; what is larger is none.
MAX_EVENT_BYTES = 64 << 10
#: Characters of an id or a name in an event.
MAX_NAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the log. user: who published it, verified by the broker; "" when nobody said."""

    offset: int
    exchange: str
    id: str
    user: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker process is about to consume. nonce: made for this hello; ledger: the id of the ledger it spends from."""

    nonce: str
    host: str
    index: int
    ledger: str
    machine: str
    pid: int

    def body(self) -> bytes:
        """As it travels."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"v": VERSION, **fields}).encode()


Event = Hello


class NotUnderstood(Exception):
    """A record that is no event: it is ignored, and reported with this reason."""


def read(record: Record) -> Event:
    """The event of a record. Raises NotUnderstood with the reason."""
    if not record.user:
        raise NotUnderstood("nobody's: it has no user_id")
    if record.exchange != topology.HELLO:
        raise NotUnderstood(f"came through exchange {short(record.exchange)!r}, which this version does not know")
    fields = _fields(record.body)
    hello = Hello(
        nonce=_name(fields, "nonce"),
        host=_name(fields, "host"),
        index=_number(fields, "index"),
        ledger=_name(fields, "ledger"),
        machine=_name(fields, "machine"),
        pid=_number(fields, "pid"),
    )
    if hello.nonce != record.id:
        raise NotUnderstood("its nonce is not its message_id")
    return hello


def _fields(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_EVENT_BYTES:
        raise NotUnderstood(f"too large: {len(body)} bytes")
    try:
        fields = decode_json(body)
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    if not isinstance(fields, dict):
        raise NotUnderstood("not a JSON object")
    version = fields.get("v")
    if version != VERSION or isinstance(version, bool):
        raise NotUnderstood(f"version {short(repr(version)[:MAX_NAME_CHARS])} is not known")
    return fields


def _name(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise NotUnderstood(f"{key} must be a text of 1 to {MAX_NAME_CHARS} characters")
    return value


def _number(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NotUnderstood(f"{key} must be a whole number")
    return value
