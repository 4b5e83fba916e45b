"""The real commands as processes: `qctl worker start` and `qctl enqueue`, started here and ended here, by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qctl.errors import QctlError

#: A drain only waits for the calls in flight, which take milliseconds here.
DRAIN_TIMEOUT_S = 15.0
ENQUEUE_TIMEOUT_S = 60.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.02
#: Characters of a worker's last line that go into an error message.
_MAX_QUOTE = 300


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait until the block ends: a process is started and noted as one.

    Handlers are exchanged rather than signals blocked, since a started process would inherit the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    waiting: list[int] = []
    before = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in waiting:
            signal.raise_signal(caught)


def argv(inventory: Path, *arguments: str) -> list[str]:
    """A command of qctl on `inventory`, run by this interpreter."""
    return [sys.executable, "-m", "qctl", "-i", str(inventory), *arguments]


def environment() -> dict[str, str]:
    """The caller's environment without its settings for qctl: the scenario has a broker and a user of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("QCTL_")}


class Worker:
    """One `qctl worker start`, the leader of a process group of its own; its log goes to a file."""

    def __init__(self, inventory: Path, host: str, *, directory: Path) -> None:
        self.host = host
        self.log_path = directory / f"{host}.log"
        state = directory / "state" / host
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C is for the scenario, which then drains its workers in order.
            self._process = subprocess.Popen(
                argv(inventory, "worker", "start", "--host", host, "--state-dir", str(state)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises QctlError when the worker has ended of itself."""
        if self._ended():
            said = self.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = said[-1][:_MAX_QUOTE] if said else "it said nothing"
            raise QctlError(f"the worker of {self.host} ended by itself: {last}", hint=f"See {self.log_path}.")

    def terminate(self) -> None:
        """Ask for a drain; returns at once."""
        if not self._ended():
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Wait for the drain that `terminate` asked for; then end whatever is left of the group. The exit status.

        A worker that does not end in DRAIN_TIMEOUT_S is killed.
        """
        self.terminate()
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while not self._ended() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        if self._process.returncode is None:
            # Not reaped yet, so that its id still names its own group and no other.
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def enqueue(inventory: Path, consumer: str, lines: Iterable[str], *, log_path: Path) -> None:
    """Run `qctl enqueue CONSUMER --file -` on JSON lines. Raises QctlError unless all of them were confirmed."""
    with log_path.open("ab") as log:
        try:
            ended = subprocess.run(
                argv(inventory, "enqueue", consumer, "--file", "-"),
                input="".join(f"{line}\n" for line in lines).encode(),
                stdout=log,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=ENQUEUE_TIMEOUT_S,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise QctlError(f"qctl enqueue did not end in {ENQUEUE_TIMEOUT_S:g} s") from None
        log.write(ended.stderr)
    if ended.returncode:
        raise QctlError(
            f"qctl enqueue ended with {ended.returncode}: {_last_line(ended.stderr)}", hint=f"See {log_path}."
        )


def stop_all(workers: Sequence[Worker]) -> None:
    """Drain all workers at once, and wait until each is gone."""
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.stop()


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:_MAX_QUOTE] if lines else "it said nothing"
