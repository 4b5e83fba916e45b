"""The wire format: what a message may say, and what is kept of it when it is published once more."""

from __future__ import annotations

import json
import math
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import data

from qctl.broker.message import (
    MAX_COST_ENTRIES,
    MAX_COUNT,
    MAX_ERROR_CHARS,
    DeadReason,
    Malformed,
    Message,
    Properties,
    answer_to,
    check_cost,
    decode_json,
    parse,
    republish,
    short,
    text,
    utc,
)
from qctl.units import MAX_UNITS

#: A header's value as a broker can send it.
_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(2**31), max_value=2**31 - 1, places=0)
    | st.integers(0, 253_402_300_799).map(lambda at_s: datetime.fromtimestamp(at_s, UTC))
)
VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
#: Names that mean something, beside any other; a name that is not UTF-8 arrives as bytes.
NAMES = (
    st.sampled_from(
        [
            "qctl-cost",
            "qctl-attempt",
            "qctl-deferrals",
            "qctl-crashes",
            "qctl-first-seen",
            "qctl-delay",
            "qctl-of-tomorrow",
            "CC",
            "BCC",
            "x-death",
            "x-delivery-count",
            "tenant",
        ]
    )
    | st.text(max_size=20)
    | st.binary(max_size=10).map(lambda raw: b"\xff" + raw)
    | st.just(b"x-\xff")
)
HEADERS = st.none() | st.dictionaries(NAMES, VALUES, max_size=8)
SHORT = st.none() | st.text(max_size=30) | st.just(b"\xff\xfe")
PROPERTIES = st.builds(
    Properties,
    content_type=SHORT,
    content_encoding=SHORT,
    headers=HEADERS,
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=SHORT,
    reply_to=SHORT,
    expiration=st.none() | st.just("60000"),
    message_id=SHORT,
    timestamp=st.none() | st.integers(0, 2**63 - 1),
    type=SHORT,
    user_id=st.none() | st.just("guest"),
    app_id=SHORT,
)


def again(properties: pika.BasicProperties, **changes: Any) -> pika.BasicProperties:
    return republish(
        properties, changes=changes.pop("changes", {}), message_id="made", first_seen="then", persistent=True, **changes
    )


