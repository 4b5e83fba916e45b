"""F31: control events that are not to be obeyed, each from a program that can do whatever a user of the broker can."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pika.exceptions

from tests.faults.operators import Operator, acknowledged, operator, tag_lines
from tests.faults.orders import CONTROL, HELLO, LOG, Orders, event_of, iso, orders
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import Worker, wait_until

PROCESSES = 2
TARGET = {"host": "web-1", "consumer": "plain"}
MIB = 1 << 20
TAGS = [f"qctl/web-1/{consumer}/{index}" for consumer in ("calls", "plain") for index in range(PROCESSES)]
#: What is not to be obeyed has had its chance when nothing happens for this long after it was confirmed.
SETTLED_S = 1.0

#: Bodies that are no JSON object.
BODIES: Mapping[str, bytes] = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "not JSON": b"{verb: pause}",
    "NaN": b'{"v": NaN}',
    "1e999": b'{"v": 1e999}',
    "a list": b'["pause"]',
    "a text": b'"pause"',
    "a number": b"1",
    "null": b"null",
    "100k lists": b"[" * 60_000,
    "a number of 60k digits": b"9" * 60_000,
    "65 KiB": json.dumps({"verb": "pause", "pad": "x" * (65 << 10)}).encode(),
}
#: Fields of a pause that is else as it should be.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "version 2": {"v": 2},
    "version 0": {"v": 0},
    "version a text": {"v": "1"},
    "version true": {"v": True},
    "version null": {"v": None},
    "unknown verb": {"verb": "explode"},
    "verb a list": {"verb": ["pause"]},
    "verb null": {"verb": None},
    "verb in capitals": {"verb": "PAUSE"},
    "target null": {"target": None},
    "target a text": {"target": "web-1/plain"},
    "target a list": {"target": ["web-1"]},
    "target of nothing": {"target": {}},
    "target of nulls": {"target": {"host": None, "consumer": None}},
    "target of unknown fields": {"target": {"server": "web-1"}},
    "host a number": {"target": {**TARGET, "host": 1}},
    "host empty": {"target": {**TARGET, "host": ""}},
    "consumer a list": {"target": {**TARGET, "consumer": ["plain"]}},
    "host of 10 kB": {"target": {**TARGET, "host": "*" * 10_000}},
    "id a number": {"id": 1},
    "id null": {"id": None},
    "id another than the message's": {"id": "0" * 32},
    "until a number": {"until": 1},
    "until garbage": {"until": "tomorrow"},
    "until the 31st of February": {"until": "2026-02-31T00:00:00.000Z"},
    "until without a zone": {"until": "2099-01-01T00:00:00"},
    "until true": {"until": True},
    "reason a list": {"reason": ["because"]},
    "as a number": {"as": 5},
    "args a list": {"args": [1]},
}
#: Arguments of a quota.set that nobody may take for a limit.
LIMITS: Mapping[str, Mapping[str, Any]] = {
    "no limit": {"quota": "api"},
    "no quota": {"limit": ["1/h"]},
    "limit garbage": {"quota": "api", "limit": ["much"]},
    "limit zero": {"quota": "api", "limit": ["0/h"]},
    "limit negative": {"quota": "api", "limit": ["-1/h"]},
    "limit beyond all": {"quota": "api", "limit": ["10000000000000/h"]},
    "limit of nothing": {"quota": "api", "limit": []},
    "limit a number": {"quota": "api", "limit": 1},
    "limit a list of numbers": {"quota": "api", "limit": [1]},
    "a thousand limits": {"quota": "api", "limit": ["1/h"] * 1000},
    "quota a list": {"quota": ["api"], "limit": ["1/h"]},
}


def _stage(scene: Scene, **sections: object) -> Worker:
    """Two processes with more to do than they will, so that a pause shows."""
    scene.stage(**sections)
    worker = scene.start(processes=PROCESSES)
    scene.enqueue("plain", 3000, s=0.05)
    scene.await_count("started", 20)
    return worker


def _untouched(scene: Scene, worker: Worker, pids: list[int]) -> None:
    """Everything is consumed, by the same processes, and tasks start."""
    time.sleep(SETTLED_S)
    assert tag_lines(scene, "qctl/.*") == TAGS
    before = scene.count("started")
    scene.await_count("started", before + 20)
    scene.await_ended(scene.enqueue("calls", 8), timeout_s=10)
    scene.record.figure("processes lost", len(set(pids) - set(worker.pids())), equals=0)


def _good(scene: Scene, own: Orders) -> None:
    """The next good pause is obeyed by both, and so is its resume."""
    someone = Operator(scene)
    answers = own.answers(own.give("pause", TARGET, reason="a good one"), PROCESSES)
    scene.history.write(acknowledged(answers))
    states = [one["state"] for answer in answers for one in answer.said["rows"]]
    scene.record.figure("tags paused by the next good event", states.count("paused"), equals=PROCESSES)
    assert tag_lines(scene, "qctl/web-1/plain/.*") == []
    someone.lifting("web-1/plain")
    own.answers(own.give("resume", TARGET), PROCESSES)
    wait_until("all tags again", lambda: tag_lines(scene, "qctl/.*") == TAGS)


def _obeyed(own: Orders, ids: list[str]) -> int:
    """Of these events, the ones that a process says it obeys."""
    own.heard("", 0.2)
    return sum(
        any(not answer.said.get("refused") and answer.said.get("rows") for answer in own.heard(one, 0.0)) for one in ids
    )


@row("F31", "bodies, fields and arguments of every wrong kind; unknown verbs and versions")
def test_what_nobody_understands_is_not_obeyed(scene: Scene) -> None:
    worker = _stage(scene)
    pids = worker.pids()
    with orders(scene.vhost) as own:
        # When everything that is no event comes
        ids = [own.send(body).id for body in BODIES.values()]
        for fields in FIELDS.values():
            event = event_of("pause", TARGET, **fields)
            said = event["id"] if isinstance(event["id"], str) and event["id"].strip("0") else "f" * 32
            ids.append(own.send(json.dumps(event).encode(), id=said).id)
        for missing in ("v", "id", "verb", "target"):
            event = event_of("pause", TARGET)
            said = event.pop("id") if missing == "id" else event["id"]
            event.pop(missing, None)
            ids.append(own.send(json.dumps(event).encode(), id=said).id)
        ids += [own.give("quota.set", {"host": "web-1"}, args=arguments).id for arguments in LIMITS.values()]
        # and once more to where nobody hears an answer
        own.send(b"{", reply_to="nobody-is-here")
        own.send(b"{", reply_to="x" * 255)

        # Then nothing has become of it, and the next good one is obeyed
        _untouched(scene, worker, pids)
        scene.record.figure("events", len(ids))
        scene.record.figure("of them obeyed", _obeyed(own, ids), equals=0)
        _good(scene, own)
    said = [line for line in worker.log().splitlines() if " WARNING " in line or "warning" in line.lower()]
    scene.record.figure("warnings in the log of two processes", len(said))
    scene.hurry()


@row("F31", "events in another's name, unsigned, of no operator, through the wrong exchange, and stale")
def test_what_is_not_from_an_operator_or_came_another_way_or_again_is_not_obeyed(scene: Scene) -> None:
    # Given two operators' users and one who may publish and is no operator
    boss, mallory = (scene.keep(operator(scene, name)) for name in ("boss", "mallory"))
    worker = _stage(scene, operators=[boss.name, scene.vhost.username])
    pids = worker.pids()
    password = mallory.environment["QCTL_PASSWORD"]
    body: Callable[..., bytes] = lambda **fields: json.dumps(event_of("pause", TARGET, **fields)).encode()  # noqa: E731

    with orders(scene.vhost) as own:
        before = len(own.log())
        # When somebody gives one in an operator's name, then the broker does not take it
        refused = 0
        for exchange, key in ((CONTROL, "command.pause"), (HELLO, "")):
            with orders(scene.vhost, user=mallory.name, password=password) as other:
                with suppress(pika.exceptions.ChannelClosedByBroker):
                    other.send(body(), user=boss.name, exchange=exchange, key=key)
                refused += not other.channel.is_open
        scene.record.figure("forged names that the broker refused", refused, equals=2)
        scene.record.figure("of them in the log", len(own.log()) - before, equals=0)

        # When he gives them in his own name, claims to be another, signs nothing, or gives out that a host says it
        theirs: list[str] = []
        with orders(scene.vhost, user=mallory.name, password=password) as other:
            for fields in ({}, {"as": f"{boss.name}@desk"}, {"args": {"local": True}}, {"user": boss.name}):
                event = event_of("pause", TARGET, **fields)
                theirs.append(other.send(json.dumps(event).encode(), id=event["id"]).id)
            for verb, arguments in (
                ("resume", {}),
                ("quota.set", {"quota": "api", "limit": ["1/h"]}),
                ("quota.clear", {}),
            ):
                theirs.append(other.give(verb, {"host": "web-1"}, args=arguments).id)
            answered = [one.said.get("refused") for one in other.heard(theirs[0], SETTLED_S)]
            scene.record.figure("obeyed of who is no operator", _obeyed(other, theirs), equals=0)
            scene.record.figure(
                "processes that told him so", sum(bool(words) for words in answered), at_least=PROCESSES
            )
        unsigned = [event_of("pause", TARGET), event_of("pause", {"host": "*"})]
        for event in unsigned:
            own.send(json.dumps(event).encode(), id=event["id"], user="")

        # When an operator's come another way: a verb through the hellos' exchange, a hello through the verbs', or
        # straight into the log
        event = event_of("pause", TARGET)
        own.send(json.dumps(event).encode(), id=event["id"], exchange=HELLO, key="")
        own.send(json.dumps(event).encode(), id=event["id"], exchange="", key=LOG)
        hello = {"v": 1, "nonce": "n" * 32, "host": "web-1", "index": 0, "ledger": "another", "machine": "m", "pid": 1}
        own.send(json.dumps(hello).encode(), id="n" * 32, exchange=CONTROL, key="command.hello")
        own.send(json.dumps(hello).encode(), id="n" * 32, exchange="", key=LOG)
        _untouched(scene, worker, pids)

        # When a pause has long ended, or was lifted and comes again, under the same id
        own.give("pause", TARGET, until=iso(time.time() - 60))
        again = event_of("pause", TARGET)
        encoded = json.dumps(again).encode()
        answers = own.answers(own.send(encoded, id=again["id"]), PROCESSES)
        scene.history.write(acknowledged(answers))
        Operator(scene).lifting("web-1/plain")
        own.answers(own.give("resume", TARGET), PROCESSES)
        own.send(encoded, id=again["id"])
        _untouched(scene, worker, pids)

        # Then the next good one is obeyed; and while it holds nobody lifts it who may not
        paused = own.answers(own.give("pause", TARGET), PROCESSES)
        scene.history.write(acknowledged(paused))
        with orders(scene.vhost, user=mallory.name, password=password) as other:
            other.give("resume", TARGET)
            other.give("resume", {"host": "*"})
            lift = event_of("resume", TARGET)
            other.send(json.dumps(lift).encode(), id=lift["id"], user="")
            other.send(json.dumps(lift).encode(), id=lift["id"], exchange=HELLO, key="")
        worker.kill()
        worker = scene.start(processes=PROCESSES, consumers=("calls",))
        time.sleep(SETTLED_S)
        assert tag_lines(scene, "qctl/web-1/plain/.*") == []
        Operator(scene).lifting("web-1/plain")
        own.answers(own.give("resume", TARGET), PROCESSES)
        wait_until("all tags again", lambda: tag_lines(scene, "qctl/.*") == TAGS)
    scene.may_duplicate = PROCESSES * 8
    scene.hurry()


@row("F31", "events of 16 MiB, in a live log and read by a start")
def test_what_is_huge_is_not_obeyed_and_fills_nobodys_memory(scene: Scene) -> None:
    worker = _stage(scene)
    pids = worker.pids()
    with orders(scene.vhost) as own:
        before = max(_resident_bytes(pid) for pid in pids)
        garbage = b"x" * (16 * MIB)
        own.send(garbage)
        own.send(garbage, exchange=HELLO, key="")
        event = event_of("pause", TARGET, reason="")
        room = 16 * MIB - len(json.dumps(event))
        own.send(json.dumps({**event, "reason": "x" * room}).encode(), id=event["id"])
        _untouched(scene, worker, pids)
        grown = max(_resident_bytes(pid) for pid in worker.pids()) - before
        scene.record.figure("memory more after three of them, MiB", grown / MIB, at_most=100)
        _good(scene, own)

        # A start reads them too
        worker.kill()
        (scene.fleet.state / "web-1" / "control.json").unlink()
        began_s = time.monotonic()
        worker = scene.start(processes=PROCESSES)
        scene.record.figure("a start over them, s", time.monotonic() - began_s, at_most=15)
        _good(scene, own)
    scene.may_duplicate = PROCESSES * 8
    scene.hurry()


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))
