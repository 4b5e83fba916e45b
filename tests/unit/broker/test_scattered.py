"""What a subscription keeps in mind of settled deliveries is bounded: behind one that stays, a new one takes over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker import subscription
from qctl.broker.subscription import Subscription


def test_many_settlements_behind_one_delivery_that_stays_make_it_scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MAX_SCATTERED", 3)

    async def scenario() -> None:
        raw = SimpleNamespace(add_on_cancel_callback=lambda _: None, basic_ack=lambda *_, **__: None)
        closed = asyncio.get_running_loop().create_future()
        channel = SimpleNamespace(raw=raw, is_open=True, closed=closed, note_settled=lambda: None)
        one = Subscription(cast(Any, channel), "work", "tag", lambda *_: None)

        one.ack([2, 3, 4])
        assert not one.scattered
        one.ack([5])
        assert one.scattered
        one.ack([1])
        assert not one.scattered

    asyncio.run(scenario())
