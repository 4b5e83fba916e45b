"""Functions as handlers: what they see of their task, which one runs, and what they log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers import Broker, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import Wire, await_consuming, await_history, records, wire

HANDLERS = """
    import asyncio, json, logging

    def tell(name, task):
        note(name, json.dumps({
            "payload": task.payload if task.body else None, "body": task.body.decode(), "id": task.id,
            "type": task.type, "attempt": task.attempt, "host": task.host, "consumer": task.consumer,
            "headers": {key: value for key, value in task.headers.items() if not key.startswith("x-")},
        }))

    def plain(task):
        tell("plain", task)

    both = None

    async def coroutine(task):
        global both
        both = both or asyncio.Barrier(2)
        await both.wait()
        tell("coroutine", task)

    def greet(task):
        tell("greet", task)

    def part(task):
        tell("part", task)

    def talk(task):
        logging.getLogger("shop.sales").warning("sold %s\\nout", task.payload)
        note("talk", task.id)

    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    def fail(task):
        note("fail", task.id)
        match task.payload:
            case "exit": raise SystemExit(3)
            case "interrupt": raise KeyboardInterrupt
            case "odd": raise Odd
            case "surrogate": raise ValueError("\\ud800\\n\\x1b[31m")
            case "header": task.headers["qctl-attempt"] = 17

    def is_json(task):
        note("is_json", task.id)
"""


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker with a consumer for each kind of function."""
    names = ("plain", "coroutine", "talk", "fail", "is_json")
    consumers = {name: {"handler": {"python": f"handlers:{name}"}, "quota": {}} for name in names}
    consumers["fail"]["retry"] = {"attempts": 1}
    consumers["typed"] = {"handler": {"python": {"greet": "handlers:greet", "part": "handlers:part"}}, "quota": {}}
    hosts = {"web-1": None, "web-2": {"consumers": {"talk": None}}}
    with (
        fresh_vhost(local_broker) as vhost,
        Fleet(vhost, tmp_path_factory.mktemp("python"), HANDLERS, consumers=consumers, hosts=hosts) as fleet,
        wire(vhost) as connected,
    ):
        worker = fleet.start("web-1")
        await_consuming(worker, *consumers)
        yield Site(fleet, worker, connected)


def test_given_a_task_then_its_function_sees_payload_body_headers_id_type_and_attempt(site: Site) -> None:
    body = '{"user": "Zoë", "n": [1, 2.5, null]}'

    site.wire.send(
        "plain",
        body,
        content_type="application/json; charset=utf-8",
        message_id="task-1",
        type="refresh",
        headers={"tenant": "acme", "qctl-attempt": 3},
    )

    await_history(site.fleet, "plain", 1)
    assert records(site.fleet, "plain")[0] == {
        "payload": {"user": "Zoë", "n": [1, 2.5, None]},
        "body": body,
        "id": "task-1",
        "type": "refresh",
        "attempt": 3,
        "host": "web-1",
        "consumer": "plain",
        "headers": {"tenant": "acme", "qctl-attempt": 3},
    }


def test_given_a_bare_message_then_it_is_a_task_too(site: Site) -> None:
    before = len(site.fleet.history("plain"))

    site.wire.send("plain", b"")

    found = json.loads(await_history(site.fleet, "plain", before + 1)[before])
    assert (found["body"], found["id"], found["type"], found["attempt"], found["headers"]) == ("", "", "", 1, {})


def test_given_a_task_from_the_command_line_then_it_carries_an_id(site: Site) -> None:
    before = len(site.fleet.history("plain"))

    site.fleet.enqueue("plain", [{"n": 1}, {"n": 2}])

    await_history(site.fleet, "plain", before + 2)
    found = records(site.fleet, "plain")[before:]
    assert sorted(one["payload"]["n"] for one in found) == [1, 2]
    assert len({one["id"] for one in found} - {""}) == 2


def test_given_a_coroutine_then_its_tasks_run_at_the_same_time(site: Site) -> None:
    # Each of the two waits for the other
    site.wire.task("coroutine", "a", message_id="c-1")
    site.wire.task("coroutine", "b", message_id="c-2")

    await_history(site.fleet, "coroutine", 2)
    assert sorted(one["id"] for one in records(site.fleet, "coroutine")) == ["c-1", "c-2"]


