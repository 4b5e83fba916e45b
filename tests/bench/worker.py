"""What the worker costs: `python -m tests.bench.worker [MESSAGES]`.

A handler that does nothing, one process, everything on, against a bare consume-and-ack-each loop on pika's
SelectConnection: the same broker, the same messages, in turns. The worker's rate is taken by its handler, from the
first task to the last but the few that are in flight.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pika

from tests import brokers
from tests.fleet import Fleet, wait_until

ROUNDS = 5
PREFETCH = 200
HANDLERS = """
    count, started = 0, 0.0
    def nothing(task):
        global count, started
        if not count:
            started = time.perf_counter()
        count += 1
        if count == {count}:
            note("rate", count / (time.perf_counter() - started))
"""


def bare_rate(vhost: brokers.Vhost, queue: str, messages: int) -> float:
    """Consume and ack each, a second."""
    seen, started, ended = 0, 0.0, 0.0

    def opened(connection: Any) -> None:
        connection.channel(on_open_callback=subscribe)

    def subscribe(channel: Any) -> None:
        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: channel.basic_consume(queue, on_message))

    def on_message(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal seen, started, ended
        if not seen:
            started = time.perf_counter()
        channel.basic_ack(method.delivery_tag)
        seen += 1
        if seen == messages:
            ended = time.perf_counter()
            channel.connection.close()

    credentials = pika.PlainCredentials(vhost.username, vhost.password)
    parameters = pika.ConnectionParameters(
        vhost.broker.host, vhost.broker.amqp_port, vhost.name, credentials=credentials
    )
    connection = pika.SelectConnection(parameters, on_open_callback=opened)
    connection.add_on_close_callback(lambda closed, _: closed.ioloop.stop())
    connection.ioloop.start()
    return messages / (ended - started)


def one_round(broker: brokers.Broker, messages: int) -> tuple[float, float]:
    """(the worker's rate, the bare loop's)."""
    inventory = {
        "quotas": {"api": "1000000000/h"},
        "consumers": {"nothing": {"handler": {"python": "handlers:nothing"}, "quota": {"api": 1}}},
        "hosts": {"web-1": None},
    }
    handlers = HANDLERS.replace("{count}", str(messages - 50))
    with (
        tempfile.TemporaryDirectory() as scratch,
        brokers.fresh_vhost(broker) as vhost,
        Fleet(vhost, Path(scratch), handlers, **inventory) as fleet,
    ):
        payloads = [{"n": number, "pad": "x" * 180} for number in range(messages)]
        fleet.enqueue("nothing", payloads)
        bare = bare_rate(vhost, "nothing", messages)
        fleet.enqueue("nothing", payloads)
        fleet.start("web-1", ready=False)
        worker = float(wait_until("the worker's rate", lambda: fleet.history("rate"), 120)[0])
        return worker, bare


def main(messages: int) -> None:
    """Print each round and the median ratio."""
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch)) as node:
        broker = brokers.local_broker(node)
        rounds = []
        for _ in range(ROUNDS):
            worker, bare = one_round(broker, messages)
            rounds.append((worker, bare))
            print(f"worker {worker:,.0f}/s, bare loop {bare:,.0f}/s, ratio {worker / bare:.2f}", flush=True)
        ratio = median(worker / bare for worker, bare in rounds)
        worker, bare = (median(rates) for rates in zip(*rounds, strict=True))
        print(f"median: worker {worker:,.0f}/s, bare loop {bare:,.0f}/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40_000)
