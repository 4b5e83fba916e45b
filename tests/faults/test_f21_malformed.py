"""F21: bodies and headers that nobody can make sense of, in the middle of good tasks."""

from __future__ import annotations

import time
from typing import Any

import pika

from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import RawHeaders, Wire, double, nested, wire

GOOD_WITHIN_MS = 100
LIMIT = 200

HANDLERS = """
    def good(task: Task) -> None:
        mark("started", task.payload["task"])
        mark("done", task.payload["task"])
"""


def _long(text: str) -> bytes:
    """An AMQP field value: a string."""
    return b"S" + len(text).to_bytes(4, "big") + text.encode()


def _table(name: bytes, value: bytes) -> bytes:
    """An AMQP field value: a table of one entry."""
    entry = bytes([len(name)]) + name + value
    return b"F" + len(entry).to_bytes(4, "big") + entry


#: Bodies that say they are JSON.
BODIES: dict[str, bytes] = {
    "not UTF-8": b'{"task": "\xff\xfe"}',
    "UTF-16": '{"task": 1}'.encode("utf-16"),
    "not JSON": b"{task: 1}",
    "NaN": b'{"task": NaN}',
    "infinity": b'{"task": -Infinity}',
    "1e999": b'{"task": 1e999}',
    "100k lists": b"[" * 100_000,
    "100k objects": b'{"a":' * 100_000,
    "a number of 100k digits": b"9" * 100_000,
    "empty": b"",
    "blank": b" \n",
    "cut off": b'{"task": "a',
}
#: Headers, by the reason of the dead letter.
HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attempt a text": ("malformed", {"qctl-attempt": "1"}),
    "attempt zero": ("malformed", {"qctl-attempt": 0}),
    "attempt negative": ("malformed", {"qctl-attempt": -1}),
    "attempt huge": ("malformed", {"qctl-attempt": 2**62}),
    "deferrals a list": ("malformed", {"qctl-deferrals": [1]}),
    "crashes a table": ("malformed", {"qctl-crashes": {"a": 1}}),
    "crashes true": ("malformed", {"qctl-crashes": True}),
    "cost a list": ("cost", {"qctl-cost": [1]}),
    "cost a text": ("cost", {"qctl-cost": "api=1"}),
    "cost nothing": ("cost", {"qctl-cost": None}),
    "cost negative": ("cost", {"qctl-cost": {"api": -1}}),
    "cost of text": ("cost", {"qctl-cost": {"api": "1"}}),
    "cost above the limit": ("cost", {"qctl-cost": {"api": LIMIT + 1}}),
    "cost of nobody": ("cost", {"qctl-cost": {"ipa": 1}}),
}
#: What only another client than pika sends. NaN and infinities in headers are refused by the broker itself (541).
RAW: dict[str, tuple[str, tuple[bytes, bytes]]] = {
    "attempt a double": ("malformed", (b"qctl-attempt", double(1.5))),
    "cost 1.5": ("cost", (b"qctl-cost", _table(b"api", double(1.5)))),
    "nested 1000": ("malformed", (b"tenant", nested(1_000))),
    "nested 20000": ("malformed", (b"tenant", nested(20_000))),
    "a date beyond the calendar": ("malformed", (b"since", b"T" + b"\xff" * 8)),
    "cost of a name that is no text": ("cost", (b"qctl-cost", _table(b"\xff\xfe", _long("1")))),
}


@row("F21", "bodies and headers of every wrong kind, each followed by a good task", selected=True, timeout_s=120)
def test_what_nobody_understands_is_dead_after_one_delivery_and_delays_nobody(scene: Scene) -> None:
    # Given a worker that knows one type of task
    mixed = {"handler": {"python": {"known": "handlers:good"}}, "quota": {"api": 0}, "concurrency": 1}
    scene.stage(limit=LIMIT, consumers={"mixed": mixed}, handlers=HANDLERS)
    worker = scene.start(consumers=("mixed",))
    pids = worker.pids()
    cases: list[tuple[str, str, bytes, pika.BasicProperties]] = []
    for name, body in BODIES.items():
        cases.append((name, "malformed", body, pika.BasicProperties(content_type="application/json", type="known")))
    for name, (reason, headers) in HEADERS.items():
        cases.append((name, reason, b"{}", pika.BasicProperties(headers=headers, type="known")))
    for name, (reason, entry) in RAW.items():
        cases.append((name, reason, b"{}", RawHeaders(entry)))
    cases.append(("unknown type", "malformed", b"{}", pika.BasicProperties(type="unknown")))
    cases.append(("no type", "malformed", b"{}", pika.BasicProperties()))

    # When each comes, and a good task after it
    slowest_ms, wrong = 0.0, []
    with wire(scene.vhost) as own:
        for number, (name, reason, body, properties) in enumerate(cases):
            stray = f"stray:{body[:40]!r}"
            scene.history.note("attempted", [stray])
            own.send("mixed", body, properties=properties)
            good = f"good-{number}"
            slowest_ms = max(slowest_ms, _send_good(scene, own, good))
            dead = own.take("mixed.dead")
            scene.history.note("dead", [stray])
            if dead.headers["qctl-reason"] != reason or dead.body != body or not dead.headers["qctl-error"]:
                wrong.append(f"{name}: {dead.headers['qctl-reason']}: {dead.headers['qctl-error']}")

        # Then each is dead with the reason, untouched, and was delivered once; and nobody waited for it
        assert not wrong
        scene.record.figure("messages", len(cases))
        scene.record.figure("dead letters beyond one a message", own.depth("mixed.dead"), equals=0)
        scene.record.figure("deaths in the log", worker.log().count(" dead ("), equals=len(cases))
    scene.record.figure("slowest good task after one, ms", slowest_ms, at_most=GOOD_WITHIN_MS)
    scene.record.figure("processes lost", len(set(pids) - set(worker.pids())), equals=0)


def _send_good(scene: Scene, own: Wire, name: str) -> float:
    """Milliseconds until a good task is done."""
    scene.history.note("attempted", [name])
    scene.history.note("confirmed", [name])
    since_ns = time.monotonic_ns()
    own.task("mixed", {"task": name}, type="known")
    (at_ns,) = wait_until("a good task", lambda: scene.stamps("done", name)[:1])
    return (int(at_ns) - since_ns) / 1e6
