"""Reading frames so that no single message can cost the connection.

pika decodes a message's headers as it reads them, and some that the broker takes it cannot decode: a date beyond the
calendar, lists nested a thousand deep. Left to itself that ends the connection, the broker delivers the message again,
and so for ever. Here such a message arrives with the mark UNREADABLE in place of its headers.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import frame, spec

#: The header that stands for all headers of a message that cannot be read; its value says why.
UNREADABLE = "x-qctl-unreadable"

#: Lists and tables inside each other, the headers themselves included.
MAX_NESTING = 32

_FRAME = struct.Struct(">BHL")
_CONTENT = struct.Struct(">HHQ")


def read_frame(data: bytes) -> tuple[int, Any]:
    """As pika's `decode_frame`: the bytes consumed and the frame, (0, None) while it is not complete."""
    try:
        consumed, found = frame.decode_frame(data)
    # A decoder fed with foreign bytes fails in every way there is.
    except Exception as error:  # noqa: BLE001
        return _unreadable(data, error)
    if type(found) is frame.Header and found.properties.headers and _too_deep(found.properties.headers):
        # What was just readable may not be writable: whoever publishes it again has a deeper stack.
        return _unreadable(data, RecursionError(f"nested deeper than {MAX_NESTING}"))
    return consumed, found


def _too_deep(headers: dict[Any, Any]) -> bool:
    level: list[Any] = [headers]
    for _ in range(MAX_NESTING):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _unreadable(data: bytes, error: Exception) -> tuple[int, Any]:
    """The frame without the headers that are the trouble. Raises `error` when they are not."""
    kind, channel, size = _FRAME.unpack_from(data)
    content = bytes(data[_FRAME.size : _FRAME.size + size])
    if kind != spec.FRAME_HEADER or not _flags(content) & spec.BasicProperties.FLAG_HEADERS:
        raise error
    properties = _without_headers(content[_CONTENT.size :])
    properties.headers = {UNREADABLE: f"{type(error).__name__}: {error}"[:200]}
    body_size = _CONTENT.unpack_from(content)[2]
    return _FRAME.size + size + spec.FRAME_END_SIZE, frame.Header(channel, body_size, properties)


def _flags(content: bytes) -> int:
    return int.from_bytes(content[_CONTENT.size : _CONTENT.size + 2], "big")


def _without_headers(encoded: bytes) -> spec.BasicProperties:
    """The properties but the headers, which come third and whose size says where the rest goes on."""
    flags, at = int.from_bytes(encoded[:2], "big"), 2
    for flag in (spec.BasicProperties.FLAG_CONTENT_TYPE, spec.BasicProperties.FLAG_CONTENT_ENCODING):
        if flags & flag:
            at += 1 + encoded[at]
    end = at + 4 + int.from_bytes(encoded[at : at + 4], "big")
    properties = spec.BasicProperties()
    flags &= ~spec.BasicProperties.FLAG_HEADERS
    properties.decode(flags.to_bytes(2, "big") + encoded[2:at] + encoded[end:])
    return properties