class TestParse:
    def test_a_bare_message_is_a_first_attempt_of_nothing_known(self) -> None:
        # given a message without any property
        message = parse(pika.BasicProperties(), b"\x00\xff")

        # then it is a task all the same, its body untouched
        assert message == Message(b"\x00\xff", message.properties)
        assert (message.attempt, message.deferrals, message.crashes, message.cost) == (1, 0, 0, None)
        assert (message.id, message.type, message.content_type) == ("", "", "")

    def test_what_the_producer_says_is_understood(self) -> None:
        # given a message with everything a producer may say
        headers = {"qctl-cost": {"api": 3}, "qctl-attempt": 2, "qctl-deferrals": 7, "qctl-crashes": 1, "tenant": "a"}
        properties = pika.BasicProperties(
            headers=headers, message_id="id-1", type="mail", content_type="Application/JSON; charset=utf-8"
        )

        # when it is read
        message = parse(properties, b"{}")

        # then each is where it belongs
        assert message.cost == {"api": 3}
        assert (message.attempt, message.deferrals, message.crashes) == (2, 7, 1)
        assert (message.id, message.type, message.content_type) == ("id-1", "mail", "application/json")
        assert message.is_json
        assert message.headers["tenant"] == "a"

    @pytest.mark.parametrize("kind", ["application/json", "application/problem+json", "APPLICATION/JSON;charset=utf-8"])
    def test_json_is_known_by_its_content_type(self, kind: str) -> None:
        assert parse(pika.BasicProperties(content_type=kind), b"").is_json

    @pytest.mark.parametrize("kind", [None, "", "text/plain", "application/jsonp"])
    def test_other_content_types_are_not_json(self, kind: str | None) -> None:
        assert not parse(pika.BasicProperties(content_type=kind), b"").is_json

    @pytest.mark.parametrize("name", ["qctl-attempt", "qctl-deferrals", "qctl-crashes"])
    @pytest.mark.parametrize("value", [-1, MAX_COUNT + 1, 2**62, True, "1", 1.5, Decimal(1), None, [1], {"n": 1}, b"1"])
    def test_a_counter_that_is_no_count_is_malformed(self, name: str, value: object) -> None:
        # when a message with it is read
        with pytest.raises(Malformed) as refused:
            parse(pika.BasicProperties(headers={name: value}), b"")

        # then the reason names the header
        assert name in str(refused.value)
        assert refused.value.reason is DeadReason.MALFORMED

    def test_an_attempt_before_the_first_is_malformed(self) -> None:
        with pytest.raises(Malformed, match="from 1 to"):
            parse(pika.BasicProperties(headers={"qctl-attempt": 0}), b"")

    def test_the_largest_counters_and_costs_are_still_good(self) -> None:
        headers = {"qctl-attempt": MAX_COUNT, "qctl-deferrals": MAX_COUNT, "qctl-cost": {"api": MAX_UNITS, "mail": 0}}
        message = parse(pika.BasicProperties(headers=headers), b"")
        assert (message.attempt, message.deferrals) == (MAX_COUNT, MAX_COUNT)
        assert message.cost == {"api": MAX_UNITS, "mail": 0}

    @pytest.mark.parametrize(
        "value",
        [
            None,
            7,
            "api=1",
            ["api", 1],
            {"api": -1},
            {"api": MAX_UNITS + 1},
            {"api": True},
            {"api": "1"},
            {"api": 1.0},
            {"api": 1.5},
            {"api": -0.5},
            {"api": math.nan},
            {"api": math.inf},
            {"api": Decimal(1)},
            {"api": None},
            {"api": {"units": 1}},
            {"api": [1]},
            {"api": 2**70},
            [{"api": 1}],
            {f"quota-{number}": 1 for number in range(MAX_COST_ENTRIES + 1)},
        ],
    )
    def test_a_cost_that_is_no_cost_is_malformed_with_that_reason(self, value: object) -> None:
        with pytest.raises(Malformed, match="qctl-cost") as refused:
            parse(pika.BasicProperties(headers={"qctl-cost": value}), b"")
        assert refused.value.reason is DeadReason.COST

    def test_a_quota_whose_name_is_not_utf_8_is_named_readably(self) -> None:
        assert check_cost({b"\xff": 1}) == {"\\xff": 1}

    @example(pika.BasicProperties(headers={"qctl-attempt": "x" * 100_000}), b"")
    @given(PROPERTIES, st.binary(max_size=20))
    def test_whatever_arrives_is_read_or_malformed(self, properties: pika.BasicProperties, body: bytes) -> None:
        # when anything at all is read
        message: Message | None = None
        why = ""
        try:
            message = parse(properties, body)
        except Malformed as error:
            why = str(error)

        # then it has the form that the rest relies on, or is refused in one bounded line
        if message is None:
            assert len(why.splitlines()) == 1
            assert len(why) < 2 * MAX_ERROR_CHARS
        else:
            assert message.body is body
            assert message.attempt >= 1
            assert isinstance(message.id + message.type + message.content_type, str)

    def test_a_value_nested_deeply_is_named_without_harm(self) -> None:
        # given a counter that is a list in a list in a list
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]

        # then it is refused like any other
        with pytest.raises(Malformed, match="qctl-attempt"):
            parse(pika.BasicProperties(headers={"qctl-attempt": nested}), b"")


