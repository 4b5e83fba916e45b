"""Reading frames so that no single message can cost the connection.

pika decodes a message's headers as it reads them, and some that the broker takes it cannot decode: a date beyond the
calendar, lists nested a thousand deep. Left to itself that ends the connection, the broker delivers the message again,
and so for ever. Here such a message arrives with the mark UNREADABLE in place of its headers.
"""

from __future__ import annotations

import struct
from typing import Any

import pika.exceptions
from pika import frame, spec

from qctl.broker.codec import Properties

_FRAME = struct.Struct(">BHL")
#: Class, weight and size of the body, in front of the properties.
_CONTENT = struct.Struct(">HHQ")


def read_frame(data: bytes) -> tuple[int, Any]:
    """As pika's `decode_frame`: the bytes consumed and the frame, (0, None) while it is not complete."""
    if data[0] != spec.FRAME_HEADER:
        consumed, found = frame.decode_frame(data)
        return consumed, found
    if len(data) < _FRAME.size:
        return 0, None
    _, channel, size = _FRAME.unpack_from(data)
    end = _FRAME.size + size
    if end >= len(data):
        return 0, None
    if data[end] != spec.FRAME_END:
        raise pika.exceptions.InvalidFrameError("a frame does not end where it says")
    _, _, body_bytes = _CONTENT.unpack_from(data, _FRAME.size)
    properties = Properties().decode(bytes(data[_FRAME.size + _CONTENT.size : end]))
    return end + spec.FRAME_END_SIZE, frame.Header(channel, body_bytes, properties)
