"""What a poll of the console costs where a broker has 5,000 queues: each order of a page, and how many requests it is.

`python -m tests.bench.queues` starts a private broker, declares the queues, prints medians, and exits with 1 when a
poll is more than one request, or takes so long that it is given up.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pika
import requests

from qctl.broker.listing import QueuesAsked, Sort
from qctl.broker.management import Api, Management
from qctl.inventory.load import load
from qctl.tui import poller
from qctl.tui.poller import Poller
from qctl.tui.snapshot import Focus, Health, View
from tests.brokers import Broker, local_broker, throwaway_node
from tests.management_api import Misbehaving

QUEUES = 5_000
#: Queues that have messages, so that an order by depth means something.
WITH_MESSAGES = 50
ROUNDS = 5
WATCHED_S = 30.0
ASKED = {
    "by name": QueuesAsked(),
    "by name, page 10": QueuesAsked(page=10),
    "deepest first": QueuesAsked(sort=Sort.READY, descending=True),
    "by rate in": QueuesAsked(sort=Sort.IN, descending=True),
    "a part of the name": QueuesAsked(match="-42"),
    "all but a part": QueuesAsked(match="-42", invert=True),
    "dead letters": QueuesAsked(sort=Sort.READY, descending=True, ending=".dead"),
}


def declare(broker: Broker) -> float:
    """All queues, a tenth of them for dead letters; the seconds it took."""
    started_s = time.monotonic()
    names = [f"queue-{number}" + ".dead" * (number % 10 == 0) for number in range(QUEUES)]
    queues = [{"name": name, "durable": True, "auto_delete": False, "arguments": {}} for name in names]
    answer = requests.post(
        f"{broker.management_url}/api/definitions/%2F",
        auth=(broker.username, broker.password),
        json={"queues": queues},
        timeout=600,
    )
    answer.raise_for_status()
    where = pika.URLParameters(broker.amqp_url())
    where.credentials = pika.PlainCredentials(broker.username, broker.password)
    connection = pika.BlockingConnection(where)
    channel = connection.channel()
    for number, name in enumerate(names[:WITH_MESSAGES]):
        for _ in range(number):
            channel.basic_publish("", name, b"x")
    connection.close()
    return time.monotonic() - started_s


def timed(api: Api, wanted: QueuesAsked) -> Iterator[float]:
    """Seconds of a poll, the connection and the reading included."""
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        management = Management(api, timeout_s=60.0)
        try:
            management.queue_page(wanted)
        finally:
            management.close()
        yield time.perf_counter() - started_s


async def watched(asks: Poller) -> tuple[int, float]:
    """Polls in WATCHED_S with queues on screen, and the CPU seconds of this process."""
    polls = 0

    def count() -> None:
        nonlocal polls
        polls += asks.state.health is Health.OK

    asks.look_at(Focus(View.QUEUES, sort="ready", descending=True))
    asking = asyncio.ensure_future(asks.run(count))
    while not polls:
        await asyncio.sleep(0.05)
    polls, cpu_s = 0, time.process_time()
    await asyncio.sleep(WATCHED_S)
    cpu_s = time.process_time() - cpu_s
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    return polls, cpu_s


def main() -> int:
    """Run it; the exit code."""
    worst_s = 0.0
    with tempfile.TemporaryDirectory() as folder, throwaway_node(Path(folder) / "node") as node:
        broker = local_broker(node)
        print(f"{QUEUES} queues on RabbitMQ {broker.version}, declared in {declare(broker):.0f} s")
        time.sleep(6)  # the statistics are as old
        api = Api(broker.management_url, broker.username, broker.password)
        for name, wanted in ASKED.items():
            found = list(timed(api, wanted))
            worst_s = max(worst_s, statistics.median(found))
            print(f"{name:20} median {statistics.median(found) * 1_000:6.0f} ms, worst {max(found) * 1_000:6.0f} ms")
        path = Path(folder) / "inventory.yaml"
        inventory = {
            "version": 1,
            "broker": {"amqp": broker.amqp_url(), "username": broker.username},
            "consumers": {"bench": {"handler": {"exec": ["true"]}, "quota": {}}},
            "hosts": {"web-1": {}},
        }
        path.write_text(json.dumps(inventory), encoding="utf-8")
        with Misbehaving(upstream=broker.management_url) as counting:
            asks = Poller(lambda: Api(counting.url, broker.username, broker.password), load(path))
            polls, cpu_s = asyncio.run(watched(asks))
            requests_made = len([path for path in counting.paths if path != "/whoami"]) - 1
    print(
        f"console: {polls} polls in {WATCHED_S:.0f} s ({poller.POLL_LEAST_S:g} to {poller.POLL_MOST_S:g} s apart), "
        f"{requests_made} requests, {cpu_s / max(1, polls) * 1_000:.0f} ms of CPU each, "
        f"{asks.page.total} queues on {asks.page.pages} pages"
    )
    return 0 if worst_s < poller.TIMEOUT_S and polls > 0 and requests_made <= polls + 1 else 1


if __name__ == "__main__":
    sys.exit(main())
