"""What a consumer, or one of its tags, is at the moment."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The states of a consumer; where several hold, the first one shows."""

    DOWN = "down"
    DRAINING = "draining"
    PAUSED = "paused"
    HELD = "held"
    CONSUMING = "consuming"
