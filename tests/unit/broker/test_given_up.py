"""A connection that opens after its attempt was given up is ended: nobody would take it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from qctl.broker import connect as connecting
from qctl.broker.connect import Login, connect
from qctl.broker.core import CoreConnection
from qctl.inventory.model import Endpoint

LOGIN = Login((Endpoint("127.0.0.1", 1, False, "/"),), "u", "p")


class Opened(CoreConnection):  # type: ignore[misc]  (pika has no types)
    """A connection that is open."""

    is_open = True

    def __init__(self) -> None:
        self.ended = False

    def close(self, *_: Any) -> None:
        self.ended = True


@pytest.mark.parametrize("late", [True, False], ids=["after it was given up", "at the same instant"])
def test_given_an_attempt_that_was_given_up_then_its_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    done: list[Callable[[Any], None]] = []
    opened = Opened()

    def create(_parameters: object, *, on_done: Callable[[Any], None], **_: Any) -> Any:
        done.append(on_done)
        return SimpleNamespace(abort=lambda: None)

    monkeypatch.setattr(connecting.CoreConnection, "create_connection", create)

    async def main() -> None:
        attempt = asyncio.ensure_future(connect(LOGIN, name="test"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not late:
            done[0](opened)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        if late:
            done[0](opened)

    asyncio.run(main())

    assert opened.ended
