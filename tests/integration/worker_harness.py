"""What the worker's tests add to a fleet: messages written and read as any other program would, and the log's words."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from qctl.quota import Ledger
from tests.brokers import Vhost
from tests.fleet import Fleet, Worker, wait_until


@dataclass(frozen=True, slots=True)
class Letter:
    """One message as it lies in a queue."""

    body: bytes
    properties: pika.BasicProperties
    redelivered: bool

    @property
    def headers(self) -> Mapping[str, Any]:
        return self.properties.headers or {}


class Wire:
    """A connection of the test's own, with confirms."""

    def __init__(self, channel: BlockingChannel) -> None:
        self.channel = channel

    def send(
        self, queue: str, body: bytes | str = b"", *, properties: pika.BasicProperties | None = None, **fields: Any
    ) -> None:
        """Put a message into a queue, as a program that knows nothing of qctl does; raises when no queue takes it."""
        found = properties or pika.BasicProperties(delivery_mode=2, **fields)
        self.channel.basic_publish("", queue, body if isinstance(body, bytes) else body.encode(), found, mandatory=True)

    def task(self, queue: str, payload: object, **fields: Any) -> None:
        """Put a JSON task into a queue."""
        self.send(queue, json.dumps(payload), content_type="application/json", **fields)

    def take(self, queue: str, timeout_s: float = 20.0) -> Letter:
        """The next message of a queue, waiting for it."""
        return wait_until(f"a message in {queue}", lambda: self.look(queue), timeout_s)  # type: ignore[no-any-return]

    def look(self, queue: str) -> Letter | None:
        """The next message of a queue, None when it is empty."""
        method, properties, body = self.channel.basic_get(queue, auto_ack=True)
        return None if method is None else Letter(body, properties, method.redelivered)

    def depth(self, queue: str) -> int:
        """Messages ready in a queue."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)


@contextmanager
def wire(vhost: Vhost) -> Iterator[Wire]:
    """Connect to a virtual host inside the block."""
    credentials = pika.PlainCredentials(vhost.username, vhost.password)
    where = pika.URLParameters(vhost.amqp_url)
    where.credentials = credentials
    connection = pika.BlockingConnection(where)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield Wire(channel)
    finally:
        with suppress(pika.exceptions.AMQPError):  # the broker may have gone away in the test
            connection.close()


class RawHeaders(pika.BasicProperties):  # type: ignore[misc]
    """Properties whose headers are the bytes of a table: what pika itself would not send."""

    def __init__(self, *entries: tuple[bytes, bytes]) -> None:
        """entries: name and encoded value."""
        super().__init__()
        self._table = b"".join(bytes([len(name)]) + name + value for name, value in entries)

    def encode(self) -> list[bytes]:
        flags = struct.pack(">H", self.FLAG_HEADERS | self.FLAG_DELIVERY_MODE)
        return [flags, struct.pack(">I", len(self._table)), self._table, b"\x02"]


def double(value: float) -> bytes:
    """An AMQP field value: a floating-point number."""
    return b"d" + struct.pack(">d", value)


def nested(depth: int) -> bytes:
    """An AMQP field value: a list of a list of a list..."""
    value = b"V"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


def spent(fleet: Fleet, host: str) -> dict[str, int]:
    """Units of each quota that a host's ledger has as spent or leased."""
    ledger = Ledger.open(fleet.state / host)
    try:
        now_ns = ledger.clock.now_ns()
        return {name: sum(reading.used(now_ns)) for name, reading in ledger.readings().items()}
    finally:
        ledger.close()


def records(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """What handlers noted under `name` as JSON, a record a line."""
    return [json.loads(line) for line in fleet.history(name)]


def await_history(fleet: Fleet, name: str, count: int, timeout_s: float = 30.0) -> list[str]:
    """Wait until handlers have noted `count` lines under `name`."""
    wait_until(f"{count} lines in {name}", lambda: len(fleet.history(name)) >= count, timeout_s)
    return fleet.history(name)


def await_consuming(
    worker: Worker, *consumers: str, processes: int = 1, after: int = 0, timeout_s: float = 30.0
) -> None:
    """Wait until each of these consumers has said once for each process that it consumes.

    after: characters of the log to leave out, since a host's later workers write on in the same one.
    """
    for consumer in consumers:
        line = f" {worker.host}/{consumer} consuming"
        wait_until(f"{consumer} consuming", lambda line=line: worker.log()[after:].count(line) >= processes, timeout_s)


def start_consuming(
    fleet: Fleet, host: str, *consumers: str, arguments: Iterable[str] = (), processes: int = 1
) -> Worker:
    """Start a worker of a host that may have had others before, and wait until all of it consumes."""
    log = fleet.directory / f"{host}.log"
    before = len(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else 0
    worker = fleet.start(host, "--processes", str(processes), *arguments, ready=False)
    await_consuming(worker, *consumers, processes=processes, after=before)
    return worker


def assert_no_traceback(text: str) -> None:
    """Whatever happened was said in words."""
    assert "Traceback" not in text, text
    assert 'File "' not in text, text


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """A process's children."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def group_members(pgid: int) -> list[int]:
    """The living members of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == pgid and alive(int(entry.name)):
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def without_times(log: str) -> str:
    """A text log without the instants at the beginning of its lines."""
    return re.sub(r"(?m)^\S+Z ", "", log)


def close_connections(vhost: Vhost, name: str) -> int:
    """Have the broker close the connections of a virtual host whose name begins like this; how many there were.

    A connection that is too young for the broker's statistics has no name yet and is not found.
    """
    found = [
        one
        for one in vhost.broker.api("GET", f"/vhosts/{vhost.name}/connections") or []
        if one.get("user_provided_name", "").startswith(name)
    ]
    for one in found:
        vhost.broker.api("DELETE", f"/connections/{quote(one['name'], safe='')}")
    return len(found)
