"""How soon a pause is, and whether it is one: `python -m tests.bench.pause [PAUSES]`.

A program that knows nothing of qctl gives 200 pauses and resumes to a worker that works flat out, once with tasks that
do nothing and once with tasks of 50 ms. Handlers write the instant of each start; instants of different processes
compare, since it is the machine's monotonic clock. A start after the instant at which the answer was heard here, and
before the resume was sent, is one too many. The broker is asked for its own list of consumers now and then.

Beside them: the rate of another consumer of the same worker, with pauses against without, in turns; and what a person
waits for: `qctl pause` as a whole process, against two worker processes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from tests import brokers
from tests.bench.startup import seconds
from tests.faults.orders import Orders, orders, seconds_of
from tests.fleet import Fleet, Worker, wait_until

PAUSES = 200
#: Of the 200; tasks are enqueued, and the broker's list is looked at, once a round, outside of what is measured.
ROUNDS = 8
#: How long it is watched that nothing starts, each time.
WATCH_S = 0.03
#: Tasks that must have started since the last resume, and up to how much longer it may run then.
STARTS, LONGER_S = 50, 0.05
QUIET_S = 4.0
COMMANDS = 10
HANDLERS = """
    import struct
    files = {}
    def stamp(name):
        if name not in files:
            files[name] = os.open(f"{here}/{name}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(files[name], struct.pack("q", time.monotonic_ns()))
    def nothing(task):
        stamp("nothing")
    def slow(task):
        stamp("slow")
        time.sleep(0.05)
    def other(task):
        stamp("other")
        time.sleep(0.05)
"""


@dataclass(slots=True)
class Tally:
    """What was measured of one consumer's pauses; seconds from the confirm of the event."""

    cancelled_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    late: int = 0
    idle: int = 0
    listed: int = 0
    looks: int = 0
    ratios: list[float] = field(default_factory=list)


class Starts:
    """The instants at which tasks of a consumer started, of all processes."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._fleet = fleet
        self._name = name

    def all_ns(self) -> array[int]:
        """Every one so far."""
        found = array("q")
        for path in self._fleet.directory.glob(f"{self._name}.[0-9]*"):
            data = path.read_bytes()
            found.frombytes(data[: len(data) // 8 * 8])
        return found

    def count(self) -> int:
        """How many there are."""
        return sum(path.stat().st_size for path in self._fleet.directory.glob(f"{self._name}.[0-9]*")) // 8

    def between(self, from_ns: int, to_ns: int) -> int:
        """How many were in a stretch of time."""
        return sum(from_ns < at_ns < to_ns for at_ns in self.all_ns())


@contextmanager
def staged(broker: brokers.Broker, *arguments: str) -> Iterator[tuple[Fleet, Worker, Orders]]:
    """A worker with a consumer a handler, and a program that gives it orders."""
    consumers = {
        name: {"handler": {"python": f"handlers:{name}"}, "quota": {}, "concurrency": 8}
        for name in ("nothing", "slow", "other")
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        brokers.fresh_vhost(broker) as vhost,
        Fleet(
            vhost, Path(scratch), HANDLERS.replace("{here}", scratch), consumers=consumers, hosts={"web-1": None}
        ) as fleet,
    ):
        worker = fleet.start("web-1", *arguments)
        with orders(vhost) as program:
            yield fleet, worker, program


def pauses(fleet: Fleet, program: Orders, name: str, count: int, tally: Tally, *, look: bool = True) -> None:
    """Pause and resume a consumer so often; it must have tasks."""
    starts, target = Starts(fleet, name), {"host": "web-1", "consumer": name}
    stretches: list[tuple[int, int]] = []
    for number in range(count):
        before = starts.count()
        wait_until(f"tasks of {name}", lambda before=before: starts.count() >= before + STARTS)
        time.sleep(random.uniform(0.0, LONGER_S))
        busy, sent_ns = starts.count(), time.monotonic_ns()
        given = program.give("pause", target)
        (answer,) = program.answers(given)
        (row,) = answer.said["rows"]
        assert row["state"] == "paused", answer
        tally.cancelled_s.append(seconds_of(row["cancelled_at"]) - given.confirmed_at_s)
        tally.answered_s.append((answer.heard_ns - given.confirmed_ns) / 1e9)
        tally.idle += starts.between(sent_ns - 60_000_000, sent_ns) == 0 or busy == 0
        time.sleep(WATCH_S)
        if look and number == count - 1:
            tally.looks += 1
            tally.listed += f"qctl/web-1/{name}/0" in fleet.consumer_tags()
        stretches.append((answer.heard_ns, time.monotonic_ns()))
        resumed = program.give("resume", target)
        (answer,) = program.answers(resumed)
        tally.resumed_s.append((answer.heard_ns - resumed.confirmed_ns) / 1e9)
    tally.late += sum(starts.between(*stretch) for stretch in stretches)


def nothing(broker: brokers.Broker, count: int) -> Tally:
    """Pauses of a consumer whose tasks do nothing."""
    tally = Tally()
    with staged(broker, "--only", "nothing") as (fleet, _, program):
        for _ in range(ROUNDS):
            target = {"host": "web-1", "consumer": "nothing"}
            program.answers(program.give("pause", target))  # else they are done as soon as they are enqueued
            fleet.enqueue("nothing", [{}] * (3_000 * count // ROUNDS))
            program.answers(program.give("resume", target))
            pauses(fleet, program, "nothing", count // ROUNDS, tally)
    return tally


def slow(broker: brokers.Broker, count: int) -> Tally:
    """Pauses of a consumer whose tasks take 50 ms, beside another one whose rate must not suffer."""
    tally = Tally()
    with staged(broker, "--only", "slow", "--only", "other") as (fleet, _, program):
        other = Starts(fleet, "other")
        for _ in range(ROUNDS):
            fleet.enqueue("slow", [{}] * (100 * count // ROUNDS + 2_000))
            fleet.enqueue("other", [{}] * 5_000)
            time.sleep(1.0)
            without = rate(other, lambda: time.sleep(QUIET_S))
            beside = rate(other, lambda: pauses(fleet, program, "slow", count // ROUNDS - 1, tally, look=False))
            tally.ratios.append(beside / without)
            pauses(fleet, program, "slow", 1, tally)
    return tally


def rate(starts: Starts, passing: Callable[[], None]) -> float:
    """Starts a second while something passes."""
    from_ns = time.monotonic_ns()
    passing()
    to_ns = time.monotonic_ns()
    return starts.between(from_ns, to_ns) / ((to_ns - from_ns) / 1e9)


def commands(broker: brokers.Broker) -> tuple[list[float], list[float], list[float]]:
    """Seconds of `qctl pause` and `qctl resume` against two processes, and of an interpreter that does nothing."""
    pause_s, resume_s, bare_s = [], [], []
    with staged(broker, "--only", "slow", "--processes", "2") as (fleet, worker, _):
        wait_until("both processes", lambda: worker.log().count("web-1/slow consuming") == 2)
        fleet.enqueue("slow", [{}] * 5_000)
        for _ in range(COMMANDS):
            bare_s.append(taken([sys.executable, "-c", "pass"], fleet))
            pause_s.append(taken([*fleet.command, "pause", "web-1/slow"], fleet))
            resume_s.append(taken([*fleet.command, "resume", "web-1/slow"], fleet))
    return pause_s, resume_s, bare_s


def taken(command: list[str], fleet: Fleet) -> float:
    """Seconds of a whole process, which must succeed."""
    started_s = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        cwd=fleet.directory,
        env=fleet.environment,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started_s


def show(name: str, tally: Tally) -> None:
    """Print what was found of one consumer."""
    print(f"{name}: {len(tally.answered_s)} pauses and resumes, on {os.cpu_count()} cores with the broker")
    print("  ms from the confirmed event to       p50      p99      max")
    for words, found_s in (
        ("cancel-ok, by the host's clock", tally.cancelled_s),
        ("the answer, as it is heard", tally.answered_s),
        ("the answer to a resume", tally.resumed_s),
    ):
        p = quantiles(found_s, n=100, method="inclusive")
        print(f"  {words:31}  {p[49] * 1000:7.1f}  {p[98] * 1000:7.1f}  {max(found_s) * 1000:7.1f}")
    print(f"  tasks started after an answer and before the resume: {tally.late}")
    print(f"  pauses that met nothing at work: {tally.idle}")
    if tally.looks:
        print(f"  tag in the broker's own list while paused: {tally.listed} of {tally.looks} looks")
    if tally.ratios:
        shown = " ".join(f"{one:.3f}" for one in tally.ratios)
        print(f"  another consumer's rate, with pauses against without: median {median(tally.ratios):.3f} ({shown})")


def main(count: int) -> None:
    """Print everything."""
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch)) as node:
        broker = brokers.local_broker(node)
        print(f"RabbitMQ {broker.version}")
        show("tasks that do nothing", nothing(broker, count))
        show("tasks of 50 ms", slow(broker, count))
        pause_s, resume_s, bare_s = commands(broker)
    print(f"whole processes, two worker processes, median of {COMMANDS}:")
    for words, found_s in (("qctl pause", pause_s), ("qctl resume", resume_s), ("python -c pass", bare_s)):
        print(f"  {words:16} {median(found_s) * 1000:5.0f} ms, most {max(found_s) * 1000:.0f} ms")
    helps = [seconds(("pause", "--help")) for _ in range(COMMANDS + 1)][1:]
    print(f"  qctl pause --help {median(helps) * 1000:4.0f} ms, most {max(helps) * 1000:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PAUSES)