class TestRepublish:
    def test_what_would_do_harm_a_second_time_is_dropped(self) -> None:
        # given a message that has been through a broker
        before = pika.BasicProperties(
            headers={
                "CC": ["other"],
                "BCC": ["third"],
                "x-death": [{"count": 1}],
                "x-delivery-count": 5,
                "x-first-death-queue": "q",
                "qctl-delay": "5s",
            },
            user_id="guest",
            expiration="1000",
        )

        # when it is published once more
        after = again(before)

        # then nothing of that is in it
        assert after.headers == {"qctl-first-seen": "then"}
        assert after.user_id is None
        assert after.expiration is None

    def test_what_the_producer_set_is_kept(self) -> None:
        # given a message of a producer with headers of its own, and some that this version does not know
        headers = {"tenant": "a", "qctl-cost": {"api": 2}, "qctl-of-tomorrow": [1, 2], "X-Trace": "1", "cc": "lower"}
        before = pika.BasicProperties(
            content_type="application/json",
            content_encoding="gzip",
            headers=headers,
            priority=3,
            correlation_id="c-1",
            reply_to="answers",
            message_id="id-1",
            timestamp=1_800_000_000,
            type="mail",
            app_id="shop",
        )

        # when it is published once more
        after = again(before)

        # then all of it is there
        assert after.headers == {**headers, "qctl-first-seen": "then"}
        for name in (
            "content_type",
            "content_encoding",
            "priority",
            "correlation_id",
            "reply_to",
            "message_id",
            "timestamp",
            "type",
            "app_id",
        ):
            assert getattr(after, name) == getattr(before, name), name
        assert headers == before.headers, "the message that was read is left as it was"

    def test_an_id_is_made_only_where_there_was_none(self) -> None:
        assert again(pika.BasicProperties()).message_id == "made"
        assert again(pika.BasicProperties(message_id="id-1")).message_id == "id-1"

    def test_the_first_sight_of_a_task_is_told_once(self) -> None:
        assert again(pika.BasicProperties(headers={"qctl-first-seen": "long ago"})).headers == {
            "qctl-first-seen": "long ago"
        }

    def test_the_changes_win(self) -> None:
        # given a retry that sets its delay and its attempt
        before = pika.BasicProperties(headers={"qctl-delay": "5s", "qctl-attempt": 1})

        # then those of before are gone
        after = again(before, changes={"qctl-delay": "30s", "qctl-attempt": 2})
        assert after.headers["qctl-delay"] == "30s"
        assert after.headers["qctl-attempt"] == 2

    @pytest.mark.parametrize(("persistent", "mode"), [(True, 2), (False, 1)])
    def test_whether_it_survives_a_restart_is_the_consumers_choice(self, persistent: bool, mode: int) -> None:
        after = republish(
            pika.BasicProperties(delivery_mode=3 - mode),
            changes={},
            message_id="made",
            first_seen="then",
            persistent=persistent,
        )
        assert after.delivery_mode == mode

    @given(PROPERTIES)
    def test_of_anything_only_the_harmless_is_kept(self, before: pika.BasicProperties) -> None:
        # when anything at all is published once more
        after = again(before)

        # then of its headers exactly the harmless are there, those of tomorrow too
        kept = {
            name: value
            for name, value in (before.headers or {}).items()
            if name not in ("CC", "BCC", "qctl-delay") and not text(name).startswith("x-")
        }
        assert after.headers == {"qctl-first-seen": "then", **kept}
        assert (after.user_id, after.expiration) == (None, None)
        assert after.message_id == (before.message_id or "made")

    @given(PROPERTIES)
    def test_what_came_off_the_wire_can_go_back_on_it(self, sent: pika.BasicProperties) -> None:
        # given a message off the wire
        arrived = Properties()
        arrived.decode(b"".join(sent.encode()))

        # when it is published once more
        encoded = b"".join(again(arrived).encode())

        # then it can be written, and says the same
        returned = Properties()
        returned.decode(encoded)
        assert returned.headers == again(arrived).headers


