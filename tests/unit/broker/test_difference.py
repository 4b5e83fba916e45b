"""What the broker says about a queue with other arguments, in words that name both sides."""

from __future__ import annotations

import pytest

from qctl.broker.topology import difference

ARG, OURS, THEIRS = "PRECONDITION_FAILED - inequivalent arg", "received", "but current is"
LENGTH = "x-max-length is 5, wanted none"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (f"{ARG} 'x-max-length' for queue 'q' in vhost '/': {OURS} none {THEIRS} the value '5' of type 'long'", LENGTH),
        (
            f"{ARG} 'durable' for queue 'q' in vhost '/': {OURS} 'true' {THEIRS} 'false'",
            "durable is false, wanted true",
        ),
        (
            f"{ARG} 'type' for exchange 'e' in vhost '/': {OURS} 'direct' {THEIRS} 'topic'",
            "type is topic, wanted direct",
        ),
        ("PRECONDITION_FAILED - something else", "something else"),
        ("something new", "something new"),
    ],
)
def test_both_sides_are_named(said: str, words: str) -> None:
    assert difference(said) == words
