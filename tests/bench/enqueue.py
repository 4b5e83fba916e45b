"""`qctl enqueue --file` against a bare publisher with pipelined confirms, both as whole processes, in turns.

`python -m tests.bench.enqueue` starts a private broker, prints the median of each and their ratio, and exits with 1
when the command does less than half of what the bare publisher does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pika
import requests

from qctl.broker.local import private_node
from qctl.broker.node import NodeInfo

LINES = 30_000
ROUNDS = 7
WINDOW = 1_000
LEAST_RATIO = 0.5
ROOT = Path(__file__).parents[2]

INVENTORY = """
version: 1
broker: local
quotas: {api: 1000/h}
consumers: {bench: {handler: {exec: [cat]}, quota: {api: 1}}}
hosts: {web-1: }
"""


def bare(url: str, username: str, password: str, path: str) -> None:
    """Publish the lines of a file to the quorum queue `bare`, at most WINDOW unconfirmed, and do nothing else."""
    bodies = Path(path).read_bytes().splitlines()
    parameters = pika.URLParameters(url)
    parameters.credentials = pika.PlainCredentials(username, password)
    properties = pika.BasicProperties(delivery_mode=2)
    waiting: set[int] = set()
    sent, first = 0, 1

    def send() -> None:
        nonlocal sent
        while sent < len(bodies) and len(waiting) < WINDOW:
            channel.basic_publish("", "bare", bodies[sent], properties)
            sent += 1
            waiting.add(sent)
        if not waiting:
            connection.close()

    def on_confirm(frame: pika.frame.Method) -> None:
        nonlocal first
        assert isinstance(frame.method, pika.spec.Basic.Ack)
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            waiting.difference_update(range(first, tag + 1))
            first = tag + 1
        else:
            waiting.discard(tag)
        send()

    def on_channel(opened: pika.channel.Channel) -> None:
        nonlocal channel
        channel = opened
        arguments = {"x-queue-type": "quorum"}
        channel.queue_declare("bare", durable=True, arguments=arguments, callback=lambda _: confirm())

    def confirm() -> None:
        channel.confirm_delivery(on_confirm, callback=lambda _: send())

    channel: pika.channel.Channel
    connection = pika.SelectConnection(
        parameters,
        on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    assert sent == len(bodies)


def seconds(argv: list[str], directory: Path) -> float:
    """How long a whole process takes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(argv, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def empty(info: NodeInfo, queue: str) -> None:
    """Throw away what a round has published: a full queue is slower than an empty one."""
    url = f"{info.management_url}/api/queues/%2F/{queue}/contents"
    requests.delete(url, auth=(info.username, info.password), timeout=60).raise_for_status()


def main() -> int:
    """Run the rounds, print the figures."""
    with tempfile.TemporaryDirectory() as scratch, private_node(Path(scratch, ".qctl", "broker")) as info:
        directory = Path(scratch)
        (directory / "inventory.yaml").write_text(INVENTORY, encoding="utf-8")
        lines = (json.dumps({"n": number, "text": "x" * 180}) + "\n" for number in range(LINES))
        (directory / "lines.jsonl").write_text("".join(lines), encoding="utf-8")
        argvs = {
            "bench": [sys.executable, "-m", "qctl", "enqueue", "bench", "--file", "lines.jsonl"],
            "bare": [sys.executable, __file__, info.amqp_url, info.username, info.password, "lines.jsonl"],
        }
        taken: dict[str, list[float]] = {queue: [] for queue in argvs}
        for _ in range(ROUNDS):
            for queue, argv in argvs.items():
                taken[queue].append(seconds(argv, directory))
                empty(info, queue)
    rates = {queue: LINES / statistics.median(all_s) for queue, all_s in taken.items()}
    ratio = rates["bench"] / rates["bare"]
    print(f"RabbitMQ {info.version}, {LINES} lines, whole processes, median of {ROUNDS} rounds in turns")
    print(f"  qctl enqueue --file        {rates['bench']:8,.0f} a second")
    print(f"  bare pipelined confirms    {rates['bare']:8,.0f} a second")
    print(f"  ratio                      {ratio:8.2f}  (at least {LEAST_RATIO})")
    return 0 if ratio >= LEAST_RATIO else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        bare(*sys.argv[1:])
    else:
        sys.exit(main())
