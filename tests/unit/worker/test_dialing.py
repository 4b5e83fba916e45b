"""How a worker process connects: one connection after the other, since each may be a try of a wrong password."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.session import ChannelLost
from qctl.control.stream import cut_off, unreadable
from qctl.worker import links
from qctl.worker.links import Links


def test_the_two_connections_of_a_process_are_never_tried_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trying, most = 0, 0

    async def dial(*_: object, **__: object) -> Any:
        nonlocal trying, most
        trying += 1
        most = max(most, trying)
        await asyncio.sleep(0)
        trying -= 1
        return SimpleNamespace(username="worker")

    monkeypatch.setattr(links, "dial", dial)

    async def scenario() -> None:
        plan = SimpleNamespace(state_directory=tmp_path, host=SimpleNamespace(name="web-1"))
        both = cast(Links, SimpleNamespace(_plan=plan, _index=0, _dialing=asyncio.Lock()))
        await asyncio.gather(*(Links.dial(both, purpose) for purpose in ("consume", "publish")))

    asyncio.run(scenario())

    assert most == 1


def test_a_connection_to_publish_on_that_is_missing_for_long_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SLOW_PUBLISHER_S", 0.01)

    async def scenario() -> None:
        said: asyncio.Queue[str] = asyncio.Queue()
        connection = SimpleNamespace(closed=asyncio.get_running_loop().create_future(), is_open=False)
        both = cast(Links, SimpleNamespace(_publishing=asyncio.Event()))
        waiting = asyncio.create_task(Links.introduce(both, cast(Any, connection), said.put_nowait))

        assert await asyncio.wait_for(said.get(), 5) == "waiting for the connection to publish on"
        connection.closed.set_result(ChannelLost(0, "closed by the test"))
        with pytest.raises(ChannelLost):
            await waiting

    asyncio.run(scenario())


def test_what_to_do_about_a_log_that_cannot_be_read_is_told_once_for_as_long_as_it_is_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = cast(Links, SimpleNamespace(_hint=""))
    for error in (cut_off(7), cut_off(7), unreadable("it is silent"), cut_off(9)):
        Links._say_hint(both, error)

    told = [one.getMessage() for one in caplog.records]
    assert len(told) == 3
    assert told[0].startswith("the control log begins at entry 7: what came before was cut off, so it cannot be known")
    assert "what holds. Clear the policy that limits qctl.control.log, then delete that stream" in told[0]
