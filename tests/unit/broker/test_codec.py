"""Headers on the wire: read for what they are, and written again byte for byte."""

from __future__ import annotations

import math
import struct
import time
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any

import pika
import pika.exceptions
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import data, frame, spec

from qctl.broker.codec import MAX_NESTING, UNREADABLE, Headers, Properties, decode_headers, encode_headers, encode_value
from qctl.broker.frames import read_frame
from qctl.broker.message import republish


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """An encoded table of names and encoded values."""
    inner = b"".join(bytes([len(name)]) + name + value for name, value in entries)
    return struct.pack(">I", len(inner)) + inner


def sized(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def value_of(encoded: bytes) -> Any:
    return decode_headers(table((b"it", encoded)))["it"]


#: Every kind of field that RabbitMQ knows, a value encoded by hand, and what it means.
KINDS: dict[str, tuple[bytes, Any]] = {
    "t": (b"t\x01", True),
    "b": (b"b\xff", -1),
    "B": (b"B\xff", 255),
    "s": (b"s\xff\xfe", -2),
    "U": (b"U\xff\xfe", -2),
    "u": (b"u\xff\xfe", 65_534),
    "I": (b"I\xff\xff\xff\xff", -1),
    "i": (b"i\xff\xff\xff\xff", 2**32 - 1),
    "l": (b"l" + b"\xff" * 8, -1),
    "L": (b"L" + b"\xff" * 8, -1),
    "f": (b"f" + struct.pack(">f", 0.5), 0.5),
    "d": (b"d" + struct.pack(">d", 1.5), 1.5),
    "d infinite": (b"d" + struct.pack(">d", -math.inf), -math.inf),
    "D": (b"D\x02" + struct.pack(">i", -199), Decimal("-1.99")),
    "D tiny": (b"D\xff" + struct.pack(">i", 7), Decimal(7).scaleb(-255)),
    "T": (b"T" + struct.pack(">Q", 0), datetime(1970, 1, 1, tzinfo=UTC)),
    "S": (sized(b"S", "ü".encode()), "ü"),
    "S not UTF-8": (sized(b"S", b"\xff"), b"\xff"),
    "x": (sized(b"x", b"plain"), b"plain"),
    "A": (sized(b"A", b"b\x01d" + struct.pack(">d", 0.25) + b"V"), [1, 0.25, None]),
    "F": (b"F" + table((b"\xff", b"u\x00\x01")), {b"\xff": 1}),
    "V": (b"V", None),
}


@pytest.mark.parametrize(("encoded", "meant"), KINDS.values(), ids=KINDS.keys())
def test_every_kind_is_read_and_written_again_as_it_came(encoded: bytes, meant: object) -> None:
    # given headers of that kind, alone and inside others
    raw = table((b"alone", encoded), (b"inside", sized(b"A", b"F" + table((b"it", encoded)))))

    headers = decode_headers(raw)

    assert headers == {"alone": meant, "inside": [{"it": meant}]}
    assert type(headers["alone"]) is type(meant)
    assert encode_headers(headers) == raw


def test_not_a_number_is_read_and_written_again() -> None:
    raw = table((b"it", b"d\x7f\xf8\x00\x00\x00\x00\x00\x01"))
    headers = decode_headers(raw)
    assert math.isnan(headers["it"])
    assert encode_headers(headers) == raw


_FIXED: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "t": ("?", st.booleans()),
    "b": ("b", st.integers(-128, 127)),
    "B": ("B", st.integers(0, 255)),
    "s": ("h", st.integers(-(2**15), 2**15 - 1)),
    "u": ("H", st.integers(0, 2**16 - 1)),
    "I": ("i", st.integers(-(2**31), 2**31 - 1)),
    "i": ("I", st.integers(0, 2**32 - 1)),
    "l": ("q", st.integers(-(2**63), 2**63 - 1)),
    "f": ("f", st.floats(width=32)),
    "d": ("d", st.floats()),
}
_LEAVES = st.one_of(
    *(
        values.map(lambda value, k=kind, p=layout: k.encode() + struct.pack(f">{p}", value))
        for kind, (layout, values) in _FIXED.items()
    ),
    st.binary(max_size=10).map(lambda raw: sized(b"S", raw)),
    st.binary(max_size=10).map(lambda raw: sized(b"x", raw)),
    st.integers(0, 253_402_300_799).map(lambda at_s: b"T" + struct.pack(">Q", at_s)),
    st.just(b"V"),
)
_NAMES = st.binary(max_size=12)
ENCODED = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda several: sized(b"A", b"".join(several)))
        | st.dictionaries(_NAMES, inner, max_size=3).map(lambda entries: b"F" + table(*entries.items()))
    ),
    max_leaves=8,
)


