"""How long a start takes with a long control log: `python -m tests.bench.control_log [EVENTS]`.

A worker is started on a log with next to nothing in it, on one of EVENTS control events without a checkpoint, and on
the same with one; from the command to its first consumer. Exits with 1 when the second takes more than 10 s, or the
third more than 2 s longer than the first.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pika

from qctl.broker import topology
from qctl.broker.message import utc
from qctl.control.event import Command, Hello, Verb
from qctl.control.target import Target
from tests import brokers
from tests.fleet import Fleet
from tests.integration.worker_harness import start_consuming
from tests.wire import stranger

EVENTS = 100_000
MOST_WITHOUT_S = 10.0
MOST_MORE_S = 2.0
INVENTORY = {"consumers": {"calls": {"handler": {"exec": ["cat"]}, "quota": {}}}, "hosts": {"web-1": None}}


def events() -> Iterator[tuple[str, str, bytes]]:
    """(exchange, id, body), for ever: hellos, and consumers of 500 hosts that are paused and most of them resumed."""
    for number in itertools.count():
        host = f"web-{2 + number % 500}"
        hello = Hello(secrets.token_hex(16), host, 0, f"ledger-{host}", "box", number, utc(time.time()))
        yield topology.HELLO, hello.nonce, hello.body()
        for verb in (Verb.PAUSE, Verb.RESUME)[: 1 if number % 20 == 0 else 2]:
            target = Target(host=host, consumer=f"consumer-{number % 7}")
            command = Command(secrets.token_hex(16), utc(time.time()), verb, target, "a reason", None, "ann@desk")
            yield topology.CONTROL, command.id, command.body()


def fill(vhost: brokers.Vhost, count: int) -> None:
    """Put so many events into the control log."""
    with stranger(vhost) as channel:
        for number, (exchange, identity, body) in enumerate(itertools.islice(events(), count), 1):
            if number == count:
                channel.confirm_delivery()  # taken in order: with the last one confirmed, all are there
            properties = pika.BasicProperties(delivery_mode=2, message_id=identity, user_id=vhost.username)
            channel.basic_publish(exchange, "command.pause", body, properties)


def start_s(fleet: Fleet) -> float:
    """From the command until it consumes."""
    started_s = time.perf_counter()
    worker = start_consuming(fleet, "web-1", "calls")
    taken_s = time.perf_counter() - started_s
    assert worker.stop() == 0
    return taken_s


def main(count: int) -> int:
    """Print the three, and what is expected of them."""
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch)) as node:
        broker = brokers.local_broker(node)
        with (
            brokers.fresh_vhost(broker) as vhost,
            Fleet(vhost, Path(scratch), **INVENTORY) as fleet,
        ):
            start_s(fleet)  # the first makes everything on the broker and in the state directory
            empty_s = start_s(fleet)
            fill(vhost, count)
            (fleet.state / "web-1" / "control.json").unlink()
            without_s, with_s = start_s(fleet), start_s(fleet)
    print(f"start, a short log: {empty_s:.2f} s")
    print(f"start, {count:,} events, no checkpoint: {without_s:.2f} s (at most {MOST_WITHOUT_S:g} s)")
    print(f"start, {count:,} events, a checkpoint: {with_s:.2f} s (at most {MOST_MORE_S:g} s more than the short log)")
    return 0 if without_s <= MOST_WITHOUT_S and with_s <= empty_s + MOST_MORE_S else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS))
