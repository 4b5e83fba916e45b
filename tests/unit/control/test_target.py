"""Targets: patterns over subscriptions, and how two of them relate."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control.target import Scope, Subject, Target

TIMELINE = Subject("web-1", "timeline", "timeline", "qctl/web-1/timeline/0")

names = st.text("ab-", min_size=1, max_size=4)
patterns = st.text("ab*", min_size=1, max_size=5)
targets = st.builds(Target, *(st.none() | patterns for _ in range(4)))
subjects = st.builds(Subject, names, names, names, names)


def matched(pattern: str | None, name: str) -> bool:
    """What a pattern means, said by a regular expression."""
    return pattern is None or re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


@pytest.mark.parametrize(
    ("target", "matches"),
    [
        (Target(host="web-1"), True),
        (Target(host="web-10"), False),
        (Target(host="web"), False),
        (Target(host="web-*"), True),
        (Target(host="*"), True),
        (Target(host="web-1", consumer="timeline"), True),
        (Target(host="web-1", consumer="mail"), False),
        (Target(host="web-2", consumer="timeline"), False),
        (Target(host="*", consumer="timeline"), True),
        (Target(queue="timeline"), True),
        (Target(queue="timeline@*"), False),
        (Target(tag="qctl/web-1/timeline/0"), True),
        (Target(tag="qctl/web-1/timeline/1"), False),
        (Target(tag="qctl/*/0"), True),
        (Target(), True),
    ],
)
def test_given_a_subscription_then_a_target_matches_it_by_all_that_it_names(target: Target, matches: bool) -> None:
    assert target.matches(TIMELINE) is matches


@given(patterns, names)
def test_a_pattern_matches_what_the_same_regular_expression_matches(pattern: str, name: str) -> None:
    assert Target(host=pattern).matches(Subject(name, "c", "q", "t")) is matched(pattern, name)


@given(targets, targets, subjects)
def test_what_covers_another_matches_all_that_it_matches_and_overlapping_is_never_missed(
    one: Target, other: Target, subject: Subject
) -> None:
    if one.covers(other) and other.matches(subject):
        assert one.matches(subject)
    if one.matches(subject) and other.matches(subject):
        assert one.overlaps(other)
        assert other.overlaps(one)


@given(patterns, patterns)
def test_that_patterns_cover_or_overlap_is_said_exactly(one: str, other: str) -> None:
    # A letter that neither has stands for all the others
    words = ["", *"abc", *(x + y for x in "abc" for y in "abc")]
    fillings = [other.replace("*", word) for word in words]

    assert Scope(one, "q").covers(Scope(other, "q")) is all(matched(one, name) for name in fillings if name)
    if Scope(one, "q").overlaps(Scope(other, "q")) and "*" not in other:
        assert matched(one, other)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("web-*", "*-1", True),
        ("web-*", "db-*", False),
        ("*-1", "*-2", False),
        ("a*b", "ab*", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("web-1", "web-1", True),
        ("web-1", "web-2", False),
        ("*x*", "*y*", True),
    ],
)
def test_given_two_patterns_then_they_overlap_if_a_name_fits_both(one: str, other: str, overlap: bool) -> None:
    assert Target(host=one).overlaps(Target(host=other)) is overlap
    assert Target(host=other).overlaps(Target(host=one)) is overlap


@pytest.mark.parametrize(
    ("target", "might"),
    [
        (Target(consumer="timeline"), True),
        (Target(host="web-*"), True),
        (Target(host="web-2"), False),
        (Target(tag="qctl/web-1/timeline/0"), True),
        (Target(tag="qctl/web-10/timeline/0"), False),
        (Target(tag="qctl/*/timeline/0"), True),
    ],
)
def test_given_a_host_then_it_is_known_whether_a_target_may_mean_it(target: Target, might: bool) -> None:
    assert target.might_match_host("web-1") is might


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(host="web-1", consumer="timeline"), "web-1/timeline"),
        (Target(host="web-1"), "web-1"),
        (Target(consumer="timeline"), "*/timeline"),
        (Target(host="*", consumer="timeline"), "*/timeline"),
        (Target(queue="timeline"), "queue timeline"),
        (Target(host="web-1", queue="timeline"), "queue timeline on web-1"),
        (Target(host="web-1", consumer="c", queue="timeline"), "queue timeline of web-1/c"),
        (Target(tag="qctl/web-1/timeline/0"), "tag qctl/web-1/timeline/0"),
        (Target(), "nothing"),
    ],
)
def test_given_a_target_then_it_is_shown_as_it_is_written(target: Target, words: str) -> None:
    assert str(target) == words


@given(targets)
def test_a_target_travels_as_it_is(target: Target) -> None:
    assert Target.from_json(target.to_json()) == target


@pytest.mark.parametrize("fields", [None, {}, {"host": None}, {"host": None, "queue": None}])
def test_given_no_field_then_a_target_names_nothing(fields: Any) -> None:
    assert Target.from_json(fields).names_nothing


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "must be an object"),
        ("web-1", "must be an object"),
        ({"host": 1}, "host must be"),
        ({"host": ["web-1"]}, "host must be"),
        ({"host": ""}, "host must be"),
        ({"host": "x" * 256}, "host must be"),
        ({"host": "web\n1"}, "host must be"),
        ({"consumer": "\x1b[2J"}, "consumer must be"),
        ({"queue": "wéb"}, "queue must be"),
        ({"tag": "a b"}, "tag must be"),
        ({"host": "web-1", "process": 0}, "a field that this version does not know: 'process'"),
    ],
)
def test_given_what_is_no_target_then_it_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Target.from_json(fields)


def test_given_a_pattern_made_to_be_slow_then_it_is_not() -> None:
    slow = Target(host="*a" * 100 + "*b")
    started_s = time.perf_counter()

    assert not slow.matches(Subject("a" * 1000, "c", "q", "t"))
    assert time.perf_counter() - started_s < 0.1