@given(st.dictionaries(_NAMES, ENCODED, max_size=6))
def test_anything_well_formed_is_the_same_after_a_round_through_values(entries: dict[bytes, bytes]) -> None:
    raw = table(*entries.items())
    assert encode_headers(decode_headers(raw)) == raw


@given(st.dictionaries(_NAMES, ENCODED, max_size=6))
def test_a_republish_keeps_every_header_as_it_came(entries: dict[bytes, bytes]) -> None:
    # given a message with any headers
    came = Properties(headers=decode_headers(table(*entries.items())))

    # when it is published once more, with a change
    again = republish(came, changes={"qctl-attempt": 2}, message_id="id", first_seen="then", persistent=True)
    sent = decode_headers(encode_headers(again.headers))

    # then all that was kept has the bytes it came with
    assert sent["qctl-attempt"] == 2
    for name, encoded in entries.items():
        read = next(iter(decode_headers(table((name, encoded)))))
        if read in again.headers and read not in ("qctl-attempt", "qctl-first-seen"):
            assert sent.wire[read] == encoded
            assert again.headers.wire[read] == encoded


def test_a_republish_writes_what_it_changes_and_not_what_came() -> None:
    came = Properties(headers=decode_headers(table((b"qctl-attempt", b"b\x01"), (b"kept", b"b\x01"))))
    again = republish(came, changes={"qctl-attempt": 2}, message_id="id", first_seen="then", persistent=True)

    sent = decode_headers(encode_headers(again.headers))

    assert sent == {"qctl-attempt": 2, "kept": 1, "qctl-first-seen": "then"}
    assert sent.wire["kept"] == b"b\x01"


_PIKA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.integers(-(2**31), 2**31 - 1).map(Decimal)
    | st.integers(0, 253_402_300_799).map(lambda at_s: datetime.fromtimestamp(at_s, UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=20), _PIKA, max_size=6))
def test_what_pika_writes_is_read_as_pika_reads_it_and_the_reverse(headers: dict[str, Any]) -> None:
    pieces: list[bytes] = []
    data.encode_table(pieces, headers)

    assert decode_headers(b"".join(pieces)) == headers
    assert data.decode_table(encode_headers(headers), 0)[0] == headers


@pytest.mark.parametrize("value", [0.5, -1e300, math.inf])
def test_a_number_with_a_fraction_is_written_as_one(value: float) -> None:
    assert value_of(encode_value(value)) == value


class Level(IntEnum):
    HIGH = 7


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (Level.HIGH, b"I\x00\x00\x00\x07"),
        ((1, 2), sized(b"A", b"I\x00\x00\x00\x01I\x00\x00\x00\x02")),
        (True, b"t\x01"),
    ],
)
def test_a_kind_of_a_kind_is_written_as_that(value: object, encoded: bytes) -> None:
    started_s = time.monotonic()
    assert encode_value(value) == encoded
    assert time.monotonic() - started_s < 1


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        object(),
        {1, 2},
        Decimal("1e400"),
        Decimal("NaN"),
        Decimal("0.12345678901"),
        datetime(1969, 1, 1, tzinfo=UTC),
    ],
)
def test_what_amqp_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(pika.exceptions.UnsupportedAMQPFieldException):
        encode_value(value)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(pika.exceptions.ShortStringTooLong):
        encode_headers({"x" * 256: 1})


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = sized(b"A", value)
    return value


def header_frame(properties: spec.BasicProperties) -> bytes:
    marshalled: bytes = frame.Header(1, 42, properties).marshal()
    return marshalled


