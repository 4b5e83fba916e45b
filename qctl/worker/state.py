"""What a consumer, or one of its tags, is at the moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The states of a consumer; where several hold, the first one shows."""

    DOWN = "down"
    DRAINING = "draining"
    PAUSED = "paused"
    HELD = "held"
    CONSUMING = "consuming"


@dataclass(frozen=True, slots=True)
class Tag:
    """One consumer tag, now. cancelled_at_s: wall clock of its cancel-ok. running: tasks of its queue that run."""

    queue: str
    tag: str
    state: State
    cancelled_at_s: float | None
    running: int
    given_back: int
