"""The properties of a message on the wire, with headers that keep their types.

pika reads every number with a fraction as a whole one and forgets how wide an integer was, so that a message which it
has read and publishes again says something else. Here each header keeps the bytes it came with beside its value.
"""

from __future__ import annotations

import calendar
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika.exceptions
from pika import spec

#: The header that stands for all headers of a message that cannot be read; its value says why.
UNREADABLE = "x-qctl-unreadable"

#: Lists and tables inside each other, the headers themselves included. What is nested deeper could be read, but whoever
#: publishes it again may have a deeper stack.
MAX_NESTING = 32
MAX_NAME_BYTES = 255
_MAX_UNREADABLE_CHARS = 200

#: In the first byte of the flags.
_HEADERS_BIT = spec.BasicProperties.FLAG_HEADERS >> 8
_SIZE = struct.Struct(">I")
_DECIMAL = struct.Struct(">Bi")
_INTEGER = struct.Struct(">ci")
_LONG = struct.Struct(">cq")
_LENGTH = struct.Struct(">cI")
_INTEGER_BITS, _LONG_BITS = 31, 63

#: Kinds of one fixed size, as RabbitMQ reads them: `l` and `L` are both signed.
_FIXED = {ord(kind): struct.Struct(f">{layout}") for kind, layout in zip("tbBsUuIilLdf", "?bBhhHiIqqdf", strict=True)}
_TEXT, _BYTES, _TABLE, _LIST, _INSTANT, _NUMBER, _NOTHING = (ord(kind) for kind in "SxFATDV")
_SIZED = frozenset((_TEXT, _BYTES, _TABLE, _LIST))


class Headers(dict[Any, Any]):
    """Headers by name; a name that is not UTF-8 is bytes.

    `wire` has the encoded value of those that came from the wire; it is what is written again, whatever stands here.
    """

    __slots__ = ("wire",)

    def __init__(self, values: Mapping[Any, Any] | None = None, wire: Mapping[Any, bytes] | None = None) -> None:
        super().__init__(values or {})
        self.wire: dict[Any, bytes] = dict(wire or {})


class Properties(spec.BasicProperties):  # type: ignore[misc]
    """pika's properties with a codec of our own for the headers. Treated as frozen once made."""

    headers: Any

    def decode(self, encoded: bytes, offset: int = 0) -> Properties:
        """As pika's. Headers that cannot be read become the one header UNREADABLE, which says why."""
        if not encoded[offset] & _HEADERS_BIT:
            super().decode(encoded, offset)
            return self
        flags = int.from_bytes(encoded[offset : offset + 2], "big")
        at = offset + 2
        for flag in (spec.BasicProperties.FLAG_CONTENT_TYPE, spec.BasicProperties.FLAG_CONTENT_ENCODING):
            if flags & flag:
                at += 1 + encoded[at]
        end = at + _SIZE.size + _SIZE.unpack_from(encoded, at)[0]
        if end > len(encoded):
            raise ValueError("the headers are cut short")
        flags &= ~spec.BasicProperties.FLAG_HEADERS
        super().decode(flags.to_bytes(2, "big") + encoded[offset + 2 : at] + encoded[end:])
        try:
            self.headers = decode_headers(encoded[at:end])
        # A decoder fed with foreign bytes fails in every way there is.
        except Exception as error:  # noqa: BLE001
            self.headers = Headers({UNREADABLE: f"{type(error).__name__}: {error}"[:_MAX_UNREADABLE_CHARS]})
        return self

    def encode(self) -> list[bytes]:
        """As pika's. Raises pika's UnsupportedAMQPFieldException or ShortStringTooLong for what AMQP cannot carry."""
        if self.headers is None:
            pieces: list[bytes] = super().encode()
            return pieces
        bare: Any = spec.BasicProperties.__new__(spec.BasicProperties)
        bare.__dict__.update(self.__dict__)
        bare.headers = None
        pieces = bare.encode()
        flags = int.from_bytes(pieces[0], "big") | spec.BasicProperties.FLAG_HEADERS
        pieces[0] = flags.to_bytes(2, "big")
        before = (self.content_type is not None) + (self.content_encoding is not None)
        pieces.insert(1 + 2 * before, encode_headers(self.headers))  # a short string is two pieces
        return pieces


def decode_headers(encoded: bytes) -> Headers:
    """A whole table, its size in front. Raises ValueError, struct.error, IndexError, OverflowError, RecursionError."""
    values, wire, at = {}, {}, _SIZE.size
    while at < len(encoded):
        name, start = _name(encoded, at)
        values[name], at = _value(encoded, start, 1)
        if at > len(encoded):
            raise ValueError("a header is cut short")
        wire[name] = encoded[start:at]
    headers = Headers(values)
    headers.wire = wire
    return headers


