"""What a walk waits for when it gives back what it holds."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from qctl.broker import walk
from qctl.broker.walk import MAX_RETURNS, Walk


class Held:
    """A stretch that holds so many, and a queue in which one too few is to be seen of the first ones given back."""

    def __init__(self, count: int) -> None:
        self.held = set(range(1, count + 1))
        self.subscription = Mock(give_back=self._give_back)
        self.ready = -1
        self.looks = 0

    def _give_back(self, tags: list[int]) -> None:
        self.ready += len(tags)

    async def look(self) -> int:
        self.looks += 1
        return max(0, self.ready)


def test_a_message_that_others_take_as_it_comes_back_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a walk that holds several times what is given back at once, and somebody who takes the first
    monkeypatch.setattr(walk, "BACK_WITHIN_S", 0.0)
    stretch, batches = Held(4 * MAX_RETURNS), 4
    walking = Walk(Mock(), "work.dead", expected=1)
    monkeypatch.setattr(walking, "_ready", stretch.look)
    missed = Mock()
    until_back = walking._until_back

    async def count_misses(count: int) -> int:
        back = await until_back(count)
        if back < count:
            missed()
        return back

    monkeypatch.setattr(walking, "_until_back", count_misses)

    # When all is given back
    asyncio.run(walking._give_back(stretch))  # type: ignore[arg-type]

    # Then one batch is missed, and the next ones are reckoned from what is there
    assert missed.call_count == 1
    assert (stretch.looks, stretch.ready) == (1 + batches, 4 * MAX_RETURNS - 1)
