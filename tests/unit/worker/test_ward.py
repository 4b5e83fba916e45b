"""What the worker process makes of a ward that dies: a real child, which plays the ward by a script."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Properties
from qctl.inventory.model import RetryPolicy
from qctl.worker import ward as wards
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.outcome import ACK
from qctl.worker.ward import Bed, Patient, Ward

PRELUDE = """
import os, signal, sys, time
from multiprocessing.connection import Connection
from qctl.worker.delivery import Settled
from qctl.worker.outcome import ACK
pipe = Connection(int(sys.argv[1]))
pipe.recv()
def take():
    return pipe.recv()[1]
def begin(number):
    pipe.send(("may start", number))
    assert pipe.recv()[2]
"""


class Scene:
    """A ward whose child runs `script`, and one consumer's bed in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.settled: list[Settled] = []
        self.script = directory / "child.py"
        started = subprocess.Popen

        def start(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
            return started([sys.executable, str(self.script), *argv[3:]], **options)

        monkeypatch.setattr(subprocess, "Popen", start)
        monkeypatch.setattr(wards, "IDLE_S", 0.1)
        self.ward = Ward(cast(Any, None), "web-1/0")
        consumer = SimpleNamespace(name="calls", concurrency=9, timeout_s=30.0, retry=RetryPolicy())
        rules = SimpleNamespace(consumer=consumer, ladder_s=(1.0,))
        self.bed = Bed(self.ward, cast(Any, rules), self.settled.append, lambda _: True)

    def serve(self, script: str, *suspects: Delivery) -> bool:
        self.script.write_text(PRELUDE + script)
        self.ward._waiting.extend(Patient(self.bed, one, alone=False) for one in suspects)
        return self.ward._serve()

    @property
    def waiting(self) -> list[Delivery]:
        return [one.delivery for one in self.ward._waiting]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    return Scene(monkeypatch, tmp_path)


def suspect(tag: int) -> Delivery:
    return Delivery(cast(Any, None), tag, True, Properties(), b"", 0.0)


def feed_late(scene: Scene, late: Delivery) -> Callable[[Any], None]:
    """Feeding that hands in one more only when the child has died with all it was given running."""
    feed = scene.ward._feed

    def slow(pipe: Any) -> None:
        child, inside = scene.ward._child, scene.ward._inside.values()
        if child is not None and inside and all(one.started for one in inside):
            child.wait(10)
            scene.ward._waiting.append(Patient(scene.bed, late, alone=False))
        feed(pipe)

    return slow


def test_what_had_ended_before_the_ward_died_is_not_run_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two that run, one of which ends and the other kills the ward while a third is being handed in
    done, killer, late = suspect(1), suspect(2), suspect(3)
    monkeypatch.setattr(scene.ward, "_feed", feed_late(scene, late))
    script = """
a, b = take(), take()
begin(a), begin(b)
pipe.send(("settled", a, Settled(None, ACK)))
os._exit(9)
"""
    assert scene.serve(script, done, killer)

    # Then the first one is done, and only the second to blame
    assert (scene.settled[0].delivery, scene.settled[0].outcome) == (done, ACK)
    assert [one.delivery for one in scene.settled[1:]] == [killer]
    assert scene.waiting == [late]


def test_who_has_ended_is_on_its_way_out_before_it_is_no_longer_inside(scene: Scene) -> None:
    # Given that a drain ends the process when nobody is inside and nothing is on its way out
    inside: list[int] = []
    scene.bed.settled = lambda _: inside.append(len(scene.ward._inside))

    scene.serve(
        """
a = take()
begin(a)
pipe.send(("settled", a, Settled(None, ACK)))
pipe.recv()
""",
        suspect(1),
    )

    assert inside == [1]


def test_who_never_began_is_not_to_blame_and_costs_no_neighbour_a_second_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one that runs, and one that waits for longer than it may (a slow import, say)
    monkeypatch.setattr(wards, "START_S", 0.1)
    script = """
begin(take())
take()
time.sleep(60)
"""
    looking = threading.Event()

    def look() -> None:
        while not looking.wait(0.05):
            scene.ward.expire()

    thread = threading.Thread(target=look)
    monkeypatch.setattr(scene.ward, "_feed", both_at_once(scene, thread))

    # When the ward is ended for it
    runs, waits = suspect(1), suspect(2)
    scene.serve(script, runs, waits)
    looking.set()
    thread.join()

    # Then nobody is to blame, and it goes alone
    assert scene.settled == []
    assert [(one.delivery, one.alone) for one in scene.ward._waiting] == [(runs, False), (waits, True)]


def both_at_once(scene: Scene, thread: threading.Thread) -> Callable[[Any], None]:
    """Feeding that begins to look at the time only when the first one runs."""
    feed = scene.ward._feed

    def feeds(pipe: Any) -> None:
        feed(pipe)
        if any(one.started for one in scene.ward._inside.values()) and not thread.is_alive():
            thread.start()

    return feeds


def test_a_ward_that_fails_in_our_own_hands_keeps_nobody(scene: Scene) -> None:
    one = suspect(1)
    with pytest.raises(KeyError):
        scene.serve("take(), pipe.send(('settled', 7, None)), pipe.recv()", one)

    assert (scene.bed.inside, scene.waiting) == (0, [one])


@pytest.mark.parametrize(("script", "suspects", "lived"), [("os._exit(3)", 1, False), ("pipe.recv()", 0, True)])
def test_a_ward_that_nobody_needed_any_more_does_start(scene: Scene, script: str, suspects: int, lived: bool) -> None:
    assert scene.serve(script, *(suspect(number) for number in range(suspects))) is lived


def test_a_terminal_that_closes_does_not_end_the_ward() -> None:
    script = """
import os, signal
from qctl.worker.isolated import _die_with
_die_with(os.getppid())
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7


def test_a_suspect_is_starting_from_before_it_is_looked_whether_it_may_until_the_ward_says_it_is_inside(
    scene: Scene,
) -> None:
    one, other = suspect(1), suspect(2)
    seen: list[tuple[str, bool]] = []

    def look(what: str) -> None:
        seen.append((what, scene.bed.is_starting(lambda it: it is one)))

    hear = scene.ward._hear

    def hear_and_look(pipe: Any, what: str, number: int, *words: Any) -> bool:
        if scene.ward._inside[number].delivery is one:
            look(f"before {what}")
        heard = hear(pipe, what, number, *words)
        if what != "settled":
            look(f"after {what}")
        return heard

    scene.ward._hear = hear_and_look  # type: ignore[method-assign]
    scene.bed.may_start = lambda it: (it is one and look("looked at"), it is one)[1]
    script = """
a, b = take(), take()
pipe.send(("may start", b))
assert not pipe.recv()[2]
begin(a)
pipe.send(("inside", a))
for number in (a, b):
    pipe.send(("settled", number, Settled(None, ACK)))
"""
    assert scene.serve(script, one, other)

    assert [it for it in seen if it[0] != "after may start"] == [
        ("before may start", False),
        ("looked at", True),
        ("before inside", True),
        ("after inside", False),
        ("before settled", False),
    ]
    assert seen[0] == ("after may start", False)  # of the one that may not
    assert not scene.bed.is_starting(lambda _: True)
