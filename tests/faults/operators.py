"""Operators at their shells: `qctl pause` and `qctl resume` as whole processes, and what they claim, for the judge.

What a command says is written into the history as said: the judge holds every start of a task against it.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.brokers import Vhost
from tests.faults.history import ALL_PROCESSES, Event
from tests.faults.orders import Answer, seconds_of
from tests.faults.scene import Scene

EVERYTHING = ".*"


@dataclass(frozen=True, slots=True)
class Commanded:
    """How a command ended. rows: the items of its document, none when it printed no document."""

    code: int
    document: Mapping[str, Any]
    stderr: str
    began_ns: int
    ended_ns: int

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One for each consumer tag, or for each process that could not be asked for its tags."""
        return self.document.get("items", ())

    def proofs(self) -> list[str]:
        """The words of all rows, sorted: `proven`, `down`, `unproven`."""
        return sorted(row["proof"] for row in self.rows)

    @property
    def seconds(self) -> float:
        """How long the whole process took."""
        return (self.ended_ns - self.began_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody at a shell, as a user of the broker; by default as the one that the workers are."""

    scene: Scene
    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout_s: float = 60.0) -> Commanded:
        """Any command of qctl, with `-o json`."""
        return self.finish(self.begin(*arguments), timeout_s)

    def begin(self, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
        """The same without waiting for its end; give what it returns to `finish`."""
        fleet = self.scene.fleet
        began_ns = time.monotonic_ns()
        process = subprocess.Popen(
            [*fleet.command, "-o", "json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**fleet.environment, **self.environment},
            cwd=fleet.directory,
        )
        return process, began_ns

    def finish(self, running: tuple[subprocess.Popen[bytes], int], timeout_s: float = 60.0) -> Commanded:
        """Wait for the end of a command."""
        process, began_ns = running
        stdout, stderr = process.communicate(timeout=timeout_s)
        ended_ns = time.monotonic_ns()
        document = json.loads(stdout) if stdout.strip() else {}
        done = Commanded(process.returncode, document, stderr.decode("utf-8", "replace"), began_ns, ended_ns)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def pause(self, target: str, *arguments: str, code: int = 0, pids: Sequence[int] = ()) -> Commanded:
        """`qctl pause`; what it claims is noted. code: how it must end. pids: as `claims` needs them."""
        done = self.run("pause", target, "--yes", *arguments)
        assert done.code == code, (done.code, done.document, done.stderr)
        self.note(done, pids)
        return done

    def note(self, done: Commanded, pids: Sequence[int] = ()) -> None:
        """Write into the history what a pause claims, of all processes or of single ones."""
        self.scene.history.write(claims(done, pids))

    def resume(self, target: str, *arguments: str, code: int = 0) -> Commanded:
        """`qctl resume`; from its beginning on, the consumers of HOST/CONSUMER may start tasks again."""
        self.lifting(target)
        done = self.run("resume", target, "--yes", *arguments)
        assert done.code == code, (done.code, done.document, done.stderr)
        return done

    def lifting(self, target: str, at_ns: int | None = None) -> None:
        """The pauses of HOST/CONSUMER are about to be lifted, or end at that instant."""
        host, consumer = target.split("/")
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        self.scene.history.write([Event(at_ns, "lifting", consumer, ALL_PROCESSES, host)])


def claims(done: Commanded, pids: Sequence[int] = ()) -> list[Event]:
    """What a pause says of starts from now on, or from an instant on: proven, down, or unproven until then.

    pids: the processes of the host by their index, where not everything is proven; none, when all of them are gone.
    """
    found = []
    for row in done.rows:
        index = row["tag"].split("/")[3]
        whole = done.code == 0 or not index.isdigit()
        at_ns = done.ended_ns
        if row["proof"] not in ("proven", "down"):
            if row["may_start_until"] is None:
                continue
            at_ns = monotonic_ns(seconds_of(row["may_start_until"]))
        pid = ALL_PROCESSES if whole or not pids else pids[int(index)]
        found.append(Event(at_ns, "paused", row["consumer"], pid, row["host"]))
    return found


def acknowledged(answers: Sequence[Answer]) -> list[Event]:
    """What processes themselves have answered to a pause, each from the instant at which it was heard."""
    return [
        Event(one.heard_ns, "paused", row["consumer"], one.said["pid"], one.said["host"])
        for one in answers
        for row in one.said["rows"]
        if row["state"] in ("paused", "draining", "down")
    ]


def monotonic_ns(at_s: float) -> int:
    """An instant of the wall clock on the clock of the histories."""
    return time.monotonic_ns() + round((at_s - time.time()) * 1e9)


@contextmanager
def operator(scene: Scene, name: str) -> Iterator[Operator]:
    """An operator with a user of the broker's own, who has every right, for the time of the block."""
    vhost: Vhost = scene.vhost
    user, password = f"{name}-{secrets.token_hex(4)}", secrets.token_hex(8)
    vhost.broker.api("PUT", f"/users/{user}", {"password": password, "tags": "monitoring"})
    rights = {"configure": EVERYTHING, "write": EVERYTHING, "read": EVERYTHING}
    vhost.broker.api("PUT", f"/permissions/{vhost.name}/{user}", rights)
    try:
        yield Operator(scene, user, {"QCTL_USERNAME": user, "QCTL_PASSWORD": password})
    finally:
        vhost.broker.api("DELETE", f"/users/{user}")


def tag_lines(scene: Scene, pattern: str) -> list[str]:
    """The consumer tags that the broker lists and that match a regular expression as a whole."""
    return sorted(tag for tag in scene.fleet.consumer_tags() if re.fullmatch(pattern, tag))
