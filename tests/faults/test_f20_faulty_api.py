"""F20: an API that misbehaves in every way there is. The judge is its own log: a line a request that it has read."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from email.utils import formatdate

from tests.bare_http import BareServer, head_of
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import spent, wire

TIMEOUT_S = 2.0
ATTEMPTS = 2
#: Tasks of each consumer; two consumers a fault.
TASKS = 2
RETRY_AFTER_S = 3
#: Whole seconds may be cut off, and hosts that wait for one instant do not all come back at it: two seconds at most. A
#: date by a clock of which nothing else is known is believed to two more.
LATER_S = 4.5
FAULTS = ("500", "reset", "drip", "hang", "garbage")

HANDLERS = """
    def faulty(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name)
        task.http.get(f"{API}/{name}").raise_for_status()
        mark("done", name)
"""


class FaultyApi(BareServer):
    """What it does is in the first word of the path. A context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, str]] = []
        self._limited: set[str] = set()

    def serve(self, client: socket.socket) -> None:
        path = head_of(client).split()[1].decode().lstrip("/")
        self.calls.append((time.monotonic(), path))
        self._misbehave(client, path.partition("-")[0])

    def _misbehave(self, client: socket.socket, what: str) -> None:
        match what:
            case "500":
                client.sendall(b"HTTP/1.1 500 Oops\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            case "reset":
                client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            case "drip":
                client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not self.ending.wait(0.2):
                    client.sendall(b".")
            case "hang":
                self.ending.wait(60)
            case "garbage":
                client.sendall(bytes(range(256)) * 4)
            case "seconds" | "date" if what not in self._limited:
                self._limited.add(what)
                after = (
                    str(RETRY_AFTER_S) if what == "seconds" else formatdate(time.time() + RETRY_AFTER_S, usegmt=True)
                )
                head = (
                    f"HTTP/1.1 429 Slow down\r\nretry-after: {after}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
                client.sendall(head.encode())
            case _:
                client.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")

    def called(self, prefix: str) -> list[float]:
        """When paths that begin like this were called."""
        return [at_s for at_s, path in tuple(self.calls) if path.startswith(prefix)]


def _stage(scene: Scene, api: FaultyApi, consumers: dict[str, str]) -> None:
    """consumers: name -> its quota; a name ends in the kind of its handler."""
    scene.task_timeout_s = TIMEOUT_S
    kinds: dict[str, Callable[[], dict[str, object]]] = {
        "http": lambda: {"http": {"base_url": api.url}},
        "python": lambda: {"python": "handlers:faulty"},
    }
    rules = {"timeout": f"{TIMEOUT_S:g}s", "concurrency": 2, "retry": {"attempts": ATTEMPTS, "delays": ["1s"]}}
    scene.stage(
        consumers={
            name: {"handler": kinds[name.rpartition("-")[2]](), "quota": {quota: 1}, **rules}
            for name, quota in consumers.items()
        },
        quotas=dict.fromkeys(consumers.values(), "1000/h"),
        handlers=f"    API = {api.url!r}\n" + HANDLERS,
    )
    scene.start(consumers=consumers)


def _send(scene: Scene, consumer: str, numbers: Iterable[int], *, noted: bool = True) -> list[str]:
    """Tasks as any program would write them; what they call begins with their consumer's name."""
    names = [f"{consumer}-{number}" for number in numbers]
    with wire(scene.vhost) as own:
        for name in names:
            payload = {"path": name} if consumer.endswith("http") else {"task": name}
            own.task(consumer, payload)
            if noted:
                told = payload.get("task") or f"stray:{json.dumps(payload).encode()[:40]!r}"
                scene.history.note("attempted", [told])
                scene.history.note("confirmed", [told])
    return names


@row("F20", "500, a reset in the body, a drip, no answer at all, garbage; http and python handlers", timeout_s=120)
def test_what_no_answer_says_is_spent_and_called_as_often_as_there_are_attempts(scene: Scene) -> None:
    with FaultyApi() as api:
        # Given tasks for each fault, by either kind of handler
        consumers = {f"{fault}-{kind}": "api" for fault in FAULTS for kind in ("http", "python")}
        _stage(scene, api, consumers)
        names = [name for consumer in consumers for name in _send(scene, consumer, range(TASKS))]
        scene.may_duplicate = len(names) // 2 * (ATTEMPTS - 1)

        # When all have used up their attempts
        with wire(scene.vhost) as own:
            wait_until("all are dead", lambda: sum(own.depth(f"{one}.dead") for one in consumers) == len(names), 60)

        # Then none was called more often than that, and every call counts
        calls = Counter(path for _, path in api.calls)
        scene.record.figure("most calls of a task", max(calls.values()), at_most=ATTEMPTS)
        scene.record.figure("calls", sum(calls.values()), equals=len(names) * ATTEMPTS)
        assert scene.fleet.workers[0].stop() == 0
        units = spent(scene.fleet, "web-1")["api"]
        scene.record.figure("calls that the ledger has not", sum(calls.values()) - units, at_most=0)
        scene.record.figure("units spent for no call", units - sum(calls.values()), at_most=0)


@row("F20", "429 with Retry-After in seconds and as a date", selected=True, timeout_s=90)
def test_nothing_is_called_before_retry_after_and_soon_after_it(scene: Scene) -> None:
    with FaultyApi() as api:
        # Given an API that refuses the first call of either consumer
        consumers = {f"{form}-{kind}": f"{form}-{kind}" for form, kind in (("seconds", "http"), ("date", "python"))}
        _stage(scene, api, consumers)

        # When tasks come one after the other
        for consumer in consumers:
            # An `http` handler leaves no history behind; the API's log has it.
            noted = consumer.endswith("python")
            _send(scene, consumer, [0], noted=noted)
            wait_until("the refusal", lambda consumer=consumer: api.called(consumer))
            _send(scene, consumer, [1, 2, 3], noted=noted)
        wait_until("calls after the pause", lambda: all(len(api.called(consumer)) >= 2 for consumer in consumers))

        # Then the first call after the refusal comes when it may, and not much later
        for consumer in consumers:
            first_s, second_s, *_ = api.called(consumer)
            scene.record.figure(
                f"next call after the 429, {consumer}, s",
                second_s - first_s,
                at_least=RETRY_AFTER_S - 1,
                at_most=RETRY_AFTER_S + LATER_S,
            )
        # and the refused ones are done too, each by a second run
        scene.may_duplicate = 1
        wait_until("all are called", lambda: all(len(api.called(one)) == 5 for one in consumers), 40)
