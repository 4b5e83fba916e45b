"""Asking supervisors: what no answer means depends on whether the question arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.control.host_answer import HostAnswer
from qctl.ops import supervisors
from qctl.ops.found import Silence
from qctl.ops.supervisors import Asker
from tests.wire import scenario


class Broker:
    """Of each host's queue a word: who answers, keeps silent, does not exist, or of whom nothing is confirmed."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = hosts
        self.room = True
        connection = SimpleNamespace(blocked=False)
        self.channel = SimpleNamespace(closed=asyncio.get_running_loop().create_future(), connection=connection)
        self.asker = Asker(cast(Publisher, self))
        self.asked: list[str] = []

    def send(self, outgoing: Outgoing, on_fate: Callable[[Published], None]) -> None:
        host = outgoing.routing_key.removeprefix("qctl.host.")
        self.asked.append(host)
        asyncio.get_running_loop().call_soon(self._happen, host, on_fate)

    def _happen(self, host: str, on_fate: Callable[[Published], None]) -> None:
        match self.hosts[host]:
            case "answers":
                on_fate(Published.CONFIRMED)
                answer = HostAnswer(host, "box", 1, "2026-11-23T00:00:00Z", "r", 10, ())
                self.asker._deliver(None, None, None, answer.body())
            case "silent":
                on_fate(Published.CONFIRMED)
            case "absent":
                on_fate(Published.UNROUTABLE)
            case "alarm":
                self.channel.connection.blocked = True


async def ask(broker: Broker) -> dict[str, Any]:
    found: dict[str, Any] = {}
    await broker.asker.ask(broker.hosts, found.__setitem__)
    return {host: "answers" if isinstance(it, HostAnswer) else it for host, it in found.items()}


@scenario
async def test_who_was_not_reached_is_not_called_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "ANSWER_S", 0.1)
    broker = Broker(a="answers", b="silent", c="absent", d="unconfirmed")

    assert await ask(broker) == {"a": "answers", "b": Silence.SILENT, "c": Silence.ABSENT}

    # and what was so in one round says nothing of the next
    broker.hosts["b"] = "unconfirmed"
    assert await ask(broker) == {"a": "answers", "c": Silence.ABSENT}


@scenario
async def test_an_alarm_ends_the_asking_and_calls_nobody_silent() -> None:
    broker = Broker(a="answers", b="silent", c="alarm")

    assert await asyncio.wait_for(ask(broker), 0.5) == {"a": "answers"}


@scenario
async def test_no_more_questions_are_on_their_way_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "ANSWER_S", 0.1)
    broker = Broker(a="answers", b="answers")
    broker.room = False

    assert await ask(broker) == {}
    assert broker.asked == []
