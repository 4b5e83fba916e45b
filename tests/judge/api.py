"""The API that judges, a process of its own: `python -m tests.judge.api JSON` (see `config`), on a free port.

It writes `{"port": N}` to stdout, and serves until SIGTERM, SIGINT or the end of its stdin. It has its own clock, and
everything that it counts goes to its log before anybody hears of it, one JSON object a line:

    {"n": 7, "own": true, "path": "/a", "arrived_ns": .., "at_ns": .., "epoch_ns": .., "status": 200, "remaining": 12}
    {"n": 7, "answered_ns": ..}

`at_ns` is the instant of counting on the machine's monotonic clock, `epoch_ns` the same on the API's own. Calls of
somebody else (`own` false) are counted by the same counter and never answered. Whoever loses a line judges nobody:
a failure of any kind ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, cast

from qctl.demo.request import BadRequestError, Request, take
from tests.judge.config import Config, Spends
from tests.judge.said import Now, Style, headers, whole_seconds

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 429: "Too Many Requests"}
_BACKLOG = 512


class Clock:
    """The API's own: the wall clock at its start, wrong by a skew, and then as fast as its drift makes it."""

    def __init__(self, config: Config) -> None:
        self._since_ns = time.monotonic_ns()
        self._base_ns = time.time_ns() + round(config.skew_s * _NS_PER_S)
        self._ppm = config.drift_ppm

    def epoch_ns(self, at_ns: int) -> int:
        """What it shows at an instant of the monotonic clock."""
        passed_ns = at_ns - self._since_ns
        return self._base_ns + passed_ns + passed_ns * self._ppm // 1_000_000


class Api:
    """The counter, the clock and the log."""

    def __init__(self, config: Config, log_fd: int) -> None:
        self.config = config
        self.clock = Clock(config)
        self.random = random.Random(config.seed)
        self._counter = config.rule.counter()
        self._log_fd = log_fd
        self._calls = 0

    def count(self, path: str, *, own: bool, arrived_ns: int) -> tuple[int, int, Now]:
        """Count a call now; its number, its status, and what there is to say."""
        rule = self.config.rule
        at_ns = time.monotonic_ns()
        # The windows are those of its own clock, whatever that shows.
        epoch_ns = self.clock.epoch_ns(at_ns)
        counted = self._counter.count(epoch_ns) or not self.config.enforces
        remaining = self._counter.remaining(epoch_ns)
        refusal = 403 if self.config.style is Style.GITHUB else 429
        status = 200 if counted else refusal
        self._calls += 1
        self.log(
            {"n": self._calls, "own": own, "path": path, "arrived_ns": arrived_ns, "at_ns": at_ns,
             "epoch_ns": epoch_ns, "status": status, "remaining": remaining}
        )  # fmt: skip
        more_ns = self._counter.more_ns(epoch_ns) - epoch_ns
        limit = rule.burst if rule.kind == "paced" else rule.units
        return self._calls, status, Now(limit, remaining, rule.period_ns, epoch_ns, more_ns)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line, whole, at once."""
        os.write(self._log_fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def answer(self, status: int, now: Now) -> bytes:
        """The bytes of an answer. Its Date is of the instant of counting at the latest, as a proxy's before a slow back
        end is."""
        said = headers(self.config.style, now, floor=self.config.floor)
        if status != 200 and self.config.retry_after:
            said["Retry-After"] = str(max(1, whole_seconds(now.more_ns, floor=self.config.floor)))
        return _bytes(status, said, dated_ns(now.epoch_ns, self.config.date_phase_ms))

    def latency(self) -> tuple[float, float]:
        """Seconds before and after the counting of one call."""
        whole_s = self.random.uniform(*self.config.latency_ms) / 1000
        before_s = self.random.uniform(0, whole_s)
        return before_s, whole_s - before_s

    async def somebody_else(self) -> None:
        """Spend as the configuration says, for ever."""
        foreign, rule = self.config.foreign, self.config.rule
        period_s = rule.period_ns / _NS_PER_S
        match foreign.spends:
            case Spends.STEADY:
                while True:
                    await asyncio.sleep(self.random.expovariate(foreign.units / period_s))
                    self._spend(1)
            case Spends.BITE:
                while True:
                    at_s = self.random.uniform(0, period_s)
                    await asyncio.sleep(at_s)
                    self._spend(foreign.units)
                    await asyncio.sleep(period_s - at_s)
            case Spends.BEFORE:
                self._spend(foreign.units)
                while rule.kind == "fixed":
                    epoch_ns = self.clock.epoch_ns(time.monotonic_ns())
                    await asyncio.sleep((self._counter.more_ns(epoch_ns) - epoch_ns) / _NS_PER_S)
                    self._spend(foreign.units)

    def _spend(self, units: int) -> None:
        for _ in range(units):
            self.count("", own=False, arrived_ns=time.monotonic_ns())


def dated_ns(epoch_ns: int, phase_ms: int | None) -> int:
    """When the Date was made that an answer carries at this instant, see `Config`."""
    return epoch_ns if phase_ms is None else epoch_ns - (epoch_ns - phase_ms * _NS_PER_MS) % _NS_PER_S


def _bytes(status: int, said: Mapping[str, str], epoch_ns: int) -> bytes:
    body = b"{}"
    extra = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    date = formatdate(epoch_ns // _NS_PER_S, usegmt=True)
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nDate: {date}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + body


class Connection(asyncio.Protocol):
    """One client: requests are answered in order, one at a time."""

    def __init__(self, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        self._api = api
        self._loop = loop
        self._buffer = bytearray()
        self._busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        if self._busy:
            return
        try:
            request = take(self._buffer)
        except BadRequestError:
            if self._transport is not None:
                self._transport.abort()
            return
        if request is not None:
            self._busy = True
            before_s, after_s = self._api.latency()
            self._loop.call_later(before_s, self._count, request, time.monotonic_ns(), after_s)

    def _count(self, request: Request, arrived_ns: int, after_s: float) -> None:
        # Whether the client is there still or not: it has called.
        number, status, now = self._api.count(request.path, own=True, arrived_ns=arrived_ns)
        self._loop.call_later(after_s, self._answer, number, self._api.answer(status, now))

    def _answer(self, number: int, reply: bytes) -> None:
        self._busy = False
        self._api.log({"n": number, "answered_ns": time.monotonic_ns()})
        if self._transport is not None:
            self._transport.write(reply)
            self._next()


class _EndOfInput(asyncio.Protocol):
    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, _: Exception | None) -> None:
        self._ended.set()


async def serve(config: Config) -> int:
    """Serve until told to end; returns the exit status."""
    loop, ended, failures = asyncio.get_running_loop(), asyncio.Event(), []

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context)
        ended.set()

    loop.set_exception_handler(failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    log_fd = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    api = Api(config, log_fd)
    listener = await loop.create_server(lambda: Connection(api, loop), "127.0.0.1", 0, backlog=_BACKLOG)
    await loop.connect_read_pipe(lambda: _EndOfInput(ended), sys.stdin)
    spender = loop.create_task(api.somebody_else())
    await asyncio.sleep(0)  # who spends before the others has done it when they hear of the port
    os.write(1, json.dumps({"port": listener.sockets[0].getsockname()[1]}).encode() + b"\n")
    await ended.wait()
    spender.cancel()
    listener.close()
    for failure in failures:
        os.write(2, f"{failure}\n".encode(errors="backslashreplace"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(Config.from_json(sys.argv[1]))))