class TestDecodeJson:
    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b"{}", {}),
            (b' {"a": [1, 2.5, null, true]} ', {"a": [1, 2.5, None, True]}),
            (b'"\xc3\xbc"', "ü"),
            (b"17", 17),
            (b"1e308", 1e308),
            (b"1e-999", 0.0),
            (b'"\\ud83d\\ude00"', "\U0001f600"),
        ],
    )
    def test_a_json_value_is_decoded(self, body: bytes, value: object) -> None:
        assert decode_json(body) == value

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "not JSON: Expecting value at column 1"),
            (b"nope", "not JSON: Expecting value at column 1"),
            (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
            (b"{'a': 1}", "not JSON: Expecting property name"),
            (b"1 2", "not JSON: Extra data at column 3"),
            (b"NaN", "not JSON: NaN is not JSON"),
            (b"[Infinity]", "not JSON: Infinity is not JSON"),
            (b"[-Infinity]", "not JSON: -Infinity is not JSON"),
            (b"[1e999]", "not JSON: 1e999 is too large a number"),
            (b"[-1e999]", "not JSON: -1e999 is too large a number"),
            (b"9" * 5000, "not JSON: Exceeds the limit"),
            (b'"\xff"', "not UTF-8 at byte 2"),
            ('"ü"'.encode("latin-1"), "not UTF-8 at byte 2"),
            ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 1"),
            (b"\xef\xbb\xbf{}", "not JSON"),
            (b"[" * 100_000, "not JSON: nested too deeply"),
            (b'{"a":' * 100_000, "not JSON: nested too deeply"),
            (b"[" * 100_000 + b"]" * 100_000, "not JSON: nested too deeply"),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_what_is_not_json_is_refused_with_its_reason(self, body: bytes, why: str) -> None:
        with pytest.raises(ValueError) as refused:
            decode_json(body)
        assert str(refused.value).startswith(why)

    @given(st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
    def test_any_bytes_are_decoded_or_refused(self, body: bytes) -> None:
        # when anything is decoded
        why = ""
        try:
            value = decode_json(body)
        except ValueError as error:
            why = str(error)

        # then what is accepted can be written as JSON again, and what is not has a reason
        assert len(why.splitlines()) == 1 if why else json.dumps(value, allow_nan=False)


class TestText:
    @pytest.mark.parametrize(
        ("raw", "shown"), [(None, ""), ("ü", "ü"), (b"\xc3\xbc", "ü"), (b"a\xff", "a\\xff"), (7, "7")]
    )
    def test_short_strings_are_text_whatever_they_are(self, raw: object, shown: str) -> None:
        assert text(raw) == shown

    @given(st.text(max_size=2 * MAX_ERROR_CHARS))
    def test_an_error_fits_in_a_header_and_on_a_line(self, words: str) -> None:
        line = short(words)
        assert len(line) <= MAX_ERROR_CHARS
        assert len(line.splitlines()) <= 1
        assert not any(unicodedata.category(char) == "Cc" for char in line)

    def test_a_long_error_shows_that_it_was_cut(self) -> None:
        assert short("x" * 501) == "x" * 499 + "…"
        assert short("x" * 500) == "x" * 500

    def test_times_are_utc_to_the_millisecond(self) -> None:
        assert utc(1_795_356_007.1204) == "2026-11-22T14:00:07.120Z"


def test_an_answer_finds_its_question() -> None:
    # given questions with and without a correlation id
    asked = pika.BasicProperties(message_id="id-1", correlation_id="c-1", reply_to="answers")
    plain = pika.BasicProperties(message_id="id-1")

    # when they are answered
    answer = answer_to(asked, message_id="new", content_type="text/plain", status=201)

    # then the answer carries what the asker waits for, and the upstream's status
    assert (answer.correlation_id, answer.message_id) == ("c-1", "new")
    assert (answer.content_type, answer.headers) == ("text/plain", {"qctl-status": 201})
    assert answer_to(plain, message_id="new", content_type="", status=200).correlation_id == "id-1"


def test_these_tests_know_how_pika_reads_a_header() -> None:
    # given a header whose name is not UTF-8
    pieces: list[bytes] = []
    data.encode_table(pieces, {b"x-\xff": 1})

    # then pika hands out bytes: a republish must bear with it
    assert data.decode_table(b"".join(pieces), 0)[0] == {b"x-\xff": 1}