def encode_headers(headers: Mapping[Any, Any]) -> bytes:
    """A table with its size in front; what came from the wire as it came."""
    wire = headers.wire if isinstance(headers, Headers) else {}
    pieces = [b""]
    for name, value in headers.items():
        pieces.append(_named(name))
        pieces.append(wire[name] if name in wire else encode_value(value))
    pieces[0] = _SIZE.pack(sum(map(len, pieces)))
    return b"".join(pieces)


def _name(encoded: bytes, at: int) -> tuple[str | bytes, int]:
    end = at + 1 + encoded[at]
    return _text(encoded[at + 1 : end]), end


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _value(encoded: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = encoded[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(encoded, at)[0], at + fixed.size
    if kind == _NOTHING:
        return None, at
    if kind == _INSTANT:
        return datetime.fromtimestamp(int.from_bytes(encoded[at : at + 8], "big"), UTC), at + 8
    if kind == _NUMBER:
        places, digits = _DECIMAL.unpack_from(encoded, at)
        return Decimal(digits).scaleb(-places), at + _DECIMAL.size
    if kind not in _SIZED:
        raise ValueError(f"a header is of the unknown kind {chr(kind)!r}")
    at += _SIZE.size
    end = at + _SIZE.unpack_from(encoded, at - _SIZE.size)[0]
    if end > len(encoded):
        raise ValueError("a header is cut short")
    if kind == _TEXT:
        return _text(encoded[at:end]), end
    if kind == _BYTES:
        return encoded[at:end], end
    if depth >= MAX_NESTING:
        raise RecursionError(f"nested deeper than {MAX_NESTING}")
    inner = _inner_table(encoded, at, end, depth + 1) if kind == _TABLE else _inner_list(encoded, at, end, depth + 1)
    return inner, end


def _inner_table(encoded: bytes, at: int, end: int, depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    while at < end:
        name, at = _name(encoded, at)
        found[name], at = _value(encoded, at, depth)
    if at != end:
        raise ValueError("a table is cut short")
    return found


def _inner_list(encoded: bytes, at: int, end: int, depth: int) -> list[Any]:
    found = []
    while at < end:
        value, at = _value(encoded, at, depth)
        found.append(value)
    if at != end:
        raise ValueError("a list is cut short")
    return found


def _named(name: str | bytes) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    if len(raw) > MAX_NAME_BYTES:
        raise pika.exceptions.ShortStringTooLong(raw)
    return bytes((len(raw),)) + raw


def encode_value(value: Any) -> bytes:
    """A header's value with its kind in front. Raises pika's UnsupportedAMQPFieldException."""
    encode = _ENCODERS.get(type(value)) or next(
        (how for kind, how in _ENCODERS.items() if isinstance(value, kind)), None
    )
    if encode is None:
        raise pika.exceptions.UnsupportedAMQPFieldException([], value)
    return encode(value)


def _long_string(kind: bytes, raw: bytes) -> bytes:
    return _LENGTH.pack(kind, len(raw)) + raw


def _integer(value: int) -> bytes:
    if -1 << _INTEGER_BITS <= value < 1 << _INTEGER_BITS:
        return _INTEGER.pack(b"I", value)
    if -1 << _LONG_BITS <= value < 1 << _LONG_BITS:
        return _LONG.pack(b"l", value)
    raise pika.exceptions.UnsupportedAMQPFieldException([], value)


def _decimal(value: Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    places = max(0, -exponent) if isinstance(exponent, int) else -1
    digits = int(value.scaleb(places)) if 0 <= places <= 255 else None
    if digits is None or not -1 << _INTEGER_BITS <= digits < 1 << _INTEGER_BITS:
        raise pika.exceptions.UnsupportedAMQPFieldException([], value)
    return b"D" + _DECIMAL.pack(places, digits)


def _instant(value: datetime) -> bytes:
    since_s = calendar.timegm(value.utctimetuple())
    if since_s < 0:
        raise pika.exceptions.UnsupportedAMQPFieldException([], value)
    return b"T" + since_s.to_bytes(8, "big")


def _table(value: Mapping[Any, Any]) -> bytes:
    return b"F" + encode_headers(value)


def _list(value: list[Any] | tuple[Any, ...]) -> bytes:
    return _long_string(b"A", b"".join(map(encode_value, value)))


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: lambda value: _long_string(b"S", value.encode()),
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _integer,
    dict: _table,
    type(None): lambda _: b"V",
    float: lambda value: b"d" + struct.pack(">d", value),
    bytes: lambda value: _long_string(b"x", value),
    list: _list,
    tuple: _list,
    datetime: _instant,
    Decimal: _decimal,
    Mapping: _table,
}
