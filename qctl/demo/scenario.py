"""The scenario: two servers with different API limits share one queue, each to spend its quota and not a call more.

`run` is a generator: frozen Progress values while it goes on, and at last one Report. It prints nothing. Everything it
starts is ended, by its id, before the Report comes, and also when the generator is closed or an error leaves it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from qctl.broker.local import local_directory, private_node
from qctl.demo import sample
from qctl.demo.api_process import ApiServer
from qctl.demo.commands import Worker, enqueue, signals_deferred, stop_all
from qctl.demo.judge import GRANTED, REFUSED, Call, Judgement, Upstream, judge
from qctl.demo.queue import QueueProbe, QueueReading
from qctl.errors import Interrupted, QctlError

#: What both hosts can spend in one window, to the last call; then more that has to wait for the next one.
FIRST_TASKS = 1200
MORE_TASKS = 600
#: With 4 and 16 tasks at once this is 80 and 320 calls a second: slow enough to be watched, quick beside the window.
API_LATENCY_MS = 50
MIN_WINDOW_S = 10.0
MAX_WINDOW_S = 600.0
#: Beyond the windows themselves: for spending a window, and for a worker that comes back after its hold.
SLACK_S = 30.0
POLL_S = 0.25


class Stage(StrEnum):
    """Where the scenario is."""

    BROKER = "starting a private RabbitMQ"
    WORKERS = "starting the rate-limited API and the workers of web-1 and web-2"
    SPENDING = "1,200 tasks in one queue, both servers spend their quota"
    DRY = "both quotas are spent; 600 more tasks wait until there is more"
    RETURN = "the quotas return, the rest is done"
    STOPPING = "stopping the workers and the broker"


@dataclass(frozen=True, slots=True)
class HostProgress:
    """One host by the API's log: the calls in its window now, and the seconds until the oldest of them leaves it."""

    host: str
    limit_units: int
    used_units: int
    refused: int
    more_in_s: float | None

    @property
    def spent(self) -> bool:
        """Whether nothing is left at present."""
        return self.used_units >= self.limit_units


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at everything. `queue` is None while the broker has not been asked, or does not answer.

    inventory: of this run, for whoever wants to look on with other commands; None while it is not written.
    """

    stage: Stage
    elapsed_s: float
    hosts: tuple[HostProgress, ...]
    enqueued: int
    done: int
    queue: QueueReading | None
    inventory: Path | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How it ended. `directory` holds the logs and the API's log of calls; None when it was removed."""

    judgement: Judgement
    window_s: float
    elapsed_s: float
    finished: bool
    directory: Path | None


def run(*, window_s: float, keep: bool) -> Generator[Progress | Report, None, None]:
    """Run the scenario with limits of 200 and 1,000 calls a window of `window_s`; `keep` leaves its directory behind.

    The directory is also kept when a promise was broken, or when an error left logs in it; the error says where it is.
    Raises QctlError.
    """
    began_s = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="qctl-demo-"))
    kept = keep
    try:
        limits = sample.upstreams(window_s)
        with ExitStack() as stack:
            scene = _Scene(stack, directory, limits, began_s)
            finished = yield from scene.play(window_s)
        judgement = judge(scene.api.calls(), limits, enqueued=scene.enqueued)
        kept = keep or not (finished and judgement.kept)
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
        yield Report(judgement, window_s, time.monotonic() - began_s, finished, directory if kept else None)
    except Interrupted:
        raise
    except QctlError as error:
        kept = kept or any(directory.iterdir())
        if kept:
            error.hint = " ".join(filter(None, (error.hint, f"The logs are in {directory}.")))
        raise
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)


class _Scene:
    """The processes of one run and what has been seen of them; `stack` ends them."""

    def __init__(self, stack: ExitStack, directory: Path, limits: Sequence[Upstream], began_s: float) -> None:
        self.api = ApiServer(limits, directory=directory, latency_ms=API_LATENCY_MS)
        self.enqueued: list[str] = []
        self._stack = stack
        self._directory = directory
        self._limits = limits
        self._began_s = began_s
        self._inventory = directory / "inventory.yaml"
        self._workers: list[Worker] = []
        self._probe: QueueProbe | None = None

    def play(self, window_s: float) -> Generator[Progress, None, bool]:
        """Both batches, one after the other. Returns whether every task was done in time."""
        yield self._look(Stage.BROKER)
        node = self._stack.enter_context(private_node(local_directory(self._inventory)))
        yield self._look(Stage.WORKERS)
        self._stack.enter_context(self.api)
        inventory = sample.write(
            self._inventory, {limit.host: self.api.url(limit.host) for limit in self._limits}, self._limits
        )
        self._probe = self._stack.enter_context(QueueProbe(node, inventory.consumer(sample.CONSUMER).queue))
        self._stack.callback(stop_all, self._workers)
        for limit in self._limits:
            with signals_deferred():
                self._workers.append(Worker(self._inventory, limit.host, directory=self._directory))
        self._enqueue(FIRST_TASKS)
        finished = yield from self._until_done(Stage.SPENDING, timeout_s=window_s + SLACK_S)
        self._enqueue(MORE_TASKS)
        finished = yield from self._until_done(Stage.DRY, timeout_s=window_s + SLACK_S)
        yield self._look(Stage.STOPPING)
        return finished

    def _until_done(self, stage: Stage, *, timeout_s: float) -> Generator[Progress, None, bool]:
        """Look on until everything enqueued is done, or the time is up. Returns whether it was done."""
        deadline_s = time.monotonic() + timeout_s
        dry = True
        while True:
            look = self._look(Stage.RETURN if stage is Stage.DRY and not dry else stage)
            dry = dry and all(host.spent for host in look.hosts)
            yield look
            if look.done >= look.enqueued:
                return True
            if time.monotonic() > deadline_s:
                return False
            for worker in self._workers:
                worker.check()
            self.api.check()
            time.sleep(POLL_S)

    def _enqueue(self, tasks: int) -> None:
        ids = [f"t-{number}" for number in range(len(self.enqueued) + 1, len(self.enqueued) + tasks + 1)]
        lines = [json.dumps({"path": f"users/{task[2:]}", "params": {"task": task}}) for task in ids]
        enqueue(self._inventory, sample.CONSUMER, lines, log_path=self._directory / "enqueue.log")
        self.enqueued += ids

    def _look(self, stage: Stage) -> Progress:
        calls = self.api.calls()
        return Progress(
            stage=stage,
            elapsed_s=time.monotonic() - self._began_s,
            hosts=tuple(host_progress(calls, limit, now_ns=time.monotonic_ns()) for limit in self._limits),
            enqueued=len(self.enqueued),
            done=len({call.task for call in calls if call.status == GRANTED}),
            queue=self._probe.read() if self._probe is not None else None,
            inventory=self._inventory if self._workers else None,
        )


def host_progress(calls: Sequence[Call], limit: Upstream, *, now_ns: int) -> HostProgress:
    """One host by the API's log, `now_ns` being an instant of the same clock."""
    own = [call for call in calls if call.host == limit.host]
    current_ns = [call.at_ns for call in own if call.status == GRANTED and call.at_ns > now_ns - limit.window_ns]
    return HostProgress(
        host=limit.host,
        limit_units=limit.limit_units,
        used_units=len(current_ns),
        refused=sum(call.status == REFUSED for call in own),
        more_in_s=(min(current_ns) + limit.window_ns - now_ns) / 1e9 if current_ns else None,
    )
