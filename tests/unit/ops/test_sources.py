"""Listening to a fleet, as far as it needs no broker: what is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.ops import sources
from tests.wire import scenario


@scenario
async def test_a_source_whose_turn_never_comes_is_not_begun() -> None:
    # given a look that is interrupted in the moment in which it would ask the next source
    inventory = cast(Any, SimpleNamespace(hosts={}))
    ear = sources._Ear(inventory, cast(Any, None), cast(Any, None), cast(Any, None))
    begun: list[str] = []

    async def log() -> None:
        pytest.fail("it is not waited for")

    def begin() -> Any:
        begun.append("the log")
        return log()

    asking = asyncio.ensure_future(ear._in_time(begin, 1.0, None, "the log"))
    asking.cancel()

    # then nothing was begun that nobody waits for: that would be a warning, which is an error here
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (begun, ear.notes) == ([], [])
