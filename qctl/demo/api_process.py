"""Start and end the rate-limited API as a process of its own, and read its log.

`with ApiServer((Upstream("web-1", limit_units=200, window_s=10.0),), directory=path, latency_ms=25) as api:` and then
call `api.url("web-1")`; `api.calls()` is what the API has logged so far.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from qctl.demo.judge import Call, Upstream, read_calls
from qctl.errors import QctlError

#: A fresh interpreter binds its ports in 0.2 s; this is for a machine that is busy with other things.
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
#: The line that says which ports are bound, with room for thousands of hosts.
MAX_READY_BYTES = 256 * 1024


class ApiServer:
    """A context manager around one API process; `ports`, `url`, `log_path` and `calls` are for whoever judges.

    directory: where `api.jsonl` (the log of calls) and `api.stderr` go; it must exist.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        directory: Path,
        latency_ms: int = 25,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self.upstreams = tuple(upstreams)
        self.log_path = directory / "api.jsonl"
        self.stderr_path = directory / "api.stderr"
        self.ports: Mapping[str, int] = dict(ports or {})
        self._latency_ms = latency_ms
        self._calls: list[Call] = []
        self._read_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process is not None else None

    def url(self, host: str) -> str:
        """Where `host` calls: `http://127.0.0.1:PORT/`."""
        return f"http://127.0.0.1:{self.ports[host]}/"

    def calls(self) -> tuple[Call, ...]:
        """Every call logged so far, in the order of arrival; none before the start. Each line is parsed once."""
        if self.log_path.exists():
            with self.log_path.open("rb") as log:
                log.seek(self._read_bytes)
                new = log.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._calls.extend(read_calls(whole.decode("utf-8").splitlines(keepends=True)))
            self._read_bytes += len(whole)
        return tuple(self._calls)

    def running(self) -> bool:
        """Whether the process is still there to judge."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raises QctlError when the process has ended of itself: nobody judges any more."""
        if not self.running():
            raise QctlError("the rate-limited API ended by itself", hint=f"See {self.stderr_path}.")

    def start(self) -> None:
        """Start the process and wait until its ports are bound. Raises QctlError when it ends or stays silent."""
        config = {
            "log": str(self.log_path),
            "latency_ms": self._latency_ms,
            "servers": [
                {
                    "host": one.host,
                    "port": self.ports.get(one.host, 0),
                    "limit_units": one.limit_units,
                    "window_ms": round(one.window_s * 1000),
                }
                for one in self.upstreams
            ],
        }
        self.log_path.touch(mode=0o600)
        with self.stderr_path.open("ab") as stderr:
            # A session of its own: Ctrl-C is for the scenario, which still needs its judge while it ends the workers.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qctl.demo.api", "--config", json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            self.ports = self._bound_ports(self._process.stdout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, politely and then not. Does nothing when it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _bound_ports(self, stdout: IO[bytes] | None) -> Mapping[str, int]:
        line = _first_line(stdout, timeout_s=START_TIMEOUT_S) if stdout is not None else b""
        try:
            return {str(host): int(port) for host, port in json.loads(line)["ports"].items()}
        except (ValueError, KeyError, TypeError):
            said = self.stderr_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            cause = f": {said[-1]}" if said else ""
            raise QctlError(f"the rate-limited API did not start{cause}", hint=f"See {self.stderr_path}.") from None


def _first_line(stream: IO[bytes], *, timeout_s: float) -> bytes:
    """What came up to the first newline, the end of the stream, the timeout or MAX_READY_BYTES."""
    deadline_s = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in line and len(line) < MAX_READY_BYTES:
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                break
            chunk = os.read(stream.fileno(), 65_536)
            if not chunk:
                break
            line += chunk
    return line
