"""F10: a way that is slow, lossy, or narrow, one host each."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.proxy import Proxy
from tests.faults.rows import row
from tests.faults.scene import Scene

ROUND_TRIP_S = 0.5
LOSS = 0.05
BYTES_PER_S = 10_000
#: Longer than a broken heartbeat would take to show.
WATCHED_S = 35.0
STARTS_WITHIN_S = 90.0
_NEAR, _FAR = "10.213.77.1", "10.213.77.2"


@row("F10", "a round trip of 500 ms, 5 % loss, 10 kB/s: a host each, 35 s")
def test_a_bad_way_is_no_reason_to_disconnect(scene: Scene) -> None:
    # Given a host for each bad way
    port = scene.vhost.broker.amqp_port
    slow, narrow = scene.keep(Proxy.to(port)), scene.keep(Proxy.to(port))
    slow.delay(ROUND_TRIP_S / 2)
    narrow.narrow(BYTES_PER_S)
    api = scene.judge_api("slow", "narrow", "lossy")
    urls = {host: api.url(host) for host in ("slow", "narrow", "lossy")}
    if _can_drop_packets():
        prefix = scene.keep(_lossy_network())
        lossy = scene.keep(Proxy.to(port, listen_on=_NEAR))
        calls = scene.keep(Proxy.to(api.ports["lossy"], listen_on=_NEAR))
        urls["lossy"] = f"http://{_NEAR}:{calls.port}/"
        scene.record.note("Loss: every 20th packet dropped by iptables in a network namespace. Latency, width: proxy.")
    else:
        prefix, lossy = (), scene.keep(Proxy.to(port))
        lossy.lose(LOSS)
        scene.record.note("No network namespace here: loss is a proxy that delays as a retransmission would.")
    scene.stage("slow", "narrow", "lossy", urls=urls, again=True)
    consumers = ("calls", "plain", "again")
    since_s = time.monotonic()
    workers = [scene.start("slow", consumers=consumers, amqp=scene.through(slow), timeout_s=STARTS_WITHIN_S)]
    # Each thing it declares is a round trip.
    scene.record.figure("start over the slow way, s", time.monotonic() - since_s, at_most=STARTS_WITHIN_S)
    workers += [
        scene.start("narrow", consumers=consumers, amqp=scene.through(narrow), timeout_s=STARTS_WITHIN_S),
        scene.start("lossy", consumers=consumers, amqp=scene.through(lossy), prefix=prefix, timeout_s=STARTS_WITHIN_S),
    ]
    scene.enqueue("plain", 300, s=0.05)
    scene.enqueue("calls", 60)
    scene.await_ended()
    scene.steady()

    # When they work over it for a while, retries included
    scene.enqueue("plain", 2500, s=0.1)
    scene.enqueue("calls", 200, s=0.5)
    scene.enqueue("again", 60, s=0.5)
    since_s, done = time.monotonic(), scene.count("done")
    time.sleep(WATCHED_S)
    scene.record.figure("tasks a second over all three", (scene.count("done") - done) / (time.monotonic() - since_s))

    # Then no connection was given up, and so nothing done twice
    lost = sum(worker.log().count("connection lost, trying again") for worker in workers)
    scene.record.figure("connections lost", lost, equals=0)
    scene.settles_within_s = 120.0


def _can_drop_packets() -> bool:
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "iptables"))


@contextmanager
def _lossy_network() -> Iterator[tuple[str, ...]]:
    """A network namespace whose only way out loses packets both ways; what runs a command in it."""
    name = f"qctl{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    near, far = f"{name}n"[-15:], f"{name}f"[-15:]
    drop = ("-m", "statistic", "--mode", "random", "--probability", str(LOSS), "-j", "DROP")
    try:
        for command in (
            ("ip", "netns", "add", name),
            ("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name),
            ("ip", "addr", "add", f"{_NEAR}/30", "dev", near),
            ("ip", "link", "set", near, "up"),
            (*inside, "ip", "link", "set", "lo", "up"),
            (*inside, "ip", "addr", "add", f"{_FAR}/30", "dev", far),
            (*inside, "ip", "link", "set", far, "up"),
            (*inside, "iptables", "-A", "INPUT", "-i", far, *drop),
            (*inside, "iptables", "-A", "OUTPUT", "-o", far, *drop),
        ):
            subprocess.run(command, check=True, capture_output=True)
        yield inside
    finally:
        subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)
        subprocess.run(("ip", "link", "del", near), check=False, capture_output=True)