def raw_frame(headers: bytes) -> bytes:
    """A header frame with content type, these encoded headers, and type."""
    flags = Properties.FLAG_CONTENT_TYPE | Properties.FLAG_HEADERS | Properties.FLAG_TYPE
    content = struct.pack(">HHQH", 60, 0, 42, flags) + b"\x03a/b" + headers + b"\x04name"
    return struct.pack(">BHL", 2, 1, len(content)) + content + b"\xce"


SHORT = st.none() | st.text(max_size=20)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": SHORT,
        "content_encoding": SHORT,
        "headers": st.dictionaries(st.text(max_size=5), _PIKA, max_size=3),
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 255),
        "correlation_id": SHORT,
        "reply_to": SHORT,
        "expiration": SHORT,
        "message_id": SHORT,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": SHORT,
        "user_id": SHORT,
        "app_id": SHORT,
        "cluster_id": SHORT,
    },
)


class TestFrames:
    @given(PROPERTIES)
    def test_a_header_frame_is_read_as_pika_reads_it_but_keeps_its_bytes(self, given: dict[str, Any]) -> None:
        # given a frame that pika wrote, with the beginning of the next behind it
        raw = header_frame(pika.BasicProperties(**given))

        consumed, found = read_frame(raw + b"\x02\x00")

        assert consumed == len(raw)
        assert (found.channel_number, found.body_size) == (1, 42)
        expected = frame.decode_frame(raw)[1].properties
        assert found.properties.__dict__ == expected.__dict__
        assert header_frame(found.properties) == raw

    @given(PROPERTIES)
    def test_a_frame_that_is_not_complete_waits_for_the_rest(self, given: dict[str, Any]) -> None:
        raw = header_frame(Properties(**given))
        assert all(read_frame(raw[:length]) == (0, None) for length in range(1, len(raw)))

    def test_other_frames_are_left_to_pika(self) -> None:
        body = frame.Body(1, b"\x02body").marshal()
        assert read_frame(body)[1].fragment == b"\x02body"
        with pytest.raises(pika.exceptions.InvalidFrameError):
            read_frame(raw_frame(table())[:-1] + b"\x00")

    @pytest.mark.parametrize(
        ("headers", "why"),
        [
            (table((b"since", b"T" + struct.pack(">Q", 2**63))), "out of range"),
            (table((b"deep", nested(MAX_NESTING))), "RecursionError"),
            (table((b"deep", nested(5_000))), "RecursionError"),
            (table((b"kind", b"Z\x00")), "unknown kind 'Z'"),
            (table((b"text", b"S" + struct.pack(">I", 100) + b"short")), "cut short"),
            (table((b"number", b"d\x00")), "error"),
            (table((b"list", sized(b"A", b"I\x00"))), ""),
            (struct.pack(">I", 3) + b"\xffab", ""),
        ],
    )
    def test_headers_that_cannot_be_read_are_marked_and_the_rest_is_there(self, headers: bytes, why: str) -> None:
        raw = raw_frame(headers)

        consumed, found = read_frame(raw)

        assert consumed == len(raw)
        assert list(found.properties.headers) == [UNREADABLE]
        assert why in found.properties.headers[UNREADABLE]
        assert (found.properties.content_type, found.properties.type) == ("a/b", "name")

    def test_what_is_nested_to_the_limit_is_read(self) -> None:
        assert UNREADABLE not in read_frame(raw_frame(table((b"deep", nested(MAX_NESTING - 1)))))[1].properties.headers

    @example(b"\x00" * 5)
    @given(st.binary(max_size=60))
    def test_no_bytes_in_the_headers_cost_the_connection(self, noise: bytes) -> None:
        headers = struct.pack(">I", len(noise)) + noise
        found = read_frame(raw_frame(headers))[1].properties
        assert found.type == "name"
        if UNREADABLE not in found.headers and len(found.headers.wire) == noise_names(noise):
            assert encode_headers(found.headers) == headers


def noise_names(noise: bytes) -> int:
    """How many headers pika's own walk over these bytes would count, names that come twice included."""
    at = count = 0
    while at < len(noise):
        at += 1 + noise[at]
        _, at = data.decode_value(noise, at)
        count += 1
    return count


def test_headers_are_plain_to_look_at() -> None:
    headers = Headers({"a": 1})
    assert headers == {"a": 1}
    assert Headers(headers, {"a": b"b\x01"}).wire == {"a": b"b\x01"}