def test_given_functions_by_type_then_the_type_chooses(site: Site) -> None:
    site.wire.task("typed", "hello", type="greet")
    site.wire.task("typed", "goodbye", type="part")

    assert json.loads(await_history(site.fleet, "greet", 1)[0])["payload"] == "hello"
    assert json.loads(await_history(site.fleet, "part", 1)[0])["payload"] == "goodbye"


@pytest.mark.parametrize("kind", ["shout", None, "greet "])
def test_given_an_unknown_type_then_the_task_is_dead_and_the_known_ones_are_named(site: Site, kind: str | None) -> None:
    site.wire.task("typed", "x", type=kind, message_id="t-1")

    dead = site.wire.take("typed.dead")
    assert dead.headers["qctl-reason"] == "malformed"
    assert "unknown task type" in dead.headers["qctl-error"]
    assert "greet, part" in dead.headers["qctl-error"]
    assert (dead.body, dead.properties.message_id) == (b'"x"', "t-1")


def test_given_a_handler_that_logs_then_the_line_is_in_the_workers_log_with_the_tasks_id(site: Site) -> None:
    site.wire.task("talk", 17, message_id="talk-17\nforged")

    await_history(site.fleet, "talk", 1)
    lines = [line for line in site.worker.log().splitlines() if "sold" in line]
    assert len(lines) == 1
    assert lines[0].endswith(" WARNING web-1/0 [web-1/talk talk-17\\x0aforged] sold 17\\x0aout")


def test_given_the_json_format_then_every_line_is_one_object(site: Site, tmp_path: Path) -> None:
    # Given another host that logs as JSON and shares the queue
    worker = site.fleet.start("web-2", "--log-format", "json", ready=False)
    wait_until("consuming", lambda: "web-2/talk consuming" in worker.log())
    before = len(site.fleet.history("talk"))

    # When it has run tasks and ended
    for number in range(8):
        site.wire.task("talk", number, message_id=f"json-{number}")
    await_history(site.fleet, "talk", before + 8)
    wait_until("a line of the handler", lambda: "shop.sales" in worker.log())
    assert worker.stop() == 0

    # Then the handler's lines are objects like all others
    entries = [json.loads(line) for line in worker.log().splitlines()]
    said = [entry for entry in entries if entry["logger"] == "shop.sales"]
    assert {entry["origin"] for entry in said} == {"web-2/0"}
    assert all(entry["task"].startswith("web-2/talk json-") for entry in said)
    assert all(entry["message"].startswith("sold ") for entry in said)
    assert {"web-2", "web-2/0"} == {entry["origin"] for entry in entries}


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("odd", "Odd"),
        ("surrogate", "ValueError:"),
        ("header", "TypeError: 'mappingproxy' object does not support item assignment"),
    ],
)
def test_given_a_handler_that_fails_in_any_way_then_only_its_task_ends(site: Site, payload: str, error: str) -> None:
    pids = site.worker.pids()

    site.wire.task("fail", payload, message_id=f"fail-{payload}")

    dead = site.wire.take("fail.dead")
    assert dead.headers["qctl-reason"] == "attempts"
    assert dead.headers["qctl-error"].startswith(error)
    assert dead.properties.message_id == f"fail-{payload}"
    assert site.worker.pids() == pids
    assert site.fleet.history("fail").count(f"fail-{payload}") == 1


def test_given_a_body_that_the_handler_never_looks_at_then_it_need_not_be_json_unless_it_says_so(site: Site) -> None:
    site.wire.send("is_json", b"\xff", content_type="application/octet-stream", message_id="bytes")
    site.wire.send("is_json", b"\xff", content_type="application/json", message_id="json")

    dead = site.wire.take("is_json.dead")
    assert dead.properties.message_id == "json"
    assert dead.headers["qctl-error"] == "the body is not UTF-8 at byte 1"
    assert await_history(site.fleet, "is_json", 1) == ["bytes"]
