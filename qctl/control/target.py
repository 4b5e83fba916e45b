"""What a command is about: a pattern over subscriptions, so that hosts which come later are meant too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Stands for any characters, none included, wherever it is in a pattern.
WILDCARD = "*"
#: Characters of one pattern.
MAX_PATTERN_CHARS = 255
#: What names of hosts, consumers, quotas, queues and tags are made of, and the wildcard. No control characters, which
#: would go on to terminals.
_PATTERN = re.compile(rf"[A-Za-z0-9._@/*-]{{1,{MAX_PATTERN_CHARS}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Subject:
    """One subscription. tag: `qctl/HOST/CONSUMER/INDEX` or `.../directed`; queue: the one it takes tasks from."""

    host: str
    consumer: str
    queue: str
    tag: str


@dataclass(frozen=True, slots=True)
class Target:
    """Patterns that a subscription must match, all of them; None matches everything."""

    host: str | None = None
    consumer: str | None = None
    queue: str | None = None
    tag: str | None = None

    def matches(self, subject: Subject) -> bool:
        """Whether `subject` is meant."""
        return (
            _matches(self.host, subject.host)
            and _matches(self.consumer, subject.consumer)
            and _matches(self.queue, subject.queue)
            and _matches(self.tag, subject.tag)
        )

    def covers(self, other: Target) -> bool:
        """Whether whatever `other` matches is matched by this one. May say False where host and tag together decide."""
        return (
            _covers(self.host, other.host)
            and _covers(self.consumer, other.consumer)
            and _covers(self.queue, other.queue)
            and _covers(self.tag, other.tag)
        )

    def overlaps(self, other: Target) -> bool:
        """Whether something may be matched by both. May say True where host and tag together decide."""
        return (
            _overlap(self.host, other.host)
            and _overlap(self.consumer, other.consumer)
            and _overlap(self.queue, other.queue)
            and _overlap(self.tag, other.tag)
        )

    def might_match_host(self, host: str) -> bool:
        """Whether a subscription of `host` may be meant."""
        return _matches(self.host, host) and _overlap(self.tag, f"qctl/{host}/{WILDCARD}")

    @property
    def names_nothing(self) -> bool:
        """Whether no field was given. It would match everything, and is more likely a mistake."""
        return (self.host, self.consumer, self.queue, self.tag) == (None, None, None, None)

    def to_json(self) -> dict[str, str]:
        """The fields that are given."""
        fields = {"host": self.host, "consumer": self.consumer, "queue": self.queue, "tag": self.tag}
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_json(cls, fields: Any) -> Target:
        """What `to_json` made, or null in its place.

        Raises ValueError. An unknown field is refused and not ignored: without what it says more would be meant.
        """
        if fields is None:
            return cls()
        if not isinstance(fields, Mapping):
            raise ValueError("target must be an object")
        if unknown := sorted(str(name) for name in fields.keys() - cls.__slots__):
            raise ValueError(f"target has a field that this version does not know: {unknown[0][:40]!r}")
        return cls(**{name: None if value is None else pattern(value, name) for name, value in fields.items()})

    def __str__(self) -> str:
        place = f"{self.host or WILDCARD}/{self.consumer}" if self.consumer else self.host
        words = []
        if self.tag:
            words.append(f"tag {self.tag}")
        if self.queue:
            words.append(f"queue {self.queue}")
        if not words:
            return place or "nothing"
        if place:
            words.append(f"{'of' if self.consumer else 'on'} {place}")
        return " ".join(words)


class Scope(NamedTuple):
    """The quotas that a command is about: patterns."""

    host: str
    quota: str

    def matches(self, host: str, quota: str) -> bool:
        """Whether the quota of the host is meant."""
        return _matches(self.host, host) and _matches(self.quota, quota)

    def covers(self, other: Scope) -> bool:
        """Whether whatever `other` matches is matched by this one."""
        return _covers(self.host, other.host) and _covers(self.quota, other.quota)

    def overlaps(self, other: Scope) -> bool:
        """Whether something is matched by both."""
        return _overlap(self.host, other.host) and _overlap(self.quota, other.quota)


def pattern(value: object, name: str) -> str:
    """`value` if it is a name or a pattern. Raises ValueError, calling it `name`."""
    if not isinstance(value, str) or not _PATTERN.fullmatch(value):
        raise ValueError(f"{name} must be 1 to {MAX_PATTERN_CHARS} of the characters of names, or {WILDCARD}")
    return value


def is_literal(found: str | None) -> bool:
    """Whether it can match one name only."""
    return found is not None and WILDCARD not in found


def _matches(found: str | None, name: str) -> bool:
    """Whether a pattern matches a name: its pieces one after the other, each as early as possible.

    Takes time in proportion to both lengths, which a regular expression with many `.*` would not.
    """
    if found is None or found in (name, WILDCARD):
        return True
    if WILDCARD not in found:
        return False
    first, *middle, last = found.split(WILDCARD)
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for piece in middle:
        at = name.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _covers(wide: str | None, narrow: str | None) -> bool:
    """Whether one pattern matches all that the other matches.

    It does exactly if it matches the other taken as a name: the wildcard in there can only be matched by a wildcard,
    as a character that stands in no pattern would be.
    """
    if narrow is None:
        return wide is None or wide.strip(WILDCARD) == ""
    return _matches(wide, narrow)


def _overlap(one: str | None, other: str | None) -> bool:
    """Whether some name matches both patterns.

    With a wildcard in both that depends on their ends alone: what stands between fits one after the other.
    """
    if one is None or other is None:
        return True
    if WILDCARD not in one:
        return _matches(other, one)
    if WILDCARD not in other:
        return _matches(one, other)
    first, second = one.split(WILDCARD), other.split(WILDCARD)
    return _either_starts(first[0], second[0]) and _either_starts(first[-1][::-1], second[-1][::-1])


def _either_starts(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
