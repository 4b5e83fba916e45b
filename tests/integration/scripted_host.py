"""A host that answers control events as a test says: a supervisor's queue and worker processes without a worker."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pika

from qctl.broker import topology
from qctl.broker.message import Outgoing, Properties, text, utc
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Channel, Connection
from qctl.control.event import Command, Record, read
from qctl.control.host_answer import HostAnswer, ProcessLook, ProcessState, host_queue
from qctl.control.target import Subject
from tests.brokers import Vhost
from tests.wire import connected

#: What a process answers to a command: a row's fields to change; None: it says nothing.
Script = Callable[[Command], dict[str, Any] | None]


def obeys(command: Command) -> dict[str, Any]:
    """As a worker does."""
    return {"state": "paused" if command.verb == "pause" else "consuming"}


def keeps_silent(_command: Command) -> None:
    """As a process that is stopped does."""


@dataclass
class Process:
    """A worker process of the host; `refused` and `signed` are of its answers, user: what its supervisor says of it."""

    index: int
    pid: int
    script: Script = obeys
    state: ProcessState = ProcessState.CONNECTED
    refused: str | None = None
    signed: bool = True
    user: str = ""


@dataclass
class ScriptedHost:
    """One host; change its fields at any time. heard: the commands that came; questions: to its supervisor."""

    name: str
    processes: list[Process]
    subjects: tuple[tuple[str, str], ...] = (("timeline", "timeline"),)  # consumer, queue
    answers_questions: bool = True
    heard: list[Command] = field(default_factory=list)
    questions: int = 0
    on_question: Callable[[], None] = lambda: None
    publisher: Publisher | None = None
    username: str = ""

    def on_command(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        command = read(Record(0, text(method.exchange), text(properties.message_id), text(properties.user_id), body))
        assert isinstance(command, Command)
        self.heard.append(command)
        for process in self.processes:
            changed = process.script(command)
            if changed is not None:
                rows = [{**row, **changed} for row in self._rows(command, process)]
                self._send(topology.REPLIES, text(properties.reply_to), self._answer(command, process, rows), process)

    def _rows(self, command: Command, process: Process) -> list[dict[str, Any]]:
        found = []
        for consumer, queue in self.subjects:
            tag = f"qctl/{self.name}/{consumer}/{process.index}"
            if command.target.matches(Subject(self.name, consumer, queue, tag)):
                row = {"consumer": consumer, "queue": queue, "tag": tag, "state": "", "why": "", "running": 0}
                found.append({**row, "given_back": 3, "cancelled_at": utc(time.time()), "remains": []})
        return found

    def _answer(self, command: Command, process: Process, rows: list[dict[str, Any]]) -> bytes:
        fields = {"v": 1, "id": command.id, "host": self.name, "index": process.index, "pid": process.pid}
        return json.dumps({**fields, "at": utc(time.time()), "rows": rows, "refused": process.refused}).encode()

    def on_ask(self, _channel: object, _method: object, properties: Properties, _body: bytes) -> None:
        self.questions += 1
        self.on_question()
        if self.answers_questions:
            looks = tuple(ProcessLook(one.index, one.pid, one.state, "now", one.user) for one in self.processes)
            answer = HostAnswer(self.name, "machine", 1, "now", "run", 10, looks)
            self._send("", text(properties.reply_to), answer.body(), None, question=properties.correlation_id)

    def _send(
        self, exchange: str, key: str, body: bytes, process: Process | None, *, question: str | None = None
    ) -> None:
        assert self.publisher is not None
        user = self.username if process is None or process.signed else None
        properties = pika.BasicProperties(user_id=user, correlation_id=question)
        self.publisher.send(Outgoing(exchange, key, body, properties), _forget)


def _forget(_fate: Published) -> None:
    """Who asked may be gone."""


@asynccontextmanager
async def scripted(
    vhost: Vhost, *hosts: ScriptedHost, supervised: bool = True, **user: str
) -> AsyncIterator[Connection]:
    """The hosts live inside the block, all on one connection; supervised: they have the queues of supervisors."""
    async with connected(vhost, **user) as connection:
        await topology.ensure(connection, (*topology.control_log(), *topology.replies()))
        publisher = await Publisher.open(connection)
        for host in hosts:
            host.publisher, host.username = publisher, connection.username
            channel = await connection.channel()
            await _subscribe(channel, f"test.{host.name}.{connection.username}", host.on_command, bind=topology.CONTROL)
            if supervised:
                await _subscribe(channel, host_queue(host.name), host.on_ask)
        yield connection


async def _subscribe(channel: Channel, queue: str, on_message: Callable[..., None], *, bind: str = "") -> None:
    await channel.call("queue_declare", queue=queue, exclusive=True)
    if bind:
        await channel.call("queue_bind", queue=queue, exchange=bind, routing_key="command.#")
    await channel.call("basic_consume", queue=queue, on_message_callback=on_message, auto_ack=True)
