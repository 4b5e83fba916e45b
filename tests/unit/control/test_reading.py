"""When a reading of the control log is given up: never while entries come, soon when none do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.publisher import Published, Publisher
from qctl.control import log as control_log
from qctl.control.log import Known
from qctl.errors import ControlLogError


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_log, "LOOK_S", 0.01)
    monkeypatch.setattr(control_log, "STALL_S", 0.05)
    monkeypatch.setattr(control_log, "SAY_S", 0.1)


def reading() -> control_log._Reading:
    raw = SimpleNamespace(add_on_cancel_callback=lambda _: None)
    channel = SimpleNamespace(raw=raw, closed=asyncio.get_running_loop().create_future())
    return control_log._Reading(cast("Any", channel), None, None)


async def end(of: control_log._Reading, said: list[str], fate: Published = Published.CONFIRMED) -> Known:
    taken: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    taken.set_result(fate)
    connection = SimpleNamespace(blocked=False)
    publisher = SimpleNamespace(why_lost=None, channel=SimpleNamespace(connection=connection))
    return await control_log._end(of, taken, cast("Publisher", publisher), said.append)


def test_given_a_log_that_takes_long_then_it_is_read_to_its_end_and_that_is_said() -> None:
    async def main() -> list[str]:
        long, said = reading(), list[str]()
        ending = asyncio.ensure_future(end(long, said))
        for _ in range(30):
            long.count += 100
            await asyncio.sleep(0.02)
        long.end.set_result(cast("Known", None))
        await ending
        return said

    said = asyncio.run(main())

    assert len(said) > 1
    assert said[0].startswith("reading the control log, ")


def test_given_silence_then_it_is_given_up() -> None:
    async def main() -> None:
        await asyncio.wait_for(end(reading(), []), 5)

    with pytest.raises(ControlLogError, match="nothing came for"):
        asyncio.run(main())


def test_given_a_hello_that_reached_no_queue_then_it_says_which_binding_is_missing() -> None:
    async def main() -> None:
        await asyncio.wait_for(end(reading(), [], Published.UNROUTABLE), 5)

    with pytest.raises(ControlLogError, match=r"qctl\.hello is not bound to qctl\.control\.log"):
        asyncio.run(main())
