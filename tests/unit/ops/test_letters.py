"""What dead letters say of themselves, which are meant, and where looking does harm."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from qctl.broker.codec import Headers
from qctl.broker.listing import QueueTerms, terms
from qctl.broker.message import Properties, revive
from qctl.ops.harm import harm, version_of
from qctl.ops.letters import SHOWN_BODY_BYTES, DeadLetter, Which, key_of, letter_of

NOW_S = 1_795_360_000.0


def letter(body: bytes = b"{}", *, redelivered: bool = False, **headers: object) -> DeadLetter:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return letter_of("work.dead", Properties(message_id="a", type="mail", headers=named), body, redelivered=redelivered)


class TestWhatALetterSays:
    def test_foreign_values_are_text_or_unknown(self) -> None:
        found = letter(
            b"x" * (SHOWN_BODY_BYTES + 1),
            qctl_reason=b"\xff",
            qctl_error="two\nlines \x1b[31m",
            qctl_attempt="many",
            qctl_crashes=True,
            qctl_died_at="yesterday",
            other=[["deep"] * 1000],
        )
        assert (found.reason, found.error) == (r"\xff", "two lines  [31m")
        assert (found.attempt, found.crashes, found.died_at_s) == (None, None, None)
        assert (len(found.body), found.size_bytes) == (SHOWN_BODY_BYTES, SHOWN_BODY_BYTES + 1)
        assert len(found.headers["other"]) < 100

    def test_the_brokers_own_reason_counts_where_no_worker_gave_one(self) -> None:
        death = {"reason": "delivery_limit", "time": datetime(2026, 11, 22, 14, tzinfo=UTC)}
        found = letter(x_death=[death, {"reason": "expired"}])
        assert (found.reason, found.died_at_s) == ("broker: delivery_limit", 1795356000.0)
        assert letter(x_death=[death], qctl_reason="poison").reason == "poison"
        assert letter(x_death="nonsense").reason == ""

    def test_its_key_is_of_what_it_says_and_not_of_its_deliveries(self) -> None:
        # Given the same letter, delivered again
        first, again = letter(), letter(redelivered=True, x_delivery_count=7)

        # Then it has the same key, and no other has
        assert first.key == again.key
        others = [letter(b"{} "), letter(theirs=1), letter(qctl_died_at="2026-11-22T14:00:07.120Z")]
        assert len({first.key, *(each.key for each in others)}) == 4
        assert key_of(Properties(message_id="b", type="mail", headers={}), b"{}") != first.key

    def test_one_without_an_id_is_called_by_its_key(self) -> None:
        found = letter_of("work.dead", Properties(), b"", redelivered=False)
        assert found.address == f"~{found.key}"
        assert Which(ids=(found.address,)).matches(found, NOW_S)
        assert Which(ids=(f"~{letter().key}",)).matches(letter(), NOW_S)
        assert not Which(ids=("",)).matches(found, NOW_S)

    @pytest.mark.parametrize("strange", ["a\x1b[31m", "a\u202eb", "two\nlines", "a\u200b"])
    def test_one_whose_id_cannot_be_typed_as_it_is_shown_is_called_by_its_key(self, strange: str) -> None:
        found = letter_of("work.dead", Properties(message_id=strange), b"", redelivered=False)
        assert (found.id, found.address) == (strange, f"~{found.key}")
        assert Which(ids=(found.address,)).matches(found, NOW_S)
        assert Which(ids=(strange,)).matches(found, NOW_S)


@pytest.mark.parametrize(
    ("which", "fits"),
    [
        (Which(), True),
        (Which(ids=("a", "b")), True),
        (Which(ids=("b",)), False),
        (Which(reasons=("poison",)), True),
        (Which(reasons=("poison", "cost"), types=("mail",)), True),
        (Which(reasons=("poison",), types=("other",)), False),
        (Which(older_than_s=99.0), True),
        (Which(older_than_s=100.0), False),
        (Which(newer_than_s=101.0), True),
        (Which(newer_than_s=100.0), False),
        (Which(older_than_s=50.0, newer_than_s=90.0), False),
    ],
)
def test_a_letter_is_meant_when_all_that_is_given_fits(which: Which, fits: bool) -> None:
    found = replace(letter(qctl_reason="poison"), died_at_s=NOW_S - 100)
    assert which.matches(found, NOW_S) is fits


def test_one_that_died_at_no_known_time_is_neither_older_nor_newer() -> None:
    assert not Which(older_than_s=0.0).matches(letter(), NOW_S)
    assert not Which(newer_than_s=1e9).matches(letter(), NOW_S)


def test_another_life_begins_without_what_was_counted_and_keeps_what_the_producer_said() -> None:
    # Given the properties of a dead letter, one header of a type that only its bytes tell
    headers = Headers({"qctl-attempt": 5, "qctl-reason": "x", "qctl-cost": {"a": 1}, "theirs": 1, "x-death": []})
    headers.wire = {"theirs": b"s\x00\x01", "qctl-attempt": b"I\x00\x00\x00\x05"}
    came = Properties(message_id="a", expiration="5", user_id="somebody", headers=headers)

    # When it is revived
    found = revive(came, message_id="b", first_seen="then", persistent=True)

    # Then only what is the producer's is there
    assert found.headers == {"qctl-cost": {"a": 1}, "theirs": 1, "qctl-first-seen": "then"}
    assert found.headers.wire == {"theirs": b"s\x00\x01"}
    assert (found.message_id, found.expiration, found.user_id, found.delivery_mode) == ("a", None, None, 2)


@pytest.mark.parametrize(
    ("kind", "limits", "version", "harmless"),
    [
        ("classic", (), "4.0.5", True),
        ("stream", (), "3.10.8", True),
        ("quorum", (1_000_000,), "4.3.6", True),
        ("quorum", (1_000_000, 20), "4.3.6", False),
        ("quorum", (999,), "3.10.8", False),
        ("quorum", (1_000,), "3.10.8", True),
        ("quorum", (), "3.13.0", True),
        ("quorum", (), "4.0.5", False),
        ("quorum", (-1,), "4.0.5", True),
        ("quorum", (-1,), "3.10.8", False),
        ("", (), "4.0.5", False),
        ("x-custom", (), "4.0.5", False),
    ],
)
def test_looking_does_harm_where_few_deliveries_are_allowed_or_nobody_knows(
    kind: str, limits: tuple[int, ...], version: str, harmless: bool
) -> None:
    assert (harm(QueueTerms(kind, limits), version_of(version)) == "") is harmless


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "quorum", "arguments": {"x-delivery-limit": 7}}, QueueTerms("quorum", (7,))),
        (
            {"type": "quorum", "arguments": {}, "effective_policy_definition": {"delivery-limit": 9}},
            QueueTerms("quorum", (9,)),
        ),
        ({"type": "quorum", "delivery_limit": 5, "arguments": {}}, QueueTerms("quorum", (5,))),
        ({"arguments": {"x-queue-type": "stream"}, "effective_policy_definition": []}, QueueTerms("stream", ())),
        ({"type": [], "arguments": "undefined"}, QueueTerms("", ())),
    ],
)
def test_what_the_management_api_says_a_queue_is(item: dict[str, object], expected: QueueTerms) -> None:
    assert terms(item) == expected
