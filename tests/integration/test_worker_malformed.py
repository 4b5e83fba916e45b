"""Messages that nobody can run: dead after one delivery with the reason, and the worker works on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pika
import pytest

from tests.brokers import Broker, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import (
    RawHeaders,
    Wire,
    assert_no_traceback,
    await_consuming,
    await_history,
    double,
    nested,
    wire,
)

HANDLERS = """
    from qctl import Retry

    def calls(task):
        if task.body == b"again":
            ours = ("qctl-", "x-")
            note("headers", sorted((k, v) for k, v in task.headers.items() if not k.startswith(ours)))
            if task.attempt == 1:
                raise Retry("1s")
        note("calls", task.id)
"""
LIMIT = 50
MAX_BODY = 64 << 10
JSON = {"content_type": "application/json"}


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire
    pids: tuple[int, ...]


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker that runs anything it can understand."""
    inventory: dict[str, Any] = {
        "worker": {"max_body": f"{MAX_BODY >> 10}KiB"},
        "quotas": {"api": f"{LIMIT}/h", "mail": "10/h"},
        "consumers": {"calls": {"handler": {"python": "handlers:calls"}, "quota": {"api": 0}}},
        "hosts": {"web-1": None},
    }
    with (
        fresh_vhost(local_broker) as vhost,
        Fleet(vhost, tmp_path_factory.mktemp("malformed"), HANDLERS, **inventory) as fleet,
        wire(vhost) as connected,
    ):
        worker = fleet.start("web-1")
        await_consuming(worker, "calls")
        yield Site(fleet, worker, connected, tuple(worker.pids()))


def body(content: bytes) -> dict[str, Any]:
    return {"body": content, **JSON}


def header(name: str, value: object) -> dict[str, Any]:
    return {"headers": {name: value}}


MALFORMED = {
    "not UTF-8": (body(b'"\xff"'), "malformed", "the body is not UTF-8 at byte 2"),
    "not JSON": (body(b"{user: 1}"), "malformed", "the body is not JSON"),
    "empty JSON": (body(b""), "malformed", "the body is not JSON"),
    "two values": (body(b"1 2"), "malformed", "the body is not JSON"),
    "NaN": (body(b'{"n": NaN}'), "malformed", "NaN is not JSON"),
    "infinity": (body(b"[-Infinity]"), "malformed", "-Infinity is not JSON"),
    "1e999": (body(b"[1e999]"), "malformed", "the body is not JSON"),
    "nested": (body(b"[" * 50_000), "malformed", "nested too deeply"),
    "long number": (body(b"9" * 20_000), "malformed", "the body is not JSON"),
    "too large": ({"body": b"x" * (MAX_BODY + 1)}, "too large", f"the body has {MAX_BODY + 1} bytes"),
    "16 MiB": ({"body": b"x" * (16 << 20), **JSON}, "too large", "max_body is 65536"),
    "attempt is a text": (header("qctl-attempt", "2"), "malformed", "header qctl-attempt must be a whole number"),
    "attempt is zero": (header("qctl-attempt", 0), "malformed", "header qctl-attempt must be a whole number"),
    "attempt is true": (header("qctl-attempt", True), "malformed", "header qctl-attempt must be a whole number"),
    "attempt is huge": (header("qctl-attempt", 2**62), "malformed", "header qctl-attempt must be a whole number"),
    "deferrals negative": (header("qctl-deferrals", -1), "malformed", "header qctl-deferrals must be a whole number"),
    "deferrals a list": (header("qctl-deferrals", [1]), "malformed", "header qctl-deferrals must be a whole number"),
    "crashes nothing": (header("qctl-crashes", None), "malformed", "header qctl-crashes must be a whole number"),
    "cost is a number": (header("qctl-cost", 3), "cost", "header qctl-cost must map quotas to units"),
    "cost is a text": (header("qctl-cost", '{"api": 1}'), "cost", "header qctl-cost must map quotas to units"),
    "cost negative": (header("qctl-cost", {"api": -1}), "cost", "units of api must be a whole number"),
    "cost a string": (header("qctl-cost", {"api": "1"}), "cost", "units of api must be a whole number"),
    "cost true": (header("qctl-cost", {"api": True}), "cost", "units of api must be a whole number"),
    "cost nothing": (header("qctl-cost", {"api": None}), "cost", "units of api must be a whole number"),
    "cost of nobody": (header("qctl-cost", {"apii": 1}), "cost", "this consumer's are api"),
    "cost of another": (header("qctl-cost", {"mail": 1}), "cost", "this consumer's are api"),
    "cost over limit": (header("qctl-cost", {"api": LIMIT + 1}), "cost", f"more than the {LIMIT} it can ever pay"),
    "cost of too many": (header("qctl-cost", {f"q{n}": 1 for n in range(40)}), "cost", "must map quotas to units"),
}


@pytest.mark.parametrize(("fields", "reason", "error"), MALFORMED.values(), ids=MALFORMED.keys())
def test_given_what_cannot_be_understood_then_it_is_dead_after_one_delivery_with_the_reason(
    site: Site, request: pytest.FixtureRequest, fields: dict[str, Any], reason: str, error: str
) -> None:
    identity = request.node.callspec.id
    sent = {"message_id": identity, **fields}
    content = sent.pop("body", b"{}")

    site.wire.send("calls", content, **sent)

    dead = site.wire.take("calls.dead")
    assert dead.properties.message_id == identity
    assert dead.headers["qctl-reason"] == reason
    assert error in dead.headers["qctl-error"]
    assert dead.body == content
    for name, value in fields.get("headers", {}).items():
        assert dead.headers[name] == value
    assert_unharmed(site, identity)


