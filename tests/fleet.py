"""Real workers on a real broker: an inventory and a handler module in a folder, and `qctl worker start` processes.

Handlers write what happened to append-only files, a line an event; whoever judges reads those, not the worker's words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import commands
from tests.brokers import Vhost

STOP_TIMEOUT_S = 45.0


def wait_until(what: str, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Ask `condition` until it says something true, and return that. Raises AssertionError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return found


class Worker:
    """One `qctl worker start`, its own process group."""

    def __init__(self, fleet: Fleet, host: str, arguments: Iterable[str]) -> None:
        self.host = host
        self.log_path = fleet.directory / f"{host}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*fleet.command, "worker", "start", "--host", host, "--state-dir", str(fleet.state), *arguments],
                cwd=fleet.directory,
                env=fleet.environment,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        """Everything that this host's workers have said."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def await_log(self, words: str, timeout_s: float = 30.0) -> None:
        """Wait until the log says `words`."""
        wait_until(f"{words!r} in the log of {self.host}", lambda: words in self.log(), timeout_s)

    def pids(self) -> list[int]:
        """The worker processes, without the supervisor."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()]

    def kill(self) -> None:
        """kill -9 the whole group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Fleet:
    """Hosts of one inventory on one virtual host. A context manager: everything it started has ended after it."""

    def __init__(self, vhost: Vhost, directory: Path, handlers: str = "", **inventory: Any) -> None:
        """handlers: the source of the module `handlers`; `note(NAME, TEXT)` is there to write a line to a history.

        inventory: the sections of the file but `version` and `broker`.
        """
        self.vhost = vhost
        self.directory = directory
        self.state = directory / "state"
        self.command = [sys.executable, "-m", "qctl", "-i", str(directory / "inventory.yaml")]
        self.environment = {**os.environ, **vhost.environment()}
        self.workers: list[Worker] = []
        document = {"version": 1, "broker": vhost.inventory_broker(), **inventory}
        (directory / "inventory.yaml").write_text(json.dumps(document), encoding="utf-8")
        note = f"""
            import os, time
            def note(name, *words):
                fd = os.open({str(directory)!r} + "/" + name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(fd, (" ".join(str(word) for word in words) + "\\n").encode())
                os.close(fd)
        """
        (directory / "handlers.py").write_text(textwrap.dedent(note) + textwrap.dedent(handlers), encoding="utf-8")

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def start(self, host: str, *arguments: str, ready: bool = True) -> Worker:
        """Start a host's worker; ready: wait until each of its consumers has said what it is."""
        worker = Worker(self, host, arguments)
        self.workers.append(worker)
        if ready:
            worker.await_log(" consuming\n")
        return worker

    def enqueue(self, consumer: str, payloads: Iterable[Any], *arguments: str) -> None:
        """`qctl enqueue --file -`."""
        lines = "".join(json.dumps(payload) + "\n" for payload in payloads)
        self.qctl("--quiet", "enqueue", consumer, "--file", "-", *arguments, input=lines.encode(), check=True)

    def qctl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """A command with this fleet's inventory, to its end; options: of `commands.run`."""
        inventory = str(self.directory / "inventory.yaml")
        return commands.run(["-i", inventory, *arguments], env=self.environment, cwd=self.directory, **options)

    def history(self, name: str) -> list[str]:
        """The lines that handlers noted under `name`."""
        path = self.directory / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def consumer_tags(self) -> list[str]:
        """The tags of hosts' consumers that the broker lists, without statistics that lag."""
        tags = [row.split("\t")[-1] for row in self.vhost.ctl("list_consumers", "consumer_tag").splitlines()[1:]]
        return [tag for tag in tags if tag.startswith("qctl/")]

    def queues(self) -> Mapping[str, tuple[int, int]]:
        """Queue -> (ready, unacknowledged). A quorum queue counts anew every 5 s, so wait for what you expect."""
        rows = self.vhost.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged").splitlines()[1:]
        return {name: (int(ready), int(unacked)) for name, ready, unacked in (row.split("\t") for row in rows)}