def entry(name: bytes, value: bytes) -> pika.BasicProperties:
    return RawHeaders((name, value))


#: Headers that the broker takes (it refuses NaN and infinities itself), and that pika cannot read.
UNREADABLE = {
    "date beyond the calendar": entry(b"since", b"T" + struct.pack(">Q", 2**63)),
    "nested": entry(b"deep", nested(5_000)),
    "nested 900": entry(b"deep", nested(900)),
}


def cost(value: bytes) -> pika.BasicProperties:
    return entry(b"qctl-cost", b"F" + struct.pack(">I", 4 + len(value)) + b"\x03api" + value)


FRACTIONS = {"fraction": 1.5, "negative fraction": -0.5, "whole": 1.0, "huge": 1e300}


@pytest.mark.parametrize("units", FRACTIONS.values(), ids=FRACTIONS.keys())
def test_given_a_cost_that_is_a_floating_point_number_then_it_is_dead_and_says_what_was_found(
    site: Site, units: float
) -> None:
    site.wire.send("calls", b"{}", properties=cost(double(units)))

    dead = site.wire.take("calls.dead")
    assert dead.headers["qctl-reason"] == "cost"
    assert dead.headers["qctl-error"].endswith(f"units of api must be a whole number from 0 to 10^12, found {units}")
    assert_unharmed(site, "floating")


def test_given_headers_of_every_kind_then_a_retry_brings_them_back_as_they_were(site: Site) -> None:
    site.wire.send("calls", b"again", properties=RawHeaders(*KINDS))

    first, second = await_history(site.fleet, "headers", 2)
    assert first == second
    assert second == "[('half', 0.25), ('price', Decimal('1.99')), ('ratio', 0.5), ('small', -1)]"


@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_given_headers_that_cannot_be_read_then_the_task_is_dead_and_the_connection_stays(
    site: Site, properties: pika.BasicProperties
) -> None:
    site.wire.send("calls", b"{}", properties=properties)

    dead = site.wire.take("calls.dead")
    assert dead.headers["qctl-reason"] in ("malformed", "cost")
    assert dead.headers["qctl-error"]
    assert dead.body == b"{}"
    assert "connection lost" not in site.worker.log()
    assert_unharmed(site, "unreadable")


KINDS = (
    (b"ratio", double(0.5)),
    (b"half", b"f" + struct.pack(">f", 0.25)),
    (b"small", b"b\xff"),
    (b"price", b"D" + struct.pack(">Bi", 2, 199)),
)
HARMLESS = {
    "float": entry(b"ratio", double(0.5)),
    "name that is not UTF-8": entry(b"\xff\xfe", b"t\x01"),
    "text that is not UTF-8": entry(b"name", b"S" + struct.pack(">I", 2) + b"\xff\xfe"),
    "empty name": entry(b"", b"V"),
    "decimal": entry(b"price", b"D" + struct.pack(">Bi", 2, 199)),
}


@pytest.mark.parametrize("properties", HARMLESS.values(), ids=HARMLESS.keys())
def test_given_strange_headers_that_are_none_of_ours_then_the_task_runs(
    site: Site, properties: pika.BasicProperties
) -> None:
    before = len(site.fleet.history("calls"))

    site.wire.send("calls", b"{}", properties=properties)

    await_history(site.fleet, "calls", before + 1)
    assert site.wire.look("calls.dead") is None


@pytest.mark.parametrize("properties", HARMLESS.values(), ids=HARMLESS.keys())
def test_given_strange_headers_on_a_task_that_dies_then_it_arrives_in_the_dead_letters(
    site: Site, properties: pika.BasicProperties
) -> None:
    site.wire.send("calls", b"x" * (MAX_BODY + 1), properties=properties)

    dead = site.wire.take("calls.dead")
    assert dead.headers["qctl-reason"] == "too large"
    assert_unharmed(site, "strange")


def assert_unharmed(site: Site, identity: str) -> None:
    """The next good task runs, in the same process, and nothing of the bad one did or is left."""
    ran = site.fleet.history("calls")
    assert identity not in ran
    site.wire.task("calls", {}, message_id=f"after {identity}")
    assert await_history(site.fleet, "calls", len(ran) + 1)[-1] == f"after {identity}"
    assert site.wire.look("calls.dead") is None
    assert site.wire.look("calls") is None
    assert tuple(site.worker.pids()) == site.pids
    assert_no_traceback(site.worker.log())


def test_given_all_that_then_one_line_a_dead_task_says_so(site: Site) -> None:
    site.wire.send("calls", b"", message_id="told", headers={"qctl-attempt": "x"})
    site.wire.take("calls.dead")

    wait_until("the line", lambda: "id=told" in site.worker.log(), timeout_s=5)
    lines = [line for line in site.worker.log().splitlines() if "id=told" in line]
    assert len(lines) == 1
    assert "web-1/calls" in lines[0]
    assert "dead (malformed)" in lines[0]
